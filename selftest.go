// selftest.go implements "fsmount selftest": it checks, with nothing but the binary,
// whether fsmount works on this machine. It runs the checks in order, each with a
// time limit, prints one line for each, and removes everything they made. It never
// touches the mount itself: child processes do that.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// selftestLimit bounds the whole self-test.
	selftestLimit = 60 * time.Second

	// selftestCheckLimit bounds one check: several times what the slowest one
	// takes on one busy core.
	selftestCheckLimit = 15 * time.Second

	// selftestGrace is how long a check whose limit has passed may take to report
	// what it saw.
	selftestGrace = time.Second

	// selftestCleanLimit bounds the last check, which removes everything.
	selftestCleanLimit = 8 * time.Second

	// cleanPatience bounds each of the three steps that can wait in that check.
	cleanPatience = 2 * time.Second

	// selftestSpace is the room that the self-test wants for its downloads:
	// several times what they take. In bytes.
	selftestSpace = 256 << 20
)

var (
	errSelftestLimit = fmt.Errorf("the self-test may take %v in all", selftestLimit)
	errCheckHangs    = errors.New("the check hangs")
)

// checkFunc returns what a check measured, or why it failed.
type checkFunc func(ctx context.Context) (figure string, err error)

// selftestCheck is one line of the self-test.
type selftestCheck struct {
	name  string
	needs []string // names of checks that must have passed
	run   checkFunc
	todo  string // advice after a failure, unless the error is an advisedError
}

// advisedError is an error with its own advice.
type advisedError struct {
	error
	todo string
}

func (e advisedError) Unwrap() error { return e.error }

// runSelftest prints what works on this machine and what does not. It returns
// exitOK if every check passed.
//
// BLOCKS until everything is done and removed, at most selftestLimit; wakes on the
// signals that stop a mount too.
func runSelftest(stdout io.Writer) (status int) {
	// Without this, a closed pipe would end the self-test before it removes its mount.
	signal.Ignore(syscall.SIGPIPE)
	ctx, release := signal.NotifyContext(context.Background(), stopSignals()...)
	defer release()
	ctx, cancel := context.WithTimeoutCause(ctx, selftestLimit-selftestCleanLimit-2*selftestGrace, errSelftestLimit)
	defer cancel()

	s := &selftest{}
	report := &selftestReport{out: stdout, passed: make(map[string]bool)}
	report.run(ctx, append(selftestHostChecks(), s.checks()...))
	report.runOne(context.Background(), s.cleanCheck(), selftestCleanLimit)
	if report.failures > 0 {
		for _, line := range s.log.lines() {
			fmt.Fprintf(stdout, "log: %s\n", line)
		}
	}
	return report.finish()
}

// selftestReport prints the result of each check.
type selftestReport struct {
	out      io.Writer
	passed   map[string]bool // by name
	failures int
	skips    int
	halted   error // why no further check runs
}

// run runs the checks that can run.
func (r *selftestReport) run(ctx context.Context, checks []selftestCheck) {
	for _, c := range checks {
		reason := ""
		missing := slices.IndexFunc(c.needs, func(need string) bool { return !r.passed[need] })
		switch {
		case ctx.Err() != nil:
			reason = "not reached: " + context.Cause(ctx).Error()
		case r.halted != nil:
			reason = "not tried: " + r.halted.Error()
		case missing >= 0:
			reason = fmt.Sprintf("not tried: it needs %q, which did not pass", c.needs[missing])
		default:
			r.runOne(ctx, c, selftestCheckLimit)
			continue
		}
		r.skips++
		r.print("SKIP", c.name, reason)
	}
}

// runOne runs c and prints its line.
//
// BLOCKS until c is done, at most limit and selftestGrace; wakes on the end of
// ctx.
func (r *selftestReport) runOne(ctx context.Context, c selftestCheck, limit time.Duration) {
	figure, err := c.bounded(ctx, limit)
	if err == nil {
		r.passed[c.name] = true
		r.print("PASS", c.name, figure)
		return
	}
	r.failures++
	if errors.Is(err, errCheckHangs) {
		r.halted = fmt.Errorf("the check %q still hangs", c.name)
	}
	todo := c.todo
	if advised := (advisedError{}); errors.As(err, &advised) {
		todo = advised.todo
	} else if ctx.Err() != nil && context.Cause(ctx) != errSelftestLimit {
		todo = "run the self-test again and let it end"
	}
	r.print("FAIL", c.name, fmt.Sprintf("%v; %s", err, todo))
}

// bounded runs c in a goroutine of its own, where a panic is a failure like any
// other. It abandons a check that does not end, and returns errCheckHangs.
//
// BLOCKS until c is done; wakes selftestGrace after limit or the end of ctx.
func (c selftestCheck) bounded(ctx context.Context, limit time.Duration) (figure string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no end within %v", limit))
	defer cancel()
	type outcome struct {
		figure string
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if p := recover(); p != nil {
				o.err = fmt.Errorf("panic: %v %s", p, debug.Stack())
			}
			done <- o
		}()
		o.figure, o.err = c.run(ctx)
	}()
	overdue := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(selftestGrace, func() { close(overdue) })
	})
	defer stop()
	select {
	case o := <-done:
		return o.figure, o.err
	case <-overdue:
		return "", fmt.Errorf("%w: %w", errCheckHangs, context.Cause(ctx))
	}
}

// print writes one line. It joins the lines of text.
func (r *selftestReport) print(verdict, name, text string) {
	text = strings.Join(strings.FieldsFunc(text, func(c rune) bool { return c == '\n' || c == '\t' }), " ")
	fmt.Fprintf(r.out, "%s %s: %s\n", verdict, name, text)
}

// finish prints the sums and returns the exit status.
func (r *selftestReport) finish() (status int) {
	skipped := ""
	if r.skips > 0 {
		skipped = fmt.Sprintf(", %d skipped", r.skips)
	}
	fmt.Fprintf(r.out, "%d passed, %d failed%s\n", len(r.passed), r.failures, skipped)
	if r.failures > 0 || r.skips > 0 {
		return exitFailure
	}
	return exitOK
}

// Names of the checks that others need.
const (
	checkNameDevice = "device"
	checkNameRights = "rights"
	checkNameKernel = "kernel"
	checkNameSpace  = "temporary space"
)

func selftestHostChecks() []selftestCheck {
	return []selftestCheck{
		{name: checkNameDevice, run: checkFUSEDevice,
			todo: "as root: chmod 666 /dev/fuse; in a container: start it with --device /dev/fuse"},
		{name: checkNameRights, run: checkMountRights,
			todo: "run it as root, or install fusermount3 (Debian: apt install fuse3); as root in a container: start it with --cap-add SYS_ADMIN"},
		{name: checkNameKernel, run: checkKernel,
			todo: "use a kernel of 4.20 or later"},
		{name: checkNameSpace, run: checkTempSpace,
			todo: "free some, or name another directory in $TMPDIR (for a mount: --temp-dir DIR)"},
	}
}

func checkFUSEDevice(context.Context) (string, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", advisedError{errors.New("/dev/fuse is missing"),
			`as root: modprobe fuse; in a container: start it with --device /dev/fuse`}
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return "", advisedError{fmt.Errorf("open /dev/fuse: %w: the kernel has no FUSE", err),
			`as root: modprobe fuse; on a container's host, if this is one`}
	case err != nil:
		return "", fmt.Errorf("open /dev/fuse: %w", err)
	}
	return "/dev/fuse can be opened", unix.Close(fd)
}

// checkMountRights looks for the two ways to mount in the order in which a mount
// tries them: CAP_SYS_ADMIN, then the set-user-ID helper.
func checkMountRights(context.Context) (string, error) {
	if mayMount() {
		return fmt.Sprintf("user %d may mount by itself", os.Geteuid()), nil
	}
	for _, name := range []string{"fusermount3", "fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return fmt.Sprintf("user %d mounts by %s", os.Geteuid(), path), nil
		}
	}
	return "", fmt.Errorf("user %d may not mount (no CAP_SYS_ADMIN), and there is no fusermount3 in $PATH", os.Geteuid())
}

// mayMount reports whether this process has CAP_SYS_ADMIN (mount(2)).
func mayMount() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	err := unix.Capget(&header, &sets[0])
	return err == nil && sets[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

func checkKernel(context.Context) (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("ask for the kernel's version: %w", err)
	}
	return judgeKernel(unix.ByteSliceToString(name.Release[:]))
}

// judgeKernel judges a release as uname -r prints it. FUSE requests of more than
// 128 KiB came with 4.20 (FUSE_MAX_PAGES). Before 6.5, which has cachestat(2),
// large reads are copied once more.
func judgeKernel(release string) (string, error) {
	version := make([]int, 2)
	if _, err := fmt.Sscanf(release, "%d.%d", &version[0], &version[1]); err != nil {
		return "", fmt.Errorf("the kernel's version %q has no number", release)
	}
	switch {
	case slices.Compare(version, []int{4, 20}) < 0:
		return "", fmt.Errorf("the kernel, Linux %s, is older than 4.20", release)
	case slices.Compare(version, []int{6, 5}) < 0:
		return fmt.Sprintf("Linux %s (from 6.5 on, large reads are faster)", release), nil
	}
	return "Linux " + release, nil
}

// checkTempSpace looks at the directory that --temp-dir names by default.
func checkTempSpace(context.Context) (string, error) {
	dir := defaultTempDir()
	f, err := createUnlinked(dir)
	if err != nil {
		return "", fmt.Errorf("no file can be made in %s: %w", dir, pathReason(err))
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("ask for the room in %s: %w", dir, err)
	}
	return judgeSpace(dir, int64(st.Bavail)*st.Bsize)
}

// judgeSpace requires that dir has enough free bytes.
func judgeSpace(dir string, free int64) (string, error) {
	if free < selftestSpace {
		return "", fmt.Errorf("%s has room for %s only, the self-test wants %s", dir, formatBytes(free), formatBytes(selftestSpace))
	}
	return fmt.Sprintf("%s has room for %s", dir, formatBytes(free)), nil
}

// undo adds a cleanup, which must not wait longer than cleanPatience.
//
// LOCKS_EXCLUDED(s.mu)
func (s *selftest) undo(cleanup func(ctx context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, cleanup)
}

// owns adds a process that must be gone before the cleanups run.
//
// LOCKS_EXCLUDED(s.mu)
func (s *selftest) owns(c *selftestChild) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.children = append(s.children, c)
}

// cleanCheck is the last check: that everything can be removed.
func (s *selftest) cleanCheck() selftestCheck {
	return selftestCheck{
		name: "nothing left",
		run:  s.clean,
		todo: "end and remove that by hand: kill -9, umount -l, rmdir",
	}
}

// clean ends all processes, first in good order and then by SIGKILL, and runs the
// cleanups, the newest first.
//
// BLOCKS until that is done, at most three times cleanPatience.
func (s *selftest) clean(ctx context.Context) (string, error) {
	s.mu.Lock()
	children, cleanups := slices.Clone(s.children), slices.Clone(s.cleanups)
	s.mu.Unlock()
	for _, c := range children {
		c.signal(c.end)
	}
	if awaitAllGone(ctx, children) != nil {
		for _, c := range children {
			c.signal(unix.SIGKILL)
		}
	}
	err := awaitAllGone(ctx, children)
	for _, cleanup := range slices.Backward(cleanups) {
		err = errors.Join(err, cleanup(ctx))
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d processes gone, no mount, no file, no directory", len(children)), nil
}

// awaitAllGone returns an error for each child that is still there.
//
// BLOCKS until all are gone, at most cleanPatience.
func awaitAllGone(ctx context.Context, children []*selftestChild) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cleanPatience, errors.New("killed by SIGKILL"))
	defer cancel()
	for _, c := range children {
		err = errors.Join(err, c.awaitGone(ctx))
	}
	return err
}

// detach unmounts mnt if its process left it mounted.
//
// BLOCKS until that is done, at most cleanPatience: for a user who is not root,
// another program does it.
func detach(ctx context.Context, mnt string) error {
	if !mounted(mnt) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cleanPatience, fmt.Errorf("no end within %v", cleanPatience))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- unmount(mnt) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("unmount %s: %w", mnt, context.Cause(ctx))
	}
}
