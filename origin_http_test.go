// Tests of the HTTP origin over real connections: what it makes of every kind of
// answer, and the proxy of the environment. Most answers are written byte for byte,
// because net/http's server sends no wrong ones. origin_transport_test.go tests how
// long the origin waits.

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

// newHTTPClient returns the program's client of a user without credentials.
func newHTTPClient() *webClient { return clientOf(new(credentials)) }

// originOf returns the origin of url with a client of its own.
func originOf(t *testing.T, url string) *httpOrigin {
	t.Helper()
	client := newHTTPClient()
	t.Cleanup(client.CloseIdleConnections)
	return newHTTPOrigin(client, mustParseURL(t, url), 0)
}

// serveHTTP returns the origin of a file that handler serves.
func serveHTTP(t *testing.T, handler http.HandlerFunc) *httpOrigin {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return originOf(t, server.URL+"/f.bin")
}

// serveConns returns the origin of a server that reads one request from each
// connection, hands the connection to serve, and closes it.
func serveConns(t *testing.T, serve func(c *net.TCPConn)) *httpOrigin {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					serve(conn.(*net.TCPConn))
				}
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		serving.Wait()
	})
	return originOf(t, "http://"+listener.Addr().String()+"/f.bin")
}

// serveText returns the origin of a server that answers every request with text.
func serveText(t *testing.T, text string) *httpOrigin {
	t.Helper()
	return serveConns(t, func(c *net.TCPConn) { io.WriteString(c, text) })
}

// answerOf returns the text of an answer with the header fields in header, one a
// line.
func answerOf(status, header, body string) string {
	return "HTTP/1.1 " + status + "\r\n" + strings.ReplaceAll(header, "\n", "\r\n") + "\r\n\r\n" + body
}

// sizedAnswer returns the text of an answer whose body is the bytes r of the content.
// Each field in header follows a line break.
func sizedAnswer(code int, header string, r byteRange) string {
	header = fmt.Sprintf("Content-Length: %d", r.len()) + header
	return answerOf(statusLine(code), header, string(bytesOf(r)))
}

// chunkedAnswer is sizedAnswer without Content-Length.
func chunkedAnswer(code int, header string, r byteRange) string {
	body := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", r.len(), bytesOf(r))
	return answerOf(statusLine(code), "Transfer-Encoding: chunked"+header, body)
}

func statusLine(code int) string { return fmt.Sprintf("%d %s", code, http.StatusText(code)) }

// contentHandler serves size bytes of content, as a correct server does.
func contentHandler(size int64, etag string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, newContentReader(testSeed, size))
	}
}

func TestStatDescribesTheFile(t *testing.T) {
	const partial, whole = "206 Partial Content", "200 OK"
	modTime := time.Date(2024, time.May, 6, 7, 8, 9, 0, time.UTC)
	tests := []struct {
		about, status, header, body string
		want                        Object
	}{
		{"206", partial, "Content-Range: bytes 0-0/12345678901\nContent-Length: 1", "x", Object{Size: 12345678901, Ranges: true}},
		{"206 of more than was asked", partial, "Content-Range: bytes 0-3/4\nContent-Length: 4", "xxxx", Object{Size: 4, Ranges: true}},
		{"200 with a length", whole, "Content-Length: 5", "xxxxx", Object{Size: 5}},
		{"200 of an empty file", whole, "Content-Length: 0", "", Object{}},
		{"416 of an empty file", "416 Range Not Satisfiable", "Content-Range: bytes */0\nContent-Length: 0", "", Object{Ranges: true}},
		{"strong ETag", whole, "Content-Length: 0\nETag: \"v,1\"", "", Object{ETag: `"v,1"`}},
		{"weak ETag", whole, "Content-Length: 0\nETag: W/\"v1\"", "", Object{weakETag: `"v1"`}},
		{"ETag with a blank", whole, "Content-Length: 0\nETag: \"v 1\"", "", Object{}},
		{"ETag of one quote", whole, "Content-Length: 0\nETag: \"", "", Object{}},
		{"ETag without quotes", whole, "Content-Length: 0\nETag: v1", "", Object{}},
		{"Last-Modified", whole, "Content-Length: 0\nLast-Modified: Mon, 06 May 2024 07:08:09 GMT", "", Object{ModTime: modTime, LastModified: "Mon, 06 May 2024 07:08:09 GMT"}},
		{"Last-Modified of RFC 850", whole, "Content-Length: 0\nLast-Modified: Monday, 06-May-24 07:08:09 GMT", "", Object{ModTime: modTime, LastModified: "Monday, 06-May-24 07:08:09 GMT"}},
		{"no such date", whole, "Content-Length: 0\nLast-Modified: yesterday", "", Object{LastModified: "yesterday"}},
		{"name", whole, "Content-Length: 0\nContent-Disposition: attachment; filename=\"../a b.bin\"", "", Object{Filename: "../a b.bin"}},
		{"identity is no encoding", whole, "Content-Length: 0\nContent-Encoding: Identity", "", Object{}},
	}
	for _, tt := range tests {
		got, err := serveText(t, answerOf(tt.status, tt.header, tt.body)).Stat(t.Context())
		if err != nil || !got.ModTime.Equal(tt.want.ModTime) {
			t.Errorf("%s: %+v, %v; want %+v", tt.about, got, err, tt.want)
		}
		got.ModTime, tt.want.ModTime = time.Time{}, time.Time{}
		if got = described(got); got != tt.want {
			t.Errorf("%s: %#v, want %#v", tt.about, got, tt.want)
		}
	}
}

// described returns obj without what it says about its origin.
func described(obj Object) Object {
	obj.target, obj.final, obj.server = nil, nil, ""
	return obj
}

// TestRequestsNameRangeAndEncoding requires a GET even for the size alone: a
// presigned URL refuses HEAD.
func TestRequestsNameRangeAndEncoding(t *testing.T) {
	var got []string
	o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, fmt.Sprintf("%s%v%v", r.Method, r.Header["Range"], r.Header["Accept-Encoding"]))
		contentHandler(5000, "")(w, r)
	})
	obj, err := o.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	body, err := o.Open(t.Context(), request{obj: obj, r: byteRange{100, 5000}})
	if err != nil {
		t.Fatal(err)
	}
	body.Close()
	want := []string{"GET[bytes=0-0][identity]", "GET[bytes=100-4999][identity]"}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("requests %q, want %q", got, want)
	}
}

func TestSourceWithoutSizeIsRefused(t *testing.T) {
	for about, answer := range map[string]string{
		"chunked":                   answerOf("200 OK", "Transfer-Encoding: chunked", "1\r\nx\r\n0\r\n\r\n"),
		"a part of an unknown size": answerOf("206 Partial Content", "Content-Range: bytes 0-0/*\nContent-Length: 1", "x"),
		"until the close":           answerOf("200 OK", "Connection: close", "x"),
	} {
		obj, err := serveText(t, answer).Stat(t.Context())
		wantRetry(t, err, false)
		if !errors.Is(err, errNoSize) || obj != (Object{}) {
			t.Errorf("%s: %+v, %v; want errNoSize", about, obj, err)
		}
	}
}

// TestUnusableAnswersAreRefused requires that neither Stat nor Open accepts them, and
// that no further attempt is made.
func TestUnusableAnswersAreRefused(t *testing.T) {
	const partial = "206 Partial Content"
	tests := []struct {
		about, answer string
		is            error // nil: any
		says          string
	}{
		{"a range beyond the size", answerOf(partial, "Content-Range: bytes 0-9/5\nContent-Length: 1", "x"), nil, `"bytes 0-9/5"`},
		{"several parts", answerOf(partial, "Content-Type: multipart/byteranges; boundary=x\nContent-Length: 0", ""), nil, "multipart/byteranges"},
		{"416 of the same size", answerOf("416 x", "Content-Range: bytes */3\nContent-Length: 0", ""), statusError{code: 416}, "416"},
	}
	for _, tt := range tests {
		o := serveText(t, tt.answer)
		obj, statErr := o.Stat(t.Context())
		_, openErr := o.Open(t.Context(), request{obj: Object{Size: 3}, r: byteRange{0, 3}})
		for _, err := range []error{statErr, openErr} {
			wantRetry(t, err, false)
			if tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(fmt.Sprint(err), tt.says) || obj != (Object{}) {
				t.Errorf("%s: %+v, %v; want an error %v that says %q", tt.about, obj, err, tt.is, tt.says)
			}
		}
	}
}

// malformedContentRanges returns headers that do not answer a request for bytes 0-0.
func malformedContentRanges() []string {
	return []string{
		"", "bytes", "bytes ", "bytes 0-0", "bytes 0-0/", "bytes /1", "bytes -/1", "bytes 0-/1", "bytes -0/1",
		"bytes 0/1", "bytes */1", "bytes 1-0/2", "bytes 0-1/1", "bytes 5-5/5", "bytes +0-0/1", "bytes 0-+0/1",
		"bytes 0-0/+1", "bytes 0-0/-1", "bytes -1-0/1", "bytes 0x0-0/1", "bytes 0 0/1", "bytes0-0/1",
		"bytes 0-0/1/1", "bytes 0-0-0/1", "bytes-0-0/1", "items 0-0/1", "0-0/1", "bytes 0-0/1,2-2/3",
		"bytes 0-0/9223372036854775808", "bytes 0-18446744073709551616/18446744073709551617", "bytes 0-0/1e3", "bytes 0_0-0/1",
	}
}

func TestMalformedContentRangeIsRefused(t *testing.T) {
	for _, header := range malformedContentRanges() {
		if r, size, err := parseContentRange(header); err == nil {
			t.Errorf("parseContentRange(%q) = %v, %d", header, r, size)
		}
	}
}

func TestContentRange(t *testing.T) {
	const most = 1<<63 - 1
	for header, want := range map[string]struct {
		r    byteRange
		size int64
	}{
		"bytes 0-0/1":         {byteRange{0, 1}, 1},
		"bytes 5-9/10":        {byteRange{5, 10}, 10},
		"Bytes 5-9/10":        {byteRange{5, 10}, 10},
		"bytes=5-9/10":        {byteRange{5, 10}, 10},
		" BYTES: 5 - 9 / 10 ": {byteRange{5, 10}, 10},
		"bytes 007-08/09":     {byteRange{7, 9}, 9},
		"bytes 0-9223372036854775806/9223372036854775807": {byteRange{0, most}, most},
	} {
		if r, size, err := parseContentRange(header); err != nil || r != want.r || size != want.size {
			t.Errorf("parseContentRange(%q) = %v, %d, %v; want %v, %d", header, r, size, err, want.r, want.size)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, header := range append(malformedContentRanges(), "bytes 0-0/1", "bytes 5-9/10", "bytes 0-0/*") {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r, size, err := parseContentRange(header)
		if err != nil {
			return
		}
		if r.off < 0 || r.empty() || r.end > size && size != -1 {
			t.Fatalf("parseContentRange(%q) = %v of %d bytes", header, r, size)
		}
		again := strings.ReplaceAll(fmt.Sprintf("bytes %d-%d/%d", r.off, r.end-1, size), "/-1", "/*")
		if r2, size2, err := parseContentRange(again); err != nil || r2 != r || size2 != size {
			t.Fatalf("%q is %v of %d; written again as %q it is %v of %d, %v", header, r, size, again, r2, size2, err)
		}
		if strings.Trim(strings.ToLower(header), "bytes 0123456789-/*=:\t\n\v\f\r\u0085\u00a0") != "" {
			t.Fatalf("parseContentRange(%q) is accepted", header)
		}
	})
}

func TestRefusedConnectionIsTriedAgain(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	o := originOf(t, server.URL)
	_, statErr := o.Stat(t.Context())
	_, openErr := o.Open(t.Context(), request{obj: Object{Size: 1}, r: byteRange{0, 1}})
	for _, err := range []error{statErr, openErr} {
		wantRetry(t, err, true)
		if !errors.Is(err, syscall.ECONNREFUSED) || errnoOf(err) != syscall.EIO ||
			err.Error() != "cannot connect to "+o.url.Host+": connection refused" {
			t.Errorf("error %v, %v to a reader; want ECONNREFUSED, EIO", err, errnoOf(err))
		}
	}
}

// checkBody requires that body is exactly r, and closes it.
func checkBody(t *testing.T, body io.ReadCloser, r byteRange) {
	t.Helper()
	defer body.Close()
	got, err := io.ReadAll(body)
	if err != nil || int64(len(got)) != r.len() {
		t.Errorf("body of %v: %d bytes, %v", r, len(got), err)
	}
	if err := checkContent(got, testSeed, r.off); err != nil {
		t.Error(err)
	}
}

func TestOpenGivesExactlyTheRange(t *testing.T) {
	const size = 100_003
	o := serveHTTP(t, contentHandler(size, `"v1"`))
	obj, err := o.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []byteRange{{0, 1}, {0, size}, {1, size}, {size - 1, size}, {70_000, 70_777}} {
		body, err := o.Open(t.Context(), request{obj: obj, r: r})
		if err != nil {
			t.Fatalf("open %v: %v", r, err)
		}
		checkBody(t, body, r)
	}
}

// readers returns ways to read a body to its end, by name.
func readers() map[string]func(io.Reader) io.Reader {
	return map[string]func(io.Reader) io.Reader{
		"as it comes": func(r io.Reader) io.Reader { return r },
		"by bytes":    iotest.OneByteReader,
		"by halves":   iotest.HalfReader,
	}
}

// requireBadBody opens the first ten bytes and requires that the body ends in the
// error want after at most nine bytes: a store that had all ten would be complete.
func requireBadBody(t *testing.T, about, answer string, want error) {
	t.Helper()
	for how, reader := range readers() {
		body, err := serveText(t, answer).Open(t.Context(), request{obj: Object{Size: 10}, r: byteRange{0, 10}})
		if err != nil {
			t.Errorf("%s: open: %v", about, err)
			return
		}
		got, err := io.ReadAll(reader(body))
		if !errors.Is(err, want) || len(got) > 9 || !strings.HasPrefix("0123456789", string(got)) {
			t.Errorf("%s, %s: %q, %v; want at most 9 bytes, %v", about, how, got, err, want)
		}
		wantRetry(t, err, want == errShortBody)
		body.Close()
	}
}

func TestShortBodyIsAnError(t *testing.T) {
	const part = "Content-Range: bytes 0-9/10\n"
	for about, answer := range map[string]string{
		"connection cut":          answerOf("206 Partial Content", part+"Content-Length: 10", "012345678"),
		"cut before the body":     answerOf("206 Partial Content", part+"Content-Length: 10", ""),
		"cut in a chunk":          answerOf("206 Partial Content", part+"Transfer-Encoding: chunked", "a\r\n01234"),
		"cut between chunks":      answerOf("206 Partial Content", part+"Transfer-Encoding: chunked", "5\r\n01234\r\n"),
		"no last chunk":           answerOf("206 Partial Content", part+"Transfer-Encoding: chunked", "a\r\n0123456789\r\n"),
		"too few chunks":          answerOf("206 Partial Content", part+"Transfer-Encoding: chunked", "5\r\n01234\r\n0\r\n\r\n"),
		"too short for the range": answerOf("206 Partial Content", part+"Connection: close", "012345678"),
		"whole file cut":          answerOf("200 OK", "Content-Length: 10", "01234"),
		"whole file of no length": answerOf("200 OK", "Connection: close", "01234"),
	} {
		requireBadBody(t, about, answer, errShortBody)
	}
}

func TestLongBodyIsAnError(t *testing.T) {
	const part = "Content-Range: bytes 0-9/10\n"
	for about, answer := range map[string]string{
		"one chunk":         answerOf("206 Partial Content", part+"Transfer-Encoding: chunked", "b\r\n0123456789A\r\n0\r\n\r\n"),
		"two chunks":        answerOf("206 Partial Content", part+"Transfer-Encoding: chunked", "a\r\n0123456789\r\n1\r\nA\r\n0\r\n\r\n"),
		"until the close":   answerOf("206 Partial Content", part+"Connection: close", "0123456789A"),
		"whole file, chunk": answerOf("200 OK", "Transfer-Encoding: chunked", "14\r\n01234567890123456789\r\n0\r\n\r\n"),
	} {
		requireBadBody(t, about, answer, errLongBody)
	}
}

// proxyChildURLs names the variable with the URLs that a child of the test binary
// requests. A process reads the proxy of its environment once, so each set of
// variables needs its own process.
const proxyChildURLs = "FSMOUNT_TEST_PROXY_URLS"

// TestProxyChild does the requests of TestTheProxyOfTheEnvironment in a child process.
func TestProxyChild(t *testing.T) {
	urls := os.Getenv(proxyChildURLs)
	if urls == "" {
		t.Skip("runs as a child of TestTheProxyOfTheEnvironment")
	}
	for _, rawURL := range strings.Fields(urls) {
		_, err := originOf(t, rawURL).Open(t.Context(), request{obj: Object{Size: versionSize}, r: byteRange{0, 1}})
		retry, _ := retryAdvice(err)
		t.Logf("result: %s err=%v retry=%v", rawURL, err, retry)
	}
}

func TestTheProxyOfTheEnvironment(t *testing.T) {
	var asked atomic.Pointer[[]string]
	asked.Store(new([]string))
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		list := append(*asked.Load(), r.Method+" "+r.RequestURI)
		asked.Store(&list)
		switch {
		case r.Method != http.MethodConnect:
			servePart(w, byteRange{0, 1}, versionSize)
		case strings.HasPrefix(r.Host, "busy."):
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusProxyAuthRequired)
		}
	}))
	defer proxy.Close()
	tests := []struct {
		name    string
		env     []string
		urls    string
		asked   string // of the proxy
		results []string
	}{
		{"http", []string{"http_proxy=" + proxy.URL}, "http://origin.invalid/f?q=1",
			"GET http://origin.invalid/f?q=1", []string{"err=<nil>"}},
		{"exception", []string{"http_proxy=" + proxy.URL, "no_proxy=origin.invalid,.other.invalid"},
			"http://origin.invalid/f http://www.other.invalid/f http://third.invalid/f",
			"GET http://third.invalid/f", []string{"origin.invalid", "www.other.invalid", "err=<nil>"}},
		{"https, refused for now and for good", []string{"HTTPS_PROXY=" + proxy.URL},
			"https://busy.invalid/f https://locked.invalid/f",
			"CONNECT busy.invalid:443 CONNECT locked.invalid:443",
			[]string{"the proxy answered 503 Service Unavailable retry=true", "the proxy answered 407 Proxy Authentication Required (put user and password into the URL of http_proxy or https_proxy) retry=false"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked.Store(new([]string))
			out := runProxyChild(t, tt.env, tt.urls)
			if got := strings.Join(*asked.Load(), " "); got != tt.asked {
				t.Errorf("the proxy was asked %q, want %q", got, tt.asked)
			}
			var results []string
			for scanner := bufio.NewScanner(strings.NewReader(out)); scanner.Scan(); {
				if _, result, ok := strings.Cut(scanner.Text(), "result: "); ok {
					results = append(results, result)
				}
			}
			if len(results) != len(tt.results) {
				t.Fatalf("%d results, want %d:\n%s", len(results), len(tt.results), out)
			}
			for i, want := range tt.results {
				if !strings.Contains(results[i], want) {
					t.Errorf("result %q, want one with %q", results[i], want)
				}
			}
		})
	}
}

// runProxyChild runs TestProxyChild in a child process and returns its output. Of all
// proxy variables the child has only those in env.
func runProxyChild(t *testing.T, env []string, urls string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestProxyChild$", "-test.v", "-test.timeout=2m")
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(append(cmd.Env, env...), proxyChildURLs+"="+urls)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the child: %v\n%s", err, out)
	}
	return string(out)
}

// clientOf returns the program's client of a user with those credentials.
func clientOf(c *credentials) *webClient {
	return newWebClient(c, redirectRules{}, newHostTable(requestsAtOnce, stallLimit), nil)
}

// clientOver returns a client that sends every request over base.
func clientOver(base http.RoundTripper, c *credentials) *webClient {
	client := clientOf(c)
	client.connect = func(route) http.RoundTripper { return base }
	return client
}

// getURL requests rawURL and follows its redirects.
func getURL(t *testing.T, client *webClient, rawURL string) (*webAnswer, error) {
	t.Helper()
	return client.follow(t.Context(), startAt(mustParseURL(t, rawURL)), make(http.Header), false, stallLimit, nil)
}
