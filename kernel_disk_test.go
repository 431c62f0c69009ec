//go:build linux

package main

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The temporary directory is a file system of its own with room for a third of
// the file.
func TestKernelFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system to fill")
	}
	const size = 3 << 20
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount tmpfs: %v", err)
		}
	})
	f, other := wholeFile("large.bin", size), wholeFile("small.bin", 1000)
	startKernelOrigin(t, f, other)
	m := startKernelMount(t, "--temp-dir="+dir, f.url, other.url)
	r := m.reader().open(f)

	answer := r.do(readAllCall(f))
	if answer.Errno != "ENOSPC" || answer.Wrong != "" || answer.N > 1<<20 {
		t.Errorf("read %d bytes, error %q, content %q; want ENOSPC within the first MiB", answer.N, answer.Errno, answer.Wrong)
	}
	m.awaitLogged("no space left on device")
	m.awaitLogged("--temp-dir")
	requireBytes(t, r.do(preadCall(f, 0, 4096)), 4096)
	m.stop()
}
