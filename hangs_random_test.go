// Tests of "fsmount hangs" on logs of random operations, with and without missing
// lines, and of the memory that it uses.

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

// scriptedLog writes a log of operations that overlap at random, and knows
// which of them have no EXIT.
type scriptedLog struct {
	rng   *rand.Rand
	text  strings.Builder
	lines int
	ops   []*scriptedOp // of the run so far
	want  []string      // the unfinished ones of all runs, as the report names them
	loses float64       // the probability that a line is lost
	lost  int           // lines
}

type scriptedOp struct {
	opKey
	line          int
	before, after int // how many operations it overlaps, by when they began
	open          bool
}

func (l *scriptedLog) write(line string) {
	switch l.rng.IntN(4) {
	case 0:
		l.text.WriteString("2026/11/23 13:00:00 ")
	case 1:
		l.text.WriteString("2026/11/23 13:00:00.123456 ")
	case 2:
		l.text.WriteString("2026/11/23 13:00:00.000001 a line of another kind, goid=1\n")
		l.lines++
	}
	l.text.WriteString(line + "\n")
	l.lines++
}

// event writes line, or loses it.
func (l *scriptedLog) event(line string) (written bool) {
	if l.rng.Float64() < l.loses {
		l.lost++
		return false
	}
	l.write(line)
	return true
}

func (l *scriptedLog) enter(goid int64) *scriptedOp {
	op := &scriptedOp{open: true}
	op.store, op.goid, op.name = l.rng.Int64N(3)+1, goid, opReadAt
	op.off, op.len = l.rng.Int64N(4)*4096, 4096
	if l.rng.IntN(5) == 0 {
		op.name = opDownload
	}
	if !l.event(fmt.Sprintf("[TempFileStore #%d] %s", op.store, strings.Replace(op.String(), " ", " ENTER ", 1))) {
		return op
	}
	op.line = l.lines
	for _, other := range l.ops {
		if other.store == op.store {
			other.after++
			if other.open {
				op.before++
			}
		}
	}
	l.ops = append(l.ops, op)
	return op
}

func (l *scriptedLog) exit(op *scriptedOp) {
	op.open = false
	outcome := ""
	if l.rng.IntN(2) == 0 {
		outcome = fmt.Sprintf(" n=%d err=%v waited=%dms", l.rng.IntN(5000), errShortBody, l.rng.IntN(5000))
	}
	l.event(fmt.Sprintf("[TempFileStore #%d] %s", op.store, strings.Replace(op.String(), " ", " EXIT ", 1)) + outcome)
}

// run writes a run of n events of some goroutines. One in ten of them hangs during
// the run; at its end each of the others hangs or not, by chance.
func (l *scriptedLog) run(n int) {
	l.ops = nil
	l.write(startLine("v1", l.rng.IntN(1000)))
	const goroutines = 12
	doing := make([]*scriptedOp, goroutines)
	hangs := make([]bool, goroutines)
	for range n {
		g := l.rng.IntN(goroutines)
		switch {
		case hangs[g]:
		case doing[g] == nil:
			doing[g] = l.enter(int64(g + 1))
			hangs[g] = l.rng.IntN(10*n/goroutines) == 0
		default:
			l.exit(doing[g])
			doing[g] = nil
		}
	}
	for g, op := range doing {
		if op != nil && !hangs[g] && l.rng.IntN(2) == 0 {
			l.exit(op)
		}
	}
	for _, op := range l.ops {
		if op.open {
			l.want = append(l.want, l.named(op))
		}
	}
}

// named returns how the report must name op. If lines are lost, it cannot tell
// what op overlapped.
func (l *scriptedLog) named(op *scriptedOp) string {
	name := fmt.Sprintf("store %d: %v line %d", op.store, op.opKey, op.line)
	if l.loses > 0 {
		return name
	}
	return fmt.Sprintf("%s, overlaps %d and %d", name, op.before, op.after)
}

var unfinishedLine = regexp.MustCompile(`(?m)^  (store \d+: .*) since .* \(line (\d+)\).*\n` +
	`    on store \d+ it overlapped (\d+) that began before it and (\d+) that began after it`)

// TestHangsFindsExactlyTheUnfinished compares the report of a random log with the
// operations that the log was written from.
func TestHangsFindsExactlyTheUnfinished(t *testing.T) {
	for seed := range uint64(300) {
		l := &scriptedLog{rng: rand.New(rand.NewPCG(seed, 0))}
		for range l.rng.IntN(3) + 1 {
			l.run(20 + l.rng.IntN(200))
		}
		text, _ := analysed(t, l.text.String())
		var got []string
		for _, m := range unfinishedLine.FindAllStringSubmatch(text, -1) {
			before, _ := strconv.Atoi(m[3])
			after, _ := strconv.Atoi(m[4])
			got = append(got, fmt.Sprintf("%s line %s, overlaps %d and %d", m[1], m[2], before, after))
		}
		if !slices.Equal(got, l.want) {
			t.Fatalf("seed %d: found\n%s\nwant\n%s\nin\n%s\nof\n%s", seed,
				strings.Join(got, "\n"), strings.Join(l.want, "\n"), text, l.text.String())
		}
	}
}

// TestHangsWithLostLinesMissesNothing loses lines, also EXITs of operations that
// ended. The report must still name every operation that hangs, and must say of
// every other one it names that it may have ended.
func TestHangsWithLostLinesMissesNothing(t *testing.T) {
	doubted, named := 0, 0
	for seed := range uint64(300) {
		l := &scriptedLog{rng: rand.New(rand.NewPCG(seed, 1)), loses: 0.1}
		l.run(200)
		l.loses = 0
		if l.lost > 0 {
			l.write(fmt.Sprintf("%d log lines lost: they came faster than they could be written", l.lost))
		}
		l.loses = 0.1
		text, _ := analysed(t, l.text.String())
		found := make(map[string]bool)
		for block := range strings.SplitSeq(text, "\n  store ") {
			m := unfinishedLine.FindStringSubmatch("  store " + block)
			if m == nil {
				continue
			}
			name := fmt.Sprintf("%s line %s", m[1], m[2])
			found[name] = true
			named++
			if slices.Contains(l.want, name) {
				continue
			}
			doubted++
			if !strings.Contains(block, "it may have ended") {
				t.Fatalf("seed %d: %s ended, and is reported without a doubt in\n%s", seed, name, text)
			}
		}
		for _, name := range l.want {
			if !found[name] {
				t.Fatalf("seed %d: %s is missing in\n%s", seed, name, text)
			}
		}
	}
	if doubted == 0 || doubted == named {
		t.Fatalf("%d of %d operations are in doubt: the test shows nothing", doubted, named)
	}
}

func FuzzHangs(f *testing.F) {
	f.Add([]byte(seedLog))
	f.Add([]byte(startLine("v1", 7) + "\n" + seedLog + "3 log lines lost: x\n" + seedLog + startLine("v1", 7)))
	f.Add([]byte("2026/11/23 13:00:00.123456 [TempFileStore #1] ReadAt EXIT off=0 len=1 goid=8 n=1 err=<nil> waited=3ms\r\n"))
	f.Add([]byte("[TempFileStore #1] Read ENTER goid=1\n[TempFileStore #1] Read ENTER goid=1\n[TempFileStore #1] Read EXIT goid=1 n=[TempFileStore #1] Read EXIT goid=1"))
	f.Fuzz(func(t *testing.T, log []byte) {
		var out bytes.Buffer
		a := newHangAnalysis(bytes.NewReader(log), &out)
		if err := a.read(); err != nil {
			t.Fatal(err)
		}
		enters := int64(bytes.Count(log, []byte(" ENTER ")))
		if a.run.operations > enters {
			t.Fatalf("%d operations of %d ENTER", a.run.operations, enters)
		}
		checkTracedRun(t, a.run)

		var whole, bytewise bytes.Buffer
		status, err := (&hangsCommand{}).run(bytes.NewReader(log), &whole)
		status2, err2 := (&hangsCommand{}).run(iotest.OneByteReader(bytes.NewReader(log)), &bytewise)
		if (err != nil) != (status == exitUsage) || status != status2 || (err2 != nil) != (err != nil) || !bytes.Equal(whole.Bytes(), bytewise.Bytes()) {
			t.Fatalf("read at once: status %d, %v\n%s\nbyte by byte: status %d, %v\n%s",
				status, err, whole.Bytes(), status2, err2, bytewise.Bytes())
		}
	})
}

// checkTracedRun checks that r keeps only stores, open operations, and the
// operations that overlapped those.
func checkTracedRun(t *testing.T, r *tracedRun) {
	t.Helper()
	if !slices.IsSortedFunc(r.open, func(a, b *tracedOp) int { return cmp.Compare(a.entered.line, b.entered.line) }) {
		t.Fatal("the open operations are out of order")
	}
	for _, op := range r.open {
		if op.exited != 0 || r.stores[op.store] != op.owner {
			t.Fatalf("%+v is not open, or of another store", op)
		}
		if len(op.overlaps) > 2*overlapsShown {
			t.Fatalf("%v keeps %d overlaps", op.opKey, len(op.overlaps))
		}
		for _, other := range op.overlaps {
			if other.exited != 0 && other.overlaps != nil {
				t.Fatalf("%v ended and keeps its overlaps", other.opKey)
			}
		}
	}
	if int64(len(r.open)) > r.operations {
		t.Fatalf("%d operations are open, of %d", len(r.open), r.operations)
	}
	if len(r.waits) > waitsShown {
		t.Fatalf("%d waits are kept", len(r.waits))
	}
	for _, op := range r.waits {
		if op.exited == 0 || op.overlaps != nil {
			t.Fatalf("%v did not end, or keeps its overlaps", op.opKey)
		}
	}
}

// finishedOps is a log of size bytes in which every operation ends but the last
// five, and five are open at a time.
type finishedOps struct {
	size  int64
	buf   []byte
	began int64
	then  func() // called about once every 10 MB
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
	g.appendLine(g.began, "ENTER", "\n")
	if ended := g.began - openAtOnce; ended >= 0 {
		g.appendLine(ended, "EXIT", " n=131072 err=<nil> waited=12.3ms\n")
	}
	g.began++
}

func (g *finishedOps) appendLine(i int64, verb, end string) {
	sp := traceSpan{store: uint64(i%7 + 1), name: "ReadAt", r: byteRange{i * 131072, (i + 1) * 131072}, goid: uint64(i + 1)}
	g.buf = append(g.buf, "2026/11/23 13:00:00.123456 "...)
	g.buf = append(append(g.buf, sp.text(verb)...), end...)
}

// heapInUse returns how many bytes are reachable.
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
	if _, err := (&hangsCommand{}).run(log, &out); err != nil {
		t.Fatal(err)
	}
	t.Logf("at most %d KiB more", most>>10)
	if looked == 0 || most > bound {
		t.Errorf("after %d MB of finished operations the heap has %d bytes more", size/1e6, most)
	}
	if !strings.Contains(out.String(), "HANGING: 5 operations") {
		t.Errorf("the last five operations have no EXIT, but the report is\n%s", out.String())
	}
}

// TestHangsMemoryIsBounded reads logs that somebody wrote to make the program large.
func TestHangsMemoryIsBounded(t *testing.T) {
	const lines = 16_000
	const bound = 20 << 20
	text := strings.Repeat("\x01", 700)
	for _, test := range []struct {
		about string
		line  func(i int) string
		says  string
	}{
		{"operations that never end", func(i int) string {
			return fmt.Sprintf("[TempFileStore #%d] ReadAt ENTER off=%d len=1 goid=%d\n", i, i, i)
		}, fmt.Sprintf("%d hanging, of %d operations", lines, lines)},
		{"operations of which all end", func(i int) string {
			verb := []string{"ENTER", "EXIT"}[i/(lines/2)]
			return fmt.Sprintf("[TempFileStore #1] ReadAt %s off=%d len=1 goid=%d\n", verb, i%(lines/2), i%(lines/2))
		}, fmt.Sprintf("Nothing hangs in %d operations", lines/2)},
		{"stores", func(i int) string {
			return fmt.Sprintf("[TempFileStore #%d] ReadAt EXIT off=%d len=1 goid=%d\n", i, i, i)
		}, "stores left out"},
		{"notes", func(i int) string { return fmt.Sprintf("[TempFileStore #%d] %s\n", i, text) }, "no trace lines found"},
		{"names", func(i int) string { return fmt.Sprintf("[TempFileStore #%d] serves %q\n", i, text) }, "no trace lines found"},
		{"runs", func(i int) string {
			return fmt.Sprintf("fsmount v1 started, pid %d\n[TempFileStore #1] ReadAt ENTER off=%d len=1 goid=1\n", i, i)
		}, fmt.Sprintf("%d hanging, of %d operations of %d runs", lines, lines, lines)},
	} {
		i, most, start := 0, int64(0), heapInUse()
		var rest []byte
		in := readerFunc(func(p []byte) (int, error) {
			if len(rest) == 0 {
				if i == lines {
					return 0, io.EOF
				}
				if i++; i%(lines/10) == 0 {
					most = max(most, heapInUse()-start)
				}
				rest = []byte(test.line(i - 1))
			}
			n := copy(p, rest)
			rest = rest[n:]
			return n, nil
		})
		var out tailBuffer
		_, err := (&hangsCommand{}).run(in, &out)
		if report := fmt.Sprint(string(out.tail), err); !strings.Contains(report, test.says) {
			t.Errorf("%s: no %q in the end of the report\n%s", test.about, test.says, report)
		}
		if most > bound {
			t.Errorf("%s: the heap has %d bytes more", test.about, most)
		}
	}
}

// tailBuffer keeps the last of what is written to it.
type tailBuffer struct{ tail []byte }

func (b *tailBuffer) Write(p []byte) (int, error) {
	if len(b.tail) > 4<<20 {
		b.tail = append(b.tail[:0], b.tail[len(b.tail)-(1<<20):]...)
	}
	b.tail = append(b.tail, p...)
	return len(p), nil
}

func TestHangsForgetsStores(t *testing.T) {
	var log strings.Builder
	for id := range 3 * storesKept {
		fmt.Fprintf(&log, "[TempFileStore #%d] Close ENTER off=0 len=1 goid=4\n", id)
		fmt.Fprintf(&log, "[TempFileStore #%d] Close EXIT off=0 len=1 goid=4\n", id)
	}
	a := newHangAnalysis(strings.NewReader(log.String()), io.Discard)
	if err := a.read(); err != nil {
		t.Fatal(err)
	}
	if n := len(a.run.stores); n > storesKept {
		t.Errorf("%d stores are kept", n)
	}
}

// repeated is a reader of n bytes that are all the same.
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
	if _, err := (&hangsCommand{}).run(in, &out); err != nil {
		t.Fatal(err)
	}
	if after > 2<<20 {
		t.Errorf("two lines of 50 MB take %d bytes", after)
	}
	for _, want := range []string{"lines 1 to 6\n", "HANGING: 1 operation with", "goid=9 since an unknown time (line 6)", "Only the first 256 KiB of 2 lines"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "broken off") {
		t.Errorf("the report calls a long line a broken one:\n%s", out.String())
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
		if _, err := (&hangsCommand{}).run(bytes.NewReader(log), io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
