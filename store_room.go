// store_room.go shares what temporary files may take among the stores of a mount: descriptors, and
// bytes of the disk. Where there is no room, it decides what goes: closed files, then ranges of
// open ones. The second half is a store's part in that: which ranges stay, and how one goes.

package main

import (
	"container/list"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// chunkBytes is what leaves an open file at once. While the kernel punches a hole,
	// others wait for the inode: 0.1 to 0.6 ms for so much.
	chunkBytes   = 1 << 20
	leastRoom    = 16 << 20 // the smallest budget: below, the windows of a few readers fill it
	reserveShare = 20       // of the disk, one part in so many, stays free without --cache-size
	// A fetch of a store that evicts runs at most a window ahead of the nearest reader,
	// then pauses until that reader is half through.
	maxWindow = 8 << 20
	minWindow = 256 << 10
	// pausePatience is how long a fetch that nobody waits for keeps its connection while it
	// is paused. Servers allow a client that does not read more: nginx, 60 s.
	pausePatience = 10 * time.Second
	restPause     = 5 * time.Second // how long nobody fetches the rest of a file after there was no room
	// A read fails if for roomPatience nothing may leave the disk for its bytes.
	roomPatience = 2 * time.Second
)

// errNoRoom says that nothing may leave the disk for bytes that a reader waits for.
var errNoRoom = fmt.Errorf("%w, and nothing may go that the mount keeps", syscall.ENOSPC)

// errNoRoomForAll says why a file is not downloaded as a whole.
var errNoRoomForAll = errors.New("it is larger than --cache-size, or the disk, allows: it streams through when programs read it")

// roomTable is the account of the temporary files of a mount. Each keeps a descriptor, and connections need
// descriptors too. Nobody holds its mu and a store's together. INVARIANT: used is the sum of what the stores have
// taken, and at most budget, but for a budget that shrinks when others fill the disk.
type roomTable struct {
	// Write once, before any goroutine starts.
	most     int64 // files
	size     cacheSize
	dir      string
	cache    *diskCache // nil: none
	inMemory bool       // dir is on a tmpfs
	stacking uint32     // the most file systems one on another that dir may be on: an overlayfs is on others

	// Read write.
	small     sync.Pool     // of *lentBuffer
	large     sync.Pool     // of *lentBuffer
	spare     chan *os.File // an unlinked one that is ready
	open      atomic.Int64  // files
	used      atomic.Int64  // bytes, in whole blocks
	budget    atomic.Int64  // bytes
	evictions atomic.Int64
	clock     atomic.Int64                  // counts uses of files and chunks
	heads     atomic.Int64                  // readers of the stores that evict
	going     atomic.Int64                  // stores that dropClosed closes
	closing   sync.WaitGroup                // of all stores that nobody reads any more, and of prepare
	asleep    atomic.Int64                  // who waits for a file, for room, or for a reader to come near
	short     atomic.Int64                  // those that need room
	changed   atomic.Pointer[chan struct{}] // closed, and replaced, when one of them may go on
	noPunch   atomic.Bool                   // the file system cannot punch holes

	mu     sync.Mutex
	stores map[*TempFileStore]struct{} // GUARDED_BY(mu); those with a temporary file
	looked time.Time                   // GUARDED_BY(mu); when the budget was computed
}

// ownDescriptors is how many descriptors the program has besides those of temporary
// files and connections, a few more than were counted.
const ownDescriptors = 24

// cacheSize is what all temporary files may take (--cache-size): bytes, or percent of the
// disk; the zero value is all but a reserve.
type cacheSize struct {
	bytes   int64
	percent int
}

// newRoomTable returns the account for dir, or for cache if that is not nil: of size, and of half of the descriptors
// that the program leaves of its limit (RLIMIT_NOFILE, getrlimit(2); Go's runtime has raised it as far as it may).
func newRoomTable(dir string, size cacheSize, cache *diskCache) *roomTable {
	m := &roomTable{most: int64(descriptorLimit()-ownDescriptors) / 2, size: size, dir: dir, stacking: 1, cache: cache, spare: make(chan *os.File, 1), stores: make(map[*TempFileStore]struct{})}
	changed := make(chan struct{})
	m.changed.Store(&changed)
	var disk unix.Statfs_t
	if unix.Statfs(dir, &disk) == nil {
		m.inMemory = disk.Type == unix.TMPFS_MAGIC
		if disk.Type == unix.OVERLAYFS_SUPER_MAGIC {
			m.stacking = 2
		}
	}
	if cache != nil {
		m.used.Store(cache.held)
	}
	return m
}

// unlinked returns an unlinked file. BLOCKS on the disk, if none is ready.
func (m *roomTable) unlinked() (*os.File, error) {
	select {
	case f := <-m.spare:
		return f, nil
	default:
		return createUnlinked(m.dir)
	}
}

// prepare has the next unlinked file made, if none is ready: making one takes as long as a request. A cache needs few.
func (m *roomTable) prepare() {
	if m.cache != nil || len(m.spare) > 0 {
		return
	}
	m.closing.Go(func() {
		if f, err := createUnlinked(m.dir); err == nil {
			select {
			case m.spare <- f:
			default:
				f.Close()
			}
		}
	})
}

// create opens a file. Where there are too many (EMFILE, ENFILE), it lets one go that no program needs.
func (m *roomTable) create(open func() (*os.File, error)) (f *os.File, err error) {
	err = syscall.EMFILE
	if m.open.Add(1) <= m.most {
		f, err = open()
	}
	if err != nil {
		m.open.Add(-1)
		if outOfDescriptors(err) {
			m.dropClosed(true)
		}
	}
	return f, err
}

// enter counts s, which has its file, or bytes in the cache. A file that is larger than the
// budget streams from the start.
func (m *roomTable) enter(s *TempFileStore) {
	m.look()
	m.mu.Lock()
	m.stores[s] = struct{}{}
	m.mu.Unlock()
	if s.obj.Size > m.budget.Load() {
		s.stream()
	}
}

// leave counts s out, which is closed. Its bytes stay on the disk if the cache has them.
func (m *roomTable) leave(s *TempFileStore) {
	m.mu.Lock()
	delete(m.stores, s)
	m.mu.Unlock()
	s.mu.Lock()
	taken := s.disk.blocks.total()
	s.disk.blocks = rangeSet{}
	s.dropHeadsLocked(0)
	s.mu.Unlock()
	if s.owns.Load() {
		s.room.cache.put(s.entry, cacheEntry{since: time.Now(), bytes: taken})
	} else {
		m.give(taken)
	}
}

// trim drops what is above the budget, and nobody needs. BLOCKS on the disk.
func (m *roomTable) trim() {
	m.look()
	for m.used.Load() > m.budget.Load() && m.dropIdle() {
	}
}

// look computes the budget, once a second: the disk changes by others too. On btrfs punched
// bytes are free much later, so the budget is no sum of now.
func (m *roomTable) look() {
	m.mu.Lock()
	due := time.Since(m.looked) >= time.Second
	if due {
		m.looked = time.Now()
	}
	m.mu.Unlock()
	var disk unix.Statfs_t
	if !due || unix.Statfs(m.dir, &disk) != nil {
		return
	}
	all, free, used := int64(disk.Blocks)*disk.Bsize, int64(disk.Bavail)*disk.Bsize, m.used.Load()
	budget := m.size.bytes
	switch {
	case m.size.percent > 0:
		budget = all / 100 * int64(m.size.percent)
	case budget == 0:
		budget = used + free - all/reserveShare
	}
	m.budget.Store(min(max(budget, leastRoom), used+free))
}

// account returns how many bytes are used, and may be, and how often something left the disk.
func (m *roomTable) account() (used, budget, evictions int64) {
	m.look()
	return m.used.Load(), m.budget.Load(), m.evictions.Load()
}

// take reserves n bytes, and reports whether there is room for them.
func (m *roomTable) take(n int64) bool {
	for {
		used := m.used.Load()
		if n > 0 && used+n > m.budget.Load() {
			return false
		}
		if m.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// shrink makes the budget what is used: the disk has no more. What it says is believed
// again when a read has had the time to fail.
func (m *roomTable) shrink() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looked = time.Now().Add(roomPatience)
	m.budget.Store(min(m.budget.Load(), m.used.Load()))
}

func (m *roomTable) give(n int64) {
	m.used.Add(-n)
	m.kick()
}

// kick wakes who waits in awaitRoom. Whoever changes what claim, candidateLocked or dropClosed look at kicks after it;
// a fetch counts itself in asleep before it looks, and in short before it looks at what is pinned.
func (m *roomTable) kick() {
	if m.asleep.Load() > 0 {
		next := make(chan struct{})
		close(*m.changed.Swap(&next))
	}
}

// window returns how far, in bytes, a fetch runs ahead of a reader: those of all readers
// take at most half of the budget.
func (m *roomTable) window() int64 {
	return min(max(m.budget.Load()/(2*max(m.heads.Load(), 1)), minWindow), maxWindow)
}

// all returns the stores that have a temporary file.
func (m *roomTable) all() (stores []*TempFileStore) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.stores {
		stores = append(stores, s)
	}
	return stores
}

// dropIdle removes a file from the cache that no store has, and reports whether there was one. BLOCKS on the disk.
func (m *roomTable) dropIdle() bool {
	freed, dropped := m.cache.dropIdle()
	if dropped {
		m.evictions.Add(1)
		m.give(freed)
	}
	return dropped
}

// dropClosed lets the temporary file go of a store that no program has open, unless one goes
// already, and reports whether one goes; of several the least recently used. Where a reader does
// not need the room, a file stays that was asked for as a whole, or closed just now. It waits for
// nothing, as a fetch calls it, and the fetches of that store must end: they may wait for room too.
func (m *roomTable) dropClosed(needed bool) bool {
	if m.going.Load() > 0 {
		return true
	}
	for s := m.leastUsed(needed); s != nil; s = m.leastUsed(needed) {
		if s.abandon() != nil {
			m.evictions.Add(1)
			m.going.Add(1)
			m.closing.Go(func() {
				_ = s.LeaveCache() // the log has its error
				s.Close()
				m.going.Add(-1)
				m.kick()
			})
			return true
		}
	}
	return false
}

// leastUsed returns the store that dropClosed tries, nil for none.
func (m *roomTable) leastUsed(needed bool) (least *TempFileStore) {
	before := int64(math.MaxInt64)
	for _, s := range m.all() {
		s.mu.Lock()
		p, used := &s.plan, s.disk.used
		if p.all {
			used += math.MaxInt64 / 2
		}
		if p.handles == 0 && !p.moved && (needed || !p.all && p.linger == nil) && s.waiters.len()+len(s.disk.pinned) == 0 && used < before {
			least, before = s, used
		}
		s.mu.Unlock()
	}
	return least
}

// demand is what a fetch needs room for.
type demand struct {
	n       int64     // bytes
	awaited bool      // a reader waits for them
	since   time.Time // when the longest-waiting of these began to
}

// candidate is a chunk that may leave the disk.
type candidate struct {
	store  *TempFileStore
	number int64 // of the chunk
	cost   int   // how much it would be missed
	used   int64 // by the clock, when it was used last
}

const (
	costFree  = iota // nobody is about to read it
	costAhead        // a reader is
	costHalf         // a reader waits for more of it, who came later than the demand's
	costNever        // it cannot go
)

// makeRoom lets something go for d, and reports whether it did. busy says that it did not, but that there is
// something that goes in a while by itself. BLOCKS on the disk.
func (m *roomTable) makeRoom(d demand) (made, busy bool) {
	if m.dropIdle() {
		return true, false
	}
	if m.dropClosed(d.awaited) {
		return false, true
	}
	best := candidate{cost: costNever}
	for _, s := range m.all() {
		s.mu.Lock()
		c, held := s.candidateLocked(d)
		s.mu.Unlock()
		busy = busy || held
		if c.cost < best.cost || c.cost == best.cost && c.used < best.used {
			best = c
		}
	}
	if best.cost == costNever {
		return false, busy
	}
	return best.store.evict(d), true
}

// diskState is what a store knows of its bytes on the disk. The store's mu guards all of it.
type diskState struct {
	blocks rangeSet             // what the store has of the account
	used   int64                // by the clock, when a program opened or closed the file, or was seen to read it
	asked  int64                // the store's asked, then
	whole  int                  // handles for which a complete file must stay whole
	pinned map[*waiter]struct{} // reads that have their bytes, and copy them
	dying  []byteRange          // chunks that left present, and are leaving the disk
	chunks map[int64]*list.Element
	oldest list.List // of chunkUse, the least recently used first
	heads  []head
	stuck  time.Time // when the cache could not forget its bytes: for longer than a read needs to fail, none goes
}

// chunkUse is when a chunk was used last, by the clock.
type chunkUse struct{ number, used int64 }

func chunkRange(number int64) byteRange {
	return byteRange{number * chunkBytes, (number + 1) * chunkBytes}
}

// pinLocked keeps the bytes of w, which are present, on the disk until unpin.
func (s *TempFileStore) pinLocked(w *waiter) {
	if s.disk.pinned == nil {
		s.disk.pinned = make(map[*waiter]struct{})
	}
	s.disk.pinned[w] = struct{}{}
}

// unpin takes back the wait or the pin of w, which may be nil.
func (s *TempFileStore) unpin(w *waiter) {
	if w != nil {
		s.mu.Lock()
		s.waiters.remove(w)
		delete(s.disk.pinned, w)
		s.mu.Unlock()
		if s.room.short.Load() > 0 {
			s.room.kick()
		}
	}
}

// touchLocked records that the chunks of r were used.
func (s *TempFileStore) touchLocked(r byteRange) {
	d := &s.disk
	if d.chunks == nil {
		d.chunks = make(map[int64]*list.Element)
	}
	for c := r.off / chunkBytes; c*chunkBytes < r.end; c++ {
		if e := d.chunks[c]; e != nil {
			d.oldest.Remove(e)
		}
		d.chunks[c] = d.oldest.PushBack(chunkUse{c, s.room.clock.Add(1)})
	}
}

// stream makes the store one that evicts, for ever, and reports false if it must stay whole.
// A store that evicts is never complete.
func (s *TempFileStore) stream() bool {
	s.mu.Lock()
	if s.disk.whole > 0 || s.evicts.Load() {
		defer s.mu.Unlock()
		return s.disk.whole == 0
	}
	s.evicts.Store(true)
	s.downloaded.Store(0)
	if s.ended && s.err == nil {
		s.ended, s.doneCh = false, make(chan struct{})
	}
	s.mu.Unlock()
	s.trace.note(s.debugID, "%v: %s has no room for all of it: it streams through, and what left the disk is requested again when it is read",
		s.origin, s.room.dir)
	return true
}

// candidateLocked returns the chunk of s that would be missed least, for d. held says that a chunk stays only
// for a while. A store that keeps everything has not noted the reads of its chunks: it was used as a whole when
// it was last seen to be read, and nothing of it goes unless a reader waits for the room.
func (s *TempFileStore) candidateLocked(d demand) (best candidate, held bool) {
	best.cost = costNever
	evicts := s.evicts.Load()
	if s.disk.whole > 0 || s.room.noPunch.Load() || !evicts && !d.awaited || time.Since(s.disk.stuck) < 2*roomPatience {
		return best, false
	}
	if asked := s.asked.Load(); !evicts && asked != s.disk.asked {
		s.disk.asked, s.disk.used = asked, s.room.clock.Add(1)
	}
	s.dropHeadsLocked(headsKept)
	for e := s.disk.oldest.Front(); e != nil && best.cost > costFree; e = e.Next() {
		use := e.Value.(chunkUse)
		cost, holds := s.costLocked(use.number, d)
		held = held || holds
		if cost < best.cost {
			best = candidate{s, use.number, cost, max(use.used, s.disk.used)}
		}
	}
	return best, held
}

// costLocked returns how much a chunk would be missed; costNever if it may not go for d. held
// says that another operation keeps it, and ends.
func (s *TempFileStore) costLocked(number int64, d demand) (cost int, held bool) {
	r := chunkRange(number)
	for w := range s.disk.pinned {
		if w.r.overlaps(r) {
			return costNever, true
		}
	}
	for _, f := range s.plan.fetches {
		if r.overlaps(byteRange{f.pos, f.claim}) {
			return costNever, true
		}
	}
	for w := range s.waiters.overlapping(r) {
		switch {
		case !d.awaited || !w.since.After(d.since):
			return costNever, w.since.Before(d.since)
		default:
			cost = costHalf
		}
	}
	window := s.room.window()
	ahead := func(h head) bool { return r.overlaps(byteRange{h.pos, h.pos + window}) }
	if cost < costAhead && slices.ContainsFunc(s.disk.heads, ahead) {
		cost = costAhead
	}
	if cost > costFree && !d.awaited {
		cost = costNever
	}
	return cost, false
}

// evict gives back the disk of the candidate for d, and reports whether it did. Bytes leave present before the kernel
// punches the hole, and claim lets nobody write into it meanwhile: so no read sees the hole, and it destroys no byte
// that came again. BLOCKS on the disk.
func (s *TempFileStore) evict(d demand) bool {
	if !s.hold() {
		return false
	}
	defer s.unhold()
	if !s.stream() {
		return false
	}
	err := s.LeaveCache()
	s.mu.Lock()
	if err != nil {
		s.disk.stuck = time.Now()
	}
	c, _ := s.candidateLocked(d)
	if c.cost == costNever {
		s.mu.Unlock()
		return false
	}
	r := chunkRange(c.number)
	gone := s.present.remove(r)
	s.disk.oldest.Remove(s.disk.chunks[c.number])
	delete(s.disk.chunks, c.number)
	s.disk.dying = append(s.disk.dying, r)
	s.mu.Unlock()

	err = punch(s.file.Load(), r)
	if err != nil && !s.room.noPunch.Swap(true) {
		s.trace.note(s.debugID, "the file system of %s punches no holes (%v): no file streams through", s.room.dir, err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.disk.dying = slices.DeleteFunc(s.disk.dying, func(o byteRange) bool { return o == r })
	if err == nil {
		s.room.evictions.Add(1)
		s.room.give(sumOf(s.disk.blocks.remove(r)))
	}
	for _, piece := range gone {
		if err != nil {
			s.publishLocked(piece)
			s.room.kick()
		}
	}
	if s.waiters.len() > 0 {
		s.planLocked() // some may have lost bytes
	}
	return err == nil
}
