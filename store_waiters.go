// store_waiters.go keeps the reads that sleep, in the order of the bytes that they wait for. What an
// arrival or a plan asks of them costs the logarithm of their number, not a look at each.

package main

import (
	"iter"
	"math"
	"math/rand/v2"
	"time"
)

// waiter is a read that sleeps, and a node of the tree of those of a store.
type waiter struct {
	// Write once, before it sleeps.
	r        byteRange // what it reads
	since    time.Time
	notifyCh chan struct{} // closed, once, when it has its answer: err, or its bytes, which are pinned then
	err      error         // GUARDED_BY(TempFileStore.mu) until then

	// Of the tree, GUARDED_BY(TempFileStore.mu). These are about the waiters from this one down.
	asleep         bool   // it is in the tree
	id             uint64 // ascends in the order in which they came
	rank           uint64
	left, right    *waiter
	count          int
	oldest, newest *waiter
	firstEnd       int64 // the least r.end
	lastEnd        int64 // the greatest
}

func newWaiter(r byteRange) *waiter {
	return &waiter{r: r, since: time.Now(), notifyCh: make(chan struct{})}
}

// waiterTree is a treap: ordered by where reads begin, and balanced by random ranks. Its owner's lock guards it.
type waiterTree struct {
	root   *waiter
	lastID uint64
}

func (t *waiterTree) len() int {
	if t.root == nil {
		return 0
	}
	return t.root.count
}

func (t *waiterTree) add(w *waiter) {
	t.lastID++
	w.asleep, w.id, w.rank = true, t.lastID, rand.Uint64()
	before, behind := t.root.split(w.r.off, w.id)
	t.root = join(join(before, w.sum()), behind)
}

// remove takes w out, which may have gone already.
func (t *waiterTree) remove(w *waiter) {
	if w.asleep {
		before, rest := t.root.split(w.r.off, w.id)
		_, behind := rest.split(w.r.off, w.id+1)
		t.root = join(before, behind)
		w.asleep, w.left, w.right = false, nil, nil
	}
}

// between returns who came first and last of those whose reads begin in r, nil for none.
func (t *waiterTree) between(r byteRange) (oldest, newest *waiter) {
	before, rest := t.root.split(r.off, 0)
	in, behind := rest.split(r.end, 0)
	if in != nil {
		oldest, newest = in.oldest, in.newest
	}
	t.root = join(before, join(in, behind))
	return oldest, newest
}

func (t *waiterTree) inside(r byteRange) []*waiter { return t.root.inside(r, nil) }

// overlapping yields those whose reads overlap r. The caller changes nothing meanwhile.
func (t *waiterTree) overlapping(r byteRange) iter.Seq[*waiter] {
	return func(yield func(*waiter) bool) { t.root.visit(r, yield) }
}

func (t *waiterTree) all() iter.Seq[*waiter] { return t.overlapping(byteRange{0, math.MaxInt64}) }

// split parts the tree of w into those before (off, id) and the others.
func (w *waiter) split(off int64, id uint64) (before, behind *waiter) {
	switch {
	case w == nil:
		return nil, nil
	case w.r.off < off || w.r.off == off && w.id < id:
		w.right, behind = w.right.split(off, id)
		return w.sum(), behind
	}
	before, w.left = w.left.split(off, id)
	return before, w.sum()
}

// join makes one tree of two, of which all of a come before all of b.
func join(a, b *waiter) *waiter {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.rank > b.rank:
		a.right = join(a.right, b)
		return a.sum()
	}
	b.left = join(a, b.left)
	return b.sum()
}

// sum computes what w knows of its tree from what its children know of theirs.
func (w *waiter) sum() *waiter {
	w.count, w.oldest, w.newest, w.firstEnd, w.lastEnd = 1, w, w, w.r.end, w.r.end
	for _, c := range [...]*waiter{w.left, w.right} {
		if c == nil {
			continue
		}
		w.count += c.count
		w.firstEnd, w.lastEnd = min(w.firstEnd, c.firstEnd), max(w.lastEnd, c.lastEnd)
		if c.oldest.id < w.oldest.id {
			w.oldest = c.oldest
		}
		if c.newest.id > w.newest.id {
			w.newest = c.newest
		}
	}
	return w
}

func (w *waiter) inside(r byteRange, found []*waiter) []*waiter {
	if w == nil || w.firstEnd > r.end {
		return found
	}
	if w.r.off >= r.off {
		found = w.left.inside(r, found)
		if w.r.end <= r.end {
			found = append(found, w)
		}
	}
	return w.right.inside(r, found)
}

func (w *waiter) visit(r byteRange, yield func(*waiter) bool) (goOn bool) {
	return w == nil || w.lastEnd <= r.off || w.left.visit(r, yield) &&
		(!w.r.overlaps(r) || yield(w)) && (w.r.off >= r.end || w.right.visit(r, yield))
}
