// fs_control.go serves the directory .fsmount, whose files show how the mount
// stands. It renders a file from memory when the file is opened. It takes the locks
// of tables and stores, but nobody holds one of these while waiting, so it answers
// while every data read is stuck.

package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jacobsa/fuse/fuseops"
)

// controlInode is the inode number of the control directory, far above those
// of the files; its files follow.
const controlInode fuseops.InodeID = 1 << 62

// controlFile is one file of the control directory.
type controlFile struct {
	name   string
	render func() string
}

// controlDir serves the control directory. Its handles hold what was rendered
// when they were opened.
type controlDir struct {
	// Write once, before any goroutine starts.
	files []controlFile

	// Read write.
	mu      sync.Mutex
	handles map[fuseops.HandleID]string // GUARDED_BY(mu)
	last    fuseops.HandleID            // GUARDED_BY(mu)
}

func newControlDir(fs *fileSystem) *controlDir {
	return &controlDir{
		files: []controlFile{
			{"status", fs.statusLines},
			{"ops", fs.opLines},
			{"stacks", func() string { return string(allStacks()) }},
			{"events", fs.trace.events},
			{"metrics", fs.metricLines},
		},
		handles: make(map[fuseops.HandleID]string),
		last:    fuseops.HandleID(controlInode),
	}
}

// has reports whether an inode is of the control directory.
func (c *controlDir) has(inode fuseops.InodeID) bool {
	return inode >= controlInode && inode <= controlInode+fuseops.InodeID(len(c.files))
}

// hasHandle reports whether a handle is of a file in the control directory:
// those of other files are as low as their inodes.
func (c *controlDir) hasHandle(handle fuseops.HandleID) bool {
	return handle > fuseops.HandleID(controlInode)
}

// names lists the files of the control directory.
func (c *controlDir) names() []string {
	names := make([]string, len(c.files))
	for i, f := range c.files {
		names[i] = f.name
	}
	return names
}

// open renders a file, and returns the handle that holds it.
//
// LOCKS_EXCLUDED(c.mu)
func (c *controlDir) open(inode fuseops.InodeID) (fuseops.HandleID, error) {
	i := int(inode - controlInode - 1)
	if i < 0 || i >= len(c.files) {
		return 0, errNoInode(inode)
	}
	text := c.files[i].render()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	c.handles[c.last] = text
	return c.last, nil
}

// read returns what a handle has of [off, off+n).
//
// LOCKS_EXCLUDED(c.mu)
func (c *controlDir) read(handle fuseops.HandleID, off, n int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := c.handles[handle]
	off = min(max(off, 0), int64(len(text)))
	return []byte(text[off:min(off+n, int64(len(text)))])
}

// release forgets what a handle held.
//
// LOCKS_EXCLUDED(c.mu)
func (c *controlDir) release(handle fuseops.HandleID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.handles, handle)
}

// performControl carries out an op on the control directory. handled is false for ops
// on anything else.
func (fs *fileSystem) performControl(op any) (handled bool, err error) {
	c := fs.control
	switch op := op.(type) {
	case *fuseops.ReadFileOp:
		if !c.has(op.Inode) {
			return false, nil
		}
		setView(op, view{data: c.read(op.Handle, op.Offset, op.Size)})
		return true, nil
	case *fuseops.LookUpInodeOp:
		inode, found := c.lookUp(op.Parent, op.Name)
		if found {
			op.Entry = fs.controlEntry(inode)
		}
		return found, nil
	case *fuseops.GetInodeAttributesOp:
		if !c.has(op.Inode) {
			return false, nil
		}
		op.Attributes = fs.controlEntry(op.Inode).Attributes
		return true, nil
	case *fuseops.OpenFileOp:
		if !c.has(op.Inode) {
			return false, nil
		}
		op.UseDirectIO = true
		op.Handle, err = c.open(op.Inode)
		return true, err
	case *fuseops.ReleaseFileHandleOp:
		if !c.hasHandle(op.Handle) {
			return false, nil
		}
		c.release(op.Handle)
		return true, nil
	}
	return false, nil
}

// lookUp finds the control directory in the root, and its files in it.
func (c *controlDir) lookUp(parent fuseops.InodeID, name string) (fuseops.InodeID, bool) {
	if parent == fuseops.RootInodeID && name == controlName {
		return controlInode, true
	}
	for i, f := range c.files {
		if parent == controlInode && f.name == name {
			return controlInode + 1 + fuseops.InodeID(i), true
		}
	}
	return 0, false
}

// controlEntry is an inode of the control directory. Its size is not known
// before it is opened, and direct I/O does not ask.
func (fs *fileSystem) controlEntry(inode fuseops.InodeID) fuseops.ChildInodeEntry {
	mode := os.FileMode(0o400)
	if inode == controlInode {
		mode = os.ModeDir | 0o500
	}
	return cachedEntry(inode, fs.attributes(mode, 0, fs.mounted))
}

// fileStatus is how a file stands, as it is shown.
type fileStatus struct {
	File      string
	State     string // a word of TempFileStore.stateLocked
	Present   int64  // bytes
	Size      int64  // bytes
	Rate      int64  // bytes a second
	Fetches   int
	Waiters   int
	Handles   int
	Retries   int64
	Received  int64 // bytes
	Store     uint64
	Version   string
	RetryIn   float64 // seconds
	LastError string
	Error     string
}

// String is a line of the status file, for people and for grep.
func (s fileStatus) String() string {
	return fmt.Sprintf("file=%q state=%s present=%d size=%d rate=%d fetches=%d waiters=%d handles=%d retries=%d received=%d store=%d version=%q retry_in=%.1fs last_error=%q error=%q",
		s.File, s.State, s.Present, s.Size, s.Rate, s.Fetches, s.Waiters, s.Handles, s.Retries, s.Received,
		s.Store, s.Version, s.RetryIn, s.LastError, s.Error)
}

// parseFileStatus reads what String has written.
func parseFileStatus(line string) (fileStatus, error) {
	f := parseFields(line)
	s := fileStatus{
		File: f.text("file"), State: f.text("state"), Present: f.integer("present"), Size: f.integer("size"),
		Rate: f.integer("rate"), Fetches: int(f.integer("fetches")), Waiters: int(f.integer("waiters")),
		Handles: int(f.integer("handles")), Retries: f.integer("retries"), Received: f.integer("received"),
		Store: f.unsigned("store", 64), Version: f.text("version"), RetryIn: f.seconds("retry_in"),
		LastError: f.text("last_error"), Error: f.text("error"),
	}
	return s, f.err
}

// status is how f stands now.
func (f *fileVersion) status() fileStatus {
	v := f.store.Snapshot()
	return fileStatus{
		File: f.name, State: v.State, Present: v.Present, Size: v.Size, Rate: v.Rate(), Fetches: len(v.Fetches),
		Waiters: v.Waiters, Handles: v.Handles, Retries: v.Retries, Received: v.Received, Store: v.ID,
		Version: v.Version, RetryIn: v.RetryIn.Seconds(), LastError: v.LastError, Error: v.Error,
	}
}

// statusLines is a line for each file, in the order of the listing.
func (fs *fileSystem) statusLines() string {
	var b strings.Builder
	for _, f := range fs.dir.Load().files {
		fmt.Fprintln(&b, f.status())
	}
	return b.String()
}

// waitBuckets are the upper bounds of the histogram of waits. It is never
// changed.
var waitBuckets = [...]time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second,
	10 * time.Second, time.Minute, 10 * time.Minute, time.Hour}

// fsStats are the file system's counters. They only grow.
type fsStats struct {
	ops, reads, readBytes, readErrors atomic.Int64
	waits                             [len(waitBuckets) + 1]atomic.Int64 // reads that waited, by waitBuckets, and those beyond
	waitNanos                         atomic.Int64
	lostWakeups                       atomic.Int64
}

// waited counts a read that had to wait for took.
func (s *fsStats) waited(took time.Duration) {
	i := 0
	for i < len(waitBuckets) && took > waitBuckets[i] {
		i++
	}
	s.waits[i].Add(1)
	s.waitNanos.Add(int64(took))
}

// metricLines renders all metrics.
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
	metric("lost_wakeups_total", "counter", "Readers found asleep with their bytes on disk. Above 0 is a bug.", s.lostWakeups.Load())
	metric("ops_in_flight", "gauge", "Operations not answered yet.", fs.ops.size())
	metric("oldest_op_seconds", "gauge", "Age of the oldest operation in flight.", fs.ops.oldest().Seconds())
	fs.storeMetrics(metric)
	fs.waitHistogram(&b)
	return b.String()
}

// storeMetrics renders the sums over all stores.
func (fs *fileSystem) storeMetrics(metric func(name, kind, help string, value any)) {
	var sum storeSnapshot
	var waiters, fetches int
	for _, f := range fs.dir.Load().byInode {
		v := f.store.Snapshot()
		sum.Retries += v.Retries
		sum.Received += v.Received
		waiters += v.Waiters
		fetches += len(v.Fetches)
	}
	metric("received_bytes_total", "counter", "Bytes that origins sent.", sum.Received)
	metric("retries_total", "counter", "Requests that failed and were made again.", sum.Retries)
	metric("waiters", "gauge", "Reads that wait for bytes.", waiters)
	metric("fetches", "gauge", "Requests to origins in flight.", fetches)
}

// waitHistogram renders how long reads waited that had to.
func (fs *fileSystem) waitHistogram(b *strings.Builder) {
	const name = "fsmount_read_wait_seconds"
	fmt.Fprintf(b, "# HELP %s How long reads waited that had to.\n# TYPE %s histogram\n", name, name)
	var count int64
	for i, bound := range waitBuckets {
		count += fs.stats.waits[i].Load()
		fmt.Fprintf(b, "%s_bucket{le=\"%g\"} %d\n", name, bound.Seconds(), count)
	}
	count += fs.stats.waits[len(waitBuckets)].Load()
	fmt.Fprintf(b, "%s_bucket{le=\"+Inf\"} %d\n", name, count)
	fmt.Fprintf(b, "%s_sum %g\n%s_count %d\n", name, time.Duration(fs.stats.waitNanos.Load()).Seconds(), name, count)
}
