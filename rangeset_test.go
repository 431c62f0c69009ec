// Tests of the range set against a model: one bool for each byte.

package main

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// checkRangeSet requires that s holds exactly the bytes that are true in model.
func checkRangeSet(t *testing.T, s *rangeSet, model []bool) {
	t.Helper()
	for i, r := range s.ranges {
		if r.empty() || i > 0 && s.ranges[i-1].end >= r.off {
			t.Fatalf("ranges %v: number %d is empty, unsorted or touches the one before", s.ranges, i)
		}
	}
	size := int64(len(model))
	var total, prefix int64
	for off, present := range model {
		if present != s.contains(byteRange{int64(off), int64(off) + 1}) {
			t.Fatalf("ranges %v: byte %d should be %v", s.ranges, off, present)
		}
		if present {
			total++
			if prefix == int64(off) {
				prefix++
			}
		}
	}
	if s.total() != total || s.firstMissing(0) != prefix {
		t.Fatalf("ranges %v: total %d and prefix %d, want %d and %d", s.ranges, s.total(), s.firstMissing(0), total, prefix)
	}
	for off := range size {
		for end := off; end <= size; end++ {
			if got, want := s.contains(byteRange{off, end}), !slices.Contains(model[off:end], false); got != want {
				t.Fatalf("ranges %v: contains(%v) is %v", s.ranges, byteRange{off, end}, got)
			}
		}
	}
}

// change adds r to s and model, or removes it from both.
func change(t *testing.T, s *rangeSet, model []bool, r byteRange, add bool) {
	t.Helper()
	if add {
		s.add(r)
	} else {
		had := make([]bool, len(model))
		for _, gone := range s.remove(r) {
			for i := gone.off; i < gone.end; i++ {
				had[i] = true
			}
		}
		for i := r.off; i < r.end; i++ {
			if had[i] != model[i] {
				t.Fatalf("remove %v: byte %d was there: %v, want %v", r, i, had[i], model[i])
			}
		}
	}
	for i := r.off; i < r.end; i++ {
		model[i] = add
	}
}

func TestRangeSetAgreesWithAModel(t *testing.T) {
	const size = 24
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var s rangeSet
		model := make([]bool, size)
		for range 12 {
			off := rng.Int64N(size)
			r := byteRange{off, off + rng.Int64N(size-off+1)}
			change(t, &s, model, r, rng.IntN(3) > 0)
			checkRangeSet(t, &s, model)
		}
	}
}

func FuzzRangeSet(f *testing.F) {
	f.Add([]byte{0, 4, 8, 4, 4, 4})
	f.Add([]byte{10, 1, 0, 10, 11, 0, 12, 30})
	f.Fuzz(func(t *testing.T, spans []byte) {
		const size = 40
		var s rangeSet
		model := make([]bool, size)
		for ; len(spans) >= 2; spans = spans[2:] {
			off := int64(spans[0]) % size
			r := byteRange{off, min(size, off+int64(spans[1])%size)}
			change(t, &s, model, r, spans[1] < 200)
		}
		checkRangeSet(t, &s, model)
	})
}
