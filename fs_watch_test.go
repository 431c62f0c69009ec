// Tests of the watchdog and the auditor, and that the lines of the control
// directory parse back into exactly what was written.

package main

import (
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jacobsa/fuse/fuseops"
)

// watched returns a file system over one staged file of size bytes, and what it
// has logged when the bubble ends. REQUIRES: a bubble.
func watched(t *testing.T, size int64) (*fileSystem, *stagedOrigin, *eventLog, *syncBuffer) {
	out := &syncBuffer{}
	log := newEventLog(out)
	trace := &tracer{log: log}
	obj := Object{Size: size, Ranges: true}
	o := &stagedOrigin{obj: obj, next: obj, opened: make(chan *stagedRequest, 100)}
	s := newTempFileStore(o, obj, tracedConfig(t.TempDir(), trace))
	s.AddHandle()
	return newFileSystem([]*fileVersion{newFileVersion("film.mkv", s)}, ioAuto, log, trace), o, log, out
}

// blockedRead puts a read of r that waits in the table, as serve does, and
// returns a channel with its error.
func blockedRead(t *testing.T, fs *fileSystem, r byteRange, pid uint32) chan error {
	op := &fuseops.ReadFileOp{Inode: firstFileInode, Offset: r.off, Size: r.len(), OpContext: fuseops.OpContext{Pid: pid}}
	rec := fs.ops.begin(op, 1)
	done := make(chan error, 1)
	go func() {
		goid := goroutineID()
		fs.ops.handOver(rec, goid)
		err := fs.performWaiting(t.Context(), op, goid)
		fs.ops.end(rec)
		done <- err
	}()
	synctest.Wait()
	return done
}

// A waiter that is satisfied and still on the list is what a lost wake-up
// leaves; only a bug could, so the test makes one by hand.
func TestAuditorFindsALostWakeup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, _, log, out := watched(t, 1000)
		store := fs.dir.Load().files[0].store
		end := fs.watchInBackground(time.Minute, func() int { return 0 })
		read := blockedRead(t, fs, byteRange{0, 100}, 77)
		store.mu.Lock()
		store.present.add(byteRange{0, 100}) // without the wake-up
		store.file.Store(mustTempFile(t, 100))
		store.mu.Unlock()
		synctest.Wait()
		select {
		case <-read:
			t.Fatal("the reader was awake: nothing was lost")
		default:
		}
		time.Sleep(watchInterval)
		synctest.Wait()
		if err := <-read; err != nil {
			t.Errorf("the reader ended with %v", err)
		}
		if n := fs.stats.lostWakeups.Load(); n != 1 {
			t.Errorf("%d lost wake-ups counted, want 1", n)
		}
		fs.Stop()
		end()
		store.Close()
		log.Close(time.Second)
		if !strings.Contains(out.String(), "BUG: lost wake-up") || !strings.Contains(out.String(), "[0,100)") {
			t.Errorf("the log has no loud word of it: %s", out)
		}
	})
}

func TestWatchdogReportsABlockedOpOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, o, log, out := watched(t, 1000)
		end := fs.watchInBackground(10*time.Second, func() int { return 0 })
		read := blockedRead(t, fs, byteRange{0, 100}, 4242)
		time.Sleep(9 * time.Second)
		early := strings.Count(out.String(), "blocked: id=")
		time.Sleep(60 * time.Second)
		o.request(t, 0).send(100)
		<-read
		fs.Stop()
		end()
		fs.dir.Load().files[0].store.Close()
		log.Close(time.Second)
		text := out.String()
		if n := strings.Count(text, "blocked: id="); early != 0 || n != 1 {
			t.Errorf("reported %d times, %d of them before it was due, want once: %s", n, early, text)
		}
		for _, want := range []string{`file="film.mkv"`, "range=[0,100)", "pid=4242", "a fetch at offset 0", "recent events:", "ReadAt ENTER off=0 len=100", "all goroutines:"} {
			if !strings.Contains(text, want) {
				t.Errorf("the report lacks %q: %s", want, text)
			}
		}
		if n := strings.Count(text, "all goroutines:"); n != 1 {
			t.Errorf("stacks %d times for one stall", n)
		}
	})
}

// Requests on their way to a busy mount are no stall.
func TestRequestsOfABusyMountAreNotReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, _, log, out := watched(t, 1000)
		end := fs.watchInBackground(time.Minute, func() int { return 13 })
		for range 30 { // some between any two looks
			fs.ops.end(fs.ops.begin(&fuseops.StatFSOp{}, 1))
			time.Sleep(watchInterval / 3)
		}
		fs.Stop()
		end()
		fs.dir.Load().files[0].store.Close()
		log.Close(time.Second)
		if out.String() != "" {
			t.Errorf("the log has %s", out)
		}
	})
}

func TestRequestsThatNeverReachedUsAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, _, log, out := watched(t, 1000)
		end := fs.watchInBackground(time.Minute, func() int { return 13 })
		time.Sleep(10 * watchInterval)
		fs.Stop()
		end()
		fs.dir.Load().files[0].store.Close()
		log.Close(time.Second)
		if n := strings.Count(out.String(), "13 requests that have not reached fsmount"); n != 1 {
			t.Errorf("said %d times, want once: %s", n, out)
		}
	})
}

// syncBuffer is a log's reader that may be looked at meanwhile.
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

// mustTempFile returns a temporary file with size bytes of content.
func mustTempFile(t *testing.T, size int) *os.File {
	f, err := createUnlinked(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, size)
	fillContent(p, storeSeed, 0)
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

// oddTexts are what file names, programs and origins can come up with.
func oddTexts() []string {
	return []string{"", "plain", `quo"ted \" back\slash`, "two\nlines\r\tand a tab", "ünï 漢字 🎬", "not UTF-8 \xff\xfe",
		"a=b c=\"d\" ", "`back`", "\x00\x1b[2J", `trailing\`, "pid=1"}
}

func TestOpInfoRoundTrip(t *testing.T) {
	for i, text := range oddTexts() {
		want := opInfo{ID: 1<<64 - 1, Kind: "read", File: text, Range: "[0,4096)", PID: 1<<32 - 1, Command: text,
			GoID: uint64(i), Store: 7, Age: 12.3, Waits: text}
		line := want.String()
		got, err := parseOpInfo(line)
		if err != nil || got != want {
			t.Errorf("%s\nis read as %+v, %v", line, got, err)
		}
		if strings.ContainsAny(line, "\n\r\x1b") {
			t.Errorf("%q is more than a line of text", line)
		}
	}
}

func TestFileStatusRoundTrip(t *testing.T) {
	for _, text := range oddTexts() {
		want := fileStatus{File: text, State: "retrying", Present: 1, Size: 1<<63 - 1, Rate: 3, Fetches: 4, Waiters: 5,
			Handles: 6, Retries: 7, Received: 8, Store: 9, Version: text, RetryIn: 1.5, LastError: text, Error: text}
		if fields := reflect.ValueOf(want); text != "" {
			for i := range fields.NumField() {
				if fields.Field(i).IsZero() {
					t.Fatalf("%s is not tried", fields.Type().Field(i).Name)
				}
			}
		}
		line := want.String()
		got, err := parseFileStatus(line)
		if err != nil || got != want {
			t.Errorf("%s\nis read as %+v, %v", line, got, err)
		}
	}
}

func TestParseOpInfoOfAnotherVersion(t *testing.T) {
	info := opInfo{Kind: "open", File: "a", Range: "-", Waits: "x"}
	if got, err := parseOpInfo(info.String() + ` later="field of a \"later\" version" n=1`); err != nil || got != info {
		t.Errorf("with fields that this version does not know: %+v, %v", got, err)
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
			t.Errorf("%s: %q is read as %+v", about, line, info)
		}
	}
}

func TestParseLines(t *testing.T) {
	a, b := opInfo{ID: 1, Kind: "read", File: "a\nb", Range: "-"}, opInfo{ID: 2, Kind: "open", Range: "-"}
	all, err := parseLines(a.String()+"\n"+b.String()+"\n", parseOpInfo)
	if err != nil || len(all) != 2 || all[0] != a || all[1] != b {
		t.Errorf("two lines are read as %+v, %v", all, err)
	}
	if none, err := parseLines("", parseOpInfo); err != nil || none == nil || len(none) != 0 {
		t.Errorf("no line is read as %+v, %v", none, err)
	}
}

// FuzzParseOpInfo looks for a value that is not read back as it was written, and
// for text that the parser does not survive.
func FuzzParseOpInfo(f *testing.F) {
	for _, text := range oddTexts() {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parseOpInfo(text)
		want := opInfo{Kind: "read", Range: "-", File: text, Waits: text}
		if got, err := parseOpInfo(want.String()); err != nil || got != want {
			t.Errorf("%s\nis read as %+v, %v", want, got, err)
		}
	})
}
