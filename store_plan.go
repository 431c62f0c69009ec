// store_plan.go decides what a store fetches next: first what readers wait for,
// then, while a program has the file open, the rest. It also decides when fetches
// pause and retry. It makes no request itself.

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// soonBytes is how far ahead of a fetch a reader may want bytes without
	// getting a fetch of its own, whatever the fetch's rate: as much as the
	// largest read, so that a sequential reader never asks for a second one.
	soonBytes = maxReadBytes

	// firstChunkBytes is how much is requested for a reader that jumped. It
	// doubles each time one goes on where such a piece ended: who reads one
	// place costs little, who plays on from there few requests.
	firstChunkBytes = 1 << 20

	// maxChunkBytes bounds what is requested at once when readers jump: what
	// lies beyond may be wanted from another place by then.
	maxChunkBytes = 16 << 20

	// parallelChunkBytes is how far apart parallel fetches of the rest start:
	// at a few MiB a second each, about a second's worth, so that a round trip
	// between two pieces is little.
	parallelChunkBytes = 4 << 20

	// slowBytesPerSecond is the rate below which one connection is taken to be
	// held back by its round trips or by the origin's limit for one, not by the
	// path: then more of them bring more.
	slowBytesPerSecond = 32 << 20

	// slowAfter is how long a rate is measured before it is believed.
	slowAfter = 300 * time.Millisecond

	// idleAfter is how long nobody waits for a request's bytes before another may
	// take its place.
	idleAfter = time.Second

	// backoffBase and backoffMax bound the wait before the n-th retry in a row:
	// a random time up to backoffBase*2^n, so that clients of an origin that
	// comes back do not come all at once.
	backoffBase = 200 * time.Millisecond
	backoffMax  = 30 * time.Second

	// refusalsMax is how often in a row an origin may refuse behind a redirect
	// (an expired signed URL) before that counts as an answer.
	refusalsMax = 3
)

var (
	// errPreempted ends a fetch of the rest for one that a reader waits for.
	errPreempted = errors.New("made way for bytes that a reader waits for")

	// errPaused ends the fetches of a file that nobody has open.
	errPaused = errors.New("nobody has the file open")

	// errGivenUp ends the fetches of a store when one of them ended the store.
	errGivenUp = errors.New("the file was given up")
)

// isStop reports whether err ended a fetch that was told to stop: no failure.
func isStop(err error) bool {
	return errors.Is(err, errPreempted) || errors.Is(err, errPaused) || errors.Is(err, errGivenUp)
}

// fetchPlan is what a store is fetching, and why it is not fetching more.
type fetchPlan struct {
	fetches []*fetch // INVARIANT: what they have ahead of them never overlaps

	handles int         // open handles of the file
	linger  *time.Timer // pauses the fetches; nil if none runs

	failures int         // in a row; reset by every byte
	refusals int         // of those, the ones behind a redirect, one request after the other
	refused  time.Time   // when the last of these was counted
	lastErr  error       // of the last failure in that row
	retryAt  time.Time   // no request before
	retry    *time.Timer // plans again at retryAt; nil if none runs
	room     *time.Timer // plans again when a fetch may have become idle; nil if none runs
	failedAt time.Time   // of the last failure that was counted

	retries  int64 // in all
	received int64 // bytes in all

	progress time.Time     // when the last byte arrived
	latency  time.Duration // from a request to its first byte, the last one
	rate     int64         // of the last request that ended well, in bytes a second
	jumped   bool          // a reader wanted bytes that were not soon to come
	chunks   []chunk       // the last few that were fetched to their end
}

// chunk is a request that was fetched to its end.
type chunk struct{ end, size int64 }

// fetch is one request for [pos, end) of the file.
type fetch struct {
	// Write once, before any goroutine starts.
	cancel      context.CancelCauseFunc
	first       int64 // where it began
	preemptible bool  // it fetches what nobody waits for
	started     time.Time

	// Read write, under the store's mu.
	pos       int64     // the next byte to arrive
	end       int64     // it may be lowered: then others fetch what is beyond
	ending    bool      // it was told to stop, and is on its way out
	requested time.Time // when its request was made
	opened    time.Time // when it was answered
	answered  time.Time // when its first byte came
	moved     time.Time // when its latest byte came
	wanted    time.Time // when somebody last waited for its bytes
}

// rate is in bytes a second, 0 if it was not measured for long enough.
func (f *fetch) rate(now time.Time) int64 {
	took := now.Sub(f.answered)
	if f.answered.IsZero() || took < slowAfter {
		return 0
	}
	return int64(float64(f.pos-f.first) / took.Seconds())
}

// stop ends f, for a reason that is no failure.
func (f *fetch) stop(reason error) {
	f.end, f.ending = f.pos, true
	f.cancel(reason)
}

// planLocked starts every fetch that is due: it is called whenever what it
// decides by has changed. After it, each waiter's first missing byte is
// expected of a fetch soon, or all connections are busy with what others wait
// for, or retryAt is to come.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) planLocked() {
	if s.ended || s.waitForRetryLocked() {
		return
	}
	if !s.obj.Ranges {
		s.planInOrderLocked()
		return
	}
	for _, w := range s.waitersInTurnLocked() {
		off := s.present.firstMissing(w.r.off)
		if s.soonLocked(off) {
			continue
		}
		if !s.makeRoomLocked() {
			return
		}
		s.startForWaiterLocked(off, w.r.end)
	}
	for s.wantsRestLocked() && len(s.plan.fetches) < s.restLimitLocked() {
		if !s.startRestLocked() {
			return
		}
	}
}

// planInOrderLocked is planLocked for an origin that can only send the file from
// its start: one fetch does it, whatever readers want first.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) planInOrderLocked() {
	if len(s.plan.fetches) == 0 && (len(s.waiters) > 0 || s.wantsRestLocked()) {
		s.startLocked(byteRange{s.present.firstMissing(0), s.obj.Size}, true)
	}
}

// waitersInTurnLocked returns the waiters, the longest-waiting first.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) waitersInTurnLocked() []*waiter {
	turn := make([]*waiter, 0, len(s.waiters))
	for w := range s.waiters {
		turn = append(turn, w)
	}
	slices.SortFunc(turn, func(a, b *waiter) int { return a.since.Compare(b.since) })
	return turn
}

// soonLocked reports whether a fetch that runs brings the byte at off sooner
// than a new one would: it is no further ahead of it than soonBytes, or than
// what arrives within two of the origin's latencies, one for the new request
// and one for what it would cost the origin.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) soonLocked(off int64) bool {
	now := time.Now()
	for _, f := range s.plan.fetches {
		if off < f.pos || off >= f.end {
			continue
		}
		ahead := int64(float64(f.rate(now)) * 2 * s.plan.latency.Seconds())
		return off-f.pos <= max(soonBytes, ahead)
	}
	return false
}

// makeRoomLocked reports whether another request may be made, and ends one that
// nobody waits for where that is in the way: its room is free when it is gone.
// One that was made for a reader is left alone until nobody has waited for it for
// idleAfter: the reader may just be between two reads. Then it is looked at again.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) makeRoomLocked() bool {
	if len(s.plan.fetches) < s.connections {
		return true
	}
	if slices.ContainsFunc(s.plan.fetches, func(f *fetch) bool { return f.ending }) {
		return false
	}
	for _, f := range s.plan.fetches {
		if (f.preemptible || time.Since(f.wanted) > idleAfter) && !s.awaitedLocked(f) {
			f.stop(errPreempted)
			return false
		}
	}
	if s.plan.room == nil {
		s.plan.room = time.AfterFunc(idleAfter+1, func() { s.onTimer(func() { s.plan.room = nil }) })
	}
	return false
}

// awaitedLocked reports whether a waiter's next byte is soon to come by f.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) awaitedLocked(f *fetch) bool {
	for w := range s.waiters {
		if off := s.present.firstMissing(w.r.off); f.pos <= off && off < min(f.end, f.pos+soonBytes) {
			return true
		}
	}
	return false
}

// startForWaiterLocked fetches from off for a reader that needs all up to need.
// As long as readers go on from the start of the file, they get all that is left
// in one request; one that jumps gets a chunk.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) startForWaiterLocked(off, need int64) {
	if off == s.present.firstMissing(0) && !s.plan.jumped {
		s.startLocked(byteRange{off, s.obj.Size}, true)
		return
	}
	s.plan.jumped = true
	size := max(s.nextChunkLocked(off), need-off)
	s.startLocked(byteRange{off, off + min(size, s.obj.Size-off)}, false)
}

// nextChunkLocked returns how much to request at off: as much as takes two round
// trips to arrive, so that the path is not idle for long between two requests, or
// twice the piece that ends there.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) nextChunkLocked(off int64) int64 {
	for _, c := range s.plan.chunks {
		if c.end == off {
			return min(max(2*c.size, firstChunkBytes), maxChunkBytes)
		}
	}
	twoRoundTrips := int64(2 * s.plan.latency.Seconds() * float64(s.plan.rate))
	return min(max(firstChunkBytes, twoRoundTrips), 4*firstChunkBytes)
}

// wantsRestLocked reports whether what nobody waits for is to be fetched too:
// the file was read from, and is open, or was until a moment ago.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) wantsRestLocked() bool {
	if s.present.total() == 0 && len(s.plan.fetches) == 0 {
		return false
	}
	return s.plan.handles > 0 || s.plan.linger != nil
}

// restLimitLocked is how many fetches there may be, all told, when one more
// would be for the rest: a single one, or as many as there may be where each
// brings little and a reader waits.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) restLimitLocked() int {
	now := time.Now()
	for _, f := range s.plan.fetches {
		if rate := f.rate(now); rate > 0 && rate < slowBytesPerSecond {
			return s.connections
		}
	}
	return 1
}

// startRestLocked fetches the first bytes that are neither present nor expected,
// or, if all are expected, takes the far end off the fetch with the most ahead.
// It reports whether there was anything to start.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) startRestLocked() bool {
	if off := s.firstUnclaimedLocked(); off < s.obj.Size {
		size := s.obj.Size
		if s.plan.jumped || len(s.plan.fetches) > 0 {
			size = max(s.nextChunkLocked(off), parallelChunkBytes)
		}
		s.startLocked(byteRange{off, off + min(size, s.obj.Size-off)}, true)
		return true
	}
	for _, f := range s.plan.fetches {
		if f.end-f.pos >= 2*parallelChunkBytes {
			s.startLocked(byteRange{f.pos + parallelChunkBytes, f.pos + 2*parallelChunkBytes}, true)
			return true
		}
	}
	return false
}

// firstUnclaimedLocked returns the first byte that is neither present nor ahead
// of a fetch.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) firstUnclaimedLocked() int64 {
	off := s.present.firstMissing(0)
	for moved := true; moved; {
		moved = false
		for _, f := range s.plan.fetches {
			if f.pos <= off && off < f.end {
				off, moved = s.present.firstMissing(f.end), true
			}
		}
	}
	return off
}

// startLocked begins a fetch of r as far as nobody else has it. A fetch that
// has r ahead of it stops where r begins.
//
// REQUIRES: the caller, or a fetch or timer of the store on whose behalf it
// acts, has been counted in, so that Close waits for the fetch begun here.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) startLocked(r byteRange, rest bool) {
	r.end = s.present.nextPresent(r.off, min(r.end, s.obj.Size))
	for _, f := range s.plan.fetches {
		if f.pos <= r.off && r.off < f.end {
			f.end = r.off
		}
		if f.pos > r.off {
			r.end = min(r.end, f.pos)
		}
	}
	ctx, cancel := context.WithCancelCause(s.ctx)
	f := &fetch{cancel: cancel, first: r.off, preemptible: rest, started: time.Now(), wanted: time.Now(), pos: r.off, end: r.end}
	s.plan.fetches = append(s.plan.fetches, f)
	s.refCount.Add(1)
	go s.download(ctx, f, r)
}

// finishedLocked takes f off the list, of which err is the end, and decides
// what that means: nothing, a retry, or the end of the store.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) finishedLocked(f *fetch, err error) {
	p := &s.plan
	p.fetches = slices.DeleteFunc(p.fetches, func(g *fetch) bool { return g == f })
	switch {
	case err == nil:
		if took := f.moved.Sub(f.answered); took > 0 {
			p.rate = int64(float64(f.pos-f.first) / took.Seconds())
		}
		p.chunks = append(p.chunks, chunk{end: f.pos, size: f.pos - f.first})
		if len(p.chunks) > 8 {
			p.chunks = p.chunks[1:]
		}
	case f.ending: // whatever it ended with
	default:
		s.failedLocked(f, err)
	}
	s.planLocked()
}

// failedLocked decides whether the next request may do better than f.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) failedLocked(f *fetch, err error) {
	p := &s.plan
	if p.failures == 0 || f.started.After(p.failedAt) { // else it ran beside one that was counted
		p.failures++
		p.failedAt = time.Now()
	}
	p.lastErr = err
	retry, after := retryAdvice(err)
	if redirectedRefusal(err) && f.requested.After(p.refused) {
		// Requests that were under way together are one attempt.
		p.refusals++
		p.refused = time.Now()
	}
	if !retry || p.refusals >= refusalsMax {
		s.endLocked(err)
		s.notifyLocked()
		for _, other := range p.fetches {
			other.stop(errGivenUp)
		}
		return
	}
	p.retries++
	// What another request was told holds too: it is never made sooner.
	if at := time.Now().Add(max(after, backoff(p.failures))); at.After(p.retryAt) {
		p.retryAt = at
	}
}

// backoff is the wait before the n-th retry in a row: full jitter.
func backoff(n int) time.Duration {
	limit := min(backoffMax, backoffBase<<min(n, 10))
	return rand.N(limit)
}

// waitForRetryLocked reports whether it is too early for a request, and sees
// to it that there is a plan when it no longer is.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) waitForRetryLocked() bool {
	wait := time.Until(s.plan.retryAt)
	if wait <= 0 {
		return false
	}
	if s.plan.retry == nil {
		s.plan.retry = time.AfterFunc(wait, func() { s.onTimer(func() { s.plan.retry = nil }) })
	}
	return true
}

// onTimer changes the plan by what a timer was for, and plans anew.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) onTimer(due func()) {
	if !s.hold() {
		return
	}
	defer s.unhold()
	s.mu.Lock()
	defer s.mu.Unlock()
	due()
	s.planLocked()
}

func (p *fetchPlan) stopTimers() {
	for _, t := range []*time.Timer{p.retry, p.linger, p.room} {
		if t != nil {
			t.Stop()
		}
	}
	p.retry, p.linger, p.room = nil, nil, nil
}

// AddHandle says that a handle of the file was opened. A store that failed is tried
// again: what it has stays.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) AddHandle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan.handles++
	if s.plan.linger != nil {
		s.plan.linger.Stop()
		s.plan.linger = nil
	}
	if s.ended && s.err != nil && !s.closed.Load() && !errors.Is(s.err, errChanged) {
		s.ended, s.err, s.doneCh = false, nil, make(chan struct{})
		s.plan.failures, s.plan.refusals, s.plan.retryAt = 0, 0, time.Time{}
	}
}

// DropHandle says that a handle was closed, and returns how many are left. When the
// last one has been closed for as long as linger, the fetches end, unless
// readers still wait; what was fetched stays.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) DropHandle() (handles int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan.handles--
	if s.plan.handles == 0 && !s.ended {
		s.plan.linger = time.AfterFunc(s.linger, func() { s.onTimer(s.pauseLocked) })
	}
	return s.plan.handles
}

// pauseLocked ends the fetches that nobody waits for, if no handle is open.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) pauseLocked() {
	if s.plan.handles > 0 {
		return
	}
	s.plan.linger = nil
	for _, f := range s.plan.fetches {
		if !s.awaitedLocked(f) {
			f.stop(errPaused)
		}
	}
}

// Unused reports whether no handle is open.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Unused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plan.handles == 0
}

// Changed reports whether the remote file is another by now, so that this store
// will never be complete.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Changed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Is(s.err, errChanged)
}

// Successor returns a store for the version that the origin has now.
//
// BLOCKS until the origin has answered, at most statTimeout; wakes on the end
// of ctx.
func (s *TempFileStore) Successor(ctx context.Context) (*TempFileStore, error) {
	ctx, cancel := context.WithTimeout(ctx, statTimeout)
	defer cancel()
	obj, err := s.origin.Stat(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for the new version of %v: %w", s.origin, err)
	}
	return newTempFileStore(s.origin, obj, s.storeConfig), nil
}
