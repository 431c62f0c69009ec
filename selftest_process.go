//go:build linux

// selftest_process.go has the processes of a self-test as it sees them: the
// mount, which is the program as a user starts it, and those who read there
// (selftest_reader.go). Each is in a process group of its own, so that a Ctrl-C
// is the self-test's alone to handle; each is waited for with a bound only; and
// each ends, even if the self-test is killed.

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
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
