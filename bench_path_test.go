//go:build bench && linux

// bench_path_test.go makes the paths that a benchmark needs and this machine
// has not: an origin that holds every request back, and a link with a round
// trip. They run in the test's own process and count nothing.

package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// benchThrottled serves f, with latency before each answer, and returns its
// URL.
func benchThrottled(t *testing.T, f demoFile, latency time.Duration) string {
	t.Helper()
	files := newDemoHandler([]demoFile{f})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := sleepUntil(r.Context(), time.Now().Add(latency)); err == nil {
			files.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL + "/" + f.name
}

const (
	// benchLinkPiece and benchLinkPieces bound what is under way in one
	// direction of a link: 64 MiB, more than a loopback brings in 50 ms.
	benchLinkPiece  = 64 << 10
	benchLinkPieces = 1024

	// benchLinkCredit is how late a link with a rate may be, and make up for it:
	// more than a timer is.
	benchLinkCredit = 10 * time.Millisecond
)

// benchLink passes connections on to an address: each byte so much later than
// it came, in both directions, and what comes back at a rate that all
// connections share. To connect takes no time.
type benchLink struct {
	// Write once, before any goroutine starts.
	listener net.Listener
	target   string
	delay    time.Duration
	rate     int64     // bytes a second, 0 for no limit
	pieces   sync.Pool // of *[benchLinkPiece]byte

	running sync.WaitGroup

	// Read write.
	mu    sync.Mutex
	conns []net.Conn // GUARDED_BY(mu); all there ever were
	ended bool       // GUARDED_BY(mu)
	busy  time.Time  // GUARDED_BY(mu); until when what has come takes, at rate
}

// benchLinkTo returns the URL of what has that URL on a machine so far away.
func benchLinkTo(t *testing.T, url string, delay time.Duration, rate int64) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	l := &benchLink{listener: listener, target: target, delay: delay, rate: rate}
	l.pieces.New = func() any { return new([benchLinkPiece]byte) }
	l.running.Go(l.accept)
	t.Cleanup(l.stop)
	return "http://" + listener.Addr().String() + "/" + path
}

// stop ends all connections.
//
// BLOCKS until the last goroutine of the link has ended.
func (l *benchLink) stop() {
	l.listener.Close()
	l.mu.Lock()
	l.ended = true
	for _, conn := range l.conns {
		conn.Close()
	}
	l.mu.Unlock()
	l.running.Wait()
}

func (l *benchLink) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", l.target)
		if err != nil || !l.keep(near, far) {
			near.Close()
			continue
		}
		l.running.Go(func() { l.pass(near.(*net.TCPConn), far.(*net.TCPConn), l.delayed) })
		l.running.Go(func() { l.pass(far.(*net.TCPConn), near.(*net.TCPConn), l.paced) })
	}
}

// keep notes connections for stop, and reports false if that was called.
func (l *benchLink) keep(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, conns...)
	return !l.ended
}

// delayed says when n bytes that came now are due.
func (l *benchLink) delayed(int) time.Time { return time.Now().Add(l.delay) }

// paced is delayed for bytes that share the rate.
//
// BLOCKS until their turn has come.
func (l *benchLink) paced(n int) time.Time {
	if l.rate == 0 {
		return l.delayed(n)
	}
	l.mu.Lock()
	if late := time.Now().Add(-benchLinkCredit); l.busy.Before(late) {
		l.busy = late
	}
	l.busy = l.busy.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
	turn := l.busy
	l.mu.Unlock()
	time.Sleep(time.Until(turn))
	return turn.Add(l.delay)
}

// benchPiece is what came at one moment.
type benchPiece struct {
	data *[benchLinkPiece]byte
	n    int // bytes; 0 for the end
	due  time.Time
}

// pass hands what from sends on to to. The end of from is passed on as well; an
// error ends both.
//
// BLOCKS until then.
func (l *benchLink) pass(from, to *net.TCPConn, due func(n int) time.Time) {
	underway := make(chan benchPiece, benchLinkPieces)
	l.running.Go(func() { l.deliver(underway, from, to) })
	defer close(underway)
	for {
		data := l.pieces.Get().(*[benchLinkPiece]byte)
		n, err := from.Read(data[:])
		if n > 0 || err == io.EOF {
			underway <- benchPiece{data, n, due(n)}
		}
		if err != nil && err != io.EOF {
			to.Close()
		}
		if err != nil {
			return
		}
	}
}

// deliver writes each piece when it is due.
//
// BLOCKS until underway is closed.
func (l *benchLink) deliver(underway <-chan benchPiece, from, to *net.TCPConn) {
	for piece := range underway {
		time.Sleep(time.Until(piece.due))
		if piece.n == 0 {
			to.CloseWrite()
		} else if _, err := to.Write(piece.data[:piece.n]); err != nil {
			from.Close()
		}
		l.pieces.Put(piece.data)
	}
}
