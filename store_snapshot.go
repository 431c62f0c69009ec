// store_snapshot.go shows a store to everyone above it. It copies under the lock and changes
// nothing, except that Audit wakes readers that sleep with their bytes on disk.

package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// stalledAfter is how long a download brings nothing before status calls it stalled.
// Many origins need a second for their first byte.
const stalledAfter = 2 * time.Second

// fileStatus is a store at one moment, and a line of DIR/.fsmount/status.
type fileStatus struct {
	File      string  `json:"file"`    // its name in the mounted directory; the store leaves it empty
	State     string  `json:"state"`   // idle, downloading, stalled, retrying, paused, complete, changed or failed
	Present   int64   `json:"present"` // bytes
	Size      int64   `json:"size"`    // bytes
	Rate      int64   `json:"rate"`    // bytes a second, of all fetches
	Fetches   int     `json:"fetches"`
	Waiters   int     `json:"waiters"`
	Handles   int     `json:"handles"`
	Retries   int64   `json:"retries"`  // in all
	Received  int64   `json:"received"` // bytes in all
	Store     uint64  `json:"store"`
	Version   string  `json:"version"`    // the ETag, "" where the origin sends none
	RetryIn   float64 `json:"retry_in"`   // seconds
	LastError string  `json:"last_error"` // of the latest of the failures in a row
	Error     string  `json:"error"`      // that ended the store
	Wanted    bool    `json:"wanted"`     // somebody asked for the whole file
	Silent    float64 `json:"silent"`     // seconds since the last byte, while the store requests bytes
	Streams   bool    `json:"streams"`    // there is no room for all of it: what was read leaves the disk
	NoRoom    bool    `json:"no_room"`    // the rest of it waits until something else leaves the disk
}

// Snapshot copies how the store stands.
func (s *TempFileStore) Snapshot() fileStatus {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.plan
	v := fileStatus{
		State: s.stateLocked(now), Present: s.present.total(), Size: s.obj.Size,
		Fetches: len(p.fetches), Waiters: s.waiters.len(), Handles: p.handles,
		Retries: p.retries, Received: p.received, Store: s.debugID, Version: s.obj.ETag, Wanted: p.all, Streams: s.evicts.Load(),
		RetryIn: max(0, p.retryAt.Sub(now)).Seconds(), Silent: s.silentLocked(now).Seconds(),
	}
	v.NoRoom = !s.runsLocked() && now.Sub(p.full) <= pausePatience // as long as the next attempt waits
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

// ID returns the number of the store in the log.
func (s *TempFileStore) ID() uint64 { return s.debugID }

// stateLocked is one word for how the store stands.
func (s *TempFileStore) stateLocked(now time.Time) string {
	switch {
	case s.ended && s.err == nil:
		return "complete"
	case s.plan.asking, errors.Is(s.err, errChanged):
		return "changed"
	case s.ended:
		return "failed"
	case s.silentLocked(now) >= stalledAfter:
		return "stalled"
	case s.retryingLocked(now):
		return "retrying"
	case s.runsLocked():
		return "downloading"
	case s.present.total() > 0, len(s.plan.fetches) > 0:
		return "paused"
	}
	return "idle"
}

func (s *TempFileStore) runsLocked() bool {
	return slices.ContainsFunc(s.plan.fetches, func(f *fetch) bool { return !f.paused })
}

// retryingLocked reports whether somebody wants the next attempt, which is due later.
func (s *TempFileStore) retryingLocked(now time.Time) bool {
	return s.plan.retryAt.After(now) && (s.waiters.len() > 0 || s.wantsRestLocked(startShare))
}

// silentLocked returns how long the store has requested bytes and received none: the time since the
// last byte, or since the first attempt after it; 0 if it requests nothing.
func (s *TempFileStore) silentLocked(now time.Time) time.Duration {
	p := &s.plan
	if s.ended || !s.runsLocked() && !s.retryingLocked(now) && !p.asking {
		return 0
	}
	if p.progress.After(p.began) {
		return now.Sub(p.progress)
	}
	return now.Sub(p.began)
}

// Explain says what reads wait for. Beside thousands of waiters, it is long until a
// caller gets the lock: one call is for all reads.
func (s *TempFileStore) Explain(reads ...byteRange) (waits []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range reads {
		waits = append(waits, s.explainLocked(r))
	}
	return waits
}

// explainLocked is Explain for a caller with the lock.
func (s *TempFileStore) explainLocked(r byteRange) string {
	now := time.Now()
	missing := s.present.firstMissing(r.off)
	if missing >= r.end {
		return "the disk or the CPU: its bytes have arrived"
	}
	want := byteRange{missing, r.end}
	if s.ended {
		return fmt.Sprintf("nothing: bytes %v will not come (%v)", want, s.err)
	}
	if s.plan.asking {
		return fmt.Sprintf("bytes %v: the origin has another version, and is asked which", want)
	}
	if wait := s.plan.retryAt.Sub(now); wait > 0 {
		return fmt.Sprintf("bytes %v: retry %d in %v, after: %v", want, s.plan.failures, roundDuration(wait), s.plan.lastErr)
	}
	for _, f := range s.plan.fetches {
		if f.pos <= missing && missing < f.end {
			if f.requested.IsZero() && outOfDescriptors(s.plan.lastErr) {
				return fmt.Sprintf("bytes %v: %v", want, s.plan.lastErr)
			}
			return fmt.Sprintf("bytes %v of %s", want, f.explain(now))
		}
	}
	return fmt.Sprintf("bytes %v: no connection free, %d of %d busy", want, len(s.plan.fetches), s.connections)
}

// explain says how far f has come, and how long it has been silent.
func (f *fetch) explain(now time.Time) string {
	silent := roundDuration(now.Sub(f.lastSign()))
	switch {
	case f.paused:
		return fmt.Sprintf("a fetch at offset %d that waits for room on the disk", f.pos)
	case f.renewing:
		return fmt.Sprintf("a fetch at offset %d that has waited %v for --url-command", f.pos, silent)
	case f.requested.IsZero():
		return fmt.Sprintf("a fetch at offset %d that waits for its turn at the host", f.pos)
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
func (s *TempFileStore) Audit() (lost []byteRange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.auditLocked()
}
