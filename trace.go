// trace.go writes the log and, with --trace, an ENTER and an EXIT line around every
// operation of a store. Writing never blocks an operation: a bounded queue feeds a
// goroutine, and lines that do not fit are counted and reported.

package main

import (
	"fmt"
	"io"
	stdlog "log"
	"os"
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

	// foreignLineBytes is how much of a line of another package is written: it
	// may quote what a server sent.
	foreignLineBytes = 300

	// The marks by which "fsmount hangs" finds its way through a log.
	traceMark = "[TempFileStore #"
	startMark = "fsmount "
	startTail = " started, pid "
	lostMark  = " log lines lost"

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

// startLine returns the first line of a run's log. It separates this run from an
// earlier one in the same file, which used the same debug ids.
//
//	fsmount v1.2.0 started, pid 4711
func startLine(version string, pid int) string {
	version = strings.Join(strings.Fields(version), "_") // one word: hangs expects it
	return startMark + version + startTail + strconv.Itoa(pid)
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

// adopt makes l the destination of the standard logger too, to which net/http
// writes: that must not block an operation either. The function it returns undoes
// that and calls end.
func (l *eventLog) adopt(end func()) func() {
	stdlog.SetOutput(l)
	stdlog.SetFlags(0)
	return func() {
		stdlog.SetOutput(os.Stderr)
		end()
	}
}

// Write queues p as one line, of at most foreignLineBytes. It never blocks and
// never fails (io.Writer).
func (l *eventLog) Write(p []byte) (int, error) {
	text := strings.ReplaceAll(strings.TrimSpace(string(p[:min(len(p), foreignLineBytes)])), "\n", " ")
	text, _, _ = strings.Cut(text, " starting with ") // net/http goes on with what the server sent
	l.printf("%s", text)
	return len(p), nil
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
		fmt.Fprintf(l.out, "%s%d"+lostMark+": they came faster than they could be written\n",
			time.Now().Format(logTimeFormat), n)
	}
}

// ringEvents bounds the ring of recent events: at about 200 bytes each, some
// hundred KiB.
const ringEvents = 1024

// tracer hands out the debug ids of stores, keeps the recent events of all of
// them, and, where tracing is on, writes the ENTER and EXIT lines of their
// operations. A nil tracer has no ids and keeps nothing.
type tracer struct {
	// Write once, before any goroutine starts.
	log *eventLog
	on  bool

	// Read write.
	ids  atomic.Uint64
	mu   sync.Mutex
	ring [ringEvents]string // GUARDED_BY(mu); lines, the oldest at next
	next int                // GUARDED_BY(mu)
}

// remember puts a line in the ring.
//
// LOCKS_EXCLUDED(t.mu)
func (t *tracer) remember(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ring[t.next%ringEvents] = line
	t.next++
}

// events returns the recent events, one a line, the oldest first.
//
// LOCKS_EXCLUDED(t.mu)
func (t *tracer) events() string {
	if t == nil {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for i := max(0, t.next-ringEvents); i < t.next; i++ {
		b.WriteString(t.ring[i%ringEvents])
	}
	return b.String()
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

// traceSpan is one operation between its ENTER and its EXIT. The zero traceSpan belongs to
// no tracer and writes nothing.
type traceSpan struct {
	t     *tracer
	store uint64
	name  string
	r     byteRange
	goid  uint64
	start time.Time
}

// enter notes, and where tracing is on writes,
//
//	[TempFileStore #5] ReadAt ENTER off=1048576 len=131072 goid=42
//
// and returns the span to be ended by exit.
func (t *tracer) enter(store uint64, name string, r byteRange, goid uint64) traceSpan {
	sp := traceSpan{t: t, store: store, name: name, r: r, goid: goid}
	if t == nil {
		return sp
	}
	sp.start = time.Now()
	sp.write(func(b []byte) []byte { return sp.append(b, " ENTER") })
	return sp
}

// exit writes the same line with EXIT for ENTER, and after it what is known by
// now: n bytes, the error, and how long the operation took.
//
//	[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42 n=131072 err=<nil> waited=12ms
func (sp traceSpan) exit(n int64, err error) {
	if sp.t == nil {
		return
	}
	sp.write(func(b []byte) []byte {
		b = sp.append(b, " EXIT")
		b = append(b, " n="...)
		b = strconv.AppendInt(b, n, 10)
		b = append(b, " err="...)
		b = append(b, strings.ReplaceAll(fmt.Sprint(err), "\n", " ")...)
		b = append(b, " waited="...)
		return append(b, roundDuration(time.Since(sp.start)).String()...)
	})
}

// write puts one line in the ring, and in the log where tracing is on.
func (sp traceSpan) write(text func([]byte) []byte) {
	line := sp.t.log.newLine()
	*line = text(*line)
	sp.t.remember(string(*line) + "\n")
	if sp.t.on {
		sp.t.log.enqueue(line)
	}
}

// note puts something that happened to a store in the ring and in the log.
func (t *tracer) note(store uint64, format string, args ...any) {
	if t == nil {
		return
	}
	text := fmt.Sprintf(traceMark+"%d] ", store) + fmt.Sprintf(format, args...)
	t.remember(time.Now().Format(logTimeFormat) + text + "\n")
	t.log.printf("%s", text)
}

func (sp traceSpan) append(b []byte, verb string) []byte {
	b = append(b, traceMark...)
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
