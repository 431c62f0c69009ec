// store_version.go is about the version that a store serves: what the store does when its origin
// has another one, and how another store takes its place. It never mixes two versions: a store has
// one, and gets a successor only before anybody was given a byte, or for the same version.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// changesMax is how often in a row an origin is asked that says that the file changed, and
// how often a store goes on when it says first that, then that it did not.
const changesMax = 4

// settleChange ends a store whose origin has another version. It asks the origin which, for as long as an
// answer may come, and tells OnChange. If the origin has this version after all, the store goes on. Readers
// learn of the end before OnChange if nothing can take the place of this version, else after it.
// BLOCKS until the origin has answered; wakes on that and on Close.
func (s *TempFileStore) settleChange(cause error) {
	stays := s.fate.Load() == fateDelivered && !s.follow
	now, change, err := s.ask(s.ctx)
	for n := 1; n < changesMax && change != nil; n++ { // other servers may have this version
		now, change, err = s.ask(s.ctx)
	}
	if err == nil && change == nil && s.obj.named() && s.goOn(cause) {
		return
	}
	if stays {
		s.end(cause)
	}
	for n := 1; err != nil && s.ctx.Err() == nil; n++ {
		retry, after := retryAdvice(err)
		if !retry {
			break
		}
		_ = sleepUntil(s.ctx, time.Now().Add(max(after, backoff(n)))) // the loop looks at ctx
		now, change, err = s.ask(s.ctx)
	}
	if err == nil && change == nil && s.obj.named() && !stays && s.goOn(cause) {
		return
	}
	if change != nil {
		cause = change
	}
	s.mu.Lock()
	s.plan.settling = false
	s.plan.ends++
	if errors.Is(s.err, errChanged) {
		s.err = cause // says more
	}
	s.mu.Unlock()
	if s.ctx.Err() == nil && (change != nil || err != nil) {
		s.OnChange(s, now, err)
	}
	if !stays { // else it may be tried again by now
		s.end(cause)
	}
}

// learnVersion asks the origin of a store that knows its size alone for the version, and
// puts a store of that in its place. A failure is one to fetch: the plan asks again.
// BLOCKS until the origin has answered, at most statTimeout; wakes on the end of ctx.
func (s *TempFileStore) learnVersion(ctx context.Context) error {
	now, change, err := s.ask(ctx)
	page := errors.Is(err, errUnproven) // the file may be one
	if err != nil && !page || now.Size != s.obj.Size {
		return cmp.Or(err, change)
	}
	next := s.NewVersion(now)
	next.adoptEntry()
	s.trace.note(next.debugID, "its origin has %s", strings.Join(append([]string{now.String()}, now.weaknesses()...), "; "))
	s.Replace(next) // unless another fetch was faster
	return errReplaced
}

// goOn lets the store fetch again after cause, and reports false if it has done so
// changesMax times without a byte between.
func (s *TempFileStore) goOn(cause error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.plan
	if p.unchanged++; p.unchanged > changesMax {
		return false
	}
	p.asking, p.settling, p.lastErr = false, false, cause
	p.retryAt = time.Now().Add(backoff(p.unchanged))
	s.planLocked()
	return true
}

// AskOrigin returns the version that the origin has now, and how it differs from the store's: change is an errChanged,
// or nil for the same version. BLOCKS until the origin has answered, at most statTimeout; wakes on the end of ctx.
func (s *TempFileStore) AskOrigin(ctx context.Context) (now Object, change, err error) {
	now, change, err = s.ask(ctx)
	if !errors.As(change, new(doubtError)) {
		return now, change, err
	}
	if s.obj.Size == 0 {
		return now, nil, nil
	}
	// If a byte is requested, the origin compares those before it.
	ctx, cancel := context.WithTimeout(ctx, statTimeout)
	defer cancel()
	at := min(s.downloaded.Load(), s.obj.Size-1)
	body, err := s.origin.Open(ctx, request{obj: s.obj, r: byteRange{at, at + 1}, known: s.known})
	if err == nil {
		body.Close()
	}
	if errors.Is(err, errChanged) {
		return now, err, nil
	}
	return now, nil, err
}

// ask is AskOrigin, but for a doubt, which is a change.
func (s *TempFileStore) ask(ctx context.Context) (now Object, change, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, statTimeout, networkError{unansweredError{within: statTimeout}})
	defer cancel()
	if now, err = s.origin.Stat(ctx); err == nil {
		change = s.obj.changedTo(now)
	}
	if errors.Is(change, errUnproven) {
		change, err = nil, change
	}
	if err != nil {
		err = fmt.Errorf("ask %v for its version: %w", s.origin, err)
	}
	return now, change, err
}

// NewVersion returns an empty store for the version obj of the same remote file.
func (s *TempFileStore) NewVersion(obj Object) *TempFileStore {
	next := newTempFileStore(s.origin, obj, s.storeConfig)
	next.OnChange, next.entry = s.OnChange, s.entry
	return next
}

// Replace puts next in the place of s, and reports true, unless a byte of s was delivered. The reads of s end with
// errReplaced, and next has the handles. The cache forgets s in any case: the origin has another version by now.
// BLOCKS as LeaveCache does.
func (s *TempFileStore) Replace(next *TempFileStore) bool {
	_ = s.LeaveCache()
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

// Forget puts an empty store of the same version in the place of s and returns it, so that closing s gives its
// space back. It returns nil if a program has the file open. The error says that the cache keeps its copy.
// BLOCKS as LeaveCache does.
func (s *TempFileStore) Forget() (next *TempFileStore, err error) {
	if next = s.abandon(); next != nil {
		err = s.LeaveCache()
	}
	return next, err
}

// abandon is Forget without the cache.
func (s *TempFileStore) abandon() (next *TempFileStore) {
	next = s.NewVersion(s.obj)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan.handles > 0 || s.plan.moved {
		return nil
	}
	next.fate.Store(s.fate.Load()) // without a handle nobody reads s, so nobody decides it now
	next.plan.retryAt = s.plan.retryAt
	next.stale.Store(true)
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
