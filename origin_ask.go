// origin_ask.go makes a request count: it takes a place at the host, sends a second request beside one that is
// not answered, allows the body no more silence than it may have, and tells the host table how it went.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"sync/atomic"
	"time"
)

// errOvertaken ends a request whose second one was answered first.
var errOvertaken = errors.New("a second request was answered first")

// ask sends a request with header for h, for file, and returns the answer, whose body is a watchedBody. It tells q
// when the request has its place, and when it shall leave it. BLOCKS until the header arrived; wakes on a free place,
// on silence, on the end of ctx, and when another file needs the place.
func (o *httpOrigin) ask(ctx context.Context, h hop, header http.Header, file any, q request) (*webAnswer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	p, err := o.client.hosts.take(ctx, hostOf(h.url), file, func() {
		cancel(errMadeWay)
		if q.yield != nil {
			q.yield()
		}
	})
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if q.sent != nil {
		q.sent()
	}
	a, err := o.race(ctx, p, h, header)
	if err == nil && a.StatusCode == http.StatusUnauthorized {
		other, wrong := o.client.credentials.rereadToken(a.Request.Header)
		if wrong != nil {
			o.client.note(o, "%v", wrong)
		}
		if other {
			a.finish()
			a, err = o.race(ctx, p, h, header)
		}
	}
	if err == nil && !refusesCompany(a.StatusCode) && !refusesURL(a.StatusCode) {
		p.opened(a.took)
		a.Body = newWatchedBody(a.ctx, a.cancel, a.Body, o.stallTimeout, p, o.client.CloseIdleConnections)
		context.AfterFunc(a.ctx, func() { cancel(nil) })
		return a, nil
	}
	if err == nil {
		err = refusalOf(a)
		a.finish()
	}
	defer cancel(nil)
	defer p.done(true)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if timeout := interface{ Timeout() bool }(nil); errors.As(err, &timeout) && timeout.Timeout() {
		// The next request would take an idle connection, which is probably dead too.
		o.client.CloseIdleConnections()
		return nil, err
	}
	status := statusError{}
	if !o.renews(h, err) && (errors.As(err, new(networkError)) || errors.As(err, &status) && refusesCompany(status.code)) {
		err = p.refused(err)
	}
	return nil, err
}

// refusesCompany reports whether a host answers so to a request that is one too many.
func refusesCompany(code int) bool {
	return code == http.StatusForbidden || code == 509 || isTemporary(code)
}

// race sends a request, and one second request at a time beside it whenever it has not been answered for as long as
// the host may need. The first good answer wins. The first request goes on: the answer may be slow, and then a new
// request would wait as long. BLOCKS until there is an answer; wakes on that and on the end of ctx.
func (o *httpOrigin) race(ctx context.Context, p *place, h hop, header http.Header) (*webAnswer, error) {
	var decided atomic.Bool             // one of them is the answer
	seconds := make(chan *webAnswer, 1) // who has its value may send a second request, and puts a good answer back
	seconds <- nil
	secondCtx, endSecond := context.WithCancel(ctx)
	late := func(end context.CancelCauseFunc) {
		beside := p.second()
		if beside == nil {
			return
		}
		defer beside.done(true)
		if decided.Load() {
			return
		}
		select {
		case <-seconds:
		default: // the first request has failed
			return
		}
		o.client.note(o, "not answered within %v: asked a second time, beside it", p.patience)
		// The first connection may be dead, and HTTP/2 would use it again.
		a, err := o.client.follow(secondCtx, h, header, true, p.patience, nil)
		if err == nil && refusesCompany(a.StatusCode) {
			_ = beside.refused(refusalOf(a)) // the first request goes on
		}
		switch {
		case err != nil:
			a = nil
		case decides(a.StatusCode) && decided.CompareAndSwap(false, true):
			end(errOvertaken)
		default:
			a.finish()
			a = nil
		}
		seconds <- a
	}
	a, err := o.client.follow(ctx, h, header, false, p.patience, late)
	if err == nil && decided.CompareAndSwap(false, true) {
		endSecond()
	}
	won := <-seconds // of one that is under way, too: it may save a first request that failed
	if won == nil {
		endSecond()
		return a, err
	}
	context.AfterFunc(won.ctx, endSecond)
	if err == nil { // they came together
		a.finish()
	}
	return won, nil
}

// decides reports whether an answer with that status is as good from a second request as from the first one.
func decides(code int) bool {
	return code < 400 || code == http.StatusPreconditionFailed || code == http.StatusRequestedRangeNotSatisfiable
}

// watchedBody is the body of an answer. It ends with errStalled if the origin is silent for too
// long. Time counts only while a Read waits: a slow reader is not the origin's fault.
type watchedBody struct {
	// Write once, before any goroutine starts.
	body     io.ReadCloser
	ctx      context.Context // of the request
	cancel   context.CancelCauseFunc
	silence  time.Duration
	alarm    *time.Timer // ends ctx after silence; runs only during a Read
	place    *place      // of the request
	dropIdle func()      // closes the idle connections

	// Read write, by its reader.
	ended bool // the body came to its end
}

// newWatchedBody returns body, which was requested with ctx and in p. It calls cancel
// when the body is closed or silent for that long; 0 is no limit.
func newWatchedBody(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser,
	limit time.Duration, p *place, dropIdle func()) *watchedBody {
	limit = cmp.Or(limit, math.MaxInt64)
	alarm := time.AfterFunc(limit, func() { cancel(errStalled) })
	alarm.Stop()
	return &watchedBody{body: body, ctx: ctx, cancel: cancel, silence: limit, alarm: alarm, place: p, dropIdle: dropIdle}
}

// Read implements io.Reader. A stall closes the connection and the idle ones: they took the same path, which is
// probably dead. BLOCKS until bytes arrive; wakes on the end of the request's ctx and after silence.
func (b *watchedBody) Read(p []byte) (int, error) {
	b.alarm.Reset(b.silence)
	defer b.alarm.Stop()
	n, err := b.body.Read(p)
	if n > 0 {
		b.place.arrived(n)
	}
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF:
		b.ended = true
		return n, io.EOF
	case context.Cause(b.ctx) == errStalled:
		b.body.Close()
		b.dropIdle()
		return n, fmt.Errorf("%w for %v", errStalled, b.silence)
	case b.ctx.Err() != nil:
		return n, context.Cause(b.ctx)
	}
	return n, b.place.broke(networkError{err})
}

// Close implements io.Closer. Closing before the end of the body closes the connection too, unless it is HTTP/2.
func (b *watchedBody) Close() error {
	b.alarm.Stop()
	err := b.body.Close()
	b.cancel(nil)
	b.place.done(b.ended)
	return err
}
