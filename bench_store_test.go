//go:build bench

// bench_store_test.go measures the store alone, without FUSE and network: the cost of
// a ready read, with and without a trace, and the cost of waking many readers. It
// checks the bytes that they read, outside of the measured time.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jacobsa/fuse/fuseops"
)

const (
	benchChunk   = 4096 // bytes of a small read, and of one arrival
	benchWaiters = 1000

	// benchReadyBytes is the size of a ready store. It fits into a processor's cache,
	// so that the figure is the store's, not the memory's.
	benchReadyBytes = 1 << 20
)

// benchReadyStore returns a complete store. The end of the benchmark closes it.
func benchReadyStore(b *testing.B, trace *tracer) *TempFileStore {
	b.Helper()
	origin := newStubOrigin(benchReadyBytes)
	s := newTempFileStore(origin, origin.obj, tracedConfig(b.TempDir(), trace))
	b.Cleanup(func() { s.Close() })
	if _, err := s.ReadAt(context.Background(), make([]byte, benchReadyBytes), 0); err != nil {
		b.Fatal(err)
	}
	return s
}

// BenchmarkReady measures a read of present bytes: by ReadAt, and by ViewReady, which
// answers the kernel's reads. Beside them stands a bare read of the temporary file.
func BenchmarkReady(b *testing.B) {
	b.Run("pread", benchPread)
	b.Run("ReadAt", benchReadAt)
	b.Run("ViewReady", benchTraceNone)
}

func benchPread(b *testing.B) {
	f := benchReadyStore(b, new(tracer)).file.Load()
	benchReads(b, f.ReadAt)
}

func benchReadAt(b *testing.B) {
	s, ctx := benchReadyStore(b, new(tracer)), context.Background()
	benchReads(b, func(p []byte, off int64) (int, error) { return s.ReadAt(ctx, p, off) })
}

// BenchmarkTrace measures a ready read with a tracer that has no log, with one that
// is off, as without --trace, and with one that is on.
func BenchmarkTrace(b *testing.B) {
	b.Run("none", benchTraceNone)
	b.Run("off", benchTraceOff)
	b.Run("on", benchTraceOn)
}

func benchTraceNone(b *testing.B) { benchViewReady(b, new(tracer)) }

func benchTraceOff(b *testing.B) { benchViewReady(b, &tracer{log: benchLog(b)}) }

func benchTraceOn(b *testing.B) { benchViewReady(b, &tracer{log: benchLog(b), on: true}) }

func benchLog(b *testing.B) *eventLog {
	log := newEventLog(io.Discard)
	b.Cleanup(func() { log.Close(logPatience) })
	return log
}

// errBenchNotReady ends a benchmark if the system cannot tell whether a read would wait
// for the disk.
var errBenchNotReady = errors.New("a read of present bytes would have to wait")

func benchViewReady(b *testing.B, trace *tracer) {
	s, goid := benchReadyStore(b, trace), goroutineID()
	benchReads(b, func(p []byte, off int64) (int, error) {
		v, ready := s.ViewReady(off, len(p), goid)
		if !ready {
			return 0, errBenchNotReady
		}
		defer v.done()
		if off == benchChecked {
			copy(p, v.data)
		}
		return len(v.data), nil
	})
}

// BenchmarkOps measures what the table of operations in flight adds to a ready read.
func BenchmarkOps(b *testing.B) {
	ops, op := newOpTable(), &fuseops.ReadFileOp{}
	b.ReportAllocs()
	for b.Loop() {
		ops.end(ops.begin(op, 1))
	}
}

// benchChecked is the offset of the chunk that benchReads checks.
const benchChecked = benchChunk

// benchReads measures read over the chunks of a ready store, one after the other. read
// may leave p alone, except for the chunk at benchChecked.
func benchReads(b *testing.B, read func(p []byte, off int64) (int, error)) {
	p, off := make([]byte, benchChunk), int64(0)
	b.ReportAllocs()
	for b.Loop() {
		off = (off + benchChunk) % benchReadyBytes
		if _, err := read(p, off); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := read(p, benchChecked); err != nil {
		b.Fatal(err)
	}
	if err := checkContent(p, testSeed, benchChecked); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWake measures one arrival that a thousand readers wait for, until each has
// its bytes. Beside it stands the same with only a channel and a file, and one arrival for
// one of as many readers that are far from each other.
func BenchmarkWake(b *testing.B) {
	b.Run("channel", benchWakeChannel)
	b.Run("store", benchWakeStore)
	for _, n := range benchCurve {
		b.Run(fmt.Sprintf("arrival/%d", n), benchArrival(n))
		b.Run(fmt.Sprintf("waiting/%d", n), benchWaiting(n))
	}
	b.Run("contains", benchContains)
}

// benchArrival measures an arrival that answers one of n readers, until that one has its bytes.
// The others wait for bytes far away.
func benchArrival(n int) func(*testing.B) {
	return func(b *testing.B) {
		origin := newScriptedOrigin(ranged(1 << 60))
		s := newTempFileStore(origin, origin.obj, testConfig(b.TempDir()))
		b.Cleanup(func() { s.Close() })
		answers := make(chan error, n)
		off := int64(0)
		read := func() {
			off += 1 << 30
			go func(at int64) {
				p := make([]byte, benchChunk)
				_, err := s.ReadAt(context.Background(), p, at)
				answers <- errors.Join(err, checkContent(p, testSeed, at))
			}(off)
		}
		for range n - 1 {
			read()
		}
		for i := 1; b.Loop(); i++ {
			b.StopTimer()
			read()
			for waiterCount(s) < n || len(origin.all()) < i {
				runtime.Gosched()
			}
			req := origin.all()[i-1]
			b.StartTimer()
			select {
			case req.grant <- req.asked.len():
			case <-req.ctx.Done():
				b.Fatal(context.Cause(req.ctx))
			}
			if err := <-answers; err != nil {
				b.Fatal(err)
			}
		}
	}
}

// benchWaiting measures the store's part of a read that waits beside n others, until it is given up.
func benchWaiting(n int) func(*testing.B) {
	return func(b *testing.B) {
		origin := newScriptedOrigin(ranged(1 << 60))
		s := newTempFileStore(origin, origin.obj, testConfig(b.TempDir()))
		b.Cleanup(func() { s.Close() })
		s.hold() // as reads do
		defer s.unhold()
		for i := range n {
			s.await(newWaiter(byteRange{int64(i) << 30, int64(i)<<30 + benchChunk}))
		}
		for b.Loop() {
			w := newWaiter(byteRange{rand.Int64N(1 << 50), 1<<50 + benchChunk})
			s.await(w)
			s.unpin(w)
		}
	}
}

// benchContains measures a look into a set of 100,000 ranges.
func benchContains(b *testing.B) {
	const n = 100_000
	var set rangeSet
	for i := range int64(n) {
		set.add(byteRange{2 * i, 2*i + 1})
	}
	for b.Loop() {
		off := rand.Int64N(2 * n)
		if set.contains(byteRange{off, off + 1}) != (off%2 == 0) {
			b.Fatalf("byte %d is in the set, or not", off)
		}
	}
}

func benchWakeStore(b *testing.B) {
	origin := newScriptedOrigin(Object{Size: 1 << 40})
	s := newTempFileStore(origin, origin.obj, testConfig(b.TempDir()))
	b.Cleanup(func() { s.Close() })
	benchWake(b, benchSleepers{
		read: func(p []byte, off int64) (int, error) { return s.ReadAt(context.Background(), p, off) },
		release: func() {
			for len(origin.all()) == 0 {
				runtime.Gosched()
			}
			origin.all()[0].grant <- benchChunk
		},
		step: benchChunk,
		asleep: func() int {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.waiters.len()
		},
	})
}

func benchWakeChannel(b *testing.B) {
	f := benchReadyStore(b, new(tracer)).file.Load()
	var asleep atomic.Int64
	arrival := make(chan struct{})
	benchWake(b, benchSleepers{
		read: func(p []byte, off int64) (int, error) {
			arrived := arrival
			asleep.Add(1)
			<-arrived
			return f.ReadAt(p, off)
		},
		release: func() {
			arrived := arrival
			arrival = make(chan struct{})
			asleep.Store(0)
			close(arrived)
		},
		asleep: func() int { return int(asleep.Load()) },
	})
}

// benchSleepers is a source of bytes that readers can wait for.
type benchSleepers struct {
	read    func(p []byte, off int64) (int, error) // waits until the next release
	asleep  func() int                             // the number of readers that wait
	release func()
	step    int64 // from the offset of one release to that of the next
}

// benchWake measures from a release until each of benchWaiters has read. A read that
// fails leaves its piece wrong, which the check finds.
func benchWake(b *testing.B, s benchSleepers) {
	pieces := make([][]byte, benchWaiters)
	for i := range pieces {
		pieces[i] = make([]byte, benchChunk)
	}
	for off := int64(0); b.Loop(); off += s.step {
		b.StopTimer()
		var readers sync.WaitGroup
		for _, p := range pieces {
			readers.Go(func() { _, _ = s.read(p, off) })
		}
		for s.asleep() < benchWaiters {
			runtime.Gosched()
		}
		b.StartTimer()
		s.release()
		readers.Wait()
		b.StopTimer()
		for _, p := range pieces {
			if err := checkContent(p, testSeed, off); err != nil {
				b.Fatal(err)
			}
			clear(p)
		}
		b.StartTimer()
	}
}
