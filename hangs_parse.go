// hangs_parse.go parses the lines of a log: ENTER and EXIT lines as trace.go writes them, start lines, notes, counts of
// lost lines, and the time before each. It accepts any input, holds one line at a time, and does not judge what hangs.

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
	// logLineBytes is how much of a line is parsed. fsmount writes a longer line only for an EXIT whose error holds the
	// stack of a panic, and the fields that identify an operation are in the first 200 bytes of a line.
	logLineBytes = 256 << 10

	eventsInLine = 8             // most events of a line: one, and one for each process killed while it wrote the line
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

// traceEvent is what an ENTER or an EXIT line says. Only an EXIT has the last three fields.
type traceEvent struct {
	opKey
	exit   bool
	n      int64         // bytes; unknownBytes where the line does not say
	err    []byte        // shares the line's memory
	waited time.Duration // negative where the line does not say
}

// eventPattern finds an ENTER or an EXIT, as traceSpan writes it; off and len may both be absent. It also finds
// one that broke off after its verb, because its writer was killed: then the goroutine's id is missing, or the
// outcome after it is not whole. The error is any text: it ends at the last " waited=".
var eventPattern = regexp.MustCompile(regexp.QuoteMeta(traceMark) + `(\d{1,18})\] (\w{1,16}) (ENTER|EXIT) ` +
	`(?:(?:off=(-?\d{1,18}) len=(-?\d{1,18}) )?goid=(\d{1,18})(?:$| n=(-?\d{1,18}) err=(.*) waited=([\d.a-zµ]+s)$|( )))?`)

// parseEvents returns the events in line, at most eventsInLine. damaged reports that one
// broke off, and the next process continued the same line.
func parseEvents(line []byte) (events []traceEvent, damaged bool) {
	for _, m := range eventPattern.FindAllSubmatch(line, eventsInLine) {
		goid, bytesMoved, waited, brokenOff := m[6], m[7], m[9], m[10]
		damaged = damaged || goid == nil || brokenOff != nil
		if goid == nil {
			continue
		}
		key := opKey{store: numberOf(m[1]), name: string(m[2]), off: numberOf(m[4]), len: numberOf(m[5]), goid: numberOf(goid)}
		ev := traceEvent{opKey: key, exit: string(m[3]) == "EXIT", n: unknownBytes, err: m[8], waited: -1}
		if bytesMoved != nil {
			ev.n = numberOf(bytesMoved)
		}
		if d, err := time.ParseDuration(string(waited)); err == nil {
			ev.waited = d
		}
		events = append(events, ev)
	}
	return events, damaged
}

// numberOf returns the number that a pattern found, 0 for none.
func numberOf(digits []byte) int64 {
	n, _ := strconv.ParseInt(string(digits), 10, 64) // the patterns take 18 digits at the most
	return n
}

var (
	// startPattern finds the start line at the end of a line. Before it stands a time, or
	// the text that a killed process left without a newline.
	startPattern = regexp.MustCompile(`^(.* )?(` + startMark + `[!-~]+` + startTail + `-?\d+)$`)
	// lostPattern finds how many lines were lost.
	lostPattern = regexp.MustCompile(`(?:^| )(\d{1,18})` + lostMark)
	// notePattern finds the text of a line about a store that is no event:
	//
	//	[TempFileStore #5] fetch [0,9) of http://host/a: timeout: retry in 3s
	notePattern = regexp.MustCompile(`^` + regexp.QuoteMeta(traceMark) + `(\d{1,18})\] (.*)$`)
)

// cutTime returns the time that a log puts before a line, with or without microseconds, and the text after it.
// Without one it returns the zero time and the whole line. The zone is not known; the time is given in UTC.
func cutTime(line []byte) (at time.Time, rest []byte) {
	date, after, _ := bytes.Cut(line, []byte(" "))
	clock, rest, found := bytes.Cut(after, []byte(" "))
	hasTime := found && (len(clock) == len("15:04:05") || len(clock) == len("15:04:05.000000"))
	at, err := time.Parse("2006/01/02 15:04:05", string(date)+" "+string(clock)) // accepts a fraction that the layout does not have
	if err != nil || !hasTime {
		return time.Time{}, line
	}
	return at, rest
}

// logPlace is a line of a log, and the time before it.
type logPlace struct {
	line int64
	at   time.Time // zero where the line has none
}

func (p logPlace) String() string { return fmt.Sprintf("%s (line %d)", formatLogTime(p.at), p.line) }

// timeTo returns the time from p to at, a negative one if p or at has no time, or if the clock was set back.
func (p logPlace) timeTo(at time.Time) time.Duration {
	if p.at.IsZero() {
		return -1
	}
	return at.Sub(p.at)
}

// age returns how long p was before the end, for the report; "" if unknown.
func (p logPlace) age(end time.Time) string {
	if d := p.timeTo(end); d >= 0 {
		return fmt.Sprintf(", %v before the run's log ends", roundDuration(d))
	}
	return ""
}

func formatLogTime(t time.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return t.Format("2006/01/02 15:04:05.999999")
}
