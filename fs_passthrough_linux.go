// fs_passthrough_linux.go lets the kernel read complete files by itself, straight from their temporary
// files (FUSE passthrough, Linux 6.9, Documentation/filesystems/fuse-passthrough). The library knows
// nothing of it: mount.go lets agree change its answer to INIT, and opens get an answer of their own.

package main

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/jacobsa/fuse/fuseops"
	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/fuse.h.
const (
	initExt         = 1 << 30 // in flags: there are flags2
	initPassthrough = 1 << 5  // in flags2
	openDirect      = 1 << 0
	openPassthrough = 1 << 7
	backingOpen     = 0x4010e501 // FUSE_DEV_IOC_BACKING_OPEN
	backingClose    = 0x4004e502
	requestHeader   = 40 // bytes
	answerHeader    = 16
)

// passthrough is what the mount and the kernel agreed on.
type passthrough struct {
	device int                    // the descriptor of /dev/fuse that ServeOps uses
	off    atomic.Pointer[string] // why the kernel reads nothing by itself; nil if it does
	opens  atomic.Int64
}

func (p *passthrough) stop(why string) { p.off.Store(&why) }

func (p *passthrough) String() string {
	if why := p.off.Load(); why != nil {
		return "off: " + *why
	}
	return "on, " + plural(p.opens.Load(), "open")
}

// agree accepts in answer, the library's to the kernel's init, what init offers. The backing
// files are on file systems that stack at most depth-1 others (2 at most).
func (p *passthrough) agree(init, answer []byte, depth uint32) {
	get, set := binary.NativeEndian.Uint32, binary.NativeEndian.PutUint32
	const flags, flags2 = requestHeader + 12, requestHeader + 16
	switch {
	case len(answer) != answerHeader+64:
		p.stop("the FUSE library answers in a way that this program does not know")
	case len(init) < flags2+4 || get(init[flags:])&initExt == 0 || get(init[flags2:])&initPassthrough == 0:
		p.stop("the kernel has none (Linux 6.9 and later do)")
	default:
		set(answer[answerHeader+12:], get(answer[answerHeader+12:])|initExt)
		set(answer[answerHeader+32:], initPassthrough)
		set(answer[answerHeader+36:], depth)
		p.off.Store(nil)
	}
}

// passOpen answers op, an open of a complete file that must stay whole, so that the kernel itself reads from
// the temporary file, and reports whether it did. The kernel refuses that while another kind of handle of the
// inode is open, and another kind beside it. The library's own answer comes too late then, and is dropped.
// REQUIRES: only the ServeOps loop calls it
func (fs *fileSystem) passOpen(v *fileVersion, op *fuseops.OpenFileOp) bool {
	p := &fs.passthrough
	if p.off.Load() != nil || v.unpassed > 0 || v.passed == 0 && !p.openBacking(v) {
		return false
	}
	v.passed++
	flags := uint32(openPassthrough)
	if op.OpenFlags&unix.O_DIRECT != 0 {
		flags |= openDirect // else the kernel asks the disk for what is unaligned, in vain
	}
	answer, order := make([]byte, 0, answerHeader+16), binary.NativeEndian
	answer = order.AppendUint32(answer, uint32(cap(answer)))
	answer = order.AppendUint32(answer, 0) // no error
	answer = order.AppendUint64(answer, op.OpContext.FuseID)
	answer = order.AppendUint64(answer, uint64(op.Handle|passedHandle))
	answer = order.AppendUint32(answer, flags)
	answer = order.AppendUint32(answer, v.backing)
	if _, err := unix.Write(p.device, answer); err != nil {
		fs.passRelease(v)
		return false
	}
	p.opens.Add(1)
	return true
}

// openBacking gives the kernel the temporary file of v.
func (p *passthrough) openBacking(v *fileVersion) bool {
	file := v.latest().Backing()
	if file == nil {
		return false
	}
	backing := [2]uint64{uint64(uint32(file.Fd()))} // struct fuse_backing_map
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(p.device), backingOpen, uintptr(unsafe.Pointer(&backing)))
	if errno != 0 {
		p.stop(fmt.Sprintf("the kernel refuses it: %v", errno))
		return false
	}
	v.backing = uint32(id)
	return true
}

// passRelease counts a handle out that passOpen answered. The kernel keeps a backing file no longer than
// its handles: else the space of a file that was closed would come back with the unmount only.
// REQUIRES: only the ServeOps loop calls it
func (fs *fileSystem) passRelease(v *fileVersion) {
	if v.passed--; v.passed == 0 {
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fs.passthrough.device), backingClose, uintptr(unsafe.Pointer(&v.backing)))
	}
}
