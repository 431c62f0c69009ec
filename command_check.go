// command_check.go is "fsmount check": it says by its exit status whether a
// mount is well. It comes back within its timeout whatever the mount does, and
// changes nothing.

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// firstCheckPause and longestCheckPause are between two looks. The pauses
	// double: most operations end at once, and each look is a process.
	firstCheckPause   = 20 * time.Millisecond
	longestCheckPause = 250 * time.Millisecond
)

type checkCommand struct {
	Dir     string        `arg:"" help:"Where fsmount is mounted."`
	Timeout time.Duration `placeholder:"TIME" default:"2s" help:"How long an operation may take, and the mount to answer; the check takes no longer. Default: 2s."`
}

// Validate refuses a timeout that makes no sense. (kong calls it.)
func (c *checkCommand) Validate() error {
	if c.Timeout <= 0 {
		return errors.New("--timeout is a time above zero, such as 2s")
	}
	return nil
}

// run returns an error of one line if something is wrong with the mount.
//
// BLOCKS until that is known; wakes at the latest after the timeout.
func (c *checkCommand) run() error {
	return checkMount(c.Dir, c.Timeout, func(ctx context.Context) ([]opInfo, error) {
		text, err := readControl(ctx, c.Dir, "ops")
		if err != nil {
			return nil, err
		}
		return parseControl(c.Dir, "ops", text, parseOpInfo)
	})
}

// checkMount looks until every operation that was in flight at first has ended,
// which is well, or one has been for as long as timeout. Later ones cannot get
// that old before the timeout, and do not matter. The last look is a tenth of
// the timeout before its end; what has been there all the time then counts as
// blocked.
//
// BLOCKS until then; wakes at the latest after timeout.
func checkMount(dir string, timeout time.Duration, look func(context.Context) ([]opInfo, error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	lastLook := time.Now().Add(timeout - timeout/10)
	var suspects []opInfo
	for pause := time.Duration(0); ; pause = min(max(2*pause, firstCheckPause), longestCheckPause) {
		time.Sleep(min(pause, time.Until(lastLook)))
		ops, err := look(ctx)
		if errors.Is(err, errNoAnswer) {
			return fmt.Errorf("%w within %v", err, timeout)
		}
		if err != nil {
			return err
		}
		first := pause == 0
		if first {
			suspects = ops
		}
		suspects = stillThere(suspects, ops)
		if blocked := blockedFor(suspects, timeout); len(blocked) > 0 {
			return blockedError(dir, blocked, len(ops))
		}
		if len(suspects) == 0 {
			return nil
		}
		if !first && !time.Now().Before(lastLook) {
			return blockedError(dir, suspects, len(ops))
		}
	}
}

// stillThere returns those of now that are among before.
func stillThere(before, now []opInfo) (both []opInfo) {
	ids := make(map[uint64]bool, len(before))
	for _, op := range before {
		ids[op.ID] = true
	}
	for _, op := range now {
		if ids[op.ID] {
			both = append(both, op)
		}
	}
	return both
}

func blockedFor(ops []opInfo, limit time.Duration) (blocked []opInfo) {
	for _, op := range ops {
		if op.Age >= limit.Seconds() {
			blocked = append(blocked, op)
		}
	}
	return blocked
}

// blockedError says how many operations are blocked, of those in flight, and what
// of the first.
func blockedError(dir string, blocked []opInfo, inFlight int) error {
	op := blocked[0]
	what := op.Kind
	if op.Range != "-" {
		what += " " + op.Range
	}
	return fmt.Errorf("%s: blocked: %d of %d operations in flight, the oldest for %s: %s of %q for pid %d (%s), which waits for %s",
		dir, len(blocked), inFlight, formatSeconds(op.Age), what, op.File, op.PID, printable(op.Command), printable(op.Waits))
}
