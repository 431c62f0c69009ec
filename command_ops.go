// command_ops.go implements "fsmount ps" and "fsmount check". The mount says what
// each operation waits for; ps formats it, and check reports whether an operation is
// blocked.

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

// redrawInterval is the time between two tables of --watch.
const redrawInterval = time.Second

type psCommand struct {
	Dir   string `arg:"" help:"Ask the fsmount that is mounted at DIR."`
	Watch bool   `help:"Show the operations again every second, until Ctrl-C."`
	JSON  bool   `name:"json" help:"Print a JSON array instead of a table."`
}

// BLOCKS until the mount answers, as askMount does; with --watch until Ctrl-C.
func (c *psCommand) run(stdout io.Writer) error {
	if !c.Watch {
		frame, err := c.frame(context.Background())
		if err == nil {
			_, err = io.WriteString(stdout, frame)
		}
		return err
	}
	ctx, cancel := untilInterrupted()
	defer cancel()
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
		if _, err := io.WriteString(stdout, redraw(stdout, frame, first)); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// frame returns the operations in flight as text, a table or JSON.
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

// opsTable formats ops as a table, in their order.
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

// redraw returns the text that shows frame after the frames before it. On a terminal
// it draws over them; elsewhere a blank line separates the frames.
func redraw(stdout io.Writer, frame string, first bool) string {
	if lines, isTerminal := terminalLines(stdout); isTerminal {
		return drawOver(frame, lines)
	}
	if first {
		return frame
	}
	return "\n" + frame
}

// The control sequences of drawOver (ECMA-48, and the DEC private mode 7).
const (
	frameStart = "\x1b[?7l\x1b[H" // no wrapping of long rows; cursor to the top left
	rowEnd     = "\x1b[K\n"       // erase the rest of the row
	frameEnd   = "\x1b[J\x1b[?7h" // erase the rest of the screen; wrap again
)

// drawOver returns the text that draws frame from the top of the screen. It drops the
// rows that do not fit into lines, and tells how many; a long row ends at the margin.
func drawOver(frame string, lines int) string {
	rows := strings.Split(strings.TrimSuffix(frame, "\n"), "\n")
	if keep := max(lines-2, 1); len(rows) > keep {
		rows = append(rows[:keep:keep], fmt.Sprintf("and %d more", len(rows)-keep))
	}
	return frameStart + strings.Join(rows, rowEnd) + rowEnd + frameEnd
}

// terminalLines returns the height of w if w is a terminal that can move its cursor.
func terminalLines(w io.Writer) (lines int, isTerminal bool) {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	if size.Col == 0 || size.Row == 0 {
		return 24, true // a serial line does not know its size
	}
	return int(size.Row), true
}

const (
	// check pauses between two looks, from firstCheckPause on for twice as long each
	// time, up to longestCheckPause: most operations end soon, and each look costs a
	// process.
	firstCheckPause   = 20 * time.Millisecond
	longestCheckPause = 250 * time.Millisecond
)

type checkCommand struct {
	Dir     string        `arg:"" help:"Check the fsmount that is mounted at DIR."`
	Timeout time.Duration `placeholder:"TIME" default:"2s" help:"Fail if an operation, or the mount's answer, takes TIME or longer. The check itself takes at most TIME, such as 500ms or 2s. Default: ${default}."`
}

// Validate refuses a timeout that is not positive. kong calls it.
func (c *checkCommand) Validate() error {
	if c.Timeout <= 0 {
		return errors.New("--timeout is a time above zero, such as 2s")
	}
	return nil
}

// run returns an error of one line if an operation is blocked or the mount does not
// answer.
//
// BLOCKS as checkMount does.
func (c *checkCommand) run() error {
	return checkMount(c.Dir, c.Timeout, func(ctx context.Context) ([]opInfo, error) {
		return readControl(ctx, c.Dir, "ops", parseOpInfo)
	})
}

// checkMount calls look until every operation of the first look has ended, which is
// success, or one of them is as old as timeout, which is an error. It ignores later
// operations: none can reach that age before the timeout. The last look starts when a
// tenth of the timeout is left; an operation of the first look that is still there then
// counts as blocked.
//
// BLOCKS until it knows; wakes at the latest after timeout.
func checkMount(dir string, timeout time.Duration, look func(context.Context) ([]opInfo, error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	lastLook := time.Now().Add(timeout - timeout/10)
	var newest uint64 // ID of the first look: IDs grow in the order in which operations begin
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
		var suspects, blocked []opInfo
		for _, op := range ops {
			if first {
				newest = max(newest, op.ID)
			}
			if op.ID <= newest {
				suspects = append(suspects, op)
			}
			if op.ID <= newest && op.Age >= timeout.Seconds() {
				blocked = append(blocked, op)
			}
		}
		switch {
		case len(suspects) == 0:
			return nil
		case len(blocked) > 0:
			return blockedError(dir, blocked, len(ops))
		case !first && !time.Now().Before(lastLook):
			return blockedError(dir, suspects, len(ops))
		}
	}
}

// blockedError returns an error that counts the blocked operations and describes the
// first of them.
func blockedError(dir string, blocked []opInfo, inFlight int) error {
	op := blocked[0]
	what := strings.TrimSuffix(op.Kind+" "+op.Range, " -") // "-" is no range
	return fmt.Errorf("%s: blocked: %d of %d operations in flight, the oldest for %s: %s of %q for pid %d (%s), which waits for %s",
		dir, len(blocked), inFlight, formatSeconds(op.Age), what, op.File, op.PID, printable(op.Command), printable(op.Waits))
}
