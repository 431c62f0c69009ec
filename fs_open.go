// fs_open.go opens and releases files: it decides how the kernel caches a
// handle, and which version of a file a name stands for.

package main

import (
	"context"
	"slices"
	"time"

	"github.com/jacobsa/fuse/fuseops"
)

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
	f.store.Open()
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
	if f.store.Release() == 0 && fs.replaced(f) {
		go f.store.Close()
	}
	return nil
}

// replaced reports whether f's name stands for a later version by now.
func (fs *fileSystem) replaced(f *file) bool {
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
func (fs *fileSystem) replace(old *file, store *TempFileStore) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.replaced(old) {
		return // store has nothing yet
	}
	fresh := &file{name: old.name, store: store, mtime: store.obj.ModTime}
	if fresh.mtime.IsZero() {
		fresh.mtime = time.Now()
	}
	dir := fs.dir.Load()
	fresh.inode = firstFileInode + fuseops.InodeID(len(dir.byInode))
	next := &directory{files: slices.Clone(dir.files), byInode: append(slices.Clone(dir.byInode), fresh)}
	next.files[fs.byName[old.name]] = fresh
	fs.dir.Store(next)
}
