// store_wanted.go knows what programs want of a store: who has the file open, what was read and
// where readers are, whether somebody asked for all of it, and when a failed store is tried again.
// It decides whether bytes that nobody waits for are fetched; store_plan.go decides how.

package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"
)

const (
	// Of a file in which readers jump, or that nobody has open, the rest is fetched while
	// less than startShare times what was read has come, and no longer than until
	// stopShare times that: a program that looks for something reads little of much.
	startShare = 8
	stopShare  = 16
	// headsKept bounds the readers of one store that are told apart. One that has not read
	// for headLife protects nothing.
	headsKept = 32
	headLife  = 10 * time.Second
)

// wantsRestLocked reports whether to fetch bytes below reach that nobody waits for, as long as less than share times
// what was read has come: somebody asked for the whole file, or has read of it, and it is open or was until linger ago.
func (s *TempFileStore) wantsRestLocked(share int64) bool {
	p := &s.plan
	switch {
	case p.reach == 0, s.evicts.Load(), time.Now().Before(p.full):
		return false
	case p.all:
		return true
	case p.handles > 0 && !p.jumped:
		return true
	case p.handles > 0, p.linger != nil:
		return p.received/share <= s.asked.Load()
	}
	return false
}

// AddHandle records that a program opened the file. It stops the linger timer, and
// lets the next read try a failed store again: what has arrived stays.
func (s *TempFileStore) AddHandle() {
	s.addHandles(1)
	if !s.Complete() {
		s.origin.Connect(s.obj)
	}
}

// DropHandle records that a program closed the file. When no program has had it open for linger,
// pauseLocked ends the fetches that nobody waits for. What has arrived stays.
func (s *TempFileStore) DropHandle() { s.addHandles(-1) }

// addHandles adds n to the handles of the store, or of the one that replaced it.
func (s *TempFileStore) addHandles(n int) {
	s.mu.Lock()
	if s.plan.moved {
		s.mu.Unlock()
		s.Replacement().addHandles(n)
		return
	}
	defer s.mu.Unlock()
	p := &s.plan
	p.handles += n
	s.disk.used = s.room.clock.Add(1)
	s.room.kick()
	s.saveSoonLocked(0, p.handles == 0)
	s.reopened = s.reopened || n > 0 && s.ended
	switch {
	case p.linger != nil && p.handles > 0:
		p.linger.Stop()
		p.linger = nil
	case p.linger == nil && p.handles == 0 && !s.ended:
		p.linger = time.AfterFunc(s.linger, func() { s.onTimer(s.pauseLocked) })
	}
}

// KeepWhole reports whether the file is complete, and then keeps it so until LetGo: a read
// through the page cache, or by the kernel alone, must not wait.
func (s *TempFileStore) KeepWhole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.Complete() {
		return false
	}
	s.disk.whole++
	return true
}

// Backing returns the file that has all bytes, nil if it is not open, or another store took this one's place. Giving
// it to the kernel counts as a read. REQUIRES: KeepWhole
func (s *TempFileStore) Backing() *os.File {
	if s.file.Load() == nil || !s.deliver() {
		return nil
	}
	return s.file.Load()
}

// TakeStale reports, once, whether the kernel may have pages of the file that are no longer right.
func (s *TempFileStore) TakeStale() bool { return s.stale.Swap(false) }

// LetGo takes back a KeepWhole.
func (s *TempFileStore) LetGo() {
	s.mu.Lock()
	s.disk.whole--
	s.mu.Unlock()
	s.room.kick()
}

// tryAgainLocked makes an ended store fetch again if a program opened the file since it failed, and
// a pause is over that grows with each failure in a row. After a change it does so only if the
// origin names the version: else nothing would tell its bytes from those of another.
func (s *TempFileStore) tryAgainLocked() {
	p := &s.plan
	pause := time.Duration(0)
	if errors.Is(s.err, errChanged) || p.ends > 1 {
		pause = min(backoffMax, idleAfter<<max(0, min(p.ends-1, 10)))
	}
	nameless := errors.Is(s.err, errChanged) && !s.obj.named()
	if !s.reopened || s.err == nil || nameless || time.Since(p.failedAt) < pause || p.moved || s.closed.Load() {
		return
	}
	s.ended, s.err, s.reopened, s.doneCh = false, nil, false, make(chan struct{})
	p.fits, p.fitsErr = s.obj.Size, nil
	p.failures, p.refusals, p.retryAt, p.lastErr = 0, 0, time.Time{}, nil
}

// TryAgain makes a store that failed fetch again.
func (s *TempFileStore) TryAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reopened, s.plan.failedAt = s.ended, time.Time{}
	s.tryAgainLocked()
}

// Streams reports whether there is no room for the whole file.
func (s *TempFileStore) Streams() bool {
	_, budget, _ := s.room.account()
	return s.evicts.Load() || s.obj.Size > budget
}

// Want makes a store that failed fetch again, and keep all that Fetch, or a reader,
// makes it fetch, whoever has the file open.
func (s *TempFileStore) Want() {
	s.TryAgain()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan.all = true
}

// WantRest makes the store fetch all that is missing.
func (s *TempFileStore) WantRest() {
	s.onTimer(func() { s.plan.all, s.plan.reach = true, s.plan.fits })
}

// Fetch downloads the whole file, whoever has it open, and returns when another file may start: when this one is
// complete, has failed, has no room, or has brought nothing for stalledAfter. Its download goes on even then.
// BLOCKS until that; wakes on doneCh, every idleAfter, and on the end of ctx.
func (s *TempFileStore) Fetch(ctx context.Context) {
	tick := time.NewTicker(idleAfter)
	defer tick.Stop()
	s.WantRest()
	for silent := time.Duration(0); silent < stalledAfter && !s.evicts.Load(); {
		s.mu.Lock()
		done := s.doneCh
		silent = s.silentLocked(time.Now())
		if f := s.plan.fetches; time.Now().Before(s.plan.full) || len(f) > 0 && !s.runsLocked() && time.Since(f[0].lastSign()) >= stalledAfter {
			silent = stalledAfter // the next one may have room
		}
		s.mu.Unlock()
		select {
		case <-done:
			return
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// pauseLocked stops the fetches that nobody waits for, if no handle is open.
func (s *TempFileStore) pauseLocked() {
	if s.plan.handles > 0 || s.plan.all {
		return
	}
	s.plan.linger = nil
	for _, f := range s.plan.fetches {
		if !s.awaitedLocked(f) {
			f.stop(errPaused)
		}
	}
}

// head is a reader, as far as its reads tell.
type head struct {
	from, pos int64 // it has read [from, pos)
	seen      time.Time
}

// noteReadLocked learns, in a store that evicts, where a reader is, and wakes a fetch to which it has come near.
func (s *TempFileStore) noteReadLocked(r byteRange) {
	d := &s.disk
	if !s.evicts.Load() {
		return
	}
	s.touchLocked(r)
	i := slices.IndexFunc(d.heads, func(h head) bool { return max(r.off-h.pos, h.pos-r.off) <= soonBytes })
	if i < 0 {
		s.dropHeadsLocked(headsKept - 1)
		i = len(d.heads)
		d.heads = append(d.heads, head{from: r.off, pos: r.off})
		s.room.heads.Add(1)
	}
	h := &d.heads[i]
	h.pos, h.seen = max(h.pos, r.end), time.Now()
	if slices.ContainsFunc(s.plan.fetches, func(f *fetch) bool { return f.paused && s.nearLocked(f) }) {
		s.room.kick()
	}
}

// dropHeadsLocked forgets readers that have not read for long, and of the others all but most.
func (s *TempFileStore) dropHeadsLocked(most int) {
	d := &s.disk
	before := len(d.heads)
	d.heads = slices.DeleteFunc(d.heads, func(h head) bool { return time.Since(h.seen) > headLife })
	slices.SortFunc(d.heads, func(a, b head) int { return b.seen.Compare(a.seen) })
	d.heads = d.heads[:min(most, len(d.heads))]
	s.room.heads.Add(int64(len(d.heads) - before))
}

// nearLocked reports whether a reader is near enough behind f.
func (s *TempFileStore) nearLocked(f *fetch) bool {
	window := s.room.window()
	if f.paused {
		window /= 2
	}
	return slices.ContainsFunc(s.disk.heads, func(h head) bool {
		return h.pos-soonBytes <= f.pos && f.pos <= h.pos+window && time.Since(h.seen) <= headLife
	})
}

// streamBytesLocked returns how many bytes to request at off in a store that evicts: little for a reader that jumps,
// and all from there on for one that goes on. The window stops that request; a new one would cost a round trip.
func (s *TempFileStore) streamBytesLocked(off int64) int64 {
	if s.plan.inOrder {
		return s.obj.Size
	}
	for _, h := range s.disk.heads {
		switch goesOn := max(off-h.pos, h.pos-off) <= soonBytes; {
		case goesOn && h.pos-h.from >= beginningBytes/2:
			return s.obj.Size
		case goesOn && h.pos-h.from >= headBytes/2:
			return beginningBytes
		}
	}
	return headBytes / 2
}
