// store_file.go makes temporary files that no crash can leave behind, and reads
// what is in a store's.

package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

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
