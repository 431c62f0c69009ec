// selftest_process.go holds the child processes of the self-test: the mount, and
// the readers that make one system call after the other as they are told. Each
// child has its own process group, so Ctrl-C reaches the self-test alone, and each
// ends when the self-test dies. Every wait for one has a limit.

package main

import (
	"bufio"
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
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// outputPatience bounds how long a process's output is read on when it is
	// gone, should somebody else hold the pipe.
	outputPatience = time.Second

	// opsPoll is how often the table of blocked operations is looked at while a
	// read is to get there: the kernel tells nobody when one blocks.
	opsPoll = 5 * time.Millisecond

	// logTailBytes is how much of the mount's log is kept.
	logTailBytes = 16 << 10

	// logTailLines is how much of it is shown where a check failed.
	logTailLines = 40
)

// selftestChild is a process of the self-test.
type selftestChild struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when it is gone and its output was read
}

// startSelftestChild runs the program with args. With the self-test it ends too,
// by the signal dying. collect reads its standard output to the end.
func startSelftestChild(cmd *exec.Cmd, dying unix.Signal, collect func(stdout io.Reader)) (*selftestChild, error) {
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: dying}
	cmd.WaitDelay = outputPatience
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
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

// selftestCommand is the program itself, from its file or, where that is gone,
// from the kernel's hold on it.
func selftestCommand(args ...string) *exec.Cmd {
	path, err := os.Executable()
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		path = "/proc/self/exe"
	}
	return exec.Command(path, args...)
}

// signal sends sig to the process and those it started, if it is there.
func (c *selftestChild) signal(sig unix.Signal) {
	select {
	case <-c.exited:
	default:
		_ = unix.Kill(-c.cmd.Process.Pid, sig)
	}
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

// processState is R, S, D, Z, ..., "?" for a process that is gone
// (proc_pid_stat(5)).
func processState(pid int) string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if _, after, found := bytes.Cut(stat, []byte(") ")); found && len(after) > 0 {
		return string(after[:1])
	}
	return "?"
}

// selftestMount is the process that serves the mount.
type selftestMount struct {
	*selftestChild
	ready chan struct{} // closed when it said that it has mounted
	log   *logTail
}

// startSelftestMount mounts sources at dir as a user does.
func startSelftestMount(dir, tempDir string, sources []string) (*selftestMount, error) {
	m := &selftestMount{ready: make(chan struct{}), log: &logTail{}}
	cmd := selftestCommand(append([]string{"-mount", dir, "--temp-dir", tempDir}, sources...)...)
	cmd.Stderr = m.log
	var err error
	m.selftestChild, err = startSelftestChild(cmd, unix.SIGTERM, func(stdout io.Reader) {
		said := false
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if !said && strings.Contains(lines.Text(), "mounted at "+dir) {
				said = true
				close(m.ready)
			}
		}
	})
	return m, err
}

// awaitReady returns nil when everything is mounted.
//
// BLOCKS until it is; wakes on that, on the end of the process and of ctx.
func (m *selftestMount) awaitReady(ctx context.Context) error {
	select {
	case <-m.ready:
		return nil
	case <-m.exited:
		return m.ended()
	case <-ctx.Done():
		return fmt.Errorf("fsmount -mount did not say that it is ready: %w", context.Cause(ctx))
	}
}

// alive returns an error where the process ended.
func (m *selftestMount) alive() error {
	select {
	case <-m.exited:
		return m.ended()
	default:
		return nil
	}
}

// ended says how the process ended.
//
// REQUIRES: m.exited is closed
func (m *selftestMount) ended() error {
	last := "it said nothing"
	if lines := m.log.lines(); len(lines) > 0 {
		last = lines[len(lines)-1]
	}
	return fmt.Errorf("fsmount -mount ended (%v): %s", m.cmd.ProcessState, last)
}

// logTail keeps the end of what is written to it.
type logTail struct {
	mu      sync.Mutex
	text    []byte // GUARDED_BY(mu)
	alarmed bool   // GUARDED_BY(mu); alarm has returned a line
}

func (l *logTail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if extra := len(l.text) - logTailBytes; extra > 0 {
		l.text = append(l.text[:0], l.text[extra:]...)
	}
	return len(p), nil
}

// alarm returns an error for the first line that tells of a bug, such as a lost
// wake-up that the mount itself noticed and put right. It does so once.
//
// LOCKS_EXCLUDED(l.mu)
func (l *logTail) alarm() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(string(l.text)) {
		if !l.alarmed && (strings.Contains(line, "BUG: ") || strings.Contains(line, "panic")) {
			l.alarmed = true
			return fmt.Errorf("fsmount -mount logged: %s", strings.TrimSpace(line))
		}
	}
	return nil
}

// lines returns the last logTailLines.
//
// LOCKS_EXCLUDED(l.mu)
func (l *logTail) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimRight(string(l.text), "\n")
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-logTailLines):]
}

// selftestReader is a process that reads the mount.
type selftestReader struct {
	*selftestChild
	thread  int // the id of the thread that reads
	calls   *json.Encoder
	answers chan selftestAnswer // closed when no more will come
}

func startSelftestReader() (*selftestReader, error) {
	cmd := selftestCommand(selftestReaderCommand)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r := &selftestReader{calls: json.NewEncoder(stdin), answers: make(chan selftestAnswer, 1)}
	r.selftestChild, err = startSelftestChild(cmd, unix.SIGKILL, r.collect)
	return r, err
}

// collect passes on the answers, of which there is never more than one that
// nobody took: the next call is made after that.
func (r *selftestReader) collect(stdout io.Reader) {
	defer close(r.answers)
	for answers := json.NewDecoder(stdout); ; {
		var a selftestAnswer
		if answers.Decode(&a) != nil {
			return
		}
		r.answers <- a
	}
}

// do has the process make a call. The error is that of the call, or says why
// there is no answer.
//
// BLOCKS until the answer is there; wakes on that, on the end of the process
// and of ctx.
func (r *selftestReader) do(ctx context.Context, c selftestCall) (selftestAnswer, error) {
	if err := r.send(c); err != nil {
		return selftestAnswer{}, err
	}
	return r.answer(ctx)
}

// send has the process make a call, of which answer then returns what came.
//
// REQUIRES: the answer to the call before was taken
func (r *selftestReader) send(c selftestCall) error {
	if err := r.calls.Encode(c); err != nil {
		return fmt.Errorf("reader process %d is gone: %w", r.cmd.Process.Pid, err)
	}
	return nil
}

// answer is do's second half.
func (r *selftestReader) answer(ctx context.Context) (selftestAnswer, error) {
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
		return selftestAnswer{}, fmt.Errorf("reader process %d, in state %s, does not answer: %w",
			r.cmd.Process.Pid, processState(r.cmd.Process.Pid), context.Cause(ctx))
	}
}

// selftestReaders are readers that end together.
type selftestReaders []*selftestReader

func (rs selftestReaders) kill() {
	for _, r := range rs {
		r.signal(unix.SIGKILL)
	}
}

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
		a.Size, a.Mode, err = statxOf(c.Path, 0)
	case "stat anew":
		a.Size, a.Mode, err = statxOf(c.Path, unix.AT_STATX_FORCE_SYNC)
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

// statxOf asks the file system itself with AT_STATX_FORCE_SYNC in flags (statx(2)),
// else the kernel, which may remember.
func statxOf(path string, flags int) (size int64, mode uint32, err error) {
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
