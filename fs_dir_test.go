// Tests of the tree of names without a mount: directories, names that come and go, and
// the control file that takes requests. The kernel tests show what the kernel makes of it.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/jacobsa/fuse/fuseops"
)

// newTreeFS returns a file system with a file of 1,000 bytes for each name.
func newTreeFS(t *testing.T, names ...string) *fileSystem {
	t.Helper()
	var origins []*scriptedOrigin
	for range names {
		origins = append(origins, newStubOrigin(1000))
	}
	return newNamedTestFS(t, ioAuto, names, origins...)
}

// linkFile adds a file of 1,000 bytes.
func linkFile(t *testing.T, fs *fileSystem, name string) (*node, error) {
	t.Helper()
	origin := newStubOrigin(1000)
	f := newFile(name, newTempFileStore(origin, origin.obj, testConfig(t.TempDir())))
	t.Cleanup(func() { f.current.Load().latest().Close() })
	_, err := fs.link(f)
	return f, err
}

// lookUpPath looks each part of a path up, as the kernel does.
func lookUpPath(fs *fileSystem, name string) (fuseops.ChildInodeEntry, error) {
	op := &fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID}
	for part := range strings.SplitSeq(name, "/") {
		op.Name = part
		if err := fs.perform(op, 0); err != nil {
			return fuseops.ChildInodeEntry{}, err
		}
		op.Parent = op.Entry.Child
	}
	return op.Entry, nil
}

func mustLookUp(t *testing.T, fs *fileSystem, name string) fuseops.ChildInodeEntry {
	t.Helper()
	entry, err := lookUpPath(fs, name)
	if err != nil {
		t.Fatalf("look up %s: %v", name, err)
	}
	return entry
}

// requireListing requires that a directory has these names, and returns their inodes.
func requireListing(t *testing.T, fs *fileSystem, dir, parent fuseops.InodeID, want ...string) (inodes []uint64) {
	t.Helper()
	var names []string
	entries := listDir(t, fs, dir, 0, 1<<16, false)
	for _, e := range entries {
		names, inodes = append(names, e.name), append(inodes, e.inode)
	}
	if want = append([]string{".", ".."}, want...); !slices.Equal(names, want) {
		t.Fatalf("inode %d: got %q, want %q", dir, names, want)
	}
	if inodes[0] != uint64(dir) || inodes[1] != uint64(parent) {
		t.Errorf("inodes of . and ..: got %d and %d, want %d and %d", inodes[0], inodes[1], dir, parent)
	}
	return inodes[2:]
}

func TestDirectories(t *testing.T) {
	fs := newTreeFS(t, "a/b/c.bin", "a/d.bin", "e.bin", "a/b/f/g.bin", "h/i.bin")
	for name, links := range map[string]uint32{"a": 3, "a/b": 3, "a/b/f": 2, "h": 2, "e.bin": 1, "a/b/f/g.bin": 1} {
		entry := mustLookUp(t, fs, name)
		wantMode, wantTime := os.ModeDir|0o555, fs.mounted
		if strings.HasSuffix(name, ".bin") {
			wantMode, wantTime = 0o444, fsTestTime
		}
		got := entry.Attributes
		if got.Mode != wantMode || got.Nlink != links || !got.Mtime.Equal(wantTime) {
			t.Errorf("%s: got %+v, want mode %v, %d links and mtime %v", name, got, wantMode, links, wantTime)
		}
		get := &fuseops.GetInodeAttributesOp{Inode: entry.Child}
		if err := fs.perform(get, 0); err != nil || get.Attributes != got {
			t.Errorf("%s by inode: got %+v, error %v, want %+v", name, get.Attributes, err, got)
		}
		if shown := fs.nameOf(entry.Child); shown != name {
			t.Errorf("name of inode %d for people: got %q, want %q", entry.Child, shown, name)
		}
	}
	root := &fuseops.GetInodeAttributesOp{Inode: fuseops.RootInodeID}
	if err := fs.perform(root, 0); err != nil || root.Attributes.Nlink != 4 {
		t.Errorf("root: got %+v, error %v, want 4 links", root.Attributes, err)
	}
	a, b := mustLookUp(t, fs, "a").Child, mustLookUp(t, fs, "a/b").Child
	requireListing(t, fs, fuseops.RootInodeID, fuseops.RootInodeID, "a", "e.bin", "h")
	requireListing(t, fs, b, a, "c.bin", "f")
	if inodes := requireListing(t, fs, a, fuseops.RootInodeID, "b", "d.bin"); inodes[0] != uint64(b) {
		t.Errorf("inode of b: listed as %d, looked up as %d", inodes[0], b)
	}
	for _, e := range listDir(t, fs, a, 0, 1<<16, true) {
		if isDir := e.kind == syscall.DT_DIR; isDir != (e.name != "d.bin") {
			t.Errorf("%s is a directory: %v", e.name, isDir)
		}
	}
	for _, missing := range []string{"b", "a/c.bin", "a/b/f/h", "e.bin/x"} {
		if _, err := lookUpPath(fs, missing); err != syscall.ENOENT {
			t.Errorf("look up %s: got %v, want ENOENT", missing, err)
		}
	}
	stat := &fuseops.StatFSOp{}
	if err := fs.perform(stat, 0); err != nil || stat.Inodes != 5+5 || stat.Blocks != 5 {
		t.Errorf("statfs: got %+v, %v, want 5 files and 5 directories", stat, err)
	}
}

func TestANameIsAFileOrADirectory(t *testing.T) {
	fs := newTreeFS(t, "a/b", "f")
	before := len(fs.allVersions())
	for name, other := range map[string]string{"a": "a", "a/b": "a/b", "f/x/y": "f", "a/b/c": "a/b", "f": "f"} {
		_, err := linkFile(t, fs, name)
		if want := fmt.Sprintf("the mount has %q already: ", other); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got error %v, want %s", name, err, want)
		}
	}
	fs.room.closing.Wait()
	if after := len(fs.allVersions()); after != before {
		t.Errorf("versions after refusals: got %d, want %d", after, before)
	}
	requireListing(t, fs, fuseops.RootInodeID, fuseops.RootInodeID, "a", "f")
}

func TestARemovedNameTakesItsEmptyDirectoriesAlong(t *testing.T) {
	fs := newTreeFS(t, "a/b/c", "a/d", "e")
	b, c := mustLookUp(t, fs, "a/b").Child, mustLookUp(t, fs, "a/b/c").Child
	f, _ := fs.find("a/b/c")
	gone := fs.unlink(f)
	if len(gone) != 2 || gone[0].path != "/a/b/c" || gone[1].path != "/a/b" || len(fs.unlink(f)) != 0 {
		t.Errorf("removed: got %+v, want c and b, once", gone)
	}
	if _, err := lookUpPath(fs, "a/b"); err != syscall.ENOENT {
		t.Errorf("look up a/b: got %v, want ENOENT", err)
	}
	requireListing(t, fs, mustLookUp(t, fs, "a").Child, fuseops.RootInodeID, "d")
	if links := mustLookUp(t, fs, "a").Attributes.Nlink; links != 2 {
		t.Errorf("links of a: got %d, want 2", links)
	}

	// Programs that have them open go on, even beside successors of the same names.
	if _, err := linkFile(t, fs, "a/b/c"); err != nil {
		t.Fatal(err)
	}
	if now := mustLookUp(t, fs, "a/b").Child; now == b || mustLookUp(t, fs, "a/b/c").Child == c {
		t.Error("an inode number was used again")
	}
	checkErrnos(t, fs, nil, &fuseops.GetInodeAttributesOp{Inode: b}, &fuseops.GetInodeAttributesOp{Inode: c},
		&fuseops.OpenFileOp{Inode: c}, &fuseops.ReadDirOp{Inode: b})
	checkErrnos(t, fs, syscall.ENOENT, &fuseops.LookUpInodeOp{Parent: b, Name: "c"})
	requireListing(t, fs, b, mustLookUp(t, fs, "a").Child)
	store := f.current.Load().latest()
	if _, err := store.ReadAt(t.Context(), make([]byte, 1000), 0); err != nil {
		t.Errorf("read of a file that was removed: %v", err)
	}

	// The kernel forgets them after the last close.
	checkErrnos(t, fs, nil, &fuseops.ReleaseFileHandleOp{Handle: fuseops.HandleID(c)}, &fuseops.ForgetInodeOp{Inode: c, N: 1}, &fuseops.ForgetInodeOp{Inode: b, N: 2})
	fs.room.closing.Wait()
	checkErrnos(t, fs, syscall.ENOENT, &fuseops.GetInodeAttributesOp{Inode: b}, &fuseops.GetInodeAttributesOp{Inode: c})
	if _, err := store.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, errClosed) {
		t.Errorf("read after the kernel has forgotten the file: got %v, want %v", err, errClosed)
	}
}

// The origin changes while the name goes.
func TestARemovedNameGetsNoNewVersion(t *testing.T) {
	fs := newTreeFS(t, "a", "b")
	f, _ := fs.find("a")
	v := f.current.Load()
	mustLookUp(t, fs, "a")
	fs.unlink(f)
	fs.leave(v, v.latest().NewVersion(Object{Size: 5}))
	fs.room.closing.Wait()
	if left := len(fs.allVersions()); left != 2 { // the one that the kernel counts, and b's
		t.Errorf("versions: got %d, want 2", left)
	}
	fs.forget(v.inode, 1)
	fs.room.closing.Wait()
	if left := len(fs.allVersions()); left != 1 {
		t.Errorf("versions after the kernel has forgotten the inode: got %d, want 1", left)
	}
}

// Names come and go between the pages of a listing. What is there all the time is listed
// once.
func TestAListingOutlastsChanges(t *testing.T) {
	var names []string
	for i := range 60 {
		names = append(names, fmt.Sprintf("%02d", i))
	}
	fs := newTreeFS(t, names...)
	seen := make(map[string]int)
	offset := fuseops.DirOffset(0)
	for page := 0; ; page++ {
		op := &fuseops.ReadDirOp{Inode: fuseops.RootInodeID, Offset: offset, Dst: make([]byte, 3*32)}
		if err := fs.perform(op, 0); err != nil {
			t.Fatal(err)
		}
		for b := op.Dst[:op.BytesRead]; len(b) > 0; {
			var e dirEntry
			e, b = decodeEntry(b, false)
			seen[e.name]++
			offset = fuseops.DirOffset(e.next)
		}
		if op.BytesRead == 0 {
			break
		}
		if page < 20 {
			f, _ := fs.find(names[page*2])
			fs.unlink(f) // before, at and behind the page
			if _, err := linkFile(t, fs, fmt.Sprintf("new%d/%d", page%5, page)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, name := range names {
		if there := i%2 == 1 || i >= 40; there && seen[name] != 1 || seen[name] > 1 {
			t.Errorf("%s was listed %d times", name, seen[name])
		}
	}
	if seen["new0"] != 1 {
		t.Errorf("a directory that came during the listing was listed %d times, want at its end", seen["new0"])
	}
}

// askControl asks the control file for words, and returns its report.
func askControl(t *testing.T, fs *fileSystem, words ...string) string {
	t.Helper()
	open := &fuseops.OpenFileOp{Inode: controlInode + fuseops.InodeID(len(fs.control.files))}
	open.OpContext.Uid = uint32(os.Getuid())
	if err := fs.performWaiting(t.Context(), open, 0); err != nil {
		t.Fatal(err)
	}
	defer fs.perform(&fuseops.ReleaseFileHandleOp{Handle: open.Handle}, 0)
	read := func(off, size int64) *fuseops.ReadFileOp {
		return &fuseops.ReadFileOp{Inode: open.Inode, Handle: open.Handle, Offset: off, Size: size}
	}
	_ = sendRequest(strings.NewReader(strings.Join(words, wordEnd)), func(off int64, size int) error {
		checkErrnos(t, fs, nil, read(off, int64(size)))
		return nil
	})
	op := read(0, 4096)
	if err := fs.perform(op, 0); err != errMustWait {
		t.Errorf("read of the report by the loop: got %v, want %v", err, errMustWait)
	}
	if err := fs.performWaiting(t.Context(), op, 0); err != nil {
		t.Fatal(err)
	}
	if again := read(5, 4096); fs.perform(again, 0) != nil || string(again.Data[0]) != string(op.Data[0][min(5, len(op.Data[0])):]) {
		t.Errorf("read of the rest of the report: got %q", again.Data)
	}
	return string(op.Data[0])
}

// What is forgotten before its turn is not downloaded.
func TestAFileIsForgottenBeforeItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newTreeFS(t, "c")
		f, _ := fs.find("c")
		fs.fetchTurn <- struct{}{} // others are downloaded
		if _, err := fs.fetch(t.Context(), f); err != nil || !f.current.Load().latest().Snapshot().Wanted {
			t.Fatalf("fetch: %v, and the file is not wanted", err)
		}
		if _, err := fs.giveBack(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		<-fs.fetchTurn
		fs.waiting.Wait()
		if status := f.current.Load().latest().Snapshot(); status.Wanted || status.Received > 0 {
			t.Errorf("the file is downloaded: %v", status)
		}
	})
}

func TestControlFileDoesWhatItIsAskedTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newTreeFS(t, "a/b", "c")
		for _, test := range []struct {
			words []string
			want  string
		}{
			{[]string{"forget", "c", "a", "x\ny"}, "c: gave back 0 B\n" + failedMark + "a: no file has this name\n" + failedMark + "\"x\\ny\": no file has this name\n"},
			{[]string{"explode", "c"}, failedMark + "this fsmount is of another version than the command\n"},
			{[]string{""}, failedMark + "this fsmount is of another version than the command\n"},
			{[]string{"stop"}, ""},
		} {
			if got := askControl(t, fs, test.words...); got != test.want {
				t.Errorf("%q: got %q, want %q", test.words, got, test.want)
			}
		}
		if len(fs.stopAsked) != 1 {
			t.Error("the mount was not asked to stop")
		}
	})
}

// The kernel lets root open any file.
func TestControlFileTakesRequestsOfItsUserOnly(t *testing.T) {
	fs := newTreeFS(t)
	other := &fuseops.OpenFileOp{Inode: controlInode + fuseops.InodeID(len(fs.control.files)), OpContext: fuseops.OpContext{Uid: uint32(os.Getuid()) + 1}}
	if err := fs.performWaiting(t.Context(), other, 0); errnoOf(err) != syscall.EACCES {
		t.Errorf("open by another user: got %v, want EACCES", err)
	}
}

// A verb that waits is seen, and ends when the mount stops.
func TestAVerbEndsWithTheMount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newTreeFS(t)
		fs.control.verbs["wait"] = func(ctx context.Context, _ []string, say func(string, error)) {
			<-ctx.Done()
			say("", context.Cause(ctx))
		}
		report := make(chan string, 1)
		go func() { report <- askControl(t, fs, "wait") }()
		synctest.Wait()
		if len(report) != 0 {
			t.Fatalf("the verb ended: %q", <-report)
		}
		fs.Stop()
		if got, want := <-report, failedMark+errStopping.Error()+"\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
