//go:build browser

// The slow links of the browser tests, and the origins at their far ends: the faulty
// files of the kernel tests.

package main

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	// slowRate is how many bytes a second an origin's link carries. At this rate, all the
	// uploads that run side by side are no load for two CPUs.
	slowRate = 3 << 20

	// linkCredit is how much lateness a link makes up for, because timers are late on a
	// loaded machine.
	linkCredit = 200 * time.Millisecond
)

// slowLink has one rate for all that it carries. So it takes the same time for a file,
// however many requests bring it.
type slowLink struct {
	// Write once, before the first byte.
	rate     int64 // bytes a second
	silentAt int64 // after so many bytes the link carries none for silence; 0: never

	// Read write.
	mu      sync.Mutex
	carried int64     // GUARDED_BY(mu); bytes
	free    time.Time // GUARDED_BY(mu); when the bytes so far have passed
}

// slowFile is a file with a link of its own.
func slowFile(name string, size int64) *kernelFile {
	f := wholeFile(name, size)
	f.carry = (&slowLink{rate: slowRate}).carry
	return f
}

// download is how long the link of a slow file needs for n bytes.
func download(n int64) time.Duration { return time.Duration(n) * time.Second / slowRate }

// due returns when the link has carried the next n bytes.
//
// LOCKS_EXCLUDED(l.mu)
func (l *slowLink) due(n int64) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if latest := time.Now().Add(-linkCredit); l.free.Before(latest) {
		l.free = latest
	}
	if l.carried < l.silentAt && l.carried+n >= l.silentAt {
		l.free = l.free.Add(silence)
	}
	l.carried += n
	l.free = l.free.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
	return l.free
}

// carry returns a response whose body goes over the link.
func (l *slowLink) carry(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	return &linkedResponse{w, r.Context(), l}
}

type linkedResponse struct {
	http.ResponseWriter
	ctx  context.Context
	link *slowLink
}

// Write implements io.Writer.
//
// BLOCKS until the link has carried p; wakes on the end of the request.
func (w *linkedResponse) Write(p []byte) (int, error) {
	if err := sleepUntil(w.ctx, w.link.due(int64(len(p)))); err != nil {
		return 0, err
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *linkedResponse) Unwrap() http.ResponseWriter { return w.ResponseWriter }
