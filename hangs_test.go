// Tests of what "fsmount hangs" reports of logs, written by hand or by the trace.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/alecthomas/kong"
)

// analysed returns the analysis of log, and fails the test unless its verdict
// and its unfinished operations agree.
func analysed(t *testing.T, log string) (text string, hanging bool) {
	t.Helper()
	var out strings.Builder
	hanging, err := analyseHangs(strings.NewReader(log), &out)
	if err != nil {
		t.Fatalf("analyse: %v", err)
	}
	if hanging != strings.Contains(out.String(), "HANGING") {
		t.Fatalf("verdict is %v:\n%s", hanging, out.String())
	}
	return out.String(), hanging
}

const seedLog = `[TempFileStore #5] ReadAt ENTER off=1048576 len=131072 goid=42
[TempFileStore #5] ReadAt ENTER off=2097152 len=131072 goid=43
[TempFileStore #5] ReadAt EXIT off=2097152 len=131072 goid=43
`

func TestHangs(t *testing.T) {
	tests := []struct {
		name    string
		log     string
		hanging bool
		want    []string // in this order
		not     []string
	}{
		{
			name: "empty log",
			want: []string{"No ENTER in 0 lines"},
		},
		{
			name: "no trace",
			log:  "2026/11/23 13:00:00 fsmount: left out http://h/: no\n",
			want: []string{"No ENTER in 1 line:"},
		},
		{
			name: "every ENTER has its EXIT",
			log: `2026/11/23 13:00:00.5 x
2026/11/23 13:00:00.500000 [TempFileStore #1] ReadAt ENTER off=0 len=10 goid=7
2026/11/23 13:00:01.500000 [TempFileStore #1] ReadAt EXIT off=0 len=10 goid=7 n=10 err=<nil> waited=1s
2026/11/23 13:00:03.500000 bye
`,
			want: []string{
				"run 1: the log does not show its start; lines 1 to 4, 2026/11/23 13:00:00.5 to 2026/11/23 13:00:03.5\n",
				"Nothing hangs: each of 1 ENTER has its EXIT.",
				"Longest waits",
				"1s  store 1: ReadAt off=0 len=10 goid=7 (lines 2 to 3)\n",
				"store 1: 2026/11/23 13:00:01.5 (line 3), 2s before the run's log ends\n",
				"Nothing hangs in 1 operation of 1 run.",
			},
		},
		{
			name:    "an ENTER without an EXIT, and who overlapped it",
			log:     seedLog,
			hanging: true,
			want: []string{
				"HANGING: 1 operation with",
				"store 5: ReadAt off=1048576 len=131072 goid=42 since an unknown time (line 1)\n",
				"on store 5 it overlapped 0 that had begun and 1 that began later\n",
				"ReadAt off=2097152 len=131072 goid=43 (lines 2 to 3)\n",
				"store 5: line 3; 1 open\n",
				"1 hanging, of 2 operations.",
			},
		},
		{
			name: "how long it hangs, by the times of the log",
			log: `2026/11/23 23:59:59 [TempFileStore #1] download ENTER off=0 len=10 goid=7
2026/11/24 00:01:00.250000 [TempFileStore #2] ReadAt ENTER off=0 len=0 goid=8
2026/11/24 00:01:00.250000 [TempFileStore #2] ReadAt EXIT off=0 len=0 goid=8 n=0 err=<nil> waited=1µs
`,
			hanging: true,
			want: []string{
				"store 1: download off=0 len=10 goid=7 since 2026/11/23 23:59:59 (line 1), 1m1.25s before the run's log ends\n",
				"nothing overlapped it on store 1\n",
				"store 1: none; 1 open\n",
				"store 2: none\n",
			},
		},
		{
			name: "an EXIT of another range, goroutine, store or kind is none",
			log: `[TempFileStore #1] ReadAt ENTER off=0 len=10 goid=7
[TempFileStore #1] ReadAt EXIT off=1 len=10 goid=7
[TempFileStore #1] ReadAt EXIT off=0 len=11 goid=7
[TempFileStore #1] ReadAt EXIT off=0 len=10 goid=8
[TempFileStore #2] ReadAt EXIT off=0 len=10 goid=7
[TempFileStore #1] Close EXIT off=0 len=10 goid=7
`,
			hanging: true,
			want:    []string{"5 EXITs without an ENTER", "store 1: ReadAt off=0 len=10 goid=7"},
		},
		{
			name: "twins: one of two ends",
			log: strings.Repeat("[TempFileStore #1] ReadAt ENTER off=0 len=10 goid=0\n", 3) +
				strings.Repeat("[TempFileStore #1] ReadAt EXIT off=0 len=10 goid=0\n", 2),
			hanging: true,
			want:    []string{"HANGING: 1 operation", "(line 1)"},
		},
		{
			name: "runs: an operation belongs to the run that began it",
			log: "2026/11/23 13:00:00.000001 " + startLine("v1.2 (dirty)", 77) + `
2026/11/23 13:00:01.000000 [TempFileStore #1] ReadAt ENTER off=0 len=10 goid=7
2026/11/23 13:00:02.000000 [TempFileStore #1] download ENTER off=0 len=` + startLine("v1.3", 78) + `
2026/11/23 13:00:02.000000 [TempFileStore #1] download ENTER off=0 len=99 goi2026/11/23 14:00:00 ` + startLine("v1.4", 79) + `
2026/11/23 14:00:01 [TempFileStore #1] ReadAt EXIT off=0 len=10 goid=7
`,
			hanging: true,
			want: []string{
				"run 1: fsmount v1.2_(dirty) started, pid 77; lines 1 to 3,",
				"store 1: ReadAt off=0 len=10 goid=7 since 2026/11/23 13:00:01 (line 2), 1s before",
				"run 2: fsmount v1.4 started, pid 79; lines 4 to 5,",
				"1 EXIT without an ENTER",
				"Nothing hangs: each of 0 ENTERs",
				"1 hanging in 1 of 2 runs.",
			},
		},
		{
			name: "a line that broke off, and the next in the same line",
			log: `[TempFileStore #1] ReadAt ENTER off=0 len=10 goid=7
[TempFileStore #1] ReadAt ENTER off=10 len=1[TempFileStore #2] ReadAt ENTER off=0 len=10 goid=9
[TempFileStore #2] ReadAt EXIT off=0 len=10 goid=9 n=10 err=<n[TempFileStore #1] ReadAt EXIT off=0 len=10 goid=7
`,
			want: []string{"2 lines broken off", "each of 2 ENTERs has its EXIT"},
		},
		{
			name: "an EXIT that broke off, and a run that begins in the same line",
			log: "[TempFileStore #1] ReadAt ENTER off=0 len=10 goid=7\n" +
				"[TempFileStore #1] ReadAt EXIT off=0 len=10 goid=7 n=10 err=<n2026/11/23 14:00:00.000000 " + startLine("v1", 8) + "\n" +
				"[TempFileStore #1] ReadAt ENTER off=0 len=10 goid=7\n",
			hanging: true,
			want:    []string{"each of 1 ENTER has its EXIT", "run 2: fsmount v1 started, pid 8; lines 2 to 3\n", "HANGING: 1", "1 hanging in 1 of 2 runs"},
		},
		{
			name: "a last line without its newline",
			log:  strings.TrimSuffix(seedLog, "\n") + "\n[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42",
			want: []string{"each of 2 ENTERs has its EXIT"},
		},
		{
			name:    "a last line that broke off",
			log:     seedLog + "[TempFileStore #5] ReadAt EXIT off=1048576 len=13",
			hanging: true,
			want:    []string{"1 line broken off", "goid=42", "it may have ended"},
		},
		{
			name:    "lost lines: an EXIT may be among them",
			log:     seedLog + "2026/11/23 13:00:00.000001 12 log lines lost: they came faster than they could be written\n",
			hanging: true,
			want:    []string{"12 lines lost", "goid=42", "it may have ended: its EXIT may be one of the missing lines"},
		},
		{
			name:    "lost lines long before the ENTER",
			log:     "7 log lines lost: too fast\n" + strings.Repeat("x\n", 2*logQueueLines) + seedLog,
			hanging: true,
			want:    []string{"7 lines lost", "goid=42"},
			not:     []string{"it may have ended"},
		},
		{
			name: "lost lines: a goroutine that goes on does not hang",
			log: seedLog + `3 log lines lost: too fast
[TempFileStore #6] ReadAt ENTER off=0 len=1 goid=42
[TempFileStore #6] ReadAt EXIT off=0 len=1 goid=42
`,
			want: []string{"1 operation left out that have no EXIT", "Nothing hangs"},
		},
		{
			name: "no lost lines: an ENTER has no EXIT even if its goroutine goes on",
			log: "7 log lines lost: too fast\n" + strings.Repeat("x\n", 2*logQueueLines) + seedLog +
				"[TempFileStore #6] ReadAt ENTER off=0 len=1 goid=42\n[TempFileStore #6] ReadAt EXIT off=0 len=1 goid=42\n",
			hanging: true,
			want:    []string{"store 5: ReadAt off=1048576 len=131072 goid=42"},
		},
		{
			name: "a download in the midst of progress",
			log: "[TempFileStore #5] download ENTER off=0 len=9 goid=9\n[TempFileStore #5] ReadAt ENTER off=0 len=1 goid=4\n" +
				"[TempFileStore #5] ReadAt EXIT off=0 len=1 goid=4 n=1 err=<nil> waited=1ms\n",
			hanging: true,
			want:    []string{"download off=0 len=9 goid=9", "every read of its store ended, the last with bytes at line 3: it may be no hang"},
		},
		{
			name: "a download without its EXIT, and a read that waits for it",
			log: "[TempFileStore #5] download ENTER off=0 len=9 goid=9\n[TempFileStore #5] ReadAt ENTER off=0 len=1 goid=4\n" +
				"[TempFileStore #5] ReadAt EXIT off=0 len=1 goid=4 n=1 err=<nil> waited=1ms\n[TempFileStore #5] ReadAt ENTER off=8 len=1 goid=4\n",
			hanging: true,
			want:    []string{"HANGING: 2 operations"},
			not:     []string{"it may be no hang"},
		},
		{
			name: "two ENTER in a row, then two EXIT, then silence, while the log goes on",
			log: seedLog + `[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42
[TempFileStore #6] ReadAt ENTER off=0 len=1 goid=44
[TempFileStore #6] ReadAt EXIT off=0 len=1 goid=44
`,
			hanging: true,
			want: []string{
				"HANGING: store 5: 2 ReadAt ENTER in a row (lines 1 to 2), then 2 EXIT (lines 3 to 4), then silence\n",
				"the log shows no download of store 5",
				"other stores went on until line 6\n",
				"1 hanging, of 3 operations.",
			},
		},
		{
			name: "two ENTER, two EXIT, silence, and a download without its EXIT",
			log: "[TempFileStore #5] download ENTER off=0 len=9 goid=9\n" + seedLog +
				"[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42\n",
			hanging: true,
			want: []string{
				"store 5: download off=0 len=9 goid=9",
				"HANGING: store 5: 2 ReadAt ENTER in a row (lines 2 to 3), then 2 EXIT (lines 4 to 5), then silence\n",
				"1 download of store 5 has no EXIT: its origin still owes bytes\n",
				"1 hanging, of 3 operations.",
			},
		},
		{
			name: "two ENTER and two EXIT at the end of the log are no silence",
			log:  seedLog + "[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42\n",
			want: []string{"Nothing hangs"},
		},
		{
			name: "two ENTER, two EXIT, and the store goes on",
			log: seedLog + `[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42
[TempFileStore #5] Close ENTER off=0 len=1 goid=44
[TempFileStore #5] Close EXIT off=0 len=1 goid=44
[TempFileStore #6] ReadAt ENTER off=0 len=1 goid=44
[TempFileStore #6] ReadAt EXIT off=0 len=1 goid=44
`,
			want: []string{"Nothing hangs", "store 5: line 4; closed\n"},
		},
		{
			name: "two ENTER, two EXIT, silence, but all downloads ended",
			log: `[TempFileStore #5] download ENTER off=0 len=9 goid=9
[TempFileStore #5] download EXIT off=0 len=9 goid=9 n=9 err=<nil> waited=1s
` + seedLog + `[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42
[TempFileStore #6] ReadAt ENTER off=0 len=1 goid=44
[TempFileStore #6] ReadAt EXIT off=0 len=1 goid=44
`,
			want: []string{"On 1 store the last reads overlapped and ended", "Nothing hangs: each of 4 ENTERs"},
			not:  []string{"Longest waits"}, // downloads are left out
		},
		{
			name: "two ENTER, two EXIT, silence, but a reader saw the end of the file",
			log: `[TempFileStore #5] ReadAt ENTER off=0 len=9 goid=1
[TempFileStore #5] ReadAt ENTER off=9 len=9 goid=2
[TempFileStore #5] ReadAt EXIT off=0 len=9 goid=1 n=9 err=<nil> waited=1ms
[TempFileStore #5] ReadAt EXIT off=9 len=9 goid=2 n=4 err=EOF waited=1ms
[TempFileStore #6] ReadAt ENTER off=0 len=1 goid=44
[TempFileStore #6] ReadAt EXIT off=0 len=1 goid=44
`,
			want: []string{"On 1 store the last reads", "Nothing hangs"},
		},
		{
			name: "an error of any text, and one that looks like an event",
			log: `[TempFileStore #1] ReadAt ENTER off=-1 len=10 goid=7
[TempFileStore #1] ReadAt EXIT off=-1 len=10 goid=7 n=0 err=a waited=9h [TempFileStore #1] ReadAt ENTER off=0 len=1 goid=8 waited=250ms
`,
			want: []string{
				"each of 1 ENTER has its EXIT",
				`250ms  store 1: ReadAt off=-1 len=10 goid=7 (lines 1 to 2) err="a waited=9h [TempFileStore #1] ReadAt ENTER off=0 len=1 goid=8"`,
			},
		},
		{
			name: "a note is no event, and no damage",
			log: `2026/11/23 13:00:00.000000 [TempFileStore #5] fetch [0,9) of http://h/a: "` + "\x1b" + `": retry in 3s
[TempFileStore #5] ReadAt ENTER off=0 len=10 goid=7
2026/11/23 13:00:01.000000 [TempFileStore #5] fetch [0,9) of http://h/a: timeout` + "\x1b" + `: retry in 4s
`,
			hanging: true,
			want:    []string{"HANGING: 1 operation", `store 5: none; 1 open; last note (line 3): "fetch [0,9) of http://h/a: timeout\x1b: retry in 4s"` + "\n"},
			not:     []string{"broken off", "it may have ended"},
		},
		{
			name:    "a last line that broke off before one sees what it is",
			log:     seedLog + "[TempFileStore #5] ReadAt EX",
			hanging: true,
			want:    []string{"1 line broken off", "goid=42", "it may have ended"},
		},
		{
			name:    "a line of a killed run that broke off before one sees what it is",
			log:     seedLog + "[TempFileStore #5] ReadAt EX2026/11/23 14:00:00 " + startLine("v1", 8) + "\n",
			hanging: true,
			want:    []string{"1 line broken off", "goid=42", "it may have ended", "run 2"},
		},
		{
			name: "waits by the log's times, carriage returns, another prefix",
			log: "2026/11/23 13:00:00 store.go:12: [TempFileStore #1] Read ENTER goid=7\r\n" +
				"2026/11/23 13:00:05 store.go:13: [TempFileStore #1] Read EXIT goid=7\r\n",
			want: []string{"5s  store 1: Read off=0 len=0 goid=7 (lines 1 to 2)\n"},
		},
		{
			name: "numbers that do not fit, and names that are none, are no events",
			log: `[TempFileStore #99999999999999999999] ReadAt ENTER off=0 len=1 goid=8
[TempFileStore #1] ReadAt ENTER off=9999999999999999999 len=1 goid=8
[TempFileStore #1] ` + "\x1b[2J" + ` ENTER off=0 len=1 goid=8
`,
			want: []string{"No ENTER in 3 lines"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			text, hanging := analysed(t, test.log)
			if hanging != test.hanging {
				t.Errorf("hanging is %v", hanging)
			}
			rest := text
			for _, want := range test.want {
				_, after, found := strings.Cut(rest, want)
				if !found {
					t.Fatalf("no %q, or not in its place, in\n%s", want, text)
				}
				rest = after
			}
			for _, not := range test.not {
				if strings.Contains(text, not) {
					t.Errorf("%q in\n%s", not, text)
				}
			}
		})
	}
}

func TestHangsShowsTheTenLongestWaits(t *testing.T) {
	var log strings.Builder
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(30) {
		fmt.Fprintf(&log, "[TempFileStore #1] ReadAt ENTER off=0 len=1 goid=%d\n", i+1)
		fmt.Fprintf(&log, "[TempFileStore #1] ReadAt EXIT off=0 len=1 goid=%d n=1 err=<nil> waited=%ds\n", i+1, i+1)
	}
	text, _ := analysed(t, log.String())
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^ +(\d+)s  store 1: .* goid=(\d+) `).FindAllStringSubmatch(text, -1) {
		got = append(got, m[1]+"/"+m[2])
	}
	want := []string{"30/30", "29/29", "28/28", "27/27", "26/26", "25/25", "24/24", "23/23", "22/22", "21/21"}
	if !slices.Equal(got, want) {
		t.Errorf("longest waits: %v, want %v", got, want)
	}
}

// TestHangsReadsWhatTheTraceWrites lays the parser beside the writer.
func TestHangsReadsWhatTheTraceWrites(t *testing.T) {
	var log bytes.Buffer
	events := newEventLog(&log)
	events.printf("%s", startLine("v1", 7))
	tr := &tracer{log: events, on: true}
	tr.enter(5, "ReadAt", byteRange{1 << 40, 1<<40 + 131072}, 42)
	sp := tr.enter(5, "download", byteRange{0, 1 << 50}, 43)
	sp.exit(1<<50, errors.New("panic: x\ngoroutine 1\n\tat y"))
	tr.enter(6, "Close", byteRange{0, 9}, 44).exit(9, nil)
	events.Close(time.Minute)
	text, _ := analysed(t, log.String())
	for _, want := range []string{
		"run 1: fsmount v1 started, pid 7; lines 1 to 6, 2",
		"HANGING: 1 operation with",
		"store 5: ReadAt off=1099511627776 len=131072 goid=42 since 2",
		"download off=0 len=1125899906842624 goid=43 (lines 3 to 4)",
		"1 hanging, of 3 operations.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "broken off") {
		t.Errorf("a whole line was taken for a broken one:\n%s", text)
	}
}

func TestHangsCutsTimes(t *testing.T) {
	const second = logTime(1e6)
	at := logTime(time.Date(2026, 11, 23, 13, 4, 5, 0, time.UTC).UnixMicro())
	for line, want := range map[string]struct {
		at   logTime
		rest string
	}{
		"2026/11/23 13:04:05.123456 x":  {at + 123456, "x"},
		"2026/11/23 13:04:06 x":         {at + second, "x"},
		"2026/11/23 13:04:05 ":          {at, ""},
		"2026/11/23 13:04:05":           {0, "2026/11/23 13:04:05"},
		"2026/11/23 13:04:05.12 x":      {0, "2026/11/23 13:04:05.12 x"},
		"2026/11/23 13:04:05.1234 x":    {0, "2026/11/23 13:04:05.1234 x"},
		"2026/13/23 13:04:05.123456 x":  {0, "2026/13/23 13:04:05.123456 x"},
		"2026/11/23 1x:04:05.123456 x":  {0, "2026/11/23 1x:04:05.123456 x"},
		"2026/11/23 13:04:05.123456x x": {0, "2026/11/23 13:04:05.123456x x"},
		"":                              {0, ""},
	} {
		var c logClock
		got, rest := c.cut([]byte(line))
		if got != want.at || string(rest) != want.rest {
			t.Errorf("%q: %v and %q, want %v and %q", line, got, rest, want.at, want.rest)
		}
	}
}

func TestHangsReadAndWriteErrors(t *testing.T) {
	broken := errors.New("broken")
	if _, err := analyseHangs(io.MultiReader(strings.NewReader(seedLog), iotest.ErrReader(broken)), io.Discard); !errors.Is(err, broken) {
		t.Errorf("a log that cannot be read: %v", err)
	}
	if _, err := analyseHangs(strings.NewReader(seedLog), writerFunc(func([]byte) (int, error) { return 0, broken })); !errors.Is(err, broken) {
		t.Errorf("an analysis that cannot be written: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestHangsCommand(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	if err := os.WriteFile(path, []byte(seedLog), 0o600); err != nil {
		t.Fatal(err)
	}
	fine := seedLog + "[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42\n"
	for _, test := range []struct {
		args   []string
		stdin  string
		status int
	}{
		{[]string{"hangs", path}, fine, exitFailure},
		{[]string{"hangs"}, seedLog, exitFailure},
		{[]string{"hangs", "-"}, seedLog, exitFailure},
		{[]string{"hangs", "-"}, fine, exitOK},
		{[]string{"hangs", path + ".missing"}, fine, exitUsage},
		{[]string{"hangs", dir}, fine, exitUsage},
	} {
		var cli struct {
			Hangs hangsCommand `cmd:""`
		}
		parser, err := kong.New(&cli)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(test.args); err != nil {
			t.Fatalf("%q: %v", test.args, err)
		}
		status, err := cli.Hangs.run(strings.NewReader(test.stdin), io.Discard)
		if status != test.status || (err != nil) != (status == exitUsage) {
			t.Errorf("%q: status %d and %v, want %d", test.args, status, err, test.status)
		}
	}
}
