//go:build bench

// bench_test.go is the order of "make bench" and the table it prints: every figure
// stands beside a floor measured between its own runs. A missed target is a figure;
// a wrong byte is a failure. The children that tests run again are here too.

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

	"github.com/jacobsa/fuse"
	"github.com/jacobsa/fuse/fuseops"
	"golang.org/x/sys/unix"
)

// How often a figure is measured, in turn with its floor. The median of five
// does not see two disturbed ones; what takes under a second is disturbed more
// easily, and measured more often.
const (
	benchRuns      = 5
	benchShortRuns = 11
)

// TestBench measures, and prints one Markdown table. `-run TestBench/cold`
// measures one part of it, and with FSMOUNT_BENCH_MIB=64 in the environment the
// large file has that many MiB: a quick look, whose figures mean little.
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
			{"tail", rig.tail},
			{"shares", rig.shares},
			{"seekers", rig.seekers},
			{"connections", rig.connections},
			{"distant", rig.distant},
		} {
			if !t.Run(part.name, part.measure) {
				table.note("FAILED: %s: see the output above", part.name)
			}
		}
	})
	t.Run("store", func(t *testing.T) { benchStore(t, table) })
}

// benchStore measures what bench_store_test.go does, each benchmark in turn with
// its floor.
func benchStore(t *testing.T, table *benchTable) {
	if err := flag.Set("test.benchtime", "300ms"); err != nil {
		t.Fatal(err)
	}
	pread := benchSide{what: "pread"}
	at := &benchRow{what: "store: ready ReadAt of 4 KiB", unit: "ns", floor: pread}
	ready := &benchRow{what: "store: ready read for the kernel, 4 KiB", unit: "ns", floor: pread}
	atAllocs := &benchRow{what: at.what, unit: "allocations", target: benchTarget{below: 1}}
	readyAllocs := &benchRow{what: ready.what, unit: "allocations", target: benchTarget{below: 1}}
	off := &benchRow{what: "store: the same, trace off", unit: "ns",
		floor: benchSide{what: "no trace"}, target: benchTarget{most: 1.05}}
	on := &benchRow{what: "store: the same, trace on", unit: "ns", floor: off.floor}
	inFlight := &benchRow{what: "ops table: begin and end of an operation", unit: "ns",
		floor: benchSide{what: "ready read for the kernel, 4 KiB"}}
	wake := &benchRow{what: "store: an arrival wakes 1,000 readers of 4 KiB", unit: "us",
		floor: benchSide{what: "close(chan), 1,000 preads"}}
	defer table.add(at, atAllocs, ready, readyAllocs, off, on, inFlight, wake)
	for range benchRuns {
		floor := benchRunStore(t, benchPread)
		at.floor.add(float64(floor.NsPerOp()))
		ready.floor.add(float64(floor.NsPerOp()))
		res := benchRunStore(t, benchReadAt)
		at.ours.add(float64(res.NsPerOp()))
		atAllocs.ours.add(float64(res.AllocsPerOp()))
		res = benchRunStore(t, benchTraceNone)
		ready.ours.add(float64(res.NsPerOp()))
		readyAllocs.ours.add(float64(res.AllocsPerOp()))
		off.floor.add(float64(res.NsPerOp()))
		on.floor.add(float64(res.NsPerOp()))
		off.ours.add(float64(benchRunStore(t, benchTraceOff).NsPerOp()))
		on.ours.add(float64(benchRunStore(t, benchTraceOn).NsPerOp()))
		inFlight.floor.add(float64(res.NsPerOp()))
		inFlight.ours.add(float64(benchRunStore(t, BenchmarkOps).NsPerOp()))
		wake.floor.add(float64(benchRunStore(t, benchWakeChannel).NsPerOp()) / 1e3)
		wake.ours.add(float64(benchRunStore(t, benchWakeStore).NsPerOp()) / 1e3)
	}
}

// benchRunStore runs a benchmark, and fails the test if it fails.
func benchRunStore(t *testing.T, benchmark func(*testing.B)) testing.BenchmarkResult {
	t.Helper()
	res := testing.Benchmark(benchmark)
	if res.N == 0 {
		t.Fatal("a benchmark of the store failed: run go test -run - -bench 'Ready|Trace|Ops|Wake' .")
	}
	return res
}

// benchBigBytes is the size of the large file.
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

// benchSide is one side of a comparison.
type benchSide struct {
	what    string // the command, or ""
	samples []float64
	cpu     []float64 // user+sys of the process, in seconds per run, if it was asked for
}

func (s *benchSide) add(value float64) { s.samples = append(s.samples, value) }

// addCPU adds a run's figure and the CPU time it took.
func (s *benchSide) addCPU(value, seconds float64) {
	s.add(value)
	s.cpu = append(s.cpu, seconds)
}

// benchTarget is what a row should reach; zero fields ask for nothing.
type benchTarget struct {
	least float64 // of ours/floor
	most  float64 // of ours/floor
	below float64 // of ours, in the row's unit
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
	peak        []float64 // VmHWM of the mount's process, in MiB, if it was asked for
}

// ratio is ours by floor, of the medians; 0 if there is no floor.
func (r *benchRow) ratio() float64 {
	floor := benchMedian(r.floor.samples)
	if floor == 0 {
		return 0
	}
	return benchMedian(r.ours.samples) / floor
}

// verdict says whether the target is met, as the table rounds it: what is shown
// as equal to its target has met it.
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

// benchTable gathers rows, and notes on what they leave out.
type benchTable struct {
	rows  []*benchRow
	notes []string
}

// add puts rows that were measured in the table.
func (b *benchTable) add(rows ...*benchRow) {
	for _, r := range rows {
		if len(r.ours.samples) > 0 {
			b.rows = append(b.rows, r)
		}
	}
}

func (b *benchTable) note(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
}

func (b *benchTable) markdown() string {
	var out strings.Builder
	out.WriteString("\n| row | unit | floor | ours | ratio | target | | CPU s, ours (floor) | peak RSS MiB |\n")
	out.WriteString("|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range b.rows {
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
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// benchNumber shows three digits or more.
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

// benchMark starts the line that a child answers with: the testing package
// prints lines of its own.
const benchMark = "figures:"

// TestChildOfBench is the child: its arguments are a word and what that works
// on. It does nothing in a run of its own.
func TestChildOfBench(t *testing.T) {
	work := map[string]func(args []string) (figures string, err error){
		"null":    benchServeNull,
		"drop":    benchDrop,
		"first":   benchReadFirst,
		"check":   benchCheckRandom,
		"piece":   benchReadPiece,
		"shares":  benchReadShares,
		"seekers": benchSeek,
	}[flag.Arg(0)]
	if work == nil {
		t.Skip("this test is a part of TestBench")
	}
	figures, err := work(flag.Args()[1:])
	if err != nil {
		t.Fatalf("%v: %v", flag.Args(), err)
	}
	fmt.Println(benchMark, figures)
}

// benchChildArgv is the command of a child that does work with args.
func benchChildArgv(t *testing.T, work string, args ...string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{self, "-test.run=^TestChildOfBench$", "-test.timeout=0", work}, args...)
}

// benchChild has a child do work on a file of m, and returns its figures.
func benchChild(t *testing.T, m *benchMount, work string, args ...string) string {
	t.Helper()
	argv := benchChildArgv(t, work, args...)
	out := benchRun(t, m, argv[0], argv[1:]...).stdout
	_, figures, found := strings.Cut(out, benchMark)
	if !found {
		t.Fatalf("%s %v: no figures in %q", work, args, out)
	}
	line, _, _ := strings.Cut(figures, "\n")
	return strings.TrimSpace(line)
}

// benchDrop takes the pages of one file, here of a FUSE inode, out of the page
// cache: not those of the temporary file behind it. It returns how many pages
// are left.
func benchDrop(args []string) (string, error) {
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	const tries = 50
	left := uint64(0)
	for range tries {
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
			return "", err
		}
		left, err = benchCachedPages(fd)
		if err != nil || left == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Sprint(left), err
}

// benchCachedPages counts by cachestat(2), which Linux has since 6.5; before
// that it answers 0.
func benchCachedPages(fd int) (uint64, error) {
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(fd), &unix.CachestatRange{}, &stat, 0)
	if errors.Is(err, unix.ENOSYS) {
		return 0, nil
	}
	return stat.Cache, err
}

// benchFirstBytes is how much a player or file(1) asks for first.
const benchFirstBytes = 4096

// benchReadFirst returns the nanoseconds from open to the first bytes of a
// file, which must be the content of the seed.
func benchReadFirst(args []string) (string, error) {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	p := make([]byte, benchFirstBytes)
	begin := time.Now()
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	n, err := unix.Pread(fd, p, 0)
	took := time.Since(begin)
	if err == nil && n < len(p) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprint(took.Nanoseconds()), checkContent(p, seed, 0)
}

// benchCheckRandom compares random pieces of a file of any size and alignment
// with the content of the seed.
func benchCheckRandom(args []string) (string, error) {
	const pieces = 500
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	f, err := os.Open(args[0])
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	random, p := rand.New(rand.NewPCG(1, 2)), make([]byte, 300_000)
	for range pieces {
		off := random.Int64N(info.Size())
		piece := p[:min(1+random.Int64N(int64(len(p))), info.Size()-off)]
		if _, err := f.ReadAt(piece, off); err != nil {
			return "", fmt.Errorf("at %d: %w", off, err)
		}
		if err := checkContent(piece, seed, off); err != nil {
			return "", err
		}
	}
	return fmt.Sprint(pieces), nil
}

// benchNull is the least that any server of this library does: one file, each
// read answered in the loop, from the same memory.
type benchNull struct {
	size int64
	data []byte
}

// benchNullName is the one file of a null mount.
const benchNullName = "null.bin"

// benchServeNull mounts a null server, with what mountAt asks the kernel for.
//
// BLOCKS until it is unmounted.
func benchServeNull(args []string) (string, error) {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	null := &benchNull{size: size, data: make([]byte, maxReadBytes)}
	fillContent(null.data, 1, 0)
	config := mountConfig(ioAuto)
	config.FSName, config.Subtype = "bench:null", "benchnull"
	m, err := fuse.Mount(args[0], null, config)
	if err != nil {
		return "", err
	}
	openFusectl(args[0]).tune()
	return "unmounted", m.Join(context.Background())
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
