// store_fetch.go performs one fetch: it copies a range from the origin into the
// temporary file and reports each piece, and finally the result, to the plan.

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"
)

const (
	// fetchBufferBytes is how much is written to the temporary file at a time,
	// if that much has come: one write and one lock for that many bytes.
	// Measured over loopback, 1 MiB takes a fifth less CPU than 256 KiB, and
	// 4 MiB more again.
	fetchBufferBytes = 1 << 20

	// firstBufferBytes is the same for the first bytes of a fetch: somebody
	// waits for these, and for few of them.
	firstBufferBytes = 64 << 10
)

// download performs f, a request for r, from its wait for a place to what its
// end means.
func (s *TempFileStore) download(ctx context.Context, f *fetch, r byteRange) {
	defer s.unhold()
	defer f.cancel(nil)
	sp := s.trace.enter(s.debugID, "download", r, goroutineID())
	err := s.inSlot(ctx, func() error { return s.fetch(ctx, f, r) })
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		err = fmt.Errorf("fetch %v of %v: %w", r, s.origin, err)
	}
	sp.exit(s.finished(f, err)-r.off, err)
}

// finished tells the plan, and the log, that f is over, and returns how far it
// came.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) finished(f *fetch, err error) (pos int64) {
	s.mu.Lock()
	s.finishedLocked(f, err)
	pos = f.pos
	said := s.verdictLocked(err)
	s.mu.Unlock()
	if said != "" {
		s.trace.note(s.debugID, "%v: %s", err, said)
	}
	return pos
}

// verdictLocked is what the log says of err after the plan has dealt with it,
// "" if it is not worth a line.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) verdictLocked(err error) string {
	wait := time.Until(s.plan.retryAt)
	switch {
	case err == nil || isStop(err) || s.closed.Load():
		return ""
	case s.ended && err == s.err:
		return "given up until the file is opened again"
	case !s.ended && wait > 0:
		return fmt.Sprintf("retry in %v", roundDuration(wait))
	}
	return ""
}

// inSlot runs request in one of the places that all stores share.
//
// BLOCKS until there is one; wakes on that and the end of ctx.
func (s *TempFileStore) inSlot(ctx context.Context, request func() error) error {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.slots }()
	return request()
}

// fetch copies r from the origin to the temporary file, until f's end. A panic
// on the way is an error like any other: it concerns this file and no other.
func (s *TempFileStore) fetch(ctx context.Context, f *fetch, r byteRange) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	file, err := s.tempFile()
	if err != nil {
		return err
	}
	s.requested(f)
	body, err := s.origin.Open(ctx, s.obj, r)
	if err != nil {
		return err
	}
	s.opened(f)
	defer body.Close()
	return s.copyBody(file, body, f, r)
}

// copyBody writes body, which is r or its beginning, and publishes each piece when it is
// written. It stops at f's end, where that was lowered.
//
// BLOCKS until the body ended; wakes on each piece of it, and on the end of the
// context that the body was opened with.
func (s *TempFileStore) copyBody(file *os.File, body io.Reader, f *fetch, r byteRange) error {
	buffer := s.buffers.Get().(*lentBuffer)
	defer buffer.done()
	for off, end := r.off, r.end; off < end; {
		room := int64(fetchBufferBytes)
		if off-r.off < firstBufferBytes {
			room = firstBufferBytes
		}
		n, err := body.Read(buffer.bytes[:min(room, end-off)])
		if n == 0 && err == nil {
			s.skipped()
		}
		if n > 0 {
			if _, err := file.WriteAt(buffer.bytes[:n], off); err != nil {
				return s.diskError(err)
			}
			end = s.arrived(f, byteRange{off, off + int64(n)})
			off += int64(n)
		}
		if err == io.EOF && off == r.off {
			return fmt.Errorf("at byte %d: %w", off, errShortBody)
		}
		if err == io.EOF {
			return nil // the origin sends no more at once; the plan goes on from here
		}
		if err != nil && err != io.EOF {
			return fmt.Errorf("at byte %d: %w", off, err)
		}
	}
	return nil
}

// skipped notes that the origin sends, though nothing that is new.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) skipped() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan.progress = time.Now()
}

// requested notes when f's request was made.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) requested(f *fetch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.requested = time.Now()
}

// opened notes that f's request was answered.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) opened(f *fetch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.opened = time.Now()
}

// arrived publishes r, which f brought, and returns where f is to end by now.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) arrived(f *fetch, r byteRange) (end int64) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.plan
	p.progress, p.failures, p.refusals, p.lastErr = now, 0, 0, nil
	if f.answered.IsZero() {
		f.answered = now
		p.latency = now.Sub(f.requested)
	}
	p.received += r.len()
	f.pos, f.moved = r.end, now
	asleep := len(s.waiters)
	s.publishLocked(r)
	if len(s.waiters) < asleep {
		f.wanted = now
	}
	s.giveWayLocked(f, now)
	if s.restLimitLocked() > len(p.fetches) && len(s.waiters) > 0 {
		s.planLocked()
	}
	return f.end
}

// giveWayLocked ends f, for which nobody waits, when all places that the stores
// share are taken: readers of other files may be waiting for one. The file goes
// on when its turn comes again.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) giveWayLocked(f *fetch, now time.Time) {
	if s.obj.Ranges && len(s.slots) == cap(s.slots) && now.Sub(f.requested) > idleAfter && !f.ending && !s.awaitedLocked(f) {
		f.stop(errPreempted)
	}
}
