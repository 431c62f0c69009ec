// The harness of the kernel tests: it builds the program once, runs it as a
// child process over a mountpoint of the test's own, and checks when the test
// ends that nothing is left of it. This process never opens, lists or stats
// anything below a mountpoint, for it could then wait for what it serves itself:
// whatever reads does so in a process of its own (kernel_process_test.go).

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// kernelPatience bounds whatever should happen at once: only a hang makes it
	// run out.
	kernelPatience = 10 * time.Second

	// stopPatience is what the program promises: stopped within it, whatever
	// the readers do.
	stopPatience = 5 * time.Second

	// deadManLimit is when a mount is cut off because its test hangs.
	deadManLimit = 60 * time.Second

	// deadManMargin is what cutting a mount off and reporting it may take before
	// the test binary's own deadline.
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
	ended   bool // the test has seen it end
}

// startKernelMount runs the program with args, which are flags and sources, and
// returns when it says that it is ready. The test's cleanup stops it.
func startKernelMount(t *testing.T, args ...string) *kernelMount {
	t.Helper()
	return startKernelMountStderr(t, nil, args...)
}

// startKernelMountStderr gives the program stderr, or collects its standard
// error in the mount where that is nil.
func startKernelMountStderr(t *testing.T, stderr *os.File, args ...string) *kernelMount {
	t.Helper()
	requireFUSE(t)
	m := &kernelMount{t: t, dir: kernelTestDir(t), tempDir: kernelTestDir(t), stderr: newKernelLog(), abortFD: -1}
	cmd := exec.Command(kernelProgram(t), append([]string{"-mount", m.dir, "--temp-dir", m.tempDir}, args...)...)
	cmd.Stderr = m.stderr
	if stderr != nil {
		cmd.Stderr = stderr
	}
	announced := newKernelLog()
	var err error
	m.selftestChild, err = startSelftestChild(cmd, unix.SIGTERM, func(stdout io.Reader) {
		io.Copy(announced, stdout)
		announced.close()
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-m.exited
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

// startDeadMan cuts the mount off if the test hangs, so that neither the test
// nor its readers outlive the deadline.
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

// path is where the file of that name can be read, by another process.
func (m *kernelMount) path(name string) string { return filepath.Join(m.dir, name) }

// awaitBlocked returns when exactly n reads wait for bytes. It needs --trace.
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

// requireExit returns when the program is gone, which takes at most
// stopPatience. status is -1 for a process that was killed.
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

// cutOff ends the connection and the program. It does neither to any other:
// what the abort file of a connection that is gone is told has no effect.
func (m *kernelMount) cutOff() {
	if m.abortFD >= 0 {
		unix.Write(m.abortFD, []byte("1"))
	}
	m.cmd.Process.Kill()
}

// cleanUp stops the program if the test has not, and fails the test for
// whatever is left.
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

// heldBelow lists the files below dir that any process has open, deleted ones
// among them.
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

// openAbort opens the file that ends the connection of what is mounted at dir,
// or returns -1. The open file names that connection for good, while its number
// may go to another mount.
func openAbort(dir string) int {
	minor := strconv.FormatUint(uint64(openFusectl(dir).minor), 10)
	fd, err := unix.Open("/sys/fs/fuse/connections/"+minor+"/abort", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		return fd
	}
	root, err := mountFusectl()
	if err != nil {
		return -1
	}
	defer unix.Close(root)
	fd, err = unix.Openat(root, minor+"/abort", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// requireFUSE skips the test where nothing can be mounted, and fails it there if
// FSMOUNT_REQUIRE_FUSE=1.
func requireFUSE(t *testing.T) {
	t.Helper()
	err := tryMount(t.TempDir())
	switch {
	case err == nil:
	case os.Getenv(requireFUSEEnv) == "1":
		t.Fatalf("%s=1, and nothing can be mounted here: %v", requireFUSEEnv, err)
	default:
		t.Skipf("SKIPPED, NOTHING OF THIS IS TESTED: nothing can be mounted here: %v (%s=1 makes this a failure)", err, requireFUSEEnv)
	}
}

// tryMount mounts at dir what nobody serves, and takes it away. Who may not
// mount needs fusermount3.
func tryMount(dir string) error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	defer unix.Close(fd)
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", fd, os.Getuid(), os.Getgid())
	err = unix.Mount("fsmount-test", dir, "fuse", unix.MS_NODEV|unix.MS_NOSUID, options)
	if err == unix.EPERM {
		_, err = exec.LookPath("fusermount3")
		return err
	}
	if err != nil {
		return fmt.Errorf("mount at %s: %w", dir, err)
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}

// builtProgram is the program, built once for all tests.
var builtProgram = sync.OnceValues(buildProgram)

func kernelProgram(t *testing.T) string {
	t.Helper()
	path, err := builtProgram()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// buildProgram returns a path under which the built program can be run as long
// as this process lives. Its file has no other name any more, so that no run,
// however it ends, leaves one behind.
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

// runProgram runs the program to its end, which must come by itself within
// kernelPatience.
func runProgram(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(kernelProgram(t), args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(kernelPatience, func() {
		t.Errorf("%q hangs", args)
		cmd.Process.Kill()
	})
	defer kill.Stop()
	cmd.Wait()
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// kernelTestDir is an empty directory of the test, by the name that mountinfo has
// for it.
func kernelTestDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// kernelLog collects what a process writes and wakes who waits for it.
type kernelLog struct {
	mu     sync.Mutex
	text   bytes.Buffer  // GUARDED_BY(mu)
	closed bool          // GUARDED_BY(mu)
	more   chan struct{} // GUARDED_BY(mu); closed and replaced by every write
}

func newKernelLog() *kernelLog { return &kernelLog{more: make(chan struct{})} }

func (l *kernelLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.text.Write(p)
}

// close says that nothing more will be written.
func (l *kernelLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	close(l.more)
	l.more = make(chan struct{})
}

// await reports whether the text came to satisfy enough.
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
