// Deterministic tests of what several requests that fail at once, or in
// different ways, mean to each other.

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
		s.Open()
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
