// fs_control.go serves the directory .fsmount, whose files show how the mount stands. It renders a
// file from memory and /proc when the file is opened. It takes the locks of tables and stores, but
// nobody holds one of these while waiting, so it answers while every data read is stuck. One file
// takes a request to do something, which may take its time, and has then what came of it.

package main

import (
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
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
	// doName is the control file that does what it is asked to. The mount is read-only, so the kernel
	// lets nobody write to a file of it (sb_permission in fs/namei.c), and a request comes by the
	// offsets of reads: requestAt, and in the bits below it the bytes of a word, as many as the read
	// asks for, the first one lowest. The first read at another offset does what the bytes so far ask
	// for: they are the request, compressed (RFC 1951), as a read costs as much as the probe of a file.
	doName      = "do"
	doPath      = controlName + "/" + doName
	requestAt   = 1 << 62
	requestWord = 7

	wordEnd    = "\x00" // between the words of a request
	failedMark = "\x00" // precedes a line of an answer
)

// controlFile is one file of the control directory.
type controlFile struct {
	name   string
	render func() string
}

// controlVerb does something to args, which are sources or names of files, and says for
// people what was done, or why not.
type controlVerb func(ctx context.Context, args []string, say func(done string, err error))

// controlHandle is an open control file.
type controlHandle struct {
	text    string
	request []byte // so far, of doName; nil otherwise, and once it is being done
}

// controlDir keeps for each open handle of a control file the text it was opened with.
type controlDir struct {
	// Write once, before any goroutine starts.
	files []controlFile
	verbs map[string]controlVerb

	// Read write.
	mu      sync.Mutex
	handles map[fuseops.HandleID]*controlHandle // GUARDED_BY(mu)
	last    fuseops.HandleID                    // GUARDED_BY(mu); above controlInode, so that no file's handle has it
}

// newControlDir returns the control directory of fs, whose names it puts into the tree.
func newControlDir(fs *fileSystem, root *node) *controlDir {
	c := &controlDir{
		files: []controlFile{
			{"status", fs.statusLines},
			{"ops", fs.opLines},
			{"stacks", func() string { return string(allStacks()) }},
			{"events", fs.trace.events},
			{"metrics", fs.metricLines},
			{"disk", fs.diskLine},
			{doName, nil},
		},
		verbs: map[string]controlVerb{
			"stop":    fs.askToStop,
			"refresh": fs.forEach(fs.refresh),
			"fetch":   fs.forEach(fs.fetch),
			"forget":  fs.forEach(fs.giveBack),
			"rm":      fs.forEach(fs.remove),
		},
		handles: make(map[fuseops.HandleID]*controlHandle),
		last:    fuseops.HandleID(controlInode),
	}
	dir := &node{path: "/" + controlName, parent: root}
	fs.setLocked(dir, os.ModeDir|0o500, controlInode)
	for i, f := range c.files {
		n := &node{path: dir.path + "/" + f.name, parent: dir, place: firstPlace + fuseops.DirOffset(i)}
		fs.setLocked(n, 0o400, controlInode+1+fuseops.InodeID(i))
		if f.render != nil {
			dir.children = append(dir.children, n)
		}
	}
	return c
}

func (c *controlDir) has(inode fuseops.InodeID) bool {
	return inode >= controlInode && inode <= controlInode+fuseops.InodeID(len(c.files))
}

// open keeps a handle for op's file, with the text that it has now. Only the user who
// mounted may ask the mount to do something: the kernel lets root open any file.
//
// The text of thousands of operations takes a second, so the loop never calls it.
func (c *controlDir) open(op *fuseops.OpenFileOp) error {
	if op.Inode == controlInode {
		return syscall.ENOENT
	}
	h := new(controlHandle)
	if render := c.files[op.Inode-controlInode-1].render; render != nil {
		h.text = render()
	} else if h.request = []byte{}; op.OpContext.Uid != uint32(os.Getuid()) {
		return syscall.EACCES
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	c.handles[c.last] = h
	op.Handle, op.UseDirectIO = c.last, true
	return nil
}

// read answers op with its handle's text, as far as it has any, or takes op for a part of
// a request. It returns errMustWait if the request is complete.
func (c *controlDir) read(op *fuseops.ReadFileOp) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.handles[op.Handle]
	switch {
	case h == nil:
		return syscall.EINVAL
	case h.request != nil && op.Offset >= requestAt:
		for i := range min(op.Size, requestWord) {
			h.request = append(h.request, byte(op.Offset>>(8*i)))
		}
	case h.request != nil:
		return errMustWait
	}
	off := min(max(op.Offset, 0), int64(len(h.text)))
	setView(op, view{data: []byte(h.text[off:min(off+op.Size, int64(len(h.text)))])})
	return nil
}

// do does what the handle of op was asked to, the first word of which is the verb. It answers op with a line for each
// thing that was done, and behind failedMark for each that was not. BLOCKS as the verb does; wakes on the end of ctx.
func (c *controlDir) do(ctx context.Context, op *fuseops.ReadFileOp) error {
	c.mu.Lock()
	h := c.handles[op.Handle]
	packed := h.request
	h.request = nil
	c.mu.Unlock()
	ask, err := readInput(flate.NewReader(bytes.NewReader(packed)))
	words := strings.Split(string(ask), wordEnd)
	var report strings.Builder
	say := func(done string, err error) {
		if err != nil {
			done = failedMark + strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		fmt.Fprintln(&report, done)
	}
	if verb := c.verbs[words[0]]; verb != nil && err == nil {
		verb(ctx, words[1:], say)
	} else {
		say("", errors.New("this fsmount is of another version than the command"))
	}
	c.mu.Lock()
	h.text = report.String()
	c.mu.Unlock()
	return c.read(op)
}

// sendRequest calls read for each read that a request to doName takes.
func sendRequest(ask io.Reader, read func(off int64, size int) error) error {
	var packed bytes.Buffer
	w, _ := flate.NewWriter(&packed, flate.BestCompression) // it knows this level
	_, err := io.Copy(w, ask)
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	for word := range slices.Chunk(packed.Bytes(), requestWord) {
		at := int64(requestAt)
		for i, b := range word {
			at |= int64(b) << (8 * i)
		}
		if err := read(at, len(word)); err != nil {
			return err
		}
	}
	return nil
}

// forEach returns the verb that calls act for each file that it gets the name of.
func (fs *fileSystem) forEach(act func(context.Context, *node) (done string, err error)) controlVerb {
	return func(ctx context.Context, names []string, say func(done string, err error)) {
		for _, name := range names {
			done, err := "", errors.New("no file has this name")
			if f, isFile := fs.find(name); isFile {
				done, err = act(ctx, f)
			}
			if err != nil {
				err = fmt.Errorf("%s: %w", printable(name), err)
			}
			say(printable(name)+": "+done, err)
		}
	}
}

// release forgets a handle's text, and reports whether the handle is of a control file.
func (c *controlDir) release(handle fuseops.HandleID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, had := c.handles[handle]
	delete(c.handles, handle)
	return had
}

// askToStop is the verb that makes the program unmount as a signal does.
func (fs *fileSystem) askToStop(context.Context, []string, func(string, error)) {
	select {
	case fs.stopAsked <- struct{}{}:
	default: // asked before
	}
}

// fetch is the verb that downloads f.
func (fs *fileSystem) fetch(_ context.Context, f *node) (text string, err error) {
	if f.current.Load().latest().Streams() {
		return "", errNoRoomForAll
	}
	fs.prefetch(f)
	return "downloading", nil
}

// prefetch downloads files one after the other, behind those of earlier calls, but for those that are forgotten or
// removed before their turn. REQUIRES: the caller counts in fs.waiting, or ServeOps has not been called.
func (fs *fileSystem) prefetch(files ...*node) {
	for _, f := range files {
		f.current.Load().latest().Want()
	}
	fs.waiting.Go(func() {
		select {
		case fs.fetchTurn <- struct{}{}: // in the order of the calls
		case <-fs.ctx.Done():
			return
		}
		defer func() { <-fs.fetchTurn }()
		for _, f := range files {
			switch store := f.current.Load().latest(); {
			case !store.Snapshot().Wanted:
			case store.Streams():
				fs.log.printf("%q is not downloaded before it is read: %v", f.name(), errNoRoomForAll)
			default:
				store.Fetch(fs.ctx)
			}
		}
	})
}

// giveBack is the verb that frees the space of f.
func (fs *fileSystem) giveBack(_ context.Context, f *node) (text string, err error) {
	store := f.current.Load().latest()
	next, err := store.Forget()
	if next == nil {
		return "", fmt.Errorf("%s open: close it first", plural(int64(store.Snapshot().Handles), "handle"))
	}
	fs.close(store)
	return "gave back " + humanize.IBytes(uint64(store.Snapshot().Present)), err
}

// statusFormat is a line of the status file, for people and for grep.
const statusFormat = "file=%q state=%s present=%d size=%d rate=%d fetches=%d waiters=%d handles=%d retries=%d received=%d " +
	"store=%d version=%q retry_in=%.1fs last_error=%q error=%q wanted=%t silent=%.1fs streams=%t no_room=%t"

func (s fileStatus) String() string {
	return fmt.Sprintf(statusFormat, s.File, s.State, s.Present, s.Size, s.Rate, s.Fetches, s.Waiters, s.Handles, s.Retries,
		s.Received, s.Store, s.Version, s.RetryIn, s.LastError, s.Error, s.Wanted, s.Silent, s.Streams, s.NoRoom)
}

func parseFileStatus(line string) (s fileStatus, err error) {
	err = scanLine(line, statusFormat, &s, &s.File, &s.State, &s.Present, &s.Size, &s.Rate, &s.Fetches, &s.Waiters, &s.Handles,
		&s.Retries, &s.Received, &s.Store, &s.Version, &s.RetryIn, &s.LastError, &s.Error, &s.Wanted, &s.Silent, &s.Streams, &s.NoRoom)
	return s, err
}

// statusLines has a line for each file, in the order of the listing.
func (fs *fileSystem) statusLines() string {
	var b strings.Builder
	for _, f := range fs.allFiles() {
		status := f.current.Load().latest().Snapshot()
		status.File = f.name()
		if f.mismatches.Load() > 0 {
			status.Error, status.State = errWrongSum.Error(), strings.Replace(status.State, "complete", "failed", 1)
		}
		fmt.Fprintln(&b, status)
	}
	return b.String()
}

func (fs *fileSystem) diskLine() string {
	used, budget, evictions := fs.room.account()
	return fmt.Sprintf("disk: %s of at most %s used, %s\npassthrough: %v\n", humanize.IBytes(uint64(used)), humanize.IBytes(uint64(budget)), plural(evictions, "eviction"), &fs.passthrough)
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
	metric("passthrough_opens_total", "counter", "Opens after which the kernel reads the file by itself.", fs.passthrough.opens.Load())
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
