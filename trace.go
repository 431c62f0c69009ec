// trace.go writes the program's log and, with --trace, an ENTER and an EXIT
// line around every operation of a store. Writing never blocks an operation:
// lines go through a bounded queue to a goroutine of their own, and what does
// not fit is counted and said.

package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// logQueueLines bounds the queue: at about 100 bytes a line under 1 MiB,
	// and tens of milliseconds of the fastest possible trace.
	logQueueLines = 8192

	// logTimeFormat is what log.Printf writes with LstdFlags|Lmicroseconds.
	logTimeFormat = "2006/01/02 15:04:05.000000 "
)

// eventLog is a line log whose writers never wait for its reader.
//
// INVARIANT: a line given to it is either written whole, in the order of the
// calls, or counted in a "log lines lost" line.
type eventLog struct {
	// Write once, before any goroutine starts.
	out     io.Writer
	queue   chan *[]byte
	stopCh  chan struct{}
	drained chan struct{}
	free    sync.Pool

	// Read write.
	stop sync.Once
	lost atomic.Int64 // lines dropped since the writer last said so
}

// newEventLog starts the goroutine that writes to out; Close ends it.
func newEventLog(out io.Writer) *eventLog {
	l := &eventLog{
		out:     out,
		queue:   make(chan *[]byte, logQueueLines),
		stopCh:  make(chan struct{}),
		drained: make(chan struct{}),
		free:    sync.Pool{New: func() any { return new([]byte) }},
	}
	go l.write()
	return l
}

// printf queues one line, with the time before it and a newline after it. It
// never blocks, and drops the line where the queue is full.
func (l *eventLog) printf(format string, args ...any) {
	line := l.newLine()
	*line = fmt.Appendf(*line, format, args...)
	l.enqueue(line)
}

// Close writes what is queued and ends the goroutine.
//
// BLOCKS until the queue is written; wakes on that or the end of patience, for
// the reader of out may be gone. Lines queued after Close may be lost.
func (l *eventLog) Close(patience time.Duration) {
	l.stop.Do(func() { close(l.stopCh) })
	select {
	case <-l.drained:
	case <-time.After(patience):
	}
}

func (l *eventLog) newLine() *[]byte {
	line := l.free.Get().(*[]byte)
	*line = time.Now().AppendFormat((*line)[:0], logTimeFormat)
	return line
}

func (l *eventLog) enqueue(line *[]byte) {
	*line = append(*line, '\n')
	select {
	case l.queue <- line:
	default:
		l.lost.Add(1)
	}
}

func (l *eventLog) write() {
	defer close(l.drained)
	for {
		select {
		case line := <-l.queue:
			l.writeLine(line)
		case <-l.stopCh:
			l.writeQueued()
			return
		}
	}
}

func (l *eventLog) writeQueued() {
	for {
		select {
		case line := <-l.queue:
			l.writeLine(line)
		default:
			l.reportLost()
			return
		}
	}
}

func (l *eventLog) writeLine(line *[]byte) {
	l.reportLost()
	l.out.Write(*line)
	l.free.Put(line)
}

// reportLost writes how many lines were dropped since it last said so.
func (l *eventLog) reportLost() {
	if n := l.lost.Swap(0); n > 0 {
		fmt.Fprintf(l.out, "%s%d log lines lost: they came faster than they could be written\n",
			time.Now().Format(logTimeFormat), n)
	}
}

// tracer hands out the debug ids of stores, and writes the ENTER and EXIT lines
// of their operations where tracing is on. A nil tracer has no ids and is off.
type tracer struct {
	// Write once, before any goroutine starts.
	log *eventLog
	on  bool

	// Read write.
	ids atomic.Uint64
}

func (t *tracer) enabled() bool { return t != nil && t.on }

// now is the time where tracing is on, and costs nothing where it is off.
func (t *tracer) now() time.Time {
	if !t.enabled() {
		return time.Time{}
	}
	return time.Now()
}

// nextID returns 1, 2, 3, ...: one for every store of this process.
func (t *tracer) nextID() uint64 {
	if t == nil {
		return 0
	}
	return t.ids.Add(1)
}

// span is one traced operation between its ENTER and its EXIT. The zero span
// belongs to no trace and writes nothing.
type span struct {
	t     *tracer
	store uint64
	name  string
	r     byteRange
	goid  uint64
	start time.Time
}

// enter writes
//
//	[TempFileStore #5] ReadAt ENTER off=1048576 len=131072 goid=42
//
// and returns the span to be ended by exit.
func (t *tracer) enter(store uint64, name string, r byteRange, goid uint64) span {
	sp := span{t: t, store: store, name: name, r: r, goid: goid, start: time.Now()}
	line := t.log.newLine()
	*line = sp.append(*line, " ENTER")
	t.log.enqueue(line)
	return sp
}

// exit writes the same line with EXIT for ENTER, and after it what is known by
// now: n bytes, the error, and how long the operation took.
//
//	[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42 n=131072 err=<nil> waited=12ms
func (sp span) exit(n int64, err error) {
	if sp.t == nil {
		return
	}
	line := sp.t.log.newLine()
	b := sp.append(*line, " EXIT")
	b = append(b, " n="...)
	b = strconv.AppendInt(b, n, 10)
	b = append(b, " err="...)
	b = append(b, strings.ReplaceAll(fmt.Sprint(err), "\n", " ")...)
	b = append(b, " waited="...)
	*line = append(b, waited(time.Since(sp.start)).String()...)
	sp.t.log.enqueue(line)
}

func (sp span) append(b []byte, verb string) []byte {
	b = append(b, "[TempFileStore #"...)
	b = strconv.AppendUint(b, sp.store, 10)
	b = append(b, "] "...)
	b = append(b, sp.name...)
	b = append(b, verb...)
	b = append(b, " off="...)
	b = strconv.AppendInt(b, sp.r.off, 10)
	b = append(b, " len="...)
	b = strconv.AppendInt(b, sp.r.len(), 10)
	b = append(b, " goid="...)
	return strconv.AppendUint(b, sp.goid, 10)
}

// waited rounds d to three digits or so: 12.345678ms helps nobody.
func waited(d time.Duration) time.Duration {
	for unit := time.Second; unit >= time.Microsecond; unit /= 1000 {
		if d >= unit {
			return d.Round(unit / 100)
		}
	}
	return d
}
