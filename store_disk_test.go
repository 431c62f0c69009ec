// Tests of a store's temporary file: how it is made, the views that the store lends,
// and a disk that fails.

package main

import (
	"os"
	"strings"
	"testing"
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
		if !rd.returned() || rd.err == nil || !strings.Contains(rd.err.Error(), s.dir) {
			t.Errorf("error of the read: got %v, want one that names %s", rd.err, s.dir)
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

// A small view is a copy, a large one a mapping. Both have the right bytes at any
// offset, and end at the end of the file.
func TestViewsHaveTheBytes(t *testing.T) {
	const size = 3*mapBytes + 5
	inBubble(t, Object{Size: size}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, size})
		for range size/fetchBufferBytes + 1 {
			o.send(min(fetchBufferBytes, size-s.downloaded.Load()))
		}
		for _, r := range []byteRange{
			{0, 100}, {4095, 4097}, {0, mapBytes}, {4099, 4099 + mapBytes}, {mapBytes + 1, size}, {size - 10, size + 10}, {size, size + 1},
		} {
			v, err := s.View(t.Context(), r.off, int(r.len()))
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
		left, err := os.ReadDir(s.dir)
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
