// Deterministic tests of several requests at once: how the failure of one affects
// the others, and which reader gets a request when there are too few.

package main

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The longest pause that the origin asked for holds, whatever happens to another
// request. The store then retries at once.
func TestLongestRetryAfterHolds(t *testing.T) {
	longest := statusError{code: 503, after: 20 * time.Second}
	for name, failures := range map[string][2]error{
		"then a broken connection": {longest, networkError{syscall.ECONNRESET}},
		"after a shorter one":      {statusError{code: 503, after: 5 * time.Second}, longest},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
				rd := startRead(t.Context(), s, byteRange{0, 10})
				startRead(t.Context(), s, byteRange{32 * mib, 32*mib + 10})
				o.request(t, 0).end(failures[0])
				o.request(t, 1).end(failures[1])
				time.Sleep(20*time.Second - 1)
				o.mustHave(t, 2)
				time.Sleep(2 * time.Nanosecond)
				o.mustHave(t, 4)
				o.request(t, 2).send(10)
				o.request(t, 3).send(10)
				rd.mustReturn(t, nil)
			})
		})
	}
}

// When the store has failed, its other fetches end: no reader can get their bytes
// any more.
func TestFailureEndsTheOtherFetches(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		jump := startRead(t.Context(), s, byteRange{32 * mib, 32*mib + 10})
		o.request(t, 1).end(statusError{code: 404})
		jump.mustReturn(t, statusError{code: 404})
		o.mustHaveInFlight(t, 0)
		s.AddHandle()
		again := startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 2).send(10)
		again.mustReturn(t, nil)
	})
}

// The store retries a refusal behind a redirect (an expired signed URL), however
// often the network failed before.
func TestExpiredURLAfterOtherFailuresIsRetried(t *testing.T) {
	inBubble(t, ranged(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
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

// Refusals of requests that were in flight together count as one refusal.
func TestExpiredURLOfSeveralRequestsIsRetried(t *testing.T) {
	inBubble(t, ranged(256*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		readers := make([]*reading, 4)
		for i := range readers {
			off := int64(i) * 64 * mib
			readers[i] = startRead(t.Context(), s, byteRange{off, off + 10})
		}
		for i := range readers {
			o.request(t, i).end(statusError{code: 403, redirected: true})
		}
		for _, rd := range readers {
			rd.mustWait(t)
		}
		time.Sleep(backoffMax)
		for i := range readers {
			o.request(t, 4+i).send(10)
		}
		for _, rd := range readers {
			rd.mustReturn(t, nil)
		}
	})
}

func TestURLThatIsAlwaysRefusedEndsTheStore(t *testing.T) {
	inBubble(t, ranged(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		for i := range refusalsMax {
			rd.mustWait(t)
			o.request(t, i).end(statusError{code: 403, redirected: true})
			time.Sleep(backoffMax)
		}
		rd.mustReturn(t, statusError{code: 403, redirected: true})
	})
}

// A request that nobody waits for any more makes way, whether it is silent or slow.
func TestAbandonedRequestMakesWay(t *testing.T) {
	for name, piece := range map[string]int64{"silent": 0, "slow": 1000} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, ranged(256*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
				for i := range s.connections {
					off := int64(i+1) * 32 * mib
					rd := startRead(t.Context(), s, byteRange{off, off + 10})
					o.request(t, i).send(10)
					rd.mustReturn(t, nil)
				}
				startRead(t.Context(), s, byteRange{200 * mib, 200*mib + 10})
				for range 5 {
					time.Sleep(idleAfter / 2)
					synctest.Wait()
					for _, req := range o.all() {
						if piece > 0 && req.running() {
							req.send(piece)
						}
					}
				}
				o.mustHave(t, s.connections+1)
			})
		})
	}
}

// The failure of a fetch from before the store was opened again does not count.
func TestStaleFailureDoesNotEndAReopenedStore(t *testing.T) {
	inBubble(t, ranged(256*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		startRead(t.Context(), s, byteRange{32 * mib, 32*mib + 10})
		o.mustHave(t, 2)
		s.mu.Lock()
		first, second := s.plan.fetches[0], s.plan.fetches[1]
		s.finishedLocked(first, statusError{code: 404})
		s.mu.Unlock()
		s.AddHandle()
		startRead(t.Context(), s, byteRange{0, 10})
		s.mu.Lock()
		s.finishedLocked(second, statusError{code: 404})
		ended := s.ended
		s.mu.Unlock()
		if ended {
			t.Error("an old fetch ended the store")
		}
	})
}

// An origin may send less than the store requests (RFC 9110 section 15.3.7). The
// next request goes on from there at once.
func TestShorterAnswerIsContinued(t *testing.T) {
	inBubble(t, ranged(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		for i := range 10 {
			req := o.request(t, i)
			req.left.end = req.left.off + 100
			req.send(100)
		}
		rd.mustReturn(t, nil)
		if s.plan.retries != 0 {
			t.Errorf("retries: got %d, want 0", s.plan.retries)
		}
	})
}

// The largest size that a server can claim must not overflow in the plan.
func TestLargestSizeDoesNotOverflow(t *testing.T) {
	inBubble(t, ranged(1<<63-1), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 0).send(10)
		rd.mustReturn(t, nil)
		o.request(t, 0).end(networkError{errStalled})
		time.Sleep(backoffMax)
		startRead(t.Context(), s, byteRange{10, 20})
		o.mustAsk(t, 1, byteRange{10, 10 + headBytes/2})
		startRead(t.Context(), s, byteRange{1<<63 - 10, 1<<63 - 1})
		o.mustAsk(t, 2, byteRange{1<<63 - 10, 1<<63 - 1})
	})
}

// A file is stalled from stalledAfter on without any byte, whatever its attempts do
// meanwhile. The time counts from the last byte, or from the first attempt after it.
func TestStalledSinceTheLastByte(t *testing.T) {
	inBubble(t, ranged(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		mustBe := func(state string, silent time.Duration) {
			t.Helper()
			synctest.Wait()
			if got := s.Snapshot(); got.State != state || got.Silent != silent.Seconds() {
				t.Errorf("got %s, silent for %.1fs, want %s and %v", got.State, got.Silent, state, silent)
			}
		}
		mustBe("idle", 0)
		rd := startRead(t.Context(), s, byteRange{0, 20})
		time.Sleep(time.Second)
		mustBe("downloading", time.Second)
		time.Sleep(time.Second)
		mustBe("stalled", stalledAfter)
		o.request(t, 0).send(10)
		mustBe("downloading", 0)
		time.Sleep(20 * time.Second)
		o.request(t, 0).end(networkError{errStalled})
		mustBe("stalled", 20*time.Second)
		time.Sleep(backoffMax)
		mustBe("stalled", 20*time.Second+backoffMax)
		o.request(t, 1).send(10)
		rd.mustReturn(t, nil)
		s.DropHandle()
		time.Sleep(time.Hour)
		mustBe("paused", 0)
		s.AddHandle()
		startRead(t.Context(), s, byteRange{20, 30})
		mustBe("downloading", 0)
	})
}
