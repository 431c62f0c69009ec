// origin_redirect.go judges redirects: where one may lead, and what is sent to the
// server it leads to. Headers and logins go only to the origin that the source
// names, and never again once a redirect has left it.

package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
)

// httpClient returns the one client of the process, which trusts a.roots and
// sends what origins may have.
func (a *credentials) httpClient() *http.Client {
	client := newHTTPClient()
	client.Transport.(*redirectChecker).TLSClientConfig = &tls.Config{RootCAs: a.roots}
	client.Transport = &credentialsTransport{base: client.Transport, access: a}
	return client
}

// credentialsTransport adds to every request for a source what its origin may have,
// but to none after a redirect that left that origin: scheme, host or port.
//
// This is the Fetch standard's rule for Authorization (HTTP-redirect fetch),
// kept for every header of the user's, as RFC 9110 section 15.4 would have it.
// net/http's own is weaker: it knows only a few headers, and gives them to
// subdomains, to other ports, and to http after https. Nor is anything sent once
// the way has led elsewhere and back: the address there is then a stranger's
// choice. The netrc has no say in a redirect, for a server could otherwise log
// the user in wherever it likes.
//
// INVARIANT: the http.Client above never sees the headers, so it cannot copy
// them.
type credentialsTransport struct {
	base   http.RoundTripper
	access *credentials
}

// RoundTrip implements http.RoundTripper.
//
// REQUIRES: a request that no redirect led to is for a source
func (t *credentialsTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := req.WithContext(req.Context())
	sent.Header = req.Header.Clone()
	if source, ok := stayedAtOrigin(req); ok {
		maps.Copy(sent.Header, t.access.headerFor(source))
	}
	resp, err := t.base.RoundTrip(sent)
	if err != nil {
		return nil, withTrustAdvice(err)
	}
	resp.Request = req
	return resp, nil
}

// CloseIdleConnections lets http.Client reach the transport below.
func (t *credentialsTransport) CloseIdleConnections() {
	(&http.Client{Transport: t.base}).CloseIdleConnections()
}

// stayedAtOrigin returns the URL that the redirects to req began at, and whether
// all of them are for its origin.
func stayedAtOrigin(req *http.Request) (source *url.URL, ok bool) {
	if req.Response == nil {
		return req.URL, true
	}
	source, ok = stayedAtOrigin(req.Response.Request)
	return source, ok && sameOrigin(source, req.URL)
}

// sameOrigin compares scheme, host and port (RFC 6454 section 5).
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && effectivePort(a) == effectivePort(b)
}

func effectivePort(u *url.URL) string {
	if port := u.Port(); port != "" {
		return port
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}

// withTrustAdvice says what to do about a certificate of an unknown authority.
func withTrustAdvice(err error) error {
	if errors.As(err, new(x509.UnknownAuthorityError)) {
		return fmt.Errorf("%w (--ca-cert FILE adds an authority to those that are trusted)", err)
	}
	return err
}

// errBadRedirect is a redirect that no request can follow.
var errBadRedirect = errors.New("the origin redirects to nowhere")

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
