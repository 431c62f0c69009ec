// hangs.go implements "fsmount hangs": it reads a log that was written with --trace and reports every operation
// with an ENTER and no EXIT, the operations that overlapped it, the longest waits, and the last progress of
// each store. It reads the log once and keeps only what it reports. It never touches a mount.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	waitsShown    = 10 // how many of the longest waits are reported
	detailedOps   = 20 // how many of the oldest unfinished operations are reported with overlaps by name
	overlapsShown = 4  // how many earlier overlaps are reported by name, and how many later ones
	// What is kept of a log at once, so that no log makes the program large. An open
	// operation takes up to 2 KB with the ended ones that it overlaps, a store up to 1 KB.
	runsKept   = 3            // several processes may write to one log
	openKept   = 4096         // open operations of a run, the oldest; of the others the number
	storesKept = 2 * openKept // of a run: those with an open operation fill half of it at most
	nameKept   = 255          // bytes of a file's name, which has no more (NAME_MAX)
	textKept   = 160          // characters of a note or an error
)

type hangsCommand struct {
	Log string `arg:"" optional:"" name:"LOG" help:"Log that was written with --trace; standard input if there is none, or if it is -."`
}

// run reads the log and writes what hangs in each run to stdout. The status is exitFailure if something
// hangs, and exitUsage, with an error, if the log cannot be read or is no log of --trace, or if the
// report cannot be written. Memory is bounded by a constant for each open operation and each store.
//
// An operation hangs if it has an ENTER and no EXIT in the log. A run ends at the start line of the next one,
// or at the end of the log. A gap in time or a debug id that is used again does not prove a new run.
// BLOCKS until the log's end; wakes on each piece of it.
func (c *hangsCommand) run(stdin io.Reader, stdout io.Writer) (status int, err error) {
	in, name := stdin, "standard input"
	if c.Log != "" && c.Log != "-" {
		f, err := os.Open(c.Log)
		if err != nil {
			return exitUsage, fmt.Errorf("hangs: %s: %w", redactArg(c.Log), pathReason(err))
		}
		defer f.Close()
		in, name = f, c.Log
	}
	a := newHangAnalysis(in, stdout)
	if err := a.read(); err != nil {
		return exitUsage, fmt.Errorf("hangs: %s: %w", name, pathReason(err))
	}
	for _, r := range a.all {
		a.report(r)
	}
	if a.runs == 0 {
		return exitUsage, fmt.Errorf("hangs: %s: no trace lines found; start fsmount with --trace", name)
	}
	a.reportVerdict()
	if err := a.out.Flush(); err != nil {
		return exitUsage, fmt.Errorf("hangs: write report: %w", err)
	}
	if a.hanging > 0 {
		return exitFailure, nil
	}
	return exitOK, nil
}

// hangAnalysis reads a log run by run, and then reports the runs.
type hangAnalysis struct {
	in   *bufio.Reader // its buffer has logLineBytes
	out  *bufio.Writer
	all  []*tracedRun // in the order of the log
	run  *tracedRun   // the last of all
	line int64        // lines so far
	long int64        // lines that were longer than logLineBytes

	runs       int64 // with an operation or a start line
	hanging    int64 // operations and stores
	operations int64 // ENTER lines
}

func newHangAnalysis(in io.Reader, out io.Writer) *hangAnalysis {
	a := &hangAnalysis{in: bufio.NewReaderSize(in, logLineBytes), out: bufio.NewWriter(out)}
	a.beginRun("", 1)
	return a
}

// read reads at most logLineBytes of each line. BLOCKS until the log's end; wakes on each piece of it.
func (a *hangAnalysis) read() error {
	for {
		text, err := a.in.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		switch {
		case long:
			a.long++
		case err != nil && err != io.EOF:
			return err
		case len(text) == 0:
			return nil
		}
		a.line++
		a.readLine(bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r")), long, err == io.EOF)
		for long {
			_, err = a.in.ReadSlice('\n')
			long = errors.Is(err, bufio.ErrBufferFull)
		}
	}
}

// readLine reads a line without its end. long says that it is only the beginning of one,
// noEnd that the log ends within it.
func (a *hangAnalysis) readLine(line []byte, long, noEnd bool) {
	at, text := cutTime(line)
	events, damaged := parseEvents(text)
	if damaged && !long {
		a.run.damage(a.line)
	}
	for _, ev := range events {
		r, ended := a.find(&ev)
		r.event(&ev, ended, logPlace{a.line, at})
	}
	if damaged || len(events) == 0 {
		a.readOther(text, damaged, noEnd)
	}
	r := a.run // a new one if the line was a start line
	r.lastLine, r.began, r.ended = a.line, cmp.Or(r.began, at), cmp.Or(at, r.ended)
	if at.IsZero() && a.line < r.missingTo {
		r.missingTo++ // the line continues the one before, as in a dump: both took one place in the queue
	}
}

// readOther reads a line without a whole event, or with one that broke off (damaged).
func (a *hangAnalysis) readOther(text []byte, damaged, noEnd bool) {
	if start := startPattern.FindSubmatch(text); start != nil {
		if !damaged && bytes.Contains(start[1], []byte(traceMark)) {
			a.run.damage(a.line) // within its verb
		}
		a.beginRun(string(start[2]), a.line)
		return
	}
	if m := notePattern.FindSubmatch(text); m != nil && !damaged {
		s, note := a.run.store(numberOf(m[1])), string(m[2])
		if name, isName := strings.CutPrefix(note, nameNote); isName {
			s.name = " (" + printable(name[:min(len(name), nameKept)]) + ")"
			return
		}
		s.note = fmt.Sprintf("; last note (line %d): %.*q", a.line, textKept, note)
		if noEnd {
			a.run.damage(a.line)
		}
	}
	if m := lostPattern.FindSubmatch(text); m != nil {
		// The log's queue was full then: a whole queue of older lines may follow.
		a.run.lost += numberOf(m[1])
		a.run.missingTo = max(a.run.missingTo, a.line+logQueueLines+1)
	}
}

// find returns the run that wrote ev, and the operation that ev ends: for an EXIT, the newest open one with its key. In
// a run that lost no line, an EXIT without an ENTER is of an earlier process that still writes to the same log.
func (a *hangAnalysis) find(ev *traceEvent) (r *tracedRun, ended *tracedOp) {
	if !ev.exit {
		return a.run, nil
	}
	for _, r := range slices.Backward(a.all) {
		if op := r.newest(func(op *tracedOp) bool { return op.opKey == ev.opKey }); op != nil {
			return r, op
		}
		if a.run.lost+a.run.cut+a.run.more > 0 {
			break
		}
	}
	return a.run, nil
}

// reportVerdict writes the last line of the report, which sums it up.
func (a *hangAnalysis) reportVerdict() {
	if a.long > 0 {
		a.printf("Only the first %d KiB of %s were read.\n", logLineBytes>>10, plural(a.long, "line"))
	}
	verdict := "Nothing hangs in"
	if a.hanging > 0 {
		verdict = fmt.Sprintf("%d hanging, of", a.hanging)
	}
	a.printf("%s %s of %s.\n", verdict, plural(a.operations, "operation"), plural(a.runs, "run"))
}

// tracedRun is the part of a log that one process wrote.
type tracedRun struct {
	start               string    // its start line, "" where the log has none
	firstLine, lastLine int64     // of the log
	began, ended        time.Time // of the first and the last line with a time
	lastEvent           int64     // line of the last ENTER or EXIT

	stores    map[int64]*tracedStore // by debug id
	open      []*tracedOp            // by ENTER
	more      int64                  // open operations that began when openKept were open
	forgotten int64                  // stores without an open operation that were dropped from stores

	operations int64       // ENTER lines
	orphans    int64       // EXIT lines without an ENTER
	waits      []*tracedOp // that ended, the longest first
	lost       int64       // lines, by the log's own count
	cut        int64       // lines that broke off
	endUnseen  int64       // operations that ended without an EXIT in the log
	missingTo  int64       // the EXIT of an operation that began before this line may be missing
}

// beginRun begins a run. It reports the oldest one if there are too many.
func (a *hangAnalysis) beginRun(start string, line int64) {
	a.run = &tracedRun{start: start, firstLine: line, stores: make(map[int64]*tracedStore)}
	a.all = append(a.all, a.run)
	if len(a.all) > runsKept {
		a.report(a.all[0])
		a.all = a.all[1:]
	}
}

// tracedStore is what the log says of one store.
type tracedStore struct {
	id         int64
	name       string // for the report: " (FILE)", "" where the log does not say
	fetched    bool   // there was a download, or an EXIT with its outcome: a trace with these has every download
	closed     bool
	progressed logPlace // a read or a download last moved bytes here
	lastLine   int64
	note       string // for the report: the last line about the store that is no event
	// The last ReadAt lines of the store: ENTERs in a row, then EXITs in a row.
	enters, exits lineCount
}

// lineCount counts lines.
type lineCount struct{ n, first, last int64 }

func (c *lineCount) add(line int64) {
	if c.n == 0 {
		c.first = line
	}
	c.n++
	c.last = line
}

// tracedOp is an operation that has begun.
type tracedOp struct {
	opKey
	owner         *tracedStore
	entered       logPlace
	exited        int64 // line; 0 while it is open
	before, after int   // how many operations of its store it overlaps, by when they began
	// overlaps are the last overlapsShown of those before, and the first overlapsShown of
	// those after, by ENTER; nil once it ended.
	overlaps []*tracedOp
	took     time.Duration // once it ended
	err      string        // for the report of one of the longest waits: "" or " err=..."
}

// damage records that line holds a part of an event that cannot be parsed.
func (r *tracedRun) damage(line int64) {
	r.cut++
	r.missingTo = max(r.missingTo, line)
}

// store returns the store with that debug id, a new one if there is none. To make room for
// that it forgets those without an open operation.
func (r *tracedRun) store(id int64) *tracedStore {
	s := r.stores[id]
	if s != nil {
		return s
	}
	if len(r.stores) == storesKept {
		maps.DeleteFunc(r.stores, func(_ int64, s *tracedStore) bool { return len(r.openOn(s)) == 0 })
		r.forgotten += int64(storesKept - len(r.stores))
	}
	s = &tracedStore{id: id}
	r.stores[id] = s
	return s
}

// event processes an ENTER or an EXIT, as find found it.
func (r *tracedRun) event(ev *traceEvent, ended *tracedOp, here logPlace) {
	s := r.store(ev.store)
	r.lastEvent, s.lastLine = here.line, here.line
	s.fetched = s.fetched || ev.name == opDownload || ev.exit && ev.n != unknownBytes
	if ev.exit {
		if (ev.name == opReadAt || ev.name == opDownload) && (ev.n > 0 || ev.n == unknownBytes) {
			s.progressed = here
		}
		if ended != nil {
			r.exit(ended, ev, here)
			return
		}
		if r.more > 0 { // it is of one of these
			r.more--
			return
		}
		r.orphans++
	}
	// A goroutine does one operation after the other: the EXIT of the one before
	// may be among the lines that are missing.
	if ev.goid != 0 && r.missingTo > 0 {
		last := r.newest(func(op *tracedOp) bool { return op.goid == ev.goid })
		if last != nil && last.entered.line < r.missingTo {
			r.endUnseen++
			r.end(last, here.line)
		}
	}
	if !ev.exit {
		r.enter(s, ev, here)
	}
}

// newest returns the open operation that began last of those that match, nil if none does.
func (r *tracedRun) newest(match func(*tracedOp) bool) *tracedOp {
	for _, op := range slices.Backward(r.open) {
		if match(op) {
			return op
		}
	}
	return nil
}

// enter opens an operation, and records the operations that it overlaps.
func (r *tracedRun) enter(s *tracedStore, ev *traceEvent, here logPlace) {
	r.operations++
	if len(r.open) == openKept {
		r.more++
		return
	}
	earlier := r.openOn(s)
	op := &tracedOp{opKey: ev.opKey, owner: s, entered: here, before: len(earlier)}
	op.overlaps = slices.Clone(earlier[max(0, len(earlier)-overlapsShown):])
	for _, other := range earlier {
		if other.after++; other.after <= overlapsShown {
			other.overlaps = append(other.overlaps, op)
		}
	}
	r.open = append(r.open, op)
	if op.name == opReadAt {
		if s.exits.n > 0 {
			s.enters, s.exits = lineCount{}, lineCount{}
		}
		s.enters.add(here.line)
	}
}

// exit ends op by the EXIT ev, and keeps op if it is among those that took
// longest. Downloads are left out: they take as long as their bytes do.
func (r *tracedRun) exit(op *tracedOp, ev *traceEvent, here logPlace) {
	r.end(op, here.line)
	s := op.owner
	switch ev.name {
	case opReadAt:
		s.exits.add(here.line)
	case opDownload:
		return
	case opClose:
		s.closed = true
	}
	op.took = ev.waited
	if op.took < 0 {
		op.took = op.entered.timeTo(here.at)
	}
	if op.took <= 0 {
		return
	}
	if len(ev.err) > 0 && string(ev.err) != "<nil>" {
		op.err = fmt.Sprintf(" err=%.*q", textKept, ev.err)
	}
	r.waits = append(r.waits, op)
	slices.SortStableFunc(r.waits, func(a, b *tracedOp) int { return cmp.Compare(b.took, a.took) })
	r.waits = r.waits[:min(len(r.waits), waitsShown)]
}

// end removes op from the open operations. Other operations may still point to
// op; it drops its own pointers to its overlaps.
func (r *tracedRun) end(op *tracedOp, line int64) {
	op.exited, op.overlaps = line, nil
	r.open = slices.DeleteFunc(r.open, func(other *tracedOp) bool { return other == op })
}

// openOn returns the open operations of s by ENTER, only those called names if there are any.
func (r *tracedRun) openOn(s *tracedStore, names ...string) (ops []*tracedOp) {
	for _, op := range r.open {
		if op.owner == s && (len(names) == 0 || slices.Contains(names, op.name)) {
			ops = append(ops, op)
		}
	}
	return ops
}

func (op *tracedOp) lines() string {
	if op.exited == 0 {
		return fmt.Sprintf("(line %d, no EXIT)", op.entered.line)
	}
	return fmt.Sprintf("(lines %d to %d)", op.entered.line, op.exited)
}

// report reports the run r. The lines before the first start line are a run only if they hold an operation.
func (a *hangAnalysis) report(r *tracedRun) {
	if r.operations+r.orphans == 0 && r.start == "" {
		return
	}
	a.runs++
	a.operations += r.operations
	a.reportHead(r)
	stores := slices.SortedFunc(maps.Values(r.stores), func(s, t *tracedStore) int { return cmp.Compare(s.id, t.id) })
	hanging := a.reportUnfinished(r) + a.reportSilent(r, stores)
	a.hanging += hanging
	if hanging == 0 {
		a.printf("\nNothing hangs: each of %s has its EXIT.\n", plural(r.operations-r.endUnseen, "ENTER"))
	}
	if len(r.waits) > 0 {
		a.printf("\nLongest waits that ended (without downloads)\n")
	}
	for _, op := range r.waits {
		a.printf("  %9v  store %d%s: %v %s%s\n", roundDuration(op.took), op.store, op.owner.name, op.opKey, op.lines(), op.err)
	}
	if len(stores) > 0 {
		a.printf("\nLast progress of each store (a read or a download that moved bytes)\n")
	}
	for _, s := range stores {
		if s.lastLine > 0 || s.note != "" { // else its file was never used
			a.printf("  store %d%s: %s\n", s.id, s.name, r.progress(s))
		}
	}
	a.printf("\n")
}

func (a *hangAnalysis) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

// reportHead writes which run it is, and what the log does not have.
func (a *hangAnalysis) reportHead(r *tracedRun) {
	a.printf("run %d: %s; lines %d to %d", a.runs, cmp.Or(r.start, "the log does not show its start"), r.firstLine, r.lastLine)
	if !r.began.IsZero() {
		a.printf(", %s to %s", formatLogTime(r.began), formatLogTime(r.ended))
	}
	a.printf("\n")
	gap := func(n int64, what, text string) {
		if n > 0 {
			a.printf("%s %s\n", plural(n, what), text)
		}
	}
	gap(r.lost, "line", "lost, as the log itself says: a missing EXIT may be one of them")
	gap(r.cut, "line", "broken off: a missing EXIT may be one of them")
	gap(r.endUnseen, "operation", "left out: no EXIT, but the goroutine began another operation, so only the EXIT line is missing")
	gap(r.orphans, "EXIT", "without an ENTER in this log")
	gap(r.forgotten, "store", "left out, which had no open operation when too many others came")
}

// reportUnfinished writes which operations have no EXIT, the oldest first, and returns their number.
func (a *hangAnalysis) reportUnfinished(r *tracedRun) int64 {
	if len(r.open)+int(r.more) > 0 {
		a.printf("\nHANGING: %s with an ENTER and no EXIT, the oldest first\n", plural(int64(len(r.open))+r.more, "operation"))
	}
	for i, op := range r.open {
		s := op.owner
		a.printf("  store %d%s: %v since %v%s\n", s.id, s.name, op.opKey, op.entered, op.entered.age(r.ended))
		a.printf("    on store %d it overlapped %d that began before it and %d that began after it\n", s.id, op.before, op.after)
		if i < detailedOps {
			for _, other := range op.overlaps {
				a.printf("      %v %s\n", other.opKey, other.lines())
			}
			if more := op.before + op.after - len(op.overlaps); more > 0 {
				a.printf("      and %d more\n", more)
			}
		}
		if op.name == opDownload && s.progressed.line > op.entered.line && len(r.openOn(s, opReadAt)) == 0 {
			a.printf("    every read of its store has ended, and bytes moved at line %d: it may be working, not hanging\n", s.progressed.line)
		}
		if op.entered.line < r.missingTo {
			a.printf("    it may have ended: its EXIT may be one of the missing lines\n")
		}
	}
	if r.more > 0 {
		a.printf("  and %s that began when %d were open\n", plural(r.more, "operation"), openKept)
	}
	return int64(len(r.open)) + r.more
}

// reportSilent writes which stores fell silent after reads that overlapped and
// all ended, though something should have followed: the log went on, or a download
// has no EXIT. It returns how many of them hang without an operation that hangs.
func (a *hangAnalysis) reportSilent(r *tracedRun, stores []*tracedStore) (hanging int64) {
	for _, s := range stores {
		downloads := len(r.openOn(s, opDownload))
		quiet := s.enters.n >= 2 && s.exits.n >= s.enters.n && s.exits.last == s.lastLine && len(r.openOn(s, opReadAt)) == 0
		if !quiet || downloads == 0 && (s.fetched || s.lastLine == r.lastEvent) {
			continue
		}
		if len(r.openOn(s)) == 0 {
			hanging++
		}
		a.printf("\nHANGING: store %d%s: %d ReadAt ENTER in a row (lines %d to %d), then %d EXIT (lines %d to %d), then silence\n",
			s.id, s.name, s.enters.n, s.enters.first, s.enters.last, s.exits.n, s.exits.first, s.exits.last)
		if downloads > 0 {
			a.printf("  store %d has %s without an EXIT: its origin still owes bytes\n", s.id, plural(int64(downloads), "download"))
		}
		if !s.fetched {
			a.printf("  the log shows no download of store %d: if its file was complete before, its readers may simply be done\n", s.id)
		}
		if r.lastEvent > s.lastLine {
			a.printf("  other stores went on until line %d\n", r.lastEvent)
		}
	}
	return hanging
}

// progress returns the last progress of s, and its state at the end.
func (r *tracedRun) progress(s *tracedStore) (text string) {
	switch {
	case s.progressed.line == 0:
		text = "none"
	case s.progressed.at.IsZero():
		text = fmt.Sprintf("line %d", s.progressed.line)
	default:
		text = s.progressed.String() + s.progressed.age(r.ended)
	}
	if open := len(r.openOn(s)); open > 0 {
		text += fmt.Sprintf("; %d open", open)
	}
	if s.closed {
		text += "; closed"
	}
	return text + s.note
}
