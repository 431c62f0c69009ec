// command_status.go implements "fsmount status". It shows how much of each file has
// arrived: as live bars on a terminal, as a table elsewhere. The mount supplies the
// figures; this file adds only percentages and times left.

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
	// statusInterval is the time between two questions to the mount.
	statusInterval = 500 * time.Millisecond

	// The widest name, bar and note, in columns. The name leaves room for the other
	// columns in a line of 80.
	nameColumns = 24
	barColumns  = 40
	noteColumns = 60
)

type statusCommand struct {
	Dir string `arg:"" help:"Ask the fsmount that is mounted at DIR."`
}

// BLOCKS until the mount answers, as askMount does; on a terminal until every file
// has ended or Ctrl-C.
func (c *statusCommand) run(stdout io.Writer) error {
	ctx, cancel := untilInterrupted()
	defer cancel()
	files, err := askMount(ctx, c.Dir, "status", parseFileStatus)
	if err != nil {
		return err
	}
	if lines, isTerminal := terminalLines(stdout); isTerminal && len(files) < lines {
		return c.live(ctx, stdout, files)
	}
	_, err = io.WriteString(stdout, statusTable(files))
	return err
}

// statusTable formats files as a table, in their order.
func statusTable(files []fileStatus) string {
	rows := [][]string{{"FILE", "STATE", "DONE", "PRESENT", "SIZE", "RATE", "LEFT", "WAITING", "NOTE"}}
	for _, f := range files {
		rows = append(rows, []string{f.File, f.State, f.percent(), formatBytes(f.Present), formatBytes(f.Size),
			orDash(f.speed()), orDash(f.left()), fmt.Sprint(f.Waiters), orDash(f.note())})
	}
	return table(rows)
}

// ended reports whether the download is over: complete or failed.
func (s fileStatus) ended() bool { return s.State == "complete" || s.State == "failed" }

// percent rounds down, so that only a complete file shows 100%.
func (s fileStatus) percent() string {
	if s.Size == 0 {
		return "100%"
	}
	return fmt.Sprintf("%d%%", int64(float64(s.Present)/float64(s.Size)*100))
}

// speed returns how fast bytes arrive, "" if none do.
func (s fileStatus) speed() string {
	if s.Rate == 0 || s.ended() {
		return ""
	}
	return formatBytes(s.Rate) + "/s"
}

// left returns how long the rest takes at the present rate, "" if that is unknown.
func (s fileStatus) left() string {
	if s.Rate == 0 || s.ended() {
		return ""
	}
	return (time.Duration((s.Size-s.Present)/s.Rate) * time.Second).String()
}

// note tells what went wrong, "" for nothing.
func (s fileStatus) note() string {
	switch {
	case s.State == "failed":
		return s.Error
	case s.RetryIn > 0:
		return fmt.Sprintf("retry in %.1fs, after: %s", s.RetryIn, s.LastError)
	case s.LastError != "":
		return "retrying, after: " + s.LastError
	}
	return ""
}

// briefNote is note with only the last part of the error, which names the cause.
func (s fileStatus) briefNote() string {
	s.Error, s.LastError = errorCause(s.Error), errorCause(s.LastError)
	return shorten(s.note(), noteColumns)
}

func errorCause(text string) string {
	return printable(text[strings.LastIndex(": "+text, ": "):])
}

// live shows files as bars and asks for news every statusInterval.
//
// BLOCKS until each file has ended; wakes on an error and on the end of ctx, which is
// no error.
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
			files, err = askMount(ctx, c.Dir, "status", parseFileStatus)
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

// update shows files on their bars, and reports whether every file has ended.
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

// statusBar is the bar of one file. mpb's goroutine reads file when it draws.
type statusBar struct {
	bar  *mpb.Bar
	file atomic.Pointer[fileStatus]
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

// show puts f on the bar. The file's state ends the bar, never its bytes. The total is
// at least 1, so that an empty file has a full bar.
func (b *statusBar) show(f fileStatus) {
	b.file.Store(&f)
	b.bar.SetTotal(max(f.Size, 1), f.State == "complete")
	b.bar.SetCurrent(f.Present)
	if f.State == "failed" {
		b.bar.Abort(false)
	}
}
