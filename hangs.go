// hangs.go implements "fsmount hangs": it reads a log that was written with
// --trace and reports every operation with an ENTER and no EXIT, with what
// overlapped it. It reads the log once and keeps only what is still open. It
// never touches a mount.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

const (
	// waitsShown is how many of the longest waits are reported.
	waitsShown = 10

	// eventsInLine bounds how many events one line may hold: one, and one more
	// for each process that was killed while it wrote there.
	eventsInLine = 8

	// closedStoresKept bounds what is kept of stores that are closed.
	closedStoresKept = 1000
)

// hangsCommand is `fsmount hangs`.
type hangsCommand struct {
	Log string `arg:"" optional:"" help:"Log that was written with --trace. None, or -: standard input."`
}

// run analyses the log. The status is exitFailure if something hangs, and
// exitUsage, with an error, if the log could not be read.
//
// BLOCKS until the log's end; wakes when its reader answers.
func (c *hangsCommand) run(stdin io.Reader, stdout io.Writer) (status int, err error) {
	in := stdin
	if c.Log != "" && c.Log != "-" {
		f, err := os.Open(c.Log)
		if err != nil {
			return exitUsage, fmt.Errorf("read log: %w", err)
		}
		defer f.Close()
		in = f
	}
	hanging, err := analyseHangs(in, stdout)
	switch {
	case err != nil:
		return exitUsage, err
	case hanging:
		return exitFailure, nil
	}
	return exitOK, nil
}

// analyseHangs reads the log in and writes to out what hangs, for each run by
// itself. Memory is bounded by a constant for each open operation and each
// store.
//
// An operation hangs if it has an ENTER and no EXIT when its run's log ends. A
// run ends where the next one's startLine stands, or with the log: neither a
// gap in time nor a debug id that comes again is proof of a new one.
//
// BLOCKS until in ends; wakes when it answers.
func analyseHangs(in io.Reader, out io.Writer) (hanging bool, err error) {
	a := newHangAnalysis(in, out)
	if err := a.read(); err != nil {
		return false, err
	}
	a.reportVerdict()
	if err := a.out.Flush(); err != nil {
		return false, fmt.Errorf("write analysis: %w", err)
	}
	return a.hanging > 0, nil
}

// hangAnalysis is the way through a log.
type hangAnalysis struct {
	lines *tracedLines
	clock logClock
	out   *bufio.Writer
	run   *tracedRun

	// Over all runs that ended.
	runs        int   // with an operation
	hangingRuns int   // with one that hangs
	hanging     int64 // operations and stores
	operations  int64
}

func newHangAnalysis(in io.Reader, out io.Writer) *hangAnalysis {
	return &hangAnalysis{lines: newTracedLines(in), out: bufio.NewWriter(out), run: newTracedRun(1, 1, "")}
}

// read takes the whole log, and reports every run in it.
//
// BLOCKS until the log's end; wakes when its reader answers.
func (a *hangAnalysis) read() error {
	for {
		line, err := a.lines.next()
		if err == io.EOF {
			a.endRun()
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log behind line %d: %w", a.lines.read, err)
		}
		a.line(line)
	}
}

// line takes the next line of the log.
func (a *hangAnalysis) line(line []byte) {
	at, rest := a.clock.cut(line)
	for range eventsInLine {
		ev, behind, found, damaged := parseTrace(rest)
		if (damaged || ev.cutTail) && !a.lines.more {
			a.run.damage(a.lines.read)
		}
		if !found {
			a.untraced(rest, damaged)
			break
		}
		a.run.event(&ev, a.lines.read, at)
		rest = behind
	}
	a.run.passed(a.lines.read, at)
}

// untraced takes a line, or the end of one, that holds no event, except one
// that was found to be damaged.
func (a *hangAnalysis) untraced(text []byte, damaged bool) {
	if start, before, ok := parseStart(text); ok {
		if bytes.Contains(before, []byte(traceMark)) && !damaged {
			a.run.damage(a.lines.read)
		}
		a.endRun()
		a.run = newTracedRun(a.run.number+1, a.lines.read, start)
		return
	}
	if store, note, ok := parseNote(text); ok && !damaged {
		a.run.store(store).noted(note, a.lines.read)
		if a.lines.open {
			a.run.damage(a.lines.read)
		}
	}
	if n := parseLost(text); n > 0 {
		a.run.loss(n, a.lines.read)
	}
}

// endRun reports the run so far, unless it is what precedes the first start
// line and has no operation.
func (a *hangAnalysis) endRun() {
	r := a.run
	if r.operations+r.orphans == 0 && r.start == "" {
		r.number--
		return
	}
	hanging := r.report(a.out)
	a.runs++
	a.operations += r.operations
	a.hanging += hanging
	if hanging > 0 {
		a.hangingRuns++
	}
}

// endedWait is an operation that ended.
type endedWait struct {
	opKey
	took            time.Duration
	entered, exited int64 // lines
	err             string
}

// tracedRun is the part of a log that one process wrote.
type tracedRun struct {
	number    int
	start     string // its start line, "" where the log has none
	firstLine int64
	lastLine  int64
	began     logTime // of the first line with a time
	ended     logTime // of the last
	lastEvent int64   // line of the last ENTER or EXIT

	stores map[uint64]*tracedStore
	open   map[opKey]*tracedOp
	byGoid map[uint64]*tracedOp // the last open one of each; nil while no line is missing

	operations int64       // ENTER lines
	orphans    int64       // EXIT lines without an ENTER
	waits      []endedWait // the longest, longest first

	lost      int64 // lines, by the log's own count
	cut       int64 // lines that broke off
	endUnseen int64 // operations whose EXIT is missing though they ended

	// missingTo is the line before which an operation may have begun whose
	// EXIT is among the lines that are missing.
	missingTo int64
}

func newTracedRun(number int, line int64, start string) *tracedRun {
	return &tracedRun{
		number:    number,
		start:     start,
		firstLine: line,
		stores:    make(map[uint64]*tracedStore),
		open:      make(map[opKey]*tracedOp),
	}
}

// passed notes that the log went on to line.
func (r *tracedRun) passed(line int64, at logTime) {
	r.lastLine = line
	if at == 0 {
		return
	}
	if r.began == 0 {
		r.began = at
	}
	r.ended = at
}

// loss notes that the log says at line that n lines were lost. They were
// dropped where the queue was full, so up to a whole queue of lines that are
// older than they are may follow.
func (r *tracedRun) loss(n, line int64) {
	r.lost += n
	r.missing(line + logQueueLines + 1)
}

// damage notes that line holds a piece of an event that nobody can read.
func (r *tracedRun) damage(line int64) {
	r.cut++
	r.missing(line)
}

func (r *tracedRun) missing(to int64) {
	r.missingTo = max(r.missingTo, to)
	if r.byGoid != nil {
		return
	}
	r.byGoid = make(map[uint64]*tracedOp)
	for _, op := range r.open {
		if last := r.byGoid[op.goid]; last == nil || last.entered < op.entered {
			r.byGoid[op.goid] = op
		}
	}
}

func (r *tracedRun) store(id uint64) *tracedStore {
	s := r.stores[id]
	if s == nil {
		s = &tracedStore{id: id}
		r.stores[id] = s
	}
	return s
}

// event takes an ENTER or an EXIT.
func (r *tracedRun) event(ev *traceEvent, line int64, at logTime) {
	s := r.store(ev.store)
	r.lastEvent, s.lastLine = line, line
	if ev.exit {
		r.exit(s, ev, line, at)
	} else {
		r.enter(s, ev, line, at)
	}
}

func (r *tracedRun) enter(s *tracedStore, ev *traceEvent, line int64, at logTime) {
	r.wentOn(ev.goid, line)
	op := &tracedOp{opKey: ev.opKey, owner: s, entered: line, since: at, twin: r.open[ev.opKey]}
	r.operations++
	r.open[op.opKey] = op
	if r.byGoid != nil {
		r.byGoid[op.goid] = op
	}
	s.begin(op)
}

func (r *tracedRun) exit(s *tracedStore, ev *traceEvent, line int64, at logTime) {
	s.learn(ev, line, at)
	op := r.open[ev.opKey]
	if op == nil {
		r.orphans++
		r.wentOn(ev.goid, line)
		return
	}
	if ev.name == opReadAt {
		s.burst.exit(line, ev.n != unknownBytes && ev.n < ev.len)
	}
	r.remember(op, ev, line, at)
	r.end(op, line)
	if ev.name == opClose {
		r.storeClosed(s)
	}
}

// wentOn ends what goroutine goid had open, where its EXIT may be among the
// lines that are missing: a goroutine does one operation after the other.
func (r *tracedRun) wentOn(goid uint64, line int64) {
	op := r.byGoid[goid]
	if op == nil || goid == 0 || op.entered >= r.missingTo {
		return
	}
	r.endUnseen++
	r.end(op, line)
}

// end takes op, which may have a twin, off everything.
func (r *tracedRun) end(op *tracedOp, line int64) {
	r.dropKey(op)
	if r.byGoid[op.goid] == op {
		delete(r.byGoid, op.goid)
	}
	op.exited = line
	op.owner.ended(op)
}

func (r *tracedRun) dropKey(op *tracedOp) {
	last := r.open[op.opKey]
	switch {
	case last != op:
		for last.twin != op {
			last = last.twin
		}
		last.twin = op.twin
	case op.twin != nil:
		r.open[op.opKey] = op.twin
	default:
		delete(r.open, op.opKey)
	}
	op.twin = nil
}

// storeClosed forgets s, of which nothing more is to be expected, where too
// many are kept.
func (r *tracedRun) storeClosed(s *tracedStore) {
	s.closed = true
	if s.open == 0 && len(r.stores) > closedStoresKept {
		delete(r.stores, s.id)
	}
}

// remember keeps op, which ends with ev, if it is among those that took longest.
// Downloads are not: they take as long as the bytes do.
func (r *tracedRun) remember(op *tracedOp, ev *traceEvent, line int64, at logTime) {
	took := ev.waited
	if took < 0 {
		took, _ = at.sub(op.since)
	}
	if took <= 0 || ev.name == opDownload {
		return
	}
	if len(r.waits) == waitsShown && took <= r.waits[waitsShown-1].took {
		return
	}
	w := endedWait{opKey: op.opKey, took: took, entered: op.entered, exited: line, err: endedWith(ev.err)}
	i, _ := slices.BinarySearchFunc(r.waits, took, func(w endedWait, took time.Duration) int {
		if w.took >= took {
			return -1
		}
		return 1
	})
	r.waits = slices.Insert(r.waits, i, w)
	r.waits = r.waits[:min(len(r.waits), waitsShown)]
}

// endedWith returns an EXIT's error for a report, "" where there was none.
func endedWith(err []byte) string {
	if len(err) == 0 || bytes.Equal(err, []byte("<nil>")) {
		return ""
	}
	return quoteShort(err)
}

// quoteShort returns what a report has room for of text that anybody may have
// written.
func quoteShort(text []byte) string {
	const room = 160 // bytes
	if len(text) > room {
		return fmt.Sprintf("%q...", text[:room])
	}
	return fmt.Sprintf("%q", text)
}

// unfinished returns the operations without an EXIT, the oldest first.
func (r *tracedRun) unfinished() []*tracedOp {
	var ops []*tracedOp
	for _, op := range r.open {
		for ; op != nil; op = op.twin {
			ops = append(ops, op)
		}
	}
	slices.SortFunc(ops, func(a, b *tracedOp) int { return cmp.Compare(a.entered, b.entered) })
	return ops
}

// silent returns the stores on which two or more reads overlapped, all of them
// ended, and nothing followed, though something should have: either the rest
// of the log shows that time went on, or a download has no EXIT.
func (r *tracedRun) silent() []*tracedStore {
	var silent []*tracedStore
	for _, s := range r.stores {
		quiet := s.reads == 0 && s.burst.enters >= 2 && s.burst.exits >= s.burst.enters && s.lastLine == s.burst.lastExit
		if quiet && (s.downloads > 0 || s.lastLine < r.lastEvent) {
			silent = append(silent, s)
		}
	}
	slices.SortFunc(silent, func(a, b *tracedStore) int { return cmp.Compare(a.id, b.id) })
	return silent
}

// overlapsShown is how many operations that were open when another began, and
// how many that began after it, are reported by name.
const overlapsShown = 4

// tracedOp is an operation from its ENTER on.
type tracedOp struct {
	opKey
	owner   *tracedStore
	entered int64 // line of its ENTER
	exited  int64 // line of its EXIT; 0 while it is open
	since   logTime

	// What overlapped it, while it is open.
	openBefore int64 // how many were open on its store when it began
	turn       int64 // how many had begun on its store by then, with itself
	before     someOps
	after      someOps

	newer, older *tracedOp // open ones of its store, by ENTER
	twin         *tracedOp // an older open one with the same key
}

// someOps are the first few operations that were added.
type someOps struct {
	ops [overlapsShown]*tracedOp
	n   int
}

func (s *someOps) add(op *tracedOp) {
	if s.n < len(s.ops) {
		s.ops[s.n] = op
		s.n++
	}
}

// tracedStore is what the log says of one store.
type tracedStore struct {
	id        uint64
	newest    *tracedOp // open
	open      int64
	began     int64 // operations, so far
	reads     int64 // open ReadAt
	downloads int64 // open downloads
	fetched   bool  // there was a download
	closed    bool

	progressed   logTime
	progressLine int64
	lastLine     int64
	note         string // the last
	noteLine     int64
	burst        readBurst
}

// readBurst are the ReadAt lines that a store's log ends with: ENTERs in a row,
// then EXITs in a row.
type readBurst struct {
	enters, exits         int64
	firstEnter, lastEnter int64 // lines
	firstExit, lastExit   int64
	short                 bool // one got less than it asked for: the end of the file, or an error
}

func (b *readBurst) enter(line int64) {
	if b.exits > 0 || b.enters == 0 {
		*b = readBurst{firstEnter: line}
	}
	b.enters++
	b.lastEnter = line
}

func (b *readBurst) exit(line int64, short bool) {
	if b.exits == 0 {
		b.firstExit = line
	}
	b.exits++
	b.lastExit = line
	b.short = b.short || short
}

// owesNothing reports whether the store's readers may just have been done: all
// its downloads ended, or a reader has seen the end of the file.
func (s *tracedStore) owesNothing() bool {
	return s.downloads == 0 && (s.fetched || s.burst.short)
}

// begin notes op, which was entered, and what it overlaps.
func (s *tracedStore) begin(op *tracedOp) {
	switch op.name {
	case opReadAt:
		s.reads++
		s.burst.enter(op.entered)
	case opDownload:
		s.downloads++
		s.fetched = true
	}
	s.began++
	op.turn, op.openBefore = s.began, s.open
	s.overlap(op)
	s.open++
	op.older = s.newest
	if s.newest != nil {
		s.newest.newer = op
	}
	s.newest = op
}

// overlap makes op known to those open before it, and them to it. Only the
// newest of them are asked: an older one has seen overlapsShown others begin,
// for it was among the newest then.
func (s *tracedStore) overlap(op *tracedOp) {
	other := s.newest
	for range overlapsShown {
		if other == nil {
			return
		}
		op.before.add(other)
		other.after.add(op)
		other = other.older
	}
}

// ended takes op off the open ones. Who has it among its overlaps keeps it, and
// it keeps nobody.
func (s *tracedStore) ended(op *tracedOp) {
	switch op.name {
	case opReadAt:
		s.reads--
	case opDownload:
		s.downloads--
	}
	s.open--
	if op.newer != nil {
		op.newer.older = op.older
	} else {
		s.newest = op.older
	}
	if op.older != nil {
		op.older.newer = op.newer
	}
	op.newer, op.older, op.before, op.after = nil, nil, someOps{}, someOps{}
}

// learn notes what an EXIT tells of the store, whether or not its ENTER is
// known: progress is that it moved bytes, or does not say how many.
func (s *tracedStore) learn(ev *traceEvent, line int64, at logTime) {
	if ev.name != opReadAt && ev.name != opDownload {
		return
	}
	if ev.n > 0 || ev.n == unknownBytes {
		s.progressed, s.progressLine = at, line
	}
	s.fetched = s.fetched || ev.name == opDownload
}

// noted keeps the last that the log says of the store besides its operations.
func (s *tracedStore) noted(note []byte, line int64) {
	s.note, s.noteLine = quoteShort(note), line
}
