// Deterministic tests of what a store requests. The test answers the requests one
// by one, in a synctest bubble with fake time.

package main

import (
	"syscall"
	"testing"
	"time"
)

func TestSequentialReaderMakesOneRequest(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		for off := int64(0); off < 64*mib; off += mib {
			rd := startRead(t.Context(), s, byteRange{off, off + mib})
			o.request(t, 0).send(mib)
			rd.mustReturn(t, nil)
		}
		o.mustHave(t, 1)
		if !s.Complete() {
			t.Error("the file is not complete")
		}
	})
}

func TestJumpGetsARequestOfItsOwn(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		head := startRead(t.Context(), s, byteRange{0, 10})
		tail := startRead(t.Context(), s, byteRange{64*mib - 100, 64 * mib})
		o.mustAsk(t, 1, byteRange{64*mib - 100, 64 * mib}).send(100)
		tail.mustReturn(t, nil)
		head.mustWait(t)
		o.request(t, 0).send(10)
		head.mustReturn(t, nil)
	})
}

func TestNearBytesAreAwaited(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		near := startRead(t.Context(), s, byteRange{soonBytes, soonBytes + 10})
		o.mustHave(t, 1)
		o.request(t, 0).send(soonBytes + 10)
		near.mustReturn(t, nil)
		startRead(t.Context(), s, byteRange{2*soonBytes + 11, 2*soonBytes + 12})
		o.mustHave(t, 2)
	})
}

// The store requests no byte twice: a request ends where present bytes begin.
func TestFetchesNeverOverlap(t *testing.T) {
	inBubble(t, ranged(8*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{5 * mib, 5*mib + 10})
		o.request(t, 0).send(mib) // the chunk [5,6) MiB
		startRead(t.Context(), s, byteRange{0, 10})
		var sent int64 = mib
		for i := 1; i < len(o.all()); i++ {
			for req := o.request(t, i); req.running(); {
				n := min(fetchBufferBytes, req.left.len())
				req.send(n)
				sent += n
			}
		}
		if !s.Complete() || sent != 8*mib {
			t.Errorf("bytes sent: got %d (complete: %v), want %d (complete)", sent, s.Complete(), 8*mib)
		}
	})
}

func TestNeverMoreRequestsThanConnections(t *testing.T) {
	inBubble(t, ranged(256*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		check := func() {
			if n := o.inFlight(); n > s.connections {
				t.Fatalf("requests in flight: got %d, want at most %d", n, s.connections)
			}
		}
		var readers []*reading
		for i := range int64(16) {
			readers = append(readers, startRead(t.Context(), s, byteRange{i * 16 * mib, i*16*mib + 10}))
			check()
		}
		for i := 0; i < len(o.all()); i++ {
			if req := o.request(t, i); req.running() {
				req.send(min(mib, req.left.len()))
			}
			check()
		}
		for _, rd := range readers {
			rd.mustReturn(t, nil)
		}
	})
}

func TestWaitingReadersComeBeforeTheRest(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.connections = 1
		startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 0).send(10)
		jump := startRead(t.Context(), s, byteRange{32 * mib, 32*mib + mib/startShare})
		if o.request(t, 0).running() {
			t.Fatal("the fetch of the rest goes on while a reader waits for other bytes")
		}
		o.request(t, 1).send(mib)
		jump.mustReturn(t, nil)
		o.mustAsk(t, 2, byteRange{10, 10 + firstChunkBytes}) // the rest
	})
}

func TestCutBodyIsResumedFromTheFirstMissingByte(t *testing.T) {
	inBubble(t, ranged(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		o.request(t, 0).send(300)
		o.request(t, 0).end(errShortBody)
		o.mustHave(t, 1)
		time.Sleep(2 * backoffBase)
		o.mustAsk(t, 1, byteRange{300, 1000}).send(700)
		rd.mustReturn(t, nil)
	})
}

// The waits grow with the failures in a row. A byte that arrives resets the count.
func TestBackoffIsResetByProgress(t *testing.T) {
	inBubble(t, ranged(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 1000})
		for i := range 8 {
			o.request(t, i).end(networkError{syscall.ECONNRESET})
			time.Sleep(backoffBase << (i + 1))
		}
		if s.plan.failures != 8 {
			t.Fatalf("failures in a row: got %d, want 8", s.plan.failures)
		}
		o.request(t, 8).send(1)
		o.request(t, 8).end(networkError{syscall.ECONNRESET})
		if s.plan.failures != 1 {
			t.Errorf("failures in a row after a byte: got %d, want 1", s.plan.failures)
		}
		time.Sleep(2 * backoffBase)
		o.mustHave(t, 10)
	})
}

func TestBackoffHasFullJitterAndABound(t *testing.T) {
	for n := 1; n < 100; n++ {
		for range 100 {
			if wait := backoff(n); wait < 0 || wait > backoffMax || n < 4 && wait > backoffBase<<n {
				t.Fatalf("wait after failure %d: got %v, want 0 to %v", n, wait, min(backoffMax, backoffBase<<min(n, 10)))
			}
		}
	}
}

func TestFailedStoreIsTriedAgainByTheNextOpen(t *testing.T) {
	inBubble(t, ranged(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		o.request(t, 0).send(100)
		o.request(t, 0).end(statusError{code: 404})
		rd.mustReturn(t, statusError{code: 404})
		startRead(t.Context(), s, byteRange{100, 200}).mustReturn(t, statusError{code: 404})
		s.AddHandle()
		again := startRead(t.Context(), s, byteRange{0, 1000})
		o.mustAsk(t, 1, byteRange{100, 1000}).send(900)
		again.mustReturn(t, nil)
	})
}

func TestReadEndsWithoutProgress(t *testing.T) {
	inBubble(t, ranged(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.readTimeout = time.Minute
		first := startRead(t.Context(), s, byteRange{0, 1000})
		time.Sleep(40 * time.Second)
		o.request(t, 0).send(1)
		time.Sleep(59 * time.Second)
		first.mustWait(t) // the last byte came 59 s ago
		time.Sleep(2 * time.Second)
		first.mustReturn(t, errReadTimeout)
		if errnoOf(first.err) != syscall.EIO {
			t.Errorf("errno: got %v, want EIO", errnoOf(first.err))
		}
		second := startRead(t.Context(), s, byteRange{0, 1000})
		o.request(t, 0).send(999)
		second.mustReturn(t, nil)
	})
}

func TestFetchPausesWhenNobodyHasTheFileOpen(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 0).send(mib)
		s.DropHandle()
		time.Sleep(s.linger - time.Second)
		o.mustHaveInFlight(t, 1)
		time.Sleep(2 * time.Second)
		o.mustHaveInFlight(t, 0)
		s.AddHandle()
		o.mustHaveInFlight(t, 0) // an open alone requests nothing
		rd := startRead(t.Context(), s, byteRange{mib, mib + 10})
		o.mustAsk(t, 1, byteRange{mib, 64 * mib}).send(10)
		rd.mustReturn(t, nil)
	})
}

func TestOpeningAgainInTimeKeepsTheFetch(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 0).send(10)
		s.DropHandle()
		time.Sleep(s.linger - time.Second)
		s.AddHandle()
		time.Sleep(time.Hour)
		o.mustHaveInFlight(t, 1)
	})
}

func TestWaitingReaderOutlastsThePause(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 10})
		s.DropHandle()
		time.Sleep(2 * s.linger)
		o.request(t, 0).send(10)
		rd.mustReturn(t, nil)
	})
}

func TestOriginWithoutRangesIsReadInOrder(t *testing.T) {
	inBubble(t, Object{Size: 64 * mib}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		far := startRead(t.Context(), s, byteRange{60 * mib, 60*mib + 10})
		startRead(t.Context(), s, byteRange{30 * mib, 30*mib + 10})
		o.mustHave(t, 1)
		o.mustAsk(t, 0, byteRange{0, 64 * mib}).send(60*mib + 10)
		far.mustReturn(t, nil)
	})
}
