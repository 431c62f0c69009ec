// Tests of a store's temporary file: what it lends, and how a disk may fail.

package main

import (
	"os"
	"strings"
	"testing"
)

func TestDiskErrorNamesTheDirectory(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		readOnly, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		s.file.Store(readOnly)
		rd := startRead(t.Context(), s, byteRange{0, 10})
		o.send(10)
		if !rd.returned() || rd.err == nil || !strings.Contains(rd.err.Error(), s.dir) {
			t.Errorf("the read ended with %v, want an error that names %s", rd.err, s.dir)
		}
	})
}

// A ready read must not wait for whoever holds the lock.
func TestReadyReadTakesNoLock(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 100})
		o.send(100)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.hold() {
			t.Fatal("the store is closed")
		}
		s.unhold()
		if n, err := s.ReadAt(t.Context(), make([]byte, 100), 0); n != 100 || err != nil {
			t.Errorf("ReadAt: n=%d err=%v", n, err)
		}
		if v, ready := s.ViewReady(0, 100, 0); ready {
			v.done()
		}
	})
}

func TestReadyReadNeverWaits(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		if _, ready := s.ViewReady(0, 100, 0); ready {
			t.Fatal("ready before a byte arrived")
		}
		if n := o.opens.Load(); n != 0 {
			t.Errorf("%d requests by a read that does not wait", n)
		}
		startRead(t.Context(), s, byteRange{0, 100})
		o.send(100)
		if _, ready := s.ViewReady(1, 100, 0); ready {
			t.Error("ready one byte beyond what arrived")
		}
	})
}

// Small views are copies, large ones mappings at any offset; all have the same
// bytes, and end where the file does.
func TestViewsHaveTheBytes(t *testing.T) {
	const size = 3*mapBytes + 5
	inBubble(t, size, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, size})
		for range size/fetchBufferBytes + 1 {
			o.send(min(fetchBufferBytes, size-s.downloaded.Load()))
		}
		for _, r := range []byteRange{{0, 100}, {4095, 4097}, {0, mapBytes}, {4099, 4099 + mapBytes}, {mapBytes + 1, size}, {size - 10, size + 10}, {size, size + 1}} {
			v, err := s.View(t.Context(), r.off, int(r.len()))
			if err != nil {
				t.Fatalf("view of %v: %v", r, err)
			}
			if want := min(r.end, size) - min(r.off, size); int64(len(v.data)) != want {
				t.Errorf("view of %v has %d bytes, want %d", r, len(v.data), want)
			}
			if err := checkContent(v.data, storeSeed, r.off); err != nil {
				t.Errorf("view of %v: %v", r, err)
			}
			if v.done != nil {
				v.done()
			}
		}
	})
}

func TestTempFileHasNoNameAndIsPrivate(t *testing.T) {
	inBubble(t, 1000, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		startRead(t.Context(), s, byteRange{0, 10})
		o.send(10)
		left, err := os.ReadDir(s.dir)
		if err != nil || len(left) > 0 {
			t.Errorf("%v in the temporary directory (%v)", left, err)
		}
		info, err := s.file.Load().Stat()
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
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
		t.Errorf("%v in the temporary directory (%v)", left, err)
	}
}
