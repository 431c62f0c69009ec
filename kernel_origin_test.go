// The origins of the kernel tests: the faulty files of the self-test, which count
// their requests here and misbehave by request number too, and a real nginx that
// can be killed.

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// kernelFile is a localFile that counts its requests. It answers a request for the
// first byte alone, a probe, without any fault.
type kernelFile struct {
	*localFile

	// Write once, before the first request.
	url     string
	mute    bool                          // the file sends not even a header
	unsized bool                          // bodies have no length: one that breaks off seems complete
	refuse  func(n int) (code, after int) // status and Retry-After for the n-th request, from 0; 0: no refusal
	ctx     context.Context               // change ends it
	end     context.CancelFunc
	// carry, if there is one, returns the way that an answer takes to its client.
	carry func(http.ResponseWriter, *http.Request) http.ResponseWriter

	// Read write.
	fresh  *kernelFile     // GUARDED_BY(mu); answers instead of this file after change
	asked  []kernelRequest // GUARDED_BY(mu); without the probes
	probes int             // GUARDED_BY(mu)
	left   int             // GUARDED_BY(mu); requests whose client went away
	gone   atomic.Bool     // every request gets 404
}

// kernelRequest is a request as the origin saw it.
type kernelRequest struct {
	at   time.Time
	span byteRange
	code int // 0: not refused
}

// wholeFile is a file that sends as fast as the client takes it.
func wholeFile(name string, size int64) *kernelFile {
	f := &kernelFile{localFile: newLocalFile(name, 1, size)}
	f.modTime = time.Time{}
	f.ctx, f.end = context.WithCancel(context.Background())
	return f
}

// heldFile is a file that sends its first allowed bytes until allow says more.
func heldFile(name string, size, allowed int64) *kernelFile {
	return wholeFile(name, size).holding(allowed, size)
}

// holding holds back the bytes [off, end) of f from the start.
func (f *kernelFile) holding(off, end int64) *kernelFile {
	f.held = byteRange{off, end}
	return f
}

// startKernelOrigin serves files until the test ends. Each gets its own seed.
func startKernelOrigin(t *testing.T, files ...*kernelFile) {
	t.Helper()
	mux := http.NewServeMux()
	for i, f := range files {
		f.seed = uint64(i) + 1
		mux.Handle("/"+f.name, f)
	}
	server := httptest.NewServer(mux)
	for _, f := range files {
		f.url = server.URL + "/" + f.name
	}
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
}

// mount serves f and mounts it alone, with flags.
func (f *kernelFile) mount(t *testing.T, flags ...string) *kernelMount {
	t.Helper()
	startKernelOrigin(t, f)
	return startKernelMount(t, append(flags, f.url)...)
}

func (f *kernelFile) allowAll() { f.allow(f.size) }

// change replaces the file by fresh. Bodies of the old file break off.
func (f *kernelFile) change(fresh *kernelFile) {
	f.update(func() { f.fresh = fresh })
	f.end()
}

// requests returns the requests so far, without the probes.
func (f *kernelFile) requests() []kernelRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// await returns when seen returns true. It calls seen under the lock.
//
// BLOCKS until then, at most kernelPatience; wakes on every request and on the end
// of each.
func (f *kernelFile) await(t *testing.T, what string, seen func() bool) {
	t.Helper()
	timeout := time.After(kernelPatience)
	for {
		f.mu.Lock()
		ok, changed := seen(), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("the origin never saw %s; requests: %+v", what, f.requests())
		}
	}
}

func (f *kernelFile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.carry != nil {
		w = f.carry(w, r)
	}
	if f.gone.Load() {
		http.NotFound(w, r)
		return
	}
	var first, last int64
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); n != 2 {
		http.Error(w, "the tests expect a range", http.StatusRequestedRangeNotSatisfiable)
		return
	}
	span := byteRange{first, last + 1}
	probe := span == byteRange{0, 1}
	var fresh *kernelFile
	var code, after int
	f.update(func() {
		fresh = f.fresh
		switch {
		case fresh != nil:
		case probe:
			f.probes++
		default:
			if f.refuse != nil {
				code, after = f.refuse(len(f.asked))
			}
			f.asked = append(f.asked, kernelRequest{time.Now(), span, code})
		}
	})
	defer func() {
		if r.Context().Err() != nil {
			f.update(func() { f.left++ })
		}
	}()
	switch {
	case fresh != nil:
		fresh.ServeHTTP(w, r)
	case code != 0:
		if after > 0 {
			w.Header().Set("Retry-After", fmt.Sprint(after))
		}
		w.WriteHeader(code)
	case probe:
		f.serve(w, r, f.content())
	case f.mute:
		<-r.Context().Done()
	default:
		if f.unsized {
			w = unsizedResponse{w}
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(f.ctx, cancel)()
		f.localFile.ServeHTTP(w, r.WithContext(ctx))
	}
}

// unsizedResponse leaves out the length of its body, so that the server sends it in
// chunks.
type unsizedResponse struct{ http.ResponseWriter }

func (w unsizedResponse) WriteHeader(code int) {
	w.Header().Del("Content-Length")
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (w unsizedResponse) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// nginx is a real origin of one file. Tests can kill it and start it again.
type nginx struct {
	t    *testing.T
	dir  string
	addr string
	name string
	cmd  *exec.Cmd
}

// newNginx prepares to serve f at a few MiB a second for each connection, and lists of all
// in its directory, below /json/ as JSON.
func newNginx(t *testing.T, f *kernelFile) *nginx {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/nginx") // Debian's place, which not every PATH has
	}
	if err != nil {
		cannotTest(t, fmt.Errorf("there is no nginx: %w (Debian's nginx-light has it)", err))
	}
	n := &nginx{t: t, dir: kernelTestDir(t), addr: freeAddress(t), name: f.name}
	content := make([]byte, f.size)
	fillContent(content, f.seed, 0)
	n.write(f.name, content)
	n.write("nginx.conf", fmt.Appendf(nil, `daemon off;
master_process off;
pid %[1]s/pid;
error_log %[1]s/error.log;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/tmp;
	proxy_temp_path %[1]s/tmp;
	fastcgi_temp_path %[1]s/tmp;
	uwsgi_temp_path %[1]s/tmp;
	scgi_temp_path %[1]s/tmp;
	server {
		listen %[2]s;
		root %[1]s;
		limit_rate 3m;
		autoindex on;
		location /json/ {
			alias %[1]s/;
			autoindex_format json;
		}
	}
}
`, n.dir, n.addr))
	n.cmd = exec.Command(program)
	t.Cleanup(n.kill)
	return n
}

// freeAddress returns an address on which no process listens at the moment.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (n *nginx) write(name string, content []byte) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.dir, name), content, 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *nginx) url() string { return "http://" + n.addr + "/" + n.name }

// start returns when nginx accepts connections.
func (n *nginx) start() {
	n.t.Helper()
	n.cmd = exec.Command(n.cmd.Path, "-p", n.dir, "-c", "nginx.conf", "-e", filepath.Join(n.dir, "error.log"))
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	eventually(n.t, func() (bool, string) {
		conn, err := net.Dial("tcp", n.addr)
		if err == nil {
			conn.Close()
			return true, ""
		}
		log, _ := os.ReadFile(filepath.Join(n.dir, "error.log"))
		return false, fmt.Sprintf("nginx does not answer: %v\n%s", err, log)
	})
}

// kill ends nginx and its connections at once.
func (n *nginx) kill() {
	n.t.Helper()
	if n.cmd.Process == nil || n.cmd.ProcessState != nil {
		return
	}
	if err := n.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		n.t.Errorf("kill nginx: %v", err)
	}
	n.cmd.Wait()
}
