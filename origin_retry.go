// origin_retry.go tells the failures of an origin that may pass from those that
// last. It never waits and never counts: who retries does, for it knows what
// progress was made.

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

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
	return errors.As(err, new(networkError)) && !isMistrust(err), 0
}

// redirectedRefusal reports whether err is that of a signed URL that may have
// expired: of who answered for the origin, behind a redirect. The next attempt
// starts at the origin, which signs anew; if it is refused again, time and again,
// the fault is elsewhere. 400 is what Google's storage says of such a URL, 403
// Amazon's.
func redirectedRefusal(err error) bool {
	var status statusError
	if !errors.As(err, &status) || !status.redirected {
		return false
	}
	switch status.code {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return true
	}
	return false
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

// isMistrust reports whether err says that the server is not who it should be:
// that is for people to mend.
func isMistrust(err error) bool {
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
