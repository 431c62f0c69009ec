// Tests of the file system without a mount: the tests make ops by hand and give
// them to the function that takes the kernel's. The kernel tests test what only a
// kernel can show: caching, signals, unmounting.

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jacobsa/fuse"
	"github.com/jacobsa/fuse/fuseops"
)

var fsTestTime = time.Date(2024, time.May, 6, 7, 8, 9, 0, time.UTC)

// newTestFS returns a file system with a file for each origin: "file-0", "file-1"
// and so on. The end of the test closes the stores.
func newTestFS(t *testing.T, mode ioMode, origins ...*scriptedOrigin) *fileSystem {
	t.Helper()
	var names []string
	for i := range origins {
		names = append(names, fmt.Sprintf("file-%d", i))
	}
	return newNamedTestFS(t, mode, names, origins...)
}

// newNamedTestFS is newTestFS with other names.
func newNamedTestFS(t *testing.T, mode ioMode, names []string, origins ...*scriptedOrigin) *fileSystem {
	t.Helper()
	config := testConfig(t.TempDir())
	log := newEventLog(io.Discard)
	t.Cleanup(func() { log.Close(time.Minute) })
	fs := newFileSystem(mode, config, log)
	for i, o := range origins {
		o.obj.ModTime = fsTestTime
		s := newTempFileStore(o, o.obj, config)
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		if _, err := fs.link(newFile(names[i], s)); err != nil {
			t.Fatal(err)
		}
	}
	return fs
}

// checkErrnos requires that the loop answers each of ops with want.
func checkErrnos(t *testing.T, fs *fileSystem, want error, ops ...any) {
	t.Helper()
	for _, op := range ops {
		if got := errnoOf(fs.perform(op, 0)); got != want {
			t.Errorf("%T %+v: got %v, want %v", op, op, got, want)
		}
	}
}

func downloadAll(t *testing.T, fs *fileSystem, i int) {
	t.Helper()
	s := fs.allFiles()[i].current.Load().latest()
	if _, err := s.ReadAt(t.Context(), make([]byte, s.Object().Size), 0); err != nil {
		t.Fatal(err)
	}
	if !s.Complete() {
		t.Fatal("the store is incomplete after a read of the whole file")
	}
}

func TestLookUpFindsEveryFileByName(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10), newStubOrigin(0), newStubOrigin(1<<40))
	for i, f := range fs.allFiles() {
		op := &fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: f.name()}
		if err := fs.perform(op, 0); err != nil {
			t.Fatalf("look up %s: %v", f.name(), err)
		}
		if want := firstFileInode + fuseops.InodeID(i); op.Entry.Child != want {
			t.Errorf("inode of %s: got %d, want %d", f.name(), op.Entry.Child, want)
		}
		got := op.Entry.Attributes
		if got.Size != uint64(f.current.Load().size) || got.Mode != 0o444 || got.Nlink != 1 || !got.Mtime.Equal(fsTestTime) ||
			got.Uid != uint32(os.Getuid()) || got.Gid != uint32(os.Getgid()) {
			t.Errorf("attributes of %s: got %+v, want size %d, mode 0444, one link, mtime %v and this user",
				f.name(), got, f.current.Load().size, fsTestTime)
		}
		get := &fuseops.GetInodeAttributesOp{Inode: op.Entry.Child}
		if err := fs.perform(get, 0); err != nil || get.Attributes != got {
			t.Errorf("attributes of %s by inode: got %+v, error %v, want %+v", f.name(), get.Attributes, err, got)
		}
	}
}

func TestLookUpOfUnknownNameIsENOENT(t *testing.T) {
	checkErrnos(t, newTestFS(t, ioAuto, newStubOrigin(10)), syscall.ENOENT,
		&fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: "file-1"},
		&fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: ""},
		&fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: "FILE-0"},
		&fuseops.LookUpInodeOp{Parent: firstFileInode, Name: "file-0"},
		&fuseops.LookUpInodeOp{Parent: 0, Name: "file-0"},
	)
}

func TestRootIsAReadOnlyDirectory(t *testing.T) {
	fs := newTestFS(t, ioAuto)
	op := &fuseops.GetInodeAttributesOp{Inode: fuseops.RootInodeID}
	if err := fs.perform(op, 0); err != nil || op.Attributes.Mode != os.ModeDir|0o555 || !op.Attributes.Mtime.Equal(fs.mounted) {
		t.Errorf("root: got %+v, error %v, want mode dr-xr-xr-x and the time of the mount", op.Attributes, err)
	}
}

func TestNamesAndAttributesAreCachedForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newTestFS(t, ioAuto, newStubOrigin(10))
		lookUp := &fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: "file-0"}
		attributes := &fuseops.GetInodeAttributesOp{Inode: firstFileInode}
		for _, op := range []any{lookUp, attributes} {
			if err := fs.perform(op, 0); err != nil {
				t.Fatal(err)
			}
		}
		for _, got := range []time.Time{lookUp.Entry.EntryExpiration, lookUp.Entry.AttributesExpiration, attributes.AttributesExpiration} {
			if left := time.Until(got); left != expiry {
				t.Errorf("expiry: got %v, want %v", left, expiry)
			}
		}
		openDir := &fuseops.OpenDirOp{}
		if err := fs.perform(openDir, 0); err != nil || !openDir.CacheDir || !openDir.KeepCache {
			t.Errorf("open directory: got %+v, error %v, want CacheDir and KeepCache", openDir, err)
		}
	})
}

// dirEntry is a fuse_dirent (linux/fuse.h). For READDIRPLUS it has the size from the
// fuse_entry_out before it.
type dirEntry struct {
	inode, next uint64
	kind        uint32
	name        string
	size        uint64
}

// decodeEntry decodes the first entry of b. With plus, a fuse_entry_out precedes
// the entry: 128 bytes, with the size at 48.
func decodeEntry(b []byte, plus bool) (e dirEntry, rest []byte) {
	if plus {
		e.size = binary.NativeEndian.Uint64(b[48:])
		b = b[128:]
	}
	length := binary.NativeEndian.Uint32(b[16:])
	e.inode, e.next = binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:])
	e.kind, e.name = binary.NativeEndian.Uint32(b[20:]), string(b[24:24+length])
	return e, b[(24+length+7)/8*8:]
}

// listDir reads a directory from offset to its end, with buffers of size bytes.
func listDir(t *testing.T, fs *fileSystem, dir fuseops.InodeID, offset fuseops.DirOffset, size int, plus bool) (entries []dirEntry) {
	t.Helper()
	for range 1000 {
		op := &fuseops.ReadDirPlusOp{}
		op.Inode, op.Offset, op.Dst = dir, offset, make([]byte, size)
		var either any = &op.ReadDirOp
		if plus {
			either = op
		}
		if err := fs.perform(either, 0); err != nil {
			t.Fatal(err)
		}
		if op.BytesRead == 0 {
			return entries
		}
		for b := op.Dst[:op.BytesRead]; len(b) > 0; {
			var e dirEntry
			e, b = decodeEntry(b, plus)
			entries = append(entries, e)
			offset = fuseops.DirOffset(e.next)
		}
	}
	t.Fatal("1000 reads have not reached the end of the directory")
	return nil
}

func TestReadDirPagesThroughBuffersOfAnySize(t *testing.T) {
	var origins []*scriptedOrigin
	var names []string
	for i := range 20 { // up to 40 bytes: a short name may fit where a longer one before it did not
		origins = append(origins, newStubOrigin(int64(i)*1000))
		names = append(names, fmt.Sprintf("%02d-%s", i, strings.Repeat("x", 37-i*13%38)))
	}
	fs := newNamedTestFS(t, ioAuto, names, origins...)
	for plus, least := range map[bool]int{false: 24 + 40, true: 128 + 24 + 40} {
		for _, size := range []int{least, least + 1, 2*least - 1, 2 * least, 7*least + 3, 1 << 16} {
			entries := listDir(t, fs, fuseops.RootInodeID, 0, size, plus)
			if len(entries) != 2+len(origins) {
				t.Fatalf("entries (buffer of %d bytes, plus %v): got %d, want %d", size, plus, len(entries), 2+len(origins))
			}
			for i, name := range []string{".", ".."} {
				if want := (dirEntry{inode: fuseops.RootInodeID, next: uint64(i + 1), kind: syscall.DT_DIR, name: name}); entries[i] != want {
					t.Errorf("entry %d (buffer of %d bytes, plus %v): got %+v, want %+v", i, size, plus, entries[i], want)
				}
			}
			for i, e := range entries[2:] {
				want := dirEntry{inode: uint64(firstFileInode + i), next: uint64(i + 3), kind: syscall.DT_REG, name: names[i]}
				if plus {
					want.size = uint64(origins[i].obj.Size)
				}
				if e != want {
					t.Errorf("entry %d (buffer of %d bytes, plus %v): got %+v, want %+v", i, size, plus, e, want)
				}
			}
		}
		if entries := listDir(t, fs, fuseops.RootInodeID, 2, least-1, plus); len(entries) != 0 {
			t.Errorf("entries (buffer of %d bytes, plus %v): got %d, want 0", least-1, plus, len(entries))
		}
	}
}

func TestReadDirBeyondTheEndIsEmpty(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10))
	for _, offset := range []fuseops.DirOffset{3, 4, 1 << 40, 1<<64 - 1} {
		for _, plus := range []bool{false, true} {
			if entries := listDir(t, fs, fuseops.RootInodeID, offset, 4096, plus); len(entries) != 0 {
				t.Errorf("entries from offset %d (plus %v): got %+v, want none", offset, plus, entries)
			}
		}
	}
}

func TestStatFSShowsAFullDiskOfAllSizes(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(0), newStubOrigin(1), newStubOrigin(4096), newStubOrigin(4097))
	op := &fuseops.StatFSOp{}
	if err := fs.perform(op, 0); err != nil {
		t.Fatal(err)
	}
	want := fuseops.StatFSOp{BlockSize: 4096, IoSize: 4096, Blocks: 0 + 1 + 1 + 2, Inodes: 5}
	if *op != want {
		t.Errorf("statfs: got %+v, want %+v", *op, want)
	}
}

func TestHandleIsDirectUntilTheFileIsComplete(t *testing.T) {
	for _, tt := range []struct {
		mode             ioMode
		complete, direct bool
	}{
		{ioAuto, false, true},
		{ioAuto, true, false},
		{ioDirect, false, true},
		{ioDirect, true, true},
		{ioBuffered, false, false},
		{ioBuffered, true, false},
	} {
		fs := newTestFS(t, tt.mode, newStubOrigin(1000))
		if tt.complete {
			downloadAll(t, fs, 0)
		}
		op := &fuseops.OpenFileOp{Inode: firstFileInode, OpContext: fuseops.OpContext{Pid: uint32(os.Getpid())}}
		if err := fs.perform(op, 0); err != nil {
			t.Fatal(err)
		}
		unseen := &fuseops.OpenFileOp{Inode: firstFileInode, OpContext: fuseops.OpContext{Pid: nobodysPid}}
		if err := fs.perform(unseen, 0); err != nil {
			t.Fatal(err)
		}
		if unseen.UseDirectIO != (tt.mode == ioDirect) || !unseen.KeepPageCache {
			t.Errorf("%s, complete %v, by a program that cannot be seen: got direct %v, keep %v", tt.mode, tt.complete, unseen.UseDirectIO, unseen.KeepPageCache)
		}
		if op.UseDirectIO != tt.direct || !op.KeepPageCache {
			t.Errorf("%s, complete %v: got direct %v, keep %v, want %v, true", tt.mode, tt.complete, op.UseDirectIO, op.KeepPageCache, tt.direct)
		}
	}
}

func TestMetadataNeverTouchesTheOrigin(t *testing.T) {
	origin := newScriptedOrigin(Object{Size: 1000})
	checkErrnos(t, newTestFS(t, ioAuto, origin), nil,
		&fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: "file-0"},
		&fuseops.GetInodeAttributesOp{Inode: firstFileInode},
		&fuseops.OpenFileOp{Inode: firstFileInode},
		&fuseops.OpenDirOp{Inode: fuseops.RootInodeID},
		&fuseops.ReadDirOp{Inode: fuseops.RootInodeID, Dst: make([]byte, 4096)},
		&fuseops.StatFSOp{},
		&fuseops.ForgetInodeOp{}, &fuseops.BatchForgetOp{}, &fuseops.SyncFileOp{},
		&fuseops.ReleaseFileHandleOp{Handle: firstFileInode}, &fuseops.ReleaseDirHandleOp{}, &fuseops.ListXattrOp{},
	)
	if n := len(origin.all()); n != 0 {
		t.Errorf("requests for metadata: got %d, want 0", n)
	}
}

func TestEveryWriteIsEROFS(t *testing.T) {
	size := uint64(0)
	checkErrnos(t, newTestFS(t, ioAuto, newStubOrigin(10)), syscall.EROFS,
		&fuseops.SetInodeAttributesOp{Inode: firstFileInode, Size: &size},
		&fuseops.MkDirOp{}, &fuseops.MkNodeOp{}, &fuseops.CreateFileOp{}, &fuseops.CreateSymlinkOp{},
		&fuseops.CreateLinkOp{}, &fuseops.RenameOp{}, &fuseops.RmDirOp{}, &fuseops.UnlinkOp{},
		&fuseops.WriteFileOp{Inode: firstFileInode, Data: []byte("x")},
		&fuseops.SetXattrOp{}, &fuseops.RemoveXattrOp{}, &fuseops.FallocateOp{},
	)
}

func TestUnknownOpIsENOSYS(t *testing.T) {
	checkErrnos(t, newTestFS(t, ioAuto), syscall.ENOSYS,
		&fuseops.FlushFileOp{}, &fuseops.GetXattrOp{},
		&fuseops.ReadSymlinkOp{}, &fuseops.SyncFSOp{}, &struct{}{}, nil,
	)
}

func TestUnknownInodeIsENOENT(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10), newStubOrigin(10))
	for _, inode := range []fuseops.InodeID{0, firstFileInode + 2, controlInode - 1, controlInode + 8, 1<<64 - 1} {
		read := &fuseops.ReadFileOp{Inode: inode, Size: 1}
		checkErrnos(t, fs, syscall.ENOENT, read,
			&fuseops.GetInodeAttributesOp{Inode: inode}, &fuseops.OpenFileOp{Inode: inode})
		if err := errnoOf(readWaiting(fs, t.Context(), nobodysPid, read)); err != syscall.ENOENT {
			t.Errorf("waiting read of inode %d: got %v, want ENOENT", inode, err)
		}
	}
	checkErrnos(t, fs, syscall.ENOENT,
		&fuseops.OpenFileOp{Inode: fuseops.RootInodeID}, &fuseops.ReadFileOp{Inode: fuseops.RootInodeID})
}

func TestErrnoOf(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("read: %w", fmt.Errorf("fetch: %w", err)) }
	for err, want := range map[error]syscall.Errno{
		errInterrupted: syscall.EINTR, context.Canceled: syscall.EIO,
		errStopping: syscall.EIO, errClosed: syscall.EIO, errReadTimeout: syscall.EIO,
		errChanged: syscall.ESTALE,
		errPanic:   syscall.EIO, errShortBody: syscall.EIO, errLongBody: syscall.EIO, errNoSize: syscall.EIO,
		io.EOF: syscall.EIO, io.ErrUnexpectedEOF: syscall.EIO, context.DeadlineExceeded: syscall.EIO,
		errors.New("any"): syscall.EIO, statusError{code: 404}: syscall.EIO,
		syscall.ENOENT: syscall.ENOENT, syscall.EROFS: syscall.EROFS, syscall.ENOSYS: syscall.ENOSYS,
		syscall.ENOSPC: syscall.ENOSPC, syscall.EDQUOT: syscall.EDQUOT, syscall.EFBIG: syscall.EFBIG,
		&os.PathError{Op: "write", Path: "f", Err: syscall.ENOSPC}: syscall.ENOSPC,
		syscall.ECONNREFUSED: syscall.EIO, syscall.ECONNRESET: syscall.EIO, syscall.EAGAIN: syscall.EIO,
		syscall.Errno(0): syscall.EIO,
	} {
		for _, err := range []error{err, wrap(err)} {
			if got := errnoOf(err); got != want {
				t.Errorf("errnoOf(%v): got %v, want %v", err, got, want)
			}
		}
	}
	if err := errnoOf(nil); err != nil {
		t.Errorf("errnoOf(nil): got %v, want nil", err)
	}
}

func TestTransientErrorsOfTheKernel(t *testing.T) {
	for err, want := range map[error]bool{
		syscall.ENOENT: true, syscall.EAGAIN: true, &os.PathError{Op: "read", Err: syscall.EINTR}: true,
		syscall.ENODEV: false, syscall.EIO: false, io.EOF: false, fuse.EINVAL: false,
	} {
		if got := transient(err); got != want {
			t.Errorf("transient(%v): got %v, want %v", err, got, want)
		}
	}
}

// A read of a file with an empty store panics.
func TestPanicInOneOpIsEIO(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10))
	v := &fileVersion{file: &node{path: "/with an empty store"}}
	v.store.Store(new(TempFileStore))
	fs.versions[firstFileInode+1] = v
	var out bytes.Buffer
	fs.log = newEventLog(&out)
	broken := &fuseops.ReadFileOp{Inode: firstFileInode + 1, Size: 1}
	for _, run := range []func() error{
		func() error { return fs.perform(broken, 0) },
		func() error { return readWaiting(fs, t.Context(), nobodysPid, broken) },
	} {
		if err := fs.guard(broken, run); err != errPanic || errnoOf(err) != syscall.EIO {
			t.Errorf("the op that panicked: got %v, %v, want errPanic, EIO", err, errnoOf(err))
		}
	}
	next := &fuseops.GetInodeAttributesOp{Inode: firstFileInode}
	if err := fs.guard(next, func() error { return fs.perform(next, 0) }); err != nil || next.Attributes.Size != 10 {
		t.Errorf("the next op: got %+v, error %v, want size 10, no error", next.Attributes, err)
	}
	fs.log.Close(time.Minute)
	for _, want := range []string{"panic in *fuseops.ReadFileOp: ", "nil pointer", "(*fileSystem).readReady(", "(*fileSystem).read(", "fs.go:"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("log: got %s, want %q in it", out.String(), want)
		}
	}
}

func TestGuardPassesErrorsOn(t *testing.T) {
	fs := newTestFS(t, ioAuto)
	for _, want := range []error{nil, errMustWait, syscall.EROFS} {
		if got := fs.guard(nil, func() error { return want }); got != want {
			t.Errorf("guard: got %v, want %v", got, want)
		}
	}
}
