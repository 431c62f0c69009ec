//go:build linux

// The readers of the kernel tests as the tests see them: processes that are
// started, told what to do, waited for with a bound, signalled, and killed when
// the test ends.

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
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
