// rangeset.go holds byte ranges and sets of them: pure values, no I/O, no locks.

package main

import (
	"fmt"
	"slices"
	"sort"
)

// byteRange is the half-open interval [off, end) of a file's bytes. INVARIANT: 0 <= off <= end
type byteRange struct {
	off, end int64
}

func (r byteRange) len() int64 { return r.end - r.off }

func (r byteRange) empty() bool { return r.off >= r.end }

func (r byteRange) overlaps(o byteRange) bool { return max(r.off, o.off) < min(r.end, o.end) }

func (r byteRange) String() string { return fmt.Sprintf("[%d,%d)", r.off, r.end) }

// rangeSet is a set of byte offsets, kept as the fewest half-open ranges that cover it. The zero value is the empty
// set. INVARIANT: ranges are non-empty, sorted, and neither overlap nor touch, so a contiguous stretch of bytes is
// always inside a single range.
type rangeSet struct {
	ranges []byteRange
}

// add puts r in the set. It costs one binary search if r extends the range before it, as in a sequential download.
func (s *rangeSet) add(r byteRange) {
	if r.empty() {
		return
	}
	first := s.search(r.off)
	if first > 0 && s.ranges[first-1].end == r.off {
		first--
	}
	last := first
	for ; last < len(s.ranges) && s.ranges[last].off <= r.end; last++ {
		r.off = min(r.off, s.ranges[last].off)
		r.end = max(r.end, s.ranges[last].end)
	}
	s.ranges = slices.Replace(s.ranges, first, last, r)
}

// remove takes r out of the set, and returns what of it was in the set.
func (s *rangeSet) remove(r byteRange) []byteRange {
	var kept rangeSet
	first, removed := s.search(r.off), s.within(r)
	last := first + len(removed)
	for _, old := range s.ranges[first:last] {
		kept.add(byteRange{old.off, r.off})
		kept.add(byteRange{r.end, old.end})
	}
	s.ranges = slices.Replace(s.ranges, first, last, kept.ranges...)
	return removed
}

func (s *rangeSet) within(r byteRange) (found []byteRange) {
	for i := s.search(r.off); !r.empty() && i < len(s.ranges) && s.ranges[i].off < r.end; i++ {
		found = append(found, byteRange{max(s.ranges[i].off, r.off), min(s.ranges[i].end, r.end)})
	}
	return found
}

// contains reports whether every byte of r is in the set; an empty r always is.
func (s *rangeSet) contains(r byteRange) bool { return r.empty() || s.firstMissing(r.off) >= r.end }

func (s *rangeSet) firstMissing(off int64) int64 {
	if i := s.search(off); i < len(s.ranges) && s.ranges[i].off <= off {
		return s.ranges[i].end
	}
	return off
}

// firstOf returns the first offset from which on all bytes before off are in the set, off if there are none.
func (s *rangeSet) firstOf(off int64) int64 {
	if i := s.search(off - 1); i < len(s.ranges) {
		return min(off, s.ranges[i].off)
	}
	return off
}

// nextPresent returns the first offset at or after off that is in the set, or limit if there is none below limit.
func (s *rangeSet) nextPresent(off, limit int64) int64 {
	if i := s.search(off); i < len(s.ranges) {
		return min(limit, max(off, s.ranges[i].off))
	}
	return limit
}

func (s *rangeSet) total() int64 { return sumOf(s.ranges) }

func sumOf(ranges []byteRange) (n int64) {
	for _, r := range ranges {
		n += r.len()
	}
	return n
}

// search returns the index of the first range that ends after off.
func (s *rangeSet) search(off int64) int {
	return sort.Search(len(s.ranges), func(i int) bool { return s.ranges[i].end > off })
}
