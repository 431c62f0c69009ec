// Tests of the disk budget: what goes when there is no room, that no read sees a hole, and
// that the account is right.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// roomConfig returns a configuration with a budget in bytes.
func roomConfig(dir string, budget int64) *storeConfig {
	config := testConfig(dir)
	config.room = newRoomTable(dir, cacheSize{}, nil)
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
		var blocks rangeSet
		for _, r := range s.present.ranges {
			blocks.add(wholeBlocks(r))
		}
		if !slices.Equal(s.disk.blocks.ranges, blocks.ranges) || len(s.disk.pinned) > 0 {
			t.Errorf("account: %v, want %v; pins left: %d", s.disk.blocks.ranges, blocks.ranges, len(s.disk.pinned))
		}
		s.mu.Unlock()
		s.Close()
		if used := s.room.used.Load(); used != 0 {
			t.Errorf("in the account after Close: %d bytes, want 0", used)
		}
	})
}

// inRoom runs test in a bubble with two stores of 8 MiB each that share a budget of 8 MiB. A
// program has both open, and all of the first is present.
func inRoom(t *testing.T, test func(t *testing.T, first, second *TempFileStore)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		config := roomConfig(dir, 8*mib)
		var stores []*TempFileStore
		for range 2 {
			s := newTempFileStore(newStubOrigin(8*mib), ranged(8*mib), config)
			s.AddHandle()
			defer s.Close()
			stores = append(stores, s)
		}
		mustReadAll(t, stores[0], mib)
		if !stores[0].Complete() {
			t.Fatal("a file as large as the budget is not complete")
		}
		test(t, stores[0], stores[1])
	})
}

// A complete file stays whole while a program reads it through the page cache. Then nothing
// may go for another file: its read fails, and the next one gets its bytes as soon as there
// is room.
func TestNothingMayGo(t *testing.T) {
	inRoom(t, func(t *testing.T, first, second *TempFileStore) {
		if !first.KeepWhole() {
			t.Fatal("a complete file is not kept whole")
		}
		rd := startRead(t.Context(), second, byteRange{0, mib})
		rd.mustWait(t)
		time.Sleep(roomPatience)
		synctest.Wait()
		rd.mustReturn(t, syscall.ENOSPC)
		if !first.Complete() || first.evicts.Load() {
			t.Error("the file that was kept whole is not complete")
		}
		rd = startRead(t.Context(), second, byteRange{0, mib})
		first.LetGo()
		time.Sleep(roomPatience)
		synctest.Wait()
		rd.mustReturn(t, nil)
		if first.KeepWhole() {
			t.Error("a file of which bytes left is kept whole")
		}
	})
}

// A file for which there is no descriptor waits, and says for what, until a program closes another one. It then gets its
// bytes at once, not after a pause.
func TestAFileWaitsForADescriptor(t *testing.T) {
	inRoom(t, func(t *testing.T, first, second *TempFileStore) {
		second.room.most = 1 // which first has
		rd := startRead(t.Context(), second, byteRange{0, mib})
		time.Sleep(pausePatience)
		synctest.Wait()
		rd.mustWait(t)
		if why := second.Explain(byteRange{0, mib})[0]; !strings.Contains(why, "ulimit -n") {
			t.Errorf("it waits for %q", why)
		}
		closed := time.Now()
		first.DropHandle()
		synctest.Wait()
		rd.mustReturn(t, nil)
		if took := time.Since(closed); took > 0 {
			t.Errorf("its bytes came %v after the other file was closed", took)
		}
	})
}

// droppingOrigin is an origin whose requests let the file of a store go, as takeRoom does, and
// answer when their context ends.
type droppingOrigin struct {
	*scriptedOrigin
	room  *roomTable
	asked chan bool
}

func (o *droppingOrigin) Open(ctx context.Context, _ request) (io.ReadCloser, error) {
	<-o.asked
	if !o.room.dropClosed(true) {
		return nil, errors.New("nothing goes")
	}
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// Fetches that need room let files go that no program has open: those of each other, and their
// own. None waits for another's end.
func TestAFetchWaitsForNoFetch(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		config := roomConfig(dir, 8*mib)
		origin := &droppingOrigin{newStubOrigin(8 * mib), config.room, make(chan bool)}
		var stores []*TempFileStore
		for range 2 {
			s := newTempFileStore(origin, ranged(8*mib), config)
			s.AddHandle()
			defer s.Close()
			ctx, giveUp := context.WithCancel(t.Context())
			rd := startRead(ctx, s, byteRange{0, mib})
			rd.mustWait(t)
			s.DropHandle()
			giveUp()
			synctest.Wait()
			rd.mustReturn(t, context.Canceled)
			stores = append(stores, s)
		}
		close(origin.asked) // both fetches look for room at once
		time.Sleep(time.Second)
		config.room.dropClosed(true)
		config.room.closing.Wait()
		if n := config.room.evictions.Load(); n != 2 {
			t.Errorf("files that went: %d, want 2", n)
		}
		for _, s := range stores {
			if !s.closed.Load() || s.refCount.Load() != 0 {
				t.Errorf("a store that went: closed %v, references %d", s.closed.Load(), s.refCount.Load())
			}
		}
	})
}

// A file that somebody asked for stays, and so another one that somebody asked for waits, and
// says so, until that is given back.
func TestAFileThatIsWantedWaitsForRoom(t *testing.T) {
	inRoom(t, func(t *testing.T, first, second *TempFileStore) {
		for _, s := range []*TempFileStore{first, second} {
			s.Want()
			s.WantRest()
			s.DropHandle()
		}
		for range 5 {
			time.Sleep(pausePatience + restPause)
			synctest.Wait()
			if !second.Snapshot().NoRoom || first.Snapshot().NoRoom || !first.Complete() {
				t.Fatalf("the files: %v, %v", first.Snapshot(), second.Snapshot())
			}
		}
		next, _ := first.Forget()
		defer next.Close()
		first.Close()
		time.Sleep(pausePatience + restPause)
		synctest.Wait()
		if status := second.Snapshot(); status.NoRoom || status.State != "complete" {
			t.Errorf("with room: %v", status)
		}
	})
}

// Where the file system punches no holes, what was to leave stays, and can be read.
func TestAFileSystemWithoutHolesLosesNothing(t *testing.T) {
	inRoom(t, func(t *testing.T, first, second *TempFileStore) {
		file := first.file.Load()
		readOnly, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		first.file.Store(readOnly) // fallocate(2) fails with EBADF
		rd := startRead(t.Context(), second, byteRange{0, mib})
		time.Sleep(roomPatience + time.Second)
		synctest.Wait()
		rd.mustReturn(t, syscall.ENOSPC)
		if total := first.Snapshot().Present; total != 8*mib || first.disk.blocks.total() != 8*mib {
			t.Errorf("present: %d bytes, in the account: %d, want %d", total, first.disk.blocks.total(), 8*mib)
		}
		mustReadAll(t, first, mib)
	})
}

// A fetch runs a window ahead of its reader, pauses without being taken for stalled, goes on
// when the reader does, and leaves its connection after pausePatience.
func TestAFetchKeepsToTheWindow(t *testing.T) {
	const size, budget = 64 * mib, 16 * mib
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := newStubOrigin(size)
		s := newTempFileStore(o, ranged(size), roomConfig(dir, budget))
		s.AddHandle()
		defer s.Close()
		p := make([]byte, mib)
		read := func(off int64) {
			t.Helper()
			if _, err := s.ReadAt(t.Context(), p, off); err != nil || checkContent(p, testSeed, off) != nil {
				t.Fatalf("read at %d: %v", off, err)
			}
			synctest.Wait()
		}
		ahead := func(pos int64) int64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.present.firstMissing(pos) - pos
		}
		for off := int64(0); off < 16*mib; off += mib {
			read(off)
			if n := ahead(off + mib); n > budget/2+fetchBufferBytes {
				t.Errorf("%d bytes ahead of a reader at %d, want at most %d", n, off+mib, budget/2)
			}
		}
		requests := len(o.all())
		for off := int64(16 * mib); off < 32*mib; off += mib {
			read(off)
		}
		o.mustHave(t, requests) // the same request goes on
		time.Sleep(pausePatience / 2)
		if status := s.Snapshot(); status.State != "paused" || status.Silent > 0 || !status.Streams {
			t.Errorf("beside a reader that does not read: %+v, want paused", status)
		}
		o.mustHaveInFlight(t, 1)
		time.Sleep(pausePatience)
		o.mustHaveInFlight(t, 0)
		for off := int64(32 * mib); off < size; off += mib {
			read(off)
		}
	})
}
