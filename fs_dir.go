// fs_dir.go answers ops on names: lookup, attributes, listings, open and release.
// It decides what the kernel caches.

package main

import (
	"os"
	"syscall"
	"time"

	"github.com/jacobsa/fuse/fuseops"
	"github.com/jacobsa/fuse/fuseutil"
)

const (
	// firstFileInode is the inode number of the first file. The root has 1.
	firstFileInode = fuseops.RootInodeID + 1

	// wholeHandle marks the handles for which a complete file stays whole.
	wholeHandle fuseops.HandleID = 1 << 61

	// expiry is how long the kernel may keep attributes, which never change for an
	// inode, and names, unless they follow changes.
	expiry = 24 * time.Hour
)

// nameOf returns the name of an inode for people.
func (fs *fileSystem) nameOf(inode fuseops.InodeID) string {
	if verb, f := fs.control.verb(inode); verb != nil {
		return verb.name + ":" + f.name
	}
	if fs.control.has(inode) {
		return controlName
	}
	if v, err := fs.version(inode); err == nil {
		return v.file.name
	}
	return "/"
}

func (fs *fileSystem) lookUp(op *fuseops.LookUpInodeOp) error {
	if inode, found := fs.control.lookUp(op.Parent, op.Name); found {
		op.Entry = fs.controlEntry(inode)
		return nil
	}
	f, found := fs.byName[op.Name]
	if op.Parent != fuseops.RootInodeID || !found {
		return syscall.ENOENT
	}
	v := f.current.Load()
	fs.remember(v)
	op.Entry = fs.entry(v)
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
	v, err := fs.version(op.Inode)
	if err != nil {
		return err
	}
	op.Attributes = fs.entry(v).Attributes
	return nil
}

func (fs *fileSystem) readDir(op *fuseops.ReadDirOp) error {
	op.BytesRead = fs.list(op.Inode, op.Offset, op.Dst, func(dst []byte, e fuseutil.DirentPlus) int {
		return fuseutil.WriteDirent(dst, e.Dirent)
	})
	return nil
}

func (fs *fileSystem) readDirPlus(op *fuseops.ReadDirPlusOp) error {
	op.BytesRead = fs.list(op.Inode, op.Offset, op.Dst, func(dst []byte, e fuseutil.DirentPlus) int {
		n := fuseutil.WriteDirentPlus(dst, e)
		if v, err := fs.version(e.Entry.Child); n > 0 && err == nil {
			fs.remember(v)
		}
		return n
	})
	return nil
}

// list writes the entries of dir from offset on into dst, until write returns 0 because
// there is no room, and returns how many bytes that took: "." and "..", then the files in
// the order of the sources, or the control files. The root does not list the control
// directory, so that a program that copies the mount does not copy it.
func (fs *fileSystem) list(dir fuseops.InodeID, offset fuseops.DirOffset, dst []byte,
	write func(dst []byte, e fuseutil.DirentPlus) int) (n int) {
	count := len(fs.files)
	if dir == controlInode {
		count = len(fs.control.listed)
	}
	for i := offset; i < fuseops.DirOffset(2+count); i++ {
		d := fuseutil.Dirent{Offset: i + 1, Inode: dir, Name: ".", Type: fuseutil.DT_Directory}
		var entry fuseops.ChildInodeEntry // without an inode: the kernel looks neither of the two up
		switch {
		case i == 1:
			d.Name, d.Inode = "..", fuseops.RootInodeID
		case i > 1 && dir == controlInode:
			d.Name, entry = fs.control.listed[i-2].name, fs.controlEntry(controlInode+fuseops.InodeID(i-1))
		case i > 1:
			d.Name, entry = fs.files[i-2].name, fs.entry(fs.files[i-2].current.Load())
		}
		if i > 1 {
			d.Inode, d.Type = entry.Child, fuseutil.DT_File
		}
		wrote := write(dst[n:], fuseutil.DirentPlus{Entry: entry, Dirent: d})
		if wrote == 0 {
			break
		}
		n += wrote
	}
	return n
}

// statFS reports the size of all files together, so that df shows a full disk.
func (fs *fileSystem) statFS(op *fuseops.StatFSOp) {
	const block = 4096
	op.BlockSize, op.IoSize = block, block
	for _, f := range fs.files {
		op.Blocks += (uint64(f.current.Load().size) + block - 1) / block
	}
	op.Inodes = uint64(len(fs.files)) + 1
}

// entry is a name's entry for v. Under follow the kernel looks the name up before each
// use: what it keeps may stand for a version that is gone.
func (fs *fileSystem) entry(v *fileVersion) fuseops.ChildInodeEntry {
	entry := cachedEntry(v.inode, fs.attributes(0o444, v.size, v.mtime))
	if fs.follow {
		entry.EntryExpiration = time.Time{}
	}
	return entry
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
// page then hangs with it. So a handle of an incomplete file uses direct I/O, unless the
// program that opens it cannot be seen: then nobody can tell which signal kills it, and
// in the page cache the kernel itself lets SIGKILL, and no other signal, end a wait.
// KeepPageCache is always set: without it an open waits for every page of the file
// that is being read.
//
// At ESTALE the kernel looks the name up again and opens what it finds (path_openat in
// fs/namei.c, LOOKUP_REVAL).
func (fs *fileSystem) openFile(op *fuseops.OpenFileOp) (err error) {
	if fs.control.has(op.Inode) {
		return errMustWait
	}
	v, err := fs.version(op.Inode)
	if err != nil {
		return err
	}
	if v.left.Load() {
		return errChanged
	}
	if v.file.mismatches.Load() > 0 {
		return errWrongSum
	}
	store := v.latest()
	if fs.follow || !store.Object().named() {
		fs.checkComplete(v)
	}
	store.AddHandle()
	op.Handle = fuseops.HandleID(op.Inode)
	complete := fs.io != ioDirect && store.KeepWhole()
	if complete {
		op.Handle |= wholeHandle
	}
	op.UseDirectIO = fs.io == ioDirect || fs.io == ioAuto && !complete && canSee(op.OpContext.Pid)
	op.KeepPageCache = true
	return nil
}

func (fs *fileSystem) releaseFile(op *fuseops.ReleaseFileHandleOp) error {
	if fs.control.release(op.Handle) {
		return nil
	}
	v, err := fs.version(fuseops.InodeID(op.Handle &^ wholeHandle))
	if err != nil {
		return err
	}
	if op.Handle&wholeHandle != 0 {
		v.latest().LetGo()
	}
	v.latest().DropHandle()
	return nil
}
