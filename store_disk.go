// store_disk.go makes a store's temporary file, which no crash can leave behind,
// and reads from it: from the page cache without waiting where the kernel can, from
// the disk where it must.

package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxReadBytes is the largest read, in bytes: 256 pages, the kernel's default of
// fs.fuse.max_pages_limit. A mount asks the kernel for at most this.
const maxReadBytes = 1 << 20

// mapBytes is the size of a read from which on mapping the temporary file's
// pages costs less than copying them: measured, both cost the same at 128 KiB,
// and at 1 MiB mapping takes a third.
const mapBytes = 256 << 10

// errNotCached says that a read would have to wait for the disk.
var errNotCached = errors.New("not in the page cache")

// view is a piece of a store's file in memory that the store lends: a copy, or
// the page cache itself. It is for system calls only: should the disk fail
// below a page, that is SIGBUS for this process, but EFAULT for a system call.
type view struct {
	data []byte
	done func() // gives data back; nil where there is nothing to give
}

// lentBuffer is a buffer that goes back to its pool by done. That is made once,
// so that lending it allocates nothing.
type lentBuffer struct {
	bytes []byte // maxReadBytes of them
	done  func()
}

func newLentBuffer(pool *sync.Pool) *lentBuffer {
	b := &lentBuffer{bytes: make([]byte, maxReadBytes)}
	b.done = func() { pool.Put(b) }
	return b
}

// lend returns the bytes of r, which are present: from the page cache, or, if
// it may wait, from the disk.
//
// REQUIRES: the caller holds a reference, and r.len() <= maxReadBytes
func (s *TempFileStore) lend(r byteRange, mayWait bool) (view, error) {
	f := s.file.Load()
	if r.len() >= mapBytes {
		if m, ok := mapCached(f, r.off, int(r.len())); ok {
			return view{data: m.data, done: m.unmap}, nil
		}
	}
	buffer := s.buffers.Get().(*lentBuffer)
	v := view{data: buffer.bytes[:r.len()], done: buffer.done}
	if readCached(f, v.data, r.off) {
		return v, nil
	}
	err := errNotCached
	if mayWait {
		_, err = s.readPresent(v.data, r.off)
	}
	if err != nil {
		v.done()
		return view{}, err
	}
	return v, nil
}

// readPresent reads bytes that are in the temporary file.
//
// REQUIRES: the caller holds a reference
func (s *TempFileStore) readPresent(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := s.file.Load().ReadAt(p, off)
	if err != nil {
		return n, fmt.Errorf("read temporary file in %s at %v: %w", s.dir, byteRange{off, off + int64(len(p))}, err)
	}
	return n, nil
}

// createNamed makes a temporary file, 0600, in dir and unlinks it at once: from
// then on its space is given back when the last descriptor closes, however the
// process ends (unlink(2)).
func createNamed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "fsmount-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

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

// tempFile returns the temporary file, and makes it if there is none yet.
func (s *TempFileStore) tempFile() (*os.File, error) {
	if f := s.file.Load(); f != nil {
		return f, nil
	}
	f, err := createUnlinked(s.dir)
	if err != nil {
		return nil, s.diskError(err)
	}
	if !s.file.CompareAndSwap(nil, f) {
		f.Close() // another fetch was faster
	}
	return s.file.Load(), nil
}

func (s *TempFileStore) diskError(err error) error {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return fmt.Errorf("make temporary file: %w (each file that was read keeps one open while mounted; ulimit -n raises the limit)", err)
	}
	return fmt.Errorf("write temporary file in %s: %w (the whole file needs %d bytes there; --temp-dir names another place)",
		s.dir, err, s.obj.Size)
}
