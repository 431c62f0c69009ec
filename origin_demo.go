// The built-in origin that is mounted when no source is given: a real HTTP
// server on a port of 127.0.0.1 of its own, with files computed from their
// offsets and the SHA256SUMS to check them with. One file is held to a rate,
// so that reading while downloading can be seen. It is an origin like any
// other: the mount reaches it by URL alone. It keeps no file, in memory or on
// disk, and hashes nothing until somebody reads the sums.

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const demoSumsName = "SHA256SUMS"

// demoModTime is the Last-Modified of every demo file: their content never
// changes.
func demoModTime() time.Time { return time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC) }

// demoFile is one file of the demo origin.
type demoFile struct {
	name string // needs no escaping in a URL path
	size int64  // bytes
	seed uint64 // of its content
	rate int64  // bytes a second that one response gets, 0 for no limit
}

// demoFiles returns the files that are served when no source is given.
func demoFiles() []demoFile {
	return []demoFile{
		{name: "demo-1MiB.bin", size: 1 << 20, seed: 1},
		{name: "demo-16MiB.bin", size: 16 << 20, seed: 2},
		{name: "demo-slow-64MiB.bin", size: 64 << 20, seed: 3, rate: 16 << 20},
	}
}

func (f demoFile) content() contentReader { return newContentReader(f.seed, f.size) }

// etag returns a strong entity tag, RFC 9110 section 8.8.3: seed and size
// determine every byte.
func (f demoFile) etag() string { return fmt.Sprintf(`"%x-%x"`, f.seed, f.size) }

// digest returns the SHA-256 of the content.
func (f demoFile) digest() ([sha256.Size]byte, error) {
	h := sha256.New()
	if _, err := io.Copy(h, f.content()); err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("hash %s: %w", f.name, err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// demoSums is the content of SHA256SUMS. The size of a line does not depend on
// its hash, so the whole size is known at once and a read hashes only the
// files whose lines it touches, each of them once.
//
// Safe for concurrent use.
type demoSums struct {
	// Write once, before any goroutine starts.
	lines []demoSumLine
	size  int64 // bytes, of all lines
}

type demoSumLine struct {
	off    int64 // of the line within SHA256SUMS
	name   string
	digest func() ([sha256.Size]byte, error)
}

func newDemoSums(files []demoFile) *demoSums {
	s := &demoSums{}
	for _, f := range files {
		line := demoSumLine{off: s.size, name: f.name, digest: sync.OnceValues(f.digest)}
		s.lines = append(s.lines, line)
		s.size = line.end()
	}
	return s
}

// end is the offset after the line: hash, two spaces, name, newline.
func (l demoSumLine) end() int64 {
	return l.off + 2*sha256.Size + 2 + int64(len(l.name)) + 1
}

// text is the line as `sha256sum -c` reads it.
func (l demoSumLine) text() (string, error) {
	sum, err := l.digest()
	return fmt.Sprintf("%x  %s\n", sum, l.name), err
}

// ReadAt is io.ReaderAt's.
func (s *demoSums) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at offset %d: negative", demoSumsName, off)
	}
	n := 0
	for _, line := range s.lines {
		at := off + int64(n)
		if n == len(p) || at >= line.end() {
			continue
		}
		text, err := line.text()
		if err != nil {
			return n, fmt.Errorf("read %s: %w", demoSumsName, err)
		}
		n += copy(p[n:], text[at-line.off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// demoSumsETag returns the entity tag of the sums: a digest of those of the
// files, for it must be known before theirs are hashed.
func demoSumsETag(files []demoFile) string {
	h := fnv.New64a()
	for _, f := range files {
		fmt.Fprintf(h, "%s %s\n", f.name, f.etag())
	}
	return fmt.Sprintf(`"sums-%x"`, h.Sum64())
}

// demoOrigin is the running server.
type demoOrigin struct {
	// Write once, before any goroutine starts.
	server *http.Server
	urls   []string
	served chan struct{} // closed when the accept loop returned

	// INVARIANT: counts the connections whose goroutine runs. Add is called by
	// the accept loop alone, before served is closed, and Wait only after it.
	conns sync.WaitGroup

	serveErr error // written before served is closed, read after
}

// startDemo serves files, and the SHA256SUMS of them, until Close.
func startDemo(files []demoFile) (*demoOrigin, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start demo origin: %w", err)
	}
	d := &demoOrigin{served: make(chan struct{})}
	d.server = &http.Server{Handler: newDemoHandler(files), ConnState: d.countConn}
	for _, f := range files {
		d.urls = append(d.urls, demoURL(listener, f.name))
	}
	d.urls = append(d.urls, demoURL(listener, demoSumsName))
	go d.serve(listener)
	return d, nil
}

func demoURL(l net.Listener, name string) string {
	return "http://" + l.Addr().String() + "/" + name
}

// serve closes served when the accept loop ends.
func (d *demoOrigin) serve(l net.Listener) {
	defer close(d.served)
	if err := d.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		d.serveErr = err
	}
}

// countConn keeps conns. The server reports StateNew from its accept loop and
// StateClosed as the last act of the connection's goroutine.
func (d *demoOrigin) countConn(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		d.conns.Add(1)
	case http.StateClosed:
		d.conns.Done()
	}
}

// sources returns the URL of every file, the sums last.
func (d *demoOrigin) sources() []string { return d.urls }

// Close ends the server and every response in flight, which their clients see
// cut short. The error is that of a server that had failed before. It may be
// called again.
//
// BLOCKS until every goroutine of the server ended. Those that wait, for their
// client or for a rate, end with their connection, which is closed here; one
// that hashes ends with its file.
func (d *demoOrigin) Close() error {
	closeErr := d.server.Close()
	<-d.served
	d.conns.Wait()
	if err := errors.Join(d.serveErr, closeErr); err != nil {
		return fmt.Errorf("close demo origin: %w", err)
	}
	return nil
}

// newDemoHandler answers GET and HEAD of the files and the sums, 404 for every
// other path.
func newDemoHandler(files []demoFile) http.Handler {
	mux := http.NewServeMux()
	for _, f := range files {
		mux.HandleFunc("GET /"+f.name, func(w http.ResponseWriter, r *http.Request) {
			serveDemo(newPacedWriter(r.Context(), w, f.rate), r, f.etag(), f.content())
		})
	}
	sums, etag := newDemoSums(files), demoSumsETag(files)
	mux.HandleFunc("GET /"+demoSumsName, func(w http.ResponseWriter, r *http.Request) {
		serveDemo(w, r, etag, io.NewSectionReader(sums, 0, sums.size))
	})
	return mux
}

// serveDemo answers one request. The type is set, for http.ServeContent would
// read the content to guess it.
func serveDemo(w http.ResponseWriter, r *http.Request, etag string, content io.ReadSeeker) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", etag)
	http.ServeContent(w, r, "", demoModTime(), content)
}

// pacedWriter holds a response's body to a rate. What may be sent follows from
// the time since the start, so that the rate is kept on the average whatever a
// timer or a slow client took; after a pause the client may catch up.
type pacedWriter struct {
	http.ResponseWriter

	// Write once, before any goroutine starts.
	ctx   context.Context
	rate  int64 // bytes a second
	start time.Time

	sent int64 // bytes; used by the response's goroutine alone
}

// newPacedWriter returns w itself where rate is 0.
func newPacedWriter(ctx context.Context, w http.ResponseWriter, rate int64) http.ResponseWriter {
	if rate == 0 {
		return w
	}
	return &pacedWriter{ResponseWriter: w, ctx: ctx, rate: rate, start: time.Now()}
}

// Write writes p in one piece when all bytes before it are due.
//
// BLOCKS until they are due, then until the client took p; wakes on the end of
// the request.
func (w *pacedWriter) Write(p []byte) (int, error) {
	if err := sleepUntil(w.ctx, w.due()); err != nil {
		return 0, err
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// due is the time at which the bytes sent so far ought to have been sent.
func (w *pacedWriter) due() time.Time {
	seconds := float64(w.sent) / float64(w.rate)
	return w.start.Add(time.Duration(seconds * float64(time.Second)))
}

// sleepUntil returns nil at t, at once if that is past.
//
// BLOCKS until t; wakes on the end of ctx, whose error it returns.
func sleepUntil(ctx context.Context, t time.Time) error {
	wait := time.Until(t)
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
