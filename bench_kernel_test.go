//go:build bench

// bench_kernel_test.go measures reads through the kernel: of a file while it
// downloads, and of a complete one beside a null server and httpdirfs. Every byte
// that a timed run reads is compared afterwards.

package main

import (
	"bytes"
	"encoding/json"
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

// benchReader is a mount with one complete file.
type benchReader struct {
	*benchMount
	file string // path
}

// complete measures one file, mounted and fetched once, by each system in turn:
// sequential reads without the page cache and with it, and random ones past it.
func (r *benchRig) complete(t *testing.T) {
	const name = "big/big.bin"
	m := r.fsmount(t, name)
	r.compare(t, m, "big.bin", name)
	ours := &benchReader{m, m.path("big.bin")}
	floors := []*benchReader{r.null(t)}
	if peer := r.httpdirfs(t); peer != nil {
		floors = append(floors, peer)
	}
	r.dropped(t, ours, floors)
	r.cached(t, ours)
	r.random(t, ours, floors)
	benchChild(t, m, "check", ours.file, fmt.Sprint(benchBigSeed))
	r.compare(t, m, "big.bin", name)
}

// null mounts the null server, with a file of the same size.
func (r *benchRig) null(t *testing.T) *benchReader {
	t.Helper()
	m := r.mount(t, "null server", nil, func(dir string) []string {
		return benchChildArgv(t, "null", dir, fmt.Sprint(r.big))
	})
	return &benchReader{m, m.path(benchNullName)}
}

// httpdirfs mounts the origin's directory with httpdirfs and has it cache the
// file; it returns nil where that is not installed.
func (r *benchRig) httpdirfs(t *testing.T) *benchReader {
	t.Helper()
	if !benchHas("httpdirfs") {
		r.table.note("left out, httpdirfs is not installed: the rows beside it")
		return nil
	}
	cache := r.mkdir(t, "httpdirfs-*")
	env := []string{"HOME=" + cache, "XDG_CACHE_HOME=" + cache, "XDG_CONFIG_HOME=" + cache}
	m := r.mount(t, "httpdirfs --cache", env, func(dir string) []string {
		return []string{"httpdirfs", "-f", "--cache", "--cache-location", cache, r.url("big/"), dir}
	})
	benchDD(t, m, m.path("big.bin"), r.big)
	return &benchReader{m, m.path("big.bin")}
}

// measure runs read on the floors and on ours in turn, and makes a row for each
// floor; the null server's has the target least, a peer's that we are ahead.
func (r *benchRig) measure(what, unit string, least float64, runs int, ours *benchReader, floors []*benchReader,
	read func(*benchReader) float64) {
	rows := make([]*benchRow, len(floors))
	for i, floor := range floors {
		rows[i] = &benchRow{what: what, unit: unit, floor: benchSide{what: floor.name}, target: benchTarget{least: 1}}
	}
	rows[0].target.least = least
	var side benchSide
	for range runs {
		for i, floor := range floors {
			rows[i].floor.addTimed(floor, read)
		}
		side.addTimed(ours, read)
	}
	for _, row := range rows {
		row.ours, row.peak = side, []float64{ours.peak()}
	}
	r.table.add(rows...)
}

// addTimed adds the figure of one read, and the CPU time of who serves it.
func (s *benchSide) addTimed(m *benchReader, read func(*benchReader) float64) {
	before := m.cpu()
	figure := read(m)
	s.addCPU(figure, (m.cpu() - before).Seconds())
}

// dropped measures reads of a file whose pages were just dropped.
func (r *benchRig) dropped(t *testing.T, ours *benchReader, floors []*benchReader) {
	what := "complete, pages dropped, dd bs=1M"
	r.measure(what, "MiB/s", 0.9, benchShortRuns, ours, floors, func(m *benchReader) float64 {
		if left := benchChild(t, m.benchMount, "drop", m.file); left != "0" {
			r.table.note("%s, %s: %s pages could not be dropped", what, m.name, left)
		}
		benchBackMemory(t, 3*r.big)
		return benchMiBps(r.big, benchDD(t, m.benchMount, m.file, r.big).wall)
	})
	for _, m := range append([]*benchReader{ours}, floors...) {
		r.table.note("read_ahead_kb of %s: %s", m.name, m.readAhead())
	}
}

// readAhead returns the mount's read_ahead_kb.
func (m *benchMount) readAhead() string {
	path := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", openFusectl(m.dir).minor)
	kib, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(kib))
}

// cached measures reads of a file that is in the kernel's page cache, beside
// the origin's own, which is there too.
func (r *benchRig) cached(t *testing.T, ours *benchReader) {
	row := &benchRow{what: "complete, in the page cache, dd bs=1M", unit: "MiB/s",
		floor: benchSide{what: "native file"}, target: benchTarget{least: 0.8}}
	defer r.table.add(row)
	native := r.doc("big/big.bin")
	benchDD(t, nil, native, r.big)
	benchDD(t, ours.benchMount, ours.file, r.big)
	for range benchShortRuns {
		row.floor.add(benchMiBps(r.big, benchDD(t, nil, native, r.big).wall))
		row.ours.addTimed(ours, func(m *benchReader) float64 {
			return benchMiBps(r.big, benchDD(t, m.benchMount, m.file, r.big).wall)
		})
	}
}

// random measures reads of 4 KiB past the page cache.
func (r *benchRig) random(t *testing.T, ours *benchReader, floors []*benchReader) {
	if !benchHas("fio") {
		r.table.note("left out, fio is not installed: random reads")
		return
	}
	for _, threads := range []int{1, 16} {
		r.measure(fmt.Sprintf("random 4 KiB, fio psync direct, threads: %d", threads), "reads/s", 0, benchRuns, ours, floors,
			func(m *benchReader) float64 { return r.fio(t, m, threads) })
	}
}

// fio returns how many random reads a second that many threads make.
func (r *benchRig) fio(t *testing.T, m *benchReader, threads int) float64 {
	t.Helper()
	out := benchRun(t, m.benchMount, "fio", "--name=random", "--filename="+m.file, "--readonly",
		"--rw=randread", "--bs=4k", "--ioengine=psync", "--direct=1", "--thread",
		fmt.Sprintf("--numjobs=%d", threads), "--group_reporting", fmt.Sprintf("--size=%d", r.big),
		"--time_based", "--runtime=2", "--allow_file_create=0", "--output-format=json").stdout
	var report struct {
		Jobs []struct {
			Error int
			Read  struct{ IOPS float64 }
		}
	}
	text := out[max(0, strings.IndexByte(out, '{')):] // warnings may stand before it
	if err := json.Unmarshal([]byte(text), &report); err != nil || len(report.Jobs) != 1 {
		t.Fatalf("fio: %v in %q", err, out)
	}
	if job := report.Jobs[0]; job.Error != 0 {
		t.Fatalf("fio: error %d", job.Error)
	}
	return report.Jobs[0].Read.IOPS
}
