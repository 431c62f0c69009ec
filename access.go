// access.go is what lets the program in where not everybody may: headers, a
// token, passwords, and the authorities whose certificates it trusts. It reads
// them once, at the start, and sends them to the origin that a source names and
// to no other, wherever that one redirects to. It never shows them: its errors
// name a file, a line, a place on the command line, and no word of what is
// there.

package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// access is what the user lets the program in with.
type access struct {
	header http.Header    // for the origin of every source, with Authorization or without
	netrc  netrc          // empty where header has Authorization
	roots  *x509.CertPool // nil: the system's
}

// loadAccess reads what opts name, and the netrc where they leave it a say.
func loadAccess(opts options) (*access, error) {
	a := new(access)
	var err error
	if a.header, err = parseHeaders(opts.Header); err != nil {
		return nil, err
	}
	if a.roots, err = loadRoots(opts.CACert); err != nil {
		return nil, err
	}
	token, err := readBearer(opts.BearerFile)
	if err != nil {
		return nil, err
	}
	if token != "" && !a.authorizes() {
		a.header.Set("Authorization", "Bearer "+token)
	}
	if !a.authorizes() {
		a.netrc, err = loadNetrc()
	}
	return a, err
}

func (a *access) authorizes() bool { return a.header.Get("Authorization") != "" }

// httpClient returns the one client of the process, which trusts a.roots and
// sends what origins may have.
func (a *access) httpClient() *http.Client {
	client := newHTTPClient()
	client.Transport.(*redirectChecker).TLSClientConfig = &tls.Config{RootCAs: a.roots}
	client.Transport = &accessTransport{base: client.Transport, access: a}
	return client
}

// headerFor is what the origin of the source at u may have.
func (a *access) headerFor(u *url.URL) http.Header {
	header := make(http.Header)
	maps.Copy(header, a.header)
	if credentials := a.basic(u); credentials != "" && !a.authorizes() {
		header.Set("Authorization", credentials)
	}
	return header
}

// basic is the Authorization of u's userinfo, else of the netrc, else "". As
// with curl, a user alone in u finds its password in the netrc.
func (a *access) basic(u *url.URL) string {
	user := u.User.Username()
	password, whole := u.User.Password()
	if !whole {
		if login, ok := a.netrc.find(u.Hostname(), user); ok {
			user, password = login.user, login.password
		}
	}
	if user == "" && password == "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// accessTransport adds to every request for a source what its origin may have,
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
type accessTransport struct {
	base   http.RoundTripper
	access *access
}

// RoundTrip implements http.RoundTripper.
//
// REQUIRES: a request that no redirect led to is for a source
func (t *accessTransport) RoundTrip(req *http.Request) (*http.Response, error) {
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
func (t *accessTransport) CloseIdleConnections() {
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

// parseHeaders reads 'Name: value' and @FILE, which has one of these a line.
func parseHeaders(args []string) (http.Header, error) {
	header := make(http.Header)
	for i, arg := range args {
		lines, err := headerLines(arg, i+1)
		if err != nil {
			return nil, fmt.Errorf("header %w", err)
		}
		for _, line := range lines {
			if err := addHeader(header, line.text); err != nil {
				return nil, fmt.Errorf("header %s: %w", line.where, err)
			}
		}
	}
	return header, nil
}

// headerLines is arg, the nth header, or what is in the file that it names.
func headerLines(arg string, nth int) ([]fileLine, error) {
	if path, isFile := strings.CutPrefix(arg, "@"); isFile {
		return readLinesOf(path)
	}
	return []fileLine{{where: fmt.Sprintf("number %d", nth), text: arg}}, nil
}

// addHeader reads a field line (RFC 9110 section 5).
func addHeader(header http.Header, line string) error {
	name, value, hasColon := strings.Cut(line, ":")
	value = strings.Trim(value, " \t")
	switch {
	case !hasColon:
		return errors.New("it has no colon: write 'Name: value', or @FILE for a file of such lines")
	case !isToken(name):
		return errors.New("what stands before the colon is no header's name: " +
			"write 'Name: value', the name without blanks")
	case value == "":
		return errors.New("nothing stands behind the colon: write 'Name: value'")
	case strings.ContainsFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }):
		return errors.New("its value has a line break or another control character, which no header may have")
	}
	if advice := refusedHeader(name); advice != "" {
		return fmt.Errorf("%s cannot be given: %s", http.CanonicalHeaderKey(name), advice)
	}
	header.Add(name, value)
	return nil
}

// isToken reports whether s is a token (RFC 9110 section 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	})
}

// refusedHeader says what to do instead of giving a header by that name, or "".
func refusedHeader(name string) string {
	switch http.CanonicalHeaderKey(name) {
	case "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "Accept-Encoding":
		return "each request needs its own, or a read could get wrong bytes"
	case "Host":
		return "name the host in the URL"
	case "Proxy-Authorization":
		return "put user and password into the URL of http_proxy or https_proxy"
	case "Connection", "Content-Length", "Expect", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return "it is about the connection or a body"
	}
	return ""
}

// readBearer returns the token in the file at path, "" where path is "".
func readBearer(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("bearer file %s: %w", path, pathReason(err))
	}
	token := strings.TrimSpace(string(data))
	switch {
	case token == "":
		return "", fmt.Errorf("bearer file %s: it is empty", path)
	case strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c >= 0x7f }):
		return "", fmt.Errorf("bearer file %s: it has more than a token: "+
			"write that alone, with no word before it and no blank in it", path)
	}
	return token, nil
}

// loadRoots returns the system's authorities and those in the PEM file at path;
// nil, which stands for the system's, where path is "".
func loadRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("CA certificates %s: %w", path, pathReason(err))
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's CA certificates: %w", err)
	}
	if err := addCertificates(roots, data); err != nil {
		return nil, fmt.Errorf("CA certificates %s: %w", path, err)
	}
	return roots, nil
}

// addCertificates adds every certificate of a PEM file. One that is cut off
// counts: pem.Decode passes over it.
func addCertificates(roots *x509.CertPool, data []byte) error {
	want := bytes.Count(data, []byte("-----BEGIN CERTIFICATE-----"))
	if want == 0 {
		return errors.New("no certificate in PEM form (-----BEGIN CERTIFICATE-----) is in it; " +
			"\"openssl x509 -inform der\" makes that of DER")
	}
	added := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("certificate %d of %d: %w", added+1, want, err)
		}
		roots.AddCert(cert)
		added++
	}
	if added != want {
		return fmt.Errorf("%d of its %d certificates are damaged: no PEM with its end", want-added, want)
	}
	return nil
}
