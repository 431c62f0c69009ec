// selftest_checks.go holds the checks that need a mount: one for each promise of
// the README that a broken machine could break. A check reads only through child
// processes, and learns from the mount's own table of operations that a read is
// blocked.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	checkNameMount = "mount"

	// selftestReadBytes is how much the readers read at once.
	selftestReadBytes = 256 << 10

	// seekBytes is how much is read after a jump: little, so that the time is that
	// of the jump and not of the slow origin.
	seekBytes = 16 << 10

	// streamedBytes is what the origin sends first of the streamed file: all that
	// blockedReaders read there, and little more.
	streamedBytes = (blockedReaders + 2) * selftestReadBytes / 2

	// atOnceLimit bounds what is to happen at once, on a machine with other
	// things to do.
	atOnceLimit = 3 * time.Second
)

const (
	reportIt = "please report this line and the log below"
	distrust = "do not use this build here: please report this line and the log below"
)

// selftest is a mount of the program by itself. The checks run one after the
// other; what they make is in made, which is taken away even while one of them
// hangs.
type selftest struct {
	files selftestFiles
	made  selftestMade
}

// checks returns those that need a mount, and that of the mount.
func (s *selftest) checks() []selftestCheck {
	all := []selftestCheck{
		{name: "sizes and modes", run: s.checkSizes, todo: reportIt},
		{name: "concurrent readers", run: s.checkConcurrentReaders, todo: distrust},
		{name: "streaming", run: s.checkStreaming, todo: reportIt},
		{name: "seeks", run: s.checkSeeks, todo: reportIt},
		{name: "cut connections", run: s.checkCut, todo: distrust},
		{name: "isolation", run: s.checkIsolation, todo: "while a server stalls, expect programs to hang here; " + reportIt},
		{name: "kill", run: s.checkKill, todo: "expect processes here that cannot be killed; " + reportIt},
		{name: "signals", run: s.checkSignals, todo: "expect programs that catch signals to fail here; " + reportIt},
	}
	for i := range all {
		all[i].run = s.whileMounted(all[i].run)
	}
	all = append(all, selftestCheck{name: "stop", run: s.checkStop,
		todo: "a mount that does not stop is ended by kill -9 and then umount -l; " + reportIt})
	for i := range all {
		all[i].needs = []string{checkNameMount}
	}
	mount := selftestCheck{
		name:  checkNameMount,
		needs: []string{checkNameDevice, checkNameRights, checkNameKernel, checkNameSpace},
		run:   s.checkMount,
		todo:  `see what "fsmount -mount DIR" says, with an empty directory; it must reach 127.0.0.1`,
	}
	return append([]selftestCheck{mount}, all...)
}

// whileMounted has run fail for the end of the mount, where that is why, and for
// a bug that the mount noticed.
func (s *selftest) whileMounted(run func(context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		server := s.made.server()
		if err := server.alive(); err != nil {
			return "", err
		}
		figure, err := run(ctx)
		if ended := server.alive(); err != nil && ended != nil {
			err = fmt.Errorf("%w (%w)", err, ended)
		}
		if err == nil {
			err = server.log.alarm()
		}
		return figure, err
	}
}

// checkMount makes the directories and starts the origin and the mount.
func (s *selftest) checkMount(ctx context.Context) (string, error) {
	place, err := makeSelftestPlace(defaultTempDir())
	s.made.atPlace(place)
	if err != nil {
		return "", err
	}
	s.files = newSelftestFiles()
	origin, err := startSelftestOrigin(s.files.all())
	if err != nil {
		return "", err
	}
	s.made.withOrigin(origin)
	var urls []string
	for _, f := range s.files.all() {
		urls = append(urls, origin.url(f))
	}
	begin := time.Now()
	server, err := startSelftestMount(place.mnt, place.temp, urls)
	if err != nil {
		return "", err
	}
	s.made.withServer(server)
	if err := server.awaitReady(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d files at %s after %v", len(urls), place.mnt, roundDuration(time.Since(begin))), nil
}

func (s *selftest) checkSizes(ctx context.Context) (string, error) {
	rs, err := s.start(ctx, 1)
	defer rs.kill()
	if err != nil {
		return "", err
	}
	listing, err := rs[0].do(ctx, selftestCall{Op: "ls", Path: s.made.at().mnt})
	if err != nil {
		return "", err
	}
	for _, f := range s.files.all() {
		if !slices.Contains(listing.Names, f.name) {
			return "", fmt.Errorf("the listing has no %s: %q", f.name, listing.Names)
		}
		if err := s.checkSize(ctx, rs[0], f); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d files, as the origin has them", len(s.files.all())), nil
}

// checkSize asks for f's attributes, first those that came with its name and
// then anew.
func (s *selftest) checkSize(ctx context.Context, r *selftestReader, f *selftestFile) error {
	for _, op := range []string{"stat", "stat anew"} {
		a, err := r.do(ctx, selftestCall{Op: op, Path: s.path(f)})
		if err != nil {
			return err
		}
		if a.Size != f.size || a.Mode != unix.S_IFREG|0o444 {
			return fmt.Errorf("%s: %s has %d bytes and mode %o, want %d and %o", op, f.name, a.Size, a.Mode, f.size, unix.S_IFREG|0o444)
		}
	}
	return nil
}

// checkConcurrentReaders has processes read at random, and then the whole file,
// while it downloads.
func (s *selftest) checkConcurrentReaders(ctx context.Context) (string, error) {
	f := s.files.whole
	rs, err := s.start(ctx, 8)
	defer rs.kill()
	if err != nil {
		return "", err
	}
	begin := time.Now()
	for _, r := range rs {
		if err := r.send(s.verifying(f, 64)); err != nil {
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

// checkStreaming has readers wait for the start of a file, of which the origin
// then sends no more than that: each must be woken by its own bytes, for none
// come after them.
func (s *selftest) checkStreaming(ctx context.Context) (string, error) {
	f := s.files.streamed
	rs, err := s.blocked(ctx, blockedReaders, f, selftestReadBytes/2)
	defer rs.kill()
	if err != nil {
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

// checkSeeks reads the tail of a file first while the rest is slow.
func (s *selftest) checkSeeks(ctx context.Context) (string, error) {
	f := s.files.slow
	rs, err := s.start(ctx, 2)
	defer rs.kill()
	if err != nil {
		return "", err
	}
	if _, err := rs[0].do(ctx, s.reading(f, 0)); err != nil {
		return "", err
	}
	var took []time.Duration
	for _, off := range []int64{f.size - seekBytes, f.size / 2, f.size / 4} {
		jump := s.reading(f, off)
		jump.Len = seekBytes
		a, err := s.atOnce(ctx, rs[1], jump)
		sent := f.sent.Load()
		if err == nil && sent > f.size/2 {
			err = fmt.Errorf("that took %v", roundDuration(a.Took))
		}
		if err != nil {
			return "", fmt.Errorf("a jump to byte %d of %d seems to wait for what lies before, of which the origin has sent %d bytes: %w", off, f.size, sent, err)
		}
		took = append(took, a.Took)
	}
	return fmt.Sprintf("the last %s after %v, as many in the middle after %v, of %s that come at %s a second",
		formatBytes(seekBytes), roundDuration(took[0]), roundDuration(took[1]), formatBytes(f.size), formatBytes(f.rate)), nil
}

// checkCut reads a file whose origin breaks every long body off.
func (s *selftest) checkCut(ctx context.Context) (string, error) {
	f := s.files.cut
	rs, err := s.start(ctx, 1)
	defer rs.kill()
	if err != nil {
		return "", err
	}
	whole, err := rs[0].do(ctx, s.verifying(f, 0))
	cuts := f.cuts.Load()
	switch {
	case err != nil:
		return "", fmt.Errorf("after %d cuts: %w", cuts, err)
	case cuts == 0:
		return "", errors.New("nothing was cut, so this shows nothing")
	}
	return fmt.Sprintf("%s verified over %d cuts in %v", formatBytes(whole.N), cuts, roundDuration(whole.Took)), nil
}

// reading is a read of selftestReadBytes, or what f has of them, at off.
func (s *selftest) reading(f *selftestFile, off int64) selftestCall {
	return selftestCall{Op: "read", Path: s.path(f), Off: off, Len: selftestReadBytes, Seed: f.seed}
}

// verifying is random reads and then one of all of f.
func (s *selftest) verifying(f *selftestFile, random int) selftestCall {
	return selftestCall{Op: "verify", Path: s.path(f), Len: selftestReadBytes, Count: random, Size: f.size, Seed: f.seed}
}

// atOnce is do within atOnceLimit.
func (s *selftest) atOnce(ctx context.Context, r *selftestReader, c selftestCall) (selftestAnswer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, atOnceLimit, fmt.Errorf("%s %s took more than %v", c.Op, filepath.Base(c.Path), atOnceLimit))
	defer cancel()
	return r.do(ctx, c)
}

// start starts n readers. Those that it returns with an error are to be killed
// as well.
func (s *selftest) start(ctx context.Context, n int) (rs selftestReaders, err error) {
	for range n {
		r, err := startSelftestReader()
		if err != nil {
			return rs, err
		}
		s.made.withReader(r)
		rs = append(rs, r)
	}
	for _, r := range rs {
		hello, err := r.answer(ctx)
		if err != nil {
			return rs, err
		}
		r.thread = int(hello.N)
	}
	return rs, nil
}

func (s *selftest) path(f *selftestFile) string { return filepath.Join(s.made.at().mnt, f.name) }

const (
	// goneLimit bounds the end of a killed reader, of which a second is promised,
	// and that of a stopped mount.
	goneLimit = 5 * time.Second

	// signalledFor is how long a blocked reader is sent signals: several times
	// fatalPoll, so that whatever they do to its read has happened.
	signalledFor  = 5 * fatalPoll / 2
	signalledEach = fatalPoll / 4

	// blockedReaders is how many readers block on a file at once: more than it
	// may have requests in flight.
	blockedReaders = 6

	// stalledStride is how far apart they read in the stalled file, in bytes: not
	// at pages, and far enough for a request each.
	stalledStride = 600_000
)

// checkIsolation uses everything else while readers of one file are blocked.
func (s *selftest) checkIsolation(ctx context.Context) (string, error) {
	blocked, err := s.blocked(ctx, blockedReaders, s.files.stalled, stalledStride)
	defer blocked.kill()
	if err != nil {
		return "", err
	}
	rs, err := s.start(ctx, 1)
	defer rs.kill()
	if err != nil {
		return "", err
	}
	var took []time.Duration
	for _, c := range []selftestCall{
		{Op: "ls", Path: s.made.at().mnt},
		{Op: "stat anew", Path: s.path(s.files.stalled)},
		s.reading(s.files.other, 0),
		s.verifying(s.files.other, 0),
	} {
		a, err := s.atOnce(ctx, rs[0], c)
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

func (s *selftest) checkKill(ctx context.Context) (string, error) {
	blocked, err := s.blocked(ctx, 2, s.files.stalled, stalledStride)
	defer blocked.kill()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, goneLimit, fmt.Errorf("killed %v ago", goneLimit))
	defer cancel()
	begin := time.Now()
	blocked[0].signal(unix.SIGKILL)
	if err := blocked[0].awaitGone(ctx); err != nil {
		return "", err
	}
	took := time.Since(begin)
	if err := s.awaitBlocked(ctx, blocked[1:]); err != nil {
		return "", fmt.Errorf("the other reader of the file: %w", err)
	}
	return fmt.Sprintf("a blocked reader was gone %v after SIGKILL, the other one was left alone", roundDuration(took)), nil
}

// checkSignals sends a blocked reader a signal that it catches.
func (s *selftest) checkSignals(ctx context.Context) (string, error) {
	f := s.files.paused
	rs, err := s.start(ctx, 1)
	defer rs.kill()
	if err != nil {
		return "", err
	}
	if _, err := rs[0].do(ctx, selftestCall{Op: "catch"}); err != nil {
		return "", err
	}
	if err := s.block(ctx, rs, f, 0); err != nil {
		return "", err
	}
	sent, err := rs[0].signalRepeatedly(ctx)
	if err != nil {
		return "", fmt.Errorf("after %d signals: %w", sent, err)
	}
	f.allow(f.size)
	if _, err := rs[0].answer(ctx); err != nil {
		return "", fmt.Errorf("after %d signals: %w", sent, err)
	}
	if _, err := rs[0].do(ctx, selftestCall{Op: "caught"}); err != nil {
		return "", fmt.Errorf("no signal arrived, so this shows nothing: %w", err)
	}
	return fmt.Sprintf("a blocked read went on through %d signals and brought the right bytes", sent), nil
}

// signalRepeatedly sends signals to the thread that reads, for signalledFor, and returns
// how many. It is an error if the read ends of that.
func (r *selftestReader) signalRepeatedly(ctx context.Context) (sent int, err error) {
	enough := time.After(signalledFor)
	next := time.NewTicker(signalledEach)
	defer next.Stop()
	for {
		if err := unix.Tgkill(r.cmd.Process.Pid, r.thread, unix.SIGUSR1); err != nil {
			return sent, fmt.Errorf("send a signal to the reader: %w", err)
		}
		sent++
		select {
		case a := <-r.answers:
			return sent, fmt.Errorf("the blocked read ended: %q", a.Error)
		case <-next.C:
		case <-enough:
			return sent, nil
		case <-ctx.Done():
			return sent, context.Cause(ctx)
		}
	}
}

// checkStop ends the mount as a user does, with readers blocked.
func (s *selftest) checkStop(ctx context.Context) (string, error) {
	server := s.made.server()
	if err := server.alive(); err != nil {
		return "", err
	}
	blocked, err := s.blocked(ctx, blockedReaders, s.files.stalled, stalledStride)
	defer blocked.kill()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, goneLimit, fmt.Errorf("told to stop %v ago", goneLimit))
	defer cancel()
	begin := time.Now()
	server.signal(unix.SIGTERM)
	if err := server.awaitGone(ctx); err != nil {
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
	if err := s.checkStopped(server); err != nil {
		return "", err
	}
	return fmt.Sprintf("gone %v after SIGTERM, with %d readers blocked; no mount and no temporary file left", roundDuration(took), len(blocked)), nil
}

// checkStopped looks for what a mount must not leave.
//
// REQUIRES: server.exited is closed
func (s *selftest) checkStopped(server *selftestMount) error {
	if status := server.cmd.ProcessState.ExitCode(); status != exitOK {
		return server.ended()
	}
	if mounted(s.made.at().mnt) {
		return fmt.Errorf("%s is still mounted", s.made.at().mnt)
	}
	left, err := os.ReadDir(s.made.at().temp)
	if err != nil || len(left) > 0 {
		return fmt.Errorf("in the temporary directory is left: %v, %v", left, err)
	}
	return server.log.alarm()
}

// blocked starts n readers that are blocked on f, stride bytes from each other.
func (s *selftest) blocked(ctx context.Context, n int, f *selftestFile, stride int64) (selftestReaders, error) {
	rs, err := s.start(ctx, n)
	if err == nil {
		err = s.block(ctx, rs, f, stride)
	}
	return rs, err
}

// block has rs read f, stride bytes from each other, and returns when they are
// blocked.
func (s *selftest) block(ctx context.Context, rs selftestReaders, f *selftestFile, stride int64) error {
	for i, r := range rs {
		if err := r.send(s.reading(f, int64(i)*stride)); err != nil {
			return err
		}
	}
	return s.awaitBlocked(ctx, rs)
}

// awaitBlocked returns when the mount itself lists each of rs as blocked.
//
// BLOCKS until it does; wakes every opsPoll and on the end of ctx.
func (s *selftest) awaitBlocked(ctx context.Context, rs selftestReaders) error {
	watcher, err := s.start(ctx, 1)
	defer watcher.kill()
	if err != nil {
		return err
	}
	ops := selftestCall{Op: "text", Path: filepath.Join(s.made.at().mnt, controlName, "ops")}
	for {
		a, err := s.atOnce(ctx, watcher[0], ops)
		if err != nil {
			return fmt.Errorf("list the blocked operations: %w", err)
		}
		missing := slices.IndexFunc(rs, func(r *selftestReader) bool { return !listsReader(a.Text, r.thread) })
		if missing < 0 {
			return nil
		}
		select {
		case <-time.After(opsPoll):
		case early := <-rs[missing].answers:
			return fmt.Errorf("a read of bytes that were never sent ended: %q", early.Error)
		case <-ctx.Done():
			return fmt.Errorf("reader %d, in state %s, is not among the blocked operations %q: %w",
				rs[missing].thread, processState(rs[missing].cmd.Process.Pid), a.Text, context.Cause(ctx))
		}
	}
}

// listsReader reports whether the lines of ops have a read of that thread.
func listsReader(ops string, thread int) bool {
	for line := range strings.Lines(ops) {
		if strings.Contains(line, "op=read ") && strings.Contains(line, fmt.Sprintf(" pid=%d ", thread)) {
			return true
		}
	}
	return false
}
