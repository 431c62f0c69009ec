// source.go parses one source into a URL, and makes a file name of a URL and what
// its server suggests: always one safe path component, never the name of another
// file or of the control directory. It talks to no server, and no message of its
// own shows a URL's userinfo or query, which may hold secrets.

package main

import (
	"errors"
	"fmt"
	"mime"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxNameLen is in bytes: NAME_MAX of linux/limits.h. Most file systems
	// could not take a copy of a file with a longer name.
	maxNameLen = 255

	// maxExtLen is in bytes, the dot included. A longer tail behind a dot says
	// no type that a program would look for.
	maxExtLen = 16

	// controlName is the directory of virtual files, which no source may hide.
	controlName = ".fsmount"
)

// fileSource is one argument of the command line.
type fileSource struct {
	name string   // as the user gave it, unsanitised; "" where they gave none
	url  *url.URL // http or https, with a host and without a fragment
}

// parseSource reads URL or NAME=URL. An '=' is the end of a NAME only if a
// scheme and "://" follow it at once, so that the '=' of a query is none. The
// fragment is dropped: it is not sent to a server (RFC 9110 section 7.1).
//
// The error says what is wrong and what to write instead.
func parseSource(arg string) (fileSource, error) {
	name, rawURL, err := splitSource(arg)
	if err != nil {
		return fileSource{}, fmt.Errorf("source %q: %w", redactArg(arg), err)
	}
	u, err := parseHTTPURL(rawURL)
	if err != nil {
		return fileSource{}, fmt.Errorf("source %q: %w", redactArg(arg), err)
	}
	return fileSource{name: name, url: u}, nil
}

// splitSource cuts NAME= off a source; name is "" where there is none.
func splitSource(arg string) (name, rawURL string, err error) {
	schemeEnd := strings.Index(arg, "://")
	if schemeEnd < 0 {
		return "", "", errors.New("this is no URL: write http://HOST/PATH, https://HOST/PATH or NAME=URL")
	}
	eq := strings.LastIndexByte(arg[:schemeEnd], '=')
	if eq < 0 {
		return "", arg, nil
	}
	name = arg[:eq]
	switch {
	case name == "":
		return "", "", errors.New("the NAME before '=' is empty: write NAME=URL, or the URL alone")
	case strings.Contains(name, "?"):
		return "", "", errors.New("this looks like a URL without its scheme: " +
			"write http:// or https:// in front, and no '?' in a NAME")
	}
	return name, arg[eq+1:], nil
}

func parseHTTPURL(rawURL string) (*url.URL, error) {
	withoutFragment, _, _ := strings.Cut(rawURL, "#")
	u, err := url.Parse(withoutFragment)
	switch {
	case err != nil:
		return nil, fmt.Errorf("this is no valid URL%s: "+
			"write http://HOST/PATH, and %%XX for a character that URLs do not allow", parseReason(rawURL, err))
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("scheme %q is not served: write http:// or https://", u.Scheme)
	case u.Hostname() == "":
		return nil, errors.New("the URL has no host: write http://HOST/PATH or https://HOST/PATH")
	}
	return u, nil
}

// parseReason says why url.Parse refused a URL, as " (reason)". It is "" where
// the reason could quote a piece of a password: "invalid port" is all that
// url.Parse sees in the userinfo of http://user:pass/word@host.
func parseReason(rawURL string, err error) string {
	var parseErr *url.Error
	if strings.Contains(rawURL, "@") || !errors.As(err, &parseErr) {
		return ""
	}
	return fmt.Sprintf(" (%v)", parseErr.Err)
}

// redactURL is what messages may show of u: scheme://host/path.
func redactURL(u *url.URL) string {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	return shown.String()
}

// redactArg is what messages may show of an argument that could not be read as
// a source. Where userinfo ends is then a guess, so that an argument with an
// '@' is shown no further than its scheme.
func redactArg(arg string) string {
	if !strings.Contains(arg, "@") {
		if end := strings.IndexAny(arg, "?#"); end >= 0 {
			return arg[:end] + "..."
		}
		return arg
	}
	beforeHost, _, hasScheme := strings.Cut(arg, "://")
	if !hasScheme || strings.ContainsAny(beforeHost, "@?#") {
		return "..."
	}
	return beforeHost + "://..."
}

// fileName is the name of s in the mounted directory, before uniqueNames:
// the user's, else suggested (the server's Content-Disposition, or ""), else
// the last segment of the URL's path that is not empty, else the host. A
// suggestion or segment that names no file ("..", blanks) counts as none.
func fileName(s fileSource, suggested string) string {
	if s.name != "" {
		return sanitizeName(s.name)
	}
	for _, name := range []string{afterLastSeparator(suggested), lastSegment(s.url)} {
		if namesFile(name) {
			return sanitizeName(name)
		}
	}
	return sanitizeName(s.url.Hostname())
}

// afterLastSeparator drops a directory of either kind of path from a name that
// a server suggests (RFC 6266 section 4.3).
func afterLastSeparator(suggested string) string {
	return suggested[strings.LastIndexAny(suggested, `/\`)+1:]
}

// lastSegment is decoded after it was cut off: a %2F is part of its segment
// (RFC 3986 section 2.4).
func lastSegment(u *url.URL) string {
	path := strings.TrimRight(u.EscapedPath(), "/")
	segment := path[strings.LastIndexByte(path, '/')+1:]
	decoded, err := url.PathUnescape(segment)
	if err != nil {
		return segment
	}
	return decoded
}

func namesFile(name string) bool {
	switch strings.TrimSpace(name) {
	case "", ".", "..":
		return false
	}
	return true
}

// sanitizeName makes any string one safe path component: valid UTF-8 of 1 to
// 255 bytes with no '/', no control character and no blank at either end,
// and neither ".", ".." nor the control directory's name. What it returns it
// leaves as it is.
func sanitizeName(name string) string {
	name = strings.Map(safeRune, strings.ToValidUTF8(name, "_"))
	name = strings.TrimSpace(name)
	name = strings.TrimSpace(shortenName(name, ""))
	switch {
	case name == "" || name == ".":
		return "_"
	case name == "..":
		return "__"
	case strings.EqualFold(name, controlName):
		return "_fsmount"
	}
	return name
}

// safeRune replaces what would end the component, garble a terminal or make a
// name look like another: '/', Unicode's Cc (C0, DEL, C1), the line and
// paragraph separators, and the bidirectional controls (Unicode UAX 9, the
// embeddings, overrides and isolates).
func safeRune(r rune) rune {
	switch {
	case r == '/',
		unicode.IsControl(r),
		r == '\u2028' || r == '\u2029',
		'\u202a' <= r && r <= '\u202e',
		'\u2066' <= r && r <= '\u2069':
		return '_'
	}
	return r
}

// uniqueNames gives every name that occurs again a number: "a.bin",
// "a (2).bin", "a (3).bin". The number stands before the last extension alone
// ("a.tar (2).gz"). A number that some element of names holds literally is passed
// over, wherever that element stands, so every name keeps its literal form
// at its first occurrence. Names of at most 255 bytes stay so.
func uniqueNames(names []string) []string {
	taken := make(map[string]bool, len(names))
	for _, name := range names {
		taken[name] = true
	}
	unique := make([]string, len(names))
	lastNumber := make(map[string]int, len(names))
	for i, name := range names {
		number, numbered := lastNumber[name]+1, name
		if number > 1 {
			number, numbered = nextFree(name, number, taken)
		}
		taken[numbered] = true
		lastNumber[name] = number
		unique[i] = numbered
	}
	return unique
}

// nextFree counts on from number to a form of name that is not taken. It ends:
// the forms differ by their number and taken is finite.
func nextFree(name string, number int, taken map[string]bool) (int, string) {
	for ; ; number++ {
		numbered := shortenName(name, fmt.Sprintf(" (%d)", number))
		if !taken[numbered] {
			return number, numbered
		}
	}
}

// shortenName puts mark before name's extension and cuts the part before the
// mark, at the start of a rune, as far as 255 bytes in all demand.
func shortenName(name, mark string) string {
	stem, ext := splitExt(name)
	return cutBytes(stem, maxNameLen-len(mark)-len(ext)) + mark + ext
}

// splitExt cuts name before its last dot. A name that only starts with a dot
// has no extension, nor has one whose extension is longer than maxExtLen.
func splitExt(name string) (stem, ext string) {
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || len(name)-dot > maxExtLen {
		return name, ""
	}
	return name[:dot], name[dot:]
}

// cutBytes is the longest prefix of s of at most n bytes that ends on a rune
// boundary.
func cutBytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// dispositionFilename is the file name in a Content-Disposition header, as it
// stands there; "" where there is none. filename* goes before filename
// (RFC 6266 section 4.3).
func dispositionFilename(header string) string {
	_, params, err := mime.ParseMediaType(header)
	if err != nil {
		return bareFilename(header)
	}
	return params["filename"]
}

// bareFilename finds an unquoted name with blanks or letters beyond ASCII. No
// token may hold these (RFC 9110 section 5.6.2), yet servers send them and
// browsers take them.
func bareFilename(header string) string {
	for _, param := range strings.Split(header, ";")[1:] {
		key, value, _ := strings.Cut(param, "=")
		if strings.EqualFold(strings.TrimSpace(key), "filename") && !strings.Contains(value, `"`) {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
