//go:build bench

// bench_test.go holds what "make bench" runs, in order, and the table that it prints.
// The runs of a figure alternate with the runs of its floor. A missed target is only a
// figure; a wrong byte is a failure. The work of child processes is here too.

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jacobsa/fuse"
	"github.com/jacobsa/fuse/fuseops"
	"golang.org/x/sys/unix"
)

// Each figure is the median of benchRuns runs: two disturbed runs of five do not move
// it. A run of less than a second is disturbed more easily, so it is repeated
// benchShortRuns times.
const (
	benchRuns      = 5
	benchShortRuns = 11
)

// benchCurve has the numbers of waiters beside which the cost of one is shown.
var benchCurve = []int{1, 100, 10_000}

// TestBench measures and prints one Markdown table. `-run TestBench/kernel/cold`
// measures one part of it. FSMOUNT_BENCH_MIB=64 in the environment makes the large
// file 64 MiB: quick, but such figures mean little.
func TestBench(t *testing.T) {
	table := &benchTable{}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		table.note("load average before the first run: %.4s", load)
	}
	defer func() { fmt.Print(table.markdown()) }()
	t.Run("kernel", func(t *testing.T) {
		rig := newBenchRig(t, table)
		for _, part := range []struct {
			name    string
			measure func(*testing.T)
		}{
			{"cold", rig.cold},
			{"complete", rig.complete},
			{"first", rig.first},
			{"limited", rig.limited},
			{"many", rig.many},
			{"kept", rig.kept},
			{"added", rig.added},
			{"streamed", rig.streamed},
			{"tail", rig.tail},
			{"shares", rig.shares},
			{"seekers", rig.seekers},
			{"connections", rig.connections},
			{"distant", rig.distant},
			{"peers", rig.peers},
		} {
			if !t.Run(part.name, part.measure) {
				table.note("FAILED: %s: see the output above", part.name)
			}
		}
	})
	t.Run("store", func(t *testing.T) { benchStore(t, table) })
}

// benchStore makes rows of the benchmarks of bench_store_test.go, each run in turn
// with its floor.
func benchStore(t *testing.T, table *benchTable) {
	benchOK(t, flag.Set("test.benchtime", "300ms"))
	benchmarks := map[string]func(*testing.B){
		"pread": benchPread, "ReadAt": benchReadAt, "none": benchTraceNone, "off": benchTraceOff, "on": benchTraceOn,
		"ops": BenchmarkOps, "channel": benchWakeChannel, "wake": benchWakeStore,
	}
	order := []string{"pread", "ReadAt", "none", "off", "on", "ops", "channel", "wake"}
	const at, ready, noAllocation = "store: ready ReadAt of 4 KiB", "store: ready read for the kernel, 4 KiB", 1
	type row struct {
		ours, floor string // names of benchmarks
		row         *benchRow
	}
	rows := []row{
		{"ReadAt", "pread", table.row(at, "ns", "pread", benchTarget{})},
		{"ReadAt", "", table.row(at, "allocations", "", benchTarget{below: noAllocation})},
		{"none", "pread", table.row(ready, "ns", "pread", benchTarget{})},
		{"none", "", table.row(ready, "allocations", "", benchTarget{below: noAllocation})},
		{"off", "none", table.row("store: the same, trace off", "ns", "no trace", benchTarget{most: 1.05})},
		{"on", "none", table.row("store: the same, trace on", "ns", "no trace", benchTarget{})},
		{"ops", "none", table.row("ops table: begin and end of an operation", "ns",
			"ready read for the kernel, 4 KiB", benchTarget{})},
		{"wake", "channel", table.row("store: an arrival wakes 1,000 readers of 4 KiB", "us",
			"close(chan), 1,000 preads", benchTarget{})},
	}
	for _, curve := range []struct {
		name, what string
		bench      func(n int) func(*testing.B)
	}{
		{"arrival", "store: an arrival for one of %s readers", benchArrival},
		{"waiting", "store: a read joins %s that wait, and leaves", benchWaiting},
	} {
		for i, n := range benchCurve {
			name := fmt.Sprint(curve.name, n)
			benchmarks[name] = curve.bench(n)
			order = append(order, name)
			what := fmt.Sprintf(curve.what, humanize.Comma(int64(n)))
			if i == 0 {
				rows = append(rows, row{name, "", table.row(what, "ns", "", benchTarget{})})
			} else {
				rows = append(rows, row{name, curve.name + "1", table.row(what, "ns", "1", benchTarget{most: 3})})
			}
		}
	}
	benchmarks["contains"] = benchContains
	order = append(order, "contains")
	rows = append(rows, row{"contains", "", table.row("ranges: a look into 100,000", "ns", "", benchTarget{below: 1000})})
	for range benchRuns {
		results := make(map[string]testing.BenchmarkResult)
		for _, name := range order {
			results[name] = testing.Benchmark(benchmarks[name])
			if results[name].N == 0 {
				t.Fatal("a benchmark of the store failed: run go test -tags bench -run - -bench .")
			}
		}
		for _, r := range rows {
			r.row.ours.add(r.row.figure(results[r.ours]))
			if r.floor != "" {
				r.row.floor.add(r.row.figure(results[r.floor]))
			}
		}
	}
}

// figure returns the figure of res in the row's unit.
func (r *benchRow) figure(res testing.BenchmarkResult) float64 {
	switch r.unit {
	case "allocations":
		return float64(res.AllocsPerOp())
	case "us":
		return float64(res.NsPerOp()) / 1e3
	}
	return float64(res.NsPerOp())
}

// benchBigBytes returns the size of the large file.
func benchBigBytes(t *testing.T) int64 {
	t.Helper()
	mib := os.Getenv("FSMOUNT_BENCH_MIB")
	if mib == "" {
		return 1 << 30
	}
	n, err := strconv.ParseInt(mib, 10, 32)
	if err != nil || n < 1 {
		t.Fatalf("FSMOUNT_BENCH_MIB=%q: not a number of MiB", mib)
	}
	return n << 20
}

// benchSide is one side of a comparison: the floor, or fsmount.
type benchSide struct {
	what    string // the command, or ""
	samples []float64
	cpu     []float64 // user+sys of the process, in seconds a run, where a row shows it
}

func (s *benchSide) add(value float64) { s.samples = append(s.samples, value) }

// addCPU adds the figure of a run and the CPU time that the run took.
func (s *benchSide) addCPU(value, seconds float64) {
	s.add(value)
	s.cpu = append(s.cpu, seconds)
}

// addTimed adds the figure that use returns, and the CPU time that the process of m
// takes meanwhile. It returns that time in seconds.
func (s *benchSide) addTimed(m *benchMount, use func() float64) (seconds float64) {
	before := m.cpu()
	figure := use()
	seconds = (m.cpu() - before).Seconds()
	s.addCPU(figure, seconds)
	return seconds
}

// benchTarget bounds the figure of a row; a field of zero bounds nothing.
type benchTarget struct {
	least float64 // for ours/floor
	most  float64 // for ours/floor
	below float64 // for ours, in the row's unit
}

func (g benchTarget) String() string {
	switch {
	case g.least > 0:
		return fmt.Sprintf(">= %.2f", g.least)
	case g.most > 0:
		return fmt.Sprintf("<= %.2f", g.most)
	case g.below > 0:
		return "< " + benchNumber(g.below)
	}
	return "-"
}

// benchRow is a line of the table.
type benchRow struct {
	what        string
	unit        string
	floor, ours benchSide
	target      benchTarget
	peak        []float64 // VmHWM of the mount's process, in MiB, where a row shows it
}

// addOurs is ours.addTimed, and adds the peak memory of the process of m too.
func (r *benchRow) addOurs(m *benchMount, use func() float64) (seconds float64) {
	seconds = r.ours.addTimed(m, use)
	r.peak = append(r.peak, m.peak())
	return seconds
}

// ratio returns the median of ours divided by that of the floor, 0 without a floor.
func (r *benchRow) ratio() float64 {
	floor := benchMedian(r.floor.samples)
	if floor == 0 {
		return 0
	}
	return benchMedian(r.ours.samples) / floor
}

// verdict tells whether the ratio, rounded as the table shows it, meets the target.
func (r *benchRow) verdict() string {
	ratio, _ := strconv.ParseFloat(fmt.Sprintf("%.2f", r.ratio()), 64)
	met := false
	switch g := r.target; {
	case g.least > 0:
		met = ratio >= g.least
	case g.most > 0:
		met = ratio <= g.most
	case g.below > 0:
		met = benchMedian(r.ours.samples) < g.below
	default:
		return "-"
	}
	if met {
		return "met"
	}
	return "not met"
}

// benchTable is the table, with notes on the rows that it lacks.
type benchTable struct {
	rows  []*benchRow
	notes []string
}

// row adds a row to the table. The table shows it once it has a figure.
func (b *benchTable) row(what, unit, floor string, target benchTarget) *benchRow {
	r := &benchRow{what: what, unit: unit, floor: benchSide{what: floor}, target: target}
	b.rows = append(b.rows, r)
	return r
}

func (b *benchTable) note(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
}

func (b *benchTable) markdown() string {
	var out strings.Builder
	out.WriteString("\n| row | unit | floor | ours | ratio | target | | CPU s, ours (floor) | peak RSS MiB |\n")
	out.WriteString("|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range b.rows {
		if len(r.ours.samples) == 0 {
			continue
		}
		cells := []string{r.what, r.unit, r.floor.cell(), r.ours.cell(), r.ratioCell(),
			r.target.String(), r.verdict(), r.cpuCell(), r.peakCell()}
		fmt.Fprintf(&out, "| %s |\n", strings.Join(cells, " | "))
	}
	fmt.Fprintf(&out, "\nMedians of %d runs or more, in turn with the floor (lowest to highest), on %s, %d CPUs, %s.\n",
		benchRuns, benchKernel(), runtime.NumCPU(), runtime.Version())
	for _, note := range b.notes {
		fmt.Fprintf(&out, "- %s\n", note)
	}
	return out.String()
}

func (s *benchSide) cell() string {
	if len(s.samples) == 0 {
		return "-"
	}
	what := s.what
	if what != "" {
		what += ": "
	}
	return fmt.Sprintf("%s%s (%s to %s)", what, benchNumber(benchMedian(s.samples)),
		benchNumber(slices.Min(s.samples)), benchNumber(slices.Max(s.samples)))
}

func (r *benchRow) ratioCell() string {
	if ratio := r.ratio(); ratio > 0 {
		return fmt.Sprintf("%.2f", ratio)
	}
	return "-"
}

func (r *benchRow) cpuCell() string {
	if len(r.ours.cpu) == 0 {
		return "-"
	}
	cell := fmt.Sprintf("%.2f", benchMedian(r.ours.cpu))
	if len(r.floor.cpu) > 0 {
		cell += fmt.Sprintf(" (%.2f)", benchMedian(r.floor.cpu))
	}
	return cell
}

func (r *benchRow) peakCell() string {
	if len(r.peak) == 0 {
		return "-"
	}
	return benchNumber(slices.Max(r.peak))
}

// benchMedian returns the median of samples, 0 if there are none.
func benchMedian(samples []float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// benchNumber formats v with at least three digits.
func benchNumber(v float64) string {
	switch {
	case v >= 100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func benchKernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "Linux"
	}
	return "Linux " + unix.ByteSliceToString(name.Release[:])
}

// benchOK fails the test at once if there is an error.
func benchOK(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// benchMark starts the line with the figures of a child: the testing package prints
// lines too.
const benchMark = "figures:"

// TestChildOfBench is the child process: its arguments are the name of the work and
// the arguments of that. A normal run skips it.
func TestChildOfBench(t *testing.T) {
	work := map[string]func(t *testing.T, args []string) (figures string){
		"null":    benchServeNull,
		"drop":    benchDrop,
		"check":   benchCheckRandom,
		"piece":   benchReadPiece,
		"get":     benchGet,
		"shares":  benchReadShares,
		"seekers": benchSeek,
	}[flag.Arg(0)]
	if work == nil {
		t.Skip("this test is a part of TestBench")
	}
	fmt.Println(benchMark, work(t, flag.Args()[1:]))
}

// benchChildArgv returns the command of a child that does work with args.
func benchChildArgv(t *testing.T, work string, args ...any) []string {
	t.Helper()
	self, err := os.Executable()
	benchOK(t, err)
	argv := []string{self, "-test.run=^TestChildOfBench$", "-test.timeout=0", work}
	for _, arg := range args {
		argv = append(argv, fmt.Sprint(arg))
	}
	return argv
}

// benchChild runs a child that does work with args on a file of m, or with m nil on
// no mount. It returns the child's figures.
func benchChild(t *testing.T, m *benchMount, work string, args ...any) (figures []float64) {
	t.Helper()
	out := benchRun(t, m, benchChildArgv(t, work, args...)...).stdout
	_, after, found := strings.Cut(out, benchMark)
	if !found {
		t.Fatalf("%s %v: no figures in %q", work, args, out)
	}
	line, _, _ := strings.Cut(after, "\n")
	for _, figure := range strings.Fields(line) {
		figures = append(figures, benchFigure(t, figure))
	}
	return figures
}

// benchFigure parses a number that a command printed.
func benchFigure(t *testing.T, text string) float64 {
	t.Helper()
	figure, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	benchOK(t, err)
	return figure
}

// benchInteger parses a number of a child's arguments.
func benchInteger(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	benchOK(t, err)
	return n
}

// benchDrop drops the pages of a file from the page cache, and prints how many stay.
// For a file of a mount those are the pages of the FUSE inode, not of the temporary
// file behind it.
func benchDrop(t *testing.T, args []string) string {
	f, err := benchOpen(args[0])
	benchOK(t, err)
	defer f.Close()
	const tries = 50
	left := uint64(0)
	for range tries {
		benchOK(t, unix.Fadvise(int(f), 0, 0, unix.FADV_DONTNEED))
		var stat unix.Cachestat_t
		err := unix.Cachestat(uint(f), &unix.CachestatRange{}, &stat, 0)
		if errors.Is(err, unix.ENOSYS) {
			return "0" // Linux has cachestat(2) since 6.5
		}
		benchOK(t, err)
		if left = stat.Cache; left == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Sprint(left)
}

// benchCheckRandom compares random pieces of a file, of any size and alignment, with
// the content of a seed. Its arguments are the path and the seed.
func benchCheckRandom(t *testing.T, args []string) string {
	const pieces = 500
	seed := uint64(benchInteger(t, args[1]))
	f, err := os.Open(args[0])
	benchOK(t, err)
	defer f.Close()
	info, err := f.Stat()
	benchOK(t, err)
	random, p := rand.New(rand.NewPCG(1, 2)), make([]byte, 300_000)
	for range pieces {
		off := random.Int64N(info.Size())
		piece := p[:min(1+random.Int64N(int64(len(p))), info.Size()-off)]
		if _, err := f.ReadAt(piece, off); err != nil {
			t.Fatalf("at %d: %v", off, err)
		}
		benchOK(t, checkContent(piece, seed, off))
	}
	return fmt.Sprint(pieces)
}

// benchNull does the least that a server of the fuse library can do: it serves one
// file, and answers each read in the loop from the same memory.
type benchNull struct {
	size int64
	data []byte
}

// benchNullName is the one file of a null mount.
const benchNullName = "null.bin"

// benchServeNull mounts a null server with the mount options of mountAt. Its arguments
// are the mountpoint and the size of the file.
//
// BLOCKS until somebody unmounts it.
func benchServeNull(t *testing.T, args []string) string {
	null := &benchNull{size: benchInteger(t, args[1]), data: make([]byte, maxReadBytes)}
	fillContent(null.data, 1, 0)
	config := mountConfig(ioAuto)
	config.FSName, config.Subtype = "bench:null", "benchnull"
	m, err := fuse.Mount(args[0], null, config)
	benchOK(t, err)
	mountedAt(args[0]).tune()
	benchOK(t, m.Join(context.Background()))
	return ""
}

// ServeOps implements fuse.Server.
func (s *benchNull) ServeOps(c *fuse.Connection) {
	for {
		ctx, op, err := c.ReadOp()
		if err == io.EOF {
			return
		}
		if err != nil {
			continue
		}
		_ = c.Reply(ctx, s.perform(op))
	}
}

func (s *benchNull) perform(op any) error {
	switch op := op.(type) {
	case *fuseops.ReadFileOp:
		n := max(0, min(op.Size, s.size-op.Offset))
		op.Data, op.BytesRead = [][]byte{s.data[:n]}, int(n)
	case *fuseops.LookUpInodeOp:
		if op.Name != benchNullName {
			return syscall.ENOENT
		}
		op.Entry.Child = firstFileInode
		op.Entry.Attributes = s.attributes(firstFileInode)
		op.Entry.AttributesExpiration = time.Now().Add(expiry)
		op.Entry.EntryExpiration = op.Entry.AttributesExpiration
	case *fuseops.GetInodeAttributesOp:
		op.Attributes = s.attributes(op.Inode)
		op.AttributesExpiration = time.Now().Add(expiry)
	case *fuseops.OpenFileOp:
		op.KeepPageCache = true
	case *fuseops.ReleaseFileHandleOp, *fuseops.ForgetInodeOp, *fuseops.BatchForgetOp:
	default:
		return syscall.ENOSYS
	}
	return nil
}

func (s *benchNull) attributes(inode fuseops.InodeID) fuseops.InodeAttributes {
	if inode == fuseops.RootInodeID {
		return fuseops.InodeAttributes{Nlink: 1, Mode: os.ModeDir | 0o555}
	}
	return fuseops.InodeAttributes{Size: uint64(s.size), Nlink: 1, Mode: 0o444}
}
