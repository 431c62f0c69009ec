// The harness of the kernel tests. It builds the program once and runs it as a
// child process over a mountpoint of the test's own. When the test ends, it checks
// that nothing of the mount is left. This process never opens, lists or stats a
// path below a mountpoint, because it could then wait for itself: only child
// processes read (kernel_process_test.go).

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// kernelPatience bounds what must happen at once. Only a hang takes so long.
	kernelPatience = 10 * time.Second

	// stopPatience is the program's promise: it stops within this time, whatever
	// the readers do.
	stopPatience = 5 * time.Second

	// deadManLimit is when the harness decides that a test hangs and cuts its mount
	// off.
	deadManLimit = 60 * time.Second

	// deadManMargin is the time left before the test binary's own deadline, to cut
	// the mount off and to report it.
	deadManMargin = 10 * time.Second

	requireFUSEEnv = "FSMOUNT_REQUIRE_FUSE"
)

// kernelMount is a running fsmount.
type kernelMount struct {
	*selftestChild
	t       *testing.T
	dir     string
	tempDir string
	stderr  *kernelLog
	abortFD int  // of the connection's abort file, -1 if fusectl cannot be reached
	ended   bool // the test has waited for its end
}

// startKernelMount runs the program with args, which are flags and sources. It
// returns when the program says that it is ready. The test's cleanup stops it.
func startKernelMount(t *testing.T, args ...string) *kernelMount {
	t.Helper()
	return startKernelMountBy(t, kernelTestDir(t), nil, nil, args...)
}

// startKernelMountBy mounts at dir. The words of prefix, if there are any, are a command
// that runs the program. It uses stderr as the program's standard error. If stderr is nil,
// the mount collects the text.
func startKernelMountBy(t *testing.T, dir string, prefix []string, stderr *os.File, args ...string) *kernelMount {
	t.Helper()
	requireFUSE(t)
	m := &kernelMount{t: t, dir: dir, tempDir: kernelTestDir(t), stderr: newKernelLog(), abortFD: -1}
	words := slices.Concat(prefix, []string{kernelProgram(t), "-mount", m.dir, "--temp-dir", m.tempDir}, args)
	cmd := exec.CommandContext(context.Background(), words[0], words[1:]...)
	cmd.Stderr = m.stderr
	if stderr != nil {
		cmd.Stderr = stderr
	}
	announced := newKernelLog()
	cmd.Stdout = announced
	var err error
	m.selftestChild, err = startSelftestChild(cmd, unix.SIGTERM)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-m.exited
		announced.close()
		m.stderr.close()
	}()
	t.Cleanup(m.cleanUp)
	if !announced.await(func(text string) bool { return strings.Contains(text, "mounted at "+m.dir) }) {
		t.Fatalf("the program did not say that it is ready: %q", announced)
	}
	m.abortFD = openAbort(m.dir)
	m.startDeadMan()
	return m
}

// startDeadMan cuts the mount off if the test hangs, so that the test and its
// readers end before the deadline.
func (m *kernelMount) startDeadMan() {
	limit := deadManLimit
	if deadline, ok := m.t.Deadline(); ok {
		limit = min(limit, time.Until(deadline)-deadManMargin)
	}
	done := make(chan struct{})
	timer := time.AfterFunc(limit, func() {
		defer close(done)
		m.t.Errorf("the test hangs: cutting the mount off after %v", limit)
		m.cutOff()
	})
	m.t.Cleanup(func() {
		if !timer.Stop() {
			<-done
		}
	})
}

// path returns where another process finds the file of that name.
func (m *kernelMount) path(name string) string { return filepath.Join(m.dir, name) }

// awaitBlocked returns when exactly n reads are in progress, by the log of --trace.
func (m *kernelMount) awaitBlocked(n int) {
	m.t.Helper()
	ok := m.stderr.await(func(text string) bool {
		return strings.Count(text, "] ReadAt ENTER ")-strings.Count(text, "] ReadAt EXIT ") == n
	})
	if !ok {
		m.t.Fatalf("there never were %d blocked reads", n)
	}
}

// awaitLogged returns when the program has logged text.
func (m *kernelMount) awaitLogged(text string) {
	m.t.Helper()
	if !m.stderr.await(func(all string) bool { return strings.Contains(all, text) }) {
		m.t.Fatalf("%q was never logged", text)
	}
}

// stop ends the program as a user does.
func (m *kernelMount) stop() {
	m.t.Helper()
	m.signal(unix.SIGTERM)
	m.requireExit(0)
}

func (m *kernelMount) signal(sig unix.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(sig); err != nil {
		m.t.Errorf("signal fsmount: %v", err)
	}
}

// requireExit requires that the program ends with status within stopPatience. The
// status of a process that a signal ended is -1.
func (m *kernelMount) requireExit(status int) {
	m.t.Helper()
	m.ended = true
	select {
	case <-m.exited:
	case <-time.After(stopPatience):
		m.t.Errorf("the program is still there %v after it should have stopped", stopPatience)
		m.cutOff()
		<-m.exited
		return
	}
	if got := m.cmd.ProcessState.ExitCode(); got != status {
		m.t.Errorf("the program ended with status %d, want %d", got, status)
	}
}

// cutOff aborts the connection and kills the program. It cannot abort another
// connection: abortFD stays that of this one, and does nothing once it is gone.
func (m *kernelMount) cutOff() {
	if m.abortFD >= 0 {
		unix.Write(m.abortFD, []byte("1"))
	}
	m.cmd.Process.Kill()
}

// cleanUp stops the program if the test has not, and fails the test for anything
// that is left.
func (m *kernelMount) cleanUp() {
	if !m.ended {
		m.stop()
	}
	m.checkNothingLeft()
	if m.abortFD >= 0 {
		unix.Close(m.abortFD)
	}
	if m.t.Failed() {
		m.t.Logf("fsmount's standard error:\n%s", m.stderr)
	}
}

func (m *kernelMount) checkNothingLeft() {
	m.t.Helper()
	if mounted(m.dir) {
		m.t.Errorf("%s is still mounted", m.dir)
		m.cutOff()
		unix.Unmount(m.dir, unix.MNT_DETACH)
	}
	entries, err := os.ReadDir(m.tempDir)
	if err != nil || len(entries) > 0 {
		m.t.Errorf("the temporary directory has %v, %v", entries, err)
	}
	if held := heldBelow(m.tempDir); len(held) > 0 {
		m.t.Errorf("temporary files are still open: %v", held)
	}
}

// heldBelow lists the files below dir that any process has open, including deleted
// ones.
func heldBelow(dir string) []string {
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	var held []string
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err == nil && strings.HasPrefix(target, dir+"/") {
			held = append(held, fd+" -> "+target)
		}
	}
	return held
}

// storesBelow lists those of them that a store has: one more, which is empty, is ready for the next.
func storesBelow(dir string) []string {
	return slices.DeleteFunc(heldBelow(dir), func(held string) bool {
		fd, _, _ := strings.Cut(held, " -> ")
		info, err := os.Stat(fd)
		return err != nil || info.Size() == 0
	})
}

// openAbort opens the file that aborts the connection of the mount at dir, or
// returns -1. The descriptor stays that connection's; its number may later belong to
// another mount.
func openAbort(dir string) int {
	f, err := mountedAt(dir).openControl("abort", unix.O_WRONLY)
	if err != nil {
		return -1
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// requireFUSE ends the test if nothing can be mounted here.
func requireFUSE(t *testing.T) {
	t.Helper()
	if err := tryMount(t.TempDir()); err != nil {
		cannotTest(t, fmt.Errorf("nothing can be mounted here: %w", err))
	}
}

// cannotTest skips the test because of reason. With FSMOUNT_REQUIRE_FUSE=1 it fails
// the test instead.
func cannotTest(t *testing.T, reason error) {
	t.Helper()
	if os.Getenv(requireFUSEEnv) == "1" {
		t.Fatalf("%s=1, but %v", requireFUSEEnv, reason)
	}
	t.Skipf("SKIPPED, NOTHING OF THIS IS TESTED: %v (%s=1 makes this a failure)", reason, requireFUSEEnv)
}

// tryMount makes a mount at dir that has no server, and removes it. A user who may
// not mount needs fusermount3.
func tryMount(dir string) error {
	fd, err := mountDevice(dir, "fsmount-test", "fuse")
	if err == nil {
		unix.Close(fd)
		return unix.Unmount(dir, unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EPERM) {
		_, err = exec.LookPath("fusermount3")
	}
	return err
}

// mountDevice opens /dev/fuse and mounts it at dir (mount(8) shows source and
// fsType). The caller may then serve requests from fd.
func mountDevice(dir, source, fsType string) (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %v", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", fd, os.Getuid(), os.Getgid())
	if err := unix.Mount(source, dir, fsType, unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount at %s: %w", dir, err)
	}
	return fd, nil
}

// builtProgram builds the program once for all tests.
var builtProgram = sync.OnceValues(buildProgram)

func kernelProgram(t *testing.T) string {
	t.Helper()
	path, err := builtProgram()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// buildProgram builds the program and removes its file. The path that it returns
// works as long as this process lives. So no test run leaves a file behind, however
// it ends.
func buildProgram() (string, error) {
	dir, err := os.MkdirTemp("", "fsmount-build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "fsmount")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", file, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build fsmount: %w\n%s", err, out)
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", file, err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), nil
}

// runProgram runs the built program to its end.
//
// BLOCKS as runToEnd does.
func runProgram(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return runToEnd(t, kernelProgram(t), args...)
}

// runToEnd runs a program that must end by itself.
//
// BLOCKS until it ends, at most kernelPatience, after which it fails the test.
func runToEnd(t *testing.T, program string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), kernelPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Errorf("%s %q hangs", program, args)
	}
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// kernelTestDir makes an empty directory of the test, and returns the name that
// /proc/self/mountinfo shows for it.
func kernelTestDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// kernelLog collects the output of a process and wakes the tests that wait for it.
type kernelLog struct {
	mu     sync.Mutex
	text   bytes.Buffer  // GUARDED_BY(mu)
	closed bool          // GUARDED_BY(mu); no more will be written
	more   chan struct{} // GUARDED_BY(mu); closed and replaced by Write and close
}

func newKernelLog() *kernelLog { return &kernelLog{more: make(chan struct{})} }

func (l *kernelLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.text.Write(p)
}

func (l *kernelLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	close(l.more)
	l.more = make(chan struct{})
}

// await returns true when the text satisfies enough.
//
// BLOCKS until it does; wakes on every write, on close, and after kernelPatience.
func (l *kernelLog) await(enough func(text string) bool) bool {
	timeout := time.After(kernelPatience)
	for {
		l.mu.Lock()
		ok, closed, more := enough(l.text.String()), l.closed, l.more
		l.mu.Unlock()
		if ok || closed {
			return ok
		}
		select {
		case <-more:
		case <-timeout:
			return false
		}
	}
}

func (l *kernelLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
