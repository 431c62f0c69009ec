// origin_http.go is the Origin of a URL: range requests, and answers that are
// checked before a byte of them is believed. It never retries and never stores.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// connectTimeout bounds the TCP connection, and as much again the TLS
	// handshake: what takes longer is not going to work.
	connectTimeout = 10 * time.Second

	// headerTimeout bounds the wait for an answer to a request. The body after
	// it may take as long as it takes.
	headerTimeout = 60 * time.Second

	// maxRedirects is net/http's own limit.
	maxRedirects = 10

	// idlePerHost is how many idle connections to a host are kept: one for each
	// probe that runs at once.
	idlePerHost = probesAtOnce
)

// statusError is an answer that is neither the file nor a redirect.
type statusError struct {
	code int
}

func (e statusError) Error() string {
	return fmt.Sprintf("the origin answered %d %s", e.code, http.StatusText(e.code))
}

// newHTTPClient returns the one client of the process: the proxy of the
// environment (http_proxy, https_proxy, no_proxy), HTTP/2 where the origin has
// it, and no limit on how long a transfer takes.
func newHTTPClient() *http.Client {
	dialer := &net.Dialer{Timeout: connectTimeout}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   connectTimeout,
		ResponseHeaderTimeout: headerTimeout,
		MaxIdleConnsPerHost:   idlePerHost,
		IdleConnTimeout:       90 * time.Second,
	}
	return &http.Client{Transport: &redirectChecker{transport}, CheckRedirect: checkRedirect}
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
		return nil, errors.New("the origin redirects to what is no URL")
	}
	return resp, nil
}

// checkRedirect keeps the URL that was redirected, which may hold secrets, from
// the host that comes next, and ends a loop.
func checkRedirect(req *http.Request, via []*http.Request) error {
	req.Header.Del("Referer")
	if len(via) >= maxRedirects {
		return fmt.Errorf("the origin redirects more than %d times", maxRedirects)
	}
	return nil
}

// httpOrigin is an Origin over HTTP (RFC 9110).
type httpOrigin struct {
	client *http.Client
	url    *url.URL
}

func (o *httpOrigin) String() string { return redactURL(o.url) }

// Stat asks for the first byte, not by HEAD: a presigned URL is good for one
// method only, and an answer with Content-Range also proves that ranges work.
func (o *httpOrigin) Stat(ctx context.Context) (Object, error) {
	resp, err := o.get(ctx, byteRange{0, 1})
	if err != nil {
		return Object{}, err
	}
	defer drain(resp.Body)
	if err := checkEncoding(resp); err != nil {
		return Object{}, err
	}
	obj, err := o.describe(resp)
	if err != nil {
		return Object{}, err
	}
	obj.ModTime, _ = http.ParseTime(resp.Header.Get("Last-Modified"))
	obj.ETag = strongETag(resp.Header.Get("ETag"))
	obj.Filename = dispositionFilename(resp.Header.Get("Content-Disposition"))
	return obj, nil
}

// describe finds the size in an answer to a request for the first byte.
func (o *httpOrigin) describe(resp *http.Response) (Object, error) {
	switch resp.StatusCode {
	case http.StatusPartialContent:
		_, size, err := parseContentRange(resp.Header.Get("Content-Range"))
		return Object{Size: size, Ranges: true}, err
	case http.StatusOK:
		if resp.ContentLength < 0 {
			return Object{}, errNoSize
		}
		return Object{Size: resp.ContentLength}, nil
	case http.StatusRequestedRangeNotSatisfiable:
		// RFC 9110 section 15.5.17: an empty file has no first byte.
		if resp.Header.Get("Content-Range") == "bytes */0" {
			return Object{Size: 0, Ranges: true}, nil
		}
	}
	return Object{}, statusError{resp.StatusCode}
}

// Open implements Origin. Where the origin knows no ranges, r must start at 0.
func (o *httpOrigin) Open(ctx context.Context, obj Object, r byteRange) (io.ReadCloser, error) {
	resp, err := o.get(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := checkAnswer(resp, obj, r); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return &exactBody{body: resp.Body, left: r.len()}, nil
}

// get requests r. The encoding is named so that neither the origin nor net/http
// puts gzip in between: it would change what the bytes and their number mean.
func (o *httpOrigin) get(ctx context.Context, r byteRange) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.off, r.end-1))
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "fsmount")
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	return resp, nil
}

// withoutURL drops the URL that net/http puts in its errors: it may hold
// secrets, and the caller says which file it was.
func withoutURL(err error) error {
	if urlErr := (*url.Error)(nil); errors.As(err, &urlErr) {
		return urlErr.Err
	}
	return err
}

// checkAnswer reports why resp is not exactly r of obj, or nil.
func checkAnswer(resp *http.Response, obj Object, r byteRange) error {
	if err := checkEncoding(resp); err != nil {
		return err
	}
	if etag := strongETag(resp.Header.Get("ETag")); etag != obj.ETag && etag != "" && obj.ETag != "" {
		return fmt.Errorf("%w: its ETag was %s and is %s", errChanged, obj.ETag, etag)
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		return checkPartial(resp, obj, r)
	case http.StatusOK:
		return checkWhole(resp, obj, r)
	}
	return statusError{resp.StatusCode}
}

func checkPartial(resp *http.Response, obj Object, r byteRange) error {
	got, size, err := parseContentRange(resp.Header.Get("Content-Range"))
	switch {
	case err != nil:
		return err
	case size != obj.Size:
		return fmt.Errorf("%w: its size was %d and is %d bytes", errChanged, obj.Size, size)
	case got != r:
		return fmt.Errorf("asked for bytes %v, the origin sent %v", r, got)
	}
	return checkLength(resp, r.len())
}

// checkWhole accepts a 200, which is the whole file (RFC 9110 section 14.2: a
// server may ignore Range), where r starts at 0.
func checkWhole(resp *http.Response, obj Object, r byteRange) error {
	if resp.ContentLength >= 0 && resp.ContentLength != obj.Size {
		return fmt.Errorf("%w: its size was %d and is %d bytes", errChanged, obj.Size, resp.ContentLength)
	}
	if r.off != 0 || r.end != obj.Size {
		return fmt.Errorf("asked for bytes %v, the origin sent the whole file", r)
	}
	return nil
}

// checkLength compares Content-Length with n where there is one: a chunked body
// has none, and shows its length as it is read.
func checkLength(resp *http.Response, n int64) error {
	switch {
	case resp.ContentLength > n:
		return fmt.Errorf("%w: %d, not %d", errLongBody, resp.ContentLength, n)
	case resp.ContentLength >= 0 && resp.ContentLength < n:
		return fmt.Errorf("%w: %d bytes, not %d", errShortBody, resp.ContentLength, n)
	}
	return nil
}

// checkEncoding refuses a body that is compressed although it was asked not to
// be.
func checkEncoding(resp *http.Response) error {
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return fmt.Errorf("the origin sends it as %s only, so its size and bytes are not the file's", enc)
	}
	return nil
}

// parseContentRange reads "bytes FIRST-LAST/SIZE" (RFC 9110 section 14.4).
func parseContentRange(header string) (r byteRange, size int64, err error) {
	malformed := fmt.Errorf("the origin's Content-Range is malformed: %q", header)
	spec, ok := strings.CutPrefix(header, "bytes ")
	if !ok {
		return byteRange{}, 0, malformed
	}
	span, total, ok := strings.Cut(spec, "/")
	if ok && total == "*" {
		return byteRange{}, 0, errNoSize
	}
	first, last, ok2 := strings.Cut(span, "-")
	a, err1 := parseDigits(first)
	b, err2 := parseDigits(last)
	size, err3 := parseDigits(total)
	if !ok || !ok2 || errors.Join(err1, err2, err3) != nil || a > b || b >= size {
		return byteRange{}, 0, malformed
	}
	return byteRange{a, b + 1}, size, nil
}

// parseDigits reads 1*DIGIT: no sign, unlike strconv.
func parseDigits(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// strongETag returns a strong entity tag, quotes and all, and "" for a weak one
// (RFC 9110 section 8.8.3): that one promises no equal bytes.
func strongETag(header string) string {
	if strings.HasPrefix(header, `"`) {
		return header
	}
	return ""
}

// exactBody passes on exactly left bytes. The last of them are held back until
// the body under it has ended, for a body that goes on is not what was asked
// for.
type exactBody struct {
	body io.ReadCloser
	left int64
}

func (b *exactBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case b.left == 0:
		return b.last(n, err)
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return n, errShortBody
	}
	return n, err
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
		return 0, err
	}
	return n, nil
}

func (b *exactBody) Close() error { return b.body.Close() }

// drain closes a body of a byte or so in a way that keeps its connection.
func drain(body io.ReadCloser) {
	io.CopyN(io.Discard, body, 4<<10)
	body.Close()
}
