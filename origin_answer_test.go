// Tests of which failures are worth another attempt: every status, directly and
// behind a redirect, Retry-After in all its forms, and failures of the network as
// real sockets produce them.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestWhichStatusIsAskedAgain(t *testing.T) {
	passing := map[int]bool{408: true, 429: true, 500: true, 502: true, 503: true, 504: true, 507: true, 599: true}
	for _, code := range []int{201, 204, 304, 400, 401, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414,
		415, 416, 417, 421, 422, 423, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 599} {
		o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/redirects" {
				http.Redirect(w, r, "/f.bin", http.StatusFound)
				return
			}
			w.WriteHeader(code)
		})
		for _, redirected := range []bool{false, true} {
			if redirected {
				o.url.Path = "/redirects"
			}
			_, err := o.Open(t.Context(), Object{Size: 1}, byteRange{0, 1})
			signed := redirected && (code == 400 || code == 401 || code == 403)
			retry, after := retryAdvice(fmt.Errorf("fetch: %w", err))
			if retry != (passing[code] || signed) || after != 0 {
				t.Errorf("%v: retry %v after %v, want %v at once", err, retry, after, passing[code] || signed)
			}
			if got := redirectedRefusal(fmt.Errorf("fetch: %w", err)); got != signed {
				t.Errorf("%v: taken for an expired signature: %v, want %v", err, got, signed)
			}
			if want := (statusError{code: code, redirected: redirected}); !errors.Is(err, want) {
				t.Errorf("error %#v, want %#v", err, want)
			}
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, time.March, 2, 10, 0, 30, 0, time.UTC)
	tests := []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"0", "", 0},
		{"7", "", 7 * time.Second},
		{"60", "", maxRetryAfter},
		{"61", "", maxRetryAfter},
		{"99999999999999999999999", "", maxRetryAfter},
		{"9223372036854775807", "", maxRetryAfter},
		{"-1", "", 0},
		{"1.5", "", 0},
		{"soon", "", 0},
		{"Mon, 02 Mar 2026 10:00:40 GMT", "", 10 * time.Second},
		{"Monday, 02-Mar-26 10:00:40 GMT", "", 10 * time.Second},
		{"Mon Mar  2 10:00:40 2026", "", 10 * time.Second},
		{"Mon, 02 Mar 2026 10:00:20 GMT", "", 0},
		{"Tue, 03 Mar 2026 10:00:00 GMT", "", maxRetryAfter},
		{"Mon, 02 Mar 2026 12:00:05 GMT", "Mon, 02 Mar 2026 12:00:00 GMT", 5 * time.Second},
		{"Mon, 02 Mar 2026 10:00:40 GMT", "no date", 10 * time.Second},
	}
	for _, tt := range tests {
		h := http.Header{"Retry-After": {tt.value}, "Date": {tt.date}}
		if got := parseRetryAfter(h, now); got != tt.want {
			t.Errorf("Retry-After %q, Date %q: %v, want %v", tt.value, tt.date, got, tt.want)
		}
	}
}

func TestRetryAfterReachesTheCaller(t *testing.T) {
	code := 503
	o := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "17")
		w.WriteHeader(code)
	})
	_, err := o.Open(t.Context(), Object{Size: 1}, byteRange{0, 1})
	if retry, after := retryAdvice(err); !retry || after != 17*time.Second {
		t.Errorf("%v: retry %v after %v, want after 17s", err, retry, after)
	}
	code = 404
	_, err = o.Stat(t.Context())
	if retry, after := retryAdvice(err); retry || after != 0 {
		t.Errorf("%v: retry %v after %v, want none", err, retry, after)
	}
}

func TestWhatIsNoFailureOfTheNetworkIsFinal(t *testing.T) {
	for _, err := range []error{
		nil,
		errChanged,
		errLongBody,
		errNoSize,
		errors.New("the disk is full"),
		syscall.ECONNRESET, // not of a transfer: those are networkErrors
		os.ErrDeadlineExceeded,
		context.Canceled,
		context.DeadlineExceeded,
	} {
		if retry, after := retryAdvice(err); retry || after != 0 || redirectedRefusal(err) {
			t.Errorf("%v: retry %v after %v, want none", err, retry, after)
		}
	}
}

// startRawOrigin accepts connections until the test ends, and gives each to
// serve, by its number from 0 on.
func startRawOrigin(t *testing.T, serve func(i int, c *net.TCPConn)) *httpOrigin {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			serve(i, c.(*net.TCPConn))
			c.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return originOf(t, "http://"+listener.Addr().String()+"/f")
}

// readRequest takes the whole of one request: a connection that is closed with
// bytes unread is reset.
func readRequest(c net.Conn) {
	var tail []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(tail), "\r\n\r\n"); {
		if _, err := c.Read(one); err != nil {
			return
		}
		tail = append(tail, one[0])
	}
}

func TestFailuresOfTheNetworkAreTriedAgain(t *testing.T) {
	const header = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-999/1000\r\n"
	tests := []struct {
		name  string
		serve func(i int, c *net.TCPConn)
		want  error // nil for any
	}{
		{"closed before the answer", func(_ int, c *net.TCPConn) { readRequest(c) }, nil},
		{"reset before the answer", func(_ int, c *net.TCPConn) { readRequest(c); c.SetLinger(0) }, nil},
		{"closed within the header", func(_ int, c *net.TCPConn) { readRequest(c); io.WriteString(c, header) }, nil},
		{"no HTTP", func(_ int, c *net.TCPConn) { readRequest(c); io.WriteString(c, "SSH-2.0-x\r\n\r\n") }, nil},
		{"cut", func(_ int, c *net.TCPConn) {
			readRequest(c)
			io.WriteString(c, header+"Content-Length: 1000\r\n\r\n")
			c.Write(bytesOf(byteRange{0, 500}))
		}, errShortBody},
		{"cut, chunked", func(_ int, c *net.TCPConn) {
			readRequest(c)
			io.WriteString(c, header+"Transfer-Encoding: chunked\r\n\r\n1f4\r\n")
			c.Write(bytesOf(byteRange{0, 500}))
		}, errShortBody},
		{"cut before the last chunk", func(_ int, c *net.TCPConn) {
			readRequest(c)
			io.WriteString(c, header+"Transfer-Encoding: chunked\r\n\r\n3e8\r\n")
			c.Write(bytesOf(byteRange{0, 1000}))
		}, errShortBody},
		{"no chunk where one should be", func(_ int, c *net.TCPConn) {
			readRequest(c)
			io.WriteString(c, header+"Transfer-Encoding: chunked\r\n\r\nxyz\r\n")
		}, nil},
		{"reset within the body", func(_ int, c *net.TCPConn) {
			readRequest(c)
			io.WriteString(c, header+"Content-Length: 1000\r\n\r\n")
			c.SetLinger(0)
		}, syscall.ECONNRESET},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := startRawOrigin(t, tt.serve)
			got, err := openAll(o, Object{Size: 1000, Ranges: true}, byteRange{0, 1000})
			wantRetry(t, err, true)
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if wrong := checkContent(got, testSeed, 0); wrong != nil {
				t.Error(wrong)
			}
		})
	}
}

func wantRetry(t *testing.T, err error, want bool) {
	t.Helper()
	if retry, after := retryAdvice(err); err == nil || retry != want || after != 0 {
		t.Errorf("error %v: retry %v after %v, want retry %v at once", err, retry, after, want)
	}
}

func TestRefusedConnectionIsTriedAgain(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	o := originOf(t, "http://"+listener.Addr().String()+"/f")
	_, err = o.Open(t.Context(), Object{Size: 1}, byteRange{0, 1})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("error %v, want ECONNREFUSED", err)
	}
	wantRetry(t, err, true)
}

func TestAMistrustedServerIsNotAskedAgain(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for _, rawURL := range []string{server.URL, strings.Replace(plain.URL, "http:", "https:", 1)} {
		_, err := originOf(t, rawURL).Stat(t.Context())
		wantRetry(t, err, false)
		if errors.As(err, new(statusError)) {
			t.Errorf("%s was believed: %v", rawURL, err)
		}
	}
}

func TestTheEndOfTheContextIsNoFailure(t *testing.T) {
	begun := make(chan struct{})
	o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "bytes=0-0" {
			close(begun)
			<-r.Context().Done()
			return
		}
		setHeader(w, "Content-Range", "bytes 0-999/1000", "Content-Length", "1000")
		w.WriteHeader(http.StatusPartialContent)
		w.Write(bytesOf(byteRange{0, 10}))
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	_, err := o.Stat(ctx)
	if err != context.Canceled {
		t.Errorf("Stat: error %v, want context canceled", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	body, err := o.Open(ctx, Object{Size: 1000, Ranges: true}, byteRange{0, 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	_, err = body.Read(make([]byte, 10))
	if err != context.Canceled {
		t.Errorf("Read: error %v, want context canceled", err)
	}
	wantRetry(t, err, false)
}
