// Tests of which failures another attempt may mend: every status, directly and behind
// a redirect, Retry-After in all its forms, and failures of the network as real
// sockets produce them.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
			_, statErr := o.Stat(t.Context())
			_, openErr := o.Open(t.Context(), Object{Size: 1}, byteRange{0, 1})
			for _, err := range []error{statErr, openErr} {
				signed := redirected && (code == 400 || code == 401 || code == 403)
				err = fmt.Errorf("fetch: %w", err)
				wantRetry(t, err, passing[code] || signed)
				if got := redirectedRefusal(err); got != signed {
					t.Errorf("%v: taken for an expired signature: %v, want %v", err, got, signed)
				}
				want := statusError{code: code, redirected: redirected}
				if !errors.Is(err, want) || !strings.Contains(err.Error(), statusLine(code)) {
					t.Errorf("error %#v, want %#v that says so", err, want)
				}
			}
		}
	}
}

// wantRetry requires an error after which another attempt is made at once, or none.
func wantRetry(t *testing.T, err error, want bool) {
	t.Helper()
	if retry, after := retryAdvice(err); err == nil || retry != want || after != 0 {
		t.Errorf("error %v: retry %v after %v, want retry %v at once", err, retry, after, want)
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

func TestFailuresOfTheNetworkAreTriedAgain(t *testing.T) {
	const header = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-999/1000\r\n"
	tests := []struct {
		name, text string
		reset      bool  // the connection is reset, not closed
		want       error // nil for any
	}{
		{"closed before the answer", "", false, nil},
		{"reset before the answer", "", true, nil},
		{"closed within the header", header, false, nil},
		{"no HTTP", "SSH-2.0-x\r\n\r\n", false, nil},
		{"no chunk where one should be", header + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", false, nil},
		{"reset within the body", header + "Content-Length: 1000\r\n\r\n", true, syscall.ECONNRESET},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := serveConns(t, func(c *net.TCPConn) {
				io.WriteString(c, tt.text)
				if tt.reset {
					c.SetLinger(0)
				}
			})
			got, err := openAll(o, Object{Size: 1000, Ranges: true}, byteRange{0, 1000})
			wantRetry(t, err, true)
			if tt.want != nil && !errors.Is(err, tt.want) || len(got) > 0 {
				t.Errorf("%d bytes, error %v, want none and %v", len(got), err, tt.want)
			}
		})
	}
}

func TestAMistrustedServerIsNotAskedAgain(t *testing.T) {
	untrusted := newTLSServer(t, http.NotFoundHandler())
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for _, rawURL := range []string{untrusted.URL, strings.Replace(plain.URL, "http:", "https:", 1)} {
		_, err := originOf(t, rawURL).Stat(t.Context())
		wantRetry(t, err, false)
		if errors.As(err, new(statusError)) {
			t.Errorf("%s was believed: %v", rawURL, err)
		}
	}
}
