//go:build bench && linux

// bench_child_test.go is what a benchmark does in a child, which is the test's
// binary once more: it serves the null mount, and does to a mount's files what
// no command does. A child decides nothing; it prints one line of figures.

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jacobsa/fuse"
	"github.com/jacobsa/fuse/fuseops"
	"golang.org/x/sys/unix"
)

// benchMark starts the line that a child answers with: the testing package
// prints lines of its own.
const benchMark = "figures:"

// TestChildOfBench is the child: its arguments are a word and what that works
// on. It does nothing in a run of its own.
func TestChildOfBench(t *testing.T) {
	work := map[string]func(args []string) (figures string, err error){
		"null":    benchServeNull,
		"drop":    benchDrop,
		"first":   benchReadFirst,
		"check":   benchCheckRandom,
		"piece":   benchReadPiece,
		"shares":  benchReadShares,
		"seekers": benchSeek,
	}[flag.Arg(0)]
	if work == nil {
		t.Skip("this test is a part of TestBench")
	}
	figures, err := work(flag.Args()[1:])
	if err != nil {
		t.Fatalf("%v: %v", flag.Args(), err)
	}
	fmt.Println(benchMark, figures)
}

// benchChildArgv is the command of a child that does work with args.
func benchChildArgv(t *testing.T, work string, args ...string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{self, "-test.run=^TestChildOfBench$", "-test.timeout=0", work}, args...)
}

// benchChild has a child do work on a file of m, and returns its figures.
func benchChild(t *testing.T, m *benchMount, work string, args ...string) string {
	t.Helper()
	argv := benchChildArgv(t, work, args...)
	out := benchRun(t, m, argv[0], argv[1:]...).stdout
	_, figures, found := strings.Cut(out, benchMark)
	if !found {
		t.Fatalf("%s %v: no figures in %q", work, args, out)
	}
	line, _, _ := strings.Cut(figures, "\n")
	return strings.TrimSpace(line)
}

// benchDrop takes the pages of one file, here of a FUSE inode, out of the page
// cache: not those of the temporary file behind it. It returns how many pages
// are left.
func benchDrop(args []string) (string, error) {
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	const tries = 50
	left := uint64(0)
	for range tries {
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
			return "", err
		}
		left, err = benchCachedPages(fd)
		if err != nil || left == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Sprint(left), err
}

// benchCachedPages counts by cachestat(2), which Linux has since 6.5; before
// that it answers 0.
func benchCachedPages(fd int) (uint64, error) {
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(fd), &unix.CachestatRange{}, &stat, 0)
	if errors.Is(err, unix.ENOSYS) {
		return 0, nil
	}
	return stat.Cache, err
}

// benchFirstBytes is how much a player or file(1) asks for first.
const benchFirstBytes = 4096

// benchReadFirst returns the nanoseconds from open to the first bytes of a
// file, which must be the content of the seed.
func benchReadFirst(args []string) (string, error) {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	p := make([]byte, benchFirstBytes)
	begin := time.Now()
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	n, err := unix.Pread(fd, p, 0)
	took := time.Since(begin)
	if err == nil && n < len(p) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprint(took.Nanoseconds()), checkContent(p, seed, 0)
}

// benchCheckRandom compares random pieces of a file of any size and alignment
// with the content of the seed.
func benchCheckRandom(args []string) (string, error) {
	const pieces = 500
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	f, err := os.Open(args[0])
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	random, p := rand.New(rand.NewPCG(1, 2)), make([]byte, 300_000)
	for range pieces {
		off := random.Int64N(info.Size())
		piece := p[:min(1+random.Int64N(int64(len(p))), info.Size()-off)]
		if _, err := f.ReadAt(piece, off); err != nil {
			return "", fmt.Errorf("at %d: %w", off, err)
		}
		if err := checkContent(piece, seed, off); err != nil {
			return "", err
		}
	}
	return fmt.Sprint(pieces), nil
}

// benchNull is the least that any server of this library does: one file, each
// read answered in the loop, from the same memory.
type benchNull struct {
	size int64
	data []byte
}

// benchNullName is the one file of a null mount.
const benchNullName = "null.bin"

// benchServeNull mounts a null server, with what mountAt asks the kernel for.
//
// BLOCKS until it is unmounted.
func benchServeNull(args []string) (string, error) {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	null := &benchNull{size: size, data: make([]byte, maxReadBytes)}
	fillContent(null.data, 1, 0)
	config := mountConfig(ioAuto)
	config.FSName, config.Subtype = "bench:null", "benchnull"
	m, err := fuse.Mount(args[0], null, config)
	if err != nil {
		return "", err
	}
	openControl(args[0]).tune()
	return "unmounted", m.Join(context.Background())
}

// ServeOps implements fuse.Server.
func (s *benchNull) ServeOps(c *fuse.Connection) {
	for {
		ctx, op, err := c.ReadOp()
		if err == io.EOF {
			return
		}
		if err != nil {
			continue
		}
		_ = c.Reply(ctx, s.perform(op))
	}
}

func (s *benchNull) perform(op any) error {
	switch op := op.(type) {
	case *fuseops.ReadFileOp:
		n := max(0, min(op.Size, s.size-op.Offset))
		op.Data, op.BytesRead = [][]byte{s.data[:n]}, int(n)
	case *fuseops.LookUpInodeOp:
		if op.Name != benchNullName {
			return syscall.ENOENT
		}
		op.Entry.Child = firstFileInode
		op.Entry.Attributes = s.attributes(firstFileInode)
		op.Entry.AttributesExpiration = time.Now().Add(expiry)
		op.Entry.EntryExpiration = op.Entry.AttributesExpiration
	case *fuseops.GetInodeAttributesOp:
		op.Attributes = s.attributes(op.Inode)
		op.AttributesExpiration = time.Now().Add(expiry)
	case *fuseops.OpenFileOp:
		op.KeepPageCache = true
	case *fuseops.ReleaseFileHandleOp, *fuseops.ForgetInodeOp, *fuseops.BatchForgetOp:
	default:
		return syscall.ENOSYS
	}
	return nil
}

func (s *benchNull) attributes(inode fuseops.InodeID) fuseops.InodeAttributes {
	if inode == fuseops.RootInodeID {
		return fuseops.InodeAttributes{Nlink: 1, Mode: os.ModeDir | 0o555}
	}
	return fuseops.InodeAttributes{Size: uint64(s.size), Nlink: 1, Mode: 0o444}
}
