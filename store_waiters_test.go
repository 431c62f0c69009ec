package main

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

// The tree says what a look at each waiter would, whatever joins it and leaves it.
func TestWaiterTreeIsALookAtEach(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() byteRange {
		off := rng.Int64N(100)
		return byteRange{off, off + 1 + rng.Int64N(30)}
	}
	var tree waiterTree
	var members []*waiter // in the order in which they came
	for range 5000 {
		switch n := rng.IntN(5); {
		case n < 2 || len(members) == 0:
			w := newWaiter(random())
			tree.add(w)
			members = append(members, w)
		case n == 2:
			i := rng.IntN(len(members))
			tree.remove(members[i])
			tree.remove(members[i]) // which is gone
			members = slices.Delete(members, i, i+1)
		}
		r := random()
		that := func(is func(w *waiter) bool) (some []*waiter) {
			some = slices.DeleteFunc(slices.Clone(members), func(w *waiter) bool { return !is(w) })
			slices.SortFunc(some, func(a, b *waiter) int { return cmp.Or(cmp.Compare(a.r.off, b.r.off), cmp.Compare(a.id, b.id)) })
			return some
		}
		same := func(what string, got, want []*waiter) {
			if !slices.Equal(got, want) {
				t.Fatalf("%s %v of %d waiters: got %d, want %d", what, r, len(members), len(got), len(want))
			}
		}
		same("inside", tree.inside(r), that(func(w *waiter) bool { return w.r.off >= r.off && w.r.end <= r.end }))
		same("overlapping", slices.Collect(tree.overlapping(r)), that(func(w *waiter) bool { return w.r.overlaps(r) }))
		same("all", slices.Collect(tree.all()), that(func(*waiter) bool { return true }))
		in := that(func(w *waiter) bool { return w.r.off >= r.off && w.r.off < r.end })
		slices.SortFunc(in, func(a, b *waiter) int { return cmp.Compare(a.id, b.id) })
		oldest, newest := tree.between(r)
		if len(in) == 0 {
			in = []*waiter{nil}
		}
		if oldest != in[0] || newest != in[len(in)-1] || tree.len() != len(members) {
			t.Fatalf("between %v: got %p and %p of %d, want %p and %p of %d", r, oldest, newest, tree.len(), in[0], in[len(in)-1], len(members))
		}
	}
}
