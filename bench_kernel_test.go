//go:build bench && linux

// bench_kernel_test.go measures fsmount as it is used, through the kernel,
// while a file downloads: the whole of it, its first bytes, at a limited rate,
// and a thousand files at once. Complete files are in bench_ready_test.go.
// Every byte that a timed run has read is compared afterwards.

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The origin's files. The sizes are of no alignment where a command reads to
// the end anyway.
const (
	benchBigSeed   = 1
	benchMidSeed   = 2
	benchMidBytes  = 256 << 20
	benchMany      = 1000
	benchManyBytes = 4096 // and one more for each file
)

// benchRig is what the rows share. Its paths lie below one temporary directory
// on the disk where fsmount's own default is.
type benchRig struct {
	table  *benchTable
	dir    string
	docs   string // what the origin serves
	binary string // the built program
	origin string // URL of the root
	big    int64  // size of the large file, in bytes
}

// newBenchRig builds the program and starts an origin, or skips the test and
// notes why.
func newBenchRig(t *testing.T, table *benchTable) *benchRig {
	t.Helper()
	for _, tool := range []string{"nginx", "curl", "dd", "cmp", "ls"} {
		if !benchHas(tool) {
			table.note("left out, %s is not installed: all but the rows of the store", tool)
			t.Skipf("%s is not installed", tool)
		}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		table.note("left out, there is no /dev/fuse: all but the rows of the store")
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "fsmount-bench-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &benchRig{
		table:  table,
		dir:    dir,
		docs:   filepath.Join(dir, "docs"),
		binary: filepath.Join(dir, "fsmount"),
		big:    benchBigBytes(t),
	}
	benchRunEnv(t, nil, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-o", r.binary, ".")
	r.writeDocs(t)
	r.origin = r.startNginx(t)
	return r
}

func benchHas(tool string) bool {
	_, err := exec.LookPath(tool)
	return err == nil
}

// writeDocs makes the origin's files, which are then in the page cache.
func (r *benchRig) writeDocs(t *testing.T) {
	t.Helper()
	benchWrite(t, r.doc("big/big.bin"), benchBigSeed, r.big)
	benchWrite(t, r.doc("mid/mid.bin"), benchMidSeed, benchMidBytes)
	benchWrite(t, r.doc("small/slow.bin"), benchSlowSeed, benchSlowBytes)
	for name, dir := range map[string]string{"limited": "mid", "counted": "mid", "slow": "small"} {
		if err := os.Symlink(dir, r.doc(name)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range benchMany {
		benchWrite(t, r.doc(benchManyName(i)), uint64(i), benchManySize(i))
	}
}

func benchManyName(i int) string { return fmt.Sprintf("many/%04d.bin", i) }

func benchManySize(i int) int64 { return benchManyBytes + int64(i) }

// benchWrite makes a file with the first size bytes of the content of seed.
func benchWrite(t *testing.T, path string, seed uint64, size int64) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		fillContent(p, seed, off)
		if _, err := f.Write(p); err != nil {
			t.Fatal(err)
		}
	}
}

// doc returns the path of what the origin serves under that name, url its URL.
func (r *benchRig) doc(name string) string { return filepath.Join(r.docs, name) }

func (r *benchRig) url(name string) string { return r.origin + "/" + name }

func (r *benchRig) mkdir(t *testing.T, pattern string) string {
	t.Helper()
	dir, err := os.MkdirTemp(r.dir, pattern)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// fsmount mounts what the origin has under the names, with the temporary files
// on the disk that curl writes to.
func (r *benchRig) fsmount(t *testing.T, names ...string) *benchMount {
	t.Helper()
	urls := make([]string, len(names))
	for i, name := range names {
		urls[i] = r.url(name)
	}
	return r.fsmountURLs(t, nil, urls...)
}

// fsmountURLs is fsmount with more flags, of any origin.
func (r *benchRig) fsmountURLs(t *testing.T, flags []string, urls ...string) *benchMount {
	t.Helper()
	return r.mount(t, "fsmount", nil, func(dir string) []string {
		return slices.Concat([]string{r.binary, "-mount", dir, "--temp-dir", r.dir}, flags, urls)
	})
}

// benchDD reads the whole file by dd, and requires that it was size bytes.
func benchDD(t *testing.T, m *benchMount, path string, size int64) benchResult {
	t.Helper()
	res := benchRun(t, m, "dd", "if="+path, "of=/dev/null", "bs=1M")
	if !strings.Contains("\n"+res.stderr, fmt.Sprintf("\n%d bytes", size)) {
		t.Fatalf("dd of %s read another number of bytes than %d: %s", path, size, res.stderr)
	}
	return res
}

// benchMiBps is the speed of size bytes in that time, in MiB/s.
func benchMiBps(size int64, d time.Duration) float64 {
	return float64(size) / (1 << 20) / d.Seconds()
}

func benchMs(d time.Duration) float64 { return d.Seconds() * 1e3 }

// curl downloads to a file, and requires size bytes of it. It returns where
// they are.
func (r *benchRig) curl(t *testing.T, size int64, args ...string) (res benchResult, path string) {
	t.Helper()
	path = filepath.Join(r.dir, "curl.out")
	res = benchRun(t, nil, "curl", append([]string{"-sS", "-f", "-o", path}, args...)...)
	info, err := os.Stat(path)
	if err != nil || info.Size() != size {
		t.Fatalf("curl %v: %v, not a file of %d bytes", args, info, size)
	}
	return res, path
}

// cold measures a whole file, read as soon as it is mounted.
func (r *benchRig) cold(t *testing.T) {
	const name = "big/big.bin"
	gib := float64(r.big) / (1 << 30)
	what := fmt.Sprintf("%.3g GiB cold, dd bs=1M", gib)
	floor := benchSide{what: "curl -o FILE"}
	speed := &benchRow{what: what, unit: "MiB/s", floor: floor, target: benchTarget{least: 0.8}}
	cpu := &benchRow{what: what + ": user+sys", unit: "s/GiB", floor: floor, target: benchTarget{most: 1.6}}
	peak := &benchRow{what: what + ": peak RSS", unit: "MiB", target: benchTarget{below: 48}}
	defer r.table.add(speed, cpu, peak)

	r.compareStreaming(t, name)
	for range benchRuns {
		benchBackMemory(t, 3*r.big)
		fl, path := r.curl(t, r.big, r.url(name))
		os.Remove(path)
		speed.floor.addCPU(benchMiBps(r.big, fl.wall), fl.cpu.Seconds())
		cpu.floor.add(fl.cpu.Seconds() / gib)

		m := r.fsmount(t, name)
		benchBackMemory(t, 3*r.big)
		before := m.cpu()
		wall := benchDD(t, m, m.path("big.bin"), r.big).wall
		used := (m.cpu() - before).Seconds()
		speed.ours.addCPU(benchMiBps(r.big, wall), used)
		cpu.ours.add(used / gib)
		peak.ours.add(m.peak())
		speed.peak = append(speed.peak, m.peak())
		r.compare(t, m, "big.bin", name)
		m.stop()
	}
}

// compareStreaming compares a file with the origin's while it downloads.
func (r *benchRig) compareStreaming(t *testing.T, name string) {
	t.Helper()
	m := r.fsmount(t, name)
	defer m.stop()
	r.compare(t, m, filepath.Base(name), name)
}

// compare fails the test for any byte of a file of m that is not the origin's.
func (r *benchRig) compare(t *testing.T, m *benchMount, file, name string) {
	t.Helper()
	benchRun(t, m, "cmp", r.doc(name), m.path(file))
}

// first measures the first bytes of a file that nobody has read yet: with the
// reader's start and end in it, as a person waits for them, and without.
func (r *benchRig) first(t *testing.T) {
	whole := &benchRow{what: "first 4 KiB, dd's whole life", unit: "ms",
		floor: benchSide{what: "curl -r 0-4095, whole life"}, target: benchTarget{most: 2}}
	open := &benchRow{what: "first 4 KiB, from open on", unit: "ms",
		floor: benchSide{what: "curl -r 0-4095, time_starttransfer"}, target: benchTarget{most: 2}}
	defer r.table.add(whole, open)

	want := make([]byte, benchFirstBytes)
	fillContent(want, benchMidSeed, 0)
	for range benchShortRuns {
		fl, _ := r.curl(t, benchFirstBytes, "-r", "0-4095", "-w", "%{time_starttransfer}", r.url("mid/mid.bin"))
		start, err := strconv.ParseFloat(strings.TrimSpace(fl.stdout), 64)
		if err != nil {
			t.Fatal(err)
		}
		whole.floor.add(benchMs(fl.wall))
		open.floor.add(start * 1e3)
		whole.ours.add(r.firstByDD(t, want))
		open.ours.add(r.firstFromOpen(t))
	}
}

// firstByDD returns the milliseconds that dd takes for the first bytes.
func (r *benchRig) firstByDD(t *testing.T, want []byte) float64 {
	t.Helper()
	m := r.listed(t, "mid/mid.bin")
	defer m.stop()
	out := filepath.Join(r.dir, "dd.out")
	res := benchRun(t, m, "dd", "if="+m.path("mid.bin"), "of="+out, "bs=4096", "count=1")
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the first %d bytes are wrong: %v", len(want), err)
	}
	return benchMs(res.wall)
}

// firstFromOpen returns the milliseconds between open and the first bytes.
func (r *benchRig) firstFromOpen(t *testing.T) float64 {
	t.Helper()
	m := r.listed(t, "mid/mid.bin")
	defer m.stop()
	ns, err := strconv.ParseFloat(benchChild(t, m, "first", m.path("mid.bin"), fmt.Sprint(benchMidSeed)), 64)
	if err != nil {
		t.Fatal(err)
	}
	return ns / 1e6
}

// listed mounts a file that somebody has seen but not opened.
func (r *benchRig) listed(t *testing.T, name string) *benchMount {
	t.Helper()
	m := r.fsmount(t, name)
	benchRun(t, m, "ls", "-l", m.dir)
	return m
}

// limited measures a file that comes at a limited rate: what is added to the
// origin's time.
func (r *benchRig) limited(t *testing.T) {
	const runs = 2 // of five seconds a side, with little to disturb them
	const name = "limited/mid.bin"
	row := &benchRow{what: fmt.Sprintf("256 MiB at 50 MiB/s, dd bs=1M, %d runs", runs), unit: "s",
		floor: benchSide{what: "curl -o FILE"}, target: benchTarget{most: 1.02}}
	defer r.table.add(row)
	for range runs {
		fl, _ := r.curl(t, benchMidBytes, r.url(name))
		row.floor.addCPU(fl.wall.Seconds(), fl.cpu.Seconds())
		m := r.fsmount(t, name)
		before := m.cpu()
		row.ours.addCPU(benchDD(t, m, m.path("mid.bin"), benchMidBytes).wall.Seconds(), 0)
		row.ours.cpu[len(row.ours.cpu)-1] = (m.cpu() - before).Seconds()
		row.peak = append(row.peak, m.peak())
		r.compare(t, m, "mid.bin", name)
		m.stop()
	}
}

// many measures a mount of many files, from its start until they are listed.
func (r *benchRig) many(t *testing.T) {
	row := &benchRow{what: "1,000 URLs mounted and listed", unit: "ms",
		floor: benchSide{what: "curl -I, 1,000 on one connection"}, target: benchTarget{most: 2}}
	again := &benchRow{what: "1,000 files listed again", unit: "ms", floor: benchSide{what: "ls -l, native"}}
	defer r.table.add(row, again)
	names, config := r.manyNames(t)
	for range benchRuns {
		fl := benchRun(t, nil, "curl", "-sS", "-f", "-I", "-K", config)
		if got := strings.Count(fl.stdout, "200 OK"); got != benchMany {
			t.Fatalf("curl got %d answers, not %d", got, benchMany)
		}
		row.floor.addCPU(benchMs(fl.wall), fl.cpu.Seconds())
		again.floor.add(benchMs(benchRun(t, nil, "ls", "-l", r.doc("many")).wall))

		m := r.fsmount(t, names...)
		listing := benchRun(t, m, "ls", "-l", m.dir).stdout
		row.ours.addCPU(benchMs(time.Since(m.started)), m.cpu().Seconds())
		again.ours.add(benchMs(benchRun(t, m, "ls", "-l", m.dir).wall))
		row.peak = append(row.peak, m.peak())
		benchCheckListing(t, listing)
		m.stop()
	}
}

// manyNames returns the names of the many files, and a configuration by which
// curl asks for them all.
func (r *benchRig) manyNames(t *testing.T) (names []string, config string) {
	t.Helper()
	var urls bytes.Buffer
	for i := range benchMany {
		names = append(names, benchManyName(i))
		fmt.Fprintf(&urls, "url = %q\n", r.url(names[i]))
	}
	config = filepath.Join(r.dir, "curl.conf")
	if err := os.WriteFile(config, urls.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return names, config
}

// benchCheckListing requires every file with its size in the output of ls -l.
func benchCheckListing(t *testing.T, listing string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(listing), "\n")[1:]
	if len(lines) != benchMany {
		t.Errorf("ls -l shows %d files, not %d", len(lines), benchMany)
		return
	}
	for i, line := range lines {
		fields := strings.Fields(line)
		const size, last = 4, 8
		want := []string{strconv.FormatInt(benchManySize(i), 10), filepath.Base(benchManyName(i))}
		if len(fields) <= last || fields[size] != want[0] || fields[last] != want[1] {
			t.Errorf("ls -l shows %q, not %v", line, want)
		}
	}
}
