// hangs_report.go prints what hangs.go found, one block for each run.

package main

import (
	"bufio"
	"cmp"
	"fmt"
	"slices"
)

// detailedOps is for how many of the unfinished operations it is reported which
// others they overlapped; for the rest, how many. The oldest are the likely
// culprits.
const detailedOps = 20

// report writes what is known of the run, and returns how much of it hangs:
// operations, and stores that fell silent without one.
func (r *tracedRun) report(out *bufio.Writer) (hanging int64) {
	r.reportHead(out)
	r.reportGaps(out)
	unfinished := r.unfinished()
	r.reportUnfinished(out, unfinished)
	hanging = int64(len(unfinished)) + r.reportSilent(out)
	if hanging == 0 {
		fmt.Fprintf(out, "\nNothing hangs: each of %s has its EXIT.\n", plural(r.operations, "ENTER"))
	}
	r.reportWaits(out)
	r.reportProgress(out)
	fmt.Fprintln(out)
	return hanging
}

func (r *tracedRun) reportHead(out *bufio.Writer) {
	start := r.start
	if start == "" {
		start = "the log does not show its start"
	}
	fmt.Fprintf(out, "run %d: %s; lines %d to %d", r.number, start, r.firstLine, r.lastLine)
	if r.began != 0 {
		fmt.Fprintf(out, ", %v to %v", r.began, r.ended)
	}
	fmt.Fprintln(out)
}

// reportGaps says what the log does not have.
func (r *tracedRun) reportGaps(out *bufio.Writer) {
	if r.lost > 0 {
		fmt.Fprintf(out, "%s lost, as the log itself says: a missing EXIT may be one of them\n", plural(r.lost, "line"))
	}
	if r.cut > 0 {
		fmt.Fprintf(out, "%s broken off: a missing EXIT may be one of them\n", plural(r.cut, "line"))
	}
	if r.endUnseen > 0 {
		fmt.Fprintf(out, "%s left out that have no EXIT: the goroutine went on to another, so that it is the line that is missing\n",
			plural(r.endUnseen, "operation"))
	}
	if r.orphans > 0 {
		fmt.Fprintf(out, "%s without an ENTER, which is not in this log\n", plural(r.orphans, "EXIT"))
	}
}

func (r *tracedRun) reportUnfinished(out *bufio.Writer, ops []*tracedOp) {
	if len(ops) == 0 {
		return
	}
	fmt.Fprintf(out, "\nHANGING: %s with an ENTER and no EXIT, the oldest first\n", plural(int64(len(ops)), "operation"))
	for i, op := range ops {
		fmt.Fprintf(out, "  store %d: %v since %v (line %d)", op.owner.id, op.opKey, op.since, op.entered)
		if age, ok := r.ended.sub(op.since); ok {
			fmt.Fprintf(out, ", %v before the run's log ends", roundDuration(age))
		}
		fmt.Fprintln(out)
		op.reportOverlaps(out, i < detailedOps)
		if op.name == opDownload && op.owner.reads == 0 && op.owner.progressLine > op.entered {
			fmt.Fprintf(out, "    every read of its store ended, the last with bytes at line %d: it may be no hang, just not done yet\n", op.owner.progressLine)
		}
		if op.entered < r.missingTo {
			fmt.Fprintf(out, "    it may have ended: its EXIT may be one of the missing lines\n")
		}
	}
}

func (op *tracedOp) reportOverlaps(out *bufio.Writer, detailed bool) {
	after := op.owner.began - op.turn
	if op.openBefore+after == 0 {
		fmt.Fprintf(out, "    nothing overlapped it on store %d\n", op.owner.id)
		return
	}
	fmt.Fprintf(out, "    on store %d it overlapped %d that had begun and %d that began later\n",
		op.owner.id, op.openBefore, after)
	if !detailed {
		return
	}
	shown := slices.Concat(op.before.ops[:op.before.n], op.after.ops[:op.after.n])
	slices.SortFunc(shown, func(a, b *tracedOp) int { return cmp.Compare(a.entered, b.entered) })
	for _, other := range shown {
		fmt.Fprintf(out, "      %v (%s)\n", other.opKey, other.lines())
	}
	if more := op.openBefore + after - int64(len(shown)); more > 0 {
		fmt.Fprintf(out, "      and %d more\n", more)
	}
}

func (op *tracedOp) lines() string {
	if op.exited == 0 {
		return fmt.Sprintf("line %d, no EXIT", op.entered)
	}
	return fmt.Sprintf("lines %d to %d", op.entered, op.exited)
}

// reportSilent writes of the stores that fell silent, and returns how many of
// them are no hang by an operation of their own already, but one all the same.
func (r *tracedRun) reportSilent(out *bufio.Writer) (hanging int64) {
	done := int64(0)
	for _, s := range r.silent() {
		if s.owesNothing() {
			done++
			continue
		}
		if s.open == 0 {
			hanging++
		}
		s.reportSilence(out, r.lastEvent)
	}
	if done > 0 {
		fmt.Fprintf(out, "\nOn %s the last reads overlapped and ended, and nothing followed; but nothing was owed any more:\n"+
			"the readers were done, or their next requests never came here.\n", plural(done, "store"))
	}
	return hanging
}

func (s *tracedStore) reportSilence(out *bufio.Writer, lastEvent int64) {
	b := s.burst
	fmt.Fprintf(out, "\nHANGING: store %d: %d ReadAt ENTER in a row (lines %d to %d), then %d EXIT (lines %d to %d), then silence\n",
		s.id, b.enters, b.firstEnter, b.lastEnter, b.exits, b.firstExit, b.lastExit)
	if s.downloads > 0 {
		fmt.Fprintf(out, "  %s of store %d has no EXIT: its origin still owes bytes\n", plural(s.downloads, "download"), s.id)
	}
	if !s.fetched {
		fmt.Fprintf(out, "  the log shows no download of store %d: had its file arrived before, the readers may just have been done\n", s.id)
	}
	if lastEvent > s.lastLine {
		fmt.Fprintf(out, "  other stores went on until line %d\n", lastEvent)
	}
}

func (r *tracedRun) reportWaits(out *bufio.Writer) {
	if len(r.waits) == 0 {
		return
	}
	fmt.Fprintf(out, "\nLongest waits that ended (without downloads)\n")
	for _, w := range r.waits {
		fmt.Fprintf(out, "  %9v  store %d: %v (lines %d to %d)", roundDuration(w.took), w.store, w.opKey, w.entered, w.exited)
		if w.err != "" {
			fmt.Fprintf(out, " err=%s", w.err)
		}
		fmt.Fprintln(out)
	}
}

func (r *tracedRun) reportProgress(out *bufio.Writer) {
	if len(r.stores) == 0 {
		return
	}
	stores := make([]*tracedStore, 0, len(r.stores))
	for _, s := range r.stores {
		stores = append(stores, s)
	}
	slices.SortFunc(stores, func(a, b *tracedStore) int { return cmp.Compare(a.id, b.id) })
	fmt.Fprintf(out, "\nLast progress of each store (a read or a download that moved bytes)\n")
	for _, s := range stores {
		fmt.Fprintf(out, "  store %d: %s\n", s.id, s.progress(r.ended))
	}
}

func (s *tracedStore) progress(end logTime) (text string) {
	switch {
	case s.progressLine == 0:
		text = "none"
	case s.progressed == 0:
		text = fmt.Sprintf("line %d", s.progressLine)
	default:
		text = fmt.Sprintf("%v (line %d)", s.progressed, s.progressLine)
		if age, ok := end.sub(s.progressed); ok {
			text += fmt.Sprintf(", %v before the run's log ends", roundDuration(age))
		}
	}
	if s.open > 0 {
		text += fmt.Sprintf("; %d open", s.open)
	}
	if s.closed {
		text += "; closed"
	}
	if s.noteLine > 0 {
		text += fmt.Sprintf("; last note (line %d): %s", s.noteLine, s.note)
	}
	return text
}

// reportVerdict ends the report with what there is to know in one line.
func (a *hangAnalysis) reportVerdict() {
	if a.lines.long > 0 {
		fmt.Fprintf(a.out, "Of %s only the first %d KiB were looked at.\n", plural(a.lines.long, "line"), logLineBytes>>10)
	}
	switch {
	case a.operations == 0 && a.hanging == 0:
		fmt.Fprintf(a.out, "No ENTER in %s: was the log written with --trace?\n", plural(a.lines.read, "line"))
	case a.hanging == 0:
		fmt.Fprintf(a.out, "Nothing hangs in %s of %s.\n", plural(a.operations, "operation"), plural(int64(a.runs), "run"))
	case a.runs == 1:
		fmt.Fprintf(a.out, "%d hanging, of %s.\n", a.hanging, plural(a.operations, "operation"))
	default:
		fmt.Fprintf(a.out, "%d hanging in %d of %s.\n", a.hanging, a.hangingRuns, plural(int64(a.runs), "run"))
	}
}
