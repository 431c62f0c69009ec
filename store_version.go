// store_version.go is about the version that a store serves: what the store does when
// its origin has another one, and how another store takes its place. It never mixes
// two versions: a store has one, and gets a successor only before anybody was given
// a byte, or for the same version.

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// settleChange ends a store whose origin has another version. It asks the origin which,
// for as long as an answer may come, and tells onChange. Readers learn of the end
// before that if nothing can take the place of this version, else after it.
//
// BLOCKS until the origin has answered; wakes on that and on Close.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) settleChange(cause error) {
	stays := s.fate.Load() == fateDelivered && !s.follow
	if stays {
		s.end(cause)
	}
	now, err := s.AskOrigin(s.ctx)
	for n := 1; err != nil && s.ctx.Err() == nil; n++ {
		retry, after := retryAdvice(err)
		if !retry {
			break
		}
		select {
		case <-time.After(max(after, backoff(n))):
		case <-s.ctx.Done():
		}
		now, err = s.AskOrigin(s.ctx)
	}
	if change := s.obj.changedTo(now); err == nil && change != nil {
		cause = change
	}
	s.mu.Lock()
	s.plan.settling = false
	if errors.Is(s.err, errChanged) {
		s.err = cause // says more
	}
	s.mu.Unlock()
	if s.ctx.Err() == nil {
		s.onChange(s, now, err)
	}
	if !stays { // else it may be tried again by now
		s.end(cause)
	}
}

// AskOrigin returns the version that the origin has now.
//
// BLOCKS until the origin has answered, at most statTimeout; wakes on the end of ctx.
func (s *TempFileStore) AskOrigin(ctx context.Context) (Object, error) {
	ctx, cancel := context.WithTimeout(ctx, statTimeout)
	defer cancel()
	now, err := s.origin.Stat(ctx)
	if err == context.DeadlineExceeded {
		err = networkError{err}
	}
	if err != nil {
		err = fmt.Errorf("ask %v for its version: %w", s.origin, err)
	}
	return now, err
}

// OnChange makes the store call onChange as its field says.
//
// REQUIRES: no read has begun
func (s *TempFileStore) OnChange(onChange func(s *TempFileStore, now Object, err error)) {
	s.onChange = onChange
}

// NewVersion returns an empty store for the version obj of the same remote file.
func (s *TempFileStore) NewVersion(obj Object) *TempFileStore {
	next := newTempFileStore(s.origin, obj, s.storeConfig)
	next.onChange = s.onChange
	return next
}

// Replace puts next in the place of s, and reports true, unless a byte of s was
// delivered. The reads of s end with errReplaced, and next has the handles.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Replace(next *TempFileStore) bool {
	if !s.fate.CompareAndSwap(nil, &storeFate{next}) {
		return false
	}
	s.mu.Lock()
	handles, all := s.plan.handles, s.plan.all
	s.plan.moved = true
	s.endLocked(errReplaced)
	s.mu.Unlock()
	next.addHandles(handles)
	if all {
		next.WantRest()
	}
	return true
}

// Forget puts an empty store of the same version in the place of s and returns it, so
// that closing s gives its space back. It returns nil if a program has the file open.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) Forget() (next *TempFileStore) {
	next = s.NewVersion(s.obj)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan.handles > 0 || s.plan.moved {
		return nil
	}
	next.fate.Store(s.fate.Load()) // without a handle nobody reads s, so nobody decides it now
	s.fate.Store(&storeFate{next})
	s.plan.moved = true
	s.endLocked(errReplaced)
	return next
}

// Replacement returns the store that took the place of s, nil if none did.
func (s *TempFileStore) Replacement() *TempFileStore {
	if fate := s.fate.Load(); fate != nil {
		return fate.next
	}
	return nil
}
