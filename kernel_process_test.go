// The readers of the kernel tests. A reader is a process that makes one system call
// after the other as the test tells it, with no retry in between, and checks what it
// reads. Tests start, signal and kill readers. Every wait for one has a limit.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// readerArgument makes this test binary a reader.
const readerArgument = "kernel-reader"

// init turns this test binary into a reader if it was started as one. Then the
// initial thread reads: the thread whose id is that of the process. It also makes
// ownProgram a reader of the self-test.
func init() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == readerArgument:
		os.Exit(serveReader(os.Stdin, os.Stdout))
	case len(os.Args) == 2 && os.Args[1] == selftestReaderCommand:
		os.Exit(runMain(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
}

// kernelReader is a process that reads a mount.
type kernelReader struct {
	*selftestChild
	t       *testing.T
	m       *kernelMount
	path    string // of the calls that name none
	thread  int    // id of the thread that reads
	calls   *json.Encoder
	answers chan readerAnswer // closed when no more will come
}

// reader starts a process that will read from m. The test's cleanup kills it. Its first
// answer has the id of its thread.
func (m *kernelMount) reader() *kernelReader {
	m.t.Helper()
	cmd := exec.CommandContext(context.Background(), ownProgram, readerArgument)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	stdout, output := io.Pipe()
	cmd.Stdout = output
	r := m.start(cmd)
	go func() {
		<-r.exited
		output.Close()
	}()
	r.calls, r.answers = json.NewEncoder(stdin), make(chan readerAnswer, 1)
	go func() {
		defer close(r.answers)
		for decoder := json.NewDecoder(stdout); ; {
			var a readerAnswer
			if decoder.Decode(&a) != nil {
				return
			}
			r.answers <- a // never waits: the test takes each answer before its next call
		}
	}()
	r.thread = int(r.answer().N)
	return r
}

// program starts a program that reads from m by itself. It has the default action
// for each signal. Its core dump goes to a directory of its own.
func (m *kernelMount) program(args ...string) *kernelReader {
	m.t.Helper()
	cmd := exec.CommandContext(context.Background(), "env", append([]string{"--default-signal"}, args...)...)
	cmd.Dir = m.t.TempDir()
	return m.start(cmd)
}

// start starts a process that reads from m.
func (m *kernelMount) start(cmd *exec.Cmd) *kernelReader {
	m.t.Helper()
	child, err := startSelftestChild(cmd, unix.SIGKILL)
	if err != nil {
		m.t.Fatal(err)
	}
	r := &kernelReader{selftestChild: child, t: m.t, m: m}
	m.t.Cleanup(func() {
		r.cmd.Process.Kill()
		r.awaitGone()
	})
	return r
}

// awaitGone returns when the process is gone, within kernelPatience.
func (r *kernelReader) awaitGone() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), kernelPatience)
	defer cancel()
	if err := r.selftestChild.awaitGone(ctx); err != nil {
		r.t.Error(err)
		r.m.cutOff()
		<-r.exited
	}
}

// endedBy returns the signal that ended the process.
//
// REQUIRES: awaitGone has returned.
func (r *kernelReader) endedBy() unix.Signal {
	return r.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal()
}

// awaitState returns when the thread that reads is in that state (proc_pid_stat(5)).
func (r *kernelReader) awaitState(want string) {
	r.t.Helper()
	eventually(r.t, func() (bool, string) {
		state := processState(r.thread)
		return state == want, "the reader is in state " + state + ", want " + want
	})
}

// kill sends sig to the process.
func (r *kernelReader) kill(sig unix.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		r.t.Errorf("signal reader: %v", err)
	}
}

// interrupt sends sig to the thread that reads.
func (r *kernelReader) interrupt(sig unix.Signal) {
	r.t.Helper()
	if err := unix.Tgkill(r.cmd.Process.Pid, r.thread, sig); err != nil {
		r.t.Errorf("signal reader: %v", err)
	}
}

// send tells the process to do c; answer then returns the result.
func (r *kernelReader) send(c readerCall) {
	r.t.Helper()
	if c.Path == "" {
		c.Path = r.path
	}
	if err := r.calls.Encode(c); err != nil {
		r.t.Fatalf("reader process %d is gone: %v", r.cmd.Process.Pid, err)
	}
}

// answer fails the test if none comes within kernelPatience.
func (r *kernelReader) answer() readerAnswer {
	r.t.Helper()
	select {
	case a, ok := <-r.answers:
		if !ok {
			r.t.Fatalf("reader process %d ended before it answered", r.cmd.Process.Pid)
		}
		return a
	case <-time.After(kernelPatience):
	case <-r.t.Context().Done():
	}
	r.t.Fatalf("reader process %d, in state %s, does not answer", r.cmd.Process.Pid, processState(r.cmd.Process.Pid))
	return readerAnswer{}
}

func (r *kernelReader) do(c readerCall) readerAnswer {
	r.t.Helper()
	r.send(c)
	return r.answer()
}

// open opens f, which must succeed, and closes the file that was open.
func (r *kernelReader) open(f *kernelFile) *kernelReader {
	r.t.Helper()
	r.path = r.m.path(f.name)
	if answer := r.do(readerCall{Op: "open"}); answer.Error != "" {
		r.t.Fatal(answer.Error)
	}
	return r
}

// requireRead requires that a read of length bytes at off returns n right bytes.
func (r *kernelReader) requireRead(f *kernelFile, off int64, length int, n int64) {
	r.t.Helper()
	requireBytes(r.t, r.do(preadCall(f, off, length)), n)
}

// requireWhole opens f and requires that all of it can be read.
func (r *kernelReader) requireWhole(f *kernelFile) {
	r.t.Helper()
	requireBytes(r.t, r.open(f).do(readAllCall(f)), f.size)
}

// requireErrno requires that the read that is under way ends with one of errnos.
func (r *kernelReader) requireErrno(errnos ...string) {
	r.t.Helper()
	if answer := r.answer(); answer.N != 0 || !slices.Contains(errnos, answer.Errno) {
		r.t.Errorf("the read ended with %+v, want one of %v", answer, errnos)
	}
}

func preadCall(f *kernelFile, off int64, length int) readerCall {
	return readerCall{Op: "pread", Off: off, Len: length, Seed: f.seed}
}

func readAllCall(f *kernelFile) readerCall {
	return readerCall{Op: "readAll", Len: 128 << 10, Seed: f.seed}
}

func requireBytes(t *testing.T, answer readerAnswer, n int64) {
	t.Helper()
	if answer.Error != "" || answer.N != n {
		t.Errorf("the read returned %d bytes, want %d; error %q", answer.N, n, answer.Error)
	}
}

// readerCall tells a reader what to do.
type readerCall struct {
	Op    string `json:"op"` // a key of readerOps
	Path  string `json:"path,omitempty"`
	Off   int64  `json:"off,omitempty"`   // bytes
	Len   int    `json:"len,omitempty"`   // bytes, of one read
	Count int    `json:"count,omitempty"` // of reads at random places
	Size  int64  `json:"size,omitempty"`  // bytes, of the file
	Seed  uint64 `json:"seed,omitempty"`  // of the content that must be found
}

func (c readerCall) span() byteRange { return byteRange{c.Off, c.Off + int64(c.Len)} }

// at returns the call for length bytes at off.
func (c readerCall) at(off, length int64) readerCall {
	c.Off, c.Len = off, int(length)
	return c
}

// readerAnswer is the result of a readerCall.
type readerAnswer struct {
	Error string        `json:"error,omitempty"` // "" for success
	Errno string        `json:"errno,omitempty"` // name of the error number in Error
	N     int64         `json:"n,omitempty"`     // bytes read, or the thread's id
	Took  time.Duration `json:"took"`

	Size  int64    `json:"size,omitempty"`  // of stat, in bytes
	Mode  uint32   `json:"mode,omitempty"`  // of stat
	Mtime int64    `json:"mtime,omitempty"` // of stat, in nanoseconds since 1970
	Names []string `json:"names,omitempty"`
}

// readerOp performs c in the reader's process and puts the result in a.
type readerOp func(r *readerProcess, c readerCall, a *readerAnswer) error

// readerProcess is the state of a reader in its own process.
type readerProcess struct {
	path   string // of the open file
	fd     int    // of the open file, -1 for none
	caught chan os.Signal
}

// serveReader makes all system calls on one thread. Its first answer has the
// thread's id.
func serveReader(in io.Reader, out io.Writer) (status int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := &readerProcess{fd: -1, caught: make(chan os.Signal, 1)}
	calls, answers := json.NewDecoder(in), json.NewEncoder(out)
	err := answers.Encode(readerAnswer{N: int64(unix.Gettid())})
	for err == nil {
		var c readerCall
		if calls.Decode(&c) != nil {
			return exitOK
		}
		var a readerAnswer
		failure := errors.New("no such operation")
		if op, ok := readerOps()[c.Op]; ok {
			begin := time.Now()
			failure = op(r, c, &a)
			a.Took = time.Since(begin)
		}
		if failure != nil {
			a.Errno = errnoName(failure)
			a.Error = strings.TrimSpace(fmt.Sprintf("%s %s: %v %s", c.Op, filepath.Base(c.Path), failure, a.Errno))
		}
		err = answers.Encode(a)
	}
	return exitFailure
}

// errnoName returns the name of the error number that err wraps, "" for none.
func errnoName(err error) string {
	errno := unix.Errno(0)
	errors.As(err, &errno)
	return unix.ErrnoName(errno)
}

// readerOps returns the operations of a reader by name.
func readerOps() map[string]readerOp {
	return map[string]readerOp{
		// It asks the file system; the kernel answers other calls from its cache (statx(2)).
		"stat anew": func(_ *readerProcess, c readerCall, a *readerAnswer) error {
			var st unix.Statx_t
			err := unix.Statx(unix.AT_FDCWD, c.Path, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
			a.Size, a.Mode = int64(st.Size), uint32(st.Mode)
			a.Mtime = time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)).UnixNano()
			return err
		},
		"ls": func(_ *readerProcess, c readerCall, a *readerAnswer) error {
			entries, err := os.ReadDir(c.Path)
			for _, e := range entries {
				a.Names = append(a.Names, e.Name())
			}
			return err
		},
		"catch": func(r *readerProcess, _ readerCall, _ *readerAnswer) error {
			signal.Notify(r.caught, unix.SIGUSR1, unix.SIGALRM)
			return nil
		},
		"caught": func(r *readerProcess, _ readerCall, _ *readerAnswer) error {
			<-r.caught
			return nil
		},
		"open":   (*readerProcess).open,
		"random": (*readerProcess).random,
		"reopen": (*readerProcess).reopen,
		"pread": func(r *readerProcess, c readerCall, a *readerAnswer) error {
			n, err := r.pread(c)
			a.N = int64(n)
			return err
		},
		"readAll":      readAllOp,
		"mmap shared":  mmapOp(unix.MAP_SHARED),
		"mmap private": mmapOp(unix.MAP_PRIVATE),
		// The kernel starts to read into the page cache, and does not wait for it.
		"fadvise": func(r *readerProcess, c readerCall, _ *readerAnswer) error {
			return unix.Fadvise(r.fd, c.Off, int64(c.Len), unix.FADV_WILLNEED)
		},
		"statfs": func(_ *readerProcess, c readerCall, a *readerAnswer) error {
			var st unix.Statfs_t
			err := unix.Statfs(c.Path, &st)
			a.Size = int64(st.Blocks) * st.Frsize
			return err
		},
		"listxattr": func(_ *readerProcess, c readerCall, a *readerAnswer) error {
			n, err := unix.Listxattr(c.Path, nil)
			a.N = int64(n)
			return err
		},
		"keep mapped": func(r *readerProcess, c readerCall, _ *readerAnswer) (err error) {
			if keptMapping, err = unix.Mmap(r.fd, 0, c.Len, unix.PROT_READ, unix.MAP_SHARED); err != nil {
				return err
			}
			return checkContent(keptMapping, c.Seed, 0)
		},
		"check mapped": func(_ *readerProcess, c readerCall, _ *readerAnswer) error {
			return checkContent(keptMapping, c.Seed, 0)
		},
		"writes":        writesOp,
		"list open dir": listOpenDir,
	}
}

// read requires that one pread(2) returns exactly c.Len bytes, all of them right.
// After an error it closes the file, as programs do.
func (r *readerProcess) read(c readerCall, a *readerAnswer) error {
	n, err := r.pread(c)
	if err == nil && n != c.Len {
		err = fmt.Errorf("read %v: %d bytes came", c.span(), n)
	}
	if err != nil {
		r.close()
		return err
	}
	a.N += int64(n)
	return nil
}

// random makes c.Count reads of up to c.Len bytes at random places.
func (r *readerProcess) random(c readerCall, a *readerAnswer) error {
	for range c.Count {
		off := rand.Int64N(c.Size)
		if err := r.read(c.at(off, min(1+rand.Int64N(int64(c.Len)), c.Size-off)), a); err != nil {
			return err
		}
	}
	return nil
}

// reopen opens c.Path c.Count times, and each time reads up to c.Len bytes at a random place.
func (r *readerProcess) reopen(c readerCall, a *readerAnswer) error {
	for range c.Count {
		if err := r.open(c, a); err != nil {
			return err
		}
		off := rand.Int64N(c.Size)
		if err := r.read(c.at(off, min(1+rand.Int64N(int64(c.Len)), c.Size-off)), a); err != nil {
			return err
		}
		r.close()
	}
	return nil
}

// pread makes one pread(2), checks the bytes that it returns, and returns their
// number. If another file is open, or none, it opens c.Path first.
func (r *readerProcess) pread(c readerCall) (n int, err error) {
	if c.Path != r.path {
		if err := r.open(c, nil); err != nil {
			return 0, err
		}
	}
	p := make([]byte, c.Len)
	n, err = unix.Pread(r.fd, p, c.Off)
	if err != nil {
		return 0, fmt.Errorf("read %v: %w", c.span(), err)
	}
	return n, checkContent(p[:n], c.Seed, c.Off)
}

// open opens c.Path anew, and closes the file that was open.
func (r *readerProcess) open(c readerCall, _ *readerAnswer) error {
	r.close()
	fd, err := unix.Open(c.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	r.path, r.fd = c.Path, fd
	return nil
}

func (r *readerProcess) close() {
	_ = unix.Close(r.fd) // EBADF where none is open
	r.path, r.fd = "", -1
}

// keptMapping is the mapping of a reader process.
var keptMapping []byte

// readAllOp reads from the start to the end or the first error, c.Len bytes at a
// time.
func readAllOp(r *readerProcess, c readerCall, a *readerAnswer) error {
	for {
		n, err := r.pread(c.at(a.N, int64(c.Len)))
		if n == 0 || err != nil {
			return err
		}
		a.N += int64(n)
	}
}

// mmapOp returns an operation that maps c.Len bytes at c.Off and reads them. It
// reports a fault as SIGBUS.
func mmapOp(flags int) readerOp {
	return func(r *readerProcess, c readerCall, a *readerAnswer) (err error) {
		p, err := unix.Mmap(r.fd, c.Off, c.Len, unix.PROT_READ, flags)
		if err != nil {
			return err
		}
		defer unix.Munmap(p)
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if recover() != nil {
				err = errors.New("SIGBUS")
			}
		}()
		a.N = int64(len(p))
		return checkContent(p, c.Seed, c.Off)
	}
}

// writesOp tries everything that would change the file at c.Path or its directory.
// Each entry of a.Names is an attempt and its error.
func writesOp(_ *readerProcess, c readerCall, a *readerAnswer) error {
	dir, other := c.Path[:strings.LastIndexByte(c.Path, '/')+1], c.Path+".new"
	open := func(path string, flags int) error {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		unix.Close(fd)
		return err
	}
	now := []unix.Timeval{{Sec: 1}, {Sec: 1}}
	attempts := map[string]error{
		"create":            open(other, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY),
		"open for writing":  open(c.Path, unix.O_WRONLY),
		"open for both":     open(c.Path, unix.O_RDWR),
		"open to append":    open(c.Path, unix.O_WRONLY|unix.O_APPEND),
		"open to truncate":  open(c.Path, unix.O_RDONLY|unix.O_TRUNC),
		"open without name": open(dir, unix.O_TMPFILE|unix.O_RDWR),
		"truncate":          unix.Truncate(c.Path, 0),
		"chmod":             unix.Chmod(c.Path, 0o600),
		"chown":             unix.Chown(c.Path, os.Getuid(), os.Getgid()),
		"utimes":            unix.Utimes(c.Path, now),
		"utimes of dir":     unix.Utimes(dir, now),
		"unlink":            unix.Unlink(c.Path),
		"rename":            unix.Rename(c.Path, other),
		"mkdir":             unix.Mkdir(other, 0o700),
		"rmdir":             unix.Rmdir(dir + "no-such-dir"),
		"symlink":           unix.Symlink("x", other),
		"link":              unix.Link(c.Path, other),
		"mknod":             unix.Mknod(other, unix.S_IFIFO|0o600, 0),
		"setxattr":          unix.Setxattr(c.Path, "user.x", []byte("x"), 0),
		"removexattr":       unix.Removexattr(c.Path, "user.x"),
	}
	for name, err := range attempts {
		a.Names = append(a.Names, name+": "+errnoName(err))
	}
	return nil
}

// eventually returns when seen returns true, and fails the test with seen's text
// after kernelPatience. It polls, because nobody reports what it waits for.
func eventually(t *testing.T, seen func() (ok bool, text string)) {
	t.Helper()
	for deadline := time.Now().Add(kernelPatience); ; time.Sleep(time.Millisecond) {
		ok, text := seen()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(text)
		}
	}
}
