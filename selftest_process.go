// selftest_process.go holds the child processes of the self-test: the mount, and
// readers that make one system call after the other as they are told. Each child
// has its own process group, so Ctrl-C reaches the self-test alone, and each ends
// when the self-test dies. Every wait for a child has a limit. The kernel tests
// use the readers too.

package main

import (
	"bytes"
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
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// endPatience is how long a child may take to end in good order.
	endPatience = 2 * time.Second

	// logTailLines is how much of the mount's log is shown after a failure.
	logTailLines = 40
)

// selftestChild is a process of the self-test.
type selftestChild struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone and its output was read
}

// startSelftestChild starts cmd. collect reads its output to the end. When cmd's
// context ends or this process dies, the child gets end; after the context, it is
// killed if it is still there endPatience later.
//
// REQUIRES: cmd was made by exec.CommandContext
func startSelftestChild(cmd *exec.Cmd, end unix.Signal, collect func(stdout io.Reader)) (*selftestChild, error) {
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: end}
	cmd.Cancel = func() error { return cmd.Process.Signal(end) }
	cmd.WaitDelay = endPatience
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if cmd.Stderr == nil {
		cmd.Stderr = cmd.Stdout
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	c := &selftestChild{cmd: cmd, exited: make(chan struct{})}
	go func() {
		defer close(c.exited)
		collect(stdout)
		_ = cmd.Wait() // its status is in cmd.ProcessState
	}()
	return c, nil
}

// awaitGone returns nil when the process is gone.
//
// BLOCKS until it is; wakes on that and the end of ctx.
func (c *selftestChild) awaitGone(ctx context.Context) error {
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d is still there, in state %s: %w",
			c.cmd.Process.Pid, processState(c.cmd.Process.Pid), context.Cause(ctx))
	}
}

// processState returns R, S, D, Z, ... for a process or thread, "?" for one that
// is gone (proc_pid_stat(5)).
func processState(id int) string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
	if at := bytes.LastIndexByte(stat, ')'); at >= 0 && len(stat) > at+2 {
		return string(stat[at+2])
	}
	return "?"
}

// selftestLog keeps the end of what the mount prints. Safe for concurrent use.
type selftestLog struct {
	mu   sync.Mutex
	tail []string // GUARDED_BY(mu); the last logTailLines
	bug  string   // GUARDED_BY(mu); the first line that shows a bug since alarm told of one
}

// add adds a line.
//
// LOCKS_EXCLUDED(l.mu)
func (l *selftestLog) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, line)
	l.tail = l.tail[max(0, len(l.tail)-logTailLines):]
	if l.bug == "" && (strings.Contains(line, "BUG: ") || strings.Contains(line, "panic")) {
		l.bug = line
	}
}

// lines returns the last logTailLines.
//
// LOCKS_EXCLUDED(l.mu)
func (l *selftestLog) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.tail)
}

// alarm returns an error for the first new line that shows a bug, such as a lost
// wake-up that the mount itself noticed and repaired. Each line fails one check at
// most.
//
// LOCKS_EXCLUDED(l.mu)
func (l *selftestLog) alarm() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bug == "" {
		return nil
	}
	err := fmt.Errorf("fsmount -mount logged: %s", l.bug)
	l.bug = ""
	return err
}

// selftestReader is the parent's side of a process that reads the mount.
type selftestReader struct {
	*selftestChild
	thread  int // id of the thread that reads; the mount's table of operations names it
	calls   *json.Encoder
	answers chan readerAnswer // closed when no more will come
}

// startSelftestReader starts this program as a reader, which the end of ctx kills. The
// reader's first answer has the id of its thread.
func startSelftestReader(ctx context.Context) (*selftestReader, error) {
	cmd := exec.CommandContext(ctx, ownProgram, selftestReaderCommand)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r := &selftestReader{calls: json.NewEncoder(stdin), answers: make(chan readerAnswer, 1)}
	r.selftestChild, err = startSelftestChild(cmd, unix.SIGKILL, func(stdout io.Reader) {
		defer close(r.answers)
		for answers := json.NewDecoder(stdout); ; {
			var a readerAnswer
			if answers.Decode(&a) != nil {
				return
			}
			r.answers <- a // never waits: the caller takes each answer before its next call
		}
	})
	return r, err
}

// do makes the process perform a call, and returns the result as answer does.
//
// BLOCKS as answer does.
func (r *selftestReader) do(ctx context.Context, c readerCall) (readerAnswer, error) {
	if err := r.send(c); err != nil {
		return readerAnswer{}, err
	}
	return r.answer(ctx)
}

// doAtOnce is do within atOnceLimit.
func (r *selftestReader) doAtOnce(ctx context.Context, c readerCall) (readerAnswer, error) {
	late := fmt.Errorf("%s %s took more than %v", c.Op, filepath.Base(c.Path), atOnceLimit)
	ctx, cancel := context.WithTimeoutCause(ctx, atOnceLimit, late)
	defer cancel()
	return r.do(ctx, c)
}

// send makes the process perform a call; answer then returns the result.
//
// REQUIRES: the answer to the previous call was taken
func (r *selftestReader) send(c readerCall) error {
	if err := r.calls.Encode(c); err != nil {
		return fmt.Errorf("reader process %d is gone: %w", r.cmd.Process.Pid, err)
	}
	return nil
}

// answer returns the result of the last call. The error is that of the call, or says
// why there is no answer.
//
// BLOCKS until the process answers; wakes on that, on the end of the process and
// of ctx.
func (r *selftestReader) answer(ctx context.Context) (readerAnswer, error) {
	select {
	case a, ok := <-r.answers:
		switch {
		case !ok:
			return a, fmt.Errorf("reader process %d ended before it answered", r.cmd.Process.Pid)
		case a.Error != "":
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-ctx.Done():
		return readerAnswer{}, fmt.Errorf("reader process %d, in state %s, does not answer: %w",
			r.cmd.Process.Pid, processState(r.cmd.Process.Pid), context.Cause(ctx))
	}
}

// selftestReaderCommand is the command that turns the program into a reader. Only
// the self-test uses it.
const selftestReaderCommand = "selftest-reader"

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
	Text  string   `json:"text,omitempty"`
}

// readerOp performs c in the reader's process and puts the result in a.
type readerOp func(r *readerProcess, c readerCall, a *readerAnswer) error

// readerProcess is the state of a reader in its own process.
type readerProcess struct {
	path   string // of the open file
	fd     int    // of the open file, -1 for none
	caught chan os.Signal
}

// readerCommand is a reader in its own process.
type readerCommand struct{}

// run performs the calls that it reads from in until in ends.
//
// BLOCKS until in ends.
func (*readerCommand) run(in io.Reader, out io.Writer) (status int, err error) {
	return serveReader(in, out, readerOps()), nil
}

// serveReader makes all system calls on one thread. Its first answer has the
// thread's id.
func serveReader(in io.Reader, out io.Writer, ops map[string]readerOp) (status int) {
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
		if op, ok := ops[c.Op]; ok {
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

// readerOps returns the operations of the self-test's readers by name. The
// kernel may answer "stat" from its cache; "stat anew" asks the file system
// (statx(2)).
func readerOps() map[string]readerOp {
	return map[string]readerOp{
		"read":      (*readerProcess).read,
		"verify":    (*readerProcess).verify,
		"stat":      statOp(0),
		"stat anew": statOp(unix.AT_STATX_FORCE_SYNC),
		"ls": func(_ *readerProcess, c readerCall, a *readerAnswer) error {
			entries, err := os.ReadDir(c.Path)
			for _, e := range entries {
				a.Names = append(a.Names, e.Name())
			}
			return err
		},
		"text": func(_ *readerProcess, c readerCall, a *readerAnswer) error {
			text, err := os.ReadFile(c.Path)
			a.Text = strings.ToValidUTF8(string(text), "?")
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

// verify reads at random places, then the whole file from its start, and requires
// that the file ends at c.Size.
func (r *readerProcess) verify(c readerCall, a *readerAnswer) error {
	if err := r.random(c, a); err != nil {
		return err
	}
	for off := int64(0); off < c.Size; off += int64(c.Len) {
		if err := r.read(c.at(off, min(int64(c.Len), c.Size-off)), a); err != nil {
			return err
		}
	}
	if n, err := r.pread(c.at(c.Size, 1)); n != 0 || err != nil {
		return fmt.Errorf("read beyond the end: %d bytes, %v", n, err)
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

// statOp returns an operation that calls statx(2) with flags.
func statOp(flags int) readerOp {
	return func(_ *readerProcess, c readerCall, a *readerAnswer) error {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, c.Path, flags, unix.STATX_BASIC_STATS, &st)
		a.Size, a.Mode = int64(st.Size), uint32(st.Mode)
		a.Mtime = time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)).UnixNano()
		return err
	}
}
