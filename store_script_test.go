// The scripted origin and the reads of the store's deterministic tests.

package main

import (
	"context"
	"errors"
	"io"
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
