// store_fetch.go performs one fetch: it copies a range from the origin into the
// temporary file, publishes each piece, and reports the result to the plan. It
// decides nothing about readers.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"
)

const (
	// fetchBufferBytes is the most that one write puts into the temporary file. Over
	// loopback, 1 MiB takes a fifth less CPU than 256 KiB; 4 MiB takes more again.
	fetchBufferBytes = 1 << 20

	// firstBufferBytes is the same for the first bytes of a fetch: a reader waits for
	// these, and needs only a few.
	firstBufferBytes = 64 << 10
)

// download runs f, a request for r, to its end, and reports the result to the plan
// and the log.
//
// BLOCKS as transfer does.
func (s *TempFileStore) download(ctx context.Context, f *fetch, r byteRange) {
	defer s.unhold()
	defer f.cancel(nil)
	sp := s.trace.enter(s.debugID, "download", r, goroutineID())
	err := s.transfer(ctx, f, r)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		at := ""
		if f.pos > r.off { // only this goroutine changes f.pos
			at = fmt.Sprintf(", at byte %d", f.pos)
		}
		err = fmt.Errorf("fetch %v of %v%s: %w", r, s.origin, at, err)
	}

	s.mu.Lock()
	settling := s.plan.settling
	err = s.finishedLocked(f, err)
	asks := s.plan.settling && !settling
	s.mu.Unlock()

	if asks {
		s.settleChange(err)
	}
	s.mu.Lock()
	n, verdict := f.pos-r.off, s.verdictLocked(err)
	s.mu.Unlock()

	if verdict != "" {
		s.trace.note(s.debugID, "%v: %s", err, verdict)
	}
	sp.exit(n, err)
}

// verdictLocked says for the log what the plan made of err, "" if that is not worth
// a line.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) verdictLocked(err error) string {
	wait := time.Until(s.plan.retryAt)
	switch {
	case err == nil || isStop(err) || s.closed.Load():
		return ""
	case s.ended && (err == s.err || errors.Is(s.err, errChanged)):
		return "given up until the file is opened again"
	case !s.ended && wait > 0:
		return fmt.Sprintf("retry in %v", roundDuration(wait))
	}
	return ""
}

// transfer requests r and copies it into the temporary file, up to f's end. It turns a
// panic into an error: a panic concerns this file and no other.
//
// BLOCKS until the body ended; wakes on the header, on each piece of the body, and on the
// end of ctx.
func (s *TempFileStore) transfer(ctx context.Context, f *fetch, r byteRange) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	file, err := s.tempFile()
	if err != nil {
		return err
	}
	body, err := s.origin.Open(ctx, request{obj: s.obj, r: r, known: s.known, ranged: s.ranged,
		sent: func() { s.stamp(&f.requested) }})
	if err != nil {
		return err
	}
	defer body.Close()
	s.stamp(&f.opened)
	return s.copyBody(file, body, f, r)
}

// copyBody writes body, which holds r or its beginning, and publishes each piece
// when it is written. It stops at f's end, which the plan may lower meanwhile.
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
			s.stamp(&s.plan.progress) // the origin sends, but only bytes before r
		}
		if n > 0 {
			wrote, err := writeAt(file, buffer.bytes[:n], off)
			if wrote > 0 {
				end = s.arrived(f, byteRange{off, off + int64(wrote)})
				off += int64(wrote)
			}
			if err != nil {
				return s.diskError(err)
			}
		}
		switch {
		case err == io.EOF && off == r.off:
			return errShortBody
		case err == io.EOF:
			return nil // the origin sends no more in one answer; the plan goes on from here
		case err != nil:
			return err
		}
	}
	return nil
}

// stamp sets one of the times that mu guards to now.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) stamp(t *time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*t = time.Now()
}

// arrived publishes r, which f brought, and returns f's end, which may be lower by
// now.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) arrived(f *fetch, r byteRange) (end int64) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.plan
	p.progress, p.unchanged, p.ends = now, 0, 0
	delete(p.silent, f.first)
	if f.started.After(p.failedAt) && p.shorts <= shortsFree { // else it says nothing about the requests since
		p.failures, p.refusals, p.lastErr = 0, 0, nil
	}
	if f.answered.IsZero() {
		f.answered = now
		p.latency = now.Sub(f.requested)
	}
	p.received += r.len()
	s.total.received.Add(r.len())
	f.pos, f.moved = r.end, now
	asleep := len(s.waiters)
	s.publishLocked(r)
	woke := len(s.waiters) < asleep
	if woke {
		f.wanted = now
	}
	if f.preemptible && !f.ending && !p.inOrder && !s.wantsRestLocked(stopShare) && !s.awaitedLocked(f) {
		f.stop(errPaused) // nobody wants more of it
	}
	s.judgeCompanyLocked(now)
	// A waiter may need what brought the answer of another, or somebody is faster than the
	// fetches. At its end, f plans once more.
	if woke && f.pos < f.end || s.restLimitLocked() > len(p.fetches) && (asleep > 0 || p.all) {
		s.planLocked()
	}
	return f.end
}

// known returns present bytes from at on, at most knownBytes: those that end at off, else
// the first ones; none if there are none, or they cannot be read.
func (s *TempFileStore) known(off int64) (at int64, data []byte) {
	s.mu.Lock()
	at = s.present.presentBefore(off, max(0, off-knownBytes))
	if at == off && len(s.present.ranges) > 0 {
		at = s.present.ranges[0].off
		off = min(at+knownBytes, s.present.ranges[0].end)
	}
	s.mu.Unlock()
	data = make([]byte, off-at)
	if n, err := s.readPresent(data, at); err != nil || n < len(data) {
		return 0, nil
	}
	return at, data
}

// ranged learns whether the origin sends ranges.
func (s *TempFileStore) ranged(is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan.inOrder == is {
		s.plan.inOrder = !is
		s.planLocked()
	}
}
