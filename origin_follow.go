// origin_follow.go sends a request and follows its redirects. It decides which of them are followed,
// which headers each server gets, and how long a server may be silent before its header. Headers and
// logins go only to the origin that the source names, and never again after a redirect left it.

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxRedirects = 10 // the limit that net/http has by default
	// sendsMax is how many connections one request may use up, as each ends without an
	// answer: net/http sends a request again for ever.
	sendsMax = 3
	// finishBytes of a body that nobody needs are received in finishTime: an announced body may never come.
	finishBytes = 4 << 10
	finishTime  = 200 * time.Millisecond
	lateMax     = 4 * time.Minute // how long an answer may take, even if a second request has none either
)

// redirectError says where a redirect leads that is not followed.
type redirectError struct{ where string }

func (e redirectError) Error() string { return "the origin redirects " + e.where }

// unansweredError ends a request whose header does not come.
type unansweredError struct {
	within time.Duration
	sends  int // if it is not 0, so many connections ended without an answer
}

// Timeout says, as net.Error does, that the connection may be dead.
func (e unansweredError) Timeout() bool { return true }

func (e unansweredError) Error() string {
	if e.sends > 0 {
		return fmt.Sprintf("the server ended %d connections in a row without an answer", e.sends)
	}
	return fmt.Sprintf("the server did not answer within %v", e.within)
}

// hop is a request of a chain of redirects, and what the chain says about it.
type hop struct {
	url    *url.URL
	source *url.URL     // at which the chain began
	reach  addressClass // of the source's address
	moved  bool         // a redirect led here
	left   bool         // a redirect, or --url-command, left the source's origin
	fresh  bool         // --url-command gave the URL just before
	jar    http.CookieJar
}

// startAt returns the hop that begins a chain.
func startAt(source *url.URL) hop {
	jar, _ := cookiejar.New(nil) // it returns no error
	h := hop{url: source, source: source, jar: jar}
	if address, err := netip.ParseAddr(source.Hostname()); err == nil {
		h.reach = classOf(address)
	}
	return h
}

// webAnswer is the answer at the end of a chain. Whoever has it calls finish or cancel, or closes a body that does.
type webAnswer struct {
	*http.Response
	hop
	took   time.Duration   // until the header came
	ctx    context.Context // of the request; covers the body
	cancel context.CancelCauseFunc
}

// finish receives a small body to its end, which keeps the connection and costs less than the handshakes of another
// one, and closes it. BLOCKS until the body ended, at most finishTime.
func (a *webAnswer) finish() {
	limit := time.AfterFunc(finishTime, func() { a.cancel(nil) })
	defer limit.Stop()
	if a.ContentLength <= finishBytes {
		io.CopyN(io.Discard, a.Body, finishBytes)
	}
	a.Body.Close()
	a.cancel(nil)
}

// follow sends a request with header for h and follows the redirects, to the first answer that is none.
// A server that is silent before its header for longer than limit in any one phase ends it; after the
// request was sent, late is called instead, if it is not nil, again and again until lateMax.
//
// A refused redirect is a redirectError, a failure of the network a networkError. No error shows more of a URL than
// its host. BLOCKS until the header arrived; wakes on the end of ctx, and on silence.
func (c *webClient) follow(ctx context.Context, h hop, header http.Header, http1 bool,
	limit time.Duration, late func(end context.CancelCauseFunc)) (*webAnswer, error) {
	begun := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	for range maxRedirects {
		resp, err := c.exchange(ctx, &h, header, http1, newHeaderAlarm(limit, cancel, late))
		switch {
		case err != nil:
			err = h.errorOf(ctx, err)
		case !isRedirect(resp):
			return &webAnswer{resp, h, time.Since(begun), ctx, cancel}, nil
		default:
			resp.Body.Close() // a body that is announced may never come
			h, err = c.next(h, resp)
		}
		if err != nil {
			cancel(nil)
			return nil, err
		}
	}
	cancel(nil)
	return nil, redirectError{fmt.Sprintf("%d times in a row, and to no file", maxRedirects)}
}

// exchange sends one request and returns its answer, whatever it is. It learns the class of the source's address.
// BLOCKS until the header arrived; wakes on the end of ctx, which s may cause.
func (c *webClient) exchange(ctx context.Context, h *hop, header http.Header, http1 bool, s *headerAlarm) (*http.Response, error) {
	defer s.stop()
	proxied, reach, err := c.reachOf(*h)
	if err != nil {
		return nil, err
	}
	trace := &httptrace.ClientTrace{ // without Got1xxResponse, net/http bounds the interim answers
		ConnectDone:      func(string, string, error) { s.restart(time.Now()) },
		TLSHandshakeDone: func(tls.ConnectionState, error) { s.restart(time.Now()) },
		GotConn: func(info httptrace.GotConnInfo) {
			s.sent()
			useConn(ctx, info.Conn)
			if at, err := netip.ParseAddrPort(info.Conn.RemoteAddr().String()); err == nil && !h.moved && !proxied {
				h.reach = classOf(at.Addr())
			}
		},
	}
	req := c.requestFor(httptrace.WithClientTrace(ctx, trace), *h, header)
	_, refused := c.http1.Load(hostOf(h.url))
	http1 = http1 || refused
	resp, err := c.transport(route{reach, http1}).RoundTrip(req)
	// net/http has no other sign of it: the error code of a stream, or of a GOAWAY.
	if err != nil && !http1 && strings.Contains(err.Error(), "HTTP_1_1_REQUIRED") {
		c.http1.Store(hostOf(h.url), true)
		resp, err = c.transport(route{reach, true}).RoundTrip(req)
	}
	return resp, err
}

// reachOf returns whether a proxy gets h's request, and which addresses the connection
// may have. Of a request to a proxy only an address that the URL names can be checked.
func (c *webClient) reachOf(h hop) (proxied bool, reach addressClass, err error) {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: h.url})
	proxied = proxy != nil && err == nil
	switch {
	case !h.moved, c.allow.private:
		return proxied, anyAddress, nil
	case !proxied:
		return false, h.reach, nil
	}
	if address, parseErr := netip.ParseAddr(h.url.Hostname()); parseErr == nil {
		err = h.reach.check(address)
	}
	return true, anyAddress, err
}

// requestFor returns h's request. The user's headers and login are for the source's
// origin, its scheme, host and port, and for no server after a redirect that left it.
//
// This is the rule of the Fetch standard for Authorization (HTTP-redirect fetch), applied to every
// header of the user's, as RFC 9110 section 15.4 recommends, except User-Agent, which is no secret
// and which some servers want. A redirect back to the origin gets none either: another server chose
// its URL. The netrc is not asked for a redirect's host: a server could log the user in anywhere.
func (c *webClient) requestFor(ctx context.Context, h hop, header http.Header) *http.Request {
	u := *h.url
	u.User = nil
	req := (&http.Request{URL: &u, Header: header.Clone()}).WithContext(ctx)
	req.Header.Set("User-Agent", cmp.Or(c.credentials.header.Get("User-Agent"), "fsmount"))
	if !h.left {
		maps.Copy(req.Header, c.credentials.headerFor(h.source))
	}
	for _, cookie := range h.jar.Cookies(h.url) {
		req.AddCookie(cookie)
	}
	return req
}

func isRedirect(resp *http.Response) bool {
	codes := []int{301, 302, 303, 307, 308} // RFC 9110 section 15.4
	return slices.Contains(codes, resp.StatusCode) && resp.Header.Get("Location") != ""
}

// next returns the hop to which resp, the answer to h, redirects.
func (c *webClient) next(h hop, resp *http.Response) (hop, error) {
	u, err := resolveURL(h.url, resp.Header.Get("Location"))
	switch {
	case err != nil:
		return h, redirectError{"to nowhere: " + err.Error()}
	case h.url.Scheme == "https" && u.Scheme == "http" && !c.allow.plain:
		return h, redirectError{fmt.Sprintf("from https to http, at %s (--allow-redirect http allows it)", foreign(u.Host))}
	}
	cookies := resp.Cookies()
	for _, cookie := range cookies {
		cookie.Domain = "" // for its host alone: no list of public suffixes is needed then
	}
	h.jar.SetCookies(h.url, cookies)
	h.left = h.left || hostOf(h.source) != hostOf(u)
	h.url, h.moved = u, true
	return h, nil
}

// errorOf returns what the user reads of err, which ended h's request.
func (h hop) errorOf(ctx context.Context, err error) error {
	var bad redirectError
	cause := context.Cause(ctx)
	switch {
	case errors.As(err, &bad):
		return bad
	case errors.As(err, new(statusError)): // of a proxy
		return err
	case errors.As(cause, new(unansweredError)):
		err = cause
	case cause != nil:
		return cause
	default:
		err = networkError{err}
	}
	if h.left && h.moved {
		err = fmt.Errorf("the origin redirects to %s: %w", foreign(h.url.Host), err)
	}
	return err
}

// hostOf returns scheme, host and port of u, the port spelled out: its origin (RFC 6454 section 5).
func hostOf(u *url.URL) string {
	defaults := map[string]string{"http": "80", "https": "443"}
	return fmt.Sprintf("%s://%s:%s", u.Scheme, strings.ToLower(u.Hostname()), cmp.Or(u.Port(), defaults[u.Scheme]))
}

// headerAlarm ends a request that gets no header. The time that it allows is for each phase:
// the connection to a proxy or server, TLS, the answer. net/http bounds some of these,
// and neither an answer whose header comes a byte at a time nor a proxy that says nothing.
type headerAlarm struct {
	// Write once, before any goroutine starts.
	limit time.Duration
	end   context.CancelCauseFunc
	late  func(end context.CancelCauseFunc) // nil: end

	// Read write.
	mu      sync.Mutex
	alarm   *time.Timer // GUARDED_BY(mu)
	stopped bool        // GUARDED_BY(mu)
	sends   int         // GUARDED_BY(mu); how often the request got a connection
	sentAt  time.Time   // GUARDED_BY(mu); the latest of these
}

// newHeaderAlarm starts the first phase.
func newHeaderAlarm(limit time.Duration, end context.CancelCauseFunc, late func(context.CancelCauseFunc)) *headerAlarm {
	s := &headerAlarm{limit: limit, end: end, late: late}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alarm = time.AfterFunc(limit, s.ring)
	return s
}

// ring is called when a phase took too long.
func (s *headerAlarm) ring() {
	s.mu.Lock()
	waited, sent, stopped := time.Since(s.sentAt), s.sends > 0, s.stopped
	s.mu.Unlock()
	switch {
	case stopped:
	case !sent || s.late == nil:
		s.end(networkError{unansweredError{within: s.limit}})
	case waited >= lateMax:
		s.end(networkError{unansweredError{within: lateMax}})
	default:
		rang := time.Now()
		s.late(s.end)
		s.restart(rang)
	}
}

// restart begins a phase at since, or goes on with the answer's, which ends after lateMax.
func (s *headerAlarm) restart(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := s.limit - time.Since(since)
	if s.sends > 0 && s.late != nil && s.limit < lateMax {
		limit = min(limit, lateMax-time.Since(s.sentAt))
	}
	if !s.stopped {
		s.alarm.Reset(limit)
	}
}

// sent begins the phase of the answer.
func (s *headerAlarm) sent() {
	s.mu.Lock()
	s.sends++
	sends := s.sends
	s.sentAt = time.Now()
	s.mu.Unlock()
	if sends > sendsMax {
		s.end(networkError{unansweredError{sends: sendsMax}})
	}
	s.restart(time.Now())
}

func (s *headerAlarm) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.alarm.Stop()
}

// redirectedRefusal reports whether err may be about the target of a redirect, or the URL of --url-command, not
// about the file: perhaps a signed URL has expired. Another attempt helps, because it starts at the origin, or
// runs the command, which signs a new URL. The caller gives up after several refusals in a row.
func redirectedRefusal(err error) bool {
	var status statusError
	return errors.As(err, &status) && (status.redirected || status.fresh) && status.code/100 == 4 && !isTemporary(status.code)
}
