// Tests of credentials: where each comes from, which one wins, the grammar of netrc,
// and errors that say what is wrong and never quote a secret.

package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestCredentialsPrecedence(t *testing.T) {
	bearer := writeTestFile(t, "token\n")
	t.Setenv("NETRC", writeTestFile(t, "machine a.test login n password netrc\nmachine a.test login user password second\n"))
	tests := []struct {
		about       string
		opts        options
		url, expect string
	}{
		{"header", options{Header: []string{"Authorization: Own x"}, BearerFile: bearer}, "https://u:p@a.test/", "Own x"},
		{"header in another case", options{Header: []string{"authorization:Own x"}, BearerFile: bearer}, "https://u:p@a.test/", "Own x"},
		{"bearer", options{BearerFile: bearer}, "https://u:p@a.test/", "Bearer token"},
		{"userinfo", options{}, "https://u:p@a.test/", basicOf("u:p")},
		{"userinfo, escaped", options{}, "https://u%40x:p%3Aq@a.test/", basicOf("u@x:p:q")},
		{"userinfo without a user", options{}, "https://:p@a.test/", basicOf(":p")},
		{"userinfo, empty password", options{}, "https://user:@a.test/", basicOf("user:")},
		{"user whose password the netrc has", options{}, "https://user@a.test/", basicOf("user:second")},
		{"user whom the netrc does not know", options{}, "https://other@a.test/", basicOf("other:")},
		{"netrc", options{}, "https://a.test/", basicOf("n:netrc")},
		{"netrc, any case and port", options{}, "https://A.TEST:8443/", basicOf("n:netrc")},
		{"netrc of another host", options{}, "https://b.test/", ""},
		{"another header changes nothing", options{Header: []string{"X-A: b"}}, "https://a.test/", basicOf("n:netrc")},
	}
	for _, test := range tests {
		a, err := loadCredentials(test.opts.Header, test.opts.BearerFile, test.opts.CACert)
		if err != nil {
			t.Errorf("%s: %v", test.about, err)
			continue
		}
		origins := new(scriptedOrigins)
		if _, err := getURL(t, clientOver(origins, a), test.url); err != nil {
			t.Fatal(err)
		}
		if got := origins.sent[0].Get("Authorization"); got != test.expect {
			t.Errorf("%s: sent %q, want %q", test.about, got, test.expect)
		}
	}
}

func writeTestFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestParseHeaders(t *testing.T) {
	file := writeTestFile(t, "\ufeff# comment\r\n\r\nX-One: 1\r\n  X-Two:2  \n")
	header, err := parseHeaders([]string{"X-Zero:  a, b: c\t", "x-one: 0", "@" + file, "Cookie: a=b", "User-Agent: é"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"X-Zero": {"a, b: c"}, "X-One": {"0", "1"}, "X-Two": {"2"}, "Cookie": {"a=b"}, "User-Agent": {"é"},
	} {
		if got := header[name]; !slices.Equal(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if len(header) != 5 {
		t.Errorf("header = %v", header)
	}
}

// TestHeadersReplaceTheProgramsOwn: a request has one User-Agent, the user's.
func TestHeadersReplaceTheProgramsOwn(t *testing.T) {
	origins := new(scriptedOrigins)
	client := clientOver(origins, accessOf("User-Agent", "other"))
	newHTTPOrigin(client, mustParseURL(t, "http://a.test/x"), 0).Stat(t.Context())
	if got := origins.sent[0].Values("User-Agent"); !slices.Equal(got, []string{"other"}) {
		t.Errorf("User-Agent is %q", got)
	}
	if got := origins.sent[0].Get("Range"); got != "bytes=0-0" {
		t.Errorf("Range is %q: the program's own headers are gone", got)
	}
}

func TestHeadersAreRefused(t *testing.T) {
	tests := []struct{ arg, says string }{
		{"SECRET", "number 2: it has no colon"},
		{"", "number 2: it has no colon"},
		{":SECRET", "no header name"},
		{"Author ization: SECRET", "no header name"},
		{"Authorization : SECRET", "no header name"},
		{"SECRET\r\nX: SECRET", "no header name"},
		{"Sécret: SECRET", "no header name"},
		{"SECRET@host: x", "no header name"},
		{"Authorization:", "no value after the colon"},
		{"SECRET:  \t", "no value after the colon"},
		{"X: SECRET\r\nY: SECRET", "line break"},
		{"X: SECRET\n", "line break"},
		{"X: SECRET\x00", "control character"},
		{"range: SECRET", "Range cannot be given: each request needs its own"},
		{"if-match: SECRET", "If-Match cannot be given"},
		{"Accept-encoding: SECRET", "Accept-Encoding cannot be given"},
		{"HOST: SECRET", "in the URL"},
		{"Proxy-Authorization: SECRET", "http_proxy"},
		{"Transfer-Encoding: SECRET", "Transfer-Encoding cannot be given"},
		{"@/no/such/file", "header /no/such/file: no such file"},
	}
	for _, test := range tests {
		_, err := parseHeaders([]string{"X-Fine: 1", test.arg})
		requireRefusal(t, test.arg, err, test.says)
	}
	file := writeTestFile(t, "X-Fine: 1\r\n\r\nSECRET\r\n")
	_, err := parseHeaders([]string{"@" + file})
	requireRefusal(t, "@file", err, file+":3: it has no colon")
}

// requireRefusal requires an error of one line that holds says and no SECRET.
func requireRefusal(t *testing.T, about string, err error, says string) {
	t.Helper()
	if err == nil {
		t.Errorf("%q is not refused", about)
		return
	}
	if text := err.Error(); !strings.Contains(text, says) || strings.Contains(text, "SECRET") || strings.ContainsAny(text, "\r\n") {
		t.Errorf("%q: %q; want one line that says %q and nothing secret", about, text, says)
	}
}

func TestBearerFile(t *testing.T) {
	token, err := readBearer(writeTestFile(t, " \r\n abc.DEF-_~+/= \r\n\n"))
	if token != "abc.DEF-_~+/=" || err != nil {
		t.Errorf("the token is %q, %v", token, err)
	}
	for content, says := range map[string]string{
		"":               "it is empty",
		" \n":            "it is empty",
		"Bearer SECRET":  "only the token",
		"SECRET\nSECRET": "only the token",
		"SECRET\x00":     "only the token",
		"SECRETé":        "only the token",
	} {
		file := writeTestFile(t, content)
		_, err := loadCredentials(nil, file, "")
		requireRefusal(t, content, err, "bearer file "+file+": it ")
		requireRefusal(t, content, err, says)
	}
	_, err = loadCredentials(nil, t.TempDir(), "")
	requireRefusal(t, "a directory", err, "is a directory")
}

func TestCACert(t *testing.T) {
	var protocol atomic.Value
	server := newTLSServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protocol.Store(r.Proto)
		http.ServeContent(w, r, "", demoModTime(), strings.NewReader("content"))
	}))
	stat := func(opts options) error {
		t.Setenv("NETRC", "/dev/null")
		a, err := loadCredentials(opts.Header, opts.BearerFile, opts.CACert)
		if err != nil {
			t.Fatal(err)
		}
		client := clientOf(a)
		defer client.CloseIdleConnections()
		_, err = newHTTPOrigin(client, mustParseURL(t, server.URL+"/x?sig=SECRET"), 0).Stat(t.Context())
		return err
	}
	requireRefusal(t, "an unknown authority", stat(options{}), "--ca-cert FILE")
	if err := stat(options{CACert: writeTestFile(t, string(certificatePEM(server)))}); err != nil {
		t.Errorf("with --ca-cert: %v", err)
	}
	if protocol.Load() != "HTTP/2.0" {
		t.Errorf("with --ca-cert the request came over %v", protocol.Load())
	}
}

// newTLSServer returns a server that logs nothing about clients that do not trust it.
func newTLSServer(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

func certificatePEM(server *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

func TestBadCACerts(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	good := certificatePEM(server)
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("SECRET")})
	for _, test := range []struct {
		about   string
		content []byte
		says    string
	}{
		{"empty", nil, "no certificate in PEM form"},
		{"text", []byte("SECRET"), "no certificate in PEM form"},
		{"DER", server.Certificate().Raw, "no certificate in PEM form"},
		{"a key alone", key, "no certificate in PEM form"},
		{"cut off", good[:len(good)/2], "1 of its 1 certificates are damaged"},
		{"the second cut off", slices.Concat(good, good[:len(good)/2]), "1 of its 2 certificates are damaged"},
		{"no base64", bytes.Replace(good, []byte("MII"), []byte("!!!"), 1), "1 of its 1 certificates are damaged"},
		{"no certificate inside", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("SECRET")}), "certificate 1 of 1 is not valid: malformed certificate"},
	} {
		_, err := loadRoots(writeTestFile(t, string(test.content)))
		requireRefusal(t, test.about, err, test.says)
	}
	if _, err := loadRoots(writeTestFile(t, string(slices.Concat([]byte("a note\n"), good, key, good)))); err != nil {
		t.Errorf("certificates among other things: %v", err)
	}
	_, err := loadCredentials(nil, "", "/no/such/file")
	requireRefusal(t, "missing", err, "CA certificates /no/such/file: no such file")
}

// TestUsageErrorsShowNoSecret also requires that help shows no secret.
func TestUsageErrorsShowNoSecret(t *testing.T) {
	t.Setenv("NETRC", "/dev/null")
	secretFile := writeTestFile(t, "SECRET one SECRET\n")
	const source = "http://127.0.0.1:1/x"
	for _, test := range []struct {
		about string
		args  []string
		stdin string
		says  string
	}{
		{"header", []string{"--header", "SECRET", source}, "", "header number 1: it has no colon"},
		{"joined header, one dash", []string{"-header=X: 1", "-header=X: SECRET\n", source}, "", "header number 2: its value"},
		{"header file", []string{"--header", "@" + secretFile, source}, "", secretFile + ":1: it has no colon"},
		{"bearer file", []string{"--bearer-file", secretFile, source}, "", "it must hold only the token"},
		{"no bearer file", []string{"--bearer-file", "/no/such/file", source}, "", "bearer file: there is none of that name"},
		{"CA certificates", []string{"--ca-cert", secretFile, source}, "", "no certificate in PEM form"},
		{"list", []string{"--list", "-", "--header", "X: SECRET"}, "http://h/x\nhttp://SECRET@/?SECRET\n", "standard input:2: source"},
		{"empty list", []string{"-list", "-"}, "#SECRET", "names no source"},
		{"source", []string{"--header", "X: SECRET", "ftp://u:SECRET@h/x"}, "", "not served"},
		{"a flag of curl's", []string{"-H", "X: SECRET", source}, "", "unknown flag -H"},
		{"a flag of curl's, joined", []string{"-HX: SECRET", source}, "", "unknown flag -H"},
		{"a flag that is nearly right", []string{"--headers=X: SECRET", source}, "", "unknown flag --headers"},
		{"an unknown flag beside", []string{"--header", "X: SECRET", "--nonsense", source}, "", "unknown flag --nonsense"},
	} {
		args := append([]string{"-mount", t.TempDir()}, test.args...)
		var output bytes.Buffer
		status := runMain(args, strings.NewReader(test.stdin), &output, &output)
		if status != exitUsage || !strings.Contains(output.String(), test.says) || strings.Contains(output.String(), "SECRET") {
			t.Errorf("%s: status %d, %q; want %d, %q and nothing secret", test.about, status, output.String(), exitUsage, test.says)
		}
	}
	if status, stdout, _ := runInProcess(t, "--header", "X: SECRET", "--help"); status != exitOK || strings.Contains(stdout, "SECRET") {
		t.Errorf("--help: status %d:\n%s", status, stdout)
	}
}

func TestNetrcGrammar(t *testing.T) {
	tests := []struct {
		about, text string
		want        netrc
	}{
		{"nothing", "", nil},
		{"blanks", " \n\t\r\n", nil},
		{"one line", "machine h login u password p", netrc{{"h", "u", "p"}}},
		{"many lines", "machine h\r\n\tlogin u\r\n\tpassword p\r\n", netrc{{"h", "u", "p"}}},
		{"password first", "machine h password p login u", netrc{{"h", "u", "p"}}},
		{"no password", "machine h login u\nmachine i password p", netrc{{"h", "u", ""}, {"i", "", "p"}}},
		{"account", "machine h login u account a password p", netrc{{"h", "u", "p"}}},
		{"default", "machine h login u password p default login d password e", netrc{{"h", "u", "p"}, {"", "d", "e"}}},
		{"comments", "# machine c login c\nmachine h # machine d\nlogin u # x\n#\npassword p #", netrc{{"h", "u", "p"}}},
		{"a password like a comment", "machine h login u password #p", netrc{{"h", "u", "#p"}}},
		{"a password like a keyword", "machine h login login password machine", netrc{{"h", "login", "machine"}}},
		{"quotes", `machine "h" login "u v" password "a\"b\\c\td#"`, netrc{{"h", "u v", "a\"b\\c\td#"}}},
		{"quotes inside", `machine h login u"v password a\b"`, netrc{{"h", `u"v`, `a\b"`}}},
		{"empty quotes", `machine h login u password "" account x`, netrc{{"h", "u", ""}}},
		{"unknown words", "machine h port 443 login u password p", netrc{{"h", "u", "p"}}},
		{"macro", "machine h login u password p macdef init\ncd x\nmachine no login no\n\nmachine i login v", netrc{{"h", "u", "p"}, {"i", "v", ""}}},
		{"macro, CRLF", "macdef m\r\nmachine no\r\n\r\nmachine h login u", netrc{{"h", "u", ""}}},
		{"macro at the end", "machine h login u\nmacdef m\nmachine no\n", netrc{{"h", "u", ""}}},
	}
	for _, test := range tests {
		got, err := loadNetrc(writeTestFile(t, test.text))
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, %v; want %v", test.about, got, err, test.want)
		}
	}
}

func TestBadNetrc(t *testing.T) {
	tests := []struct{ text, says string }{
		{"machine", `:1: nothing follows "machine"`},
		{"machine h\nlogin SECRET\npassword \n", `:3: nothing follows "password"`},
		{"login SECRET password SECRET", `:1: "login" stands before the first machine`},
		{"\n\nmachine h password \"SECRET\nSECRET\"", ":3: a quote is not closed"},
		{`machine h password "SECRET\`, ":1: a quote is not closed"},
		{`machine "" login SECRET`, ":1: the machine has no name"},
	}
	for _, test := range tests {
		path := writeTestFile(t, test.text)
		_, err := loadNetrc(path)
		requireRefusal(t, test.text, err, "netrc "+path+test.says)
	}
}

func TestNetrcFind(t *testing.T) {
	entries := netrc{{"", "d", "default"}, {"h", "u", "1"}, {"h", "v", "2"}, {"i", "", ""}}
	tests := []struct {
		host, user, password string
		ok                   bool
	}{
		{"h", "", "1", true},
		{"H", "", "1", true},
		{"h", "u", "1", true},
		{"h", "v", "2", true},
		{"h", "d", "default", true},
		{"h", "w", "", false},
		{"i", "", "", true},
		{"sub.h", "", "default", true},
		{"sub.h", "u", "", false},
	}
	for _, test := range tests {
		got, ok := entries.find(test.host, test.user)
		if ok != test.ok || got.password != test.password {
			t.Errorf("find(%q, %q) = %v, %v; want password %q, %v", test.host, test.user, got, ok, test.password, test.ok)
		}
	}
	if got, ok := (netrc{{"h", "u", "1"}}).find("other", ""); ok {
		t.Errorf("without a default, another host gets %v", got)
	}
}

func TestWhichNetrcIsRead(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	ofHome := filepath.Join(home, ".netrc")
	load := func(named string) (*credentials, error) {
		t.Setenv("NETRC", named)
		return loadCredentials(nil, "", "")
	}
	if c, err := load(""); err != nil || c.netrc != nil || c.netrcProblem != nil {
		t.Errorf("without a file: %+v, %v", c, err)
	}
	// The program uses the file although others may read it.
	if err := os.WriteFile(ofHome, []byte("machine h login home"), 0o644); err != nil {
		t.Fatal(err)
	}
	if c, err := load(""); err != nil || !slices.Equal(c.netrc, netrc{{"h", "home", ""}}) {
		t.Errorf("~/.netrc: %+v, %v", c, err)
	}
	if c, err := load(writeTestFile(t, "machine h login named")); err != nil || !slices.Equal(c.netrc, netrc{{"h", "named", ""}}) {
		t.Errorf("$NETRC: %+v, %v", c, err)
	}
	if c, err := load("/dev/null"); err != nil || c.netrc != nil {
		t.Errorf("/dev/null: %+v, %v", c, err)
	}
	for path, says := range map[string]string{
		"/no/such/file": "netrc /no/such/file: no such file", home: "is a directory (set the variable NETRC",
		"/dev/zero": "larger than 32 MiB", writeTestFile(t, "machine"): `:1: nothing follows "machine"`,
	} {
		_, err := load(path)
		requireRefusal(t, "$NETRC "+path, err, says)
	}

	// What nobody named is no reason to fail.
	for what, spoil := range map[string]func(path string) error{
		"damaged":     func(path string) error { return os.WriteFile(path, []byte("machine h login SECRET password"), 0o600) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"a pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"below a file": func(path string) error {
			return errors.Join(os.Remove(filepath.Dir(path)), os.WriteFile(filepath.Dir(path), nil, 0o600))
		},
	} {
		home := filepath.Join(t.TempDir(), "home")
		t.Setenv("HOME", home)
		if err := errors.Join(os.Mkdir(home, 0o700), spoil(filepath.Join(home, ".netrc"))); err != nil {
			t.Fatal(err)
		}
		c, err := load("")
		if err != nil {
			t.Errorf("~/.netrc is %s: %v", what, err)
			continue
		}
		requireRefusal(t, "~/.netrc is "+what, c.netrcProblem, ".netrc")
	}
}

// TestNetrcIsNotReadInVain: a missing netrc is no error if no source could use it.
func TestNetrcIsNotReadInVain(t *testing.T) {
	t.Setenv("NETRC", "/no/such/file")
	for _, opts := range []options{
		{Header: []string{"Authorization: x"}},
		{BearerFile: writeTestFile(t, "token")},
	} {
		if _, err := loadCredentials(opts.Header, opts.BearerFile, opts.CACert); err != nil {
			t.Errorf("%+v: %v", opts, err)
		}
	}
}

// TestTokenIsReadAgainWhenItIsRefused: once for each refusal, and the request goes again
// only with another token than it had.
func TestTokenIsReadAgainWhenItIsRefused(t *testing.T) {
	file := writeTestFile(t, "old-SECRET\n")
	c, err := loadCredentials(nil, file, "")
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	good := "Bearer new-SECRET"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Authorization") != good {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		contentHandler(1000, `"v1"`)(w, r)
	}))
	defer server.Close()
	client := clientOf(c)
	defer client.CloseIdleConnections()
	out := &syncBuffer{}
	client.log = newEventLog(out)
	o := newHTTPOrigin(client, mustParseURL(t, server.URL+"/f.bin"), 0)
	refused := func(want int64) {
		t.Helper()
		asked.Store(0)
		if _, err := o.Stat(t.Context()); !errors.As(err, new(statusError)) || asked.Load() != want {
			t.Errorf("%v after %d requests, want a refusal after %d", err, asked.Load(), want)
		}
	}
	write := func(token string) {
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused(1)
	write("other-SECRET")
	refused(2)
	refused(1)
	write("two SECRET")
	refused(1)
	client.log.Close(time.Minute)
	if text := out.String(); !strings.Contains(text, "bearer file "+file+": it must hold only the token") || strings.Contains(text, "SECRET") {
		t.Errorf("the log has %q", text)
	}
	write("new-SECRET")
	var all sync.WaitGroup
	for range 8 { // each has the old token, or finds that another has read the new one
		all.Go(func() {
			if _, err := o.Stat(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
