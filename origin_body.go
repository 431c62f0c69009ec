// origin_body.go passes on the body of an answer: no byte more or less than was
// asked for, no silence longer than allowed. It knows nothing of versions,
// which were checked before, and nothing of what the bytes are for.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// bodyOf returns the body of resp cut down to r of obj.
//
// REQUIRES: checkAnswer found nothing wrong
func bodyOf(resp *http.Response, obj Object, r byteRange) io.ReadCloser {
	b := &exactBody{body: resp.Body, left: r.len()}
	if got, _, err := partOf(resp); resp.StatusCode == http.StatusPartialContent && err == nil {
		b.left = got.len()
	}
	if resp.StatusCode == http.StatusOK {
		b.skip = r.off
		b.goesOn = r.end < obj.Size
	}
	return b
}

// exactBody passes on exactly left bytes, after the skip bytes before them. The
// last of them are held back until the body under it has ended, for a body that
// goes on is not what was asked for, unless goesOn.
type exactBody struct {
	body   io.ReadCloser
	skip   int64 // bytes
	left   int64 // bytes
	goesOn bool
}

// Read is io.Reader's.
//
// BLOCKS until bytes arrived; the first of all also until those to skip did.
// Wakes on the end of what body was requested with, and by its silence.
func (b *exactBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if err := b.skipAhead(); err != nil || b.skip > 0 {
		return 0, asShort(err)
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case b.left > 0:
		return n, asShort(err)
	case b.goesOn:
		return n, nil
	}
	return b.last(n, err)
}

func (b *exactBody) skipAhead() error {
	if b.skip == 0 {
		return nil
	}
	n, err := io.CopyN(io.Discard, b.body, min(b.skip, fetchBufferBytes))
	b.skip -= n
	return err
}

// last passes on the n bytes that were read last, with err, if nothing comes
// after them.
func (b *exactBody) last(n int, err error) (int, error) {
	var extra [1]byte
	for more := 0; err == nil; {
		if more, err = b.body.Read(extra[:]); more > 0 {
			return 0, errLongBody
		}
	}
	if err != io.EOF {
		return 0, asShort(err)
	}
	return n, nil
}

// asShort names an end that came before its time.
func asShort(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return errShortBody
	}
	return err
}

func (b *exactBody) Close() error { return b.body.Close() }

// watchedBody is the body of an answer that may be silent for so long only.
// Time counts while a Read waits: a reader that takes its time, while bytes lie
// ready, is not held against the origin.
type watchedBody struct {
	// Write once, before any goroutine starts.
	body     io.ReadCloser
	ctx      context.Context // of the request
	cancel   context.CancelCauseFunc
	silence  time.Duration // 0 for no limit
	alarm    *time.Timer   // nil for no limit; runs while Read does, ends ctx
	dropIdle func()        // drops the connections that wait for a request
}

// newWatchedBody returns body, which was requested with ctx. The owner of
// cancel is the watchedBody from now on.
func newWatchedBody(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser,
	silence time.Duration, dropIdle func()) *watchedBody {
	b := &watchedBody{body: body, ctx: ctx, cancel: cancel, silence: silence, dropIdle: dropIdle}
	if silence > 0 {
		b.alarm = time.AfterFunc(silence, func() { cancel(errStalled) })
		b.alarm.Stop()
	}
	return b
}

// Read is io.Reader's.
//
// BLOCKS until bytes arrived; wakes on the end of the request's context, and by
// itself after so long a silence.
func (b *watchedBody) Read(p []byte) (int, error) {
	if b.alarm != nil {
		b.alarm.Reset(b.silence)
		defer b.alarm.Stop()
	}
	n, err := b.body.Read(p)
	if err != nil && err != io.EOF {
		err = b.explain(err)
	}
	return n, err
}

// explain finds out whether err came from us, by the alarm or the request's
// context, or from the network. A stalled connection is dropped, and the idle
// ones with it: a path that went dead is usually dead for them too.
func (b *watchedBody) explain(err error) error {
	switch {
	case context.Cause(b.ctx) == errStalled:
		b.body.Close()
		b.dropIdle()
		return fmt.Errorf("%w for %v", errStalled, b.silence)
	case b.ctx.Err() != nil:
		return b.ctx.Err()
	}
	return networkError{err}
}

// Close is io.Closer's. What was not read to its end costs its connection.
func (b *watchedBody) Close() error {
	if b.alarm != nil {
		b.alarm.Stop()
	}
	err := b.body.Close()
	b.cancel(nil)
	return err
}

// drainBytes is how much is received to keep a connection: less than another
// handshake costs.
const drainBytes = 4 << 10

// drain closes a body, and first receives what is left of a small one, which
// keeps its connection.
func drain(resp *http.Response) {
	if resp.ContentLength >= 0 && resp.ContentLength <= drainBytes {
		io.CopyN(io.Discard, resp.Body, drainBytes)
	}
	resp.Body.Close()
}
