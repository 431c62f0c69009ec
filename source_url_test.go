// Tests of URLs that are not written as RFC 3986 wants: each is read as browsers do.

package main

import (
	"strings"
	"testing"
)

func TestALocationIsReadAsBrowsersDo(t *testing.T) {
	const base = "http://h.test/dir/f?q=1"
	for ref, want := range map[string]string{
		"x y":                       "http://h.test/dir/x%20y",
		" /x ":                      "http://h.test/x",
		"/x?a=b c":                  "http://h.test/x?a=b%20c",
		"/x?a=ü\"<>'":               "http://h.test/x?a=%C3%BC%22%3C%3E%27",
		"/ü{}`^":                    "http://h.test/%C3%BC%7B%7D%60%5E",
		"/50%":                      "http://h.test/50%25",
		"/%zz/%2":                   "http://h.test/%25zz/%252",
		"/%41%2f":                   "http://h.test/%41%2f",
		"/x?a=50%&b=%zz":            "http://h.test/x?a=50%&b=%zz",
		"/a\tb\r\nc":                "http://h.test/abc",
		"/a\x01b":                   "http://h.test/a%01b",
		`\a\b?c\d`:                  `http://h.test/a/b?c\d`,
		`\\other.test\x`:            "http://other.test/x",
		"//other.test":              "http://other.test",
		"http:rel":                  "http://h.test/dir/rel",
		"http:/one":                 "http://h.test/one",
		"https://o.test/a b?c d#e":  "https://o.test/a%20b?c%20d",
		"?z":                        "http://h.test/dir/f?z",
		"#only":                     "http://h.test/dir/f?q=1",
		"":                          "http://h.test/dir/f?q=1",
		"/a//b":                     "http://h.test/a//b",
		"/x?u=http://o.test//y":     "http://h.test/x?u=http://o.test//y",
		"../x":                      "http://h.test/x",
		"http://user:pw@o.test/x":   "http://o.test/x",
		"http://o.test:/x":          "http://o.test:/x",
		"http://[::1]:8/x":          "http://[::1]:8/x",
		"http://b\u00fccher.test/x": "http://b%C3%BCcher.test/x",
	} {
		got, err := resolveURL(mustParseURL(t, base), ref)
		if err != nil || got.String() != want {
			t.Errorf("%q: %v, %v; want %s", ref, got, err, want)
		}
	}
}

func TestALocationThatIsNoURLIsRefusedWithoutQuotingIt(t *testing.T) {
	for _, ref := range []string{"ftp://s3cr3t/x", "http://", "http:///s3cr3t", "http://h:s3cr3t/", "http://[::s3cr3t/", "mailto:s3cr3t", "://s3cr3t"} {
		got, err := resolveURL(mustParseURL(t, "https://h.test/f"), ref)
		if err == nil && ref != "://s3cr3t" || err != nil && strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%q: %v, %v; want an error that keeps the secret", ref, got, err)
		}
	}
}

// A repaired URL needs no further repair.
func FuzzARepairedURLIsWhole(f *testing.F) {
	f.Add("http://h/%zz?%\x00#f")
	f.Fuzz(func(t *testing.T, raw string) {
		once := repairURL(raw)
		if again := repairURL(once); again != once {
			t.Errorf("%q became %q, then %q", raw, once, again)
		}
		if query := strings.IndexByte(once, '?'); query >= 0 && strings.ContainsFunc(once[query:], func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Errorf("%q became %q, which no request line can hold", raw, once)
		}
	})
}
