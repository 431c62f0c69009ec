// Tests of who gets a request when the origin is silent, slow, or refuses: in turn, and
// with little that nobody wants.

package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A hundred readers wait for ranges about which the origin is silent. A reader of bytes
// that it would send at once is served within some seconds.
func TestASilentRangeHoldsUpNoOther(t *testing.T) {
	inBubble(t, ranged(1<<40), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		for i := range int64(100) {
			startRead(t.Context(), s, byteRange{(i + 1) << 30, (i+1)<<30 + 10})
		}
		time.Sleep(time.Minute)
		near := startRead(t.Context(), s, byteRange{0, 10})
		began := time.Now()
		for !near.returned() {
			if time.Since(began) > 20*time.Second {
				t.Fatal("the reader still waits after 20 s")
			}
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			for _, req := range o.all() {
				if req.asked.off == 0 && req.running() {
					req.send(10)
				}
			}
		}
	})
}

// Every answer takes 35 s. All readers get one, though there are more of them than
// connections.
func TestReadersOfASlowOriginGetTheirTurn(t *testing.T) {
	inBubble(t, ranged(1<<40), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		const slow = 35 * time.Second
		var readers []*reading
		for i := range int64(20) {
			readers = append(readers, startRead(t.Context(), s, byteRange{(i + 1) << 30, (i+1)<<30 + 10}))
		}
		began, asked := time.Now(), make(map[*scriptedRequest]time.Time)
		for left := len(readers); left > 0; {
			if time.Since(began) > 10*slow {
				t.Fatalf("%d readers still wait", left)
			}
			time.Sleep(500 * time.Millisecond)
			synctest.Wait()
			for _, req := range o.all() {
				if asked[req].IsZero() {
					asked[req] = time.Now()
				}
				if req.running() && time.Since(asked[req]) >= slow {
					req.send(req.left.len())
				}
			}
			left = 0
			for _, rd := range readers {
				if !rd.returned() {
					left++
				}
			}
		}
	})
}

// Of some thousand readers far from each other, an arrival answers one and wakes all. It
// looks at each a few times: if each of them looked at all the others, this took minutes.
func TestAnArrivalCostsEachReaderLittle(t *testing.T) {
	const readers, arrivals, most = 5000, 50, 20 * time.Second // of the processors' time
	inBubble(t, ranged(1<<50), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		began := processorTime(t)
		for i := range int64(readers) {
			startRead(t.Context(), s, byteRange{(i + 1) << 30, (i+1)<<30 + 10})
		}
		for i := 0; i < arrivals; i++ {
			all := o.all()
			req := all[slices.IndexFunc(all, (*scriptedRequest).running)]
			req.send(req.left.len())
			if took := processorTime(t) - began; took > most {
				t.Fatalf("%v for %d arrivals of %d, want at most %v for all", took, i+1, arrivals, most)
			}
		}
		if left := waiterCount(s); left != readers-arrivals {
			t.Errorf("readers that wait: got %d, want %d", left, readers-arrivals)
		}
	})
}

// processorTime returns how long processors have worked for the test's process. Other
// processes do not change it.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var spent unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &spent); err != nil {
		t.Fatal(err)
	}
	return time.Duration(spent.Nano())
}

// All connections bring what readers wait for, and one more reader waits. When one of them
// A first read within the head is of the head: a program that skips a few bytes gets no more, and leaves no hole.
func TestAReadWithinTheHeadIsOfTheHead(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.plan.reach = 0
		rd := startRead(t.Context(), s, byteRange{1000, 1100})
		o.mustAsk(t, 0, byteRange{0, headBytes})
		o.send(1100)
		rd.mustReturn(t, nil)
	})
}

// has its bytes, the fetch beyond these makes way at once.
func TestAReaderWithItsBytesFreesAConnection(t *testing.T) {
	inBubble(t, ranged(1<<40), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.connections = 1
		first := startRead(t.Context(), s, byteRange{0, 10})
		crowded := startRead(t.Context(), s, byteRange{1 << 30, 1<<30 + 10})
		another := startRead(t.Context(), s, byteRange{2 << 30, 2<<30 + 10})
		o.mustHave(t, 1)
		o.send(10)
		first.mustReturn(t, nil)
		o.mustHave(t, 2)
		for i := range 2 {
			req := o.request(t, i+1)
			req.send(req.left.len())
		}
		crowded.mustReturn(t, nil)
		another.mustReturn(t, nil)
	})
}

func TestADripMakesWayForAReader(t *testing.T) {
	inBubble(t, ranged(1<<40), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.connections = 2
		startRead(t.Context(), s, byteRange{1 << 30, 1<<30 + mib})
		startRead(t.Context(), s, byteRange{2 << 30, 2<<30 + mib})
		o.mustHave(t, 2)
		startRead(t.Context(), s, byteRange{3 << 30, 3<<30 + 10})
		for range 20 {
			time.Sleep(500 * time.Millisecond)
			synctest.Wait()
			for _, req := range o.all()[:2] {
				if req.running() {
					req.send(5)
				}
			}
		}
		if n := len(o.all()); n < 3 {
			t.Errorf("%d requests after 10 s of a drip, want one for the third reader", n)
		}
	})
}

func TestALateAnswerLetsTheRestBeRequested(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.plan.reach = 0
		rd := startRead(t.Context(), s, byteRange{0, 10})
		o.mustAsk(t, 0, byteRange{0, headBytes})
		o.mustHave(t, 1)
		time.Sleep(2 * idleAfter)
		o.mustAsk(t, 1, byteRange{headBytes, 64 * mib})
		o.request(t, 0).send(10)
		rd.mustReturn(t, nil)
		time.Sleep(time.Minute)
		o.mustHave(t, 2)
	})
}

// An origin whose first answer was the whole file may send ranges later.
func TestRangesThatWereNotSeenAtFirstAreUsed(t *testing.T) {
	inBubble(t, Object{Size: 64 * mib}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		near := startRead(t.Context(), s, byteRange{0, 10})
		far := startRead(t.Context(), s, byteRange{60 * mib, 60*mib + 10})
		o.mustAsk(t, 0, byteRange{0, 64 * mib})
		o.mustHave(t, 1)
		s.ranged(true)
		o.request(t, 1).send(10)
		far.mustReturn(t, nil)
		near.mustWait(t)
	})
}

// Random reads and scanners bring a bounded multiple of what they read.
func TestWhatNobodyReadsIsBounded(t *testing.T) {
	read := func(t *testing.T, s *TempFileStore, r byteRange) {
		startRead(t.Context(), s, r).mustReturn(t, nil)
	}
	for name, reads := range map[string]func(t *testing.T, s *TempFileStore, o *scriptedOrigin){
		"random": func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
			o.atOnce = 1 << 30
			rng := rand.New(rand.NewPCG(1, 2))
			for range 500 {
				off := rng.Int64N(s.Object().Size - 4096)
				read(t, s, byteRange{off, off + 4096})
			}
		},
		"a scanner": func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
			o.atOnce = headBytes
			read(t, s, byteRange{0, 64 << 10})
			read(t, s, byteRange{64 << 10, 192 << 10})
			s.DropHandle()
			for req := o.request(t, 1); req.running(); time.Sleep(10 * time.Millisecond) {
				req.send(64 << 10)
			}
			s.AddHandle()
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, ranged(1<<30), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
				s.plan.reach = 0
				reads(t, s, o)
				got, asked := s.Snapshot().Received, s.asked.Load()
				if got > stopShare*asked+2*firstChunkBytes {
					t.Errorf("%d bytes came for %d that were read, %.1f times", got, asked, float64(got)/float64(asked))
				}
			})
		})
	}
}

// A host that takes no more requests says nothing about the file.
func TestACrowdedRequestIsNoFailure(t *testing.T) {
	inBubble(t, ranged(1<<40), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{1 << 30, 1<<30 + 10})
		for n := range 10 {
			o.request(t, n).end(crowdedError{statusError{code: 403}})
			time.Sleep(time.Second)
		}
		o.request(t, 10).send(10)
		rd.mustReturn(t, nil)
		if s.Snapshot().Retries != 0 {
			t.Errorf("%d retries, want none", s.Snapshot().Retries)
		}
	})
}

// Bytes of one request say nothing about another that the origin refuses.
func TestFailuresAreResetByLaterRequestsOnly(t *testing.T) {
	inBubble(t, ranged(1<<40), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.connections = 2
		startRead(t.Context(), s, byteRange{0, 10})
		startRead(t.Context(), s, byteRange{1 << 30, 1<<30 + 10})
		o.mustHave(t, 2)
		for n := 1; n < 8; n++ {
			o.request(t, n).end(statusError{code: 500})
			o.request(t, 0).send(1)
			time.Sleep(backoffMax)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.plan.failures != 7 {
			t.Errorf("%d failures in a row are counted, want 7", s.plan.failures)
		}
	})
}

func TestAFinalErrorIsAskedAgainLessAndLess(t *testing.T) {
	inBubble(t, ranged(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		ended := 0
		for range 600 { // a program that opens the file ten times a second
			s.AddHandle()
			rd := startRead(t.Context(), s, byteRange{0, 10})
			for ; ended < len(o.all()); ended++ {
				o.request(t, ended).end(statusError{code: 401})
			}
			rd.mustReturn(t, statusError{code: 401})
			s.DropHandle()
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(o.all()); n < 3 || n > 20 {
			t.Errorf("%d requests in a minute for a file whose login is refused, want 3 to 20", n)
		}
	})
}

// An origin that answers with a few bytes of what was requested is not asked in a storm.
func TestShortAnswersSlowTheRequestsDown(t *testing.T) {
	inBubble(t, ranged(1<<30), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, mib})
		for n, began := 0, time.Now(); time.Since(began) < time.Minute; {
			synctest.Wait()
			for ; n < len(o.all()); n++ {
				req := o.request(t, n)
				req.left.end = req.left.off + 1
				req.send(1)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if n := len(o.all()); n > 4*shortsFree {
			t.Errorf("%d requests in a minute for a byte each", n)
		}
	})
}
