//go:build bench

// bench_process_test.go starts and ends the processes of a benchmark, limits their
// time, and makes the slow network paths that this machine lacks. The test process
// itself never touches a file of a mount.

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
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// benchLimit is how long a command may take. The slowest reads 256 MiB at
	// 50 MiB/s, which takes a tenth of it.
	benchLimit = time.Minute

	// benchPatience is how long a process may take to start or to end.
	benchPatience = 10 * time.Second

	// benchTick is the unit of CPU times in /proc/PID/stat: USER_HZ is 100 on
	// every Linux (proc_pid_stat(5), time(7)).
	benchTick = 10 * time.Millisecond
)

// benchResult is what a successful command took and wrote.
type benchResult struct {
	wall, cpu      time.Duration
	stdout, stderr string
}

// benchRun runs a command, and fails the test if the command fails. m is the mount
// that the command reads, or nil.
//
// BLOCKS until the command ends; wakes on benchLimit as well.
func benchRun(t *testing.T, m *benchMount, argv ...string) benchResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), benchLimit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = benchPatience
	cmd.Cancel = func() error {
		if m != nil {
			mountedAt(m.dir).abort()
		}
		return cmd.Process.Kill()
	}
	begin := time.Now()
	err := cmd.Run()
	wall := time.Since(begin)
	if err != nil {
		shown := strings.Join(argv[:min(len(argv), 12)], " ") // a command may have a thousand URLs
		written := ""
		if m != nil {
			written = m.tail()
		}
		t.Fatalf("%s: %v (%v)\n%s%s%s", shown, err, ctx.Err(), &stdout, &stderr, written)
	}
	return benchResult{
		wall:   wall,
		cpu:    cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(),
		stdout: stdout.String(),
		stderr: stderr.String(),
	}
}

// benchProcess is a process that runs until the benchmark ends it.
type benchProcess struct {
	t       *testing.T
	name    string
	log     string // path
	cmd     *exec.Cmd
	started time.Time
	ended   chan struct{} // closed when the process has ended
}

// startBenchProcess starts argv, whose output goes to the file log. The process dies
// with this one.
func startBenchProcess(t *testing.T, name, log string, argv ...string) *benchProcess {
	t.Helper()
	out, err := os.Create(log)
	benchOK(t, err)
	defer out.Close()
	p := &benchProcess{t: t, name: name, log: log, ended: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.started = time.Now()
	benchOK(t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		p.cmd.Wait()
	}()
	return p
}

// await calls ready each millisecond until it returns true.
//
// BLOCKS until then; wakes on benchPatience and on the end of the process, which both
// fail the test.
func (p *benchProcess) await(t *testing.T, ready func() bool) {
	t.Helper()
	for begin := time.Now(); !ready(); {
		select {
		case <-p.ended:
			t.Fatalf("%s ended early%s", p.name, p.tail())
		case <-time.After(time.Millisecond):
		}
		if time.Since(begin) > benchPatience {
			t.Fatalf("%s is not ready after %v%s", p.name, benchPatience, p.tail())
		}
	}
}

// tail returns the last output of the process, as the end of an error message.
func (p *benchProcess) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil || len(text) == 0 {
		return ""
	}
	return "\n" + p.name + " wrote:\n" + string(text[max(0, len(text)-2000):])
}

// procFile returns the text of /proc/PID/name.
func (p *benchProcess) procFile(name string) string {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, name))
	if err != nil {
		p.t.Fatalf("%s is gone: %v%s", p.name, err, p.tail())
	}
	return string(text)
}

// cpu returns the user+sys time of the process so far, rounded to benchTick.
func (p *benchProcess) cpu() time.Duration {
	p.t.Helper()
	stat := p.procFile("stat")
	// The command's name, the second field, may contain blanks.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const utime, stime = 14 - 3, 15 - 3
	ticks := benchInteger(p.t, fields[utime]) + benchInteger(p.t, fields[stime])
	return time.Duration(ticks) * benchTick
}

// peak returns the largest resident set of the process so far, in MiB.
func (p *benchProcess) peak() float64 {
	p.t.Helper()
	var kib float64
	_, after, _ := strings.Cut(p.procFile("status"), "VmHWM:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		p.t.Fatalf("no VmHWM in /proc/PID/status: %v", err)
	}
	return kib / 1024
}

// benchMount is a process that serves a mount.
type benchMount struct {
	*benchProcess
	dir  string
	file string // path of the file that is measured
}

// mount starts argv, which mounts at dir and shows the file called name there.
//
// BLOCKS until the mount is there, as await does.
func (r *benchRig) mount(t *testing.T, system, dir, name string, argv ...string) *benchMount {
	t.Helper()
	m := &benchMount{startBenchProcess(t, system, dir+".log", argv...), dir, filepath.Join(dir, name)}
	t.Cleanup(m.stop)
	m.await(t, func() bool { return mounted(m.dir) })
	return m
}

// fsmount mounts sources with the built program. args are flags, then URLs; the last URL
// is of the measured file. The temporary files are on the disk that curl writes to.
func (r *benchRig) fsmount(t *testing.T, args ...string) *benchMount {
	t.Helper()
	dir := r.mkdir(t, "mount-*")
	argv := append([]string{r.binary, "-mount", dir, "--temp-dir", r.dir}, args...)
	return r.mount(t, "fsmount", dir, path.Base(args[len(args)-1]), argv...)
}

// stop ends the process and the mount, by force after benchPatience. A second call
// does nothing.
func (m *benchMount) stop() {
	m.t.Helper()
	m.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.ended:
	case <-time.After(benchPatience):
		m.t.Errorf("%s did not end within %v of SIGTERM%s", m.name, benchPatience, m.tail())
		mountedAt(m.dir).abort()
		m.cmd.Process.Kill()
		<-m.ended
	}
	if mounted(m.dir) {
		if err := unmount(m.dir, nil); err != nil {
			m.t.Errorf("unmount %s of %s: %v", m.dir, m.name, err)
		}
	}
}

// benchSentLog is where nginx logs the bytes that it sent for each request of a
// counted file, one number a line.
const benchSentLog = "sent.log"

// benchNginx is the configuration of an origin with one process and no output. nginx
// leaves Accept-Ranges out of a partial answer; the configuration puts it back, because
// httpdirfs needs it. Counted files have no tcp_nopush: with it, the end of an answer
// between one and two segments of the loopback (64 KiB each) comes 40 ms late, after
// the delayed acknowledgement of the first segment. Seekers leave such pieces to fetch.
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
// BLOCKS until nginx accepts connections, as await does.
func (r *benchRig) startNginx(t *testing.T) string {
	t.Helper()
	port := benchFreePort(t)
	conf := filepath.Join(r.dir, "nginx.conf")
	benchOK(t, os.WriteFile(conf, fmt.Appendf(nil, benchNginx, r.dir, port, r.docs, benchSentLog), 0o600))
	r.nginx = startBenchProcess(t, "nginx", filepath.Join(r.dir, "nginx.out"), "nginx", "-p", r.dir, "-c", conf)
	t.Cleanup(func() {
		r.nginx.cmd.Process.Kill()
		<-r.nginx.ended
	})
	address := fmt.Sprintf("127.0.0.1:%d", port)
	r.nginx.await(t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return "http://" + address
}

// benchFreePort returns a port that was free a moment ago.
func benchFreePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	benchOK(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// benchBackMemory makes the host of a virtual machine back size bytes of free memory.
// Some hosts take free memory back. The next program that fills the page cache then pays
// for each page, several seconds a GiB, and chance decides whether that is the floor or
// fsmount.
func benchBackMemory(t *testing.T, size int64) {
	memory, err := syscall.Mmap(-1, 0, int(size), syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_POPULATE)
	if err != nil {
		t.Logf("back %d bytes of memory: %v", size, err)
		return
	}
	benchOK(t, syscall.Munmap(memory))
}

// benchThrottled serves f with latency before each answer, and returns its URL.
func benchThrottled(t *testing.T, f *localFile, latency time.Duration) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := sleepUntil(r.Context(), time.Now().Add(latency)); err == nil {
			f.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL + "/" + f.name
}

const (
	// A link holds at most benchLinkPieces pieces of benchLinkPiece bytes in each
	// direction of a connection: 64 MiB, more than a loopback carries in 50 ms.
	benchLinkPiece  = 64 << 10
	benchLinkPieces = 1024

	// benchLinkCredit is how much lateness a link with a rate makes up for. A timer
	// is late by less.
	benchLinkCredit = 10 * time.Millisecond
)

// benchLink forwards connections to an address. Each byte arrives delay later than it
// came, in both directions. The bytes from the address share one rate over all
// connections. To connect takes no time.
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
	conns []net.Conn // GUARDED_BY(mu); all since the start
	ended bool       // GUARDED_BY(mu)
	busy  time.Time  // GUARDED_BY(mu); when the bytes so far have passed, at rate
}

// benchLinkTo returns a URL that leads to url through a link. rate is in bytes a
// second, 0 for no limit.
func benchLinkTo(t *testing.T, url string, delay time.Duration, rate int64) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	benchOK(t, err)
	target, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	l := &benchLink{listener: listener, target: target, delay: delay, rate: rate}
	l.pieces.New = func() any { return new([benchLinkPiece]byte) }
	l.running.Go(l.accept)
	t.Cleanup(l.stop)
	return "http://" + listener.Addr().String() + "/" + path
}

// stop closes all connections.
//
// BLOCKS until every goroutine of the link has ended.
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

// keep remembers connections for stop. It reports false if stop has already run.
func (l *benchLink) keep(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, conns...)
	return !l.ended
}

// delayed returns when bytes that came now are due.
func (l *benchLink) delayed(int) time.Time { return time.Now().Add(l.delay) }

// paced returns when n bytes that came now are due at the shared rate.
//
// BLOCKS until the bytes before them have passed.
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

// benchPiece holds the bytes of one Read.
type benchPiece struct {
	data *[benchLinkPiece]byte
	n    int // bytes; 0 at the end of the connection
	due  time.Time
}

// pass forwards the bytes and the end of the connection from to the connection to. An
// error ends both connections.
//
// BLOCKS until from ends or fails.
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
