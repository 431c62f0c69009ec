// selftest.go implements "fsmount selftest": it checks with nothing but the binary
// whether fsmount works on this machine. It runs the checks in order, each with a
// time limit, prints one line for each, and removes everything they made. It never
// touches the mount itself: child processes do that.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
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

	// selftestGrace is how long a check that ran into its bound has to say what
	// it saw.
	selftestGrace = time.Second

	// selftestCleanLimit bounds the last check, which takes everything away.
	selftestCleanLimit = 8 * time.Second
)

var (
	errSelftestLimit = fmt.Errorf("the self-test may take %v in all", selftestLimit)
	errCheckHangs    = errors.New("the check hangs")
)

// selftestCheck is one line of the self-test.
type selftestCheck struct {
	name  string
	needs []string // names of checks that must have passed
	run   func(ctx context.Context) (figure string, err error)
	todo  string // what to do where it fails; an advisedError knows better
}

// advisedError is an error that knows what to do about it.
type advisedError struct {
	error
	todo string
}

func (e advisedError) Unwrap() error { return e.error }

// runSelftest prints what works on this machine and what does not, and returns
// the exit status: exitOK only if every check passed.
//
// BLOCKS until all is done and taken away, at most selftestLimit; wakes on the
// signals that stop a mount as well.
func runSelftest(stdout io.Writer) (status int) {
	// A reader of our output that goes away is no reason to leave a mount behind.
	signal.Ignore(syscall.SIGPIPE)
	ctx, release := signal.NotifyContext(context.Background(), stopSignals()...)
	defer release()
	ctx, cancel := context.WithTimeoutCause(ctx, selftestLimit-selftestCleanLimit-2*selftestGrace, errSelftestLimit)
	defer cancel()

	s := &selftest{}
	report := &selftestReport{out: stdout, passed: make(map[string]bool)}
	report.run(ctx, append(selftestHostChecks(), s.checks()...))
	report.runOne(context.Background(), s.made.cleanCheck(), selftestCleanLimit)
	if report.failures > 0 {
		report.printLog(s.made.log())
	}
	return report.finish()
}

// selftestReport prints what came of each check.
type selftestReport struct {
	out      io.Writer
	passed   map[string]bool // by name
	failures int
	skips    int
	halted   error // why no further check is run
}

// run runs the checks that can be run.
func (r *selftestReport) run(ctx context.Context, checks []selftestCheck) {
	for _, c := range checks {
		if reason := r.reasonToSkip(ctx, c); reason != "" {
			r.skips++
			r.print("SKIP", c.name, reason)
			continue
		}
		r.runOne(ctx, c, selftestCheckLimit)
	}
}

func (r *selftestReport) reasonToSkip(ctx context.Context, c selftestCheck) string {
	switch {
	case ctx.Err() != nil:
		return "not reached: " + context.Cause(ctx).Error()
	case r.halted != nil:
		return "not tried: " + r.halted.Error()
	}
	for _, need := range c.needs {
		if !r.passed[need] {
			return fmt.Sprintf("not tried: it needs %q, which did not pass", need)
		}
	}
	return ""
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
	r.print("FAIL", c.name, fmt.Sprintf("%v; %s", err, c.advice(ctx, err)))
}

// bounded runs c in a goroutine, which it gives up, with errCheckHangs, where
// nothing else ends it.
func (c selftestCheck) bounded(ctx context.Context, limit time.Duration) (figure string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no end within %v", limit))
	defer cancel()
	type outcome struct {
		figure string
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		figure, err := c.guarded(ctx)
		done <- outcome{figure, err}
	}()
	select {
	case o := <-done:
		return o.figure, o.err
	case <-ctx.Done():
	}
	grace := time.NewTimer(selftestGrace)
	defer grace.Stop()
	select {
	case o := <-done:
		return o.figure, o.err
	case <-grace.C:
		return "", fmt.Errorf("%w: %w", errCheckHangs, context.Cause(ctx))
	}
}

// guarded runs c; a panic is a failure like any other.
func (c selftestCheck) guarded(ctx context.Context) (figure string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v %s", p, debug.Stack())
		}
	}()
	return c.run(ctx)
}

// advice says what to do about err.
func (c selftestCheck) advice(ctx context.Context, err error) string {
	if advised := (advisedError{}); errors.As(err, &advised) {
		return advised.todo
	}
	if ctx.Err() != nil && context.Cause(ctx) != errSelftestLimit {
		return "run the self-test again and let it end"
	}
	return c.todo
}

// print writes one line, whatever text is made of.
func (r *selftestReport) print(verdict, name, text string) {
	text = strings.Join(strings.FieldsFunc(text, func(c rune) bool { return c == '\n' || c == '\t' }), " ")
	fmt.Fprintf(r.out, "%s %s: %s\n", verdict, name, text)
}

// printLog shows what the mount had to say.
func (r *selftestReport) printLog(lines []string) {
	for _, line := range lines {
		fmt.Fprintf(r.out, "log: %s\n", line)
	}
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

// selftestSpace is the room that the self-test wants for its own downloads,
// several times what they take. In bytes.
const selftestSpace = 256 << 20

// kernelVersion is the start of what uname -r says.
type kernelVersion struct{ major, minor int }

// Kernels that matter: FUSE requests of more than 128 KiB came with 4.20
// (FUSE_MAX_PAGES), and cachestat(2), without which large reads are copied once
// more, with 6.5.
var (
	kernelNeeded = kernelVersion{4, 20}
	kernelFast   = kernelVersion{6, 5}
)

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

// checkMountRights looks for one of the two ways to mount: the right to do it,
// and the set-user-ID helper, in the order in which they are tried.
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

// judgeKernel says what release, as uname -r has it, means for fsmount.
func judgeKernel(release string) (string, error) {
	var v kernelVersion
	if _, err := fmt.Sscanf(release, "%d.%d", &v.major, &v.minor); err != nil {
		return "", fmt.Errorf("the kernel's version %q has no number", release)
	}
	switch {
	case v.before(kernelNeeded):
		return "", fmt.Errorf("the kernel, Linux %s, is older than 4.20", release)
	case v.before(kernelFast):
		return fmt.Sprintf("Linux %s (from 6.5 on, large reads are faster)", release), nil
	}
	return "Linux " + release, nil
}

func (v kernelVersion) before(w kernelVersion) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
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

// judgeSpace says whether free bytes in dir are enough.
func judgeSpace(dir string, free int64) (string, error) {
	if free < selftestSpace {
		return "", fmt.Errorf("%s has room for %s only, the self-test wants %s", dir, formatBytes(free), formatBytes(selftestSpace))
	}
	return fmt.Sprintf("%s has room for %s", dir, formatBytes(free)), nil
}

// cleanPatience bounds each step of cleaning up, of which there are three.
const cleanPatience = 2 * time.Second

// selftestPlace is the private directory of a self-test. The zero place is none.
type selftestPlace struct {
	dir  string // what follows lies in it
	mnt  string // the mountpoint
	temp string // for downloads
}

// makeSelftestPlace makes a directory in parent. Its name is that which
// /proc/self/mountinfo will have for it. A place that it returns with an error
// is to be removed as well.
func makeSelftestPlace(parent string) (p selftestPlace, err error) {
	made, err := os.MkdirTemp(parent, "fsmount-selftest-")
	if err != nil {
		return p, err
	}
	p.dir = made
	if p.dir, err = filepath.EvalSymlinks(made); err != nil {
		return selftestPlace{dir: made}, err
	}
	p.mnt, p.temp = filepath.Join(p.dir, "mnt"), filepath.Join(p.dir, "temp")
	return p, errors.Join(os.Mkdir(p.mnt, 0o700), os.Mkdir(p.temp, 0o700))
}

// selftestMade is all that a self-test made. Its methods are safe to call while
// a check hangs.
type selftestMade struct {
	mu     sync.Mutex
	place  selftestPlace    // GUARDED_BY(mu)
	origin *selftestOrigin  // GUARDED_BY(mu); nil until it was started
	mount  *selftestMount   // GUARDED_BY(mu); nil until it was started
	others []*selftestChild // GUARDED_BY(mu); the readers
}

func (m *selftestMade) atPlace(p selftestPlace) { m.set(func() { m.place = p }) }

func (m *selftestMade) withOrigin(o *selftestOrigin) { m.set(func() { m.origin = o }) }

func (m *selftestMade) withServer(s *selftestMount) { m.set(func() { m.mount = s }) }

func (m *selftestMade) withReader(r *selftestReader) {
	m.set(func() { m.others = append(m.others, r.selftestChild) })
}

// LOCKS_EXCLUDED(m.mu)
func (m *selftestMade) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// LOCKS_EXCLUDED(m.mu)
func (m *selftestMade) at() selftestPlace {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.place
}

// LOCKS_EXCLUDED(m.mu)
func (m *selftestMade) server() *selftestMount {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mount
}

// LOCKS_EXCLUDED(m.mu)
func (m *selftestMade) originAndReaders() (*selftestOrigin, []*selftestChild) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.origin, slices.Clone(m.others)
}

// log returns the end of the mount's log.
func (m *selftestMade) log() []string {
	if server := m.server(); server != nil {
		return server.log.lines()
	}
	return nil
}

// cleanCheck is the last check: that all can be taken away.
func (m *selftestMade) cleanCheck() selftestCheck {
	return selftestCheck{
		name: "nothing left",
		run:  m.clean,
		todo: "end and remove that by hand: kill -9, umount -l, rmdir",
	}
}

// clean takes everything away. Where all went well there is little left to do.
//
// BLOCKS until it is done, at most three times cleanPatience.
func (m *selftestMade) clean(ctx context.Context) (string, error) {
	origin, children := m.originAndReaders()
	for _, reader := range children {
		reader.signal(unix.SIGKILL)
	}
	if server := m.server(); server != nil {
		children = append(children, server.selftestChild)
		server.stop(ctx)
	}
	err := errors.Join(awaitAllGone(ctx, children), m.detach(ctx))
	if origin != nil {
		err = errors.Join(err, origin.Close())
	}
	if err = errors.Join(err, m.at().remove()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d processes gone, no mount, no file, no directory", len(children)), nil
}

// stop ends the mount as a user does, or else by force.
//
// BLOCKS until it is gone, at most cleanPatience.
func (s *selftestMount) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cleanPatience)
	defer cancel()
	s.signal(unix.SIGTERM)
	if s.awaitGone(ctx) != nil {
		s.signal(unix.SIGKILL)
	}
}

// detach takes the mount away where its process has left it.
//
// BLOCKS until that is done, at most cleanPatience: for a user who is not root,
// another program does it.
func (m *selftestMade) detach(ctx context.Context) error {
	mnt := m.at().mnt
	if mnt == "" || !mounted(mnt) {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- unmount(mnt) }()
	select {
	case err := <-done:
		return err
	case <-time.After(cleanPatience):
		return fmt.Errorf("unmount %s: no end within %v", mnt, cleanPatience)
	case <-ctx.Done():
		return fmt.Errorf("unmount %s: %w", mnt, context.Cause(ctx))
	}
}

// awaitAllGone returns nil when each of children is gone, an error for those that
// are not.
//
// BLOCKS until they are, at most cleanPatience.
func awaitAllGone(ctx context.Context, children []*selftestChild) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cleanPatience, errors.New("killed by SIGKILL"))
	defer cancel()
	for _, c := range children {
		err = errors.Join(err, c.awaitGone(ctx))
	}
	return err
}

// remove removes the place, and nothing that is mounted in it.
func (p selftestPlace) remove() error {
	if p.dir == "" {
		return nil
	}
	var err error
	if p.temp != "" {
		err = os.RemoveAll(p.temp)
	}
	for _, dir := range []string{p.mnt, p.dir} {
		if removeErr := os.Remove(dir); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}
