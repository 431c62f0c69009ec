// command_ops.go implements "fsmount ps" and "fsmount check". Both show what the
// mount itself says about each operation; neither works anything out.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// redrawInterval is how often --watch looks.
const redrawInterval = time.Second

type psCommand struct {
	Dir   string `arg:"" help:"Where fsmount is mounted."`
	Watch bool   `help:"Look again every second, until Ctrl-C."`
	JSON  bool   `name:"json" help:"Print a JSON array instead of a table."`
}

// BLOCKS until the operations are shown, with --watch until Ctrl-C.
func (c *psCommand) run(stdout io.Writer) error {
	if !c.Watch {
		frame, err := c.frame(context.Background())
		if err != nil {
			return err
		}
		return writeAll(stdout, frame)
	}
	ctx, cancel := untilInterrupted()
	defer cancel()
	return c.watch(ctx, stdout)
}

// watch shows the operations until ctx ends, which is no error.
func (c *psCommand) watch(ctx context.Context, stdout io.Writer) error {
	tick := time.NewTicker(redrawInterval)
	defer tick.Stop()
	for first := true; ; first = false {
		frame, err := c.frame(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := writeAll(stdout, redraw(stdout, frame, first)); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// frame is what is to be shown now.
func (c *psCommand) frame(ctx context.Context) (string, error) {
	ops, err := askMount(ctx, c.Dir, "ops", parseOpInfo)
	if err != nil {
		return "", err
	}
	if !c.JSON {
		return opsTable(ops), nil
	}
	text, err := json.MarshalIndent(ops, "", "  ")
	return string(text) + "\n", err
}

// opsTable is a table for people, in the order of ops.
func opsTable(ops []opInfo) string {
	if len(ops) == 0 {
		return "no operation in flight\n"
	}
	rows := [][]string{{"AGE", "PID", "COMMAND", "OP", "FILE", "RANGE", "GOID", "STORE", "WAITS FOR"}}
	for _, op := range ops {
		rows = append(rows, []string{
			formatSeconds(op.Age), fmt.Sprint(op.PID), orDash(op.Command), op.Kind, op.File, op.Range,
			fmt.Sprint(op.GoID), orDash(strings.TrimPrefix(fmt.Sprint(op.Store), "0")), op.Waits,
		})
	}
	return table(rows)
}

// redraw is how frame takes the place of the one before. What is no terminal
// keeps them all, a blank line apart.
func redraw(stdout io.Writer, frame string, first bool) string {
	_, lines, isTerminal := terminalSize(stdout)
	switch {
	case !isTerminal && first:
		return frame
	case !isTerminal:
		return "\n" + frame
	}
	return drawOver(frame, lines)
}

// The control sequences of drawOver (ECMA-48, and the DEC private mode 7).
const (
	cursorHome  = "\x1b[H"
	eraseToEnd  = "\x1b[J"
	eraseInLine = "\x1b[K"
	wrapOff     = "\x1b[?7l"
	wrapOn      = "\x1b[?7h"
)

// drawOver writes frame over what the terminal shows, as much of it as there are
// lines. A long line ends at the margin.
func drawOver(frame string, lines int) string {
	rows := strings.Split(strings.TrimSuffix(frame, "\n"), "\n")
	if keep := max(lines-2, 1); len(rows) > keep {
		rows = append(rows[:keep:keep], fmt.Sprintf("and %d more", len(rows)-keep))
	}
	return wrapOff + cursorHome + strings.Join(rows, eraseInLine+"\n") + eraseInLine + "\n" + eraseToEnd + wrapOn
}

func writeAll(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}

// terminalSize returns how many columns and lines w has, if it is a terminal
// that understands how to move the cursor.
func terminalSize(w io.Writer) (columns, lines int, isTerminal bool) {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return 0, 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	if size.Col == 0 || size.Row == 0 {
		return 80, 24, true // a serial line, which does not know
	}
	return int(size.Col), int(size.Row), true
}

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
