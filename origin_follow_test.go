// Tests of redirects, over scripted transports and real servers: which are followed,
// which server gets the headers and logins, and what an error tells.

package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// scriptedOrigins answers every request by its URL, with a redirect if the script has
// one, and keeps the URLs and headers of the requests.
type scriptedOrigins struct {
	redirects map[string]string // from URL to Location
	cookies   []string          // that each redirect sets
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
		resp.Header["Set-Cookie"] = s.cookies
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
			origins := followPath(t, kind.access, kind.userinfo, test.path)
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
func followPath(t *testing.T, c *credentials, userinfo string, path []string, cookies ...string) *scriptedOrigins {
	t.Helper()
	origins := &scriptedOrigins{redirects: make(map[string]string), cookies: cookies}
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
	client := clientOver(origins, c)
	client.allow.plain = true
	resp, err := getURL(t, client, strings.Replace(path[0], "://", "://"+userinfo, 1))
	if err != nil {
		t.Fatalf("follow %v: %v", path, err)
	}
	resp.finish()
	if len(origins.asked) != len(path) {
		t.Fatalf("follow %v: asked %v", path, origins.asked)
	}
	return origins
}

// TestNoRefererIsSent: a URL that redirects may have a secret in its query.
func TestNoRefererIsSent(t *testing.T) {
	origins := followPath(t, new(credentials), "", []string{"https://a.test/x?sig=SECRET", "/y?sig=SECRET", "https://b.test/z"})
	for i, header := range origins.sent {
		if referer := header.Get("Referer"); referer != "" {
			t.Errorf("request %d has Referer %q", i, referer)
		}
	}
	origins = followPath(t, accessOf("Referer", "https://a.test/"), "", []string{"https://a.test/x", "/y", "https://b.test/z"})
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
	client := clientOf(accessOf("X-Key", "SECRET"))
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
	body, err := o.Open(t.Context(), request{obj: Object{Size: 5000, ETag: `"a"`}, r: byteRange{100, 200}})
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

// TestClientReachesIdleConnections: after a timeout the client closes them.
func TestClientReachesIdleConnections(t *testing.T) {
	transport := new(fakeTransport)
	client := clientOver(transport, new(credentials))
	client.transport(route{})
	client.CloseIdleConnections()
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
			if !errors.As(err, new(redirectError)) || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("error %v, want a redirectError that keeps the secret", err)
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
		_, openErr := o.Open(t.Context(), request{obj: Object{Size: 10}, r: byteRange{0, 10}})
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

// An origin that sets a cookie and redirects wants it back, on that host alone.
func TestCookiesOfARedirectGoToItsHostAlone(t *testing.T) {
	origins := followPath(t, accessOf("Cookie", "own=1"), "", []string{"https://a.test/x", "/y", "https://sub.a.test/z", "https://a.test/w"},
		"hop=1", "wide=1; Domain=a.test")
	for i, want := range []string{"own=1", "own=1; hop=1; wide=1", "", "hop=1; wide=1"} {
		if got := origins.sent[i].Get("Cookie"); got != want {
			t.Errorf("request %d has the cookies %q, want %q", i, got, want)
		}
	}
}

func TestUserAgentReachesEveryServer(t *testing.T) {
	origins := followPath(t, accessOf("User-Agent", "Mozilla"), "", []string{"https://a.test/x", "https://b.test/y"})
	for i, header := range origins.sent {
		wantHeader(t, header, "User-Agent", "Mozilla")
		if len(header["User-Agent"]) != 1 {
			t.Errorf("request %d: %v", i, header)
		}
	}
}

// Every test runs on loopback, so the source's address is told to the client.
func TestARedirectLeadsToNoNearerAddress(t *testing.T) {
	server := serveHTTP(t, contentHandler(10, ""))
	port := server.url.Port()
	elsewhere := func(location string) string {
		redirects := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusFound)
		})
		return redirects.url.String()
	}
	for _, tt := range []struct {
		location string
		source   addressClass
		refused  bool
	}{
		{"http://127.0.0.1:" + port + "/f", publicAddress, true},
		{"http://localhost:" + port + "/f", publicAddress, true},
		{"http://[::ffff:127.0.0.1]:" + port + "/f", publicAddress, true},
		{"http://0.0.0.0:" + port + "/f", publicAddress, true},
		{"http://127.0.0.1:" + port + "/f", privateAddress, true},
		{"http://127.0.0.1:" + port + "/f", loopbackAddress, false},
		{"http://localhost:" + port + "/f", loopbackAddress, false},
		{"http://169.254.169.254/f", loopbackAddress, true},
		{"http://10.0.0.1/f", loopbackAddress, true},
	} {
		for _, allowed := range []bool{false, true} {
			if allowed && !strings.Contains(tt.location, port) {
				continue // nobody is there
			}
			client := newHTTPClient()
			client.allow.private = allowed
			h := startAt(mustParseURL(t, elsewhere(tt.location)))
			h.moved, h.reach = true, tt.source
			if tt.source != loopbackAddress { // go to the location without a connection to its source
				h.url = mustParseURL(t, tt.location)
			}
			a, err := client.follow(t.Context(), h, make(http.Header), false, stallLimit, nil)
			if err == nil {
				a.finish()
			}
			if refused := errors.As(err, new(redirectError)); refused != (tt.refused && !allowed) || !refused && err != nil {
				t.Errorf("from class %d to %s, allowed %v: %v", tt.source, tt.location, allowed, err)
			}
			if err != nil {
				wantRetry(t, err, false)
				if !strings.Contains(err.Error(), "--allow-redirect private") {
					t.Errorf("error %q does not say what allows it", err)
				}
			}
			client.CloseIdleConnections()
		}
	}
}

func TestAddressClasses(t *testing.T) {
	for address, want := range map[string]addressClass{
		"8.8.8.8": publicAddress, "2606:4700::1": publicAddress,
		"10.1.2.3": privateAddress, "172.16.0.1": privateAddress, "192.168.0.1": privateAddress, "100.64.0.1": privateAddress, "fd00::1": privateAddress,
		"169.254.169.254": linkLocalAddress, "fe80::1": linkLocalAddress, "224.0.0.1": linkLocalAddress,
		"127.0.0.1": loopbackAddress, "127.9.9.9": loopbackAddress, "::1": loopbackAddress, "0.0.0.0": loopbackAddress, "::": loopbackAddress,
		"::ffff:127.0.0.1": loopbackAddress, "64:ff9b::7f00:1": loopbackAddress, "64:ff9b::a00:1": privateAddress, "2002:7f00:1::": loopbackAddress,
	} {
		if got := classOf(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s is of class %d, want %d", address, got, want)
		}
	}
}

func TestARedirectFromHTTPSToHTTPNeedsPermission(t *testing.T) {
	origins := &scriptedOrigins{redirects: map[string]string{"https://a.test/x": "http://a.test/y"}}
	client := clientOver(origins, new(credentials))
	_, err := getURL(t, client, "https://a.test/x")
	wantRetry(t, err, false)
	if !errors.As(err, new(redirectError)) || !strings.Contains(err.Error(), "--allow-redirect http") || len(origins.asked) != 1 {
		t.Errorf("error %v after %v", err, origins.asked)
	}
}

// A refusal, too, may announce a body that never comes.
func TestTheBodyOfARefusalIsNotWaitedFor(t *testing.T) {
	for _, code := range []int{404, 412, 416, 503, 206} {
		o := serveConns(t, func(c *net.TCPConn) {
			io.WriteString(c, answerOf(statusLine(code), "Content-Range: bytes 0-0/1000\nContent-Length: 1", ""))
			io.Copy(io.Discard, c)
		})
		o.stallTimeout = time.Hour
		done := make(chan error, 1)
		go func() {
			_, err := o.Stat(t.Context())
			done <- err
		}()
		if err := <-done; (err == nil) != (code == 206) {
			t.Errorf("%d: %v", code, err)
		}
	}
}

// A redirect may announce a body that never comes.
func TestTheBodyOfARedirectIsNotWaitedFor(t *testing.T) {
	o := serveConns(t, func(c *net.TCPConn) {
		io.WriteString(c, answerOf("302 Found", "Location: /next\nContent-Length: 10", ""))
		io.Copy(io.Discard, c)
	})
	done := make(chan error, 1)
	go func() {
		_, err := o.Stat(t.Context())
		done <- err
	}()
	if err := <-done; !errors.As(err, new(redirectError)) { // the tenth redirect
		t.Errorf("error %v, want too many redirects", err)
	}
}

func TestInterimAnswersWithoutEndAreRefused(t *testing.T) {
	o := serveConns(t, func(c *net.TCPConn) {
		for {
			if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"); err != nil {
				return
			}
		}
	})
	_, err := o.Stat(t.Context())
	wantRetry(t, err, true)
	if !strings.Contains(err.Error(), "headers exceeded") {
		t.Errorf("error %v", err)
	}
}

const http11Required = "\x00\x00\x00\x0d" // an error code (RFC 9113 section 7)

// serveFrames returns the origin of a server that answers the first request on each
// connection of HTTP/2 with frame, and speaks HTTP/1.1 with those who want it.
func serveFrames(t *testing.T, frame string, http1 http.HandlerFunc) (*httpOrigin, *atomic.Int64) {
	t.Helper()
	var conns atomic.Int64
	server := httptest.NewUnstartedServer(http1)
	server.TLS = &tls.Config{NextProtos: []string{"h2", "http/1.1"}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
		"h2": func(_ *http.Server, c *tls.Conn, _ http.Handler) {
			conns.Add(1)
			io.WriteString(c, "\x00\x00\x00\x04\x00\x00\x00\x00\x00") // SETTINGS
			seen := make([]byte, 1<<10)
			for total := 0; total < 100; { // preface, SETTINGS, WINDOW_UPDATE, and the request
				n, err := c.Read(seen)
				if err != nil {
					return
				}
				total += n
			}
			io.WriteString(c, frame)
			if !strings.HasSuffix(frame, http11Required) || frame[3] == 3 {
				io.Copy(io.Discard, c)
			}
		},
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client := clientOf(&credentials{roots: roots})
	t.Cleanup(client.CloseIdleConnections)
	return newHTTPOrigin(client, mustParseURL(t, server.URL+"/f.bin"), stallLimit), &conns
}

func TestAServerThatEndsEachConnectionIsNotAskedForEver(t *testing.T) {
	const goAway = "\x00\x00\x08\x07\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"
	o, conns := serveFrames(t, goAway, http.NotFound)
	_, err := o.Stat(t.Context())
	wantRetry(t, err, true)
	if n := conns.Load(); n > 2*sendsMax || !strings.Contains(err.Error(), "without an answer") {
		t.Errorf("error %v after %d connections", err, n)
	}
}

func TestAServerThatRefusesHTTP2IsAskedOverHTTP1(t *testing.T) {
	for name, frame := range map[string]string{
		"stream":     "\x00\x00\x04\x03\x00\x00\x00\x00\x01" + http11Required,
		"connection": "\x00\x00\x08\x07\x00\x00\x00\x00\x00" + "\x00\x00\x00\x01" + http11Required,
	} {
		t.Run(name, func(t *testing.T) {
			o, conns := serveFrames(t, frame, contentHandler(1000, `"a"`))
			for range 2 {
				if obj, err := o.Stat(t.Context()); err != nil || obj.Size != 1000 {
					t.Errorf("%v, %v", obj, err)
				}
			}
			if n := conns.Load(); n != 1 {
				t.Errorf("%d connections of HTTP/2, want one", n)
			}
		})
	}
}

func TestProxiesThatCannotWorkAreRefused(t *testing.T) {
	for value, good := range map[string]bool{
		"": true, "host:3128": true, "http://host:3128": true, "https://u:p@host": true, "socks5://host:1080": true, "socks5h://host": true,
		"http://[::1": false, "http://host:99999": false, "socks4://host": false, "http://": false, "ftp://host": false, "http://u:SECRET@ho st": false,
	} {
		if err := checkProxy(value); (err == nil) != good || err != nil && strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%q: %v", value, err)
		}
	}
	t.Setenv("all_proxy", "http://all.test:1")
	t.Setenv("https_proxy", "http://https.test:1")
	t.Setenv("http_proxy", "")
	if err := useProxies(); err != nil || os.Getenv("http_proxy") != "http://all.test:1" || os.Getenv("https_proxy") != "http://https.test:1" {
		t.Errorf("%v; http_proxy %q, https_proxy %q", err, os.Getenv("http_proxy"), os.Getenv("https_proxy"))
	}
}
