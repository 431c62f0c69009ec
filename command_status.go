// command_status.go implements "fsmount status": how much of each file has
// arrived, as live bars on a terminal and as a table elsewhere. The mount supplies
// the figures; this file adds only percentages and times left.

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

const (
	// statusInterval is how often the bars learn what has arrived.
	statusInterval = 500 * time.Millisecond

	// nameColumns is the most that a bar's name takes of a line, so that the
	// rest of it fits into 80 columns.
	nameColumns = 24

	// noteColumns is the most that is shown of what went wrong.
	noteColumns = 60

	// barColumns is the widest bar.
	barColumns = 40
)

type statusCommand struct {
	Dir string `arg:"" help:"Where fsmount is mounted."`
}

// BLOCKS until the status is shown, on a terminal until every file has ended or
// Ctrl-C.
func (c *statusCommand) run(stdout io.Writer) error {
	ctx, cancel := untilInterrupted()
	defer cancel()
	files, err := c.ask(ctx)
	if err != nil {
		return err
	}
	if _, lines, isTerminal := terminalSize(stdout); isTerminal && len(files) < lines {
		return c.live(ctx, stdout, files)
	}
	return writeAll(stdout, statusTable(files))
}

func (c *statusCommand) ask(ctx context.Context) ([]fileStatus, error) {
	return askMount(ctx, c.Dir, "status", parseFileStatus)
}

// statusTable is a table for people, in the order of files.
func statusTable(files []fileStatus) string {
	rows := [][]string{{"FILE", "STATE", "DONE", "PRESENT", "SIZE", "RATE", "LEFT", "WAITING", "NOTE"}}
	for _, f := range files {
		rows = append(rows, []string{f.File, f.State, f.percent(), formatBytes(f.Present), formatBytes(f.Size),
			orDash(f.speed()), orDash(f.left()), fmt.Sprint(f.Waiters), orDash(f.note())})
	}
	return table(rows)
}

// ended reports whether nothing more will come of the file.
func (s fileStatus) ended() bool { return s.State == "complete" || s.State == "failed" }

// percent is rounded down: 100% is all of it.
func (s fileStatus) percent() string {
	if s.Size == 0 {
		return "100%"
	}
	return fmt.Sprintf("%d%%", int64(float64(s.Present)/float64(s.Size)*100))
}

// speed is what arrives, "" for nothing.
func (s fileStatus) speed() string {
	if s.Rate == 0 || s.ended() {
		return ""
	}
	return formatBytes(s.Rate) + "/s"
}

// left is how long the rest takes at this rate, "" where nobody knows.
func (s fileStatus) left() string {
	if s.Rate == 0 || s.ended() {
		return ""
	}
	return (time.Duration((s.Size-s.Present)/s.Rate) * time.Second).String()
}

// note is what went wrong, "" for nothing.
func (s fileStatus) note() string {
	return s.noteOf(func(reason string) string { return reason })
}

// briefNote is of what went wrong the end, where the cause is.
func (s fileStatus) briefNote() string {
	return shorten(s.noteOf(func(reason string) string {
		return printable(reason[strings.LastIndex(": "+reason, ": "):])
	}), noteColumns)
}

func (s fileStatus) noteOf(write func(reason string) string) string {
	switch {
	case s.State == "failed":
		return write(s.Error)
	case s.RetryIn > 0:
		return fmt.Sprintf("retry in %.1fs, after: %s", s.RetryIn, write(s.LastError))
	case s.LastError != "":
		return "retrying, after: " + write(s.LastError)
	}
	return ""
}

// live shows files as bars, and keeps them up to date until each file has ended
// or ctx has.
func (c *statusCommand) live(ctx context.Context, stdout io.Writer, files []fileStatus) (err error) {
	progress := mpb.New(mpb.WithOutput(stdout), mpb.WithRefreshRate(statusInterval/2), mpb.WithQueueLen(len(files)))
	bars := make(map[string]*statusBar)
	for _, f := range files {
		bars[f.File] = newStatusBar(progress, f)
	}
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for err == nil && ctx.Err() == nil && !update(bars, files) {
		select {
		case <-tick.C:
			files, err = c.ask(ctx)
		case <-ctx.Done():
		}
	}
	for _, b := range bars {
		b.bar.Abort(false)
	}
	progress.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// update gives the bars what is new, and reports whether every file has ended.
func update(bars map[string]*statusBar, files []fileStatus) (ended bool) {
	ended = true
	for _, f := range files {
		ended = ended && f.ended()
		if b, ok := bars[f.File]; ok {
			b.show(f)
		}
	}
	return ended
}

// statusBar is the bar of one file.
type statusBar struct {
	bar  *mpb.Bar
	file atomic.Pointer[fileStatus] // what it shows
}

func newStatusBar(progress *mpb.Progress, f fileStatus) *statusBar {
	b := &statusBar{}
	b.file.Store(&f)
	column := func(text func(fileStatus) string, wc decor.WC) decor.Decorator {
		return decor.Any(func(decor.Statistics) string { return text(*b.file.Load()) }, wc)
	}
	left, right := decor.WCSyncWidthR, decor.WCSyncSpace
	b.bar = progress.New(0, mpb.BarStyle().Lbound("[").Rbound("]"),
		mpb.BarWidth(barColumns),
		mpb.PrependDecorators(
			column(func(f fileStatus) string { return shorten(printable(f.File), nameColumns) }, left),
			column(fileStatus.percent, right),
		),
		mpb.AppendDecorators(
			column(func(f fileStatus) string { return formatBytes(f.Size) }, right),
			column(func(f fileStatus) string { return " " + f.State }, left),
			column(fileStatus.speed, right),
			column(fileStatus.left, right),
			column(func(f fileStatus) string { return " " + f.briefNote() }, decor.WC{}),
		),
	)
	b.show(f)
	return b
}

// show makes f what the bar shows, which ends with its file: of an empty one
// nobody could tell by its bytes.
func (b *statusBar) show(f fileStatus) {
	b.file.Store(&f)
	b.bar.SetTotal(max(f.Size, 1), f.State == "complete")
	b.bar.SetCurrent(f.Present)
	if f.State == "failed" {
		b.bar.Abort(false)
	}
}
