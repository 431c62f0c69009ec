// Tests that no byte of another version gets through: how a request names the
// version it wants, and what the origin makes of every kind of answer. The servers
// are real, and most of their answers are written byte for byte.

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
)

const (
	versionSize = 1000
	monday      = "Mon, 02 Mar 2026 10:00:00 GMT"
	tuesday     = "Tue, 03 Mar 2026 10:00:00 GMT"
)

func bytesOf(r byteRange) []byte { return contentOf(r.off, int(r.len())) }

// openAll opens r of obj and reads it to its end.
func openAll(o Origin, obj Object, r byteRange) ([]byte, error) {
	body, err := o.Open(context.Background(), request{obj: obj, r: r})
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
		{"no validator in common proves nothing", tagged, dated, false},
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

// setHeader sets pairs of name and value, except those whose value is "".
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

func TestEveryAnswerIsChecked(t *testing.T) {
	var (
		all    = byteRange{0, versionSize}
		part   = byteRange{300, 400}
		tail   = byteRange{900, versionSize}
		tagged = Object{Size: versionSize, ETag: `"a"`, LastModified: monday, Ranges: true}
		dated  = Object{Size: versionSize, LastModified: monday, Ranges: true}
		weak   = Object{Size: versionSize, weakETag: `"a"`, Ranges: true}
		bare   = Object{Size: versionSize, Ranges: true}
		refuse = errors.New("any error but errChanged, and no other attempt")
	)
	// Fields of a header.
	const (
		right     = "\nContent-Range: bytes 300-399/1000"
		larger    = "\nContent-Range: bytes 300-399/1001"
		endless   = "\nContent-Range: bytes 300-399/*"
		earlier   = "\nContent-Range: bytes 200-399/1000"
		elsewhere = "\nContent-Range: bytes 0-99/1000"
		later     = "\nContent-Range: bytes 300-499/1000"
		inLines   = "\nContent-Range: lines 300-399/1000"
		tagA      = "\nETag: \"a\""
		tagB      = "\nETag: \"b\""
		weakA     = "\nETag: W/\"a\""
		weakB     = "\nETag: W/\"b\""
		onMonday  = "\nLast-Modified: " + monday
		onTuesday = "\nLast-Modified: " + tuesday
		gzip      = "\nContent-Encoding: gzip"
		parts     = "\nContent-Type: multipart/byteranges; boundary=x"
		partsToo  = "\nContent-Type: MultiPart/ByteRanges; boundary=\"x\""
	)
	tests := []struct {
		name   string
		obj    Object
		r      byteRange
		answer string
		want   error  // nil: exactly r
		says   string // if not "", Open already returns the error, and its text holds this
	}{
		{"206", bare, part, sizedAnswer(206, right, part), nil, ""},
		{"206 of the same version", tagged, part, sizedAnswer(206, right+tagA+onMonday, part), nil, ""},
		{"206 with a tag where there was none", bare, part, sizedAnswer(206, right+tagA, part), nil, ""},
		{"206 with a weak tag where there was none", bare, part, sizedAnswer(206, right+weakA, part), nil, ""},
		{"206 with a weak ETag", tagged, part, sizedAnswer(206, right+weakA, part), nil, ""},
		{"206 without the weak ETag there was", weak, part, sizedAnswer(206, right, part), errUnproven, ""},
		{"206 with another weak ETag than there was", weak, part, sizedAnswer(206, right+weakB, part), errChanged, `"a" and is "b"`},
		{"206 with another weak ETag", tagged, part, sizedAnswer(206, right+weakB, part), errChanged, `"a" and is "b"`},
		{"206 with another date under the same ETag", tagged, part, sizedAnswer(206, right+tagA+onTuesday, part), nil, ""},
		{"206, chunked", tagged, part, chunkedAnswer(206, right+tagA, part), nil, ""},
		{"206 with another ETag", tagged, part, sizedAnswer(206, right+tagB+onMonday, part), errChanged, `"a" and is "b"`},
		{"206 with another date", dated, part, sizedAnswer(206, right+onTuesday, part), errChanged, ""},
		{"206 without ETag and with another date", tagged, part, sizedAnswer(206, right+onTuesday, part), errChanged, ""},
		{"206 of another size", bare, part, sizedAnswer(206, larger, part), errChanged, "was 1000 and is 1001"},
		{"206 of another size under the same ETag", tagged, part, sizedAnswer(206, larger+tagA, part), errChanged, "was 1000 and is 1001"},
		{"206 of unknown size", bare, part, sizedAnswer(206, endless, part), nil, ""},
		{"206 of unknown size under the same ETag", tagged, part, sizedAnswer(206, endless+tagA, part), nil, ""},
		{"206 that starts elsewhere", bare, part, sizedAnswer(206, earlier, byteRange{200, 400}), nil, ""},
		{"206 that starts elsewhere, same length", bare, part, sizedAnswer(206, elsewhere, byteRange{0, 100}), refuse, "sent [0,100)"},
		{"206 that names no version any more", tagged, part, sizedAnswer(206, right, part), errUnproven, ""},
		{"206 that ends later", bare, part, sizedAnswer(206, later, byteRange{300, 500}), nil, ""},
		{"206 without Content-Range", bare, part, sizedAnswer(206, "", part), refuse, ""},
		{"206 in other units", bare, part, sizedAnswer(206, inLines, part), refuse, ""},
		{"206 shorter than it says", bare, part, sizedAnswer(206, right, byteRange{300, 399}), errShortBody, "99 bytes, not 100"},
		{"206 longer than it says", bare, part, sizedAnswer(206, right, byteRange{300, 401}), errLongBody, "101 bytes, not 100"},
		{"206 shorter than it says, chunked", bare, part, chunkedAnswer(206, right, byteRange{300, 350}), errShortBody, ""},
		{"206 longer than it says, chunked", bare, part, chunkedAnswer(206, right, byteRange{300, 450}), errLongBody, ""},
		{"206, compressed", bare, part, sizedAnswer(206, right+gzip, part), nil, ""},
		{"206 in several parts", bare, part, sizedAnswer(206, parts, part), refuse, "multipart/byteranges"},
		{"206 in several parts that looks right", bare, part, sizedAnswer(206, right+partsToo, part), refuse, ""},

		{"200", bare, all, sizedAnswer(200, "", all), nil, ""},
		{"200, chunked", bare, all, chunkedAnswer(200, "", all), nil, ""},
		{"200 until the close", bare, all, answerOf("200 OK", "Connection: close", string(bytesOf(all))), nil, ""},
		{"200 to be cut out of", tagged, part, sizedAnswer(200, tagA, all), nil, ""},
		{"200 to be cut out of, without validator", bare, part, sizedAnswer(200, "", all), nil, ""},
		{"200 to be cut out of, chunked", dated, part, chunkedAnswer(200, onMonday, all), nil, ""},
		{"200 to take the first bytes of", tagged, byteRange{0, 100}, sizedAnswer(200, tagA, all), nil, ""},
		{"200 to take the last bytes of", tagged, tail, sizedAnswer(200, tagA, all), nil, ""},
		{"200, chunked and nameless, read to its end", bare, tail, chunkedAnswer(200, "", all), nil, ""},
		{"200, chunked and nameless, that ends later", bare, tail, chunkedAnswer(200, "", byteRange{0, 1001}), errLongBody, ""},
		{"200, chunked and nameless, that ends sooner", bare, tail, chunkedAnswer(200, "", byteRange{0, 999}), errShortBody, ""},
		{"200, chunked, that ends before what was wanted", bare, tail, chunkedAnswer(200, "", byteRange{0, 800}), errShortBody, ""},
		{"200, chunked and nameless, to be cut out of", bare, part, chunkedAnswer(200, "", all), errChanged, "without its length or version"},
		{"200 of another ETag", tagged, part, sizedAnswer(200, tagB, all), errChanged, `is "b"`},
		{"200 of another date", dated, part, sizedAnswer(200, onTuesday, all), errChanged, ""},
		{"200 of another size", tagged, all, sizedAnswer(200, tagA, byteRange{0, 1001}), errChanged, "was 1000 and is 1001"},
		{"200, compressed", bare, all, sizedAnswer(200, "\nContent-Encoding: br", all), nil, ""},

		{"412 where a version was asked for", tagged, part, sizedAnswer(412, "", byteRange{}), statusError{code: 412}, ""},
		{"412 where a date was asked for", dated, part, sizedAnswer(412, "", byteRange{}), statusError{code: 412}, ""},
		{"412 where nothing was asked for", bare, part, sizedAnswer(412, "", byteRange{}), statusError{code: 412}, ""},
		{"416 of another size", bare, tail, sizedAnswer(416, "\nContent-Range: bytes */500", byteRange{}), errChanged, ""},
		{"416 of an empty file", tagged, tail, sizedAnswer(416, "\nContent-Range: bytes */0", byteRange{}), errChanged, ""},
		{"416 of the same size", bare, tail, sizedAnswer(416, "\nContent-Range: bytes */1000", byteRange{}), statusError{code: 416}, ""},
		{"416 of unknown size", bare, tail, sizedAnswer(416, "", byteRange{}), statusError{code: 416}, ""},
		{"503 whose page has an ETag, a size and an encoding", tagged, part,
			sizedAnswer(503, "\nETag: \"page\""+gzip, byteRange{0, 20}), statusError{code: 503}, ""},
		{"204", bare, part, answerOf("204 No Content", "Connection: close", ""), statusError{code: 204}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []byte
			o := serveText(t, tt.answer)
			tt.obj.server = hostOf(o.url)
			body, err := o.Open(t.Context(), request{obj: tt.obj, r: tt.r})
			if tt.says != "" && !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("Open: error %v, want one that says %q", err, tt.says)
			}
			if err == nil {
				got, err = io.ReadAll(body)
				body.Close()
			}
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

// One server knows every precondition, and each of the others knows one or none.
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
				if r.Header.Get("If-Match")+r.Header.Get("If-Unmodified-Since")+r.Header.Get("If-Range") != "" || tt.knows == "none" {
					w = &lastStatus{ResponseWriter: w, status: &status}
				}
				http.ServeContent(w, r, "", when, bytes.NewReader(bytesOf(byteRange{0, versionSize})))
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

// lastStatus remembers the last status that was sent, but for an answer to a request
// without preconditions.
type lastStatus struct {
	http.ResponseWriter
	status *int
}

func (c *lastStatus) WriteHeader(code int) {
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
		{"a weak ETag is a validator", Object{Size: 1, weakETag: `"a"`, Ranges: true}, nil},
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
