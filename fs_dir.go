// fs_dir.go has the tree of names, which files join and leave while it is mounted. It answers ops
// on names: lookup, attributes, listings, open and release. It decides what the kernel caches.

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jacobsa/fuse/fuseops"
	"github.com/jacobsa/fuse/fuseutil"
)

const (
	firstFileInode                  = fuseops.RootInodeID + 1 // the inode number of the first file. The root has 1.
	wholeHandle    fuseops.HandleID = 1 << 61                 // marks the handles for which a complete file stays whole
	passedHandle   fuseops.HandleID = 1 << 60                 // marks those of them that passOpen answered

	handleKinds                   = wholeHandle | passedHandle
	firstPlace  fuseops.DirOffset = 2 // where a listing has the first entry behind "." and ".."
	// expiry is how long the kernel may keep attributes, which never change for an
	// inode, and names, unless they follow changes.
	expiry = 24 * time.Hour
)

// node is a name of the mount. It never moves.
type node struct {
	// Write once, before others see it.
	path   string // "" for the root, else with a slash before each part
	parent *node  // the root's is the root; nil until link has put a file into the tree
	place  fuseops.DirOffset
	mode   os.FileMode
	sha256 string // that the bytes of a file must have, in hex; "" for any

	// Read write.
	current    atomic.Pointer[fileVersion]
	hashed     *TempFileStore // whose bytes were compared with sha256 last; only verifySums uses it
	mismatches atomic.Int32   // how often in a row they had another; above 0 opens fail
	// INVARIANT: children ascend by place, and none gets the place of another, ever.
	// So a listing that goes on behind a place has each child once that was there all the time.
	children []*node // GUARDED_BY(fileSystem.mu)
	subdirs  uint32  // GUARDED_BY(fileSystem.mu); among children
}

func (n *node) compare(other fuseops.DirOffset) int { return cmp.Compare(n.place, other) }

func (n *node) name() string { return strings.TrimPrefix(n.path, "/") }

func (n *node) inode() fuseops.InodeID { return n.current.Load().inode }

// find returns the node of a file or directory by its name, nil for none, and whether it is a file.
func (fs *fileSystem) find(name string) (n *node, isFile bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n = fs.nodes["/"+name]
	return n, n != nil && n.current.Load().isFile()
}

// setLocked puts n, a directory or a control file, into the tree.
// REQUIRES: fs.mu is held, but for the root and the control files
func (fs *fileSystem) setLocked(n *node, mode os.FileMode, inode fuseops.InodeID) {
	v := &fileVersion{file: n, inode: inode, mtime: fs.mounted}
	n.mode = mode
	n.current.Store(v)
	fs.nodes[n.path], fs.versions[inode] = n, v
}

// allFiles returns the files in the order in which they came.
func (fs *fileSystem) allFiles() (all []*node) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, n := range fs.nodes {
		if n.current.Load().isFile() {
			all = append(all, n)
		}
	}
	slices.SortFunc(all, func(a, b *node) int { return a.compare(b.place) })
	return all
}

// link puts f into the tree, with the directories that it needs, and returns the new nodes.
func (fs *fileSystem) link(f *node) (fresh []*node, err error) {
	v, at := f.current.Load(), f.path
	fs.adopt(v)
	fs.mu.Lock()
	var missing []string
	for ; fs.nodes[at] == nil; at = at[:strings.LastIndexByte(at, '/')] {
		missing = append(missing, at)
	}
	parent := fs.nodes[at]
	if len(missing) == 0 || !parent.mode.IsDir() {
		fs.mu.Unlock()
		fs.forget(v.inode, 0)
		return nil, fmt.Errorf("the mount has %q already: write another NAME=, or remove that with fsmount rm", at[1:])
	}
	for i, at := range slices.Backward(missing) {
		n := f
		if i > 0 {
			n = &node{path: at}
			fs.lastInode++
			fs.setLocked(n, os.ModeDir|0o555, fs.lastInode)
			parent.subdirs++
		}
		fs.lastPlace++
		fs.nodes[at], n.parent, n.place = n, parent, fs.lastPlace
		parent.children = append(parent.children, n)
		fresh, parent = append(fresh, n), n
	}
	fs.mu.Unlock()
	return fresh, nil
}

// unlink takes f out of the tree, and the directories that it was the last file of. It
// returns their nodes, none if f was not there.
func (fs *fileSystem) unlink(f *node) (gone []*node) {
	fs.mu.Lock()
	for n := f; fs.nodes[n.path] == n && n.parent != n && len(n.children) == 0; n = n.parent {
		siblings := n.parent.children
		i, _ := slices.BinarySearchFunc(siblings, n.place, (*node).compare)
		n.parent.children = slices.Delete(siblings, i, i+1)
		if n.mode.IsDir() {
			n.parent.subdirs--
		}
		delete(fs.nodes, n.path)
		gone = append(gone, n)
	}
	fs.mu.Unlock()
	for _, n := range gone {
		fs.forget(n.inode(), 0)
	}
	return gone
}

// remove is the verb that takes f out of the mount. Programs that have f open read on. BLOCKS as tellKernel does.
func (fs *fileSystem) remove(_ context.Context, f *node) (text string, err error) {
	fs.tellKernel(func() {}, fs.unlink(f)...)
	fs.log.printf("removed %q", f.name())
	return "removed", nil
}

// nameOf returns the name of an inode for people.
func (fs *fileSystem) nameOf(inode fuseops.InodeID) string {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if v := fs.versions[inode]; v != nil {
		return cmp.Or(v.file.name(), "/")
	}
	return "/"
}

func (fs *fileSystem) lookUp(op *fuseops.LookUpInodeOp) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	dir := fs.versions[op.Parent]
	if dir == nil {
		return syscall.ENOENT
	}
	n := fs.nodes[dir.file.path+"/"+op.Name]
	if n == nil || n.parent != dir.file { // a directory that was removed may have a successor
		return syscall.ENOENT
	}
	v := n.current.Load()
	op.Entry = fs.entryLocked(v)
	v.lookups++
	return nil
}

func (fs *fileSystem) getAttributes(op *fuseops.GetInodeAttributesOp) error {
	op.AttributesExpiration = time.Now().Add(expiry)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	v := fs.versions[op.Inode]
	if v == nil {
		return syscall.ENOENT
	}
	op.Attributes = fs.entryLocked(v).Attributes
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
		if n > 0 && e.Entry.Child != 0 {
			fs.versions[e.Entry.Child].lookups++
		}
		return n
	})
	return nil
}

// list writes the entries of a directory from offset on into dst, until write returns 0 because there is no room, and
// returns how many bytes that took: "." and "..", then its names in the order in which they came. The root does not
// list the control directory, so that a program that copies the mount does not copy it. It calls write under fs.mu.
func (fs *fileSystem) list(inode fuseops.InodeID, offset fuseops.DirOffset, dst []byte,
	write func(dst []byte, e fuseutil.DirentPlus) int) (n int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	v := fs.versions[inode]
	for v != nil {
		dir := v.file
		d := fuseutil.Dirent{Offset: offset + 1, Inode: inode, Name: ".", Type: fuseutil.DT_Directory}
		var entry fuseops.ChildInodeEntry // without an inode: the kernel looks neither of the two up
		if offset == 1 {
			d.Name, d.Inode = "..", dir.parent.inode()
		}
		if offset >= firstPlace {
			i, _ := slices.BinarySearchFunc(dir.children, offset, (*node).compare)
			if i == len(dir.children) {
				break
			}
			child := dir.children[i]
			entry = fs.entryLocked(child.current.Load())
			d.Offset, d.Name, d.Inode = child.place+1, path.Base(child.path), entry.Child
			if !child.mode.IsDir() {
				d.Type = fuseutil.DT_File
			}
		}
		wrote := write(dst[n:], fuseutil.DirentPlus{Entry: entry, Dirent: d})
		if wrote == 0 {
			break
		}
		n, offset = n+wrote, d.Offset
	}
	return n
}

// statFS reports the size of all files together, so that df shows a full disk.
func (fs *fileSystem) statFS(op *fuseops.StatFSOp) error {
	const block = 4096
	op.BlockSize, op.IoSize = block, block
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, n := range fs.nodes {
		v := n.current.Load()
		op.Blocks += (uint64(v.size) + block - 1) / block
		if v.inode < controlInode {
			op.Inodes++
		}
	}
	return nil
}

// entryLocked is v's entry, which the kernel may keep for expiry. Under follow the kernel looks the
// name of a file up before each use: what it keeps may stand for a version that is gone.
func (fs *fileSystem) entryLocked(v *fileVersion) fuseops.ChildInodeEntry {
	until := time.Now().Add(expiry)
	entry := fuseops.ChildInodeEntry{
		Child: v.inode,
		Attributes: fuseops.InodeAttributes{
			Size:  uint64(v.size),
			Nlink: 1,
			Mode:  v.file.mode,
			Atime: v.mtime, Mtime: v.mtime, Ctime: v.mtime, Crtime: v.mtime,
			Uid: uint32(os.Getuid()),
			Gid: uint32(os.Getgid()),
		},
		AttributesExpiration: until,
		EntryExpiration:      until,
	}
	if v.file.mode.IsDir() {
		entry.Attributes.Nlink = 2 + v.file.subdirs
	}
	if fs.follow && v.isFile() {
		entry.EntryExpiration = time.Time{}
	}
	return entry
}

// openFile decides how the kernel caches the handle. A waiting read that goes through the page cache
// holds a page, and everyone who opens the file or reads that page then hangs with it. So a handle of
// an incomplete file uses direct I/O, unless the program that opens it cannot be seen: then nobody can
// tell which signal kills it, and in the page cache the kernel itself lets SIGKILL, and no other
// signal, end a wait. KeepPageCache is set: without it an open waits for every page of the file that is
// being read. Only the first open after a Forget drops the pages, while no other handle is open.
//
// At ESTALE the kernel looks the name up again and opens what it finds (path_openat in fs/namei.c, LOOKUP_REVAL).
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
		if fs.passOpen(v, op) {
			return nil
		}
	}
	v.unpassed++
	op.UseDirectIO = fs.io == ioDirect || fs.io == ioAuto && !complete && canSee(op.OpContext.Pid)
	op.KeepPageCache = !store.TakeStale()
	return nil
}

func (fs *fileSystem) releaseFile(op *fuseops.ReleaseFileHandleOp) error {
	if fs.control.release(op.Handle) {
		return nil
	}
	v, err := fs.version(fuseops.InodeID(op.Handle &^ handleKinds))
	if err != nil {
		return err
	}
	if op.Handle&passedHandle != 0 {
		fs.passRelease(v)
	} else {
		v.unpassed--
	}
	if op.Handle&wholeHandle != 0 {
		v.latest().LetGo()
	}
	v.latest().DropHandle()
	return nil
}
