// Tests of the log and the trace: the exact form of the lines, and that a log which
// nobody reads loses lines, counts them, and never blocks an operation. Time is the
// fake one of synctest: in a bubble, a call that blocks for good is reported as a
// deadlock.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// logText returns what a log writes for the calls of print.
func logText(print func(l *eventLog)) string {
	var out bytes.Buffer
	l := newEventLog(&out)
	print(l)
	l.Close(time.Minute)
	return out.String()
}

// logLines returns the lines of logText without the time before each.
func logLines(print func(l *eventLog)) []string {
	lines := strings.Split(strings.TrimSuffix(logText(print), "\n"), "\n")
	for i, line := range lines {
		if len(line) > len(logTimeFormat) {
			lines[i] = line[len(logTimeFormat):]
		}
	}
	return lines
}

// gatedWriter accepts nothing until its gate is opened.
type gatedWriter struct {
	bytes.Buffer
	opened chan struct{}
}

func newGatedWriter() *gatedWriter { return &gatedWriter{opened: make(chan struct{})} }

// Write writes p.
//
// BLOCKS until the gate is opened; wakes on that.
func (w *gatedWriter) Write(p []byte) (int, error) {
	<-w.opened
	return w.Buffer.Write(p)
}

func TestLogLineHasTheFormOfLogPrintf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(123456 * time.Microsecond)
		var want bytes.Buffer
		log.New(&want, "", log.LstdFlags|log.Lmicroseconds).Printf("read %q: %v", "a.bin", io.EOF)
		got := logText(func(l *eventLog) { l.printf("read %q: %v", "a.bin", io.EOF) })
		if got != want.String() {
			t.Errorf("got  %q\nwant %q", got, want.String())
		}
	})
}

func TestTraceLinesHaveTheExactForm(t *testing.T) {
	tests := []struct {
		n     int64
		err   error
		after string
	}{
		{131072, nil, "n=131072 err=<nil> waited=12ms"},
		{0, io.EOF, "n=0 err=EOF waited=12ms"},
		{7, fmt.Errorf("fetch: %w", errShortBody), "n=7 err=fetch: the origin ended the body early waited=12ms"},
		{0, errors.New("panic: one\ntwo\n\tthree"), "n=0 err=panic: one two \tthree waited=12ms"},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			lines := logLines(func(l *eventLog) {
				sp := (&tracer{log: l, on: true}).enter(5, "ReadAt", byteRange{1 << 20, 1<<20 + 131072}, 42)
				time.Sleep(12 * time.Millisecond)
				sp.exit(tt.n, tt.err)
			})
			want := []string{
				"[TempFileStore #5] ReadAt ENTER off=1048576 len=131072 goid=42",
				"[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42 " + tt.after,
			}
			if !slices.Equal(lines, want) {
				t.Errorf("got  %q\nwant %q", lines, want)
			}
		})
	}
}

func TestStoreTracesReadDownloadAndClose(t *testing.T) {
	lines := logLines(func(l *eventLog) {
		trace := &tracer{log: l, on: true}
		trace.ids.Add(1)
		s := newTempFileStore(newStubOrigin(100), Object{Size: 100}, tracedConfig(t.TempDir(), trace))
		if _, err := s.ReadAt(t.Context(), make([]byte, 60), 40); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	const tail = ` off=\d+ len=\d+ goid=[1-9]\d*`
	for _, pattern := range []string{
		`^\[TempFileStore #2\] ReadAt ENTER off=40 len=60 goid=[1-9]\d*$`,
		`^\[TempFileStore #2\] ReadAt EXIT off=40 len=60 goid=[1-9]\d* n=60 err=<nil> waited=[\d.]+(ns|µs|ms|s)$`,
		`^\[TempFileStore #2\] download ENTER off=0 len=100 goid=[1-9]\d*$`,
		`^\[TempFileStore #2\] download EXIT` + tail + ` n=100 err=<nil> waited=`,
		`^\[TempFileStore #2\] Close ENTER` + tail + `$`,
		`^\[TempFileStore #2\] Close EXIT` + tail + ` n=100 err=<nil> waited=`,
	} {
		if n := countMatches(lines, pattern); n != 1 {
			t.Errorf("%d lines match %s, want 1, in:\n%s", n, pattern, strings.Join(lines, "\n"))
		}
	}
	if len(lines) != 6 {
		t.Errorf("%d lines, want 6:\n%s", len(lines), strings.Join(lines, "\n"))
	}
}

func countMatches(lines []string, pattern string) (n int) {
	re := regexp.MustCompile(pattern)
	for _, line := range lines {
		if re.MatchString(line) {
			n++
		}
	}
	return n
}

func TestTraceOffWritesNothing(t *testing.T) {
	text := logText(func(l *eventLog) {
		s := newTempFileStore(newStubOrigin(10), Object{Size: 10}, tracedConfig(t.TempDir(), &tracer{log: l}))
		if _, err := s.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
			t.Error(err)
		}
		s.Close()
	})
	if text != "" {
		t.Errorf("the trace is off and the log has %q", text)
	}
}

func TestDebugIDsCountFromOneAndAreDistinct(t *testing.T) {
	const each = 100
	var trace tracer
	var mu sync.Mutex
	seen := make(map[uint64]bool)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range each {
				id := trace.ids.Add(1)
				mu.Lock()
				seen[id] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != 4*each || !seen[1] || !seen[4*each] || seen[0] {
		t.Errorf("%d distinct ids of %d, 1 and %d among them: %v, %v", len(seen), 4*each, 4*each, seen[1], seen[4*each])
	}
}

func TestRoundDurationKeepsThreeOrFourDigits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                         "0s",
		999:                       "999ns",
		1234:                      "1.23µs",
		12345678:                  "12.35ms",
		12 * time.Millisecond:     "12ms",
		1234567890:                "1.23s",
		61*time.Second + 54321098: "1m1.05s",
	} {
		if got := roundDuration(d).String(); got != want {
			t.Errorf("roundDuration(%d ns) = %s, want %s", int64(d), got, want)
		}
	}
}

func TestGoroutineIDIsTheOneOfStackDumps(t *testing.T) {
	ids := make(chan uint64, 8)
	check := func() {
		id := goroutineID()
		if want := fmt.Sprintf("goroutine %d [", id); id == 0 || !strings.HasPrefix(string(debug.Stack()), want) {
			t.Errorf("goroutineID is %d, the stack starts with %.40q", id, debug.Stack())
		}
		ids <- id
	}
	check()
	var wg sync.WaitGroup
	for range cap(ids) - 1 {
		wg.Go(check)
	}
	wg.Wait()
	close(ids)
	distinct := make(map[uint64]bool)
	for id := range ids {
		distinct[id] = true
	}
	if len(distinct) != cap(ids) {
		t.Errorf("%d goroutines have %d ids", cap(ids), len(distinct))
	}
}

// TestLogNeverBlocks fills the queue behind a writer that accepts nothing, twice:
// each printf beyond the queue must return, or the bubble deadlocks. The log must
// report the lost lines each time.
func TestLogNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newGatedWriter()
		l := newEventLog(out)
		printed, tooMany := 0, []int{1, 1234}
		for i, more := range tooMany {
			start := time.Now()
			l.printf("line %d", printed)
			synctest.Wait() // the log's goroutine holds that line
			for range logQueueLines + more {
				printed++
				l.printf("line %d", printed)
			}
			printed++
			if took := time.Since(start); took != 0 {
				t.Errorf("printing took %v", took)
			}
			close(out.opened)
			synctest.Wait()
			out.opened = make(chan struct{})
			written, lost := readNumberedLog(t, out.String())
			if written+lost != printed || written != (i+1)*(1+logQueueLines) || strings.Count(out.String(), "lost") != i+1 {
				t.Errorf("%d lines written and %d reported as lost of %d, in %d reports",
					written, lost, printed, strings.Count(out.String(), "lost"))
			}
		}
		close(out.opened)
		l.Close(time.Minute)
		if _, lost := readNumberedLog(t, out.String()); lost != tooMany[0]+tooMany[1] {
			t.Errorf("%d lines reported as lost, want %d and %d", lost, tooMany[0], tooMany[1])
		}
	})
}

// readNumberedLog counts the lines "line N", which must be whole and in order, and
// the lines that are reported as lost.
func readNumberedLog(t *testing.T, text string) (written, lost int) {
	t.Helper()
	line := regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} (?:line (\d+)|(\d+) log lines lost: .*)$`)
	last := -1
	for text := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		m := line.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("not a whole line: %q", text)
		}
		if m[2] != "" {
			n, _ := strconv.Atoi(m[2])
			lost += n
			continue
		}
		number, _ := strconv.Atoi(m[1])
		if number <= last {
			t.Fatalf("line %d comes after line %d", number, last)
		}
		last = number
		written++
	}
	return written, lost
}

func TestLogCloseHasBoundedPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience = 3 * time.Second
		out := newGatedWriter()
		l := newEventLog(out)
		l.printf("nobody reads this")
		start := time.Now()
		l.Close(patience)
		if took := time.Since(start); took != patience {
			t.Errorf("Close waited %v for a reader that does not read, want %v", took, patience)
		}
		l.printf("nor this") // must return after Close too
		close(out.opened)
	})
}

func TestLogCloseWritesWhatIsQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newEventLog(&out)
		for i := range 100 {
			l.printf("line %d", i)
		}
		start := time.Now()
		l.Close(time.Hour)
		l.Close(time.Hour)
		if took := time.Since(start); took != 0 {
			t.Errorf("Close twice took %v", took)
		}
		if written, lost := readNumberedLog(t, out.String()); written != 100 || lost != 0 {
			t.Errorf("%d lines written and %d lost of 100", written, lost)
		}
	})
}

func TestConcurrentLogLinesStayWhole(t *testing.T) {
	const writers, each = 8, 500 // fewer in all than the queue holds
	lines := logLines(func(l *eventLog) {
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					l.printf("writer %d line %d %s.", w, i, strings.Repeat(string(rune('a'+w)), 10+i%90))
				}
			})
		}
		wg.Wait()
	})
	if len(lines) != writers*each {
		t.Fatalf("%d lines, want %d", len(lines), writers*each)
	}
	var next [writers]int
	for _, line := range lines {
		var w, i int
		var tail string
		if _, err := fmt.Sscanf(line, "writer %d line %d %s", &w, &i, &tail); err != nil || w < 0 || w >= writers {
			t.Fatalf("not a whole line: %q", line)
		}
		want := strings.Repeat(string(rune('a'+w)), 10+i%90) + "."
		if tail != want || i != next[w] {
			t.Fatalf("line %q: want number %d of its writer, ending in %q", line, next[w], want)
		}
		next[w]++
	}
}

// TestReadsGoOnWhileNobodyReadsTheLog traces real reads into a log that is stuck.
func TestReadsGoOnWhileNobodyReadsTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newGatedWriter()
		l := newEventLog(out)
		s := newTempFileStore(newStubOrigin(1000), Object{Size: 1000}, tracedConfig(t.TempDir(), &tracer{log: l, on: true}))
		p := make([]byte, 8)
		for i := range logQueueLines {
			if _, err := s.ReadAt(t.Context(), p, int64(i%100*8)); err != nil {
				t.Fatal(err)
			}
			if err := checkContent(p, testSeed, int64(i%100*8)); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
		close(out.opened)
		l.Close(time.Minute)
		if !strings.Contains(out.String(), " log lines lost: ") {
			t.Error("no line was lost, of twice as many as the queue holds: the test shows nothing")
		}
	})
}

func TestOtherPackagesLogWithoutBlocking(t *testing.T) {
	out := &syncBuffer{}
	_, end, err := openLog("", out)
	if err != nil {
		t.Fatal(err)
	}
	log.Printf("Unsolicited response received\n%s", strings.Repeat("y", 10_000))
	end()
	if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "Unsolicited response received yyy") || len(text) > 2*foreignBytes {
		t.Errorf("the log has %q", text)
	}
}

// A loop of failures writes a few lines, and then how many there were.
func TestLinesOfAKindAreCountedWhenTheyAreMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := newEventLog(&out)
		for i := range 1000 {
			log.often("a", "a %d", i)
			if i < oftenLines {
				log.often("b", "b %d", i)
			}
		}
		time.Sleep(oftenInterval + 1)
		log.often("a", "a again")
		log.Close(time.Minute)
		text := out.String()
		if n := strings.Count(text, " a "); n != oftenLines+2 || strings.Count(text, " b ") != oftenLines || !strings.Contains(text, " a again\n") {
			t.Errorf("%d lines of a:\n%s", n, text)
		}
		if want := fmt.Sprintf(" %d more like this in 10s, the last: a 999\n", 1000-oftenLines); strings.Count(text, want) != 1 {
			t.Errorf("the log does not say %q:\n%s", want, text)
		}
		time.Sleep(oftenInterval)
	})
}
