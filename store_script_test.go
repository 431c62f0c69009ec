// The origins of the store's tests. A scriptedOrigin leaves each request to the
// test. A modelOrigin fails at random in every way that an Origin may fail, and
// checks what the store requests.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const mib = 1 << 20

// scriptedOrigin keeps every request for the test to answer.
type scriptedOrigin struct {
	obj    Object
	next   Object // what Stat returns
	atOnce int64  // how many bytes each request sends before the test says more

	mu       sync.Mutex
	requests []*scriptedRequest // GUARDED_BY(mu); all that were made, in order
	statErr  error              // GUARDED_BY(mu); of Stat
	stats    int                // GUARDED_BY(mu); how often Stat was called
}

func newScriptedOrigin(obj Object) *scriptedOrigin { return &scriptedOrigin{obj: obj, next: obj} }

// newStubOrigin returns an origin of size bytes that sends all of them at once.
func newStubOrigin(size int64) *scriptedOrigin {
	o := newScriptedOrigin(Object{Size: size})
	o.atOnce = size
	return o
}

// ranged returns a file of size bytes whose origin knows byte ranges.
func ranged(size int64) Object { return Object{Size: size, Ranges: true} }

func (o *scriptedOrigin) String() string { return "scripted" }

func (o *scriptedOrigin) Connect(Object) {}

func (o *scriptedOrigin) Stat(context.Context) (Object, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stats++
	return o.next, o.statErr
}

func (o *scriptedOrigin) Open(ctx context.Context, q request) (io.ReadCloser, error) {
	req := &scriptedRequest{asked: q.r, left: q.r, ctx: ctx, granted: o.atOnce, grant: make(chan int64), fail: make(chan error)}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests = append(o.requests, req)
	if q.sent != nil {
		q.sent()
	}
	return req, nil
}

// all returns the requests that the store has made, in their order. It takes the
// lock even when all is settled: a timer of the store may make the next request,
// and nothing else orders that after the look.
func (o *scriptedOrigin) all() []*scriptedRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.requests)
}

// send lets the first request send n more bytes, and waits until all is settled.
func (o *scriptedOrigin) send(n int64) {
	synctest.Wait()
	o.all()[0].send(n)
}

// request returns the i-th request of all, from 0, once all is settled.
func (o *scriptedOrigin) request(t *testing.T, i int) *scriptedRequest {
	t.Helper()
	synctest.Wait()
	all := o.all()
	if i >= len(all) {
		t.Fatalf("requests so far: got %d, want more than %d", len(all), i)
	}
	return all[i]
}

// mustAsk returns the i-th request, which must be for r.
func (o *scriptedOrigin) mustAsk(t *testing.T, i int, r byteRange) *scriptedRequest {
	t.Helper()
	req := o.request(t, i)
	if req.asked != r {
		t.Fatalf("request %d: got %v, want %v", i, req.asked, r)
	}
	return req
}

// mustHave fails unless the store has made n requests.
func (o *scriptedOrigin) mustHave(t *testing.T, n int) {
	t.Helper()
	synctest.Wait()
	if all := o.all(); len(all) != n {
		for _, req := range all {
			t.Logf("request for %v", req.asked)
		}
		t.Fatalf("requests so far: got %d, want %d", len(all), n)
	}
}

// mustHaveInFlight fails unless n requests are neither complete nor cancelled.
func (o *scriptedOrigin) mustHaveInFlight(t *testing.T, n int) {
	t.Helper()
	if got := o.inFlight(); got != n {
		t.Fatalf("requests in flight: got %d, want %d", got, n)
	}
}

func (o *scriptedOrigin) inFlight() (n int) {
	synctest.Wait()
	for _, req := range o.all() {
		if req.running() {
			n++
		}
	}
	return n
}

// scriptedRequest is a request, and its body. The test may answer it before the
// store reads the body.
type scriptedRequest struct {
	asked, left byteRange
	ctx         context.Context
	grant       chan int64 // lets the body send so many more bytes
	fail        chan error // ends the body
	granted     int64
}

// Read BLOCKS until the test grants bytes; wakes on that, on an error from the
// test, and on the end of the request's context.
func (req *scriptedRequest) Read(p []byte) (int, error) {
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
	fillContent(p[:n], testSeed, req.left.off)
	req.left.off += n
	req.granted -= n
	return int(n), nil
}

func (req *scriptedRequest) Close() error { return nil }

// send lets the request send n more bytes, and waits until all is settled.
func (req *scriptedRequest) send(n int64) {
	req.grant <- n
	synctest.Wait()
}

// end makes the request fail with err, and waits until all is settled.
func (req *scriptedRequest) end(err error) {
	req.fail <- err
	synctest.Wait()
}

func (req *scriptedRequest) running() bool { return req.ctx.Err() == nil && !req.left.empty() }

// reading is a ReadAt under way.
type reading struct {
	done chan struct{}
	n    int
	err  error
}

// startRead reads r in a goroutine, and returns when the read sleeps or has
// returned. Wrong bytes make an error of the read.
func startRead(ctx context.Context, s *TempFileStore, r byteRange) *reading {
	rd := &reading{done: make(chan struct{})}
	go func() {
		defer close(rd.done)
		p := make([]byte, r.len())
		rd.n, rd.err = s.ReadAt(ctx, p, r.off)
		if wrong := checkContent(p[:rd.n], testSeed, r.off); wrong != nil {
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
		t.Fatalf("error of the read: got %v, want %v", rd.err, want)
	}
}

func (rd *reading) mustWait(t *testing.T) {
	t.Helper()
	if rd.returned() {
		t.Fatalf("the read returned (n=%d, err=%v), want it to wait", rd.n, rd.err)
	}
}

// waiterCount returns how many reads of s sleep.
func waiterCount(s *TempFileStore) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiters.len()
}

// testConfig returns a configuration with long time limits.
func testConfig(dir string) *storeConfig {
	return &storeConfig{trace: new(tracer), connections: 4, linger: time.Minute, readTimeout: time.Hour,
		total: new(storeTotals), room: newRoomTable(dir, cacheSize{}, nil)}
}

// tracedConfig is testConfig with a trace.
func tracedConfig(dir string, trace *tracer) *storeConfig {
	config := testConfig(dir)
	config.trace = trace
	return config
}

// inBubble runs test in a synctest bubble, with a store of obj that has one open
// handle, and closes the store.
func inBubble(t *testing.T, obj Object, test func(t *testing.T, s *TempFileStore, o *scriptedOrigin)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := newScriptedOrigin(obj)
		s := newTempFileStore(o, obj, testConfig(dir))
		s.AddHandle()
		s.plan.reach = obj.Size // as after a read past the beginning
		defer s.Close()
		test(t, s, o)
	})
}

// modelOrigin is an origin that fails as its seed says.
type modelOrigin struct {
	// Write once, before any goroutine starts.
	file     *modelFile
	obj      Object
	refuses  float64       // the probability that a request is refused
	breaks   float64       // the probability that a body ends early
	final    float64       // the probability that a failure is final
	slow     time.Duration // before each piece of a body
	maxPiece int64         // the most bytes that one Read returns

	// Read write.
	healed   atomic.Bool // it fails no more
	inFlight atomic.Int64

	mu         sync.Mutex
	opens      map[int64]int     // GUARDED_BY(mu); requests by their first byte
	lastByte   time.Time         // GUARDED_BY(mu)
	byteBefore time.Time         // GUARDED_BY(mu); the last time before lastByte at which bytes were sent
	finalErrs  []error           // GUARDED_BY(mu); the final failures
	pauses     []modelRetryAfter // GUARDED_BY(mu)
}

// modelRetryAfter is a pause that the origin asked for.
type modelRetryAfter struct {
	ctx         context.Context // of the request that got this answer
	asked, over time.Time
}

func newModelOrigin(f *modelFile, rng *rand.Rand) *modelOrigin {
	size := 1 + rng.Int64N([]int64{100, 70_000, 3 * mib, 24 * mib}[rng.IntN(4)])
	o := &modelOrigin{
		file:     f,
		obj:      Object{Size: size, Ranges: rng.IntN(6) > 0},
		refuses:  rng.Float64() * rng.Float64(),
		breaks:   rng.Float64(),
		slow:     []time.Duration{0, 0, time.Millisecond, 20 * time.Millisecond, 400 * time.Millisecond}[rng.IntN(5)],
		maxPiece: max(1+rng.Int64N(10), size/(1+rng.Int64N(300))),
		opens:    make(map[int64]int),
	}
	if rng.IntN(4) == 0 {
		o.final = 0.1
	}
	return o
}

func (o *modelOrigin) String() string { return "model" }
func (o *modelOrigin) Connect(Object) {}

func (o *modelOrigin) Stat(context.Context) (Object, error) { return o.obj, nil }

// noteByte records that the origin sends bytes now.
func (o *modelOrigin) noteByte() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); !now.Equal(o.lastByte) {
		o.byteBefore, o.lastByte = o.lastByte, now
	}
}

// silence returns for how long the origin has sent no byte. Bytes that it sends at
// this very instant do not count.
func (o *modelOrigin) silence() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if quiet := time.Since(o.lastByte); quiet > 0 {
		return quiet
	}
	return time.Since(o.byteBefore)
}

// failedWith reports whether err is a final failure of this origin.
func (o *modelOrigin) failedWith(err error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.finalErrs, func(final error) bool {
		return errors.Is(err, final) || final == errPanic && strings.Contains(err.Error(), "panic: "+errPanic.Error())
	})
}

// Open implements Origin.
func (o *modelOrigin) Open(ctx context.Context, q request) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	place, err := o.file.run.hosts.take(ctx, "model", o, func() {
		cancel(errMadeWay)
		q.yield()
	})
	if err != nil {
		return nil, err
	}
	q.sent()
	defer func() {
		if p := recover(); p != nil {
			place.done(true)
			panic(p)
		}
	}()
	r := q.r
	rng := o.begin(q.obj, r)
	if err := o.answer(ctx, rng); err != nil {
		o.end()
		place.done(true)
		return nil, err
	}
	b := &modelBody{origin: o, place: place, ctx: ctx, rng: rng, left: r, breakAt: -1, slow: o.slow, stalls: rng.IntN(3) == 0}
	if rng.Float64() < o.breaks && !o.healed.Load() {
		b.breakAt = r.off + rng.Int64N(r.len())
	}
	if rng.IntN(4) == 0 {
		b.slow = 0
	}
	return b, nil
}

// begin counts a request in and checks it. It returns the random numbers that
// decide what happens to the request.
func (o *modelOrigin) begin(obj Object, r byteRange) *rand.Rand {
	f, m := o.file, o.file.run
	m.counts.opens.Add(1)
	if n := o.inFlight.Add(1); n > int64(f.latest().connections) {
		f.errorf("requests in flight: got %d, want at most %d", n, f.latest().connections)
	}
	if r.empty() || r.off < 0 || r.end > o.obj.Size || obj != o.obj {
		f.errorf("request for %v of %+v, want a range of %+v", r, obj, o.obj)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.checkPausesLocked()
	o.opens[r.off]++
	return m.rng(2, f.content, uint64(r.off), uint64(o.opens[r.off]))
}

// checkPausesLocked requires that no pause goes on that the origin asked for. It
// does not check a store whose requests wait for places: the store may have planned
// the request before the pause.
//
// LOCKS_REQUIRED(o.mu)
func (o *modelOrigin) checkPausesLocked() {
	if o.file.run.scarce || len(o.finalErrs) > 0 {
		return
	}
	now := time.Now()
	for _, p := range o.pauses {
		cause := context.Cause(p.ctx)
		if now.After(p.asked) && now.Before(p.over) && cause != errPreempted && cause != errPaused {
			o.file.errorf("next request after Retry-After: got %v, want at least %v", now.Sub(p.asked), p.over.Sub(p.asked))
		}
	}
}

func (o *modelOrigin) end() { o.inFlight.Add(-1) }

// answer waits for a round trip. It returns nil, or the error that refuses the
// request.
func (o *modelOrigin) answer(ctx context.Context, rng *rand.Rand) error {
	if err := modelSleep(ctx, time.Duration(rng.IntN(100))*time.Millisecond); err != nil {
		return err
	}
	if rng.Float64() >= o.refuses || o.healed.Load() {
		return nil
	}
	o.file.run.counts.faults.Add(1)
	if rng.Float64() < o.final {
		return o.failForGood([]error{statusError{code: 404}, errChanged, redirectError{"to nowhere"}, errPanic}[rng.IntN(4)])
	}
	switch rng.IntN(5) {
	case 0:
		return networkError{syscall.ECONNREFUSED}
	case 1:
		return statusError{code: 500}
	case 2:
		return o.askForPause(ctx, 429, time.Duration(rng.IntN(60))*time.Second)
	case 3:
		return o.askForPause(ctx, 503, time.Duration(rng.IntN(3000))*time.Millisecond)
	}
	if err := modelSleep(ctx, modelStall); err != nil {
		return err
	}
	return networkError{os.ErrDeadlineExceeded}
}

// failForGood returns err as a final failure. It panics with errPanic.
func (o *modelOrigin) failForGood(err error) error {
	o.mu.Lock()
	o.finalErrs = append(o.finalErrs, err)
	o.mu.Unlock()
	if err == errPanic {
		defer o.end()
		panic(err)
	}
	return err
}

func (o *modelOrigin) askForPause(ctx context.Context, code int, pause time.Duration) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pauses = append(o.pauses, modelRetryAfter{ctx, time.Now(), time.Now().Add(pause)})
	return statusError{code: code, after: pause}
}

// modelBody is a body that may be slow, come in pieces, and end early.
type modelBody struct {
	origin  *modelOrigin
	place   *place
	ctx     context.Context
	rng     *rand.Rand
	left    byteRange
	breakAt int64 // where it ends early; -1 if it does not
	stalls  bool  // it sends nothing for modelStall before it ends early
	slow    time.Duration
}

func (b *modelBody) Close() error {
	b.origin.end()
	b.place.done(true)
	return nil
}

// Read takes every liberty that io.Reader allows.
func (b *modelBody) Read(p []byte) (int, error) {
	if b.left.empty() {
		return 0, io.EOF
	}
	if b.breaksNow() {
		return 0, b.breakOff()
	}
	if err := modelSleep(b.ctx, b.slow); err != nil {
		return 0, err
	}
	n := min(int64(len(p)), b.left.len(), 1+b.rng.Int64N(b.origin.maxPiece))
	if b.breakAt > b.left.off {
		n = min(n, b.breakAt-b.left.off)
	}
	fillContent(p[:n], b.origin.file.content, b.left.off)
	b.place.arrived(int(n))
	b.left.off += n
	b.origin.noteByte()
	switch {
	case b.rng.IntN(2) == 0:
		return int(n), nil
	case b.left.empty():
		return int(n), io.EOF
	case b.breaksNow() && !b.stalls:
		return int(n), b.breakOff()
	}
	return int(n), nil
}

func (b *modelBody) breaksNow() bool {
	return b.left.off == b.breakAt && !b.origin.healed.Load()
}

// breakOff returns the error that ends the body early.
func (b *modelBody) breakOff() error {
	b.origin.file.run.counts.faults.Add(1)
	if b.rng.Float64() < b.origin.final {
		return b.origin.failForGood(errLongBody)
	}
	switch {
	case !b.stalls && b.rng.IntN(2) == 0:
		return errShortBody
	case !b.stalls:
		return networkError{syscall.ECONNRESET}
	}
	if err := modelSleep(b.ctx, modelStall); err != nil {
		return err
	}
	return fmt.Errorf("%w for %v", errStalled, modelStall)
}

// modelSleep sleeps for d, or until the end of ctx.
func modelSleep(ctx context.Context, d time.Duration) error {
	if sleepUntil(ctx, time.Now().Add(d)) != nil {
		return context.Cause(ctx)
	}
	return nil
}
