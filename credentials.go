// credentials.go loads the user's headers, token, logins and certificate
// authorities, once, at the start. origin_redirect.go sends them. They never show:
// an error names a file, a line or a flag, and quotes no word of what is there.

package main

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// credentials is what the user lets the program in with.
type credentials struct {
	header http.Header    // for the origin of every source, with Authorization or without
	netrc  netrc          // empty where header has Authorization
	roots  *x509.CertPool // nil: the system's
}

// loadCredentials reads the headers, each 'NAME: VALUE' or @FILE, the token in
// bearerFile, and the certificates in caFile; "" is no file. It reads the netrc
// only where neither headers nor token authorize.
func loadCredentials(headers []string, bearerFile, caFile string) (*credentials, error) {
	a := new(credentials)
	var err error
	if a.header, err = parseHeaders(headers); err != nil {
		return nil, err
	}
	if a.roots, err = loadRoots(caFile); err != nil {
		return nil, err
	}
	token, err := readBearer(bearerFile)
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

func (a *credentials) authorizes() bool { return a.header.Get("Authorization") != "" }

// headerFor is what the origin of the source at u may have.
func (a *credentials) headerFor(u *url.URL) http.Header {
	header := make(http.Header)
	maps.Copy(header, a.header)
	if login := a.basic(u); login != "" && !a.authorizes() {
		header.Set("Authorization", login)
	}
	return header
}

// basic is the Authorization of u's userinfo, else of the netrc, else "". As
// with curl, a user alone in u finds its password in the netrc.
func (a *credentials) basic(u *url.URL) string {
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

// netrc is the entries of a netrc, in their order. There is no standard for the
// file: this is what ftp(1) and curl agree on, with curl's quotes.
type netrc []netrcEntry

type netrcEntry struct {
	machine  string // "" is the default entry, for every host
	user     string
	password string
}

// find returns the entry for host; for that user there, if user is not "". The
// default entry comes last wherever it stands.
func (n netrc) find(host, user string) (netrcEntry, bool) {
	for _, machine := range []string{host, ""} {
		for _, e := range n {
			if strings.EqualFold(e.machine, machine) && (user == "" || user == e.user) {
				return e, true
			}
		}
	}
	return netrcEntry{}, false
}

// loadNetrc reads the file of $NETRC, else ~/.netrc, which need not be there.
// Who else may read it is the user's business, as with curl.
func loadNetrc() (netrc, error) {
	path := os.Getenv("NETRC")
	named := path != ""
	if !named {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil
		}
		path = filepath.Join(home, ".netrc")
	}
	data, err := os.ReadFile(path)
	if !named && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("netrc %s: %w (the variable NETRC names another, /dev/null none)", path, pathReason(err))
	}
	entries, err := parseNetrc(string(data))
	if err != nil {
		return nil, fmt.Errorf("netrc %s:%w", path, err)
	}
	return entries, nil
}

// netrcParser is a position in the text of a netrc.
type netrcParser struct {
	text    string // what is left
	line    int    // that text starts on, from 1
	entries netrc
}

// parseNetrc reads the text of a netrc. Its error starts with the line's number.
func parseNetrc(text string) (netrc, error) {
	p := &netrcParser{text: strings.ReplaceAll(text, "\r\n", "\n"), line: 1}
	for p.skipBlanks(); p.text != ""; p.skipBlanks() {
		line := p.line
		if err := p.statement(); err != nil {
			return nil, fmt.Errorf("%d: %w", line, err)
		}
	}
	return p.entries, nil
}

// statement reads a keyword and what belongs to it. A word that is none is
// passed over: other programs have keywords of their own.
func (p *netrcParser) statement() error {
	if p.text[0] == '#' {
		p.skipPast("\n")
		return nil
	}
	keyword, err := p.token()
	switch {
	case err != nil:
		return err
	case keyword == "default":
		p.entries = append(p.entries, netrcEntry{})
		return nil
	case keyword == "macdef":
		// A macro ends with an empty line.
		p.skipPast("\n\n")
		return nil
	}
	return p.setting(keyword)
}

// setting reads the value of a keyword that has one.
func (p *netrcParser) setting(keyword string) error {
	switch keyword {
	case "machine", "login", "password", "account":
	default:
		return nil
	}
	if p.skipBlanks(); p.text == "" {
		return fmt.Errorf("nothing follows %q", keyword)
	}
	value, err := p.token()
	switch {
	case err != nil:
		return err
	case keyword == "machine" && value == "":
		return errors.New("the machine has no name")
	case keyword == "machine":
		p.entries = append(p.entries, netrcEntry{machine: value})
		return nil
	case len(p.entries) == 0:
		return fmt.Errorf("%q stands before the first machine", keyword)
	}
	last := &p.entries[len(p.entries)-1]
	switch keyword {
	case "login":
		last.user = value
	case "password":
		last.password = value
	}
	return nil
}

// token reads a word, or what stands in double quotes.
//
// REQUIRES: p.text starts with no blank and is not empty
func (p *netrcParser) token() (string, error) {
	if p.text[0] == '"' {
		return p.quoted()
	}
	end := strings.IndexAny(p.text, " \t\r\n")
	if end < 0 {
		end = len(p.text)
	}
	return p.take(end), nil
}

// quoted reads up to the closing quote, on the same line. A backslash takes the
// next character as it is, but for \n, \r and \t.
func (p *netrcParser) quoted() (string, error) {
	var value strings.Builder
	for i := 1; i < len(p.text) && p.text[i] != '\n'; i++ {
		switch c := p.text[i]; {
		case c == '"':
			p.take(i + 1)
			return value.String(), nil
		case c == '\\' && i+1 < len(p.text):
			i++
			value.WriteByte(unescaped(p.text[i]))
		default:
			value.WriteByte(c)
		}
	}
	return "", errors.New("a quote is not closed on its line")
}

func unescaped(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c
}

func (p *netrcParser) skipBlanks() {
	p.take(len(p.text) - len(strings.TrimLeft(p.text, " \t\r\n")))
}

// skipPast goes behind the next mark, or to the end.
func (p *netrcParser) skipPast(mark string) {
	before, _, found := strings.Cut(p.text, mark)
	if found {
		p.take(len(before) + len(mark))
		return
	}
	p.take(len(p.text))
}

// take returns the next n bytes and goes behind them.
func (p *netrcParser) take(n int) string {
	taken := p.text[:n]
	p.line += strings.Count(taken, "\n")
	p.text = p.text[n:]
	return taken
}
