// Deterministic tests of TempFileStore: each runs in a synctest bubble over a
// scripted origin. A lost wake-up then shows in every run: when all is settled, the
// reader still sleeps. TestSharedTokenChannelLosesWakeups shows a way of signalling
// that loses one.

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWaiterIsWokenByExactlyItsBytes(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{100, 200})
		o.send(199)
		rd.mustWait(t)
		o.send(1)
		rd.mustReturn(t, nil)
		if rd.n != 100 {
			t.Errorf("bytes read: got %d, want 100", rd.n)
		}
	})
}

// A channel of shared tokens loses a wake-up in this order of events
// (TestSharedTokenChannelLosesWakeups).
func TestNearWaiterIsWokenBehindAFarOne(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		far := startRead(t.Context(), s, byteRange{900, 1000})
		near := startRead(t.Context(), s, byteRange{0, 100})
		before := time.Now()
		o.send(100)
		near.mustReturn(t, nil)
		far.mustWait(t)
		if !time.Now().Equal(before) {
			t.Errorf("wait of the near reader: got %v, want 0", time.Since(before))
		}
		o.send(900)
		far.mustReturn(t, nil)
	})
}

func TestOneArrivalWakesEveryWaiter(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		var all []*reading
		for off := range int64(100) {
			all = append(all, startRead(t.Context(), s, byteRange{off, off + 10}))
		}
		if n := waiterCount(s); n != len(all) {
			t.Fatalf("readers that wait: got %d, want %d", n, len(all))
		}
		o.send(110)
		for _, rd := range all {
			rd.mustReturn(t, nil)
		}
	})
}

func TestEndOfTheStoreEndsEveryRead(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(*TempFileStore, *scriptedOrigin)
		want error
	}{
		"completion": {func(_ *TempFileStore, o *scriptedOrigin) { o.send(1000) }, nil},
		"failure":    {func(_ *TempFileStore, o *scriptedOrigin) { o.all()[0].end(errLongBody) }, errLongBody},
		"close":      {func(s *TempFileStore, _ *scriptedOrigin) { s.Close(); synctest.Wait() }, errClosed},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
				var all []*reading
				for off := int64(500); off < 1000; off += 50 {
					all = append(all, startRead(t.Context(), s, byteRange{off, off + 50}))
				}
				tt.end(s, o)
				for _, rd := range all {
					rd.mustReturn(t, tt.want)
				}
				if n := waiterCount(s); n != 0 {
					t.Errorf("waiters on the list: got %d, want 0", n)
				}
				startRead(t.Context(), s, byteRange{900, 1000}).mustReturn(t, tt.want) // a later reader
			})
		})
	}
}

// A waiter that is awake, but has not run yet, is not one that the auditor finds asleep.
func TestEndOfTheStoreLeavesNoWaiterToTheAuditor(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		s.mu.Lock()
		s.endLocked(errLongBody)
		left := s.waiters.len()
		s.mu.Unlock()
		if left > 0 {
			t.Errorf("waiters of a store that has ended: %d, want 0", left)
		}
		synctest.Wait()
		rd.mustReturn(t, errLongBody)
	})
}

// Bytes that arrive after a reader has looked and before it sleeps must wake it:
// their arrival closes the channel that it is about to sleep on.
func TestArrivalBetweenCheckAndWait(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.hold() // as whenPresent does
		defer s.unhold()
		w := newWaiter(byteRange{0, 100})
		if s.await(w) {
			t.Fatal("the reader has its answer before any byte arrived")
		}
		o.send(100)
		select {
		case <-w.notifyCh:
		default:
			t.Fatal("the reader would sleep with its bytes on disk")
		}
		s.unpin(w)
	})
}

// sleepCounter is the context of reads. A read asks it for Done each time before it sleeps.
type sleepCounter struct {
	context.Context
	sleeps atomic.Int64
}

func (c *sleepCounter) Done() <-chan struct{} {
	c.sleeps.Add(1)
	return c.Context.Done()
}

// An arrival wakes those who have their bytes then, and nobody else: each sleeps once.
func TestWakeupsAreCounted(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		ctx := &sleepCounter{Context: t.Context()}
		startRead(ctx, s, byteRange{0, 10})
		far := startRead(ctx, s, byteRange{500, 510})
		for range 509 {
			o.send(1)
		}
		far.mustWait(t)
		o.send(1)
		far.mustReturn(t, nil)
		if n := ctx.sleeps.Load(); n != 2 {
			t.Errorf("sleeps of two readers: got %d, want 2", n)
		}
	})
}

func TestNothingIsFetchedBeforeTheFirstRead(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		o.mustHave(t, 0)
		if f := s.file.Load(); f != nil {
			t.Fatalf("temporary file before any read: got %v, want none", f)
		}
		for range 10 {
			startRead(t.Context(), s, byteRange{0, 10})
		}
		o.mustHave(t, 1)
	})
}

func TestCancelledReaderLeavesTheFetchAlone(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := startRead(ctx, s, byteRange{0, 100})
		stays := startRead(t.Context(), s, byteRange{0, 100})
		cancel(errInterrupted)
		synctest.Wait()
		gone.mustReturn(t, errInterrupted)
		stays.mustWait(t)
		if n := waiterCount(s); n != 1 {
			t.Errorf("waiters: got %d, want 1", n)
		}
		o.send(100)
		stays.mustReturn(t, nil)
	})
}

func TestFailedStoreStillServesWhatItHas(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		beyond := startRead(t.Context(), s, byteRange{0, 200})
		o.send(150)
		o.request(t, 0).end(errLongBody)
		beyond.mustReturn(t, errLongBody)
		startRead(t.Context(), s, byteRange{0, 150}).mustReturn(t, nil)
		if s.Complete() {
			t.Error("the store is complete, want it incomplete after 150 of 1000 bytes")
		}
	})
}

func TestReadsAtTheEndOfTheFile(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		tail := startRead(t.Context(), s, byteRange{990, 1010})
		o.send(1000)
		tail.mustReturn(t, io.EOF)
		if tail.n != 10 {
			t.Errorf("bytes read at the end: got %d, want 10", tail.n)
		}
		startRead(t.Context(), s, byteRange{1000, 1001}).mustReturn(t, io.EOF)
		startRead(t.Context(), s, byteRange{5, 5}).mustReturn(t, nil)
		if _, err := s.ReadAt(t.Context(), make([]byte, 1), -1); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("read at a negative offset: got %v, want %v", err, os.ErrInvalid)
		}
	})
}

func TestEmptyFileIsComplete(t *testing.T) {
	inBubble(t, Object{Size: 0}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		if !s.Complete() {
			t.Error("an empty file is incomplete, want it complete")
		}
		startRead(t.Context(), s, byteRange{0, 10}).mustReturn(t, io.EOF)
		o.mustHave(t, 0)
	})
}

func TestPanickingOriginFailsItsFileOnly(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.origin = panickingOrigin{o}
		rd := startRead(t.Context(), s, byteRange{0, 10})
		if !rd.returned() || rd.err == nil || !strings.Contains(rd.err.Error(), "panic: scripted") {
			t.Errorf("error of the read: got %v, want the panic", rd.err)
		}
	})
}

type panickingOrigin struct{ *scriptedOrigin }

func (panickingOrigin) Open(context.Context, request) (io.ReadCloser, error) {
	panic("scripted")
}

func TestCloseIsIdempotent(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		var closing sync.WaitGroup
		for range 8 {
			closing.Go(func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: got %v, want no error", err)
				}
			})
		}
		closing.Wait()
		if err := s.file.Load().Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("close the temporary file again: got %v, want %v", err, os.ErrClosed)
		}
	})
}

// Close waits for a read that began before it, even if that read has not used the
// file yet.
func TestCloseWaitsForReadsUnderWay(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 100})
		o.send(1000)
		inUse, goOn := make(chan struct{}), make(chan struct{})
		result := make(chan error, 1)
		go func() {
			_, err := s.whenPresent(t.Context(), 0, 100, 0, func(byteRange) (int, error) {
				close(inUse)
				<-goOn
				return s.readPresent(make([]byte, 100), 0)
			})
			result <- err
		}()
		<-inUse
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		synctest.Wait()
		if len(closed) != 0 {
			t.Fatal("Close returned before the read")
		}
		close(goOn)
		if err := <-result; err != nil {
			t.Errorf("the read under way: got %v, want no error", err)
		}
		if err := <-closed; err != nil {
			t.Errorf("Close: got %v, want no error", err)
		}
	})
}

// tokenStore signals wrongly: all readers share one channel of tokens, and each
// arrival puts one token into it.
type tokenStore struct {
	downloaded atomic.Int64
	doneCh     chan struct{}
	notifyCh   chan struct{}
}

func (s *tokenStore) waitFor(ctx context.Context, end int64) error {
	for s.downloaded.Load() < end {
		select {
		case <-s.doneCh:
			return errClosed
		case <-s.notifyCh:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (s *tokenStore) arrive(n int64) {
	s.downloaded.Add(n)
	select {
	case s.notifyCh <- struct{}{}:
	default:
	}
}

// The counter-example to TestNearWaiterIsWokenBehindAFarOne: the far reader, which
// has waited longest, takes the one token for the first 100 bytes.
func TestSharedTokenChannelLosesWakeups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tokenStore{doneCh: make(chan struct{}), notifyCh: make(chan struct{}, 100)}
		ctx, cancel := context.WithCancel(t.Context())
		far, near := make(chan error, 1), make(chan error, 1)
		go func() { far <- s.waitFor(ctx, 1000) }()
		synctest.Wait()
		go func() { near <- s.waitFor(ctx, 100) }()
		synctest.Wait()
		s.arrive(100)
		time.Sleep(time.Hour) // fake time: nothing else can happen
		if len(near) != 0 {
			t.Error("the near reader returned, want it to sleep: the counter-example shows nothing")
		}
		cancel()
	})
}
