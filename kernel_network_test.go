// Kernel tests of bad networks: what a reader sees while bodies are cut,
// connections stall, requests are refused, the origin is killed and started
// again, or the file becomes another one. Each has an origin that misbehaves by
// script and counts what it was asked for, so that a test shows that the fault
// happened and what it cost.

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lookAt runs a program that only looks, and returns what it says.
func (m *kernelMount) lookAt(args ...string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), kernelPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

func TestKernelTailReadDoesNotWaitForTheRest(t *testing.T) {
	v := wholeFile("film.mp4", 64<<20)
	f := startNetworkOrigin(t, v, &networkFile{held: byteRange{1 << 20, v.size - 64<<10}})
	m := startKernelMount(t, "--trace", f.url)

	head, middle, tail := m.reader().open(v), m.reader().open(v), m.reader().open(v)
	head.requireRead(v, 0, 4096, 4096)
	tail.requireRead(v, v.size-64<<10, 64<<10, 64<<10)
	tail.requireRead(v, v.size-1, 4096, 1)
	middle.send(preadCall(v, 32<<20, 4096))
	m.awaitBlocked(1)
	head.requireRead(v, 0, 128<<10, 128<<10)

	f.hold(byteRange{})
	requireBytes(t, middle.answer(), 4096)
	m.reader().requireWhole(v)
	f.requireSent(t, v.size, v.size/10)
}

// requireSent requires that the origin sent each of the size bytes once, but for
// some that were on their way when nobody wanted them any more.
func (f *networkFile) requireSent(t *testing.T, size, extra int64) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sent < size || f.sent > size+extra {
		t.Errorf("the origin sent %d bytes of a file of %d; requests: %+v", f.sent, size, f.asked)
	}
}

func TestKernelCutBodiesAreResumed(t *testing.T) {
	const cut = 700_001
	v := wholeFile("a.bin", 4<<20+99)
	f := startNetworkOrigin(t, v, &networkFile{cutAfter: cut})
	m := startKernelMount(t, f.url)

	m.reader().requireWhole(v)
	if n := len(f.requests()); n < int(v.size/cut)+1 {
		t.Errorf("%d requests: the bodies were not cut", n)
	}
	f.requireSent(t, v.size, v.size/10)
	m.awaitLogged("ended the body early: retry in ")
	requireNoReadError(t, m)
}

// requireNoReadError requires that no read was answered with an error.
func requireNoReadError(t *testing.T, m *kernelMount) {
	t.Helper()
	if strings.Contains(m.stderr.String(), " read \"") {
		t.Errorf("a read failed: %s", m.stderr)
	}
}

func TestKernelStalledConnectionIsReplaced(t *testing.T) {
	const sent = 1 << 20
	v := wholeFile("a.bin", 3<<20)
	f := startNetworkOrigin(t, v, &networkFile{held: byteRange{sent, v.size}})
	m := startKernelMount(t, "--stall-timeout=500ms", f.url)

	r := m.reader().open(v)
	r.send(readAllCall(v))
	f.await(t, "the stalled connection end", func(f *networkFile) bool { return f.left > 0 })
	f.hold(byteRange{})
	requireBytes(t, r.answer(), v.size)
	m.awaitLogged("the origin sent no byte for 500ms")
	for _, req := range f.requests()[1:] {
		if req.span.off < sent {
			t.Errorf("%v was asked for, though the bytes before %d had come", req.span, sent)
		}
	}
	requireNoReadError(t, m)
}

func TestKernelReadTimeout(t *testing.T) {
	const sent = 256 << 10
	v := wholeFile("a.bin", 2<<20)
	f := startNetworkOrigin(t, v, &networkFile{held: byteRange{sent, v.size}})
	m := startKernelMount(t, "--read-timeout=1s", f.url)

	r := m.reader().open(v)
	r.requireRead(v, 0, sent, sent)
	if answer := r.do(preadCall(v, 1<<20, 4096)); answer.Errno != "ETIMEDOUT" || answer.N != 0 {
		t.Errorf("a read of what does not come: %+v, want ETIMEDOUT", answer)
	}
	m.awaitLogged(errReadTimeout.Error())
	requireNamed(t, m.stderr.String(), v.name, "[1048576,1052672)", "1s")

	f.hold(byteRange{})
	r.requireRead(v, 1<<20, 4096, 4096)
	m.reader().requireWhole(v)
}

func TestKernelOpenAloneMakesNoRequest(t *testing.T) {
	v := wholeFile("a.bin", 1<<20)
	f := startNetworkOrigin(t, v, &networkFile{})
	m := startKernelMount(t, f.url)

	r := m.reader()
	for range 3 {
		r.open(v)
	}
	r.requireRead(v, v.size, 4096, 0) // at the end there is nothing to fetch
	m.lookAt("stat", m.path(v.name))
	m.lookAt("ls", "-lR", m.dir)
	m.lookAt("du", "-a", m.dir)
	if found := m.lookAt("find", m.dir, "-type", "f", "-size", "1048576c", "-readable"); !strings.Contains(found, v.name) {
		t.Errorf("find found %q", found)
	}
	m.stop()
	if asked := f.requests(); len(asked) > 0 || f.probes != 1 {
		t.Errorf("%d probes and the requests %+v, want the first probe alone", f.probes, asked)
	}
}

func TestKernelLingerPausesTheDownload(t *testing.T) {
	const sent = 1 << 20
	v := wholeFile("a.bin", 4<<20)
	f := startNetworkOrigin(t, v, &networkFile{held: byteRange{sent, v.size}})
	m := startKernelMount(t, "--linger=300ms", f.url)

	r := m.reader().open(v)
	r.requireRead(v, 0, sent, sent)
	r.kill(unix.SIGKILL)
	r.awaitGone()
	f.await(t, "the download pause", func(f *networkFile) bool { return f.left == len(f.asked) })

	before := f.requests()
	f.hold(byteRange{})
	m.reader().open(v) // alone it starts nothing
	m.reader().requireWhole(v)
	after := f.requests()
	for _, req := range after[len(before):] {
		if req.span.off < sent {
			t.Errorf("%v was asked for, though all before %d had come; requests: %+v", req.span, sent, after)
		}
	}
	f.requireSent(t, v.size, 0)
}

func TestKernelEveryNthRequestFails(t *testing.T) {
	v := wholeFile("a.bin", 4<<20+1)
	script := []struct{ code, after int }{{}, {503, 0}, {}, {429, 1}, {}, {500, 0}, {}, {503, 1}}
	f := startNetworkOrigin(t, v, &networkFile{cutAfter: 600_000, refuse: func(n int) (int, int) {
		return script[n%len(script)].code, script[n%len(script)].after
	}})
	m := startKernelMount(t, "--connections=1", f.url)

	m.reader().requireWhole(v)
	asked := f.requests()
	refused := 0
	for i, req := range asked[:len(asked)-1] {
		if req.code == 0 {
			continue
		}
		refused++
		after := time.Duration(script[i%len(script)].after) * time.Second
		if next := asked[i+1]; next.at.Sub(req.at) < after || next.span.off != req.span.off {
			t.Errorf("after %d for %v, to be left alone for %v, came a request for %v %v later",
				req.code, req.span, after, next.span, next.at.Sub(req.at))
		}
	}
	if refused < 4 {
		t.Errorf("%d requests were refused of %+v", refused, asked)
	}
	f.requireSent(t, v.size, v.size/10)
	requireNoReadError(t, m)
}

// The new version has another size and time, and differs from the old one in
// every word.
func TestKernelChangedFileIsStale(t *testing.T) {
	const sent = 1 << 20
	old := &kernelFile{name: "a.bin", size: 8 << 20, seed: 1, modTime: time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)}
	fresh := &kernelFile{name: "a.bin", size: 5<<20 + 77, seed: 2, modTime: time.Date(2021, 6, 7, 8, 9, 10, 0, time.UTC)}
	f := startNetworkOrigin(t, old, &networkFile{held: byteRange{sent, old.size}})
	m := startKernelMount(t, "--trace", "--linger=1h", f.url)
	inode := func() string { return m.lookAt("stat", "-c", "%i", m.path(old.name)) }
	stale, waiting := m.reader().open(old), m.reader().open(old)
	stale.requireRead(old, 0, sent, sent)
	oldInode := inode()
	waiting.send(preadCall(old, 4<<20, 4096))
	m.awaitBlocked(1)

	f.change(fresh)
	f.hold(byteRange{})
	requireErrors(t, []*kernelReader{waiting}, "ESTALE")
	requireOldVersion(t, stale, old, sent)
	m.awaitLogged(errChanged.Error())

	reader := m.reader()
	reader.requireWhole(fresh)
	if st := reader.do(readerCall{Op: "stat", Path: m.path(fresh.name)}); st.Size != fresh.size || st.Mtime != fresh.modTime.UnixNano() {
		t.Errorf("stat of the new version: %+v, want %d bytes of %v", st, fresh.size, fresh.modTime)
	}
	if now := inode(); now == oldInode {
		t.Errorf("the new version has the inode number of the old one, %s", now)
	}
	requireOldVersion(t, stale, old, sent)
	waiting.open(fresh)
	waiting.requireRead(fresh, 0, 1<<20, 1<<20)
	waiting.requireWhole(fresh)

	stale.open(fresh) // the last handle of the old version is gone
	awaitHeld(t, m, 1)
}

// requireOldVersion requires of a handle of a version that is gone that the
// first present bytes can be read, and no other.
func requireOldVersion(t *testing.T, r *kernelReader, old *kernelFile, present int64) {
	t.Helper()
	r.requireRead(old, 0, int(present), present)
	r.send(preadCall(old, old.size-4096, 4096))
	requireErrors(t, []*kernelReader{r}, "ESTALE")
	r.send(preadCall(old, present, 1<<20))
	requireErrors(t, []*kernelReader{r}, "ESTALE")
	r.requireRead(old, present-10, 10, 10)
}

// awaitHeld returns when n temporary files are open. Nobody tells when one is
// closed, so this looks again and again.
func awaitHeld(t *testing.T, m *kernelMount, n int) {
	t.Helper()
	for deadline := time.Now().Add(kernelPatience); ; time.Sleep(10 * time.Millisecond) {
		held := heldBelow(m.tempDir)
		if len(held) == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("temporary files: %v, want %d", held, n)
		}
	}
}

// A version that nobody has open when it is replaced gives its space back too.
func TestKernelChangedFileNobodyHasOpenIsGone(t *testing.T) {
	const sent = 1 << 20
	old := &kernelFile{name: "a.bin", size: 8 << 20, seed: 1}
	fresh := &kernelFile{name: "a.bin", size: 5 << 20, seed: 2}
	f := startNetworkOrigin(t, old, &networkFile{held: byteRange{sent, old.size}})
	m := startKernelMount(t, "--trace", f.url)
	r := m.reader().open(old)
	r.send(preadCall(old, 4<<20, 4096))
	m.awaitBlocked(1)
	f.change(fresh)
	f.hold(byteRange{})
	requireErrors(t, []*kernelReader{r}, "ESTALE")
	r.kill(unix.SIGKILL)
	r.awaitGone()

	m.reader().requireWhole(fresh)
	awaitHeld(t, m, 1)
}

// An origin that knows neither ranges nor versions serves its file all the same,
// and the log says what that costs.
func TestKernelWeakOriginIsNamed(t *testing.T) {
	v := &kernelFile{name: "a.bin", size: 3 << 20, seed: 1}
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
	v := &kernelFile{name: "a.bin", size: 12 << 20, seed: 3}
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
