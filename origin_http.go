// origin_http.go is the Origin of a URL: it makes the connection, requests a range
// of one version, and passes on exactly that range, with a limit on silence. It
// makes one attempt and stores nothing. origin_answer.go judges the answer's header.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	// connectTimeout bounds the lookup of the name and the TCP connection
	// together, and as much again the TLS handshake: what takes longer is not
	// going to work.
	connectTimeout = 10 * time.Second

	// headerTimeout bounds the wait for an answer to a request: half of what a
	// reader is made to wait by default, so that a request that was lost is made
	// again in time. The body after it may take as long as it takes.
	headerTimeout = 30 * time.Second

	// An HTTP/2 connection that brought no frame for pingAfter is asked for a
	// sign of life, and given up pingTimeout later: it carries every request to
	// its host, and one that died with the network would swallow new ones until
	// headerTimeout. Their sum is the default of --stall-timeout.
	pingAfter   = 5 * time.Second
	pingTimeout = 10 * time.Second

	// idlePerHost is how many idle connections to a host are kept, and so how
	// many requests can follow each other there without new handshakes.
	idlePerHost = 16

	// maxHeaderBytes bounds what a server can put into an error, and so into the
	// log and the ring of events.
	maxHeaderBytes = 64 << 10

	// skipBytes is how much of a whole file a Read drops at a time where the
	// origin knows no ranges.
	skipBytes = 1 << 20

	// maxRedirects is net/http's own limit.
	maxRedirects = 10
)

// newHTTPClient returns the one client of the process: the proxy of the
// environment (http_proxy, https_proxy, no_proxy), HTTP/2 where the origin has
// it, and no limit on how long a transfer takes.
func newHTTPClient() *http.Client {
	transport := newHTTPTransport(&net.Dialer{})
	return &http.Client{Transport: &redirectChecker{transport}, CheckRedirect: checkRedirect}
}

// newHTTPTransport sets the limits of d and of all that follows the connection.
func newHTTPTransport(d *net.Dialer) *http.Transport {
	d.Timeout = connectTimeout
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: checkProxyAnswer,
		DialContext:            d.DialContext,
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    connectTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		MaxIdleConnsPerHost:    idlePerHost,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
}

// checkProxyAnswer gives the refusal of a proxy to connect its status.
func checkProxyAnswer(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return proxyError{resp.StatusCode}
	}
	return nil
}

// httpOrigin is an Origin over HTTP (RFC 9110).
type httpOrigin struct {
	// Write once, before any goroutine starts.
	client       *http.Client
	url          *url.URL
	stallTimeout time.Duration
}

// newHTTPOrigin returns the origin at u. A body that brings no byte for
// stallTimeout ends with errStalled; 0 is no limit.
func newHTTPOrigin(client *http.Client, u *url.URL, stallTimeout time.Duration) *httpOrigin {
	return &httpOrigin{client: client, url: u, stallTimeout: stallTimeout}
}

func (o *httpOrigin) String() string { return redactURL(o.url) }

// Stat asks for the first byte, not by HEAD: a presigned URL is good for one
// method only, and an answer with Content-Range also proves that ranges work.
func (o *httpOrigin) Stat(ctx context.Context) (Object, error) {
	resp, err := o.get(ctx, byteRange{0, 1}, Object{})
	if err != nil {
		return Object{}, err
	}
	defer drain(resp)
	return objectOf(resp)
}

// Open implements Origin. Where the origin knows no ranges, the bytes before r
// are received too, and dropped, by the first Read.
func (o *httpOrigin) Open(ctx context.Context, obj Object, r byteRange) (io.ReadCloser, error) {
	resp, err := o.get(ctx, r, obj)
	if err != nil {
		return nil, err
	}
	if err := checkAnswer(resp, obj, r); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return bodyOf(resp, obj, r), nil
}

// get requests r of the version pinned. The encoding is named so that neither
// the origin nor net/http puts gzip in between: it would change what the bytes
// and their number mean. The body of the answer is a watchedBody.
func (o *httpOrigin) get(ctx context.Context, r byteRange, pinned Object) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.off, r.end-1))
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "fsmount")
	setPreconditions(req.Header, pinned)
	resp, err := o.client.Do(req)
	if err != nil {
		err = o.explain(ctx, err)
		cancel(nil)
		return nil, err
	}
	resp.Body = newWatchedBody(ctx, cancel, resp.Body, o.stallTimeout, o.client.CloseIdleConnections)
	return resp, nil
}

// setPreconditions makes the origin answer 412 (RFC 9110 section 13.1), or the
// whole of it, if it has another version than pinned.
//
// If-Range is for an origin that knows only that. It does no harm beside the
// others: section 13.2.2 has them evaluated first, so that it is looked at only
// if they hold, and then it holds as well. Section 13.1.5 allows a date in it
// only where dateInIfRange.
func setPreconditions(h http.Header, pinned Object) {
	switch {
	case pinned.ETag != "":
		h.Set("If-Match", pinned.ETag)
		h.Set("If-Range", pinned.ETag)
	case pinned.LastModified != "":
		h.Set("If-Unmodified-Since", pinned.LastModified)
		if pinned.dateInIfRange {
			h.Set("If-Range", pinned.LastModified)
		}
	}
}

// explain turns an error of net/http into one of ours. After a timeout the idle
// connections are dropped, of which the next request would take one: a path
// that went dead is dead for them too.
func (o *httpOrigin) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		o.client.CloseIdleConnections()
	}
	return networkError{withoutURL(err)}
}

// withoutURL drops the URL that net/http puts in its errors: it may hold
// secrets, and the caller says which file it was.
func withoutURL(err error) error {
	if urlErr := (*url.Error)(nil); errors.As(err, &urlErr) {
		return urlErr.Err
	}
	return err
}

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
		return 0, shortBodyError(err)
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case b.left > 0:
		return n, shortBodyError(err)
	case b.goesOn:
		return n, nil
	}
	return b.last(n, err)
}

func (b *exactBody) skipAhead() error {
	if b.skip == 0 {
		return nil
	}
	n, err := io.CopyN(io.Discard, b.body, min(b.skip, skipBytes))
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
		return 0, shortBodyError(err)
	}
	return n, nil
}

// shortBodyError names an end that came before its time.
func shortBodyError(err error) error {
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
