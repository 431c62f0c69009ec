// store_file_linux.go has what only Linux offers for temporary files: files
// without a name, and reads that never wait for the disk.

package main

import (
	"os"
	"unsafe"

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

// mapping is a piece of the page cache in memory.
type mapping struct {
	pages unsafe.Pointer // where data is not empty
	size  uintptr        // of the mapped pages, in bytes
	data  []byte
}

// mapCached maps n bytes of f at offset off if all of them are in the page
// cache, and reports whether it did. It never waits for the disk. The mapping
// outlives f's closing.
//
// REQUIRES: 0 < n, and the range lies within f
func mapCached(f *os.File, off int64, n int) (mapping, bool) {
	page := int64(os.Getpagesize())
	start := off &^ (page - 1)
	end := (off + int64(n) + page - 1) &^ (page - 1)
	if !cached(f, start, end-start) {
		return mapping{}, false
	}
	pages, err := unix.MmapPtr(int(f.Fd()), start, nil, uintptr(end-start), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return mapping{}, false
	}
	data := unsafe.Slice((*byte)(unsafe.Add(pages, off-start)), n)
	return mapping{pages: pages, size: uintptr(end - start), data: data}, true
}

// unmap ends the life of data.
func (m mapping) unmap() { _ = unix.MunmapPtr(m.pages, m.size) }

// cached reports whether the n bytes of f at offset off, both multiples of the
// page size, are in the page cache (cachestat(2), Linux 6.5; the answer is no
// where the kernel is older).
func cached(f *os.File, off, n int64) bool {
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &stat, 0)
	return err == nil && stat.Cache == uint64(n)/uint64(os.Getpagesize())
}
