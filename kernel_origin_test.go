// The origins of the kernel tests: HTTP servers of computed content that hold back,
// break off or refuse as they are told and count what they were asked for, and a
// real nginx that can be killed.

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// kernelFile is a file of a kernelOrigin.
type kernelFile struct {
	// Write once, before the first request.
	url     string
	name    string
	size    int64 // bytes
	seed    uint64
	modTime time.Time // zero: no Last-Modified
	broken  brokenBody

	// Read write.
	mu      sync.Mutex
	allowed int64         // GUARDED_BY(mu); bytes of a body that may be sent, heldHeader for not even a header
	more    chan struct{} // GUARDED_BY(mu); closed and replaced when allowed grows
	bodies  int           // GUARDED_BY(mu); requests for more than the first byte
	breaks  int           // GUARDED_BY(mu); bodies that were broken off
}

// heldHeader holds back an answer with its header.
const heldHeader = -1

// brokenBody says how a body ends before its last byte.
type brokenBody struct {
	how string // "": not at all
	at  int64  // bytes
}

const (
	cutConnection = "cut"   // the length is promised and the connection breaks off
	endedEarly    = "ended" // a chunked body ends in good order
)

// startKernelOrigin serves files until the test ends.
func startKernelOrigin(t *testing.T, files ...*kernelFile) {
	t.Helper()
	mux := http.NewServeMux()
	for i, f := range files {
		f.seed = uint64(i) + 1
		f.more = make(chan struct{})
		mux.Handle("/"+f.name, f)
	}
	server := httptest.NewServer(mux)
	for _, f := range files {
		f.url = server.URL + "/" + f.name
	}
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
}

// wholeFile is a file that is sent as fast as it is taken.
func wholeFile(name string, size int64) *kernelFile {
	return &kernelFile{name: name, size: size, allowed: size}
}

// heldFile is a file of which allowed bytes are sent until allow says more.
func heldFile(name string, size, allowed int64) *kernelFile {
	return &kernelFile{name: name, size: size, allowed: allowed}
}

// allow lets the first n bytes of the body go.
func (f *kernelFile) allow(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allowed = n
	close(f.more)
	f.more = make(chan struct{})
}

func (f *kernelFile) allowAll() { f.allow(f.size) }

func (f *kernelFile) bodyCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bodies
}

func (f *kernelFile) breakCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.breaks
}

// ServeHTTP answers a range request, and a probe for the first byte at once.
func (f *kernelFile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !f.modTime.IsZero() {
		w.Header().Set("Last-Modified", f.modTime.UTC().Format(http.TimeFormat))
	}
	var first, last int64
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); n != 2 || last >= f.size {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", f.size))
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, f.size))
	if last == 0 {
		w.WriteHeader(http.StatusPartialContent)
		io.Copy(w, newContentReader(f.seed, 1))
		return
	}
	f.serveBody(w, r, byteRange{first, last + 1})
}

// serveBody sends span as far and as soon as it may.
//
// BLOCKS until it is sent; wakes on allow and on the end of the connection.
func (f *kernelFile) serveBody(w http.ResponseWriter, r *http.Request, span byteRange) {
	f.mu.Lock()
	f.bodies++
	f.mu.Unlock()
	if f.broken.how != endedEarly {
		w.Header().Set("Content-Length", fmt.Sprint(span.len()))
	}
	if f.mayBeSent(r, 0) < 0 {
		return
	}
	w.WriteHeader(http.StatusPartialContent)
	http.NewResponseController(w).Flush()
	content := newContentReader(f.seed, f.size)
	for off := span.off; off < span.end; {
		end := min(f.mayBeSent(r, off+1), span.end)
		if f.broken.how != "" && end >= f.broken.at {
			end = f.broken.at
		}
		if end < 0 {
			return
		}
		io.Copy(w, io.NewSectionReader(content, off, end-off))
		http.NewResponseController(w).Flush()
		if f.broken.how != "" && end == f.broken.at {
			f.breakOff()
			return
		}
		off = end
	}
}

// breakOff ends the answer that is being served.
func (f *kernelFile) breakOff() {
	f.mu.Lock()
	f.breaks++
	f.mu.Unlock()
	if f.broken.how == cutConnection {
		panic(http.ErrAbortHandler)
	}
}

// mayBeSent returns how many bytes may be sent once that is at least n, or -1 if
// nobody wants them any more.
func (f *kernelFile) mayBeSent(r *http.Request, n int64) int64 {
	for {
		f.mu.Lock()
		allowed, more := f.allowed, f.more
		f.mu.Unlock()
		if allowed >= n {
			return allowed
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return -1
		}
	}
}

// networkFile is the one file of an origin that misbehaves. A request for a
// single byte is a probe, and always answered.
type networkFile struct {
	// Write once, before the first request.
	url      string
	cutAfter int64                         // bytes after which a body breaks off, 0 for never
	refuse   func(n int) (code, after int) // of the n-th request, from 0 on; nil, or 0 for none

	// Read write.
	mu      sync.Mutex
	version *kernelFile      // GUARDED_BY(mu); what is served now
	held    byteRange        // GUARDED_BY(mu); is not sent
	more    chan struct{}    // GUARDED_BY(mu); closed and replaced when any of these changes
	asked   []networkRequest // GUARDED_BY(mu); but the probes
	probes  int              // GUARDED_BY(mu)
	left    int              // GUARDED_BY(mu); requests whose client went away while they were held
	sent    int64            // GUARDED_BY(mu); bytes of bodies
}

// networkRequest is a request as the origin saw it.
type networkRequest struct {
	at   time.Time
	span byteRange
	code int // 0 where it was not refused
}

// startNetworkOrigin serves f, which is of that version, until the test ends.
func startNetworkOrigin(t *testing.T, version *kernelFile, f *networkFile) *networkFile {
	t.Helper()
	f.version, f.more = version, make(chan struct{})
	if version.seed == 0 {
		version.seed = 1
	}
	server := httptest.NewServer(f)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	f.url = server.URL + "/" + version.name
	return f
}

// change makes another version of the file what is served. Bodies of the one
// before break off.
func (f *networkFile) change(version *kernelFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version = version
	f.wakeLocked()
}

// hold changes which bytes are not sent.
func (f *networkFile) hold(r byteRange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = r
	f.wakeLocked()
}

func (f *networkFile) wakeLocked() {
	close(f.more)
	f.more = make(chan struct{})
}

// requests are those so far, but the probes.
func (f *networkFile) requests() []networkRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// await returns when seen is true, which must be soon.
//
// BLOCKS until then; wakes whenever the origin does something.
func (f *networkFile) await(t *testing.T, what string, seen func(*networkFile) bool) {
	t.Helper()
	timeout := time.After(kernelPatience)
	for {
		f.mu.Lock()
		ok, more := seen(f), f.more
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("the origin never saw %s; requests: %+v", what, f.requests())
		}
	}
}

func (f *networkFile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	version, span, code, after := f.begin(r)
	if code != 0 {
		if after > 0 {
			w.Header().Set("Retry-After", fmt.Sprint(after))
		}
		w.WriteHeader(code)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"version-%d"`, version.seed))
	body := &networkBody{ResponseWriter: w, f: f, r: r, version: version, off: span.off, probe: span.len() == 1}
	http.ServeContent(body, r, "", version.modTime, newContentReader(version.seed, version.size))
}

// begin notes a request, and says what it gets.
func (f *networkFile) begin(r *http.Request) (version *kernelFile, span byteRange, code, after int) {
	var first, last int64
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
	span = byteRange{first, last + 1}
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.wakeLocked()
	if span.len() == 1 {
		f.probes++
		return f.version, span, 0, 0
	}
	if f.refuse != nil {
		code, after = f.refuse(len(f.asked))
	}
	f.asked = append(f.asked, networkRequest{time.Now(), span, code})
	return f.version, span, code, after
}

// networkBody is the body of an answer, which is held, broken off or sent.
type networkBody struct {
	http.ResponseWriter
	f       *networkFile
	r       *http.Request
	version *kernelFile
	off     int64
	sent    int64
	probe   bool
	failed  bool // the answer is no part of the file
}

func (b *networkBody) WriteHeader(code int) {
	b.failed = code != http.StatusPartialContent && code != http.StatusOK
	b.ResponseWriter.WriteHeader(code)
}

// Write sends p as far and as soon as it may.
//
// BLOCKS until it is sent; wakes on hold, change, and the end of the connection.
func (b *networkBody) Write(p []byte) (n int, err error) {
	if b.failed {
		return b.ResponseWriter.Write(p)
	}
	for n < len(p) && err == nil {
		piece := p[n:min(len(p), n+int(b.mayBeSent(int64(len(p)-n))))]
		if limit := b.f.cutAfter; limit > 0 && b.sent+int64(len(piece)) >= limit {
			b.send(piece[:limit-b.sent])
			panic(http.ErrAbortHandler)
		}
		err = b.send(piece)
		n += len(piece)
	}
	return n, err
}

func (b *networkBody) send(p []byte) error {
	_, err := b.ResponseWriter.Write(p)
	http.NewResponseController(b.ResponseWriter).Flush()
	b.off += int64(len(p))
	b.sent += int64(len(p))
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	if !b.probe {
		b.f.sent += int64(len(p))
	}
	b.f.wakeLocked()
	return err
}

// mayBeSent returns how many of the next most bytes may be sent now, one at
// least.
func (b *networkBody) mayBeSent(most int64) int64 {
	for {
		b.f.mu.Lock()
		version, held, more := b.f.version, b.f.held, b.f.more
		b.f.mu.Unlock()
		switch {
		case version != b.version:
			panic(http.ErrAbortHandler)
		case b.off >= held.end || held.empty():
			return most
		case b.off < held.off:
			return min(most, held.off-b.off)
		}
		select {
		case <-more:
		case <-b.r.Context().Done():
			b.f.mu.Lock()
			b.f.left++
			b.f.wakeLocked()
			b.f.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
	}
}

// nginx is a real origin of one file, in a process of its own, that can be
// killed and started again.
type nginx struct {
	t    *testing.T
	dir  string
	addr string
	name string
	cmd  *exec.Cmd
}

// newNginx prepares to serve v at a few MiB a second for each connection.
func newNginx(t *testing.T, v *kernelFile) *nginx {
	t.Helper()
	program, err := findNginx()
	if err != nil {
		if os.Getenv(requireFUSEEnv) == "1" {
			t.Fatalf("%s=1, and there is no nginx: %v", requireFUSEEnv, err)
		}
		t.Skipf("SKIPPED, NOTHING OF THIS IS TESTED: there is no nginx: %v (Debian's nginx-light has it)", err)
	}
	n := &nginx{t: t, dir: kernelTestDir(t), addr: freeAddress(t), name: v.name}
	content := make([]byte, v.size)
	fillContent(content, v.seed, 0)
	n.write(v.name, content)
	n.write("nginx.conf", fmt.Appendf(nil, `daemon off;
master_process off;
pid %[1]s/pid;
error_log %[1]s/error.log;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/tmp;
	proxy_temp_path %[1]s/tmp;
	fastcgi_temp_path %[1]s/tmp;
	uwsgi_temp_path %[1]s/tmp;
	scgi_temp_path %[1]s/tmp;
	server {
		listen %[2]s;
		root %[1]s;
		limit_rate 3m;
	}
}
`, n.dir, n.addr))
	n.cmd = exec.Command(program)
	t.Cleanup(n.kill)
	return n
}

// findNginx looks where Debian puts it as well: that is not on everybody's PATH.
func findNginx() (string, error) {
	if path, err := exec.LookPath("nginx"); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/nginx")
}

// freeAddress is one on which nobody listens at the moment.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (n *nginx) write(name string, content []byte) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.dir, name), content, 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *nginx) url() string { return "http://" + n.addr + "/" + n.name }

// start returns when it accepts connections.
func (n *nginx) start() {
	n.t.Helper()
	n.cmd = exec.Command(n.cmd.Path, "-p", n.dir, "-c", "nginx.conf", "-e", filepath.Join(n.dir, "error.log"))
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	for deadline := time.Now().Add(kernelPatience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", n.addr)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(n.dir, "error.log"))
			n.t.Fatalf("nginx does not answer: %v\n%s", err, log)
		}
	}
}

// kill ends it at once, and all connections with it.
func (n *nginx) kill() {
	n.t.Helper()
	if n.cmd.Process == nil || n.cmd.ProcessState != nil {
		return
	}
	if err := n.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		n.t.Errorf("kill nginx: %v", err)
	}
	n.cmd.Wait()
}
