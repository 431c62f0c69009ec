// command_umount.go implements "fsmount umount", and removes what a killed fsmount left
// mounted, so that the next start finds an empty directory. It detaches a mount only if
// that is an fsmount and answers ENOTCONN, which proves that nobody serves it any more.

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

// umountPatience is how long a mount that was asked to stop may take: mountpoint.Stop
// takes three times drainPatience at most.
const umountPatience = 5 * drainPatience

// umountCommand is `fsmount umount`.
type umountCommand struct {
	Dir string `arg:"" name:"DIR" help:"End the fsmount that is mounted at DIR, or remove what one that was killed left there."`
}

// run ends the mounts of this program at a directory.
//
// BLOCKS until they are gone: while one does not answer at most answerPatience, and then
// at most umountPatience; wakes on Ctrl-C.
func (c *umountCommand) run(_ io.Reader, stdout io.Writer) (status int, err error) {
	ctx, cancel := untilInterrupted()
	defer cancel()
	shown := redactArg(c.Dir)
	dir, err := resolve(c.Dir)
	m := mountedAt(dir)
	all := m.copies()
	switch {
	case err != nil || !m.isFsmount():
		_, err := askMount(ctx, "umount", c.Dir, "status", asIs) // says what is there
		return exitFailure, err
	case len(all) > 0 && all[0].id != m.id: // the kernel lists the oldest mount first
		_, err := m.unmount()
		return exitOK, err
	}
	dead, err := clearDead(dir)
	if dead > 0 {
		fmt.Fprintf(stdout, "%s: removed what a killed fsmount had left mounted\n", shown)
	}
	if m = mountedAt(dir); err != nil || !m.isFsmount() {
		return exitOK, err
	}
	_, err = askToDo(ctx, answerPatience, "stop", dir, nil, io.Discard)
	for begin := time.Now(); mountedAt(dir) == m; time.Sleep(20 * time.Millisecond) {
		_, deadErr := clearDead(dir) // it may be killed meanwhile
		switch {
		case deadErr != nil:
			return exitFailure, deadErr
		case mountedAt(dir) != m:
		case err != nil:
			return exitFailure, fmt.Errorf("%w; to end it without being asked: kill -9 its process, %s, then repeat this command", err, serverOf(m.minor))
		case time.Since(begin) > umountPatience || ctx.Err() != nil:
			return exitFailure, fmt.Errorf("%s: still mounted after it was asked to stop, see its log", shown)
		}
	}
	for _, other := range m.copies() {
		fmt.Fprintf(stdout, "a copy of it stays, and answers no more: fsmount umount %s\n", shellQuote(other.dir))
	}
	return exitOK, nil
}

// copies returns all mounts of the file system of m (mount --bind), m among them if it is
// there.
func (m mountEntry) copies() []mountEntry {
	return slices.DeleteFunc(mounts(), func(other mountEntry) bool { return other.minor != m.minor || !other.isFsmount() })
}

// clearDead detaches the mounts at a path that killed fsmounts left, the topmost first,
// and returns their number.
//
// BLOCKS until each has answered, at most answerPatience.
func clearDead(path string) (n int, err error) {
	dir, err := resolve(path)
	if err != nil {
		return 0, nil // nothing is there
	}
	for {
		m := mountedAt(dir)
		if !m.isFsmount() {
			return n, nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), answerPatience)
		answer, err := askChild(ctx, dir, "", "")
		cancel()
		if err != nil || !answer.Dead {
			return n, nil
		}
		done, err := m.unmount()
		if err != nil {
			return n, fmt.Errorf("remove what a killed fsmount of user %d left mounted at %s: %w", m.user, dir, err)
		}
		if !done {
			return n, nil
		}
		n++
	}
}
