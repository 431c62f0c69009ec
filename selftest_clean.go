//go:build linux

// selftest_clean.go knows all that a self-test made, and takes it away: its
// processes, its mount, its directory. It needs nothing of the checks, one of
// which may still hang, and each of its steps is bounded. It never looks into
// the mount.

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// cleanPatience bounds each step of cleaning up, of which there are three.
const cleanPatience = 2 * time.Second

// selftestPlace is the private directory of a self-test. The zero place is none.
type selftestPlace struct {
	dir  string // what follows lies in it
	mnt  string // the mountpoint
	temp string // for downloads
}

// makeSelftestPlace makes a directory in parent. Its name is that which
// /proc/self/mountinfo will have for it. A place that it returns with an error
// is to be removed as well.
func makeSelftestPlace(parent string) (p selftestPlace, err error) {
	made, err := os.MkdirTemp(parent, "fsmount-selftest-")
	if err != nil {
		return p, err
	}
	p.dir = made
	if p.dir, err = filepath.EvalSymlinks(made); err != nil {
		return selftestPlace{dir: made}, err
	}
	p.mnt, p.temp = filepath.Join(p.dir, "mnt"), filepath.Join(p.dir, "temp")
	return p, errors.Join(os.Mkdir(p.mnt, 0o700), os.Mkdir(p.temp, 0o700))
}

// selftestMade is all that a self-test made. Its methods are safe to call while
// a check hangs.
type selftestMade struct {
	mu     sync.Mutex
	place  selftestPlace    // GUARDED_BY(mu)
	origin *selftestOrigin  // GUARDED_BY(mu); nil until it was started
	mount  *selftestMount   // GUARDED_BY(mu); nil until it was started
	others []*selftestChild // GUARDED_BY(mu); the readers
}

func (m *selftestMade) atPlace(p selftestPlace) { m.set(func() { m.place = p }) }

func (m *selftestMade) withOrigin(o *selftestOrigin) { m.set(func() { m.origin = o }) }

func (m *selftestMade) withServer(s *selftestMount) { m.set(func() { m.mount = s }) }

func (m *selftestMade) withReader(r *selftestReader) {
	m.set(func() { m.others = append(m.others, r.selftestChild) })
}

// LOCKS_EXCLUDED(m.mu)
func (m *selftestMade) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// LOCKS_EXCLUDED(m.mu)
func (m *selftestMade) at() selftestPlace {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.place
}

// LOCKS_EXCLUDED(m.mu)
func (m *selftestMade) server() *selftestMount {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mount
}

// LOCKS_EXCLUDED(m.mu)
func (m *selftestMade) originAndReaders() (*selftestOrigin, []*selftestChild) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.origin, slices.Clone(m.others)
}

// log returns the end of the mount's log.
func (m *selftestMade) log() []string {
	if server := m.server(); server != nil {
		return server.log.lines()
	}
	return nil
}

// cleanCheck is the last check: that all can be taken away.
func (m *selftestMade) cleanCheck() selftestCheck {
	return selftestCheck{
		name: "nothing left",
		run:  m.clean,
		todo: "end and remove that by hand: kill -9, umount -l, rmdir",
	}
}

// clean takes everything away. Where all went well there is little left to do.
//
// BLOCKS until it is done, at most three times cleanPatience.
func (m *selftestMade) clean(ctx context.Context) (string, error) {
	origin, children := m.originAndReaders()
	for _, reader := range children {
		reader.signal(unix.SIGKILL)
	}
	if server := m.server(); server != nil {
		children = append(children, server.selftestChild)
		server.stop(ctx)
	}
	err := errors.Join(awaitAllGone(ctx, children), m.detach(ctx))
	if origin != nil {
		err = errors.Join(err, origin.Close())
	}
	if err = errors.Join(err, m.at().remove()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d processes gone, no mount, no file, no directory", len(children)), nil
}

// stop ends the mount as a user does, or else by force.
//
// BLOCKS until it is gone, at most cleanPatience.
func (s *selftestMount) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cleanPatience)
	defer cancel()
	s.signal(unix.SIGTERM)
	if s.awaitGone(ctx) != nil {
		s.signal(unix.SIGKILL)
	}
}

// detach takes the mount away where its process has left it.
//
// BLOCKS until that is done, at most cleanPatience: for a user who is not root,
// another program does it.
func (m *selftestMade) detach(ctx context.Context) error {
	mnt := m.at().mnt
	if mnt == "" || !mounted(mnt) {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- unmount(mnt) }()
	select {
	case err := <-done:
		return err
	case <-time.After(cleanPatience):
		return fmt.Errorf("unmount %s: no end within %v", mnt, cleanPatience)
	case <-ctx.Done():
		return fmt.Errorf("unmount %s: %w", mnt, context.Cause(ctx))
	}
}

// awaitAllGone returns nil when each of children is gone, an error for those that
// are not.
//
// BLOCKS until they are, at most cleanPatience.
func awaitAllGone(ctx context.Context, children []*selftestChild) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cleanPatience, errors.New("killed by SIGKILL"))
	defer cancel()
	for _, c := range children {
		err = errors.Join(err, c.awaitGone(ctx))
	}
	return err
}

// remove removes the place, and nothing that is mounted in it.
func (p selftestPlace) remove() error {
	if p.dir == "" {
		return nil
	}
	var err error
	if p.temp != "" {
		err = os.RemoveAll(p.temp)
	}
	for _, dir := range []string{p.mnt, p.dir} {
		if removeErr := os.Remove(dir); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}
