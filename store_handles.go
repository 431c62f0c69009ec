// store_handles.go is what open handles mean for a store: while there are some
// the file is completed, a store that failed is tried again by the next one, and
// a file that changed gets a store of its own.

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Open says that a handle of the file was opened. A store that failed is tried
// again: what it has stays.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Open() {
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

// Release says that a handle was closed, and returns how many are left. When the
// last one has been closed for as long as linger, the fetches end, unless
// readers still wait; what was fetched stays.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Release() (handles int) {
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
// BLOCKS until the origin has answered, at most probeTimeout; wakes on the end
// of ctx.
func (s *TempFileStore) Successor(ctx context.Context) (*TempFileStore, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	obj, err := s.origin.Stat(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for the new version of %v: %w", s.origin, err)
	}
	return newTempFileStore(s.origin, obj, s.storeConfig), nil
}
