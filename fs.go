// fs.go serves the kernel's requests: the loop that takes ops, the one place
// that answers them, and the directory they see. Every read goes straight to
// the file's TempFileStore; everything else is answered from memory and touches
// neither disk nor network.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/jacobsa/fuse"
	"github.com/jacobsa/fuse/fuseops"
	"github.com/jacobsa/fuse/fuseutil"
)

const (
	// firstFileInode is the inode number of the first file: 1 is the root.
	firstFileInode = fuseops.RootInodeID + 1

	// maxReadBytes is the most that the kernel asks for in one read: 256 pages,
	// its default fs.fuse.max_pages_limit.
	maxReadBytes = 1 << 20

	// expiry is how long the kernel may keep names and attributes. Neither
	// changes while the mount lives.
	expiry = 24 * time.Hour

	// maxReadOpErrors bounds how often ReadOp may fail in a row, in a way that
	// is not known to pass, before the connection counts as lost.
	maxReadOpErrors = 100
)

// errMustWait says that an op cannot be answered in the loop. It never reaches
// a reader.
var errMustWait = errors.New("the read has to wait")

// ioMode says how the kernel caches the handles of files (--io).
type ioMode string

const (
	ioAuto     ioMode = "auto"     // direct while a file is incomplete, the page cache from then on
	ioDirect   ioMode = "direct"   // never the page cache
	ioBuffered ioMode = "buffered" // always the page cache
)

// file is one name in the mounted directory.
type file struct {
	name  string
	mtime time.Time // fixed: browsers compare it between choosing and sending
	store *TempFileStore
}

// fileSystem is a fuse.Server over a flat, fixed directory of files. File i has
// the inode number firstFileInode+i, which serves as its handles' number too:
// a handle has no state of its own.
type fileSystem struct {
	// Write once, before any goroutine starts.
	files   []file
	byName  map[string]int // index in files
	io      ioMode
	mounted time.Time
	log     *eventLog
	ctx     context.Context // ends with errStopping when the mount stops
	stop    context.CancelCauseFunc

	// waiting counts ops that were handed to a goroutine. Only the ServeOps
	// loop adds, and waits when it has ended, so Add never races Wait.
	waiting sync.WaitGroup
}

func newFileSystem(files []file, mode ioMode, log *eventLog) *fileSystem {
	ctx, stop := context.WithCancelCause(context.Background())
	fs := &fileSystem{
		files:   files,
		byName:  make(map[string]int, len(files)),
		io:      mode,
		mounted: time.Now(),
		log:     log,
		ctx:     ctx,
		stop:    stop,
	}
	for i, f := range files {
		fs.byName[f.name] = i
	}
	return fs
}

// Stop ends every wait, now and from now on, with errStopping. Reads whose
// bytes are there are still answered.
func (fs *fileSystem) Stop() { fs.stop(errStopping) }

// ServeOps takes ops from the kernel until the file system is unmounted, and
// returns when each has been answered (fuse.Server).
func (fs *fileSystem) ServeOps(c *fuse.Connection) {
	defer fs.waiting.Wait()
	defer fs.Stop()
	goid := goroutineID()
	for failures := 0; failures < maxReadOpErrors; {
		ctx, op, err := c.ReadOp()
		switch {
		case err == nil:
			failures = 0
			fs.serve(ctx, c, op, goid)
		case err == io.EOF:
			return
		case transient(err):
		default:
			failures++
			fs.log.printf("take request from the kernel: %v", err)
		}
	}
}

// transient reports whether reading /dev/fuse failed for a moment only: ENOENT
// is a request that was interrupted before it was taken (fuse(4)).
func transient(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR)
}

// serve sees to it that op gets its single reply. An op that can be answered
// without waiting is answered here, in the loop; a read that cannot gets a
// goroutine, so that it delays nobody.
func (fs *fileSystem) serve(ctx context.Context, c *fuse.Connection, op any, goid uint64) {
	err := fs.guard(op, func() error { return fs.perform(op, goid) })
	if err != errMustWait {
		fs.reply(ctx, c, op, err)
		return
	}
	fs.waiting.Add(1)
	go func() {
		defer fs.waiting.Done()
		fs.serveWaiting(ctx, c, op.(*fuseops.ReadFileOp))
	}()
}

// serveWaiting answers a read that may have to wait.
func (fs *fileSystem) serveWaiting(ctx context.Context, c *fuse.Connection, op *fuseops.ReadFileOp) {
	err := fs.guard(op, func() error {
		waitCtx, cancel := fs.waitContext(ctx, op.OpContext.Pid)
		defer cancel()
		return fs.read(withGoroutineID(waitCtx), op)
	})
	fs.reply(ctx, c, op, err)
}

// reply is the only place that answers. After it nothing may touch op: the
// library uses its memory again.
func (fs *fileSystem) reply(ctx context.Context, c *fuse.Connection, op any, err error) {
	if read, ok := op.(*fuseops.ReadFileOp); ok && err != nil {
		fs.logReadError(read, err)
	}
	// The reply to a reader that is gone by now fails, and concerns nobody.
	_ = c.Reply(ctx, errnoOf(err))
}

func (fs *fileSystem) logReadError(op *fuseops.ReadFileOp, err error) {
	name := "?"
	if f, ferr := fs.file(op.Inode); ferr == nil {
		name = f.name
	}
	fs.log.printf("read %q %v for pid %d: %v: %v",
		name, byteRange{op.Offset, op.Offset + op.Size}, op.OpContext.Pid, errnoOf(err), err)
}

// guard runs one op; if it panics, the op fails, the stack is logged and the
// mount goes on.
func (fs *fileSystem) guard(op any, run func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			fs.log.printf("panic in %T: %v\n%s", op, p, debug.Stack())
			err = errPanic
		}
	}()
	return run()
}

// readReady answers op if that takes no wait, else it returns errMustWait.
func (fs *fileSystem) readReady(op *fuseops.ReadFileOp, goid uint64) error {
	f, err := fs.file(op.Inode)
	if err != nil {
		return err
	}
	v, ready := f.store.ViewReady(op.Offset, int(min(op.Size, maxReadBytes)), goid)
	if !ready {
		return errMustWait
	}
	setView(op, v)
	return nil
}

// read answers op.
//
// BLOCKS until its bytes are there; wakes as TempFileStore.View does.
func (fs *fileSystem) read(ctx context.Context, op *fuseops.ReadFileOp) error {
	f, err := fs.file(op.Inode)
	if err != nil {
		return err
	}
	v, err := f.store.View(ctx, op.Offset, int(min(op.Size, maxReadBytes)))
	if err != nil {
		return err
	}
	setView(op, v)
	return nil
}

// setView makes v the answer to op, and gives it back when that is written.
func setView(op *fuseops.ReadFileOp, v view) {
	op.Data, op.BytesRead, op.Callback = [][]byte{v.data}, len(v.data), v.done
}

// perform carries out one op, or returns errMustWait for a read that cannot be
// answered now. It never blocks.
func (fs *fileSystem) perform(op any, goid uint64) error {
	switch op := op.(type) {
	case *fuseops.ReadFileOp:
		return fs.readReady(op, goid)
	case *fuseops.LookUpInodeOp:
		return fs.lookUp(op)
	case *fuseops.GetInodeAttributesOp:
		return fs.getAttributes(op)
	case *fuseops.OpenDirOp:
		op.CacheDir, op.KeepCache = true, true
		return nil
	case *fuseops.ReadDirOp:
		return fs.readDir(op)
	case *fuseops.ReadDirPlusOp:
		return fs.readDirPlus(op)
	case *fuseops.OpenFileOp:
		return fs.openFile(op)
	case *fuseops.StatFSOp:
		fs.statFS(op)
		return nil
	case *fuseops.ForgetInodeOp, *fuseops.BatchForgetOp, *fuseops.SyncFileOp,
		*fuseops.ReleaseFileHandleOp, *fuseops.ReleaseDirHandleOp:
		return nil
	case *fuseops.SetInodeAttributesOp, *fuseops.MkDirOp, *fuseops.MkNodeOp, *fuseops.CreateFileOp,
		*fuseops.CreateSymlinkOp, *fuseops.CreateLinkOp, *fuseops.RenameOp, *fuseops.RmDirOp,
		*fuseops.UnlinkOp, *fuseops.WriteFileOp, *fuseops.SetXattrOp, *fuseops.RemoveXattrOp,
		*fuseops.FallocateOp:
		return syscall.EROFS
	default: // among them FlushFile and the xattrs: the kernel stops asking
		return syscall.ENOSYS
	}
}

func (fs *fileSystem) lookUp(op *fuseops.LookUpInodeOp) error {
	i, ok := fs.byName[op.Name]
	if op.Parent != fuseops.RootInodeID || !ok {
		return syscall.ENOENT
	}
	op.Entry = fs.entry(i)
	return nil
}

func (fs *fileSystem) getAttributes(op *fuseops.GetInodeAttributesOp) error {
	op.AttributesExpiration = time.Now().Add(expiry)
	if op.Inode == fuseops.RootInodeID {
		op.Attributes = fs.attributes(os.ModeDir|0o555, 0, fs.mounted)
		return nil
	}
	f, err := fs.file(op.Inode)
	if err != nil {
		return err
	}
	op.Attributes = fs.attributes(0o444, f.store.Size(), f.mtime)
	return nil
}

// openFile decides how the kernel caches the handle. Through the page cache, a
// read that waits would hold a page, and with it hang whoever opens or reads
// the same file; so until a file is complete its handles use direct I/O.
// KeepPageCache is set on both: without it an open waits for every page of the
// file that is being read.
func (fs *fileSystem) openFile(op *fuseops.OpenFileOp) error {
	f, err := fs.file(op.Inode)
	if err != nil {
		return err
	}
	op.Handle = fuseops.HandleID(op.Inode)
	op.UseDirectIO = fs.io == ioDirect || fs.io == ioAuto && !f.store.Complete()
	op.KeepPageCache = true
	return nil
}

func (fs *fileSystem) readDir(op *fuseops.ReadDirOp) error {
	for i := int(op.Offset); i < len(fs.files); i++ {
		n := fuseutil.WriteDirent(op.Dst[op.BytesRead:], fs.dirent(i))
		if n == 0 {
			break
		}
		op.BytesRead += n
	}
	return nil
}

func (fs *fileSystem) readDirPlus(op *fuseops.ReadDirPlusOp) error {
	for i := int(op.Offset); i < len(fs.files); i++ {
		n := fuseutil.WriteDirentPlus(op.Dst[op.BytesRead:], fuseutil.DirentPlus{Dirent: fs.dirent(i), Entry: fs.entry(i)})
		if n == 0 {
			break
		}
		op.BytesRead += n
	}
	return nil
}

// statFS tells the size of it all, so that df shows a full, read-only disk.
func (fs *fileSystem) statFS(op *fuseops.StatFSOp) {
	const block = 4096
	op.BlockSize, op.IoSize = block, maxReadBytes
	for _, f := range fs.files {
		op.Blocks += uint64(f.store.Size()+block-1) / block
	}
	op.Inodes = uint64(len(fs.files)) + 1
}

func (fs *fileSystem) dirent(i int) fuseutil.Dirent {
	return fuseutil.Dirent{
		Offset: fuseops.DirOffset(i + 1),
		Inode:  firstFileInode + fuseops.InodeID(i),
		Name:   fs.files[i].name,
		Type:   fuseutil.DT_File,
	}
}

func (fs *fileSystem) entry(i int) fuseops.ChildInodeEntry {
	until := time.Now().Add(expiry)
	return fuseops.ChildInodeEntry{
		Child:                firstFileInode + fuseops.InodeID(i),
		Attributes:           fs.attributes(0o444, fs.files[i].store.Size(), fs.files[i].mtime),
		AttributesExpiration: until,
		EntryExpiration:      until,
	}
}

func (fs *fileSystem) attributes(mode os.FileMode, size int64, mtime time.Time) fuseops.InodeAttributes {
	return fuseops.InodeAttributes{
		Size:  uint64(size),
		Nlink: 1,
		Mode:  mode,
		Atime: mtime, Mtime: mtime, Ctime: mtime, Crtime: mtime,
		Uid: uint32(os.Getuid()),
		Gid: uint32(os.Getgid()),
	}
}

// file returns the file with that inode number.
func (fs *fileSystem) file(inode fuseops.InodeID) (*file, error) {
	i := int64(inode) - firstFileInode
	if i < 0 || i >= int64(len(fs.files)) {
		return nil, fmt.Errorf("inode %d: %w", inode, syscall.ENOENT)
	}
	return &fs.files[i], nil
}
