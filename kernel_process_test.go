// The readers of the kernel tests: those of the self-test, with the operations that
// only tests need. A reader makes one system call after the other as the test tells
// it, with no retry in between, and checks what it reads. Tests start, signal and
// kill readers. Every wait for one has a limit.

package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// init turns this test binary into a reader if it was started as one. Then the
// initial thread reads: the thread whose id is that of the process.
func init() {
	if len(os.Args) == 2 && os.Args[1] == selftestReaderCommand {
		ops := readerOps()
		maps.Copy(ops, kernelReaderOps())
		os.Exit(serveReader(os.Stdin, os.Stdout, ops))
	}
}

// kernelReader is a reader that fails its test where it cannot go on.
type kernelReader struct {
	*selftestReader
	t    *testing.T
	m    *kernelMount
	path string // of the calls that name none
}

// reader starts a process that will read from m. The test's cleanup kills it.
func (m *kernelMount) reader() *kernelReader {
	m.t.Helper()
	child, err := startSelftestReader(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	r := m.watch(child)
	r.thread = int(r.answer().N)
	return r
}

// program starts a program that reads from m by itself. It has the default action
// for each signal. Its core dump goes to a directory of its own.
func (m *kernelMount) program(args ...string) *kernelReader {
	m.t.Helper()
	cmd := exec.CommandContext(context.Background(), "env", append([]string{"--default-signal"}, args...)...)
	cmd.Dir = m.t.TempDir()
	child, err := startSelftestChild(cmd, unix.SIGKILL, func(stdout io.Reader) { io.Copy(io.Discard, stdout) })
	if err != nil {
		m.t.Fatal(err)
	}
	return m.watch(&selftestReader{selftestChild: child})
}

func (m *kernelMount) watch(child *selftestReader) *kernelReader {
	r := &kernelReader{selftestReader: child, t: m.t, m: m}
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
	if err := r.selftestReader.send(c); err != nil {
		r.t.Fatal(err)
	}
}

// answer fails the test if none comes within kernelPatience.
func (r *kernelReader) answer() readerAnswer {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), kernelPatience)
	defer cancel()
	a, err := r.selftestReader.answer(ctx)
	if err != nil && a.Error == "" {
		r.t.Fatal(err)
	}
	return a
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

// kernelReaderOps are the operations of a reader that only tests need.
func kernelReaderOps() map[string]readerOp {
	return map[string]readerOp{
		"open":   (*readerProcess).open,
		"random": (*readerProcess).random,
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
