// store_snapshot.go shows a store to everyone above it. It copies under the lock
// and changes nothing, except that Audit wakes readers that sleep with their bytes
// on disk.

package main

import (
	"fmt"
	"slices"
	"time"
)

// storeSnapshot is a store at one moment.
type storeSnapshot struct {
	ID        uint64
	Size      int64
	Present   int64 // bytes
	State     string
	Error     string // what ended it
	LastError string // of the failures in a row
	Failures  int    // in a row
	RetryIn   time.Duration
	Retries   int64 // in all
	Received  int64 // bytes in all
	Waiters   int
	Handles   int
	Version   string
	Fetches   []fetchSnapshot
}

// fetchSnapshot is a request in flight.
type fetchSnapshot struct {
	Pos, End int64
	Rate     int64 // bytes a second, 0 if not known yet
	Silent   time.Duration
}

// Rate is what arrives, in bytes a second.
func (v storeSnapshot) Rate() (sum int64) {
	for _, f := range v.Fetches {
		sum += f.Rate
	}
	return sum
}

// Snapshot copies how the store stands.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Snapshot() storeSnapshot {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.plan
	v := storeSnapshot{
		ID: s.debugID, Size: s.obj.Size, Present: s.present.total(), State: s.stateLocked(),
		Failures: p.failures, RetryIn: max(0, p.retryAt.Sub(now)), Retries: p.retries, Received: p.received,
		Waiters: len(s.waiters), Handles: p.handles, Version: s.obj.ETag,
	}
	if s.err != nil {
		v.Error = s.err.Error()
	}
	if p.lastErr != nil {
		v.LastError = p.lastErr.Error()
	}
	for _, f := range p.fetches {
		v.Fetches = append(v.Fetches, f.snapshot(now))
	}
	return v
}

// snapshot is f at now. A fetch that is silent brings nothing, whatever it brought
// before.
func (f *fetch) snapshot(now time.Time) fetchSnapshot {
	v := fetchSnapshot{Pos: f.pos, End: f.end, Silent: now.Sub(f.lastSign())}
	if v.Silent < idleAfter {
		v.Rate = f.rate(now)
	}
	return v
}

// stateLocked is one word for how the store stands.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) stateLocked() string {
	switch {
	case s.ended && s.err == nil:
		return "complete"
	case s.ended:
		return "failed"
	case time.Until(s.plan.retryAt) > 0 && len(s.waiters) > 0:
		return "retrying"
	case len(s.plan.fetches) > 0:
		return "downloading"
	case s.present.total() > 0:
		return "paused"
	}
	return "idle"
}

// Explain says what a read of r waits for.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Explain(r byteRange) string {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	missing := s.present.firstMissing(r.off)
	if missing >= r.end {
		return "the disk, or its turn: its bytes are here"
	}
	want := byteRange{missing, r.end}
	if s.ended {
		return fmt.Sprintf("nothing: bytes %v will not come (%v)", want, s.err)
	}
	if wait := s.plan.retryAt.Sub(now); wait > 0 {
		return fmt.Sprintf("bytes %v: retry %d in %v, after: %v", want, s.plan.failures, roundDuration(wait), s.plan.lastErr)
	}
	for _, f := range s.plan.fetches {
		if f.pos <= missing && missing < f.end {
			return fmt.Sprintf("bytes %v of %s", want, f.explain(now))
		}
	}
	return fmt.Sprintf("bytes %v: no connection free, %d of %d busy", want, len(s.plan.fetches), s.connections)
}

func (f *fetch) explain(now time.Time) string {
	silent := roundDuration(now.Sub(f.lastSign()))
	switch {
	case f.requested.IsZero():
		return fmt.Sprintf("a fetch at offset %d that waits for a place among all requests", f.pos)
	case f.opened.IsZero():
		return fmt.Sprintf("a fetch at offset %d, requested %v ago, not answered", f.pos, silent)
	}
	return fmt.Sprintf("a fetch at offset %d, silent for %v", f.pos, silent)
}

// lastSign is when f last moved on.
func (f *fetch) lastSign() time.Time {
	switch {
	case !f.moved.IsZero():
		return f.moved
	case !f.opened.IsZero():
		return f.opened
	case !f.requested.IsZero():
		return f.requested
	}
	return f.started
}

// Audit looks for waiters that have their answer and still sleep, which is a
// bug whatever the cause: it wakes them, and returns the ranges they wait for.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Audit() (lost []byteRange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.waiters {
		if s.answeredLocked(w.r) {
			lost = append(lost, w.r)
		}
	}
	if len(lost) > 0 {
		s.notifyLocked()
	}
	slices.SortFunc(lost, func(a, b byteRange) int { return int(a.off - b.off) })
	return lost
}
