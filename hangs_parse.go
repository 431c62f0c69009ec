// hangs_parse.go parses the lines of a log: ENTER and EXIT lines as trace.go
// writes them, start lines, notes, counts of lost lines, and the time before each.
// It accepts any input, holds one line at a time, and does not judge what hangs.

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	// logLineBytes is how much of a line is looked at. Only what fsmount did
	// not write is longer, or an EXIT line with the stack of a panic in its
	// error; and what identifies an operation is in the first 200 bytes.
	logLineBytes = 256 << 10

	traceMark = "[TempFileStore #"
	startMark = "fsmount "
	startTail = " started, pid "
	lostMark  = " log lines lost"
)

// startLine is the first line of a run's log. It separates this run from an
// earlier one in the same file, whose debug ids are used again.
//
//	fsmount v1.2.0 started, pid 4711
func startLine(version string, pid int) string {
	version = strings.Join(strings.Fields(version), "_") // one word, to be told from other lines
	return startMark + version + startTail + strconv.Itoa(pid)
}

// parseStart returns the start line that line ends with, if it does, and what
// stands before it: a time, or what an earlier run was writing when it was
// killed.
func parseStart(line []byte) (start string, before []byte, ok bool) {
	tail := bytes.LastIndex(line, []byte(startTail))
	if tail < 0 {
		return "", nil, false
	}
	if _, rest, ok := cutInt(line[tail+len(startTail):]); !ok || len(rest) > 0 {
		return "", nil, false
	}
	first := bytes.LastIndex(line[:tail], []byte(startMark))
	if first < 0 || first > 0 && line[first-1] != ' ' {
		return "", nil, false
	}
	if !isName(line[first+len(startMark) : tail]) {
		return "", nil, false
	}
	return string(line[first:]), line[:first], true
}

// parseLost returns how many lines line says were lost, 0 if it says nothing of
// the kind.
func parseLost(line []byte) int64 {
	end := bytes.Index(line, []byte(lostMark))
	if end < 0 {
		return 0
	}
	n, rest, ok := cutInt(line[bytes.LastIndexByte(line[:end], ' ')+1:])
	if !ok || n < 0 || !bytes.HasPrefix(rest, []byte(lostMark)) {
		return 0
	}
	return n
}

// opKey is what the ENTER and the EXIT of one operation have in common.
type opKey struct {
	store    uint64
	name     [16]byte // of the operation, padded with zeros
	off, len int64    // bytes
	goid     uint64
}

var (
	opReadAt   = opName("ReadAt")
	opDownload = opName("download")
	opClose    = opName("Close")
)

func opName(s string) (name [16]byte) {
	copy(name[:], s)
	return name
}

// String is k as the log has it, to be searched for there.
func (k opKey) String() string {
	return fmt.Sprintf("%s off=%d len=%d goid=%d", bytes.TrimRight(k.name[:], "\x00"), k.off, k.len, k.goid)
}

// traceEvent is what an ENTER or an EXIT line says.
type traceEvent struct {
	opKey
	exit bool

	// Of an EXIT. Its line may have ended after the goroutine's id: then n is
	// unknown, and so is what follows.
	n       int64         // bytes; unknownBytes where the line does not say
	err     []byte        // shares the line's memory
	waited  time.Duration // negative where the line does not say
	cutTail bool          // the line broke off behind the goroutine's id
}

const unknownBytes = math.MinInt64

// parseTrace finds the first whole ENTER or EXIT in line. damaged says that
// there was another before it that broke off: its writer was killed, and the
// next one went on in the same line. rest is what follows an EXIT that broke
// off; there may be another event in it.
func parseTrace(line []byte) (ev traceEvent, rest []byte, found, damaged bool) {
	for {
		i := bytes.Index(line, []byte(traceMark))
		if i < 0 {
			return ev, nil, false, damaged
		}
		line = line[i+len(traceMark):]
		ev = traceEvent{}
		fields, begun := ev.parseVerb(line)
		if rest, found = ev.parseFields(fields); begun && found {
			return ev, rest, true, damaged
		}
		damaged = damaged || begun
	}
}

// parseVerb parses "5] ReadAt ENTER ", which traceMark precedes. Where it is
// something else, the line is none of an operation.
func (ev *traceEvent) parseVerb(b []byte) (rest []byte, ok bool) {
	if ev.store, b, ok = cutUint(b); !ok {
		return nil, false
	}
	if b, ok = bytes.CutPrefix(b, []byte("] ")); !ok {
		return nil, false
	}
	name, b, ok := bytes.Cut(b, []byte(" "))
	if !ok || !isName(name) {
		return nil, false
	}
	copy(ev.name[:], name)
	if rest, ok = bytes.CutPrefix(b, []byte("ENTER ")); ok {
		return rest, true
	}
	ev.exit = true
	return bytes.CutPrefix(b, []byte("EXIT "))
}

// parseFields parses "off=1048576 len=131072 goid=42" and, of an EXIT, what
// follows; rest is that if it broke off.
func (ev *traceEvent) parseFields(b []byte) (rest []byte, ok bool) {
	if b, ok = ev.parseRange(b); !ok {
		return nil, false
	}
	if b, ok = bytes.CutPrefix(b, []byte("goid=")); !ok {
		return nil, false
	}
	if ev.goid, b, ok = cutUint(b); !ok || len(b) > 0 && b[0] != ' ' {
		return nil, false
	}
	if ev.exit {
		ev.parseOutcome(b)
	}
	if ev.cutTail {
		rest = b
	}
	return rest, true
}

// parseNote parses what the log says of a store besides its operations:
//
//	[TempFileStore #5] fetch [0,9) of http://host/a: timeout: retry in 3s
func parseNote(line []byte) (store uint64, text []byte, ok bool) {
	if text, ok = bytes.CutPrefix(line, []byte(traceMark)); !ok {
		return 0, nil, false
	}
	if store, text, ok = cutUint(text); !ok {
		return 0, nil, false
	}
	text, ok = bytes.CutPrefix(text, []byte("] "))
	return store, text, ok
}

// isName reports whether b is a word that a terminal shows as it is.
func isName(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(b) > 0
}

// parseRange parses "off=1 len=2 ", which an operation need not have.
func (ev *traceEvent) parseRange(b []byte) (rest []byte, ok bool) {
	b, ok = bytes.CutPrefix(b, []byte("off="))
	if !ok {
		return b, true
	}
	if ev.off, b, ok = cutInt(b); !ok {
		return nil, false
	}
	if b, ok = bytes.CutPrefix(b, []byte(" len=")); !ok {
		return nil, false
	}
	if ev.len, b, ok = cutInt(b); !ok {
		return nil, false
	}
	return bytes.CutPrefix(b, []byte(" "))
}

// parseOutcome parses " n=1 err=<nil> waited=2ms". The error is any text: it
// ends at the last " waited=".
func (ev *traceEvent) parseOutcome(b []byte) {
	ev.n, ev.waited = unknownBytes, -1
	if len(b) == 0 {
		return
	}
	ev.cutTail = true
	b, ok := bytes.CutPrefix(b, []byte(" n="))
	if !ok {
		return
	}
	n, b, ok := cutInt(b)
	if !ok {
		return
	}
	if b, ok = bytes.CutPrefix(b, []byte(" err=")); !ok {
		return
	}
	ev.n = n
	i := bytes.LastIndex(b, []byte(" waited="))
	if i < 0 {
		return
	}
	waited, err := time.ParseDuration(string(b[i+len(" waited="):]))
	if err != nil || waited < 0 {
		return
	}
	ev.err, ev.waited, ev.cutTail = b[:i], waited, false
}

// cutUint parses the decimal digits that b begins with.
func cutUint(b []byte) (n uint64, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && '0' <= b[i] && b[i] <= '9'; i++ {
		digit := uint64(b[i] - '0')
		if n > (math.MaxUint64-digit)/10 {
			return 0, b, false
		}
		n = n*10 + digit
	}
	return n, b[i:], i > 0
}

func cutInt(b []byte) (n int64, rest []byte, ok bool) {
	digits, negative := bytes.CutPrefix(b, []byte("-"))
	u, rest, ok := cutUint(digits)
	if !ok || u > math.MaxInt64 {
		return 0, b, false
	}
	if negative {
		return -int64(u), rest, true
	}
	return int64(u), rest, true
}

// logTime is a time in a log, in microseconds of an unnamed zone since 1970;
// 0 where a line has none.
type logTime int64

// sub returns how long t is after u, and false where either is unknown or the
// clock was set back.
func (t logTime) sub(u logTime) (time.Duration, bool) {
	if t == 0 || u == 0 || t < u {
		return 0, false
	}
	return time.Duration(t-u) * time.Microsecond, true
}

func (t logTime) String() string {
	if t == 0 {
		return "an unknown time"
	}
	return time.UnixMicro(int64(t)).UTC().Format("2006/01/02 15:04:05.999999")
}

// logClock parses the times that log.Printf puts before a line, with or without
// microseconds. It keeps the last date: most lines have the same.
type logClock struct {
	date     [len("2006/01/02")]byte
	midnight logTime
}

// cut returns the time that line begins with, and what follows. A line without
// one is returned whole.
func (c *logClock) cut(line []byte) (t logTime, rest []byte) {
	const whole = len("2006/01/02 15:04:05")
	if len(line) <= whole || line[4] != '/' || line[10] != ' ' || line[13] != ':' || line[16] != ':' {
		return 0, line
	}
	hour, ok1 := twoDigits(line[11:])
	minute, ok2 := twoDigits(line[14:])
	second, ok3 := twoDigits(line[17:])
	if !ok1 || !ok2 || !ok3 || !c.setDate(line[:len(c.date)]) {
		return 0, line
	}
	t = c.midnight + logTime(hour*3600+minute*60+second)*1e6
	micros, rest, ok := cutMicros(line[whole:])
	if !ok {
		return 0, line
	}
	return t + micros, rest
}

func (c *logClock) setDate(date []byte) bool {
	if bytes.Equal(date, c.date[:]) {
		return true
	}
	midnight, err := time.Parse("2006/01/02", string(date))
	if err != nil {
		return false
	}
	copy(c.date[:], date)
	c.midnight = logTime(midnight.UnixMicro())
	return true
}

// cutMicros parses ".123456 " or just " ".
func cutMicros(b []byte) (micros logTime, rest []byte, ok bool) {
	if b[0] == '.' && len(b) > 7 {
		n, rest, ok := cutUint(b[1:7])
		if !ok || len(rest) > 0 {
			return 0, nil, false
		}
		micros, b = logTime(n), b[7:]
	}
	rest, ok = bytes.CutPrefix(b, []byte(" "))
	return micros, rest, ok
}

// REQUIRES: len(b) >= 2
func twoDigits(b []byte) (n int, ok bool) {
	tens, ones := b[0]-'0', b[1]-'0'
	return int(tens)*10 + int(ones), tens <= 9 && ones <= 9
}

// tracedLines splits a log into lines, and looks at no more than logLineBytes of
// each.
type tracedLines struct {
	in   *bufio.Reader
	read int64 // lines so far
	long int64 // of which were longer than is looked at
	open bool  // the last line has no end
	more bool  // the rest of such a line is still to be skipped
}

func newTracedLines(in io.Reader) *tracedLines {
	return &tracedLines{in: bufio.NewReaderSize(in, logLineBytes)}
}

// next returns the next line without its end, in memory that the call after it
// uses again. The last line may lack its newline. The error is io.EOF behind it.
//
// BLOCKS until there is a line; wakes when the reader answers.
func (l *tracedLines) next() (line []byte, err error) {
	for l.more {
		_, err = l.in.ReadSlice('\n')
		l.more = errors.Is(err, bufio.ErrBufferFull)
	}
	line, err = l.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		l.more, err = true, nil
		l.long++
	}
	if err != nil && err != io.EOF || len(line) == 0 {
		return nil, err
	}
	l.read++
	l.open = err == io.EOF
	line = bytes.TrimSuffix(line, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r")), nil
}
