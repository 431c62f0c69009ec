// origin_demo.go is the built-in origin that is mounted when no source is given: an
// HTTP server on 127.0.0.1, which the mount reaches by URL alone. It computes each
// byte from its offset, so tests can check any read, and serves SHA256SUMS to check
// whole files with. It sends one file slowly, to show reading while downloading.

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
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

// etag returns a strong entity tag (RFC 9110 section 8.8.3): seed and size determine
// every byte.
func (f demoFile) etag() string { return fmt.Sprintf(`"%x-%x"`, f.seed, f.size) }

// sumLine returns the line of SHA256SUMS for f, as `sha256sum -c` reads it.
func (f demoFile) sumLine() string {
	h := sha256.New()
	_, _ = io.Copy(h, newContentReader(f.seed, f.size)) // neither of them fails
	return fmt.Sprintf("%x  %s\n", h.Sum(nil), f.name)
}

// demoSums is the content of SHA256SUMS. The size of a line does not depend on its
// hash, so the whole size is known at once. A read hashes only the files whose lines
// it touches, and each file is hashed once.
//
// Safe for concurrent use.
type demoSums struct {
	// Write once, before any goroutine starts.
	lines []demoSumLine
	size  int64  // bytes, of all lines
	etag  string // made of the tags of the files, as it must be known before they are hashed
}

type demoSumLine struct {
	byteRange // of the line within SHA256SUMS
	text      func() string
}

func newDemoSums(files []demoFile) *demoSums {
	s := &demoSums{}
	tags := fnv.New64a()
	for _, f := range files {
		lineSize := int64(2*sha256.Size + len("  ") + len(f.name) + len("\n"))
		line := byteRange{s.size, s.size + lineSize}
		s.lines = append(s.lines, demoSumLine{line, sync.OnceValue(f.sumLine)})
		s.size = line.end
		fmt.Fprintf(tags, "%s %s\n", f.name, f.etag())
	}
	s.etag = fmt.Sprintf(`"sums-%x"`, tags.Sum64())
	return s
}

// ReadAt implements io.ReaderAt for an io.SectionReader, which asks for no negative offset.
func (s *demoSums) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for _, line := range s.lines {
		at := off + int64(n)
		if n == len(p) || at >= line.end {
			continue
		}
		n += copy(p[n:], line.text()[at-line.off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// startDemo serves files and their SHA256SUMS until Close.
func startDemo(files []demoFile) (*localOrigin, error) {
	var names []string
	for _, f := range files {
		names = append(names, f.name)
	}
	return startLocalOrigin(newDemoHandler(files), append(names, demoSumsName))
}

// localOrigin is a running HTTP server on 127.0.0.1.
type localOrigin struct {
	// Write once, before any goroutine starts.
	server *http.Server
	urls   []string      // of the files, in their order
	served chan struct{} // closed when the accept loop has returned

	// INVARIANT: counts the connections whose goroutine runs. Only the accept loop
	// calls Add, before it closes served; Close calls Wait after that.
	conns sync.WaitGroup
	open  atomic.Int64 // as many as conns counts

	serveErr error // written before served is closed, read after
}

// localConns is how many connections a localOrigin serves at once: other users of the
// machine can reach it too.
const localConns = 512

// startLocalOrigin serves names, which handler answers, until Close.
func startLocalOrigin(handler http.Handler, names []string) (*localOrigin, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start an origin: %w", err)
	}
	o := &localOrigin{served: make(chan struct{})}
	for _, name := range names {
		o.urls = append(o.urls, "http://"+listener.Addr().String()+"/"+name)
	}
	// The server reports StateNew from its accept loop, and StateClosed as the last
	// act of the connection's goroutine.
	countConn := func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			o.conns.Add(1)
			if o.open.Add(1) > localConns {
				conn.Close()
			}
		case http.StateClosed:
			o.open.Add(-1)
			o.conns.Done()
		}
	}
	o.server = &http.Server{Handler: handler, ConnState: countConn, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	go func() {
		defer close(o.served)
		if err := o.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			o.serveErr = err
		}
	}()
	return o, nil
}

// Close ends the server and cuts off every response in flight. It returns the error
// that had ended the server before, if any. A second call is harmless.
//
// BLOCKS until every goroutine of the server has ended. A goroutine that waits ends
// when Close closes its connection; one that hashes ends with its file.
func (o *localOrigin) Close() error {
	closeErr := o.server.Close()
	<-o.served
	o.conns.Wait()
	if err := errors.Join(o.serveErr, closeErr); err != nil {
		return fmt.Errorf("close an origin: %w", err)
	}
	return nil
}

// newDemoHandler answers GET and HEAD of the files and the sums, and 404 for every
// other path.
func newDemoHandler(files []demoFile) http.Handler {
	mux := http.NewServeMux()
	for _, f := range files {
		mux.HandleFunc("GET /"+f.name, func(w http.ResponseWriter, r *http.Request) {
			f.serve(newPacedWriter(r.Context(), w, f.rate), r, demoModTime())
		})
	}
	sums := newDemoSums(files)
	mux.HandleFunc("GET /"+demoSumsName, func(w http.ResponseWriter, r *http.Request) {
		serveVersion(w, r, sums.etag, demoModTime(), io.NewSectionReader(sums, 0, sums.size))
	})
	return mux
}

// serve answers one request as fast as w takes the bytes.
func (f demoFile) serve(w http.ResponseWriter, r *http.Request, modTime time.Time) {
	serveVersion(w, r, f.etag(), modTime, newContentReader(f.seed, f.size))
}

// serveVersion answers one request. A zero modTime means no Last-Modified.
func serveVersion(w http.ResponseWriter, r *http.Request, etag string, modTime time.Time, content io.ReadSeeker) {
	w.Header().Set("Content-Type", "application/octet-stream") // else http.ServeContent reads content to guess it
	w.Header().Set("ETag", etag)
	http.ServeContent(w, r, "", modTime, content)
}

// pacedWriter holds the body of a response to a rate. The bytes that may be sent
// follow from the time since the start, so late timers and slow clients do not lower
// the average: after a pause the client may catch up.
type pacedWriter struct {
	http.ResponseWriter

	// Write once, before any goroutine starts.
	ctx   context.Context
	rate  int64 // bytes a second
	start time.Time

	sent int64 // bytes; used only by the goroutine of the response
}

// newPacedWriter returns w itself if rate is 0.
func newPacedWriter(ctx context.Context, w http.ResponseWriter, rate int64) http.ResponseWriter {
	if rate == 0 {
		return w
	}
	return &pacedWriter{ResponseWriter: w, ctx: ctx, rate: rate, start: time.Now()}
}

// Write writes p in one piece at the time when all bytes before it are due.
//
// BLOCKS until that time, then until the client takes p; wakes on the end of the
// request.
func (w *pacedWriter) Write(p []byte) (int, error) {
	seconds := float64(w.sent) / float64(w.rate)
	due := w.start.Add(time.Duration(seconds * float64(time.Second)))
	if err := sleepUntil(w.ctx, due); err != nil {
		return 0, err
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// sleepUntil returns nil at t, at once if t is past.
//
// BLOCKS until t; wakes on the end of ctx, whose error it returns.
func sleepUntil(ctx context.Context, t time.Time) error {
	select {
	case <-time.After(time.Until(t)):
	case <-ctx.Done():
	}
	return ctx.Err()
}

const contentWord = 8 // bytes

// The constants of splitmix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", 2014). The stream of a seed is exactly the output
// of that generator, which computes word n without the words before it.
const (
	splitmixGamma = 0x9e3779b97f4a7c15
	splitmixMulA  = 0xbf58476d1ce4e5b9
	splitmixMulB  = 0x94d049bb133111eb
)

// fillContent fills p with the bytes [off, off+len(p)) of the endless stream of
// seed. It allocates nothing.
//
// REQUIRES: off >= 0
func fillContent(p []byte, seed uint64, off int64) {
	var word [contentWord]byte
	state := seed + (uint64(off/contentWord)+1)*splitmixGamma // for the word that holds off
	if skip := off % contentWord; skip != 0 {
		binary.LittleEndian.PutUint64(word[:], contentMix(state))
		p = p[copy(p, word[skip:]):]
		state += splitmixGamma
	}
	for len(p) >= contentWord {
		binary.LittleEndian.PutUint64(p, contentMix(state))
		p = p[contentWord:]
		state += splitmixGamma
	}
	binary.LittleEndian.PutUint64(word[:], contentMix(state))
	copy(p, word[:])
}

// checkContent returns nil if p holds the bytes [off, off+len(p)) of the stream of
// seed. Otherwise the error names the first wrong offset.
//
// REQUIRES: off >= 0
func checkContent(p []byte, seed uint64, off int64) error {
	var buf [4096]byte
	for done := 0; done < len(p); done += len(buf) {
		want := buf[:min(len(buf), len(p)-done)]
		fillContent(want, seed, off+int64(done))
		if bytes.HasPrefix(p[done:], want) {
			continue
		}
		i := 0
		for p[done+i] == want[i] {
			i++
		}
		wrong := p[done+i:]
		nul := len(wrong) - len(bytes.TrimLeft(wrong, "\x00"))
		return fmt.Errorf("check content of [%d,%d): byte at offset %d is 0x%02x, want 0x%02x; %d NUL bytes stand there",
			off, off+int64(len(p)), off+int64(done+i), wrong[0], want[i], nul)
	}
	return nil
}

func contentMix(z uint64) uint64 {
	z = (z ^ z>>30) * splitmixMulA
	z = (z ^ z>>27) * splitmixMulB
	return z ^ z>>31
}

// newContentReader reads the first size bytes of the stream of seed, for
// http.ServeContent and others. ReadAt is safe for concurrent use, Read and Seek are
// not.
//
// REQUIRES: size >= 0
func newContentReader(seed uint64, size int64) *io.SectionReader {
	return io.NewSectionReader(contentStream(seed), 0, size)
}

// contentStream is the endless stream of a seed.
type contentStream uint64

// ReadAt implements io.ReaderAt for an io.SectionReader, which asks for no negative offset.
func (s contentStream) ReadAt(p []byte, off int64) (int, error) {
	fillContent(p, uint64(s), off)
	return len(p), nil
}
