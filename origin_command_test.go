// Tests of --url-command: what happens when an origin refuses a URL, and what the log
// shows of it.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// signedOrigin serves 1000 bytes to URLs with the query sig=new-SECRET, and refuses others.
type signedOrigin struct {
	*httpOrigin
	server *httptest.Server
	dir    string       // of the command's files
	out    bytes.Buffer // the log, after logged

	// Read write.
	status atomic.Int64 // of a refusal
	etag   atomic.Value
	mu     sync.Mutex
	asked  []*http.Request // GUARDED_BY(mu)
}

// newSignedOrigin returns the origin at a URL that is refused. In command, $BASE is the URL
// without its query, and $DIR a directory.
func newSignedOrigin(t *testing.T, c *credentials, command string) *signedOrigin {
	t.Helper()
	o := &signedOrigin{dir: t.TempDir()}
	o.status.Store(http.StatusForbidden)
	o.etag.Store(`"v1"`)
	o.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		o.asked = append(o.asked, r)
		o.mu.Unlock()
		if r.URL.RawQuery != "sig=new-SECRET" {
			w.WriteHeader(int(o.status.Load()))
			return
		}
		contentHandler(1000, o.etag.Load().(string))(w, r)
	}))
	t.Cleanup(o.server.Close)
	client := clientOf(c)
	client.log = newEventLog(&o.out)
	client.urlCommand = "BASE=" + o.server.URL + "/f.bin DIR=" + o.dir + "; echo run >>$DIR/runs; " + command
	t.Cleanup(client.CloseIdleConnections)
	t.Cleanup(func() { client.log.Close(time.Second) })
	o.httpOrigin = newHTTPOrigin(client, mustParseURL(t, o.server.URL+"/f.bin?sig=old-SECRET"), 0)
	o.name = "film of me.mkv"
	return o
}

// file returns what the command wrote to a file of that name.
func (o *signedOrigin) file(name string) string {
	text, _ := os.ReadFile(filepath.Join(o.dir, name))
	return string(text)
}

func (o *signedOrigin) requireRuns(t *testing.T, want int) {
	t.Helper()
	if got := strings.Count(o.file("runs"), "run\n"); got != want {
		t.Errorf("the command ran %d times, want %d", got, want)
	}
}

// logged returns the log, which must name the file and no secret.
func (o *signedOrigin) logged(t *testing.T) string {
	t.Helper()
	o.client.log.Close(time.Second)
	text := o.out.String()
	if strings.Contains(text, "SECRET") || !strings.Contains(text, `"film of me.mkv"`) {
		t.Errorf("the log shows a secret, or does not name the file:\n%s", text)
	}
	return text
}

const signAgain = "echo ' '$BASE'?sig=new-SECRET '"

func TestRefusedURLIsReplaced(t *testing.T) {
	for _, status := range []int64{http.StatusUnauthorized, http.StatusForbidden, http.StatusGone} {
		o := newSignedOrigin(t, new(credentials), `echo "$FSMOUNT_NAME $FSMOUNT_URL" >$DIR/env; `+signAgain)
		o.status.Store(status)
		obj, err := o.Stat(t.Context())
		if err != nil || obj.Size != 1000 {
			t.Errorf("%d: %+v, %v", status, obj, err)
			continue
		}
		for range 2 {
			checkBodyOf(t, o.httpOrigin, obj)
		}
		o.requireRuns(t, 1)
		if got, want := o.file("env"), "film of me.mkv "+o.url.String()+"\n"; got != want {
			t.Errorf("the command got %q, want %q", got, want)
		}
		if text := o.logged(t); !strings.Contains(text, fmt.Sprintf(`: the origin answered %d `, status)) {
			t.Errorf("%d is not in the log:\n%s", status, text)
		}
	}
}

func checkBodyOf(t *testing.T, o *httpOrigin, obj Object) {
	t.Helper()
	body, err := o.Open(t.Context(), request{obj: obj, r: byteRange{0, 1000}})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	checkBody(t, body, byteRange{0, 1000})
}

// unknownHost is a network in which no name has an address but those of numbers.
type unknownHost struct{ http.RoundTripper }

func (n unknownHost) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Hostname() == "gone.test" {
		return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "gone.test", IsNotFound: true}}
	}
	return n.RoundTripper.RoundTrip(req)
}

func TestURLWithUnknownHostIsReplaced(t *testing.T) {
	o := newSignedOrigin(t, new(credentials), signAgain)
	base := new(http.Transport)
	defer base.CloseIdleConnections()
	o.client.connect = func(route) http.RoundTripper { return unknownHost{base} }
	o.url = mustParseURL(t, "http://gone.test/f.bin")
	if obj, err := o.Stat(t.Context()); err != nil || obj.Size != 1000 {
		t.Errorf("%+v, %v", obj, err)
	}
	o.requireRuns(t, 1)
	o.logged(t)
}

// Other refusals are not about the URL.
func TestCommandIsNotRunForEveryFailure(t *testing.T) {
	for _, status := range []int64{http.StatusNotFound, http.StatusInternalServerError, http.StatusTooManyRequests} {
		o := newSignedOrigin(t, new(credentials), signAgain)
		o.status.Store(status)
		if _, err := o.Stat(t.Context()); err == nil {
			t.Errorf("%d: no error", status)
		}
		o.requireRuns(t, 0)
	}
}

func TestRefusalStandsWithoutAnotherURL(t *testing.T) {
	const noURL = "its output is not one http or https URL"
	for command, says := range map[string]string{
		"exit 3":                           "exit status 3",
		signAgain + "; exit 1":             "exit status 1",
		"":                                 noURL,
		"echo ftp://h/x?SECRET":            noURL,
		"echo SECRET":                      noURL,
		"echo name=$BASE'?sig=new-SECRET'": noURL,
		signAgain + ";" + signAgain:        noURL,
		"echo http://":                     noURL,
		"kill -TERM $$":                    "signal: terminated",
		"head -c 10000000 /dev/zero":       noURL,
		"no-such-program":                  "--url-command says: sh: ",
		"echo asked https://u:SECRET@h/x 'for http://h/y?SECRET' >&2; exit 1": "--url-command says: asked https://... for http://h/y...\n",
		"printf 'a\\033[1mb\\n\\n\\nlast' >&2; exit 1":                        `says: a\x1b[1mb` + "\n",
	} {
		o := newSignedOrigin(t, new(credentials), command)
		_, err := o.Stat(t.Context())
		if status := (statusError{}); !errors.As(err, &status) || status.code != http.StatusForbidden || redirectedRefusal(err) {
			t.Errorf("%q: %v, want the refusal", command, err)
		}
		o.requireRuns(t, 1)
		if text := o.logged(t); !strings.Contains(text, says) || !strings.Contains(text, `: --url-command for "film of me.mkv": `) {
			t.Errorf("%q: %q is not in the log:\n%s", command, says, text)
		}
	}
}

// A read that waits for a URL ends with its fetch, and leaves no process.
func TestCommandThatHangsIsKilledWithAllThatItStarted(t *testing.T) {
	o := newSignedOrigin(t, new(credentials), "sleep 1000 & echo $$ $! >$DIR/pids; wait; sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		eventually(t, func() (bool, string) { return strings.Contains(o.file("pids"), "\n"), "the command never ran" })
	}()
	if _, err := o.Stat(ctx); err == nil {
		t.Error("no error")
	}
	o.requireGone(t)
}

// requireGone requires that the processes in the file pids have ended.
func (o *signedOrigin) requireGone(t *testing.T) {
	t.Helper()
	for _, pid := range strings.Fields(o.file("pids")) {
		eventually(t, func() (bool, string) {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z "), "process " + pid + " is still there"
		})
	}
}

func TestCommandHasATimeLimit(t *testing.T) {
	o := newSignedOrigin(t, new(credentials), "sleep 1000 & echo $$ $! >$DIR/pids; "+signAgain+"; wait")
	o.client.commandTime = 500 * time.Millisecond
	if _, err := o.Stat(t.Context()); !errors.As(err, new(statusError)) {
		t.Errorf("%v, want the refusal", err)
	}
	o.requireGone(t)
	if text := o.logged(t); !strings.Contains(text, "it did not end within 500ms") {
		t.Errorf("the log does not say why:\n%s", text)
	}
}

// What a command leaves running may keep its output open.
func TestCommandThatLeavesAProcess(t *testing.T) {
	o := newSignedOrigin(t, new(credentials), "sleep 1000 & echo $! >$DIR/pids; "+signAgain)
	if obj, err := o.Stat(t.Context()); err != nil || obj.Size != 1000 {
		t.Errorf("%v, %v", obj, err)
	}
	o.requireRuns(t, 1)
	if out, err := exec.Command("kill", strings.TrimSpace(o.file("pids"))).CombinedOutput(); err != nil {
		t.Errorf("kill: %v: %s", err, out)
	}
}

func TestReadThatWaitsForACommandSaysSo(t *testing.T) {
	o := newSignedOrigin(t, new(credentials), "while [ -e $DIR/hold ]; do sleep 0.02; done; "+signAgain)
	obj, err := o.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.given.Store(nil)
	hold := filepath.Join(o.dir, "hold")
	if err := os.WriteFile(hold, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newTempFileStore(o.httpOrigin, obj, testConfig(t.TempDir()))
	defer s.Close()
	done := make(chan error)
	go func() {
		_, err := s.ReadAt(t.Context(), make([]byte, obj.Size), 0)
		done <- err
	}()
	eventually(t, func() (bool, string) {
		waits := s.Explain(byteRange{0, obj.Size})[0]
		return strings.Contains(waits, "a fetch at offset 0 that has waited ") && strings.HasSuffix(waits, " for --url-command"), waits
	})
	if err := errors.Join(os.Remove(hold), <-done); err != nil {
		t.Error(err)
	}
}

func TestOneCommandAtATime(t *testing.T) {
	o := newSignedOrigin(t, new(credentials), "mkdir $DIR/lock && sleep 0.2 && rmdir $DIR/lock && "+signAgain)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := o.Stat(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	o.requireRuns(t, 1)
	if h := o.client.hosts.hosts[hostOf(o.url)]; h.limit < math.MaxInt {
		t.Errorf("the host takes %d requests at once, by refusals that were about the URL", h.limit)
	}
}

// A host that takes one request at once refuses the URL of the command too: that is about
// the number of requests.
func TestRefusalOfANewURLBesideAnotherRequest(t *testing.T) {
	o := newSignedOrigin(t, new(credentials), signAgain)
	obj, err := o.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	busy, err := o.client.hosts.take(t.Context(), hostOf(o.url), "another file", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.done(true)
	o.given.Store(nil)
	o.client.urlCommand = "echo $FSMOUNT_URL"
	if _, err := o.Open(t.Context(), request{obj: obj, r: byteRange{0, 1000}}); !errors.Is(err, errCrowded) {
		t.Errorf("%v, want errCrowded", err)
	}
}

// A command whose URLs are all refused ends like a refusal behind redirects: after a few
// attempts with pauses.
func TestRefusedURLsOfTheCommandEndTheFile(t *testing.T) {
	o := newSignedOrigin(t, new(credentials), "echo $BASE?sig=bad-SECRET")
	s := newTempFileStore(o, Object{Size: 1000, Ranges: true, ETag: `"v1"`}, testConfig(t.TempDir()))
	defer s.Close()
	s.AddHandle()
	if _, err := s.ReadAt(t.Context(), make([]byte, 10), 0); !errors.As(err, new(statusError)) || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("%v, want the refusal", err)
	}
	o.requireRuns(t, refusalsMax)
	o.logged(t)
}

func TestURLOfTheCommandHasTheSameVersion(t *testing.T) {
	o := newSignedOrigin(t, new(credentials), signAgain)
	obj, err := o.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.given.Store(nil)
	o.etag.Store(`"v2"`)
	obj.LastModified = ""
	if _, err := o.Open(t.Context(), request{obj: obj, r: byteRange{0, 1000}}); !errors.Is(err, errChanged) {
		t.Errorf("%v, want errChanged", err)
	}
	o.requireRuns(t, 2)
}

// The user's headers and logins are for the source's own origin.
func TestURLOfTheCommandElsewhereGetsNoLogin(t *testing.T) {
	for command, want := range map[string]string{
		signAgain: "SECRET-header",
		"echo http://localhost:${BASE##*:}'?sig=new-SECRET'":          "",
		"echo http://u:SECRET@localhost:${BASE##*:}'?sig=new-SECRET'": "",
	} {
		o := newSignedOrigin(t, accessOf("X-Key", "SECRET-header"), command)
		obj, err := o.Stat(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		checkBodyOf(t, o.httpOrigin, obj)
		o.mu.Lock()
		for i, r := range o.asked {
			if i == 0 {
				wantHeader(t, r.Header, "X-Key", "SECRET-header")
			} else {
				wantHeader(t, r.Header, "X-Key", want, "Authorization", "")
			}
		}
		o.mu.Unlock()
	}
}
