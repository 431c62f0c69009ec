// Kernel tests of the disk budget, over a small file system of the test's own.

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a tmpfs of size (as mount(8) takes it) and returns its directory.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system to fill")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount tmpfs: %v", err)
		}
	})
	return dir
}

// diskUsed returns how many bytes of the disk at dir are used.
func diskUsed(t *testing.T, dir string) int64 {
	t.Helper()
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		t.Fatal(err)
	}
	return int64(disk.Blocks-disk.Bfree) * disk.Bsize
}

// A file larger than the disk is read whole, by two readers at once, one of them from the
// middle; then a small file. The disk never has more than the budget.
func TestKernelFileLargerThanTheDisk(t *testing.T) {
	const budget = 24 << 20
	dir := smallDisk(t, "32m")
	large, other := wholeFile("large.bin", 100<<20), wholeFile("small.bin", 1<<20)
	startKernelOrigin(t, large, other)
	m := startKernelMount(t, "--temp-dir="+dir, "--cache-size=24M", large.url, other.url)
	first, second := m.reader().open(large), m.reader().open(large)
	first.send(readAllCall(large))
	for off := large.size / 2; off < large.size; off += 1 << 20 {
		second.requireRead(large, off, 1<<20, 1<<20)
		if used := diskUsed(t, dir); used > budget {
			t.Fatalf("bytes on the disk: %d, want at most %d", used, budget)
		}
	}
	requireBytes(t, first.answer(), large.size)
	m.reader().requireWhole(other)
	m.fileCommand(exitFailure, "streams through", "fetch", "--wait", large.name)
	if out := m.lookAt(kernelProgram(t), "status", m.dir); !strings.Contains(out, "streams through") || !strings.Contains(out, "of at most 24 MiB used") {
		t.Errorf("fsmount status: %s", out)
	}
	m.stop()
}

// Of files that nobody has open, the one that was closed first makes way. A file that a
// program has open stays complete.
func TestKernelClosedFilesMakeWay(t *testing.T) {
	dir := smallDisk(t, "64m")
	var files []*kernelFile
	var urls []string
	for _, name := range []string{"a", "b", "c", "d"} {
		files = append(files, wholeFile(name, 7<<20))
	}
	startKernelOrigin(t, files...)
	for _, f := range files {
		urls = append(urls, f.url)
	}
	m := startKernelMount(t, append(urls, "--temp-dir="+dir, "--cache-size=24M", "--linger=0s")...)
	held := m.reader()
	held.requireWhole(files[0])
	r := m.reader()
	for _, f := range files[1:] {
		r.requireWhole(f) // and the one before is closed
	}
	var before []int
	for _, f := range files {
		before = append(before, len(f.requests()))
	}
	for _, i := range []int{0, 3, 2, 1} {
		r.requireWhole(files[i])
		if again := len(files[i].requests()) > before[i]; again != (i == 1) {
			t.Errorf("file %s was requested again: %v", files[i].name, again)
		}
	}
	m.stop()
}

// Others fill the disk. A read of bytes for which nothing may go fails, and the file goes on
// by itself when there is room.
func TestKernelFullDisk(t *testing.T) {
	dir := smallDisk(t, "32m")
	f := wholeFile("large.bin", 8<<20)
	m := f.mount(t, "--temp-dir="+dir)
	r := m.reader().open(f)
	r.requireRead(f, 0, 4096, 4096)
	filler := filepath.Join(dir, "filler")
	if err := fill(filler); err != nil {
		t.Fatal(err)
	}
	r.send(preadCall(f, 4<<20, 1<<20))
	r.requireErrno("ENOSPC")
	m.awaitLogged("no space left on device")
	m.awaitLogged("--temp-dir")
	r.requireRead(f, 0, 4096, 4096)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	requireBytes(t, r.do(readAllCall(f)), f.size)
	m.stop()
}

// fill writes a file at path until the disk is full.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 64<<10))
	}
	if !diskFull(err) {
		return err
	}
	return nil
}
