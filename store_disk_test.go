// Tests of a store's temporary file: how it is made, the views that the store lends,
// and a disk that fails.

package main

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestDiskErrorNamesTheDirectory(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		readOnly, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		s.file.Store(readOnly)
		rd := startRead(t.Context(), s, byteRange{0, 10})
		o.send(10)
		if !rd.returned() || rd.err == nil || !strings.Contains(rd.err.Error(), s.room.dir) {
			t.Errorf("error of the read: got %v, want one that names %s", rd.err, s.room.dir)
		}
	})
}

// A ready read does not wait for the lock.
func TestReadyReadTakesNoLock(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 100})
		o.send(100)
		s.mu.Lock()
		defer s.mu.Unlock()
		if n, err := s.ReadAt(t.Context(), make([]byte, 100), 0); n != 100 || err != nil {
			t.Errorf("ReadAt: got %d bytes, error %v, want 100, no error", n, err)
		}
		if v, ready := s.ViewReady(0, 100, 0); ready {
			v.done()
		}
	})
}

func TestReadyReadNeverWaits(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		if _, ready := s.ViewReady(0, 100, 0); ready {
			t.Fatal("a view is ready before any byte arrived")
		}
		o.mustHave(t, 0)
		startRead(t.Context(), s, byteRange{0, 100})
		o.send(100)
		if _, ready := s.ViewReady(1, 100, 0); ready {
			t.Error("a view of one byte more than arrived is ready")
		}
	})
}

// Views have the right bytes at any offset, and end at the end of the file.
func TestViewsHaveTheBytes(t *testing.T) {
	const large, size = 256 << 10, 3*(256<<10) + 5
	inBubble(t, Object{Size: size}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, size})
		for range size/fetchBufferBytes + 1 {
			o.send(min(fetchBufferBytes, size-s.downloaded.Load()))
		}
		for _, r := range []byteRange{
			{0, 100}, {4095, 4097}, {0, large}, {4099, 4099 + large}, {large + 1, size}, {size - 10, size + 10}, {size, size + 1},
		} {
			v, err := s.View(t.Context(), r.off, int(r.len()), 0)
			if err != nil {
				t.Fatalf("view of %v: %v", r, err)
			}
			if want := min(r.end, size) - min(r.off, size); int64(len(v.data)) != want {
				t.Errorf("view of %v: got %d bytes, want %d", r, len(v.data), want)
			}
			if err := checkContent(v.data, testSeed, r.off); err != nil {
				t.Errorf("view of %v: %v", r, err)
			}
			if v.done != nil {
				v.done()
			}
		}
	})
}

func TestTempFileHasNoNameAndIsPrivate(t *testing.T) {
	inBubble(t, Object{Size: 1000}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		o.send(10)
		left, err := os.ReadDir(s.room.dir)
		if err != nil || len(left) > 0 {
			t.Errorf("temporary directory: got %v (%v), want it empty", left, err)
		}
		info, err := s.file.Load().Stat()
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("mode: got %v (%v), want 0600", info.Mode(), err)
		}
	})
}

func TestNamedTempFileIsUnlinkedAtBirth(t *testing.T) {
	dir := t.TempDir()
	f, err := createNamed(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("temporary directory: got %v (%v), want it empty", left, err)
	}
}

// limitFileSize lets this process write no byte at or behind size, until the test ends
// (RLIMIT_FSIZE, as a file system's largest file).
func limitFileSize(t *testing.T, size uint64) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_FSIZE, &before) })
}

// A file larger than the disk takes fails its readers beyond, and nobody else. What was
// written before the disk refused the rest is there.
func TestBytesThatDoNotFitFailTheirReaderAlone(t *testing.T) {
	const room = 2*mib + 1000
	limitFileSize(t, room)
	s := newTempFileStore(newStubOrigin(64*mib), ranged(64*mib), testConfig(t.TempDir()))
	defer s.Close()
	s.AddHandle()
	for _, test := range []struct {
		r    byteRange
		want error
	}{
		{byteRange{32 * mib, 32*mib + 10}, syscall.EFBIG},
		{byteRange{0, 10}, nil},
		{byteRange{mib, room + 1}, syscall.EFBIG},
		{byteRange{mib, room}, nil},
		{byteRange{0, room}, nil},
		{byteRange{room - 1, room + 1}, syscall.EFBIG},
	} {
		p := make([]byte, test.r.len())
		_, err := s.ReadAt(t.Context(), p, test.r.off)
		if err == nil {
			err = checkContent(p, testSeed, test.r.off)
		}
		if !errors.Is(err, test.want) {
			t.Errorf("read of %v: %v, want %v", test.r, err, test.want)
		}
	}
	if status := s.Snapshot(); status.State != "failed" || status.Present != room || !strings.Contains(status.Error, "file too large") {
		t.Errorf("%s, %d bytes present, error %q, want failed with all that fits, and why", status.State, status.Present, status.Error)
	}
}

// While programs have all files open that may be open, another one waits. One that is
// closed makes way.
func TestTempFilesGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var origins []*scriptedOrigin
		for range 3 {
			origins = append(origins, newStubOrigin(1000))
		}
		fs := newTestFS(t, ioAuto, origins...)
		var stores []*TempFileStore
		for _, f := range fs.allFiles() {
			s := f.current.Load().latest()
			s.room.most = 2
			s.AddHandle()
			stores = append(stores, s)
		}
		downloadAll(t, fs, 0)
		downloadAll(t, fs, 1)
		waiting := startRead(t.Context(), stores[2], byteRange{0, 1000})
		time.Sleep(3 * backoffMax)
		synctest.Wait()
		waiting.mustWait(t)
		if status := stores[2].Snapshot(); !strings.Contains(status.LastError, "too many") {
			t.Errorf("what it waits for: %q", status.LastError)
		}
		stores[1].DropHandle()
		time.Sleep(backoffMax)
		synctest.Wait()
		waiting.mustReturn(t, nil)
		if stores[1].Replacement() == nil || stores[0].Replacement() != nil {
			t.Error("another store than the closed one made way")
		}
		if open := stores[0].room.open.Load(); open != 2 {
			t.Errorf("temporary files open: %d, want 2", open)
		}
		stores[2].DropHandle()
		downloadAll(t, fs, 1) // its bytes come again
		for _, f := range fs.allFiles() {
			f.current.Load().latest().Close()
		}
	})
}
