//go:build bench && linux

// bench_network_test.go measures fsmount where the network is the limit, or
// where readers want bytes out of order: the end of a slow file, many readers
// of one file, seeks beside a sequential read, an origin that gives one
// connection little, and a path with a round trip. Its readers are in
// bench_readers_test.go, the paths that no ordinary server offers in
// bench_path_test.go.

package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// The file of the slow and the distant origin. It ends at no page.
	benchSlowSeed  = 3
	benchSlowBytes = 64<<20 - 4321

	benchTailBytes = 64 << 10

	// Many readers share the middle file between them.
	benchReaders    = 16
	benchShareBytes = benchMidBytes / benchReaders

	// Seekers read what a player does at a new place, or a demuxer in an index.
	benchSeekers   = 8
	benchSeekBytes = 64 << 10

	// benchSeekPause is how long each thinks between two seeks: next to nothing,
	// but not so little that they keep a processor from the sequential reader.
	benchSeekPause = 10 * time.Millisecond
)

// tail measures the last bytes of a file that is far from having arrived, as a
// reader wants them that starts with an index at the end.
func (r *benchRig) tail(t *testing.T) {
	what := "last 64 KiB of 64 MiB at 4 MB/s"
	whole := &benchRow{what: what + ", tail's whole life", unit: "ms",
		floor: benchSide{what: "curl -r -65536, whole life"}, target: benchTarget{most: 2}}
	open := &benchRow{what: what + ", from open on", unit: "ms",
		floor: benchSide{what: "curl -r -65536, time_total"}, target: benchTarget{most: 2}}
	defer r.table.add(whole, open)
	for range benchShortRuns {
		fl, _ := r.curl(t, benchTailBytes, "-r", fmt.Sprint(-benchTailBytes), "-w", "%{time_total}", r.url("slow/slow.bin"))
		whole.floor.add(benchMs(fl.wall))
		open.floor.add(benchFigure(t, fl.stdout) * 1e3)
		whole.ours.add(r.tailByCommand(t))
		open.ours.add(r.tailFromOpen(t))
	}
}

// tailByCommand returns the milliseconds that tail(1) takes.
func (r *benchRig) tailByCommand(t *testing.T) float64 {
	t.Helper()
	m := r.listed(t, "slow/slow.bin")
	defer m.stop()
	res := benchRun(t, m, "tail", "-c", fmt.Sprint(benchTailBytes), m.path("slow.bin"))
	if len(res.stdout) != benchTailBytes {
		t.Fatalf("tail printed %d bytes, not %d", len(res.stdout), benchTailBytes)
	}
	if err := checkContent([]byte(res.stdout), benchSlowSeed, benchSlowBytes-benchTailBytes); err != nil {
		t.Error(err)
	}
	return benchMs(res.wall)
}

// tailFromOpen returns the milliseconds between open and the last bytes.
func (r *benchRig) tailFromOpen(t *testing.T) float64 {
	t.Helper()
	m := r.listed(t, "slow/slow.bin")
	defer m.stop()
	return benchFigure(t, benchChild(t, m, "piece", m.path("slow.bin"), fmt.Sprint(benchSlowSeed),
		fmt.Sprint(benchSlowBytes-benchTailBytes), fmt.Sprint(benchTailBytes))) / 1e6
}

// benchFigure is a number that a command printed.
func benchFigure(t *testing.T, text string) float64 {
	t.Helper()
	figure, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil {
		t.Fatal(err)
	}
	return figure
}

// shares measures readers that each want another part of a file, which nobody
// has read yet.
func (r *benchRig) shares(t *testing.T) {
	const name = "mid/mid.bin"
	what := fmt.Sprintf("256 MiB cold, %d readers of 16 MiB each", benchReaders)
	floor := fmt.Sprintf("%d ranged GETs at once", benchReaders)
	kept := &benchRow{what: what, unit: "ms", floor: benchSide{what: floor + ", into a file"}, target: benchTarget{most: 1.3}}
	dropped := &benchRow{what: what, unit: "ms", floor: benchSide{what: floor}, target: benchTarget{most: 1.3}}
	defer r.table.add(kept, dropped)
	get := func(args ...string) float64 {
		args = append([]string{r.url(name), fmt.Sprint(benchMidSeed)}, args...)
		return benchFigure(t, benchChild(t, nil, "shares", args...)) / 1e6
	}
	for range benchRuns {
		dropped.floor.add(get())
		file := filepath.Join(r.dir, "shares.out")
		kept.floor.add(get(file))
		os.Remove(file)

		m := r.fsmount(t, name)
		before := m.cpu()
		took := benchFigure(t, benchChild(t, m, "shares", m.path("mid.bin"), fmt.Sprint(benchMidSeed))) / 1e6
		dropped.ours.addCPU(took, (m.cpu() - before).Seconds())
		dropped.peak = append(dropped.peak, m.peak())
		m.stop()
	}
	kept.ours, kept.peak = dropped.ours, dropped.peak
}

// seekers measures a sequential read while others read at random: what they
// add to its time, and to what the origin sends.
func (r *benchRig) seekers(t *testing.T) {
	const roundTrip, rate = 20 * time.Millisecond, 64 << 20
	url := r.url("counted/mid.bin")
	r.seekersBeside(t, "256 MiB", url)
	r.seekersBeside(t, "256 MiB through 20 ms and 64 MiB/s", benchLinkTo(t, url, roundTrip/2, rate))
}

func (r *benchRig) seekersBeside(t *testing.T, what, url string) {
	what = fmt.Sprintf("%s beside %d random seekers", what, benchSeekers)
	took := &benchRow{what: what, unit: "s", floor: benchSide{what: "curl -o FILE, time_total"}, target: benchTarget{most: 1.2}}
	sent := &benchRow{what: what + ": sent by the origin", unit: "MiB",
		floor: benchSide{what: "curl -o FILE"}, target: benchTarget{most: 1.1}}
	seek := &benchRow{what: what + ": a seek, mean", unit: "ms"}
	seeks := &benchRow{what: what + ": seeks", unit: ""}
	defer r.table.add(took, sent, seek, seeks)
	for range benchRuns {
		before := r.sent(t)
		fl, _ := r.curl(t, benchMidBytes, "-w", "%{time_total}", url)
		took.floor.add(benchFigure(t, fl.stdout))
		sent.floor.add(float64(r.sent(t)-before) / (1 << 20))

		before = r.sent(t)
		m := r.fsmountURLs(t, nil, url)
		busy := m.cpu()
		figures := strings.Fields(benchChild(t, m, "seekers", m.path("mid.bin"), fmt.Sprint(benchMidSeed)))
		took.ours.addCPU(benchFigure(t, figures[0])/1e9, (m.cpu() - busy).Seconds())
		seek.ours.add(benchFigure(t, figures[1]) / 1e6)
		seeks.ours.add(benchFigure(t, figures[2]))
		took.peak = append(took.peak, m.peak())
		r.compare(t, m, "mid.bin", "mid/mid.bin")
		m.stop()
		sent.ours.add(float64(r.sent(t)-before) / (1 << 20))
	}
}

// sent returns how many bytes the origin has sent of its counted files, with
// the headers, as far as its own kernel took them.
//
// BLOCKS until every connection to the origin has ended, so that no request is
// left which nginx has not counted; wakes on benchPatience, which fails the
// test.
func (r *benchRig) sent(t *testing.T) (sum int64) {
	t.Helper()
	for begin := time.Now(); r.connected(t) > 1; time.Sleep(time.Millisecond) {
		if time.Since(begin) > benchPatience {
			t.Fatal("somebody still has a connection to nginx")
		}
	}
	log, err := os.ReadFile(filepath.Join(r.dir, benchSentLog))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		sum += int64(benchFigure(t, line))
	}
	return sum
}

// connected returns how many connections the origin has, with the one that
// asks for it.
func (r *benchRig) connected(t *testing.T) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url("connections"), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n := 0
	if _, err := fmt.Fscanf(resp.Body, "Active connections: %d", &n); err != nil {
		t.Fatalf("nginx does not say how many connections it has: %v", err)
	}
	return n
}

// connections measures an origin that gives each connection little.
func (r *benchRig) connections(t *testing.T) {
	const runs = 2 // of twelve seconds and more, with little to disturb them
	const size = 96 << 20
	row := &benchRow{what: fmt.Sprintf("96 MiB, 50 ms and 8 MB/s a request, dd bs=1M, %d runs", runs), unit: "MiB/s",
		floor: benchSide{what: "--connections 1"}, target: benchTarget{least: 3}}
	defer r.table.add(row)
	url := benchThrottled(t, demoFile{name: "throttled.bin", size: size, seed: benchSlowSeed, rate: 8e6}, 50*time.Millisecond)
	read := func(connections string) (speed, cpu float64) {
		m := r.fsmountURLs(t, []string{"--connections", connections}, url)
		defer m.stop()
		before := m.cpu()
		wall := benchDD(t, m, m.path("throttled.bin"), size).wall
		cpu = (m.cpu() - before).Seconds()
		benchChild(t, m, "check", m.path("throttled.bin"), fmt.Sprint(benchSlowSeed))
		return benchMiBps(size, wall), cpu
	}
	for range runs {
		row.floor.addCPU(read("1"))
		row.ours.addCPU(read("4"))
	}
}

// distant measures a file that is a round trip away.
func (r *benchRig) distant(t *testing.T) {
	const roundTrip = 20 * time.Millisecond
	row := &benchRow{what: "64 MiB through 20 ms of round trip, dd bs=1M", unit: "ms",
		floor: benchSide{what: "curl -o FILE"}, target: benchTarget{most: 1.1}}
	defer r.table.add(row)
	url := benchLinkTo(t, r.url("small/slow.bin"), roundTrip/2, 0)
	for range benchShortRuns {
		fl, path := r.curl(t, benchSlowBytes, url)
		os.Remove(path)
		row.floor.addCPU(benchMs(fl.wall), fl.cpu.Seconds())

		m := r.fsmountURLs(t, nil, url)
		before := m.cpu()
		wall := benchDD(t, m, m.path("slow.bin"), benchSlowBytes).wall
		row.ours.addCPU(benchMs(wall), (m.cpu() - before).Seconds())
		r.compare(t, m, "slow.bin", "small/slow.bin")
		m.stop()
	}
}
