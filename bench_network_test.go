//go:build bench

// bench_network_test.go measures where the network is the limit or readers want
// bytes out of order: the end of a slow file, many readers, seeks beside a
// sequential read, slow connections, and a path with a round trip.

package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// benchReadPiece returns the nanoseconds from open to a piece of a file, which
// must be the content of the seed. Its arguments are a path, the seed, and
// offset and length of the piece.
func benchReadPiece(args []string) (string, error) {
	seed, err1 := strconv.ParseUint(args[1], 10, 64)
	off, err2 := strconv.ParseInt(args[2], 10, 64)
	n, err3 := strconv.ParseInt(args[3], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return "", err
	}
	p := make([]byte, n)
	begin := time.Now()
	f, err := benchOpen(args[0])
	if err != nil {
		return "", err
	}
	defer f.Close()
	err = f.readFull(p, off)
	took := time.Since(begin)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(took.Nanoseconds()), checkContent(p, seed, off)
}

// benchFD is a descriptor that the runtime's poller knows nothing of: it may be
// of a file of a mount.
type benchFD int

func benchOpen(path string) (benchFD, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return benchFD(fd), err
}

func (fd benchFD) Close() error { return unix.Close(int(fd)) }

// readFull fills p with the bytes at off.
func (fd benchFD) readFull(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(int(fd), p, off)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("at %d: %w", off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// benchReadShares returns the nanoseconds that the readers take together, each
// for its own share of the middle file: of a path, or of a URL by a request of
// its own, which keeps it in a file too, if one is named. The bytes, whose seed
// is given, are compared when all have come.
func benchReadShares(args []string) (string, error) {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	read := benchReadShare
	if strings.HasPrefix(args[0], "http:") {
		read = benchGetShare
	}
	keep := ""
	if len(args) > 2 {
		keep = args[2]
	}
	all := make([]byte, benchMidBytes)
	fillContent(all, 0, 0) // so that no page of it is to be made while time counts
	begin := time.Now()
	err = benchAtOnce(benchReaders, func(i int) error {
		off := int64(i) * benchShareBytes
		return read(args[0], all[off:off+benchShareBytes], off, keep)
	})
	took := time.Since(begin)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(took.Nanoseconds()), checkContent(all, seed, 0)
}

// benchAtOnce runs work n times at once, and returns when all are done.
func benchAtOnce(n int, work func(i int) error) error {
	var workers sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		workers.Go(func() { errs[i] = work(i) })
	}
	workers.Wait()
	return errors.Join(errs...)
}

// benchReadShare reads by 1 MiB at a time.
func benchReadShare(path string, p []byte, off int64, _ string) error {
	f, err := benchOpen(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for piece := range slices.Chunk(p, 1<<20) {
		if err := f.readFull(piece, off); err != nil {
			return err
		}
		off += int64(len(piece))
	}
	return nil
}

// benchGetShare requests it on a connection of its own.
func benchGetShare(url string, p []byte, off int64, keep string) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("%s, not %d", resp.Status, http.StatusPartialContent)
	}
	return benchReceive(resp.Body, p, off, keep)
}

// benchReceive fills p, and writes it at off of the file to keep it in, if any.
func benchReceive(body io.Reader, p []byte, off int64, keep string) error {
	write := func([]byte, int64) (int, error) { return 0, nil }
	if keep != "" {
		f, err := os.OpenFile(keep, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		write = f.WriteAt
	}
	for piece := range slices.Chunk(p, 1<<20) {
		if _, err := io.ReadFull(body, piece); err != nil {
			return err
		}
		if _, err := write(piece, off); err != nil {
			return err
		}
		off += int64(len(piece))
	}
	return nil
}

// benchSeek returns the nanoseconds that the middle file takes in sequence
// while seekers read it at random until it ends, the mean of what a seek took,
// and how many there were. What seekers read is compared.
func benchSeek(args []string) (string, error) {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	var seeks, spent atomic.Int64
	var took time.Duration
	ended := make(chan struct{})
	err = benchAtOnce(1+benchSeekers, func(i int) error {
		f, err := benchOpen(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		if i == 0 {
			defer close(ended)
			took, err = f.readThrough(benchMidBytes)
			return err
		}
		return f.seekAbout(uint64(i), seed, ended, &seeks, &spent)
	})
	return fmt.Sprint(took.Nanoseconds(), spent.Load()/max(1, seeks.Load()), seeks.Load()), err
}

// readThrough reads a file of that size from its start, and returns how long
// that takes.
func (fd benchFD) readThrough(size int64) (time.Duration, error) {
	p := make([]byte, 1<<20)
	begin := time.Now()
	for off := int64(0); off < size; off += int64(len(p)) {
		if err := fd.readFull(p, off); err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

// seekAbout reads at random places of the middle file until ended, and counts
// how often and how long that takes.
func (fd benchFD) seekAbout(random, seed uint64, ended <-chan struct{}, seeks, spent *atomic.Int64) error {
	places, p := rand.New(rand.NewPCG(random, 1)), make([]byte, benchSeekBytes)
	for {
		off := places.Int64N(benchMidBytes - benchSeekBytes)
		begin := time.Now()
		if err := fd.readFull(p, off); err != nil {
			return err
		}
		spent.Add(time.Since(begin).Nanoseconds())
		seeks.Add(1)
		if err := checkContent(p, seed, off); err != nil {
			return err
		}
		select {
		case <-ended:
			return nil
		case <-time.After(benchSeekPause):
		}
	}
}
