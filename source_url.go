// source_url.go makes a request line of a URL that people or servers wrote: it encodes
// what a browser encodes there (URL standard, https://url.spec.whatwg.org), and
// resolves a redirect's Location. It talks to no server.

package main

import (
	"errors"
	"net/url"
	"strings"
)

// resolveURL returns the URL that ref means in an answer from base: without fragment,
// and without userinfo, which would log the user in where another server wants it.
// Its errors quote nothing: ref may hold secrets.
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

// repairURL drops the fragment and the blanks around raw, and encodes what a request
// line cannot hold. It changes no host, and decodes nothing. A '%' of the path that
// begins no escape becomes %25: net/url refuses it otherwise.
func repairURL(raw string) string {
	raw, _, _ = strings.Cut(raw, "#")
	raw = strings.NewReplacer("\t", "", "\n", "", "\r", "").Replace(raw)
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
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		stray := c == '%' && strays && (i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]))
		if c < ' ' || c >= 0x7f || stray || strings.IndexByte(unsafe, c) >= 0 {
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}
