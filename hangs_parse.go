// hangs_parse.go parses the lines of a log: ENTER and EXIT lines as trace.go
// writes them, start lines, notes, counts of lost lines, and the time before each.
// It accepts any input, holds one line at a time, and does not judge what hangs.

package main

import (
	"bytes"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"
)

const (
	// logLineBytes is how much of a line is parsed. fsmount writes a longer line
	// only for an EXIT whose error holds the stack of a panic, and the fields
	// that identify an operation are in the first 200 bytes of a line.
	logLineBytes = 256 << 10

	opNameBytes  = 16            // how much is kept of an operation's name
	unknownBytes = math.MinInt64 // for an EXIT that does not say how many

	// The operations that hangs treats specially.
	opReadAt   = "ReadAt"
	opDownload = "download"
	opClose    = "Close"
)

// opKey is what the ENTER and the EXIT of one operation have in common.
type opKey struct {
	store    int64
	name     string
	off, len int64 // bytes
	goid     int64
}

// String returns k as the log shows it, so that a reader can search for it there.
func (k opKey) String() string {
	return fmt.Sprintf("%s off=%d len=%d goid=%d", k.name, k.off, k.len, k.goid)
}

// traceEvent is what an ENTER or an EXIT line says. Only an EXIT has the last three
// fields.
type traceEvent struct {
	opKey
	exit   bool
	n      int64         // bytes; unknownBytes where the line does not say
	err    []byte        // shares the line's memory
	waited time.Duration // negative where the line does not say
}

// logCursor parses a line from left to right. A part that is not as expected sets
// failed, which no later part clears.
type logCursor struct {
	rest   []byte
	failed bool
}

// cut removes text from the start of the rest, and reports whether it was there.
func (c *logCursor) cut(text string) (ok bool) {
	c.rest, ok = bytes.CutPrefix(c.rest, []byte(text))
	return ok
}

// number parses prefix and a decimal number after it.
func (c *logCursor) number(prefix string) int64 {
	found := c.cut(prefix)
	end := len(c.rest) - len(bytes.TrimLeft(c.rest, "-0123456789"))
	n, err := strconv.ParseInt(string(c.rest[:end]), 10, 64)
	c.rest = c.rest[end:]
	c.failed = c.failed || !found || err != nil
	return n
}

// parseTrace finds the first whole ENTER or EXIT in line, as traceSpan writes it; off
// and len may both be absent. damaged reports that an event before it broke off after
// its verb, because its writer was killed and the next process continued the same
// line. If the EXIT itself broke off after the goroutine's id, rest is the text from
// there, which may hold another event; else rest is nil.
func parseTrace(line []byte) (ev traceEvent, rest []byte, found, damaged bool) {
	mark := []byte(traceMark)
	for _, text, ok := bytes.Cut(line, mark); ok; _, text, ok = bytes.Cut(text, mark) {
		c := logCursor{rest: text}
		ev = traceEvent{opKey: opKey{store: c.number("")}}
		head := c.cut("] ")
		name, after, _ := bytes.Cut(c.rest, []byte(" "))
		plain := len(name) > 0 && !bytes.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
		c.rest = after
		ev.exit = !c.cut("ENTER ")
		if c.failed || ev.store < 0 || !head || !plain || ev.exit && !c.cut("EXIT ") {
			continue
		}
		ev.name = string(name[:min(len(name), opNameBytes)])
		if bytes.HasPrefix(c.rest, []byte("off=")) {
			ev.off, ev.len = c.number("off="), c.number(" len=")
			c.failed = !c.cut(" ") || c.failed
		}
		ev.goid = c.number("goid=")
		if c.failed || ev.goid < 0 || len(c.rest) > 0 && c.rest[0] != ' ' {
			damaged = true
			continue
		}
		if ev.exit && !ev.parseOutcome(c.rest) {
			rest = c.rest
		}
		return ev, rest, true, damaged
	}
	return traceEvent{}, nil, false, damaged
}

// parseOutcome parses " n=1 err=<nil> waited=2ms". The error is any text: it
// ends at the last " waited=". whole is false if the text broke off.
func (ev *traceEvent) parseOutcome(text []byte) (whole bool) {
	ev.n, ev.waited = unknownBytes, -1
	if len(text) == 0 {
		return true
	}
	c := logCursor{rest: text}
	n := c.number(" n=")
	if found := c.cut(" err="); c.failed || !found {
		return false
	}
	ev.n = n
	end := bytes.LastIndex(c.rest, []byte(" waited="))
	if end < 0 {
		return false
	}
	waited, err := time.ParseDuration(string(c.rest[end+len(" waited="):]))
	if err != nil || waited < 0 {
		return false
	}
	ev.err, ev.waited = c.rest[:end], waited
	return true
}

var startPattern = regexp.MustCompile(`^(.* )?(` + startMark + `[!-~]+` + startTail + `-?\d+)$`)

// parseStart returns the start line at the end of line, and the text before it:
// a time, or the text that a killed process left without a newline.
func parseStart(line []byte) (start string, before []byte, ok bool) {
	m := startPattern.FindSubmatch(line)
	if m == nil {
		return "", nil, false
	}
	return string(m[2]), m[1], true
}

var lostPattern = regexp.MustCompile(`(?:^| )(\d{1,18})` + lostMark)

// parseLost returns how many lines were lost according to line; else 0.
func parseLost(line []byte) (n int64) {
	if m := lostPattern.FindSubmatch(line); m != nil {
		n, _ = strconv.ParseInt(string(m[1]), 10, 64)
	}
	return n
}

// parseNote parses a line about a store that is no event:
//
//	[TempFileStore #5] fetch [0,9) of http://host/a: timeout: retry in 3s
func parseNote(line []byte) (store int64, text []byte, ok bool) {
	c := logCursor{rest: line}
	store = c.number(traceMark)
	ok = c.cut("] ") && !c.failed && store >= 0
	return store, c.rest, ok
}

// cutTime returns the time that a log puts before a line, with or without
// microseconds, and the text after it. Without one it returns the zero time and
// the whole line. The zone is not known; the time is given in UTC.
func cutTime(line []byte) (at time.Time, rest []byte) {
	const layout = "2006/01/02 15:04:05"
	end := len(layout)
	if len(line) > end && line[end] == '.' {
		end += len(".000000")
	}
	if len(line) <= end || line[end] != ' ' {
		return time.Time{}, line
	}
	at, err := time.Parse(layout, string(line[:end])) // accepts a fraction that layout does not have
	if err != nil {
		return time.Time{}, line
	}
	return at, line[end+1:]
}

// logPlace is a line of a log, and the time before it.
type logPlace struct {
	line int64
	at   time.Time // zero where the line has none
}

func (p logPlace) String() string {
	return fmt.Sprintf("%s (line %d)", formatLogTime(p.at), p.line)
}

// after returns the time from the earlier place to p. ok is false if one of them
// has no time, or if the clock was set back.
func (p logPlace) after(earlier logPlace) (d time.Duration, ok bool) {
	if p.at.IsZero() || earlier.at.IsZero() || p.at.Before(earlier.at) {
		return 0, false
	}
	return p.at.Sub(earlier.at), true
}

// age returns how long p was before the end, for the report; "" if unknown.
func (p logPlace) age(end time.Time) string {
	d, ok := logPlace{at: end}.after(p)
	if !ok {
		return ""
	}
	return fmt.Sprintf(", %v before the run's log ends", roundDuration(d))
}

func formatLogTime(t time.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return t.Format("2006/01/02 15:04:05.999999")
}
