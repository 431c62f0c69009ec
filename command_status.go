// command_status.go implements "fsmount status". It shows how much of each file has
// arrived. The mount supplies the figures; this file adds only percentages and times
// left.

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

type statusCommand struct {
	Dir   string `arg:"" name:"DIR" help:"Ask the fsmount that is mounted at DIR."`
	Watch bool   `help:"Show the files again every second, until Ctrl-C."`
	JSON  bool   `name:"json" help:"Print a JSON array instead of a table."`
}

// BLOCKS until the mount answers, as askMount does; with --watch until Ctrl-C.
func (c *statusCommand) run(_ io.Reader, stdout io.Writer) (status int, err error) {
	return exitOK, showFrames(stdout, c.Watch, func(ctx context.Context, columns int) (string, error) {
		files, err := askMount(ctx, "status", c.Dir, "status", parseFileStatus)
		if err != nil || c.JSON {
			return jsonFrame(files), err
		}
		return statusTable(files, columns), nil
	})
}

// statusTable formats files as a table, in their order, as tableWithin does. A stalled
// file shows the time since its last byte. Percentages are rounded down, so that only a
// complete file shows 100%. RATE and LEFT are unknown while no bytes arrive.
func statusTable(files []fileStatus, columns int) string {
	rows := [][]string{{"FILE", "STATE", "DONE", "PRESENT", "SIZE", "RATE", "LEFT", "WAITING", "NOTE"}}
	for _, f := range files {
		state, done, rate, left := f.State, "100%", "-", "-"
		if f.State == "stalled" {
			state = "stalled " + (time.Duration(f.Silent) * time.Second).String()
		}
		if f.Size > 0 {
			done = fmt.Sprintf("%d%%", int64(float64(f.Present)/float64(f.Size)*100))
		}
		if f.Rate > 0 {
			rate = formatBytes(f.Rate) + "/s"
			left = (time.Duration((f.Size-f.Present)/f.Rate) * time.Second).String()
		}
		rows = append(rows, []string{f.File, state, done, formatBytes(f.Present), formatBytes(f.Size),
			rate, left, fmt.Sprint(f.Waiters), cmp.Or(f.note(), "-")})
	}
	return tableWithin(columns, rows)
}

// note tells what went wrong, "" for nothing.
func (s fileStatus) note() (text string) {
	switch {
	case s.State == "failed":
		return fetchCause(s.Error)
	case s.State == "changed" && s.Error == "":
		return "the origin has another version, and is asked which"
	case s.State == "changed":
		return fetchCause(s.Error) + "; fsmount refresh takes the new version"
	case s.LastError == "":
		return ""
	case s.RetryIn > 0:
		text = fmt.Sprintf("next in %.1fs, ", s.RetryIn)
	}
	return fmt.Sprintf("%s%s, the last: %s", text, plural(s.Retries, "retry"), fetchCause(s.LastError))
}

// fetchCause leaves out the range and the URL of a fetch, which precede the first ": ".
func fetchCause(text string) string {
	if what, cause, found := strings.Cut(text, ": "); found && strings.HasPrefix(what, "fetch [") {
		return cause
	}
	return text
}
