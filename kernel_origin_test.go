//go:build linux

// The origin of the kernel tests: a real HTTP server whose files are computed
// from their offsets, and whose answers can be held back at a byte or broken off
// there. It counts what it was asked for, so that a test can tell that a
// file was fetched once and that a fault happened.

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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
