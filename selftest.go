// selftest.go implements "fsmount selftest": it checks, with nothing but the binary, whether fsmount
// works on this machine. It runs the checks in order, each with a time limit, prints one line for each,
// and removes everything they made. It never touches the mount itself: child processes do that.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
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

	selftestSpace = 256 << 20 // bytes that must be free for the downloads: several times what they take
	logTailLines  = 40        // of the mount's log are shown after a failure
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

// selftestCommand is `fsmount selftest`.
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
