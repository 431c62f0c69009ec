package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
)

// finishedOps is a log of size bytes in which every operation ends, a few of
// them open at a time.
type finishedOps struct {
	size  int64
	buf   []byte
	began int64
	then  func() // called about once for each 10 MB
	next  int64
}

func (g *finishedOps) Read(p []byte) (int, error) {
	for len(g.buf) < len(p) && g.size > 0 {
		before := len(g.buf)
		g.append()
		g.size -= int64(len(g.buf) - before)
	}
	if g.size < g.next {
		g.next = g.size - 10e6
		g.then()
	}
	n := copy(p, g.buf)
	g.buf = g.buf[:copy(g.buf, g.buf[n:])]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// append writes an ENTER, and the EXIT of the operation five before it.
func (g *finishedOps) append() {
	const openAtOnce = 5
	g.appendLine(g.began, " ENTER")
	if ended := g.began - openAtOnce; ended >= 0 {
		g.buf = append(g.appendLine(ended, " EXIT"), " n=131072 err=<nil> waited=12.3ms"...)
		g.buf = append(g.buf, '\n')
	} else {
		g.buf = append(g.buf, '\n')
	}
	g.began++
}

func (g *finishedOps) appendLine(i int64, verb string) []byte {
	if verb == " EXIT" {
		g.buf = append(g.buf, '\n')
	}
	g.buf = append(g.buf, "2026/11/23 13:00:00.123456 "...)
	sp := span{store: uint64(i%7 + 1), name: "ReadAt", r: byteRange{i * 131072, (i + 1) * 131072}, goid: uint64(i + 1)}
	g.buf = sp.append(g.buf, verb)
	return g.buf
}

// heapInUse is what is reachable, in bytes.
func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestHangsKeepsNothingOfWhatEnded(t *testing.T) {
	size := int64(100e6)
	if testing.Short() {
		size = 20e6
	}
	const bound = 2 << 20
	start, looked, most := heapInUse(), 0, int64(math.MinInt64)
	log := &finishedOps{size: size, next: size, then: func() {
		looked++
		most = max(most, heapInUse()-start)
	}}
	var out strings.Builder
	if _, err := analyseHangs(log, &out); err != nil {
		t.Fatal(err)
	}
	t.Logf("at most %d KiB more", most>>10)
	if looked == 0 || most > bound {
		t.Errorf("%d MB of finished operations grew the heap by %d bytes", size/1e6, most)
	}
	if !strings.Contains(out.String(), "HANGING: 5 operations") {
		t.Errorf("the last five have no EXIT:\n%s", out.String())
	}
}

func TestHangsForgetsClosedStores(t *testing.T) {
	var log strings.Builder
	for id := range 3 * closedStoresKept {
		fmt.Fprintf(&log, "[TempFileStore #%d] Close ENTER off=0 len=1 goid=4\n", id)
		fmt.Fprintf(&log, "[TempFileStore #%d] Close EXIT off=0 len=1 goid=4\n", id)
	}
	a := newHangAnalysis(strings.NewReader(log.String()), io.Discard)
	if err := a.read(); err != nil {
		t.Fatal(err)
	}
	if n := len(a.run.stores); n > closedStoresKept {
		t.Errorf("%d stores are kept", n)
	}
}

// repeated is a reader of n times one byte.
type repeated struct {
	c byte
	n int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := min(len(p), r.n)
	for i := range n {
		p[i] = r.c
	}
	r.n -= n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func TestHangsLongLineIsSkipped(t *testing.T) {
	var after int64
	start := heapInUse()
	exit := "[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42 n=0 err="
	in := io.MultiReader(
		strings.NewReader(seedLog+exit), &repeated{'x', 50e6}, strings.NewReader("\n"),
		&repeated{'y', 50e6}, strings.NewReader("\n[TempFileStore #6] ReadAt ENTER off=0 len=9 goid=9"),
		readerFunc(func([]byte) (int, error) { after = heapInUse() - start; return 0, io.EOF }))
	var out strings.Builder
	if _, err := analyseHangs(in, &out); err != nil {
		t.Fatal(err)
	}
	if after > 2<<20 {
		t.Errorf("two lines of 50 MB take %d bytes", after)
	}
	for _, want := range []string{"lines 1 to 6;", "HANGING: 1 operation with", "goid=9 since an unknown time (line 6)", "Of 2 lines only the first 256 KiB"} {
		if want = strings.Replace(want, ";", "\n", 1); !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "broken off") {
		t.Errorf("a long line is not a broken one:\n%s", out.String())
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func BenchmarkHangs(b *testing.B) {
	const size = 16e6
	b.SetBytes(size)
	b.ReportAllocs()
	log, err := io.ReadAll(&finishedOps{size: size, then: func() {}})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := analyseHangs(bytes.NewReader(log), io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
