// Tests of the built program with a secret in every place that can hold one. The
// program uses each secret. No output, no log and no list of mounts shows one.

package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
)

// The 404 shows that the program accepted the certificate.
func TestCACertAddsToTheSystems(t *testing.T) {
	server := newTLSServer(t, http.NotFoundHandler())
	authority := writeTestFile(t, string(certificatePEM(server)))
	t.Setenv("SSL_CERT_DIR", "/no/such")
	for _, test := range []struct {
		about, system string
		args          []string
		says          string
	}{
		{"none", "/dev/null", nil, "no trusted authority signed the server's certificate (--ca-cert FILE"},
		{"--ca-cert", "/dev/null", []string{"--ca-cert", authority}, "404 Not Found"},
		{"the system's", authority, nil, "404 Not Found"},
		{"the system's, beside --ca-cert", authority, []string{"--ca-cert", writeTestFile(t, otherAuthority(t))}, "404 Not Found"},
	} {
		t.Setenv("SSL_CERT_FILE", test.system)
		status, _, stderr := runProgram(t, append([]string{"-mount", t.TempDir(), server.URL + "/x?sig=SECRET"}, test.args...)...)
		if status != exitFailure || !strings.Contains(stderr, test.says) || strings.Contains(stderr, "SECRET") {
			t.Errorf("%s: status %d, %q; want %q and nothing secret", test.about, status, stderr, test.says)
		}
	}
}

// otherAuthority makes the certificate of an authority that certified no server here.
func otherAuthority(t *testing.T) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// secretOrigin serves files to requests that have all secrets, and misbehaves by path.
type secretOrigin struct {
	elsewhere string // URL on another host, with a secret in the query

	mu     sync.Mutex
	denied []string       // GUARDED_BY(mu); requests that lack a secret
	asked  map[string]int // GUARDED_BY(mu); by path
}

func (o *secretOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.asked[r.URL.Path]++
	nth := o.asked[r.URL.Path]
	fine := r.Header.Get("X-Key") == "SECRET-header" && r.Header.Get("X-Argv") == "SECRET-argv" &&
		r.Header.Get("Authorization") == o.wanted(r) && r.URL.RawQuery == "sig=SECRET-query"
	if !fine {
		o.denied = append(o.denied, fmt.Sprint(r.URL, r.Header))
	}
	o.mu.Unlock()
	switch {
	case !fine:
		w.WriteHeader(http.StatusForbidden)
	case r.URL.Path == "/moved":
		http.Redirect(w, r, o.elsewhere, http.StatusFound)
	case r.URL.Path == "/lost":
		w.Header().Set("Location", "http://h/%zz?sig=SECRET-location")
		w.WriteHeader(http.StatusFound)
	case r.URL.Path == "/missing", r.URL.Path == "/broken" && nth > 1:
		http.Error(w, "SECRET-body", http.StatusNotFound)
	default:
		serveSecretFile(w, r)
	}
}

const secretFileBytes = 4099

func serveSecretFile(w http.ResponseWriter, r *http.Request) {
	content := newContentReader(1, secretFileBytes)
	http.ServeContent(w, r, "", demoModTime(), io.NewSectionReader(content, 0, secretFileBytes))
}

func (o *secretOrigin) wanted(r *http.Request) string {
	if r.URL.Path == "/netrc" {
		return basicOf("netrc:SECRET-netrc")
	}
	return basicOf("user:SECRET-userinfo")
}

func TestKernelMountShowsNoSecret(t *testing.T) {
	var mu sync.Mutex
	var elsewhereSaw []http.Header
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		elsewhereSaw = append(elsewhereSaw, r.Header.Clone())
		mu.Unlock()
		serveSecretFile(w, r)
	}))
	t.Cleanup(elsewhere.Close)
	origin := &secretOrigin{
		elsewhere: strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1) + "/there?sig=SECRET-moved",
		asked:     make(map[string]int),
	}
	server := httptest.NewServer(origin)
	t.Cleanup(server.Close)
	untrusted := newTLSServer(t, http.NotFoundHandler())
	host := strings.TrimPrefix(server.URL, "http://")

	var list strings.Builder
	for _, name := range []string{"whole", "moved", "lost", "missing", "broken"} {
		fmt.Fprintf(&list, "%s=http://user:SECRET-userinfo@%s/%s?sig=SECRET-query\n", name, host, name)
	}
	fmt.Fprintf(&list, "http://%s/netrc?sig=SECRET-query\n", host)
	fmt.Fprintf(&list, "%s/untrusted?sig=SECRET-query\n", untrusted.URL)
	t.Setenv("NETRC", writeTestFile(t, "machine 127.0.0.1 login netrc password SECRET-netrc\n"))

	m := startKernelMount(t, "--list", writeTestFile(t, list.String()), "--trace",
		"--header", "@"+writeTestFile(t, "X-Key: SECRET-header\n"), "--header", "X-Argv: SECRET-argv")
	r := m.reader()
	for _, name := range []string{"whole", "moved", "netrc"} {
		r.requireWhole(wholeFile(name, secretFileBytes))
	}
	broken := wholeFile("broken", secretFileBytes)
	r.open(broken).send(readAllCall(broken))
	m.awaitLogged("/broken: the origin answered 404")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || !strings.Contains(string(mounts), m.dir) {
		t.Errorf("%s is not among the mounts: %v", m.dir, err)
	}
	m.stop()
	server.Close()
	elsewhere.Close()

	shown := m.stderr.String() + string(mounts)
	requireNoSecret(t, shown)
	requireNamed(t, shown,
		`skipped "lost" (http://`+host+"/lost): the origin redirects to",
		`skipped "missing" (http://`+host+"/missing): the origin answered 404",
		`skipped "untrusted" (`+untrusted.URL+"/untrusted): ",
		"] ReadAt EXIT ",
		"] download EXIT ")
	if len(origin.denied) > 0 {
		t.Errorf("requests that lack a secret: %q", origin.denied)
	}
	if len(elsewhereSaw) < 2 {
		t.Errorf("the other host was asked %d times: for the size and for the file, at least", len(elsewhereSaw))
	}
	requireNoSecret(t, fmt.Sprint(elsewhereSaw))
}

// requireNoSecret looks for each secret, plain and as the program sends it.
func requireNoSecret(t *testing.T, shown string) {
	t.Helper()
	for _, secret := range []string{"SECRET", basicOf("user:SECRET-userinfo"), basicOf("netrc:SECRET-netrc")} {
		if at := strings.Index(shown, strings.TrimPrefix(secret, "Basic ")); at >= 0 {
			t.Errorf("%q is shown: ...%q", secret, shown[max(0, at-80):min(len(shown), at+40)])
		}
	}
}
