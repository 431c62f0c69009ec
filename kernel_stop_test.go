// Kernel tests of how a mount begins and ends: which mountpoints the program
// refuses, which sources it leaves out, and that each way to stop is bounded. The
// harness checks after each test that nothing is left.

package main

import (
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKernelTermEndsBlockedReaders(t *testing.T) {
	silent, headerOnly := wholeFile("silent.bin", 1<<20), heldFile("header.bin", 1<<20, 0)
	silent.mute = true
	startKernelOrigin(t, silent, headerOnly)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			m := startKernelMount(t, "--trace", silent.url, headerOnly.url)
			var readers []*kernelReader
			for i := range 20 {
				f := []*kernelFile{silent, headerOnly}[i%2]
				r := m.reader().open(f)
				r.send(preadCall(f, 0, 4096))
				readers = append(readers, r)
			}
			m.awaitBlocked(20)

			m.signal(sig)
			m.requireExit(0)
			for _, r := range readers {
				r.requireErrno("EIO")
			}
		})
	}
}

func TestKernelStopWithFileHeldOpen(t *testing.T) {
	f := heldFile("a.bin", 1<<20, 64<<10)
	m := f.mount(t)
	holder := m.reader().open(f)
	holder.requireRead(f, 0, 4096, 4096)

	m.signal(unix.SIGTERM)
	m.requireExit(0)
	if mounted(m.dir) {
		t.Error("it is still mounted")
	}
	holder.send(preadCall(f, 0, 4096))
	holder.requireErrno("ENOTCONN", "ECONNABORTED")
}

func TestKernelOutsideUnmount(t *testing.T) {
	for _, command := range [][]string{{"umount"}, {"umount", "-l"}, {"fusermount3", "-u"}, {"fusermount3", "-u", "-z"}} {
		t.Run(strings.Join(command, " "), func(t *testing.T) {
			requireUnmountTool(t, command[0])
			f := heldFile("a.bin", 1<<20, 64<<10)
			m := f.mount(t)
			// The download runs on when no process has the file open any more.
			r := m.reader().open(f)
			r.requireRead(f, 0, 4096, 4096)
			r.kill(unix.SIGKILL)
			r.awaitGone()

			out, err := exec.Command(command[0], append(command[1:], m.dir)...).CombinedOutput()
			if err != nil {
				t.Errorf("%v: %v: %s", command, err, out)
			}
			m.requireExit(0)
		})
	}
}

func requireUnmountTool(t *testing.T, name string) {
	t.Helper()
	if name == "umount" && os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root may umount")
	}
	if _, err := exec.LookPath(name); err != nil {
		cannotTest(t, fmt.Errorf("%w (Debian's fuse3 has it)", err))
	}
}

func TestKernelMountpointRefusals(t *testing.T) {
	f := wholeFile("a.bin", 4096)
	startKernelOrigin(t, f)
	empty, filled := kernelTestDir(t), kernelTestDir(t)
	plain := filepath.Join(filled, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(filled, "link")
	if err := os.Symlink(empty, link); err != nil {
		t.Fatal(err)
	}
	missing, log := filepath.Join(empty, "missing"), filepath.Join(empty, "log")

	for name, c := range map[string]struct {
		args  []string
		named string
		why   string
	}{
		"missing":          {[]string{"-mount", missing}, missing, "no such file"},
		"a file":           {[]string{"-mount", plain}, plain, "not a directory"},
		"not empty":        {[]string{"-mount", filled}, filled, "not empty"},
		"is the temp dir":  {[]string{"-mount", empty, "--temp-dir", empty}, empty, "lies in the mountpoint"},
		"temp dir by link": {[]string{"-mount", empty, "--temp-dir", link}, link, "lies in the mountpoint"},
		"holds the log":    {[]string{"-mount", empty, "--log-file", log}, log, "lies in the mountpoint"},
		"no temp dir":      {[]string{"-mount", empty, "--temp-dir", missing + "/x"}, missing + "/x", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			status, _, stderr := runProgram(t, append(c.args, f.url)...)
			if status != 2 || !strings.Contains(stderr, c.named) || !strings.Contains(stderr, c.why) {
				t.Errorf("status %d, want 2; %q must name %s and say %q", status, stderr, c.named, c.why)
			}
			if entries, err := os.ReadDir(empty); err != nil || len(entries) > 0 || mounted(empty) {
				t.Errorf("the mountpoint was touched: %v, %v", entries, err)
			}
		})
	}
}

func TestKernelDeadOriginAtStart(t *testing.T) {
	good := wholeFile("good.bin", 100_001)
	startKernelOrigin(t, good)
	closed := httptest.NewServer(nil)
	closed.Close()
	missing, refused := strings.Replace(good.url, good.name, "missing.bin", 1), closed.URL+"/refused.bin"

	m := startKernelMount(t, "--start-timeout", "2s", missing, good.url, refused)
	r := m.reader()
	if names := r.do(readerCall{Op: "ls", Path: m.dir}).Names; !slices.Equal(names, []string{good.name}) {
		t.Errorf("the directory has %q", names)
	}
	r.requireWhole(good)
	m.awaitLogged("404 Not Found")
	requireNamed(t, m.stderr.String(), missing, refused, "connection refused")

	dir := kernelTestDir(t)
	status, _, stderr := runProgram(t, "-mount", dir, "--start-timeout", "2s", "--temp-dir", kernelTestDir(t), missing, refused)
	if status != 1 || mounted(dir) {
		t.Errorf("with no source left: status %d, want 1 and no mount", status)
	}
	requireNamed(t, stderr, missing, refused, "connection refused", "404 Not Found", "nothing to mount")
}

func requireNamed(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not say %q", text, part)
		}
	}
}

func TestKernelStderrNobodyReads(t *testing.T) {
	unread, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	capacity, err := unix.FcntlInt(stderr.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		t.Fatal(err)
	}

	// Each of 12,000 reads logs two lines: more than the pipe and the log queue hold.
	f := wholeFile("a.bin", 12_000*512)
	startKernelOrigin(t, f)
	m := startKernelMountBy(t, kernelTestDir(t), nil, stderr, "--trace", "--io=direct", f.url)
	stderr.Close()
	r := m.reader().open(f)
	requireBytes(t, r.do(readerCall{Op: "readAll", Len: 512, Seed: f.seed}), f.size)
	m.stop()

	logged, err := unix.IoctlGetInt(int(unread.Fd()), unix.TIOCINQ)
	if err != nil || logged < capacity-4096 {
		t.Errorf("the pipe has %d bytes of %d (%v): its writer never had to wait", logged, capacity, err)
	}
}

func TestKernelKillMinusNine(t *testing.T) {
	f := heldFile("a.bin", 8<<20, 1<<20)
	m := f.mount(t, "--trace")
	var readers []*kernelReader
	for range 8 {
		r := m.reader().open(f)
		r.send(preadCall(f, 4<<20, 4096))
		readers = append(readers, r)
	}
	m.awaitBlocked(8)
	if held := storesBelow(m.tempDir); len(held) != 1 {
		t.Errorf("temporary files while it downloads: %v, want one", held)
	}

	m.signal(unix.SIGKILL)
	m.requireExit(-1)
	if status := m.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != unix.SIGKILL {
		t.Errorf("the program ended by itself: %v", m.cmd.ProcessState)
	}
	for _, r := range readers {
		r.requireErrno("ECONNABORTED", "ENOTCONN")
	}
	if held := heldBelow(m.tempDir); len(held) > 0 {
		t.Errorf("temporary files are still open: %v", held)
	}
	if err := unmount(m.dir, nil); err != nil {
		t.Errorf("unmount what is left: %v", err)
	}
}
