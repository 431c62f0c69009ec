// origin_demo.go is an HTTP server on 127.0.0.1. It serves the built-in demo, which is mounted, by
// URL alone, when no source is given, and the files of the self-test, which misbehave on purpose:
// they send slowly, hold bytes back, or break connections off. It computes each byte from its
// offset, so a reader can check any read. The kernel tests use its files too.

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
)

// demoModTime is the Last-Modified of every demo file: their content never changes.
func demoModTime() time.Time { return time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC) }

// demoSums are the hashes of the demo files, as `sha256sum -c` reads them.
const demoSums = `85b66b3a5816d686deb42f2d2473d9a7121ceb75c822b838f958c76ca86ed8ea  demo-1MiB.bin
bc54aafbe6111153d1e66d601985815f376fdd56f349e88049d14c8c03c8aaa5  demo-16MiB.bin
b725752a7f44c9fab8c81c08c3c68fc40f232993ddd986da244e6c012d267455  demo-slow-64MiB.bin
`

// demoFiles returns the files that are served when no source is given. It sends one of
// them slowly, to show reading while downloading.
func demoFiles() []*localFile {
	slow := newLocalFile("demo-slow-64MiB.bin", 3, 64<<20)
	slow.rate = 16 << 20
	sums := newLocalFile("SHA256SUMS", 0, int64(len(demoSums)))
	sums.text = demoSums
	return []*localFile{newLocalFile("demo-1MiB.bin", 1, 1<<20), newLocalFile("demo-16MiB.bin", 2, 16<<20), slow, sums}
}

// localFile is one file of a localOrigin: the http.Handler of its path. It counts what it
// sent and cut, so a check can prove that a fault happened.
type localFile struct {
	// Write once, before the server starts.
	name    string                  // needs no escaping in a URL path
	size    int64                   // bytes
	seed    uint64                  // of its content
	text    string                  // its content; "" if seed determines that
	modTime time.Time               // zero: no Last-Modified
	rate    int64                   // bytes a second that one response gets, 0 for no limit
	cutAt   func(start int64) int64 // offset where a body that begins at start breaks off; nil: nowhere

	// Read write.
	mu      sync.Mutex
	held    byteRange     // GUARDED_BY(mu); the file does not send these bytes yet
	changed chan struct{} // GUARDED_BY(mu); closed and replaced by update
	sent    atomic.Int64  // bytes of all bodies
	cuts    atomic.Int64  // bodies that broke off
}

// newLocalFile returns a file that sends as fast as the client takes it. size is in bytes.
func newLocalFile(name string, seed uint64, size int64) *localFile {
	return &localFile{name: name, seed: seed, size: size, modTime: demoModTime(), changed: make(chan struct{})}
}

// update runs change under the lock and wakes the bodies that wait.
func (f *localFile) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// allow lets the bytes before offset n go and holds the others back.
func (f *localFile) allow(n int64) { f.update(func() { f.held = byteRange{n, f.size} }) }

// ServeHTTP answers a request for the file or for a range of it, with all faults.
func (f *localFile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.serve(w, r, &localContent{file: f, w: w, ctx: r.Context()})
}

// serve answers one request with content. The strong entity tag (RFC 9110 section 8.8.3)
// names seed and size, which determine every byte.
func (f *localFile) serve(w http.ResponseWriter, r *http.Request, content io.ReaderAt) {
	w.Header().Set("Content-Type", "application/octet-stream") // else http.ServeContent reads content to guess it
	w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, f.seed, f.size))
	http.ServeContent(w, r, "", f.modTime, io.NewSectionReader(content, 0, f.size))
}

func (f *localFile) content() io.ReaderAt {
	if f.text != "" {
		return strings.NewReader(f.text)
	}
	return contentStream(f.seed)
}

// localContent is the content that one answer sends. Only the goroutine of that answer uses it.
type localContent struct {
	file  *localFile
	w     http.ResponseWriter
	ctx   context.Context // of the request
	start time.Time       // of the body
	begin int64           // offset in the file of its first byte
	cut   int64           // offset in the file where it breaks off
}

// ReadAt returns what the file lets go at once of the bytes at off, but one at least. After an
// error the server closes the connection, because the body is shorter than its header says.
// BLOCKS while the byte at off is held or not due yet; wakes on update and on the end of the request.
func (c *localContent) ReadAt(p []byte, off int64) (int, error) {
	if c.start.IsZero() {
		c.start, c.begin, c.cut = time.Now(), off, c.file.size
		if c.file.cutAt != nil {
			c.cut = c.file.cutAt(off)
		}
	}
	if err := c.awaitDue(off); err != nil {
		return 0, err
	}
	for {
		c.file.mu.Lock()
		held, changed := c.file.held, c.file.changed
		c.file.mu.Unlock()
		end := min(off+int64(len(p)), c.cut)
		switch {
		case off >= c.cut:
			c.file.cuts.Add(1)
			return 0, errors.New("cut on purpose")
		case off < held.off:
			end = min(end, held.off)
		case off < held.end:
			if err := http.NewResponseController(c.w).Flush(); err != nil {
				return 0, err
			}
			select {
			case <-changed:
				continue
			case <-c.ctx.Done():
				return 0, c.ctx.Err()
			}
		}
		c.file.sent.Add(end - off)
		return c.file.content().ReadAt(p[:end-off], off)
	}
}

// awaitDue returns when the file's rate has made all bytes before off due. That follows from the time since the
// start, so late timers and slow clients do not lower the average: after a pause the client may catch up.
// BLOCKS until then; wakes on the end of the request, whose error it returns.
func (c *localContent) awaitDue(off int64) error {
	if c.file.rate == 0 {
		return c.ctx.Err()
	}
	seconds := float64(off-c.begin) / float64(c.file.rate)
	return sleepUntil(c.ctx, c.start.Add(time.Duration(seconds*float64(time.Second))))
}

// localOrigin is a running HTTP server on 127.0.0.1. Close ends it, and cuts off every response in flight.
type localOrigin struct {
	http.Server
	urls []string // of the files, in their order
}

// localConns is how many connections a localOrigin serves at once: other users of the machine can reach it too.
const localConns = 128

// startLocalOrigin answers GET and HEAD of files, and 404 for every other path, until Close.
func startLocalOrigin(files []*localFile) (*localOrigin, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start an origin: %w", err)
	}
	o, mux := &localOrigin{}, http.NewServeMux()
	for _, f := range files {
		mux.Handle("GET /"+f.name, f)
		o.urls = append(o.urls, "http://"+listener.Addr().String()+"/"+f.name)
	}
	o.Handler, o.ReadHeaderTimeout, o.IdleTimeout = mux, 10*time.Second, 2*time.Minute
	go o.Serve(netutil.LimitListener(listener, localConns))
	return o, nil
}

// sleepUntil returns nil at t, at once if t is past. BLOCKS until t; wakes on the end of ctx, whose error it returns.
func sleepUntil(ctx context.Context, t time.Time) error {
	if wait := time.Until(t); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

const contentWord = 8 // bytes

// splitmixGamma is the step of splitmix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", 2014). The stream of a seed is exactly the output
// of that generator, which computes word n without the words before it.
const splitmixGamma = 0x9e3779b97f4a7c15

// fillContent fills p with the bytes [off, off+len(p)) of the endless stream of seed. It allocates nothing.
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

// checkContent returns nil if p holds the bytes [off, off+len(p)) of the stream of seed. Otherwise the error names
// the first wrong offset. REQUIRES: off >= 0
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
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// contentStream is the endless stream of a seed.
type contentStream uint64

// ReadAt implements io.ReaderAt for an io.SectionReader, which asks for no negative offset.
func (s contentStream) ReadAt(p []byte, off int64) (int, error) {
	fillContent(p, uint64(s), off)
	return len(p), nil
}
