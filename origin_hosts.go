// origin_hosts.go shares the requests in flight among hosts and files. It learns how many requests at once a
// host takes and how long it may need for an answer. It makes no request itself: origin_ask.go does.

package main

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"sync"
	"time"
)

const (
	// A request above what a host takes is tried after trialGap, which doubles with each refusal,
	// up to trialGapMax. It has passed when it delivered for trialTime. A host that breaks the
	// oldest connection within killTime of a newer one, killsMax times, takes one less.
	trialGap    = 5 * time.Second
	trialGapMax = 10 * time.Minute
	trialTime   = 500 * time.Millisecond
	killTime    = time.Second
	killsMax    = 2
	// A refusal beside other requests may have any cause. refusalsBeside of them in a row are about the number.
	refusalsBeside = 2
	// Who needs a place and whose file has none asks another file's request to make way: at once if it has been
	// silent for silentTurn, or has brought less than dripBytes a second, else after turnTime. At its own host
	// it lets a request without an answer be for longer each time, up to turnMax: else slow answers never come.
	turnTime     = 5 * time.Second
	silentTurn   = time.Second
	turnMax      = time.Minute
	dripBytes    = 1 << 10
	lookInterval = 250 * time.Millisecond // how often those that wait for a place look for one to make way
	// A host may count a request that the program has left for leaveTime: a refusal
	// within it says nothing. It counts at most leavesMax times in a row.
	leaveTime = 5 * time.Second
	leavesMax = 5
)

var (
	errMadeWay = errors.New("made way for another file") // ends a request whose place another file needs more
	// errCrowded marks a refusal while other requests of the host were under way. It is
	// about their number, not about the file.
	errCrowded = errors.New("the host takes no more requests at once")
)

// crowdedError is an errCrowded that names its cause.
type crowdedError struct{ error }

func (e crowdedError) Unwrap() []error { return []error{errCrowded, e.error} }

// hostTable knows every host that was asked. Its mu is never held with a store's. INVARIANT: free and all places held
// are as many as newHostTable was told. A host holds at most limit places, and one more for a trial.
type hostTable struct {
	// Write once, before any goroutine starts.
	patience time.Duration // the least of any host

	// Read write.
	mu     sync.Mutex
	free   int                   // GUARDED_BY(mu); places
	places map[any]int           // GUARDED_BY(mu); of each file that has some
	hosts  map[string]*hostState // GUARDED_BY(mu)
	queue  []*place              // GUARDED_BY(mu); not granted; the longest-waiting first
	timer  *time.Timer           // GUARDED_BY(mu); calls look; nil if nobody waits
}

// hostState is what the table knows of a host.
type hostState struct {
	held     []*place // the oldest first
	limit    int      // how many requests at once it takes, as far as is known
	tryAt    time.Time
	gap      time.Duration
	trial    *place // the one above limit
	refusals int    // in a row, beside other requests
	kills    int    // in turnMax
	killedAt time.Time
	leftAt   time.Time     // when a request was left before its end
	leaves   int           // refusals in a row soon after that
	turn     time.Duration // that a request without an answer has
	patience time.Duration
	second   *place // of a request beside another that is not answered
}

// place is the right to one request in flight, or who waits for one.
type place struct {
	// Write once, before any goroutine starts.
	table   *hostTable
	host    *hostState
	file    any
	yield   func()        // nil: it goes soon anyway
	granted chan struct{} // closed

	// Read write, under the table's mu; the first two write once, when it is granted.
	since    time.Time
	patience time.Duration // how long the host may need for an answer
	answered time.Time
	moved    time.Time // when bytes came last, or since
	received int64     // bytes
	asked    bool      // to make way
	beside   bool      // another request of the host was under way meanwhile
}

// newHostTable returns a table of that many places. A host is given at least patience to answer.
func newHostTable(places int, patience time.Duration) *hostTable {
	return &hostTable{patience: patience, free: places, places: make(map[any]int), hosts: make(map[string]*hostState)}
}

// take returns a place for a request of file to host. If another file needs it, the table calls yield, from any
// goroutine, and the request should end. BLOCKS until there is a place; wakes on that and on the end of ctx.
func (t *hostTable) take(ctx context.Context, host string, file any, yield func()) (*place, error) {
	t.mu.Lock()
	h := t.hosts[host]
	if h == nil {
		h = &hostState{limit: math.MaxInt, gap: trialGap, turn: silentTurn, patience: t.patience}
		t.hosts[host] = h
	}
	p := &place{table: t, host: h, file: file, yield: yield, granted: make(chan struct{})}
	t.queue = append(t.queue, p)
	t.grantLocked()
	t.mu.Unlock()
	select {
	case <-p.granted:
		return p, nil
	case <-ctx.Done():
		p.done(true)
		return nil, context.Cause(ctx)
	}
}

// grantLocked gives places to those who wait: to files that have none first, then to the
// longest-waiting. It looks again soon if somebody still waits.
func (t *hostTable) grantLocked() {
	for p := t.nextLocked(); p != nil; p = t.nextLocked() {
		p.holdLocked()
		if len(p.host.held) > p.host.limit {
			p.host.trial = p
		}
		t.queue = slices.DeleteFunc(t.queue, func(other *place) bool { return other == p })
		close(p.granted)
	}
	if len(t.queue) > 0 && t.timer == nil {
		t.timer = time.AfterFunc(lookInterval, t.look)
	}
}

// nextLocked returns who gets the next place, nil if nobody can.
func (t *hostTable) nextLocked() (next *place) {
	if t.free == 0 {
		return nil
	}
	for _, p := range t.queue {
		if !p.host.takesLocked() {
			continue
		}
		if t.places[p.file] == 0 {
			return p
		}
		next = cmp.Or(next, p)
	}
	return next
}

func (h *hostState) takesLocked() bool {
	return len(h.held) < h.limit || len(h.held) == h.limit && h.trial == nil && time.Now().After(h.tryAt)
}

// holdLocked makes p one of those that are held.
func (p *place) holdLocked() {
	h := p.host
	p.since, p.patience = time.Now(), h.patience
	p.moved = p.since
	p.table.free--
	p.table.places[p.file]++
	h.held = append(h.held, p)
	for _, one := range h.held {
		one.beside = one.beside || len(h.held) > 1
	}
}

// look gives places to those who wait, and asks others to make way for files without any.
func (t *hostTable) look() {
	var leaving []*place
	t.mu.Lock()
	t.timer = nil
	t.grantLocked()
	most := slices.MaxFunc(slices.Collect(maps.Values(t.hosts)), func(a, b *hostState) int { return cmp.Compare(len(a.held), len(b.held)) })
	for _, s := range t.queue {
		if t.places[s.file] > 0 {
			continue
		}
		from := s.host // or the host that has most, if its own takes one more
		if from.takesLocked() && len(most.held) > len(from.held) {
			from = most
		}
		if p := from.inTheWayLocked(from == s.host); p != nil {
			p.asked = true
			if p.answered.IsZero() {
				p.host.turn = min(2*p.host.turn, turnMax)
			}
			leaving = append(leaving, p)
		}
	}
	t.mu.Unlock()
	for _, p := range leaving {
		p.yield()
	}
}

// inTheWayLocked returns the place that should go, nil if none should, or one is going: the oldest that brings nothing
// or a drip, else the oldest that has had its turn. own says that who waits for it wants an answer of h itself.
func (h *hostState) inTheWayLocked(own bool) (found *place) {
	now := time.Now()
	for _, p := range h.held {
		age, silent := now.Sub(p.since), now.Sub(p.moved)
		unanswered := own && p.answered.IsZero()
		switch {
		case p.asked:
			return nil
		case p.yield == nil, unanswered && silent <= h.turn:
		case unanswered, silent > silentTurn, age > turnTime && float64(p.received) < dripBytes*age.Seconds():
			return p
		case found == nil && age > turnTime:
			found = p
		}
	}
	return found
}

// done gives p back, unless that was done: the host's answer came to its end (ended), or the
// request was left. A place that nobody granted waits no more.
func (p *place) done(ended bool) {
	t, h := p.table, p.host
	isP := func(other *place) bool { return other == p }
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue = slices.DeleteFunc(t.queue, isP)
	if !slices.Contains(h.held, p) {
		return
	}
	h.held = slices.DeleteFunc(h.held, isP)
	t.free++
	if t.places[p.file]--; t.places[p.file] == 0 {
		delete(t.places, p.file)
	}
	if h.trial == p || len(h.held) <= h.limit { // it is above the limit no more, and proves nothing
		h.trial = nil
	}
	if h.second == p {
		h.second = nil
	}
	if !ended {
		h.leftAt = time.Now()
	}
	t.grantLocked()
}

// second returns a place for a request beside p, or nil: a host gets one such request at
// a time, and never above what it takes.
func (p *place) second() *place {
	t, h := p.table, p.host
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free == 0 || h.second != nil || len(h.held) >= h.limit {
		return nil
	}
	h.second = &place{table: t, host: h, file: p.file}
	h.second.holdLocked()
	return h.second
}

// opened learns that p's request was answered with bytes, wait after it was sent. A host
// whose answer comes late gets more patience, for a time.
func (p *place) opened(wait time.Duration) {
	h := p.host
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	p.answered, h.leaves, h.turn = time.Now(), 0, max(silentTurn, 2*wait)
	if len(h.held) > 1 {
		h.refusals = 0
	}
	switch {
	case wait >= h.patience:
		h.patience = min(2*wait, max(lateMax, h.patience))
	case wait < h.patience/4:
		h.patience = max(h.patience*3/4, p.table.patience)
	}
}

// arrived learns that n bytes came. A trial that has delivered for trialTime raises the limit.
func (p *place) arrived(n int) {
	h := p.host
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	p.moved, p.received = time.Now(), p.received+int64(n)
	if h.trial == p && p.moved.Sub(p.answered) > trialTime {
		h.trial, h.limit, h.gap, h.kills = nil, h.limit+1, trialGap, 0
		h.tryAt = p.moved.Add(h.gap)
		p.table.grantLocked()
	}
}

// refused learns that p's request was refused with err, and returns what to make of it: a crowdedError if others of the
// host were under way, which may be all that it takes, an error that passes soon after one was left, else err.
func (p *place) refused(err error) error {
	h := p.host
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	// A host that fails altogether, such as one that starts again, does not refuse for the number of requests.
	delivers := func(p *place) bool { return p.received > 0 && time.Since(p.moved) < silentTurn }
	if p.beside && (!errors.As(err, new(networkError)) || slices.ContainsFunc(h.held, delivers)) {
		if h.trial == p {
			h.gap = min(2*h.gap, trialGapMax)
		}
		if h.refusals++; h.refusals >= refusalsBeside || h.trial == p || h.second == p {
			h.takeLessLocked()
		}
		return crowdedError{err}
	}
	if status := (statusError{}); errors.As(err, &status) && h.leaves < leavesMax && time.Since(h.leftAt) < leaveTime && status.after == 0 {
		h.leaves++
		status.after = time.Second
		return status
	}
	return err
}

// takeLessLocked lowers the limit below what is under way, and lets no request above it go for a while.
func (h *hostState) takeLessLocked() {
	h.limit = min(h.limit, max(1, len(h.held)-1))
	h.tryAt = time.Now().Add(h.gap)
}

// broke learns that p's answer broke off with err, and returns what to make of it: a
// crowdedError if the host breaks older connections for newer ones.
func (p *place) broke(err error) error {
	h := p.host
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	newest := h.held[len(h.held)-1]
	if h.held[0] != p || newest == p || time.Since(newest.since) > killTime {
		return err
	}
	if time.Since(h.killedAt) > turnMax {
		h.kills = 0
	}
	h.killedAt = time.Now()
	if h.kills++; h.kills < killsMax {
		return err
	}
	h.takeLessLocked()
	return crowdedError{err}
}
