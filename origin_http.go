// origin_http.go is the Origin of a URL. It connects, requests a range of one
// version, passes on bytes of that range only, and limits how long the origin may be
// silent. It makes one attempt and stores nothing. origin_answer.go judges the
// header of the answer, origin_redirect.go the redirects on the way to it.

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	// connectTimeout bounds the name lookup and the TCP connection together, and
	// after them the TLS handshake.
	connectTimeout = 10 * time.Second

	// headerTimeout bounds the wait for the header of an answer: twice the default
	// --stall-timeout, because many origins work before they answer.
	headerTimeout = 30 * time.Second

	// A client pings an HTTP/2 connection that brought no frame for pingAfter, and
	// closes it if no answer comes within pingTimeout. All requests to a host share
	// one connection, so a dead one would swallow new requests until headerTimeout.
	// The sum is the default --stall-timeout.
	pingAfter   = 5 * time.Second
	pingTimeout = 10 * time.Second

	// idlePerHost is how many idle connections to a host are kept for later requests.
	idlePerHost = 16

	// maxHeaderBytes bounds the text of a server that can get into errors and the log.
	maxHeaderBytes = 64 << 10

	// skipBytes is how much of a whole file one Read drops at most.
	skipBytes = 1 << 20
)

// httpClient returns the one client of the process. It trusts c.roots, sends c's
// headers and logins to the origins they are for, uses the proxy of the environment
// (http_proxy, https_proxy, no_proxy), and limits no transfer's duration.
func (c *credentials) httpClient() *http.Client {
	transport := newHTTPTransport(&net.Dialer{})
	transport.TLSClientConfig = &tls.Config{RootCAs: c.roots}
	return newClientOver(transport, c)
}

// newHTTPTransport returns a transport that dials with d, and sets the limits of both.
func newHTTPTransport(d *net.Dialer) *http.Transport {
	d.Timeout = connectTimeout
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: refuseProxyAnswer,
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

// refuseProxyAnswer returns an error with the status of a proxy that does not connect
// to the origin. net/http's own error is text without a number.
func refuseProxyAnswer(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return statusError{code: resp.StatusCode, proxy: true}
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

// Stat implements Origin. It requests the first byte with GET, because a presigned
// URL refuses HEAD. An answer with Content-Range also proves that ranges work.
func (o *httpOrigin) Stat(ctx context.Context) (Object, error) {
	resp, err := o.get(ctx, byteRange{0, 1}, Object{})
	if err != nil {
		return Object{}, err
	}
	defer resp.Body.Close()
	// Receiving a small body to its end keeps the connection, and costs less than the
	// handshakes of another one.
	if resp.ContentLength >= 0 && resp.ContentLength <= 4<<10 {
		io.Copy(io.Discard, resp.Body)
	}
	return objectOf(resp)
}

// Open implements Origin. If the origin sends no ranges, the first Reads receive and
// drop the bytes before r.
func (o *httpOrigin) Open(ctx context.Context, obj Object, r byteRange) (io.ReadCloser, error) {
	resp, err := o.get(ctx, r, obj)
	if err != nil {
		return nil, err
	}
	held, err := checkAnswer(resp, obj, r)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return &exactBody{
		ReadCloser: resp.Body,
		skip:       r.off - held.off,
		left:       min(r.end, held.end) - r.off,
		goesOn:     held.end > r.end,
	}, nil
}

// get requests r of the version pinned. The body of the answer is a watchedBody.
// Naming the encoding keeps gzip out: the origin would send other bytes and another
// size, and net/http would ask for gzip by itself.
//
// Its errors name no URL: a URL may hold secrets, and the caller names the file.
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
	if err == nil {
		resp.Body = newWatchedBody(ctx, cancel, resp.Body, o.stallTimeout, o.client.CloseIdleConnections)
		return resp, nil
	}
	defer cancel(nil)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	// The next request would take an idle connection. After a timeout these are
	// probably dead too.
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		o.client.CloseIdleConnections()
	}
	urlErr := &url.Error{URL: o.url.String(), Err: err}
	errors.As(err, &urlErr)
	if err = urlErr.Err; errors.Is(err, errBadRedirect) || errors.As(err, new(statusError)) {
		return nil, err
	}
	err = networkError{err}
	if last, _ := url.Parse(urlErr.URL); last != nil && !sameOrigin(last, o.url) {
		err = fmt.Errorf("the origin redirects to %s: %w", last.Host, err)
	}
	return nil, err
}

// setPreconditions makes the origin answer 412 (RFC 9110 section 13.1), or send the
// whole file, if it has another version than pinned. If-Range is for origins that know
// no other precondition: the rest evaluate it last (section 13.2.2), when it cannot
// fail any more. It may hold a date only if dateInIfRange (section 13.1.5).
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
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return errShortBody
	}
	return err
}

// watchedBody is the body of an answer. It ends with errStalled if the origin is
// silent for too long. Time counts only while a Read waits: a slow reader is not
// the origin's fault.
type watchedBody struct {
	// Write once, before any goroutine starts.
	body     io.ReadCloser
	ctx      context.Context // of the request
	cancel   context.CancelCauseFunc
	silence  time.Duration
	alarm    *time.Timer // ends ctx after silence; runs only during a Read
	dropIdle func()      // closes the idle connections
}

// newWatchedBody returns body, which was requested with ctx. It calls cancel when
// the body is closed or silent for that long; 0 is no limit.
func newWatchedBody(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser,
	silence time.Duration, dropIdle func()) *watchedBody {
	silence = cmp.Or(silence, math.MaxInt64)
	alarm := time.AfterFunc(silence, func() { cancel(errStalled) })
	alarm.Stop()
	return &watchedBody{body: body, ctx: ctx, cancel: cancel, silence: silence, alarm: alarm, dropIdle: dropIdle}
}

// Read implements io.Reader. A stall closes the connection and the idle ones: they
// took the same path, which is probably dead.
//
// BLOCKS until bytes arrive; wakes on the end of the request's ctx and after silence.
func (b *watchedBody) Read(p []byte) (int, error) {
	b.alarm.Reset(b.silence)
	defer b.alarm.Stop()
	n, err := b.body.Read(p)
	switch {
	case err == nil, err == io.EOF:
		return n, err
	case context.Cause(b.ctx) == errStalled:
		b.body.Close()
		b.dropIdle()
		return n, fmt.Errorf("%w for %v", errStalled, b.silence)
	case b.ctx.Err() != nil:
		return n, b.ctx.Err()
	}
	return n, networkError{err}
}

// Close implements io.Closer. Closing before the end of the body closes the
// connection too, unless it is HTTP/2.
func (b *watchedBody) Close() error {
	b.alarm.Stop()
	err := b.body.Close()
	b.cancel(nil)
	return err
}
