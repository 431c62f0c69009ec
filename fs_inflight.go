// fs_inflight.go keeps the table of operations in flight: the loop adds an op when
// it takes it and removes it before the reply. The table never delays or answers
// one.

package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jacobsa/fuse/fuseops"
)

// opRecord is one operation in flight. Its op is described only when somebody
// asks: that keeps the cost of a ready read to a list insertion.
type opRecord struct {
	id    uint64
	op    any // not touched by anybody but the op's goroutine, except to describe it
	goid  uint64
	since time.Time

	prev, next *opRecord
	reported   bool // the watchdog has said that it is blocked
}

// opTable is a list of the operations in flight, the oldest first.
type opTable struct {
	mu      sync.Mutex
	root    opRecord // GUARDED_BY(mu); of a ring: next is the oldest
	lastID  uint64   // GUARDED_BY(mu)
	count   int      // GUARDED_BY(mu)
	records sync.Pool
}

func newOpTable() *opTable {
	t := &opTable{records: sync.Pool{New: func() any { return new(opRecord) }}}
	t.root.prev, t.root.next = &t.root, &t.root
	return t
}

// begin puts op in the table. goid is the goroutine's that has it.
//
// LOCKS_EXCLUDED(t.mu)
func (t *opTable) begin(op any, goid uint64) *opRecord {
	rec := t.records.Get().(*opRecord)
	*rec = opRecord{op: op, goid: goid, since: time.Now()}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lastID++
	t.count++
	rec.id = t.lastID
	rec.prev, rec.next = t.root.prev, &t.root
	rec.prev.next, rec.next.prev = rec, rec
	return rec
}

// handOver says that another goroutine has the op now.
//
// LOCKS_EXCLUDED(t.mu)
func (t *opTable) handOver(rec *opRecord, goid uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rec.goid = goid
}

// end takes the op out of the table, when it is about to be answered. It
// returns how long it took, and whether it had been reported as blocked.
//
// LOCKS_EXCLUDED(t.mu)
func (t *opTable) end(rec *opRecord) (took time.Duration, reported bool) {
	t.mu.Lock()
	rec.prev.next, rec.next.prev = rec.next, rec.prev
	t.count--
	t.mu.Unlock()
	took, reported = time.Since(rec.since), rec.reported
	*rec = opRecord{}
	t.records.Put(rec)
	return took, reported
}

// snapshot copies the table, the oldest operation first.
//
// LOCKS_EXCLUDED(t.mu)
func (t *opTable) snapshot() []opRecord {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]opRecord, 0, t.count)
	for rec := t.root.next; rec != &t.root; rec = rec.next {
		all = append(all, *rec)
	}
	return all
}

// newlyBlocked returns the operations that are older than limit and have not
// been returned before.
//
// LOCKS_EXCLUDED(t.mu)
func (t *opTable) newlyBlocked(limit time.Duration) (blocked []opRecord) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for rec := t.root.next; rec != &t.root && now.Sub(rec.since) >= limit; rec = rec.next {
		if !rec.reported {
			rec.reported = true
			blocked = append(blocked, *rec)
		}
	}
	return blocked
}

// opInfo is an operation in flight as it is shown.
type opInfo struct {
	ID      uint64  `json:"id"`
	Kind    string  `json:"op"`
	File    string  `json:"file"`
	Range   string  `json:"range"`
	PID     uint32  `json:"pid"`
	Command string  `json:"command"`
	GoID    uint64  `json:"goid"`
	Store   uint64  `json:"store,omitempty"`
	Age     float64 `json:"age"` // seconds
	Waits   string  `json:"waits_for"`
}

// String is a line of the ops table, for people and for grep.
func (i opInfo) String() string {
	return fmt.Sprintf("id=%d op=%s file=%q range=%s pid=%d command=%q goid=%d store=%d age=%.1fs waits_for=%q",
		i.ID, i.Kind, i.File, i.Range, i.PID, i.Command, i.GoID, i.Store, i.Age, i.Waits)
}

// parseOpInfo reads what String has written.
func parseOpInfo(line string) (opInfo, error) {
	f := parseFields(line)
	i := opInfo{
		ID: f.unsigned("id", 64), Kind: f.text("op"), File: f.text("file"), Range: f.text("range"),
		PID: uint32(f.unsigned("pid", 32)), Command: f.text("command"), GoID: f.unsigned("goid", 64),
		Store: f.unsigned("store", 64), Age: f.seconds("age"), Waits: f.text("waits_for"),
	}
	return i, f.err
}

// opInfoOf says what rec is, for whom and what it waits for.
func (fs *fileSystem) opInfoOf(rec opRecord) opInfo {
	kind, inode, pid, r := opFacts(rec.op)
	info := opInfo{ID: rec.id, Kind: kind, Range: "-", PID: pid, Command: commandOf(pid), GoID: rec.goid,
		Age: time.Since(rec.since).Seconds(), File: fs.nameOf(inode), Waits: "its reply"}
	f, err := fs.file(inode)
	if err != nil {
		return info
	}
	info.Store = f.store.ID()
	switch kind {
	case "read":
		r.end = min(r.end, max(r.off, f.store.Size()))
		info.Range, info.Waits = r.String(), f.store.Explain(r)
	case "open":
		info.Waits = "the origin: which version it has now"
	}
	return info
}

// opFacts takes from an op what the kernel put there. Only reads have a range.
func opFacts(op any) (kind string, inode fuseops.InodeID, pid uint32, r byteRange) {
	switch op := op.(type) {
	case *fuseops.ReadFileOp:
		return "read", op.Inode, op.OpContext.Pid, byteRange{op.Offset, op.Offset + op.Size}
	case *fuseops.OpenFileOp:
		return "open", op.Inode, op.OpContext.Pid, r
	case *fuseops.ReleaseFileHandleOp:
		return "release", fuseops.InodeID(op.Handle), op.OpContext.Pid, r
	case *fuseops.LookUpInodeOp:
		return "lookup", op.Parent, op.OpContext.Pid, r
	case *fuseops.GetInodeAttributesOp:
		return "getattr", op.Inode, op.OpContext.Pid, r
	case *fuseops.ReadDirOp:
		return "readdir", op.Inode, op.OpContext.Pid, r
	case *fuseops.ReadDirPlusOp:
		return "readdir", op.Inode, op.OpContext.Pid, r
	case *fuseops.StatFSOp:
		return "statfs", fuseops.RootInodeID, 0, r
	}
	return strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T", op), "*fuseops."), "Op"), 0, 0, r
}

// commandOf returns the name of the program that pid runs, "" if it is gone.
func commandOf(pid uint32) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(name))
}

// opLines is the table of operations in flight, one a line, but for those that
// ask for it.
func (fs *fileSystem) opLines() string {
	var b strings.Builder
	for _, rec := range fs.ops.snapshot() {
		if info := fs.opInfoOf(rec); info.File != controlName {
			fmt.Fprintln(&b, info)
		}
	}
	return b.String()
}

// oldest returns the age of the oldest operation in flight, 0 if there is none.
//
// LOCKS_EXCLUDED(t.mu)
func (t *opTable) oldest() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.root.next == &t.root {
		return 0
	}
	return time.Since(t.root.next.since)
}

// started returns how many operations have begun ever, and how many of them are
// in flight.
//
// LOCKS_EXCLUDED(t.mu)
func (t *opTable) started() (ever uint64, inFlight int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lastID, t.count
}

// size is the number of operations in flight.
func (t *opTable) size() int {
	_, inFlight := t.started()
	return inFlight
}
