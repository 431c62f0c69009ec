// Tests of lists and probes: which lines of a list are sources, which source comes
// first, and how many probes are in flight at once. Tests of probes run in synctest
// bubbles, and each answer waits until the test sends it.

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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

func TestNamedSources(t *testing.T) {
	list := writeTestFile(t, "\ufeff# comment\r\nhttp://h/1\r\n\r\n  # another\n\t n=http://h/2#part \t\nhttp://h/3?a=b#c")
	stdin := strings.NewReader("a b=http://h/4\n\n")
	sources, err := namedSources([]string{"http://h/0"}, []string{list, "-"}, stdin)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, src := range sources {
		got = append(got, src.name+"="+src.url.String())
	}
	want := []string{"=http://h/0", "=http://h/1", "n=http://h/2", "=http://h/3?a=b", "a b=http://h/4"}
	if !slices.Equal(got, want) {
		t.Errorf("sources are %q, want %q", got, want)
	}
}

func TestNamedSourcesWithoutAny(t *testing.T) {
	if sources, err := namedSources(nil, nil, nil); len(sources) != 0 || err != nil {
		t.Errorf("without a list: %v, %v", sources, err)
	}
	empty := writeTestFile(t, "# nothing\n")
	if sources, err := namedSources([]string{"http://h/0"}, []string{empty}, nil); len(sources) != 1 || err != nil {
		t.Errorf("an empty list beside a source: %v, %v; want the source", sources, err)
	}
	// An empty list is an error: the demo is only for command lines without a source.
	_, err := namedSources(nil, []string{empty}, nil)
	requireRefusal(t, "an empty list", err, "list "+empty+": it names no source")
}

func TestBadLists(t *testing.T) {
	bad := "# comment\r\nhttp://h/1\r\n\r\nftp://user:SECRET@h/x?sig=SECRET\r\n"
	path := writeTestFile(t, bad)
	_, err := namedSources(nil, []string{path}, nil)
	requireRefusal(t, "a file", err, "list "+path+`:4: source "ftp://..."`)

	_, err = namedSources(nil, []string{"-"}, strings.NewReader(bad))
	requireRefusal(t, "stdin", err, "list standard input:4: source")

	_, err = namedSources(nil, []string{"-"}, iotest.ErrReader(iotest.ErrTimeout))
	requireRefusal(t, "stdin that fails", err, "list standard input: timeout")

	_, err = namedSources(nil, []string{"/no/such/file"}, nil)
	requireRefusal(t, "no file", err, "list /no/such/file: no such file")

	_, err = namedSources([]string{"h/x?sig=SECRET"}, []string{"/no/such/file"}, nil)
	requireRefusal(t, "the command line comes first", err, `source "h/x..."`)
}

func TestOptionsOfAList(t *testing.T) {
	sum := strings.Repeat("0123456789abcdef", 4)
	list := writeTestFile(t, strings.Join([]string{
		"a b=http://h/1?x=y sha256=" + strings.ToUpper(sum) + " \t size=0",
		"http://h/2#part size=999999999999999999",
		"http://h/3/ sha256=" + sum,
		"http://h/4?size=5",
	}, "\n"))
	sources, err := namedSources(nil, []string{list}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []fileSource{{name: "a b", sha256: sum, sized: true}, {sized: true, size: 999999999999999999}, {sha256: sum}, {}}
	for i, src := range sources {
		if src.url, src.options = nil, ""; src != want[i] {
			t.Errorf("source %d: got %+v, want %+v", i, src, want[i])
		}
	}
	for _, wrong := range []string{"md5=1", "size=", "size=-1", "size=+1", "size=1k", "size=1000000000000000000", "sha256=" + sum[1:], "sha256=" + sum + "0",
		"sha256=" + strings.Replace(sum, "0", "g", 1), "SECRET", "SECRET?size=1", "size=1 SECRET", "size=1\tsize", "SIZE=1", "http://h/2", "size=1 size=2", "sha256=" + sum + " sha256=" + sum} {
		list := writeTestFile(t, "\nn=http://u:SECRET@h/x?SECRET "+wrong)
		_, err := namedSources(nil, []string{list}, nil)
		requireRefusal(t, wrong, err, "list "+list+`:2: source "n=http://...": behind the URL only sha256=HEX`)
	}
	if _, err := namedSources([]string{"http://h/a size=1"}, nil, nil); err != nil {
		t.Errorf("an argument has no options: %v", err)
	}
}

func TestANameIsGivenOnce(t *testing.T) {
	list := writeTestFile(t, "a/b =http://u:SECRET@h/2?SECRET\n")
	_, err := namedSources([]string{"A_b=http://h/0", " a/ b=http://h/1?SECRET", "http://h/a"}, []string{list}, nil)
	requireRefusal(t, "a name of a list", err,
		`name "a/b" is used twice, for http://h/1 and http://h/2: write another NAME= before one of the URLs`)
	for _, args := range [][]string{{"a=http://h/1?SECRET", "a/b/c=http://u:SECRET@h/2"}, {"a/b/c=http://h/2?SECRET", "a=http://h/1"}} {
		_, err = namedSources(args, nil, nil)
		requireRefusal(t, "a file and a directory", err,
			`"a" cannot be both the file for http://h/1 and the directory of "a/b/c", for http://h/2: write another NAME= before one of the URLs`)
	}
	sources, err := namedSources([]string{"http://h/a", "http://h/x/a", "a=http://h/1", "http://h/a"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	found := make([]probed, len(sources))
	for i, src := range sources {
		found[i].source = src
	}
	if got, want := namesOf(found, nobody), []string{"a (2)", "a (3)", "a", "a (4)"}; !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	found[2].err = errNoSize // nobody else gets its NAME
	if got, want := namesOf(found, nobody), []string{"a (2)", "a (3)", "a", "a (4)"}; !slices.Equal(got, want) {
		t.Errorf("names beside a skipped source: %q, want %q", got, want)
	}
}

// heldProbes is a transport that holds each answer back until the test sends it. The
// file at path /N has N+1 bytes.
type heldProbes struct {
	mu       sync.Mutex
	inFlight map[string]chan error // GUARDED_BY(mu); by path
}

// startLimit is the --start-timeout of most tests.
const startLimit = 30 * time.Second

func newHeldProbes() *heldProbes { return &heldProbes{inFlight: make(map[string]chan error)} }

// RoundTrip BLOCKS until the test calls answer for the path; wakes on the end of the
// request's context too.
func (h *heldProbes) RoundTrip(req *http.Request) (*http.Response, error) {
	answered := h.enter(req.URL.Path)
	defer h.leave(req.URL.Path)
	select {
	case err := <-answered:
		if err != nil {
			return nil, err
		}
		return probeResponse(req), nil
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

func (h *heldProbes) enter(path string) chan error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.inFlight[path] = make(chan error, 1)
	return h.inFlight[path]
}

func (h *heldProbes) leave(path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.inFlight, path)
}

// probeResponse describes the file of req, whose size follows from its path.
func probeResponse(req *http.Request) *http.Response {
	var n int
	fmt.Sscanf(req.URL.Path, "/%d", &n)
	header := http.Header{"Content-Range": {fmt.Sprintf("bytes 0-0/%d", n+1)}}
	return &http.Response{StatusCode: http.StatusPartialContent, Header: header, Body: io.NopCloser(strings.NewReader("x")), Request: req}
}

// answer answers the request for file n, with err if it is not nil. It reports false if
// no such request is in flight.
func (h *heldProbes) answer(n int, err error) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	answered, ok := h.inFlight[fmt.Sprintf("/%d", n)]
	if ok {
		answered <- err
	}
	return ok
}

// waiting waits until every goroutine of the bubble is blocked, and returns how many
// requests are then in flight.
func (h *heldProbes) waiting() int {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.inFlight)
}

// startProbes probes n files. The channel receives the result of probeAll.
func startProbes(t *testing.T, ctx context.Context, h *heldProbes, n int) <-chan []probed {
	sources := make([]fileSource, n)
	for i := range sources {
		sources[i].url = mustParseURL(t, fmt.Sprintf("http://h/%d", i))
	}
	done := make(chan []probed, 1)
	go func() { done <- probeAll(ctx, clientOver(h, new(credentials)), sources, 1, 0, startLimit) }()
	return done
}

// requireProbed requires that each file of wrong failed with its error there, and that
// every other file answered with its own size.
func requireProbed(t *testing.T, all []probed, n int, wrong map[int]error) {
	t.Helper()
	if len(all) != n {
		t.Fatalf("%d answers, want %d", len(all), n)
	}
	for i, p := range all {
		if want := fmt.Sprintf("http://h/%d", i); p.source.url.String() != want || p.origin.String() != want {
			t.Errorf("answer %d is of source %s, origin %s; want %s", i, p.source.url, p.origin, want)
		}
		if want := wrong[i]; want != nil {
			if !errors.Is(p.err, want) {
				t.Errorf("answer %d: error %v, want %v", i, p.err, want)
			}
		} else if p.err != nil || p.obj.Size != int64(i+1) {
			t.Errorf("answer %d: size %d, %v; want %d", i, p.obj.Size, p.err, i+1)
		}
	}
}

// TestProbesAreAskedSeveralAtOnceAndNeverMore answers one request after the other, the
// last one first, and counts the requests in flight before each answer. The result
// keeps the order of the sources.
func TestProbesAreAskedSeveralAtOnceAndNeverMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 3*probesAtOnce + 5
		h := newHeldProbes()
		done := startProbes(t, t.Context(), h, n)
		for left := n; left > 0; left-- {
			if got, want := h.waiting(), min(left, probesAtOnce); got != want {
				t.Errorf("%d requests in flight with %d to answer, want %d", got, left, want)
			}
			for i := n - 1; !h.answer(i, nil); i-- {
				if i < 0 {
					t.Fatal("no request is in flight")
				}
			}
		}
		requireProbed(t, <-done, n, nil)
	})
}

// TestFailedProbeHarmsNoOther has probes that fail and one without an answer. The others
// must succeed at once.
func TestFailedProbeHarmsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, silent = 2 * probesAtOnce, 3
		refused := statusError{code: 404, proxy: true}
		wrong := map[int]error{0: refused, 7: refused, n - 1: refused, silent: unansweredError{within: stallLimit}}
		h := newHeldProbes()
		start := time.Now()
		done := startProbes(t, t.Context(), h, n)
		for answered := 0; answered < n-1; {
			h.waiting()
			for i := range n {
				if i != silent && h.answer(i, wrong[i]) {
					answered++
				}
			}
		}
		if got := h.waiting(); got != 1 || !time.Now().Equal(start) {
			t.Errorf("%d requests in flight after %v, want one at once", got, time.Since(start))
		}
		all := <-done
		if took := time.Since(start); took < startLimit || took > startLimit+startLimit/2 {
			t.Errorf("the probe without an answer took %v, want at least %v and at most half more", took, startLimit)
		}
		requireProbed(t, all, n, wrong)
	})
}

// TestCancelEndsTheProbes cancels the context while some probes wait for an answer and
// others for their turn.
func TestCancelEndsTheProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 3 * probesAtOnce
		ctx, cancel := context.WithCancel(t.Context())
		h := newHeldProbes()
		done := startProbes(t, ctx, h, n)
		h.waiting()
		h.answer(0, nil)
		h.waiting()
		start := time.Now()
		cancel()
		all := <-done
		if took := time.Since(start); took != 0 {
			t.Errorf("the probes ended %v after the cancel", took)
		}
		wrong := make(map[int]error)
		for i := 1; i < n; i++ {
			wrong[i] = context.Canceled
		}
		requireProbed(t, all, n, wrong)
	})
}

func TestNoSourceIsNoProbe(t *testing.T) {
	if all := probeAll(t.Context(), nil, nil, 1, 0, startLimit); len(all) != 0 {
		t.Errorf("%d answers of no source", len(all))
	}
}

// A transcript shows that without a log file it is named once.
func TestASkippedSourceIsNamedInTheLogFileToo(t *testing.T) {
	const skipped = `skipped "a_b/c" (http://127.0.0.1:1/x): cannot connect to 127.0.0.1:1: connection refused (--start-timeout gives it more time)` + "\n"
	logFile := filepath.Join(t.TempDir(), "log")
	status, _, stderr := runInProcess(t, "-mount", t.TempDir(), "--log-file", logFile, "--start-timeout=1s", "a\nb/c=http://u:SECRET@127.0.0.1:1/x?SECRET")
	log, err := os.ReadFile(logFile)
	if err != nil || status != exitFailure || stderr != "fsmount: "+skipped+"fsmount: nothing to mount: no source could be opened\n" ||
		!strings.HasSuffix(string(log), " "+skipped) {
		t.Errorf("status %d, stderr %q, log %q, %v; want both to have %q", status, stderr, log, err, skipped)
	}
}

// A source that is added gets a name of its own, the same access as at the start, and
// no other file is harmed by one that is refused.
func TestAddedSources(t *testing.T) {
	log := newEventLog(io.Discard)
	defer log.Close(time.Minute)
	config := testConfig(t.TempDir())
	fs := newFileSystem(ioAuto, config, log)
	served := roundTripper(func(req *http.Request) (*http.Response, error) {
		resp := probeResponse(req)
		if req.URL.Path == "/none" {
			resp.StatusCode = http.StatusNotFound
		}
		return resp, nil
	})
	sources, err := namedSources([]string{"http://h/a.bin", "d/a.bin=http://h/b.bin", "http://h/none", "http://h/a.bin", "http://h/d"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var skipped []string
	open := func(sources []fileSource) ([]*node, error) {
		files, _, err := openFiles(t.Context(), options{StartTimeout: time.Second}, clientOver(served, new(credentials)), sources, fs,
			func(err error) { skipped = append(skipped, err.Error()) })
		for _, f := range files {
			t.Cleanup(func() { f.current.Load().latest().Close() })
		}
		return files, err
	}
	if _, err := open(sources); err != nil {
		t.Fatal(err)
	}
	if _, err := open(sources[:1]); err != nil {
		t.Fatal(err)
	}
	if _, err := open(sources[1:2]); err == nil {
		t.Error("a NAME that is in use was taken")
	}
	var names []string
	for _, f := range fs.allFiles() {
		names = append(names, f.name())
	}
	if want := []string{"a.bin", "d/a.bin", "a (2).bin", "d (2)", "a (3).bin"}; !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
	if len(skipped) != 2 || !strings.HasPrefix(skipped[1], `skipped "d/a.bin" (http://h/b.bin): the mount has "d/a.bin" already: `) {
		t.Errorf("skipped: %q", skipped)
	}
}

// A file of another URL is another file to the cache, whatever its NAME and validators are.
func TestTheCacheTellsURLsApart(t *testing.T) {
	log := newEventLog(io.Discard)
	defer log.Close(time.Minute)
	config := testConfig(t.TempDir())
	var err error
	if config.room.cache, err = openCache(t.TempDir(), log); err != nil {
		t.Fatal(err)
	}
	defer config.room.cache.root.Close()
	fs := newFileSystem(ioAuto, config, log)
	served := roundTripper(func(req *http.Request) (*http.Response, error) { return probeResponse(req), nil })
	entry := func(source string) string {
		sources, err := namedSources([]string{source}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		files, _, err := openFiles(t.Context(), options{StartTimeout: time.Second}, clientOver(served, new(credentials)), sources, fs, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		fs.unlink(files[0])
		fs.room.closing.Wait()
		return files[0].current.Load().latest().entry
	}
	first := entry("a=http://h/9?id=1")
	if first == "" || entry("a=http://h/9?id=2") == first || entry("b=http://h/9?id=1") == first || entry("a=http://h/9?id=1&X-Amz-Signature=2") != first {
		t.Error("entries are of other files, or not of the same one")
	}
}

// TestProbesOfRealServers probes over sockets: a server with the file, a server without
// it, and a server that no longer runs.
func TestProbesOfRealServers(t *testing.T) {
	good := httptest.NewServer(contentHandler(12345, `"v1"`))
	defer good.Close()
	missing := httptest.NewServer(http.NotFoundHandler())
	defer missing.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	client := newHTTPClient()
	defer client.CloseIdleConnections()
	all := probeAll(t.Context(), client, []fileSource{
		{url: mustParseURL(t, gone.URL)}, {url: mustParseURL(t, good.URL)}, {url: mustParseURL(t, missing.URL)},
	}, 1, 0, time.Second)
	if all[0].err == nil || !errors.Is(all[2].err, statusError{code: 404}) {
		t.Errorf("the servers without the file: %v, %v; want refused and 404", all[0].err, all[2].err)
	}
	if want := (Object{Size: 12345, ETag: `"v1"`, Ranges: true}); all[1].err != nil || described(all[1].obj) != want {
		t.Errorf("the server with the file: %+v, %v; want %+v", all[1].obj, all[1].err, want)
	}
}

// An origin that is busy at first, or not there, is asked again; what fails for good is
// not.
func TestProbesAreAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(map[string]int)
		var mu sync.Mutex
		transport := roundTripper(func(req *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			asked[req.URL.Path]++
			resp := probeResponse(req)
			switch n := asked[req.URL.Path]; {
			case req.URL.Path == "/0" && n <= 2:
				resp.StatusCode = http.StatusServiceUnavailable
				resp.Header = http.Header{"Retry-After": {"2"}}
			case req.URL.Path == "/1" && n <= 3:
				return nil, syscall.ECONNREFUSED
			case req.URL.Path == "/2":
				resp.StatusCode = http.StatusNotFound
			case req.URL.Path == "/3":
				return nil, &net.DNSError{IsNotFound: true}
			case req.URL.Path == "/4":
				resp.StatusCode = http.StatusServiceUnavailable
			}
			return resp, nil
		})
		sources := make([]fileSource, 5)
		for i := range sources {
			sources[i].url = mustParseURL(t, fmt.Sprintf("http://h%d/%d", i, i))
		}
		start := time.Now()
		all := probeAll(t.Context(), clientOver(transport, new(credentials)), sources, 1, 0, startLimit)
		if took := time.Since(start); took < startLimit || took > startLimit+startLimit/2 {
			t.Errorf("the probes took %v, want %v for the one that is busy for ever", took, startLimit)
		}
		for i, want := range []int{3, 4, 1, 1, 5} {
			if n := asked[fmt.Sprintf("/%d", i)]; n != want && (i < 4 || n < want) {
				t.Errorf("source %d was asked %d times, want %d", i, n, want)
			}
			if good := i < 2; good != (all[i].err == nil) {
				t.Errorf("source %d: %v", i, all[i].err)
			}
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// A server takes three requests at a time and refuses others. All its files are found.
func TestProbesOfALimitedHostAreAllAnswered(t *testing.T) {
	for _, code := range []int{403, 429, 503} {
		synctest.Test(t, func(t *testing.T) {
			var underWay atomic.Int64
			transport := roundTripper(func(req *http.Request) (*http.Response, error) {
				resp := probeResponse(req)
				if underWay.Add(1) > 3 {
					resp.StatusCode = code
				} else {
					time.Sleep(50 * time.Millisecond)
				}
				underWay.Add(-1)
				return resp, nil
			})
			sources := make([]fileSource, 40)
			for i := range sources {
				sources[i].url = mustParseURL(t, fmt.Sprintf("http://h/%d", i))
			}
			requireProbed(t, probeAll(t.Context(), clientOver(transport, new(credentials)), sources, 1, 0, startLimit), 40, nil)
		})
	}
}

// A thousand sources of a host that never answers delay the start once.
func TestADeadHostDelaysTheStartOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.URL.Host == "good" {
				return probeResponse(req), nil
			}
			<-req.Context().Done()
			return nil, req.Context().Err()
		})
		sources := make([]fileSource, 1001)
		for i := range sources {
			sources[i].url = mustParseURL(t, fmt.Sprintf("http://dead/%d", i))
		}
		sources[1000].url = mustParseURL(t, "http://good/1000")
		start := time.Now()
		all := probeAll(t.Context(), clientOver(transport, new(credentials)), sources, 1, 0, startLimit)
		if took := time.Since(start); took > time.Minute {
			t.Errorf("the start took %v", took)
		}
		if all[1000].err != nil || all[0].err == nil || all[999].err == nil {
			t.Errorf("%v, %v, %v", all[1000].err, all[0].err, all[999].err)
		}
	})
}

// A host that answers is asked for all its files, whatever the time. A few that are silent hold up no
// other, and more of them the start no longer than a dead host does.
func TestAHostThatAnswersIsAskedForAll(t *testing.T) {
	for silent, longest := range map[int]time.Duration{0: 10 * time.Minute, 50: 2 * startLimit, 2: 2 * startLimit} {
		synctest.Test(t, func(t *testing.T) {
			transport := roundTripper(func(req *http.Request) (*http.Response, error) {
				var n int
				fmt.Sscanf(req.URL.Path, "/%d", &n)
				if silent > 0 && n%silent == 1 {
					<-req.Context().Done()
					return nil, req.Context().Err()
				}
				time.Sleep(time.Second)
				return probeResponse(req), nil
			})
			sources := make([]fileSource, 2000)
			for i := range sources {
				sources[i].url = mustParseURL(t, fmt.Sprintf("http://h/%d", i))
			}
			start := time.Now()
			all := probeAll(t.Context(), clientOver(transport, new(credentials)), sources, 1, 0, startLimit)
			if took := time.Since(start); took > longest {
				t.Errorf("the start took %v, want at most %v", took, longest)
			}
			for i, p := range all {
				if hangs := silent > 0 && i%silent == 1; silent != 2 && hangs != (p.err != nil) {
					t.Fatalf("source %d: %v", i, p.err)
				}
			}
		})
	}
}

// Names that listings give are numbered, as those of URLs are.
func TestNamesOfListingsGiveWay(t *testing.T) {
	entry := func(name string, listed bool) probed { return probed{source: fileSource{name: name, listed: listed}} }
	got := namesOf([]probed{entry("p/a.bin", true), entry("p/a.bin", true), entry("q/b", true), entry("q/b", false)},
		func(name string) bool { return name == "p/a (2).bin" })
	if want := []string{"p/a.bin", "p/a (3).bin", "q/b (2)", "q/b"}; !slices.Equal(got, want) {
		t.Errorf("names: %q, want %q", got, want)
	}
}
