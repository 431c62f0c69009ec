// Kernel tests of the commands that ask a mount: with fifty blocked readers, with a
// stopped server, with a server that takes requests and never answers, and with the
// log of a mount. Each command runs as a process of its own and must end by itself.

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// requireCheck requires that check ends with status within its timeout, plus the time
// to start and end a process.
func requireCheck(t *testing.T, dir string, timeout time.Duration, status int) (stderr string) {
	t.Helper()
	start := time.Now()
	got, stdout, stderr := runProgram(t, "check", dir, "--timeout", timeout.String())
	if took := time.Since(start); took > timeout+2*time.Second {
		t.Errorf("check --timeout %v took %v", timeout, took)
	}
	if got != status || stdout != "" || strings.Count(stderr, "\n") != status {
		t.Errorf("check: status %d, stdout %q, stderr %q; want %d, nothing and that many lines", got, stdout, stderr, status)
	}
	return stderr
}

// requireEmptyTable requires that nothing is in flight.
func requireEmptyTable(t *testing.T, m *kernelMount) {
	t.Helper()
	if status, stdout, stderr := runProgram(t, "ps", m.dir); status != 0 || stdout != "no operation in flight\n" {
		t.Errorf("ps: status %d, %s%s; want an empty table", status, stdout, stderr)
	}
}

func TestKernelCommandsNameEveryBlockedReader(t *testing.T) {
	const readers, apart = 50, 1 << 20
	const shown = "an \"odd\" näme.bin"
	f := heldFile("a.bin", readers*apart, 0)
	startKernelOrigin(t, f)
	m := startKernelMount(t, "--trace", shown+"="+f.url)
	f.name = shown // the name that readers open
	requireEmptyTable(t, m)
	requireCheck(t, m.dir, 2*time.Second, 0)

	blocked := make(map[uint32]byteRange)
	var waiting []*kernelReader
	for i := range readers {
		r := m.reader().open(f)
		at := byteRange{int64(i) * apart, int64(i)*apart + 4096}
		r.send(preadCall(f, at.off, int(at.len())))
		blocked[uint32(r.thread)] = at
		waiting = append(waiting, r)
	}
	m.awaitBlocked(readers)

	_, control, _ := runProgram(t, readControlName, m.dir, "ops")
	var answer controlAnswer
	if err := json.Unmarshal([]byte(control), &answer); err != nil {
		t.Fatal(err)
	}
	ops, err := parseLines(answer.Text, parseOpInfo)
	if err != nil {
		t.Fatal(err)
	}
	requireBlocked(t, "the file ops", ops, shown, blocked)

	_, stdout, stderr := runProgram(t, "ps", "--json", m.dir)
	ops = nil
	if err := json.Unmarshal([]byte(stdout), &ops); err != nil {
		t.Fatalf("ps --json: %v\n%s%s", err, stdout, stderr)
	}
	requireBlocked(t, "ps --json", ops, shown, blocked)
	_, stdout, _ = runProgram(t, "ps", m.dir)
	requireRows(t, stdout, printable(shown), blocked)

	why := requireCheck(t, m.dir, time.Second, 1)
	if !strings.Contains(why, fmt.Sprintf(" of %d operations in flight", readers)) || !strings.Contains(why, fmt.Sprintf("of %q for pid", shown)) ||
		!strings.Contains(why, "waits for bytes [") {
		t.Errorf("check says: %s", why)
	}

	f.allowAll()
	for _, r := range waiting {
		requireBytes(t, r.answer(), 4096)
	}
	requireEmptyTable(t, m)
	requireCheck(t, m.dir, 2*time.Second, 0)
}

// requireBlocked requires that ops are exactly the reads in blocked, which maps each
// reader to its range: the oldest first, each with what it waits for.
func requireBlocked(t *testing.T, where string, ops []opInfo, file string, blocked map[uint32]byteRange) {
	t.Helper()
	seen := make(map[uint32]bool)
	for i, op := range ops {
		want, ours := blocked[op.PID]
		if !ours || seen[op.PID] || op.Kind != "read" || op.File != file || op.Range != want.String() ||
			!strings.HasPrefix(op.Waits, "bytes "+want.String()) || op.Command == "" || op.GoID == 0 || op.Store == 0 {
			t.Errorf("%s has, for %v: %v", where, want, op)
		}
		if i > 0 && op.ID < ops[i-1].ID {
			t.Errorf("%s is not in order: %v before %v", where, ops[i-1], op)
		}
		seen[op.PID] = true
	}
	if len(seen) != len(blocked) {
		t.Errorf("%s has %d of %d readers", where, len(seen), len(blocked))
	}
}

// requireRows requires a row of the table for each of blocked.
func requireRows(t *testing.T, table, file string, blocked map[uint32]byteRange) {
	t.Helper()
	rows := strings.Split(strings.TrimSuffix(table, "\n"), "\n")
	if len(rows) != len(blocked)+1 {
		t.Errorf("%d rows, want %d and a header:\n%s", len(rows), len(blocked), table)
	}
	for pid, at := range blocked {
		found := false
		for _, row := range rows {
			fields := strings.Fields(row)
			found = found || fields[1] == fmt.Sprint(pid) && strings.Contains(row, "  "+file+"  ") &&
				strings.Contains(row, "  "+at.String()+"  ") && strings.Contains(row, "  bytes "+at.String())
		}
		if !found {
			t.Errorf("no row for pid %d, %v:\n%s", pid, at, table)
		}
	}
}

func TestKernelCheckOfAStoppedServer(t *testing.T) {
	f := wholeFile("a.bin", 1<<20)
	m := f.mount(t)
	t.Cleanup(func() { m.signal(unix.SIGCONT) })
	m.signal(unix.SIGSTOP)
	why := requireCheck(t, m.dir, 500*time.Millisecond, 1)
	if !strings.Contains(why, "does not answer within 500ms") {
		t.Errorf("check says: %s", why)
	}
	m.signal(unix.SIGCONT)
	requireCheck(t, m.dir, kernelPatience/2, 0)
	m.reader().requireWhole(f)
}

func TestKernelCommandsAfterTheServerIsKilled(t *testing.T) {
	f := wholeFile("a.bin", 1<<20)
	m := f.mount(t)
	m.signal(unix.SIGKILL)
	m.requireExit(-1)
	why := requireCheck(t, m.dir, 2*time.Second, 1)
	if !strings.Contains(why, "its fsmount is gone") || !strings.Contains(why, unmountCommand(m.dir)) {
		t.Errorf("check says: %s", why)
	}
	if err := unmount(m.dir, nil); err != nil {
		t.Fatal(err)
	}
	if why := requireCheck(t, m.dir, 2*time.Second, 1); !strings.Contains(why, "no fsmount is mounted there") {
		t.Errorf("check of no mount says: %s", why)
	}
}

// A command that is asked about a file of a mount names the mountpoint, as it is spelled.
func TestKernelCommandsOnAFileNameItsMountpoint(t *testing.T) {
	f := wholeFile("film.mkv", 1<<20)
	m := f.mount(t)
	for _, verb := range []string{"ps", "status", "check"} {
		path := m.path(f.name)
		want := fmt.Sprintf("fsmount: %s: no fsmount is mounted there, it is a file; ask its mountpoint: fsmount %s %s\n", path, verb, m.dir)
		if status, _, stderr := runProgram(t, verb, path); status == 0 || stderr != want {
			t.Errorf("%s: status %d, %q, want %q", verb, status, stderr, want)
		}
	}
}

// Without /dev/fuse, a mount and the self-test say the same, in the same words.
func TestKernelMountWithoutTheDevice(t *testing.T) {
	requireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("only root may make the namespace in which /dev/fuse is missing")
	}
	const why = "/dev/fuse is missing; as root: modprobe fuse; in a container: start it with --device /dev/fuse\n"
	dir := kernelTestDir(t)
	for args, want := range map[string]string{"-mount " + dir: "fsmount: mount " + dir + ": " + why, "selftest": "FAIL device: " + why} {
		script := "mount -t tmpfs none /dev && exec " + kernelProgram(t) + " " + args
		ctx, cancel := context.WithTimeout(t.Context(), kernelPatience)
		out, _ := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-c", script).CombinedOutput()
		cancel()
		if !strings.Contains(string(out), want) {
			t.Errorf("%s: %s\nwant %s", args, out, want)
		}
	}
}

// The mount's server answers the first request and no other, so a process that waits
// for it cannot be killed.
func TestKernelCheckLeavesBehindWhatCannotBeKilled(t *testing.T) {
	requireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("only root may mount without the help of fusermount3")
	}
	dir := kernelTestDir(t)
	taken := mountSilent(t, dir)
	why := requireCheck(t, dir, 500*time.Millisecond, 1)
	if !strings.Contains(why, "does not answer within") {
		t.Errorf("check says: %s", why)
	}
	select {
	case thread := <-taken:
		eventually(t, func() (bool, string) {
			state := processState(int(thread))
			return state == "D", "the thread that waits can be killed, so this shows nothing: state " + state
		})
	case <-time.After(kernelPatience):
		t.Error("no request came")
	}
}

// hangs runs the command on the log of m, which has ended.
func (m *kernelMount) hangs() (status int, stdout, stderr string) {
	m.t.Helper()
	log := filepath.Join(m.t.TempDir(), "log")
	if err := os.WriteFile(log, []byte(m.stderr.String()), 0o600); err != nil {
		m.t.Fatal(err)
	}
	status, stdout, stderr = runProgram(m.t, "hangs", log)
	return status, stdout, strings.ReplaceAll(stderr, log, "LOG")
}

// One read stalls and recovers, another one is blocked until the mount stops. The
// dumps repeat no event in the form that a trace has.
func TestKernelHangsOfALogWithDumps(t *testing.T) {
	slow, dead := heldFile("slow.bin", 1<<20, 1<<19), heldFile("dead.bin", 1<<20, 0)
	slow.refuse = func(n int) (code, after int) { return []int{503, 0}[n%2], 0 } // the log has a note
	startKernelOrigin(t, slow, dead)
	for _, flags := range [][]string{{"--trace"}, nil} {
		t.Run(strings.Join(flags, ""), func(t *testing.T) {
			slow.allow(1 << 19)
			m := startKernelMount(t, append(flags, "--stall-report", "50ms", slow.url, dead.url)...)
			recovers, fails := m.reader().open(slow), m.reader().open(dead)
			recovers.send(readAllCall(slow))
			fails.send(preadCall(dead, 0, 4096))
			m.awaitLogged("range=[524288,") // it is reported
			m.awaitLogged("range=[0,4096)")
			m.signal(unix.SIGUSR1)
			m.awaitLogged("SIGUSR1: 2 operations in flight\n")
			m.signal(unix.SIGQUIT)
			m.awaitLogged("SIGQUIT: 2 operations in flight\n")
			slow.allowAll()
			requireBytes(t, recovers.answer(), slow.size)
			m.stop()
			fails.requireErrno("EIO")

			log := m.stderr.String()
			for _, name := range []string{`slow.bin"`, `dead.bin": input/output error`} {
				if !regexp.MustCompile(`unblocked after \S+: read of "` + name + "\n").MatchString(log) {
					t.Errorf("the log does not say that a read of %s is unblocked", name)
				}
			}
			status, stdout, stderr := m.hangs()
			if flags == nil {
				const want = "fsmount: hangs: LOG: no trace lines found; start fsmount with --trace\n"
				asTrace := regexp.MustCompile(`\[TempFileStore #\d+\] \w+ (ENTER|EXIT) `)
				if status != exitUsage || stdout != "" || stderr != want || asTrace.MatchString(log) || strings.Count(log, "ReadAt ENTER off=524288 ") != 3 {
					t.Errorf("status %d, %q, %q, want %q", status, stdout, stderr, want)
				}
				return
			}
			began := make(map[string]bool) // each line once: its time and goroutine tell it apart
			for line := range strings.Lines(log) {
				if strings.Contains(line, " ENTER ") {
					began[line] = true
				}
			}
			want := fmt.Sprintf("\nNothing hangs in %d operations of 1 run.\n", len(began))
			if status != exitOK || !strings.HasSuffix(stdout, want) || strings.Contains(stdout, "without an ENTER") {
				t.Errorf("status %d, %s%s, want %s", status, stdout, stderr, want)
			}
		})
	}
}

func TestKernelHangsOfAKilledMount(t *testing.T) {
	f := heldFile("a.bin", 1<<20, 64<<10)
	m := f.mount(t, "--trace", "--stall-report", "50ms")
	r := m.reader().open(f)
	r.requireRead(f, 0, 4096, 4096)
	r.send(preadCall(f, 100<<10, 4096))
	m.awaitLogged("all goroutines:\n")
	m.signal(unix.SIGKILL)
	m.requireExit(-1)
	if err := unmount(m.dir, nil); err != nil {
		t.Fatal(err)
	}
	status, stdout, stderr := m.hangs()
	if status != exitFailure || !strings.Contains(stdout, "\nHANGING: 2 operations with") || strings.Count(stdout, " since ") != 2 ||
		!strings.Contains(stdout, `store 1 ("a.bin"): ReadAt off=102400 len=4096 `) || !strings.Contains(stdout, `store 1 ("a.bin"): download off=0 len=131072 `) {
		t.Errorf("status %d, %s%s, want the second read and the download", status, stdout, stderr)
	}
}

// The parts of the FUSE protocol that mountSilent needs (linux/fuse.h).
const (
	fuseInitOp     = 26
	fuseInHeader   = 40 // bytes: len, opcode, unique, nodeid, uid, gid, pid, padding
	fuseInitAnswer = 16 + 64
)

// mountSilent makes a mount at dir that looks like one of fsmount. The channel gets
// the thread of the first request that stays unanswered.
func mountSilent(t *testing.T, dir string) (taken chan uint32) {
	t.Helper()
	fd, err := mountDevice(dir, fsSource, "fuse."+fsSubtype)
	if err != nil {
		t.Fatal(err)
	}
	taken = make(chan uint32, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		takeAndKeep(fd, taken)
	}()
	t.Cleanup(func() {
		mountedAt(dir).abort()
		unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		<-done
		unix.Close(fd)
	})
	return taken
}

// takeAndKeep takes requests until the connection ends. It answers only the first,
// FUSE_INIT, because without that answer the kernel sends no other request.
func takeAndKeep(fd int, taken chan<- uint32) {
	request := make([]byte, maxReadBytes)
	for {
		n, err := unix.Read(fd, request)
		if err == unix.EINTR || err == unix.ENOENT {
			continue
		}
		if err != nil || n < fuseInHeader {
			return
		}
		order := binary.NativeEndian
		if order.Uint32(request[4:]) == fuseInitOp {
			answer := make([]byte, fuseInitAnswer)
			order.PutUint32(answer, fuseInitAnswer)
			copy(answer[8:16], request[8:16])
			copy(answer[16:24], request[fuseInHeader:fuseInHeader+8]) // the kernel's own version
			order.PutUint32(answer[36:], 4096)                        // max_write
			unix.Write(fd, answer)
			continue
		}
		select {
		case taken <- order.Uint32(request[32:]):
		default:
		}
	}
}

// With --watch the command follows the file until Ctrl-C.
func TestKernelStatusOnATerminal(t *testing.T) {
	f := heldFile("a.bin", 1<<20, 1<<19)
	m := f.mount(t)
	r := m.reader().open(f)
	r.send(readAllCall(f))

	screen, terminal := openTerminal(t)
	cmd := exec.Command(kernelProgram(t), "status", "--watch", m.dir)
	cmd.Env = append(os.Environ(), "TERM=xterm")
	cmd.Stdout = terminal
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	kill := time.AfterFunc(kernelPatience, func() { cmd.Process.Kill() })
	defer kill.Stop()
	shown := newKernelLog()
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(shown, screen)
	}()
	if !shown.await(func(text string) bool { return strings.Contains(text, " 50% ") && strings.Contains(text, "stalled ") }) {
		t.Errorf("half the file is not shown: %q", shown)
	}
	f.allowAll()
	if !shown.await(func(text string) bool { return strings.Contains(text, "complete ") && strings.Contains(text, "100%") }) {
		t.Errorf("the whole file is not shown: %q", shown)
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Errorf("status on a terminal: %v: %s", err, &errOut)
	}
	<-read
	requireBytes(t, r.answer(), f.size)

	status, stdout, stderr := runProgram(t, "status", m.dir)
	if status != 0 || strings.Contains(stdout, "\x1b") || !strings.Contains(stdout, "a.bin  complete  100%") {
		t.Errorf("status without a terminal: %d, %q, %q", status, stdout, stderr)
	}
}

// openTerminal returns both ends of a new terminal of 80 columns (pty(7)).
func openTerminal(t *testing.T) (screen, terminal *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminal can be opened here: %v", err)
	}
	t.Cleanup(func() { screen.Close() })
	fd := int(screen.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(filepath.Join("/dev/pts", fmt.Sprint(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return screen, terminal
}
