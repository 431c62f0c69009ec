// Deterministic tests of TempFileStore: each runs in a synctest bubble over a
// scripted origin that is made of channels only. There a reader that sleeps on
// with its bytes on disk is no matter of chance: once everything has settled,
// it is still asleep.

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

const storeSeed = 7

// scriptedOrigin is a file whose bytes come when the test says so, in order: it
// knows no ranges.
type scriptedOrigin struct {
	obj   Object
	grant chan int64 // this many bytes more may be read
	fail  chan error // the body ends with this error
	opens atomic.Int64
}

func newScriptedOrigin(size int64) *scriptedOrigin {
	return &scriptedOrigin{obj: Object{Size: size}, grant: make(chan int64), fail: make(chan error)}
}

func (o *scriptedOrigin) String() string                       { return "scripted" }
func (o *scriptedOrigin) Stat(context.Context) (Object, error) { return o.obj, nil }

func (o *scriptedOrigin) Open(ctx context.Context, _ Object, r byteRange) (io.ReadCloser, error) {
	o.opens.Add(1)
	return &scriptedBody{ctx: ctx, origin: o, r: r}, nil
}

// send lets the fetch read n bytes, and returns when all has settled.
func (o *scriptedOrigin) send(n int64) {
	o.grant <- n
	synctest.Wait()
}

// end makes the body fail, and returns when all has settled.
func (o *scriptedOrigin) end(err error) {
	o.fail <- err
	synctest.Wait()
}

type scriptedBody struct {
	ctx     context.Context
	origin  *scriptedOrigin
	r       byteRange
	granted int64
}

func (b *scriptedBody) Read(p []byte) (int, error) {
	if b.r.empty() {
		return 0, io.EOF
	}
	if b.granted == 0 {
		select {
		case b.granted = <-b.origin.grant:
		case err := <-b.origin.fail:
			return 0, err
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
	n := min(int64(len(p)), b.granted, b.r.len())
	fillContent(p[:n], storeSeed, b.r.off)
	b.r.off += n
	b.granted -= n
	return int(n), nil
}

func (b *scriptedBody) Close() error { return nil }

// reading is a ReadAt under way.
type reading struct {
	done chan struct{}
	n    int
	err  error
}

// startRead reads r in a goroutine of its own, and returns when it sleeps or is
// done. Bytes that come with no error are compared with the content.
func startRead(ctx context.Context, s *TempFileStore, r byteRange) *reading {
	rd := &reading{done: make(chan struct{})}
	go func() {
		defer close(rd.done)
		p := make([]byte, r.len())
		rd.n, rd.err = s.ReadAt(ctx, p, r.off)
		if wrong := checkContent(p[:rd.n], storeSeed, r.off); wrong != nil {
			rd.err = wrong
		}
	}()
	synctest.Wait()
	return rd
}

func (rd *reading) returned() bool {
	select {
	case <-rd.done:
		return true
	default:
		return false
	}
}

// mustReturn fails unless the read has returned with an error that is want.
func (rd *reading) mustReturn(t *testing.T, want error) {
	t.Helper()
	if !rd.returned() {
		t.Fatal("the read still waits")
	}
	if !errors.Is(rd.err, want) {
		t.Fatalf("the read ended with %v, want %v", rd.err, want)
	}
}

func (rd *reading) mustWait(t *testing.T) {
	t.Helper()
	if rd.returned() {
		t.Fatalf("the read returned (n=%d, err=%v), but should wait", rd.n, rd.err)
	}
}

// waiterCount is how many reads of s are asleep.
func waiterCount(s *TempFileStore) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiters)
}

// generation is the channel that the waiters of now sleep on.
func generation(s *TempFileStore) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.notifyCh
}

// testConfig is a store's with room for everything and long patience.
func testConfig(dir string) storeConfig {
	return storeConfig{dir: dir, connections: 4, slots: make(chan struct{}, 64), linger: time.Minute, readTimeout: time.Hour}
}

// tracedConfig is testConfig with a trace.
func tracedConfig(dir string, trace *tracer) storeConfig {
	config := testConfig(dir)
	config.trace = trace
	return config
}

// inBubble runs test in a synctest bubble with a store of size bytes, which is
// closed at the end.
func inBubble(t *testing.T, size int64, test func(t *testing.T, s *TempFileStore, o *scriptedOrigin)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := newScriptedOrigin(size)
		s := newTempFileStore(o, o.obj, testConfig(dir))
		s.Open()
		defer s.Close()
		test(t, s, o)
	})
}

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

// The order in which SEED's pattern loses a wake-up: see
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
		s.acquire() // as read does
		defer s.release()
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

func TestDiskErrorNamesTheDirectory(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		readOnly, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		s.file.Store(readOnly)
		rd := startRead(t.Context(), s, byteRange{0, 10})
		o.send(10)
		if !rd.returned() || rd.err == nil || !strings.Contains(rd.err.Error(), s.dir) {
			t.Errorf("the read ended with %v, want an error that names %s", rd.err, s.dir)
		}
	})
}

// A ready read must not wait for whoever holds the lock.
func TestReadyReadTakesNoLock(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 100})
		o.send(100)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.acquire() {
			t.Fatal("the store is closed")
		}
		s.release()
		if n, err := s.ReadAt(t.Context(), make([]byte, 100), 0); n != 100 || err != nil {
			t.Errorf("ReadAt: n=%d err=%v", n, err)
		}
		if v, ready := s.ViewReady(0, 100, 0); ready {
			v.done()
		}
	})
}

func TestReadyReadNeverWaits(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		if _, ready := s.ViewReady(0, 100, 0); ready {
			t.Fatal("ready before a byte arrived")
		}
		if n := o.opens.Load(); n != 0 {
			t.Errorf("%d requests by a read that does not wait", n)
		}
		startRead(t.Context(), s, byteRange{0, 100})
		o.send(100)
		if _, ready := s.ViewReady(1, 100, 0); ready {
			t.Error("ready one byte beyond what arrived")
		}
	})
}

// Small views are copies, large ones mappings at any offset; all have the same
// bytes, and end where the file does.
func TestViewsHaveTheBytes(t *testing.T) {
	const size = 3*mapBytes + 5
	inBubble(t, size, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, size})
		for range size/fetchBufferBytes + 1 {
			o.send(min(fetchBufferBytes, size-s.downloaded.Load()))
		}
		for _, r := range []byteRange{{0, 100}, {4095, 4097}, {0, mapBytes}, {4099, 4099 + mapBytes}, {mapBytes + 1, size}, {size - 10, size + 10}, {size, size + 1}} {
			v, err := s.View(t.Context(), r.off, int(r.len()))
			if err != nil {
				t.Fatalf("view of %v: %v", r, err)
			}
			if want := min(r.end, size) - min(r.off, size); int64(len(v.data)) != want {
				t.Errorf("view of %v has %d bytes, want %d", r, len(v.data), want)
			}
			if err := checkContent(v.data, storeSeed, r.off); err != nil {
				t.Errorf("view of %v: %v", r, err)
			}
			if v.done != nil {
				v.done()
			}
		}
	})
}

func TestTempFileHasNoNameAndIsPrivate(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		o.send(10)
		left, err := os.ReadDir(s.dir)
		if err != nil || len(left) > 0 {
			t.Errorf("%v in the temporary directory (%v)", left, err)
		}
		info, err := s.file.Load().Stat()
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
		}
	})
}

func TestNamedTempFileIsUnlinkedAtBirth(t *testing.T) {
	dir := t.TempDir()
	f, err := createNamed(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v in the temporary directory (%v)", left, err)
	}
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
