// source_listing.go finds the files and folders of a directory in the page that a web
// server makes of it: HTML of nginx, Apache, Caddy or lighttpd, or JSON of nginx. The page
// may say anything: no entry is outside of the directory. It talks to no server.

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/html"
)

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
