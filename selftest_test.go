// Tests of the self-test as users run it: the built program passes here, says what is
// missing elsewhere, names and abandons a check that hangs, and leaves nothing behind
// however it ends.

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// selftestRun is a running self-test of the built program.
type selftestRun struct {
	t      *testing.T
	cmd    *exec.Cmd
	temp   string // its temporary directory, which has nothing else
	stdout *bufio.Scanner
	lines  []string
}

// startSelftest starts the self-test. The program and "selftest" follow args.
func startSelftest(t *testing.T, args ...string) *selftestRun {
	t.Helper()
	args = append(args, kernelProgram(t), "selftest")
	r := &selftestRun{t: t, cmd: exec.Command(args[0], args[1:]...), temp: kernelTestDir(t)}
	r.cmd.Env = append(os.Environ(), "TMPDIR="+r.temp)
	r.cmd.Stderr = os.Stderr
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.stdout = bufio.NewScanner(stdout)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(selftestLimit+kernelPatience, func() { r.cmd.Process.Kill() })
	t.Cleanup(func() { kill.Stop() })
	return r
}

// readUntil reads the output to the line that starts with prefix, or to its end.
func (r *selftestRun) readUntil(prefix string) {
	for r.stdout.Scan() {
		r.lines = append(r.lines, r.stdout.Text())
		if prefix != "" && strings.HasPrefix(r.stdout.Text(), prefix) {
			return
		}
	}
}

// requireEnd requires that the self-test ends with status and leaves nothing.
func (r *selftestRun) requireEnd(status int) {
	r.t.Helper()
	r.readUntil("")
	r.cmd.Wait()
	if got := r.cmd.ProcessState.ExitCode(); got != status {
		r.t.Errorf("the self-test ended with status %d, want %d:\n%s", got, status, r)
	}
	if entries, err := os.ReadDir(r.temp); err != nil || len(entries) > 0 {
		r.t.Errorf("the temporary directory still has %v, %v", entries, err)
	}
	r.requireUnmounted()
}

func (r *selftestRun) requireUnmounted() {
	r.t.Helper()
	for _, m := range mounts() {
		if strings.HasPrefix(m.dir, r.temp+"/") {
			r.t.Errorf("%s is still mounted", m.dir)
			unix.Unmount(m.dir, unix.MNT_DETACH)
		}
	}
}

func (r *selftestRun) String() string { return strings.Join(r.lines, "\n") }

// requireLine requires a line that matches pattern.
func (r *selftestRun) requireLine(pattern string) {
	r.t.Helper()
	for _, line := range r.lines {
		if regexp.MustCompile(pattern).MatchString(line) {
			return
		}
	}
	r.t.Errorf("no line matches %q:\n%s", pattern, r)
}

// selftestNames returns the names of all checks in order.
func selftestNames() (names []string) {
	for _, k := range append(slices.Concat(selftestStages()...), cleanCheck()) {
		names = append(names, k.name)
	}
	return names
}

func TestKernelSelftestPasses(t *testing.T) {
	requireFUSE(t)
	r := startSelftest(t)
	r.requireEnd(exitOK)
	names := selftestNames()
	for i, name := range names {
		if i >= len(r.lines) || !strings.HasPrefix(r.lines[i], "PASS "+name+": ") {
			t.Errorf("line %d is not the PASS of %q:\n%s", i+1, name, r)
		}
	}
	r.requireLine(fmt.Sprintf("^%d passed, 0 failed, 0 skipped$", len(names)))
	r.requireLine(`^PASS concurrent readers: 8 processes .* \d+ MB/s$`)
	r.requireLine(`^PASS cut connections: 4.0 MiB verified over [1-9]\d* cuts in `)
	t.Logf("the self-test says:\n%s", r)
}

func TestKernelSelftestStoppedLeavesNothing(t *testing.T) {
	requireFUSE(t)
	for _, after := range []string{"mount", "cut connections"} {
		r := startSelftest(t)
		r.readUntil("PASS " + after + ":")
		if err := r.cmd.Process.Signal(unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		r.requireEnd(exitFailure)
		r.requireLine("^(FAIL|SKIP) .*interrupt")
		r.requireLine("^PASS nothing left: ")
	}
}

// A killed self-test cannot clean up, but its mount and its readers still end.
func TestKernelSelftestKilledUnmounts(t *testing.T) {
	requireFUSE(t)
	r := startSelftest(t)
	r.readUntil("PASS mount:")
	mnt := regexp.MustCompile(regexp.QuoteMeta(r.temp) + `/\S+`).FindString(r.String())
	if !mounted(mnt) {
		t.Errorf("%q is not mounted, so this shows nothing", mnt)
	}
	r.cmd.Process.Kill()
	r.cmd.Wait()
	defer r.requireUnmounted()
	eventually(t, func() (bool, string) { return !mounted(mnt), mnt + " is still mounted" })
}

func TestSelftestWithoutFUSEDevice(t *testing.T) {
	if err := exec.Command("unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev").Run(); err != nil {
		if os.Geteuid() == 0 {
			cannotTest(t, fmt.Errorf("/dev cannot be hidden: %w", err))
		}
		t.Skipf("SKIPPED: only root can hide /dev: %v", err)
	}
	r := startSelftest(t, "unshare", "-m", "sh", "-c", `mount -t tmpfs none /dev && exec "$0" "$@"`)
	r.requireEnd(exitFailure)
	r.requireLine("^FAIL device: /dev/fuse is missing; .*modprobe fuse.*--device /dev/fuse")
	r.requireLine(`^SKIP mount: .*"device"`)
	r.requireLine(`^SKIP stop: .*"mount"`)
	r.requireLine(`^\d+ passed, 1 failed, 10 skipped$`)
}

// runReport runs a stage of checks, and then another, as the self-test does, and returns
// its output.
func runReport(ctx context.Context, checks []selftestCheck, more ...selftestCheck) (lines []string, status int) {
	var out strings.Builder
	s := newSelftest(&out)
	s.run(ctx, [][]selftestCheck{checks, more})
	status = s.finish()
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"), status
}

func passing(name string) selftestCheck {
	return selftestCheck{name: name, todo: "todo",
		run: func(*checkRun) string { return "fine" }}
}

func failing(name string, err error) selftestCheck {
	return selftestCheck{name: name, todo: "todo",
		run: func(c *checkRun) string {
			c.must(err)
			return "the check went on after an error"
		}}
}

func requireLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("printed:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSelftestReport(t *testing.T) {
	var readers []context.Context
	complains := passing("e")
	complains.run = func(c *checkRun) string {
		readers = append(readers, c.ctx)
		c.mustf(errors.New("bad"), "h%s", "m")
		return ""
	}
	panics := passing("d")
	panics.run = func(c *checkRun) string {
		readers = append(readers, c.ctx)
		panic("oh\nno")
	}
	lines, status := runReport(t.Context(),
		[]selftestCheck{passing("a"), failing("b", errors.New("two\nlines")), complains, panics}, passing("c"))
	if status != exitFailure {
		t.Errorf("status %d, want %d", status, exitFailure)
	}
	if len(readers) != 2 || readers[0].Err() == nil || readers[1].Err() == nil {
		t.Errorf("the readers of a failed check go on: %v", readers)
	}
	if !strings.HasPrefix(lines[3], "FAIL d: panic: oh no ") {
		t.Errorf("of the panic it says %q", lines[3])
	} else {
		lines[3] = "the panic"
	}
	requireLines(t, lines,
		"PASS a: fine",
		"FAIL b: two lines; todo",
		"FAIL e: hm: bad; todo",
		"the panic",
		`SKIP c: not tried: it needs "b", which did not pass`,
		"1 passed, 3 failed, 1 skipped")

	lines, status = runReport(t.Context(), []selftestCheck{passing("a")}, passing("b"))
	requireLines(t, lines, "PASS a: fine", "PASS b: fine", "2 passed, 0 failed, 0 skipped")
	if status != exitOK {
		t.Errorf("status %d, want %d", status, exitOK)
	}
}

func TestSelftestNamesWhatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		forever := make(chan struct{})
		defer close(forever)
		hangs := passing("b")
		hangs.run = func(*checkRun) string {
			<-forever
			return ""
		}
		lines, status := runReport(t.Context(), []selftestCheck{passing("a"), hangs, passing("c")})
		requireLines(t, lines,
			"PASS a: fine",
			"FAIL b: the check hangs: no end within 15s; todo",
			`SKIP c: not tried: the check "b" still hangs`,
			"1 passed, 1 failed, 1 skipped")
		if status != exitFailure {
			t.Errorf("status %d, want %d", status, exitFailure)
		}
	})
}

func TestSelftestEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), selftestCheckLimit/2, errSelftestLimit)
		defer cancel()
		slow := passing("a")
		slow.run = func(c *checkRun) string {
			<-c.ctx.Done()
			c.must(context.Cause(c.ctx))
			return ""
		}
		lines, _ := runReport(ctx, []selftestCheck{slow, passing("b")})
		requireLines(t, lines,
			"FAIL a: the self-test may take 1m0s in all; todo",
			"SKIP b: not reached: the self-test may take 1m0s in all",
			"0 passed, 1 failed, 1 skipped")
	})
}

// judge runs one check and returns its figure or its error.
func judge(t *testing.T, run checkFunc) (figure string, err error) {
	t.Helper()
	c := newSelftest(io.Discard).runBounded(t.Context(), selftestCheck{run: run}, selftestCheckLimit)
	return c.figure, c.err
}

func TestSelftestJudgesKernel(t *testing.T) {
	for release, want := range map[string]string{
		"6.18.44-fc": "Linux 6.18.44-fc",
		"6.9.0":      "Linux 6.9.0",
		"6.8.12":     "from 6.9 on",
		"4.20.0":     "from 6.9 on",
		"4.19.311":   "older than 4.20",
		"3.10.0-el7": "older than 4.20",
		"mystery":    "has no number",
	} {
		said, err := judge(t, func(c *checkRun) string { return judgeKernel(c, release) })
		if err != nil {
			said = err.Error()
		}
		bad := strings.HasPrefix(want, "older") || strings.HasPrefix(want, "has")
		if !strings.Contains(said, want) || bad != (err != nil) {
			t.Errorf("of %s it says %q, %v; want %q", release, said, err, want)
		}
	}
}

func TestSelftestJudgesSpace(t *testing.T) {
	space := func(free int64) checkFunc {
		return func(c *checkRun) string { return judgeSpace(c, "/x", free) }
	}
	if said, err := judge(t, space(selftestSpace)); err != nil || said != "/x has room for 256 MiB" {
		t.Errorf("enough: %q, %v", said, err)
	}
	if _, err := judge(t, space(selftestSpace-1)); err == nil {
		t.Error("one byte too few is enough")
	}
}

func TestSelftestLogAlarm(t *testing.T) {
	var l selftestLog
	requireAlarm := func(want string) {
		t.Helper()
		said := ""
		if err := l.alarm(); err != nil {
			said = err.Error()
		}
		if said != want {
			t.Errorf("the alarm says %q, want %q", said, want)
		}
	}
	requireAlarm("")
	fmt.Fprintln(&l, "line")
	requireAlarm("")
	fmt.Fprintln(&l, "BUG: lost wake-up")
	requireAlarm("fsmount -mount logged: BUG: lost wake-up")
	requireAlarm("")
	fmt.Fprintln(&l, "line\npanic: oh\nBUG: another\nline")
	requireAlarm("fsmount -mount logged: panic: oh")
	requireAlarm("")
}

// A bug that the mount logged fails the check that ran meanwhile.
func TestSelftestFailsByTheLog(t *testing.T) {
	_, err := judge(t, func(c *checkRun) string {
		fmt.Fprintln(&c.log, "BUG: lost wake-up")
		return "fine"
	})
	if err == nil || err.Error() != "fsmount -mount logged: BUG: lost wake-up" {
		t.Errorf("the check ended with %v", err)
	}
}
