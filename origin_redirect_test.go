// Tests of redirects, over scripted transports and real servers: where they may
// lead, who gets the headers and logins, and what an error tells.

package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
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
		access         *credentials
		userinfo       string
		header, prefix string
	}{
		{about: "custom header", access: accessOf("X-Api-Key", "SECRET"), header: "X-Api-Key"},
		{about: "cookie", access: accessOf("Cookie", "SECRET"), header: "Cookie"},
		{about: "Authorization", access: accessOf("Authorization", "SECRET"), header: "Authorization"},
		{about: "userinfo", access: new(credentials), userinfo: "user:SECRET@", header: "Authorization"},
		{about: "netrc", access: &credentials{netrc: netrc{
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

func accessOf(name, value string) *credentials {
	return &credentials{header: http.Header{name: {value}}}
}

// follow requests path[0] and requires that the whole path is gone.
func follow(t *testing.T, a *credentials, userinfo string, path []string) *scriptedOrigins {
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
func clientOver(base http.RoundTripper, a *credentials) *http.Client {
	client := a.httpClient()
	client.Transport.(*credentialsTransport).base = base
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
	origins := follow(t, new(credentials), "", []string{"https://a.test/x?sig=SECRET", "https://b.test/y"})
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
	transport := &credentialsTransport{base: origins, access: accessOf("X-Key", "SECRET")}
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
	clientOver(closed, new(credentials)).CloseIdleConnections()
	if len(closed) != 1 {
		t.Error("CloseIdleConnections did not reach the transport below")
	}
}

type idleCloser chan struct{}

func (c idleCloser) CloseIdleConnections() { c <- struct{}{} }

func (c idleCloser) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.ErrUnsupported
}

// A target that is good for one request: the next goes through the URL that
// signs it.
func TestAnExpiredTargetIsSignedAnew(t *testing.T) {
	var signed atomic.Int64
	used := map[string]bool{}
	o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		signature := r.URL.Query().Get("signature")
		switch {
		case r.URL.Path == "/f.bin":
			http.Redirect(w, r, "/target?signature="+strconv.FormatInt(signed.Add(1), 10), http.StatusFound)
		case used[signature] || signature == "2":
			w.WriteHeader(http.StatusForbidden)
		default:
			used[signature] = true
			servePart(w, byteRange{0, 1}, versionSize)
		}
	})
	obj, err := o.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = openAll(o, obj, byteRange{0, 1})
	wantRetry(t, err, true)
	if !redirectedRefusal(err) || strings.Contains(err.Error(), "signature") {
		t.Errorf("error %v, want the refusal of a redirect's target, without its query", err)
	}
	if got, err := openAll(o, obj, byteRange{0, 1}); err != nil || string(got) != string(bytesOf(byteRange{0, 1})) {
		t.Errorf("asked again: %x, %v", got, err)
	}
	if n := signed.Load(); n != 3 {
		t.Errorf("the URL that signs was asked %d times, want 3", n)
	}
}

func TestRedirectsToNowhereAreFinal(t *testing.T) {
	tests := []struct{ name, location string }{
		{"a circle", "/f?secret=s3cr3t"},
		{"another scheme", "ftp://user:s3cr3t@host/f"},
		{"no host", "http:///f?secret=s3cr3t"},
		{"no URL", "http://host:s3cr3t/%zz"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked := 0
			o := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
				asked++
				w.Header().Set("Location", tt.location)
				w.WriteHeader(http.StatusFound)
			})
			_, err := o.Stat(t.Context())
			wantRetry(t, err, false)
			if !errors.Is(err, errBadRedirect) || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("error %v, want errBadRedirect that keeps the secret", err)
			}
			if asked > maxRedirects {
				t.Errorf("the origin was asked %d times, want %d at most", asked, maxRedirects)
			}
		})
	}
}

func TestARedirectIsNotToldWhereItCameFrom(t *testing.T) {
	var got http.Header
	o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/f.bin" {
			http.Redirect(w, r, "/target", http.StatusTemporaryRedirect)
			return
		}
		got = r.Header
		servePart(w, byteRange{0, 1}, versionSize)
	})
	o.url.RawQuery = "signature=s3cr3t"
	if _, err := openAll(o, Object{Size: versionSize, ETag: `"a"`}, byteRange{0, 1}); err != nil && !errors.Is(err, errChanged) {
		t.Fatal(err)
	}
	wantHeader(t, got, "Referer", "", "Range", "bytes=0-0", "If-Match", `"a"`, "Accept-Encoding", "identity")
}

// TestErrorsShowNoSecret asks with a password, a token as name and a query, and
// is sent elsewhere with more of them.
func TestErrorsShowNoSecret(t *testing.T) {
	redirect := func(location string) string {
		return answerOf("302 Found", "Location: "+location+"\nContent-Length: 0", "")
	}
	answers := map[string]string{
		"no answer":            "",
		"no HTTP":              "hello\r\n\r\n",
		"404":                  answerOf("404 Not Found", "Content-Length: 0", ""),
		"no size":              answerOf("206 Partial Content", "Content-Range: bytes 0-9/*\nContent-Length: 0", ""),
		"gzip":                 answerOf("200 OK", "Content-Encoding: gzip\nContent-Length: 0", ""),
		"range":                answerOf("206 Partial Content", "Content-Range: bytes 0-0/0\nContent-Length: 0", ""),
		"redirect loop":        redirect("?t=SECRET"),
		"redirect to ftp":      redirect("ftp://SECRET:SECRET@h/x?t=SECRET"),
		"redirect to no host":  redirect("http:///x?t=SECRET"),
		"redirect to refusal":  redirect("http://SECRET:SECRET@127.0.0.1:1/x?t=SECRET"),
		"redirect to nowhere":  redirect("http://h/%zz?t=SECRET"),
		"redirect to no port":  redirect("http://u:SECRET@h:port/?t=SECRET"),
		"redirect to no place": answerOf("302 Found", "Content-Length: 0", ""),
	}
	for about, answer := range answers {
		o := originOf(t, "http://SECRET:SECRET@"+listenText(t, answer)+"/f.bin?token=SECRET")
		_, statErr := o.Stat(t.Context())
		_, openErr := o.Open(t.Context(), Object{Size: 10}, byteRange{0, 10})
		for _, err := range []error{statErr, openErr} {
			if err == nil || strings.Contains(err.Error(), "SECRET") {
				t.Errorf("%s: error %v, want one without a secret", about, err)
			}
		}
		if strings.Contains(o.String(), "SECRET") || !strings.HasSuffix(o.String(), "/f.bin") {
			t.Errorf("the origin is named %s", o)
		}
	}
}

// TestRedirectTellsNoSecretToAnotherHost looks at all that the second host
// gets.
func TestRedirectTellsNoSecretToAnotherHost(t *testing.T) {
	var told http.Header
	second := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		told = r.Header.Clone()
		contentHandler(10, "")(w, r)
	})
	elsewhere := strings.Replace(second.url.String(), "127.0.0.1", "localhost", 1)
	first := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere, http.StatusFound)
	})
	first.url = mustParseURL(t, strings.Replace(first.url.String(), "://", "://user:SECRET@", 1)+"?token=SECRET")
	if _, err := first.Stat(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(told); strings.Contains(text, "SECRET") || told.Get("Authorization") != "" {
		t.Errorf("the second host is told %v", text)
	}
}
