// Tests of the sources on a command line: their URLs, the messages that must not show
// a secret, and the file names, whose rules hold for any string.

package main

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/quick"
	"unicode"
	"unicode/utf8"
)

func TestParseSource(t *testing.T) {
	tests := []struct {
		arg, name, url string
	}{
		{"http://h/x", "", "http://h/x"},
		{"https://h", "", "https://h"},
		{"HTTPS://Host:8443/X", "", "https://Host:8443/X"},
		{"http://[::1]:80/x", "", "http://[::1]:80/x"},
		{"https://h/x?a=b&c=d", "", "https://h/x?a=b&c=d"},
		{"https://h/x?next=https://other/y", "", "https://h/x?next=https://other/y"},
		{"https://u:p@h/x=y", "", "https://u:p@h/x=y"},
		{"https://h/x#part", "", "https://h/x"},
		{"film.mkv=http://h/x", "film.mkv", "http://h/x"},
		{"film.mkv=HTTP://h/x", "film.mkv", "http://h/x"},
		{"a=b=http://h/x", "a=b", "http://h/x"},
		{"a.bin=https://h/x?sig=s=&to=ftp://o/", "a.bin", "https://h/x?sig=s=&to=ftp://o/"},
		{"d/e.d/a.bin=http://h/x", "d/e.d/a.bin", "http://h/x"},
		{" spaced name =http://h/x", " spaced name ", "http://h/x"},
	}
	for _, test := range tests {
		s, err := parseSource(test.arg)
		if err != nil {
			t.Errorf("parseSource(%q): %v", test.arg, err)
			continue
		}
		if s.name != test.name || s.url.String() != test.url {
			t.Errorf("parseSource(%q) = %q, %q; want %q, %q", test.arg, s.name, s.url, test.name, test.url)
		}
	}
}

func TestParseSourceRefuses(t *testing.T) {
	const missing = "missing http:// or https://: write http://HOST/PATH, https://HOST/PATH or NAME=URL"
	const outside = "a part of the NAME is empty, '.' or '..': "
	tests := []struct {
		arg, says string
	}{
		{"", missing},
		{"file.bin", missing},
		{"example.com/x", missing},
		{"name=example.com/x", missing},
		{"name=", missing},
		{"http:/h/x", missing},
		{"mailto:someone@h", missing},
		{"=http://h/x", "NAME before '=' is empty"},
		{"example.com/x?to=http://h/y", "without its scheme"},
		{"name=example.com/x?to=http://h/y", "without its scheme"},
		{"ftp://h/x", `scheme "ftp" is not served`},
		{"name=file:///x", `scheme "file" is not served`},
		{"http://", "no host"},
		{"http:///x", "no host"},
		{"http://:80/x", "no host"},
		{"name=http://user@/x", "no host"},
		{"http://h:port/x", `invalid port ":port"`},
		{"http://h:65536/x", "port 65536 is above 65535"},
		{"://h/x", "no valid URL"},
		{"../etc/passwd=http://h/x", outside},
		{"a/./b=http://h/x", outside},
		{"..=http://h/x", outside},
		{"/a=http://h/x", outside},
		{"a/=http://h/x", outside},
		{"a//b=http://h/x", outside},
	}
	for _, test := range tests {
		s, err := parseSource(test.arg)
		if err == nil {
			t.Errorf("parseSource(%q) = %+v, want an error", test.arg, s)
			continue
		}
		if !strings.Contains(err.Error(), test.says) || !strings.HasPrefix(err.Error(), "source \"") {
			t.Errorf("parseSource(%q): %q does not say %q", test.arg, err, test.says)
		}
		if strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("parseSource(%q): %q is more than one line", test.arg, err)
		}
	}
}

// TestParseSourceErrorsShowNoSecret has sources that are refused for every reason,
// with a secret in the userinfo, in the query, or in both.
func TestParseSourceErrorsShowNoSecret(t *testing.T) {
	args := []string{
		"ftp://user:SECRET@h/x",
		"ftp://SECRET@h/x?t=SECRET",
		"ftp://h/x?t=SECRET",
		"ftp://h/x?mail=a@b&t=SECRET",
		"name=ftp://user:SECRET@h/x",
		"http://user:SECRET@:80/x",
		"http:///user:SECRET@h/x",
		"http://?t=SECRET",
		"http://user:SECRET/WORD@h/x",
		"http://user:12SECRET?WORD@h/x",
		"http://user:a#SECRET@h/x",
		"http://user:SEC RET@h/x",
		"http://user:%zzSECRET@h/x",
		"http://h:port/x?t=SECRET",
		"user:SECRET@h/x",
		"h/x?t=SECRET",
		"h/x?user=a@b&to=http://SECRET/",
		"h/x?t=SECRET&to=http://h/",
		"name=h/x?t=SECRET&to=http://h/",
		"=http://user:SECRET@h/x?t=SECRET",
		"user:SECRET@h/x?to=http://h/",
	}
	for _, arg := range args {
		_, err := parseSource(arg)
		if err == nil {
			t.Errorf("parseSource(%q) is not refused", arg)
			continue
		}
		for _, secret := range []string{"SEC", "WORD", "zzS"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("parseSource(%q) shows a secret: %v", arg, err)
			}
		}
	}
}

func TestRedactURL(t *testing.T) {
	tests := []struct {
		url, want string
	}{
		{"http://h/x", "http://h/x"},
		{"https://h:8443", "https://h:8443"},
		{"https://user:secret@h/x", "https://h/x"},
		{"https://secret@h/x?token=secret#secret", "https://h/x"},
		{"https://h/a%2Fb%20c", "https://h/a%2Fb%20c"},
		{"https://h/a\u202eb", "https://h/a%E2%80%AEb"},
		{"https://h?secret", "https://h"},
		{"http://[::1]:80/x", "http://[::1]:80/x"},
	}
	for _, test := range tests {
		if got := redactURL(mustParseURL(t, test.url)); got != test.want {
			t.Errorf("redactURL(%q) = %q, want %q", test.url, got, test.want)
		}
	}
}

func TestIdentityOfAURL(t *testing.T) {
	const base = "https://h/get?id=1&part=a%2Fb;c"
	for changed, same := range map[string]bool{
		base + "#x": true, "https://h/get?id=2&part=a%2Fb;c": false, "https://h/get?id=1&part=a%2Fb;d": false, "https://h/get": false,
		"https://h/other?id=1&part=a%2Fb;c": false, "https://me@h/get?id=1&part=a%2Fb;c": false,
		base + "&X-Amz-Date=2&X-Amz-Signature=3&X-Amz-Expires=4": true, base + "&X-Goog-Date=2&X-Goog-Signature=3": true,
		base + "&versionId=2": false, base + "&X-Amz-Signature=3&versionId=2": false, base + "&x-amz-meta=1": false, base + "&X-Amz-Date=1": false,
		base + "&Expires=2": false, base + "&Signature=3": false, base + "&signature=3&Key-Pair-Id=4": false, base + "&X-Amz-Signature=3;id=2": false,
		base + "&Expires=2&Signature=3&Key-Pair-Id=4": true, base + "&AWSAccessKeyId=4&Expires=2&Signature=3": true,
	} {
		if got := identityOf(mustParseURL(t, changed)) == identityOf(mustParseURL(t, base)); got != same {
			t.Errorf("%s is the file of %s: %v, want %v", changed, base, got, same)
		}
	}
	if text := identityOf(mustParseURL(t, "https://me:SECRET@h/x")); strings.Contains(text, "SECRET") || text == identityOf(mustParseURL(t, "https://you:SECRET@h/x")) {
		t.Errorf("identity with a login: %q", text)
	}
}

func TestFileName(t *testing.T) {
	tests := []struct {
		name, suggested, url, want string
	}{
		{"n.bin", "s.bin", "http://h/u.bin", "n.bin"},
		{"", "s.bin", "http://h/u.bin", "s.bin"},
		{"", "", "http://h/u.bin", "u.bin"},
		{"", "", "http://h/dir/u.bin?v=1", "u.bin"},
		{"", "", "http://h/dir/", "dir"},
		{"", "", "http://h.example:80/", "h.example"},
		{"", "", "http://h.example?x=y", "h.example"},
		{"", "", "http://[::1]:80/", "::1"},

		{"", "", "http://h/a%20b%C3%A9.txt", "a b\u00e9.txt"},
		{"", "", "http://h/a+b", "a+b"},
		{"", "", "http://h/dir/a%2Fb", "a_b"},
		{"", "", "http://h/%2e%2e%2f%2e%2e%2fetc", ".._.._etc"},
		{"", "", "http://h/a%00b%0Ac", "a_b_c"},
		{"", "", "http://h/%FFx", "_x"},
		{"", "", "http://h/..", "h"},
		{"", "", "http://h/x/%2E", "h"},
		{"", "", "http://h/%20", "h"},
		{"", "", "http://h/.FSmount", "_fsmount"},

		{" d /.fsmount/a\nb/x.bin", "s.bin", "http://h/u", "d/_fsmount/a_b/x.bin"},
		{"d/" + strings.Repeat("a", 300) + ".bin", "", "http://h/u", "d/" + strings.Repeat("a", 251) + ".bin"},
		{`a\b`, "", "http://h/u", `a\b`},
		{"..", "s.bin", "http://h/u", "__"},
		{" ", "s.bin", "http://h/u", "_"},
		{".fsmount", "", "http://h/u", "_fsmount"},

		{"", "/etc/passwd", "http://h/u", "passwd"},
		{"", `C:\dir\s.bin`, "http://h/u", "s.bin"},
		{"", `C:\dir/s.bin`, "http://h/u", "s.bin"},
		{"", "../../..", "http://h/u", "u"},
		{"", "dir/", "http://h/u", "u"},
		{"", "  ", "http://h/u", "u"},
		{"", "a\x00b", "http://h/u", "a_b"},
		{"", "dir/.fsmount", "http://h/u", "_fsmount"},
		{"", "-rf", "http://h/u", "_rf"},
		{"", ".bashrc", "http://h/u", "_bashrc"},
		{"", "--..x", "http://h/u", "_x"},
		{"", "...", "http://h/u", "..."},
		{"", "", "http://h/-rf", "-rf"},
	}
	for _, test := range tests {
		s := fileSource{name: test.name, url: mustParseURL(t, test.url)}
		if got := fileName(s, test.suggested, nil); got != test.want {
			t.Errorf("fileName(%q, %q, %q) = %q, want %q", test.name, test.url, test.suggested, got, test.want)
		}
	}
}

func TestTheFinalURLNamesAFileThatOursDoesNot(t *testing.T) {
	for _, test := range []struct{ source, suggested, final, want string }{
		{"http://h/x.iso/download", "", "http://m/pub/x.iso?token=1", "x.iso"},
		{"http://h/x.iso", "", "http://m/y.bin", "x.iso"},
		{"http://h/get", "", "http://m/blob", "get"},
		{"http://h/get", "s.bin", "http://m/y.bin", "s.bin"},
		{"http://h/get", "", "http://m/.x.bin", "_x.bin"},
		{"http://h/get", "", "http://m/a.", "get"},
		{"http://h/", "", "http://m/y.bin", "y.bin"},
	} {
		s := fileSource{url: mustParseURL(t, test.source)}
		if got := fileName(s, test.suggested, mustParseURL(t, test.final)); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
		s.name = "own"
		if got := fileName(s, test.suggested, mustParseURL(t, test.final)); got != "own" {
			t.Errorf("%+v: %q in place of the user's NAME", test, got)
		}
	}
}

func TestSanitizeName(t *testing.T) {
	long := strings.Repeat("a", 300)
	tests := []struct {
		name, want string
	}{
		{"a.bin", "a.bin"},
		{"a b (2).bin", "a b (2).bin"},
		{"\u65e5\u672c.txt", "\u65e5\u672c.txt"},
		{"\ufffd", "\ufffd"},
		{"-rf", "-rf"},
		{"...", "..."},
		{".hidden", ".hidden"},
		{`a\b:c*?`, `a\b:c*?`},

		{"", "_"},
		{".", "_"},
		{"..", "__"},
		{" .. ", "__"},
		{" \u00a0", "_"},
		{"/", "_"},
		{"../../x", ".._.._x"},
		{" a b ", "a b"},
		{"\u3000a\u3000", "a"},

		{"a\x00b", "a_b"},
		{"a\n\r\x1b[31m", "a___[31m"},
		{"\x7f\u0080\u0085\u009f", "____"},
		{"a\u2028b\u2029c", "a_b_c"},
		{"\u202a\u202b\u202c\u202d\u202e", "_____"},
		{"\u2066\u2067\u2068\u2069", "____"},
		{"\u2027\u202f-\u2065\u206a\u200b\u200d\u00ad\ufeffx", "\u2027\u202f-\u2065_____x"},
		{"a\xff\xfeb\xc3", "a_b_"},

		{".fsmount", "_fsmount"},
		{".FSMOUNT", "_fsmount"},
		{" .fsMount ", "_fsmount"},
		{".fsmount2", ".fsmount2"},
		{"fsmount", "fsmount"},

		{long[:255], long[:255]},
		{long, long[:255]},
		{long + ".bin", long[:251] + ".bin"},
		{long + ".tar.gz", long[:252] + ".gz"},
		{long + "." + long[:15], long[:239] + "." + long[:15]},
		{long + "." + long[:16], long[:255]},
		{"." + long, "." + long[:254]},
		{long[:254] + "\u00e9", long[:254]},
		{long[:250] + "\u00e9.bin", long[:250] + ".bin"},
		{long[:249] + "\u00e9.bin", long[:249] + "\u00e9.bin"},
		{strings.Repeat("\U0001f600", 70), strings.Repeat("\U0001f600", 63)},
		{long[:254] + " " + long, long[:254]},
	}
	for _, test := range tests {
		if got := sanitizeName(test.name); got != test.want {
			t.Errorf("sanitizeName(%q) = %q, want %q", test.name, got, test.want)
		}
	}
}

func FuzzSanitizeName(f *testing.F) {
	for _, seed := range []string{
		"", ".", "..", "a/b", "\x00", "\xff\xfe", " .fsMount ", "\u202e\u2028\u2066\u0085",
		strings.Repeat("a", 300) + ".tar.gz", strings.Repeat("\u00e9", 128), strings.Repeat(" ", 256) + ".",
		strings.Repeat("a", 254) + " .b",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		safe := sanitizeName(name)
		checkComponent(t, safe)
		if again := sanitizeName(safe); again != safe {
			t.Errorf("sanitizeName is not idempotent: %q -> %q -> %q", name, safe, again)
		}
		if named := fileName(fileSource{url: &url.URL{Scheme: "http", Host: "h", Path: "/" + name}}, name, nil); named != "h" {
			checkComponent(t, named)
		}
	})
}

// checkComponent reports each rule for names in the mounted directory that name
// breaks. It does not use the program's own sets of characters.
func checkComponent(t *testing.T, name string) {
	t.Helper()
	if len(name) < 1 || len(name) > 255 {
		t.Errorf("%q has %d bytes", name, len(name))
	}
	if !utf8.ValidString(name) {
		t.Errorf("%q is not UTF-8", name)
	}
	if slices.Contains([]string{".", "..", ".fsmount"}, strings.ToLower(name)) {
		t.Errorf("%q is reserved", name)
	}
	if strings.TrimFunc(name, unicode.IsSpace) != name {
		t.Errorf("%q has a blank at an end", name)
	}
	for _, r := range name {
		if r == '/' || r < 0x20 || 0x7f <= r && r <= 0x9f ||
			slices.Contains([]rune("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"), r) {
			t.Errorf("%q holds %U", name, r)
		}
	}
}

func TestUniqueNames(t *testing.T) {
	long := strings.Repeat("a", 255)
	tests := []struct {
		names, want []string
	}{
		{nil, []string{}},
		{[]string{"a", "b"}, []string{"a", "b"}},
		{[]string{"a.bin", "a.bin", "a.bin"}, []string{"a.bin", "a (2).bin", "a (3).bin"}},
		{[]string{"a", "b", "a", "b"}, []string{"a", "b", "a (2)", "b (2)"}},
		{[]string{"a.tar.gz", "a.tar.gz"}, []string{"a.tar.gz", "a.tar (2).gz"}},
		{[]string{".hidden", ".hidden"}, []string{".hidden", ".hidden (2)"}},
		{[]string{"a.", "a."}, []string{"a.", "a (2)."}},
		{[]string{"A.bin", "a.bin"}, []string{"A.bin", "a.bin"}},

		{[]string{"a (2).bin", "a.bin", "a.bin"}, []string{"a (2).bin", "a.bin", "a (3).bin"}},
		{[]string{"a.bin", "a.bin", "a (2).bin"}, []string{"a.bin", "a (3).bin", "a (2).bin"}},
		{
			[]string{"a.bin", "a.bin", "a (2).bin", "a (2).bin", "a.bin"},
			[]string{"a.bin", "a (3).bin", "a (2).bin", "a (2) (2).bin", "a (4).bin"},
		},
		{[]string{"a", "a", "a (2) (2)", "a (2)", "a (2)"}, []string{"a", "a (3)", "a (2) (2)", "a (2)", "a (2) (3)"}},

		{[]string{long, long}, []string{long, long[:251] + " (2)"}},
		{[]string{long[:251] + ".bin", long[:251] + ".bin"}, []string{long[:251] + ".bin", long[:247] + " (2).bin"}},
		// Two long names are the same after they were cut.
		{
			[]string{long[:254] + "b", long[:254] + "b", long[:254] + "c", long[:254] + "c"},
			[]string{long[:254] + "b", long[:251] + " (2)", long[:254] + "c", long[:251] + " (3)"},
		},
		{
			slices.Repeat([]string{long[:250] + "\u00e9"}, 2),
			[]string{long[:250] + "\u00e9", long[:250] + " (2)"},
		},
	}
	for _, test := range tests {
		given := slices.Clone(test.names)
		if got := uniqueNames(test.names, nobody); !slices.Equal(got, test.want) {
			t.Errorf("uniqueNames(%q) = %q, want %q", test.names, got, test.want)
		}
		if !slices.Equal(test.names, given) {
			t.Errorf("uniqueNames changed its argument %q to %q", given, test.names)
		}
	}
}

// A number stands within the directory. No name gets that of a directory, or one in use.
func TestUniqueNamesInDirectories(t *testing.T) {
	inUse := func(name string) bool { return name == "old" || name == "old (2)" || name == "d/x" }
	got := uniqueNames([]string{"a", "a/b/c", "old", "a.d/x", "a.d/x", "d/x", "d", "a", "a/b"}, inUse)
	want := []string{"a (2)", "a/b/c", "old (3)", "a.d/x", "a.d/x (2)", "d/x (2)", "d (2)", "a (3)", "a/b (2)"}
	if !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
}

// TestUniqueNamesAreDistinct draws from a few names and their numbered forms, so that
// many are equal.
func TestUniqueNamesAreDistinct(t *testing.T) {
	long := strings.Repeat("\u00e9", 127)
	pool := []string{"a", "a.b", ".a", ".a (2)", "a (2)", "a (3)", "a (2).b", "a (2) (2)", "a (9)", "a (10)",
		long, long + "b", long + "c", long[:250] + " (2)", long[:250] + " (3)", long[:248] + ".tar.gz"}
	property := func(picks []uint8) bool {
		names := make([]string, len(picks))
		for i, pick := range picks {
			names[i] = pool[int(pick)%len(pool)]
		}
		return areUniqueForms(names, uniqueNames(names, nobody))
	}
	if err := quick.Check(property, &quick.Config{MaxCount: 2000}); err != nil {
		t.Error(err)
	}
	anyStrings := func(names []string) bool {
		names = append(names, names...)
		return areUniqueForms(names, uniqueNames(names, nobody))
	}
	if err := quick.Check(anyStrings, nil); err != nil {
		t.Error(err)
	}
}

// areUniqueForms reports whether the names in unique are distinct, keep each name at
// its first occurrence, and have at most 255 bytes if the original has.
func areUniqueForms(names, unique []string) bool {
	if len(unique) != len(names) {
		return false
	}
	seen := make(map[string]bool)
	for i, name := range unique {
		first := slices.Index(names, names[i]) == i
		if seen[name] || first != (name == names[i]) || len(name) > max(255, len(names[i])) {
			return false
		}
		seen[name] = true
	}
	return true
}

// TestUniqueNamesCountOn would take long if each of the equal names were counted
// from 2.
func TestUniqueNamesCountOn(t *testing.T) {
	unique := uniqueNames(slices.Repeat([]string{"index.html"}, 10000), nobody)
	if last, want := unique[len(unique)-1], "index (10000).html"; last != want {
		t.Errorf("the last of 10,000 is %q, want %q", last, want)
	}
}

func TestDispositionFilename(t *testing.T) {
	tests := []struct {
		header, want string
	}{
		{"", ""},
		{"attachment", ""},
		{"inline; size=7", ""},
		{"attachment; filename=a.bin", "a.bin"},
		{"Attachment; FileName=\"a b.bin\"", "a b.bin"},
		{`inline; filename="a.bin";`, "a.bin"},
		{`attachment; filename="a;b=c.bin"; size=7`, "a;b=c.bin"},
		{`attachment; filename="a \"b\".bin"`, `a "b".bin`},
		{`attachment; filename="C:\dir\a.bin"`, `C:\dir\a.bin`},
		{`attachment; filename="../a.bin"`, "../a.bin"},
		{"attachment; filename=\"\u00e9.bin\"", "\u00e9.bin"},
		{"attachment; filename*=UTF-8''%e2%82%ac%20rates.txt", "\u20ac rates.txt"},
		{`attachment; filename="EURO.txt"; filename*=utf-8''%e2%82%ac.txt`, "\u20ac.txt"},
		{`attachment; filename*=utf-8''%e2%82%ac.txt; filename="EURO.txt"`, "\u20ac.txt"},
		{`attachment; filename="a.txt"; filename*=unknown''%ff.txt`, "a.txt"},
		{`attachment; filename*=UTF-8''..%2Fa.txt`, "../a.txt"},

		{"attachment; filename=my file.pdf", "my file.pdf"},
		{"attachment;filename= my file.pdf ; size=7", "my file.pdf"},
		{"attachment; FILENAME=\u00e9t\u00e9.pdf", "\u00e9t\u00e9.pdf"},
		{`attachment; filename="a.bin`, ""},
		{"attachment; filename", ""},
		{"attachment; filename=", ""},
		{"filename=a.bin", ""},
		{";", ""},
	}
	for _, test := range tests {
		if got := dispositionFilename(test.header); got != test.want {
			t.Errorf("dispositionFilename(%q) = %q, want %q", test.header, got, test.want)
		}
	}
}

func mustParseURL(t *testing.T, rawURL string) *url.URL {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatalf("parse %q: %v", rawURL, err)
	}
	return u
}

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

// nobody is the inUse of a mount without files.
func nobody(string) bool { return false }
