// store_parallel.go decides how many fetches bring the rest of a file that is read in order. Where the origin
// limits each connection, several are faster. Where the path or the origin limits the whole, several only share
// it, and a reader in order gets no more than the share of the first one. So the store tries a second one and
// measures. The pacer bounds how fast the fetches of all files are together.

package main

import (
	"cmp"
	"context"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// slowBytesPerSecond: below this rate, round trips or the origin's limit for one
	// connection may hold a fetch back. Above it, nothing needs help.
	slowBytesPerSecond = 32 << 20
	// A speed is measured over at least slowAfter and sampleBytes, so that pieces of 64 KiB do not blur it.
	slowAfter   = 200 * time.Millisecond
	sampleBytes = 256 << 10
	// A speed that changes by less than steadyChange from a sample to the next is the
	// limit's: TCP starts slowly, and some origins start fast.
	steadyChange = 1.25
	// pairGain is how much faster two fetches must be than one, between 1 for no gain and 2 for a
	// limit of each connection; groupGain is the same for more. Otherwise, weakSamples in a row end
	// them until trialInterval is over: a trial costs a reader in order a fifth of a second.
	pairGain      = 1.5
	groupGain     = 1.9
	weakSamples   = 2
	trialInterval = 15 * time.Second
	// Parallel fetches of the rest are as long as one brings in a second if they share
	// what one had, within these bounds: beside a second a round trip is short, and a
	// reader in order waits no longer for what the others bring first.
	minParallelBytes = 128 << 10
	maxParallelBytes = 4 << 20
)

// speedometer takes samples of the speed at which bytes arrive.
type speedometer struct {
	since        time.Time // of the running sample
	received     int64     // bytes in all, then
	together     bool      // the sample is of several fetches
	last, before int64     // the latest two samples, in bytes a second; 0: none
}

// count learns that received bytes have arrived in all, and reports whether they complete a sample.
// No sample is of one fetch for a part of its time, and of several for another.
func (m *speedometer) count(received int64, together bool, now time.Time) bool {
	took, n := now.Sub(m.since), received-m.received
	if !m.since.IsZero() && together == m.together {
		if took < slowAfter || n < sampleBytes {
			return false
		}
		m.before, m.last = m.last, perSecond(n, took)
	} else {
		m.before, m.last = 0, 0
	}
	m.since, m.received, m.together = now, received, together
	return m.last > 0
}

func (m *speedometer) steady() bool {
	last, before := float64(m.last), float64(m.before)
	return before > 0 && last < steadyChange*before && before < steadyChange*last
}

func perSecond(n int64, took time.Duration) int64 { return int64(float64(n) / took.Seconds()) }

// rate is in bytes a second, 0 before slowAfter.
func (f *fetch) rate(now time.Time) int64 {
	took := now.Sub(f.answered)
	if f.answered.IsZero() || took < slowAfter {
		return 0
	}
	return perSecond(f.pos-f.first, took)
}

// companyTrial is what the plan knows of several fetches in the place of one.
type companyTrial struct {
	tried bool      // a second fetch was started, and nothing is known of it yet
	helps bool      // they are faster
	alone int64     // bytes a second of one fetch, before
	weak  int       // samples in a row in which several were not faster
	ended time.Time // when the trial showed them useless
}

// refused ends a trial in which the origin refused a request, perhaps for being the second.
func (c *companyTrial) refused() {
	if c.tried {
		c.tried, c.ended = false, time.Now()
	}
}

// judgeCompanyLocked judges several fetches by each sample of their speed, and stops all
// but the first when they are not faster than it was alone.
func (s *TempFileStore) judgeCompanyLocked(now time.Time) {
	p := &s.plan
	c := &p.company
	together := len(p.fetches) >= 2 && !p.fetches[1].answered.IsZero()
	if !p.speed.count(p.received, together, now) || !together || p.jumped || c.alone == 0 {
		return
	}
	gain := pairGain
	if len(p.fetches) > 2 {
		gain = groupGain
	}
	if float64(p.speed.last) >= gain*float64(c.alone) {
		c.tried, c.helps, c.weak = false, true, 0
		return
	}
	if c.weak++; c.weak < weakSamples {
		return
	}
	c.tried, c.helps, c.ended = false, false, now
	first := s.present.firstMissing(0)
	for _, f := range p.fetches {
		if f.pos > first && !s.awaitedLocked(f) {
			f.stop(errPreempted)
		}
	}
}

// restLimitLocked returns how many fetches may run, all told, when the next one would
// be for the rest. Readers that jump want what they want in no order.
func (s *TempFileStore) restLimitLocked() int {
	p, now := &s.plan, time.Now()
	slow := slices.ContainsFunc(p.fetches, func(f *fetch) bool {
		rate := f.rate(now)
		return rate > 0 && rate < slowBytesPerSecond
	})
	switch {
	case s.lateLocked():
		return min(2, s.connections)
	case slow && (p.jumped || p.company.helps):
		return s.connections
	case slow && p.speed.steady() && now.Sub(p.company.ended) > trialInterval:
		return min(2, s.connections)
	}
	return 1
}

// lateLocked reports whether a reader waits for the first answer longer than for any that costs a
// round trip. An origin that is slow with the next answer too should be asked for the rest by then.
func (s *TempFileStore) lateLocked() bool {
	p := &s.plan
	if len(p.fetches) != 1 || s.waiters.len() == 0 || p.jumped {
		return false
	}
	f := p.fetches[0]
	return f.answered.IsZero() && !f.requested.IsZero() && time.Since(f.requested) >= idleAfter
}

// startRestLocked starts a fetch of the first bytes below reach that are neither present nor ahead of a fetch. If there
// are none, it takes bytes off a fetch that has many ahead of it. It reports whether it started anything.
func (s *TempFileStore) startRestLocked() bool {
	p := &s.plan
	late := s.lateLocked()
	if c := &p.company; len(p.fetches) == 1 && !p.jumped && !late && !c.tried && !c.helps {
		*c = companyTrial{tried: true, alone: max(p.speed.last, p.speed.before)}
	}
	share := cmp.Or(p.speed.last, p.company.alone, p.rate) / int64(len(p.fetches)+1)
	part := min(max(share, minParallelBytes), maxParallelBytes)
	if late {
		part, p.reach = p.fits, p.fits
	}
	if off := s.firstUnclaimedLocked(); off < p.reach {
		size := p.reach
		switch {
		case p.jumped:
			size = max(s.nextChunkLocked(off), part)
		case len(p.fetches) > 0:
			size = part
		}
		return s.startLocked(byteRange{off, off + min(size, p.reach-off)}, true)
	}
	for _, f := range p.fetches {
		if left := f.end - f.pos; left >= 2*minParallelBytes {
			part = min(part, left/2)
			return s.startLocked(byteRange{f.pos + part, f.pos + 2*part}, true)
		}
	}
	return false
}

// firstUnclaimedLocked returns the first byte that is neither present nor ahead of a fetch.
func (s *TempFileStore) firstUnclaimedLocked() int64 {
	var ahead rangeSet
	for _, f := range s.plan.fetches {
		ahead.add(byteRange{f.pos, f.end})
	}
	off := s.present.firstMissing(0)
	for next := ahead.firstMissing(off); next > off; next = ahead.firstMissing(off) {
		off = s.present.firstMissing(next)
	}
	return off
}

// pacer keeps what all fetches of a mount read below a rate (--limit-rate). The files that
// readers wait for share it, a turn each; all else gets what these leave.
// INVARIANT: in any t seconds, fetches may read rate*t bytes and one burst, and no more.
type pacer struct {
	// Write once, before any goroutine starts.
	limiter *rate.Limiter
	bytes   int // of a turn

	// Read write.
	turns int64 // that next gave
	mu    sync.Mutex
	queue []*throttledBody // GUARDED_BY(mu); those that wait for a turn; if there are any, next is due
}

// newPacer returns a pacer of so many bytes a second. A burst of 40 ms makes up for the
// delays of a busy machine, and is 4 % of the first second.
func newPacer(bytesPerSecond int) *pacer {
	turn := min(max(bytesPerSecond/50, 1), fetchBufferBytes)
	return &pacer{limiter: rate.NewLimiter(rate.Limit(bytesPerSecond), max(bytesPerSecond/25, turn)), bytes: turn}
}

// throttledBody is the body of a fetch, read as the pacer allows: TCP then slows the origin down.
type throttledBody struct {
	io.ReadCloser
	ctx     context.Context // of the request
	store   *TempFileStore
	fetch   *fetch
	turn    chan int // how many bytes more it may read
	allowed int      // bytes
	rank    int64    // the least is next
}

// Read implements io.Reader. Of a Read that only drops bytes, it counts skipBytes.
// BLOCKS until b may read, and until bytes arrive; wakes on these and on the end of ctx.
func (b *throttledBody) Read(p []byte) (int, error) {
	for pace := b.store.pace; b.allowed <= 0; {
		pace.mu.Lock()
		if pace.queue = append(pace.queue, b); len(pace.queue) == 1 {
			pace.plan()
		}
		pace.mu.Unlock()
		select {
		case n := <-b.turn:
			b.allowed += n
		case <-b.ctx.Done():
			return 0, context.Cause(b.ctx)
		}
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.allowed)])
	b.allowed -= n
	if n == 0 && err == nil {
		b.allowed -= skipBytes
	}
	return n, err
}

func (b *throttledBody) Close() error {
	b.store.pace.limiter.ReserveN(time.Now(), -max(b.allowed, 0))
	return b.ReadCloser.Close()
}

// plan makes a turn due when the rate allows it.
func (p *pacer) plan() { time.AfterFunc(p.limiter.ReserveN(time.Now(), p.bytes).Delay(), p.next) }

// next gives a turn to a fetch that a reader waits for, else to any: to one of the file whose latest turn is the
// longest ago. BLOCKS for nobody: who is in the queue has no turn, and room for one.
func (p *pacer) next() {
	p.mu.Lock()
	p.queue = slices.DeleteFunc(p.queue, func(b *throttledBody) bool { return b.ctx.Err() != nil })
	queue := slices.Clone(p.queue)
	p.mu.Unlock()
	if len(queue) == 0 {
		p.limiter.ReserveN(time.Now(), -p.bytes)
		return
	}
	for _, b := range queue {
		b.rank = b.store.paced
		if !b.store.awaits(b.fetch) {
			b.rank += math.MaxInt64 / 2
		}
	}
	first := slices.MinFunc(queue, func(a, b *throttledBody) int { return cmp.Compare(a.rank, b.rank) })
	p.turns++
	first.store.paced = p.turns
	p.mu.Lock()
	p.queue = slices.DeleteFunc(p.queue, func(b *throttledBody) bool { return b == first })
	if len(p.queue) > 0 {
		p.plan()
	}
	p.mu.Unlock()
	first.turn <- p.bytes
}

// awaits reports whether a reader waits for a byte that f has ahead. That the pacer holds f
// back is no silence of the origin's, and no reason to try several fetches.
func (s *TempFileStore) awaits(f *fetch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(f.moved) > time.Millisecond {
		f.moved, s.plan.progress, s.plan.company.ended = now, now, now
	}
	return s.demandLocked(f, f.end).awaited
}
