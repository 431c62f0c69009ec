//go:build linux

// selftest_blocked.go has the checks in which reads block, for their origin
// stalls: what they may not hold up, what ends them and what does not, and that
// the mount can be stopped meanwhile. That a read is blocked is seen in the
// mount's own table of operations, never guessed by time.

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
		took = append(took, waited(a.Took))
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
	return fmt.Sprintf("a blocked reader was gone %v after SIGKILL, the other one was left alone", waited(took)), nil
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
	sent, err := rs[0].pester(ctx)
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

// pester sends signals to the thread that reads, for signalledFor, and returns
// how many. It is an error if the read ends of that.
func (r *selftestReader) pester(ctx context.Context) (sent int, err error) {
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
	return fmt.Sprintf("gone %v after SIGTERM, with %d readers blocked; no mount and no temporary file left", waited(took), len(blocked)), nil
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
