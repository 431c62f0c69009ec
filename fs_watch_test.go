// Tests of the watchdog and the auditor. Tests of the lines of the control directory:
// the parsers read back exactly the values that were written.

package main

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jacobsa/fuse/fuseops"
)

// watched runs test in a bubble, with a file system over one file of 1000 bytes and
// its watchdog. The kernel's count of requests without a reply is unanswered. The
// result is what the file system logged.
func watched(t *testing.T, stallReport time.Duration, unanswered int,
	test func(t *testing.T, fs *fileSystem, o *scriptedOrigin, out *syncBuffer)) string {
	out := &syncBuffer{}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log := newEventLog(out)
		trace := &tracer{log: log}
		o := newScriptedOrigin(ranged(1000))
		s := newTempFileStore(o, o.obj, tracedConfig(dir, trace))
		s.AddHandle()
		fs := newFileSystem(ioAuto, tracedConfig("", trace), log)
		if _, err := fs.link(newFile("film.mkv", s)); err != nil {
			t.Fatal(err)
		}
		end := fs.watchInBackground(stallReport, func() int { return unanswered })
		test(t, fs, o, out)
		fs.Stop()
		end()
		s.Close()
		log.Close(time.Second)
	})
	return out.String()
}

// A lost wake-up leaves a waiter on the list that has its answer. Only a bug in the
// store can make one, so the test makes one by hand.
func TestAuditorFindsALostWakeup(t *testing.T) {
	text := watched(t, time.Minute, 0, func(t *testing.T, fs *fileSystem, _ *scriptedOrigin, _ *syncBuffer) {
		store := fs.allFiles()[0].current.Load().latest()
		read := startWaiting(t, fs, t.Context(), 77, readOp(0, 100))
		if err := store.file.Load().Truncate(100); err != nil {
			t.Fatal(err)
		}
		store.mu.Lock()
		store.present.add(byteRange{0, 100}) // without the wake-up
		store.mu.Unlock()
		synctest.Wait()
		mustSleep(t, read)
		time.Sleep(watchInterval)
		synctest.Wait()
		if err := <-read; err != nil {
			t.Errorf("error of the read: got %v, want none", err)
		}
		if n := fs.stats.lostWakeups.Load(); n != 1 {
			t.Errorf("lost wake-ups counted: got %d, want 1", n)
		}
	})
	if !strings.Contains(text, "BUG: lost wake-up") || !strings.Contains(text, "[0,100)") {
		t.Errorf("log: got %s, want the lost wake-up of [0,100)", text)
	}
}

func TestWatchdogReportsABlockedOpOnce(t *testing.T) {
	text := watched(t, 10*time.Second, 0, func(t *testing.T, fs *fileSystem, o *scriptedOrigin, out *syncBuffer) {
		read := startWaiting(t, fs, t.Context(), 4242, readOp(0, 100))
		time.Sleep(9 * time.Second)
		if early := strings.Count(out.String(), "blocked: id="); early != 0 {
			t.Errorf("reports after 9 of 10 s: got %d, want 0", early)
		}
		time.Sleep(60 * time.Second)
		o.request(t, 0).send(100)
		<-read
	})
	for _, once := range []string{"blocked: id=", "all goroutines:"} {
		if n := strings.Count(text, once); n != 1 {
			t.Errorf("%q in the log: got %d times, want once: %s", once, n, text)
		}
	}
	for _, want := range []string{`file="film.mkv"`, "range=[0,100)", "pid=4242", "a fetch at offset 0", "recent events:",
		" [recent, TempFileStore #1] ReadAt ENTER off=0 len=100"} {
		if !strings.Contains(text, want) {
			t.Errorf("report: got %s, want %q in it", text, want)
		}
	}
}

// Requests on their way to a busy loop are no stall.
func TestRequestsOfABusyMountAreNotReported(t *testing.T) {
	text := watched(t, time.Minute, 13, func(t *testing.T, fs *fileSystem, _ *scriptedOrigin, _ *syncBuffer) {
		for range 30 { // the loop takes some between any two looks
			fs.ops.end(fs.ops.begin(&fuseops.StatFSOp{}, 1))
			time.Sleep(watchInterval / 3)
		}
	})
	if text != "" {
		t.Errorf("log: got %s, want none", text)
	}
}

// After a SIGSTOP the watchdog may look before the loop has taken a request.
func TestRequestsOfALoopThatGoesOnAreNotReported(t *testing.T) {
	text := watched(t, time.Minute, 13, func(t *testing.T, fs *fileSystem, _ *scriptedOrigin, _ *syncBuffer) {
		for range 10 {
			time.Sleep(3*watchInterval/2 + 1)
			fs.ops.end(fs.ops.begin(&fuseops.StatFSOp{}, 1))
		}
	})
	if text != "" {
		t.Errorf("log: got %s, want none", text)
	}
}

func TestRequestsThatNeverReachedUsAreReported(t *testing.T) {
	text := watched(t, time.Minute, 13, func(*testing.T, *fileSystem, *scriptedOrigin, *syncBuffer) {
		time.Sleep(10 * watchInterval)
	})
	if n := strings.Count(text, "13 requests that have not reached fsmount"); n != 1 {
		t.Errorf("reports: got %d, want 1: %s", n, text)
	}
}

// syncBuffer collects what a log writes. Any goroutine may read it at any time.
type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// oddTexts are texts that file names, commands and errors may hold.
func oddTexts() []string {
	return []string{"", "plain", `quo"ted \" back\slash`, "two\nlines\r\tand a tab", "ünï 漢字 🎬", "not UTF-8 \xff\xfe",
		"a=b c=\"d\" ", "`back`", "\x00\x1b[2J", `trailing\`, "pid=1"}
}

// checkRoundTrip requires that parse reads want's line back, and that it is one line.
func checkRoundTrip[T interface {
	comparable
	fmt.Stringer
}](t *testing.T, want T, parse func(string) (T, error)) {
	t.Helper()
	line := want.String()
	if got, err := parse(line); err != nil || got != want {
		t.Errorf("parse %s: got %+v, error %v, want %+v", line, got, err, want)
	}
	if strings.ContainsAny(line, "\n\r\x1b") {
		t.Errorf("line: got %q, want one without control characters", line)
	}
}

func TestOpInfoRoundTrip(t *testing.T) {
	for i, text := range oddTexts() {
		checkRoundTrip(t, opInfo{ID: 1<<64 - 1, Kind: "read", File: text, Range: "[0,4096)", PID: 1<<32 - 1, Command: text,
			GoID: uint64(i), Store: 7, Age: 12.3, Waits: text}, parseOpInfo)
	}
}

func TestFileStatusRoundTrip(t *testing.T) {
	for _, text := range oddTexts() {
		want := fileStatus{File: text, State: "retrying", Present: 1, Size: 1<<63 - 1, Rate: 3, Fetches: 4, Waiters: 5,
			Handles: 6, Retries: 7, Received: 8, Store: 9, Version: text, RetryIn: 1.5, LastError: text, Error: text, Wanted: true, Silent: 2.5, Streams: true, NoRoom: true}
		if fields := reflect.ValueOf(want); text != "" {
			for i := range fields.NumField() {
				if fields.Field(i).IsZero() {
					t.Fatalf("%s is zero, want a value in every field", fields.Type().Field(i).Name)
				}
			}
		}
		checkRoundTrip(t, want, parseFileStatus)
	}
}

func TestParseOpInfoOfAnotherVersion(t *testing.T) {
	info := opInfo{Kind: "open", File: "a", Range: "-", Waits: "x"}
	if got, err := parseOpInfo(info.String() + ` later="field of a \"later\" version" n=1`); err != nil || got != info {
		t.Errorf("a line with unknown fields: got %+v, error %v, want %+v", got, err, info)
	}
}

func TestParseOpInfoRefuses(t *testing.T) {
	good := opInfo{Kind: "read", File: "a", Range: "-"}.String()
	for about, line := range map[string]string{
		"nothing":                "",
		"no field":               "nonsense",
		"a missing field":        strings.Replace(good, "pid=0 ", "", 1),
		"no number":              strings.Replace(good, "pid=0", "pid=x", 1),
		"a number too large":     strings.Replace(good, "pid=0", "pid=4294967296", 1),
		"a time without unit":    strings.Replace(good, "age=0.0s", "age=0.0", 1),
		"a line that was cut":    strings.TrimSuffix(good, `"`),
		"quotes and then more":   strings.Replace(good, `file="a"`, `file="a"b`, 1),
		"a word without its key": good + " word",
	} {
		if info, err := parseOpInfo(line); err == nil {
			t.Errorf("%s: got %+v, want an error for %q", about, info, line)
		}
	}
}

func TestParseLines(t *testing.T) {
	a, b := opInfo{ID: 1, Kind: "read", File: "a\nb", Range: "-"}, opInfo{ID: 2, Kind: "open", Range: "-"}
	all, err := parseLines(a.String()+"\n"+b.String()+"\n", parseOpInfo)
	if err != nil || len(all) != 2 || all[0] != a || all[1] != b {
		t.Errorf("two lines: got %+v, error %v, want %+v and %+v", all, err, a, b)
	}
	if none, err := parseLines("", parseOpInfo); err != nil || none == nil || len(none) != 0 {
		t.Errorf("no line: got %+v, error %v, want an empty slice", none, err)
	}
}

// FuzzParseOpInfo looks for a value that the parser does not read back, and for text
// that makes it panic.
func FuzzParseOpInfo(f *testing.F) {
	for _, text := range oddTexts() {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parseOpInfo(text)
		checkRoundTrip(t, opInfo{Kind: "read", Range: "-", File: text, Waits: text}, parseOpInfo)
	})
}

// The text of thousands of operations takes time. Meanwhile the loop takes other ops.
func TestTheLoopRendersNoControlFile(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(1000))
	for i, f := range fs.control.files {
		op := &fuseops.OpenFileOp{Inode: controlInode + 1 + fuseops.InodeID(i)}
		if err := fs.perform(op, 0); err != errMustWait {
			t.Errorf("open of %s by the loop: got %v, want %v", f.name, err, errMustWait)
		}
		if err := fs.performWaiting(t.Context(), op, 0); err != nil || op.Handle <= fuseops.HandleID(controlInode) {
			t.Errorf("open of %s: got handle %d, error %v, want a handle of a control file", f.name, op.Handle, err)
		}
	}
}

// Thousands of readers are killed, and their operations end, the oldest first. If each end
// moved those that are left, this took a minute.
func TestOpsEndInAnyOrder(t *testing.T) {
	const ops, most = 300_000, 10 * time.Second // of the processors' time
	table, began := newOpTable(), processorTime(t)
	all := make([]*opRecord, ops)
	for i := range all {
		all[i] = table.begin(&fuseops.StatFSOp{}, uint64(i))
	}
	for i, rec := range all[:ops-3] {
		table.end(rec)
		if took := processorTime(t) - began; took > most {
			t.Fatalf("%v for the first %d of %d operations, want at most %v for all", took, i+1, ops, most)
		}
	}
	table.end(all[ops-2])
	left := table.snapshot()
	if len(left) != 2 || left[0].goid != ops-3 || left[1].goid != ops-1 {
		t.Errorf("operations left: got %+v, want the first and the last of the last three", left)
	}
	if ever, inFlight, _ := table.totals(); ever != ops || inFlight != 2 {
		t.Errorf("totals: got %d ever and %d in flight, want %d and 2", ever, inFlight, ops)
	}
}
