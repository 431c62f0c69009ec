// Tests of the disk budget: what goes when there is no room, that no read sees a hole, and
// that the account is right.

package main

import (
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// roomConfig returns a configuration with a budget in bytes.
func roomConfig(dir string, budget int64) storeConfig {
	config := testConfig(dir)
	config.room = newRoomTable(dir, cacheSize{})
	config.room.looked = time.Now().Add(1000 * time.Hour) // a test's budget may be below leastRoom
	config.room.budget.Store(budget)
	return config
}

// onDisk returns how many bytes of disk the store's file takes.
func onDisk(t *testing.T, s *TempFileStore) int64 {
	var stat unix.Stat_t
	if err := unix.Fstat(int(s.file.Load().Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Blocks * 512
}

// mustReadAll reads all of s from the start, n bytes at a time, and checks what it reads.
func mustReadAll(t *testing.T, s *TempFileStore, n int) {
	t.Helper()
	p := make([]byte, n)
	for off := int64(0); off < s.obj.Size; off += int64(n) {
		got, err := s.ReadAt(t.Context(), p, off)
		if err == nil || err == io.EOF {
			err = checkContent(p[:got], testSeed, off)
		}
		if err != nil {
			t.Errorf("read at %d: %v", off, err)
			return
		}
	}
}

// A file larger than the budget is read to its end, by several readers at once, in order
// and anywhere. The disk never has more of it than the budget.
func TestAFileLargerThanTheBudgetStreamsThrough(t *testing.T) {
	const size, budget = 96*mib + 12345, 24 * mib
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := newStubOrigin(size)
		s := newTempFileStore(o, ranged(size), roomConfig(dir, budget))
		s.AddHandle()
		var readers sync.WaitGroup
		readers.Go(func() { mustReadAll(t, s, 128<<10) })
		readers.Go(func() { mustReadAll(t, s, mib) })
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(1, 2))
			p := make([]byte, 4096)
			for range 200 {
				off := rng.Int64N(size - 4096)
				if _, err := s.ReadAt(t.Context(), p, off); err != nil || checkContent(p, testSeed, off) != nil {
					t.Errorf("read of 4 KiB at %d: %v, %v", off, err, checkContent(p, testSeed, off))
				}
			}
		})
		readers.Go(func() {
			for range 20 {
				if used, disk := s.room.used.Load(), int64(0); s.file.Load() != nil {
					if disk = onDisk(t, s); disk > budget || used > budget {
						t.Errorf("bytes on the disk: %d, in the account: %d, want at most %d", disk, used, budget)
					}
				}
				time.Sleep(time.Millisecond)
			}
		})
		readers.Wait()
		if s.Complete() || s.room.evictions.Load() == 0 {
			t.Errorf("complete: %v, evictions: %d", s.Complete(), s.room.evictions.Load())
		}
		t.Logf("evictions: %d, requests: %d", s.room.evictions.Load(), len(o.all()))
		s.mu.Lock()
		if taken := diskBlocks(s.present.ranges); taken != s.disk.taken || len(s.disk.pinned) > 0 {
			t.Errorf("account: %d bytes, want %d; pins left: %d", s.disk.taken, taken, len(s.disk.pinned))
		}
		s.mu.Unlock()
		s.Close()
		if used := s.room.used.Load(); used != 0 {
			t.Errorf("in the account after Close: %d bytes, want 0", used)
		}
	})
}
