// Deterministic tests of TempFileStore: each runs in a synctest bubble over a
// scripted origin made of channels only. A reader that sleeps with its bytes on
// disk is then no matter of chance: once everything has settled, it still sleeps.
// The shared token channel of an earlier program stands here as counter-example.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWaiterIsWokenByExactlyItsBytes(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{100, 200})
		o.send(199)
		rd.mustWait(t)
		o.send(1)
		rd.mustReturn(t, nil)
		if rd.n != 100 {
			t.Errorf("read %d bytes, want 100", rd.n)
		}
	})
}

// The order in which a channel of shared tokens loses a wake-up: see
// TestSharedTokenChannelLosesWakeups.
func TestNearWaiterIsWokenBehindAFarOne(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		far := startRead(t.Context(), s, byteRange{900, 1000})
		near := startRead(t.Context(), s, byteRange{0, 100})
		before := time.Now()
		o.send(100)
		near.mustReturn(t, nil)
		far.mustWait(t)
		if !time.Now().Equal(before) {
			t.Error("time had to pass for the near reader")
		}
		o.send(900)
		far.mustReturn(t, nil)
	})
}

func TestOneArrivalWakesEveryWaiter(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		var all []*reading
		for off := range int64(100) {
			all = append(all, startRead(t.Context(), s, byteRange{off, off + 10}))
		}
		if n := waiterCount(s); n != len(all) {
			t.Fatalf("%d readers wait, want %d", n, len(all))
		}
		o.send(110)
		for _, rd := range all {
			rd.mustReturn(t, nil)
		}
	})
}

// endings are the ways in which a store ends with readers waiting.
func endings() map[string]struct {
	end  func(*TempFileStore, *scriptedOrigin)
	want error
} {
	return map[string]struct {
		end  func(*TempFileStore, *scriptedOrigin)
		want error
	}{
		"completion": {func(_ *TempFileStore, o *scriptedOrigin) { o.send(1000) }, nil},
		"failure":    {func(_ *TempFileStore, o *scriptedOrigin) { o.end(errLongBody) }, errLongBody},
		"close":      {func(s *TempFileStore, _ *scriptedOrigin) { s.Close(); synctest.Wait() }, errClosed},
	}
}

func TestEndOfTheStoreWakesAll(t *testing.T) {
	for name, ending := range endings() {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
				var all []*reading
				for off := int64(500); off < 1000; off += 50 {
					all = append(all, startRead(t.Context(), s, byteRange{off, off + 50}))
				}
				ending.end(s, o)
				for _, rd := range all {
					rd.mustReturn(t, ending.want)
				}
				if n := waiterCount(s); n != 0 {
					t.Errorf("%d waiters left on the list", n)
				}
			})
		})
	}
}

func TestReaderAfterTheEndReturnsAtOnce(t *testing.T) {
	for name, ending := range endings() {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
				startRead(t.Context(), s, byteRange{0, 1000})
				ending.end(s, o)
				startRead(t.Context(), s, byteRange{900, 1000}).mustReturn(t, ending.want)
			})
		})
	}
}

// Bytes that arrive after a reader has looked, and before it sleeps, must wake
// it: the channel it was given is the one that their arrival closes.
func TestArrivalBetweenCheckAndWait(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.hold() // as read does
		defer s.unhold()
		w := &waiter{r: byteRange{0, 100}}
		arrival, _, err := s.await(w)
		if arrival == nil || err != nil {
			t.Fatalf("await: channel %v, error %v; want to wait", arrival, err)
		}
		synctest.Wait() // the fetch that await began is at its first byte
		o.send(100)
		select {
		case <-arrival:
		default:
			t.Fatal("the reader would sleep on with its bytes on disk")
		}
		if again, _, err := s.await(w); again != nil || err != nil {
			t.Fatalf("await again: channel %v, error %v; want the answer", again, err)
		}
	})
}

// A waiter sleeps through every arrival that does not answer it.
func TestWaiterDoesNotSpin(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{999, 1000})
		before := generation(s)
		for range 999 {
			o.send(1)
		}
		if generation(s) != before {
			t.Error("waiters were woken for nothing")
		}
		rd.mustWait(t)
		o.send(1)
		rd.mustReturn(t, nil)
	})
}

// Of two waiters, an arrival that answers one wakes both, and the other sleeps
// again: one wake-up each, not one per byte.
func TestWakeupsAreCounted(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		far := startRead(t.Context(), s, byteRange{500, 510})
		generations := map[chan struct{}]bool{generation(s): true}
		for range 510 {
			o.send(1)
			generations[generation(s)] = true
		}
		far.mustReturn(t, nil)
		if len(generations) != 3 {
			t.Errorf("%d generations of waiters, want 3: the first, one after each reader's bytes", len(generations))
		}
	})
}

func TestNothingIsFetchedBeforeTheFirstRead(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		synctest.Wait()
		if n := o.opens.Load(); n != 0 || s.file.Load() != nil {
			t.Fatalf("%d requests, file %v before any read", n, s.file.Load())
		}
		for range 10 {
			startRead(t.Context(), s, byteRange{0, 10})
		}
		if n := o.opens.Load(); n != 1 {
			t.Errorf("%d requests for ten readers, want 1", n)
		}
	})
}

func TestCancelledReaderLeavesTheFetchAlone(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := startRead(ctx, s, byteRange{0, 100})
		stays := startRead(t.Context(), s, byteRange{0, 100})
		cancel(errInterrupted)
		synctest.Wait()
		gone.mustReturn(t, errInterrupted)
		stays.mustWait(t)
		if n := waiterCount(s); n != 1 {
			t.Errorf("%d waiters, want 1", n)
		}
		o.send(100)
		stays.mustReturn(t, nil)
	})
}

func TestFailedStoreStillServesWhatItHas(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		beyond := startRead(t.Context(), s, byteRange{0, 200})
		o.send(150)
		o.end(errLongBody)
		beyond.mustReturn(t, errLongBody)
		startRead(t.Context(), s, byteRange{0, 150}).mustReturn(t, nil)
		if s.Complete() {
			t.Error("a file cut short is complete")
		}
	})
}

func TestReadsAtTheEndOfTheFile(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		tail := startRead(t.Context(), s, byteRange{990, 1010})
		o.send(1000)
		tail.mustReturn(t, io.EOF)
		if tail.n != 10 {
			t.Errorf("read %d bytes of the last 10", tail.n)
		}
		startRead(t.Context(), s, byteRange{1000, 1001}).mustReturn(t, io.EOF)
		startRead(t.Context(), s, byteRange{5, 5}).mustReturn(t, nil)
		if _, err := s.ReadAt(t.Context(), make([]byte, 1), -1); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("a negative offset: %v, want %v", err, os.ErrInvalid)
		}
	})
}

func TestEmptyFileIsComplete(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		if !s.Complete() {
			t.Error("an empty file is not complete")
		}
		startRead(t.Context(), s, byteRange{0, 10}).mustReturn(t, io.EOF)
		if n := o.opens.Load(); n != 0 {
			t.Errorf("%d requests for nothing", n)
		}
	})
}

func TestPanickingOriginFailsItsFileOnly(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.origin = panickingOrigin{o}
		rd := startRead(t.Context(), s, byteRange{0, 10})
		if !rd.returned() || rd.err == nil || !strings.Contains(rd.err.Error(), "panic: scripted") {
			t.Errorf("the read ended with %v, want the panic", rd.err)
		}
	})
}

type panickingOrigin struct{ *scriptedOrigin }

func (panickingOrigin) Open(context.Context, Object, byteRange) (io.ReadCloser, error) {
	panic("scripted")
}

func TestCloseIsIdempotent(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		results := make(chan error)
		for range 8 {
			go func() { results <- s.Close() }()
		}
		for range 8 {
			if err := <-results; err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if err := s.file.Load().Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("the temporary file was still open (%v)", err)
		}
	})
}

// Close must outlast a read that was admitted before it, however late that
// read gets to the file.
func TestCloseWaitsForReadsUnderWay(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 100})
		o.send(1000)
		inUse, goOn := make(chan struct{}), make(chan struct{})
		result := make(chan error, 1)
		go func() {
			_, err := s.whenPresent(t.Context(), 0, 100, func(byteRange) (int, error) {
				close(inUse)
				<-goOn
				return s.readPresent(make([]byte, 100), 0)
			})
			result <- err
		}()
		<-inUse
		closed := make(chan struct{})
		go func() { s.Close(); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Fatal("Close returned before the read")
		default:
		}
		close(goOn)
		if err := <-result; err != nil {
			t.Errorf("the admitted read: %v", err)
		}
		<-closed
	})
}

// seedStore is the signalling of the program that hung: one channel of tokens
// that all readers share, a token for each arrival.
type seedStore struct {
	downloaded atomic.Int64
	doneCh     chan struct{}
	notifyCh   chan struct{}
}

func (s *seedStore) waitFor(ctx context.Context, end int64) error {
	for s.downloaded.Load() < end {
		select {
		case <-s.doneCh:
			return fmt.Errorf("done")
		case <-s.notifyCh:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (s *seedStore) arrive(n int64) {
	s.downloaded.Add(n)
	select {
	case s.notifyCh <- struct{}{}:
	default:
	}
}

// The counter-example to TestNearWaiterIsWokenBehindAFarOne: the one token for
// the first 100 bytes goes to the reader that waits longest, who wants others.
func TestSharedTokenChannelLosesWakeups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &seedStore{doneCh: make(chan struct{}), notifyCh: make(chan struct{}, 100)}
		ctx, cancel := context.WithCancel(t.Context())
		far, near := make(chan error, 1), make(chan error, 1)
		go func() { far <- s.waitFor(ctx, 1000) }()
		synctest.Wait()
		go func() { near <- s.waitFor(ctx, 100) }()
		synctest.Wait()
		s.arrive(100)
		time.Sleep(time.Hour) // of the bubble: nothing else can happen any more
		select {
		case <-near:
			t.Error("the near reader was woken: the counter-example shows nothing")
		default:
		}
		cancel()
		<-far
		<-near
	})
}
