// hangs.go implements "fsmount hangs": it reads a log that was written with
// --trace and reports every operation with an ENTER and no EXIT, the operations
// that overlapped it, the longest waits, and the last progress of each store. It
// reads the log once and keeps only what it reports. It never touches a mount.

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
	"runtime/debug"
	"slices"
	"time"
)

const (
	waitsShown       = 10   // how many of the longest waits are reported
	detailedOps      = 20   // how many of the oldest unfinished operations are reported with overlaps by name
	overlapsShown    = 4    // how many earlier overlaps are reported by name, and how many later ones
	closedStoresKept = 1000 // how many stores are kept before closed ones are forgotten
	eventsInLine     = 8    // most events of a line: one, and one for each process killed while it wrote the line

	// What is kept of a log at once, so that no log makes the program large. An open
	// operation takes up to 2 KB with the ended ones that it overlaps, a store up to 1 KB.
	runsKept    = 8            // several processes may write to one log
	openKept    = 4096         // open operations of a run
	recordsKept = 3 * openKept // stores and open operations: a forgetting of stores makes room for openKept at least
	nameKept    = 255          // bytes of a file's name, which has no more (NAME_MAX)
	heapGoal    = 40 << 20     // bytes, from which on Go's runtime collects garbage at once
)

// hangsCommand is `fsmount hangs`.
type hangsCommand struct {
	Log string `arg:"" optional:"" name:"LOG" help:"Log that was written with --trace; standard input if there is none, or if it is -."`
}

// run reads the log and writes what hangs in each run to stdout. The status is
// exitFailure if something hangs, and exitUsage, with an error, if the log cannot be
// read or is no log of --trace, or if the report cannot be written. Memory is bounded
// by a constant for each open operation and each store.
//
// An operation hangs if it has an ENTER and no EXIT in the log. A run ends at the
// start line of the next one, or at the end of the log. A gap in time or a debug id
// that is used again does not prove a new run.
//
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
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(heapGoal))
	a := newHangAnalysis(in, stdout)
	if err := a.read(); err != nil {
		return exitUsage, fmt.Errorf("hangs: %s: %w", name, pathReason(err))
	}
	for len(a.all) > 0 {
		a.reportOldest()
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
	in    *bufio.Reader // its buffer has logLineBytes
	out   *bufio.Writer
	all   []*tracedRun // in the order of the log
	run   *tracedRun   // the last of all; while a run is reported, that run
	line  int64        // lines so far
	long  int64        // lines that were longer than logLineBytes
	noEnd bool         // the last line has no newline
	full  bool         // reading ended at this line, with more than openKept operations open

	runs        int   // with an operation or a start line
	hangingRuns int   // with something that hangs
	hanging     int64 // operations and stores
	operations  int64
}

func newHangAnalysis(in io.Reader, out io.Writer) *hangAnalysis {
	a := &hangAnalysis{in: bufio.NewReaderSize(in, logLineBytes), out: bufio.NewWriter(out)}
	a.beginRun("", 1)
	return a
}

// read reads at most logLineBytes of each line. It ends early if full.
//
// BLOCKS until the log's end; wakes on each piece of it.
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
		a.noEnd = err == io.EOF
		text = bytes.TrimSuffix(text, []byte("\n"))
		at, text := cutTime(bytes.TrimSuffix(text, []byte("\r")))
		for n := 0; n == 0 || n < eventsInLine && len(text) > 0; n++ {
			ev, rest, found, damaged := parseTrace(text)
			if (damaged || len(rest) > 0) && !long {
				a.run.damage(a.line)
			}
			if !found {
				a.processOther(text, damaged)
				break
			}
			r, ended := a.find(&ev)
			r.event(&ev, ended, logPlace{a.line, at})
			text = rest
		}
		r := a.run // a new one if the line was a start line
		r.lastLine, r.began, r.ended = a.line, cmp.Or(r.began, at), cmp.Or(at, r.ended)
		if at.IsZero() && a.line < r.missingTo {
			r.missingTo++ // the line continues the one before, as in a dump: both took one place in the queue
		}
		for long {
			_, err = a.in.ReadSlice('\n')
			long = errors.Is(err, bufio.ErrBufferFull)
		}
		if a.full = !a.makeRoom(); a.full {
			return nil
		}
	}
}

// makeRoom keeps no more than recordsKept and runsKept. It reports the oldest runs before
// the end of the log, and then forgets the stores of the last run that have no open
// operation. It returns false if there are too many that do.
func (a *hangAnalysis) makeRoom() bool {
	for len(a.all) > 1 && (len(a.all) > runsKept || a.records() > recordsKept) {
		a.reportOldest()
	}
	r := a.run
	if a.records() > recordsKept {
		before := len(r.stores)
		maps.DeleteFunc(r.stores, func(_ int64, s *tracedStore) bool { return len(s.open) == 0 })
		r.forgotten += int64(before - len(r.stores))
	}
	return r.openOps <= openKept
}

// records returns how many stores and open operations are kept.
func (a *hangAnalysis) records() (n int) {
	for _, r := range a.all {
		n += len(r.stores) + r.openOps
	}
	return n
}

// reportOldest reports the oldest run that is kept, and drops it.
func (a *hangAnalysis) reportOldest() {
	last := a.run
	a.report(a.all[0])
	a.all, a.run = a.all[1:], last
}

// processOther processes a line, or the end of one, without a whole event. damaged
// reports that the line is already counted as broken off.
func (a *hangAnalysis) processOther(text []byte, damaged bool) {
	if start, before, ok := parseStart(text); ok {
		if bytes.Contains(before, []byte(traceMark)) && !damaged {
			a.run.damage(a.line)
		}
		a.beginRun(start, a.line)
		return
	}
	id, note, ok := parseNote(text)
	name, isName := bytes.CutPrefix(note, []byte(nameNote))
	switch {
	case !ok || damaged:
	case isName:
		a.run.store(id).name = " (" + printable(string(name[:min(len(name), nameKept)])) + ")"
	default:
		a.run.store(id).note = fmt.Sprintf("; last note (line %d): %s", a.line, quoteShort(note))
		if a.noEnd {
			a.run.damage(a.line)
		}
	}
	if n := parseLost(text); n > 0 {
		// The log's queue was full then: a whole queue of older lines may follow.
		a.run.lost += n
		a.run.missingTo = max(a.run.missingTo, a.line+logQueueLines+1)
	}
}

// find returns the run that wrote ev, and the operation that ev ends: for an EXIT, the
// newest open one with its key. In a run that lost no line, an EXIT without an ENTER is
// of an earlier process that still writes to the same log.
func (a *hangAnalysis) find(ev *traceEvent) (r *tracedRun, ended *tracedOp) {
	for _, r := range slices.Backward(a.all) {
		for _, op := range slices.Backward(r.open[ev.goid]) {
			if ev.exit && op.opKey == ev.opKey {
				return r, op
			}
		}
		if !ev.exit || a.run.lost+a.run.cut > 0 {
			break
		}
	}
	return a.run, nil
}

// reportVerdict writes the last line of the report, which sums it up.
func (a *hangAnalysis) reportVerdict() {
	if a.full {
		a.printf("More than %d operations are open at line %d: the log was read no further.\n", openKept, a.line)
	}
	if a.long > 0 {
		a.printf("Only the first %d KiB of %s were read.\n", logLineBytes>>10, plural(a.long, "line"))
	}
	switch {
	case a.hanging == 0:
		a.printf("Nothing hangs in %s of %s.\n", plural(a.operations, "operation"), plural(int64(a.runs), "run"))
	case a.runs == 1:
		a.printf("%d hanging, of %s.\n", a.hanging, plural(a.operations, "operation"))
	default:
		a.printf("%d hanging in %d of %s.\n", a.hanging, a.hangingRuns, plural(int64(a.runs), "run"))
	}
}

// tracedRun is the part of a log that one process wrote.
type tracedRun struct {
	start               string    // its start line, "" where the log has none
	firstLine, lastLine int64     // of the log
	began, ended        time.Time // of the first and the last line with a time
	lastEvent           int64     // line of the last ENTER or EXIT

	stores    map[int64]*tracedStore // by debug id
	open      map[int64][]*tracedOp  // by goroutine, then by ENTER
	openOps   int                    // operations in open
	forgotten int64                  // stores without an open operation that were dropped from stores

	operations int64       // ENTER lines
	orphans    int64       // EXIT lines without an ENTER
	waits      []*tracedOp // that ended, the longest first
	lost       int64       // lines, by the log's own count
	cut        int64       // lines that broke off
	endUnseen  int64       // operations that ended without an EXIT in the log
	missingTo  int64       // the EXIT of an operation that began before this line may be missing
}

func (a *hangAnalysis) beginRun(start string, line int64) {
	a.run = &tracedRun{start: start, firstLine: line, stores: make(map[int64]*tracedStore), open: make(map[int64][]*tracedOp)}
	a.all = append(a.all, a.run)
}

// tracedStore is what the log says of one store.
type tracedStore struct {
	id         int64
	name       string      // for the report: " (FILE)", "" where the log does not say
	open       []*tracedOp // by ENTER
	began      int64       // operations, so far
	fetched    bool        // there was a download, or an EXIT with its outcome: a trace with these has every download
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
	owner      *tracedStore
	entered    logPlace
	exited     int64 // line; 0 while it is open
	openBefore int64 // how many operations of its store were open when it began
	turn       int64 // how many operations of its store had begun by then, itself included
	// overlaps are the last overlapsShown operations of openBefore, and the first
	// overlapsShown that began later, by ENTER; nil once it ended.
	overlaps []*tracedOp
	took     time.Duration // once it ended
	err      string        // for the report of one of the longest waits: "" or " err=..."
}

// damage records that line holds a part of an event that cannot be parsed.
func (r *tracedRun) damage(line int64) {
	r.cut++
	r.missingTo = max(r.missingTo, line)
}

// store returns the store with that debug id, a new one if there is none.
func (r *tracedRun) store(id int64) *tracedStore {
	s := r.stores[id]
	if s == nil {
		s = &tracedStore{id: id}
		r.stores[id] = s
	}
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
		r.orphans++
	}
	// A goroutine does one operation after the other: the EXIT of the one before
	// may be among the lines that are missing.
	ops := r.open[ev.goid]
	if last := len(ops) - 1; last >= 0 && ev.goid != 0 && ops[last].entered.line < r.missingTo {
		r.endUnseen++
		r.end(ops[last], here.line)
	}
	if !ev.exit {
		r.enter(s, ev, here)
	}
}

// enter opens an operation, and records the operations that it overlaps. It asks
// only the last overlapsShown open ones: since each older one began, at least
// overlapsShown others have.
func (r *tracedRun) enter(s *tracedStore, ev *traceEvent, here logPlace) {
	op := &tracedOp{opKey: ev.opKey, owner: s, entered: here, openBefore: int64(len(s.open)), turn: s.began + 1}
	for _, other := range s.open[max(0, len(s.open)-overlapsShown):] {
		op.overlaps = append(op.overlaps, other)
		if s.began-other.turn < overlapsShown {
			other.overlaps = append(other.overlaps, op)
		}
	}
	s.began++
	s.open = append(s.open, op)
	r.operations++
	r.openOps++
	r.open[op.goid] = append(r.open[op.goid], op)
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
		if len(s.open) == 0 && len(r.stores) > closedStoresKept {
			delete(r.stores, s.id)
		}
	}
	op.took = ev.waited
	if op.took < 0 {
		op.took, _ = here.after(op.entered)
	}
	if op.took <= 0 || len(r.waits) == waitsShown && op.took <= r.waits[waitsShown-1].took {
		return
	}
	if len(ev.err) > 0 && string(ev.err) != "<nil>" {
		op.err = " err=" + quoteShort(ev.err)
	}
	r.waits = append(r.waits, op)
	slices.SortStableFunc(r.waits, func(a, b *tracedOp) int { return cmp.Compare(b.took, a.took) })
	r.waits = r.waits[:min(len(r.waits), waitsShown)]
}

// end removes op from the open operations. Other operations may still point to
// op; it drops its own pointers to its overlaps.
func (r *tracedRun) end(op *tracedOp, line int64) {
	op.exited, op.overlaps = line, nil
	r.openOps--
	isOp := func(other *tracedOp) bool { return other == op }
	op.owner.open = slices.DeleteFunc(op.owner.open, isOp)
	r.open[op.goid] = slices.DeleteFunc(r.open[op.goid], isOp)
	if len(r.open[op.goid]) == 0 {
		delete(r.open, op.goid)
	}
}

// quoteShort quotes text, which anybody may have written, and shortens it.
func quoteShort(text []byte) string {
	const room = 160 // bytes
	if len(text) > room {
		return fmt.Sprintf("%q...", text[:room])
	}
	return fmt.Sprintf("%q", text)
}

// countOpen returns how many operations of that name are open.
func (s *tracedStore) countOpen(name string) (n int64) {
	for _, op := range s.open {
		if op.name == name {
			n++
		}
	}
	return n
}

// report reports the run r. The lines before the first start line are a run only if
// they hold an operation.
func (a *hangAnalysis) report(r *tracedRun) {
	if r.operations+r.orphans == 0 && r.start == "" {
		return
	}
	a.run = r
	a.runs++
	a.operations += r.operations
	a.reportHead()
	stores := slices.SortedFunc(maps.Values(r.stores), func(s, t *tracedStore) int { return cmp.Compare(s.id, t.id) })
	hanging := a.reportUnfinished(stores) + a.reportSilent(stores)
	a.hanging += hanging
	if hanging > 0 {
		a.hangingRuns++
	} else {
		a.printf("\nNothing hangs: each of %s has its EXIT.\n", plural(r.operations-r.endUnseen, "ENTER"))
	}
	if len(r.waits) > 0 {
		a.printf("\nLongest waits that ended (without downloads)\n")
	}
	for _, op := range r.waits {
		a.printf("  %9v  store %d%s: %v (lines %d to %d)%s\n", roundDuration(op.took), op.store, op.owner.name, op.opKey, op.entered.line, op.exited, op.err)
	}
	if len(stores) > 0 {
		a.printf("\nLast progress of each store (a read or a download that moved bytes)\n")
	}
	for _, s := range stores {
		if s.lastLine > 0 || s.note != "" { // else its file was never used
			a.printf("  store %d%s: %s\n", s.id, s.name, s.progress(r.ended))
		}
	}
	a.printf("\n")
}

func (a *hangAnalysis) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

// reportHead writes which run it is, and what the log does not have.
func (a *hangAnalysis) reportHead() {
	r := a.run
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

// reportUnfinished writes which operations have no EXIT, the oldest first, and
// returns their number.
func (a *hangAnalysis) reportUnfinished(stores []*tracedStore) int64 {
	var ops []*tracedOp
	for _, s := range stores {
		ops = append(ops, s.open...)
	}
	slices.SortStableFunc(ops, func(o, p *tracedOp) int { return cmp.Compare(o.entered.line, p.entered.line) })
	if len(ops) > 0 {
		a.printf("\nHANGING: %s with an ENTER and no EXIT, the oldest first\n", plural(int64(len(ops)), "operation"))
	}
	for i, op := range ops {
		s := op.owner
		a.printf("  store %d%s: %v since %v%s\n", s.id, s.name, op.opKey, op.entered, op.entered.age(a.run.ended))
		after := s.began - op.turn
		if op.openBefore+after == 0 {
			a.printf("    nothing overlapped it on store %d\n", s.id)
		} else {
			a.printf("    on store %d it overlapped %d that began before it and %d that began after it\n", s.id, op.openBefore, after)
		}
		if i < detailedOps {
			for _, other := range op.overlaps {
				if other.exited == 0 {
					a.printf("      %v (line %d, no EXIT)\n", other.opKey, other.entered.line)
				} else {
					a.printf("      %v (lines %d to %d)\n", other.opKey, other.entered.line, other.exited)
				}
			}
			if more := op.openBefore + after - int64(len(op.overlaps)); more > 0 {
				a.printf("      and %d more\n", more)
			}
		}
		if op.name == opDownload && s.progressed.line > op.entered.line && s.countOpen(opReadAt) == 0 {
			a.printf("    every read of its store has ended, and bytes moved at line %d: it may be working, not hanging\n", s.progressed.line)
		}
		if op.entered.line < a.run.missingTo {
			a.printf("    it may have ended: its EXIT may be one of the missing lines\n")
		}
	}
	return int64(len(ops))
}

// reportSilent writes which stores fell silent after reads that overlapped and
// all ended, though something should have followed: the log went on, or a download
// has no EXIT. It returns how many of them hang without an operation that hangs.
func (a *hangAnalysis) reportSilent(stores []*tracedStore) (hanging int64) {
	lastEvent := a.run.lastEvent
	for _, s := range stores {
		downloads := s.countOpen(opDownload)
		quiet := s.enters.n >= 2 && s.exits.n >= s.enters.n && s.exits.last == s.lastLine && s.countOpen(opReadAt) == 0
		if !quiet || downloads == 0 && (s.fetched || s.lastLine == lastEvent) {
			continue
		}
		if len(s.open) == 0 {
			hanging++
		}
		a.printf("\nHANGING: store %d%s: %d ReadAt ENTER in a row (lines %d to %d), then %d EXIT (lines %d to %d), then silence\n",
			s.id, s.name, s.enters.n, s.enters.first, s.enters.last, s.exits.n, s.exits.first, s.exits.last)
		if downloads > 0 {
			a.printf("  store %d has %s without an EXIT: its origin still owes bytes\n", s.id, plural(downloads, "download"))
		}
		if !s.fetched {
			a.printf("  the log shows no download of store %d: if its file was complete before, its readers may simply be done\n", s.id)
		}
		if lastEvent > s.lastLine {
			a.printf("  other stores went on until line %d\n", lastEvent)
		}
	}
	return hanging
}

// progress returns the store's last progress, and its state at the end.
func (s *tracedStore) progress(end time.Time) (text string) {
	switch {
	case s.progressed.line == 0:
		text = "none"
	case s.progressed.at.IsZero():
		text = fmt.Sprintf("line %d", s.progressed.line)
	default:
		text = s.progressed.String() + s.progressed.age(end)
	}
	if len(s.open) > 0 {
		text += fmt.Sprintf("; %d open", len(s.open))
	}
	if s.closed {
		text += "; closed"
	}
	return text + s.note
}
