// Tests that no byte of another version gets through: what a request says of
// the version it wants, and what becomes of every kind of answer. The origins
// are real HTTP servers whose answers are written out in full.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

const (
	versionSize = 1000
	monday      = "Mon, 02 Mar 2026 10:00:00 GMT"
	tuesday     = "Tue, 03 Mar 2026 10:00:00 GMT"
)

func bytesOf(r byteRange) []byte { return contentOf(r.off, int(r.len())) }

// openAll opens r of obj and reads it to its end.
func openAll(o Origin, obj Object, r byteRange) ([]byte, error) {
	body, err := o.Open(context.Background(), obj, r)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func TestSameVersion(t *testing.T) {
	tagged := Object{Size: 10, ETag: `"a"`}
	dated := Object{Size: 10, LastModified: monday}
	both := Object{Size: 10, ETag: `"a"`, LastModified: monday}
	none := Object{Size: 10}
	tests := []struct {
		name string
		a, b Object
		same bool
	}{
		{"nothing but the size", none, none, true},
		{"another size", none, Object{Size: 11}, false},
		{"another size with the same ETag", tagged, Object{Size: 11, ETag: `"a"`}, false},
		{"same ETag", tagged, tagged, true},
		{"another ETag", tagged, Object{Size: 10, ETag: `"b"`}, false},
		{"same date", dated, dated, true},
		{"another date", dated, Object{Size: 10, LastModified: tuesday}, false},
		{"same date in another form", dated, Object{Size: 10, LastModified: "Monday, 02-Mar-26 10:00:00 GMT"}, true},
		{"same text that is no date", Object{Size: 10, LastModified: "x"}, Object{Size: 10, LastModified: "x"}, true},
		{"other text that is no date", Object{Size: 10, LastModified: "x"}, Object{Size: 10, LastModified: "y"}, false},
		{"the ETag is stronger than the date", both, Object{Size: 10, ETag: `"a"`, LastModified: tuesday}, true},
		{"the date does not save another ETag", both, Object{Size: 10, ETag: `"b"`, LastModified: monday}, false},
		{"the date where one has no ETag", both, Object{Size: 10, LastModified: tuesday}, false},
		{"no validator in common", tagged, dated, true},
	}
	for _, tt := range tests {
		if got := tt.a.changedTo(tt.b) == nil; got != tt.same {
			t.Errorf("%s: same version: %v, want %v", tt.name, got, tt.same)
		}
		if got := tt.b.changedTo(tt.a) == nil; got != tt.same {
			t.Errorf("%s, the other way round: same version: %v, want %v", tt.name, got, tt.same)
		}
	}
}

func TestOpenNamesThePinnedVersion(t *testing.T) {
	tests := []struct {
		name                        string
		etag, modified, date        string // of the answer to Stat
		match, unmodified, ifRanges string // in the request of Open
	}{
		{name: "strong ETag", etag: `"a"`, modified: monday, match: `"a"`, ifRanges: `"a"`},
		{name: "date", modified: monday, date: tuesday, unmodified: monday, ifRanges: monday},
		{name: "date in another form", modified: "Monday, 02-Mar-26 10:00:00 GMT", date: tuesday,
			unmodified: "Monday, 02-Mar-26 10:00:00 GMT", ifRanges: "Monday, 02-Mar-26 10:00:00 GMT"},
		{name: "date of this very second", modified: monday, date: monday, unmodified: monday},
		{name: "date beside a weak ETag", etag: `W/"a"`, modified: monday, date: tuesday, unmodified: monday},
		{name: "weak ETag", etag: `W/"a"`},
		{name: "nothing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var asked []http.Header
			o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.Header)
				setHeader(w, "ETag", tt.etag, "Last-Modified", tt.modified, "Date", tt.date)
				servePart(w, byteRange{0, 1}, versionSize)
			})
			obj, err := o.Stat(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if obj.LastModified != tt.modified || obj.Size != versionSize || !obj.Ranges {
				t.Errorf("Stat: %+v, want Last-Modified %q, %d bytes, ranges", obj, tt.modified, versionSize)
			}
			if _, err := openAll(o, obj, byteRange{0, 1}); err != nil {
				t.Fatal(err)
			}
			wantHeader(t, asked[0], "If-Match", "", "If-Unmodified-Since", "", "If-Range", "", "Range", "bytes=0-0")
			wantHeader(t, asked[1], "If-Match", tt.match, "If-Unmodified-Since", tt.unmodified,
				"If-Range", tt.ifRanges, "Range", "bytes=0-0")
		})
	}
}

// setHeader sets names to values that are not "".
func setHeader(w http.ResponseWriter, pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			w.Header().Set(pairs[i], pairs[i+1])
		}
	}
}

func wantHeader(t *testing.T, h http.Header, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if got := h.Get(pairs[i]); got != pairs[i+1] {
			t.Errorf("the request has %s: %q, want %q", pairs[i], got, pairs[i+1])
		}
	}
}

// servePart answers 206 with r of a file of size bytes.
func servePart(w http.ResponseWriter, r byteRange, size int64) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", r.off, r.end-1, size))
	w.WriteHeader(http.StatusPartialContent)
	w.Write(bytesOf(r))
}

// cannedAnswer is what an origin sends.
type cannedAnswer struct {
	status  int
	header  []string  // names and values
	body    byteRange // of the content
	chunked bool      // without Content-Length
}

func (a cannedAnswer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	setHeader(w, a.header...)
	if !a.chunked {
		w.Header().Set("Content-Length", fmt.Sprint(a.body.len()))
	}
	w.WriteHeader(a.status)
	if a.chunked {
		http.NewResponseController(w).Flush()
	}
	w.Write(bytesOf(a.body))
}

func TestEveryAnswerIsChecked(t *testing.T) {
	var (
		all    = byteRange{0, versionSize}
		part   = byteRange{300, 400}
		tail   = byteRange{900, versionSize}
		tagged = Object{Size: versionSize, ETag: `"a"`, LastModified: monday, Ranges: true}
		dated  = Object{Size: versionSize, LastModified: monday, Ranges: true}
		bare   = Object{Size: versionSize, Ranges: true}
		refuse = errors.New("any error")
		right  = []string{"Content-Range", "bytes 300-399/1000"}
	)
	with := func(header []string, more ...string) []string { return append(append([]string{}, header...), more...) }
	tests := []struct {
		name string
		obj  Object
		r    byteRange
		cannedAnswer
		want error // nil: exactly r
	}{
		{"206", bare, part, cannedAnswer{206, right, part, false}, nil},
		{"206 of the same version", tagged, part, cannedAnswer{206, with(right, "ETag", `"a"`, "Last-Modified", monday), part, false}, nil},
		{"206 with a weak ETag", tagged, part, cannedAnswer{206, with(right, "ETag", `W/"a"`), part, false}, errChanged},
		{"206 with another date under the same ETag", tagged, part, cannedAnswer{206, with(right, "ETag", `"a"`, "Last-Modified", tuesday), part, false}, nil},
		{"206, chunked", tagged, part, cannedAnswer{206, with(right, "ETag", `"a"`), part, true}, nil},
		{"206 with another ETag", tagged, part, cannedAnswer{206, with(right, "ETag", `"b"`, "Last-Modified", monday), part, false}, errChanged},
		{"206 with another date", dated, part, cannedAnswer{206, with(right, "Last-Modified", tuesday), part, false}, errChanged},
		{"206 without ETag and with another date", tagged, part, cannedAnswer{206, with(right, "Last-Modified", tuesday), part, false}, errChanged},
		{"206 of another size", bare, part, cannedAnswer{206, []string{"Content-Range", "bytes 300-399/1001"}, part, false}, errChanged},
		{"206 of unknown size", bare, part, cannedAnswer{206, []string{"Content-Range", "bytes 300-399/*"}, part, false}, errNoSize},
		{"206 that starts elsewhere", bare, part, cannedAnswer{206, []string{"Content-Range", "bytes 200-399/1000"}, byteRange{200, 400}, false}, refuse},
		{"206 that starts elsewhere, same length", bare, part, cannedAnswer{206, []string{"Content-Range", "bytes 0-99/1000"}, byteRange{0, 100}, false}, refuse},
		{"206 that names no version any more", tagged, part, cannedAnswer{206, right, part, false}, errChanged},
		{"206 that ends later", bare, part, cannedAnswer{206, []string{"Content-Range", "bytes 300-499/1000"}, byteRange{300, 500}, false}, refuse},
		{"206 without Content-Range", bare, part, cannedAnswer{206, nil, part, false}, refuse},
		{"206 in other units", bare, part, cannedAnswer{206, []string{"Content-Range", "lines 300-399/1000"}, part, false}, refuse},
		{"206 shorter than it says", bare, part, cannedAnswer{206, right, byteRange{300, 350}, false}, errShortBody},
		{"206 longer than it says", bare, part, cannedAnswer{206, right, byteRange{300, 450}, false}, errLongBody},
		{"206 shorter than it says, chunked", bare, part, cannedAnswer{206, right, byteRange{300, 350}, true}, errShortBody},
		{"206 longer than it says, chunked", bare, part, cannedAnswer{206, right, byteRange{300, 450}, true}, errLongBody},
		{"206, compressed", bare, part, cannedAnswer{206, with(right, "Content-Encoding", "gzip"), part, false}, refuse},
		{"206 in several parts", bare, part, cannedAnswer{206, []string{"Content-Type", "multipart/byteranges; boundary=x"}, part, false}, refuse},
		{"206 in several parts that looks right", bare, part, cannedAnswer{206, with(right, "Content-Type", `MultiPart/ByteRanges; boundary="x"`), part, false}, refuse},

		{"200", bare, all, cannedAnswer{200, nil, all, false}, nil},
		{"200 to be cut out of", tagged, part, cannedAnswer{200, []string{"ETag", `"a"`}, all, false}, nil},
		{"200 to be cut out of, without validator", bare, part, cannedAnswer{200, nil, all, false}, nil},
		{"200 to be cut out of, chunked", dated, part, cannedAnswer{200, []string{"Last-Modified", monday}, all, true}, nil},
		{"200 to take the first bytes of", tagged, byteRange{0, 100}, cannedAnswer{200, []string{"ETag", `"a"`}, all, false}, nil},
		{"200 to take the last bytes of", tagged, tail, cannedAnswer{200, []string{"ETag", `"a"`}, all, false}, nil},
		{"200, chunked and nameless, read to its end", bare, tail, cannedAnswer{200, nil, all, true}, nil},
		{"200, chunked and nameless, that ends later", bare, tail, cannedAnswer{200, nil, byteRange{0, 1001}, true}, errLongBody},
		{"200, chunked and nameless, that ends sooner", bare, tail, cannedAnswer{200, nil, byteRange{0, 999}, true}, errShortBody},
		{"200, chunked, that ends before what was wanted", bare, tail, cannedAnswer{200, nil, byteRange{0, 800}, true}, errShortBody},
		{"200, chunked and nameless, to be cut out of", bare, part, cannedAnswer{200, nil, all, true}, errChanged},
		{"200 of another ETag", tagged, part, cannedAnswer{200, []string{"ETag", `"b"`}, all, false}, errChanged},
		{"200 of another date", dated, part, cannedAnswer{200, []string{"Last-Modified", tuesday}, all, false}, errChanged},
		{"200 of another size", tagged, all, cannedAnswer{200, []string{"ETag", `"a"`}, byteRange{0, 1001}, false}, errChanged},
		{"200, compressed", bare, all, cannedAnswer{200, []string{"Content-Encoding", "br"}, all, false}, refuse},

		{"412 where a version was asked for", tagged, part, cannedAnswer{412, nil, byteRange{}, false}, errChanged},
		{"412 where a date was asked for", dated, part, cannedAnswer{412, nil, byteRange{}, false}, errChanged},
		{"412 where nothing was asked for", bare, part, cannedAnswer{412, nil, byteRange{}, false}, statusError{code: 412}},
		{"416 of another size", bare, tail, cannedAnswer{416, []string{"Content-Range", "bytes */500"}, byteRange{}, false}, errChanged},
		{"416 of an empty file", tagged, tail, cannedAnswer{416, []string{"Content-Range", "bytes */0"}, byteRange{}, false}, errChanged},
		{"416 of the same size", bare, tail, cannedAnswer{416, []string{"Content-Range", "bytes */1000"}, byteRange{}, false}, statusError{code: 416}},
		{"416 of unknown size", bare, tail, cannedAnswer{416, nil, byteRange{}, false}, statusError{code: 416}},
		{"503 whose page has an ETag, a size and an encoding", tagged, part,
			cannedAnswer{503, []string{"ETag", `"page"`, "Content-Encoding", "gzip"}, byteRange{0, 20}, false}, statusError{code: 503}},
		{"204", bare, part, cannedAnswer{204, nil, byteRange{}, true}, statusError{code: 204}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := serveHTTP(t, tt.cannedAnswer.ServeHTTP)
			got, err := openAll(o, tt.obj, tt.r)
			switch {
			case tt.want == nil && (err != nil || int64(len(got)) != tt.r.len()):
				t.Errorf("%d bytes of %v, error %v", len(got), tt.r, err)
			case tt.want == refuse && (err == nil || errors.Is(err, errChanged)):
				t.Errorf("error %v, want one that does not speak of a change", err)
			case tt.want != refuse && !errors.Is(err, tt.want):
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if retry, _ := retryAdvice(err); retry && tt.want == refuse {
				t.Errorf("error %v would be tried again, want a final one", err)
			}
			if wrong := checkContent(got, testSeed, tt.r.off); wrong != nil {
				t.Errorf("wrong bytes were delivered: %v", wrong)
			}
		})
	}
}

// An answer that contradicts itself is refused before a byte of it is passed on.
func TestALengthThatCannotBeIsRefusedAtOnce(t *testing.T) {
	for _, sent := range []int64{99, 101} {
		o := serveHTTP(t, cannedAnswer{206, []string{"Content-Range", "bytes 300-399/1000"},
			byteRange{300, 300 + sent}, false}.ServeHTTP)
		body, err := o.Open(t.Context(), Object{Size: versionSize, Ranges: true}, byteRange{300, 400})
		if err == nil {
			body.Close()
			t.Errorf("100 bytes with a Content-Length of %d were opened", sent)
		}
	}
}

// A server that knows the rules, and one for each rule that knows only that.
func TestAChangeIsNoticedByWhateverTheOriginKnows(t *testing.T) {
	tests := []struct {
		name   string
		etag   string
		knows  string // the only precondition that the origin looks at; "" for all
		status int
	}{
		{"everything, with ETag", `"a"`, "", 412},
		{"everything, with dates", "", "", 412},
		{"If-Match", `"a"`, "If-Match", 412},
		{"If-Unmodified-Since", "", "If-Unmodified-Since", 412},
		{"If-Range", `"a"`, "If-Range", 200},
		{"If-Range, with dates", "", "If-Range", 200},
		{"no precondition", `"a"`, "none", 206},
		{"no precondition, with dates", "", "none", 206},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			etag, modified, status := tt.etag, monday, 0
			o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
				for _, name := range []string{"If-Match", "If-Unmodified-Since", "If-Range"} {
					if tt.knows != "" && tt.knows != name {
						r.Header.Del(name)
					}
				}
				setHeader(w, "ETag", etag)
				when, _ := http.ParseTime(modified)
				counted := &countedStatus{ResponseWriter: w, status: &status}
				http.ServeContent(counted, r, "", when, bytes.NewReader(bytesOf(byteRange{0, versionSize})))
			})
			obj, err := o.Stat(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got, err := openAll(o, obj, byteRange{10, 20}); err != nil || !bytes.Equal(got, bytesOf(byteRange{10, 20})) {
				t.Fatalf("before the change: %x, %v", got, err)
			}
			if etag != "" {
				etag = `"b"`
			}
			modified = tuesday
			if _, err := openAll(o, obj, byteRange{10, 20}); !errors.Is(err, errChanged) {
				t.Errorf("error %v, want errChanged", err)
			}
			if status != tt.status {
				t.Errorf("the origin noticed it by status %d, want %d", status, tt.status)
			}
		})
	}
}

// countedStatus remembers the last status sent.
type countedStatus struct {
	http.ResponseWriter
	status *int
}

func (c *countedStatus) WriteHeader(code int) {
	*c.status = code
	c.ResponseWriter.WriteHeader(code)
}

func TestCutOutOfAWholeFileItTakesNoMore(t *testing.T) {
	ended := make(chan error, 1)
	o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(int64(1)<<40))
		_, err := io.Copy(w, newContentReader(testSeed, 1<<40))
		ended <- err
	})
	r := byteRange{100_000, 300_000}
	got, err := openAll(o, Object{Size: 1 << 40}, r)
	if err != nil || int64(len(got)) != r.len() {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if wrong := checkContent(got, testSeed, r.off); wrong != nil {
		t.Error(wrong)
	}
	if err := <-ended; err == nil {
		t.Error("the origin sent a tebibyte to its end")
	}
}

func TestNoHEADIsSent(t *testing.T) {
	o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			t.Errorf("%s was sent", r.Method)
			w.Header().Set("Content-Length", "7")
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bytesOf(byteRange{0, versionSize})))
	})
	obj, err := o.Stat(t.Context())
	if err != nil || obj.Size != versionSize {
		t.Fatalf("Stat: %+v, %v", obj, err)
	}
	if _, err := openAll(o, obj, byteRange{0, versionSize}); err != nil {
		t.Error(err)
	}
}

func TestStatOfUnusualAnswers(t *testing.T) {
	tests := []struct {
		name string
		cannedAnswer
		want Object
		ok   bool
	}{
		{"whole file", cannedAnswer{200, nil, byteRange{0, 10}, false}, Object{Size: 10}, true},
		{"whole file without a length", cannedAnswer{200, nil, byteRange{0, 10}, true}, Object{}, false},
		{"more than was asked for", cannedAnswer{206, []string{"Content-Range", "bytes 0-9/10"}, byteRange{0, 10}, false}, Object{Size: 10}, true},
		{"empty file", cannedAnswer{416, []string{"Content-Range", "bytes */0"}, byteRange{}, false}, Object{Ranges: true}, true},
		{"416 of a file that is not empty", cannedAnswer{416, []string{"Content-Range", "bytes */9"}, byteRange{}, false}, Object{}, false},
		{"several parts", cannedAnswer{206, []string{"Content-Type", "multipart/byteranges; boundary=x"}, byteRange{0, 10}, false}, Object{}, false},
		{"compressed", cannedAnswer{200, []string{"Content-Encoding", "gzip"}, byteRange{0, 10}, false}, Object{}, false},
		{"compressed part", cannedAnswer{206, []string{"Content-Encoding", "gzip", "Content-Range", "bytes 0-0/10"}, byteRange{0, 1}, false}, Object{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := serveHTTP(t, tt.cannedAnswer.ServeHTTP).Stat(t.Context())
			if got != tt.want || (err == nil) != tt.ok {
				t.Errorf("%+v, %v, want %+v", got, err, tt.want)
			}
			if !tt.ok {
				if retry, _ := retryAdvice(err); retry {
					t.Errorf("%v: would be asked again", err)
				}
			}
		})
	}
}

func TestWeaknessesAreNamed(t *testing.T) {
	tests := []struct {
		name string
		obj  Object
		want []string // a word of each sentence
	}{
		{"none", Object{Size: 1, ETag: `"a"`, Ranges: true}, nil},
		{"a date is a validator", Object{Size: 1, LastModified: monday, Ranges: true}, nil},
		{"no ranges", Object{Size: 1, ETag: `"a"`}, []string{"from the start"}},
		{"no validator", Object{Size: 1, Ranges: true}, []string{"unnoticed"}},
		{"neither", Object{Size: 1}, []string{"from the start", "unnoticed"}},
		{"nothing can go wrong with an empty file", Object{}, nil},
	}
	for _, tt := range tests {
		got := tt.obj.weaknesses()
		if len(got) != len(tt.want) {
			t.Errorf("%s: %q", tt.name, got)
			continue
		}
		for i, word := range tt.want {
			if !strings.Contains(got[i], word) {
				t.Errorf("%s: %q does not say %q", tt.name, got[i], word)
			}
		}
	}
}
