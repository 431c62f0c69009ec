// Tests of the file system without a mount: ops made by hand go through the
// same dispatch that the kernel's do. What only a kernel can show (caching,
// signals, unmounting) is tested elsewhere.

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
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jacobsa/fuse"
	"github.com/jacobsa/fuse/fuseops"
)

// stubOrigin is an Origin of the content of testSeed. Its body stops before
// byte holdAt, if that is not negative, until resume is closed.
type stubOrigin struct {
	size   int64
	holdAt int64
	resume chan struct{}
	opened atomic.Int64
}

func newStubOrigin(size int64) *stubOrigin {
	return &stubOrigin{size: size, holdAt: -1, resume: make(chan struct{})}
}

func newHeldStubOrigin(size, holdAt int64) *stubOrigin {
	return &stubOrigin{size: size, holdAt: holdAt, resume: make(chan struct{})}
}

func (o *stubOrigin) Stat(context.Context) (Object, error) { return Object{Size: o.size}, nil }

func (o *stubOrigin) Open(ctx context.Context, _ Object, r byteRange) (io.ReadCloser, error) {
	o.opened.Add(1)
	return io.NopCloser(&stubBody{ctx: ctx, o: o, r: r}), nil
}

func (o *stubOrigin) String() string { return "stub origin" }

type stubBody struct {
	ctx context.Context
	o   *stubOrigin
	r   byteRange // what is left
}

// Read BLOCKS at holdAt until resume is closed; wakes on that and on the end
// of ctx.
func (b *stubBody) Read(p []byte) (int, error) {
	if b.r.empty() {
		return 0, io.EOF
	}
	end := b.r.end
	if b.r.off < b.o.holdAt {
		end = min(end, b.o.holdAt)
	} else if b.r.off == b.o.holdAt {
		select {
		case <-b.o.resume:
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
	p = p[:min(int64(len(p)), end-b.r.off)]
	fillContent(p, testSeed, b.r.off)
	b.r.off += int64(len(p))
	return len(p), nil
}

var fsTestTime = time.Date(2024, time.May, 6, 7, 8, 9, 0, time.UTC)

// newTestFS has a file for each origin: "file-0", "file-1" and so on, closed
// when the test ends.
func newTestFS(t *testing.T, mode ioMode, origins ...*stubOrigin) *fileSystem {
	t.Helper()
	files := make([]*fileVersion, len(origins))
	for i, o := range origins {
		s := newTempFileStore(o, Object{Size: o.size, ModTime: fsTestTime}, testConfig(t.TempDir()))
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		files[i] = newFileVersion(fmt.Sprintf("file-%d", i), s)
	}
	l := newEventLog(io.Discard)
	t.Cleanup(func() { l.Close(time.Minute) })
	return newFileSystem(files, mode, l, nil)
}

func downloadAll(t *testing.T, fs *fileSystem, i int) {
	t.Helper()
	s := fs.dir.Load().files[i].store
	if _, err := s.ReadAt(t.Context(), make([]byte, s.Size()), 0); err != nil {
		t.Fatal(err)
	}
	if !s.Complete() {
		t.Fatal("the file is not complete after the whole of it was read")
	}
}

func TestLookUpFindsEveryFileByName(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10), newStubOrigin(0), newStubOrigin(1<<40))
	for i, f := range fs.dir.Load().files {
		op := &fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: f.name}
		if err := fs.perform(op, 0); err != nil {
			t.Fatalf("look up %s: %v", f.name, err)
		}
		if want := firstFileInode + fuseops.InodeID(i); op.Entry.Child != want {
			t.Errorf("%s has inode %d, want %d", f.name, op.Entry.Child, want)
		}
		checkFileAttributes(t, op.Entry.Attributes, f.store.Size())
		get := &fuseops.GetInodeAttributesOp{Inode: op.Entry.Child}
		if err := fs.perform(get, 0); err != nil || get.Attributes != op.Entry.Attributes {
			t.Errorf("%s: attributes %+v, %v; by look-up %+v", f.name, get.Attributes, err, op.Entry.Attributes)
		}
	}
}

func checkFileAttributes(t *testing.T, got fuseops.InodeAttributes, size int64) {
	t.Helper()
	if got.Size != uint64(size) || got.Mode != 0o444 || got.Nlink != 1 || !got.Mtime.Equal(fsTestTime) ||
		got.Uid != uint32(os.Getuid()) || got.Gid != uint32(os.Getgid()) {
		t.Errorf("attributes %+v, want size %d, 0444, one link, mtime %v and this user", got, size, fsTestTime)
	}
}

func TestLookUpOfWhatIsNotThereIsENOENT(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10))
	for _, op := range []*fuseops.LookUpInodeOp{
		{Parent: fuseops.RootInodeID, Name: "file-1"},
		{Parent: fuseops.RootInodeID, Name: ""},
		{Parent: fuseops.RootInodeID, Name: "FILE-0"},
		{Parent: firstFileInode, Name: "file-0"},
		{Parent: 0, Name: "file-0"},
	} {
		if err := errnoOf(fs.perform(op, 0)); err != syscall.ENOENT {
			t.Errorf("look up %q in %d: %v, want ENOENT", op.Name, op.Parent, err)
		}
	}
}

func TestRootIsAReadOnlyDirectory(t *testing.T) {
	fs := newTestFS(t, ioAuto)
	op := &fuseops.GetInodeAttributesOp{Inode: fuseops.RootInodeID}
	if err := fs.perform(op, 0); err != nil || op.Attributes.Mode != os.ModeDir|0o555 || !op.Attributes.Mtime.Equal(fs.mounted) {
		t.Errorf("root: %v, %+v; want mode dr-xr-xr-x and the time of the mount", err, op.Attributes)
	}
}

func TestNamesAndAttributesMayBeKeptForADay(t *testing.T) {
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
				t.Errorf("expires after %v, want %v", left, expiry)
			}
		}
		openDir := &fuseops.OpenDirOp{}
		if err := fs.perform(openDir, 0); err != nil || !openDir.CacheDir || !openDir.KeepCache {
			t.Errorf("open directory: %v, %+v; want it cached and kept", err, openDir)
		}
	})
}

// dirEntry is one fuse_dirent of the kernel's fuse.h, with the size from the
// fuse_entry_out before it, where there is one.
type dirEntry struct {
	inode, next uint64
	kind        uint32
	name        string
	size        uint64
}

// decodeEntry decodes the first entry of b: plus says that fuse_entry_out, 128
// bytes with the inode at 0 and the size at 48, stands before it.
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

// listDir reads the directory with a buffer of size bytes at a time.
func listDir(t *testing.T, fs *fileSystem, size int, plus bool) (entries []dirEntry) {
	t.Helper()
	for calls, offset := 0, fuseops.DirOffset(0); calls < 1000; calls++ {
		op := fuseops.ReadDirOp{Inode: fuseops.RootInodeID, Offset: offset, Dst: make([]byte, size)}
		if err := readDirEither(fs, &op, plus); err != nil {
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
	t.Fatal("the directory has no end")
	return nil
}

func readDirEither(fs *fileSystem, op *fuseops.ReadDirOp, plus bool) error {
	if !plus {
		return fs.perform(op, 0)
	}
	opPlus := &fuseops.ReadDirPlusOp{ReadDirOp: *op}
	err := fs.perform(opPlus, 0)
	*op = opPlus.ReadDirOp
	return err
}

func TestReadDirPagesThroughBuffersOfAnySize(t *testing.T) {
	var origins []*stubOrigin
	for i := range 20 {
		origins = append(origins, newStubOrigin(int64(i)*1000))
	}
	fs := newTestFS(t, ioAuto, origins...)
	for i := range fs.dir.Load().files { // 40 bytes and less: a shorter name may fit where its predecessor did not
		fs.dir.Load().files[i].name = fmt.Sprintf("%02d-%s", i, strings.Repeat("x", 37-i*13%38))
	}
	for plus, least := range map[bool]int{false: 24 + 40, true: 128 + 24 + 40} {
		for _, size := range []int{least, least + 1, 2*least - 1, 2 * least, 7*least + 3, 1 << 16} {
			entries := listDir(t, fs, size, plus)
			if len(entries) != len(origins) {
				t.Fatalf("%d bytes at a time, plus %v: %d entries, want %d", size, plus, len(entries), len(origins))
			}
			for i, e := range entries {
				want := dirEntry{inode: uint64(firstFileInode + i), next: uint64(i + 1), kind: syscall.DT_REG, name: fs.dir.Load().files[i].name}
				if plus {
					want.size = uint64(origins[i].size)
				}
				if e != want {
					t.Errorf("%d bytes at a time, plus %v: entry %d is %+v, want %+v", size, plus, i, e, want)
				}
			}
		}
		if entries := listDir(t, fs, least-1, plus); len(entries) != 0 {
			t.Errorf("plus %v: %d entries in %d bytes, that hold none", plus, len(entries), least-1)
		}
	}
}

func TestReadDirBehindTheEndIsEmpty(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10))
	for _, offset := range []fuseops.DirOffset{1, 2, 1 << 40, 1<<64 - 1} {
		for _, plus := range []bool{false, true} {
			op := fuseops.ReadDirOp{Offset: offset, Dst: make([]byte, 4096)}
			if err := readDirEither(fs, &op, plus); err != nil || op.BytesRead != 0 {
				t.Errorf("offset %d, plus %v: %d bytes, %v; want none", offset, plus, op.BytesRead, err)
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
		t.Errorf("statfs %+v, want %+v", *op, want)
	}
}

func TestHandleIsDirectUntilTheFileIsComplete(t *testing.T) {
	tests := []struct {
		mode     ioMode
		complete bool
		direct   bool
	}{
		{ioAuto, false, true},
		{ioAuto, true, false},
		{ioDirect, false, true},
		{ioDirect, true, true},
		{ioBuffered, false, false},
		{ioBuffered, true, false},
	}
	for _, tt := range tests {
		fs := newTestFS(t, tt.mode, newStubOrigin(1000))
		if tt.complete {
			downloadAll(t, fs, 0)
		}
		op := &fuseops.OpenFileOp{Inode: firstFileInode}
		if err := fs.perform(op, 0); err != nil {
			t.Fatal(err)
		}
		if op.UseDirectIO != tt.direct || !op.KeepPageCache {
			t.Errorf("%s, complete %v: direct %v, keep %v; want %v, true", tt.mode, tt.complete, op.UseDirectIO, op.KeepPageCache, tt.direct)
		}
	}
}

func TestMetadataNeverTouchesTheOrigin(t *testing.T) {
	origin := newHeldStubOrigin(1000, 0)
	fs := newTestFS(t, ioAuto, origin)
	for _, op := range []any{
		&fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: "file-0"},
		&fuseops.GetInodeAttributesOp{Inode: firstFileInode},
		&fuseops.OpenFileOp{Inode: firstFileInode},
		&fuseops.OpenDirOp{Inode: fuseops.RootInodeID},
		&fuseops.ReadDirOp{Inode: fuseops.RootInodeID, Dst: make([]byte, 4096)},
		&fuseops.StatFSOp{},
		&fuseops.ForgetInodeOp{}, &fuseops.BatchForgetOp{}, &fuseops.SyncFileOp{},
		&fuseops.ReleaseFileHandleOp{Handle: firstFileInode}, &fuseops.ReleaseDirHandleOp{},
	} {
		if err := fs.perform(op, 0); err != nil {
			t.Errorf("%T: %v", op, err)
		}
	}
	if n := origin.opened.Load(); n != 0 {
		t.Errorf("metadata opened the origin %d times", n)
	}
}

func TestEveryWriteIsEROFS(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10))
	size := uint64(0)
	for _, op := range []any{
		&fuseops.SetInodeAttributesOp{Inode: firstFileInode, Size: &size},
		&fuseops.MkDirOp{}, &fuseops.MkNodeOp{}, &fuseops.CreateFileOp{}, &fuseops.CreateSymlinkOp{},
		&fuseops.CreateLinkOp{}, &fuseops.RenameOp{}, &fuseops.RmDirOp{}, &fuseops.UnlinkOp{},
		&fuseops.WriteFileOp{Inode: firstFileInode, Data: []byte("x")},
		&fuseops.SetXattrOp{}, &fuseops.RemoveXattrOp{}, &fuseops.FallocateOp{},
	} {
		if err := errnoOf(fs.perform(op, 0)); err != syscall.EROFS {
			t.Errorf("%T: %v, want EROFS", op, err)
		}
	}
}

func TestUnknownOpIsENOSYS(t *testing.T) {
	fs := newTestFS(t, ioAuto)
	for _, op := range []any{
		&fuseops.FlushFileOp{}, &fuseops.GetXattrOp{}, &fuseops.ListXattrOp{},
		&fuseops.ReadSymlinkOp{}, &fuseops.SyncFSOp{}, &struct{}{}, nil,
	} {
		if err := errnoOf(fs.perform(op, 0)); err != syscall.ENOSYS {
			t.Errorf("%T: %v, want ENOSYS", op, err)
		}
	}
}

func TestUnknownInodeIsENOENT(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10), newStubOrigin(10))
	for _, inode := range []fuseops.InodeID{0, firstFileInode + 2, controlInode - 1, controlInode + 6, 1<<64 - 1} {
		read := &fuseops.ReadFileOp{Inode: inode, Size: 1}
		for _, op := range []any{&fuseops.GetInodeAttributesOp{Inode: inode}, &fuseops.OpenFileOp{Inode: inode}, read} {
			if err := errnoOf(fs.perform(op, 0)); err != syscall.ENOENT {
				t.Errorf("%T of inode %d: %v, want ENOENT", op, inode, err)
			}
		}
		if err := errnoOf(readWaiting(fs, t.Context(), nobodysPid, read)); err != syscall.ENOENT {
			t.Errorf("waiting read of inode %d: %v, want ENOENT", inode, err)
		}
	}
	for _, op := range []any{&fuseops.OpenFileOp{Inode: fuseops.RootInodeID}, &fuseops.ReadFileOp{Inode: fuseops.RootInodeID}} {
		if err := errnoOf(fs.perform(op, 0)); err != syscall.ENOENT {
			t.Errorf("%T of the root: %v, want ENOENT", op, err)
		}
	}
}

func TestErrnoOf(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("read: %w", fmt.Errorf("fetch: %w", err)) }
	for err, want := range map[error]syscall.Errno{
		errInterrupted: syscall.EINTR, context.Canceled: syscall.EINTR,
		errStopping: syscall.ECANCELED, errClosed: syscall.ECANCELED,
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
				t.Errorf("errnoOf(%v) = %v, want %v", err, got, want)
			}
		}
	}
	if err := errnoOf(nil); err != nil {
		t.Errorf("errnoOf(nil) = %v", err)
	}
}

func TestTransientErrorsOfTheKernel(t *testing.T) {
	for _, err := range []error{syscall.ENOENT, syscall.EAGAIN, &os.PathError{Op: "read", Err: syscall.EINTR}} {
		if !transient(err) {
			t.Errorf("%v is not transient", err)
		}
	}
	for _, err := range []error{syscall.ENODEV, syscall.EIO, io.EOF, fuse.EINVAL} {
		if transient(err) {
			t.Errorf("%v is transient", err)
		}
	}
}

// TestPanicInOneOpIsEIO has a file without a store, which no read survives.
func TestPanicInOneOpIsEIO(t *testing.T) {
	fs := newTestFS(t, ioAuto, newStubOrigin(10))
	dir := fs.dir.Load()
	dir.byInode = append(dir.byInode, &fileVersion{name: "without a store"})
	var out bytes.Buffer
	fs.log = newEventLog(&out)
	broken := &fuseops.ReadFileOp{Inode: firstFileInode + 1, Size: 1}
	for _, run := range []func() error{
		func() error { return fs.perform(broken, 0) },
		func() error { return readWaiting(fs, t.Context(), nobodysPid, broken) },
	} {
		if err := fs.guard(broken, run); err != errPanic || errnoOf(err) != syscall.EIO {
			t.Errorf("the op that panicked: %v, %v; want errPanic, EIO", err, errnoOf(err))
		}
	}
	next := &fuseops.GetInodeAttributesOp{Inode: firstFileInode}
	if err := fs.guard(next, func() error { return fs.perform(next, 0) }); err != nil || next.Attributes.Size != 10 {
		t.Errorf("the op after it: %v, %+v", err, next.Attributes)
	}
	fs.log.Close(time.Minute)
	for _, want := range []string{"panic in *fuseops.ReadFileOp: ", "nil pointer", "(*fileSystem).readReady(", "(*fileSystem).read(", "fs.go:"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, out.String())
		}
	}
}

func TestGuardPassesErrorsOn(t *testing.T) {
	fs := newTestFS(t, ioAuto)
	for _, want := range []error{nil, errMustWait, syscall.EROFS} {
		if got := fs.guard(nil, func() error { return want }); got != want {
			t.Errorf("guard of %v = %v", want, got)
		}
	}
}
