//go:build bench

// bench_process_test.go starts, limits and ends the processes of a benchmark, and
// makes the network paths that this machine lacks. The test's own process never
// touches a file of a mount.

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// benchLimit is how long any command may take: the slowest, which waits for
	// 256 MiB at 50 MiB/s, takes a tenth of it.
	benchLimit = time.Minute

	// benchPatience is how long a process may take to start or to end.
	benchPatience = 10 * time.Second

	// benchTick is the unit of CPU times in /proc/PID/stat: USER_HZ is 100 on
	// every Linux (proc_pid_stat(5), time(7)).
	benchTick = 10 * time.Millisecond
)

// benchResult is a command that has ended well.
type benchResult struct {
	wall, cpu      time.Duration
	stdout, stderr string
}

// benchRun runs a command to its end, and fails the test if that is not
// success. m is the mount that it reads, or nil.
//
// BLOCKS until the command ended; wakes on benchLimit as well.
func benchRun(t *testing.T, m *benchMount, name string, args ...string) benchResult {
	t.Helper()
	return benchRunEnv(t, m, nil, name, args...)
}

func benchRunEnv(t *testing.T, m *benchMount, env []string, name string, args ...string) benchResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), benchLimit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = benchPatience
	cmd.Cancel = func() error {
		if m != nil {
			openFusectl(m.dir).abort()
		}
		return cmd.Process.Kill()
	}
	begin := time.Now()
	err := cmd.Run()
	wall := time.Since(begin)
	if err != nil {
		t.Fatalf("%s %s: %v (%v)\n%s%s%s", name, benchShorten(args), err, ctx.Err(), &stdout, &stderr, m.tail())
	}
	return benchResult{
		wall:   wall,
		cpu:    cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(),
		stdout: stdout.String(),
		stderr: stderr.String(),
	}
}

// benchShorten keeps a command with a thousand URLs readable.
func benchShorten(args []string) string {
	if len(args) > 12 {
		return strings.Join(args[:12], " ") + " ..."
	}
	return strings.Join(args, " ")
}

// benchMount is a mount that a process of its own serves.
type benchMount struct {
	t       *testing.T
	name    string // of the system
	dir     string
	log     string // path
	cmd     *exec.Cmd
	started time.Time
	ended   chan struct{} // closed when the process ended
}

// mount starts argv, which mounts at the directory that it is given.
//
// BLOCKS until the mount is there; wakes on benchPatience and on the end of the
// process, which fail the test.
func (r *benchRig) mount(t *testing.T, name string, env []string, argv func(dir string) []string) *benchMount {
	t.Helper()
	dir := r.mkdir(t, "mount-*")
	args := argv(dir)
	m := &benchMount{t: t, name: name, dir: dir, log: dir + ".log", ended: make(chan struct{})}
	log, err := os.Create(m.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.cmd = exec.Command(args[0], args[1:]...)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.Env = append(os.Environ(), env...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m.started = time.Now()
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.ended)
		m.cmd.Wait()
	}()
	t.Cleanup(m.stop)
	m.awaitMounted()
	return m
}

// awaitMounted looks often: a row measures from the start of the process.
func (m *benchMount) awaitMounted() {
	m.t.Helper()
	for !mounted(m.dir) {
		select {
		case <-m.ended:
			m.t.Fatalf("%s ended before it had mounted%s", m.name, m.tail())
		case <-time.After(time.Millisecond):
		}
		if time.Since(m.started) > benchPatience {
			m.t.Fatalf("%s has not mounted after %v%s", m.name, benchPatience, m.tail())
		}
	}
}

// path returns the path of a file of the mount.
func (m *benchMount) path(name string) string { return filepath.Join(m.dir, name) }

// tail returns what the process wrote, as the end of an error message.
func (m *benchMount) tail() string {
	if m == nil {
		return ""
	}
	text, err := os.ReadFile(m.log)
	if err != nil || len(text) == 0 {
		return ""
	}
	return "\n" + m.name + " wrote:\n" + string(text[max(0, len(text)-2000):])
}

// stop ends the process and its mount, by force if it must be. It may be called
// twice.
func (m *benchMount) stop() {
	m.t.Helper()
	m.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.ended:
	case <-time.After(benchPatience):
		m.t.Errorf("%s did not end within %v of SIGTERM%s", m.name, benchPatience, m.tail())
		openFusectl(m.dir).abort()
		m.cmd.Process.Kill()
		<-m.ended
	}
	if mounted(m.dir) {
		if err := unmount(m.dir); err != nil {
			m.t.Errorf("unmount %s of %s: %v", m.dir, m.name, err)
		}
	}
}

// cpu returns the user+sys time that the process has taken, to benchTick.
func (m *benchMount) cpu() time.Duration {
	m.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatalf("%s is gone: %v%s", m.name, err, m.tail())
	}
	// The command's name, the second field, may hold blanks.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const utime, stime = 14 - 3, 15 - 3
	user, err1 := strconv.ParseInt(fields[utime], 10, 64)
	sys, err2 := strconv.ParseInt(fields[stime], 10, 64)
	if err1 != nil || err2 != nil {
		m.t.Fatalf("/proc/PID/stat: %s", stat)
	}
	return time.Duration(user+sys) * benchTick
}

// peak returns the largest resident set that the process has had, in MiB.
func (m *benchMount) peak() float64 {
	m.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatalf("%s is gone: %v%s", m.name, err, m.tail())
	}
	var kib float64
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		m.t.Fatalf("no VmHWM in /proc/PID/status: %v", err)
	}
	return kib / 1024
}

// benchSentLog is where nginx counts the bytes of each request for a counted
// file: their number, a line.
const benchSentLog = "sent.log"

// benchNginx is the configuration of an origin of one process that says
// nothing. nginx leaves Accept-Ranges out of a partial answer; httpdirfs takes
// no such origin, so it is put back. With tcp_nopush, the end of an answer that
// is one segment of the loopback (64 KiB) and less than two comes 40 ms late,
// when the delayed acknowledgement of the first has come: such pieces are what
// seekers leave to be fetched.
const benchNginx = `
daemon off; master_process off; pid %[1]s/nginx.pid; error_log %[1]s/nginx.log;
events { worker_connections 1024; }
http {
	access_log off; default_type application/octet-stream;
	client_body_temp_path %[1]s/nginx-1; proxy_temp_path %[1]s/nginx-2; fastcgi_temp_path %[1]s/nginx-3;
	uwsgi_temp_path %[1]s/nginx-4; scgi_temp_path %[1]s/nginx-5;
	sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 100000;
	map $http_range $ranges { default ""; ~^bytes= bytes; }
	log_format sent $bytes_sent;
	add_header Accept-Ranges $ranges;
	server {
		listen 127.0.0.1:%[2]d; root %[3]s; autoindex on;
		location /limited/ { limit_rate 50m; }
		location /slow/ { limit_rate 4000000; }
		location /counted/ { access_log %[1]s/%[4]s sent; tcp_nopush off; }
		location = /connections { stub_status; }
	}
}
`

// startNginx serves r.docs on a free port and returns the URL.
//
// BLOCKS until it accepts connections; wakes on benchPatience, which fails the
// test.
func (r *benchRig) startNginx(t *testing.T) string {
	t.Helper()
	port := benchFreePort(t)
	conf := filepath.Join(r.dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, benchNginx, r.dir, port, r.docs, benchSentLog), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command("nginx", "-p", r.dir, "-c", conf)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return "http://" + address
		}
		if time.Since(begin) > benchPatience {
			t.Fatalf("nginx does not answer: %v", err)
		}
	}
}

// benchFreePort returns a port that was free a moment ago.
func benchFreePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// benchBackMemory has the host of a virtual machine back size bytes of free
// memory. What is free is given back to some hosts, and whoever fills the page
// cache next pays for each page again, several seconds a GiB: the floor or we,
// by chance.
func benchBackMemory(t *testing.T, size int64) {
	memory, err := syscall.Mmap(-1, 0, int(size), syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_POPULATE)
	if err != nil {
		t.Logf("back %d bytes of memory: %v", size, err)
		return
	}
	if err := syscall.Munmap(memory); err != nil {
		t.Fatal(err)
	}
}

// benchThrottled serves f, with latency before each answer, and returns its
// URL.
func benchThrottled(t *testing.T, f demoFile, latency time.Duration) string {
	t.Helper()
	files := newDemoHandler([]demoFile{f})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := sleepUntil(r.Context(), time.Now().Add(latency)); err == nil {
			files.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL + "/" + f.name
}

const (
	// benchLinkPiece and benchLinkPieces bound what is under way in one
	// direction of a link: 64 MiB, more than a loopback brings in 50 ms.
	benchLinkPiece  = 64 << 10
	benchLinkPieces = 1024

	// benchLinkCredit is how late a link with a rate may be, and make up for it:
	// more than a timer is.
	benchLinkCredit = 10 * time.Millisecond
)

// benchLink passes connections on to an address: each byte so much later than
// it came, in both directions, and what comes back at a rate that all
// connections share. To connect takes no time.
type benchLink struct {
	// Write once, before any goroutine starts.
	listener net.Listener
	target   string
	delay    time.Duration
	rate     int64     // bytes a second, 0 for no limit
	pieces   sync.Pool // of *[benchLinkPiece]byte

	running sync.WaitGroup

	// Read write.
	mu    sync.Mutex
	conns []net.Conn // GUARDED_BY(mu); all there ever were
	ended bool       // GUARDED_BY(mu)
	busy  time.Time  // GUARDED_BY(mu); until when what has come takes, at rate
}

// benchLinkTo returns the URL of what has that URL on a machine so far away.
func benchLinkTo(t *testing.T, url string, delay time.Duration, rate int64) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	l := &benchLink{listener: listener, target: target, delay: delay, rate: rate}
	l.pieces.New = func() any { return new([benchLinkPiece]byte) }
	l.running.Go(l.accept)
	t.Cleanup(l.stop)
	return "http://" + listener.Addr().String() + "/" + path
}

// stop ends all connections.
//
// BLOCKS until the last goroutine of the link has ended.
func (l *benchLink) stop() {
	l.listener.Close()
	l.mu.Lock()
	l.ended = true
	for _, conn := range l.conns {
		conn.Close()
	}
	l.mu.Unlock()
	l.running.Wait()
}

func (l *benchLink) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", l.target)
		if err != nil || !l.keep(near, far) {
			near.Close()
			continue
		}
		l.running.Go(func() { l.pass(near.(*net.TCPConn), far.(*net.TCPConn), l.delayed) })
		l.running.Go(func() { l.pass(far.(*net.TCPConn), near.(*net.TCPConn), l.paced) })
	}
}

// keep notes connections for stop, and reports false if that was called.
func (l *benchLink) keep(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, conns...)
	return !l.ended
}

// delayed says when n bytes that came now are due.
func (l *benchLink) delayed(int) time.Time { return time.Now().Add(l.delay) }

// paced is delayed for bytes that share the rate.
//
// BLOCKS until their turn has come.
func (l *benchLink) paced(n int) time.Time {
	if l.rate == 0 {
		return l.delayed(n)
	}
	l.mu.Lock()
	if late := time.Now().Add(-benchLinkCredit); l.busy.Before(late) {
		l.busy = late
	}
	l.busy = l.busy.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
	turn := l.busy
	l.mu.Unlock()
	time.Sleep(time.Until(turn))
	return turn.Add(l.delay)
}

// benchPiece is what came at one moment.
type benchPiece struct {
	data *[benchLinkPiece]byte
	n    int // bytes; 0 for the end
	due  time.Time
}

// pass hands what from sends on to to. The end of from is passed on as well; an
// error ends both.
//
// BLOCKS until then.
func (l *benchLink) pass(from, to *net.TCPConn, due func(n int) time.Time) {
	underway := make(chan benchPiece, benchLinkPieces)
	l.running.Go(func() { l.deliver(underway, from, to) })
	defer close(underway)
	for {
		data := l.pieces.Get().(*[benchLinkPiece]byte)
		n, err := from.Read(data[:])
		if n > 0 || err == io.EOF {
			underway <- benchPiece{data, n, due(n)}
		}
		if err != nil && err != io.EOF {
			to.Close()
		}
		if err != nil {
			return
		}
	}
}

// deliver writes each piece when it is due.
//
// BLOCKS until underway is closed.
func (l *benchLink) deliver(underway <-chan benchPiece, from, to *net.TCPConn) {
	for piece := range underway {
		time.Sleep(time.Until(piece.due))
		if piece.n == 0 {
			to.CloseWrite()
		} else if _, err := to.Write(piece.data[:piece.n]); err != nil {
			from.Close()
		}
		l.pieces.Put(piece.data)
	}
}
