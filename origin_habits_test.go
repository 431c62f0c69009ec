// Tests of what origins do to validators, preconditions and ranges, that RFC 9110 does
// not foresee or allow: the file is delivered whole where it does not change, and no
// byte of another version is delivered where it does.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	habitSize  = 1 << 20
	habitPiece = 100_000
)

// habitOrigin is an origin with a habit.
type habitOrigin struct {
	habit   func(w http.ResponseWriter, r *http.Request, n int) (done bool) // changes the answer, or gives one
	same    int                                                             // bytes at the start that do not change
	changed int                                                             // at that request the content becomes another; 0: never
	tag     func(n int) string                                              // of the n-th answer
	date    func(now time.Time) time.Time

	mu    sync.Mutex
	asked int
	sent  int64 // bytes
	clock time.Time
}

func (h *habitOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock() // a request that was left may still be answered
	defer h.mu.Unlock()
	h.asked++
	h.clock = h.clock.Add(time.Second)
	seed := uint64(testSeed)
	if h.changed > 0 && h.asked >= h.changed {
		seed++
	}
	w.Header().Set("Date", h.clock.Format(http.TimeFormat))
	if h.tag != nil {
		setHeader(w, "ETag", h.tag(h.asked))
	}
	var modified time.Time
	if h.date != nil {
		modified = h.date(h.clock)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	counted := &countingWriter{ResponseWriter: w, sent: &h.sent}
	if h.habit == nil || !h.habit(counted, r, h.asked) {
		content := make([]byte, habitSize)
		fillContent(content, seed, 0)
		fillContent(content[:h.same], testSeed, 0)
		http.ServeContent(counted, r, "", modified, bytes.NewReader(content))
	}
}

type countingWriter struct {
	http.ResponseWriter
	sent *int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	*c.sent += int64(n)
	return n, err
}

// readThrough reads the file piece by piece, as a store does, and retries what passes.
func readThrough(t *testing.T, o *httpOrigin) (got []byte, ranged bool, err error) {
	t.Helper()
	obj, err := o.Stat(t.Context())
	if err != nil {
		return nil, false, err
	}
	known := func(off int64) (int64, []byte) {
		at := max(0, off-knownBytes)
		return at, got[at:off]
	}
	for failures := 0; int64(len(got)) < obj.Size; {
		off := int64(len(got))
		body, err := o.Open(t.Context(), request{obj: obj, r: byteRange{off, min(obj.Size, off+habitPiece)}, known: known, ranged: func(is bool) { ranged = is }})
		if err == nil {
			var piece []byte
			piece, err = io.ReadAll(body)
			body.Close()
			got = append(got, piece...)
		}
		if retry, _ := retryAdvice(err); err != nil && (!retry || failures == 20) {
			return got, ranged, err
		} else if err != nil {
			failures++
		}
	}
	return got, ranged, nil
}

func constantTag(int) string { return `"a"` }

func tagEach(n int) string { return fmt.Sprintf(`"%d"`, n) }

func inTurn(n int) string { return fmt.Sprintf(`"%d"`, n%2) }

func dateInTurn(now time.Time) time.Time {
	return demoModTime().Add(time.Duration(now.Second()%2) * time.Second)
}

func longAgo(time.Time) time.Time { return demoModTime() }

func justNow(now time.Time) time.Time { return now }

// withoutRange answers as if r had no Range.
func withoutRange(w http.ResponseWriter, r *http.Request) {
	r.Header.Del("Range")
	http.ServeContent(w, r, "", demoModTime(), newContentReader(testSeed, habitSize))
}

func habits() map[string]*habitOrigin {
	preconditions := func(r *http.Request) bool {
		return r.Header.Get("If-Match")+r.Header.Get("If-Unmodified-Since") != ""
	}
	rangeOf := func(r *http.Request) (a, b int64) {
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b)
		return a, b
	}
	refuse := func(code int, when func(r *http.Request, n int) bool) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			if when(r, n) {
				w.WriteHeader(code)
				return true
			}
			return false
		}
	}
	weaken := func(n int) string { return []string{`"a"`, `W/"a"`}[n%2] }
	return map[string]*habitOrigin{
		"none":                        {tag: constantTag, date: longAgo},
		"a tag per request":           {tag: tagEach, date: longAgo},
		"a tag per request, no date":  {tag: tagEach},
		"a tag per request, date now": {tag: tagEach, date: justNow},
		"weak and strong in turn":     {tag: weaken, date: longAgo},
		"two tags in turn":            {tag: inTurn, date: longAgo},
		"two dates in turn":           {date: dateInTurn},
		"two tags and dates in turn":  {tag: inTurn, date: dateInTurn},
		"the present as date":         {date: justNow},
		"nothing":                     {},
		"412 to its own tag":          {tag: constantTag, habit: refuse(412, func(r *http.Request, _ int) bool { return preconditions(r) })},
		"412 to its own date":         {date: longAgo, habit: refuse(412, func(r *http.Request, _ int) bool { return preconditions(r) })},
		"no range longer than 64 KiB": {tag: constantTag, habit: refuse(413, func(r *http.Request, _ int) bool { a, b := rangeOf(r); return b-a >= 64<<10 })},
		"no long range, 416":          {tag: constantTag, habit: refuse(416, func(r *http.Request, _ int) bool { a, b := rangeOf(r); return b-a >= 64<<10 })},
		"tags and lengths":            {tag: tagEach, habit: refuse(413, func(r *http.Request, _ int) bool { a, b := rangeOf(r); return b-a >= 64<<10 })},
		"no range, 406":               {tag: constantTag, habit: refuse(406, func(r *http.Request, _ int) bool { return r.Header.Get("Range") != "" })},
		"no range, 416":               {tag: constantTag, habit: refuse(416, func(r *http.Request, _ int) bool { return r.Header.Get("Range") != "" })},
		"no range, 501":               {tag: constantTag, habit: refuse(501, func(r *http.Request, _ int) bool { return r.Header.Get("Range") != "" })},
		"busy now and then":           {tag: constantTag, habit: refuse(503, func(_ *http.Request, n int) bool { return n%3 == 2 })},
		"a whole file to If-Range": {tag: constantTag, habit: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return r.Header.Get("If-Range") != "" && serveWhole(w, r)
		}},
		"a whole file the first time": {tag: constantTag, habit: func(w http.ResponseWriter, r *http.Request, n int) bool { return n == 1 && serveWhole(w, r) }},
		"never a range":               {tag: constantTag, habit: func(w http.ResponseWriter, r *http.Request, _ int) bool { return serveWhole(w, r) }},
		"a page now and then":         {tag: constantTag, habit: func(w http.ResponseWriter, _ *http.Request, n int) bool { return n%3 == 2 && servePage(w, 0) }},
		"a page of the file's size":   {date: longAgo, habit: func(w http.ResponseWriter, _ *http.Request, n int) bool { return n%3 == 2 && servePage(w, habitSize) }},
		"blocks of 64 KiB":            {tag: constantTag, habit: serveAligned},
		"a range of another unit": {tag: constantTag, habit: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return serveRange(w, r, "BYTES=%d-%d/%d", 206)
		}},
		"200 with a range": {tag: constantTag, habit: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return serveRange(w, r, "bytes %d-%d/%d", 200)
		}},
		"a coding that is stored": {tag: constantTag, habit: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			setHeader(w, "Content-Encoding", "x-gzip")
			return false
		}},
		"a tag per range, and no dates": {habit: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			setHeader(w, "ETag", `"`+r.Header.Get("Range")+`"`)
			r.Header.Del("If-Match")
			r.Header.Del("If-Range")
			return false
		}},
	}
}

func serveWhole(w http.ResponseWriter, r *http.Request) bool {
	withoutRange(w, r)
	return true
}

func servePage(w http.ResponseWriter, size int) bool {
	page := "<html>sign in" + strings.Repeat(" ", max(0, size-13))
	w.Header().Del("ETag")
	setHeader(w, "Content-Type", "text/html; charset=utf-8")
	io.WriteString(w, page)
	return true
}

// serveRange answers with the range that r wants, the Content-Range written in form.
func serveRange(w http.ResponseWriter, r *http.Request, form string, code int) bool {
	var a, b int64
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b)
	return serveBytes(w, byteRange{a, b + 1}, form, code)
}

func serveBytes(w http.ResponseWriter, r byteRange, form string, code int) bool {
	setHeader(w, "Content-Range", fmt.Sprintf(form, r.off, r.end-1, habitSize), "Content-Length", fmt.Sprint(r.len()))
	w.WriteHeader(code)
	w.Write(bytesOf(r))
	return true
}

func serveAligned(w http.ResponseWriter, r *http.Request, _ int) bool {
	const block = 64 << 10
	var a, b int64
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b)
	return serveBytes(w, byteRange{a / block * block, min(habitSize, (b/block+1)*block)}, "bytes %d-%d/%d", 206)
}

func TestAFileOfAnOriginWithHabitsIsDelivered(t *testing.T) {
	const pieces = (habitSize + habitPiece - 1) / habitPiece
	for name, h := range habits() {
		t.Run(name, func(t *testing.T) {
			h.clock = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
			got, ranged, err := readThrough(t, serveHTTP(t, h.ServeHTTP))
			if name == "a whole file the first time" && !ranged {
				t.Error("ranges were not seen")
			}
			if err != nil || len(got) != habitSize {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if wrong := checkContent(got, testSeed, 0); wrong != nil {
				t.Error(wrong)
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.asked > 4*pieces || h.sent > 3*habitSize && !strings.Contains(name, "range") && !strings.Contains(name, "page") && !strings.Contains(name, "turn") {
				t.Errorf("%d requests for %d pieces, %d bytes sent", h.asked, pieces, h.sent)
			}
		})
	}
}

// The file becomes another one of the same size at each request in turn.
func TestAChangeIsToldFromAHabit(t *testing.T) {
	before := func(old func(int) string, at int, fresh string) func(int) string {
		return func(n int) string {
			if n < at {
				return old(n)
			}
			return fresh
		}
	}
	for at := 2; at < 12; at++ {
		for name, h := range map[string]*habitOrigin{
			"another tag":                       {tag: before(constantTag, at, `"b"`)},
			"another tag, equal date":           {tag: before(constantTag, at, `"b"`), date: longAgo},
			"another tag, equal date and start": {tag: before(constantTag, at, `"b"`), date: longAgo, same: 9 * habitPiece},
			"another weak tag":                  {tag: before(func(int) string { return `W/"a"` }, at, `W/"b"`)},
			"another tag and date":              {tag: before(constantTag, at, `"b"`), date: func(now time.Time) time.Time { return demoModTime().Add(time.Duration(now.Second()/at) * time.Hour) }},
			"a tag per request":                 {tag: tagEach, date: longAgo},
			"a tag per request and no date":     {tag: tagEach},
			"the present as date":               {date: justNow},
		} {
			t.Run(fmt.Sprintf("%s/%d", name, at), func(t *testing.T) {
				h.clock, h.changed = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC), at
				got, _, err := readThrough(t, serveHTTP(t, h.ServeHTTP))
				if h.same == 0 && err == nil && checkContent(got, testSeed+1, 0) == nil {
					return // all of it is of the new version: nobody had a byte of the old one
				}
				if wrong := checkContent(got, testSeed, 0); wrong != nil {
					t.Errorf("a byte of the new version was delivered: %v", wrong)
				}
				if !errors.Is(err, errChanged) {
					t.Errorf("%d bytes, %v; want errChanged", len(got), err)
				}
			})
		}
	}
}

// Two servers behind one name have a version of the file each, such as while a new one is
// rolled out.
func TestTwoVersionsInTurnAreNotMixed(t *testing.T) {
	for every := 2; every < 6; every++ {
		var asked atomic.Int64
		o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
			seed, tag := uint64(testSeed), `"a"`
			if asked.Add(1)%int64(every) == 0 {
				seed, tag = testSeed+1, `"b"`
			}
			w.Header().Set("ETag", tag)
			http.ServeContent(w, r, "", demoModTime().Add(time.Duration(seed)*time.Second), newContentReader(seed, habitSize))
		})
		got, _, err := readThrough(t, o)
		if wrong := checkContent(got, testSeed, 0); wrong != nil || err != nil || len(got) != habitSize {
			t.Errorf("every %d: %d bytes, %v, %v; want all of one version", every, len(got), err, wrong)
		}
	}
}
