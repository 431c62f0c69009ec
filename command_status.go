// command_status.go implements "fsmount status". It shows how much of each file has
// arrived. The mount supplies the figures; this file adds only percentages and times
// left.

package main

import (
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

// statusTable formats files as a table, in their order, as tableWithin does.
func statusTable(files []fileStatus, columns int) string {
	rows := [][]string{{"FILE", "STATE", "DONE", "PRESENT", "SIZE", "RATE", "LEFT", "WAITING", "NOTE"}}
	for _, f := range files {
		rows = append(rows, []string{f.File, f.stateText(), f.percent(), formatBytes(f.Present), formatBytes(f.Size),
			orDash(f.speed()), orDash(f.left()), fmt.Sprint(f.Waiters), orDash(f.note())})
	}
	return tableWithin(columns, rows)
}

// stateText is the state, with the time since the last byte if the file is stalled.
func (s fileStatus) stateText() string {
	if s.State == "stalled" {
		return "stalled " + (time.Duration(s.Silent) * time.Second).String()
	}
	return s.State
}

// percent rounds down, so that only a complete file shows 100%.
func (s fileStatus) percent() string {
	if s.Size == 0 {
		return "100%"
	}
	return fmt.Sprintf("%d%%", int64(float64(s.Present)/float64(s.Size)*100))
}

// speed returns how fast bytes arrive, "" if none do.
func (s fileStatus) speed() string {
	if s.Rate == 0 {
		return ""
	}
	return formatBytes(s.Rate) + "/s"
}

// left returns how long the rest takes at the present rate, "" if that is unknown.
func (s fileStatus) left() string {
	if s.Rate == 0 {
		return ""
	}
	return (time.Duration((s.Size-s.Present)/s.Rate) * time.Second).String()
}

// note tells what went wrong, "" for nothing.
func (s fileStatus) note() (text string) {
	switch {
	case s.State == "failed":
		return fetchCause(s.Error)
	case s.State == "changed" && s.Error != "":
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
