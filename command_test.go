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
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
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
	for ctx, want := range map[context.Context]string{canceled: "context canceled", late: "/: the mount does not answer within 1m0s"} {
		if _, err := readControl(ctx, time.Minute, "ps", "/", "ops", "", parseOpInfo); err == nil || err.Error() != want {
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

func TestSizeOfNoTerminal(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, w := range []io.Writer{f, new(bytes.Buffer)} {
		if lines, columns := terminalSize(w); lines != 0 || columns != 0 {
			t.Errorf("%T has %d lines and %d columns", w, lines, columns)
		}
	}
}

// passingOp is an operation in flight between since and until, both counted from the
// start of the check. since may be negative.
type passingOp struct {
	since, until time.Duration
}

const forever = time.Hour

var errNoAnswer = errors.New("the mount does not answer")

// lookAt returns a look for checkMount. A look takes the given time, then returns the
// operations in flight; when limit is over, it fails.
func lookAt(ops []passingOp, takes, limit time.Duration) func() ([]opInfo, error) {
	start := time.Now()
	return func() ([]opInfo, error) {
		left := limit - time.Since(start)
		time.Sleep(min(takes, left))
		if takes >= left {
			return nil, errNoAnswer
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
		{"does not answer", nil, forever, timeout, errNoAnswer.Error()},
		{"answers late", nil, timeout - 1, timeout, ""},
		{"one look takes nearly all the time", []passingOp{{0, forever}}, timeout - timeout/20, timeout, errNoAnswer.Error()},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			err := checkMount("DIR", timeout, lookAt(tt.ops, tt.takes, timeout))
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
	ops := []opInfo{
		{ID: 1, Kind: "read", File: "a long name.bin", Range: "[0,131072)", PID: 7, Command: "ffmpeg", Age: 125.4, Waits: "bytes [0,131072) of a fetch"},
		{ID: 2, Kind: "open", File: "new\nline", Range: "-", PID: 12345, Age: 0.1, Waits: "its reply"},
	}
	oneLine := `
AGE   PID    COMMAND  OP    FILE             RANGE       WAITS FOR
2m5s  7      ffmpeg   read  a long name.bin  [0,131072)  bytes [0,131072) of a fetch
0.1s  12345  -        open  "new\nline"      -           its reply
`
	narrow := `
AGE   PID    COMMAND  OP    FILE             RANGE
      WAITS FOR
2m5s  7      ffmpeg   read  a long name.bin  [0,131072)
      bytes [0,131072) of a fetch
0.1s  12345  -        open  "new\nline"      -
      its reply
`
	for columns, want := range map[int]string{0: oneLine, 84: oneLine, 83: narrow} {
		if got := opsTable(ops, columns); got != want[1:] {
			t.Errorf("in %d columns:\n%s\nwant%s", columns, got, want)
		}
	}
	if got := opsTable(nil, 80); got != "no operation in flight\n" {
		t.Errorf("opsTable(nil) = %q", got)
	}
}

func TestWrap(t *testing.T) {
	for text, want := range map[string][]string{
		"": {""}, "a bb ccc": {"a bb", "ccc"}, "longer than four": {"longer", "than", "four"}, "a  b\nc": {"a b", "c"},
	} {
		if got := wrap(text, 4); !slices.Equal(got, want) {
			t.Errorf("wrap(%q) = %q, want %q", text, got, want)
		}
	}
}

// TestShowFramesOnce requires that a frame is shown once without --watch, whatever the
// error is, and that nothing is shown after an error.
func TestShowFramesOnce(t *testing.T) {
	for _, want := range []error{nil, errors.New("no mount")} {
		var out bytes.Buffer
		frames := 0
		err := showFrames(&out, false, func(context.Context, int) (string, error) {
			frames++
			return "frame\n", want
		})
		if err != want || frames != 1 || (out.String() == "frame\n") != (want == nil) {
			t.Errorf("%d frames, %q, %v", frames, out.String(), err)
		}
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
		{File: "odd\x1bname", State: "retrying", Present: 999, Size: 1000, Retries: 1, RetryIn: 1.5, LastError: "fetch [0,1000) of http://h/x, at byte 999: read: reset"},
		{File: "slow", State: "stalled", Size: 10, Silent: 12.9, Retries: 189, LastError: "fetch [0,10) of http://h/s, at byte 0: the origin sent no byte for 15s"},
		{File: "gone", State: "failed", Size: 10, Error: "fetch [0,10) of http://h/g: 404: Not Found", LastError: "x"},
		{File: "full", State: "failed", Size: 10, Error: "no room: 10 bytes"},
	}, 0)
	want := `
FILE           STATE        DONE  PRESENT  SIZE     RATE       LEFT  WAITING  NOTE
film.mkv       downloading  33%   1.0 MiB  3.0 MiB  512 KiB/s  4s    2        -
empty          complete     100%  0 B      0 B      -          -     0        -
"odd\x1bname"  retrying     99%   999 B    1000 B   -          -     0        next in 1.5s, 1 retry, the last: read: reset
slow           stalled 12s  0%    0 B      10 B     -          -     0        189 retries, the last: the origin sent no byte for 15s
gone           failed       0%    0 B      10 B     -          -     0        404: Not Found
full           failed       0%    0 B      10 B     -          -     0        no room: 10 bytes
`
	if got != want[1:] {
		t.Errorf("got\n%s\nwant%s", got, want)
	}
}

// TestShellQuoteIsWhatTheShellReads has bash read back what messages show.
func TestShellQuoteIsWhatTheShellReads(t *testing.T) {
	for _, word := range []string{"plain/path-1.bin", "", "a b", "it's", `"$HOME" \ x`, "*?[a]~#;&|<>(){}!", "größe.mkv", "two\nlines\t'", "\x1b[31m\xff", "-n"} {
		out, err := exec.Command("bash", "-c", "printf %s "+shellQuote(word)).Output()
		if got := string(out); err != nil || got != word {
			t.Errorf("%q: typed as %s, the shell reads %q, %v", word, shellQuote(word), got, err)
		}
	}
	for word, want := range map[string]string{"dir/a.bin": "dir/a.bin", "a b": "'a b'", "a\n": `$'a\n'`} {
		if got := shellQuote(word); got != want {
			t.Errorf("%q: got %s, want %s", word, got, want)
		}
	}
}
