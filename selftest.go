// selftest.go implements "fsmount selftest": it checks, with nothing but the binary, whether fsmount works on this
// machine. It runs the checks in order, each with a time limit, prints one line for each, and removes everything they
// made. Only its child processes touch the mount: one serves it, and each reader does one thing, tells what it found,
// and ends. Each has its own process group, so Ctrl-C reaches the self-test alone, and ends when the self-test dies.

package main

import (
	"bytes"
	"cmp"
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
	"sync"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

const (
	selftestLimit      = 60 * time.Second // for the whole self-test
	selftestCheckLimit = 15 * time.Second // for one check: the slowest takes a fraction of it, even on one busy core
	selftestGrace      = time.Second      // how long a check may still run after its limit, to report what it saw
	selftestCleanLimit = 2 * endPatience  // for the last check: children that ignore their signal are killed by then
	endPatience        = 2 * time.Second  // for a child, to end in good order
	selftestSpace      = 256 << 20        // bytes that must be free for the downloads: several times what they take
	logTailLines       = 40               // of the mount's log are shown after a failure
)

var errSelftestLimit = fmt.Errorf("the self-test may take %v in all", selftestLimit)

// selftest is one run of the self-test. Its checks run one after the other. After a
// check that hangs no other runs, except the last one, cleanUp. The check that hangs
// may still use the fields that checkMounting writes, so cleanUp uses none of them.
type selftest struct {
	out      io.Writer // gets a line for each check
	passes   int       // of checks
	failures int
	skips    int

	alive context.Context // its end ends all processes, and no further check runs
	end   context.CancelCauseFunc

	// Write once, by checkMounting.
	files *selftestFiles
	mnt   string // the mountpoint
	temp  string // directory for the downloads
	mount *selftestChild

	log selftestLog // of the mount

	mu       sync.Mutex
	cleanups []func(context.Context) error // GUARDED_BY(mu); the newest last
}

func newSelftest(out io.Writer) *selftest {
	s := &selftest{out: out}
	s.alive, s.end = context.WithCancelCause(context.Background())
	return s
}

type selftestCommand struct{}

// run prints what works on this machine and what does not. It returns exitOK if every check passed.
// BLOCKS until everything is done and removed, at most selftestLimit; wakes on the signals that stop a mount too.
func (*selftestCommand) run(_ io.Reader, stdout io.Writer) (status int, err error) {
	// Without this, a closed pipe would end the self-test before it removes its mount.
	signal.Ignore(syscall.SIGPIPE)
	ctx, release := signal.NotifyContext(context.Background(), stopSignals()...)
	defer release()
	ctx, cancel := context.WithTimeoutCause(ctx, selftestLimit-selftestCleanLimit-2*selftestGrace, errSelftestLimit)
	defer cancel()

	s := newSelftest(stdout)
	s.run(ctx, selftestStages())
	s.runOne(context.Background(), cleanCheck(), selftestCleanLimit)
	if s.failures > 0 {
		lines := strings.FieldsFunc(s.log.String(), func(r rune) bool { return r == '\n' })
		for _, line := range lines[max(0, len(lines)-logTailLines):] {
			fmt.Fprintf(stdout, "log: %s\n", line)
		}
	}
	return s.finish(), nil
}

// run runs the checks that can run.
func (s *selftest) run(ctx context.Context, stages [][]selftestCheck) {
	lacks := "" // the first check of the stage before that did not pass
	for _, stage := range stages {
		failed := ""
		for _, k := range stage {
			reason := ""
			switch {
			case ctx.Err() != nil:
				reason = "not reached: " + context.Cause(ctx).Error()
			case s.alive.Err() != nil:
				reason = "not tried: " + context.Cause(s.alive).Error()
			case lacks != "":
				reason = fmt.Sprintf("not tried: it needs %q, which did not pass", lacks)
			case s.runOne(ctx, k, selftestCheckLimit):
				continue
			}
			failed = cmp.Or(failed, k.name)
			if reason != "" {
				s.skips++
				s.print("SKIP", k.name, reason)
			}
		}
		lacks = failed
	}
}

// runOne runs k, prints its line, and reports whether it passed. BLOCKS as runBounded does.
func (s *selftest) runOne(ctx context.Context, k selftestCheck, limit time.Duration) bool {
	c := s.runBounded(ctx, k, limit)
	if c.err == nil {
		s.passes++
		s.print("PASS", k.name, c.figure)
		return true
	}
	s.failures++
	todo := k.todo
	if ctx.Err() != nil && context.Cause(ctx) != errSelftestLimit {
		todo = "run the self-test again and let it end"
	}
	s.print("FAIL", k.name, strings.TrimSuffix(fmt.Sprintf("%v; %s", c.err, todo), "; "))
	return false
}

// runBounded runs k in a goroutine of its own, and returns how it ended. It abandons a
// check that does not end, ends all processes, and returns a check that failed.
// BLOCKS until k is done; wakes selftestGrace after limit or the end of ctx.
func (s *selftest) runBounded(ctx context.Context, k selftestCheck, limit time.Duration) *checkRun {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no end within %v", limit))
	defer cancel()
	c := &checkRun{selftest: s, ctx: ctx}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				c.err = fmt.Errorf("panic: %v %s", p, debug.Stack())
			} else if c.err == nil {
				c.err = s.log.alarm()
			}
		}()
		c.figure = k.run(c)
	}()
	select {
	case <-done:
		return c
	case <-ctx.Done():
	}
	select {
	case <-done:
		return c
	case <-time.After(selftestGrace):
		s.end(fmt.Errorf("the check %q still hangs", k.name))
		return &checkRun{err: fmt.Errorf("the check hangs: %w", context.Cause(ctx))}
	}
}

func (s *selftest) print(verdict, name, text string) {
	fmt.Fprintf(s.out, "%s %s: %s\n", verdict, name, strings.Join(strings.Fields(text), " "))
}

// finish prints the numbers of checks by verdict, and returns the exit status.
func (s *selftest) finish() (status int) {
	fmt.Fprintf(s.out, "%d passed, %d failed, %d skipped\n", s.passes, s.failures, s.skips)
	if s.failures > 0 || s.skips > 0 {
		return exitFailure
	}
	return exitOK
}

// checkRun is a running check. A check fails as a test does with testing.T: fail, must, mustf, and all
// methods that call them record the error and end the check's goroutine. Deferred functions still run;
// the code after the failed step does not. Only the check's own goroutine may call these methods.
type checkRun struct {
	*selftest
	ctx    context.Context // ends when the check must end, or has; that kills its readers
	figure string          // what the check measured
	err    error           // why the check failed
}

func (c *checkRun) fail(format string, args ...any) {
	c.err = fmt.Errorf(format, args...)
	runtime.Goexit()
}

func (c *checkRun) must(err error) {
	if err != nil {
		c.fail("%w", err)
	}
}

func (c *checkRun) mustf(err error, format string, args ...any) {
	if err != nil {
		c.fail("%s: %w", fmt.Sprintf(format, args...), err)
	}
}

// selftestCheck is one line of the self-test.
type selftestCheck struct {
	name string
	run  checkFunc
	todo string // advice after a failure; "" where the error has it
}

// checkFunc returns what a check measured.
type checkFunc func(c *checkRun) (figure string)

const (
	reportIt = "please report this line and the log below"
	distrust = "do not use this build here: please report this line and the log below"
)

// selftestStages returns all checks except the last one, in order. Those of a stage need all of the stage before.
func selftestStages() [][]selftestCheck {
	return [][]selftestCheck{{
		{"device", func(c *checkRun) string { c.must(deviceProblem()); return "/dev/fuse can be opened" }, ""},
		{"rights", checkMountRights, ""},
		{"kernel", checkKernel, "use a kernel of 4.20 or later"},
		{"temporary space", checkTempSpace, "free some, or name another directory in $TMPDIR (for a mount: --temp-dir DIR)"},
	}, {
		{"mount", checkMounting, `see what "fsmount -mount DIR" says, with an empty directory; it must reach 127.0.0.1`},
	}, {
		{"sizes and modes", checkSizes, reportIt},
		{"concurrent readers", checkConcurrentReaders, distrust},
		{"streaming", checkStreaming, reportIt},
		{"seeks", checkSeeks, reportIt},
		{"cut connections", checkCut, distrust},
		{"isolation", checkIsolation, "while a server stalls, expect programs to hang here; " + reportIt},
		{"kill", checkKill, "expect processes here that cannot be killed; " + reportIt},
		{"signals", checkSignals, "expect programs that catch signals to fail here; " + reportIt},
		{"stop", checkStop, "a mount that does not stop is ended by kill -9 and then umount -l; " + reportIt},
	}}
}

func checkMountRights(c *checkRun) string {
	how, problem := mountRights(false)
	c.must(problem)
	return fmt.Sprintf("user %d %s", os.Geteuid(), how)
}

func checkKernel(c *checkRun) string {
	var name unix.Utsname
	c.mustf(unix.Uname(&name), "ask for the kernel's version")
	return judgeKernel(c, unix.ByteSliceToString(name.Release[:]))
}

// judgeKernel judges a release as uname -r prints it. FUSE requests of more than 128 KiB came with
// 4.20 (FUSE_MAX_PAGES), passthrough with 6.9.
func judgeKernel(c *checkRun, release string) string {
	var major, minor int
	_, err := fmt.Sscanf(release, "%d.%d", &major, &minor)
	switch {
	case err != nil:
		c.fail("the kernel's version %q has no number", release)
	case major < 4 || major == 4 && minor < 20:
		c.fail("the kernel, Linux %s, is older than 4.20", release)
	case major < 6 || major == 6 && minor < 9:
		return fmt.Sprintf("Linux %s (from 6.9 on, reads of complete files are faster)", release)
	}
	return "Linux " + release
}

// checkTempSpace looks at the directory that --temp-dir names by default.
func checkTempSpace(c *checkRun) string {
	dir := defaultTempDir()
	f, err := createUnlinked(dir)
	if err != nil {
		c.fail("no file can be made in %s: %w", dir, pathReason(err))
	}
	defer f.Close()
	var st unix.Statfs_t
	c.mustf(unix.Fstatfs(int(f.Fd()), &st), "ask for the room in %s", dir)
	return judgeSpace(c, dir, int64(st.Bavail)*st.Bsize)
}

func judgeSpace(c *checkRun, dir string, free int64) string {
	if free < selftestSpace {
		c.fail("%s has room for %s only, the self-test wants %s", dir, humanize.IBytes(uint64(free)), humanize.IBytes(uint64(selftestSpace)))
	}
	return fmt.Sprintf("%s has room for %s", dir, humanize.IBytes(uint64(free)))
}

// cleanCheck is the last check: that everything can be removed.
func cleanCheck() selftestCheck {
	return selftestCheck{"nothing left", cleanUp, "end and remove that by hand: kill -9, umount -l, rmdir"}
}

// cleanUp ends all processes and calls the cleanups, the newest first. BLOCKS until that is done, or c.ctx ends.
func cleanUp(c *checkRun) string {
	c.end(nil)
	c.mu.Lock()
	cleanups := c.cleanups
	c.mu.Unlock()
	var err error
	for _, cleanup := range slices.Backward(cleanups) {
		err = errors.Join(err, cleanup(c.ctx))
	}
	c.must(err)
	return "no process, no mount, no file, no directory"
}

// undo adds a cleanup for the last check, which ends its context.
func (s *selftest) undo(cleanup func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, cleanup)
}

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
