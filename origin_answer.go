// origin_answer.go judges the header of an answer before the program believes a byte
// of its body: is it the range that was requested, of the pinned version, unencoded?
// If not, may another attempt succeed? It reads headers and errors, and makes no
// request.

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"mime"
	"net/http"
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
// whole file, because a server may ignore Range (section 14.2). A 412 or 416 may show a
// change of the file. The headers of all other answers describe a page of text.
func checkAnswer(resp *http.Response, obj Object, r byteRange) (held byteRange, err error) {
	size, unsatisfied := unsatisfiedSize(resp)
	switch {
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusPartialContent:
		return checkFileAnswer(resp, obj, r)
	case resp.StatusCode == http.StatusPreconditionFailed && (obj.ETag != "" || obj.LastModified != ""):
		return byteRange{}, fmt.Errorf("%w: the origin no longer has the version that was requested", errChanged)
	case unsatisfied && size != obj.Size:
		return byteRange{}, obj.changedTo(Object{Size: size})
	}
	return byteRange{}, refusalOf(resp)
}

// checkFileAnswer is checkAnswer for a 200 or 206.
func checkFileAnswer(resp *http.Response, obj Object, r byteRange) (held byteRange, err error) {
	whole := resp.StatusCode == http.StatusOK
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

// maxRetryAfter caps Retry-After at the default --read-timeout: after that the
// reader is gone, and a longer pause serves nobody.
const maxRetryAfter = 60 * time.Second

// networkError is a failure on the way to the origin or back: of the lookup, the
// connection, TLS, a proxy, a redirect or a transfer. Some of them are final.
type networkError struct{ error }

func (e networkError) Unwrap() error { return e.error }

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
	return fmt.Sprintf("%s answered %d %s", who, e.code, http.StatusText(e.code))
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
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return code >= 500 && code <= 599
}
