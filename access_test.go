// Tests of what is sent to whom, over scripted redirects and over real servers;
// of what is read from where, first come first served; and of errors, which say
// what is wrong and never show what is there.

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// scriptedOrigins answers every request by its URL, with a redirect where there
// is one, and keeps what it was sent.
type scriptedOrigins struct {
	redirects map[string]string // from URL to Location
	asked     []string          // URLs
	sent      []http.Header
}

func (s *scriptedOrigins) RoundTrip(req *http.Request) (*http.Response, error) {
	asked := *req.URL
	asked.User = nil
	s.asked = append(s.asked, asked.String())
	s.sent = append(s.sent, req.Header)
	resp := &http.Response{StatusCode: http.StatusOK, Header: make(http.Header), Body: http.NoBody, Request: req}
	if location, ok := s.redirects[asked.String()]; ok {
		resp.StatusCode = http.StatusFound
		resp.Header.Set("Location", location)
	}
	return resp, nil
}

// TestNothingIsSentElsewhere follows redirects with every kind of credential at
// once. Those that net/http would send along itself are marked.
func TestNothingIsSentElsewhere(t *testing.T) {
	tests := []struct {
		about string
		path  []string // the source, and where each answer redirects to
		sent  []bool   // to each of these
	}{
		{"no redirect", []string{"https://a.test/x"}, []bool{true}},
		{"same origin", []string{"https://a.test/x", "https://a.test/y", "/z"}, []bool{true, true, true}},
		{"same origin, the port spelled out", []string{"https://a.test/x", "https://A.test:443/y"}, []bool{true, true}},
		{"another host", []string{"https://a.test/x", "https://b.test/y", "/z"}, []bool{true, false, false}},
		{"another host without a scheme", []string{"https://a.test/x", "//b.test/y"}, []bool{true, false}},
		{"a subdomain (net/http would)", []string{"https://a.test/x", "https://sub.a.test/y"}, []bool{true, false}},
		{"the parent domain", []string{"https://sub.a.test/x", "https://a.test/y"}, []bool{true, false}},
		{"another port (net/http would)", []string{"https://a.test/x", "https://a.test:8443/y"}, []bool{true, false}},
		{"http after https (net/http would)", []string{"https://a.test/x", "http://a.test/y"}, []bool{true, false}},
		{"http after https on one port (net/http would)", []string{"https://a.test:99/x", "http://a.test:99/y"}, []bool{true, false}},
		{"https after http (net/http would)", []string{"http://a.test/x", "https://a.test/y"}, []bool{true, false}},
		{"there and back", []string{"https://a.test/x", "https://b.test/y", "https://a.test/z", "/x2"}, []bool{true, false, false, false}},
		{"within, then away", []string{"https://a.test/x", "/y", "https://b.test/z"}, []bool{true, true, false}},
		{"a host that the netrc has", []string{"https://a.test/x", "https://netrc.test/y"}, []bool{true, false}},
	}
	kinds := []struct {
		about          string
		access         *access
		userinfo       string
		header, prefix string
	}{
		{about: "custom header", access: accessOf("X-Api-Key", "SECRET"), header: "X-Api-Key"},
		{about: "cookie", access: accessOf("Cookie", "SECRET"), header: "Cookie"},
		{about: "Authorization", access: accessOf("Authorization", "SECRET"), header: "Authorization"},
		{about: "userinfo", access: new(access), userinfo: "user:SECRET@", header: "Authorization"},
		{about: "netrc", access: &access{netrc: netrc{
			{machine: "a.test", user: "u", password: "SECRET"},
			{machine: "sub.a.test", user: "u", password: "SECRET"},
			{machine: "netrc.test", user: "u", password: "SECRET"},
		}}, header: "Authorization"},
	}
	for _, test := range tests {
		for _, kind := range kinds {
			origins := follow(t, kind.access, kind.userinfo, test.path)
			for i, header := range origins.sent {
				if sent := header.Get(kind.header) != ""; sent != test.sent[i] {
					t.Errorf("%s, %s: sent to %s: %v, want %v", test.about, kind.about, origins.asked[i], sent, test.sent[i])
				}
			}
		}
	}
}

func accessOf(name, value string) *access {
	return &access{header: http.Header{name: {value}}}
}

// follow requests path[0] and requires that the whole path is gone.
func follow(t *testing.T, a *access, userinfo string, path []string) *scriptedOrigins {
	t.Helper()
	origins := &scriptedOrigins{redirects: make(map[string]string)}
	at, err := url.Parse(path[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, location := range path[1:] {
		next, err := at.Parse(location)
		if err != nil {
			t.Fatal(err)
		}
		origins.redirects[at.String()] = location
		at = next
	}
	src := parseTestURL(t, strings.Replace(path[0], "://", "://"+userinfo, 1))
	resp, err := clientOver(origins, a).Get(src.String())
	if err != nil {
		t.Fatalf("follow %v: %v", path, err)
	}
	resp.Body.Close()
	if len(origins.asked) != len(path) {
		t.Fatalf("follow %v: asked %v", path, origins.asked)
	}
	return origins
}

// clientOver returns the program's client over another transport.
func clientOver(base http.RoundTripper, a *access) *http.Client {
	client := a.httpClient()
	client.Transport.(*accessTransport).base = base
	return client
}

func parseTestURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestNoRefererIsSent: the URL that redirects may have a secret in its query.
func TestNoRefererIsSent(t *testing.T) {
	origins := follow(t, new(access), "", []string{"https://a.test/x?sig=SECRET", "https://b.test/y"})
	if referer := origins.sent[1].Get("Referer"); referer != "" {
		t.Errorf("Referer %q was sent", referer)
	}
	origins = follow(t, accessOf("Referer", "https://a.test/"), "", []string{"https://a.test/x", "/y", "https://b.test/z"})
	for i, want := range []string{"https://a.test/", "https://a.test/", ""} {
		if got := origins.sent[i].Get("Referer"); got != want {
			t.Errorf("the user's own Referer: request %d had %q, want %q", i, got, want)
		}
	}
}

// TestNothingIsSentToARealSecondHost: the server's two names are two hosts.
func TestNothingIsSentToARealSecondHost(t *testing.T) {
	type visit struct{ host, key, auth string }
	var mu sync.Mutex
	var visits []visit
	record := func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		host, _, _ := strings.Cut(r.Host, ":")
		visits = append(visits, visit{host, r.Header.Get("X-Key"), r.Header.Get("Authorization")})
	}
	second := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		record(r)
		http.ServeContent(w, r, "", demoModTime(), strings.NewReader("content"))
	}))
	defer second.Close()
	elsewhere := strings.Replace(second.URL, "127.0.0.1", "localhost", 1)
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		record(r)
		http.Redirect(w, r, elsewhere+"/file", http.StatusFound)
	}))
	defer first.Close()

	src := parseTestURL(t, strings.Replace(first.URL, "://", "://user:pass@", 1))
	client := accessOf("X-Key", "SECRET").httpClient()
	defer client.CloseIdleConnections()
	if _, err := newHTTPOrigin(client, src, 0).Stat(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	want := []visit{{"127.0.0.1", "SECRET", basicOf("user:pass")}, {"localhost", "", ""}}
	if !slices.Equal(visits, want) {
		t.Errorf("the servers saw %v, want %v", visits, want)
	}
}

func basicOf(login string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(login))
}

// TestRequestIsLeftAsItWas: who made it, and follows its redirects, is not to
// find the secrets in it.
func TestRequestIsLeftAsItWas(t *testing.T) {
	origins := new(scriptedOrigins)
	req := httptest.NewRequest(http.MethodGet, "http://a.test/x", nil)
	transport := &accessTransport{base: origins, access: accessOf("X-Key", "SECRET")}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if origins.sent[0].Get("X-Key") != "SECRET" || len(req.Header) != 0 || resp.Request != req {
		t.Errorf("sent %v; the request has %v; its answer is to another request: %v", origins.sent[0], req.Header, resp.Request != req)
	}
}

// TestAccessClientReachesIdleConnections: those of a path that went dead are
// dropped by the client.
func TestAccessClientReachesIdleConnections(t *testing.T) {
	closed := make(idleCloser, 1)
	clientOver(closed, new(access)).CloseIdleConnections()
	if len(closed) != 1 {
		t.Error("CloseIdleConnections did not reach the transport below")
	}
}

type idleCloser chan struct{}

func (c idleCloser) CloseIdleConnections() { c <- struct{}{} }
func (c idleCloser) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.ErrUnsupported
}

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
		a, err := loadAccess(test.opts)
		if err != nil {
			t.Errorf("%s: %v", test.about, err)
			continue
		}
		origins := new(scriptedOrigins)
		u := parseTestURL(t, test.url)
		if _, err := clientOver(origins, a).Get(u.String()); err != nil {
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

// TestHeadersReplaceTheProgramsOwn: there is one User-Agent in a request.
func TestHeadersReplaceTheProgramsOwn(t *testing.T) {
	origins := new(scriptedOrigins)
	client := clientOver(origins, accessOf("User-Agent", "other"))
	newHTTPOrigin(client, parseTestURL(t, "http://a.test/x"), 0).Stat(t.Context())
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
		{":SECRET", "no header's name"},
		{"Author ization: SECRET", "no header's name"},
		{"Authorization : SECRET", "no header's name"},
		{"SECRET\r\nX: SECRET", "no header's name"},
		{"Sécret: SECRET", "no header's name"},
		{"SECRET@host: x", "no header's name"},
		{"Authorization:", "nothing stands behind the colon"},
		{"SECRET:  \t", "nothing stands behind the colon"},
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

// requireRefusal requires an error of one line that says what and has no SECRET.
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

func TestReadBearer(t *testing.T) {
	token, err := readBearer(writeTestFile(t, " \r\n abc.DEF-_~+/= \r\n\n"))
	if token != "abc.DEF-_~+/=" || err != nil {
		t.Errorf("the token is %q, %v", token, err)
	}
	for content, says := range map[string]string{
		"":               "it is empty",
		" \n":            "it is empty",
		"Bearer SECRET":  "more than a token",
		"SECRET\nSECRET": "more than a token",
		"SECRET\x00":     "more than a token",
		"SECRETé":        "more than a token",
	} {
		_, err := readBearer(writeTestFile(t, content))
		requireRefusal(t, content, err, says)
	}
	_, err = readBearer(t.TempDir())
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
		a, err := loadAccess(opts)
		if err != nil {
			t.Fatal(err)
		}
		client := a.httpClient()
		defer client.CloseIdleConnections()
		_, err = newHTTPOrigin(client, parseTestURL(t, server.URL+"/x?sig=SECRET"), 0).Stat(t.Context())
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

// newTLSServer keeps quiet about clients that do not trust it.
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
		{"no certificate inside", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("SECRET")}), "certificate 1 of 1: x509:"},
	} {
		_, err := loadRoots(writeTestFile(t, string(test.content)))
		requireRefusal(t, test.about, err, test.says)
	}
	if _, err := loadRoots(writeTestFile(t, string(slices.Concat([]byte("a note\n"), good, key, good)))); err != nil {
		t.Errorf("certificates among other things: %v", err)
	}
	_, err := loadRoots("/no/such/file")
	requireRefusal(t, "missing", err, "CA certificates /no/such/file: no such file")
}

// TestUsageErrorsShowNoSecret: nor does help.
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
		{"header like a flag", []string{"--header", "-X: SECRET", source}, "", "--header: it has no value"},
		{"header file", []string{"--header", "@" + secretFile, source}, "", secretFile + ":1: it has no colon"},
		{"bearer file", []string{"--bearer-file", secretFile, source}, "", "more than a token"},
		{"no bearer file", []string{"--bearer-file", "/no/such/file", source}, "", "bearer file /no/such/file: no such file"},
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
		status := run(args, strings.NewReader(test.stdin), &output, &output)
		if status != exitUsage || !strings.Contains(output.String(), test.says) || strings.Contains(output.String(), "SECRET") {
			t.Errorf("%s: status %d, %q; want %d, %q and nothing secret", test.about, status, output.String(), exitUsage, test.says)
		}
	}
	if status, stdout, _ := runInProcess(t, "--header", "X: SECRET", "--help"); status != exitOK || strings.Contains(stdout, "SECRET") {
		t.Errorf("--help: status %d:\n%s", status, stdout)
	}
}
