// fs_control.go serves the directory .fsmount, whose files show how the mount
// stands. It renders a file from memory and /proc when the file is opened. It takes
// the locks of tables and stores, but nobody holds one of these while waiting, so it
// answers while every data read is stuck.

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

// controlInode is the inode number of the control directory, far above those of the
// files. The control files have the numbers after it.
const controlInode fuseops.InodeID = 1 << 62

// controlFile is one file of the control directory.
type controlFile struct {
	name   string
	render func() string
}

// controlDir keeps for each open handle of a control file the text it was opened
// with.
type controlDir struct {
	// Write once, before any goroutine starts.
	files []controlFile

	// Read write.
	mu      sync.Mutex
	handles map[fuseops.HandleID]string // GUARDED_BY(mu)
	last    fuseops.HandleID            // GUARDED_BY(mu); above controlInode, so that no file's handle has it
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

// has reports whether an inode is the control directory or one of its files.
func (c *controlDir) has(inode fuseops.InodeID) bool {
	return inode >= controlInode && inode <= controlInode+fuseops.InodeID(len(c.files))
}

// hasHandle reports whether a handle is of a control file.
func (c *controlDir) hasHandle(handle fuseops.HandleID) bool {
	return handle > fuseops.HandleID(controlInode)
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
	return 0, false
}

// open renders a file, and returns the handle that keeps the text.
//
// LOCKS_EXCLUDED(c.mu)
func (c *controlDir) open(inode fuseops.InodeID) (fuseops.HandleID, error) {
	if inode == controlInode || !c.has(inode) {
		return 0, errNoInode(inode)
	}
	text := c.files[inode-controlInode-1].render()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	c.handles[c.last] = text
	return c.last, nil
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

// release forgets a handle's text.
//
// LOCKS_EXCLUDED(c.mu)
func (c *controlDir) release(handle fuseops.HandleID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.handles, handle)
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

// statusFormat is a line of the status file, for people and for grep.
const statusFormat = "file=%q state=%s present=%d size=%d rate=%d fetches=%d waiters=%d handles=%d retries=%d received=%d " +
	"store=%d version=%q retry_in=%.1fs last_error=%q error=%q silent=%.1fs"

// String is s as a line of the status file.
func (s fileStatus) String() string {
	return fmt.Sprintf(statusFormat, s.File, s.State, s.Present, s.Size, s.Rate, s.Fetches, s.Waiters, s.Handles, s.Retries,
		s.Received, s.Store, s.Version, s.RetryIn, s.LastError, s.Error, s.Silent)
}

// parseFileStatus parses what String wrote.
func parseFileStatus(line string) (s fileStatus, err error) {
	err = scanLine(line, statusFormat, &s, &s.File, &s.State, &s.Present, &s.Size, &s.Rate, &s.Fetches, &s.Waiters, &s.Handles,
		&s.Retries, &s.Received, &s.Store, &s.Version, &s.RetryIn, &s.LastError, &s.Error, &s.Silent)
	return s, err
}

// statusLines has a line for each file, in the order of the listing.
func (fs *fileSystem) statusLines() string {
	var b strings.Builder
	for _, f := range fs.dir.Load().files {
		status := f.store.Snapshot()
		status.File = f.name
		fmt.Fprintln(&b, status)
	}
	return b.String()
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
	i := 0
	for i < len(waitBuckets) && took > waitBuckets[i] {
		i++
	}
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

	var sum fileStatus
	for _, f := range fs.dir.Load().byInode {
		v := f.store.Snapshot()
		sum.Received += v.Received
		sum.Retries += v.Retries
		sum.Waiters += v.Waiters
		sum.Fetches += v.Fetches
	}
	metric("received_bytes_total", "counter", "Bytes of files that arrived from origins.", sum.Received)
	metric("retries_total", "counter", "Requests that failed and were made again.", sum.Retries)
	metric("waiters", "gauge", "Reads that wait for bytes.", sum.Waiters)
	metric("fetches", "gauge", "Requests to origins in flight.", sum.Fetches)

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
