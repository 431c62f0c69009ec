// Benchmarks of the store alone, with no FUSE above it and no network below:
// what a ready read costs, with and without a trace, and what it costs to wake
// many readers. The bytes they read are checked, outside of the time they take.

package main

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jacobsa/fuse/fuseops"
)

const (
	benchSeed    = 3
	benchChunk   = 4096 // bytes of a small read, and of one arrival
	benchWaiters = 1000
)

// benchOrigin is an origin whose bytes arrive by one chunk for each call of
// release, at most size of them.
type benchOrigin struct {
	size     int64
	releases chan struct{}
}

func newBenchOrigin(size int64) *benchOrigin {
	return &benchOrigin{size: size, releases: make(chan struct{})}
}

func (o *benchOrigin) Stat(context.Context) (Object, error) { return Object{Size: o.size}, nil }

func (o *benchOrigin) String() string { return "a benchmark" }

func (o *benchOrigin) Open(ctx context.Context, _ Object, r byteRange) (io.ReadCloser, error) {
	return &benchBody{ctx: ctx, origin: o, off: r.off}, nil
}

// release lets the next chunk arrive.
func (o *benchOrigin) release() { o.releases <- struct{}{} }

type benchBody struct {
	ctx    context.Context
	origin *benchOrigin
	off    int64
}

// Read implements io.Reader.
//
// BLOCKS until a release; wakes on the end of the context.
func (b *benchBody) Read(p []byte) (int, error) {
	select {
	case <-b.origin.releases:
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
	p = p[:min(len(p), benchChunk)]
	fillContent(p, benchSeed, b.off)
	b.off += int64(len(p))
	return len(p), nil
}

func (b *benchBody) Close() error { return nil }

// benchReadyBytes is the size of a ready store: small enough to stay in a
// processor's cache, so that what is seen is the store.
const benchReadyBytes = 1 << 20

// benchReadyStore returns a complete store, which the end of the benchmark
// closes.
func benchReadyStore(b *testing.B, trace *tracer) *TempFileStore {
	b.Helper()
	origin := newBenchOrigin(benchReadyBytes)
	s := newTempFileStore(origin, Object{Size: origin.size}, tracedConfig(b.TempDir(), trace))
	b.Cleanup(func() { s.Close() })
	go func() {
		for range origin.size / benchChunk {
			origin.release()
		}
	}()
	if _, err := s.ReadAt(context.Background(), make([]byte, origin.size), 0); err != nil {
		b.Fatal(err)
	}
	return s
}

// BenchmarkReady is a read of bytes that are there, beside a bare read of the
// temporary file: by ReadAt, and by what answers a read of the kernel.
func BenchmarkReady(b *testing.B) {
	b.Run("pread", benchPread)
	b.Run("ReadAt", benchReadAt)
	b.Run("ViewReady", benchTraceNone)
}

func benchPread(b *testing.B) {
	f := benchReadyStore(b, nil).file.Load()
	benchReads(b, f.ReadAt)
}

func benchReadAt(b *testing.B) {
	s, ctx := benchReadyStore(b, nil), context.Background()
	benchReads(b, func(p []byte, off int64) (int, error) { return s.ReadAt(ctx, p, off) })
}

// BenchmarkTrace is a ready read by a store without a trace, with one that is
// off, as it is without --trace, and with one that is on.
func BenchmarkTrace(b *testing.B) {
	b.Run("none", benchTraceNone)
	b.Run("off", benchTraceOff)
	b.Run("on", benchTraceOn)
}

func benchTraceNone(b *testing.B) { benchViewReady(b, nil) }

func benchTraceOff(b *testing.B) { benchViewReady(b, &tracer{log: benchLog(b)}) }

func benchTraceOn(b *testing.B) { benchViewReady(b, &tracer{log: benchLog(b), on: true}) }

func benchLog(b *testing.B) *eventLog {
	log := newEventLog(io.Discard)
	b.Cleanup(func() { log.Close(logPatience) })
	return log
}

// errBenchNotReady ends a benchmark on a system that cannot tell whether a read
// has to wait for the disk.
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

// BenchmarkOps is what the table of operations in flight adds to a ready read.
func BenchmarkOps(b *testing.B) {
	ops, op := newOpTable(), &fuseops.ReadFileOp{}
	b.ReportAllocs()
	for b.Loop() {
		ops.end(ops.begin(op, 1))
	}
}

// benchChecked is the offset of the chunk whose bytes are checked.
const benchChecked = benchChunk

// benchReads reads chunk after chunk of a ready store into p, or at least the
// one that is checked.
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
	if err := checkContent(p, benchSeed, benchChecked); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWake is one arrival that a thousand readers sleep for, until each of
// them has its bytes; beside it what that takes with a channel and a file only.
func BenchmarkWake(b *testing.B) {
	b.Run("channel", benchWakeChannel)
	b.Run("store", benchWakeStore)
}

func benchWakeStore(b *testing.B) {
	origin := newBenchOrigin(1 << 40)
	s := newTempFileStore(origin, Object{Size: origin.size}, testConfig(b.TempDir()))
	b.Cleanup(func() { s.Close() })
	benchWake(b, benchSleepers{
		read:    func(p []byte, off int64) (int, error) { return s.ReadAt(context.Background(), p, off) },
		release: origin.release,
		step:    benchChunk,
		asleep: func() int {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.waiters)
		},
	})
}

func benchWakeChannel(b *testing.B) {
	f := benchReadyStore(b, nil).file.Load()
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

// benchSleepers is something that readers can sleep for.
type benchSleepers struct {
	read    func(p []byte, off int64) (int, error) // sleeps until the next release
	asleep  func() int                             // how many do
	release func()
	step    int64 // by which the offset of each release is beyond the last
}

// benchWake measures from a release until each of benchWaiters has read.
func benchWake(b *testing.B, s benchSleepers) {
	pieces := make([][]byte, benchWaiters)
	for i := range pieces {
		pieces[i] = make([]byte, benchChunk)
	}
	for off := int64(0); b.Loop(); off += s.step {
		b.StopTimer()
		readers := s.start(pieces, off)
		for s.asleep() < benchWaiters {
			runtime.Gosched()
		}
		b.StartTimer()
		s.release()
		readers.Wait()
		b.StopTimer()
		for _, p := range pieces {
			if err := checkContent(p, benchSeed, off); err != nil {
				b.Fatal(err)
			}
			clear(p)
		}
		b.StartTimer()
	}
}

// start has each piece read by a goroutine of its own. One that fails leaves
// its piece as it was.
func (s *benchSleepers) start(pieces [][]byte, off int64) *sync.WaitGroup {
	readers := &sync.WaitGroup{}
	for _, p := range pieces {
		readers.Go(func() { _, _ = s.read(p, off) })
	}
	return readers
}
