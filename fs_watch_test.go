package main

import (
	"os"
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
	s.Open()
	return newFileSystem([]file{{name: "film.mkv", store: s}}, ioAuto, log, trace), o, log, out
}

// blockedRead puts a read of r that waits in the table, as serve does, and
// returns a channel with its error.
func blockedRead(fs *fileSystem, r byteRange, pid uint32) chan error {
	op := &fuseops.ReadFileOp{Inode: firstFileInode, Offset: r.off, Size: r.len(), OpContext: fuseops.OpContext{Pid: pid}}
	rec := fs.ops.begin(op, 1)
	done := make(chan error, 1)
	go func() {
		goid := goroutineID()
		fs.ops.handOver(rec, goid)
		err := fs.performWaiting(withGoroutineID(fs.ctx, goid), op)
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
		read := blockedRead(fs, byteRange{0, 100}, 77)
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
		read := blockedRead(fs, byteRange{0, 100}, 4242)
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
