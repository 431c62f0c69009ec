// The origins of the store's tests: one whose requests a test answers one by one,
// and the random ones of the model test, which fail in every way an Origin may and
// judge what the store asks of them.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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

func (o *scriptedOrigin) String() string { return "scripted" }

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
		s.AddHandle()
		defer s.Close()
		test(t, s, o)
	})
}

// modelOrigin is an origin that fails as its seed says.
type modelOrigin struct {
	// Write once, before any goroutine starts.
	file   *modelFile
	obj    Object
	refuse float64 // how likely a request is to be refused
	breaks float64 // how likely a body is to break off
	lasts  float64 // how likely a failure is to be for good
	slow   time.Duration
	pieces int64 // bytes, the most in one Read

	// Read write.
	healed atomic.Bool // no fault any more

	mu         sync.Mutex
	inFlight   int            // GUARDED_BY(mu)
	opens      map[int64]int  // GUARDED_BY(mu); requests by their first byte
	lastByte   time.Time      // GUARDED_BY(mu)
	byteBefore time.Time      // GUARDED_BY(mu); when the last came before lastByte
	final      []error        // GUARDED_BY(mu); what was given for good
	embargos   []modelEmbargo // GUARDED_BY(mu)
}

// modelEmbargo is a Retry-After.
type modelEmbargo struct {
	ctx         context.Context // of the request that was told
	said, until time.Time
}

func newModelOrigin(f *modelFile, rng *rand.Rand) *modelOrigin {
	size := 1 + rng.Int64N([]int64{100, 70_000, 3 * mib, 24 * mib}[rng.IntN(4)])
	o := &modelOrigin{
		file:   f,
		obj:    Object{Size: size, Ranges: rng.IntN(6) > 0},
		refuse: rng.Float64() * rng.Float64(),
		breaks: rng.Float64(),
		slow:   []time.Duration{0, 0, time.Millisecond, 20 * time.Millisecond, 400 * time.Millisecond}[rng.IntN(5)],
		pieces: max(1+rng.Int64N(10), size/(1+rng.Int64N(300))),
		opens:  make(map[int64]int),
	}
	if rng.IntN(4) == 0 {
		o.lasts = 0.1
	}
	return o
}

func (o *modelOrigin) String() string { return "model" }

func (o *modelOrigin) Stat(context.Context) (Object, error) { return o.obj, nil }

func (o *modelOrigin) requestCount() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.inFlight
}

// sent notes that bytes are sent now.
func (o *modelOrigin) sent() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); !now.Equal(o.lastByte) {
		o.byteBefore, o.lastByte = o.lastByte, now
	}
}

// silence is for how long the origin has sent no byte, but for those that it
// sends at this very moment.
func (o *modelOrigin) silence() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if last := o.lastByte; time.Since(last) > 0 {
		return time.Since(last)
	}
	return time.Since(o.byteBefore)
}

// gave reports whether err is what the origin ended the store with.
func (o *modelOrigin) gave(err error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, final := range o.final {
		if errors.Is(err, final) {
			return true
		}
		if final == errPanic && strings.Contains(err.Error(), "panic: "+errPanic.Error()) {
			return true
		}
	}
	return false
}

// Open implements Origin.
func (o *modelOrigin) Open(ctx context.Context, obj Object, r byteRange) (io.ReadCloser, error) {
	rng := o.begin(obj, r)
	o.file.run.counts.opens.Add(1)
	if err := o.answer(ctx, rng); err != nil {
		o.end()
		return nil, err
	}
	b := &modelBody{origin: o, ctx: ctx, rng: rng, left: r, breakAt: -1, slow: o.slow, stalls: rng.IntN(3) == 0}
	if rng.Float64() < o.breaks && !o.healed.Load() {
		b.breakAt = r.off + rng.Int64N(r.len())
	}
	if rng.IntN(4) == 0 {
		b.slow = 0
	}
	return b, nil
}

// begin counts a request in, and returns the source of what will happen to it.
func (o *modelOrigin) begin(obj Object, r byteRange) *rand.Rand {
	m := o.file.run
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inFlight++
	if o.inFlight > o.file.store.connections {
		m.errorf("store %d: %d requests in flight, at most %d", o.file.store.debugID, o.inFlight, o.file.store.connections)
	}
	if n := m.inFlight.Add(1); n > int64(cap(m.slots)) {
		m.errorf("%d requests in flight of all stores, at most %d", n, cap(m.slots))
	}
	if r.empty() || r.off < 0 || r.end > o.obj.Size || obj != o.obj {
		m.errorf("store %d: request for %v of %+v", o.file.store.debugID, r, obj)
	}
	o.obeyLocked()
	o.opens[r.off]++
	return m.rng(2, o.file.content, uint64(r.off), uint64(o.opens[r.off]))
}

// obeyLocked requires that no request is made before its time. Where requests
// wait for a slot, one may have been decided on before.
//
// LOCKS_REQUIRED(o.mu)
func (o *modelOrigin) obeyLocked() {
	if o.file.run.scarce || len(o.final) > 0 {
		return
	}
	now := time.Now()
	for _, e := range o.embargos {
		why := context.Cause(e.ctx)
		if now.After(e.said) && now.Before(e.until) && why != errPreempted && why != errPaused {
			o.file.run.errorf("store %d: a request %v after the origin asked for %v", o.file.store.debugID, now.Sub(e.said), e.until.Sub(e.said))
		}
	}
}

func (o *modelOrigin) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inFlight--
	o.file.run.inFlight.Add(-1)
}

// answer waits as long as a round trip, and returns how the request was refused,
// or nil.
func (o *modelOrigin) answer(ctx context.Context, rng *rand.Rand) error {
	if err := modelSleep(ctx, time.Duration(rng.IntN(100))*time.Millisecond); err != nil {
		return err
	}
	if rng.Float64() >= o.refuse || o.healed.Load() {
		return nil
	}
	o.file.run.counts.faults.Add(1)
	if rng.Float64() < o.lasts {
		return o.forGood([]error{statusError{code: 404}, errChanged, errBadRedirect, errPanic}[rng.IntN(4)])
	}
	switch rng.IntN(5) {
	case 0:
		return networkError{syscall.ECONNREFUSED}
	case 1:
		return statusError{code: 500}
	case 2:
		return o.later(ctx, 429, time.Duration(rng.IntN(60))*time.Second)
	case 3:
		return o.later(ctx, 503, time.Duration(rng.IntN(3000))*time.Millisecond)
	}
	if err := modelSleep(ctx, modelStall); err != nil {
		return err
	}
	return networkError{os.ErrDeadlineExceeded}
}

func (o *modelOrigin) forGood(err error) error {
	o.mu.Lock()
	o.final = append(o.final, err)
	o.mu.Unlock()
	if err == errPanic {
		defer o.end()
		panic(err)
	}
	return err
}

func (o *modelOrigin) later(ctx context.Context, code int, after time.Duration) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.embargos = append(o.embargos, modelEmbargo{ctx, time.Now(), time.Now().Add(after)})
	return statusError{code: code, after: after}
}

// modelBody is an answer, which may come slowly, in pieces, and not to its end.
type modelBody struct {
	origin  *modelOrigin
	ctx     context.Context
	rng     *rand.Rand
	left    byteRange
	breakAt int64 // -1 for not
	stalls  bool  // it falls silent there, for modelStall
	slow    time.Duration
}

func (b *modelBody) Close() error {
	b.origin.end()
	return nil
}

// Read implements io.Reader, with every liberty that has.
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
	n := min(int64(len(p)), b.left.len(), 1+b.rng.Int64N(b.origin.pieces))
	if b.breakAt > b.left.off {
		n = min(n, b.breakAt-b.left.off)
	}
	fillContent(p[:n], b.origin.file.content, b.left.off)
	b.left.off += n
	b.origin.sent()
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

func (b *modelBody) breakOff() error {
	b.origin.file.run.counts.faults.Add(1)
	if b.rng.Float64() < b.origin.lasts {
		return b.origin.forGood(errLongBody)
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
	return sleepUntil(ctx, time.Now().Add(d))
}
