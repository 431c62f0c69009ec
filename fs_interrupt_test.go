// Tests of reads without a mount: those that are answered in the loop, those
// that wait, and the three ways in which a wait ends. Each wait is in a bubble,
// where a goroutine that outlives its test is reported.

package main

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jacobsa/fuse/fuseops"
)

// nobodysPid is a thread that cannot be: pid_max is 2^22 at most (proc(5)).
const nobodysPid = math.MaxInt32

// skipWithoutCachedReads skips where a temporary file's pages cannot be asked
// for without waiting.
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
	if !readCached(f, make([]byte, 1), 0) {
		t.Skip("reads that never wait for the disk are not to be had here: every read gets a goroutine")
	}
}

// readOp is a read of the first file.
func readOp(off, size int64) *fuseops.ReadFileOp {
	return &fuseops.ReadFileOp{Inode: firstFileInode, Offset: off, Size: size}
}

// checkReadOp requires that op was answered with [off, end), and gives the
// answer back as the library does once it is written.
func checkReadOp(t *testing.T, op *fuseops.ReadFileOp, off, end int64) {
	t.Helper()
	if op.Callback != nil {
		defer op.Callback()
	}
	var got []byte
	for _, piece := range op.Data {
		got = append(got, piece...)
	}
	if int64(op.BytesRead) != end-off || int64(len(got)) != end-off {
		t.Fatalf("read of %d bytes at %d: %d bytes, said to be %d; want %d", op.Size, op.Offset, len(got), op.BytesRead, end-off)
	}
	if err := checkContent(got, testSeed, off); err != nil {
		t.Error(err)
	}
}

// readWaiting answers op as serve does in a goroutine.
func readWaiting(fs *fileSystem, opCtx context.Context, pid uint32, op *fuseops.ReadFileOp) error {
	op.OpContext.Pid = pid
	return fs.performWaiting(opCtx, op, goroutineID())
}

func TestReadyReadIsAnsweredInTheLoop(t *testing.T) {
	skipWithoutCachedReads(t)
	const size = maxReadBytes + 4321
	fs := newTestFS(t, ioAuto, newStubOrigin(size))
	downloadAll(t, fs, 0)
	fs.Stop() // bytes that are there are still served
	for _, r := range []struct{ off, n, end int64 }{
		{0, 1, 1},
		{4321, maxReadBytes, size},
		{4320, maxReadBytes, size - 1},
		{size - 1, 4096, size},
		{size, 4096, size},
		{100, 0, 100},
	} {
		op := readOp(r.off, r.n)
		if err := fs.perform(op, 0); err != nil {
			t.Fatalf("read of %d bytes at %d: %v", r.n, r.off, err)
		}
		checkReadOp(t, op, r.off, r.end)
	}
	op := readOp(size+1<<40, 4096)
	if err := fs.perform(op, 0); err != nil {
		t.Fatalf("read behind the end: %v", err)
	}
	checkReadOp(t, op, 0, 0)
}

func TestReadThatMustWaitLeavesTheLoopUnanswered(t *testing.T) {
	origin := newHeldStubOrigin(1000, 500)
	fs := newTestFS(t, ioAuto, origin)
	op := readOp(0, 100)
	if err := fs.perform(op, 0); err != errMustWait || op.Data != nil || op.BytesRead != 0 {
		t.Errorf("read of what has not arrived: %v, %d bytes; want errMustWait", err, op.BytesRead)
	}
	if n := origin.opened.Load(); n != 0 {
		t.Errorf("the loop opened the origin %d times", n)
	}
}

func TestWaitingReadIsFilledUpToTheEndOfTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := newHeldStubOrigin(1000, 500)
		fs := newTestFS(t, ioAuto, origin)
		op, done := readOp(400, 4096), make(chan error, 1)
		go func() { done <- readWaiting(fs, t.Context(), nobodysPid, op) }()
		synctest.Wait()
		if len(done) != 0 {
			t.Fatalf("the read returned %v before byte 500 arrived", <-done)
		}
		close(origin.resume)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		checkReadOp(t, op, 400, 1000)
	})
}

// TestStopEndsEveryWait has readers before Stop and one after it.
func TestStopEndsEveryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newTestFS(t, ioAuto, newHeldStubOrigin(1000, 0))
		done := make(chan error, 20)
		for range cap(done) {
			go func() { done <- readWaiting(fs, t.Context(), nobodysPid, readOp(0, 10)) }()
		}
		synctest.Wait()
		if len(done) != 0 {
			t.Fatalf("a read without bytes returned %v", <-done)
		}
		start := time.Now()
		fs.Stop()
		for range cap(done) {
			requireErrno(t, <-done, errStopping, syscall.ECANCELED)
		}
		requireErrno(t, readWaiting(fs, t.Context(), nobodysPid, readOp(0, 10)), errStopping, syscall.ECANCELED)
		if took := time.Since(start); took != 0 {
			t.Errorf("the waits ended %v after Stop", took)
		}
	})
}

func requireErrno(t *testing.T, err, want error, errno syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) || errnoOf(err) != errno {
		t.Errorf("error %v, %v; want %v, %v", err, errnoOf(err), want, errno)
	}
}

func TestClosedStoreEndsAWaitingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newTestFS(t, ioAuto, newHeldStubOrigin(1000, 0))
		done := make(chan error, 1)
		go func() { done <- readWaiting(fs, t.Context(), nobodysPid, readOp(0, 10)) }()
		synctest.Wait()
		if err := fs.dir.Load().files[0].store.Close(); err != nil {
			t.Error(err)
		}
		requireErrno(t, <-done, errClosed, syscall.ECANCELED)
	})
}

// TestInterruptOfADyingReaderEndsItsRead has a reader of which nothing is left:
// that counts as dying. The fetch goes on.
func TestInterruptOfADyingReaderEndsItsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := newHeldStubOrigin(1000, 500)
		fs := newTestFS(t, ioAuto, origin)
		opCtx, interrupt := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- readWaiting(fs, opCtx, nobodysPid, readOp(500, 10)) }()
		synctest.Wait()
		start := time.Now()
		interrupt()
		requireErrno(t, <-done, errInterrupted, syscall.EINTR)
		if took := time.Since(start); took != 0 {
			t.Errorf("the read ended %v after the interrupt", took)
		}
		close(origin.resume)
		synctest.Wait()
		if !fs.dir.Load().files[0].store.Complete() {
			t.Error("the interrupt ended the fetch")
		}
	})
}

// TestCaughtSignalDoesNotFailARead has an interrupted reader that lives on:
// this process. The read waits through many looks at it.
func TestCaughtSignalDoesNotFailARead(t *testing.T) {
	skipWithoutProc(t)
	synctest.Test(t, func(t *testing.T) {
		origin := newHeldStubOrigin(1000, 500)
		fs := newTestFS(t, ioAuto, origin)
		opCtx, interrupt := context.WithCancel(t.Context())
		op, done := readOp(500, 500), make(chan error, 1)
		go func() { done <- readWaiting(fs, opCtx, uint32(os.Getpid()), op) }()
		synctest.Wait()
		interrupt()
		time.Sleep(20*fatalPoll + 1)
		synctest.Wait()
		if len(done) != 0 {
			t.Fatalf("a signal that is not fatal ended the read: %v", <-done)
		}
		close(origin.resume)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		checkReadOp(t, op, 500, 1000)
	})
}

func TestStopEndsAReadThatWasInterruptedBefore(t *testing.T) {
	skipWithoutProc(t)
	synctest.Test(t, func(t *testing.T) {
		fs := newTestFS(t, ioAuto, newHeldStubOrigin(1000, 0))
		opCtx, interrupt := context.WithCancel(t.Context())
		interrupt()
		done := make(chan error, 1)
		go func() { done <- readWaiting(fs, opCtx, uint32(os.Getpid()), readOp(0, 10)) }()
		time.Sleep(3 * fatalPoll)
		start := time.Now()
		fs.Stop()
		requireErrno(t, <-done, errStopping, syscall.ECANCELED)
		if took := time.Since(start); took != 0 {
			t.Errorf("the read ended %v after Stop", took)
		}
	})
}

func skipWithoutProc(t *testing.T) {
	t.Helper()
	if fatalSignalPending(uint32(os.Getpid())) {
		t.Skip("there is no /proc/PID/status here: every interrupt counts as fatal")
	}
}

// TestWatcherDoesNotOutliveItsWait looks at the fake clock: a ticker that went
// on would keep the bubble from ending.
func TestWatcherDoesNotOutliveItsWait(t *testing.T) {
	skipWithoutProc(t)
	synctest.Test(t, func(t *testing.T) {
		fs := newFileSystem(nil, ioAuto, nil, nil)
		opCtx, interrupt := context.WithCancel(t.Context())
		ctx, cancel := fs.waitContext(opCtx, uint32(os.Getpid()))
		interrupt()
		synctest.Wait() // the watcher looks, and will look again
		cancel()
		if !errors.Is(context.Cause(ctx), context.Canceled) {
			t.Errorf("cause %v after cancel, want context.Canceled", context.Cause(ctx))
		}
		fs.Stop()
	})
}

// TestInterruptAfterTheWaitIsNone ends the op's context as the library does
// with every reply.
func TestInterruptAfterTheWaitIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newFileSystem(nil, ioAuto, nil, nil)
		opCtx, reply := context.WithCancel(t.Context())
		ctx, cancel := fs.waitContext(opCtx, nobodysPid)
		cancel()
		reply()
		synctest.Wait()
		if cause := context.Cause(ctx); cause != context.Canceled {
			t.Errorf("cause %v, want context.Canceled", cause)
		}
	})
}

func TestAwaitFatalEndsWithItsContext(t *testing.T) {
	skipWithoutProc(t)
	synctest.Test(t, func(t *testing.T) {
		const life = 10*fatalPoll + fatalPoll/2
		ctx, cancel := context.WithTimeout(t.Context(), life)
		defer cancel()
		start := time.Now()
		if awaitFatal(ctx, uint32(os.Getpid())) {
			t.Error("this process is said to be dying")
		}
		if took := time.Since(start); took != life {
			t.Errorf("awaitFatal ended after %v, want %v", took, life)
		}
	})
}

// A read of a negative offset is nothing the kernel sends: it must not be taken
// for one at the end of the file.
func TestNegativeOffsetIsAnError(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10))
	op := readOp(-1, 4)
	if err := fs.perform(op, 0); err != errMustWait {
		t.Errorf("in the loop: %v, want errMustWait", err)
	}
	err := readWaiting(fs, t.Context(), nobodysPid, op)
	if !errors.Is(err, os.ErrInvalid) || errors.Is(err, io.EOF) || errnoOf(err) == nil {
		t.Errorf("waiting: %v, want an error of its own", err)
	}
}
