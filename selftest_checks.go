// selftest_checks.go holds the checks that need a mount: one for each promise of
// the README that a broken machine could break. A check reads only through child
// processes. The mount's own table of operations tells it that a read is blocked.

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

const (
	// selftestReadBytes is the size of a read, unless a check says otherwise.
	selftestReadBytes = 256 << 10

	// seekBytes is the size of a read after a jump: so small that the jump takes
	// the time, not the slow origin.
	seekBytes = 16 << 10

	// blockedReaders is how many readers block on a file at once: more than the
	// file may have requests in flight.
	blockedReaders = 6

	// stalledStride is the distance of their reads in the stalled file, in bytes:
	// not a multiple of the page size, and enough for several requests.
	stalledStride = 600_000

	// streamedBytes is what the origin sends first of the streamed file: all that
	// blockedReaders read there, and little more.
	streamedBytes = (blockedReaders + 2) * selftestReadBytes / 2

	// atOnceLimit bounds what must happen at once. It allows for a busy machine.
	atOnceLimit = 3 * time.Second

	// goneLimit bounds the end of a killed reader, which takes about fatalPoll, and
	// the end of a stopped mount.
	goneLimit = 5 * time.Second

	// A blocked reader gets signalsSent signals, one each signalPause: for several times
	// fatalPoll, so that any effect on its read has happened by then.
	signalsSent = 10
	signalPause = fatalPoll / 4

	// opsPoll is how often awaitBlocked reads the table of operations. It polls,
	// because the kernel tells nobody when a read blocks.
	opsPoll = 5 * time.Millisecond
)

// whileMounted returns a check that runs run while the mount's process runs. If that
// process has ended, an error of run says so. A bug that the mount itself logged is an
// error too.
func whileMounted(run checkFunc) checkFunc {
	return func(c *checkRun) string {
		defer func() {
			switch ended := c.mountEnded(); {
			case c.err == nil:
				c.err = c.log.alarm()
			case ended != nil:
				c.err = fmt.Errorf("%w (%w)", c.err, ended)
			}
		}()
		return run(c)
	}
}

// mountEnded says how the mount's process ended. It returns nil while it runs.
func (s *selftest) mountEnded() error {
	select {
	case <-s.mount.exited:
		said := append([]string{"it said nothing"}, s.log.lines()...)
		return fmt.Errorf("fsmount -mount ended (%v): %s", s.mount.cmd.ProcessState, said[len(said)-1])
	default:
		return nil
	}
}

// checkMounting makes the directories and starts the origin and the mount.
func checkMounting(c *checkRun) string {
	parent, err := filepath.EvalSymlinks(defaultTempDir()) // the name in /proc/self/mountinfo
	c.must(err)
	dir, err := os.MkdirTemp(parent, "fsmount-selftest-")
	c.must(err)
	mnt, temp := filepath.Join(dir, "mnt"), filepath.Join(dir, "temp")
	c.mnt, c.temp = mnt, temp
	c.undo(func(context.Context) error {
		if mounted(mnt) { // its process was killed
			if err := unmount(mnt); err != nil {
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
	ready := make(chan struct{})
	c.mount, err = startSelftestChild(cmd, unix.SIGTERM, func(output io.Reader) {
		announce := sync.OnceFunc(func() { close(ready) })
		for lines := bufio.NewScanner(output); lines.Scan(); {
			c.log.add(lines.Text())
			if strings.Contains(lines.Text(), "mounted at "+mnt) {
				announce()
			}
		}
	})
	c.must(err)
	c.undo(c.mount.awaitGone)
	select {
	case <-ready:
	case <-c.mount.exited:
		c.must(c.mountEnded())
	case <-c.ctx.Done():
		c.fail("fsmount -mount did not say that it is ready: %w", context.Cause(c.ctx))
	}
	return fmt.Sprintf("%d files at %s after %v; its process keeps %s", len(c.files.all), mnt, roundDuration(time.Since(begin)),
		keptRights(c.mount.cmd.Process.Pid))
}

// keptRights says what a process may do beyond what its user may.
func keptRights(pid int) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "rights that cannot be seen"
	}
	switch sets := statusSets(string(status)); capabilities(sets["CapPrm"]) {
	case 0:
		return "no capability"
	case unmounting:
		return "CAP_SYS_ADMIN of all capabilities, and can get no other"
	case unmounting | anyFile:
		return "CAP_SYS_ADMIN and CAP_DAC_OVERRIDE of all capabilities, and can get no other"
	default:
		return fmt.Sprintf("the capabilities %x", sets["CapPrm"])
	}
}

// checkSizes compares the attributes of each file with the origin's: those that the
// kernel may have cached, and those that the file system returns now.
func checkSizes(c *checkRun) string {
	r := c.startReaders(1)[0]
	listing := c.do(r, readerCall{Op: "ls", Path: c.mnt})
	for _, f := range c.files.all {
		if !slices.Contains(listing.Names, f.name) {
			c.fail("the listing has no %s: %q", f.name, listing.Names)
		}
		for _, op := range []string{"stat", "stat anew"} {
			a := c.do(r, readerCall{Op: op, Path: c.path(f)})
			if a.Size != f.size || a.Mode != unix.S_IFREG|0o444 {
				c.fail("%s: %s has %d bytes and mode %o, want %d and %o",
					op, f.name, a.Size, a.Mode, f.size, unix.S_IFREG|0o444)
			}
		}
	}
	return fmt.Sprintf("%d files, as the origin has them", len(c.files.all))
}

// checkConcurrentReaders makes processes read at random places, and then the whole
// file, while it downloads.
func checkConcurrentReaders(c *checkRun) string {
	rs := c.startReaders(8)
	begin := time.Now()
	for _, r := range rs {
		c.must(r.send(c.verifying(c.files.whole, 64)))
	}
	var total int64
	for _, r := range rs {
		total += c.answer(r).N
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
	whole, err := rs[0].do(c.ctx, c.verifying(f, 0))
	c.mustf(err, "after the origin went on")
	return fmt.Sprintf("%d waiting readers had the first %s %v after they were sent, the rest held back; then all %s verified",
		len(rs), humanize.IBytes(uint64(streamedBytes)), roundDuration(took), humanize.IBytes(uint64(whole.N)))
}

// checkSeeks reads the end and the middle of a file while the rest arrives slowly.
func checkSeeks(c *checkRun) string {
	f, rs := c.files.slow, c.startReaders(2)
	c.do(rs[0], c.reading(f, 0))
	var took []time.Duration
	for _, off := range []int64{f.size - seekBytes, f.size / 2, f.size / 4} {
		a, err := rs[1].doAtOnce(c.ctx, c.reading(f, off).at(off, seekBytes))
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
	f, r := c.files.cut, c.startReaders(1)[0]
	whole, err := r.do(c.ctx, c.verifying(f, 0))
	cuts := f.cuts.Load()
	c.mustf(err, "after %d cuts", cuts)
	if cuts == 0 {
		c.fail("nothing was cut, so this shows nothing")
	}
	return fmt.Sprintf("%s verified over %d cuts in %v", humanize.IBytes(uint64(whole.N)), cuts, roundDuration(whole.Took))
}

// checkIsolation lists the directory, and uses another file, while readers of one
// file are blocked.
func checkIsolation(c *checkRun) string {
	stalled, other := c.files.stalled, c.files.other
	blocked, free := c.startBlockedReaders(blockedReaders, stalled, stalledStride), c.startReaders(1)[0]
	var took []time.Duration
	for _, call := range []readerCall{
		{Op: "ls", Path: c.mnt},
		{Op: "stat anew", Path: c.path(stalled)},
		c.reading(other, 0),
		c.verifying(other, 0),
	} {
		a, err := free.doAtOnce(c.ctx, call)
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
func checkSignals(c *checkRun) string {
	f := c.files.paused
	r := c.startBlockedReaders(1, f, 0)[0]
	for sent := 1; sent <= signalsSent; sent++ {
		c.mustf(unix.Tgkill(r.cmd.Process.Pid, r.thread, unix.SIGUSR1), "send signal %d to the reader", sent)
		select {
		case a := <-r.answers:
			c.fail("after %d signals: the blocked read ended: %q", sent, a.Error)
		case <-time.After(signalPause):
		case <-c.ctx.Done():
			c.fail("after %d signals: %w", sent, context.Cause(c.ctx))
		}
	}
	f.allow(f.size)
	_, err := r.answer(c.ctx)
	c.mustf(err, "after %d signals", signalsSent)
	_, err = r.do(c.ctx, readerCall{Op: "caught"})
	c.mustf(err, "no signal arrived, so this shows nothing")
	return fmt.Sprintf("a blocked read went on through %d signals and brought the right bytes", signalsSent)
}

// checkStop ends the mount as a user does, while readers are blocked, and looks for
// what the mount must not leave.
func checkStop(c *checkRun) string {
	rs := c.startBlockedReaders(blockedReaders, c.files.stalled, stalledStride)
	gone, cancel := c.within(goneLimit, "told to stop")
	defer cancel()
	begin := time.Now()
	c.must(c.mount.cmd.Process.Signal(unix.SIGTERM))
	c.mustf(c.mount.awaitGone(gone), "fsmount -mount")
	took := time.Since(begin)
	for _, r := range rs {
		switch _, err := r.answer(gone); {
		case err == nil:
			c.fail("a blocked read ended well, though its bytes were never sent")
		case gone.Err() != nil:
			c.must(err)
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

func (s *selftest) path(f *localFile) string { return filepath.Join(s.mnt, f.name) }

// reading returns a read of selftestReadBytes of f at off.
func (s *selftest) reading(f *localFile, off int64) readerCall {
	return readerCall{Op: "read", Path: s.path(f), Off: off, Len: selftestReadBytes, Seed: f.seed}
}

// verifying returns a call that makes that many reads at random places, and then
// reads all of f.
func (s *selftest) verifying(f *localFile, random int) readerCall {
	return readerCall{Op: "verify", Path: s.path(f), Len: selftestReadBytes, Count: random, Size: f.size, Seed: f.seed}
}

// within bounds a wait. The error after limit says what happened that long ago.
func (c *checkRun) within(limit time.Duration, happened string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(c.ctx, limit, fmt.Errorf("%s %v ago", happened, limit))
}

// startReaders starts n readers. The end of the check kills them.
//
// BLOCKS as answer does.
func (c *checkRun) startReaders(n int) (rs []*selftestReader) {
	for range n {
		r, err := startSelftestReader(c.readers)
		c.must(err)
		c.undo(r.awaitGone)
		rs = append(rs, r)
	}
	for _, r := range rs {
		r.thread = int(c.answer(r).N)
	}
	return rs
}

func (c *checkRun) answer(r *selftestReader) readerAnswer {
	a, err := r.answer(c.ctx)
	c.must(err)
	return a
}

func (c *checkRun) do(r *selftestReader, call readerCall) readerAnswer {
	c.must(r.send(call))
	return c.answer(r)
}

// startBlockedReaders starts n readers that catch signals. They read f, each stride
// bytes after the one before, and must block.
//
// BLOCKS as awaitBlocked does.
func (c *checkRun) startBlockedReaders(n int, f *localFile, stride int64) []*selftestReader {
	rs := c.startReaders(n)
	for i, r := range rs {
		c.do(r, readerCall{Op: "catch"})
		c.must(r.send(c.reading(f, int64(i)*stride)))
	}
	c.must(c.awaitBlocked(rs))
	return rs
}

// awaitBlocked returns nil when the mount itself lists each of rs as blocked.
//
// BLOCKS until it does; wakes every opsPoll and on the end of c.ctx.
func (c *checkRun) awaitBlocked(rs []*selftestReader) error {
	watcher := c.startReaders(1)[0]
	for {
		answer, err := watcher.doAtOnce(c.ctx, readerCall{Op: "text", Path: filepath.Join(c.mnt, controlName, "ops")})
		ops, unreadable := parseLines(answer.Text, parseOpInfo)
		if err := errors.Join(err, unreadable); err != nil {
			return fmt.Errorf("list the blocked operations: %w", err)
		}
		missing := slices.IndexFunc(rs, func(r *selftestReader) bool {
			return !slices.ContainsFunc(ops, func(op opInfo) bool { return op.Kind == "read" && int(op.PID) == r.thread })
		})
		if missing < 0 {
			return nil
		}
		r := rs[missing]
		select {
		case <-time.After(opsPoll):
		case early := <-r.answers:
			return fmt.Errorf("a read of bytes that were never sent ended: %q", early.Error)
		case <-c.ctx.Done():
			return fmt.Errorf("reader %d, in state %s, is not among the blocked operations %q: %w",
				r.thread, processState(r.thread), answer.Text, context.Cause(c.ctx))
		}
	}
}
