// origin_answer.go judges the header of an answer before the program believes a byte of its body:
// is it the range that was requested, of the pinned version, unencoded? If not, may another attempt
// succeed? It reads headers and errors, and makes no request.

package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// objectOf returns the Object that the answer to a request for the first byte names.
func objectOf(a *webAnswer) (Object, error) {
	obj := validatorsOf(a)
	size, unsatisfied := unsatisfiedSize(a)
	switch {
	case a.StatusCode == http.StatusOK, a.StatusCode == http.StatusPartialContent:
		held, err := partOf(a)
		if err != nil {
			return Object{}, err
		}
		if held.size < 0 {
			return Object{}, errNoSize
		}
		obj.Size = held.size
		obj.Ranges = !held.whole && held.off == 0
	case unsatisfied && size == 0:
		obj.Ranges = true // RFC 9110 section 15.5.17: an empty file has no first byte.
	case a.StatusCode == http.StatusBadRequest && a.source.Scheme == "http" && !a.moved:
		return Object{}, fmt.Errorf("%w (if it serves https, write https://)", refusalOf(a))
	default:
		return Object{}, refusalOf(a)
	}
	obj.coding = codingOf(a)
	if t, err := http.ParseTime(obj.LastModified); err == nil && 1970 <= t.Year() && t.Year() < 2262 {
		obj.ModTime = t
	}
	obj.Filename = dispositionFilename(a.Header.Get("Content-Disposition"))
	obj.target = new(atomic.Pointer[hop])
	if at := a.hop; at.moved {
		obj.final = at.url
		obj.target.Store(&at)
	}
	return obj, nil
}

// validatorsOf returns what the header of an answer says about the file's version.
func validatorsOf(a *webAnswer) Object {
	tag := a.Header.Get("ETag")
	obj := Object{ETag: strongTag.FindString(tag), LastModified: a.Header.Get("Last-Modified"), server: hostOf(a.url)}
	if weak, isWeak := strings.CutPrefix(tag, "W/"); isWeak {
		obj.weakETag = strongTag.FindString(weak)
	}
	modified, err1 := http.ParseTime(obj.LastModified)
	answered, err2 := http.ParseTime(a.Header.Get("Date"))
	switch age := answered.Sub(modified); {
	case err1 != nil || err2 != nil:
	case age >= 2*time.Second:
		obj.dated = dateStrong
	case -time.Second <= age && age <= time.Second:
		obj.dated = dateNow
	}
	kind, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type"))
	obj.page = kind == "text/html"
	return obj
}

// strongTag finds a strong entity tag, quotes included. It does not find a weak tag, which promises no equal
// bytes, and one with characters that RFC 9110 section 8.8.3 forbids: servers do not recognise it in If-Match.
var strongTag = regexp.MustCompile(`^"[^\x00-\x20"\x7f]*"$`)

// codingOf returns the Content-Encoding of an answer, "" where it names none. The request asked for
// none, so it names what is stored: size and ranges are of that, and curl and wget save it.
func codingOf(a *webAnswer) string {
	coding := strings.TrimSpace(a.Header.Get("Content-Encoding"))
	if slices.Contains([]string{"identity", "none", "binary", "aws-chunked"}, strings.ToLower(coding)) {
		return ""
	}
	return coding
}

// judgeAnswer returns which bytes of obj the body of a holds, or an error if a is no answer to a
// request for r of obj. The body holds r.off. A 206 may begin before that, and end before r or
// after it (RFC 9110 section 15.3.7); a 200 is the whole file, because a server may ignore Range
// (section 14.2). Of the others, only a 416 says anything about the file.
func judgeAnswer(a *webAnswer, obj Object, r byteRange) (held bodyPart, err error) {
	answered := validatorsOf(a)
	size, unsatisfied := unsatisfiedSize(a)
	switch {
	case a.StatusCode == http.StatusOK, a.StatusCode == http.StatusPartialContent:
	case unsatisfied && size != obj.Size:
		return bodyPart{}, fmt.Errorf("%w: its size was %d and is %d bytes", errChanged, obj.Size, size)
	default:
		return bodyPart{}, refusalOf(a)
	}
	if held, err = partOf(a); err != nil {
		return bodyPart{}, err
	}
	if answered.Size = held.size; held.size < 0 {
		// Nothing contradicts obj.Size yet: the length shows when the body ends.
		if answered.Size = obj.Size; held.whole {
			held.end = obj.Size
		}
	}
	if err := obj.changedTo(answered); err != nil {
		return bodyPart{}, err
	}
	compared := obj.tag() != "" && answered.tag() != "" || obj.LastModified != "" && answered.LastModified != ""
	length := a.ContentLength // -1 for a chunked body
	switch {
	case held.whole && length < 0 && r.end < obj.Size && !compared:
		return bodyPart{}, fmt.Errorf("%w (treated as changed: asked for bytes %v, "+
			"the origin sent a whole file without its length or version)", errChanged, r)
	case held.off > r.off || held.end <= r.off || held.end > obj.Size:
		return bodyPart{}, fmt.Errorf("asked for bytes %v, the origin sent %v", r, held)
	case length > held.len():
		return bodyPart{}, fmt.Errorf("%w: %d bytes, not %d", errLongBody, length, held.len())
	case length >= 0 && length < held.len():
		return bodyPart{}, fmt.Errorf("%w: %d bytes, not %d", errShortBody, length, held.len())
	}
	return held, nil
}

// bodyPart is which bytes of a file a body holds.
type bodyPart struct {
	byteRange
	size  int64 // of the whole file, in bytes; -1: the answer does not say
	whole bool  // the body is the whole file, because the origin sent no range
}

// partOf returns which bytes the body of a 200 or 206 holds. A 200 whose Content-Range is
// of just the bytes that come is a 206 in all but name.
func partOf(a *webAnswer) (bodyPart, error) {
	kind, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type"))
	whole := bodyPart{byteRange{0, max(0, a.ContentLength)}, a.ContentLength, true}
	header := a.Header.Get("Content-Range")
	switch {
	case a.StatusCode == http.StatusOK && header == "":
		return whole, nil
	case a.StatusCode != http.StatusOK && kind == "multipart/byteranges":
		// RFC 9110 section 15.3.7.2 forbids it as an answer to a request for one range.
		return bodyPart{}, errors.New("the origin sent several parts (multipart/byteranges) where one was asked for")
	}
	held, size, err := parseContentRange(header)
	// A single byte may be the first one of more: that was asked for.
	if a.StatusCode == http.StatusOK && a.ContentLength > 1 && (err != nil || size == a.ContentLength) {
		return whole, nil
	}
	return bodyPart{held, size, false}, err
}

// contentRange finds the numbers of "bytes FIRST-LAST/SIZE" (RFC 9110 section 14.4), and no SIZE for
// '*'. Like curl and browsers it takes the unit in any case, and '=' or ':' and blanks after it.
var contentRange = regexp.MustCompile(`(?i)^\s*bytes[ \t=:]+\s*(\d+)\s*-\s*(\d+)\s*/\s*(?:(\d+)|\*)\s*$`)

// parseContentRange reads a Content-Range; size is -1 for '*'.
func parseContentRange(header string) (r byteRange, size int64, err error) {
	m := append(contentRange.FindStringSubmatch(header), "", "", "", "") // numbers that are not there
	first, err1 := parseDigits(m[1])
	last, err2 := parseDigits(m[2])
	size, err3 := parseDigits(cmp.Or(m[3], strconv.Itoa(math.MaxInt64)))
	if errors.Join(err1, err2, err3) != nil || first > last || last >= size {
		return byteRange{}, 0, fmt.Errorf("the origin's Content-Range is malformed: %s", strconv.Quote(foreign(strings.TrimSpace(header))))
	}
	if m[3] == "" {
		size = -1
	}
	return byteRange{first, last + 1}, size, nil
}

// unsatisfiedSize returns the size that a 416 gives as "Content-Range: bytes */SIZE".
func unsatisfiedSize(a *webAnswer) (size int64, ok bool) {
	unit, total, ok := strings.Cut(a.Header.Get("Content-Range"), "*/")
	size, err := parseDigits(strings.TrimSpace(total))
	isBytes := strings.EqualFold(strings.TrimRight(unit, " \t=:"), "bytes")
	return size, ok && isBytes && err == nil && a.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// parseDigits reads 1*DIGIT. Unlike strconv.ParseInt it accepts no sign.
func parseDigits(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// maxRetryAfter caps Retry-After: an origin that is back sooner than it said should not wait for its readers.
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
		silent unansweredError
		record tls.RecordHeaderError
		reason = innermostReason(e.error)
	)
	switch {
	case errors.As(e.error, &silent):
		return silent.Error()
	case errors.As(e.error, &op) && op.Op == "proxyconnect":
		return fmt.Sprintf("the proxy of http_proxy or https_proxy: %v", networkError{op.Err})
	case errors.As(e.error, &record) && string(record.RecordHeader[:]) == "HTTP/":
		return "the server speaks http: write http://"
	case errors.As(e.error, &record):
		return "the server does not speak https: write http:// if it speaks http"
	case errors.As(e.error, new(x509.UnknownAuthorityError)):
		return "no trusted authority signed the server's certificate (--ca-cert FILE adds an authority)"
	case errors.As(e.error, &host):
		names := foreign(strings.Join(host.Certificate.DNSNames, ", "))
		return fmt.Sprintf("the server's certificate is for %s, not for %s", cmp.Or(names, "another host"), foreign(host.Host))
	case errors.As(e.error, &cert) && cert.Reason == x509.Expired:
		return fmt.Sprintf("the server's certificate is valid only from %s to %s (is this machine's clock right?)",
			cert.Cert.NotBefore.Format(time.DateOnly), cert.Cert.NotAfter.Format(time.DateOnly))
	case errors.As(e.error, new(*tls.CertificateVerificationError)):
		return "the server's certificate is not valid: " + reason
	case errors.As(e.error, &lookup) && lookup.IsNotFound:
		return "cannot find host " + foreign(lookup.Name)
	case errors.As(e.error, &lookup):
		return "cannot look up host " + foreign(lookup.Name) + ": no name server has an answer (is the network up?)"
	case op != nil && op.Op == "dial" && op.Addr != nil:
		if op.Timeout() {
			reason = fmt.Sprintf("no answer within %v", connectTimeout)
		}
		return fmt.Sprintf("cannot connect to %v: %s", op.Addr, reason)
	case op != nil && op.Op == "remote error":
		return "the server ended the TLS connection: " + reason + tlsAdvice[reason]
	case op != nil:
		return "the connection broke: " + reason
	case errors.Is(e.error, io.EOF):
		return "the server closed the connection without an answer"
	case errors.Is(e.error, io.ErrUnexpectedEOF):
		return "the server closed the connection within its answer"
	case reason == "TLS handshake timeout": // net/http exports no type for it
		return fmt.Sprintf("the server did not agree on TLS within %v (does it speak https?)", connectTimeout)
	case errors.As(e.error, &limit) && limit.Timeout():
		return "the server did not answer in time"
	case strings.Contains(e.error.Error(), "HTTP/1.x transport connection broken"): // nor for this
		return "the server's answer is not valid HTTP: " + reason
	}
	return "the exchange with the server failed: " + reason
}

// tlsAdvice says what may help where a server refuses a handshake for one of these reasons.
var tlsAdvice = map[string]string{
	"handshake failure":              " (if it takes only the RSA key exchange, which is not safe: GODEBUG=tlsrsakex=1 allows it)",
	"protocol version not supported": " (its TLS is older than 1.2, and not safe)",
	"certificate required":           " (it wants a client certificate, which fsmount does not have)",
}

// innermostReason is the text of the last error in err's chain without its package.
func innermostReason(err error) string {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	packages := strings.NewReplacer("net/http: ", "", "http: ", "", "http2: ", "", "tls: ", "", "x509: ", "")
	return foreign(packages.Replace(err.Error()))
}

// statusError is an answer that is neither the file nor a redirect.
type statusError struct {
	code       int
	proxy      bool          // a proxy answered, and did not connect to the origin
	redirected bool          // the origin redirected to the server that answered
	fresh      bool          // --url-command gave the URL just before
	digest     bool          // it wants no login but Digest
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
	if e.digest {
		advice = "(it wants a Digest login, which fsmount does not know)"
	}
	return strings.TrimSpace(fmt.Sprintf("%s answered %d %s %s", who, e.code, http.StatusText(e.code), advice))
}

// refusalOf returns the error for an answer that is of no use.
func refusalOf(a *webAnswer) statusError {
	schemes := strings.ToLower(strings.Join(a.Header.Values("WWW-Authenticate"), ","))
	return statusError{
		code:       a.StatusCode,
		redirected: a.moved,
		fresh:      a.fresh,
		digest:     strings.Contains(schemes, "digest") && !strings.Contains(schemes, "basic") && !strings.Contains(schemes, "bearer"),
		after:      parseRetryAfter(a.Header, time.Now()),
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

// retryAdvice reports whether another attempt may succeed after one that ended with err, and how
// long the origin asked to wait before it: at most maxRetryAfter, 0 if it did not ask. The end of a
// context is final, and so is every error that comes neither from an Origin nor from its bodies.
func retryAdvice(err error) (retry bool, after time.Duration) {
	var status statusError
	switch {
	case err == nil, errors.Is(err, errChanged), errors.As(err, new(redirectError)):
		return false, 0
	case errors.Is(err, errCrowded):
		errors.As(err, &status)
		return true, status.after
	case errors.As(err, &status):
		// RFC 9110 gives Retry-After no meaning in a 403, but those who send it mean it.
		waits := status.code == http.StatusForbidden && status.after > 0
		if redirectedRefusal(err) || isTemporary(status.code) || waits {
			return true, status.after
		}
		return false, 0
	case errors.Is(err, errShortPart), errors.Is(err, errShortBody), errors.Is(err, errStalled), errors.Is(err, errUnproven),
		outOfDescriptors(err):
		return true, 0
	case errors.As(err, new(*tls.CertificateVerificationError)),
		errors.As(err, new(tls.RecordHeaderError)), tlsAdvice[innermostReason(err)] != "":
		return false, 0 // The user has to trust the server, or correct the URL.
	}
	return errors.As(err, new(networkError)), 0
}

// outOfDescriptors reports whether err passes as soon as a descriptor is closed.
func outOfDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// isTemporary reports whether a status is about the moment, not about the request.
func isTemporary(code int) bool {
	lasting := []int{http.StatusNotImplemented, http.StatusHTTPVersionNotSupported}
	return code == http.StatusRequestTimeout || code == http.StatusTooManyRequests ||
		code/100 == 5 && !slices.Contains(lasting, code)
}
