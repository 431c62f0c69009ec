// origin_demo.go is the built-in origin that is mounted when no source is given: an
// HTTP server on 127.0.0.1, which the mount reaches by URL alone. It computes each
// byte from its offset, so tests can check any read, and serves SHA256SUMS to check
// whole files with. It sends one file slowly, to show reading while downloading.

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// demoModTime is the Last-Modified of every demo file: their content never
// changes.
func demoModTime() time.Time { return time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC) }

// demoFile is one file of the demo origin.
type demoFile struct {
	name string // needs no escaping in a URL path
	size int64  // bytes
	seed uint64 // of its content
	text string // its content; "" if seed determines that
	rate int64  // bytes a second that one response gets, 0 for no limit
}

// demoSums are the hashes of the demo files, as `sha256sum -c` reads them.
const demoSums = `85b66b3a5816d686deb42f2d2473d9a7121ceb75c822b838f958c76ca86ed8ea  demo-1MiB.bin
bc54aafbe6111153d1e66d601985815f376fdd56f349e88049d14c8c03c8aaa5  demo-16MiB.bin
b725752a7f44c9fab8c81c08c3c68fc40f232993ddd986da244e6c012d267455  demo-slow-64MiB.bin
`

// demoFiles returns the files that are served when no source is given.
func demoFiles() []demoFile {
	return []demoFile{
		{name: "demo-1MiB.bin", size: 1 << 20, seed: 1},
		{name: "demo-16MiB.bin", size: 16 << 20, seed: 2},
		{name: "demo-slow-64MiB.bin", size: 64 << 20, seed: 3, rate: 16 << 20},
		{name: "SHA256SUMS", size: int64(len(demoSums)), text: demoSums},
	}
}

// ServeHTTP answers a request for the file or for a range of it.
func (f demoFile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.serve(newPacedWriter(r.Context(), w, f.rate), r, demoModTime())
}

// serve answers one request as fast as w takes the bytes. A zero modTime means no
// Last-Modified. The strong entity tag (RFC 9110 section 8.8.3) names seed and size,
// which determine every byte.
func (f demoFile) serve(w http.ResponseWriter, r *http.Request, modTime time.Time) {
	var content io.ReadSeeker = newContentReader(f.seed, f.size)
	if f.text != "" {
		content = strings.NewReader(f.text)
	}
	w.Header().Set("Content-Type", "application/octet-stream") // else http.ServeContent reads content to guess it
	w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, f.seed, f.size))
	http.ServeContent(w, r, "", modTime, content)
}

func (f demoFile) path() string { return "/" + f.name }

// localOrigin is a running HTTP server on 127.0.0.1. Close ends it, and cuts off every
// response in flight.
type localOrigin struct {
	http.Server
	urls  []string     // of the files, in their order
	conns atomic.Int64 // open connections
}

// localConns is how many connections a localOrigin serves at once: other users of the
// machine can reach it too.
const localConns = 512

// originFile is a file of a localOrigin. It answers the requests for its path.
type originFile interface {
	http.Handler
	path() string
}

// startLocalOrigin answers GET and HEAD of files, and 404 for every other path, until
// Close.
func startLocalOrigin[F originFile](files []F) (*localOrigin, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start an origin: %w", err)
	}
	o, mux := &localOrigin{}, http.NewServeMux()
	for _, f := range files {
		mux.Handle("GET "+f.path(), f)
		o.urls = append(o.urls, "http://"+listener.Addr().String()+f.path())
	}
	o.Handler, o.ReadHeaderTimeout, o.IdleTimeout = mux, 10*time.Second, 2*time.Minute
	o.ConnState = func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if o.conns.Add(1) > localConns {
				conn.Close()
			}
		case http.StateClosed:
			o.conns.Add(-1)
		}
	}
	go o.Serve(listener)
	return o, nil
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
