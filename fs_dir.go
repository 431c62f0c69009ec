// fs_dir.go answers ops on names: lookup, attributes, listings, open and release.
// It decides how the kernel caches a handle and which version of a file a name
// stands for.

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/jacobsa/fuse/fuseops"
	"github.com/jacobsa/fuse/fuseutil"
)

const (
	// firstFileInode is the inode number of the first file. The root has 1.
	firstFileInode = fuseops.RootInodeID + 1

	// expiry is how long the kernel may keep names and attributes. Those of an inode
	// never change, and the kernel looks a name up again when its inode is stale.
	expiry = 24 * time.Hour

	// direntBytes is the least that an entry takes in a listing (struct fuse_dirent).
	direntBytes = 24
)

// fileVersion is one version of a mounted file. Its inode number serves as the
// number of its handles too: a handle has no state of its own.
type fileVersion struct {
	name  string
	mtime time.Time // fixed: browsers compare it between choosing and sending a file
	store *TempFileStore
	inode fuseops.InodeID // the fileSystem sets it
}

// newFileVersion returns the version that store serves, under name. Its mtime is
// Last-Modified, or now where the origin sends none.
func newFileVersion(name string, store *TempFileStore) *fileVersion {
	f := &fileVersion{name: name, store: store, mtime: store.Object().ModTime}
	if f.mtime.IsZero() {
		f.mtime = time.Now()
	}
	return f
}

// directory is what the names stand for at one moment.
//
// INVARIANT: it never changes; replace puts a new one in its place.
type directory struct {
	files   []*fileVersion // in the order of the sources
	byInode []*fileVersion // every version there ever was, from firstFileInode on
}

// version returns the version with that inode number.
func (fs *fileSystem) version(inode fuseops.InodeID) (*fileVersion, error) {
	all := fs.dir.Load().byInode
	if inode < firstFileInode || inode-firstFileInode >= fuseops.InodeID(len(all)) {
		return nil, errNoInode(inode)
	}
	return all[inode-firstFileInode], nil
}

// nameOf returns the name of an inode for people.
func (fs *fileSystem) nameOf(inode fuseops.InodeID) string {
	if fs.control.has(inode) {
		return controlName
	}
	if f, err := fs.version(inode); err == nil {
		return f.name
	}
	return "/"
}

func (fs *fileSystem) lookUp(op *fuseops.LookUpInodeOp) error {
	if inode, found := fs.control.lookUp(op.Parent, op.Name); found {
		op.Entry = fs.controlEntry(inode)
		return nil
	}
	i, found := fs.byName[op.Name]
	if op.Parent != fuseops.RootInodeID || !found {
		return syscall.ENOENT
	}
	op.Entry = fs.entry(fs.dir.Load().files[i])
	return nil
}

func (fs *fileSystem) getAttributes(op *fuseops.GetInodeAttributesOp) error {
	op.AttributesExpiration = time.Now().Add(expiry)
	if op.Inode == fuseops.RootInodeID {
		op.Attributes = fs.attributes(os.ModeDir|0o555, 0, fs.mounted)
		return nil
	}
	if fs.control.has(op.Inode) {
		op.Attributes = fs.controlEntry(op.Inode).Attributes
		return nil
	}
	f, err := fs.version(op.Inode)
	if err != nil {
		return err
	}
	op.Attributes = fs.entry(f).Attributes
	return nil
}

func (fs *fileSystem) readDir(op *fuseops.ReadDirOp) error {
	for _, e := range fs.listing(op.Inode, op.Offset, len(op.Dst)) {
		n := fuseutil.WriteDirent(op.Dst[op.BytesRead:], e.Dirent)
		if n == 0 {
			break
		}
		op.BytesRead += n
	}
	return nil
}

func (fs *fileSystem) readDirPlus(op *fuseops.ReadDirPlusOp) error {
	for _, e := range fs.listing(op.Inode, op.Offset, len(op.Dst)) {
		n := fuseutil.WriteDirentPlus(op.Dst[op.BytesRead:], e)
		if n == 0 {
			break
		}
		op.BytesRead += n
	}
	return nil
}

// listing returns the entries of dir from offset on, as many as room bytes may
// hold: the files in the order of the sources, or the control files. The root does
// not list the control directory, so that a program that copies the mount does not
// copy it.
func (fs *fileSystem) listing(dir fuseops.InodeID, offset fuseops.DirOffset, room int) (entries []fuseutil.DirentPlus) {
	files, controls := fs.dir.Load().files, fs.control.files
	count := fuseops.DirOffset(len(files))
	if dir == controlInode {
		count = fuseops.DirOffset(len(controls))
	}
	for i := offset; i < count && len(entries) <= room/direntBytes; i++ {
		var name string
		var entry fuseops.ChildInodeEntry
		if dir == controlInode {
			name, entry = controls[i].name, fs.controlEntry(controlInode+1+fuseops.InodeID(i))
		} else {
			name, entry = files[i].name, fs.entry(files[i])
		}
		entries = append(entries, fuseutil.DirentPlus{Entry: entry, Dirent: fuseutil.Dirent{
			Offset: i + 1, Inode: entry.Child, Name: name, Type: fuseutil.DT_File,
		}})
	}
	return entries
}

// statFS reports the size of all files together, so that df shows a full disk.
func (fs *fileSystem) statFS(op *fuseops.StatFSOp) {
	const block = 4096
	op.BlockSize, op.IoSize = block, block
	files := fs.dir.Load().files
	for _, f := range files {
		op.Blocks += (uint64(f.store.Size()) + block - 1) / block
	}
	op.Inodes = uint64(len(files)) + 1
}

func (fs *fileSystem) entry(f *fileVersion) fuseops.ChildInodeEntry {
	return cachedEntry(f.inode, fs.attributes(0o444, f.store.Size(), f.mtime))
}

// cachedEntry is an entry that the kernel may keep for expiry.
func cachedEntry(inode fuseops.InodeID, attributes fuseops.InodeAttributes) fuseops.ChildInodeEntry {
	until := time.Now().Add(expiry)
	return fuseops.ChildInodeEntry{
		Child:                inode,
		Attributes:           attributes,
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

// openFile decides how the kernel caches the handle. A waiting read that goes
// through the page cache holds a page, and everyone who opens the file or reads that
// page then hangs with it. So a handle of an incomplete file uses direct I/O.
// KeepPageCache is always set: without it an open waits for every page of the file
// that is being read.
func (fs *fileSystem) openFile(op *fuseops.OpenFileOp) (err error) {
	if fs.control.has(op.Inode) {
		op.UseDirectIO = true
		op.Handle, err = fs.control.open(op.Inode)
		return err
	}
	f, err := fs.version(op.Inode)
	switch {
	case err != nil:
		return err
	case fs.replaced(f):
		return errChanged
	case f.store.Changed():
		return errMustWait
	}
	f.store.AddHandle()
	op.Handle = fuseops.HandleID(op.Inode)
	op.UseDirectIO = fs.io == ioDirect || fs.io == ioAuto && !f.store.Complete()
	op.KeepPageCache = true
	return nil
}

// releaseFile ends a handle. The last one of a replaced version closes its store.
func (fs *fileSystem) releaseFile(op *fuseops.ReleaseFileHandleOp) error {
	if fs.control.hasHandle(op.Handle) {
		fs.control.release(op.Handle)
		return nil
	}
	f, err := fs.version(fuseops.InodeID(op.Handle))
	if err != nil {
		return err
	}
	if f.store.DropHandle() == 0 && fs.replaced(f) {
		go f.store.Close()
	}
	return nil
}

// replaced reports whether f's name stands for a later version by now.
func (fs *fileSystem) replaced(f *fileVersion) bool {
	return fs.dir.Load().files[fs.byName[f.name]] != f
}

// renew asks the origin for the new version of a file that changed, and puts it in
// the place of the old one, under an inode number of its own. It returns errChanged
// even then: at ESTALE the kernel looks the name up again and opens what it finds
// (path_openat in fs/namei.c, LOOKUP_REVAL).
//
// BLOCKS until the origin has answered; wakes on that and the end of ctx.
func (fs *fileSystem) renew(ctx context.Context, inode fuseops.InodeID) error {
	old, err := fs.version(inode)
	if err != nil {
		return err
	}
	store, err := old.store.Successor(ctx)
	if err != nil {
		return err
	}
	fresh := newFileVersion(old.name, store)
	fs.replace(old, fresh)
	fs.traceName(fresh)
	if old.store.Snapshot().Handles == 0 { // else the last release closes it
		go old.store.Close()
	}
	return errChanged
}

// replace puts fresh in the place of old, unless another call was faster: then
// fresh, whose store has nothing yet, is dropped.
//
// LOCKS_EXCLUDED(fs.mu)
func (fs *fileSystem) replace(old, fresh *fileVersion) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.replaced(old) {
		return
	}
	dir := fs.dir.Load()
	fresh.inode = firstFileInode + fuseops.InodeID(len(dir.byInode))
	next := &directory{files: slices.Clone(dir.files), byInode: append(slices.Clone(dir.byInode), fresh)}
	next.files[fs.byName[old.name]] = fresh
	fs.dir.Store(next)
}

// traceName tells the readers of a trace which file a store serves.
func (fs *fileSystem) traceName(f *fileVersion) {
	if fs.trace.enabled() {
		fs.trace.note(f.store.Snapshot().Store, nameNote+"%q", f.name)
	}
}

func errNoInode(inode fuseops.InodeID) error {
	return fmt.Errorf("inode %d: %w", inode, syscall.ENOENT)
}
