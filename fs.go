// fs.go is the FUSE server: the loop that takes ops from the kernel and the one place that replies
// to them. A read of a remote file goes straight to the file's TempFileStore. Only three ops wait:
// a read for its bytes, an open of a control file for its text, and a read of the one that takes
// requests for what came of the request. All others are answered from memory.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/jacobsa/fuse"
	"github.com/jacobsa/fuse/fuseops"
	"golang.org/x/sys/unix"
)

// maxReadOpErrors is how often ReadOp may fail in a row, with errors that are not
// transient, before ServeOps takes the connection for lost.
const maxReadOpErrors = 100

// expectFor is how long the loop expects the next op awake: longer than a program that reads on takes to ask.
const expectFor, busyOps = 30 * time.Microsecond, 16

// errMustWait says that the loop cannot answer an op. It never reaches a reader.
var errMustWait = errors.New("the op has to wait")

// ioMode says how the kernel caches the handles of files (--io).
type ioMode string

const (
	ioAuto     ioMode = "auto"     // direct if the file is incomplete at the open, else the page cache
	ioDirect   ioMode = "direct"   // never the page cache
	ioBuffered ioMode = "buffered" // always the page cache
)

// fileSystem is a fuse.Server for a tree of files. Names come and go (fs_dir.go), and the
// version that a name stands for may change (fs_version.go).
type fileSystem struct {
	// Write once, before any goroutine starts.
	*storeConfig // of every store
	io           ioMode
	mounted      time.Time
	log          *eventLog
	ops          *opTable
	control      *controlDir
	readers      *readerWatch
	ctx          context.Context // ends with errStopping when the mount stops
	stop         context.CancelCauseFunc
	stopAsked    chan struct{} // holds a token once somebody asked for the end of the mount
	kernel       *fuse.Notifier
	passthrough  passthrough // ServeOps sets its device
	// waiting counts the goroutines that answer ops, or work for one. The ServeOps loop adds, and so
	// does a goroutine that counts itself. The loop waits after its last Add, so Add never races Wait.
	waiting sync.WaitGroup

	// Read write.
	mu        sync.Mutex
	versions  map[fuseops.InodeID]*fileVersion // GUARDED_BY(mu); those that the kernel may ask for
	nodes     map[string]*node                 // GUARDED_BY(mu); the tree, by path
	lastInode fuseops.InodeID                  // GUARDED_BY(mu); no number is used again
	lastPlace fuseops.DirOffset                // GUARDED_BY(mu)

	fetchTurn   chan struct{} // holds a token while prefetch works through a call's files
	stats       fsStats
	stalled     bool // events and stacks of this stall are in the log; only watch uses it
	unseenLooks int  // at which the same requests had not reached the loop; only watch uses it
	busy        int  // ops that the loop takes before it looks for another; only the loop uses it
}

// newFileSystem returns a server without files, whose stores will have config.
func newFileSystem(mode ioMode, config *storeConfig, log *eventLog) *fileSystem {
	ctx, stop := context.WithCancelCause(context.Background())
	fs := &fileSystem{
		storeConfig: config,
		io:          mode,
		mounted:     time.Now(),
		log:         log,
		ops:         newOpTable(),
		readers:     newReaderWatch(),
		ctx:         ctx,
		stop:        stop,
		kernel:      fuse.NewNotifier(),
		versions:    make(map[fuseops.InodeID]*fileVersion),
		nodes:       make(map[string]*node),
		lastInode:   firstFileInode - 1,
		lastPlace:   firstPlace - 1,
		fetchTurn:   make(chan struct{}, 1),
		stopAsked:   make(chan struct{}, 1),
	}
	fs.passthrough.stop("only with --io auto, and only a process that may mount by itself, has it")
	root := new(node)
	root.parent = root
	fs.setLocked(root, os.ModeDir|0o555, fuseops.RootInodeID)
	fs.control = newControlDir(fs, root)
	return fs
}

// Stop ends every wait, now and from now on, with errStopping. Reads of present bytes are still answered.
func (fs *fileSystem) Stop() { fs.stop(errStopping) }

// ServeOps takes ops from the kernel until the file system is unmounted, or the connection is lost, and returns when
// each has its reply (fuse.Server). BLOCKS until the unmount and the last reply.
func (fs *fileSystem) ServeOps(c *fuse.Connection) {
	fs.waiting.Go(fs.verifySums)
	ended := make(chan struct{})
	go fs.loop(c, ended)
	<-ended
	fs.Stop()
	fs.waiting.Wait()
}

// loop takes ops until the connection ends, then closes ended. It answers each op that need not wait: with direct
// reads of 4 KiB that is 3.7 times as fast as a goroutine for each op, with 128 KiB 1.9 times. With one that must
// wait its goroutine stays, at once and on its thread, and another one takes the loop over: so it delays no other.
// BLOCKS until the connection ends, or an op that must wait has its reply; wakes on each op.
func (fs *fileSystem) loop(c *fuse.Connection, ended chan<- struct{}) {
	growStack(0)
	goid := goroutineID()
	for failures := 0; failures < maxReadOpErrors; {
		fs.expect()
		ctx, op, err := c.ReadOp()
		switch {
		case err == nil:
			failures = 0
			if rec := fs.serve(ctx, c, op, goid); rec != nil {
				fs.waiting.Add(1)
				defer fs.waiting.Done()
				go fs.loop(c, ended)
				fs.serveWaiting(ctx, c, rec, goid)
				return
			}
		case err == io.EOF:
			close(ended)
			return
		case transient(err):
		default:
			failures++
			fs.log.printf("take request from the kernel: %v", err)
		}
	}
	close(ended)
}

// expect looks for the next op for a moment without sleep, while no op waits that could use the CPU: to wake this thread
// takes longer than most answers, and a program that reads on does so at once: 1.4 times as fast with direct reads of
// 4 KiB by one thread. Where the first look finds an op there are more: it looks again after busyOps of them.
func (fs *fileSystem) expect() {
	_, inFlight, _ := fs.ops.totals() // only the loop adds any
	if fs.passthrough.device == 0 || runtime.NumCPU() == 1 || fs.busy > 0 || inFlight > 0 {
		fs.busy = max(fs.busy-1, 0)
		return
	}
	ready, now := unix.PollFd{Fd: int32(fs.passthrough.device), Events: unix.POLLIN}, unix.Timespec{}
	for begin, looks := time.Now(), 0; time.Since(begin) < expectFor; looks++ {
		n, _, _ := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&ready)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		if n != 0 {
			if looks == 0 {
				fs.busy = busyOps
			}
			return
		}
	}
}

// transient reports whether reading /dev/fuse failed for the moment only. ENOENT is
// a request that was interrupted before the loop took it (fuse(4)).
func transient(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR)
}

// serve makes sure that op gets its single reply, unless it must wait: then it returns its record.
func (fs *fileSystem) serve(ctx context.Context, c *fuse.Connection, op any, goid uint64) *opRecord {
	rec := fs.ops.begin(op, goid)
	err := fs.guard(op, func() error { return fs.perform(op, goid) })
	if err == errMustWait {
		if err = fs.ops.park(rec); err == nil {
			return rec
		}
	}
	fs.reply(ctx, c, rec, err)
	return nil
}

// serveWaiting makes sure that the op of rec gets its single reply. BLOCKS as performWaiting does.
func (fs *fileSystem) serveWaiting(ctx context.Context, c *fuse.Connection, rec *opRecord, goid uint64) {
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	fs.ops.letLeave(rec, leave)
	err := fs.guard(rec.op, func() error { return fs.performWaiting(ctx, rec.op, goid) })
	fs.stats.waited(time.Since(rec.since))
	fs.reply(ctx, c, rec, err)
}

// guard runs one op. If the op panics, guard logs the stack, the op fails and the mount goes on.
func (fs *fileSystem) guard(op any, run func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			fs.log.printf("panic in %T: %v\n%s", op, p, debug.Stack())
			err = errPanic
		}
	}()
	return run()
}

// perform answers one op, or returns errMustWait for a read or open that cannot be answered now. It never blocks.
func (fs *fileSystem) perform(op any, goid uint64) error {
	switch op := op.(type) {
	case *fuseops.ReadFileOp:
		return fs.readReady(op, goid)
	case *fuseops.LookUpInodeOp:
		return fs.lookUp(op)
	case *fuseops.GetInodeAttributesOp:
		return fs.getAttributes(op)
	case *fuseops.OpenDirOp:
		op.CacheDir, op.KeepCache = !fs.follow, !fs.follow
		return nil
	case *fuseops.ReadDirOp:
		return fs.readDir(op)
	case *fuseops.ReadDirPlusOp:
		return fs.readDirPlus(op)
	case *fuseops.OpenFileOp:
		return fs.openFile(op)
	case *fuseops.StatFSOp:
		return fs.statFS(op)
	case *fuseops.ForgetInodeOp:
		fs.forget(op.Inode, op.N)
		return nil
	case *fuseops.BatchForgetOp:
		for _, e := range op.Entries {
			fs.forget(e.Inode, e.N)
		}
		return nil
	case *fuseops.SyncFileOp, *fuseops.ReleaseDirHandleOp, *fuseops.ListXattrOp: // no file has any xattr
		return nil
	case *fuseops.ReleaseFileHandleOp:
		return fs.releaseFile(op)
	case *fuseops.SetInodeAttributesOp, *fuseops.MkDirOp, *fuseops.MkNodeOp, *fuseops.CreateFileOp,
		*fuseops.CreateSymlinkOp, *fuseops.CreateLinkOp, *fuseops.RenameOp, *fuseops.RmDirOp,
		*fuseops.UnlinkOp, *fuseops.WriteFileOp, *fuseops.SetXattrOp, *fuseops.RemoveXattrOp,
		*fuseops.FallocateOp:
		return syscall.EROFS
	default: // among them FlushFile and reads of xattrs: after ENOSYS the kernel stops asking
		return syscall.ENOSYS
	}
}

// performWaiting answers an op for which perform returned errMustWait. opCtx ends when the kernel interrupts the op.
// BLOCKS until the bytes, the text or the origins' answers are there; wakes on these, on
// their timeouts, on the stop of the mount, and when a fatal signal reaches the reader.
func (fs *fileSystem) performWaiting(opCtx context.Context, op any, goid uint64) error {
	_, _, pid := opFacts(op)
	ctx, cancel := fs.waitContext(opCtx, pid)
	defer cancel()
	if open, isOpen := op.(*fuseops.OpenFileOp); isOpen {
		return fs.control.open(open)
	}
	read := op.(*fuseops.ReadFileOp)
	if fs.control.has(read.Inode) {
		return fs.control.do(ctx, read)
	}
	return fs.read(ctx, read, goid)
}

// readReady answers op if that takes no wait, else it returns errMustWait.
func (fs *fileSystem) readReady(op *fuseops.ReadFileOp, goid uint64) error {
	if fs.control.has(op.Inode) {
		return fs.control.read(op)
	}
	v, err := fs.version(op.Inode)
	if err != nil {
		return err
	}
	data, ready := v.latest().ViewReady(op.Offset, int(min(op.Size, maxReadBytes)), goid)
	if !ready {
		return errMustWait
	}
	setView(op, data)
	return nil
}

// replacementsMax is how many changes of a file that nobody has read one read outlasts.
const replacementsMax = 16

// read answers op. BLOCKS until its bytes are present; wakes as TempFileStore.View does.
func (fs *fileSystem) read(ctx context.Context, op *fuseops.ReadFileOp, goid uint64) error {
	v, err := fs.version(op.Inode)
	if err != nil {
		return err
	}
	store := v.latest()
	for n := 0; store != nil && n <= replacementsMax; n++ {
		var data view
		if data, err = store.View(ctx, op.Offset, int(min(op.Size, maxReadBytes)), goid); err == nil {
			setView(op, data)
			return nil
		}
		store = store.Replacement()
	}
	if store != nil {
		return fmt.Errorf("%w, again and again", errChanged)
	}
	return err
}

// within runs what may take long, and reports whether that took less than limit. After that it goes on alone.
// BLOCKS until run is done, at most limit.
func within(limit time.Duration, run func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		run()
	}()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// setView makes v the answer to op. The library calls v.done after it has written the answer.
func setView(op *fuseops.ReadFileOp, v view) {
	op.Data, op.BytesRead, op.Callback = [][]byte{v.data}, len(v.data), v.done
}

// reply is the only place that replies. Nothing may touch the op's buffers afterwards: the library uses them again.
func (fs *fileSystem) reply(ctx context.Context, c *fuse.Connection, rec *opRecord, err error) {
	fs.stats.ops.Add(1)
	switch op := rec.op.(type) {
	case *fuseops.ReadFileOp:
		fs.countRead(op, err)
	case *fuseops.OpenFileOp:
		if err != nil && !errors.Is(err, errChanged) { // at ESTALE the kernel opens the present version
			fs.log.often("open "+fs.nameOf(op.Inode), "open %q for %s: %v: %v", fs.nameOf(op.Inode), readerOf(op.OpContext.Pid), errnoOf(err), err)
		}
	}
	op := rec.op
	if took, reported := fs.ops.end(rec); reported {
		kind, inode, _ := opFacts(op)
		text := fmt.Sprintf("unblocked after %v: %s of %q: %v", roundDuration(took), kind, fs.nameOf(inode), errnoOf(err))
		fs.log.printf("%s", strings.TrimSuffix(text, ": <nil>"))
	}
	// A reply to a reader that is gone fails. That concerns nobody.
	_ = c.Reply(ctx, errnoOf(err))
}

// countRead counts a read that is about to get its reply, and logs its error.
func (fs *fileSystem) countRead(op *fuseops.ReadFileOp, err error) {
	fs.stats.reads.Add(1)
	if err == nil {
		fs.stats.readBytes.Add(int64(op.BytesRead))
		return
	}
	fs.stats.readErrors.Add(1)
	name := fs.nameOf(op.Inode)
	fs.log.often("read "+name, "read %q %v for %s: %v: %v",
		name, byteRange{op.Offset, op.Offset + op.Size}, readerOf(op.OpContext.Pid), errnoOf(err), err)
}
