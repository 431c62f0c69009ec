// fs_dir.go has the tree of names, which files join and leave while it is mounted. It
// answers ops on names: lookup, attributes, listings, open and release. It decides what
// the kernel caches.

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
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

	// firstPlace is where a listing has the first entry behind "." and "..".
	firstPlace fuseops.DirOffset = 2

	// expiry is how long the kernel may keep attributes, which never change for an
	// inode, and names, unless they follow changes.
	expiry = 24 * time.Hour
)

// node is a name of the mount. It never moves.
type node struct {
	// Write once, before others see it.
	path   string // "" for the root, else with a slash before each part
	parent *node  // the root's is the root
	place  fuseops.DirOffset
	file   *namedFile      // nil for a directory and for a control file
	inode  fuseops.InodeID // of these two
	mode   os.FileMode     // of these two

	// Read write. INVARIANT: children ascend by place, and none gets the place of another, ever.
	// So a listing that goes on behind a place has each child once that was there all the time.
	children []*node // GUARDED_BY(fileSystem.mu)
	subdirs  uint32  // GUARDED_BY(fileSystem.mu); among children
}

// compare compares n's place with another.
func (n *node) compare(other fuseops.DirOffset) int { return cmp.Compare(n.place, other) }

// find returns the node of a file or directory by the name that people give it, nil for none.
//
// LOCKS_EXCLUDED(fs.mu)
func (fs *fileSystem) find(name string) *node {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.nodes["/"+name]
}

// allFiles returns the files in the order in which they came.
//
// LOCKS_EXCLUDED(fs.mu)
func (fs *fileSystem) allFiles() (all []*namedFile) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, n := range fs.nodes {
		if n.file != nil {
			all = append(all, n.file)
		}
	}
	slices.SortFunc(all, func(a, b *namedFile) int { return a.node.compare(b.node.place) })
	return all
}

// link puts f into the tree, with the directories that it needs, and returns the new nodes.
//
// LOCKS_EXCLUDED(fs.mu)
func (fs *fileSystem) link(f *namedFile) (fresh []*node, err error) {
	v, at := f.current.Load(), "/"+f.name
	fs.adopt(v)
	fs.mu.Lock()
	var missing []string
	for ; fs.nodes[at] == nil; at = at[:strings.LastIndexByte(at, '/')] {
		missing = append(missing, at)
	}
	parent := fs.nodes[at]
	if len(missing) == 0 || parent.file != nil {
		fs.mu.Unlock()
		fs.forget(v.inode, 0)
		return nil, fmt.Errorf("the mount has %q already: write another NAME=, or remove that with fsmount rm", at[1:])
	}
	for i, at := range slices.Backward(missing) {
		fs.lastPlace++
		n := &node{path: at, parent: parent, place: fs.lastPlace}
		if i == 0 {
			n.file, f.node = f, n
		} else {
			fs.lastInode++
			n.inode, n.mode = fs.lastInode, os.ModeDir|0o555
			fs.inodes[n.inode] = n
			parent.subdirs++
		}
		fs.nodes[at] = n
		parent.children = append(parent.children, n)
		fresh, parent = append(fresh, n), n
	}
	fs.mu.Unlock()
	return fresh, nil
}

// unlink takes f out of the tree, and the directories that it was the last file of. It
// returns their nodes, none if f was not there.
//
// LOCKS_EXCLUDED(fs.mu)
func (fs *fileSystem) unlink(f *namedFile) (gone []*node) {
	fs.mu.Lock()
	for n := f.node; fs.nodes[n.path] == n && n.parent != n && len(n.children) == 0; n = n.parent {
		siblings := n.parent.children
		i, _ := slices.BinarySearchFunc(siblings, n.place, (*node).compare)
		n.parent.children = slices.Delete(siblings, i, i+1)
		if n.file == nil {
			n.parent.subdirs--
		}
		delete(fs.nodes, n.path)
		gone = append(gone, n)
	}
	fs.mu.Unlock()
	fs.forget(f.current.Load().inode, 0)
	for _, n := range gone {
		fs.forget(n.inode, 0)
	}
	return gone
}

// remove is the verb that takes f out of the mount. Programs that have f open read on.
//
// BLOCKS as tellKernel does.
func (fs *fileSystem) remove(_ context.Context, f *namedFile) (text string, err error) {
	fs.tellKernel(func() {}, fs.unlink(f)...)
	fs.log.printf("removed %q", f.name)
	return "removed", nil
}

// nameOf returns the name of an inode for people.
func (fs *fileSystem) nameOf(inode fuseops.InodeID) string {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if v := fs.versions[inode]; v != nil {
		return v.file.name
	}
	if n := fs.inodes[inode]; n != nil && n.path != "" {
		return n.path[1:]
	}
	return "/"
}

func (fs *fileSystem) lookUp(op *fuseops.LookUpInodeOp) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	dir := fs.inodes[op.Parent]
	if dir == nil {
		return syscall.ENOENT
	}
	n := fs.nodes[dir.path+"/"+op.Name]
	if n == nil || n.parent != dir { // a directory that was removed may have a successor
		return syscall.ENOENT
	}
	op.Entry = fs.entryLocked(n)
	fs.lookups[op.Entry.Child]++
	return nil
}

func (fs *fileSystem) getAttributes(op *fuseops.GetInodeAttributesOp) error {
	op.AttributesExpiration = time.Now().Add(expiry)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if n := fs.inodes[op.Inode]; n != nil {
		op.Attributes = fs.entryLocked(n).Attributes
		return nil
	}
	if v := fs.versions[op.Inode]; v != nil {
		op.Attributes = fs.entry(v).Attributes
		return nil
	}
	return syscall.ENOENT
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
			fs.lookups[e.Entry.Child]++
		}
		return n
	})
	return nil
}

// list writes the entries of a directory from offset on into dst, until write returns 0
// because there is no room, and returns how many bytes that took: "." and "..", then its
// names in the order in which they came. The root does not list the control directory, so
// that a program that copies the mount does not copy it. It calls write under fs.mu.
func (fs *fileSystem) list(inode fuseops.InodeID, offset fuseops.DirOffset, dst []byte,
	write func(dst []byte, e fuseutil.DirentPlus) int) (n int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	dir := fs.inodes[inode]
	for dir != nil {
		d := fuseutil.Dirent{Offset: offset + 1, Inode: inode, Name: ".", Type: fuseutil.DT_Directory}
		var entry fuseops.ChildInodeEntry // without an inode: the kernel looks neither of the two up
		if offset == 1 {
			d.Name, d.Inode = "..", dir.parent.inode
		}
		if offset >= firstPlace {
			i, _ := slices.BinarySearchFunc(dir.children, offset, (*node).compare)
			if i == len(dir.children) {
				break
			}
			child := dir.children[i]
			entry = fs.entryLocked(child)
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
		if n.file != nil {
			op.Blocks += (uint64(n.file.current.Load().size) + block - 1) / block
		}
		if n.inode < controlInode {
			op.Inodes++
		}
	}
	return nil
}

// entryLocked is n's entry: of a file for its present version.
//
// LOCKS_REQUIRED(fs.mu)
func (fs *fileSystem) entryLocked(n *node) fuseops.ChildInodeEntry {
	if n.file != nil {
		return fs.entry(n.file.current.Load())
	}
	attributes := fs.attributes(n.mode, 0, fs.mounted)
	if n.mode.IsDir() {
		attributes.Nlink = 2 + n.subdirs
	}
	return cachedEntry(n.inode, attributes)
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
