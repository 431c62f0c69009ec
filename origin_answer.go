// origin_answer.go judges the header of an answer before the program believes a byte
// of its body: is it the range that was requested, of the pinned version, unencoded?
// If not, may another attempt succeed? It reads headers and errors, and makes no
// request.

package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// objectOf returns the Object that the answer to a request for the first byte names.
func objectOf(resp *http.Response) (Object, error) {
	obj := validatorsOf(resp.Header)
	size, unsatisfied := unsatisfiedSize(resp)
	switch {
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusPartialContent:
		held, whole, err := partOf(resp)
		if err != nil {
			return Object{}, err
		}
		if whole < 0 {
			return Object{}, errNoSize
		}
		obj.Size = whole
		obj.Ranges = resp.StatusCode == http.StatusPartialContent && held == byteRange{0, 1}
	case unsatisfied && size == 0:
		obj.Ranges = true // RFC 9110 section 15.5.17: an empty file has no first byte.
	case resp.StatusCode == http.StatusBadRequest && resp.TLS == nil && !refusalOf(resp).redirected:
		return Object{}, fmt.Errorf("%w (if it serves https, write https://)", refusalOf(resp))
	default:
		return Object{}, refusalOf(resp)
	}
	obj.ModTime, _ = http.ParseTime(obj.LastModified)
	obj.Filename = dispositionFilename(resp.Header.Get("Content-Disposition"))
	return obj, nil
}

// validatorsOf returns what the header of an answer says about the file's version.
func validatorsOf(h http.Header) Object {
	tag := h.Get("ETag")
	obj := Object{ETag: strongETag(tag), LastModified: h.Get("Last-Modified")}
	if weak, isWeak := strings.CutPrefix(tag, "W/"); isWeak {
		obj.weakETag = strongETag(weak)
	}
	// RFC 9110 section 8.8.2.2: Last-Modified names one version only if it is a second
	// or more before Date. Then a later change has another Last-Modified.
	modified, err1 := http.ParseTime(obj.LastModified)
	answered, err2 := http.ParseTime(h.Get("Date"))
	obj.dateInIfRange = tag == "" && err1 == nil && err2 == nil && answered.Sub(modified) >= time.Second
	return obj
}

// strongETag returns header if it is a strong entity tag, quotes included. It returns
// "" for a weak tag, which promises no equal bytes, and for a tag with characters that
// RFC 9110 section 8.8.3 forbids: servers do not recognise it in If-Match.
func strongETag(header string) string {
	tag, opened := strings.CutPrefix(header, `"`)
	tag, closed := strings.CutSuffix(tag, `"`)
	if !opened || !closed || strings.ContainsFunc(tag, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
		return ""
	}
	return header
}

// checkAnswer returns which bytes of obj the body of resp holds, or an error if resp
// is no answer to a request for r of obj. The body begins at or before r.off. A 206
// may hold less than r, from the same start (RFC 9110 section 15.3.7); a 200 is the
// whole file, because a server may ignore Range (section 14.2). Of the others,
// only a 412 and a 416 say anything about the file.
func checkAnswer(resp *http.Response, obj Object, r byteRange) (held byteRange, err error) {
	size, unsatisfied := unsatisfiedSize(resp)
	whole := resp.StatusCode == http.StatusOK
	switch {
	case whole, resp.StatusCode == http.StatusPartialContent:
	case resp.StatusCode == http.StatusPreconditionFailed && (obj.ETag != "" || obj.LastModified != ""):
		return byteRange{}, fmt.Errorf("%w: the origin no longer has the version that was requested", errChanged)
	case unsatisfied && size != obj.Size:
		return byteRange{}, obj.changedTo(Object{Size: size})
	default:
		return byteRange{}, refusalOf(resp)
	}
	answer := validatorsOf(resp.Header)
	if held, answer.Size, err = partOf(resp); err != nil {
		return byteRange{}, err
	}
	if answer.Size < 0 {
		// Nothing contradicts obj.Size yet: the length shows when the body ends.
		held.end, answer.Size = obj.Size, obj.Size
	}
	if err := obj.confirmedBy(answer); err != nil {
		return byteRange{}, err
	}
	compared := obj.ETag != "" && answer.ETag != "" || obj.LastModified != "" && answer.LastModified != ""
	length := resp.ContentLength // -1 for a chunked body
	switch {
	case whole && length < 0 && r.end < obj.Size && !compared:
		return byteRange{}, fmt.Errorf("%w (treated as changed: asked for bytes %v, "+
			"the origin sent a whole file without its length or version)", errChanged, r)
	case !whole && (held.off != r.off || held.end > r.end):
		return byteRange{}, fmt.Errorf("asked for bytes %v, the origin sent %v", r, held)
	case length > held.len():
		return byteRange{}, fmt.Errorf("%w: %d bytes, not %d", errLongBody, length, held.len())
	case length >= 0 && length < held.len():
		return byteRange{}, fmt.Errorf("%w: %d bytes, not %d", errShortBody, length, held.len())
	}
	return held, nil
}

// partOf returns which bytes the body of a 200 or 206 holds, and the size of the
// whole file. The size is -1 for a 200 without Content-Length.
func partOf(resp *http.Response) (held byteRange, size int64, err error) {
	enc := resp.Header.Get("Content-Encoding")
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case enc != "" && !strings.EqualFold(enc, "identity"):
		return byteRange{}, 0, fmt.Errorf("the origin sends it as %s only, so its size and bytes are not the file's", enc)
	case resp.StatusCode == http.StatusOK:
		return byteRange{0, max(0, resp.ContentLength)}, resp.ContentLength, nil
	case kind == "multipart/byteranges":
		// RFC 9110 section 15.3.7.2 forbids it as an answer to a request for one range.
		return byteRange{}, 0, errors.New("the origin sent several parts (multipart/byteranges) where one was asked for")
	}
	return parseContentRange(resp.Header.Get("Content-Range"))
}

// parseContentRange reads "bytes FIRST-LAST/SIZE" (RFC 9110 section 14.4).
func parseContentRange(header string) (r byteRange, size int64, err error) {
	spec, isBytes := strings.CutPrefix(header, "bytes ")
	span, total, hasSize := strings.Cut(spec, "/")
	first, last, hasLast := strings.Cut(span, "-")
	if isBytes && total == "*" {
		return byteRange{}, 0, errNoSize
	}
	a, err1 := parseDigits(first)
	b, err2 := parseDigits(last)
	size, err3 := parseDigits(total)
	if !isBytes || !hasSize || !hasLast || errors.Join(err1, err2, err3) != nil || a > b || b >= size {
		return byteRange{}, 0, fmt.Errorf("the origin's Content-Range is malformed: %q", header)
	}
	return byteRange{a, b + 1}, size, nil
}

// unsatisfiedSize returns the size that a 416 gives as "Content-Range: bytes */SIZE".
func unsatisfiedSize(resp *http.Response) (size int64, ok bool) {
	total, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), "bytes */")
	size, err := parseDigits(total)
	return size, ok && err == nil && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// parseDigits reads 1*DIGIT. Unlike strconv.ParseInt it accepts no sign.
func parseDigits(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// maxRetryAfter caps Retry-After: an origin that is back sooner than it said should not
// wait for its readers.
const maxRetryAfter = 60 * time.Second

// networkError is a failure on the way to the origin or back: of the lookup, the
// connection, TLS, a proxy or a transfer. An answer of the origin is never one.
type networkError struct{ error }

func (e networkError) Unwrap() error { return e.error }

// Error says in words for users what failed.
func (e networkError) Error() string {
	var (
		lookup *net.DNSError
		op     *net.OpError
		host   x509.HostnameError
		cert   x509.CertificateInvalidError
		limit  net.Error
		reason = innermostReason(e.error)
	)
	switch {
	case errors.As(e.error, &op) && op.Op == "proxyconnect":
		return fmt.Sprintf("the proxy of http_proxy or https_proxy: %v", networkError{op.Err})
	case errors.Is(e.error, http.ErrSchemeMismatch):
		return "the server speaks http: write http://"
	case errors.As(e.error, new(tls.RecordHeaderError)):
		return "the server does not speak https: write http:// if it speaks http"
	case errors.As(e.error, new(x509.UnknownAuthorityError)):
		return "no trusted authority signed the server's certificate (--ca-cert FILE adds an authority)"
	case errors.As(e.error, &host):
		names := fmt.Sprintf("%.200s", printable(strings.Join(host.Certificate.DNSNames, ", ")))
		return fmt.Sprintf("the server's certificate is for %s, not for %s", cmp.Or(names, "another host"), host.Host)
	case errors.As(e.error, &cert) && cert.Reason == x509.Expired:
		return fmt.Sprintf("the server's certificate is valid only from %s to %s (is this machine's clock right?)",
			cert.Cert.NotBefore.Format(time.DateOnly), cert.Cert.NotAfter.Format(time.DateOnly))
	case errors.As(e.error, new(*tls.CertificateVerificationError)):
		return "the server's certificate is not valid: " + reason
	case errors.As(e.error, &lookup) && lookup.IsNotFound:
		return "cannot find host " + lookup.Name
	case errors.As(e.error, &lookup):
		return "cannot look up host " + lookup.Name + ": no name server has an answer (is the network up?)"
	case op != nil && op.Op == "dial" && op.Addr != nil:
		if op.Timeout() {
			reason = fmt.Sprintf("no answer within %v", connectTimeout)
		}
		return fmt.Sprintf("cannot connect to %v: %s", op.Addr, reason)
	case op != nil && op.Op == "remote error":
		return "the server ended the TLS connection: " + reason
	case op != nil:
		return "the connection broke: " + reason
	case errors.Is(e.error, io.EOF):
		return "the server closed the connection without an answer"
	case errors.Is(e.error, io.ErrUnexpectedEOF):
		return "the server closed the connection within its answer"
	case reason == "TLS handshake timeout": // net/http exports no type for it
		return fmt.Sprintf("the server did not agree on TLS within %v (does it speak https?)", connectTimeout)
	case errors.As(e.error, &limit) && limit.Timeout():
		return fmt.Sprintf("the server did not answer within %v", headerTimeout)
	case strings.Contains(e.error.Error(), "HTTP/1.x transport connection broken"): // nor for this
		return "the server's answer is not valid HTTP: " + reason
	}
	return "the exchange with the server failed: " + reason
}

// innermostReason is the text of the last error in err's chain without its package.
func innermostReason(err error) string {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	packages := strings.NewReplacer("net/http: ", "", "http: ", "", "http2: ", "", "tls: ", "", "x509: ", "")
	return fmt.Sprintf("%.200s", packages.Replace(err.Error()))
}

// statusError is an answer that is neither the file nor a redirect.
type statusError struct {
	code       int
	proxy      bool          // a proxy answered, and did not connect to the origin
	redirected bool          // the origin redirected to the server that answered
	after      time.Duration // Retry-After, capped; 0 if there is none
}

func (e statusError) Error() string {
	who := "the origin"
	switch {
	case e.proxy:
		who = "the proxy"
	case e.redirected:
		who = "the server that the origin redirects to"
	}
	advice := map[int]string{
		http.StatusFound:             "(and names no other URL)",
		http.StatusUnauthorized:      "(give a login, or correct it: --bearer-file, --header or ~/.netrc)",
		http.StatusForbidden:         "(the URL or the login gives no access)",
		http.StatusNotFound:          "(check the URL)",
		http.StatusProxyAuthRequired: "(put user and password into the URL of http_proxy or https_proxy)",
	}[e.code]
	return strings.TrimSpace(fmt.Sprintf("%s answered %d %s %s", who, e.code, http.StatusText(e.code), advice))
}

// refusalOf returns the error for an answer that is of no use.
func refusalOf(resp *http.Response) statusError {
	return statusError{
		code:       resp.StatusCode,
		redirected: resp.Request != nil && resp.Request.Response != nil,
		after:      parseRetryAfter(resp.Header, time.Now()),
	}
}

// parseRetryAfter reads Retry-After: seconds, or a date (RFC 9110 section 10.2.3).
// It compares a date with the origin's clock, which Date shows, else with now.
func parseRetryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := parseDigits(value); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(seconds, int64(maxRetryAfter/time.Second))) * time.Second
	}
	until, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(until.Sub(now), 0), maxRetryAfter)
}

// retryAdvice reports whether another attempt may succeed after one that ended with
// err, and how long the origin asked to wait before it: at most maxRetryAfter, 0 if
// it did not ask. The end of a context is final, and so is every error that comes
// neither from an Origin nor from its bodies.
func retryAdvice(err error) (retry bool, after time.Duration) {
	var status statusError
	switch {
	case errors.Is(err, errChanged), errors.Is(err, errBadRedirect):
		return false, 0
	case errors.As(err, &status):
		if redirectedRefusal(err) || isTemporary(status.code) {
			return true, status.after
		}
		return false, 0
	case errors.Is(err, errShortBody), errors.Is(err, errStalled):
		return true, 0
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.Is(err, http.ErrSchemeMismatch):
		return false, 0 // The user has to trust the certificate, or correct the URL.
	}
	return errors.As(err, new(networkError)), 0
}

// isTemporary reports whether a status is about the moment, not about the request.
func isTemporary(code int) bool {
	lasting := []int{http.StatusNotImplemented, http.StatusHTTPVersionNotSupported}
	return code == http.StatusRequestTimeout || code == http.StatusTooManyRequests ||
		code/100 == 5 && !slices.Contains(lasting, code)
}
