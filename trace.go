// trace.go writes the log and, with --trace, an ENTER and an EXIT line around every operation of a
// store. It keeps the recent events of all stores. Writing never blocks an operation: a goroutine
// writes the lines of a bounded queue, and lines that do not fit are dropped, counted and reported.

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	logQueueLines = 8192 // under 1 MiB at about 100 bytes a line, and tens of milliseconds of the fastest possible trace
	recentEvents  = 1024 // some hundred KiB at about 200 bytes each
	// Of lines of one kind, oftenLines are written in each oftenInterval, and the others counted.
	oftenLines    = 5
	oftenInterval = 10 * time.Second
	logTimeFormat = "2006/01/02 15:04:05.000000 " // what log.Printf writes with LstdFlags|Lmicroseconds
	// "fsmount hangs" finds the lines of a log by these texts.
	traceMark  = "[TempFileStore #"
	startMark  = "fsmount "
	startTail  = " started, pid "
	lostMark   = " log lines lost"
	nameNote   = "serves "
	recentMark = "[recent, TempFileStore #" // stands for traceMark where a dump repeats recent events: they are no trace
)

// startLine returns the first line of a run's log, "fsmount v1.2.0 started, pid 4711". It separates
// this run from an earlier one in the same file, which used the same debug ids.
func startLine(version string, pid int) string {
	version = strings.Join(strings.Fields(version), "_") // parseStart expects one word
	return startMark + version + startTail + strconv.Itoa(pid)
}

// eventLog is a line log whose writers never wait for its reader. INVARIANT: until Close, every line is either
// written whole, in the order of the calls, or counted in a "log lines lost" line.
type eventLog struct {
	// Write once, before any goroutine starts.
	out     io.Writer
	queue   chan string // whole lines
	closing context.Context
	close   context.CancelFunc
	drained chan struct{}

	// Read write.
	lost atomic.Int64 // lines dropped since the last "log lines lost" line

	mu    sync.Mutex
	kinds map[string]*lineKind // GUARDED_BY(mu); those of lines within oftenInterval
}

// lineKind is lines that differ in little.
type lineKind struct {
	n    int    // in this interval
	last string // the last that was not written
}

// newEventLog starts the goroutine that writes to out; Close ends it.
func newEventLog(out io.Writer) *eventLog {
	l := &eventLog{
		out:     out,
		queue:   make(chan string, logQueueLines),
		drained: make(chan struct{}),
		kinds:   make(map[string]*lineKind),
	}
	l.closing, l.close = context.WithCancel(context.Background())
	go l.write()
	return l
}

// printf queues one line, with the time before it and a newline after it. It
// never blocks, and drops the line if the queue is full.
func (l *eventLog) printf(format string, args ...any) {
	l.enqueue(logTime() + fmt.Sprintf(format, args...) + "\n")
}

func logTime() string { return time.Now().Format(logTimeFormat) }

// often is printf for lines of a kind that may come in any number: after oftenLines in an
// interval it keeps only the last, and writes that with a count when the interval is over.
func (l *eventLog) often(kind, format string, args ...any) {
	if text := fmt.Sprintf(format, args...); l.admits(kind, text) {
		l.printf("%s", text)
	}
}

// admits reports whether often may write a line.
func (l *eventLog) admits(kind, text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[kind]
	if k == nil {
		k = new(lineKind)
		l.kinds[kind] = k
		time.AfterFunc(oftenInterval, func() {
			l.mu.Lock()
			delete(l.kinds, kind)
			l.mu.Unlock()
			if more := k.n - oftenLines; more > 0 {
				l.printf("%d more like this in %v, the last: %s", more, oftenInterval, k.last)
			}
		})
	}
	k.n++
	if k.n > oftenLines {
		k.last = text
	}
	return k.n <= oftenLines
}

// enqueue queues line, which ends with a newline, or drops it.
func (l *eventLog) enqueue(line string) {
	select {
	case l.queue <- line:
	default:
		l.lost.Add(1)
	}
}

// Write queues p as one line. It never blocks and never fails (io.Writer).
func (l *eventLog) Write(p []byte) (int, error) {
	text, _, _ := strings.Cut(string(p), " starting with ") // net/http quotes after this what the server sent
	l.often("standard logger", "%s", foreign(strings.Join(strings.Fields(text), " ")))
	return len(p), nil
}

// Close writes the queued lines and ends the goroutine. Lines queued after Close may be lost.
// BLOCKS until the queue is written; wakes on that, or after patience, because the reader of out may be gone.
func (l *eventLog) Close(patience time.Duration) {
	l.close()
	select {
	case <-l.drained:
	case <-time.After(patience):
	}
}

// write writes queued lines until Close is called and the queue is empty.
// BLOCKS until the next line; wakes on that or on Close.
func (l *eventLog) write() {
	defer close(l.drained)
	for {
		select {
		case line := <-l.queue:
			l.writeLine(line)
		case <-l.closing.Done():
			for len(l.queue) > 0 {
				l.writeLine(<-l.queue)
			}
			l.reportLost()
			return
		}
	}
}

func (l *eventLog) writeLine(line string) {
	l.reportLost()
	l.out.Write([]byte(line))
}

// reportLost writes how many lines were dropped since its last report.
func (l *eventLog) reportLost() {
	if n := l.lost.Swap(0); n > 0 {
		fmt.Fprintf(l.out, "%s%d%s: they came faster than they could be written\n", logTime(), n, lostMark)
	}
}

// tracer hands out the debug ids of stores and keeps the recent events of all of them. While
// tracing is on, it also logs an ENTER and an EXIT line for each of their operations.
type tracer struct {
	// Write once, before any goroutine starts.
	log *eventLog // nil: none
	on  bool

	// Read write.
	ids    atomic.Uint64 // of the stores so far: 1, 2, 3, ...
	mu     sync.Mutex
	recent []func() string // GUARDED_BY(mu); each writes a line; at most recentEvents, the oldest first
}

// record puts a line of text into the recent events, and into the log if logged is true: what happened at that time.
// Until somebody looks at the events it does not call text: a first read would wait for that.
func (t *tracer) record(at time.Time, text func() string, logged bool) {
	line := func() string { return at.Format(logTimeFormat) + text() + "\n" }
	t.mu.Lock()
	t.recent = append(t.recent[max(0, len(t.recent)-recentEvents+1):], line)
	t.mu.Unlock()
	if logged {
		t.log.enqueue(line())
	}
}

func (t *tracer) events() string {
	t.mu.Lock()
	recent := slices.Clone(t.recent)
	t.mu.Unlock()
	var b strings.Builder
	for _, line := range recent {
		b.WriteString(line())
	}
	return b.String()
}

// note records something that happened to a store, in the recent events and, as often does, in the log.
func (t *tracer) note(store uint64, format string, args ...any) {
	kind := fmt.Sprintf(traceMark+"%d] ", store)
	text := kind + fmt.Sprintf(format, args...)
	t.record(time.Now(), func() string { return text }, t.on || t.log != nil && t.log.admits(kind, text))
}

// traceSpan is one operation from its ENTER to its EXIT:
//
//	[TempFileStore #5] ReadAt ENTER off=1048576 len=131072 goid=42
//	[TempFileStore #5] ReadAt EXIT off=1048576 len=131072 goid=42 n=131072 err=<nil> waited=12ms
type traceSpan struct {
	t     *tracer
	store uint64
	name  string
	r     byteRange
	goid  uint64
	start time.Time
}

// enter records that an operation began, and returns the span that its exit ends. Like exit, it writes to the recent
// events, and to the log while tracing is on.
func (t *tracer) enter(store uint64, name string, r byteRange, goid uint64) traceSpan {
	sp := traceSpan{t: t, store: store, name: name, r: r, goid: goid, start: time.Now()}
	t.record(sp.start, func() string { return sp.text("ENTER") }, t.on)
	return sp
}

// exit records that the operation ended, with the n bytes that it moved, its error and the time since enter.
func (sp traceSpan) exit(n int64, err error) {
	now := time.Now()
	sp.t.record(now, func() string {
		why := strings.ReplaceAll(fmt.Sprint(err), "\n", " ")
		return fmt.Sprintf("%s n=%d err=%s waited=%v", sp.text("EXIT"), n, why, roundDuration(now.Sub(sp.start)))
	}, sp.t.on)
}

// text returns what ENTER and EXIT lines have in common.
func (sp traceSpan) text(verb string) string {
	return fmt.Sprintf(traceMark+"%d] %s %s off=%d len=%d goid=%d", sp.store, sp.name, verb, sp.r.off, sp.r.len(), sp.goid)
}
