// Tests of who gets a request when there are not enough: readers of one file
// among themselves, and files among each other.

package main

import (
	"testing"
	"testing/synctest"
	"time"
)

// A request that nobody waits for any more makes way, whether it is silent or
// goes on at a trickle.
func TestAbandonedRequestMakesWay(t *testing.T) {
	for name, trickle := range map[string]int64{"silent": 0, "slow": 1000} {
		t.Run(name, func(t *testing.T) {
			inStage(t, 256*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
				for i := range s.connections {
					off := int64(i+1) * 32 * mib
					rd := startRead(t.Context(), s, byteRange{off, off + 10})
					o.request(t, i).send(10)
					rd.mustReturn(t, nil)
				}
				startRead(t.Context(), s, byteRange{200 * mib, 200*mib + 10})
				for range 5 {
					time.Sleep(idleAfter / 2)
					for _, req := range o.requests {
						if trickle > 0 && req.running() {
							req.send(trickle)
						}
					}
				}
				o.mustBe(t, s.connections+1)
			})
		})
	}
}

// Files that nobody waits for give up their places when all are taken, and go
// on later.
func TestReadersOfOtherFilesComeBeforeTheRest(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		config := testConfig(dir)
		config.slots = make(chan struct{}, 2)
		obj := Object{Size: 1 << 40, Ranges: true}
		o := &stagedOrigin{obj: obj, next: obj, opened: make(chan *stagedRequest, 100)}
		open := func() *TempFileStore {
			s := newTempFileStore(o, obj, config)
			t.Cleanup(func() { s.Close() })
			s.Open()
			return s
		}
		for i := range cap(config.slots) {
			rd := startRead(t.Context(), open(), byteRange{0, 10})
			o.request(t, i).send(10)
			rd.mustReturn(t, nil)
		}
		late := startRead(t.Context(), open(), byteRange{0, 10})
		o.mustBe(t, 2)
		time.Sleep(idleAfter + 1)
		o.request(t, 0).send(10)
		o.request(t, 2).send(10)
		late.mustReturn(t, nil)
	})
}

// What failed before a reopening is no failure after it.
func TestStaleFailureDoesNotEndAReopenedStore(t *testing.T) {
	inStage(t, 256*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		startRead(t.Context(), s, byteRange{32 * mib, 32*mib + 10})
		o.mustBe(t, 2)
		s.mu.Lock()
		first, second := s.plan.fetches[0], s.plan.fetches[1]
		s.finishedLocked(first, statusError{code: 404})
		s.mu.Unlock()
		s.Open()
		s.mu.Lock()
		s.finishedLocked(second, statusError{code: 404})
		ended := s.ended
		s.mu.Unlock()
		if ended {
			t.Error("a fetch of before has ended the store")
		}
	})
}

// An origin may send less than was asked for (RFC 9110 section 15.3.7): the
// next request goes on from there, at once.
func TestShorterAnswerIsContinued(t *testing.T) {
	inStage(t, 1000, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		for i := range 10 {
			req := o.request(t, i)
			req.left.end = req.left.off + 100
			req.send(100)
		}
		rd.mustReturn(t, nil)
		if s.plan.retries != 0 {
			t.Errorf("%d retries, but nothing failed", s.plan.retries)
		}
	})
}

// A size that a server makes up must not overflow into requests without end.
func TestLargestSizeDoesNotOverflow(t *testing.T) {
	inStage(t, 1<<63-1, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 0).send(10)
		rd.mustReturn(t, nil)
		o.request(t, 0).end(networkError{errStalled})
		time.Sleep(backoffMax)
		o.mustBe(t, 2)
		if r := o.request(t, 1).asked; r.off != 10 || r.end <= r.off {
			t.Errorf("went on with %v", r)
		}
	})
}
