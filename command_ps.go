// command_ps.go is "fsmount ps": it shows people the operations in flight on a
// mount, once or again and again. What an operation waits for the mount itself
// says; nothing is worked out here.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
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

// table aligns the columns of rows, two blanks apart.
func table(rows [][]string) string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, printable(cell))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	return b.String()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// formatSeconds writes a time with a precision that suits it: 1.5s, 2m5s.
func formatSeconds(seconds float64) string {
	if seconds < 60 {
		return fmt.Sprintf("%.1fs", seconds)
	}
	return (time.Duration(seconds) * time.Second).String()
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
