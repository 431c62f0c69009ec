// store_disk.go makes a store's temporary file, which no crash leaves behind if the file system has O_TMPFILE,
// and reads from it: from the page cache without waiting where the kernel can, from the disk where it must.

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxReadBytes is the largest read, in bytes: 256 pages, the kernel's default of
// fs.fuse.max_pages_limit. A mount asks the kernel for at most this.
const maxReadBytes = 1 << 20

// diskBlock is what file systems give and take back: punching less frees nothing.
const diskBlock = 4096

// errNotCached says that a read would have to wait for the disk.
var errNotCached = errors.New("not in the page cache")

// tempFile returns the temporary file, and opens or makes it if nobody has yet.
// BLOCKS as openFile does, and as awaitRoom does while there is no descriptor.
func (s *TempFileStore) tempFile(ctx context.Context) (*os.File, error) {
	if f := s.file.Load(); f != nil {
		return f, nil
	}
	s.room.asleep.Add(1)
	defer s.room.asleep.Add(-1)
	for {
		changed := *s.room.changed.Load()
		f, err := s.openFile()
		if !outOfDescriptors(err) {
			return f, err
		}
		s.mu.Lock()
		s.plan.lastErr = err
		s.mu.Unlock()
		if err := s.awaitRoom(ctx, changed); err != nil {
			return nil, err
		}
	}
}

// openFile is tempFile for a caller that others may wait for: it waits for the disk alone.
// BLOCKS until the disk has the file; wakes when another one has made it.
func (s *TempFileStore) openFile() (*os.File, error) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if f := s.file.Load(); f != nil { // another one was faster
		return f, nil
	}
	f, err := s.room.create(s.makeFile)
	if err != nil {
		return nil, s.diskError(err)
	}
	// XFS takes twice the space of a file that grows. Where the file may not be so large, it grows as far as it may.
	_ = f.Truncate(s.obj.Size)
	s.file.Store(f)
	s.room.enter(s)
	return f, nil
}

func descriptorLimit() int {
	var limit unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) // it fails only for wrong arguments
	return int(min(limit.Cur, math.MaxInt32))
}

// createUnlinked makes a temporary file, 0600, in dir. The file has no name (O_TMPFILE, open(2));
// on a file system without O_TMPFILE it has one for a moment. The kernel frees its space with the
// last descriptor, however the process ends (unlink(2)).
func createUnlinked(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return createNamed(dir)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

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

// diskError says what to do about a temporary file that cannot be made or written.
func (s *TempFileStore) diskError(err error) error {
	err = pathReason(err)
	switch {
	case outOfDescriptors(err):
		return fmt.Errorf("make temporary file: %w: programs have too many files of this mount open (ulimit -n raises the limit)", err)
	case errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("temporary file in %s: %w: the disk, or ulimit -f, takes no file of %d bytes", s.room.dir, err, s.obj.Size)
	}
	return fmt.Errorf("temporary file in %s: %w (--temp-dir names another place, --cache-size allows more)", s.room.dir, err)
}

// diskFull reports whether err passes when something leaves the disk.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// view is a range of a store's file in memory that the store lends. To lend the page cache itself (mmap(2))
// takes longer than to copy it: each mapping changes the page tables of all threads.
type view struct {
	data []byte
	done func() // gives data back; nil where there is nothing to give
}

func (v view) drop() {
	if v.done != nil {
		v.done()
	}
}

// lentBuffer is a buffer that its done puts back into the pool. It keeps done, so that lending allocates nothing.
type lentBuffer struct {
	bytes []byte
	done  func()
}

// lendBuffer returns a buffer for n bytes, at most maxReadBytes.
func (m *roomTable) lendBuffer(n int64) *lentBuffer {
	pool, size := &m.small, smallBufferBytes
	if n > smallBufferBytes {
		pool, size = &m.large, maxReadBytes
	}
	if b, _ := pool.Get().(*lentBuffer); b != nil {
		return b
	}
	b := &lentBuffer{bytes: make([]byte, size)}
	b.done = func() { pool.Put(b) }
	return b
}

// lend returns the bytes of r, which are present: from the page cache, or from the disk if mayWait, else errNotCached.
// BLOCKS until the disk answers, if mayWait.
// REQUIRES: the caller holds a reference, the file is open, and r.len() <= maxReadBytes.
func (s *TempFileStore) lend(r byteRange, mayWait bool) (view, error) {
	buffer := s.room.lendBuffer(r.len())
	v := view{data: buffer.bytes[:r.len()], done: buffer.done}
	if readCached(s.file.Load(), v.data, r.off, s.room.inMemory) {
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

// readPresent fills p with the bytes [off, off+len(p)), which are present. BLOCKS until the disk answers. REQUIRES:
// the caller holds a reference, and the file is open.
func (s *TempFileStore) readPresent(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := s.file.Load().ReadAt(p, off)
	if err != nil {
		return n, fmt.Errorf("read temporary file in %s at %v: %w", s.room.dir, byteRange{off, off + int64(len(p))}, err)
	}
	return n, nil
}

// writeAt writes p to f at off, and returns how much of it f has then: where the disk is full or the file too large,
// part of it. os.File does not tell. BLOCKS until the disk has taken it.
func writeAt(f *os.File, p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pwrite(int(f.Fd()), p[n:], off+int64(n))
		if err != nil && err != unix.EINTR {
			return n, err
		}
		n += max(m, 0)
	}
	return n, nil
}

// punch gives the disk of r, whole blocks, back (fallocate(2)).
func punch(f *os.File, r byteRange) (err error) {
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.off, r.len())
	}
	return err
}

// readCached fills p with the bytes of f at off if the page cache has all of them, and reports whether it did. It never
// waits for the disk: RWF_NOWAIT fails with EAGAIN or reads less instead, and fails with EOPNOTSUPP on file systems
// that do not know it (preadv2(2)), such as overlay, and tmpfs, where inMemory says that there is no disk to wait for.
func readCached(f *os.File, p []byte, off int64, inMemory bool) bool {
	if len(p) == 0 {
		return true
	}
	flags := unix.RWF_NOWAIT
	if inMemory {
		flags = 0
	}
	n, err := unix.Preadv2(int(f.Fd()), [][]byte{p}, off, flags)
	return err == nil && n == len(p)
}

// wholeBlocks returns the blocks of the disk that r touches.
func wholeBlocks(r byteRange) byteRange {
	return byteRange{r.off &^ (diskBlock - 1), (r.end + diskBlock - 1) &^ (diskBlock - 1)}
}
