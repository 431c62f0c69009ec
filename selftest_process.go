// selftest_process.go holds the child processes of the self-test: the mount, and readers, of which each does
// one thing to the mount, tells what it found, and ends. Each child has its own process group, so Ctrl-C
// reaches the self-test alone, and each ends when the self-test dies. Every wait for a child has a limit.

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
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// endPatience is how long a child may take to end in good order.
const endPatience = 2 * time.Second

// selftestChild is a process of the self-test.
type selftestChild struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone and its output was read
}

// startSelftestChild starts cmd. When cmd's context ends or this process dies, the child gets end; after the context,
// it is killed if it is still there endPatience later. REQUIRES: cmd was made by exec.CommandContext
func startSelftestChild(cmd *exec.Cmd, end unix.Signal) (*selftestChild, error) {
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: end}
	cmd.Cancel = func() error { return cmd.Process.Signal(end) }
	cmd.WaitDelay = endPatience
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	c := &selftestChild{cmd: cmd, exited: make(chan struct{})}
	go func() {
		defer close(c.exited)
		_ = cmd.Wait() // its status is in cmd.ProcessState
	}()
	return c, nil
}

// awaitGone returns nil when the process is gone. BLOCKS until it is; wakes on that and the end of ctx.
func (c *selftestChild) awaitGone(ctx context.Context) error {
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d is still there, in state %s: %w",
			c.cmd.Process.Pid, processState(c.cmd.Process.Pid), context.Cause(ctx))
	}
}

// processState returns R, S, D, Z, ... for a process or thread, "?" for one that is gone (proc_pid_stat(5)).
func processState(id int) string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
	if at := bytes.LastIndexByte(stat, ')'); at >= 0 && len(stat) > at+2 {
		return string(stat[at+2])
	}
	return "?"
}

// selftestLog keeps what the mount prints.
type selftestLog struct {
	mu     sync.Mutex
	text   bytes.Buffer // GUARDED_BY(mu)
	judged int          // GUARDED_BY(mu); how many bytes of it alarm has looked at
}

func (l *selftestLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *selftestLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// alarm returns an error for the first line since the last call that shows a bug, such
// as a lost wake-up that the mount itself noticed and repaired.
func (l *selftestLog) alarm() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	unjudged := l.text.String()[l.judged:]
	l.judged = l.text.Len()
	for line := range strings.Lines(unjudged) {
		if strings.Contains(line, "BUG: ") || strings.Contains(line, "panic") {
			return fmt.Errorf("fsmount -mount logged: %s", strings.TrimSpace(line))
		}
	}
	return nil
}

// selftestReaderCommand is the command that turns the program into a reader. Only the self-test uses it.
const selftestReaderCommand = "selftest-reader"

// selftestCall is what a reader does: it lists a directory, or reads a part of a file, or
// looks at the attributes of a file, if the part is empty.
type selftestCall struct {
	Path     string
	Off, End int64  // the part
	Random   int    // how many reads at random places in it come first
	Size     int64  // of the file, in bytes; 0 for a directory
	Seed     uint64 // of the content that must be found
	Signal   bool   // SIGUSR1 must come before the end
}

// selftestAnswer is what a reader found.
type selftestAnswer struct {
	Error string        // "" for success
	N     int64         // bytes read
	Names []string      // in the directory
	Took  time.Duration // from the begin of the call to its end
}

// selftestReader is a process that makes one selftestCall.
type selftestReader struct {
	*selftestChild
	thread int          // that the mount lists as blocked; awaitBlocked finds it
	output bytes.Buffer // only cmd uses it until exited is closed
}

// startSelftestReader starts this program as a reader, which the end of ctx kills.
func startSelftestReader(ctx context.Context, call selftestCall) (*selftestReader, error) {
	text, err := json.Marshal(call)
	if err != nil {
		return nil, err
	}
	r := &selftestReader{}
	cmd := exec.CommandContext(ctx, ownProgram, selftestReaderCommand)
	cmd.Stdin, cmd.Stdout = bytes.NewReader(text), &r.output
	r.selftestChild, err = startSelftestChild(cmd, unix.SIGKILL)
	return r, err
}

// answer returns what the reader found. The error is that of its call, or says why there is no answer.
// BLOCKS until the process is gone; wakes on that and the end of ctx.
func (r *selftestReader) answer(ctx context.Context) (a selftestAnswer, err error) {
	if err := r.awaitGone(ctx); err != nil {
		return a, err
	}
	if err := json.Unmarshal(r.output.Bytes(), &a); err != nil {
		return a, fmt.Errorf("reader process %d ended before it answered (%v)", r.cmd.Process.Pid, r.cmd.ProcessState)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// readerCommand is a reader in its own process.
type readerCommand struct{}

// run makes the call that in has, and writes the answer to out. BLOCKS as the mount does.
func (*readerCommand) run(in io.Reader, out io.Writer) (status int, err error) {
	var call selftestCall
	if err := json.NewDecoder(in).Decode(&call); err != nil {
		return exitUsage, err
	}
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGUSR1)
	begin := time.Now()
	var answer selftestAnswer
	err = call.perform(&answer)
	answer.Took = time.Since(begin)
	if err == nil && call.Signal {
		select {
		case <-caught: // the kernel delivers it when the read has ended
		case <-time.After(atOnceLimit):
			err = errors.New("no signal arrived, so this shows nothing")
		}
	}
	if err != nil {
		answer.Error = fmt.Sprintf("%s: %v", filepath.Base(call.Path), err)
	}
	return exitOK, json.NewEncoder(out).Encode(answer)
}

// perform makes the call.
func (c selftestCall) perform(a *selftestAnswer) error {
	fd, err := unix.Open(c.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	f := os.NewFile(uintptr(fd), c.Path)
	defer f.Close()
	switch {
	case c.Size == 0:
		a.Names, err = f.Readdirnames(-1)
	case c.Off == c.End:
		err = c.checkAttributes(fd)
	default:
		a.N, err = c.read(fd)
	}
	return err
}

// checkAttributes compares the size and the mode with those that the kernel may have
// cached, and with those that the file system returns at this moment (statx(2)).
func (c selftestCall) checkAttributes(fd int) error {
	for what, flags := range map[string]int{"stat": 0, "stat anew": unix.AT_STATX_FORCE_SYNC} {
		var st unix.Statx_t
		if err := unix.Statx(fd, "", flags|unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if int64(st.Size) != c.Size || st.Mode != unix.S_IFREG|0o444 {
			return fmt.Errorf("%s: it has %d bytes and mode %o, want %d and %o", what, st.Size, st.Mode, c.Size, unix.S_IFREG|0o444)
		}
	}
	return nil
}

// read reads at random places, and then the whole part in order. It requires that the file has no byte after c.Size.
func (c selftestCall) read(fd int) (total int64, err error) {
	buf := make([]byte, selftestReadBytes)
	pread := func(off, length int64) error {
		r := byteRange{off, min(off+length, c.End)}
		n, err := unix.Pread(fd, buf[:r.len()], off) // os.File.ReadAt would repeat what a signal ends
		switch {
		case err != nil:
			return fmt.Errorf("read %v: %w", r, err)
		case int64(n) != r.len():
			return fmt.Errorf("read %v: %d bytes came", r, n)
		}
		total += int64(n)
		return checkContent(buf[:n], c.Seed, off)
	}
	for range c.Random {
		if err := pread(c.Off+rand.Int64N(c.End-c.Off), 1+rand.Int64N(selftestReadBytes)); err != nil {
			return total, err
		}
	}
	for off := c.Off; off < c.End; off += selftestReadBytes {
		if err := pread(off, selftestReadBytes); err != nil {
			return total, err
		}
	}
	if n, err := unix.Pread(fd, buf, c.Size); n != 0 || err != nil {
		return total, fmt.Errorf("read beyond the end: %d bytes, %v", n, err)
	}
	return total, nil
}
