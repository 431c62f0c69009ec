// Tests of the commands without a mount: which command lines are theirs, and how they
// show operations and progress. Tests of check run in synctest bubbles, where time is
// exact. The transcripts in cli_test.go show how the commands fail.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vbauerster/mpb/v8"
)

// init turns this process into the child that reads a control file, if it was started as
// one: a command under test starts its own program as its child.
func init() {
	if len(os.Args) > 1 && os.Args[1] == readControlName {
		os.Exit(runMain(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
}

func TestHelpListsTheCommands(t *testing.T) {
	_, help, _ := runInProcess(t, "--help")
	for _, c := range commands() {
		listed := strings.Contains(help, "fsmount "+c.name)
		if listed != (c.about != "") {
			t.Errorf("%s in the help: %v; about: %q", c.name, listed, c.about)
		}
	}
}

func TestCommandsHaveHelp(t *testing.T) {
	for _, c := range commands() {
		for _, flag := range []string{"--help", "-help", "-h"} {
			status, stdout, stderr := runInProcess(t, c.name, flag)
			if status != exitOK || stderr != "" || !strings.Contains(stdout, "Usage: fsmount "+c.name) {
				t.Errorf("%s %s: status %d, stderr %q, stdout:\n%s", c.name, flag, status, stderr, stdout)
			}
		}
	}
}

// TestCommandIsTheFirstArgumentOnly requires that a source or a value may have the name
// of a command.
func TestCommandIsTheFirstArgumentOnly(t *testing.T) {
	for _, args := range [][]string{nil, {"-mount", "ps"}, {"-trace", "check", "/"}, {"http://h/ps"}, {"PS"}} {
		if c, found := commandNamed(args); found {
			t.Errorf("%q starts the command %s", args, c.name)
		}
	}
}

func TestReadControlEndsWithItsContext(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancelLate := context.WithDeadline(context.Background(), time.Unix(1, 0))
	defer cancelLate()
	for ctx, want := range map[context.Context]error{canceled: context.Canceled, late: errNoAnswer} {
		if _, err := readControl(ctx, "/", "ops", parseOpInfo); !errors.Is(err, want) {
			t.Errorf("read control file: %v, want %v", err, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                   "",
		`a "näme" 漢字.bin`:    `a "näme" 漢字.bin`,
		"two\nlines":         `"two\nlines"`,
		"\x1b[2Jgone":        `"\x1b[2Jgone"`,
		"not UTF-8: \xff":    `"not UTF-8: \xff"`,
		"turned \u202E back": `"turned \u202e back"`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestTerminalLinesOfAFile(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, isTerminal := terminalLines(f); isTerminal {
		t.Error("a file counts as a terminal")
	}
	if _, isTerminal := terminalLines(new(bytes.Buffer)); isTerminal {
		t.Error("a buffer counts as a terminal")
	}
}

// passingOp is an operation in flight between since and until, both counted from the
// start of the check. since may be negative.
type passingOp struct {
	since, until time.Duration
}

const forever = time.Hour

// lookAt returns a look for checkMount. A look takes the given time, then returns the
// operations in flight.
func lookAt(ops []passingOp, takes time.Duration) func(context.Context) ([]opInfo, error) {
	start := time.Now()
	return func(ctx context.Context) ([]opInfo, error) {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return nil, fmt.Errorf("DIR: %w", errNoAnswer)
		}
		now := time.Since(start)
		var infos []opInfo
		for i, op := range ops {
			if op.since <= now && now < op.until {
				infos = append(infos, opInfo{ID: uint64(i + 1), Kind: "read", File: fmt.Sprintf("file%d", i),
					Range: "[0,10)", PID: uint32(100 + i), Command: "cat", Age: (now - op.since).Seconds(), Waits: "bytes [0,10)"})
			}
		}
		return infos, nil
	}
}

func TestCheckMount(t *testing.T) {
	const timeout = 2 * time.Second
	tests := []struct {
		about string
		ops   []passingOp
		takes time.Duration // a look
		after time.Duration // the check is done, at the latest
		says  string        // "" for all is well
	}{
		{"nothing in flight", nil, 0, 0, ""},
		{"blocked for long", []passingOp{{-10 * time.Second, forever}}, 0, 0,
			`DIR: blocked: 1 of 1 operations in flight, the oldest for 10.0s: read [0,10) of "file0" for pid 100 (cat), which waits for bytes [0,10)`},
		{"blocked for as long as the timeout", []passingOp{{-timeout, forever}}, 0, 0, "1 of 1 operations"},
		{"several", []passingOp{{-5 * time.Second, forever}, {-4 * time.Second, forever}, {-time.Second, forever}}, 0, 0,
			`2 of 3 operations in flight, the oldest for 5.0s: read [0,10) of "file0"`},
		{"ends soon", []passingOp{{0, 50 * time.Millisecond}}, 0, 100 * time.Millisecond, ""},
		{"ends just in time", []passingOp{{-time.Second, 900 * time.Millisecond}}, 0, time.Second + longestCheckPause, ""},
		{"gets too old", []passingOp{{-time.Second, forever}}, 0, time.Second + longestCheckPause, "1 of 1 operations"},
		{"is there all the time", []passingOp{{0, forever}}, 0, timeout, "the oldest for 1.8s"},
		{"another one each time", []passingOp{{-timeout / 2, 10 * time.Millisecond}, {time.Millisecond, forever}}, 0, timeout, ""},
		{"does not answer", nil, forever, timeout, "DIR: the mount does not answer within 2s"},
		{"answers late", nil, timeout - 1, timeout, ""},
		{"one look takes nearly all the time", []passingOp{{0, forever}}, timeout - timeout/20, timeout, "does not answer"},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			err := checkMount("DIR", timeout, lookAt(tt.ops, tt.takes))
			if took := time.Since(start); took > tt.after {
				t.Errorf("%s: took %v, want at most %v", tt.about, took, tt.after)
			}
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %v, want %q", tt.about, err, tt.says)
			}
		})
	}
}

func TestBlockedErrorIsOneLine(t *testing.T) {
	err := blockedError("DIR", []opInfo{{Kind: "open", File: "a\nb", Range: "-", Command: "c\nd", Waits: "e\nf"}}, 1)
	if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), `: open of "a\nb" for`) {
		t.Errorf("%v", err)
	}
}

func TestOpsTable(t *testing.T) {
	got := opsTable([]opInfo{
		{ID: 1, Kind: "read", File: "a long name.bin", Range: "[0,131072)", PID: 7, Command: "ffmpeg", GoID: 42, Store: 3, Age: 125.4, Waits: "bytes [0,131072) of a fetch"},
		{ID: 2, Kind: "open", File: "new\nline", Range: "-", PID: 12345, GoID: 1, Age: 0.1, Waits: "its reply"},
	})
	want := `
AGE   PID    COMMAND  OP    FILE             RANGE       GOID  STORE  WAITS FOR
2m5s  7      ffmpeg   read  a long name.bin  [0,131072)  42    3      bytes [0,131072) of a fetch
0.1s  12345  -        open  "new\nline"      -           1     -      its reply
`
	if got != want[1:] {
		t.Errorf("got\n%s\nwant%s", got, want)
	}
	if got := opsTable(nil); got != "no operation in flight\n" {
		t.Errorf("opsTable(nil) = %q", got)
	}
}

func TestRedrawWithoutATerminal(t *testing.T) {
	var out bytes.Buffer
	got := redraw(&out, "one\n", true) + redraw(&out, "two\n", false)
	if got != "one\n\ntwo\n" {
		t.Errorf("%q", got)
	}
}

func TestDrawOverKeepsToTheScreen(t *testing.T) {
	got := drawOver(strings.Repeat("row\n", 10), 6)
	if n := strings.Count(got, "\n"); n != 5 {
		t.Errorf("%d lines on a screen of 6, want 5: %q", n, got)
	}
	if !strings.Contains(got, "and 6 more") || !strings.HasPrefix(got, frameStart) || !strings.HasSuffix(got, frameEnd) {
		t.Errorf("%q", got)
	}
	if got := drawOver("row\nrow\n", 6); strings.Count(got, "row") != 2 || strings.Contains(got, "more") {
		t.Errorf("drawOver cut a frame that fits: %q", got)
	}
}

func TestStatusTable(t *testing.T) {
	got := statusTable([]fileStatus{
		{File: "film.mkv", State: "downloading", Present: 1 << 20, Size: 3 << 20, Rate: 1 << 19, Waiters: 2},
		{File: "empty", State: "complete"},
		{File: "odd\x1bname", State: "retrying", Present: 999, Size: 1000, RetryIn: 1.5, LastError: "read: reset"},
		{File: "gone", State: "failed", Size: 10, Rate: 5, Error: "404 Not Found", LastError: "x"},
	})
	want := `
FILE           STATE        DONE  PRESENT    SIZE        RATE         LEFT  WAITING  NOTE
film.mkv       downloading  33%   1.0 MiB    3.0 MiB     512.0 KiB/s  4s    2        -
empty          complete     100%  0 bytes    0 bytes     -            -     0        -
"odd\x1bname"  retrying     99%   999 bytes  1000 bytes  -            -     0        retry in 1.5s, after: read: reset
gone           failed       0%    0 bytes    10 bytes    -            -     0        404 Not Found
`
	if got != want[1:] {
		t.Errorf("got\n%s\nwant%s", got, want)
	}
}

func TestBriefNoteEndsWithTheCause(t *testing.T) {
	f := fileStatus{State: "retrying", RetryIn: 2, LastError: "fetch [0,10) of http://h/x: dial tcp: connection refused"}
	if got := f.briefNote(); got != "retry in 2.0s, after: connection refused" {
		t.Errorf("%q", got)
	}
	f.LastError = "no colon\n" + strings.Repeat("x", 1000)
	if got := []rune(f.briefNote()); len(got) != noteColumns || strings.ContainsRune(string(got), '\n') {
		t.Errorf("%q", string(got))
	}
}

func TestShorten(t *testing.T) {
	for in, want := range map[string]string{"": "", "1234567": "1234567", "12345678": "123…678", "äöüßäöüß": "äöü…öüß"} {
		if got := shorten(in, 7); got != want {
			t.Errorf("shorten(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestBarsEndWithTheirFiles requires that a bar ends when its file ends and not before:
// live waits for all bars.
func TestBarsEndWithTheirFiles(t *testing.T) {
	progress := mpb.New(mpb.WithOutput(io.Discard))
	defer progress.Shutdown()
	files := []fileStatus{
		{File: "a", State: "downloading", Size: 100},
		{File: "empty", State: "idle"},
		{File: "b", State: "downloading", Size: 100},
	}
	bars := make(map[string]*statusBar)
	for _, f := range files {
		bars[f.File] = newStatusBar(progress, f)
	}
	step := func(want bool, ended ...string) {
		t.Helper()
		if got := update(bars, files); got != want {
			t.Errorf("%+v: update returned %v", files, got)
		}
		for name, b := range bars {
			if got := b.bar.AbortedOrCompleted(); got != slices.Contains(ended, name) {
				t.Errorf("%+v: the bar of %s has ended: %v", files, name, got)
			}
		}
	}
	step(false)
	files[0].Present = 100
	step(false)
	files[0].State, files[1].State = "complete", "complete"
	step(false, "a", "empty")
	files[2].State, files[2].Present = "failed", 50
	step(true, "a", "empty", "b")
}
