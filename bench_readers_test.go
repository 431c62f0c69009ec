//go:build bench && linux

// bench_readers_test.go is how a child reads a mount's file out of order: one
// piece, in shares, or at random beside a sequential reader; and the ranged
// requests beside which that is measured. Bytes are compared where that takes
// no time that counts.

package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// benchReadPiece returns the nanoseconds from open to a piece of a file, which
// must be the content of the seed. Its arguments are a path, the seed, and
// offset and length of the piece.
func benchReadPiece(args []string) (string, error) {
	seed, err1 := strconv.ParseUint(args[1], 10, 64)
	off, err2 := strconv.ParseInt(args[2], 10, 64)
	n, err3 := strconv.ParseInt(args[3], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return "", err
	}
	p := make([]byte, n)
	begin := time.Now()
	f, err := benchOpen(args[0])
	if err != nil {
		return "", err
	}
	defer f.Close()
	err = f.readFull(p, off)
	took := time.Since(begin)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(took.Nanoseconds()), checkContent(p, seed, off)
}

// benchFD is a descriptor that the runtime's poller knows nothing of: it may be
// of a file of a mount.
type benchFD int

func benchOpen(path string) (benchFD, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return benchFD(fd), err
}

func (fd benchFD) Close() error { return unix.Close(int(fd)) }

// readFull fills p with the bytes at off.
func (fd benchFD) readFull(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(int(fd), p, off)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("at %d: %w", off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// benchReadShares returns the nanoseconds that the readers take together, each
// for its own share of the middle file: of a path, or of a URL by a request of
// its own, which keeps it in a file too, if one is named. The bytes, whose seed
// is given, are compared when all have come.
func benchReadShares(args []string) (string, error) {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	read := benchReadShare
	if strings.HasPrefix(args[0], "http:") {
		read = benchGetShare
	}
	keep := ""
	if len(args) > 2 {
		keep = args[2]
	}
	all := make([]byte, benchMidBytes)
	fillContent(all, 0, 0) // so that no page of it is to be made while time counts
	begin := time.Now()
	err = benchAtOnce(benchReaders, func(i int) error {
		off := int64(i) * benchShareBytes
		return read(args[0], all[off:off+benchShareBytes], off, keep)
	})
	took := time.Since(begin)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(took.Nanoseconds()), checkContent(all, seed, 0)
}

// benchAtOnce runs work n times at once, and returns when all are done.
func benchAtOnce(n int, work func(i int) error) error {
	var workers sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		workers.Go(func() { errs[i] = work(i) })
	}
	workers.Wait()
	return errors.Join(errs...)
}

// benchReadShare reads by 1 MiB at a time.
func benchReadShare(path string, p []byte, off int64, _ string) error {
	f, err := benchOpen(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for piece := range slices.Chunk(p, 1<<20) {
		if err := f.readFull(piece, off); err != nil {
			return err
		}
		off += int64(len(piece))
	}
	return nil
}

// benchGetShare requests it on a connection of its own.
func benchGetShare(url string, p []byte, off int64, keep string) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("%s, not %d", resp.Status, http.StatusPartialContent)
	}
	return benchReceive(resp.Body, p, off, keep)
}

// benchReceive fills p, and writes it at off of the file to keep it in, if any.
func benchReceive(body io.Reader, p []byte, off int64, keep string) error {
	write := func([]byte, int64) (int, error) { return 0, nil }
	if keep != "" {
		f, err := os.OpenFile(keep, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		write = f.WriteAt
	}
	for piece := range slices.Chunk(p, 1<<20) {
		if _, err := io.ReadFull(body, piece); err != nil {
			return err
		}
		if _, err := write(piece, off); err != nil {
			return err
		}
		off += int64(len(piece))
	}
	return nil
}

// benchSeek returns the nanoseconds that the middle file takes in sequence
// while seekers read it at random until it ends, the mean of what a seek took,
// and how many there were. What seekers read is compared.
func benchSeek(args []string) (string, error) {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	var seeks, spent atomic.Int64
	var took time.Duration
	ended := make(chan struct{})
	err = benchAtOnce(1+benchSeekers, func(i int) error {
		f, err := benchOpen(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		if i == 0 {
			defer close(ended)
			took, err = f.readThrough(benchMidBytes)
			return err
		}
		return f.seekAbout(uint64(i), seed, ended, &seeks, &spent)
	})
	return fmt.Sprint(took.Nanoseconds(), spent.Load()/max(1, seeks.Load()), seeks.Load()), err
}

// readThrough reads a file of that size from its start, and returns how long
// that takes.
func (fd benchFD) readThrough(size int64) (time.Duration, error) {
	p := make([]byte, 1<<20)
	begin := time.Now()
	for off := int64(0); off < size; off += int64(len(p)) {
		if err := fd.readFull(p, off); err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

// seekAbout reads at random places of the middle file until ended, and counts
// how often and how long that takes.
func (fd benchFD) seekAbout(random, seed uint64, ended <-chan struct{}, seeks, spent *atomic.Int64) error {
	places, p := rand.New(rand.NewPCG(random, 1)), make([]byte, benchSeekBytes)
	for {
		off := places.Int64N(benchMidBytes - benchSeekBytes)
		begin := time.Now()
		if err := fd.readFull(p, off); err != nil {
			return err
		}
		spent.Add(time.Since(begin).Nanoseconds())
		seeks.Add(1)
		if err := checkContent(p, seed, off); err != nil {
			return err
		}
		select {
		case <-ended:
			return nil
		case <-time.After(benchSeekPause):
		}
	}
}
