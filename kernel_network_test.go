// Kernel tests of bad networks: what a reader sees when bodies break off,
// connections stall, the origin refuses requests or restarts, or the file changes.
// Each origin misbehaves by script and counts its requests, so a test shows that
// the fault happened and what it cost.

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lookAt runs a program that must succeed, and returns its output.
func (m *kernelMount) lookAt(program string, args ...string) string {
	m.t.Helper()
	status, stdout, stderr := runToEnd(m.t, program, args...)
	if status != 0 {
		m.t.Fatalf("%s %v: status %d: %s%s", program, args, status, stdout, stderr)
	}
	return stdout
}

func TestKernelTailReadDoesNotWaitForTheRest(t *testing.T) {
	f := wholeFile("film.mp4", 64<<20).holding(1<<20, 64<<20-64<<10)
	m := f.mount(t, "--trace")

	head, middle, tail := m.reader().open(f), m.reader().open(f), m.reader().open(f)
	head.requireRead(f, 0, 4096, 4096)
	tail.requireRead(f, f.size-64<<10, 64<<10, 64<<10)
	tail.requireRead(f, f.size-1, 4096, 1)
	middle.send(preadCall(f, 32<<20, 4096))
	m.awaitBlocked(1)
	head.requireRead(f, 0, 128<<10, 128<<10)

	f.allowAll()
	requireBytes(t, middle.answer(), 4096)
	m.reader().requireWhole(f)
	// How much the origin sent too much depends on the sockets' buffers: look at what arrived.
	var received int64
	_, after, _ := strings.Cut(m.lookAt("cat", m.path(controlName+"/metrics")), "\nfsmount_received_bytes_total ")
	if _, err := fmt.Sscan(after, &received); err != nil || received < f.size || received > f.size+f.size/10 {
		t.Errorf("%d bytes of a file of %d arrived (%v); requests: %+v", received, f.size, err, f.requests())
	}
}

// requireSent requires that the origin sent size bytes, and at most extra more: bytes
// of requests that the program ended while they were on their way.
func (f *kernelFile) requireSent(t *testing.T, size, extra int64) {
	t.Helper()
	if sent := f.sent.Load(); sent < size || sent > size+extra {
		t.Errorf("the origin sent %d bytes of a file of %d; requests: %+v", sent, size, f.requests())
	}
}

func TestKernelCutBodiesAreResumed(t *testing.T) {
	const cut = 700_001
	f := wholeFile("a.bin", 4<<20+99)
	f.cutAt = func(start int64) int64 { return start + cut }
	m := f.mount(t)

	m.reader().requireWhole(f)
	if n := len(f.requests()); n < int(f.size/cut)+1 {
		t.Errorf("%d requests: the bodies were not cut", n)
	}
	f.requireSent(t, f.size, f.size/10)
	m.awaitLogged("ended the body early: retry in ")
	requireNoReadError(t, m)
}

// requireNoReadError requires that no read failed, by the log.
func requireNoReadError(t *testing.T, m *kernelMount) {
	t.Helper()
	if strings.Contains(m.stderr.String(), " read \"") {
		t.Errorf("a read failed: %s", m.stderr)
	}
}

func TestKernelStalledConnectionIsReplaced(t *testing.T) {
	const sent = 1 << 20
	f := heldFile("a.bin", 3<<20, sent)
	m := f.mount(t, "--stall-timeout=500ms")

	r := m.reader().open(f)
	r.send(readAllCall(f))
	f.await(t, "the stalled connection end", func() bool { return f.left > 0 })
	f.allowAll()
	requireBytes(t, r.answer(), f.size)
	m.awaitLogged("the origin sent no byte for 500ms")
	for _, req := range f.requests()[2:] { // after the head and the rest
		if req.span.off < sent {
			t.Errorf("%v was asked for, though the bytes before %d had come", req.span, sent)
		}
	}
	requireNoReadError(t, m)
}

func TestKernelReadTimeout(t *testing.T) {
	const sent = 256 << 10
	f := heldFile("a.bin", 2<<20, sent)
	m := f.mount(t, "--read-timeout=1s")

	r := m.reader().open(f)
	r.requireRead(f, 0, sent, sent)
	if answer := r.do(preadCall(f, 1<<20, 4096)); answer.Errno != "EIO" || answer.N != 0 {
		t.Errorf("a read of bytes that never come: %+v, want EIO", answer)
	}
	m.awaitLogged(errReadTimeout.Error())
	requireNamed(t, m.stderr.String(), f.name, "[1048576,1052672)", "1s", fmt.Sprintf("for pid %d (exe): ", r.thread))

	f.allowAll()
	r.requireRead(f, 1<<20, 4096, 4096)
	m.reader().requireWhole(f)
}

// A slow machine makes it slower than the limit, and nothing makes it faster.
func TestKernelLimitRate(t *testing.T) {
	const perSecond, size = 4_000_000, 3_000_000
	a, b := wholeFile("a.bin", size), wholeFile("b.bin", size)
	startKernelOrigin(t, a, b)
	m := startKernelMount(t, "--limit-rate", "4MB", a.url, b.url)
	began := time.Now()
	readers := []*kernelReader{m.reader().open(a), m.reader().open(b)}
	readers[0].send(readAllCall(a))
	readers[1].send(readAllCall(b))
	for _, r := range readers {
		requireBytes(t, r.answer(), size)
	}
	if took, least := time.Since(began), time.Second*(2*size-perSecond/25)/perSecond*100/105; took < least {
		t.Errorf("took %v, which the limit allows only after %v", took, least)
	}
}

// A URL expires again and again, and ends what comes by it.
func TestKernelURLCommandReplacesExpiredURLs(t *testing.T) {
	const lifetime = time.Second
	f := wholeFile("film.mkv", 4<<20)
	f.rate = 3 << 19
	startKernelOrigin(t, f)
	signed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nanoseconds, _ := strconv.ParseInt(strings.TrimPrefix(r.URL.RawQuery, "sig=SECRET-"), 10, 64)
		left := lifetime - time.Since(time.Unix(0, nanoseconds))
		if left <= 0 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), left)
		defer cancel()
		f.ServeHTTP(w, r.WithContext(ctx))
	}))
	t.Cleanup(signed.Close)
	m := startKernelMount(t, "--url-command", "echo $FSMOUNT_NAME >&2; echo "+signed.URL+"/x?sig=SECRET-$(date +%s%N)", "film.mkv="+signed.URL+"/x?sig=SECRET-1")

	m.reader().requireWhole(f)
	status := m.lookAt("cat", m.path(controlName+"/status"), m.path(controlName+"/events"))
	if text := m.stderr.String(); strings.Contains(text+status, "SECRET") || strings.Count(text, "--url-command says: film.mkv\n") < 2 {
		t.Errorf("the log shows a secret, or fewer than two runs; status:\n%s", status)
	}
	requireNoReadError(t, m)
}

func TestKernelOpenAloneMakesNoRequest(t *testing.T) {
	f := wholeFile("a.bin", 1<<20)
	m := f.mount(t)

	r := m.reader()
	for range 3 {
		r.open(f)
	}
	r.requireRead(f, f.size, 4096, 0) // a read at the end needs no byte
	m.lookAt("stat", m.path(f.name))
	m.lookAt("ls", "-lR", m.dir)
	m.lookAt("du", "-a", m.dir)
	if found := m.lookAt("find", m.dir, "-type", "f", "-size", "1048576c", "-readable"); !strings.Contains(found, f.name) {
		t.Errorf("find found %q", found)
	}
	m.stop()
	if asked := f.requests(); len(asked) > 0 || f.probes != 1 {
		t.Errorf("%d probes and the requests %+v, want the first probe alone", f.probes, asked)
	}
}

func TestKernelLingerPausesTheDownload(t *testing.T) {
	const sent = 1 << 20
	f := heldFile("a.bin", 4<<20, sent)
	m := f.mount(t, "--linger=300ms")

	r := m.reader().open(f)
	r.requireRead(f, 0, sent/2, sent/2)
	r.requireRead(f, sent/2, sent/2, sent/2)
	r.kill(unix.SIGKILL)
	r.awaitGone()
	f.await(t, "the download pause", func() bool { return f.left == len(f.asked)-1 }) // all but the head

	before := f.requests()
	f.allowAll()
	m.reader().open(f) // open starts no download
	m.reader().requireWhole(f)
	after := f.requests()
	for _, req := range after[len(before):] {
		if req.span.off < sent {
			t.Errorf("%v was asked for, though all before %d had come; requests: %+v", req.span, sent, after)
		}
	}
	f.requireSent(t, f.size, 0)
}

func TestKernelEveryNthRequestFails(t *testing.T) {
	f := wholeFile("a.bin", 4<<20+1)
	script := []struct{ code, after int }{{}, {503, 0}, {}, {429, 1}, {}, {500, 0}, {}, {503, 1}}
	f.cutAt = func(start int64) int64 { return start + 600_000 }
	f.refuse = func(n int) (int, int) { return script[n%len(script)].code, script[n%len(script)].after }
	m := f.mount(t, "--connections=1")

	m.reader().requireWhole(f)
	asked := f.requests()
	refused := 0
	for i, req := range asked[:len(asked)-1] {
		if req.code == 0 {
			continue
		}
		refused++
		after := time.Duration(script[i%len(script)].after) * time.Second
		if next := asked[i+1]; next.at.Sub(req.at) < after || next.span.off != req.span.off {
			t.Errorf("after %d for %v, with a pause of %v, the next request was for %v, %v later",
				req.code, req.span, after, next.span, next.at.Sub(req.at))
		}
	}
	if refused < 4 {
		t.Errorf("%d requests were refused of %+v", refused, asked)
	}
	f.requireSent(t, f.size, f.size/10)
	requireNoReadError(t, m)
}

// The origin supports neither ranges nor versions. The program serves its file all
// the same, and the log says what that costs.
func TestKernelWeakOriginIsNamed(t *testing.T) {
	v := wholeFile("a.bin", 3<<20)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(v.size))
		io.Copy(w, newContentReader(v.seed, v.size))
	}))
	t.Cleanup(server.Close)
	m := startKernelMount(t, server.URL+"/"+v.name)
	m.awaitLogged("it arrives from the start to the end only")
	if n := strings.Count(m.stderr.String(), "\"a.bin\": its origin "); n != 1 {
		t.Errorf("%d lines say what is weaker, want 1: %s", n, m.stderr)
	}
	requireNamed(t, m.stderr.String(), "names no version of it")

	m.reader().open(v).requireRead(v, v.size-100, 100, 100)
	m.reader().requireWhole(v)
	requireNoReadError(t, m)
}

func TestKernelOriginRestart(t *testing.T) {
	v := wholeFile("a.bin", 12<<20)
	origin := newNginx(t, v)
	origin.start()
	m := startKernelMount(t, "--trace", "--connections=2", origin.url())

	r := m.reader().open(v)
	r.send(readAllCall(v))
	m.awaitLogged("ReadAt EXIT off=1048576 ")
	origin.kill()
	m.awaitLogged("retry in ")
	m.awaitLogged("connection refused")
	if strings.Contains(m.stderr.String(), fmt.Sprintf("ReadAt EXIT off=%d ", v.size-128<<10)) {
		t.Fatal("all was read before the origin was killed")
	}
	origin.start()
	requireBytes(t, r.answer(), v.size)
	m.reader().requireWhole(v)
	requireNoReadError(t, m)
}
