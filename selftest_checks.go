// selftest_checks.go holds the checks that need a mount: one for each promise of
// the README that a broken machine could break. A check reads only through child
// processes. The mount's own table of operations tells it that a read is blocked.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	checkNameMount = "mount"

	// selftestReadBytes is the size of a read, unless a check says otherwise.
	selftestReadBytes = 256 << 10

	// seekBytes is the size of a read after a jump: little, so that its time is
	// that of the jump and not of the slow origin.
	seekBytes = 16 << 10

	// blockedReaders is how many readers block on a file at once: more than the
	// file may have requests in flight.
	blockedReaders = 6

	// stalledStride is the distance of their reads in the stalled file, in bytes:
	// not a multiple of the page size, and enough for a request each.
	stalledStride = 600_000

	// streamedBytes is what the origin sends first of the streamed file: all that
	// blockedReaders read there, and little more.
	streamedBytes = (blockedReaders + 2) * selftestReadBytes / 2

	// atOnceLimit bounds what must happen at once, on a busy machine.
	atOnceLimit = 3 * time.Second

	// goneLimit bounds the end of a killed reader, which the README promises
	// within a second, and the end of a stopped mount.
	goneLimit = 5 * time.Second

	// signalledFor is how long a blocked reader gets signals: several times
	// fatalPoll, so that any effect on its read has happened by then.
	signalledFor  = 5 * fatalPoll / 2
	signalledEach = fatalPoll / 4

	// opsPoll is how often awaitBlocked reads the table of operations: the kernel
	// tells nobody when a read blocks.
	opsPoll = 5 * time.Millisecond
)

const (
	reportIt = "please report this line and the log below"
	distrust = "do not use this build here: please report this line and the log below"
)

// selftest is a mount of the program by itself. The checks run one after the
// other. A check that hangs keeps running beside clean, so clean uses only what mu
// guards.
type selftest struct {
	// Write once, by the check of the mount.
	files *selftestFiles
	mnt   string // the mountpoint
	temp  string // directory for the downloads
	mount *selftestChild

	// Read write.
	mu       sync.Mutex
	children []*selftestChild                  // GUARDED_BY(mu); the mount and all readers
	cleanups []func(ctx context.Context) error // GUARDED_BY(mu); the newest last
	log      logTail                           // of the mount; has its own lock
}

// checks returns the check that mounts and those that need it.
func (s *selftest) checks() []selftestCheck {
	all := s.mountedChecks()
	for i := range all {
		all[i].run = s.whileMounted(all[i].run)
	}
	all = append(all, selftestCheck{name: "stop", run: s.with(blockedReaders, s.checkStop),
		todo: "a mount that does not stop is ended by kill -9 and then umount -l; " + reportIt})
	for i := range all {
		all[i].needs = []string{checkNameMount}
	}
	return slices.Insert(all, 0, selftestCheck{
		name:  checkNameMount,
		needs: []string{checkNameDevice, checkNameRights, checkNameKernel, checkNameSpace},
		run:   s.checkMount,
		todo:  `see what "fsmount -mount DIR" says, with an empty directory; it must reach 127.0.0.1`,
	})
}

// mountedChecks returns the checks that leave the mount as it is.
func (s *selftest) mountedChecks() []selftestCheck {
	return []selftestCheck{
		{name: "sizes and modes", run: s.with(1, s.checkSizes), todo: reportIt},
		{name: "concurrent readers", run: s.with(8, s.checkConcurrentReaders), todo: distrust},
		{name: "streaming", run: s.with(blockedReaders, s.checkStreaming), todo: reportIt},
		{name: "seeks", run: s.with(2, s.checkSeeks), todo: reportIt},
		{name: "cut connections", run: s.with(1, s.checkCut), todo: distrust},
		{name: "isolation", run: s.with(blockedReaders+1, s.checkIsolation),
			todo: "while a server stalls, expect programs to hang here; " + reportIt},
		{name: "kill", run: s.with(2, s.checkKill), todo: "expect processes here that cannot be killed; " + reportIt},
		{name: "signals", run: s.with(1, s.checkSignals), todo: "expect programs that catch signals to fail here; " + reportIt},
	}
}

// with returns a check that starts n readers, runs f with them, and kills them.
func (s *selftest) with(n int, f func(context.Context, []*selftestReader) (string, error)) checkFunc {
	return func(ctx context.Context) (string, error) {
		var rs []*selftestReader
		for range n {
			r, err := startSelftestReader()
			if err != nil {
				return "", err
			}
			defer r.signal(unix.SIGKILL)
			s.owns(r.selftestChild)
			rs = append(rs, r)
		}
		for _, r := range rs {
			hello, err := r.answer(ctx)
			if err != nil {
				return "", err
			}
			r.thread = int(hello.N)
		}
		return f(ctx, rs)
	}
}

// whileMounted returns a check that runs run. It adds the end of the mount to
// run's error, and fails for a bug that the mount itself noticed.
func (s *selftest) whileMounted(run checkFunc) checkFunc {
	return func(ctx context.Context) (string, error) {
		if err := s.mountEnded(); err != nil {
			return "", err
		}
		figure, err := run(ctx)
		if ended := s.mountEnded(); err != nil && ended != nil {
			err = fmt.Errorf("%w (%w)", err, ended)
		}
		if err == nil {
			err = s.log.alarm()
		}
		return figure, err
	}
}

// mountEnded says how the mount's process ended. It returns nil while it runs.
func (s *selftest) mountEnded() error {
	select {
	case <-s.mount.exited:
	default:
		return nil
	}
	last := "it said nothing"
	if lines := s.log.lines(); len(lines) > 0 {
		last = lines[len(lines)-1]
	}
	return fmt.Errorf("fsmount -mount ended (%v): %s", s.mount.cmd.ProcessState, last)
}

// checkMount makes the directories and starts the origin and the mount.
func (s *selftest) checkMount(ctx context.Context) (string, error) {
	parent, err := filepath.EvalSymlinks(defaultTempDir()) // the name in /proc/self/mountinfo
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(parent, "fsmount-selftest-")
	if err != nil {
		return "", err
	}
	s.undo(func(context.Context) error { return os.Remove(dir) })
	s.mnt, s.temp = filepath.Join(dir, "mnt"), filepath.Join(dir, "temp")
	if err := os.Mkdir(s.temp, 0o700); err != nil {
		return "", err
	}
	s.undo(func(context.Context) error { return os.RemoveAll(s.temp) })
	if err := os.Mkdir(s.mnt, 0o700); err != nil {
		return "", err
	}
	s.undo(func(ctx context.Context) error { return errors.Join(detach(ctx, s.mnt), os.Remove(s.mnt)) })

	s.files = newSelftestFiles()
	origin, err := startFaultyOrigin(s.files.all)
	if err != nil {
		return "", err
	}
	s.undo(func(context.Context) error { return origin.Close() })
	begin := time.Now()
	mount, ready, err := startSelftestMount(s.mnt, s.temp, origin.sources(), &s.log)
	if err != nil {
		return "", err
	}
	s.mount = mount
	s.owns(mount)
	select {
	case <-ready:
	case <-mount.exited:
		return "", s.mountEnded()
	case <-ctx.Done():
		return "", fmt.Errorf("fsmount -mount did not say that it is ready: %w", context.Cause(ctx))
	}
	return fmt.Sprintf("%d files at %s after %v", len(origin.sources()), s.mnt, roundDuration(time.Since(begin))), nil
}

// checkSizes compares the attributes that came with each name, and those that the
// file system gives when asked anew, with the origin's.
func (s *selftest) checkSizes(ctx context.Context, rs []*selftestReader) (string, error) {
	listing, err := rs[0].do(ctx, readerCall{Op: "ls", Path: s.mnt})
	if err != nil {
		return "", err
	}
	for _, f := range s.files.all {
		if !slices.Contains(listing.Names, f.name) {
			return "", fmt.Errorf("the listing has no %s: %q", f.name, listing.Names)
		}
		for _, op := range []string{"stat", "stat anew"} {
			a, err := rs[0].do(ctx, readerCall{Op: op, Path: s.path(f)})
			if err != nil {
				return "", err
			}
			if a.Size != f.size || a.Mode != unix.S_IFREG|0o444 {
				return "", fmt.Errorf("%s: %s has %d bytes and mode %o, want %d and %o",
					op, f.name, a.Size, a.Mode, f.size, unix.S_IFREG|0o444)
			}
		}
	}
	return fmt.Sprintf("%d files, as the origin has them", len(s.files.all)), nil
}

// checkConcurrentReaders makes processes read at random places, and then the whole
// file, while it downloads.
func (s *selftest) checkConcurrentReaders(ctx context.Context, rs []*selftestReader) (string, error) {
	begin := time.Now()
	for _, r := range rs {
		if err := r.send(s.verifying(s.files.whole, 64)); err != nil {
			return "", err
		}
	}
	var total int64
	for _, r := range rs {
		a, err := r.answer(ctx)
		if err != nil {
			return "", err
		}
		total += a.N
	}
	took := time.Since(begin)
	return fmt.Sprintf("%d processes read and verified %s in %v: %.0f MB/s",
		len(rs), formatBytes(total), roundDuration(took), float64(total)/1e6/took.Seconds()), nil
}

// checkStreaming makes readers wait for the start of a file. The origin then sends
// that start and stops: its bytes alone must wake each reader.
func (s *selftest) checkStreaming(ctx context.Context, rs []*selftestReader) (string, error) {
	f := s.files.streamed
	if err := s.block(ctx, rs, f, selftestReadBytes/2); err != nil {
		return "", err
	}
	begin := time.Now()
	f.allow(streamedBytes)
	woken, cancel := context.WithTimeoutCause(ctx, atOnceLimit, fmt.Errorf("its bytes were sent %v ago", atOnceLimit))
	defer cancel()
	for _, r := range rs {
		if _, err := r.answer(woken); err != nil {
			return "", fmt.Errorf("with %s of %s sent: %w", formatBytes(streamedBytes), formatBytes(f.size), err)
		}
	}
	took := time.Since(begin)
	f.allow(f.size)
	whole, err := rs[0].do(ctx, s.verifying(f, 0))
	if err != nil {
		return "", fmt.Errorf("after the origin went on: %w", err)
	}
	return fmt.Sprintf("%d waiting readers had the first %s %v after they were sent, the rest held back; then all %s verified",
		len(rs), formatBytes(streamedBytes), roundDuration(took), formatBytes(whole.N)), nil
}

// checkSeeks reads the end and the middle of a file while the rest arrives slowly.
func (s *selftest) checkSeeks(ctx context.Context, rs []*selftestReader) (string, error) {
	f := s.files.slow
	if _, err := rs[0].do(ctx, s.reading(f, 0)); err != nil {
		return "", err
	}
	var took []time.Duration
	for _, off := range []int64{f.size - seekBytes, f.size / 2, f.size / 4} {
		a, err := rs[1].doAtOnce(ctx, s.reading(f, off).at(off, seekBytes))
		sent := f.sent.Load()
		if err == nil && sent > f.size/2 {
			err = fmt.Errorf("that took %v", roundDuration(a.Took))
		}
		if err != nil {
			return "", fmt.Errorf("a jump to byte %d of %d seems to wait for the bytes before it; the origin has sent %d bytes: %w",
				off, f.size, sent, err)
		}
		took = append(took, a.Took)
	}
	return fmt.Sprintf("the last %s after %v, as many in the middle after %v, of %s that come at %s a second",
		formatBytes(seekBytes), roundDuration(took[0]), roundDuration(took[1]), formatBytes(f.size), formatBytes(f.rate)), nil
}

// checkCut reads a file whose origin breaks off every long body.
func (s *selftest) checkCut(ctx context.Context, rs []*selftestReader) (string, error) {
	whole, err := rs[0].do(ctx, s.verifying(s.files.cut, 0))
	cuts := s.files.cut.cuts.Load()
	switch {
	case err != nil:
		return "", fmt.Errorf("after %d cuts: %w", cuts, err)
	case cuts == 0:
		return "", errors.New("nothing was cut, so this shows nothing")
	}
	return fmt.Sprintf("%s verified over %d cuts in %v", formatBytes(whole.N), cuts, roundDuration(whole.Took)), nil
}

// checkIsolation uses everything else while readers of one file are blocked.
func (s *selftest) checkIsolation(ctx context.Context, rs []*selftestReader) (string, error) {
	blocked, free := rs[:blockedReaders], rs[blockedReaders]
	if err := s.block(ctx, blocked, s.files.stalled, stalledStride); err != nil {
		return "", err
	}
	var took []time.Duration
	for _, c := range []readerCall{
		{Op: "ls", Path: s.mnt},
		{Op: "stat anew", Path: s.path(s.files.stalled)},
		s.reading(s.files.other, 0),
		s.verifying(s.files.other, 0),
	} {
		a, err := free.doAtOnce(ctx, c)
		if err != nil {
			return "", fmt.Errorf("while %d readers of another file are blocked: %w", len(blocked), err)
		}
		took = append(took, roundDuration(a.Took))
	}
	if err := s.awaitBlocked(ctx, blocked); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d readers blocked by a stalled origin; ls %v, stat %v, read of another file %v, all %s of it %v",
		len(blocked), took[0], took[1], took[2], formatBytes(s.files.other.size), took[3]), nil
}

// checkKill kills one of two blocked readers.
func (s *selftest) checkKill(ctx context.Context, rs []*selftestReader) (string, error) {
	if err := s.block(ctx, rs, s.files.stalled, stalledStride); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, goneLimit, fmt.Errorf("killed %v ago", goneLimit))
	defer cancel()
	begin := time.Now()
	rs[0].signal(unix.SIGKILL)
	if err := rs[0].awaitGone(ctx); err != nil {
		return "", err
	}
	took := time.Since(begin)
	if err := s.awaitBlocked(ctx, rs[1:]); err != nil {
		return "", fmt.Errorf("the other reader of the file: %w", err)
	}
	return fmt.Sprintf("a blocked reader was gone %v after SIGKILL, the other one was left alone", roundDuration(took)), nil
}

// checkSignals sends a blocked reader a signal that it catches.
func (s *selftest) checkSignals(ctx context.Context, rs []*selftestReader) (string, error) {
	f, r := s.files.paused, rs[0]
	if _, err := r.do(ctx, readerCall{Op: "catch"}); err != nil {
		return "", err
	}
	if err := s.block(ctx, rs, f, 0); err != nil {
		return "", err
	}
	sent, err := signalRepeatedly(ctx, r)
	if err == nil {
		f.allow(f.size)
		_, err = r.answer(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("after %d signals: %w", sent, err)
	}
	if _, err := r.do(ctx, readerCall{Op: "caught"}); err != nil {
		return "", fmt.Errorf("no signal arrived, so this shows nothing: %w", err)
	}
	return fmt.Sprintf("a blocked read went on through %d signals and brought the right bytes", sent), nil
}

// signalRepeatedly sends signals to the thread that reads, and returns how many. It
// is an error if the read ends.
//
// BLOCKS for signalledFor; wakes on the end of the read and of ctx.
func signalRepeatedly(ctx context.Context, r *selftestReader) (sent int, err error) {
	for begin := time.Now(); time.Since(begin) < signalledFor; {
		if err := unix.Tgkill(r.cmd.Process.Pid, r.thread, unix.SIGUSR1); err != nil {
			return sent, fmt.Errorf("send a signal to the reader: %w", err)
		}
		sent++
		select {
		case a := <-r.answers:
			return sent, fmt.Errorf("the blocked read ended: %q", a.Error)
		case <-time.After(signalledEach):
		case <-ctx.Done():
			return sent, context.Cause(ctx)
		}
	}
	return sent, nil
}

// checkStop ends the mount as a user does, while readers are blocked, and looks for
// what it must not leave.
func (s *selftest) checkStop(ctx context.Context, blocked []*selftestReader) (string, error) {
	if err := s.mountEnded(); err != nil {
		return "", err
	}
	if err := s.block(ctx, blocked, s.files.stalled, stalledStride); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, goneLimit, fmt.Errorf("told to stop %v ago", goneLimit))
	defer cancel()
	begin := time.Now()
	s.mount.signal(unix.SIGTERM)
	if err := s.mount.awaitGone(ctx); err != nil {
		return "", fmt.Errorf("fsmount -mount: %w", err)
	}
	took := time.Since(begin)
	for _, r := range blocked {
		if _, err := r.answer(ctx); err == nil {
			return "", errors.New("a blocked read ended well, though its bytes were never sent")
		} else if ctx.Err() != nil {
			return "", err
		}
	}
	left, err := os.ReadDir(s.temp)
	switch {
	case s.mount.cmd.ProcessState.ExitCode() != exitOK:
		return "", s.mountEnded()
	case mounted(s.mnt):
		return "", fmt.Errorf("%s is still mounted", s.mnt)
	case err != nil || len(left) > 0:
		return "", fmt.Errorf("the temporary directory still has %v, %v", left, err)
	}
	if err := s.log.alarm(); err != nil {
		return "", err
	}
	return fmt.Sprintf("gone %v after SIGTERM, with %d readers blocked; no mount and no temporary file left",
		roundDuration(took), len(blocked)), nil
}

func (s *selftest) path(f *faultyFile) string { return filepath.Join(s.mnt, f.name) }

// reading returns a read of selftestReadBytes of f at off.
func (s *selftest) reading(f *faultyFile, off int64) readerCall {
	return readerCall{Op: "read", Path: s.path(f), Off: off, Len: selftestReadBytes, Seed: f.seed}
}

// verifying returns reads at random places, and then one of all of f.
func (s *selftest) verifying(f *faultyFile, random int) readerCall {
	return readerCall{Op: "verify", Path: s.path(f), Len: selftestReadBytes, Count: random, Size: f.size, Seed: f.seed}
}

// block makes rs read f, stride bytes from each other.
//
// BLOCKS as awaitBlocked does.
func (s *selftest) block(ctx context.Context, rs []*selftestReader, f *faultyFile, stride int64) error {
	for i, r := range rs {
		if err := r.send(s.reading(f, int64(i)*stride)); err != nil {
			return err
		}
	}
	return s.awaitBlocked(ctx, rs)
}

// awaitBlocked returns nil when the mount itself lists each of rs as blocked.
//
// BLOCKS until it does; wakes every opsPoll and on the end of ctx.
func (s *selftest) awaitBlocked(ctx context.Context, rs []*selftestReader) error {
	ops := readerCall{Op: "text", Path: filepath.Join(s.mnt, controlName, "ops")}
	_, err := s.with(1, func(ctx context.Context, watcher []*selftestReader) (string, error) {
		for {
			a, err := watcher[0].doAtOnce(ctx, ops)
			if err != nil {
				return "", fmt.Errorf("list the blocked operations: %w", err)
			}
			missing := slices.IndexFunc(rs, func(r *selftestReader) bool { return !listsReader(a.Text, r.thread) })
			if missing < 0 {
				return "", nil
			}
			select {
			case <-time.After(opsPoll):
			case early := <-rs[missing].answers:
				return "", fmt.Errorf("a read of bytes that were never sent ended: %q", early.Error)
			case <-ctx.Done():
				return "", fmt.Errorf("reader %d, in state %s, is not among the blocked operations %q: %w",
					rs[missing].thread, processState(rs[missing].thread), a.Text, context.Cause(ctx))
			}
		}
	})(ctx)
	return err
}

// listsReader reports whether ops has a line for a read of that thread.
func listsReader(ops string, thread int) bool {
	for line := range strings.Lines(ops) {
		if strings.Contains(line, "op=read ") && strings.Contains(line, fmt.Sprintf(" pid=%d ", thread)) {
			return true
		}
	}
	return false
}
