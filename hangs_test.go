// Tests of "fsmount hangs": its reports of the logs in testdata/hangs, and its parser.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// analysed returns the report of log, or the error if it is no log of --trace. It
// fails the test unless the exit status and the unfinished operations agree.
func analysed(t *testing.T, log string) (report string, status int) {
	t.Helper()
	var out strings.Builder
	status, err := (&hangsCommand{}).run(strings.NewReader(log), &out)
	if err != nil {
		return out.String() + err.Error() + "\n", status
	}
	if hanging := strings.Contains(out.String(), "HANGING"); hanging != (status == exitFailure) || !hanging && status != exitOK {
		t.Fatalf("exit status %d:\n%s", status, out.String())
	}
	return out.String(), status
}

const seedLog = `[TempFileStore #5] ReadAt ENTER off=1048576 len=131072 goid=42
[TempFileStore #5] ReadAt ENTER off=2097152 len=131072 goid=43
[TempFileStore #5] ReadAt EXIT off=2097152 len=131072 goid=43
`

var (
	// hangsCase separates the log of a file in testdata/hangs from its report.
	hangsCase = regexp.MustCompile(`(?m)^-- report, exit status (\d) --\n`)

	// hangsLog replaces what a log in testdata/hangs has in place of bytes that an
	// editor hides or changes. Fillers and stacks are longer than the queue of the log.
	hangsLog = strings.NewReplacer("<ESC>", "\x1b", "<CR>", "\r", "<no newline>\n", "",
		"<stacks>\n", strings.Repeat("main.main()\n", 2*logQueueLines), "<filler>\n", strings.Repeat("2026/11/23 13:00:00 x\n", 2*logQueueLines))
)

// TestHangs compares the whole report of each log in testdata/hangs.
func TestHangs(t *testing.T) {
	paths, err := filepath.Glob("testdata/hangs/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no file in testdata/hangs: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			split := hangsCase.FindSubmatchIndex(text)
			if split == nil {
				t.Fatalf("%s has no line that matches %v", path, hangsCase)
			}
			report, status := analysed(t, hangsLog.Replace(string(text[:split[0]])))
			if want := string(text[split[2]:split[3]]); strconv.Itoa(status) != want {
				t.Errorf("exit status %d, want %s", status, want)
			}
			if want := string(text[split[1]:]); report != want {
				t.Errorf("%s; got\n%s", firstDifferentLine(report, want), report)
			}
		})
	}
}

// firstDifferentLine shows the first line in which the reports got and want differ.
func firstDifferentLine(got, want string) string {
	g, w := strings.SplitAfter(got, "\n"), strings.SplitAfter(want, "\n")
	i := 0
	for i < min(len(g), len(w))-1 && g[i] == w[i] {
		i++
	}
	return fmt.Sprintf("line %d of the report:\n got %q\nwant %q", i+1, g[i], w[i])
}

// TestHangsReadsWhatTheTraceWrites reads a log that the tracer wrote.
func TestHangsReadsWhatTheTraceWrites(t *testing.T) {
	var log bytes.Buffer
	events := newEventLog(&log)
	events.printf("%s", startLine("v1 (dirty)", 7))
	tr := &tracer{log: events, on: true}
	tr.enter(5, "ReadAt", byteRange{1 << 40, 1<<40 + 131072}, 42)
	sp := tr.enter(5, "download", byteRange{0, 1 << 50}, 43)
	sp.exit(1<<50, errors.New("panic: x\ngoroutine 1\n\tat y"))
	tr.enter(6, "Close", byteRange{0, 9}, 44).exit(9, nil)
	events.Close(time.Minute)
	text, _ := analysed(t, log.String())
	for _, want := range []string{
		"run 1: fsmount v1_(dirty) started, pid 7; lines 1 to 6, 2",
		"HANGING: 1 operation with",
		"store 5: ReadAt off=1099511627776 len=131072 goid=42 since 2",
		"download off=0 len=1125899906842624 goid=43 (lines 3 to 4)",
		"1 hanging, of 3 operations of 1 run.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "broken off") {
		t.Errorf("the report calls a whole line a broken one:\n%s", text)
	}
}

func TestHangsCutsTimes(t *testing.T) {
	at := time.Date(2026, 11, 23, 13, 4, 5, 0, time.UTC)
	for line, want := range map[string]struct {
		at   time.Time
		rest string
	}{
		"2026/11/23 13:04:05.123456 x":  {at.Add(123456 * time.Microsecond), "x"},
		"2026/11/23 13:04:06 x":         {at.Add(time.Second), "x"},
		"2026/11/23 13:04:05 ":          {at, ""},
		"2026/11/23 13:04:05":           {time.Time{}, "2026/11/23 13:04:05"},
		"2026/11/23 13:04:05.12 x":      {time.Time{}, "2026/11/23 13:04:05.12 x"},
		"2026/11/23 13:04:05.1234 x":    {time.Time{}, "2026/11/23 13:04:05.1234 x"},
		"2026/13/23 13:04:05.123456 x":  {time.Time{}, "2026/13/23 13:04:05.123456 x"},
		"2026/11/23 1x:04:05.123456 x":  {time.Time{}, "2026/11/23 1x:04:05.123456 x"},
		"2026/11/23 13:04:05.123456x x": {time.Time{}, "2026/11/23 13:04:05.123456x x"},
		"":                              {time.Time{}, ""},
	} {
		got, rest := cutTime([]byte(line))
		if !got.Equal(want.at) || string(rest) != want.rest {
			t.Errorf("%q: %v and %q, want %v and %q", line, got, rest, want.at, want.rest)
		}
	}
}

func TestHangsReadAndWriteErrors(t *testing.T) {
	broken := errors.New("broken")
	unreadable := io.MultiReader(strings.NewReader(seedLog), iotest.ErrReader(broken))
	if status, err := (&hangsCommand{}).run(unreadable, io.Discard); status != exitUsage || !errors.Is(err, broken) {
		t.Errorf("a log that cannot be read: status %d, %v", status, err)
	}
	unwritable := writerFunc(func([]byte) (int, error) { return 0, broken })
	if status, err := (&hangsCommand{}).run(strings.NewReader(seedLog), unwritable); status != exitUsage || !errors.Is(err, broken) {
		t.Errorf("a report that cannot be written: status %d, %v", status, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestHangsCommand(t *testing.T) {
	dir := t.TempDir()
	fine := seedLog + "[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42\n"
	for _, test := range []struct {
		log, stdin string
		status     int
		err        string
	}{
		{"", seedLog, exitFailure, ""},
		{"-", seedLog, exitFailure, ""},
		{"-", fine, exitOK, ""},
		{dir + "/no", fine, exitUsage, "hangs: " + dir + "/no: no such file or directory"},
		{dir, fine, exitUsage, "hangs: " + dir + ": is a directory"},
		{"-", strings.Repeat("\x00\xff", logLineBytes), exitUsage, "hangs: standard input: no trace lines found; start fsmount with --trace"},
	} {
		var out strings.Builder
		status, err := (&hangsCommand{test.log}).run(strings.NewReader(test.stdin), &out)
		if status != test.status || (err != nil || out.Len() == 0) != (status == exitUsage) || err != nil && err.Error() != test.err {
			t.Errorf("%q: status %d, %v and a report of %d bytes, want %d and %q", test.log, status, err, out.Len(), test.status, test.err)
		}
	}
}
