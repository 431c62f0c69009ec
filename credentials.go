// credentials.go loads the user's headers, token, logins and certificate authorities, once, at the
// start. origin_follow.go sends them, only to a source's own origin. No message shows them: an
// error names a file, a line, a flag or a header, and quotes no value.

package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
)

// credentials is what the program shows to origins, and the authorities by which it trusts them.
type credentials struct {
	header http.Header    // for the origin of every source; may have Authorization
	bearer string         // the file of the token that the origins get, "" for none
	netrc  netrc          // empty if header has Authorization
	roots  *x509.CertPool // nil: the system's

	netrcProblem error // why ~/.netrc, which nobody named, was left out

	token atomic.Pointer[string] // in bearer, when it was read last
}

// loadCredentials reads the headers, each 'NAME: VALUE' or @FILE, the token in bearerFile, and the
// certificates in caFile; "" is no file. It reads the netrc only if there is neither a token nor an
// Authorization header: the file of $NETRC, else ~/.netrc, which may be missing. Nobody named that
// one, so it only tells what is wrong with it (netrcProblem).
func loadCredentials(headers []string, bearerFile, caFile string) (*credentials, error) {
	c := new(credentials)
	var err error
	if c.header, err = parseHeaders(headers); err != nil {
		return nil, err
	}
	if caFile != "" {
		if c.roots, err = loadRoots(caFile); err != nil {
			return nil, fmt.Errorf("CA certificates %s: %w (--ca-cert names another file)", redactArg(caFile), err)
		}
	}
	if bearerFile != "" {
		token, err := readBearer(bearerFile)
		switch {
		case errors.Is(err, fs.ErrNotExist): // the name may be the token itself
			return nil, errors.New("bearer file: there is none of that name: name a file that holds only the token")
		case err != nil:
			return nil, err
		}
		if c.header.Get("Authorization") == "" {
			c.bearer = bearerFile
			c.token.Store(&token)
		}
	}
	if c.header.Get("Authorization") != "" || bearerFile != "" {
		return c, nil
	}
	if path := os.Getenv("NETRC"); path != "" {
		c.netrc, err = loadNetrc(path)
		return c, err
	}
	home, _ := os.UserHomeDir() // without one, the file is not there either
	path := filepath.Join(home, ".netrc")
	if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		c.netrcProblem = fmt.Errorf("netrc %s: it is a pipe, whose writer may never come", path)
	} else if c.netrc, err = loadNetrc(path); !errors.Is(err, fs.ErrNotExist) {
		c.netrcProblem = err
	}
	return c, nil
}

// headerFor returns the headers for the origin of the source at u: the user's, and
// one Authorization. If they have none, the login comes from u's userinfo, else from
// the netrc. As with curl, a user without password in u finds it in the netrc.
func (c *credentials) headerFor(u *url.URL) http.Header {
	header := make(http.Header)
	maps.Copy(header, c.header)
	if token := c.token.Load(); token != nil {
		header.Set("Authorization", "Bearer "+*token)
	}
	if header.Get("Authorization") != "" {
		return header
	}
	user := u.User.Username()
	password, hasPassword := u.User.Password()
	if !hasPassword {
		if login, ok := c.netrc.find(u.Hostname(), user); ok {
			user, password = login.user, login.password
		}
	}
	if user != "" || password != "" {
		(&http.Request{Header: header}).SetBasicAuth(user, password)
	}
	return header
}

// rereadToken reads the bearer file again, as an origin refused a request with the header sent, and
// reports whether it holds another token than that. It leaves pipes alone, whose writer may be gone.
func (c *credentials) rereadToken(sent http.Header) (other bool, err error) {
	if c.bearer == "" || sent.Get("Authorization") == "" {
		return false, nil
	}
	if info, err := os.Stat(c.bearer); err == nil && !info.Mode().IsRegular() {
		return false, nil
	}
	token, err := readBearer(c.bearer)
	if err != nil {
		return false, err
	}
	c.token.Store(&token)
	return sent.Get("Authorization") != "Bearer "+token, nil
}

// parseHeaders reads 'Name: value' and @FILE, a file with one such line a header.
func parseHeaders(args []string) (http.Header, error) {
	header := make(http.Header)
	for i, arg := range args {
		lines := []fileLine{{where: fmt.Sprintf("number %d", i+1), text: arg}}
		if path, isFile := strings.CutPrefix(arg, "@"); isFile {
			var err error
			if lines, err = readLines(path, nil); err != nil {
				return nil, fmt.Errorf("header %w", err)
			}
		}
		for _, line := range lines {
			if err := addHeader(header, line.text); err != nil {
				return nil, fmt.Errorf("header %s: %w", line.where, err)
			}
		}
	}
	return header, nil
}

// addHeader reads a field line (RFC 9110 section 5).
func addHeader(header http.Header, line string) error {
	name, value, hasColon := strings.Cut(line, ":")
	value = strings.Trim(value, " \t")
	switch {
	case !hasColon:
		return errors.New("it has no colon: write 'Name: value', or @FILE for a file of such lines")
	case !headerName.MatchString(name):
		return errors.New("the text before the colon is no header name: write 'Name: value', with no blank in the name")
	case strings.HasPrefix(value, "//"):
		return errors.New("it looks like a URL: write 'Name: value', or @FILE for a file of such lines")
	case value == "":
		return errors.New("there is no value after the colon: write 'Name: value'")
	case strings.ContainsFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }):
		return errors.New("its value has a line break or another control character, which no header may have")
	}
	if advice := refusedHeader(name); advice != "" {
		return fmt.Errorf("%s cannot be given: %s", http.CanonicalHeaderKey(name), advice)
	}
	header.Add(name, value)
	return nil
}

// headerName matches a token (RFC 9110 section 5.6.2).
var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

// refusedHeader returns why the user may not give a header of that name, or what to
// do instead. It returns "" for a header that may be given.
func refusedHeader(name string) string {
	switch http.CanonicalHeaderKey(name) {
	case "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "Accept-Encoding":
		return "each request needs its own, or a read could get wrong bytes: leave it out"
	case "Host":
		return "name the host in the URL"
	case "Proxy-Authorization":
		return "put user and password into the URL of http_proxy or https_proxy"
	case "Connection", "Content-Length", "Expect", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return "the program itself sets what concerns the connection or a body: leave it out"
	}
	return ""
}

// readBearer returns the token in the file at path.
func readBearer(path string) (string, error) {
	data, err := readInputFile(path)
	token := strings.TrimSpace(string(data))
	switch {
	case err != nil:
		err = pathReason(err)
	case token == "":
		err = errors.New("it is empty: write the token into it")
	case strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c >= 0x7f }):
		err = errors.New(`it must hold only the token: no "Bearer", no blanks`)
	default:
		return token, nil
	}
	return "", fmt.Errorf("bearer file %s: %w", path, err)
}

// loadRoots returns the system's certificate authorities and those in the PEM file at path. It
// requires that every certificate there is whole: pem.Decode skips one that is cut off.
func loadRoots(path string) (*x509.CertPool, error) {
	data, err := readInputFile(path)
	if err != nil {
		return nil, pathReason(err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's: %w", err)
	}
	want := bytes.Count(data, []byte("-----BEGIN CERTIFICATE-----"))
	if want == 0 {
		return nil, errors.New("no certificate in PEM form (-----BEGIN CERTIFICATE-----) is in it: " +
			"\"openssl x509 -inform der\" converts a DER file")
	}
	added := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of %d is not valid: %s", added+1, want, strings.TrimPrefix(err.Error(), "x509: "))
		}
		roots.AddCert(cert)
		added++
	}
	if added != want {
		return nil, fmt.Errorf("%d of its %d certificates are damaged: they do not end as PEM does", want-added, want)
	}
	return roots, nil
}

// netrc is the entries of a netrc file, in their order. The file has no standard:
// these are the rules on which ftp(1) and curl agree, with curl's quotes.
type netrc []netrcEntry

type netrcEntry struct {
	machine  string // "" is the default entry, for every host
	user     string
	password string
}

// find returns the first entry for host, and for user if user is not "". It tries
// the default entry last, wherever the file has it.
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

// loadNetrc reads the file at path. Like curl it does not care who else may read it.
func loadNetrc(path string) (entries netrc, err error) {
	data, err := readInputFile(path)
	if err != nil {
		return nil, fmt.Errorf("netrc %s: %w (set the variable NETRC to another file, or to /dev/null for none)",
			path, pathReason(err))
	}
	text := strings.ReplaceAll(string(data), "\r\n", "\n")
	keyword, line := "", 0 // that still needs its value, "" for none
	for rest := skipBlanks(text); rest != "" && err == nil; rest = skipBlanks(rest) {
		line = 1 + strings.Count(text[:len(text)-len(rest)], "\n")
		if keyword == "" && rest[0] == '#' {
			_, rest, _ = strings.Cut(rest, "\n")
			continue
		}
		var word string
		word, rest, err = netrcWord(rest)
		switch {
		case err != nil:
		case keyword != "":
			err = entries.set(keyword, word)
			keyword = ""
		case word == "default":
			entries = append(entries, netrcEntry{})
		case word == "macdef":
			_, rest, _ = strings.Cut(rest, "\n\n") // an empty line ends a macro
		case slices.Contains([]string{"machine", "login", "password", "account"}, word):
			keyword = word
		} // else it is a keyword of another program
	}
	if err == nil && keyword != "" {
		err = fmt.Errorf("nothing follows %q", keyword)
	}
	if err != nil {
		return nil, fmt.Errorf("netrc %s:%d: %w", path, line, err)
	}
	return entries, nil
}

func skipBlanks(text string) string { return strings.TrimLeft(text, " \t\r\n") }

// set begins an entry (machine), or adds to the last one. An account has no use here.
func (n *netrc) set(keyword, value string) error {
	last := len(*n) - 1
	switch {
	case keyword == "machine" && value == "":
		return errors.New("the machine has no name")
	case keyword == "machine":
		*n = append(*n, netrcEntry{machine: value})
	case last < 0:
		return fmt.Errorf("%q stands before the first machine", keyword)
	case keyword == "login":
		(*n)[last].user = value
	case keyword == "password":
		(*n)[last].password = value
	}
	return nil
}

var (
	wordForm = regexp.MustCompile(`(?s)^(?:([^" \t\r\n][^ \t\r\n]*)|"((?:[^"\\\n]|\\.)*)")`)
	escape   = regexp.MustCompile(`(?s)\\.`)
	escaped  = strings.NewReplacer("n", "\n", "r", "\r", "t", "\t")
)

// netrcWord returns the word at the start of text and the text after it. Double quotes hold a word with
// blanks, on one line; in them a backslash makes the next character literal, except in \n, \r and \t.
// REQUIRES: text is not empty and starts with no blank
func netrcWord(text string) (word, rest string, err error) {
	m := wordForm.FindStringSubmatch(text)
	if m == nil {
		return "", "", errors.New("a quote is not closed on its line")
	}
	quoted := escape.ReplaceAllStringFunc(m[2], func(e string) string { return escaped.Replace(e[1:]) })
	return m[1] + quoted, text[len(m[0]):], nil
}
