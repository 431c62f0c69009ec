// origin_http.go is the Origin of a URL: the connections, and the requests with
// the version they ask for. What comes back is judged in origin_answer.go and
// passed on by origin_body.go. It never retries and never stores.

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

	// idlePerHost is how many idle connections to a host are kept: one for each
	// probe that runs at once.
	idlePerHost = probesAtOnce

	// maxHeaderBytes bounds what a server can put into an error, and so into the
	// log and the ring of events.
	maxHeaderBytes = 64 << 10

	// maxRedirects is net/http's own limit.
	maxRedirects = 10
)

// errBadRedirect is a redirect that no request can follow.
var errBadRedirect = errors.New("the origin redirects to nowhere")

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

// redirectChecker refuses a redirect to what is no URL, before net/http does in
// an error that quotes it, secrets and all.
type redirectChecker struct {
	*http.Transport
}

func (c *redirectChecker) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if _, err := resp.Location(); resp.StatusCode/100 == 3 && err != nil && err != http.ErrNoLocation {
		resp.Body.Close()
		return nil, fmt.Errorf("%w: its Location is no URL", errBadRedirect)
	}
	return resp, nil
}

// checkRedirect keeps the URL that was redirected, which may hold secrets, from
// the host that comes next, and ends a loop.
func checkRedirect(req *http.Request, via []*http.Request) error {
	req.Header.Del("Referer")
	switch {
	case len(via) >= maxRedirects:
		return fmt.Errorf("%w: %d times in a row", errBadRedirect, len(via))
	case req.URL.Scheme != "http" && req.URL.Scheme != "https":
		return fmt.Errorf("%w: scheme %q is not served", errBadRedirect, req.URL.Scheme)
	case req.URL.Hostname() == "":
		return fmt.Errorf("%w: the URL has no host", errBadRedirect)
	}
	return nil
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
	return describe(resp)
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
