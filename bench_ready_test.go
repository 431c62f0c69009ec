//go:build bench && linux

// bench_ready_test.go measures reads of a file that is complete, beside a null
// server, which answers from memory at once and so shows what the kernel and
// the library cost, and beside httpdirfs where it is installed.

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

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
	path := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", openControl(m.dir).minor)
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
