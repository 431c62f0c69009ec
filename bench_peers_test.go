//go:build bench

// bench_peers_test.go measures the installed programs of the kind beside fsmount, each with the
// floor of its case, all in turn. FSMOUNT_BENCH_CHART names a file for the ratios to the floors, which
// docs/bench.py draws.

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchPeer is a program that mounts the files of a directory of a web server.
type benchPeer struct {
	name   string
	single bool                                // it mounts one file
	serial bool                                // first reads of a file at once fail
	argv   func(url, dir, own string) []string // own is a directory for its cache
}

var benchPeers = []benchPeer{
	{name: "rclone", argv: func(url, dir, own string) []string {
		return []string{"rclone", "mount", ":http:", dir, "--http-url", benchDirOf(url), "--config", own + "/none", "--read-only",
			"--vfs-cache-mode", "full", "--cache-dir", own, "--dir-cache-time", "24h", "--attr-timeout", "1h", "--log-level", "ERROR"}
	}},
	{name: "httpdirfs", serial: true, argv: benchHTTPDirFS},
	{name: "httpfs2", single: true, argv: func(url, dir, _ string) []string {
		return []string{"httpfs2", "-f", "-c", "/dev/null", url, dir}
	}},
}

func benchHTTPDirFS(url, dir, own string) []string {
	return []string{"env", "HOME=" + own, "XDG_CACHE_HOME=" + own, "XDG_CONFIG_HOME=" + own,
		"httpdirfs", "-f", "--cache", "--cache-location", own, benchDirOf(url), dir}
}

// benchIdle is how long net/http alone idles before its request: as long as a program takes that starts and
// reads from a mount. A processor that was idle answers half as fast.
const benchIdle = 50 * time.Millisecond

// benchDirOf returns the URL of the directory of a file.
func benchDirOf(url string) string { return url[:strings.LastIndexByte(url, '/')+1] }

// benchCase is what each program does. All figures are milliseconds.
type benchCase struct {
	what    string
	url     string // of the file
	floor   string
	measure func() float64
	use     func(m *benchMount) float64
	most    float64 // for ours/floor
	kept    bool    // of one mount, which has read the file before
	many    bool    // of the whole directory of url
	atOnce  bool    // many readers at once
}

func (r *benchRig) peers(t *testing.T) {
	const random = 20_000
	mid, slow := r.url("mid/mid.bin"), r.url("slow/slow.bin")
	far := benchLinkTo(t, r.url("mid/mid.bin"), 10*time.Millisecond, 0)
	tail := int64(benchSlowBytes - benchTailBytes)
	piece := func(seed uint64, off, n int64) func(m *benchMount) float64 {
		return func(m *benchMount) float64 { return benchChild(t, m, "piece", m.file, seed, off, n)[0] / 1e6 }
	}
	get := func(url string, seed uint64, off, n int64) func() float64 {
		return func() float64 { return benchChild(t, nil, "get", url, seed, off, n)[0] / 1e6 }
	}
	drop := func(m *benchMount, use func() float64) float64 {
		benchChild(t, m, "drop", m.file)
		return use()
	}
	fio := func(m *benchMount, file string) float64 {
		return benchMs(benchRun(t, m, "fio", "--name=random", "--filename="+file, "--readonly", "--rw=randread", "--bs=4k",
			"--ioengine=psync", "--invalidate=0", fmt.Sprintf("--number_ios=%d", random), "--allow_file_create=0").wall)
	}
	native := r.doc("mid/mid.bin")
	var urls []string
	for i := range benchMany {
		urls = append(urls, r.url(benchManyName(i)))
	}
	config := filepath.Join(r.dir, "curl.conf")
	benchOK(t, os.WriteFile(config, []byte("url = "+strings.Join(urls, "\nurl = ")), 0o600))
	chart := map[string]any{"machine": fmt.Sprintf("%s, %d CPUs, %s", benchKernel(), runtime.NumCPU(), runtime.Version()),
		"date": time.Now().Format(time.DateOnly), "versions": benchVersions(t)}
	var ratios []any
	for _, c := range []benchCase{
		{what: "256 MiB, cold", url: mid, floor: "curl -o FILE", most: 1.25, measure: func() float64 {
			defer os.Remove(r.out)
			return benchMs(r.curl(t, benchMidBytes, mid).wall)
		}, use: func(m *benchMount) float64 { return benchMs(benchDD(t, m, m.file, benchMidBytes)) }},
		{what: "256 MiB, complete", url: mid, kept: true, floor: "native file", most: 1.11,
			measure: func() float64 { return benchMs(benchDD(t, nil, native, benchMidBytes)) },
			use: func(m *benchMount) float64 {
				return drop(m, func() float64 { return benchMs(benchDD(t, m, m.file, benchMidBytes)) })
			}},
		{what: "random 4 KiB, complete", url: mid, kept: true, floor: "native file", most: 1.11,
			measure: func() float64 { return fio(nil, native) },
			use:     func(m *benchMount) float64 { return drop(m, func() float64 { return fio(m, m.file) }) }},
		{what: "first 4 KiB", url: mid, floor: "net/http alone", most: 1.9,
			measure: get(mid, benchMidSeed, 0, benchFirstBytes), use: piece(benchMidSeed, 0, benchFirstBytes)},
		{what: "last 64 KiB of a slow file", url: slow, floor: "net/http alone", most: 1.9,
			measure: get(slow, benchSlowSeed, tail, benchTailBytes), use: piece(benchSlowSeed, tail, benchTailBytes)},
		{what: "first 4 KiB, 20 ms away", url: far, floor: "net/http alone", most: 1.1,
			measure: get(far, benchMidSeed, 0, benchFirstBytes), use: piece(benchMidSeed, 0, benchFirstBytes)},
		{what: "16 readers of 16 MiB, cold", url: mid, floor: "16 GETs into a file", most: 1.3, atOnce: true, measure: func() float64 {
			defer os.Remove(r.out)
			return benchChild(t, nil, "shares", mid, benchMidSeed, r.out)[0] / 1e6
		}, use: func(m *benchMount) float64 { return benchChild(t, m, "shares", m.file, benchMidSeed)[0] / 1e6 }},
		{what: "1,000 files mounted and listed", url: urls[0], many: true, floor: "curl -I of all", most: 1.3,
			measure: func() float64 { return benchMs(benchRun(t, nil, "curl", "-sS", "-f", "-I", "-K", config).wall) },
			use: func(m *benchMount) float64 {
				benchCheckListing(t, benchRun(t, m, "ls", "-l", m.dir).stdout)
				return benchMs(time.Since(m.started))
			}},
	} {
		ratios = append(ratios, r.peersDo(t, c, urls))
	}
	chart["cases"] = ratios
	if file := os.Getenv("FSMOUNT_BENCH_CHART"); file != "" {
		text, err := json.MarshalIndent(chart, "", " ")
		benchOK(t, err)
		benchOK(t, os.WriteFile(file, text, 0o644))
	}
}

// peersDo measures c, and returns the ratios of all programs to the floor.
func (r *benchRig) peersDo(t *testing.T, c benchCase, urls []string) map[string]any {
	row := r.table.row("beside peers: "+c.what, "ms", c.floor, benchTarget{most: c.most})
	systems := []benchPeer{{name: "fsmount", argv: func(url, dir, _ string) []string {
		argv := []string{r.binary, "-mount", dir, "--temp-dir", r.dir}
		if c.many {
			return append(argv, urls...)
		}
		return append(argv, url)
	}}}
	for _, p := range benchPeers {
		if benchHas(p.name) && !(p.single && c.many) && !(p.serial && c.atOnce) {
			systems = append(systems, p)
		}
	}
	mount := func(p benchPeer) *benchMount {
		dir := r.mkdir(t, "mount-*")
		return r.mount(t, p.name, dir, path.Base(c.url), p.argv(c.url, dir, r.mkdir(t, p.name+"-*"))...)
	}
	kept := make([]*benchMount, len(systems))
	sides := make([]benchSide, len(systems))
	for run := range benchRuns {
		unix.Sync() // else the disk is busy with what others wrote
		row.floor.add(c.measure())
		for i, p := range systems {
			m := kept[i]
			if m == nil {
				m = mount(p)
			}
			if c.kept && run == 0 {
				kept[i] = m
				benchDD(t, m, m.file, benchMidBytes)
			}
			if !c.many { // a program that has looked the file up
				benchRun(t, m, "ls", "-l", m.file)
			}
			unix.Sync()
			sides[i].add(c.use(m))
			if kept[i] == nil {
				m.stop()
			}
		}
	}
	for _, m := range kept {
		if m != nil {
			m.stop()
		}
	}
	row.ours = sides[0]
	ratios := map[string]any{"case": c.what, "floor": c.floor, "ms": benchMedian(row.floor.samples)}
	times := make(map[string]float64)
	for i, p := range systems {
		times[p.name] = benchMedian(sides[i].samples) / benchMedian(row.floor.samples)
		if i > 0 {
			beside := r.table.row("beside peers: "+c.what, "ms", p.name, benchTarget{most: 1})
			beside.floor.samples, beside.ours = sides[i].samples, sides[0]
		}
	}
	ratios["times"] = times
	return ratios
}

// benchVersions returns what the programs say of their versions.
func benchVersions(t *testing.T) (all []string) {
	for _, p := range benchPeers {
		if benchHas(p.name) {
			out := benchRun(t, nil, "sh", "-c", "dpkg-query -W -f '${Version}' "+p.name+" || true").stdout
			all = append(all, strings.TrimSpace(p.name+" "+out))
		}
	}
	return all
}

// benchGet prints the nanoseconds that net/http alone takes for a piece of a file, on a connection that
// served a request benchIdle before. Its arguments are those of benchReadPiece, with a URL.
func benchGet(t *testing.T, args []string) string {
	seed, off := uint64(benchInteger(t, args[1])), benchInteger(t, args[2])
	p := make([]byte, benchInteger(t, args[3]))
	defer http.DefaultClient.CloseIdleConnections()
	head, err := http.Head(args[0])
	benchOK(t, err)
	head.Body.Close()
	time.Sleep(benchIdle)
	req, err := http.NewRequest(http.MethodGet, args[0], nil)
	benchOK(t, err)
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
	begin := time.Now()
	resp, err := http.DefaultClient.Do(req)
	benchOK(t, err)
	defer resp.Body.Close()
	err = benchReceive(resp.Body, p, 0, "")
	took := time.Since(begin)
	benchOK(t, err)
	benchOK(t, checkContent(p, seed, off))
	return fmt.Sprint(took.Nanoseconds())
}
