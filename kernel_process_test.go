// The readers of the kernel tests: this test binary run again. A reader makes one
// system call after the other as the test tells it, with no retry in between, and
// checks what it reads. Tests start, signal and kill readers, and every wait for
// one has a limit.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernelReader is a reader as its test sees it.
type kernelReader struct {
	t       *testing.T
	m       *kernelMount
	cmd     *exec.Cmd
	calls   *json.Encoder
	answers chan readerAnswer // closed when the process is gone
	exited  chan struct{}
}

// reader starts a process that will read from m. The test's cleanup kills it.
func (m *kernelMount) reader() *kernelReader {
	m.t.Helper()
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), kernelReaderEnv+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	r := m.start(cmd)
	r.calls = json.NewEncoder(stdin)
	return r
}

// program starts a program that reads from m by itself. Signals do to it what
// they do by default; the directory it runs in may take its core dump.
func (m *kernelMount) program(args ...string) *kernelReader {
	m.t.Helper()
	cmd := exec.Command("env", append([]string{"--default-signal"}, args...)...)
	cmd.Dir = m.t.TempDir()
	return m.start(cmd)
}

func (m *kernelMount) start(cmd *exec.Cmd) *kernelReader {
	m.t.Helper()
	r := &kernelReader{t: m.t, m: m, cmd: cmd, answers: make(chan readerAnswer, 1), exited: make(chan struct{})}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		cmd.Process.Kill()
		r.awaitGone()
	})
	go r.collect(stdout)
	return r
}

// collect takes the process's answers until it is gone.
func (r *kernelReader) collect(stdout io.Reader) {
	defer close(r.exited)
	defer r.cmd.Wait()
	defer close(r.answers)
	answers := json.NewDecoder(stdout)
	for {
		var answer readerAnswer
		if answers.Decode(&answer) != nil {
			io.Copy(io.Discard, stdout)
			return
		}
		r.answers <- answer
	}
}

// awaitGone returns when the process is gone, for which it has kernelPatience.
func (r *kernelReader) awaitGone() {
	r.t.Helper()
	select {
	case <-r.exited:
	case <-time.After(kernelPatience):
		r.t.Errorf("reader %d is still there, in state %s", r.cmd.Process.Pid, r.state())
		r.m.cutOff()
		<-r.exited
	}
}

// endedBy is the signal that ended the process.
//
// REQUIRES: awaitGone has returned.
func (r *kernelReader) endedBy() unix.Signal {
	return r.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal()
}

// state is the state of the process's initial thread: R, S, D, ...
// (proc_pid_stat(5)).
func (r *kernelReader) state() string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.cmd.Process.Pid))
	if end := strings.LastIndexByte(string(stat), ')'); end >= 0 && len(stat) > end+2 {
		return string(stat[end+2])
	}
	return "?"
}

// awaitState returns when the process is in that state. The kernel tells nobody
// of it, so this looks again and again.
func (r *kernelReader) awaitState(want string) {
	r.t.Helper()
	for deadline := time.Now().Add(kernelPatience); r.state() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("reader %d is in state %s, never in %s", r.cmd.Process.Pid, r.state(), want)
		}
	}
}

// kill sends sig to the process.
func (r *kernelReader) kill(sig unix.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		r.t.Errorf("signal reader: %v", err)
	}
}

// interrupt sends sig to the process's initial thread, the one that reads.
func (r *kernelReader) interrupt(sig unix.Signal) {
	r.t.Helper()
	pid := r.cmd.Process.Pid
	if err := unix.Tgkill(pid, pid, sig); err != nil {
		r.t.Errorf("signal reader: %v", err)
	}
}

// send tells the process to do c; answer then returns what came of it.
func (r *kernelReader) send(c readerCall) {
	r.t.Helper()
	if err := r.calls.Encode(c); err != nil {
		r.t.Fatalf("tell reader: %v", err)
	}
}

// answer fails the test if none comes.
func (r *kernelReader) answer() readerAnswer {
	r.t.Helper()
	select {
	case answer, ok := <-r.answers:
		if !ok {
			r.t.Fatal("the reader died before it answered")
		}
		return answer
	case <-time.After(kernelPatience):
		r.t.Fatalf("the reader does not answer; it is in state %s", r.state())
	}
	return readerAnswer{}
}

func (r *kernelReader) do(c readerCall) readerAnswer {
	r.t.Helper()
	r.send(c)
	return r.answer()
}

// open opens f, which must succeed.
func (r *kernelReader) open(f *kernelFile) *kernelReader {
	r.t.Helper()
	if answer := r.do(readerCall{Op: "open", Path: r.m.path(f.name), Flags: unix.O_RDONLY}); answer.Errno != "" {
		r.t.Fatalf("open %s: %s", f.name, answer.Errno)
	}
	return r
}

// requireRead requires that a read of length bytes at off brings n of them, each
// the right one.
func (r *kernelReader) requireRead(f *kernelFile, off int64, length int, n int64) {
	r.t.Helper()
	requireBytes(r.t, r.do(preadCall(f, off, length)), n)
}

// requireWhole opens f and requires that all of it can be read.
func (r *kernelReader) requireWhole(f *kernelFile) {
	r.t.Helper()
	requireBytes(r.t, r.open(f).do(readAllCall(f)), f.size)
}

func preadCall(f *kernelFile, off int64, length int) readerCall {
	return readerCall{Op: "pread", Off: off, Len: length, Seed: f.seed}
}

func readAllCall(f *kernelFile) readerCall {
	return readerCall{Op: "readAll", Len: 128 << 10, Seed: f.seed}
}

func requireBytes(t *testing.T, answer readerAnswer, n int64) {
	t.Helper()
	if answer.Errno != "" || answer.Wrong != "" || answer.N != n {
		t.Errorf("the read brought %d bytes, want %d; error %q; content: %q", answer.N, n, answer.Errno, answer.Wrong)
	}
}

// kernelReaderEnv makes a reader of the test binary.
const kernelReaderEnv = "FSMOUNT_TEST_READER"

// readerCall is what a reader is told to do.
type readerCall struct {
	Op    string // a key of readerOps
	Path  string
	Off   int64  // bytes
	Len   int    // bytes, of one read or mapping
	Count int    // of random reads
	Seed  uint64 // of the content that must be found, and of random offsets
	Size  int64  // bytes, of the file
	Flags int    // of open or mmap
}

// readerAnswer is what came of a readerCall.
type readerAnswer struct {
	Errno string // the error's name, "" for success
	N     int64  // bytes read, or signals caught
	Wrong string // what is wrong with the bytes, "" for nothing

	Size, Mtime int64  // of stat: bytes, and nanoseconds since 1970
	Mode        uint32 // of stat

	Names  []string          // of ls
	Errnos map[string]string // of writes, by operation
}

// init turns this process into a reader if it was started as one. It is the
// initial thread that works then: the one whose id is the process's.
func init() {
	if os.Getenv(kernelReaderEnv) == "" {
		return
	}
	r := &readerProcess{fd: -1, caught: make(chan os.Signal, 1)}
	calls, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var call readerCall
		if err := calls.Decode(&call); err != nil {
			os.Exit(0)
		}
		answer := readerAnswer{Errno: "no such operation"}
		if op, ok := readerOps()[call.Op]; ok {
			answer = op(r, call)
		}
		answers.Encode(answer)
	}
}

// readerProcess is the state of a reader, in its own process.
type readerProcess struct {
	fd     int // the file it has open, -1 for none
	caught chan os.Signal
}

func readerOps() map[string]func(*readerProcess, readerCall) readerAnswer {
	return map[string]func(*readerProcess, readerCall) readerAnswer{
		"open":    (*readerProcess).open,
		"pread":   (*readerProcess).pread,
		"readAll": (*readerProcess).readAll,
		"random":  (*readerProcess).random,
		"mmap":    (*readerProcess).mmap,
		"stat":    (*readerProcess).stat,
		"fadvise": (*readerProcess).fadvise,
		"ls":      (*readerProcess).ls,
		"statfs":  (*readerProcess).statfs,
		"catch":   (*readerProcess).catch,
		"caught":  (*readerProcess).wasCaught,
		"writes":  (*readerProcess).writes,
	}
}

// open closes what was open before.
func (r *readerProcess) open(c readerCall) readerAnswer {
	unix.Close(r.fd)
	fd, err := unix.Open(c.Path, c.Flags|unix.O_CLOEXEC, 0)
	r.fd = fd
	return readerAnswer{Errno: errnoName(err)}
}

func (r *readerProcess) pread(c readerCall) readerAnswer {
	p := make([]byte, c.Len)
	n, err := unix.Pread(r.fd, p, c.Off)
	n = max(n, 0)
	return readerAnswer{Errno: errnoName(err), N: int64(n), Wrong: wrongContent(p[:n], c.Seed, c.Off)}
}

// readAll reads from the start to the end or the first error, Len bytes at a
// time.
func (r *readerProcess) readAll(c readerCall) readerAnswer {
	p := make([]byte, c.Len)
	for off := int64(0); ; {
		n, err := unix.Pread(r.fd, p, off)
		if n <= 0 {
			return readerAnswer{Errno: errnoName(err), N: off}
		}
		if wrong := wrongContent(p[:n], c.Seed, off); wrong != "" {
			return readerAnswer{N: off, Wrong: wrong}
		}
		off += int64(n)
	}
}

// random makes Count reads of up to Len bytes anywhere in the file. Each must
// bring all that the file has there.
func (r *readerProcess) random(c readerCall) readerAnswer {
	rng := rand.New(rand.NewPCG(c.Seed, uint64(os.Getpid())))
	p := make([]byte, c.Len)
	var total int64
	for range c.Count {
		off := rng.Int64N(c.Size)
		want := int(min(int64(1+rng.IntN(c.Len)), c.Size-off))
		n, err := unix.Pread(r.fd, p[:want], off)
		if err != nil {
			return readerAnswer{Errno: errnoName(err), N: total}
		}
		wrong := wrongContent(p[:n], c.Seed, off)
		if n != want {
			wrong = fmt.Sprintf("read of %d bytes at %d brought %d", want, off, n)
		}
		if wrong != "" {
			return readerAnswer{N: total, Wrong: wrong}
		}
		total += int64(n)
	}
	return readerAnswer{N: total}
}

// mmap maps Len bytes at Off and reads them, which a fault ends as SIGBUS.
func (r *readerProcess) mmap(c readerCall) (answer readerAnswer) {
	p, err := unix.Mmap(r.fd, c.Off, c.Len, unix.PROT_READ, c.Flags)
	if err != nil {
		return readerAnswer{Errno: errnoName(err)}
	}
	defer unix.Munmap(p)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			answer = readerAnswer{Errno: "SIGBUS"}
		}
	}()
	return readerAnswer{N: int64(len(p)), Wrong: wrongContent(p, c.Seed, c.Off)}
}

// fadvise has the kernel read into the page cache what it would not yet, and
// does not wait for it.
func (r *readerProcess) fadvise(c readerCall) readerAnswer {
	return readerAnswer{Errno: errnoName(unix.Fadvise(r.fd, c.Off, int64(c.Len), unix.FADV_WILLNEED))}
}

// stat asks the file system itself, not what the kernel remembers.
func (r *readerProcess) stat(c readerCall) readerAnswer {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, c.Path, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
	return readerAnswer{
		Errno: errnoName(err),
		Size:  int64(st.Size),
		Mode:  uint32(st.Mode),
		Mtime: time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)).UnixNano(),
	}
}

func (r *readerProcess) ls(c readerCall) readerAnswer {
	entries, err := os.ReadDir(c.Path)
	answer := readerAnswer{Errno: errnoName(err)}
	for _, e := range entries {
		answer.Names = append(answer.Names, e.Name())
	}
	return answer
}

func (r *readerProcess) statfs(c readerCall) readerAnswer {
	var st unix.Statfs_t
	err := unix.Statfs(c.Path, &st)
	return readerAnswer{Errno: errnoName(err), Size: int64(st.Blocks) * st.Frsize}
}

// catch makes this process one that catches signals, as git and Go programs do.
func (r *readerProcess) catch(readerCall) readerAnswer {
	signal.Notify(r.caught, unix.SIGUSR1, unix.SIGALRM)
	return readerAnswer{}
}

// wasCaught returns when a signal has been caught.
func (r *readerProcess) wasCaught(readerCall) readerAnswer {
	<-r.caught
	return readerAnswer{N: 1}
}

// writes tries whatever would change the file at Path or its directory.
func (r *readerProcess) writes(c readerCall) readerAnswer {
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
	answer := readerAnswer{Errnos: make(map[string]string)}
	for name, err := range attempts {
		answer.Errnos[name] = errnoName(err)
	}
	return answer
}

func wrongContent(p []byte, seed uint64, off int64) string {
	if err := checkContent(p, seed, off); err != nil {
		return err.Error()
	}
	return ""
}

// errnoName is "" for nil.
func errnoName(err error) string {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}
