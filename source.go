// source.go parses one source into a URL, and makes a file name of the user's NAME, which may have directories,
// or of the URL and the name its server suggests: of these one component. Each component is safe, and no name
// is that of another file or of the control directory. source.go encodes in a URL, and in a redirect's
// Location, what a browser encodes there (URL standard, https://url.spec.whatwg.org). It finds the files and
// folders of a directory in the page that a web server makes of it, and none outside of that. It talks to no
// server. None of its messages shows the userinfo or the query of a URL, which may hold secrets.

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"
)

const (
	// maxNameLen is in bytes: NAME_MAX of linux/limits.h. Most file systems could
	// not take a copy of a file with a longer name.
	maxNameLen  = 255
	maxExtLen   = 16         // in bytes, with the dot. Programs look for no longer extension.
	controlName = ".fsmount" // the directory of virtual files. No source may hide it.
)

// fileSource is one argument of the command line, line of a list, or entry of a listing.
type fileSource struct {
	name    string   // as the user gave it, unsanitised: a path with slashes; "" if they gave none
	url     *url.URL // http or https, with a host and without a fragment
	sha256  string   // that the file must have, in lower-case hex; "" for any
	sized   bool     // the user gave size
	size    int64    // bytes
	options string   // these two, as the user wrote them behind the URL
	depth   int      // how many levels of folders to read, if it is a listing
	listed  bool     // a listing gave the name
}

// parseSource reads URL or NAME=URL. An '=' ends a NAME only if a scheme and "://" follow it at once, so the '=' of a
// query does not. parseSource drops the fragment, which is never sent to a server (RFC 9110 section 7.1).
//
// The error says what is wrong and what to write instead.
func parseSource(arg string) (fileSource, error) {
	s, err := parseNamedURL(arg)
	if err != nil {
		return fileSource{}, fmt.Errorf("source %q: %w", redactArg(arg), err)
	}
	return s, nil
}

func (s fileSource) isNamed() bool { return s.name != "" && !s.listed }

func (s fileSource) line() string {
	if s.name == "" {
		return s.url.String() + s.options
	}
	return s.name + "=" + s.url.String() + s.options
}

var (
	upToBlank  = regexp.MustCompile(`^.*?://\S*`)
	listOption = regexp.MustCompile(`^(?:sha256=([0-9A-Fa-f]{64})|size=([0-9]{1,18}))$`)
)

// parseListed reads a line of a list: a source, and behind its URL, which has no blank, the
// file's options. No message quotes these: they may be the end of a secret.
func parseListed(line string) (fileSource, error) {
	arg := cmp.Or(upToBlank.FindString(line), line)
	s, err := parseSource(arg)
	s.options = line[len(arg):]
	for _, option := range strings.Fields(s.options) {
		m := listOption.FindStringSubmatch(option)
		switch {
		case err != nil:
		case m == nil, m[1] != "" && s.sha256 != "", m[2] != "" && s.sized:
			err = fmt.Errorf("source %q: behind the URL only sha256=HEX, with 64 digits, and size=BYTES may stand, each once "+
				"(write %%20 for a blank of the URL)", redactArg(arg))
		case m[1] != "":
			s.sha256 = strings.ToLower(m[1])
		default:
			s.size, _ = strconv.ParseInt(m[2], 10, 64)
			s.sized = true
		}
	}
	return s, err
}

func parseNamedURL(arg string) (fileSource, error) {
	schemeEnd := strings.Index(arg, "://")
	if schemeEnd < 0 {
		return fileSource{}, errors.New("missing http:// or https://: write http://HOST/PATH, https://HOST/PATH or NAME=URL")
	}
	eq := strings.LastIndexByte(arg[:schemeEnd], '=')
	name, rawURL := arg[:max(eq, 0)], arg[eq+1:]
	u, err := url.Parse(repairURL(rawURL))
	switch {
	case eq == 0:
		return fileSource{}, errors.New("the NAME before '=' is empty: write NAME=URL, or the URL alone")
	case strings.Contains(name, "?"):
		return fileSource{}, errors.New("this looks like a URL without its scheme: " +
			"write http:// or https:// in front of it, or a NAME without '?'")
	case path.Clean("/"+name) != "/"+name:
		return fileSource{}, errors.New("a part of the NAME is empty, '.' or '..': write directories and the file, such as a/b.bin=URL")
	case err != nil:
		return fileSource{}, fmt.Errorf("this is no valid URL%s: "+
			"write http://HOST/PATH, and %%XX for a character that URLs do not allow", parseReason(rawURL, err))
	case u.Scheme != "http" && u.Scheme != "https":
		return fileSource{}, fmt.Errorf("scheme %q is not served: write http:// or https://", u.Scheme)
	case u.Hostname() == "":
		return fileSource{}, errors.New("the URL has no host: write http://HOST/PATH or https://HOST/PATH")
	}
	if err := checkPort(u); err != nil {
		return fileSource{}, fmt.Errorf("%w: write http://HOST:PORT/PATH", err)
	}
	return fileSource{name: name, url: u}, nil
}

// checkPort returns an error for a port that no host has.
func checkPort(u *url.URL) error {
	if _, err := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16); err != nil {
		return fmt.Errorf("port %s is above 65535", u.Port())
	}
	return nil
}

// parseReason returns why url.Parse refused a URL, as " (reason)". It returns "" if the reason
// could quote a piece of a password: in http://user:pass/word@host url.Parse sees an invalid port.
func parseReason(rawURL string, err error) string {
	var parseErr *url.Error
	if strings.Contains(rawURL, "@") || !errors.As(err, &parseErr) {
		return ""
	}
	return fmt.Sprintf(" (%s)", strings.TrimPrefix(parseErr.Err.Error(), "net/url: "))
}

// redactArg returns the part of arg, which is no source, that messages may show. The end of
// userinfo can only be guessed in it, so an argument with an '@' is cut after its scheme.
func redactArg(arg string) string {
	beforeHost, _, hasScheme := strings.Cut(arg, "://")
	query := strings.IndexAny(arg, "?#")
	switch {
	case !strings.Contains(arg, "@") && query < 0:
		return arg
	case !strings.Contains(arg, "@"):
		return arg[:query] + "..."
	case hasScheme && !strings.ContainsAny(beforeHost, "@?#"):
		return beforeHost + "://..."
	}
	return "..."
}

// redactURL returns the part of u that messages may show: scheme://host/path.
func redactURL(u *url.URL) string {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	return shown.String()
}

// errNothingListed marks a listing without entries, and a page that is none.
var errNothingListed = errors.New("it ends with '/', and its page names no file or folder below it, as deep as --depth goes")

// entriesOf returns the files and folders that page names, and how many folders it leaves
// out as too deep. page stands at that URL, to which s has led. An entry has a NAME below
// that of s, is of the same origin, and so gets the login of s.
func (s fileSource) entriesOf(page []byte, isJSON bool, at *url.URL) (entries []fileSource, deeper int) {
	dir, seen := cmp.Or(s.name, fileName(s, "", nil)), map[string]bool{at.Path: true}
	for _, link := range linksOf(page, isJSON) {
		u, err := resolveURL(at, link)
		if err != nil || strings.ContainsAny(link, "?#") || u.Scheme != at.Scheme || u.Host != at.Host || seen[u.Path] {
			continue
		}
		seen[u.Path] = true
		u.User = s.url.User
		rest, below := strings.CutPrefix(u.Path, at.Path[:strings.LastIndexByte(at.Path, '/')+1])
		part, folder := strings.CutSuffix(rest, "/")
		switch {
		case !below, strings.Contains(part, "/"), slices.Contains([]string{"", ".", ".."}, part):
		case folder && s.depth <= 1:
			deeper++
		default:
			entries = append(entries, fileSource{name: dir + "/" + sanitizeName(harmless(part)), url: u, depth: s.depth - 1, listed: true})
		}
	}
	return entries, deeper
}

// linksOf returns where the links of an HTML page lead. It makes links of JSON that nginx
// lists with autoindex_format json (ngx_http_autoindex_module).
func linksOf(page []byte, isJSON bool) (links []string) {
	var listed []struct{ Name, Type string }
	if isJSON {
		_ = json.Unmarshal(page, &listed) // other JSON has no links
	}
	for _, entry := range listed {
		if end, is := map[string]string{"file": "", "directory": "/"}[entry.Type]; is {
			links = append(links, "./"+url.PathEscape(entry.Name)+end)
		}
	}
	for z := html.NewTokenizer(bytes.NewReader(page)); !isJSON && z.Next() != html.ErrorToken; {
		token := z.Token()
		for _, attribute := range token.Attr {
			if token.Type == html.StartTagToken && token.Data == "a" && attribute.Key == "href" {
				links = append(links, attribute.Val)
			}
		}
	}
	return links
}

// signing matches the parts of a query that sign a URL for a time.
var signing = regexp.MustCompile(`^(X-(Amz|Goog)-(Algorithm|Credential|Date|Expires|SignedHeaders|Signature|Security-Token)|` +
	`Signature|Expires|Policy|AWSAccessKeyId|GoogleAccessId|Key-Pair-Id)=[^;]*$`)

// identityOf returns what of a URL tells its file from others, in another run too: all but the
// password, and what signs it for S3, Google Cloud Storage or CloudFront.
func identityOf(u *url.URL) string {
	parts, query := strings.Split(u.RawQuery, "&"), u.Query()
	keyed := query.Has("AWSAccessKeyId") || query.Has("GoogleAccessId") || query.Has("Key-Pair-Id")
	if query.Has("X-Amz-Signature") || query.Has("X-Goog-Signature") || query.Has("Signature") && keyed {
		parts = slices.DeleteFunc(parts, signing.MatchString)
	}
	return strings.Join([]string{u.User.Username(), redactURL(u), strings.Join(parts, "&")}, "\x00")
}

// fileName returns the name of s in the mounted directory, before uniqueNames: the user's name,
// part by part, else the suggested one (from Content-Disposition, or ""), else the last non-empty
// segment of the URL's path, or of final, to which it redirects, where only that has an extension,
// else the host. A suggestion or segment that names no file ("..", blanks) counts as none.
func fileName(s fileSource, suggested string, final *url.URL) string {
	if s.name != "" {
		parts := strings.Split(s.name, "/")
		for i, part := range parts {
			parts[i] = sanitizeName(part)
		}
		return strings.Join(parts, "/")
	}
	// A server may suggest a path of either kind: drop its directory (RFC 6266 section 4.3).
	suggested = harmless(suggested[strings.LastIndexAny(suggested, `/\`)+1:])
	segment := lastSegment(s.url)
	if final != nil {
		if name := harmless(lastSegment(final)); len(extension(segment)) < 2 && len(extension(name)) > 1 {
			segment = name
		}
	}
	for _, name := range []string{suggested, segment} {
		if !slices.Contains([]string{"", ".", ".."}, strings.TrimSpace(name)) {
			return sanitizeName(name)
		}
	}
	return sanitizeName(s.url.Hostname())
}

// harmless keeps a server from naming a hidden file, or one that commands take for a flag.
func harmless(name string) string {
	name = strings.TrimSpace(name)
	if rest := strings.TrimLeft(name, "-."); rest != "" && rest != name {
		return "_" + rest
	}
	return name
}

// lastSegment cuts off the last segment of the path and then decodes it: a %2F is
// part of its segment (RFC 3986 section 2.4).
func lastSegment(u *url.URL) string {
	path := strings.TrimRight(u.EscapedPath(), "/")
	segment, _ := url.PathUnescape(path[strings.LastIndexByte(path, '/')+1:]) // it is escaped well
	return segment
}

// sanitizeName makes any string one safe path component: valid UTF-8 of 1 to 255 bytes with no '/',
// no control character and no blank at either end, and neither ".", ".." nor the name of the
// control directory. It does not change a name that it has returned.
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

// safeRune replaces a rune that would end the component, garble a terminal or make a
// name look like another: '/', Unicode's Cc (C0, DEL, C1), the line and paragraph
// separators, and Unicode's Cf, which shows as nothing or turns text around.
func safeRune(r rune) rune {
	if r == '/' || unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp, unicode.Cf) {
		return '_'
	}
	return r
}

// uniqueNames gives each further occurrence of a name a number: "a.bin", "a (2).bin", "a (3).bin". The
// number stands before the last extension ("d/a.tar (2).gz"). uniqueNames skips a numbered form that is
// itself in names, at any place, so every name keeps its literal form at its first occurrence, unless
// it is inUse or the directory of another. Components of at most 255 bytes stay so.
func uniqueNames(names []string, inUse func(name string) bool) []string {
	taken, dirs := make(map[string]bool, len(names)), make(map[string]bool)
	for _, name := range names {
		taken[name] = true
		for dir := path.Dir(name); dir != "." && !dirs[dir]; dir = path.Dir(dir) {
			dirs[dir] = true
		}
	}
	unique := make([]string, len(names))
	lastNumber := make(map[string]int, len(names))
	for i, name := range names {
		dir, base := path.Split(name)
		number, numbered := lastNumber[name]+1, name
		// This ends: finitely many names are taken, and each number makes another form.
		for ; ; number++ {
			if number > 1 {
				numbered = dir + shortenName(base, fmt.Sprintf(" (%d)", number))
			}
			if !dirs[numbered] && !inUse(numbered) && (number == 1 || !taken[numbered]) {
				break
			}
		}
		taken[numbered] = true
		lastNumber[name] = number
		unique[i] = numbered
	}
	return unique
}

// shortenName puts mark before the extension of name, and cuts the part before mark,
// at the start of a rune, to make it all fit 255 bytes.
func shortenName(name, mark string) string {
	ext := extension(name)
	stem := strings.TrimSuffix(name, ext)
	if most := maxNameLen - len(mark) - len(ext); len(stem) > most {
		for most > 0 && !utf8.RuneStart(stem[most]) {
			most--
		}
		stem = stem[:most]
	}
	return stem + mark + ext
}

// extension returns the end of name from its last dot on, if that is not the first
// character, and not more than maxExtLen bytes before the end; else "".
func extension(name string) string {
	if dot := strings.LastIndexByte(name, '.'); dot > 0 && len(name)-dot <= maxExtLen {
		return name[dot:]
	}
	return ""
}

// dispositionFilename returns the file name in a Content-Disposition header, as it stands there; ""
// if there is none. filename* goes before filename (RFC 6266 section 4.3).
func dispositionFilename(header string) string {
	_, params, err := mime.ParseMediaType(header)
	if err == nil {
		return params["filename"]
	}
	// Servers send unquoted names with blanks or letters beyond ASCII, and browsers
	// accept them. RFC 9110 section 5.6.2 allows neither in a token.
	for _, param := range strings.Split(header, ";")[1:] {
		key, value, _ := strings.Cut(param, "=")
		if strings.EqualFold(strings.TrimSpace(key), "filename") && !strings.Contains(value, `"`) {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// resolveURL returns the URL that ref means in an answer from base: without fragment, and without userinfo,
// which would log the user in where another server wants it. Its errors quote nothing: ref may hold secrets.
func resolveURL(base *url.URL, ref string) (*url.URL, error) {
	ref = repairURL(ref)
	if rest, same := strings.CutPrefix(ref, base.Scheme+":"); same && !strings.HasPrefix(rest, "//") {
		ref = rest // "http:path" is relative, if only in special schemes
	}
	u, err := base.Parse(ref)
	switch {
	case err != nil:
		return nil, errors.New("its Location is no URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("its scheme is neither http nor https")
	case u.Hostname() == "":
		return nil, errors.New("the URL has no host")
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	return u, nil
}

// Bytes that a URL may not have, besides controls and those beyond ASCII: the path and
// query percent-encode sets of the URL standard.
const (
	notInPath  = " \"<>`{}^"
	notInQuery = " \"<>'"
)

var dropBreaks = strings.NewReplacer("\t", "", "\n", "", "\r", "")

// repairURL drops the fragment and the blanks around raw, and encodes what a request line cannot hold. It changes no
// host, and decodes nothing. A '%' of the path that begins no escape becomes %25: net/url refuses it otherwise.
func repairURL(raw string) string {
	raw, _, _ = strings.Cut(raw, "#")
	raw = dropBreaks.Replace(raw)
	raw = strings.TrimFunc(raw, func(r rune) bool { return r <= ' ' })
	before, query, hasQuery := strings.Cut(raw, "?")
	before = strings.ReplaceAll(before, `\`, "/")
	pathAt := 0
	if authority := strings.Index(before, "//"); authority == 0 || authority > 0 && before[authority-1] == ':' {
		pathAt = len(before)
		if slash := strings.IndexByte(before[authority+2:], '/'); slash >= 0 {
			pathAt = authority + 2 + slash
		}
	}
	repaired := before[:pathAt] + escapeBytes(before[pathAt:], notInPath, true)
	if hasQuery {
		repaired += "?" + escapeBytes(query, notInQuery, false)
	}
	return repaired
}

// escapeBytes writes %XX for controls, bytes beyond ASCII and those in unsafe, and for
// a '%' that begins no escape if strays is set.
func escapeBytes(s, unsafe string, strays bool) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		_, wrong := url.PathUnescape(s[i:min(i+len("%XX"), len(s))])
		stray := c == '%' && strays && wrong != nil
		if c < ' ' || c >= 0x7f || stray || strings.IndexByte(unsafe, c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
