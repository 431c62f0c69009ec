// origin_answer.go judges an answer before a byte of its body is believed: is it the
// range that was requested, of the pinned version, unencoded? If not, is another
// attempt worth it? It only reads headers and errors; it makes no request.

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

// objectOf makes an Object of an answer to a request for the first byte.
func objectOf(resp *http.Response) (Object, error) {
	obj, err := sizeOf(resp)
	if err != nil {
		return Object{}, err
	}
	v := validatorsOf(resp.Header)
	v.Size, v.Ranges = obj.Size, obj.Ranges
	v.ModTime, _ = http.ParseTime(v.LastModified)
	v.Filename = dispositionFilename(resp.Header.Get("Content-Disposition"))
	return v, nil
}

// sizeOf finds Size and Ranges.
func sizeOf(resp *http.Response) (Object, error) {
	switch resp.StatusCode {
	case http.StatusPartialContent:
		got, size, err := partOf(resp)
		return Object{Size: size, Ranges: got == byteRange{0, 1}}, err
	case http.StatusOK:
		if err := checkEncoding(resp); err != nil {
			return Object{}, err
		}
		if resp.ContentLength < 0 {
			return Object{}, errNoSize
		}
		return Object{Size: resp.ContentLength}, nil
	case http.StatusRequestedRangeNotSatisfiable:
		// RFC 9110 section 15.5.17: an empty file has no first byte.
		if size, ok := unsatisfiedSize(resp.Header.Get("Content-Range")); ok && size == 0 {
			return Object{Size: 0, Ranges: true}, nil
		}
	}
	return Object{}, refusalOf(resp)
}

// validatorsOf is what the header of an answer says about the file's version.
func validatorsOf(h http.Header) Object {
	return Object{
		ETag:          strongETag(h.Get("ETag")),
		weakETag:      weakETag(h.Get("ETag")),
		LastModified:  h.Get("Last-Modified"),
		dateInIfRange: h.Get("ETag") == "" && dateIsStrong(h),
	}
}

// dateIsStrong reports whether Last-Modified names one version only: it was a
// second or more in the past when the answer was made, so that a change after
// it has another date (RFC 9110 section 8.8.2.2).
func dateIsStrong(h http.Header) bool {
	modified, err1 := http.ParseTime(h.Get("Last-Modified"))
	made, err2 := http.ParseTime(h.Get("Date"))
	return err1 == nil && err2 == nil && made.Sub(modified) >= time.Second
}

// checkAnswer reports why resp is not r of obj, or nil. A status that is no
// success says nothing about the file by its other fields: they describe a page
// of text.
func checkAnswer(resp *http.Response, obj Object, r byteRange) error {
	switch resp.StatusCode {
	case http.StatusPartialContent:
		return checkPartial(resp, obj, r)
	case http.StatusOK:
		return checkWhole(resp, obj, r)
	case http.StatusPreconditionFailed:
		if obj.ETag != "" || obj.LastModified != "" {
			return fmt.Errorf("%w: the origin no longer has what it had", errChanged)
		}
	case http.StatusRequestedRangeNotSatisfiable:
		size, ok := unsatisfiedSize(resp.Header.Get("Content-Range"))
		if ok && size != obj.Size {
			return obj.changedTo(Object{Size: size})
		}
	}
	return refusalOf(resp)
}

// checkPartial checks a 206 (RFC 9110 section 15.3.7). It may hold less than was
// asked for, from the same start.
func checkPartial(resp *http.Response, obj Object, r byteRange) error {
	got, size, err := partOf(resp)
	if err != nil {
		return err
	}
	answer := validatorsOf(resp.Header)
	answer.Size = size
	if err := obj.changedTo(answer); err != nil {
		return err
	}
	if err := obj.missingValidator(answer); err != nil {
		return err
	}
	if got.off != r.off || got.end > r.end {
		return fmt.Errorf("asked for bytes %v, the origin sent %v", r, got)
	}
	return checkLength(resp, got.len())
}

// checkWhole checks a 200, which is the whole file: a server may ignore Range
// (RFC 9110 section 14.2). One that tells neither its length nor a validator
// could be of any version, unless it is read to its end, where its length
// shows.
func checkWhole(resp *http.Response, obj Object, r byteRange) error {
	if err := checkEncoding(resp); err != nil {
		return err
	}
	answer := validatorsOf(resp.Header)
	answer.Size = resp.ContentLength
	if answer.Size < 0 {
		answer.Size = obj.Size
	}
	if err := obj.changedTo(answer); err != nil {
		return err
	}
	if err := obj.missingValidator(answer); err != nil {
		return err
	}
	if resp.ContentLength < 0 && r.end != obj.Size && !obj.sharesValidator(answer) {
		return fmt.Errorf("%w, or so it must be taken: asked for bytes %v, "+
			"the origin sent all of a file of unknown length and version", errChanged, r)
	}
	return nil
}

// partOf returns which bytes, of how many, a 206 holds.
func partOf(resp *http.Response) (r byteRange, size int64, err error) {
	if err := checkEncoding(resp); err != nil {
		return byteRange{}, 0, err
	}
	// RFC 9110 section 15.3.7.2: no answer to a request for one range.
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind == "multipart/byteranges" {
		return byteRange{}, 0, errors.New("the origin sent several parts (multipart/byteranges) where one was asked for")
	}
	return parseContentRange(resp.Header.Get("Content-Range"))
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

// unsatisfiedSize reads "bytes */SIZE", the Content-Range of a 416.
func unsatisfiedSize(header string) (size int64, ok bool) {
	total, ok := strings.CutPrefix(header, "bytes */")
	if !ok {
		return 0, false
	}
	size, err := parseDigits(total)
	return size, err == nil
}

// parseDigits reads 1*DIGIT: no sign, unlike strconv.
func parseDigits(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// strongETag returns a strong entity tag, quotes and all. It is "" for a weak
// one, which promises no equal bytes, and for one with characters that no tag
// may hold (RFC 9110 section 8.8.3), which servers do not know again in If-Match.
func strongETag(header string) string {
	tag, opened := strings.CutPrefix(header, `"`)
	tag, closed := strings.CutSuffix(tag, `"`)
	if !opened || !closed || strings.ContainsFunc(tag, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
		return ""
	}
	return header
}

// weakETag returns the opaque part of a weak entity tag, "" for a strong one.
func weakETag(header string) string {
	tag, weak := strings.CutPrefix(header, "W/")
	if !weak {
		return ""
	}
	return strongETag(tag)
}

// maxRetryAfter caps what an origin may ask for by Retry-After: as long as a
// reader waits by default. A reader is gone after that, so that a longer pause
// would serve nobody.
const maxRetryAfter = 60 * time.Second

// networkError is a failure on the way to the origin or back: of the lookup,
// the connection, TLS, a proxy or a transfer. No answer of the origin is one.
type networkError struct{ error }

func (e networkError) Unwrap() error { return e.error }

// statusError is an answer that is neither the file nor a redirect.
type statusError struct {
	code       int
	redirected bool          // the origin itself had redirected to who answered
	after      time.Duration // Retry-After, capped; 0 if there is none
}

func (e statusError) Error() string {
	who := "the origin"
	if e.redirected {
		who = "the server that the origin redirects to"
	}
	return fmt.Sprintf("%s answered %d %s", who, e.code, http.StatusText(e.code))
}

// proxyError is the refusal of a proxy to connect to the origin.
type proxyError struct{ code int }

func (e proxyError) Error() string {
	return fmt.Sprintf("the proxy answered %d %s", e.code, http.StatusText(e.code))
}

// refusalOf makes an error of an answer that is of no use.
func refusalOf(resp *http.Response) statusError {
	return statusError{
		code:       resp.StatusCode,
		redirected: resp.Request != nil && resp.Request.Response != nil,
		after:      parseRetryAfter(resp.Header, time.Now()),
	}
}

// retryAdvice reports whether the attempt that ended with err may succeed if it
// is made again, and how long the origin asked to be left alone before that: 0
// where it did not, maxRetryAfter at most. Errors that are not an Origin's or
// its bodies' are for good, and so is the end of a context.
func retryAdvice(err error) (retry bool, after time.Duration) {
	var status statusError
	var proxy proxyError
	switch {
	case errors.Is(err, errChanged), errors.Is(err, errBadRedirect):
		return false, 0
	case redirectedRefusal(err):
		errors.As(err, &status)
		return true, status.after
	case errors.As(err, &status):
		if !passingStatus(status.code) {
			return false, 0
		}
		return true, status.after
	case errors.As(err, &proxy):
		return passingStatus(proxy.code), 0
	case errors.Is(err, errShortBody), errors.Is(err, errStalled):
		return true, 0
	}
	return errors.As(err, new(networkError)) && !isCertificateError(err), 0
}

// passingStatus reports whether an answer speaks of the moment, not of the
// request.
func passingStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return code >= 500 && code <= 599
}

// isCertificateError reports whether err says that the server is not who it should be:
// that is for people to mend.
func isCertificateError(err error) bool {
	return errors.As(err, new(*tls.CertificateVerificationError)) || errors.Is(err, http.ErrSchemeMismatch)
}

// parseRetryAfter reads Retry-After: seconds, or a date (RFC 9110 section
// 10.2.3). A date is compared with the origin's own clock where it says what
// that shows, else with now.
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
