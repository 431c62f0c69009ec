//go:build linux

// selftest_reader.go is a process that reads the mount of a self-test: the
// program again, under a name of its own. It makes one system call after the
// other, as it is told on its standard input, with no retry in between, checks
// every byte, and answers on its standard output. It prints nothing else.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// selftestReaderCommand, as the first argument, makes a reader of the program.
// It is for the self-test alone.
const selftestReaderCommand = "selftest-reader"

// selftestCall is what a reader is told to do.
type selftestCall struct {
	Op    string `json:"op"` // one of those of (*selftestReads).perform
	Path  string `json:"path,omitempty"`
	Off   int64  `json:"off,omitempty"`   // bytes
	Len   int    `json:"len,omitempty"`   // bytes, of one read
	Count int    `json:"count,omitempty"` // of reads at random places
	Size  int64  `json:"size,omitempty"`  // bytes, of the file
	Seed  uint64 `json:"seed,omitempty"`  // of the content that must be found
}

// selftestAnswer is what came of a call.
type selftestAnswer struct {
	Error string        `json:"error,omitempty"` // what went wrong, "" for nothing
	N     int64         `json:"n,omitempty"`     // bytes read, or the thread's id
	Took  time.Duration `json:"took"`

	Size  int64    `json:"size,omitempty"` // of stat, in bytes
	Mode  uint32   `json:"mode,omitempty"` // of stat
	Names []string `json:"names,omitempty"`
	Text  string   `json:"text,omitempty"`
}

// runSelftestReader does what it is told until in ends. Its first answer tells
// the id of the thread that makes the calls, by which FUSE knows it.
func runSelftestReader(in io.Reader, out io.Writer) (status int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := &selftestReads{open: make(map[string]int), caught: make(chan os.Signal, 1)}
	calls, answers := json.NewDecoder(in), json.NewEncoder(out)
	err := answers.Encode(selftestAnswer{N: int64(unix.Gettid())})
	for err == nil {
		var call selftestCall
		if calls.Decode(&call) != nil {
			return exitOK
		}
		err = answers.Encode(r.answer(call))
	}
	return exitFailure
}

// selftestReads is the state of a reader.
type selftestReads struct {
	open   map[string]int // descriptors by path
	caught chan os.Signal
}

func (r *selftestReads) answer(c selftestCall) selftestAnswer {
	var a selftestAnswer
	begin := time.Now()
	err := r.perform(c, &a)
	a.Took = time.Since(begin)
	if err != nil {
		a.Error = fmt.Sprintf("%s %s: %v", c.Op, filepath.Base(c.Path), err)
	}
	return a
}

func (r *selftestReads) perform(c selftestCall, a *selftestAnswer) (err error) {
	switch c.Op {
	case "read":
		err = r.read(c, c.Off, c.Len)
		a.N = int64(c.Len)
	case "verify":
		a.N, err = r.verify(c)
	case "stat":
		a.Size, a.Mode, err = stat(c.Path, 0)
	case "stat anew":
		a.Size, a.Mode, err = stat(c.Path, unix.AT_STATX_FORCE_SYNC)
	case "ls":
		a.Names, err = listNames(c.Path)
	case "text":
		a.Text, err = wholeText(c.Path)
	case "catch":
		signal.Notify(r.caught, unix.SIGUSR1)
	case "caught":
		<-r.caught
	default:
		err = errors.New("no such operation")
	}
	return err
}

// read requires that one pread(2) brings exactly length bytes, each the right
// one. Where that fails it closes the file, as programs do.
func (r *selftestReads) read(c selftestCall, off int64, length int) (err error) {
	fd, err := r.descriptor(c.Path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			delete(r.open, c.Path)
			unix.Close(fd)
		}
	}()
	p := make([]byte, length)
	n, err := unix.Pread(fd, p, off)
	if err != nil {
		return fmt.Errorf("read %v: %s", byteRange{off, off + int64(length)}, errnoText(err))
	}
	if err := checkContent(p[:n], c.Seed, off); err != nil {
		return err
	}
	if n != length {
		return fmt.Errorf("read %v: %d bytes came", byteRange{off, off + int64(length)}, n)
	}
	return nil
}

// verify reads at c.Count random places, then all of the file from its start,
// and requires its end where it should be. It returns the bytes it has read.
func (r *selftestReads) verify(c selftestCall) (total int64, err error) {
	for range c.Count {
		off := rand.Int64N(c.Size)
		n := min(1+rand.Int64N(int64(c.Len)), c.Size-off)
		if err := r.read(c, off, int(n)); err != nil {
			return total, err
		}
		total += n
	}
	for off := int64(0); off < c.Size; {
		n := min(int64(c.Len), c.Size-off)
		if err := r.read(c, off, int(n)); err != nil {
			return total, err
		}
		off += n
		total += n
	}
	n, err := unix.Pread(r.open[c.Path], make([]byte, 1), c.Size)
	if err != nil || n != 0 {
		return total, fmt.Errorf("read beyond the end: %d bytes, %v", n, err)
	}
	return total, nil
}

// descriptor opens path once.
func (r *selftestReads) descriptor(path string) (int, error) {
	if fd, ok := r.open[path]; ok {
		return fd, nil
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open: %s", errnoText(err))
	}
	r.open[path] = fd
	return fd, nil
}

// stat asks the file system itself with AT_STATX_FORCE_SYNC in flags (statx(2)),
// else the kernel, which may remember.
func stat(path string, flags int) (size int64, mode uint32, err error) {
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_BASIC_STATS, &st)
	if err != nil {
		return 0, 0, errors.New(errnoText(err))
	}
	return int64(st.Size), uint32(st.Mode), nil
}

func listNames(path string) (names []string, err error) {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func wholeText(path string) (string, error) {
	text, err := os.ReadFile(path)
	return strings.ToValidUTF8(string(text), "?"), err
}

// errnoText is an error number's name and meaning.
func errnoText(err error) string {
	if errno, ok := err.(unix.Errno); ok {
		return fmt.Sprintf("%s (%v)", unix.ErrnoName(errno), errno)
	}
	return err.Error()
}
