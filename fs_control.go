// fs_control.go serves the directory .fsmount, whose files show how the mount
// stands. It renders a file from memory and /proc when the file is opened. It takes
// the locks of tables and stores, but nobody holds one of these while waiting, so it
// answers while every data read is stuck. To open VERB:NAME there does something to a
// file, which may take its time; the text says what came of it.

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jacobsa/fuse/fuseops"
)

const (
	// controlInode is the inode number of the control directory, far above those of
	// the files. The control files have the numbers after it.
	controlInode fuseops.InodeID = 1 << 62

	// verbInode is the inode number of the first verb on the first file. Each verb has
	// filesPerVerb numbers.
	verbInode    = controlInode + filesPerVerb
	filesPerVerb = 1 << 32

	// failedMark precedes the error of a verb.
	failedMark = "failed: "

	// stopName is the control file that ends the mount when it is opened.
	stopName = "stop"
)

// controlFile is one file of the control directory.
type controlFile struct {
	name   string
	render func() string
}

// controlVerb is what opening VERB:NAME does to a file. act returns, for people, what
// came of it.
type controlVerb struct {
	name string
	act  func(context.Context, *namedFile) (string, error)
}

// controlDir keeps for each open handle of a control file the text it was opened
// with.
type controlDir struct {
	// Write once, before any goroutine starts.
	fs     *fileSystem
	files  []controlFile
	listed []controlFile // without those that do something when they are opened
	verbs  []controlVerb

	// Read write.
	mu      sync.Mutex
	handles map[fuseops.HandleID]string // GUARDED_BY(mu)
	last    fuseops.HandleID            // GUARDED_BY(mu); above controlInode, so that no file's handle has it
}

func newControlDir(fs *fileSystem) *controlDir {
	listed := []controlFile{
		{"status", fs.statusLines},
		{"ops", fs.opLines},
		{"stacks", func() string { return string(allStacks()) }},
		{"events", fs.trace.events},
		{"metrics", fs.metricLines},
		{"disk", fs.diskLine},
	}
	return &controlDir{
		fs:      fs,
		files:   append(listed, controlFile{stopName, fs.askToStop}),
		listed:  listed,
		verbs:   []controlVerb{{"refresh", fs.refresh}, {"fetch", fs.fetch}, {"forget", fs.giveBack}},
		handles: make(map[fuseops.HandleID]string),
		last:    fuseops.HandleID(controlInode),
	}
}

// has reports whether an inode is the control directory or one of its files.
func (c *controlDir) has(inode fuseops.InodeID) bool {
	verb, f := c.verb(inode)
	return inode >= controlInode && inode <= controlInode+fuseops.InodeID(len(c.files)) || verb != nil && f != nil
}

// verb returns the verb and the file that an inode stands for, nil for none.
func (c *controlDir) verb(inode fuseops.InodeID) (verb *controlVerb, f *namedFile) {
	v, i := (inode-verbInode)/filesPerVerb, (inode-verbInode)%filesPerVerb
	if inode < verbInode || v >= fuseops.InodeID(len(c.verbs)) || i >= fuseops.InodeID(len(c.fs.files)) {
		return nil, nil
	}
	return &c.verbs[v], c.fs.files[i]
}

// lookUp finds the control directory in the root, and its files in it.
func (c *controlDir) lookUp(parent fuseops.InodeID, name string) (inode fuseops.InodeID, found bool) {
	if parent == fuseops.RootInodeID && name == controlName {
		return controlInode, true
	}
	for i, f := range c.files {
		if parent == controlInode && f.name == name {
			return controlInode + 1 + fuseops.InodeID(i), true
		}
	}
	word, name, _ := strings.Cut(name, ":")
	v := slices.IndexFunc(c.verbs, func(v controlVerb) bool { return v.name == word })
	f := slices.Index(c.fs.files, c.fs.byName[name])
	return verbInode + fuseops.InodeID(v*filesPerVerb+f), parent == controlInode && v >= 0 && f >= 0
}

// open renders op's file, or does what it stands for, and keeps the text for op's handle.
//
// BLOCKS as the verb does; wakes on the end of ctx. The text of thousands of operations
// takes a second, so the loop never calls it.
//
// LOCKS_EXCLUDED(c.mu)
func (c *controlDir) open(ctx context.Context, op *fuseops.OpenFileOp) error {
	if op.Inode == controlInode {
		return syscall.ENOENT
	}
	text := ""
	if verb, f := c.verb(op.Inode); verb == nil {
		text = c.files[op.Inode-controlInode-1].render()
	} else if done, err := verb.act(ctx, f); err != nil {
		text = failedMark + err.Error() + "\n"
	} else {
		text = done + "\n"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	c.handles[c.last] = text
	op.Handle, op.UseDirectIO = c.last, true
	return nil
}

// read returns the bytes [off, off+n) of a handle's text, as far as it has them.
//
// LOCKS_EXCLUDED(c.mu)
func (c *controlDir) read(handle fuseops.HandleID, off, n int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := c.handles[handle]
	off = min(max(off, 0), int64(len(text)))
	return []byte(text[off:min(off+n, int64(len(text)))])
}

// release forgets a handle's text, and reports whether the handle is of a control file.
//
// LOCKS_EXCLUDED(c.mu)
func (c *controlDir) release(handle fuseops.HandleID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, had := c.handles[handle]
	delete(c.handles, handle)
	return had
}

// controlEntry is an inode of the control directory. Nobody knows a control file's
// size before it is opened; with direct I/O the kernel does not ask for it.
func (fs *fileSystem) controlEntry(inode fuseops.InodeID) fuseops.ChildInodeEntry {
	mode := os.FileMode(0o400)
	if inode == controlInode {
		mode = os.ModeDir | 0o500
	}
	return cachedEntry(inode, fs.attributes(mode, 0, fs.mounted))
}

// askToStop makes the program unmount as a signal does.
func (fs *fileSystem) askToStop() string {
	select {
	case fs.stopAsked <- struct{}{}:
	default: // asked before
	}
	return "stopping\n"
}

// fetch is the verb that downloads f.
func (fs *fileSystem) fetch(_ context.Context, f *namedFile) (text string, err error) {
	f.current.Load().latest().Want()
	fs.prefetch(f)
	return "downloading", nil
}

// prefetch downloads files one after the other, behind those of earlier calls.
//
// REQUIRES: the caller counts in fs.waiting, or ServeOps has not been called.
func (fs *fileSystem) prefetch(files ...*namedFile) {
	fs.waiting.Go(func() {
		select {
		case fs.fetchTurn <- struct{}{}: // in the order of the calls
		case <-fs.ctx.Done():
			return
		}
		defer func() { <-fs.fetchTurn }()
		for _, f := range files {
			f.current.Load().latest().Fetch(fs.ctx)
		}
	})
}

// giveBack is the verb that frees the space of f.
func (fs *fileSystem) giveBack(_ context.Context, f *namedFile) (text string, err error) {
	store := f.current.Load().latest()
	if store.Forget() == nil {
		return "", fmt.Errorf("%s open: close it first", plural(int64(store.Snapshot().Handles), "handle"))
	}
	fs.close(store)
	return "gave back " + humanize.IBytes(uint64(store.Snapshot().Present)), nil
}

// statusFormat is a line of the status file, for people and for grep.
const statusFormat = "file=%q state=%s present=%d size=%d rate=%d fetches=%d waiters=%d handles=%d retries=%d received=%d " +
	"store=%d version=%q retry_in=%.1fs last_error=%q error=%q wanted=%t silent=%.1fs streams=%t"

// String is s as a line of the status file.
func (s fileStatus) String() string {
	return fmt.Sprintf(statusFormat, s.File, s.State, s.Present, s.Size, s.Rate, s.Fetches, s.Waiters, s.Handles, s.Retries,
		s.Received, s.Store, s.Version, s.RetryIn, s.LastError, s.Error, s.Wanted, s.Silent, s.Streams)
}

// parseFileStatus parses what String wrote.
func parseFileStatus(line string) (s fileStatus, err error) {
	err = scanLine(line, statusFormat, &s, &s.File, &s.State, &s.Present, &s.Size, &s.Rate, &s.Fetches, &s.Waiters, &s.Handles,
		&s.Retries, &s.Received, &s.Store, &s.Version, &s.RetryIn, &s.LastError, &s.Error, &s.Wanted, &s.Silent, &s.Streams)
	return s, err
}

// statusLines has a line for each file, in the order of the listing.
func (fs *fileSystem) statusLines() string {
	var b strings.Builder
	for _, f := range fs.files {
		status := f.current.Load().latest().Snapshot()
		status.File = f.name
		if f.mismatches.Load() > 0 {
			status.Error, status.State = errWrongSum.Error(), strings.Replace(status.State, "complete", "failed", 1)
		}
		fmt.Fprintln(&b, status)
	}
	return b.String()
}

// diskLine says for people what the temporary files take.
func (fs *fileSystem) diskLine() string {
	used, budget, evictions := fs.room.account()
	return fmt.Sprintf("disk: %s of at most %s used, %s\n", humanize.IBytes(uint64(used)), humanize.IBytes(uint64(budget)), plural(evictions, "eviction"))
}

// waitBuckets are the upper bounds of the histogram of waits.
var waitBuckets = [...]time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second,
	10 * time.Second, time.Minute, 10 * time.Minute, time.Hour}

// fsStats counts what the file system did. The counters only grow.
type fsStats struct {
	ops, reads, readBytes, readErrors atomic.Int64
	waits                             [len(waitBuckets) + 1]atomic.Int64 // ops that waited, by bucket; the last is for longer waits
	waitNanos                         atomic.Int64
	lostWakeups                       atomic.Int64
}

// waited counts an op that waited for took.
func (s *fsStats) waited(took time.Duration) {
	i, _ := slices.BinarySearch(waitBuckets[:], took)
	s.waits[i].Add(1)
	s.waitNanos.Add(int64(took))
}

// metricLines renders all metrics as Prometheus text (exposition format 0.0.4).
func (fs *fileSystem) metricLines() string {
	var b strings.Builder
	metric := func(name, kind, help string, value any) {
		fmt.Fprintf(&b, "# HELP fsmount_%s %s\n# TYPE fsmount_%s %s\nfsmount_%s %v\n", name, help, name, kind, name, value)
	}
	s := &fs.stats
	metric("ops_total", "counter", "Operations answered.", s.ops.Load())
	metric("reads_total", "counter", "Reads answered.", s.reads.Load())
	metric("read_bytes_total", "counter", "Bytes that reads returned.", s.readBytes.Load())
	metric("read_errors_total", "counter", "Reads that failed.", s.readErrors.Load())
	metric("lost_wakeups_total", "counter", "Readers found asleep with their answer there. Above 0 is a bug.", s.lostWakeups.Load())
	_, inFlight, oldest := fs.ops.totals()
	metric("ops_in_flight", "gauge", "Operations not answered yet.", inFlight)
	metric("oldest_op_seconds", "gauge", "Age of the oldest operation in flight.", oldest.Seconds())

	var waiters, fetches int
	for _, v := range fs.allVersions() {
		status := v.latest().Snapshot()
		waiters += status.Waiters
		fetches += status.Fetches
	}
	metric("received_bytes_total", "counter", "Bytes of files that arrived from origins.", fs.total.received.Load())
	metric("retries_total", "counter", "Requests that failed and were made again.", fs.total.retries.Load())
	used, budget, evictions := fs.room.account()
	metric("disk_used_bytes", "gauge", "Disk that temporary files take.", used)
	metric("disk_budget_bytes", "gauge", "Disk that temporary files may take.", budget)
	metric("evictions_total", "counter", "Closed files, and MiB of open ones, that left the disk for others.", evictions)
	metric("waiters", "gauge", "Reads that wait for bytes.", waiters)
	metric("fetches", "gauge", "Requests to origins in flight.", fetches)

	const name = "fsmount_read_wait_seconds"
	fmt.Fprintf(&b, "# HELP %s Wait time of reads and opens that were not answered at once.\n# TYPE %s histogram\n", name, name)
	var n int64
	for i, bound := range waitBuckets {
		n += s.waits[i].Load()
		fmt.Fprintf(&b, "%s_bucket{le=\"%g\"} %d\n", name, bound.Seconds(), n)
	}
	n += s.waits[len(waitBuckets)].Load()
	fmt.Fprintf(&b, "%s_bucket{le=\"+Inf\"} %d\n", name, n)
	fmt.Fprintf(&b, "%s_sum %g\n%s_count %d\n", name, time.Duration(s.waitNanos.Load()).Seconds(), name, n)
	return b.String()
}
