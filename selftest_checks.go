// selftest_checks.go holds the checks that need a mount: one for each promise of
// the README that a broken machine could break. A check reads only through child
// processes. The mount's own table of operations tells it that a read is blocked.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

const (
	selftestReadBytes = 256 << 10 // of a read, at most
	seekBytes         = 16 << 10  // of a read after a jump: so small that the jump takes the time, not the slow origin
	blockedReaders    = 6         // of one file at once: more than it may have requests in flight
	stalledStride     = 600_000   // bytes between their reads: not a multiple of the page size, and enough for several requests
	// streamedBytes is what the origin sends first of the streamed file: all that
	// blockedReaders read there, and little more.
	streamedBytes = (blockedReaders + 2) * selftestReadBytes / 2

	atOnceLimit = 3 * time.Second // for what must happen at once, on a busy machine
	goneLimit   = 5 * time.Second // for the end of a killed reader, which takes about fatalPoll, and of a stopped mount
	// A blocked reader gets signalsSent signals, one each signalPause: for several times
	// fatalPoll, so that any effect on its read has happened by then.
	signalsSent = 10
	signalPause = fatalPoll / 4

	poll = 5 * time.Millisecond // from one look to the next at what nobody reports
)

// checkMounting makes the directories and starts the origin and the mount.
// BLOCKS until the mount is ready; wakes every poll, on the mount's end and the end of c.ctx.
func checkMounting(c *checkRun) string {
	parent, err := filepath.EvalSymlinks(defaultTempDir()) // the name in /proc/self/mountinfo
	c.must(err)
	dir, err := os.MkdirTemp(parent, "fsmount-selftest-")
	c.must(err)
	mnt, temp := filepath.Join(dir, "mnt"), filepath.Join(dir, "temp")
	c.mnt, c.temp = mnt, temp
	c.undo(func(context.Context) error {
		if mounted(mnt) { // its process was killed
			if err := unmount(mnt, nil); err != nil {
				return fmt.Errorf("unmount %s: %w", mnt, err)
			}
		}
		return os.RemoveAll(dir)
	})
	c.must(errors.Join(os.Mkdir(temp, 0o700), os.Mkdir(mnt, 0o700)))

	c.files = newSelftestFiles()
	origin, err := startLocalOrigin(c.files.all)
	c.must(err)
	c.undo(func(context.Context) error { return origin.Close() })
	begin := time.Now()
	cmd := exec.CommandContext(c.alive, ownProgram, append([]string{"-mount", mnt, "--temp-dir", temp}, origin.urls...)...)
	cmd.Stdout, cmd.Stderr = &c.log, &c.log
	c.mount, err = startSelftestChild(cmd, unix.SIGTERM)
	c.must(err)
	c.undo(c.mount.awaitGone)
	for !strings.Contains(c.log.String(), "mounted at "+mnt) {
		select {
		case <-time.After(poll):
		case <-c.mount.exited:
			c.fail("fsmount -mount ended (%v): see its log below", c.mount.cmd.ProcessState)
		case <-c.ctx.Done():
			c.fail("fsmount -mount did not say that it is ready: %w", context.Cause(c.ctx))
		}
	}
	took := time.Since(begin)
	state, err := askMount(c.ctx, "selftest", mnt, "disk", asIs)
	c.must(err)
	return fmt.Sprintf("%d files at %s after %v; its process keeps %s; %s", len(c.files.all), mnt, roundDuration(took),
		keptRights(c.mount.cmd.Process.Pid), state[len(state)-1])
}

// keptRights says what a process may do beyond what its user may.
func keptRights(pid int) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "rights that cannot be seen"
	}
	kept := statusSets(string(status))["CapPrm"]
	known := map[uint64]string{
		0:                            "no capability",
		uint64(unmounting):           "CAP_SYS_ADMIN of all capabilities, and can get no other",
		uint64(unmounting | anyFile): "CAP_SYS_ADMIN and CAP_DAC_OVERRIDE of all capabilities, and can get no other",
	}
	return cmp.Or(known[kept], fmt.Sprintf("the capabilities %x", kept))
}

// checkSizes compares the names and the attributes of the files with the origin's.
func checkSizes(c *checkRun) string {
	names := c.do(selftestCall{Path: c.mnt}).Names
	for _, f := range c.files.all {
		if !slices.Contains(names, f.name) {
			c.fail("the listing has no %s: %q", f.name, names)
		}
		c.do(c.reading(f, 0, 0))
	}
	return fmt.Sprintf("%d files, as the origin has them", len(c.files.all))
}

// checkConcurrentReaders makes processes read at random places, and then the whole file, while it downloads.
func checkConcurrentReaders(c *checkRun) string {
	f := c.files.whole
	call := c.reading(f, 0, f.size)
	call.Random = 64
	begin := time.Now()
	var rs []*selftestReader
	for range 8 {
		rs = append(rs, c.start(call))
	}
	var total int64
	for _, r := range rs {
		a, err := r.answer(c.ctx)
		c.must(err)
		total += a.N
	}
	took := time.Since(begin)
	return fmt.Sprintf("%d processes read and verified %s in %v: %.0f MB/s",
		len(rs), humanize.IBytes(uint64(total)), roundDuration(took), float64(total)/1e6/took.Seconds())
}

// checkStreaming makes readers wait for the start of a file. The origin then sends
// that start and stops: those bytes alone must wake each reader.
func checkStreaming(c *checkRun) string {
	f := c.files.streamed
	rs := c.startBlockedReaders(blockedReaders, f, selftestReadBytes/2)
	begin := time.Now()
	f.allow(streamedBytes)
	woken, cancel := c.within(atOnceLimit, "its bytes were sent")
	defer cancel()
	for _, r := range rs {
		_, err := r.answer(woken)
		c.mustf(err, "with %s of %s sent", humanize.IBytes(uint64(streamedBytes)), humanize.IBytes(uint64(f.size)))
	}
	took := time.Since(begin)
	f.allow(f.size)
	whole, err := c.start(c.reading(f, 0, f.size)).answer(c.ctx)
	c.mustf(err, "after the origin went on")
	return fmt.Sprintf("%d waiting readers had the first %s %v after they were sent, the rest held back; then all %s verified",
		len(rs), humanize.IBytes(uint64(streamedBytes)), roundDuration(took), humanize.IBytes(uint64(whole.N)))
}

// checkSeeks reads the end and the middle of a file while another process reads it from
// its start, which arrives slowly.
func checkSeeks(c *checkRun) string {
	f := c.files.slow
	c.start(c.reading(f, 0, f.size))
	c.do(c.reading(f, 0, seekBytes))
	var took []time.Duration
	for _, off := range []int64{f.size - seekBytes, f.size / 2, f.size / 4} {
		a, err := c.doAtOnce(c.reading(f, off, off+seekBytes))
		sent := f.sent.Load()
		if err == nil && sent > f.size/2 {
			err = fmt.Errorf("that took %v", roundDuration(a.Took))
		}
		c.mustf(err, "a jump to byte %d of %d seems to wait for the bytes before it; the origin has sent %d bytes",
			off, f.size, sent)
		took = append(took, roundDuration(a.Took))
	}
	return fmt.Sprintf("the last %s after %v, as many in the middle after %v, of %s that come at %s a second",
		humanize.IBytes(uint64(seekBytes)), took[0], took[1], humanize.IBytes(uint64(f.size)), humanize.IBytes(uint64(f.rate)))
}

// checkCut reads a file whose origin breaks off every long body.
func checkCut(c *checkRun) string {
	f := c.files.cut
	whole, err := c.start(c.reading(f, 0, f.size)).answer(c.ctx)
	cuts := f.cuts.Load()
	c.mustf(err, "after %d cuts", cuts)
	if cuts == 0 {
		c.fail("nothing was cut, so this shows nothing")
	}
	return fmt.Sprintf("%s verified over %d cuts in %v", humanize.IBytes(uint64(whole.N)), cuts, roundDuration(whole.Took))
}

// checkIsolation looks at the directory, and uses another file, while readers of one file are blocked.
func checkIsolation(c *checkRun) string {
	stalled, other := c.files.stalled, c.files.other
	blocked := c.startBlockedReaders(blockedReaders, stalled, stalledStride)
	var took []time.Duration
	for _, call := range []selftestCall{
		{Path: c.mnt},
		c.reading(stalled, 0, 0),
		c.reading(other, 0, selftestReadBytes),
		c.reading(other, 0, other.size),
	} {
		a, err := c.doAtOnce(call)
		c.mustf(err, "while %d readers of another file are blocked", len(blocked))
		took = append(took, roundDuration(a.Took))
	}
	c.must(c.awaitBlocked(blocked))
	return fmt.Sprintf("%d readers blocked by a stalled origin; ls %v, stat %v, read of another file %v, all %s of it %v",
		len(blocked), took[0], took[1], took[2], humanize.IBytes(uint64(other.size)), took[3])
}

// checkKill kills one of two blocked readers.
func checkKill(c *checkRun) string {
	rs := c.startBlockedReaders(2, c.files.stalled, stalledStride)
	gone, cancel := c.within(goneLimit, "killed")
	defer cancel()
	begin := time.Now()
	c.must(rs[0].cmd.Process.Kill())
	c.must(rs[0].awaitGone(gone))
	took := time.Since(begin)
	c.mustf(c.awaitBlocked(rs[1:]), "the other reader of the file")
	return fmt.Sprintf("a blocked reader was gone %v after SIGKILL, the other one was left alone", roundDuration(took))
}

// checkSignals sends a blocked reader a signal that it catches, signalsSent times.
// BLOCKS for that time; wakes on the reader's end and the end of c.ctx.
func checkSignals(c *checkRun) string {
	f := c.files.paused
	call := c.reading(f, 0, selftestReadBytes)
	call.Signal = true
	r := c.start(call)
	c.must(c.awaitBlocked([]*selftestReader{r}))
	for sent := 1; sent <= signalsSent; sent++ {
		c.mustf(unix.Tgkill(r.cmd.Process.Pid, r.thread, unix.SIGUSR1), "send signal %d to the reader", sent)
		select {
		case <-r.exited:
			_, err := r.answer(c.ctx)
			c.fail("after %d signals: the blocked read ended: %v", sent, err)
		case <-time.After(signalPause):
		case <-c.ctx.Done():
			c.fail("after %d signals: %w", sent, context.Cause(c.ctx))
		}
	}
	f.allow(f.size)
	_, err := r.answer(c.ctx)
	c.mustf(err, "after %d signals", signalsSent)
	return fmt.Sprintf("a blocked read went on through %d signals and brought the right bytes", signalsSent)
}

// checkStop ends the mount as a user does, while readers are blocked, and looks for what the mount must not leave.
func checkStop(c *checkRun) string {
	rs := c.startBlockedReaders(blockedReaders, c.files.stalled, stalledStride)
	gone, cancel := c.within(goneLimit, "told to stop")
	defer cancel()
	begin := time.Now()
	c.must(c.mount.cmd.Process.Signal(unix.SIGTERM))
	c.mustf(c.mount.awaitGone(gone), "fsmount -mount")
	took := time.Since(begin)
	for _, r := range rs {
		c.must(r.awaitGone(gone))
		if _, err := r.answer(gone); err == nil {
			c.fail("a blocked read ended well, though its bytes were never sent")
		}
	}
	left, err := os.ReadDir(c.temp)
	switch {
	case c.mount.cmd.ProcessState.ExitCode() != exitOK:
		c.fail("it did not end well")
	case mounted(c.mnt):
		c.fail("%s is still mounted", c.mnt)
	case err != nil || len(left) > 0:
		c.fail("the temporary directory still has %v, %v", left, err)
	}
	return fmt.Sprintf("gone %v after SIGTERM, with %d readers blocked; no mount and no temporary file left",
		roundDuration(took), len(rs))
}

// selftestFiles are the files of the self-test, each for what its name says.
type selftestFiles struct {
	all                                                []*localFile
	whole, slow, streamed, stalled, other, paused, cut *localFile
}

func newSelftestFiles() *selftestFiles {
	fs := &selftestFiles{}
	add := func(name string, size int64) *localFile {
		f := newLocalFile(name, uint64(len(fs.all)+1), size)
		fs.all = append(fs.all, f)
		return f
	}
	fs.whole = add("whole.bin", 16<<20+123)
	fs.slow = add("slow.bin", 32<<20)
	fs.streamed = add("streamed.bin", 8<<20)
	fs.stalled = add("stalled.bin", 4<<20)
	fs.other = add("other.bin", 4<<20+1)
	fs.paused = add("paused.bin", 1<<20)
	fs.cut = add("cut.bin", 4<<20+5)

	fs.slow.rate = 2 << 20
	fs.cut.cutAt = func(start int64) int64 { return start + 700_000 }
	for _, f := range []*localFile{fs.streamed, fs.stalled, fs.paused} {
		f.allow(1) // the whole answer to a probe
	}
	return fs
}

func (s *selftest) reading(f *localFile, off, end int64) selftestCall {
	return selftestCall{Path: filepath.Join(s.mnt, f.name), Off: off, End: end, Size: f.size, Seed: f.seed}
}

// within bounds a wait. The error after limit says what happened that long ago.
func (c *checkRun) within(limit time.Duration, happened string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(c.ctx, limit, fmt.Errorf("%s %v ago", happened, limit))
}

func (c *checkRun) start(call selftestCall) *selftestReader {
	r, err := startSelftestReader(c.ctx, call)
	c.must(err)
	c.undo(r.awaitGone)
	return r
}

// do returns what a reader found, which must be no error. BLOCKS as answer does.
func (c *checkRun) do(call selftestCall) selftestAnswer {
	a, err := c.start(call).answer(c.ctx)
	c.must(err)
	return a
}

func (c *checkRun) doAtOnce(call selftestCall) (selftestAnswer, error) {
	ctx, cancel := c.within(atOnceLimit, "it was told to use "+filepath.Base(call.Path))
	defer cancel()
	return c.start(call).answer(ctx)
}

// startBlockedReaders starts n readers of f, each stride bytes after the one before, which must block.
// BLOCKS as awaitBlocked does.
func (c *checkRun) startBlockedReaders(n int, f *localFile, stride int64) (rs []*selftestReader) {
	for i := range int64(n) {
		rs = append(rs, c.start(c.reading(f, i*stride, i*stride+selftestReadBytes)))
	}
	c.must(c.awaitBlocked(rs))
	return rs
}

// awaitBlocked returns nil when the mount itself lists a thread of each of rs as blocked.
// BLOCKS until it does; wakes every poll and on the end of c.ctx.
func (c *checkRun) awaitBlocked(rs []*selftestReader) error {
	for {
		ops, err := readControl(c.ctx, atOnceLimit, "ps", c.mnt, "ops", "", parseOpInfo)
		missing := slices.IndexFunc(rs, func(r *selftestReader) bool { return !r.isAmong(ops) })
		if missing < 0 {
			return nil
		}
		r := rs[missing]
		select {
		case <-time.After(poll):
		case <-r.exited:
			_, err := r.answer(c.ctx)
			return fmt.Errorf("a read of bytes that were never sent ended: %v", err)
		case <-c.ctx.Done():
			return fmt.Errorf("reader %d, in state %s, is not among the blocked operations %v, %v: %w",
				r.cmd.Process.Pid, processState(r.cmd.Process.Pid), ops, err, context.Cause(c.ctx))
		}
	}
}

// isAmong reports whether a thread of r is the reader of one of ops, and remembers it.
func (r *selftestReader) isAmong(ops []opInfo) bool {
	for _, op := range ops {
		thread := fmt.Sprintf("/proc/%d/task/%d", r.cmd.Process.Pid, op.PID)
		if op.Kind == "read" && unix.Access(thread, unix.F_OK) == nil {
			r.thread = int(op.PID)
			return true
		}
	}
	return false
}
