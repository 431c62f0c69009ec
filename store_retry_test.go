// Deterministic tests of several requests at once: what their failures mean for
// each other, and who gets a request when there are not enough.

package main

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The pause that an origin asked for holds, whatever becomes of another request.
func TestRetryAfterOutlastsOtherFailures(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 10})
		startRead(t.Context(), s, byteRange{32 * mib, 32*mib + 10})
		o.request(t, 0).end(statusError{code: 503, after: 20 * time.Second})
		o.request(t, 1).end(networkError{syscall.ECONNRESET})
		time.Sleep(20*time.Second - 1)
		o.mustBe(t, 2)
		time.Sleep(2 * time.Nanosecond)
		o.mustBe(t, 4)
		o.request(t, 2).send(10)
		o.request(t, 3).send(10)
		rd.mustReturn(t, nil)
	})
}

// And where the later one asks for less, nobody sleeps on after the pause.
func TestLaterFailureDoesNotDelayTheRetry(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		startRead(t.Context(), s, byteRange{32 * mib, 32*mib + 10})
		o.request(t, 0).end(statusError{code: 503, after: 5 * time.Second})
		o.request(t, 1).end(statusError{code: 503, after: 20 * time.Second})
		time.Sleep(20*time.Second - 1)
		o.mustBe(t, 2)
		time.Sleep(2 * time.Nanosecond)
		o.mustBe(t, 4)
	})
}

// No byte can arrive any more once the store has failed: nothing is fetched for
// a file that its readers were told is gone.
func TestFailureEndsTheOtherFetches(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		jump := startRead(t.Context(), s, byteRange{32 * mib, 32*mib + 10})
		o.request(t, 1).end(statusError{code: 404})
		jump.mustReturn(t, statusError{code: 404})
		if n := o.inFlight(); n != 0 {
			t.Errorf("%d requests go on", n)
		}
		s.AddHandle()
		again := startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 2).send(10)
		again.mustReturn(t, nil)
	})
}

// A signed URL that has expired is asked for again, however the network failed
// before that.
func TestExpiredURLAfterOtherFailuresIsAskedForAgain(t *testing.T) {
	inStage(t, 1000, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		for i := range 5 {
			o.request(t, i).end(networkError{syscall.ECONNRESET})
			time.Sleep(backoffMax)
		}
		o.request(t, 5).end(statusError{code: 403, redirected: true})
		rd.mustWait(t)
		time.Sleep(backoffMax)
		o.request(t, 6).send(1000)
		rd.mustReturn(t, nil)
	})
}

// Requests that are refused at the same time are one refusal, not several in a
// row.
func TestExpiredURLOfSeveralRequestsIsAskedForAgain(t *testing.T) {
	inStage(t, 256*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		var readers []*reading
		for i := range int64(4) {
			readers = append(readers, startRead(t.Context(), s, byteRange{i * 64 * mib, i*64*mib + 10}))
		}
		for i := range 4 {
			o.request(t, i).end(statusError{code: 403, redirected: true})
		}
		for _, rd := range readers {
			rd.mustWait(t)
		}
		time.Sleep(backoffMax)
		for i := range 4 {
			o.request(t, 4+i).send(10)
		}
		synctest.Wait()
		for _, rd := range readers {
			rd.mustReturn(t, nil)
		}
	})
}

func TestURLThatIsAlwaysRefusedEndsTheStore(t *testing.T) {
	inStage(t, 1000, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		for i := range refusalsMax {
			rd.mustWait(t)
			o.request(t, i).end(statusError{code: 403, redirected: true})
			time.Sleep(backoffMax)
		}
		rd.mustReturn(t, statusError{code: 403, redirected: true})
	})
}

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
			s.AddHandle()
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
		s.AddHandle()
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
