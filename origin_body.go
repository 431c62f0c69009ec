// origin_body.go is the body of an answer: just the bytes that were asked for, no more
// silence than is allowed, and the host table learns what becomes of it.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// skipBytes is how much of a whole file one Read drops at most.
const skipBytes = 1 << 20

// exactBody drops the first skip bytes of a body and passes on the next left bytes.
// It holds back the last piece until the body ends, because a longer body is an
// error, unless the server said that it sends more of the file.
type exactBody struct {
	io.ReadCloser       // the body
	skip          int64 // bytes
	left          int64 // bytes
	goesOn        bool  // the body holds more of the file after them
}

// Read implements io.Reader.
//
// BLOCKS until bytes after those to skip arrive, or until it dropped skipBytes; wakes
// on the end of the request's context and when the origin is silent for too long.
func (b *exactBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.skip > 0 {
		n, err := io.CopyN(io.Discard, b.ReadCloser, min(b.skip, skipBytes))
		b.skip -= n
		if err != nil || b.skip > 0 {
			return 0, shortBodyError(err)
		}
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case b.left > 0:
		return n, shortBodyError(err)
	case b.goesOn:
		return n, nil
	}
	if err == nil {
		if _, err = io.ReadFull(b.ReadCloser, make([]byte, 1)); err == nil {
			return 0, errLongBody
		}
	}
	if err != io.EOF {
		return 0, shortBodyError(err)
	}
	return n, nil
}

// shortBodyError returns errShortBody for a body that ended before its last byte,
// and any other err as it is.
func shortBodyError(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, errCrowded) {
		return errShortBody
	}
	return err
}

// watchedBody is the body of an answer. It ends with errStalled if the origin is silent
// for too long. Time counts only while a Read waits: a slow reader is not the origin's
// fault.
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
	ended  bool // the body came to its end
	closed bool
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

// Read implements io.Reader. A stall closes the connection and the idle ones: they
// took the same path, which is probably dead.
//
// BLOCKS until bytes arrive; wakes on the end of the request's ctx and after silence.
func (b *watchedBody) Read(p []byte) (int, error) {
	b.alarm.Reset(b.silence)
	defer b.alarm.Stop()
	n, err := b.body.Read(p)
	if n > 0 {
		b.place.arrived(n)
	}
	unanswered := unansweredError{}
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
	case errors.As(context.Cause(b.ctx), &unanswered): // the alarm rang as the header came
		return n, networkError{unanswered}
	case b.ctx.Err() != nil:
		return n, context.Cause(b.ctx)
	}
	return n, b.place.broke(networkError{err})
}

// Close implements io.Closer. Closing before the end of the body closes the
// connection too, unless it is HTTP/2.
func (b *watchedBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	b.alarm.Stop()
	err := b.body.Close()
	b.cancel(nil)
	b.place.done(b.ended)
	return err
}
