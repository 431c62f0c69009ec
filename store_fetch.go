// store_fetch.go performs one fetch: it copies a range from the origin into the temporary file,
// publishes each piece, and reports the result to the plan. It decides nothing about readers.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
)

const (
	// fetchBufferBytes is the most that one write puts into the temporary file. Over
	// loopback, 1 MiB takes a fifth less CPU than 256 KiB; 4 MiB takes more again.
	fetchBufferBytes = 1 << 20
	// smallBufferBytes is enough for most reads, and for the beginning of a fetch: of a new
	// buffer the memory costs as much as a request.
	smallBufferBytes = 64 << 10
)

// download runs f, a request for r, to its end, and reports the result to the plan and the log.
// BLOCKS as transfer does.
func (s *TempFileStore) download(ctx context.Context, f *fetch, r byteRange) {
	growStack(0)
	defer s.unhold()
	defer f.cancel(nil)
	sp := s.trace.enter(s.debugID, "download", r, goroutineID())
	err := s.transfer(ctx, f, r)
	s.room.prepare() // now, as no reader waits for it
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

// verdictLocked says for the log what the plan made of err, "" if that is not worth a line.
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

// transfer requests r and copies it into the temporary file, up to f's end. It turns a panic into an error: a panic
// concerns this file and no other. BLOCKS until the body ended; wakes on the header, on each piece of the body, on
// turns of the pacer, and on the end of ctx.
func (s *TempFileStore) transfer(ctx context.Context, f *fetch, r byteRange) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if s.obj.assumed {
		s.stamp(&f.requested)
		return s.learnVersion(ctx)
	}
	file, err := s.tempFile(ctx)
	if err != nil {
		return err
	}
	renewing := func(is bool) {
		s.mu.Lock()
		f.renewing = is
		s.mu.Unlock()
	}
	body, err := s.origin.Open(ctx, request{obj: s.obj, r: r, known: s.known, ranged: s.ranged, renewing: renewing,
		sent: func() { s.stamp(&f.requested) }, yield: func() { f.cancel(errMadeWay) }, doubted: func() { _ = s.LeaveCache() }})
	if err != nil {
		return err
	}
	if s.pace != nil {
		body = &throttledBody{ReadCloser: body, ctx: ctx, store: s, fetch: f, turn: make(chan int, 1)}
	}
	defer body.Close()
	s.stamp(&f.opened)
	return s.copyBody(ctx, file, body, f, r)
}

// copyBody writes body, which holds r or its beginning, and publishes each piece when it is written. It stops at f's
// end, which the plan may lower meanwhile. BLOCKS until the body ended; wakes on each piece of it, on the end of ctx,
// with which the body was opened, and as takeRoom does.
func (s *TempFileStore) copyBody(ctx context.Context, file *os.File, body io.Reader, f *fetch, r byteRange) error {
	buffer := s.room.lendBuffer(smallBufferBytes)
	defer func() { buffer.done() }()
	for off, end := r.off, r.end; off < end; {
		most := int64(len(buffer.bytes))
		switch {
		case off == r.off:
			most = firstPieceBytes
		case off-r.off >= smallBufferBytes && most < fetchBufferBytes:
			buffer.done()
			buffer = s.room.lendBuffer(fetchBufferBytes)
			most = fetchBufferBytes
		}
		n, err := body.Read(buffer.bytes[:min(most, end-off)])
		if n == 0 && err == nil {
			s.stamp(&s.plan.progress) // the origin sends, but only bytes before r
		}
		if n > 0 {
			var full error
			if end, full = s.keep(ctx, file, f, buffer.bytes[:n]); full != nil {
				return full
			}
			off += int64(n)
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

// fullMax is how often in a row room is made for bytes for which the disk still has none: what
// leaves it may free nothing, as on btrfs.
const fullMax = 8

// keep writes p, which f brought, to the temporary file, and publishes what is written. It returns f's end.
// BLOCKS on the disk, and as takeRoom does.
func (s *TempFileStore) keep(ctx context.Context, file *os.File, f *fetch, p []byte) (end int64, err error) {
	full, woke := 0, false          // full counts times in a row
	for off := f.pos; len(p) > 0; { // only this goroutine changes f.pos
		if err := s.takeRoom(ctx, f, byteRange{off, off + int64(len(p))}); err != nil {
			return 0, err
		}
		n, err := writeAt(file, p, off)
		if n > 0 {
			if end, woke = s.arrived(f, byteRange{off, off + int64(n)}); woke {
				runtime.Gosched() // the readers go first: for another thread to take them over takes longer than a request
			}
			p, off, full = p[n:], off+int64(n), 0
		}
		if err != nil {
			s.unclaim(f)
			if full++; !diskFull(err) || full > fullMax {
				return 0, s.diskError(err)
			}
			s.room.shrink()
		}
	}
	return end, nil
}

// takeRoom reserves the disk for r, which f is about to write. BLOCKS until there is room, and in a store that evicts
// until a reader comes near; wakes as awaitRoom does. A fetch that nobody waits for ends with errPaused after
// pausePatience. Where nothing may go for bytes that a reader waits for, the error is errNoRoom, after roomPatience.
func (s *TempFileStore) takeRoom(ctx context.Context, f *fetch, r byteRange) error {
	s.room.asleep.Add(1)
	defer s.room.asleep.Add(-1)
	since, awaited, short := time.Now(), false, false
	for {
		changed := *s.room.changed.Load()
		s.room.look()
		d := s.claim(f, r)
		if d == nil {
			return nil
		}
		if d.awaited != awaited {
			since, awaited = time.Now(), d.awaited
		}
		made, busy := false, true
		if d.n > 0 {
			if !short {
				short = true
				s.room.short.Add(1)
				defer s.room.short.Add(-1)
			}
			if made, busy = s.room.makeRoom(*d); made {
				continue
			}
		}
		switch waited := time.Since(since); {
		case !d.awaited && waited >= pausePatience:
			s.mu.Lock()
			s.plan.full = time.Now().Add(restPause)
			s.mu.Unlock()
			return errPaused
		case d.awaited && !busy && waited >= roomPatience:
			return s.diskError(errNoRoom)
		}
		if err := s.awaitRoom(ctx, changed); err != nil {
			return err
		}
	}
}

// awaitRoom waits until there may be what had no room: a file, or bytes in one. BLOCKS until kick closes changed, at
// most a second, as others may free the disk; wakes on the end of ctx, and on Close: s itself may be what goes.
func (s *TempFileStore) awaitRoom(ctx context.Context, changed <-chan struct{}) error {
	select {
	case <-changed:
	case <-time.After(time.Second):
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return errClosed
	}
	return nil
}

// claim reserves the disk for r, which f is about to write, and then returns nil. Else it
// returns f's demand, which is for no bytes while f must wait for something else than room.
func (s *TempFileStore) claim(f *fetch, r byteRange) *demand {
	s.mu.Lock()
	defer s.mu.Unlock()
	blocks := wholeBlocks(r)
	n := blocks.len() - sumOf(s.disk.blocks.within(blocks))
	mayWrite := !slices.ContainsFunc(s.disk.dying, r.overlaps) &&
		(!s.evicts.Load() || s.nearLocked(f) || s.demandLocked(f, f.end).awaited)
	if mayWrite && s.room.take(n) {
		s.disk.blocks.add(blocks)
		f.paused, f.claim = false, r.end
		return nil
	}
	d := s.demandLocked(f, f.end)
	if mayWrite {
		d.n = n
	}
	f.paused = true
	return d
}

// demandLocked returns who waits for what f brings below end, for no bytes.
func (s *TempFileStore) demandLocked(f *fetch, end int64) *demand {
	oldest, _ := s.waiters.between(s.beginningsLocked(f, end))
	if oldest == nil {
		return &demand{}
	}
	return &demand{awaited: true, since: oldest.since}
}

// beginningsLocked returns where the waiting reads begin whose first missing byte f brings, below end.
func (s *TempFileStore) beginningsLocked(f *fetch, end int64) byteRange {
	if end = min(end, f.end); f.pos >= end {
		return byteRange{}
	}
	return byteRange{s.present.firstOf(f.pos), end}
}

// unclaim gives back the blocks that f has reserved, but for one of which it has written a part.
func (s *TempFileStore) unclaim(f *fetch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := byteRange{wholeBlocks(byteRange{0, f.pos}).end, wholeBlocks(byteRange{0, f.claim}).end}
	s.room.give(sumOf(s.disk.blocks.remove(left)))
	f.claim = f.pos
}

func (s *TempFileStore) stamp(t *time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*t = time.Now()
}

// arrived publishes r, which f brought. It returns f's end, which may be lower by now, and whether a reader woke.
func (s *TempFileStore) arrived(f *fetch, r byteRange) (end int64, woke bool) {
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
		if p.latency = now.Sub(f.requested); s.pace != nil { // which may have held f since
			p.latency = f.opened.Sub(f.requested)
		}
	}
	p.received += r.len()
	s.total.received.Add(r.len())
	f.pos, f.moved = r.end, now
	asleep := s.waiters.len()
	s.publishLocked(r)
	s.saveSoonLocked(r.len(), s.ended)
	if woke = s.waiters.len() < asleep; woke {
		f.wanted = now
	}
	if f.preemptible && !f.ending && !p.inOrder && !s.evicts.Load() && !s.wantsRestLocked(stopShare) && !s.awaitedLocked(f) {
		f.stop(errPaused) // nobody wants more of it
	}
	s.judgeCompanyLocked(now)
	// A waiter may need what brought the answer of another, or somebody is faster than the
	// fetches. At its end, f plans once more.
	if woke && f.pos < f.end || s.restLimitLocked() > len(p.fetches) && (asleep > 0 || p.all) {
		s.planLocked()
	}
	return f.end, woke
}

// known returns present bytes from at on, at most knownBytes: those that end at off, else
// the first ones; none if there are none, or they cannot be read.
func (s *TempFileStore) known(off int64) (at int64, data []byte) {
	s.mu.Lock()
	r := byteRange{}
	if len(s.present.ranges) > 0 {
		r = s.present.ranges[0]
		r.end = min(r.end, r.off+knownBytes)
	}
	for _, before := range s.present.within(byteRange{max(0, off-knownBytes), off}) {
		if before.end == off {
			r = before
		}
	}
	w := &waiter{r: r}
	s.pinLocked(w)
	s.mu.Unlock()
	defer s.unpin(w)
	data = make([]byte, r.len())
	_, err := s.openFile() // of the cache, it may not be open
	if err == nil {
		_, err = s.readPresent(data, r.off)
	}
	if err != nil {
		return 0, nil
	}
	return r.off, data
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
