// fs_version.go decides which version of its remote file a name stands for. A name keeps its version once a
// byte of it was delivered: a program that opens the name again, to go on where it failed, gets bytes of that
// version or ESTALE. Only refresh, or --on-change follow, give the name another one, under an inode of its own.

package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jacobsa/fuse/fuseops"
)

const (
	// mtimeStep is how far the mtime moves on from a version to the next: browsers compare it in whole seconds.
	mtimeStep = 2 * time.Second
	// namePatience is how long refresh waits until the kernel looks the name up again. The kernel
	// is slower where a program lists the directory into memory that it mapped from a stalled file.
	namePatience = time.Second
)

// fileVersion is an inode: a size and an mtime that never change. Its inode number serves as the number of its handles
// too: a handle has no state of its own. Of a directory and a control file there is one, without a store.
type fileVersion struct {
	// Write once, before any goroutine starts.
	file  *node
	inode fuseops.InodeID // adopt sets it
	size  int64           // bytes
	mtime time.Time       // browsers compare it between choosing and sending a file

	// Read write.
	lookups uint64 // GUARDED_BY(fileSystem.mu); how often the kernel counts the inode
	store   atomic.Pointer[TempFileStore]
	left    atomic.Bool // an open gets ESTALE: at the next lookup the kernel finds another version
	told    atomic.Bool // the log says that the remote file changed
	asked   time.Time   // when checkComplete asked the origin last

	// Only the ServeOps loop uses these.
	passed, unpassed int    // open handles: those that passOpen answered, and the others
	backing          uint32 // the kernel's number of the temporary file, while there are passed ones
}

// newFile returns the file that store serves, under name, a path in the mount without a slash at
// its ends. Its mtime is Last-Modified, or now where the origin sends none.
func newFile(name string, store *TempFileStore) *node {
	f := &node{path: "/" + name, mode: 0o444}
	f.current.Store(newVersion(f, store, time.Time{}))
	return f
}

// newVersion returns the version that store serves, with an mtime not before earliest.
func newVersion(f *node, store *TempFileStore, earliest time.Time) *fileVersion {
	obj := store.Object()
	v := &fileVersion{file: f, size: obj.Size, mtime: cmp.Or(obj.ModTime, time.Now())}
	if v.mtime.Before(earliest) {
		v.mtime = earliest
	}
	v.store.Store(store)
	return v
}

func (v *fileVersion) isFile() bool { return v.store.Load() != nil }

// latest returns v's store, or what took its place.
func (v *fileVersion) latest() *TempFileStore {
	store := v.store.Load()
	for next := store.Replacement(); next != nil; next = store.Replacement() {
		store = next
		v.store.Store(next)
	}
	return store
}

// adopt gives v its inode number, and lets its store report changes.
func (fs *fileSystem) adopt(v *fileVersion) {
	v.latest().OnChange = func(s *TempFileStore, now Object, err error) { fs.changed(v, s, now, err) }
	fs.mu.Lock()
	fs.lastInode++
	v.inode = fs.lastInode
	fs.versions[v.inode] = v
	fs.mu.Unlock()
	if fs.trace.on { // its readers want to know which file the store serves
		fs.trace.note(v.latest().ID(), nameNote+"%q", v.file.name())
	}
}

// version returns the version of a file with that inode number.
func (fs *fileSystem) version(inode fuseops.InodeID) (*fileVersion, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if v := fs.versions[inode]; v != nil && v.isFile() {
		return v, nil
	}
	return nil, fmt.Errorf("inode %d: %w", inode, syscall.ENOENT)
}

func (fs *fileSystem) allVersions() []*fileVersion {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	all := slices.Collect(maps.Values(fs.versions))
	return slices.DeleteFunc(all, func(v *fileVersion) bool { return !v.isFile() })
}

// forget takes back n of the answers that named an inode. Without any, a version that its name has left is
// gone, and so is a name that was removed: the kernel counts an inode as long as a program has it open.
func (fs *fileSystem) forget(inode fuseops.InodeID, n uint64) {
	fs.mu.Lock()
	v, gone := fs.versions[inode], false
	if v != nil {
		v.lookups -= min(n, v.lookups)
		gone = v.lookups == 0 && (v.file.current.Load() != v || fs.nodes[v.file.path] != v.file)
	}
	if gone {
		delete(fs.versions, inode)
	}
	fs.mu.Unlock()
	if gone && v.isFile() {
		fs.close(v.latest())
	}
}

// close closes a store that nobody reads any more.
func (fs *fileSystem) close(store *TempFileStore) { fs.room.closing.Go(func() { store.Close() }) }

// checkComplete asks the origin of a complete file, which fetches nothing that would show a change, whether it
// has changed: at most once in watchInterval, so that an open under follow gets what the origin had at the last
// one. A file without a version may be a page that stood in the file's place: the log tells the user then.
// REQUIRES: only the ServeOps loop calls it.
func (fs *fileSystem) checkComplete(v *fileVersion) {
	store := v.latest()
	if !store.Complete() || time.Since(v.asked) < watchInterval {
		return
	}
	v.asked = time.Now()
	fs.waiting.Go(func() {
		now, change, err := store.AskOrigin(fs.ctx)
		if err == nil && change != nil {
			fs.changed(v, store, now, nil)
		}
	})
}

// changed is called when the origin of v has the version now in the place of store's, or does not say which (err).
// Before any byte was delivered, a version of equal size takes the place under the same inode. Nobody can see a
// replacement of another size, so v stays what it is then, as after a delivery, unless the names follow changes.
func (fs *fileSystem) changed(v *fileVersion, store *TempFileStore, now Object, err error) {
	is := fmt.Sprint(now)
	if err != nil {
		is = fmt.Sprintf("not known (%v)", err)
	}
	tell := func(so string) {
		fs.log.printf("changed: %q has another version at its origin: it was %v and is %s%s", v.file.name(), store.Object(), is, so)
	}
	switch {
	case v.file.current.Load() != v || v.latest() != store: // there is another one by now
	case err == nil && now.Size == v.size && fs.replaceStore(store, now):
		tell(" from now on, as nobody had read it")
	case err == nil && fs.follow:
		tell(" from the next open on")
		fs.leave(v, store.NewVersion(now))
		v.left.Store(true)
	case !v.told.Swap(true):
		tell("; reads of bytes that have not arrived fail with ESTALE, at every open; " +
			"to take the new version: fsmount refresh DIR " + shellQuote(v.file.name()))
	}
}

// replaceStore puts a store of the version now in the place of store, of which nobody
// was given a byte, and reports whether that was in time.
func (fs *fileSystem) replaceStore(store *TempFileStore, now Object) bool {
	done := store.Replace(store.NewVersion(now))
	if done {
		fs.close(store)
	}
	return done
}

// verifySums compares the bytes of each complete file with the sha256 that its source gives, one file after the
// other. That counts as a read of the version. BLOCKS until the mount stops; wakes every watchInterval.
func (fs *fileSystem) verifySums() {
	for {
		select {
		case <-time.After(watchInterval):
		case <-fs.ctx.Done():
			return
		}
		for _, v := range fs.allVersions() {
			store := v.latest()
			if v.file.sha256 != "" && v.file.current.Load() == v && v.file.hashed != store && store.Complete() {
				v.file.hashed = store
				fs.verifySum(v, store)
			}
		}
	}
}

// verifySum compares the bytes of v. If they are wrong, opens of the name fail, and the first time in a row it gets a
// version that is fetched again: under another inode, as the kernel keeps pages of this one. A program that has v open
// reads on in v, wrong bytes included. BLOCKS until the disk has answered, and as tellKernel does; wakes on the stop.
func (fs *fileSystem) verifySum(v *fileVersion, store *TempFileStore) {
	f, hash, buffer := v.file, sha256.New(), make([]byte, maxReadBytes)
	for off := int64(0); off < v.size; {
		n, _ := store.ReadAt(fs.ctx, buffer, off)
		if n == 0 || f.current.Load() != v || fs.ctx.Err() != nil {
			return // the bytes have gone, or the name has left them, or the mount stops
		}
		hash.Write(buffer[:n])
		off += int64(n)
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	if sum == f.sha256 {
		f.mismatches.Store(0)
		fs.log.printf("%q has the sha256 of the list", f.name())
		return
	}
	first := f.mismatches.Add(1) == 1
	fs.log.printf("WRONG BYTES: %q has the sha256 %s, not %s: %v", f.name(), sum, f.sha256, errWrongSum)
	if first {
		fs.leave(v, store.NewVersion(store.Object()))
		f.current.Load().latest().WantRest()
		fs.tellKernel(func() { v.left.Store(true) }, f)
	}
}

// leave gives v's name to a version that store serves, unless the name has left v already, or was removed.
func (fs *fileSystem) leave(v *fileVersion, store *TempFileStore) {
	_ = v.latest().LeaveCache() // its bytes are of no use to a later run
	next := newVersion(v.file, store, v.mtime.Add(mtimeStep))
	fs.adopt(next)
	if v.latest().Snapshot().Wanted {
		store.WantRest()
	}
	v.file.current.CompareAndSwap(v, next)
	fs.forget(v.inode, 0)
	fs.forget(next.inode, 0)
}

// refresh makes f stand for the version that its origin has now.
// BLOCKS until the origin has answered, and then at most namePatience; wakes on the end of ctx.
func (fs *fileSystem) refresh(ctx context.Context, f *node) (text string, err error) {
	v := f.current.Load()
	store := v.latest()
	wrong := f.mismatches.Load() > 0
	if wrong {
		defer func() { f.current.Load().latest().WantRest() }() // no reader can
	}
	now, change, err := store.AskOrigin(ctx)
	switch {
	case err != nil:
		return "", err
	case store.Object().named() && change == nil && !wrong:
		store.TryAgain()
		return "the origin still has this version", nil
	}
	fs.log.printf("refresh: %q was %v and is %v", f.name(), store.Object(), now)
	text = "is now %v"
	if now.Size != v.size || !fs.replaceStore(store, now) {
		fs.leave(v, store.NewVersion(now))
		if !fs.tellKernel(func() { v.left.Store(true) }, f) {
			text = "will be %v as soon as the kernel looks the name up again"
		}
		now = f.current.Load().latest().Object() // another refresh may have been faster
	}
	return fmt.Sprintf(text, now), nil
}

// tellKernel makes the kernel forget the changed names and the listings that had them, then calls then, and reports
// whether that took less than namePatience. Opens of a version succeed until then, so that stat and open agree. The
// kernel waits for the lock of the directory (fuse_reverse_inval_entry in fs/fuse/dir.c), so no op may wait for it
// without bound. The library takes notifications as long as fs.waiting counts somebody. REQUIRES: the caller counts
// in fs.waiting, and has changed the tree. BLOCKS until the kernel has forgotten the names, at most namePatience.
func (fs *fileSystem) tellKernel(then func(), changed ...*node) bool {
	fs.waiting.Add(1)
	return within(namePatience, func() {
		defer fs.waiting.Done()
		for _, n := range changed { // errors: the kernel did not know the name, or is unmounting
			_ = fs.kernel.InvalidateEntry(n.parent.inode(), path.Base(n.path))
			_ = fs.kernel.InvalidateInode(n.parent.inode(), 0, 0)
		}
		then()
	})
}
