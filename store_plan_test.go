// Deterministic tests of what a store requests: over an origin whose requests
// the test answers one by one, in a bubble whose time is the test's.

package main

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// stagedOrigin keeps every request for the test to answer.
type stagedOrigin struct {
	obj      Object
	next     Object // what Stat finds
	requests []*stagedRequest
	opened   chan *stagedRequest
}

// stagedRequest is one request. It can be answered before it was read from.
type stagedRequest struct {
	asked, left byteRange
	ctx         context.Context
	grant       chan int64
	fail        chan error
	granted     int64
}

// inStage runs test in a bubble with an open store of size bytes.
func inStage(t *testing.T, size int64, test func(t *testing.T, s *TempFileStore, o *stagedOrigin)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		obj := Object{Size: size, Ranges: true}
		o := &stagedOrigin{obj: obj, next: obj, opened: make(chan *stagedRequest, 1000)}
		s := newTempFileStore(o, obj, testConfig(dir))
		defer s.Close()
		s.AddHandle()
		test(t, s, o)
	})
}

func (o *stagedOrigin) String() string                       { return "staged" }
func (o *stagedOrigin) Stat(context.Context) (Object, error) { return o.next, nil }

func (o *stagedOrigin) Open(ctx context.Context, _ Object, r byteRange) (io.ReadCloser, error) {
	req := &stagedRequest{asked: r, left: r, ctx: ctx, grant: make(chan int64), fail: make(chan error)}
	o.opened <- req
	return req, nil
}

func (req *stagedRequest) Close() error { return nil }

func (req *stagedRequest) Read(p []byte) (int, error) {
	if req.left.empty() {
		return 0, io.EOF
	}
	if req.granted == 0 {
		select {
		case req.granted = <-req.grant:
		case err := <-req.fail:
			return 0, err
		case <-req.ctx.Done():
			return 0, req.ctx.Err()
		}
	}
	n := min(int64(len(p)), req.granted, req.left.len())
	fillContent(p[:n], storeSeed, req.left.off)
	req.left.off += n
	req.granted -= n
	return int(n), nil
}

func (req *stagedRequest) send(n int64) {
	req.grant <- n
	synctest.Wait()
}

func (req *stagedRequest) end(err error) {
	req.fail <- err
	synctest.Wait()
}

func (req *stagedRequest) running() bool { return req.ctx.Err() == nil && !req.left.empty() }

// request returns the i-th request that was ever made.
func (o *stagedOrigin) request(t *testing.T, i int) *stagedRequest {
	t.Helper()
	if o.count(); i >= len(o.requests) {
		t.Fatalf("%d requests so far, want number %d", len(o.requests), i)
	}
	return o.requests[i]
}

// count is how many requests were made so far.
func (o *stagedOrigin) count() int {
	synctest.Wait()
	for {
		select {
		case req := <-o.opened:
			o.requests = append(o.requests, req)
		default:
			return len(o.requests)
		}
	}
}

// inFlight is how many requests are neither over nor cancelled.
func (o *stagedOrigin) inFlight() (n int) {
	o.count()
	for _, req := range o.requests {
		if req.running() {
			n++
		}
	}
	return n
}

func (o *stagedOrigin) mustBe(t *testing.T, requests int) {
	t.Helper()
	if n := o.count(); n != requests {
		for _, req := range o.requests {
			t.Logf("request for %v", req.asked)
		}
		t.Fatalf("%d requests so far, want %d", n, requests)
	}
}

const mib = 1 << 20

func TestSequentialReaderMakesOneRequest(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		for off := int64(0); off < 64*mib; off += mib {
			rd := startRead(t.Context(), s, byteRange{off, off + mib})
			o.request(t, 0).send(mib)
			rd.mustReturn(t, nil)
		}
		o.mustBe(t, 1)
		if !s.Complete() {
			t.Error("the file is not complete")
		}
	})
}

func TestJumpGetsARequestOfItsOwn(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		head := startRead(t.Context(), s, byteRange{0, 10})
		tail := startRead(t.Context(), s, byteRange{64*mib - 100, 64 * mib})
		if r := o.request(t, 1).asked; r != (byteRange{64*mib - 100, 64 * mib}) {
			t.Fatalf("the jump asked for %v", r)
		}
		o.request(t, 1).send(100)
		tail.mustReturn(t, nil)
		head.mustWait(t)
		o.request(t, 0).send(10)
		head.mustReturn(t, nil)
	})
}

func TestNearBytesAreAwaited(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		near := startRead(t.Context(), s, byteRange{soonBytes, soonBytes + 10})
		o.mustBe(t, 1)
		o.request(t, 0).send(soonBytes + 10)
		near.mustReturn(t, nil)
		startRead(t.Context(), s, byteRange{2*soonBytes + 11, 2*soonBytes + 12})
		o.mustBe(t, 2)
	})
}

// No byte is asked for twice: a request stops where others have been.
func TestFetchesNeverOverlap(t *testing.T) {
	inStage(t, 8*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		startRead(t.Context(), s, byteRange{5 * mib, 5*mib + 10})
		o.request(t, 0).send(mib) // the chunk [5,6) MiB
		startRead(t.Context(), s, byteRange{0, 10})
		var sent int64 = mib
		for i := 1; i < o.count(); i++ {
			for req := o.request(t, i); req.running(); {
				n := min(fetchBufferBytes, req.left.len())
				req.send(n)
				sent += n
			}
		}
		if !s.Complete() || sent != 8*mib {
			t.Errorf("complete: %v, after %d bytes of 8 MiB", s.Complete(), sent)
		}
	})
}

func TestNeverMoreRequestsThanConnections(t *testing.T) {
	inStage(t, 256*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		var readers []*reading
		for i := range int64(16) {
			readers = append(readers, startRead(t.Context(), s, byteRange{i * 16 * mib, i*16*mib + 10}))
			if n := o.inFlight(); n > s.connections {
				t.Fatalf("%d requests in flight, want at most %d", n, s.connections)
			}
		}
		for i := 0; i < o.count(); i++ {
			if req := o.request(t, i); req.running() {
				req.send(min(mib, req.left.len()))
			}
			if n := o.inFlight(); n > s.connections {
				t.Fatalf("%d requests in flight, want at most %d", n, s.connections)
			}
		}
		for _, rd := range readers {
			rd.mustReturn(t, nil)
		}
	})
}

func TestWaitingReadersComeBeforeTheRest(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		s.connections = 1
		startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 0).send(10)
		jump := startRead(t.Context(), s, byteRange{32 * mib, 32*mib + 10})
		if o.request(t, 0).running() {
			t.Fatal("the rest is fetched on while a reader waits for other bytes")
		}
		o.request(t, 1).send(mib)
		jump.mustReturn(t, nil)
		if r := o.request(t, 2).asked; r.off != 10 {
			t.Errorf("then %v was asked for, want the rest from 10 on", r)
		}
	})
}

func TestSlowConnectionGetsCompany(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		startRead(t.Context(), s, byteRange{0, 64 * mib})
		for range 4 {
			o.request(t, 0).send(mib / 4)
			time.Sleep(slowAfter / 2) // of the bubble
		}
		if n := o.inFlight(); n != s.connections {
			t.Errorf("%d requests at a few MiB a second, want %d", n, s.connections)
		}
	})
}

func TestCutBodyIsResumedFromTheFirstMissingByte(t *testing.T) {
	inStage(t, 1000, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		o.request(t, 0).send(300)
		o.request(t, 0).end(errShortBody)
		o.mustBe(t, 1)
		time.Sleep(2 * backoffBase)
		if r := o.request(t, 1).asked; r != (byteRange{300, 1000}) {
			t.Fatalf("resumed with %v", r)
		}
		o.request(t, 1).send(700)
		rd.mustReturn(t, nil)
	})
}

// Failures are counted in a row, and the waits grow with them; a byte makes
// the next failure the first.
func TestBackoffIsResetByProgress(t *testing.T) {
	inStage(t, 1000, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		startRead(t.Context(), s, byteRange{0, 1000})
		for i := range 8 {
			o.request(t, i).end(networkError{syscall.ECONNRESET})
			time.Sleep(backoffBase << (i + 1))
		}
		if s.plan.failures != 8 {
			t.Fatalf("%d failures counted, want 8", s.plan.failures)
		}
		o.request(t, 8).send(1)
		o.request(t, 8).end(networkError{syscall.ECONNRESET})
		if s.plan.failures != 1 {
			t.Errorf("%d failures counted after a byte, want 1", s.plan.failures)
		}
		time.Sleep(2 * backoffBase)
		o.mustBe(t, 10)
	})
}

func TestBackoffHasFullJitterAndABound(t *testing.T) {
	for n := 1; n < 100; n++ {
		for range 100 {
			if wait := backoff(n); wait < 0 || wait > backoffMax || n < 4 && wait > backoffBase<<n {
				t.Fatalf("wait %v after failure %d", wait, n)
			}
		}
	}
}

func TestFinalErrorEndsReadersAtOnce(t *testing.T) {
	inStage(t, 1000, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		o.request(t, 0).end(statusError{code: 404})
		rd.mustReturn(t, statusError{code: 404})
	})
}

func TestFailedStoreIsTriedAgainByTheNextOpen(t *testing.T) {
	inStage(t, 1000, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		startRead(t.Context(), s, byteRange{0, 1000})
		o.request(t, 0).send(100)
		o.request(t, 0).end(statusError{code: 404})
		startRead(t.Context(), s, byteRange{100, 200}).mustReturn(t, statusError{code: 404})
		s.AddHandle()
		again := startRead(t.Context(), s, byteRange{0, 1000})
		if r := o.request(t, 1).asked; r != (byteRange{100, 1000}) {
			t.Fatalf("asked for %v, want what is missing", r)
		}
		o.request(t, 1).send(900)
		again.mustReturn(t, nil)
	})
}

func TestReadEndsWithoutProgress(t *testing.T) {
	inStage(t, 1000, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		s.readTimeout = time.Minute
		first := startRead(t.Context(), s, byteRange{0, 1000})
		time.Sleep(40 * time.Second)
		o.request(t, 0).send(1)
		time.Sleep(59 * time.Second)
		first.mustWait(t) // there was progress 59 s ago
		time.Sleep(2 * time.Second)
		first.mustReturn(t, errReadTimeout)
		if errnoOf(first.err) != syscall.ETIMEDOUT {
			t.Errorf("the reader sees %v", errnoOf(first.err))
		}
		second := startRead(t.Context(), s, byteRange{0, 1000})
		o.request(t, 0).send(999)
		second.mustReturn(t, nil)
	})
}

func TestFetchPausesWhenNobodyHasTheFileOpen(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 0).send(mib)
		s.DropHandle()
		time.Sleep(s.linger - time.Second)
		if n := o.inFlight(); n != 1 {
			t.Fatalf("%d requests before linger is over, want 1", n)
		}
		time.Sleep(2 * time.Second)
		if n := o.inFlight(); n != 0 {
			t.Fatalf("%d requests with nobody there", n)
		}
		s.AddHandle()
		if n := o.inFlight(); n != 0 {
			t.Fatalf("%d requests by an open alone", n)
		}
		rd := startRead(t.Context(), s, byteRange{mib, mib + 10})
		if r := o.request(t, 1).asked; r.off != mib {
			t.Fatalf("went on with %v", r)
		}
		o.request(t, 1).send(10)
		rd.mustReturn(t, nil)
	})
}

func TestOpeningAgainInTimeKeepsTheFetch(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 0).send(10)
		s.DropHandle()
		time.Sleep(s.linger - time.Second)
		s.AddHandle()
		time.Sleep(time.Hour)
		if n := o.inFlight(); n != 1 {
			t.Errorf("%d requests, want the one that was there", n)
		}
	})
}

func TestWaitingReaderOutlastsThePause(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 10})
		s.DropHandle()
		time.Sleep(2 * s.linger)
		o.request(t, 0).send(10)
		rd.mustReturn(t, nil)
	})
}

func TestOriginWithoutRangesIsReadInOrder(t *testing.T) {
	inStage(t, 64*mib, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		s.obj.Ranges = false
		far := startRead(t.Context(), s, byteRange{60 * mib, 60*mib + 10})
		startRead(t.Context(), s, byteRange{30 * mib, 30*mib + 10})
		o.mustBe(t, 1)
		if r := o.request(t, 0).asked; r != (byteRange{0, 64 * mib}) {
			t.Fatalf("asked for %v", r)
		}
		o.request(t, 0).send(60*mib + 10)
		far.mustReturn(t, nil)
	})
}

// A place that another file's stalled request has is waited for in the fetch,
// not in the reader's way out.
func TestRequestWaitsForAPlace(t *testing.T) {
	inStage(t, 1000, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		s.slots = make(chan struct{}, 1)
		s.slots <- struct{}{}
		ctx, cancel := context.WithCancel(t.Context())
		gone := startRead(ctx, s, byteRange{0, 10})
		stays := startRead(t.Context(), s, byteRange{0, 10})
		o.mustBe(t, 0)
		cancel()
		synctest.Wait()
		gone.mustReturn(t, context.Canceled)
		<-s.slots
		o.request(t, 0).send(10)
		stays.mustReturn(t, nil)
	})
}

func TestChangedFileStaysFailedAndHasASuccessor(t *testing.T) {
	inStage(t, 1000, func(t *testing.T, s *TempFileStore, o *stagedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		o.request(t, 0).send(10)
		o.request(t, 0).end(errChanged)
		rd.mustReturn(t, errChanged)
		s.AddHandle()
		startRead(t.Context(), s, byteRange{0, 1000}).mustReturn(t, errChanged)
		startRead(t.Context(), s, byteRange{0, 10}).mustReturn(t, nil)
		o.next = Object{Size: 2000, ETag: `"new"`, Ranges: true}
		next, err := s.Successor(t.Context())
		if err != nil || next.Size() != 2000 || !errors.Is(s.err, errChanged) {
			t.Fatalf("successor of %d bytes, error %v", next.Size(), err)
		}
		next.Close()
	})
}
