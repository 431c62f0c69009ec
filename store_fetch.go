// store_fetch.go brings a store's bytes from its origin into its temporary
// file. It decides nothing about readers: it says what arrived, or why nothing
// will.

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
)

// fetchBufferBytes is how much is written to the temporary file at a time: one
// write and one lock for that many bytes, and a quarter of the largest read
// that FUSE sends (1 MiB), so that a reader is not kept for bytes it does not
// want.
const fetchBufferBytes = 256 << 10

// planLocked makes sure that a fetch is on its way to every missing byte: there
// is one, from the start to the end, begun by the first reader that waits.
//
// REQUIRES: the caller holds a reference, so that Close, which ended the store
// before it counts, waits for the fetch begun here.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) planLocked() {
	if s.fetching || s.ended {
		return
	}
	s.fetching = true
	s.refCount.Add(1)
	go s.download(byteRange{0, s.obj.Size})
}

// download fetches r and ends the store if that fails.
func (s *TempFileStore) download(r byteRange) {
	defer s.release()
	var err error
	if s.trace.enabled() {
		sp := s.trace.enter(s.debugID, "download", r, goroutineID())
		defer func() { sp.exit(s.downloaded.Load()-r.off, err) }()
	}
	if err = s.fetch(s.ctx, r); err != nil {
		s.end(fmt.Errorf("fetch %v of %v: %w", r, s.origin, err))
	}
}

// fetch copies r from the origin to the temporary file. A panic on the way is
// an error like any other: it concerns this file and no other.
func (s *TempFileStore) fetch(ctx context.Context, r byteRange) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	f, err := s.tempFile()
	if err != nil {
		return err
	}
	body, err := s.origin.Open(ctx, s.obj, r)
	if err != nil {
		return err
	}
	defer body.Close()
	return s.copyBody(f, body, r)
}

// copyBody writes body, which is exactly r, and publishes each piece when it is
// written.
//
// BLOCKS until the body ended; wakes on each piece of it, and on the end of the
// context that the body was opened with.
func (s *TempFileStore) copyBody(f *os.File, body io.Reader, r byteRange) error {
	buf := make([]byte, min(fetchBufferBytes, r.len()))
	for off := r.off; off < r.end; {
		n, err := body.Read(buf[:min(int64(len(buf)), r.end-off)])
		if n > 0 {
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return s.diskError(err)
			}
			s.arrived(byteRange{off, off + int64(n)})
			off += int64(n)
		}
		if err == io.EOF && off < r.end {
			return fmt.Errorf("at byte %d: %w", off, errShortBody)
		}
		if err != nil && err != io.EOF {
			return fmt.Errorf("at byte %d: %w", off, err)
		}
	}
	return nil
}

// tempFile returns the temporary file, and makes it if there is none yet.
//
// REQUIRES: it is called by the fetch only.
func (s *TempFileStore) tempFile() (*os.File, error) {
	if f := s.file.Load(); f != nil {
		return f, nil
	}
	f, err := createUnlinked(s.dir)
	if err != nil {
		return nil, s.diskError(err)
	}
	s.file.Store(f)
	return f, nil
}

func (s *TempFileStore) diskError(err error) error {
	return fmt.Errorf("write temporary file in %s: %w (the whole file needs %d bytes there; --temp-dir names another place)",
		s.dir, err, s.obj.Size)
}
