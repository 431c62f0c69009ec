//go:build bench

// bench_kernel_test.go measures reads through the kernel: of a file while it
// downloads, and of a complete file beside a null server and httpdirfs. Afterwards it
// compares every byte that a timed run reads with the origin's.

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The files of the origin.
const (
	benchBigSeed   = 1
	benchMidSeed   = 2
	benchMidBytes  = 256 << 20
	benchMany      = 1000
	benchManyBytes = 4096 // the first file; each next file has one byte more

	benchFirstBytes = 4096 // what a player or file(1) reads first
)

// benchRig holds what all rows share. Its paths are below one temporary directory, on the
// disk that fsmount's default --temp-dir is on.
type benchRig struct {
	table  *benchTable
	dir    string
	docs   string // root of the origin's files
	out    string // file that curl writes
	binary string // the built program
	origin string // URL of docs
	big    int64  // size of the large file, in bytes
	nginx  *benchProcess
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
	benchOK(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &benchRig{
		table:  table,
		dir:    dir,
		docs:   filepath.Join(dir, "docs"),
		out:    filepath.Join(dir, "out"),
		binary: filepath.Join(dir, "fsmount"),
		big:    benchBigBytes(t),
	}
	benchRun(t, nil, "env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-o", r.binary, ".")
	r.writeDocs(t)
	r.origin = r.startNginx(t)
	return r
}

func benchHas(tool string) bool {
	_, err := exec.LookPath(tool)
	return err == nil
}

// writeDocs makes the origin's files. They stay in the page cache.
func (r *benchRig) writeDocs(t *testing.T) {
	t.Helper()
	benchWrite(t, r.doc("big/big.bin"), benchBigSeed, r.big)
	benchWrite(t, r.doc("mid/mid.bin"), benchMidSeed, benchMidBytes)
	benchWrite(t, r.doc("small/slow.bin"), benchSlowSeed, benchSlowBytes)
	for name, dir := range map[string]string{"limited": "mid", "counted": "mid", "slow": "small"} {
		benchOK(t, os.Symlink(dir, r.doc(name)))
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
	benchOK(t, os.MkdirAll(filepath.Dir(path), 0o755))
	f, err := os.Create(path)
	benchOK(t, err)
	defer f.Close()
	buf := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		fillContent(p, seed, off)
		_, err := f.Write(p)
		benchOK(t, err)
	}
}

// doc returns the path of the origin's file called name, url its URL.
func (r *benchRig) doc(name string) string { return filepath.Join(r.docs, name) }

func (r *benchRig) url(name string) string { return r.origin + "/" + name }

func (r *benchRig) mkdir(t *testing.T, pattern string) string {
	t.Helper()
	dir, err := os.MkdirTemp(r.dir, pattern)
	benchOK(t, err)
	return dir
}

// benchDD returns how long dd takes to read a file, which must have size bytes.
func benchDD(t *testing.T, m *benchMount, path string, size int64) time.Duration {
	t.Helper()
	res := benchRun(t, m, "dd", "if="+path, "of=/dev/null", "bs=1M")
	if !strings.Contains("\n"+res.stderr, fmt.Sprintf("\n%d bytes", size)) {
		t.Fatalf("dd of %s read another number of bytes than %d: %s", path, size, res.stderr)
	}
	return res.wall
}

// benchMiBps returns the speed of size bytes in the time d, in MiB/s.
func benchMiBps(size int64, d time.Duration) float64 {
	return float64(size) / (1 << 20) / d.Seconds()
}

func benchMs(d time.Duration) float64 { return d.Seconds() * 1e3 }

// curl downloads size bytes to r.out.
func (r *benchRig) curl(t *testing.T, size int64, args ...string) benchResult {
	t.Helper()
	res := benchRun(t, nil, append([]string{"curl", "-sS", "-f", "-o", r.out}, args...)...)
	info, err := os.Stat(r.out)
	if err != nil || info.Size() != size {
		t.Fatalf("curl %v: %v, not a file of %d bytes", args, info, size)
	}
	return res
}

// compare fails the test if the file of m differs from the origin's file called name.
func (r *benchRig) compare(t *testing.T, m *benchMount, name string) {
	t.Helper()
	benchRun(t, m, "cmp", r.doc(name), m.file)
}

// cold measures a whole file, read as soon as it is mounted.
func (r *benchRig) cold(t *testing.T) {
	const name = "big/big.bin"
	gib := float64(r.big) / (1 << 30)
	what := fmt.Sprintf("%.3g GiB cold, dd bs=1M", gib)
	speed := r.table.row(what, "MiB/s", "curl -o FILE", benchTarget{least: 0.8})
	cpu := r.table.row(what+": user+sys", "s/GiB", "curl -o FILE", benchTarget{most: 1.6})
	peak := r.table.row(what+": peak RSS", "MiB", "", benchTarget{below: 48})

	streaming := r.fsmount(t, r.url(name))
	r.compare(t, streaming, name)
	streaming.stop()
	for range benchRuns {
		benchBackMemory(t, 3*r.big)
		fl := r.curl(t, r.big, r.url(name))
		os.Remove(r.out)
		speed.floor.addCPU(benchMiBps(r.big, fl.wall), fl.cpu.Seconds())
		cpu.floor.add(fl.cpu.Seconds() / gib)

		m := r.fsmount(t, r.url(name))
		benchBackMemory(t, 3*r.big)
		used := speed.addOurs(m, func() float64 { return benchMiBps(r.big, benchDD(t, m, m.file, r.big)) })
		cpu.ours.add(used / gib)
		peak.ours.add(m.peak())
		r.compare(t, m, name)
		m.stop()
	}
}

// benchPieceRow describes two rows about one piece of a file that nobody has read yet.
// The first row is the whole life of a command, the second the time from open on.
type benchPieceRow struct {
	what      string
	name      string // of the origin's file
	seed      uint64
	off, n    int64
	curlRange string
	curlTime  string // the variable of curl's --write-out for the second row
	command   string // that reads the piece of a mounted file
	read      func(m *benchMount) (p []byte, wall time.Duration)
}

// measurePiece measures both rows of w.
func (r *benchRig) measurePiece(t *testing.T, w benchPieceRow) {
	curl := "curl -r " + w.curlRange + ", "
	whole := r.table.row(w.what+", "+w.command+"'s whole life", "ms", curl+"whole life", benchTarget{most: 2})
	open := r.table.row(w.what+", from open on", "ms", curl+w.curlTime, benchTarget{most: 2})
	// A mount whose file somebody has listed but not opened.
	listed := func(use func(m *benchMount) (ms float64)) float64 {
		m := r.fsmount(t, r.url(w.name))
		defer m.stop()
		benchRun(t, m, "ls", "-l", m.dir)
		return use(m)
	}
	for range benchShortRuns {
		fl := r.curl(t, w.n, "-r", w.curlRange, "-w", "%{"+w.curlTime+"}", r.url(w.name))
		whole.floor.add(benchMs(fl.wall))
		open.floor.add(benchFigure(t, fl.stdout) * 1e3)
		whole.ours.add(listed(func(m *benchMount) float64 {
			p, wall := w.read(m)
			if int64(len(p)) != w.n {
				t.Fatalf("%s read %d bytes, not %d", w.command, len(p), w.n)
			}
			if err := checkContent(p, w.seed, w.off); err != nil {
				t.Error(err)
			}
			return benchMs(wall)
		}))
		open.ours.add(listed(func(m *benchMount) float64 {
			return benchChild(t, m, "piece", m.file, w.seed, w.off, w.n)[0] / 1e6
		}))
	}
}

// first measures the first bytes of a file.
func (r *benchRig) first(t *testing.T) {
	r.measurePiece(t, benchPieceRow{
		what: "first 4 KiB", name: "mid/mid.bin", seed: benchMidSeed, off: 0, n: benchFirstBytes,
		curlRange: "0-4095", curlTime: "time_starttransfer", command: "dd",
		read: func(m *benchMount) ([]byte, time.Duration) {
			out := filepath.Join(r.dir, "dd.out")
			wall := benchRun(t, m, "dd", "if="+m.file, "of="+out, "bs=4096", "count=1").wall
			p, err := os.ReadFile(out)
			benchOK(t, err)
			return p, wall
		},
	})
}

// limited measures a file that comes at a limited rate: what fsmount adds to the
// origin's time.
func (r *benchRig) limited(t *testing.T) {
	const runs = 2 // of five seconds a side: little disturbs them
	const name = "limited/mid.bin"
	row := r.table.row(fmt.Sprintf("256 MiB at 50 MiB/s, dd bs=1M, %d runs", runs), "s",
		"curl -o FILE", benchTarget{most: 1.02})
	for range runs {
		fl := r.curl(t, benchMidBytes, r.url(name))
		row.floor.addCPU(fl.wall.Seconds(), fl.cpu.Seconds())
		m := r.fsmount(t, r.url(name))
		row.addOurs(m, func() float64 { return benchDD(t, m, m.file, benchMidBytes).Seconds() })
		r.compare(t, m, name)
		m.stop()
	}
}

// many measures a mount of many files, from its start until they are listed.
func (r *benchRig) many(t *testing.T) {
	row := r.table.row("1,000 URLs mounted and listed", "ms", "curl -I, 1,000 on one connection", benchTarget{most: 2})
	again := r.table.row("1,000 files listed again", "ms", "ls -l, native", benchTarget{})
	var urls []string
	var config strings.Builder
	for i := range benchMany {
		urls = append(urls, r.url(benchManyName(i)))
		fmt.Fprintf(&config, "url = %q\n", urls[i])
	}
	path := filepath.Join(r.dir, "curl.conf")
	benchOK(t, os.WriteFile(path, []byte(config.String()), 0o600))
	for range benchRuns {
		fl := benchRun(t, nil, "curl", "-sS", "-f", "-I", "-K", path)
		if got := strings.Count(fl.stdout, "200 OK"); got != benchMany {
			t.Fatalf("curl got %d answers, not %d", got, benchMany)
		}
		row.floor.addCPU(benchMs(fl.wall), fl.cpu.Seconds())
		again.floor.add(benchMs(benchRun(t, nil, "ls", "-l", r.doc("many")).wall))

		m := r.fsmount(t, urls...)
		listing := benchRun(t, m, "ls", "-l", m.dir).stdout
		row.ours.addCPU(benchMs(time.Since(m.started)), m.cpu().Seconds())
		again.ours.add(benchMs(benchRun(t, m, "ls", "-l", m.dir).wall))
		row.peak = append(row.peak, m.peak())
		benchCheckListing(t, listing)
		m.stop()
	}
}

// kept measures a start with a cache that has every file. The floor is a start without one.
func (r *benchRig) kept(t *testing.T) {
	row := r.table.row("1,000 files of a full --cache-dir mounted and listed", "ms", "without --cache-dir", benchTarget{most: 1.5})
	cache := r.mkdir(t, "cache-*")
	var urls []string
	for i := range benchMany {
		urls = append(urls, r.url(benchManyName(i)))
	}
	start := func(side *benchSide, args ...string) *benchMount {
		m := r.fsmount(t, append(args, urls...)...)
		listing := benchRun(t, m, "ls", "-l", m.dir).stdout
		side.addCPU(benchMs(time.Since(m.started)), m.cpu().Seconds())
		benchCheckListing(t, listing)
		return m
	}
	fill := r.fsmount(t, append([]string{"--cache-dir", cache}, urls...)...)
	benchRun(t, fill, "sh", "-c", `cat "$0"/* > /dev/null`, fill.dir)
	fill.stop()
	for range benchRuns {
		start(&row.floor).stop()
		m := start(&row.ours, "--cache-dir", cache)
		status := benchRun(t, m, "cat", filepath.Join(m.dir, controlName, "status")).stdout
		if got := strings.Count(status, "state=complete"); got != benchMany {
			t.Errorf("%d files are complete at the start, not %d", got, benchMany)
		}
		row.peak = append(row.peak, m.peak())
		m.stop()
	}
}

// added measures 1,000 files that come to a running mount. The floor is a mount of them.
func (r *benchRig) added(t *testing.T) {
	row := r.table.row("1,000 files added to a running mount and listed", "ms", "a mount of them", benchTarget{most: 1.5})
	var urls []string
	for i := range benchMany {
		urls = append(urls, r.url(benchManyName(i)))
	}
	list := filepath.Join(r.dir, "added.list")
	benchOK(t, os.WriteFile(list, []byte(strings.Join(urls, "\n")), 0o600))
	for range benchRuns {
		m := r.fsmount(t, "--list", list)
		benchRun(t, m, "ls", "-l", m.dir)
		row.floor.add(benchMs(time.Since(m.started)))
		m.stop()
		m = r.fsmount(t, "--empty")
		row.addOurs(m, func() float64 {
			began := time.Now()
			benchRun(t, m, r.binary, "add", m.dir, "--list", list)
			benchCheckListing(t, benchRun(t, m, "ls", "-l", m.dir).stdout)
			return benchMs(time.Since(began))
		})
		row.peak = append(row.peak, m.peak())
		m.stop()
	}
}

// streamed measures a file of which the disk has a small part at a time, on a tmpfs of
// its own.
func (r *benchRig) streamed(t *testing.T) {
	const budget = "56M"
	disk := r.mkdir(t, "disk-*")
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
		r.table.note("left out, no tmpfs can be mounted (%v): the large file through %s", err, budget)
		t.Skip(err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	what := fmt.Sprintf("%d MiB through --cache-size %s, sha256sum", r.big>>20, budget)
	pipe := r.table.row(what, "MiB/s", "curl into sha256sum", benchTarget{})
	whole := r.table.row(what, "MiB/s", "fsmount that keeps all", benchTarget{least: 1 / 1.3})
	sum := func(m *benchMount, command string) (mibps float64, line string) {
		res := benchRun(t, m, "sh", "-c", command)
		return benchMiBps(r.big, res.wall), res.stdout[:64]
	}
	for range benchRuns {
		floor, want := sum(nil, "curl -sS "+r.url("big/big.bin")+" | sha256sum")
		pipe.floor.add(floor)
		keeps := r.fsmount(t, r.url("big/big.bin"))
		floor, _ = sum(keeps, "sha256sum "+keeps.file)
		whole.floor.add(floor)
		keeps.stop()
		m := r.fsmount(t, "--temp-dir", disk, "--cache-size", budget, r.url("big/big.bin"))
		ours, got := sum(m, "sha256sum "+m.file)
		pipe.ours.add(ours)
		whole.ours.add(ours)
		if got != want {
			t.Errorf("sha256sum of the file that streams through: %s, want %s", got, want)
		}
		m.stop()
	}
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

// complete measures one file, mounted and fetched once, by each system in turn:
// sequential reads without the page cache and with it, and random reads past it.
func (r *benchRig) complete(t *testing.T) {
	const name = "big/big.bin"
	ours := r.fsmount(t, r.url(name))
	r.compare(t, ours, name)
	null := r.mkdir(t, "mount-*")
	floors := []*benchMount{r.mount(t, "null server", null, benchNullName, benchChildArgv(t, "null", null, r.big)...)}
	if benchHas("httpdirfs") {
		floors = append(floors, r.httpdirfs(t))
	} else {
		r.table.note("left out, httpdirfs is not installed: the rows beside it")
	}

	r.dropped(t, ours, floors)
	r.cached(t, ours)
	if benchHas("fio") {
		for _, threads := range []int{1, 16} {
			what := fmt.Sprintf("random 4 KiB, fio psync direct, threads: %d", threads)
			r.measure(what, "reads/s", 0, benchRuns, ours, floors, func(m *benchMount) float64 { return r.fio(t, m, threads) })
		}
	} else {
		r.table.note("left out, fio is not installed: random reads")
	}
	benchChild(t, ours, "check", ours.file, benchBigSeed)
	r.compare(t, ours, name)
}

// httpdirfs mounts the origin's directory with httpdirfs, and reads the file, which
// httpdirfs then caches.
func (r *benchRig) httpdirfs(t *testing.T) *benchMount {
	t.Helper()
	dir, cache := r.mkdir(t, "mount-*"), r.mkdir(t, "httpdirfs-*")
	m := r.mount(t, "httpdirfs --cache", dir, "big.bin", benchHTTPDirFS(r.url("big/big.bin"), dir, cache)...)
	benchDD(t, m, m.file, r.big)
	return m
}

// measure makes a row for each floor, whose runs alternate with ours. least is the
// target beside the first floor, the null server; beside a peer it is 1.
func (r *benchRig) measure(what, unit string, least float64, runs int, ours *benchMount, floors []*benchMount,
	read func(*benchMount) float64) {
	rows := make([]*benchRow, len(floors))
	for i, floor := range floors {
		rows[i] = r.table.row(what, unit, floor.name, benchTarget{least: 1})
	}
	rows[0].target.least = least
	var side benchSide
	for range runs {
		for i, floor := range floors {
			rows[i].floor.addTimed(floor, func() float64 { return read(floor) })
		}
		side.addTimed(ours, func() float64 { return read(ours) })
	}
	for _, row := range rows {
		row.ours, row.peak = side, []float64{ours.peak()}
	}
}

// dropped measures reads of a file whose pages the kernel has just dropped.
func (r *benchRig) dropped(t *testing.T, ours *benchMount, floors []*benchMount) {
	what := "complete, pages dropped, dd bs=1M"
	r.measure(what, "MiB/s", 0.9, benchShortRuns, ours, floors, func(m *benchMount) float64 {
		if left := benchChild(t, m, "drop", m.file)[0]; left != 0 {
			r.table.note("%s, %s: %.0f pages could not be dropped", what, m.name, left)
		}
		benchBackMemory(t, 3*r.big)
		return benchMiBps(r.big, benchDD(t, m, m.file, r.big))
	})
	for _, m := range append([]*benchMount{ours}, floors...) {
		r.table.note("read_ahead_kb of %s: %s", m.name, m.readAhead())
	}
}

// readAhead returns the mount's read_ahead_kb.
func (m *benchMount) readAhead() string {
	path := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", mountedAt(m.dir).minor)
	kib, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(kib))
}

// cached measures reads of a file in the kernel's page cache, beside the origin's own
// file, which is there too.
func (r *benchRig) cached(t *testing.T, ours *benchMount) {
	row := r.table.row("complete, in the page cache, dd bs=1M", "MiB/s", "native file", benchTarget{least: 0.8})
	native := r.doc("big/big.bin")
	benchDD(t, nil, native, r.big)
	benchDD(t, ours, ours.file, r.big)
	for range benchShortRuns {
		row.floor.add(benchMiBps(r.big, benchDD(t, nil, native, r.big)))
		row.ours.addTimed(ours, func() float64 { return benchMiBps(r.big, benchDD(t, ours, ours.file, r.big)) })
	}
}

// fio returns how many random reads a second that many threads make.
func (r *benchRig) fio(t *testing.T, m *benchMount, threads int) float64 {
	t.Helper()
	out := benchRun(t, m, "fio", "--name=random", "--filename="+m.file, "--readonly",
		"--rw=randread", "--bs=4k", "--ioengine=psync", "--direct=1", "--thread",
		fmt.Sprintf("--numjobs=%d", threads), "--group_reporting", fmt.Sprintf("--size=%d", r.big),
		"--time_based", "--runtime=2", "--allow_file_create=0", "--output-format=json").stdout
	var report struct {
		Jobs []struct {
			Error int
			Read  struct{ IOPS float64 }
		}
	}
	text := out[max(0, strings.IndexByte(out, '{')):] // after any warnings
	if err := json.Unmarshal([]byte(text), &report); err != nil || len(report.Jobs) != 1 {
		t.Fatalf("fio: %v in %q", err, out)
	}
	if job := report.Jobs[0]; job.Error != 0 {
		t.Fatalf("fio: error %d", job.Error)
	}
	return report.Jobs[0].Read.IOPS
}
