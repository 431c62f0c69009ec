//go:build bench

// bench_network_test.go measures reads that the network limits or that are out of
// order: the end of a slow file, many readers, seeks beside a sequential read, slow
// connections, and a long round trip.

package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// The file of the slow and the distant origin. Its end is not page-aligned.
	benchSlowSeed  = 3
	benchSlowBytes = 64<<20 - 4321

	benchTailBytes = 64 << 10

	// The readers of shares read equal parts of the middle file.
	benchReaders    = 16
	benchShareBytes = benchMidBytes / benchReaders

	// A seeker reads as a player does at a new place, or a demuxer in an index.
	benchSeekers   = 8
	benchSeekBytes = 64 << 10

	// benchSeekPause is the pause of a seeker between two seeks. Without it, seekers
	// keep a processor from the sequential reader.
	benchSeekPause = 10 * time.Millisecond
)

// tail measures the last bytes of a file that is far from complete, as a reader wants
// them that starts with an index at the end.
func (r *benchRig) tail(t *testing.T) {
	r.measurePiece(t, benchPieceRow{
		what: "last 64 KiB of 64 MiB at 4 MB/s", name: "slow/slow.bin", seed: benchSlowSeed,
		off: benchSlowBytes - benchTailBytes, n: benchTailBytes,
		curlRange: fmt.Sprint(-benchTailBytes), curlTime: "time_total", command: "tail",
		read: func(m *benchMount) ([]byte, time.Duration) {
			res := benchRun(t, m, "tail", "-c", fmt.Sprint(benchTailBytes), m.file)
			return []byte(res.stdout), res.wall
		},
	})
}

// shares measures readers that each read another part of a file, which nobody has read
// yet.
func (r *benchRig) shares(t *testing.T) {
	const name = "mid/mid.bin"
	what := fmt.Sprintf("256 MiB cold, %d readers of 16 MiB each", benchReaders)
	floor := fmt.Sprintf("%d ranged GETs at once", benchReaders)
	kept := r.table.row(what, "ms", floor+", into a file", benchTarget{most: 1.3})
	dropped := r.table.row(what, "ms", floor, benchTarget{most: 1.3})
	for range benchRuns {
		dropped.floor.add(benchChild(t, nil, "shares", r.url(name), benchMidSeed)[0] / 1e6)
		file := filepath.Join(r.dir, "shares.out")
		kept.floor.add(benchChild(t, nil, "shares", r.url(name), benchMidSeed, file)[0] / 1e6)
		os.Remove(file)

		m := r.fsmount(t, r.url(name))
		dropped.addOurs(m, func() float64 { return benchChild(t, m, "shares", m.file, benchMidSeed)[0] / 1e6 })
		m.stop()
	}
	kept.ours, kept.peak = dropped.ours, dropped.peak
}

// seekers measures a sequential read beside random reads: what they add to its time,
// and to what the origin sends.
func (r *benchRig) seekers(t *testing.T) {
	const roundTrip, rate = 20 * time.Millisecond, 64 << 20
	url := r.url("counted/mid.bin")
	r.seekersBeside(t, "256 MiB", url)
	r.seekersBeside(t, "256 MiB through 20 ms and 64 MiB/s", benchLinkTo(t, url, roundTrip/2, rate))
}

func (r *benchRig) seekersBeside(t *testing.T, what, url string) {
	what = fmt.Sprintf("%s beside %d random seekers", what, benchSeekers)
	took := r.table.row(what, "s", "curl -o FILE, time_total", benchTarget{most: 1.2})
	sent := r.table.row(what+": sent by the origin", "MiB", "curl -o FILE", benchTarget{most: 1.1})
	seek := r.table.row(what+": a seek, mean", "ms", "", benchTarget{})
	seeks := r.table.row(what+": seeks", "", "", benchTarget{})
	for range benchRuns {
		before := r.sent(t)
		fl := r.curl(t, benchMidBytes, "-w", "%{time_total}", url)
		took.floor.add(benchFigure(t, fl.stdout))
		sent.floor.add(r.sent(t) - before)

		before = r.sent(t)
		m := r.fsmount(t, url)
		took.addOurs(m, func() float64 {
			figures := benchChild(t, m, "seekers", m.file, benchMidSeed)
			seek.ours.add(figures[1] / 1e6)
			seeks.ours.add(figures[2])
			return figures[0] / 1e9
		})
		r.compare(t, m, "mid/mid.bin")
		m.stop()
		sent.ours.add(r.sent(t) - before)
	}
}

// sent returns how many MiB, headers included, nginx has passed to its kernel for the
// counted files.
//
// BLOCKS until every connection to the origin has ended, because nginx counts a request
// at its end; wakes on benchPatience, which fails the test.
func (r *benchRig) sent(t *testing.T) (mib float64) {
	t.Helper()
	r.nginx.await(t, func() bool { return r.connected(t) == 1 })
	log, err := os.ReadFile(filepath.Join(r.dir, benchSentLog))
	benchOK(t, err)
	for line := range strings.Lines(string(log)) {
		mib += benchFigure(t, line) / (1 << 20)
	}
	return mib
}

// connected returns how many connections the origin has. The one that asks is one of
// them.
func (r *benchRig) connected(t *testing.T) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url("connections"), nil)
	benchOK(t, err)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	benchOK(t, err)
	defer resp.Body.Close()
	n := 0
	if _, err := fmt.Fscanf(resp.Body, "Active connections: %d", &n); err != nil {
		t.Fatalf("nginx does not say how many connections it has: %v", err)
	}
	return n
}

// connections measures an origin that limits the rate of each request.
func (r *benchRig) connections(t *testing.T) {
	const runs = 2 // of twelve seconds and more: little disturbs them
	const size = 96 << 20
	row := r.table.row(fmt.Sprintf("96 MiB, 50 ms and 8 MB/s a request, dd bs=1M, %d runs", runs), "MiB/s",
		"--connections 1", benchTarget{least: 3})
	url := benchThrottled(t, &localFile{name: "throttled.bin", size: size, seed: benchSlowSeed, rate: 8e6}, 50*time.Millisecond)
	read := func(side *benchSide, connections string) {
		m := r.fsmount(t, "--connections", connections, url)
		defer m.stop()
		side.addTimed(m, func() float64 { return benchMiBps(size, benchDD(t, m, m.file, size)) })
		benchChild(t, m, "check", m.file, benchSlowSeed)
	}
	for range runs {
		read(&row.floor, "1")
		read(&row.ours, "4")
	}
}

// distant measures a file behind a round trip.
func (r *benchRig) distant(t *testing.T) {
	const roundTrip = 20 * time.Millisecond
	row := r.table.row("64 MiB through 20 ms of round trip, dd bs=1M", "ms", "curl -o FILE", benchTarget{most: 1.1})
	url := benchLinkTo(t, r.url("small/slow.bin"), roundTrip/2, 0)
	for range benchShortRuns {
		fl := r.curl(t, benchSlowBytes, url)
		os.Remove(r.out)
		row.floor.addCPU(benchMs(fl.wall), fl.cpu.Seconds())

		m := r.fsmount(t, url)
		row.ours.addTimed(m, func() float64 { return benchMs(benchDD(t, m, m.file, benchSlowBytes)) })
		r.compare(t, m, "small/slow.bin")
		m.stop()
	}
}

// benchReadPiece prints the nanoseconds from open until a piece of a file is read, and
// checks the piece. Its arguments are the path, the seed, and the offset and length of
// the piece.
func benchReadPiece(t *testing.T, args []string) string {
	seed, off := uint64(benchInteger(t, args[1])), benchInteger(t, args[2])
	p := make([]byte, benchInteger(t, args[3]))
	begin := time.Now()
	f, err := benchOpen(args[0])
	benchOK(t, err)
	defer f.Close()
	err = f.readFull(p, off)
	took := time.Since(begin)
	benchOK(t, err)
	benchOK(t, checkContent(p, seed, off))
	return fmt.Sprint(took.Nanoseconds())
}

// benchFD is a descriptor outside of the runtime's poller, which must not wait for a
// file of a mount.
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

// benchReadShares prints the nanoseconds until all readers have read, each its own part
// of the middle file. Its arguments are a path or a URL, the seed, and optionally with a
// URL a file to keep the bytes in. With a URL each reader makes its own request. It checks
// the bytes after the last reader has finished.
func benchReadShares(t *testing.T, args []string) string {
	seed := uint64(benchInteger(t, args[1]))
	read := benchReadShare
	if strings.HasPrefix(args[0], "http:") {
		read = benchGetShare
	}
	keep := ""
	if len(args) > 2 {
		keep = args[2]
	}
	all := make([]byte, benchMidBytes)
	fillContent(all, 0, 0) // the kernel makes its pages now, not while time counts
	begin := time.Now()
	err := benchAtOnce(benchReaders, func(i int) error {
		off := int64(i) * benchShareBytes
		return read(args[0], all[off:off+benchShareBytes], off, keep)
	})
	took := time.Since(begin)
	benchOK(t, err)
	benchOK(t, checkContent(all, seed, 0))
	return fmt.Sprint(took.Nanoseconds())
}

// benchAtOnce runs work in n goroutines and waits for all of them.
func benchAtOnce(n int, work func(i int) error) error {
	var workers sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		workers.Go(func() { errs[i] = work(i) })
	}
	workers.Wait()
	return errors.Join(errs...)
}

// benchReadShare reads a part of a file, 1 MiB at a time.
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

// benchGetShare requests a part of a file on its own connection.
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

// benchReceive fills p from body, and writes it at off of the file keep, if any.
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

// benchSeek reads the middle file in sequence, while seekers read it at random until
// the sequential read ends. It prints the nanoseconds of the sequential read, the mean
// of a seek, and the number of seeks. It checks the bytes of the seeks.
func benchSeek(t *testing.T, args []string) string {
	seed := uint64(benchInteger(t, args[1]))
	var seeks, spent atomic.Int64
	var took time.Duration
	ended := make(chan struct{})
	err := benchAtOnce(1+benchSeekers, func(i int) error {
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
	benchOK(t, err)
	return fmt.Sprint(took.Nanoseconds(), spent.Load()/max(1, seeks.Load()), seeks.Load())
}

// readThrough reads a file of size bytes from its start, and returns how long it takes.
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

// seekAbout reads at random places of the middle file until ended is closed. It adds
// the number of its seeks to seeks, and their nanoseconds to spent.
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
