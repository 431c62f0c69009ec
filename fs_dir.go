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

func (fs *fileSystem) lookUp(op *fuseops.LookUpInodeOp) error {
	i, ok := fs.byName[op.Name]
	if op.Parent != fuseops.RootInodeID || !ok {
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
	f, err := fs.file(op.Inode)
	if err != nil {
		return err
	}
	op.Attributes = fs.attributes(0o444, f.store.Size(), f.mtime)
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

// direntBytes is the least that an entry takes in an answer (struct fuse_dirent).
const direntBytes = 24

// listing returns the entries that a listing of dir has still to show at
// offset, as many as room may hold: the files in the order of the sources, or
// those of the control directory. The control directory itself is found by its
// name only: what copies a directory would copy it too, and what it holds has no
// size to copy by.
func (fs *fileSystem) listing(dir fuseops.InodeID, offset fuseops.DirOffset, room int) (entries []fuseutil.DirentPlus) {
	names := fs.control.names()
	files := fs.dir.Load().files
	count := fuseops.DirOffset(len(files))
	if dir == controlInode {
		count = fuseops.DirOffset(len(names))
	}
	for i := offset; i < count && len(entries) <= room/direntBytes; i++ {
		var name string
		var entry fuseops.ChildInodeEntry
		if dir == controlInode {
			name, entry = names[i], fs.controlEntry(controlInode+1+fuseops.InodeID(i))
		} else {
			name, entry = files[i].name, fs.entry(files[i])
		}
		entries = append(entries, fuseutil.DirentPlus{Entry: entry, Dirent: fuseutil.Dirent{
			Offset: i + 1, Inode: entry.Child, Name: name, Type: fuseutil.DT_File,
		}})
	}
	return entries
}

// statFS tells the size of it all, so that df shows a full, read-only disk.
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

// cachedEntry is an entry that the kernel may keep.
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

// file returns the version with that inode number.
func (fs *fileSystem) file(inode fuseops.InodeID) (*fileVersion, error) {
	all := fs.dir.Load().byInode
	if inode < firstFileInode || inode-firstFileInode >= fuseops.InodeID(len(all)) {
		return nil, errNoInode(inode)
	}
	return all[inode-firstFileInode], nil
}

func errNoInode(inode fuseops.InodeID) error {
	return fmt.Errorf("inode %d: %w", inode, syscall.ENOENT)
}

// openFile decides how the kernel caches the handle. Through the page cache, a
// read that waits would hold a page, and with it hang whoever opens or reads
// the same file; so until a file is complete its handles use direct I/O.
// KeepPageCache is set on both: without it an open waits for every page of the
// file that is being read.
func (fs *fileSystem) openFile(op *fuseops.OpenFileOp) error {
	f, err := fs.file(op.Inode)
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

// releaseFile ends a handle. The last one of a version that was replaced takes
// its store along.
func (fs *fileSystem) releaseFile(op *fuseops.ReleaseFileHandleOp) error {
	f, err := fs.file(fuseops.InodeID(op.Handle))
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

// renew puts the present version of a file that changed in its place, under an
// inode number of its own. Its answer is errChanged also when that went well:
// at ESTALE the kernel looks the name up anew and opens what it then finds
// (path_openat in fs/namei.c, LOOKUP_REVAL).
//
// BLOCKS until the origin has answered; wakes on that and the end of ctx.
func (fs *fileSystem) renew(ctx context.Context, inode fuseops.InodeID) error {
	old, err := fs.file(inode)
	if err != nil {
		return err
	}
	store, err := old.store.Successor(ctx)
	if err != nil {
		return err
	}
	fs.replace(old, store)
	if old.store.Unused() { // else the last release closes it
		go old.store.Close()
	}
	return errChanged
}

// replace puts store in the place of old's, unless somebody was faster.
//
// LOCKS_EXCLUDED(fs.mu)
func (fs *fileSystem) replace(old *fileVersion, store *TempFileStore) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.replaced(old) {
		return // store has nothing yet
	}
	fresh := &fileVersion{name: old.name, store: store, mtime: store.ModTime()}
	if fresh.mtime.IsZero() {
		fresh.mtime = time.Now()
	}
	dir := fs.dir.Load()
	fresh.inode = firstFileInode + fuseops.InodeID(len(dir.byInode))
	next := &directory{files: slices.Clone(dir.files), byInode: append(slices.Clone(dir.byInode), fresh)}
	next.files[fs.byName[old.name]] = fresh
	fs.dir.Store(next)
}
