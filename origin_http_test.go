// Tests of the HTTP origin over real connections: what it makes of every kind of
// answer. Most answers are written byte for byte, for net/http's server sends no
// wrong ones. How long it waits is tested over pipes in synctest bubbles.

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// originOf returns the origin of url with a client of its own.
func originOf(t *testing.T, url string) *httpOrigin {
	t.Helper()
	client := newHTTPClient()
	t.Cleanup(client.CloseIdleConnections)
	return &httpOrigin{client: client, url: mustParseURL(t, url)}
}

// serveHTTP returns the origin of a file that handler serves.
func serveHTTP(t *testing.T, handler http.HandlerFunc) *httpOrigin {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return originOf(t, server.URL+"/f.bin")
}

// serveText returns the origin of a server that answers every request with
// text as it is, and closes the connection.
func serveText(t *testing.T, text string) *httpOrigin {
	t.Helper()
	return originOf(t, "http://"+listenText(t, text)+"/f.bin")
}

// listenText returns the address of serveText's server.
func listenText(t *testing.T, text string) string {
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
			serving.Go(func() { answerText(conn, text) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		serving.Wait()
	})
	return listener.Addr().String()
}

func answerText(conn net.Conn, text string) {
	defer conn.Close()
	if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
		io.WriteString(conn, text)
	}
}

// answerOf writes an answer from its status, its header fields, one a line, and
// its body.
func answerOf(status, header, body string) string {
	return "HTTP/1.1 " + status + "\r\n" + strings.ReplaceAll(header, "\n", "\r\n") + "\r\n\r\n" + body
}

// contentHandler is the whole of a well-behaved server.
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
		{"206 of more than was asked", partial, "Content-Range: bytes 0-3/4\nContent-Length: 4", "xxxx", Object{Size: 4}},
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
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.about, got, tt.want)
		}
	}
}

// TestRequestsNameRangeAndEncoding looks at what is sent: a GET, as a presigned
// URL needs it, also where only the size is wanted.
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
	body, err := o.Open(t.Context(), obj, byteRange{100, 5000})
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
		"chunked":          answerOf("200 OK", "Transfer-Encoding: chunked", "1\r\nx\r\n0\r\n\r\n"),
		"until the close":  answerOf("200 OK", "Connection: close", "x"),
		"size *":           answerOf("206 Partial Content", "Content-Range: bytes 0-0/*\nContent-Length: 1", "x"),
		"size * and range": answerOf("206 Partial Content", "Content-Range: bytes */*\nContent-Length: 1", "x"),
	} {
		if obj, err := serveText(t, answer).Stat(t.Context()); !errors.Is(err, errNoSize) {
			t.Errorf("%s: %+v, %v; want errNoSize", about, obj, err)
		}
	}
}

// malformedContentRanges are no answers to a request for bytes 0-0.
func malformedContentRanges() []string {
	return []string{
		"", "bytes", "bytes ", "bytes 0-0", "bytes 0-0/", "bytes /1", "bytes -/1", "bytes 0-/1", "bytes -0/1",
		"bytes 0/1", "bytes */1", "bytes 1-0/2", "bytes 0-1/1", "bytes 5-5/5", "bytes +0-0/1", "bytes 0-+0/1",
		"bytes 0-0/+1", "bytes 0-0/-1", "bytes -1-0/1", "bytes 0x0-0/1", "bytes 0-0/1 ", "bytes 0 - 0/1",
		"bytes 0-0/1/1", "bytes 0-0-0/1", "bytes=0-0/1", "items 0-0/1", "0-0/1", "bytes 0-0/1,2-2/3",
		"bytes 0-0/9223372036854775808", "bytes 0-18446744073709551616/18446744073709551617", "bytes 0-0/1e3", "bytes 0_0-0/1",
	}
}

func TestMalformedContentRangeIsRefused(t *testing.T) {
	for _, header := range malformedContentRanges() {
		if r, size, err := parseContentRange(header); err == nil {
			t.Errorf("parseContentRange(%q) = %v, %d", header, r, size)
		}
	}
	o := serveText(t, answerOf("206 Partial Content", "Content-Range: bytes 0-9/5\nContent-Length: 1", "x"))
	_, statErr := o.Stat(t.Context())
	_, openErr := o.Open(t.Context(), Object{Size: 5}, byteRange{0, 1})
	for _, err := range []error{statErr, openErr} {
		if err == nil || !strings.Contains(err.Error(), `"bytes 0-9/5"`) {
			t.Errorf("error %v, want one that quotes the header", err)
		}
	}
}

func TestContentRange(t *testing.T) {
	const most = 1<<63 - 1
	for header, want := range map[string]struct {
		r    byteRange
		size int64
	}{
		"bytes 0-0/1":     {byteRange{0, 1}, 1},
		"bytes 5-9/10":    {byteRange{5, 10}, 10},
		"bytes 007-08/09": {byteRange{7, 9}, 9},
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
		if r.off < 0 || r.empty() || r.end > size {
			t.Fatalf("parseContentRange(%q) = %v of %d bytes", header, r, size)
		}
		again := fmt.Sprintf("bytes %d-%d/%d", r.off, r.end-1, size)
		if r2, size2, err := parseContentRange(again); err != nil || r2 != r || size2 != size {
			t.Fatalf("%q is %v of %d; written again as %q it is %v of %d, %v", header, r, size, again, r2, size2, err)
		}
		if strings.Trim(header, "bytes 0123456789-/") != "" {
			t.Fatalf("parseContentRange(%q) is accepted", header)
		}
	})
}

func TestAnyOtherStatusIsAnError(t *testing.T) {
	for _, code := range []int{204, 304, 401, 403, 404, 410, 416, 429, 500, 503} {
		status := fmt.Sprintf("%d %s", code, http.StatusText(code))
		o := serveText(t, answerOf(status, "Content-Length: 0\nContent-Range: bytes */7", ""))
		_, statErr := o.Stat(t.Context())
		_, openErr := o.Open(t.Context(), Object{Size: 7}, byteRange{0, 7})
		for _, err := range []error{statErr, openErr} {
			if !errors.Is(err, statusError{code: code}) || !strings.Contains(err.Error(), status) {
				t.Errorf("%s: error %v, want statusError{%d} that says so", status, err, code)
			}
		}
	}
}

func TestRefusedConnectionIsAnError(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	_, err := originOf(t, server.URL).Stat(t.Context())
	if !errors.Is(err, syscall.ECONNREFUSED) || errnoOf(err) != syscall.EIO {
		t.Errorf("error %v, %v to a reader; want ECONNREFUSED, EIO", err, errnoOf(err))
	}
}

func TestRedirectKeepsRangeAndEncoding(t *testing.T) {
	var got []string
	o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, fmt.Sprintf("%s%v%v", r.URL.Path, r.Header["Range"], r.Header["Accept-Encoding"]))
		if r.URL.Path != "/there" {
			http.Redirect(w, r, "/there", http.StatusFound)
			return
		}
		contentHandler(5000, "")(w, r)
	})
	body, err := o.Open(t.Context(), Object{Size: 5000}, byteRange{100, 200})
	if err != nil {
		t.Fatal(err)
	}
	checkBody(t, body, byteRange{100, 200})
	if want := "/f.bin[bytes=100-199][identity] /there[bytes=100-199][identity]"; strings.Join(got, " ") != want {
		t.Errorf("requests %q, want %q", got, want)
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

// TestGzipAnswerIsRefused has a server that compresses whatever it was asked
// not to.
func TestGzipAnswerIsRefused(t *testing.T) {
	for _, encoding := range []string{"gzip", "br", "gzip, identity"} {
		o := serveText(t, answerOf("200 OK", "Content-Encoding: "+encoding+"\nContent-Length: 3", "\x1f\x8b\x08"))
		_, statErr := o.Stat(t.Context())
		_, openErr := o.Open(t.Context(), Object{Size: 3}, byteRange{0, 3})
		for _, err := range []error{statErr, openErr} {
			if err == nil || !strings.Contains(err.Error(), encoding) {
				t.Errorf("%s: error %v, want one that names the encoding", encoding, err)
			}
		}
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
		body, err := o.Open(t.Context(), obj, r)
		if err != nil {
			t.Fatalf("open %v: %v", r, err)
		}
		checkBody(t, body, r)
	}
}

// TestAnswerThatIsNotWhatWasAskedForIsRefused asks for [2,6) of 10 bytes of the
// version "v1".
func TestAnswerThatIsNotWhatWasAskedForIsRefused(t *testing.T) {
	const v1 = "\nETag: \"v1\""
	tests := []struct {
		about, status, header, body string
		is                          error  // nil: any
		says                        string // "": anything
	}{
		{"another range", "206", "Content-Range: bytes 3-6/10\nContent-Length: 4" + v1, "3456", nil, "[2,6), the origin sent [3,7)"},
		{"no version any more", "206", "Content-Range: bytes 2-5/10\nContent-Length: 4", "2345", errChanged, "does not any more"},
		{"a weak tag of another version", "206", "Content-Range: bytes 2-5/10\nContent-Length: 4\nETag: W/\"v2\"", "2345", errChanged, `is "v2"`},
		{"more", "206", "Content-Range: bytes 2-6/10\nContent-Length: 5" + v1, "23456", nil, "sent [2,7)"},
		{"several ranges", "206", "Content-Type: multipart/byteranges; boundary=x\nContent-Length: 0", "", nil, "multipart/byteranges"},
		{"another size", "206", "Content-Range: bytes 2-5/11\nContent-Length: 4" + v1, "2345", errChanged, "was 10 and is 11"},
		{"unknown size", "206", "Content-Range: bytes 2-5/*\nContent-Length: 4" + v1, "2345", errNoSize, ""},
		{"another version", "206", "Content-Range: bytes 2-5/10\nContent-Length: 4\nETag: \"v2\"", "2345", errChanged, `"v1" and is "v2"`},
		{"a short length", "206", "Content-Range: bytes 2-5/10\nContent-Length: 3" + v1, "234", errShortBody, "3 bytes, not 4"},
		{"a long length", "206", "Content-Range: bytes 2-5/10\nContent-Length: 5" + v1, "23456", errLongBody, "5, not 4"},
		{"another whole file", "200", "Content-Length: 11" + v1, "0123456789A", errChanged, "was 10 and is 11"},
		{"a whole file of another version", "200", "Content-Length: 10\nETag: \"v2\"", "0123456789", errChanged, `is "v2"`},
		{"no answer", "", "", "", nil, ""},
	}
	for _, tt := range tests {
		answer := answerOf(tt.status+" OK", tt.header, tt.body)
		if tt.status == "" {
			answer = ""
		}
		_, err := serveText(t, answer).Open(t.Context(), Object{Size: 10, ETag: `"v1"`}, byteRange{2, 6})
		if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error %v; want %v that says %q", tt.about, err, tt.is, tt.says)
		}
	}
}

// TestVersionIsComparedByStrongETagsOnly has answers that prove no change.
func TestVersionIsComparedByStrongETagsOnly(t *testing.T) {
	for _, etags := range [][2]string{{"v1", "v1"}, {"", "v1"}, {"", "W/v2"}} {
		header := "Content-Range: bytes 2-5/10\nContent-Length: 4"
		switch weak, isWeak := strings.CutPrefix(etags[1], "W/"); {
		case isWeak:
			header += "\nETag: W/\"" + weak + "\""
		case weak != "":
			header += "\nETag: \"" + weak + "\""
		}
		obj := Object{Size: 10}
		if etags[0] != "" {
			obj.ETag = `"` + etags[0] + `"`
		}
		body, err := serveText(t, answerOf("206 Partial Content", header, "2345")).Open(t.Context(), obj, byteRange{2, 6})
		if err != nil {
			t.Errorf("ETag %q, then %q: %v", etags[0], etags[1], err)
			continue
		}
		body.Close()
	}
}

// TestWholeAnswerToAWholeRequestIsTaken: a server may ignore Range.
func TestWholeAnswerToAWholeRequestIsTaken(t *testing.T) {
	content := string(contentOf(0, 10))
	for _, answer := range []string{
		answerOf("200 OK", "Content-Length: 10", content),
		answerOf("200 OK", "Transfer-Encoding: chunked", "a\r\n"+content+"\r\n0\r\n\r\n"),
		answerOf("200 OK", "Connection: close", content),
	} {
		body, err := serveText(t, answer).Open(t.Context(), Object{Size: 10}, byteRange{0, 10})
		if err != nil {
			t.Errorf("%q: %v", answer, err)
			continue
		}
		checkBody(t, body, byteRange{0, 10})
	}
}

// readers are ways to read a body to its end.
func readers() map[string]func(io.Reader) io.Reader {
	return map[string]func(io.Reader) io.Reader{
		"as it comes": func(r io.Reader) io.Reader { return r },
		"by bytes":    iotest.OneByteReader,
		"by halves":   iotest.HalfReader,
	}
}

// requireBadBody opens the first ten bytes and requires that the body ends in
// the error want after at most limit bytes of the content.
func requireBadBody(t *testing.T, about, answer string, want error, limit int) {
	t.Helper()
	for how, reader := range readers() {
		body, err := serveText(t, answer).Open(t.Context(), Object{Size: 10}, byteRange{0, 10})
		if err != nil {
			t.Errorf("%s: open: %v", about, err)
			return
		}
		got, err := io.ReadAll(reader(body))
		if !errors.Is(err, want) || len(got) > limit || !strings.HasPrefix("0123456789", string(got)) {
			t.Errorf("%s, %s: %q, %v; want at most %d bytes, %v", about, how, got, err, limit, want)
		}
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
		"too few chunks":          answerOf("206 Partial Content", part+"Transfer-Encoding: chunked", "5\r\n01234\r\n0\r\n\r\n"),
		"too short for the range": answerOf("206 Partial Content", part+"Connection: close", "012345678"),
		"whole file cut":          answerOf("200 OK", "Content-Length: 10", "01234"),
		"whole file of no length": answerOf("200 OK", "Connection: close", "01234"),
	} {
		requireBadBody(t, about, answer, errShortBody, 9)
	}
}

// TestLongBodyIsAnError also requires that the last bytes are held back: a
// store that had them would be complete.
func TestLongBodyIsAnError(t *testing.T) {
	const part = "Content-Range: bytes 0-9/10\n"
	for about, answer := range map[string]string{
		"one chunk":         answerOf("206 Partial Content", part+"Transfer-Encoding: chunked", "b\r\n0123456789A\r\n0\r\n\r\n"),
		"two chunks":        answerOf("206 Partial Content", part+"Transfer-Encoding: chunked", "a\r\n0123456789\r\n1\r\nA\r\n0\r\n\r\n"),
		"until the close":   answerOf("206 Partial Content", part+"Connection: close", "0123456789A"),
		"whole file, chunk": answerOf("200 OK", "Transfer-Encoding: chunked", "14\r\n01234567890123456789\r\n0\r\n\r\n"),
	} {
		requireBadBody(t, about, answer, errLongBody, 9)
	}
}

// TestBodyWithoutItsLastChunkIsAnError: all bytes came, but not that they are
// all.
func TestBodyWithoutItsLastChunkIsAnError(t *testing.T) {
	answer := answerOf("206 Partial Content", "Content-Range: bytes 0-9/10\nTransfer-Encoding: chunked", "a\r\n0123456789\r\n")
	requireBadBody(t, "no last chunk", answer, errShortBody, 9)
}

// pipeOrigin returns an origin whose one connection is a pipe to serve. REQUIRES:
// a bubble.
func pipeOrigin(t *testing.T, serve func(conn net.Conn)) *httpOrigin {
	client := newHTTPClient()
	client.Transport.(*redirectChecker).DialContext = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
				serve(theirs)
			}
		}()
		return ours, nil
	}
	t.Cleanup(client.CloseIdleConnections)
	return &httpOrigin{client: client, url: mustParseURL(t, "http://pipe/f.bin")}
}

// untilClosed BLOCKS until the client closes the connection.
func untilClosed(conn net.Conn) { io.Copy(io.Discard, conn) }

const tenBytes = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n"

func TestCancelEndsAStalledBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := pipeOrigin(t, func(conn net.Conn) {
			io.WriteString(conn, tenBytes+"01234")
			untilClosed(conn)
		})
		ctx, cancel := context.WithCancel(t.Context())
		body, err := o.Open(ctx, Object{Size: 10}, byteRange{0, 10})
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		done := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(body)
			done <- err
		}()
		synctest.Wait()
		if len(done) != 0 {
			t.Fatalf("the stalled body ended: %v", <-done)
		}
		start := time.Now()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) || time.Since(start) != 0 {
			t.Errorf("error %v after %v, want context.Canceled at once", err, time.Since(start))
		}
	})
}

func TestCancelEndsAnUnansweredRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := pipeOrigin(t, untilClosed)
		done := make(chan error, 1)
		go func() {
			_, err := o.Stat(ctx)
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
}

func TestOriginThatNeverAnswersIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := pipeOrigin(t, untilClosed).Open(t.Context(), Object{Size: 10}, byteRange{0, 10})
		if err == nil || time.Since(start) != headerTimeout {
			t.Errorf("error %v after %v, want one after %v", err, time.Since(start), headerTimeout)
		}
	})
}

// TestTransferHasNoTimeLimit sends a byte a day.
func TestTransferHasNoTimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := pipeOrigin(t, func(conn net.Conn) {
			io.WriteString(conn, tenBytes)
			for i := range 10 {
				time.Sleep(24 * time.Hour)
				fmt.Fprint(conn, i)
			}
		})
		body, err := o.Open(t.Context(), Object{Size: 10}, byteRange{0, 10})
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if got, err := io.ReadAll(body); err != nil || string(got) != "0123456789" {
			t.Errorf("%q, %v", got, err)
		}
	})
}
