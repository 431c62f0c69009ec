// store_file_linux.go has the two system calls for temporary files that only
// Linux offers: files without a name, and reads that never wait for the disk.

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// createUnlinked makes a temporary file, 0600, in dir that never has a name
// (O_TMPFILE, open(2)); where the file system cannot do that, one that has a
// name for a moment.
func createUnlinked(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return createNamed(dir)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// readCached fills p from f at offset off if all of it is in the page cache,
// and reports whether it did. It never waits for the disk: RWF_NOWAIT ends with
// EAGAIN or a short count instead, and with EOPNOTSUPP on file systems that do
// not know it (preadv2(2)).
func readCached(f *os.File, p []byte, off int64) bool {
	if len(p) == 0 {
		return true
	}
	n, err := unix.Preadv2(int(f.Fd()), [][]byte{p}, off, unix.RWF_NOWAIT)
	return err == nil && n == len(p)
}
