// Tests of which failures another attempt may mend: every status, directly and behind
// a redirect, Retry-After in all its forms, and failures of the network as real
// sockets produce them.

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
			_, statErr := o.Stat(t.Context())
			_, openErr := o.Open(t.Context(), request{obj: Object{Size: 1}, r: byteRange{0, 1}})
			for _, err := range []error{statErr, openErr} {
				signed := redirected && code/100 == 4 && !passing[code]
				err = fmt.Errorf("fetch: %w", err)
				wantRetry(t, err, passing[code] || signed)
				if got := redirectedRefusal(err); got != signed {
					t.Errorf("%v: taken for an expired signature: %v, want %v", err, got, signed)
				}
				want := statusError{code: code, redirected: redirected}
				if !errors.Is(err, want) || !strings.Contains(err.Error(), strings.TrimSpace(statusLine(code))) {
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
	_, err := o.Open(t.Context(), request{obj: Object{Size: 1}, r: byteRange{0, 1}})
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
		says       string
	}{
		{"closed before the answer", "", false, io.EOF, "the server closed the connection without an answer"},
		{"reset before the answer", "", true, syscall.ECONNRESET, "the connection broke: connection reset by peer"},
		{"closed within the header", header, false, io.ErrUnexpectedEOF, "the server closed the connection within its answer"},
		{"no HTTP", "SSH-2.0-x\r\n\r\n", false, nil, `the server's answer is not valid HTTP: malformed HTTP response "SSH-2.0-x"`},
		{"a header too large", header + "X: " + strings.Repeat("x", maxHeaderBytes) + "\r\n\r\n", false, nil,
			"the server's answer is not valid HTTP: server response headers exceeded 65536 bytes; aborted"},
		{"no chunk where one should be", header + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", false, nil,
			"the exchange with the server failed: invalid byte in chunk length"},
		{"reset within the body", header + "Content-Length: 1000\r\n\r\n", true, syscall.ECONNRESET,
			"the connection broke: connection reset by peer"},
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
			if tt.want != nil && !errors.Is(err, tt.want) || fmt.Sprint(err) != tt.says || len(got) > 0 {
				t.Errorf("%d bytes, error %v, want none and %v, %q", len(got), err, tt.want, tt.says)
			}
		})
	}
}

func TestAMistrustedServerIsNotAskedAgain(t *testing.T) {
	untrusted := newTLSServer(t, http.NotFoundHandler())
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for rawURL, says := range map[string]string{
		untrusted.URL: "no trusted authority signed the server's certificate (--ca-cert FILE adds an authority)",
		strings.Replace(plain.URL, "http:", "https:", 1):     "the server speaks http: write http://",
		strings.Replace(untrusted.URL, "https:", "http:", 1): "the origin answered 400 Bad Request (if it serves https, write https://)",
	} {
		_, err := originOf(t, rawURL).Stat(t.Context())
		wantRetry(t, err, false)
		if fmt.Sprint(err) != says {
			t.Errorf("%s: error %q, want %q", rawURL, err, says)
		}
	}
}

// TestFailuresOfTheNetworkAreSaidPlainly has those that no server on this machine
// can cause.
func TestFailuresOfTheNetworkAreSaidPlainly(t *testing.T) {
	opError := func(op string, err error) error {
		return &net.OpError{Op: op, Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80}, Err: err}
	}
	badCert := func(err error) error { return &tls.CertificateVerificationError{Err: err} }
	lookup := net.DNSError{Err: "server misbehaving", Name: "h", Server: "192.0.2.53:53"}
	notFound := lookup
	notFound.IsNotFound = true
	day := time.Date(2026, time.March, 2, 0, 0, 0, 0, time.UTC)
	cert := &x509.Certificate{DNSNames: []string{"a", "b", "c", "d"}, NotBefore: day, NotAfter: day.AddDate(1, 0, 0)}
	for says, err := range map[string]error{
		"cannot find host h": opError("dial", &notFound),
		"cannot look up host h: no name server has an answer (is the network up?)":                                      opError("dial", &lookup),
		"cannot connect to 192.0.2.1:80: no route to host":                                                              opError("dial", os.NewSyscallError("connect", syscall.EHOSTUNREACH)),
		"cannot connect to 192.0.2.1:80: no answer within 10s":                                                          opError("dial", os.ErrDeadlineExceeded),
		"the proxy of http_proxy or https_proxy: cannot connect to 192.0.2.1:80: connection refused":                    opError("proxyconnect", opError("dial", syscall.ECONNREFUSED)),
		"the server ended the TLS connection: protocol version not supported (its TLS is older than 1.2, and not safe)": opError("remote error", tls.AlertError(70)),
		"the server does not speak https: write http:// if it speaks http":                                              tls.RecordHeaderError{Msg: "no"},
		"the server's certificate is for a, b, c, d, not for h":                                                         badCert(x509.HostnameError{Certificate: cert, Host: "h"}),
		"the server's certificate is for another host, not for h":                                                       badCert(x509.HostnameError{Certificate: new(x509.Certificate), Host: "h"}),
		"the server's certificate is not valid: too many intermediates for path length constraint":                      badCert(x509.CertificateInvalidError{Reason: x509.TooManyIntermediates}),
		"the server's certificate is valid only from 2026-03-02 to 2027-03-02 (is this machine's clock right?)": badCert(
			x509.CertificateInvalidError{Cert: cert, Reason: x509.Expired}),
		"the exchange with the server failed: client connection lost": errors.New("http2: client connection lost"),
	} {
		if got := (networkError{err}).Error(); got != says {
			t.Errorf("%#v: %q, want %q", err, got, says)
		}
	}
}

func TestALoginThatIsNotKnownIsNamed(t *testing.T) {
	for _, tt := range []struct {
		schemes []string
		digest  bool
	}{{[]string{`Digest realm="x"`}, true}, {[]string{`Digest realm="x"`, `Basic realm="x"`}, false}, {[]string{"Basic"}, false}, {nil, false}} {
		o := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Www-Authenticate"] = tt.schemes
			w.WriteHeader(http.StatusUnauthorized)
		})
		if _, err := o.Stat(t.Context()); strings.Contains(fmt.Sprint(err), "Digest") != tt.digest {
			t.Errorf("%q: %v", tt.schemes, err)
		}
	}
}

func TestWhatAServerWantsThatIsNotSafeIsNamed(t *testing.T) {
	for says, config := range map[string]*tls.Config{
		"older than 1.2":             {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"GODEBUG=tlsrsakex=1 allows": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}},
	} {
		asked := 0
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
		server.TLS, server.Config.ErrorLog = config, log.New(io.Discard, "", 0)
		server.StartTLS()
		_, err := originOf(t, server.URL).Stat(t.Context())
		server.Close()
		wantRetry(t, err, false)
		if !strings.Contains(fmt.Sprint(err), says) || asked > 0 {
			t.Errorf("%v after %d requests, want an error that says %q", err, asked, says)
		}
	}
}

// What others write reaches a terminal only as text.
func TestTextOfOthersIsEscapedAndShort(t *testing.T) {
	for text, want := range map[string]string{
		"plain \u00fc \u65e5":                  "plain \u00fc \u65e5",
		"a\nb\x1b[31m\u0085":                   `a\nb\x1b[31m\u0085`,
		"\u202eevil\u200b":                     `\u202eevil\u200b`,
		"\xff\xfe\ufffd":                       "\\xff\\xfe\ufffd",
		strings.Repeat("x", foreignBytes):      strings.Repeat("x", foreignBytes),
		strings.Repeat("x", 10_000):            strings.Repeat("x", foreignBytes-3) + "...",
		strings.Repeat("\x00", 10_000):         strings.Repeat(`\x00`, foreignBytes/4)[:foreignBytes-3] + "...",
		strings.Repeat("\u00fc", foreignBytes): strings.Repeat("\u00fc", (foreignBytes-3)/2) + "...",
		`C:\dir "a"`:                           `C:\dir "a"`,
	} {
		if got := foreign(text); got != want {
			t.Errorf("%.40q: %q, want %q", text, got, want)
		}
	}
}

// A 200 with a part is no reason to ask again without If-Range.
func TestA200WithAPartIsAPart(t *testing.T) {
	asked := 0
	o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		setHeader(w, "ETag", `"a"`)
		serveRange(w, r, "bytes %d-%d/%d", http.StatusOK)
	})
	obj, err := o.Stat(t.Context())
	if err != nil || !obj.Ranges || obj.Size != habitSize {
		t.Fatalf("%+v, %v", obj, err)
	}
	for _, r := range []byteRange{{0, 100}, {100, 200}} {
		body, err := o.Open(t.Context(), request{obj: obj, r: r})
		if err != nil {
			t.Fatal(err)
		}
		checkBody(t, body, r)
	}
	if asked != 3 || o.form.Load() != (form{}) {
		t.Errorf("%d requests, %+v; want 3, each in the usual form", asked, o.form.Load())
	}
}
