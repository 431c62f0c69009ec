//go:build browser

// The two sides of the browser tests that are not fsmount: chromium, of which each test
// gets a tab, and the server that has the page and takes the uploads. The server
// compares each byte with the file's content while it arrives. Nothing here reads a
// mount.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

const (
	requireBrowserEnv = "FSMOUNT_REQUIRE_BROWSER"

	// browserPatience bounds what chromium does at once: start, make a tab, load a page.
	browserPatience = 30 * time.Second

	// uploadPatience bounds an upload, so that the test reports a hang before the
	// dead-man's switch ends it. It is half as much again as the longest one takes.
	uploadPatience = 45 * time.Second

	// uploadRate is how many bytes a second the server takes from one request. An upload
	// that begins after its download then takes an eighth more time than one beside it.
	uploadRate = 8 * slowRate

	pieceBytes = 5 << 20 // as uploads to S3 have it, whose parts are at least so large
)

// uploadPage can send the files of its input in each of uploadWays. Its function upload
// returns, for each file, the last event of its upload: load, error, abort, or timeout.
// A form has no such events; its frame then shows the server's answer or an error page,
// which no script may look into.
const uploadPage = `<!DOCTYPE html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<form method="post" enctype="multipart/form-data" target="answer"><input type="file" name="file" multiple></form>
<iframe name="answer"></iframe>
<script>
const form = document.querySelector('form'), input = document.querySelector('input'), frame = document.querySelector('iframe');
const target = (file, off) => '/upload/' + encodeURIComponent(file.name) + '?off=' + off;
const send = (file, off, body) => fetch(target(file, off), {method: 'POST', body})
	.then(answer => answer.ok ? 'load' : 'error', reason => reason.name === 'AbortError' ? 'abort' : 'error');
const ways = {
	form: file => new Promise(done => {
		frame.onload = () => done(frame.contentDocument?.body.textContent === 'whole' ? 'load' : 'error');
		form.action = target(file, 0);
		form.submit();
	}),
	xhr: file => new Promise(done => {
		const request = new XMLHttpRequest();
		for (const event of ['load', 'error', 'abort', 'timeout']) {
			request.addEventListener(event, () => done(event === 'load' && request.status !== 200 ? 'error' : event));
		}
		request.open('POST', target(file, 0));
		request.send(file);
	}),
	fetch: file => send(file, 0, file),
	async pieces(file) {
		let outcome = 'load';
		for (let off = 0; off < file.size && outcome === 'load'; off += PIECE) {
			for (let tries = 0; tries < TRIES; tries++) {
				outcome = await send(file, off, file.slice(off, off + PIECE));
				if (outcome === 'load') break;
			}
		}
		return outcome;
	},
};
const upload = way => Promise.all([...input.files].map(ways[way]));
</script>
`

// pieceTries is how often the page sends a piece before it gives up.
const pieceTries = 3

// uploadWays are the names of the page's ways to send a file.
var uploadWays = []string{"form", "xhr", "fetch", "pieces"}

// uploadServer has the page, and takes uploads of the files that it knows.
type uploadServer struct {
	// Write once, before the first request.
	t     *testing.T
	url   string
	files map[string]*kernelFile

	// Read write.
	mu      sync.Mutex
	uploads map[string]*receivedUpload // GUARDED_BY(mu); by the name of the file
	changed chan struct{}              // GUARDED_BY(mu); closed and replaced by update
}

// receivedUpload is what the server got of one file.
type receivedUpload struct {
	begun  int      // requests
	broken int      // requests that ended before their body did
	bytes  int64    // of the file, in all bodies
	taken  rangeSet // the ranges of the requests that came to their end
}

// whole reports whether all of f came in requests that came to their end.
func (u receivedUpload) whole(f *kernelFile) bool { return u.taken.contains(byteRange{0, f.size}) }

// startUploadServer takes uploads of files until the test ends. Its own port gives each
// test its own connections: chromium has six at most to a server.
func startUploadServer(t *testing.T, files []*kernelFile) *uploadServer {
	t.Helper()
	s := &uploadServer{
		t:       t,
		files:   make(map[string]*kernelFile),
		uploads: make(map[string]*receivedUpload),
		changed: make(chan struct{}),
	}
	for _, f := range files {
		s.files[f.name], s.uploads[f.name] = f, &receivedUpload{}
	}
	page := strings.NewReplacer("PIECE", strconv.Itoa(pieceBytes), "TRIES", strconv.Itoa(pieceTries)).Replace(uploadPage)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) })
	mux.HandleFunc("POST /upload/{name}", s.receive)
	server := httptest.NewServer(mux)
	s.url = server.URL
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return s
}

// update runs change under the lock and wakes the tests that wait.
//
// LOCKS_EXCLUDED(s.mu)
func (s *uploadServer) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// await returns when seen returns true for the upload of f. It calls seen under the
// lock.
//
// BLOCKS until then, at most uploadPatience; wakes on every byte and on the begin and
// end of each request.
func (s *uploadServer) await(f *kernelFile, what string, seen func(u *receivedUpload) bool) {
	s.t.Helper()
	timeout := time.After(uploadPatience)
	for {
		s.mu.Lock()
		ok, changed := seen(s.uploads[f.name]), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			s.t.Fatalf("the upload server never saw %s of %s: %+v", what, f.name, s.upload(f))
		}
	}
}

// upload returns what has come of f so far.
func (s *uploadServer) upload(f *kernelFile) receivedUpload {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := *s.uploads[f.name]
	u.taken.ranges = slices.Clone(u.taken.ranges)
	return u
}

// receive takes one request: a whole file, or a piece. A body that is not exactly the
// range that it should be fails the test.
func (s *uploadServer) receive(w http.ResponseWriter, r *http.Request) {
	f := s.files[r.PathValue("name")]
	off, err := strconv.ParseInt(r.URL.Query().Get("off"), 10, 64)
	if f == nil || err != nil {
		s.t.Errorf("a request for %s", r.URL)
		http.NotFound(w, r)
		return
	}
	u := s.uploads[f.name]
	s.update(func() { u.begun++ })
	span, err := s.take(r, f, off)
	switch {
	case errors.Is(err, errWrongUpload):
		s.t.Errorf("upload of %s: %v", f.name, err)
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		s.update(func() { u.broken++ })
	default:
		s.update(func() { u.taken.add(span) })
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "whole")
	}
}

var errWrongUpload = errors.New("not the bytes of the file")

// take reads the body of a request that sends f from off on, and returns its range. The
// error is errWrongUpload if the body has other bytes or another length.
//
// BLOCKS until the body ends; wakes on the end of the connection as well.
func (s *uploadServer) take(r *http.Request, f *kernelFile, off int64) (byteRange, error) {
	want := byteRange{off, f.size}
	body := io.Reader(r.Body)
	parts, err := r.MultipartReader()
	switch {
	case err == nil:
		if body, err = parts.NextPart(); err != nil {
			return want, err
		}
	case !errors.Is(err, http.ErrNotMultipart):
		return want, err
	case r.ContentLength < f.size:
		want.end = min(off+pieceBytes, f.size)
	}
	got := byteRange{off, off}
	link := &slowLink{rate: uploadRate}
	p := make([]byte, 64<<10)
	for err = nil; err != io.EOF; {
		var n int
		if n, err = body.Read(p); err != nil && err != io.EOF {
			return got, err
		}
		if wrong := checkContent(p[:n], f.seed, got.end); wrong != nil {
			return got, fmt.Errorf("%w: %w", errWrongUpload, wrong)
		}
		got.end += int64(n)
		s.update(func() { s.uploads[f.name].bytes += int64(n) })
		if gone := sleepUntil(r.Context(), link.due(int64(n))); gone != nil {
			return got, gone
		}
	}
	if parts != nil {
		if _, err := parts.NextPart(); err != io.EOF {
			return got, fmt.Errorf("after the file: %w", cmp.Or(err, errWrongUpload))
		}
	}
	if got != want {
		return got, fmt.Errorf("%w: the body ends well and has %v, want %v", errWrongUpload, got, want)
	}
	return got, nil
}

// chromium is a running browser.
type chromium struct{ ctx context.Context }

// startChromium starts a browser with a profile of its own, which reaches 127.0.0.1 and
// nothing else. It ends with the test. Without chromium it skips the test; with
// FSMOUNT_REQUIRE_BROWSER=1 it fails the test instead.
func startChromium(t *testing.T) *chromium {
	t.Helper()
	program, err := exec.LookPath("chromium")
	switch {
	case err != nil && os.Getenv(requireBrowserEnv) == "1":
		t.Fatalf("%s=1, but %v (Debian's package chromium has it)", requireBrowserEnv, err)
	case err != nil:
		t.Skipf("SKIPPED, NO BROWSER IS TESTED: %v (%s=1 makes this a failure)", err, requireBrowserEnv)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("headless", "new"),
		chromedp.NoSandbox,                      // neither root nor most containers can have one
		chromedp.Flag("enable-features", false), // the network service is a process, as users have it
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
		chromedp.Flag("no-proxy-server", true),
	)
	output := newKernelLog()
	ctx, endBrowser := chromedp.NewExecAllocator(context.Background(), append(options, chromedp.CombinedOutput(output))...)
	t.Cleanup(endBrowser) // returns when the process is gone
	ctx, _ = chromedp.NewContext(ctx)
	t.Cleanup(func() {
		closing, cancel := context.WithTimeout(ctx, browserPatience)
		defer cancel()
		if err := chromedp.Cancel(closing); err != nil {
			t.Errorf("end chromium: %v\n%s", err, output)
		}
	})
	if err := runBounded(ctx, browserPatience, "chromium to start"); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return &chromium{ctx}
}

// runBounded runs actions in ctx, which is of a browser or a tab. The first call for ctx
// makes the tab.
//
// BLOCKS until they are done, at most limit; the error then says for what it waited.
func runBounded(ctx context.Context, limit time.Duration, what string, actions ...chromedp.Action[chromedp.Void]) error {
	done := make(chan error, 1)
	go func() { done <- chromedp.Do(ctx, actions...) }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("waited %v for %s", limit, what)
	}
}

// uploadTab is a tab that shows the page.
type uploadTab struct {
	t     *testing.T
	ctx   context.Context
	close context.CancelFunc // returns when the tab is gone
}

// tab opens the page of server and chooses the files at paths in its input.
func (b *chromium) tab(t *testing.T, server *uploadServer, paths []string) *uploadTab {
	t.Helper()
	ctx, closeTab := chromedp.NewContext(b.ctx)
	t.Cleanup(closeTab)
	err := runBounded(ctx, browserPatience, "a tab with the page",
		chromedp.Navigate(server.url),
		chromedp.SetUploadFiles(chromedp.CSS("input"), paths))
	if err != nil {
		t.Fatal(err)
	}
	return &uploadTab{t, ctx, closeTab}
}

// pageUpload is an upload that the page has begun.
type pageUpload struct {
	t     *testing.T
	begin time.Time
	ended chan pageOutcome
}

// pageOutcome is what the page saw.
type pageOutcome struct {
	events []string // of each file
	took   time.Duration
	err    error // the page did not answer
}

// start makes the page send its files in one of uploadWays.
func (tab *uploadTab) start(way string) *pageUpload {
	u := &pageUpload{tab.t, time.Now(), make(chan pageOutcome, 1)}
	go func() {
		var o pageOutcome
		o.events, o.err = chromedp.Run(tab.ctx, chromedp.Evaluate[[]string](fmt.Sprintf("upload(%q)", way), chromedp.EvalAwaitPromise))
		o.took = time.Since(u.begin)
		u.ended <- o
	}()
	return u
}

// require requires that the upload of each file ends with event, and returns how long
// all took.
//
// BLOCKS until they end, at most uploadPatience.
func (u *pageUpload) require(event string) time.Duration {
	u.t.Helper()
	select {
	case o := <-u.ended:
		for _, got := range o.events {
			if got != event {
				u.t.Errorf("the page saw %q after %v, want %q", o.events, o.took, event)
			}
		}
		if o.err != nil || len(o.events) == 0 {
			u.t.Fatalf("the page answered with %q, %v", o.events, o.err)
		}
		return o.took
	case <-time.After(uploadPatience):
		u.t.Fatalf("waited %v for the page to see %q: it saw nothing", uploadPatience, event)
	}
	return 0
}
