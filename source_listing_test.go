// Tests of listings: which entries the pages of real servers have, and what no page can
// make the program ask for. The pages in testdata have the forms of those servers, all of
// one directory.

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// namesAndURLs is entries as text, sorted.
func namesAndURLs(entries []fileSource) (text []string) {
	for _, e := range entries {
		text = append(text, e.name+" "+strings.ToUpper(e.url.EscapedPath()))
	}
	slices.Sort(text)
	return text
}

func TestListingsOfEachServer(t *testing.T) {
	want := []string{"pub/#1.bin /PUB/%231.BIN", "pub/100%.txt /PUB/100%25.TXT", "pub/_rf /PUB/-RF", "pub/a b.bin /PUB/A%20B.BIN",
		"pub/a_very_long_name_that_the_page_shortens_in_what_it_shows_of_it.bin /PUB/A_VERY_LONG_NAME_THAT_THE_PAGE_SHORTENS_IN_WHAT_IT_SHOWS_OF_IT.BIN",
		"pub/c:d.bin /PUB/C:D.BIN", "pub/q?.bin /PUB/Q%3F.BIN", "pub/x&y.bin /PUB/X&Y.BIN", "pub/ü.txt /PUB/%C3%BC.TXT"}
	folders := []string{"pub/empty /PUB/EMPTY/", "pub/sub /PUB/SUB/"}
	pages, err := filepath.Glob("testdata/listing-*")
	if err != nil || len(pages) != 5 {
		t.Fatalf("pages %q, %v", pages, err)
	}
	for _, path := range pages {
		page, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for depth := 1; depth <= 2; depth++ {
			s := fileSource{url: mustParseURL(t, "http://u:p@h/pub/"), depth: depth}
			entries, deeper := s.entriesOf(page, strings.HasSuffix(path, ".json"), mustParseURL(t, "http://h/pub/"))
			all, left := slices.Concat(want, folders), 0
			if depth == 1 {
				all, left = want, 2
			}
			slices.Sort(all)
			// Servers differ in what they escape.
			got := namesAndURLs(entries)
			for i := range got {
				got[i] = strings.NewReplacer("%3A", ":", "%26", "&").Replace(got[i])
			}
			if !slices.Equal(got, all) || deeper != left {
				t.Errorf("%s, depth %d: %d too deep, %q\nwant %d, %q", path, depth, deeper, got, left, all)
			}
			for _, e := range entries {
				if e.url.User.String() != "u:p" || e.depth != depth-1 {
					t.Errorf("%s: the login of %s is %q, its depth %d", path, e.name, e.url.User, e.depth)
				}
			}
		}
	}
}

// A page names whatever it likes: only what lies directly below it, at its own origin, is
// asked for.
func TestEntriesStayBelowTheListing(t *testing.T) {
	at := mustParseURL(t, "https://h:8443/a%20b/index.html")
	s := fileSource{name: "n", url: mustParseURL(t, "https://h:8443/start/"), depth: 9}
	for link, want := range map[string]string{
		"f":                             "n/f /a%20b/f",
		"d/":                            "n/d /a%20b/d/",
		"/a%20b/f":                      "n/f /a%20b/f",
		"/a b/f":                        "n/f /a%20b/f",
		"https://h:8443/a%20b/f":        "n/f /a%20b/f",
		"//h:8443/a%20b/f":              "n/f /a%20b/f",
		"../a%20b/f":                    "n/f /a%20b/f",
		" f\n":                          "n/f /a%20b/f",
		"%01x":                          "n/_x /a%20b/%01x",
		".ssh":                          "n/_ssh /a%20b/.ssh",
		"...":                           "n/... /a%20b/...",
		"100%":                          "n/100% /a%20b/100%25",
		"":                              "",
		".":                             "",
		"./":                            "",
		"..":                            "",
		"../":                           "",
		"../f":                          "",
		"/":                             "",
		"/f":                            "",
		"/a%20bc/f":                     "",
		"%2e%2e":                        "",
		"%2e%2e/":                       "",
		"%2e%2e/f":                      "",
		"..%2ff":                        "",
		"x%2ff":                         "",
		"d/f":                           "",
		"d//":                           "",
		"f?C=N;O=D":                     "",
		"?C=N;O=D":                      "",
		"f#top":                         "",
		"#top":                          "",
		"http://h:8443/a%20b/f":         "",
		"https://h/a%20b/f":             "",
		"https://h.evil:8443/a%20b/f":   "",
		"https://h:8443@evil/a%20b/f":   "",
		`\\evil\a%20b\f`:                "",
		"javascript:alert(1)":           "",
		"mailto:a@b":                    "",
		"file:///a%20b/f":               "",
		"data:text/html,<a href='x'>x":  "",
		"%":                             "n/% /a%20b/%25",
		"https://u:p@h:8443/a%20b/pass": "n/pass /a%20b/pass",
	} {
		page := fmt.Sprintf(`<A class=x HREF="%s">text</A>`, strings.ReplaceAll(link, `"`, "&quot;"))
		entries, _ := s.entriesOf([]byte(page), false, at)
		got := ""
		for _, e := range entries {
			got += e.name + " " + e.url.EscapedPath()
			if e.url.User != nil || hostOf(e.url) != "https://h:8443" {
				t.Errorf("link %q: goes to %s", link, e.url)
			}
		}
		if got != want {
			t.Errorf("link %q: got %q, want %q", link, got, want)
		}
	}
	for _, page := range []string{``, `{}`, `[]`, `[1]`, `[{"name":"..","type":"directory"},{"name":"a/b","type":"link"}`, `[{"name":"x"}]`} {
		if entries, deeper := s.entriesOf([]byte(page), true, at); len(entries)+deeper > 0 {
			t.Errorf("page %s: got %v", page, entries)
		}
	}
}

// listingServer serves a tree of pages and files, whose pages are of JSON where it says so.
func listingServer(t *testing.T, asked *atomic.Int64) *httptest.Server {
	mux := http.NewServeMux()
	page := func(path, kind, text string) {
		mux.HandleFunc(path+"{$}", func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if user, password, _ := r.BasicAuth(); user != "u" || password != "p" || r.Header.Get("Range") != "" {
				http.Error(w, "no login, or a range", http.StatusUnauthorized)
				return
			}
			w.Header().Set("Content-Type", kind)
			fmt.Fprint(w, text)
		})
	}
	var many strings.Builder
	for i := range entriesMax + 1 {
		fmt.Fprintf(&many, "<a href=%d>", i)
	}
	page("/pub/", "text/html; charset=utf-8", `<a href="f.bin">f</a> <a href="sub/">s</a> <a href="none/">n</a> <a href="gone">g</a>`)
	page("/pub/sub/", "application/json", `[{"name":"g.bin","type":"file"},{"name":"deep","type":"directory"}]`)
	page("/pub/sub/deep/", "text/html", `<a href="h.bin">h</a>`)
	page("/pub/none/", "text/html", `<a href="../">up</a>`)
	page("/page/", "text/html", `<p>A page.</p>`)
	page("/long/", "text/html", "<a href='f.bin'>"+strings.Repeat(" ", maxInputBytes))
	page("/many/", "text/html", many.String())
	page("/bin/", "application/octet-stream", "bytes")
	mux.HandleFunc("/attached/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Content-Disposition", `Attachment; filename="page.html"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("<a href=x>x</a>"))
	})
	mux.HandleFunc("/open/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<a href=x>x</a>")
	})
	mux.Handle("/moved/", http.RedirectHandler("/pub/", http.StatusFound))
	mux.HandleFunc("/left/", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://localhost"+r.Host[strings.IndexByte(r.Host, ':'):]+"/open/?SECRET", http.StatusFound)
	})
	for _, file := range []string{"/pub/f.bin", "/pub/sub/g.bin", "/pub/sub/deep/h.bin"} {
		mux.Handle(file, contentHandler(int64(len(file)), ""))
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

// The listing gets the login of its source, and so do its files. What is no listing is
// a file, or says what is wrong.
func TestListingsBecomeFiles(t *testing.T) {
	var asked atomic.Int64
	server := listingServer(t, &asked)
	base := strings.Replace(server.URL, "http://", "http://u:p@", 1)
	const noFile = "its page names no file or folder below it"
	for _, test := range []struct {
		source string
		depth  int
		want   []string // name and size, or an error
		pages  int64
	}{
		{"/pub/", 1, []string{"pub/f.bin 10", "pub/gone: the origin answered 404"}, 1},
		{"/pub/", 2, []string{"pub/f.bin 10", "pub/sub/g.bin 14", "pub/gone: the origin answered 404"}, 3},
		{"/pub/", 3, []string{"pub/f.bin 10", "pub/sub/g.bin 14", "pub/sub/deep/h.bin 19", "pub/gone: the origin answered 404"}, 4},
		{"/pub/sub/deep/", 1, []string{"deep/h.bin 19"}, 1},
		{"/moved/", 1, []string{"moved/f.bin 10", "moved/gone: the origin answered 404"}, 1},
		{"/page/", 1, []string{": it ends with '/', and " + noFile}, 1},
		{"/pub/none/", 1, []string{": it ends with '/', and " + noFile}, 1},
		{"/long/", 1, []string{": larger than 32 MiB"}, 1},
		{"/many/", 1, []string{": the listings have more than 100000 entries"}, 1},
		{"/left/", 1, []string{": the origin redirects to http://localhost:"}, 0},
		{"/pub/?page=1", 1, []string{": the origin answered 401"}, 1},
		{"/missing/", 1, []string{": the origin answered 404"}, 0},
		{"/bin/", 1, []string{": the origin answered 401"}, 2}, // the handler refuses Range
		{"/attached/", 1, []string{" 15"}, 0},
	} {
		client := newHTTPClient()
		client.allow.private = true
		before := asked.Load()
		sources := []fileSource{{url: mustParseURL(t, base+test.source)}}
		var got []string
		for _, p := range probeAll(t.Context(), client, sources, test.depth, 0, startLimit) {
			text := fmt.Sprintf("%s %d", p.source.name, p.obj.Size)
			if p.err != nil {
				text = fmt.Sprintf("%s: %v", p.source.name, p.err)
			}
			got = append(got, text)
		}
		client.CloseIdleConnections()
		same := slices.EqualFunc(got, test.want, func(got, want string) bool { return strings.HasPrefix(got, want) })
		if !same || strings.Contains(fmt.Sprint(got), "SECRET") || asked.Load()-before != test.pages {
			t.Errorf("%s, depth %d: got %q of %d pages, want %q of %d", test.source, test.depth, got, asked.Load()-before, test.want, test.pages)
		}
	}
}

// A listing of a directory of a real nginx, in both of its forms.
func TestListingsOfNginx(t *testing.T) {
	n := newNginx(t, wholeFile("f.bin", 100))
	names := []string{"100% a&b #1?.bin", "ü;:=+.txt", "plain"}
	if err := os.MkdirAll(filepath.Join(n.dir, "dir/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{"dir/sub/in": 7}
	for i, name := range names {
		n.write("dir/"+name, make([]byte, i))
		want["dir/"+name] = int64(i)
	}
	n.write("dir/sub/in", make([]byte, 7))
	n.start()
	client := newHTTPClient()
	defer client.CloseIdleConnections()
	for _, path := range []string{"/dir/", "/json/dir/"} {
		all := probeAll(t.Context(), client, []fileSource{{url: mustParseURL(t, "http://"+n.addr+path)}}, 2, 0, startLimit)
		if len(all) != len(want) {
			t.Errorf("%s: %d files, want %d", path, len(all), len(want))
		}
		for _, p := range all {
			if size, listed := want[p.source.name]; p.err != nil || !listed || p.obj.Size != size {
				t.Errorf("%s: %q of %d bytes, %v; want one of %v", path, p.source.name, p.obj.Size, p.err, want)
			}
		}
	}
}
