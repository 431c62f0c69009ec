// hangs_store.go follows the operations of one store through a log: which are
// open, what they overlap, and when the store last made progress. It keeps what
// is open and the newest of what is over, and matches no line with another.

package main

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
	s.note, s.noteLine = quoted(note), line
}
