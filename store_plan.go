// store_plan.go decides what a store fetches next: first what readers wait for,
// then, while a program has the file open, the rest. It also decides when fetches
// pause and retry. It makes no request itself: store_fetch.go does.

package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// soonBytes is how far ahead of a fetch, whatever its rate, a reader waits for it
	// instead of getting a fetch of its own. It is the largest read, so that a
	// sequential reader never causes a second request.
	soonBytes = maxReadBytes

	// Programs that want to know the type of a file read its head and no more, or its
	// beginning and its end: file(1) reads 7 MiB of each. So the first read requests
	// headBytes, if it needs no more; reading on from there, beginningBytes; and who
	// reads in the last endBytes wants no others.
	headBytes      = 128 << 10
	beginningBytes = 8 << 20
	endBytes       = 8 << 20

	// A request for a reader that jumped has at least firstChunkBytes, if so many are
	// missing there. The size doubles each time a reader goes on where such a chunk
	// ended: a single seek stays cheap, and playback from there needs few requests.
	firstChunkBytes = 1 << 20

	// maxChunkBytes bounds one request once readers jump: by the time a longer one
	// ends, readers may want bytes elsewhere.
	maxChunkBytes = 16 << 20

	// idleAfter is how long a fetch that nobody waits for keeps its connection or slot.
	idleAfter = time.Second

	// The n-th retry in a row waits a random time up to backoffBase*2^n, at most
	// backoffMax, so that clients of an origin that returns do not all come at once. An
	// outage costs a reader its own length and at most backoffMax.
	backoffBase = 200 * time.Millisecond
	backoffMax  = 10 * time.Second

	// refusalsMax is how many refusals in a row behind a redirect (an expired signed
	// URL, or not) end the store.
	refusalsMax = 3

	// chunksKept is how many ends of chunks the plan remembers: one for each place at
	// which a few readers might go on.
	chunksKept = 8
)

var (
	// errPreempted ends a fetch whose connection or slot a reader may need.
	errPreempted = errors.New("made way for bytes that a reader waits for")

	// errPaused ends the fetches of a file that no program has open.
	errPaused = errors.New("nobody has the file open")

	// errGivenUp ends the other fetches of a store that one fetch ended.
	errGivenUp = errors.New("the file was given up")
)

// isStop reports whether err ended a fetch that the plan stopped: no failure.
func isStop(err error) bool {
	return errors.Is(err, errPreempted) || errors.Is(err, errPaused) || errors.Is(err, errGivenUp)
}

// fetchPlan is what a store is fetching, and why it is not fetching more. The
// store's mu guards all of it.
type fetchPlan struct {
	fetches []*fetch // INVARIANT: the ranges [pos, end) of no two overlap

	handles  int         // open handles of the file
	linger   *time.Timer // pauses the fetches; nil if none runs
	reach    int64       // how far, in bytes, the rest of the file is wanted, by what was read
	all      bool        // somebody asked for the whole file, whoever has it open
	asking   bool        // the file changed; nothing is fetched until the origin said to what
	settling bool        // somebody asks the origin, for readers or for the log alone
	moved    bool        // the handles are those of the store that replaced this one

	failures int         // in a row; every byte resets them
	failedAt time.Time   // of the last failure that was counted
	refusals int         // in a row, behind a redirect, by requests made one after the other
	refused  time.Time   // when the last of these was counted
	lastErr  error       // of the last failure in the row
	retryAt  time.Time   // no request before
	retry    *time.Timer // plans again at retryAt; nil if none runs
	room     *time.Timer // plans again when a fetch may have become idle; nil if none runs

	retries  int64 // in all
	received int64 // bytes in all

	began    time.Time     // when the first of the attempts in a row started
	progress time.Time     // when the last byte arrived
	latency  time.Duration // from the latest request to its first byte
	rate     int64         // of the latest fetch that ended well, in bytes a second
	speed    speedometer   // of all fetches together
	company  companyTrial  // whether more than one fetch of the rest is faster
	jumped   bool          // a reader wanted bytes that were not soon to come
	chunks   []chunk       // the last chunksKept that were fetched to their end
}

// chunk is a range that was fetched to its end, in bytes.
type chunk struct{ end, size int64 }

// fetch is one request, which still has to bring [pos, end) of the file.
type fetch struct {
	// Write once, before any goroutine starts.
	cancel      context.CancelCauseFunc
	first       int64 // its first byte
	preemptible bool  // it goes on beyond what a reader waited for, and makes way at once
	started     time.Time

	// Read write, under the store's mu.
	pos       int64     // the next byte to arrive
	end       int64     // the plan may lower it, and fetch the rest otherwise
	ending    bool      // the plan stopped it, and it has not ended yet
	requested time.Time // when it made its request
	opened    time.Time // when the origin answered
	answered  time.Time // when its first byte came
	moved     time.Time // when its latest byte came
	wanted    time.Time // when somebody last waited for its bytes
}

// stop ends f for a reason that is no failure.
func (f *fetch) stop(reason error) {
	f.end, f.ending = f.pos, true
	f.cancel(reason)
}

// planLocked starts every fetch that is due. Whoever can make a waiter's fetch due
// calls it; AddHandle does not, because an open requests nothing. After it, for each
// waiter one of these holds: a fetch brings its first missing byte soon, all
// connections are busy, or retryAt is still to come.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) planLocked() {
	if s.ended || s.plan.asking {
		return
	}
	if wait := time.Until(s.plan.retryAt); wait > 0 {
		s.planAgainLocked(&s.plan.retry, wait)
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

// planInOrderLocked is planLocked for an origin without byte ranges: one fetch
// brings the file from its start, whatever readers want first.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) planInOrderLocked() {
	if len(s.waiters) > 0 {
		s.plan.reach = s.obj.Size
	}
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

// soonLocked reports whether a running fetch brings the byte at off sooner than a
// new one would. It does if off is at most soonBytes ahead of it, or at most what
// it brings in two latencies of the origin: one for the new request, and one for
// the load that another request puts on the origin.
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

// makeRoomLocked reports whether another fetch may start. If all connections are
// busy, it stops one fetch that nobody waits for; the connection is free when that
// fetch has ended. It spares a fetch for a reader until idleAfter after the last wait
// for it: the reader may be between two reads. The plan then looks again.
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
	s.planAgainLocked(&s.plan.room, idleAfter+1)
	return false
}

// awaitedLocked reports whether f brings some waiter's next byte soon.
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

// startForWaiterLocked starts a fetch at off for a reader that needs [off, need).
// While readers go on from the start of the file, it requests the head, then the
// beginning, then all that is left. A reader that jumps gets a chunk, and then the rest
// is wanted, unless the jump is to the end.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) startForWaiterLocked(off, need int64) {
	if off == s.present.firstMissing(0) && !s.plan.jumped {
		end := s.obj.Size
		for _, part := range []int64{beginningBytes, headBytes} {
			if off < part && max(need, part) < s.obj.Size-part {
				end = max(need, part)
			}
		}
		s.plan.reach = max(s.plan.reach, end)
		s.startLocked(byteRange{off, s.plan.reach}, true)
		return
	}
	if off < s.obj.Size-endBytes {
		s.plan.jumped, s.plan.reach = true, s.obj.Size
	}
	size := max(s.nextChunkLocked(off), need-off)
	s.startLocked(byteRange{off, off + min(size, s.obj.Size-off)}, false)
}

// nextChunkLocked returns how many bytes to request at off, within bounds: twice the
// chunk that ended there, else what arrives in two round trips, so that the path is
// not idle for long between two requests.
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

// wantsRestLocked reports whether to fetch bytes below reach that nobody waits for:
// somebody asked for the whole file, or has read of it, and it is open or was until
// linger ago.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) wantsRestLocked() bool {
	return s.plan.reach > 0 && (s.plan.all || s.plan.handles > 0 || s.plan.linger != nil)
}

// startLocked starts a fetch of r, shortened to where present bytes or another
// fetch begin. A fetch that has r.off ahead of it then ends at r.off.
//
// REQUIRES: the caller, or the fetch or timer it acts for, holds a reference, so
// that Close waits for the fetch that starts here.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) startLocked(r byteRange, preemptible bool) {
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
	now := time.Now()
	if len(s.plan.fetches) == 0 {
		s.plan.speed.since = time.Time{}         // no sample holds the time without a fetch
		if now.Sub(s.plan.retryAt) > idleAfter { // else it is a retry
			s.plan.began = now
		}
	}
	f := &fetch{cancel: cancel, first: r.off, preemptible: preemptible, started: now, wanted: now, pos: r.off, end: r.end}
	s.plan.fetches = append(s.plan.fetches, f)
	s.refCount.Add(1)
	go s.download(ctx, f, r)
}

// finishedLocked removes f, which ended with err, then chooses: nothing, a retry,
// or the end of the store.
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
		p.chunks = p.chunks[max(0, len(p.chunks)-chunksKept):]
	case f.ending || s.ended: // the plan stopped it; err does not matter
	default:
		s.failedLocked(f, err)
	}
	s.planLocked()
}

// failedLocked counts f's failure, and either sets retryAt or ends the store.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) failedLocked(f *fetch, err error) {
	p := &s.plan
	if p.failures == 0 || f.started.After(p.failedAt) { // else it ran beside one that was counted
		p.failures++
		p.failedAt = time.Now()
	}
	p.lastErr = err
	if errors.Is(err, errChanged) && !p.settling {
		p.asking, p.settling = true, true
		p.stopFetches()
		return
	}
	retry, after := retryAdvice(err)
	if redirectedRefusal(err) && f.requested.After(p.refused) {
		// Requests that were in flight together count as one attempt.
		p.refusals++
		p.refused = time.Now()
	}
	if !retry || p.refusals >= refusalsMax {
		s.endLocked(err)
		p.stopFetches()
		return
	}
	if errors.As(err, new(statusError)) {
		p.company.refused()
	}
	p.retries++
	s.total.retries.Add(1)
	// A Retry-After that another request was told still holds.
	if at := time.Now().Add(max(after, backoff(p.failures))); at.After(p.retryAt) {
		p.retryAt = at
	}
}

// stopFetches ends every fetch of a store that one fetch ended.
func (p *fetchPlan) stopFetches() {
	for _, f := range p.fetches {
		f.stop(errGivenUp)
	}
}

// backoff returns the wait before the n-th retry in a row, with full jitter.
func backoff(n int) time.Duration {
	return rand.N(min(backoffMax, backoffBase<<min(n, 10)))
}

// AddHandle records that a program opened the file. It stops the linger timer, and
// lets the next read try a failed store again: what has arrived stays.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) AddHandle() { s.addHandles(1) }

// DropHandle records that a program closed the file. When no program has had it open
// for linger, pauseLocked ends the fetches that nobody waits for. What has arrived
// stays.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) DropHandle() { s.addHandles(-1) }

// addHandles adds n to the handles of the store, or of the one that replaced it.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) addHandles(n int) {
	s.mu.Lock()
	if s.plan.moved {
		s.mu.Unlock()
		s.Replacement().addHandles(n)
		return
	}
	defer s.mu.Unlock()
	p := &s.plan
	p.handles += n
	s.reopened = s.reopened || n > 0 && s.ended
	switch {
	case p.linger != nil && p.handles > 0:
		p.linger.Stop()
		p.linger = nil
	case p.linger == nil && p.handles == 0 && !s.ended:
		p.linger = time.AfterFunc(s.linger, func() { s.onTimer(s.pauseLocked) })
	}
}

// tryAgainLocked makes an ended store fetch again if a program opened the file since it
// failed. After a change it does so once in idleAfter, and only if the origin names the
// version: else nothing would tell its bytes from those of another.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) tryAgainLocked() {
	p := &s.plan
	changed := errors.Is(s.err, errChanged) && (!s.obj.named() || time.Since(p.failedAt) < idleAfter)
	if !s.reopened || s.err == nil || changed || p.moved || s.closed.Load() {
		return
	}
	s.ended, s.err, s.reopened, s.doneCh = false, nil, false, make(chan struct{})
	p.failures, p.refusals, p.retryAt, p.lastErr = 0, 0, time.Time{}, nil
}

// TryAgain makes a store that failed fetch again.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) TryAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reopened, s.plan.failedAt = s.ended, time.Time{}
	s.tryAgainLocked()
}

// Want makes a store that failed fetch again, and keep all that Fetch, or a reader,
// makes it fetch, whoever has the file open.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Want() {
	s.TryAgain()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan.all = true
}

// WantRest makes the store fetch all that is missing.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) WantRest() {
	s.onTimer(func() { s.plan.all, s.plan.reach = true, s.obj.Size })
}

// Fetch downloads the whole file, whoever has it open, and returns when another file
// may start: when this one is complete, has failed, or has brought nothing for
// stalledAfter. Its download goes on even then.
//
// BLOCKS until that; wakes on doneCh, every idleAfter, and on the end of ctx.
func (s *TempFileStore) Fetch(ctx context.Context) {
	tick := time.NewTicker(idleAfter)
	defer tick.Stop()
	s.WantRest()
	for silent := time.Duration(0); silent < stalledAfter; {
		s.mu.Lock()
		done := s.doneCh
		silent = s.silentLocked(time.Now())
		s.mu.Unlock()
		select {
		case <-done:
			return
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// pauseLocked stops the fetches that nobody waits for, if no handle is open.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) pauseLocked() {
	if s.plan.handles > 0 || s.plan.all {
		return
	}
	s.plan.linger = nil
	for _, f := range s.plan.fetches {
		if !s.awaitedLocked(f) {
			f.stop(errPaused)
		}
	}
}

// planAgainLocked plans again after wait, unless that timer runs already.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) planAgainLocked(timer **time.Timer, wait time.Duration) {
	if *timer == nil {
		*timer = time.AfterFunc(wait, func() { s.onTimer(func() { *timer = nil }) })
	}
}

// onTimer calls due, then plans again. It does nothing in a closed store.
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
	for _, timer := range []**time.Timer{&p.retry, &p.linger, &p.room} {
		if *timer != nil {
			(*timer).Stop()
			*timer = nil
		}
	}
}
