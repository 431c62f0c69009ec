// selftest_origin.go is an HTTP server on 127.0.0.1 whose files misbehave on
// purpose: they send slowly, hold bytes back, or break connections off. Each file
// counts what it sent and cut, so a check can prove that the fault happened. The
// kernel tests use these files too.

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// faultyFile is one file of the server: the http.Handler of its path.
type faultyFile struct {
	// Write once, before the server starts.
	demoFile
	modTime time.Time               // zero: no Last-Modified
	cutAt   func(start int64) int64 // offset where a body that begins at start breaks off; nil: nowhere

	// Read write.
	mu      sync.Mutex
	held    byteRange     // GUARDED_BY(mu); the file does not send these bytes yet
	changed chan struct{} // GUARDED_BY(mu); closed and replaced by update
	sent    atomic.Int64  // bytes of all bodies
	cuts    atomic.Int64  // bodies that broke off
}

// newFaultyFile returns a file that sends as fast as the client takes it. size is in
// bytes.
func newFaultyFile(name string, seed uint64, size int64) *faultyFile {
	return &faultyFile{
		demoFile: demoFile{name: name, seed: seed, size: size},
		modTime:  demoModTime(),
		changed:  make(chan struct{}),
	}
}

// update runs change under the lock and wakes the bodies that wait.
//
// LOCKS_EXCLUDED(f.mu)
func (f *faultyFile) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// allow lets the bytes before offset n go and holds the others back.
//
// LOCKS_EXCLUDED(f.mu)
func (f *faultyFile) allow(n int64) { f.update(func() { f.held = byteRange{n, f.size} }) }

// ServeHTTP answers a request for the file or for a range of it, with all faults.
func (f *faultyFile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := &faultyBody{ResponseWriter: w, file: f, ctx: r.Context()}
	f.serve(newPacedWriter(r.Context(), body, f.rate), r, f.modTime)
}

// faultyBody sends one answer. Only the goroutine of that answer uses it.
type faultyBody struct {
	http.ResponseWriter
	file *faultyFile
	ctx  context.Context
	off  int64 // in the file, of the next byte
	cut  int64 // offset in the file where the body breaks off
}

// WriteHeader learns from the header where in the file the body begins.
func (b *faultyBody) WriteHeader(code int) {
	_, _ = fmt.Sscanf(b.Header().Get("Content-Range"), "bytes %d-", &b.off) // absent: at 0
	b.cut = b.file.size
	if b.file.cutAt != nil {
		b.cut = b.file.cutAt(b.off)
	}
	b.ResponseWriter.WriteHeader(code)
}

// Write sends p as soon as the file allows it. After an error the server closes
// the connection, because the body is shorter than its header says.
//
// BLOCKS while the next byte is held; wakes on update and on the end of the
// request.
func (b *faultyBody) Write(p []byte) (n int, err error) {
	for n < len(p) {
		b.file.mu.Lock()
		held, changed := b.file.held, b.file.changed
		b.file.mu.Unlock()
		end := min(b.off+int64(len(p)-n), b.cut)
		switch {
		case b.ctx.Err() != nil:
			return n, context.Cause(b.ctx)
		case b.off >= b.cut:
			b.file.cuts.Add(1)
			return n, errors.New("cut on purpose")
		case b.off < held.off:
			end = min(end, held.off)
		case b.off < held.end:
			if err := http.NewResponseController(b.ResponseWriter).Flush(); err != nil {
				return n, err
			}
			select {
			case <-changed:
			case <-b.ctx.Done():
			}
			continue
		}
		sent, err := b.ResponseWriter.Write(p[n : n+int(end-b.off)])
		n += sent
		b.off += int64(sent)
		b.file.sent.Add(int64(sent))
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// selftestFiles are the files of the self-test, each for what its name says.
type selftestFiles struct {
	all                                                []*faultyFile
	whole, slow, streamed, stalled, other, paused, cut *faultyFile
}

func newSelftestFiles() *selftestFiles {
	fs := &selftestFiles{}
	add := func(name string, size int64) *faultyFile {
		f := newFaultyFile(name, uint64(len(fs.all)+1), size)
		fs.all = append(fs.all, f)
		return f
	}
	fs.whole = add("whole.bin", 16<<20+123)
	fs.slow = add("slow.bin", 32<<20)
	fs.streamed = add("streamed.bin", 8<<20)
	fs.stalled = add("stalled.bin", 4<<20)
	fs.other = add("other.bin", 4<<20+1)
	fs.paused = add("paused.bin", 1<<20)
	fs.cut = add("cut.bin", 4<<20+5)

	fs.slow.rate = 2 << 20
	fs.cut.cutAt = func(start int64) int64 { return start + 700_000 }
	for _, f := range []*faultyFile{fs.streamed, fs.stalled, fs.paused} {
		f.allow(1) // the whole answer to a probe
	}
	return fs
}
