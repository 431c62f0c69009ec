// fs_inflight.go keeps the table of operations in flight: the loop adds each op that
// it takes, and fileSystem.reply removes it. The table never delays or answers one.

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jacobsa/fuse/fuseops"
)

// parkedPerUser is how many reads of one user may wait at once where several users
// share a mount: each takes a goroutine and two kernel requests' memory.
const parkedPerUser = 4096

// errTooManyParked fails a read of a user who has parkedPerUser waiting.
var errTooManyParked = fmt.Errorf("this user has %d reads waiting already", parkedPerUser)

// opRecord is one operation in flight. The table formats it only when somebody
// asks, so a ready read pays for a list insertion alone.
type opRecord struct {
	id           uint64
	op           any    // only the op's goroutine changes it
	goid         uint64 // of that goroutine
	since        time.Time
	reported     bool                    // the watchdog has logged that it is blocked
	parked       bool                    // it waits, and parkedBy counts it
	reader       uint32                  // the thread that a parked read is for; 0 if it cannot be seen
	leave        context.CancelCauseFunc // ends the wait; nil before it begins
	older, newer *opRecord               // in the table's ring
}

// opTable has the operations in flight.
type opTable struct {
	// Write once, before any goroutine starts.
	mostPerUser int // parked reads; 0: no limit

	// Read write.
	mu       sync.Mutex
	ends     opRecord       // GUARDED_BY(mu); of the ring of records: newer is the oldest of these
	count    int            // GUARDED_BY(mu); of records in the ring
	lastID   uint64         // GUARDED_BY(mu)
	parkedBy map[uint32]int // GUARDED_BY(mu); parked reads, by user
	records  sync.Pool
}

func newOpTable() *opTable {
	t := &opTable{parkedBy: make(map[uint32]int), records: sync.Pool{New: func() any { return new(opRecord) }}}
	t.ends.older, t.ends.newer = &t.ends, &t.ends
	return t
}

// begin adds op, which the goroutine goid serves.
func (t *opTable) begin(op any, goid uint64) *opRecord {
	rec := t.records.Get().(*opRecord)
	*rec = opRecord{op: op, goid: goid, since: time.Now()}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lastID++
	t.count++
	rec.id, rec.older, rec.newer = t.lastID, t.ends.older, &t.ends
	rec.older.newer, rec.newer.older = rec, rec
	return rec
}

// park records that a read waits from now on, unless its user has too many that do: then
// it returns errTooManyParked. Other ops are not counted: they show what blocks the reads.
func (t *opTable) park(rec *opRecord) error {
	op, isRead := rec.op.(*fuseops.ReadFileOp)
	if !isRead {
		return nil
	}
	user, reader := op.OpContext.Uid, op.OpContext.Pid
	if !canSee(reader) {
		reader = 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mostPerUser > 0 && t.parkedBy[user] >= t.mostPerUser {
		return errTooManyParked
	}
	t.parkedBy[user]++
	rec.parked, rec.reader = true, reader
	return nil
}

// letLeave records that leave ends the wait of an op.
func (t *opTable) letLeave(rec *opRecord, leave context.CancelCauseFunc) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rec.leave = leave
}

// leaveDeserted ends the reads whose thread is gone.
func (t *opTable) leaveDeserted() {
	for _, rec := range t.snapshot() {
		if rec.leave != nil && rec.reader != 0 && !canSee(rec.reader) {
			rec.leave(errDeserted)
		}
	}
}

// end removes the op, which is about to get its reply. It returns how long the op
// took, and whether the watchdog had reported it.
func (t *opTable) end(rec *opRecord) (took time.Duration, reported bool) {
	t.mu.Lock()
	rec.older.newer, rec.newer.older = rec.newer, rec.older
	t.count--
	if rec.parked {
		user := rec.op.(*fuseops.ReadFileOp).OpContext.Uid
		if t.parkedBy[user]--; t.parkedBy[user] == 0 {
			delete(t.parkedBy, user)
		}
	}
	t.mu.Unlock()
	took, reported = time.Since(rec.since), rec.reported
	*rec = opRecord{}
	t.records.Put(rec)
	return took, reported
}

// snapshot copies the table, the oldest operation first.
func (t *opTable) snapshot() []opRecord {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]opRecord, 0, t.count)
	for rec := t.ends.newer; rec != &t.ends; rec = rec.newer {
		all = append(all, *rec)
	}
	return all
}

// newlyBlocked returns the operations that are at least limit old, each only once.
func (t *opTable) newlyBlocked(limit time.Duration) (blocked []opRecord) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for rec := t.ends.newer; rec != &t.ends; rec = rec.newer {
		if !rec.reported && now.Sub(rec.since) >= limit {
			rec.reported = true
			blocked = append(blocked, *rec)
		}
	}
	return blocked
}

// totals returns how many operations have ever begun, how many are in flight, and
// the age of the oldest of these, 0 if there is none.
func (t *opTable) totals() (ever uint64, inFlight int, oldest time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count > 0 {
		oldest = time.Since(t.ends.newer.since)
	}
	return t.lastID, t.count, oldest
}

// opInfo is an operation in flight as people see it.
type opInfo struct {
	ID      uint64  `json:"id"` // grows in the order in which operations begin
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

// opFormat is a line of the ops file, for people and for grep.
const opFormat = "id=%d op=%s file=%q range=%s pid=%d command=%q goid=%d store=%d age=%.1fs waits_for=%q"

func (i opInfo) String() string {
	return fmt.Sprintf(opFormat, i.ID, i.Kind, i.File, i.Range, i.PID, i.Command, i.GoID, i.Store, i.Age, i.Waits)
}

func parseOpInfo(line string) (i opInfo, err error) {
	err = scanLine(line, opFormat, &i, &i.ID, &i.Kind, &i.File, &i.Range, &i.PID, &i.Command, &i.GoID, &i.Store, &i.Age, &i.Waits)
	return i, err
}

// opLines has a line for each operation in flight, except those on the control directory.
func (fs *fileSystem) opLines() string {
	var b strings.Builder
	for _, info := range fs.opInfos(fs.ops.snapshot()) {
		if info.File == doPath || !strings.HasPrefix(info.File, controlName) {
			fmt.Fprintln(&b, info)
		}
	}
	return b.String()
}

// opInfos says what operations are, for whom, and what each waits for.
func (fs *fileSystem) opInfos(records []opRecord) []opInfo {
	all := make([]opInfo, len(records))
	ranges := make(map[*TempFileStore][]byteRange) // of reads
	infos := make(map[*TempFileStore][]*opInfo)    // of these reads
	for i, rec := range records {
		kind, inode, pid := opFacts(rec.op)
		info := &all[i]
		*info = opInfo{ID: rec.id, Kind: kind, Range: "-", PID: pid, Command: commandOf(pid), GoID: rec.goid,
			Age: time.Since(rec.since).Seconds(), File: fs.nameOf(inode), Waits: "its reply"}
		if info.File == doPath {
			info.Waits = "the origins, as a command asked"
		}
		v, err := fs.version(inode)
		if err != nil {
			continue
		}
		store := v.latest()
		info.Store = store.ID()
		if op, isRead := rec.op.(*fuseops.ReadFileOp); isRead {
			r := byteRange{op.Offset, min(op.Offset+op.Size, max(op.Offset, v.size))}
			info.Range = r.String()
			ranges[store], infos[store] = append(ranges[store], r), append(infos[store], info)
		}
	}
	for store, reads := range ranges {
		for i, waits := range store.Explain(reads...) {
			infos[store][i].Waits = waits
		}
	}
	return all
}

// opFacts returns what the kernel put into an op.
func opFacts(op any) (kind string, inode fuseops.InodeID, pid uint32) {
	switch op := op.(type) {
	case *fuseops.ReadFileOp:
		return "read", op.Inode, op.OpContext.Pid
	case *fuseops.OpenFileOp:
		return "open", op.Inode, op.OpContext.Pid
	case *fuseops.ReleaseFileHandleOp:
		return "release", fuseops.InodeID(op.Handle &^ handleKinds), op.OpContext.Pid
	case *fuseops.LookUpInodeOp:
		return "lookup", op.Parent, op.OpContext.Pid
	case *fuseops.GetInodeAttributesOp:
		return "getattr", op.Inode, op.OpContext.Pid
	case *fuseops.ReadDirOp:
		return "readdir", op.Inode, op.OpContext.Pid
	case *fuseops.ReadDirPlusOp:
		return "readdir", op.Inode, op.OpContext.Pid
	case *fuseops.StatFSOp:
		return "statfs", fuseops.RootInodeID, 0
	}
	return strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T", op), "*fuseops."), "Op"), 0, 0
}

func readerOf(pid uint32) string {
	return fmt.Sprintf("pid %d (%s)", pid, cmp.Or(printable(commandOf(pid)), "-"))
}

// commandOf returns the name of the thread pid, "" if it is gone.
func commandOf(pid uint32) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(name))
}
