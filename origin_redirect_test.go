// Tests of redirects, over scripted transports and real servers: which are followed,
// which server gets the headers and logins, and what an error tells.

package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// scriptedOrigins answers every request by its URL, with a redirect if the script has
// one, and keeps the URLs and headers of the requests.
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

// TestNothingIsSentElsewhere follows each path of redirects with each kind of
// credential. The names say where net/http itself would send headers on.
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

// follow requests path[0] and requires that the client goes the whole path.
func follow(t *testing.T, c *credentials, userinfo string, path []string) *scriptedOrigins {
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
	resp, err := newClientOver(origins, c).Get(strings.Replace(path[0], "://", "://"+userinfo, 1))
	if err != nil {
		t.Fatalf("follow %v: %v", path, err)
	}
	resp.Body.Close()
	if len(origins.asked) != len(path) {
		t.Fatalf("follow %v: asked %v", path, origins.asked)
	}
	return origins
}

// TestNoRefererIsSent: a URL that redirects may have a secret in its query.
func TestNoRefererIsSent(t *testing.T) {
	origins := follow(t, new(credentials), "", []string{"https://a.test/x?sig=SECRET", "/y?sig=SECRET", "https://b.test/z"})
	for i, header := range origins.sent {
		if referer := header.Get("Referer"); referer != "" {
			t.Errorf("request %d has Referer %q", i, referer)
		}
	}
	origins = follow(t, accessOf("Referer", "https://a.test/"), "", []string{"https://a.test/x", "/y", "https://b.test/z"})
	for i, want := range []string{"https://a.test/", "https://a.test/", ""} {
		if got := origins.sent[i].Get("Referer"); got != want {
			t.Errorf("the user's own Referer: request %d had %q, want %q", i, got, want)
		}
	}
}

// TestNothingIsSentToARealSecondHost redirects from one name of a machine to another.
func TestNothingIsSentToARealSecondHost(t *testing.T) {
	var got []*http.Request
	second := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r)
		contentHandler(10, "")(w, r)
	})
	elsewhere := strings.Replace(second.url.String(), "127.0.0.1", "localhost", 1)
	first := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r)
		http.Redirect(w, r, elsewhere, http.StatusFound)
	})
	client := accessOf("X-Key", "SECRET").httpClient()
	defer client.CloseIdleConnections()
	source := mustParseURL(t, strings.Replace(first.url.String(), "://", "://user:SECRET@", 1)+"?token=SECRET")
	if _, err := newHTTPOrigin(client, source, 0).Stat(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || !strings.HasPrefix(got[1].Host, "localhost:") {
		t.Fatalf("%d requests, want one to each host", len(got))
	}
	wantHeader(t, got[0].Header, "X-Key", "SECRET", "Authorization", basicOf("user:SECRET"))
	wantHeader(t, got[1].Header, "X-Key", "", "Authorization", "")
	if told := fmt.Sprint(got[1].Header, got[1].URL); strings.Contains(told, "SECRET") {
		t.Errorf("the second host is told %v", told)
	}
}

// TestRedirectKeepsRangeEncodingAndVersion looks at what the next server is asked.
func TestRedirectKeepsRangeEncodingAndVersion(t *testing.T) {
	var got []*http.Request
	o := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r)
		if r.URL.Path != "/there" {
			http.Redirect(w, r, "/there", http.StatusTemporaryRedirect)
			return
		}
		contentHandler(5000, `"a"`)(w, r)
	})
	body, err := o.Open(t.Context(), Object{Size: 5000, ETag: `"a"`}, byteRange{100, 200})
	if err != nil {
		t.Fatal(err)
	}
	checkBody(t, body, byteRange{100, 200})
	if len(got) != 2 || got[1].URL.Path != "/there" {
		t.Fatalf("%d requests, want one to each URL", len(got))
	}
	for _, r := range got {
		wantHeader(t, r.Header, "Range", "bytes=100-199", "If-Match", `"a"`, "Accept-Encoding", "identity")
	}
}

func basicOf(login string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(login))
}

// TestRequestIsLeftAsItWas: http.Client follows redirects with the request's header,
// so the secrets must not be in it.
func TestRequestIsLeftAsItWas(t *testing.T) {
	origins := new(scriptedOrigins)
	req := httptest.NewRequest(http.MethodGet, "http://a.test/x", nil)
	transport := newClientOver(origins, accessOf("X-Key", "SECRET")).Transport
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if origins.sent[0].Get("X-Key") != "SECRET" || len(req.Header) != 0 || resp.Request != req {
		t.Errorf("sent %v; the request has %v; its answer is to another request: %v", origins.sent[0], req.Header, resp.Request != req)
	}
}

// TestClientReachesIdleConnections: after a timeout the client closes them.
func TestClientReachesIdleConnections(t *testing.T) {
	transport := new(fakeTransport)
	newClientOver(transport, new(credentials)).CloseIdleConnections()
	if transport.idleDropped != 1 {
		t.Error("CloseIdleConnections did not reach the transport below")
	}
}

// A signed URL is good for one request. The next attempt starts at the URL that
// signs.
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

// TestErrorsShowNoSecret has secrets in the userinfo and the query of the source and
// of the redirects.
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
		o := serveText(t, answer)
		o.url.User, o.url.RawQuery = url.UserPassword("SECRET", "SECRET"), "token=SECRET"
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
