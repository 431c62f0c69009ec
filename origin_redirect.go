// origin_redirect.go is the one place that judges redirects: which of them the
// client follows, which headers it sends to the next server, and whether a refusal
// behind a redirect may come from an expired signed URL. Headers and logins go only
// to the origin that the source names, and never again after a redirect left it.

package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// maxRedirects is the limit that net/http has by default.
const maxRedirects = 10

// errBadRedirect marks a redirect that the client does not follow.
var errBadRedirect = errors.New("the origin redirects to nowhere")

// newClientOver returns a client that sends c's headers and logins by the rules of
// this file, and requests over base.
func newClientOver(base http.RoundTripper, c *credentials) *http.Client {
	return &http.Client{Transport: &redirectTransport{base: base, credentials: c}, CheckRedirect: checkRedirect}
}

// checkRedirect refuses the tenth redirect in a row, and one to no HTTP URL. It removes
// the Referer that net/http has set: its secrets are not for the next host.
func checkRedirect(req *http.Request, via []*http.Request) error {
	req.Header.Del("Referer")
	switch {
	case len(via) >= maxRedirects:
		return fmt.Errorf("%w: %d redirects in a row reach no file", errBadRedirect, len(via))
	case req.URL.Scheme != "http" && req.URL.Scheme != "https":
		return fmt.Errorf("%w: scheme %q is neither http nor https", errBadRedirect, req.URL.Scheme)
	case req.URL.Hostname() == "":
		return fmt.Errorf("%w: the URL has no host", errBadRedirect)
	}
	return nil
}

// redirectTransport adds the credentials to each request for a source, and to none
// after a redirect that left the source's origin: its scheme, host and port.
//
// This is the rule of the Fetch standard for Authorization (HTTP-redirect fetch),
// applied to every header of the user's, as RFC 9110 section 15.4 recommends.
// net/http's own rule is weaker: it knows only a few headers, and sends them to
// subdomains, to other ports, and to http after https. A redirect back to the origin
// gets no credentials either: another server chose its URL. The netrc is not asked
// for a redirect's host: a server could log the user in anywhere.
//
// INVARIANT: the http.Client above never sees the headers, so it cannot copy them.
type redirectTransport struct {
	base        http.RoundTripper
	credentials *credentials
}

// RoundTrip implements http.RoundTripper. It refuses a Location that is no URL,
// before net/http does with an error that quotes it, secrets included.
//
// REQUIRES: a request that no redirect caused is for a source
func (t *redirectTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := req.Clone(req.Context())
	if source, ok := stayedAtOrigin(req); ok {
		maps.Copy(sent.Header, t.credentials.headerFor(source))
	}
	resp, err := t.base.RoundTrip(sent)
	if err != nil {
		return nil, err
	}
	if _, err := resp.Location(); resp.StatusCode/100 == 3 && err != nil && err != http.ErrNoLocation {
		resp.Body.Close()
		return nil, fmt.Errorf("%w: its Location is no URL", errBadRedirect)
	}
	resp.Request = req
	return resp, nil
}

// CloseIdleConnections passes the call of http.Client on to the transport below.
func (t *redirectTransport) CloseIdleConnections() {
	(&http.Client{Transport: t.base}).CloseIdleConnections()
}

// stayedAtOrigin returns the URL at which the redirects to req began, and whether
// all of them stayed at its origin.
func stayedAtOrigin(req *http.Request) (source *url.URL, ok bool) {
	if req.Response == nil {
		return req.URL, true
	}
	source, ok = stayedAtOrigin(req.Response.Request)
	return source, ok && sameOrigin(source, req.URL)
}

// sameOrigin compares scheme, host and port (RFC 6454 section 5).
func sameOrigin(a, b *url.URL) bool {
	defaults := map[string]string{"http": "80", "https": "443"}
	portA, portB := cmp.Or(a.Port(), defaults[a.Scheme]), cmp.Or(b.Port(), defaults[b.Scheme])
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && portA == portB
}

// redirectedRefusal reports whether err may mean that a signed URL has expired: a
// server behind a redirect refused the request. Another attempt helps, because it
// starts at the origin, which signs a new URL. The caller gives up after several
// refusals in a row. Google's storage refuses an expired URL with 400, Amazon's
// with 403.
func redirectedRefusal(err error) bool {
	var status statusError
	refusals := []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden}
	return errors.As(err, &status) && status.redirected && slices.Contains(refusals, status.code)
}
