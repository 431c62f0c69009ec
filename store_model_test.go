// A model test of the store, in a synctest bubble. Readers read several stores at
// random, over origins that fail in every way that a network can. The stores close
// during the reads or after them. The test checks each byte that a reader gets, and
// each byte that a store claims to have. Whenever all is settled, no reader may
// sleep that has its answer, or for which the store plans nothing.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const (
	modelSeeds      = 300
	modelSeedsShort = 40

	// modelSeedEnv names the seed to run, or a range of seeds: 17, or 0-5000. A seed
	// fixes what origins and readers do. It fixes neither the order in which goroutines
	// run nor the jitter of retries, so a failure may take some runs to show again.
	modelSeedEnv = "FSMOUNT_MODEL_SEED"

	// modelStall is how long an origin is silent before a request fails.
	modelStall = 15 * time.Second

	// modelPatience is more fake time than any read needs.
	modelPatience = 24 * time.Hour
)

// errModelGone ends the context of a reader that gives up.
var errModelGone = errors.New("the model's reader gave up")

func TestStoreModel(t *testing.T) {
	first, last := modelRange(t)
	dir := t.TempDir()
	var all modelCounts
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runModel(t, dir, seed, &all) })
			if t.Failed() {
				t.Logf("run it again: %s=%d go test -run TestStoreModel .", modelSeedEnv, seed)
			}
		})
	}
	if last-first+1 >= modelSeedsShort && !t.Failed() {
		all.mustHaveHappened(t)
	}
}

// modelRange returns the first and the last seed.
func modelRange(t *testing.T) (first, last uint64) {
	t.Helper()
	text := os.Getenv(modelSeedEnv)
	n, _ := fmt.Sscanf(text, "%d-%d", &first, &last)
	switch {
	case text == "" && testing.Short():
		return 0, modelSeedsShort - 1
	case text == "":
		return 0, modelSeeds - 1
	case n == 2 && first <= last:
		return first, last
	case n == 1:
		return first, first
	}
	t.Fatalf("%s: got %q, want a seed or a range of seeds", modelSeedEnv, text)
	return 0, 0
}

// modelCounts counts the events of all runs. An event that never happened means that
// the model does not test it.
type modelCounts struct {
	opens, faults, ready, waited, gaveUp, timedOut, failed, closed, wholes, evictions atomic.Int64
}

func (c *modelCounts) mustHaveHappened(t *testing.T) {
	t.Helper()
	for name, n := range map[string]*atomic.Int64{
		"requests": &c.opens, "faults": &c.faults, "ready reads": &c.ready, "reads that waited": &c.waited,
		"reads whose reader gave up": &c.gaveUp, "reads that timed out": &c.timedOut, "reads of a store that failed": &c.failed,
		"reads of a closed store": &c.closed, "files read whole": &c.wholes,
		"evictions": &c.evictions,
	} {
		t.Logf("%s: %d", name, n.Load())
		if n.Load() == 0 {
			t.Errorf("%s: got 0, want at least 1", name)
		}
	}
}

// modelRun is one seed's run.
type modelRun struct {
	t      *testing.T
	seed   uint64
	counts *modelCounts
	trace  *tracer
	hosts  *hostTable
	scarce bool // there are fewer places than connections
	files  []*modelFile

	wrong atomic.Int64 // errors so far; the first three are reported
}

// modelFile is a store with its origin and its readers.
type modelFile struct {
	run     *modelRun
	content uint64
	first   *TempFileStore
	origin  *modelOrigin
	closing atomic.Bool // Close was called

	reading sync.Map // the reads under way, by *byteRange

	mu       sync.Mutex
	handles  int       // GUARDED_BY(mu)
	closedAt time.Time // GUARDED_BY(mu); when a reader last closed the file
}

// latest returns the file's store: another one, if the first gave its room to others.
func (f *modelFile) latest() *TempFileStore {
	s := f.first
	for next := s.Replacement(); next != nil; next = s.Replacement() {
		s = next
	}
	return s
}

// rng returns the random numbers for the part of the run that the numbers identify.
func (m *modelRun) rng(part ...uint64) *rand.Rand {
	mixed := m.seed
	for _, n := range part {
		mixed = contentMix(mixed ^ (n+1)*splitmixGamma)
	}
	return rand.New(rand.NewPCG(m.seed, mixed))
}

func (f *modelFile) errorf(format string, args ...any) {
	m := f.run
	m.t.Helper()
	if m.wrong.Add(1) <= 3 {
		m.t.Errorf("seed %d at %v: store %d: %s\nevents until then:\n%s", m.seed, time.Now().Format("15:04:05.000000"),
			f.latest().debugID, fmt.Sprintf(format, args...), m.trace.events())
	}
}

func runModel(t *testing.T, dir string, seed uint64, counts *modelCounts) {
	log := newEventLog(io.Discard)
	defer log.Close(time.Second)
	m := &modelRun{t: t, seed: seed, counts: counts, trace: &tracer{log: log}}
	rng := m.rng()
	m.makeFiles(dir, rng)
	closeAt := -1
	if rng.IntN(2) == 0 {
		closeAt = rng.IntN(40)
	}
	var readers sync.WaitGroup
	for i := range 1 + rng.IntN(8) {
		readers.Go(func() { m.readSome(m.rng(1, uint64(i))) })
	}
	done := make(chan struct{})
	go func() {
		readers.Wait()
		close(done)
	}()
	m.watch(rng, done, closeAt)
	<-done
	if closeAt < 0 {
		m.readWholes()
	}
	m.closeAll()
}

func (m *modelRun) makeFiles(dir string, rng *rand.Rand) {
	places := []int{1, 2, 3, 5, 64, 64, 64}[rng.IntN(7)]
	m.hosts = newHostTable(places, stallLimit)
	n := 1 + rng.IntN(3)
	room := testConfig(dir).room
	if rng.IntN(2) == 0 {
		room = roomConfig(dir, (4+rng.Int64N(12))*mib).room
	}
	for i := range n {
		f := &modelFile{run: m, content: uint64(i) + 1}
		f.origin = newModelOrigin(f, rng)
		config := testConfig(dir)
		config.trace, config.room = m.trace, room
		config.connections = 1 + rng.IntN(5)
		config.linger = time.Duration(1+rng.IntN(20)) * time.Second
		config.readTimeout = modelPatience
		if rng.IntN(4) == 0 {
			config.readTimeout = time.Duration(1+rng.IntN(30)) * time.Second
		}
		f.first = newTempFileStore(f.origin, f.origin.obj, config)
		m.scarce = m.scarce || places < n*5
		m.files = append(m.files, f)
	}
}

// watch checks the stores whenever all is settled, until done is closed. At step
// closeAt it closes the stores instead.
func (m *modelRun) watch(rng *rand.Rand, done <-chan struct{}, closeAt int) {
	for step := 0; ; step++ {
		select {
		case <-done:
			return
		case <-time.After(modelPause(rng)):
		}
		synctest.Wait()
		for _, f := range m.files {
			f.check()
		}
		if step == closeAt {
			m.closeAll()
			return
		}
	}
}

// modelPause returns a pause that is mostly short, and sometimes longer than linger.
func modelPause(rng *rand.Rand) time.Duration {
	return time.Duration(rng.Int64N(int64([]time.Duration{
		time.Millisecond, 20 * time.Millisecond, 300 * time.Millisecond, 2 * time.Second, 30 * time.Second,
	}[rng.IntN(5)])))
}

// check requires that the store, where all is settled, has forgotten no reader and
// breaks none of its limits.
func (f *modelFile) check() {
	if lost := f.latest().Audit(); len(lost) > 0 {
		f.errorf("Audit: readers of %v sleep, want them to return", lost)
	}
	f.checkPlan()
	for r := range f.reading.Range {
		if r := *r.(*byteRange); f.answered(r) {
			f.errorf("a reader of %v sleeps, want it to return", r)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	paused := f.handles == 0 && time.Since(f.closedAt) > f.latest().linger
	if n := f.origin.inFlight.Load(); paused && waiterCount(f.latest()) == 0 && n > 0 {
		f.errorf("requests %v after the last close: got %d, want 0", f.latest().linger, n)
	}
}

// answered reports whether a read of r has its answer. It does not rely on the
// store's list of waiters.
func (f *modelFile) answered(r byteRange) bool {
	f.latest().mu.Lock()
	defer f.latest().mu.Unlock()
	r.end = min(r.end, f.latest().obj.Size)
	return f.latest().ended || f.latest().present.contains(r)
}

// checkPlan checks the plan's fetches, and that each waiter will wake.
func (f *modelFile) checkPlan() {
	s := f.latest()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.plan
	if len(p.fetches) > s.connections {
		f.errorf("fetches: got %d, want at most %d", len(p.fetches), s.connections)
	}
	if p.crowded && len(p.fetches) < s.connections {
		f.errorf("fetches: got %d, want %d where a reader found no connection free", len(p.fetches), s.connections)
	}
	if got, want := s.downloaded.Load(), s.present.firstMissing(0); got != want && !s.evicts.Load() {
		f.errorf("downloaded: got %d, want %d, the contiguous start of present", got, want)
	}
	for i, a := range p.fetches {
		for _, b := range p.fetches[:i] {
			if max(a.pos, b.pos) < min(a.end, b.end) {
				f.errorf("fetches [%d,%d) and [%d,%d) overlap", a.pos, a.end, b.pos, b.end)
			}
		}
	}
	for w := range s.waiters.all() {
		if !f.servedLocked(w) {
			f.errorf("a reader of %v waits, and nothing will wake it", w.r)
		}
	}
}

// servedLocked reports whether something will happen for w: a fetch brings its next
// byte, all connections are busy, or a retry is planned.
//
// LOCKS_REQUIRED(s.mu)
func (f *modelFile) servedLocked(w *waiter) bool {
	s := f.latest()
	if time.Until(s.plan.retryAt) > 0 {
		return s.plan.retry != nil
	}
	off := s.present.firstMissing(w.r.off)
	for _, g := range s.plan.fetches {
		if g.pos <= off && off < g.end || !s.obj.Ranges {
			return true
		}
	}
	return len(s.plan.fetches) == s.connections
}

// readWholes makes the origins fail no more, and requires that every file that did
// not change can be read to its end.
func (m *modelRun) readWholes() {
	for _, f := range m.files {
		f.origin.healed.Store(true)
		f.open()
		size := f.latest().Object().Size
		p := make([]byte, size+1)
		err := error(nil)
		for off := int64(0); off <= size && err == nil; off += maxReadBytes {
			part := p[off:min(off+maxReadBytes, size+1)]
			for attempt := 0; attempt < 100; attempt++ {
				_, err = f.latest().ReadAt(m.t.Context(), part, off)
				if err == nil || !errors.Is(err, errReadTimeout) && !f.origin.failedWith(err) {
					break
				}
				time.Sleep(backoffMax) // a file that failed again and again is asked for after a pause
				f.open()
				f.close()
			}
		}
		switch {
		case f.latest().Snapshot().State == "changed" && errors.Is(err, errChanged):
		case err != io.EOF:
			f.errorf("read of the whole file: got %v, want %v", err, io.EOF)
		default:
			m.counts.wholes.Add(1)
			if wrong := checkContent(p[:size], f.content, 0); wrong != nil {
				f.errorf("read of the whole file: %v", wrong)
			}
		}
		f.close()
		synctest.Wait()
		f.check()
	}
}

// closeAll closes each store from several goroutines, and compares the bytes that
// the store claimed with those in its file.
func (m *modelRun) closeAll() {
	for _, f := range m.files {
		f.closing.Store(true)
		file := f.dupFile()
		before := time.Now()
		var closing sync.WaitGroup
		for range 3 {
			closing.Go(func() {
				if err := f.latest().Close(); err != nil {
					f.errorf("Close: got %v, want no error", err)
				}
			})
		}
		closing.Wait()
		f.latest().room.closing.Wait()
		m.counts.evictions.Store(max(m.counts.evictions.Load(), f.latest().room.evictions.Load()))
		if took := time.Since(before); took > 0 {
			f.errorf("time for Close: got %v, want 0", took)
		}
		f.checkClosed(file)
	}
	if used := m.files[0].latest().room.used.Load(); used != 0 {
		m.t.Errorf("seed %d: in the account of the disk after Close: %d bytes, want 0", m.seed, used)
	}
}

// dupFile returns a descriptor of the temporary file that stays open after Close. It
// returns nil if there is no file yet, or the store is closed.
func (f *modelFile) dupFile() *os.File {
	file := f.latest().file.Load()
	if file == nil || f.latest().closed.Load() {
		return nil
	}
	fd, err := syscall.Dup(int(file.Fd()))
	if err != nil {
		f.run.t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "temporary file")
}

// checkClosed requires that a closed store has left nothing behind, and that file,
// if it is not nil, has the bytes that the store claimed.
func (f *modelFile) checkClosed(file *os.File) {
	s := f.latest()
	if n := s.refCount.Load(); n != 0 {
		f.errorf("references after Close: got %d, want 0", n)
	}
	if n := f.origin.inFlight.Load(); n != 0 {
		f.errorf("requests after Close: got %d, want 0", n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan.retry != nil || s.plan.linger != nil || len(s.plan.fetches) > 0 {
		f.errorf("plan after Close: got %+v, want no timer and no fetch", s.plan)
	}
	if file == nil {
		return
	}
	defer file.Close()
	for _, r := range s.present.ranges {
		p := make([]byte, r.len())
		if _, err := file.ReadAt(p, r.off); err != nil {
			f.errorf("bytes %v are in present, but not in the file: %v", r, err)
		} else if wrong := checkContent(p, f.content, r.off); wrong != nil {
			f.errorf("bytes %v are in present, but wrong in the file: %v", r, wrong)
		}
	}
}

func (f *modelFile) open() {
	f.mu.Lock()
	f.handles++
	f.mu.Unlock()
	f.latest().AddHandle()
}

func (f *modelFile) close() {
	f.mu.Lock()
	f.handles--
	f.closedAt = time.Now()
	f.mu.Unlock()
	f.latest().DropHandle()
}

// readSome opens and reads some files, one after the other.
func (m *modelRun) readSome(rng *rand.Rand) {
	for range 1 + rng.IntN(4) {
		f := m.files[rng.IntN(len(m.files))]
		f.open()
		place := modelPlace(rng, f.latest().Object().Size)
		for range 1 + rng.IntN(12) {
			r := place()
			if !f.read(rng, r) {
				break
			}
			if rng.IntN(3) == 0 {
				time.Sleep(modelPause(rng))
			}
		}
		f.close()
		time.Sleep(modelPause(rng))
	}
}

// modelPlace returns a function that chooses the ranges of a reader of a file of
// size bytes: in sequence, at random, or near the end.
func modelPlace(rng *rand.Rand, size int64) func() byteRange {
	length := func() int64 {
		most := []int64{10, 5000, 200_000, maxReadBytes}[rng.IntN(4)]
		return rng.Int64N(most + 1)
	}
	way, next, step := rng.IntN(4), int64(0), 1+length()
	if way == 0 {
		next = rng.Int64N(size)
	}
	return func() byteRange {
		off := rng.Int64N(size + 1)
		switch way {
		case 0, 1:
			next += step
			return byteRange{next - step, next}
		case 2:
			start := max(0, size-100_000)
			off = start + rng.Int64N(size-start+10)
		}
		return byteRange{off, off + length()}
	}
}

// read reads r by ViewReady, View or ReadAt, checks the result, and reports whether
// the reader may go on.
func (f *modelFile) read(rng *rand.Rand, r byteRange) bool {
	ctx, giveUp := context.WithCancelCause(f.run.t.Context())
	defer giveUp(nil)
	if rng.IntN(5) == 0 {
		defer time.AfterFunc(modelPause(rng), func() { giveUp(errModelGone) }).Stop()
	}
	f.reading.Store(&r, true)
	defer f.reading.Delete(&r)
	began, ready := time.Now(), f.isPresent(r)
	var v view
	var err error
	switch way := rng.IntN(3); {
	case way == 0 && f.viewReady(r):
		f.run.counts.ready.Add(1)
		return true
	case way < 2:
		v, err = f.latest().View(ctx, r.off, int(r.len()), 0)
		if err == nil && int64(len(v.data)) < r.len() {
			err = io.EOF
		}
	default:
		var n int
		p := make([]byte, r.len())
		n, err = f.latest().ReadAt(ctx, p, r.off)
		v.data = p[:n]
	}
	if v.done != nil {
		defer v.done()
	}
	return f.judge(ctx, r, v.data, err, ready, time.Since(began))
}

// viewReady reports whether ViewReady returns r, and checks its bytes.
func (f *modelFile) viewReady(r byteRange) bool {
	v, ok := f.latest().ViewReady(r.off, int(r.len()), 0)
	if !ok {
		return false
	}
	f.checkBytes(r, v.data)
	if v.done != nil {
		v.done()
	}
	return true
}

// checkBytes requires that p holds all bytes that the file has of r.
func (f *modelFile) checkBytes(r byteRange, p []byte) {
	want := max(0, min(r.end, f.latest().Object().Size)-r.off)
	if int64(len(p)) != want {
		f.errorf("read of %v: got %d bytes, want %d", r, len(p), want)
	}
	if wrong := checkContent(p, f.content, r.off); wrong != nil {
		f.errorf("read of %v: %v", r, wrong)
	}
}

// judge checks the bytes and the error of a read of r, and reports whether the
// reader may go on. ready says that the bytes were present before the read.
func (f *modelFile) judge(ctx context.Context, r byteRange, p []byte, err error, ready bool, took time.Duration) bool {
	counts := f.run.counts
	ready = ready && !f.latest().evicts.Load() // else it may have left the disk meanwhile
	if ready && took > 0 {
		f.errorf("time for a read of %v, which was present: got %v, want 0", r, took)
	}
	switch {
	case err == nil, err == io.EOF:
		f.checkBytes(r, p)
		if (err == io.EOF) != (r.end > f.latest().Object().Size && !r.empty()) {
			f.errorf("read of %v of a file of %d bytes: got error %v", r, f.latest().Object().Size, err)
		}
		if took > 0 {
			counts.waited.Add(1)
		}
		return true
	case len(p) > 0:
		f.errorf("read of %v: got %d bytes with error %v, want none", r, len(p), err)
	case errors.Is(err, errClosed) && f.closing.Load():
		counts.closed.Add(1)
		return false
	case ready && !f.closing.Load():
		f.errorf("read of %v, which was present: got error %v, want none", r, err)
	case err == errModelGone && ctx.Err() != nil:
		counts.gaveUp.Add(1)
		return true
	case errors.Is(err, errReadTimeout) && f.origin.silence() >= f.latest().readTimeout,
		errors.Is(err, errReadTimeout) && f.latest().evicts.Load() && f.latest().readTimeout < modelPatience: // it waited for room
		counts.timedOut.Add(1)
		return true
	case f.origin.failedWith(err):
		counts.failed.Add(1)
		return false
	}
	f.errorf("read of %v: got error %v, want one that the model knows", r, err)
	return false
}

// isPresent reports whether every byte of r is in the temporary file.
func (f *modelFile) isPresent(r byteRange) bool {
	f.latest().mu.Lock()
	defer f.latest().mu.Unlock()
	return f.latest().present.contains(r)
}
