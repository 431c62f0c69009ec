// store_plan.go decides what a store fetches next: first what readers wait for, then, while a program has the file
// open, the rest. It also decides when fetches pause and retry. It makes no request itself: store_fetch.go does.

package main

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"
)

const (
	// soonBytes is how far ahead of a fetch, whatever its rate, a reader waits for it instead of getting a
	// fetch of its own. It is the largest read, so that a sequential reader never causes a second request.
	soonBytes = maxReadBytes
	// Programs that want to know the type of a file read its head and no more, or its beginning and its
	// end: file(1) reads 7 MiB of each. So the first read requests headBytes, if it needs no more;
	// reading on from there, beginningBytes; and who reads in the last endBytes wants no others.
	headBytes      = 128 << 10
	beginningBytes = 8 << 20
	endBytes       = 8 << 20
	// A request for a reader that jumped has at least firstChunkBytes, if so many are
	// missing there. The size doubles each time a reader goes on where such a chunk
	// ended: a single seek stays cheap, and playback from there needs few requests.
	firstChunkBytes = 1 << 20
	minJumpBytes    = 16 << 10 // the least that a jump requests
	// maxChunkBytes bounds one request once readers jump: by the time a longer one
	// ends, readers may want bytes elsewhere.
	maxChunkBytes = 16 << 20
	idleAfter     = time.Second // how long a fetch that nobody waits for keeps its connection
	// The n-th retry in a row waits a random time up to backoffBase*2^n, at most backoffMax, so that clients of an
	// origin that returns do not all come at once. An outage costs a reader its own length and at most backoffMax.
	backoffBase = 200 * time.Millisecond
	backoffMax  = 10 * time.Second
	refusalsMax = 3 // how many refusals in a row behind a redirect (an expired signed URL, or not) end the store
	// chunksKept is how many ends of chunks the plan remembers: one for each place at which a few readers might go on.
	chunksKept = 8
	silentKept = 10_000 // bounds how many ranges about which the origin is silent are remembered
	// An answer with less than shortBytes of a longer range costs a request more than it
	// brings. shortsFree of them in a row are asked for without a pause.
	shortBytes = 1 << 10
	shortsFree = 16
)

var (
	// errPreempted ends a fetch whose connection a reader may need.
	errPreempted = errors.New("made way for bytes that a reader waits for")
	errPaused    = errors.New("nobody has the file open") // ends the fetches of a file that no program has open
	errGivenUp   = errors.New("the file was given up")    // ends the other fetches of a store that one fetch ended
)

// isStop reports whether err ended a fetch that the plan stopped: no failure.
func isStop(err error) bool {
	return slices.ContainsFunc([]error{errPreempted, errPaused, errGivenUp, errMadeWay}, func(stop error) bool {
		return errors.Is(err, stop)
	})
}

// fetchPlan is what a store is fetching, and why it is not fetching more. The store's mu guards all of it.
type fetchPlan struct {
	fetches []*fetch // INVARIANT: the ranges [pos, end) of no two overlap

	handles   int         // open handles of the file
	linger    *time.Timer // pauses the fetches; nil if none runs
	reach     int64       // how far, in bytes, the rest of the file is wanted, by what was read
	fits      int64       // how many bytes, from the start on, the disk takes, as far as is known
	fitsErr   error       // why that is not the whole file
	all       bool        // somebody asked for the whole file, whoever has it open
	asking    bool        // the file changed; nothing is fetched until the origin said to what
	settling  bool        // somebody asks the origin, for readers or for the log alone
	unchanged int         // how often in a row the file had changed, and then had not
	inOrder   bool        // the origin sends no ranges
	moved     bool        // the handles are those of the store that replaced this one

	failures int         // in a row; a byte of a request made after them resets them
	failedAt time.Time   // of the last failure that was counted
	ends     int         // how often in a row the store ended with an error
	shorts   int         // answers in a row that were far shorter than the request
	refusals int         // in a row, behind a redirect, by requests made one after the other
	refused  time.Time   // when the last of these was counted
	lastErr  error       // of the last failure in the row
	retryAt  time.Time   // no request before
	retry    *time.Timer // plans again at retryAt; nil if none runs
	later    *time.Timer // plans again when a fetch may have become idle; nil if none runs
	full     time.Time   // nothing that nobody waits for is fetched before: there was no room

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
	jump     int64         // bytes; how much the next jump requests; 0: firstChunkBytes
	silent   map[int64]int // how often a fetch at that offset made way, as it was silent
	newest   bool          // the newest waiter comes first
	// crowded says that a waiter found no connection free, so another one need not look.
	// INVARIANT: then as many fetches run as may, and the plan looks again when one of them
	// ends, at an arrival that wakes, and when room is due or a fetch is ending.
	crowded bool
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
	claim     int64     // it may be writing [pos, claim)
	paused    bool      // it waits for room, or for a reader to come near
	renewing  bool      // it waits for --url-command
	ending    bool      // the plan stopped it, and it has not ended yet
	requested time.Time // when it made its request
	opened    time.Time // when the origin answered
	answered  time.Time // when its first byte came
	moved     time.Time // when its latest byte came, or the pacer held it back
	wanted    time.Time // when somebody last waited for its bytes
}

// stop ends f for a reason that is no failure.
func (f *fetch) stop(reason error) {
	f.end, f.ending = f.pos, true
	f.cancel(reason)
}

// planLocked starts every fetch that is due. Whoever can make a waiter's fetch due calls it once for
// all of them: an arrival that wakes, the end of a fetch, a timer, and a new waiter. AddHandle does
// not, because an open requests nothing. After it, for each waiter one of these holds: a fetch brings
// its first missing byte soon, all connections are busy (crowded), or retryAt is still to come.
func (s *TempFileStore) planLocked() {
	s.plan.crowded = false
	if s.ended || s.plan.asking {
		return
	}
	if wait := time.Until(s.plan.retryAt); wait > 0 {
		s.planAgainLocked(&s.plan.retry, wait)
		return
	}
	if wait := time.Until(s.plan.full); wait > 0 {
		s.planAgainLocked(&s.plan.later, wait)
	}
	if s.plan.inOrder && !s.evicts.Load() {
		s.planInOrderLocked()
		return
	}
	for rest := true; rest; {
		for w := s.nextInTurnLocked(); w != nil; w = s.nextInTurnLocked() {
			if !s.makeRoomLocked() {
				s.plan.crowded = true
				return
			}
			s.startForWaiterLocked(s.present.firstMissing(w.r.off), w.r.end)
		}
		s.takeTurnsLocked()
		rest = s.wantsRestLocked(startShare) && len(s.plan.fetches) < s.restLimitLocked() && s.startRestLocked()
	}
}

// planInOrderLocked is planLocked for an origin without byte ranges: one fetch
// brings the file from its start, whatever readers want first.
func (s *TempFileStore) planInOrderLocked() {
	if s.waiters.len() > 0 {
		s.plan.reach = s.plan.fits
	}
	if len(s.plan.fetches) == 0 && (s.waiters.len() > 0 || s.wantsRestLocked(startShare)) {
		s.startLocked(byteRange{s.present.firstMissing(0), s.plan.fits}, true)
	}
}

// nextInTurnLocked returns the waiter that gets the next fetch, nil if fetches bring the first
// missing byte of each soon: now the newest, now the longest-waiting. Where the origin is silent
// about some ranges, neither those who wait for these nor the others wait for ever.
func (s *TempFileStore) nextInTurnLocked() (next *waiter) {
	beginnings := rangeSet{[]byteRange{{0, math.MaxInt64}}} // of reads whose bytes come later
	for _, f := range s.plan.fetches {
		beginnings.remove(s.beginningsLocked(f, s.soonEndLocked(f)))
	}
	for _, r := range beginnings.ranges {
		w, newest := s.waiters.between(r)
		if s.plan.newest {
			w = newest
		}
		if w != nil && (next == nil || w.id > next.id == s.plan.newest) {
			next = w
		}
	}
	return next
}

// soonLocked reports whether a running fetch brings the byte at off sooner than a new one would.
func (s *TempFileStore) soonLocked(off int64) bool {
	return slices.ContainsFunc(s.plan.fetches, func(f *fetch) bool { return f.pos <= off && off < s.soonEndLocked(f) })
}

// soonEndLocked returns the end of what f brings sooner than a new fetch would: soonBytes ahead of it, or what
// it brings in two latencies of the origin, one for the new request, and one for the load that another request
// puts on the origin. An origin without byte ranges would begin again at the first byte.
func (s *TempFileStore) soonEndLocked(f *fetch) int64 {
	if s.plan.inOrder {
		return f.end
	}
	ahead := int64(float64(f.rate(time.Now())) * 2 * s.plan.latency.Seconds())
	return f.pos + min(f.end-f.pos, max(soonBytes, ahead)+1)
}

// makeRoomLocked reports whether another fetch may start. If all connections are busy, it stops one fetch that nobody
// waits for, else a silent one; the connection is free when that fetch has ended. It spares a fetch for a reader until
// idleAfter after the last wait for it: the reader may be between two reads. The plan then looks again.
func (s *TempFileStore) makeRoomLocked() bool {
	p := &s.plan
	if len(p.fetches) < s.connections {
		return true
	}
	if slices.ContainsFunc(p.fetches, func(f *fetch) bool { return f.ending }) {
		return false
	}
	for _, f := range p.fetches {
		if (f.preemptible || time.Since(f.wanted) > idleAfter) && !s.awaitedLocked(f) {
			f.stop(errPreempted)
			return false
		}
	}
	s.endSilentLocked()
	s.planAgainLocked(&p.later, idleAfter+1)
	return false
}

// endSilentLocked stops the fetch that has been silent for longest, if that is its turn or more. A turn
// is longer than the origin's latency, and doubles for a range about which the origin is silent again.
// The oldest request goes on: an origin that is slow with every answer gives one then.
func (s *TempFileStore) endSilentLocked() {
	p, now := &s.plan, time.Now()
	var silent *fetch
	for i, f := range p.fetches {
		turn := max(idleAfter<<min(p.silent[f.first], 6), 2*p.latency)
		quiet := now.Sub(f.lastSign()) > turn || f.drips(now)
		if quiet && (i > 0 || !f.answered.IsZero() || len(p.fetches) == 1) &&
			(silent == nil || f.lastSign().Before(silent.lastSign())) {
			silent = f
		}
	}
	if silent != nil {
		if p.silent == nil || len(p.silent) > silentKept {
			p.silent = make(map[int64]int)
		}
		p.silent[silent.first]++
		p.newest = !p.newest
		silent.stop(errPreempted)
	}
}

// drips reports whether f brings so little that a reader may as well get nothing.
func (f *fetch) drips(now time.Time) bool {
	took := now.Sub(f.answered)
	return !f.answered.IsZero() && took > turnTime && perSecond(f.pos-f.first, took) < dripBytes
}

// takeTurnsLocked stops a fetch whose place at the host another one has needed for
// turnTime, for a reader; a paused one sooner.
func (s *TempFileStore) takeTurnsLocked() {
	now := time.Now()
	for _, f := range s.plan.fetches {
		if !f.requested.IsZero() || f.ending || !s.awaitedLocked(f) {
			continue
		}
		for _, other := range s.plan.fetches {
			turn := turnTime
			if other.paused {
				turn = lookInterval
			}
			if !other.requested.IsZero() && !other.ending && now.Sub(f.started) > turn && now.Sub(other.requested) > turn {
				other.stop(errPreempted)
				return
			}
		}
		s.planAgainLocked(&s.plan.later, idleAfter+1)
	}
}

// awaitedLocked reports whether f brings some waiter's next byte soon.
func (s *TempFileStore) awaitedLocked(f *fetch) bool {
	return s.demandLocked(f, f.pos+min(f.end-f.pos, soonBytes)).awaited
}

// startForWaiterLocked starts a fetch at off for a reader that needs [off, need). While readers go
// on from the start of the file, it requests the head, then the beginning, then all that is left. A
// reader that jumps gets a chunk, and then the rest is wanted, unless the jump is to the end.
func (s *TempFileStore) startForWaiterLocked(off, need int64) {
	if s.evicts.Load() {
		s.startLocked(byteRange{off, off + min(max(s.streamBytesLocked(off), need-off), s.plan.fits-off)}, true)
		return
	}
	if first := s.present.firstMissing(0); (off == first || off < headBytes) && !s.plan.jumped {
		off, end := first, s.plan.fits // all of the head, wherever in it they begin
		for _, part := range []int64{beginningBytes, headBytes} {
			if off < part && max(need, part) < s.plan.fits-part {
				end = max(need, part)
			}
		}
		s.plan.reach = max(s.plan.reach, end)
		s.startLocked(byteRange{off, s.plan.reach}, true)
		s.planAgainLocked(&s.plan.later, idleAfter+1) // it may be late
		return
	}
	if off < s.plan.fits-endBytes {
		s.plan.jumped, s.plan.reach = true, s.plan.fits
	}
	size := max(s.jumpBytesLocked(off, need), need-off)
	s.startLocked(byteRange{off, off + min(size, s.plan.fits-off)}, false)
}

// jumpBytesLocked returns how many bytes to request at off, for a reader of [off, need).
// While jumps do not go on, each requests half as much as the one before, down to
// startShare times what the reader needs: random reads bring little that nobody wants.
func (s *TempFileStore) jumpBytesLocked(off, need int64) int64 {
	p := &s.plan
	if slices.ContainsFunc(p.chunks, func(c chunk) bool { return c.end == off }) {
		p.jump = min(2*p.jump, firstChunkBytes)
		return s.nextChunkLocked(off)
	}
	size := max(cmp.Or(p.jump, firstChunkBytes), startShare*(need-off))
	p.jump = max(size/2, minJumpBytes)
	if p.jump < firstChunkBytes/2 {
		return size
	}
	return max(size, s.nextChunkLocked(off))
}

// nextChunkLocked returns how many bytes to request at off, within bounds: twice the chunk that ended there,
// else what arrives in two round trips, so that the path is not idle for long between two requests.
func (s *TempFileStore) nextChunkLocked(off int64) int64 {
	for _, c := range s.plan.chunks {
		if c.end == off {
			return min(max(2*c.size, firstChunkBytes), maxChunkBytes)
		}
	}
	twoRoundTrips := int64(2 * s.plan.latency.Seconds() * float64(s.plan.rate))
	return min(max(firstChunkBytes, twoRoundTrips), 4*firstChunkBytes)
}

// startLocked starts a fetch of r, shortened to where present bytes or another fetch begin, unless nothing is left of
// r. A fetch that has r.off ahead of it then ends at r.off. REQUIRES: the caller, or the fetch or timer it acts for,
// holds a reference, so that Close waits for the fetch that starts here.
func (s *TempFileStore) startLocked(r byteRange, preemptible bool) (started bool) {
	r.end = s.present.nextPresent(r.off, min(r.end, s.plan.fits))
	if r.empty() { // a fetch that was stopped brought its last piece there
		return false
	}
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
	return true
}

// finishedLocked removes f, which ended with err, then chooses: nothing, a retry,
// or the end of the store. It returns the error that it made of err.
func (s *TempFileStore) finishedLocked(f *fetch, err error) error {
	p := &s.plan
	p.fetches = slices.DeleteFunc(p.fetches, func(g *fetch) bool { return g == f })
	switch {
	case err == nil && s.isShortLocked(f):
		err = errShortPart
		s.failedLocked(f, err)
	case err == nil:
		if took := f.moved.Sub(f.answered); took > 0 {
			p.rate = int64(float64(f.pos-f.first) / took.Seconds())
		}
		p.chunks = append(p.chunks, chunk{end: f.pos, size: f.pos - f.first})
		p.chunks = p.chunks[max(0, len(p.chunks)-chunksKept):]
	case f.ending || s.ended || isStop(err): // no failure
	default:
		s.failedLocked(f, err)
	}
	s.planLocked()
	return err
}

// isShortLocked reports whether the origin answers again and again with a tiny part of what was requested.
func (s *TempFileStore) isShortLocked(f *fetch) bool {
	if f.pos >= f.end || f.pos-f.first >= shortBytes {
		s.plan.shorts = 0
		return false
	}
	s.plan.shorts++
	return s.plan.shorts > shortsFree
}

// failedLocked counts f's failure, and either sets retryAt or ends the store.
func (s *TempFileStore) failedLocked(f *fetch, err error) {
	p := &s.plan
	retry, after := retryAdvice(err)
	if errors.Is(err, errCrowded) { // about the number of requests, not about the file
		p.company.refused()
		p.lastErr = err
		p.laterLocked(max(after, backoff(1)))
		return
	}
	if errors.Is(err, syscall.EFBIG) {
		p.fits, p.fitsErr = min(p.fits, f.pos), err
		p.reach = min(p.reach, p.fits)
		s.publishLocked(byteRange{}) // it may be complete
		s.auditLocked()              // readers beyond have their answer
		return
	}
	if diskFull(err) { // others may go on, and this one when there is room
		p.lastErr = err
		for _, w := range slices.Collect(s.waiters.all()) {
			w.err = err
			s.answerLocked(w)
		}
		p.laterLocked(idleAfter)
		return
	}
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
	if redirectedRefusal(err) && f.requested.After(p.refused) {
		// Requests that were in flight together count as one attempt.
		p.refusals++
		p.refused = time.Now()
	}
	if !retry || p.refusals >= refusalsMax {
		p.ends++
		s.endLocked(err)
		p.stopFetches()
		return
	}
	if errors.As(err, new(statusError)) {
		p.company.refused()
	}
	p.retries++
	s.total.retries.Add(1)
	p.laterLocked(max(after, backoff(p.failures)))
}

// laterLocked lets no request begin before wait is over. A longer wait that another request was told still holds.
func (p *fetchPlan) laterLocked(wait time.Duration) {
	if at := time.Now().Add(wait); at.After(p.retryAt) {
		p.retryAt = at
	}
	for _, f := range p.fetches {
		if f.requested.IsZero() && !f.ending {
			f.stop(errPreempted)
		}
	}
}

func (p *fetchPlan) stopFetches() {
	for _, f := range p.fetches {
		f.stop(errGivenUp)
	}
}

// backoff returns the wait before the n-th retry in a row, with full jitter.
func backoff(n int) time.Duration { return rand.N(min(backoffMax, backoffBase<<min(n, 10))) }

// planAgainLocked plans again after wait, unless that timer runs already.
func (s *TempFileStore) planAgainLocked(timer **time.Timer, wait time.Duration) {
	if *timer == nil {
		*timer = time.AfterFunc(wait, func() { s.onTimer(func() { *timer = nil }) })
	}
}

// onTimer calls due, then plans again. It does nothing in a closed store.
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
	for _, timer := range []**time.Timer{&p.retry, &p.linger, &p.later} {
		if *timer != nil {
			(*timer).Stop()
			*timer = nil
		}
	}
}
