// selftest_origin.go is an HTTP server on 127.0.0.1 whose files misbehave as they
// are told. It counts what it sent, so a check can prove that the misbehaviour
// happened.

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// selftestFile is one file of the self-test's origin.
type selftestFile struct {
	// Write once, before the server starts.
	name     string
	size     int64 // bytes
	seed     uint64
	rate     int64 // bytes a second that one response gets, 0 for no limit
	cutAfter int64 // bytes of a body after which the connection breaks off, 0 for never

	// Read write.
	sent    atomic.Int64 // bytes of all bodies
	cuts    atomic.Int64 // bodies that were broken off
	mu      sync.Mutex
	allowed int64         // GUARDED_BY(mu); bytes of one body that may be sent
	more    chan struct{} // GUARDED_BY(mu); closed and replaced when allowed changes
}

// newSelftestFile returns a file that is sent as fast as it is taken.
func newSelftestFile(name string, seed uint64, size int64) *selftestFile {
	return &selftestFile{name: name, seed: seed, size: size, allowed: size, more: make(chan struct{})}
}

// limitedTo holds the file to a rate.
func (f *selftestFile) limitedTo(rate int64) *selftestFile {
	f.rate = rate
	return f
}

// cutEach breaks each body off after n bytes.
func (f *selftestFile) cutEach(n int64) *selftestFile {
	f.cutAfter = n
	return f
}

// held holds back each body after its first byte: the answer to a probe is whole.
func (f *selftestFile) held() *selftestFile {
	f.allow(1)
	return f
}

// allow lets go the first n bytes of each body, those under way among them.
//
// LOCKS_EXCLUDED(f.mu)
func (f *selftestFile) allow(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allowed = n
	close(f.more)
	f.more = make(chan struct{})
}

// allowance returns how many bytes of a body may be sent, and what is closed
// when that changes.
//
// LOCKS_EXCLUDED(f.mu)
func (f *selftestFile) allowance() (n int64, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.allowed, f.more
}

// selftestFiles are the files of the self-test, each for what its name says.
type selftestFiles struct {
	whole, slow, streamed, stalled, other, paused, cut *selftestFile
}

func newSelftestFiles() selftestFiles {
	return selftestFiles{
		whole:    newSelftestFile("whole.bin", 1, 16<<20+123),
		slow:     newSelftestFile("slow.bin", 2, 32<<20).limitedTo(2 << 20),
		streamed: newSelftestFile("streamed.bin", 3, 8<<20).held(),
		stalled:  newSelftestFile("stalled.bin", 4, 4<<20).held(),
		other:    newSelftestFile("other.bin", 5, 4<<20+1),
		paused:   newSelftestFile("paused.bin", 6, 1<<20).held(),
		cut:      newSelftestFile("cut.bin", 7, 4<<20+5).cutEach(700_000),
	}
}

func (fs selftestFiles) all() []*selftestFile {
	return []*selftestFile{fs.whole, fs.slow, fs.streamed, fs.stalled, fs.other, fs.paused, fs.cut}
}

// selftestOrigin is the running server.
type selftestOrigin struct {
	server  *http.Server
	address string
}

// startSelftestOrigin serves files until Close.
func startSelftestOrigin(files []*selftestFile) (*selftestOrigin, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start an origin: %w", err)
	}
	mux := http.NewServeMux()
	for _, f := range files {
		mux.Handle("GET /"+f.name, f)
	}
	o := &selftestOrigin{server: &http.Server{Handler: mux}, address: listener.Addr().String()}
	go o.server.Serve(listener)
	return o, nil
}

func (o *selftestOrigin) url(f *selftestFile) string { return "http://" + o.address + "/" + f.name }

// Close ends the server and every answer in flight.
func (o *selftestOrigin) Close() error { return o.server.Close() }

// ServeHTTP answers a request for the file or a range of it.
func (f *selftestFile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := &selftestBody{ResponseWriter: w, file: f, ctx: r.Context()}
	etag := fmt.Sprintf(`"%x-%x"`, f.seed, f.size)
	serveDemo(newPacedWriter(r.Context(), body, f.rate), r, etag, newContentReader(f.seed, f.size))
}

// selftestBody is one answer on its way out, used by its goroutine alone.
type selftestBody struct {
	http.ResponseWriter
	file *selftestFile
	ctx  context.Context
	sent int64 // bytes
}

// Write sends p as far and as soon as the file lets it.
//
// BLOCKS while the file holds p back; wakes on its allow and on the end of the
// request.
func (b *selftestBody) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var room int64
		if room, err = b.room(); err != nil {
			break
		}
		var sent int
		sent, err = b.ResponseWriter.Write(p[n:min(int64(len(p)), int64(n)+room)])
		n += sent
		b.sent += int64(sent)
		b.file.sent.Add(int64(sent))
	}
	return n, err
}

// room returns how many bytes may be sent, at least one. Where that is none for
// good, it breaks the connection off.
//
// BLOCKS as Write does.
func (b *selftestBody) room() (int64, error) {
	if cutAfter := b.file.cutAfter; cutAfter > 0 {
		if b.sent == cutAfter {
			return 0, b.cut()
		}
		return cutAfter - b.sent, nil
	}
	for {
		allowed, changed := b.file.allowance()
		if allowed > b.sent {
			return allowed - b.sent, nil
		}
		if err := b.flush(); err != nil {
			return 0, err
		}
		select {
		case <-changed:
		case <-b.ctx.Done():
			return 0, errors.New("the client is gone")
		}
	}
}

// cut breaks the connection off. What was sent so far has left by then.
func (b *selftestBody) cut() error {
	if err := b.flush(); err != nil {
		return err
	}
	b.file.cuts.Add(1)
	panic(http.ErrAbortHandler)
}

func (b *selftestBody) flush() error { return http.NewResponseController(b.ResponseWriter).Flush() }
