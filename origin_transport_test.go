// Tests of silence and of cancelling: bodies that stall, lookups, handshakes and
// answers that hang, dead connections of HTTP/2. They run in synctest bubbles over
// connections in memory, with the program's own limits and a clock that does not wait.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const stallLimit = 15 * time.Second

// fakeTransport answers every request with a 206 and the body that body returns.
type fakeTransport struct {
	body        func(ctx context.Context) io.ReadCloser
	idleDropped int
}

func (f *fakeTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode:    http.StatusPartialContent,
		Header:        http.Header{"Content-Range": {"bytes 0-999/1000"}},
		ContentLength: 1000,
		Body:          f.body(req.Context()),
		Request:       req,
	}, nil
}

func (f *fakeTransport) CloseIdleConnections() { f.idleDropped++ }

// pacedBody is 1000 bytes of content. A Read after the first sent bytes takes
// step(sent).
type pacedBody struct {
	ctx    context.Context
	step   func(sent int64) time.Duration
	sent   int64
	closed int
}

func (b *pacedBody) Read(p []byte) (int, error) {
	if err := sleepUntil(b.ctx, time.Now().Add(b.step(b.sent))); err != nil {
		return 0, err
	}
	n := min(int64(len(p)), 100, 1000-b.sent)
	if n == 0 {
		return 0, io.EOF
	}
	fillContent(p[:n], testSeed, b.sent)
	b.sent += n
	return int(n), nil
}

func (b *pacedBody) Close() error { b.closed++; return nil }

// openPaced opens a pacedBody with step. A silence of stallLimit ends it.
func openPaced(t *testing.T, ctx context.Context, step func(sent int64) time.Duration) (io.ReadCloser, *pacedBody, *fakeTransport) {
	t.Helper()
	paced := &pacedBody{step: step}
	transport := &fakeTransport{body: func(ctx context.Context) io.ReadCloser {
		paced.ctx = ctx
		return paced
	}}
	u := &url.URL{Scheme: "http", Host: "fake", Path: "/f"}
	o := newHTTPOrigin(clientOver(transport, new(credentials)), u, stallLimit)
	body, err := o.Open(ctx, request{obj: Object{Size: 1000, Ranges: true}, r: byteRange{0, 1000}})
	if err != nil {
		t.Fatal(err)
	}
	return body, paced, transport
}

func TestASilentBodyEndsAsStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body, paced, transport := openPaced(t, t.Context(), func(sent int64) time.Duration {
			if sent == 500 {
				return 365 * 24 * time.Hour
			}
			return stallLimit - time.Nanosecond
		})
		start := time.Now()
		got, err := io.ReadAll(body)
		if silent := time.Since(start) - 5*(stallLimit-1); len(got) != 500 || silent != stallLimit {
			t.Errorf("%d bytes and %v of silence, want 500 and %v", len(got), silent, stallLimit)
		}
		wantRetry(t, err, true)
		if !errors.Is(err, errStalled) || !strings.Contains(err.Error(), stallLimit.String()) {
			t.Errorf("error %v, want errStalled for %v", err, stallLimit)
		}
		if paced.closed == 0 || transport.idleDropped != 1 {
			t.Errorf("closed %d times, idle connections dropped %d times, want both", paced.closed, transport.idleDropped)
		}
		body.Close()
	})
}

func TestAReaderThatTakesItsTimeIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body, _, transport := openPaced(t, t.Context(), func(int64) time.Duration { return 0 })
		defer body.Close()
		for range 10 {
			time.Sleep(10 * stallLimit)
			if _, err := io.ReadFull(body, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := body.Read(make([]byte, 1)); n != 0 || err != io.EOF || transport.idleDropped != 0 {
			t.Errorf("%d bytes, %v; idle connections dropped %d times", n, err, transport.idleDropped)
		}
	})
}

// The bubble reports a timer's goroutine that outlives the test.
func TestAClosedBodyRingsNoAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		body, paced, transport := openPaced(t, ctx, func(int64) time.Duration { return 0 })
		if _, err := body.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		body.Close()
		time.Sleep(2 * stallLimit)
		synctest.Wait()
		if ctx.Err() != nil || transport.idleDropped != 0 || paced.closed != 1 {
			t.Errorf("context %v; idle connections dropped %d times, body closed %d times",
				ctx.Err(), transport.idleDropped, paced.closed)
		}
	})
}

func TestSkippingAheadCountsAsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		paced := &pacedBody{ctx: t.Context(), step: func(int64) time.Duration { return stallLimit - 1 }}
		ctx, cancel := context.WithCancelCause(t.Context())
		watched := newWatchedBody(ctx, cancel, paced, stallLimit, takePlace(t), func() { t.Error("taken for a stall") })
		body := &exactBody{ReadCloser: watched, skip: 700, left: 300}
		defer body.Close()
		got, err := io.ReadAll(body)
		if wrong := checkContent(got, testSeed, 700); err != nil || len(got) != 300 || wrong != nil {
			t.Errorf("%d bytes, %v, %v", len(got), err, wrong)
		}
	})
}

// takePlace returns a place of a host table of its own.
func takePlace(t *testing.T) *place {
	t.Helper()
	p, err := newHostTable(1, stallLimit).take(t.Context(), "host", t, func() {})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// memoryNet is a network in memory, which works in a bubble: dial connects to the
// goroutine that calls Accept.
type memoryNet struct {
	accepting chan net.Conn
	closed    chan struct{}
	close     func()        // closes closed, once
	mu        sync.Mutex    // of the appends to dialed
	dialed    []*memoryConn // used by the test's goroutine and by goroutines it waits for
}

func newMemoryNet() *memoryNet {
	m := &memoryNet{accepting: make(chan net.Conn), closed: make(chan struct{})}
	m.close = sync.OnceFunc(func() { close(m.closed) })
	return m
}

func (m *memoryNet) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case m.accepting <- far:
		c := &memoryConn{Conn: near}
		m.mu.Lock()
		m.dialed = append(m.dialed, c)
		m.mu.Unlock()
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *memoryNet) Accept() (net.Conn, error) {
	select {
	case c := <-m.accepting:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *memoryNet) Close() error   { m.close(); return nil }
func (m *memoryNet) Addr() net.Addr { return memoryAddr{} }

type memoryAddr struct{}

func (memoryAddr) Network() string { return "memory" }
func (memoryAddr) String() string  { return "example.com:443" }

// memoryConn is a connection that can die as connections do when a network changes:
// it loses all bytes of both ends, and reports no error.
type memoryConn struct {
	net.Conn
	dead   atomic.Bool
	closed atomic.Bool
}

func (c *memoryConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.dead.Load() {
			return n, err
		}
	}
}

func (c *memoryConn) Write(p []byte) (int, error) {
	if c.dead.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *memoryConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// serveMemory serves handler over a network in memory until the test ends. It returns
// the network, and the origin of a file there over the program's own transport.
func serveMemory(t *testing.T, scheme string, handler http.HandlerFunc) (*memoryNet, *httpOrigin) {
	t.Helper()
	network := newMemoryNet()
	server := httptest.NewUnstartedServer(handler)
	server.Listener.Close()
	server.Listener = network
	way := route{reach: anyAddress}
	transport := newHTTPTransport(&net.Dialer{}, way, noCount)
	if scheme == "https" {
		server.EnableHTTP2 = true
		server.StartTLS()
		transport.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		transport.TLSClientConfig.NextProtos = nil
	} else {
		server.Start()
	}
	client := clientOver(transport, new(credentials))
	transport.DialContext = countDials(network.dial, way, client.freeAt)
	t.Cleanup(func() {
		client.CloseIdleConnections()
		server.Close()
	})
	return network, newHTTPOrigin(client, mustParseURL(t, scheme+"://example.com/f"), stallLimit)
}

// halfThenSilence promises 1000 bytes, sends 500, and waits until the client leaves.
func halfThenSilence(w http.ResponseWriter, r *http.Request) {
	setHeader(w, "Content-Range", "bytes 0-999/1000", "Content-Length", "1000", "X-Proto", r.Proto)
	w.WriteHeader(http.StatusPartialContent)
	w.Write(bytesOf(byteRange{0, 500}))
	http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func TestAStallDropsTheConnectionAndItsIdleBrothers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, o := serveMemory(t, "http", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "bytes=0-0" {
				servePart(w, byteRange{0, 1}, 1000)
				return
			}
			halfThenSilence(w, r)
		})
		obj := Object{Size: 1000, Ranges: true}
		body, err := o.Open(t.Context(), request{obj: obj, r: byteRange{0, 1000}})
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if _, err := o.Stat(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		got, err := io.ReadAll(body)
		if len(got) != 500 || !errors.Is(err, errStalled) || time.Since(start) != stallLimit {
			t.Errorf("%d bytes, %v after %v, want 500, errStalled after %v", len(got), err, time.Since(start), stallLimit)
		}
		synctest.Wait()
		if len(network.dialed) != 2 {
			t.Fatalf("%d connections, want one that stalls and an idle one", len(network.dialed))
		}
		for i, c := range network.dialed {
			if !c.closed.Load() {
				t.Errorf("connection %d is still open", i)
			}
		}
	})
}

func TestAStalledStreamLeavesALivingHTTP2Connection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, o := serveMemory(t, "https", func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor != 2 {
				t.Errorf("%s, want HTTP/2", r.Proto)
			}
			halfThenSilence(w, r)
		})
		obj, all := Object{Size: 1000, Ranges: true}, byteRange{0, 1000}
		stalls, err := o.Open(t.Context(), request{obj: obj, r: all})
		if err != nil {
			t.Fatal(err)
		}
		defer stalls.Close()
		later, err := newHTTPOrigin(o.client, o.url, 2*stallLimit).Open(t.Context(), request{obj: obj, r: all})
		if err != nil {
			t.Fatal(err)
		}
		defer later.Close()
		if _, err := io.ReadAll(stalls); !errors.Is(err, errStalled) {
			t.Errorf("error %v, want errStalled", err)
		}
		synctest.Wait()
		if len(network.dialed) != 1 || network.dialed[0].closed.Load() {
			t.Errorf("%d connections, the first closed: %v; the stream beside was healthy",
				len(network.dialed), network.dialed[0].closed.Load())
		}
		if got, err := io.ReadAll(later); len(got) != 500 || !errors.Is(err, errStalled) {
			t.Errorf("the stream beside: %d bytes, %v, want its own stall", len(got), err)
		}
	})
}

func TestADeadHTTP2ConnectionIsNoticedByItsPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, o := serveMemory(t, "https", halfThenSilence)
		o.stallTimeout = 0
		obj, all := Object{Size: 1000, Ranges: true}, byteRange{0, 1000}
		body, err := o.Open(t.Context(), request{obj: obj, r: all})
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if _, err := io.ReadFull(body, make([]byte, 400)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		const sincePing = time.Second
		time.Sleep(10*pingAfter + sincePing)
		if network.dialed[0].closed.Load() {
			t.Fatal("a silent but living connection was closed")
		}
		network.dialed[0].dead.Store(true)
		died := time.Now()
		_, err = io.ReadAll(body)
		wantRetry(t, err, true)
		if took, want := time.Since(died), pingAfter-sincePing+pingTimeout; took != want {
			t.Errorf("%v after %v, want after %v", err, took, want)
		}
		again, err := o.Open(t.Context(), request{obj: obj, r: all})
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
		if len(network.dialed) != 2 || !network.dialed[0].closed.Load() {
			t.Errorf("%d connections, the dead one closed: %v", len(network.dialed), network.dialed[0].closed.Load())
		}
	})
}

func TestCancelEndsAStalledBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, o := serveMemory(t, "http", halfThenSilence)
		ctx, cancel := context.WithCancel(t.Context())
		body, err := o.Open(ctx, request{obj: Object{Size: 1000}, r: byteRange{0, 1000}})
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		done := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(body)
			done <- err
		}()
		requireCancelEnds(t, cancel, done)
	})
}

func TestCancelEndsAnUnansweredRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, o := serveMemory(t, "http", neverAnswers)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := o.Stat(ctx)
			done <- err
		}()
		requireCancelEnds(t, cancel, done)
	})
}

func neverAnswers(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// requireCancelEnds requires that the goroutine that sends to done is blocked, and
// that cancel ends its call at once, with no other attempt.
func requireCancelEnds(t *testing.T, cancel context.CancelFunc, done <-chan error) {
	t.Helper()
	synctest.Wait()
	if len(done) != 0 {
		t.Fatalf("the call ended before the cancel: %v", <-done)
	}
	start := time.Now()
	cancel()
	err := <-done
	wantRetry(t, err, false)
	if err != context.Canceled || time.Since(start) != 0 {
		t.Errorf("error %v after %v, want context.Canceled at once", err, time.Since(start))
	}
}

// TestTransferHasNoTimeLimit sends a byte a day.
func TestTransferHasNoTimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, o := serveMemory(t, "http", func(w http.ResponseWriter, r *http.Request) {
			setHeader(w, "Content-Range", "bytes 0-9/10", "Content-Length", "10")
			w.WriteHeader(http.StatusPartialContent)
			for _, b := range contentOf(0, 10) {
				http.NewResponseController(w).Flush()
				time.Sleep(24 * time.Hour)
				w.Write([]byte{b})
			}
		})
		o.stallTimeout = 0
		body, err := o.Open(t.Context(), request{obj: Object{Size: 10}, r: byteRange{0, 10}})
		if err != nil {
			t.Fatal(err)
		}
		checkBody(t, body, byteRange{0, 10})
	})
}

const (
	noLookup = "cannot look up host hangs.example: no name server has an answer (is the network up?)"
	noAnswer = "the server did not answer within 4m0s"
)

// Each hang ends at its own limit, and closes the idle connections.
func TestEveryHangBeforeTheAnswerHasALimit(t *testing.T) {
	readResolverConfig(t)
	silent := func(c net.Conn) { io.Copy(io.Discard, c) }
	dialSilent := func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go silent(far)
		return near, nil
	}
	tests := []struct {
		name   string
		scheme string
		dialer net.Dialer
		dial   func(context.Context, string, string) (net.Conn, error) // nil for the dialer's
		want   time.Duration
		says   string
	}{
		{"lookup", "http", net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: neverDials}}, nil, connectTimeout, noLookup},
		{"lookup that ignores its context", "http",
			net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: stubbornlyDials}}, nil, connectTimeout, noLookup},
		{"handshake", "https", net.Dialer{}, dialSilent, connectTimeout,
			"the server did not agree on TLS within 10s (does it speak https?)"},
		{"answer", "http", net.Dialer{}, dialSilent, lateMax, noAnswer},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				transport := newHTTPTransport(&tt.dialer, route{reach: anyAddress}, noCount)
				if tt.dial != nil {
					transport.DialContext = tt.dial
				}
				idle := &idleCounter{Transport: transport}
				o := newHTTPOrigin(clientOver(idle, new(credentials)), mustParseURL(t, tt.scheme+"://hangs.example/f"), stallLimit)
				start := time.Now()
				_, err := o.Open(t.Context(), request{obj: Object{Size: 1, Ranges: true}, r: byteRange{0, 1}})
				wantRetry(t, err, true)
				if took := time.Since(start); took != tt.want || fmt.Sprint(err) != tt.says {
					t.Errorf("%v after %v, want %q after %v", err, took, tt.says, tt.want)
				}
				if idle.dropped == 0 {
					t.Error("idle connections were not dropped")
				}
				time.Sleep(time.Hour) // until stubbornlyDials returns
			})
		})
	}
}

func TestAnAnswerOverHTTP2HasItsLimitToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, o := serveMemory(t, "https", neverAnswers)
		start := time.Now()
		_, err := o.Open(t.Context(), request{obj: Object{Size: 1, Ranges: true}, r: byteRange{0, 1}})
		wantRetry(t, err, true)
		if took := time.Since(start); took != lateMax || fmt.Sprint(err) != noAnswer {
			t.Errorf("%v after %v over %d connections, want %v", err, took, len(network.dialed), lateMax)
		}
	})
}

// readResolverConfig makes package net read its configuration outside of any bubble:
// its lock would belong to the bubble that looks up the first name.
func readResolverConfig(t *testing.T) {
	t.Helper()
	refuses := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no server") }
	resolver := &net.Resolver{PreferGo: true, Dial: refuses}
	if _, err := resolver.LookupHost(t.Context(), "refused.example"); err == nil {
		t.Fatal("a name was found by no server")
	}
}

func neverDials(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func stubbornlyDials(context.Context, string, string) (net.Conn, error) {
	time.Sleep(5 * time.Minute)
	return nil, errors.New("no server was reached")
}

type idleCounter struct {
	*http.Transport
	dropped int
}

func (c *idleCounter) CloseIdleConnections() {
	c.dropped++
	c.Transport.CloseIdleConnections()
}

func noCount(serverAddress) *atomic.Int64 { return new(atomic.Int64) }

// A server that sends without end on a connection that no request has loses it.
func TestAFloodOnAnIdleConnectionEndsIt(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	guard := &idleGuard{Conn: near, free: new(atomic.Int64)}
	go func() {
		for {
			if _, err := far.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}()
	read := func() (total int, err error) {
		p := make([]byte, 64<<10)
		for total <= 2*idleMax && err == nil {
			var n int
			n, err = guard.Read(p)
			total += n
		}
		return total, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	useConn(ctx, guard)
	if n, err := read(); err != nil {
		t.Fatalf("a connection in use ended after %d bytes: %v", n, err)
	}
	cancel()
	for used := true; used; runtime.Gosched() { // context.AfterFunc
		guard.change(func() { used = guard.requests > 0 })
	}
	if n, err := read(); err != errIdleFlood || n > idleMax {
		t.Errorf("%d bytes, %v, want errIdleFlood after %d", n, err, idleMax)
	}
}

// An open makes a connection, and no request; the first read finds it there, and later opens make no other. When
// the server has closed it, the next open makes one again.
func TestConnectMakesAConnectionAndNoRequest(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		synctest.Test(t, func(t *testing.T) {
			requests := 0
			network, o := serveMemory(t, scheme, func(w http.ResponseWriter, _ *http.Request) {
				requests++
				servePart(w, byteRange{0, 10}, 10)
			})
			for round := range 3 {
				for range 5 {
					o.Connect(Object{})
				}
				synctest.Wait()
				if n := len(network.dialed); n != round+1 || requests != round {
					t.Fatalf("%s: after %d rounds %d connections and %d requests", scheme, round, n, requests)
				}
				body, err := o.Open(t.Context(), request{obj: Object{Size: 10, Ranges: true}, r: byteRange{0, 10}})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadAll(body); err != nil {
					t.Fatal(err)
				}
				body.Close()
				synctest.Wait()
				o.Connect(Object{})
				synctest.Wait()
				if n := len(network.dialed); n != round+1 || requests != round+1 {
					t.Errorf("%s: after the read of round %d %d connections and %d requests", scheme, round, n, requests)
				}
				o.client.CloseIdleConnections() // as the server does after a while
				synctest.Wait()
			}
		})
	}
}
