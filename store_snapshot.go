// store_snapshot.go shows a store to everyone above it. It copies under the lock
// and changes nothing, except that Audit wakes readers that sleep with their bytes
// on disk.

package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// fileStatus is a store at one moment, and a line of DIR/.fsmount/status.
type fileStatus struct {
	File      string // its name in the mounted directory; the store leaves it empty
	State     string // idle, downloading, paused, retrying, complete or failed
	Present   int64  // bytes
	Size      int64  // bytes
	Rate      int64  // bytes a second, of all fetches
	Fetches   int
	Waiters   int
	Handles   int
	Retries   int64 // in all
	Received  int64 // bytes in all
	Store     uint64
	Version   string  // the strong ETag, "" where the origin sends none
	RetryIn   float64 // seconds
	LastError string  // of the latest of the failures in a row
	Error     string  // that ended the store
}

// Snapshot copies how the store stands.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Snapshot() fileStatus {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.plan
	v := fileStatus{
		State: s.stateLocked(), Present: s.present.total(), Size: s.obj.Size,
		Fetches: len(p.fetches), Waiters: len(s.waiters), Handles: p.handles,
		Retries: p.retries, Received: p.received, Store: s.debugID, Version: s.obj.ETag,
		RetryIn: max(0, p.retryAt.Sub(now)).Seconds(),
	}
	if s.err != nil {
		v.Error = s.err.Error()
	}
	if p.lastErr != nil {
		v.LastError = p.lastErr.Error()
	}
	for _, f := range p.fetches {
		if now.Sub(f.lastSign()) < idleAfter { // a silent fetch brings nothing, whatever it brought before
			v.Rate += f.rate(now)
		}
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
		return "the disk or the CPU: its bytes have arrived"
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

// explain says how far f has come, and how long it has been silent.
func (f *fetch) explain(now time.Time) string {
	silent := roundDuration(now.Sub(f.lastSign()))
	switch {
	case f.requested.IsZero():
		return fmt.Sprintf("a fetch at offset %d that waits for a slot among all requests", f.pos)
	case f.opened.IsZero():
		return fmt.Sprintf("a fetch at offset %d, requested %v ago, not answered", f.pos, silent)
	}
	return fmt.Sprintf("a fetch at offset %d, silent for %v", f.pos, silent)
}

// lastSign is when f last made progress.
func (f *fetch) lastSign() time.Time {
	return slices.MaxFunc([]time.Time{f.started, f.requested, f.opened, f.moved}, time.Time.Compare)
}

// Audit looks for waiters that have their answer and still sleep, which is a bug
// whatever the cause. It wakes them and returns the ranges they wait for.
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
	slices.SortFunc(lost, func(a, b byteRange) int { return cmp.Compare(a.off, b.off) })
	return lost
}
