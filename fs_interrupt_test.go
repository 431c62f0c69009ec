// Tests of reads without a mount: reads that the loop answers, reads that wait, and
// the ways in which a wait ends. Each wait is in a synctest bubble, which reports a
// goroutine that outlives its test.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jacobsa/fuse/fuseops"
)

// nobodysPid is the id of no thread: pid_max is at most 2^22 (proc(5)).
const nobodysPid = math.MaxInt32

// skipWithoutCachedReads skips the test where the temporary file system does not
// know RWF_NOWAIT (preadv2(2)).
func skipWithoutCachedReads(t *testing.T) {
	t.Helper()
	f, err := createUnlinked(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if !readCached(f, make([]byte, 1), 0, false) {
		t.Skip("the temporary file system does not know RWF_NOWAIT: every read gets a goroutine")
	}
}

// readOp returns a read of the first file.
func readOp(off, size int64) *fuseops.ReadFileOp {
	return &fuseops.ReadFileOp{Inode: firstFileInode, Offset: off, Size: size}
}

// checkReadOp requires that the answer to op is [off, end). It then gives the
// memory back, as the library does when it has written the answer.
func checkReadOp(t *testing.T, op *fuseops.ReadFileOp, off, end int64) {
	t.Helper()
	if op.Callback != nil {
		defer op.Callback()
	}
	got := bytes.Join(op.Data, nil)
	if int64(op.BytesRead) != end-off || int64(len(got)) != end-off {
		t.Fatalf("read of %d bytes at %d: got %d bytes, BytesRead %d, want %d",
			op.Size, op.Offset, len(got), op.BytesRead, end-off)
	}
	if err := checkContent(got, testSeed, off); err != nil {
		t.Error(err)
	}
}

// readWaiting answers op as a read that waits.
func readWaiting(fs *fileSystem, opCtx context.Context, pid uint32, op *fuseops.ReadFileOp) error {
	op.OpContext.Pid = pid
	return fs.performWaiting(opCtx, op, goroutineID())
}

// startWaiting answers op in a goroutine as serve does, and returns the error in a
// channel. The read must sleep when all is settled.
func startWaiting(t *testing.T, fs *fileSystem, opCtx context.Context, pid uint32, op *fuseops.ReadFileOp) <-chan error {
	t.Helper()
	op.OpContext.Pid = pid
	rec := fs.ops.begin(op, 1)
	result := make(chan error, 1)
	go func() {
		goid := goroutineID()
		fs.ops.letLeave(rec, nil)
		err := fs.performWaiting(opCtx, op, goid)
		fs.ops.end(rec)
		result <- err
	}()
	synctest.Wait()
	mustSleep(t, result)
	return result
}

func mustSleep(t *testing.T, result <-chan error) {
	t.Helper()
	if len(result) != 0 {
		t.Fatalf("the read returned %v, want it to wait", <-result)
	}
}

// mustEndNow requires that the read ends with want, which the kernel sees as errno,
// without any time going by.
func mustEndNow(t *testing.T, result <-chan error, want error, errno syscall.Errno) {
	t.Helper()
	start := time.Now()
	err := <-result
	if !errors.Is(err, want) || errnoOf(err) != errno {
		t.Errorf("error of the read: got %v, %v, want %v, %v", err, errnoOf(err), want, errno)
	}
	if took := time.Since(start); took != 0 {
		t.Errorf("wait for the end of the read: got %v, want 0", took)
	}
}

// mustEndWell requires that the read ends without error, with [off, end) in op.
func mustEndWell(t *testing.T, result <-chan error, op *fuseops.ReadFileOp, off, end int64) {
	t.Helper()
	if err := <-result; err != nil {
		t.Fatalf("error of the read: got %v, want none", err)
	}
	checkReadOp(t, op, off, end)
}

func TestReadyReadIsAnsweredInTheLoop(t *testing.T) {
	skipWithoutCachedReads(t)
	const size = maxReadBytes + 4321
	fs := newTestFS(t, ioAuto, newStubOrigin(size))
	downloadAll(t, fs, 0)
	fs.Stop() // present bytes are still served
	for _, r := range []struct{ off, n, end int64 }{
		{0, 1, 1},
		{4321, maxReadBytes, size},
		{4320, maxReadBytes, size - 1},
		{size - 1, 4096, size},
		{size, 4096, size},
		{100, 0, 100},
		{size + 1<<40, 4096, size + 1<<40},
	} {
		op := readOp(r.off, r.n)
		if err := fs.perform(op, 0); err != nil {
			t.Fatalf("read of %d bytes at %d: %v", r.n, r.off, err)
		}
		checkReadOp(t, op, r.off, r.end)
	}
}

func TestReadThatMustWaitLeavesTheLoopUnanswered(t *testing.T) {
	origin := newScriptedOrigin(Object{Size: 1000})
	fs := newTestFS(t, ioAuto, origin)
	op := readOp(0, 100)
	if err := fs.perform(op, 0); err != errMustWait || op.Data != nil || op.BytesRead != 0 {
		t.Errorf("read before its bytes arrived: got %d bytes, error %v, want errMustWait", op.BytesRead, err)
	}
	if n := len(origin.all()); n != 0 {
		t.Errorf("requests by the loop: got %d, want 0", n)
	}
}

// halfFS runs test in a bubble, with a file system over one file of 1000 bytes
// whose origin sends 500 at once.
func halfFS(t *testing.T, test func(t *testing.T, fs *fileSystem, o *scriptedOrigin)) {
	synctest.Test(t, func(t *testing.T) {
		origin := newScriptedOrigin(Object{Size: 1000})
		origin.atOnce = 500
		test(t, newTestFS(t, ioAuto, origin), origin)
	})
}

func TestWaitingReadIsFilledUpToTheEndOfTheFile(t *testing.T) {
	halfFS(t, func(t *testing.T, fs *fileSystem, o *scriptedOrigin) {
		op := readOp(400, 4096)
		result := startWaiting(t, fs, t.Context(), nobodysPid, op)
		o.send(500)
		mustEndWell(t, result, op, 400, 1000)
	})
}

// Stop ends the reads that wait, and a read that comes later.
func TestStopEndsEveryWait(t *testing.T) {
	halfFS(t, func(t *testing.T, fs *fileSystem, o *scriptedOrigin) {
		var results []<-chan error
		for range 20 {
			results = append(results, startWaiting(t, fs, t.Context(), nobodysPid, readOp(500, 10)))
		}
		fs.Stop()
		for _, result := range results {
			mustEndNow(t, result, errStopping, syscall.EIO)
		}
		later := make(chan error, 1)
		go func() { later <- readWaiting(fs, t.Context(), nobodysPid, readOp(500, 10)) }()
		mustEndNow(t, later, errStopping, syscall.EIO)
	})
}

func TestClosedStoreEndsAWaitingRead(t *testing.T) {
	halfFS(t, func(t *testing.T, fs *fileSystem, o *scriptedOrigin) {
		result := startWaiting(t, fs, t.Context(), nobodysPid, readOp(500, 10))
		if err := fs.allFiles()[0].current.Load().latest().Close(); err != nil {
			t.Error(err)
		}
		mustEndNow(t, result, errClosed, syscall.EIO)
	})
}

// Nobody can tell whether a reader that cannot be seen is dying. Its read goes on for
// unseenPatience, and the fetch even then.
func TestInterruptOfAnUnseenReaderEndsItsReadInTheEnd(t *testing.T) {
	halfFS(t, func(t *testing.T, fs *fileSystem, o *scriptedOrigin) {
		opCtx, interrupt := context.WithCancel(t.Context())
		result := startWaiting(t, fs, opCtx, nobodysPid, readOp(500, 10))
		interrupt()
		time.Sleep(unseenPatience - time.Nanosecond)
		synctest.Wait()
		mustSleep(t, result)
		time.Sleep(time.Nanosecond)
		mustEndNow(t, result, errUnseen, syscall.EINTR)
		o.send(500)
		if !fs.allFiles()[0].current.Load().latest().Complete() {
			t.Error("the interrupt ended the fetch")
		}
	})
}

func TestWhichSignalsKill(t *testing.T) {
	for _, test := range []struct {
		about                   string
		pending, shared, caught uint64
		ignored, blocked        uint64
		want                    bool
	}{
		{about: "nothing"},
		{about: "SIGKILL", pending: signalMask(syscall.SIGKILL), want: true},
		{about: "SIGTERM for the process", shared: signalMask(syscall.SIGTERM), want: true},
		{about: "a core dump", pending: signalMask(syscall.SIGQUIT), want: true},
		{about: "a real-time signal", shared: 1 << 40, want: true},
		{about: "caught", pending: signalMask(syscall.SIGALRM), caught: signalMask(syscall.SIGALRM, syscall.SIGTERM)},
		{about: "caught, and a fatal one after it", pending: signalMask(syscall.SIGUSR1), caught: signalMask(syscall.SIGUSR1),
			shared: signalMask(syscall.SIGHUP), want: true},
		{about: "ignored", shared: signalMask(syscall.SIGHUP), ignored: signalMask(syscall.SIGHUP)},
		{about: "blocked", shared: signalMask(syscall.SIGTERM), blocked: signalMask(syscall.SIGTERM)},
		{about: "Ctrl-Z", shared: signalMask(syscall.SIGTSTP)},
		{about: "a window that changes", shared: signalMask(syscall.SIGWINCH, syscall.SIGCHLD, syscall.SIGCONT)},
	} {
		status := fmt.Sprintf("Name:\tSigPnd:\nSigPnd:\t%016x\nShdPnd:\t%016x\nSigBlk:\t%016x\nSigIgn:\t%016x\nSigCgt:\t%016x\n",
			test.pending, test.shared, test.blocked, test.ignored, test.caught)
		if got := isDying(status); got != test.want {
			t.Errorf("%s: dying %t, want %t", test.about, got, test.want)
		}
	}
}

// TestReaderIsSeenWithoutADescriptorLeft lets this process have no descriptor that is
// free, as a mount at its limit.
func TestReaderIsSeenWithoutADescriptorLeft(t *testing.T) {
	w := newReaderWatch()
	var all []*os.File
	defer func() {
		for _, f := range all {
			f.Close()
		}
	}()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	before := limit
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)
	limit.Cur = 64
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, syscall.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	for range 3 {
		if dying, seen := w.look(uint32(os.Getpid())); dying || !seen {
			t.Fatalf("this process: dying %t, seen %t, want only the latter", dying, seen)
		}
	}
}

// The interrupted reader is this process, which lives on. The read goes on waiting
// while the watcher looks at the process many times.
func TestCaughtSignalDoesNotFailARead(t *testing.T) {
	halfFS(t, func(t *testing.T, fs *fileSystem, o *scriptedOrigin) {
		opCtx, interrupt := context.WithCancel(t.Context())
		op := readOp(500, 500)
		result := startWaiting(t, fs, opCtx, uint32(os.Getpid()), op)
		interrupt()
		time.Sleep(20*fatalPoll + 1)
		synctest.Wait()
		mustSleep(t, result)
		o.send(500)
		mustEndWell(t, result, op, 500, 1000)
	})
}

func TestStopEndsAReadThatWasInterruptedBefore(t *testing.T) {
	halfFS(t, func(t *testing.T, fs *fileSystem, o *scriptedOrigin) {
		opCtx, interrupt := context.WithCancel(t.Context())
		interrupt()
		result := startWaiting(t, fs, opCtx, uint32(os.Getpid()), readOp(500, 10))
		time.Sleep(3 * fatalPoll)
		fs.Stop()
		mustEndNow(t, result, errStopping, syscall.EIO)
	})
}

// A ticker that goes on would keep the bubble from ending.
func TestWatcherDoesNotOutliveItsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newFileSystem(ioAuto, new(storeConfig), nil)
		opCtx, interrupt := context.WithCancel(t.Context())
		ctx, cancel := fs.waitContext(opCtx, uint32(os.Getpid()))
		interrupt()
		synctest.Wait() // the watcher has looked once, and waits for its ticker
		cancel()
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			t.Errorf("cause after cancel: got %v, want context.Canceled", cause)
		}
		fs.Stop()
	})
}

// The library ends the op's context with every reply: that is no interrupt.
func TestReplyIsNoInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newFileSystem(ioAuto, new(storeConfig), nil)
		opCtx, reply := context.WithCancel(t.Context())
		ctx, cancel := fs.waitContext(opCtx, nobodysPid)
		cancel()
		reply()
		synctest.Wait()
		if cause := context.Cause(ctx); cause != context.Canceled {
			t.Errorf("cause after the reply: got %v, want context.Canceled", cause)
		}
	})
}

func TestAwaitFatalEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = 10*fatalPoll + fatalPoll/2
		ctx, cancel := context.WithTimeout(t.Context(), life)
		defer cancel()
		start := time.Now()
		if err := newReaderWatch().awaitFatal(ctx, uint32(os.Getpid())); err != nil {
			t.Errorf("awaitFatal of this process: got %v, want nil", err)
		}
		if took := time.Since(start); took != life {
			t.Errorf("time until awaitFatal returned: got %v, want %v", took, life)
		}
	})
}

// The kernel sends no negative offset. Such a read must not look like one at the
// end of the file.
func TestNegativeOffsetIsAnError(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10))
	op := readOp(-1, 4)
	if err := fs.perform(op, 0); err != errMustWait {
		t.Errorf("in the loop: got %v, want errMustWait", err)
	}
	err := readWaiting(fs, t.Context(), nobodysPid, op)
	if !errors.Is(err, os.ErrInvalid) || errors.Is(err, io.EOF) || errnoOf(err) == nil {
		t.Errorf("waiting: got %v, want %v", err, os.ErrInvalid)
	}
}
