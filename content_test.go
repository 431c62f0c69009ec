// Tests of the content that all other tests check reads against: that it is
// what it is said to be at any offset, and that a check finds, and rightly
// describes, every kind of damage a read can show.

package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

const testSeed = 1234567

// contentOf returns the bytes [off, off+n) of the stream of testSeed.
func contentOf(off int64, n int) []byte {
	p := make([]byte, n)
	fillContent(p, testSeed, off)
	return p
}

// The numbers are the test vector that ports of splitmix64 are checked with.
func TestContentIsSplitmix64(t *testing.T) {
	want := []uint64{
		6457827717110365317,
		3203168211198807973,
		9817491932198370423,
		4593380528125082431,
		16408922859458223821,
	}
	p := contentOf(0, len(want)*contentWord)
	for i, w := range want {
		if got := binary.LittleEndian.Uint64(p[i*contentWord:]); got != w {
			t.Errorf("word %d = %d, want %d", i, got, w)
		}
	}
}

func TestContentAtAnyOffsetAndLength(t *testing.T) {
	const base, reach = 1<<40 + 8, 64
	whole := contentOf(base, reach)
	for off := range 2*contentWord + 1 {
		for n := range reach - off + 1 {
			got := contentOf(base+int64(off), n)
			if string(got) != string(whole[off:off+n]) {
				t.Fatalf("[%d,+%d) = %x, want %x", off, n, got, whole[off:off+n])
			}
		}
	}
}

func TestContentDiffersBySeed(t *testing.T) {
	a, b := make([]byte, 64), make([]byte, 64)
	fillContent(a, 1, 0)
	fillContent(b, 2, 0)
	if string(a) == string(b) {
		t.Error("seeds 1 and 2 give the same content")
	}
}

func TestContentAllocatesNothing(t *testing.T) {
	p := make([]byte, 10000)
	allocs := testing.AllocsPerRun(10, func() {
		fillContent(p, testSeed, 3)
		if err := checkContent(p, testSeed, 3); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("fill and check allocate %v times, want 0", allocs)
	}
}

func TestContentWordTellsItsIndex(t *testing.T) {
	for _, index := range []int64{0, 1, 511, 1 << 20, 1<<60 - 1} {
		word := contentMix(contentState(testSeed, index))
		if got := contentIndex(testSeed, word); got != uint64(index) {
			t.Errorf("contentIndex of word %d = %d", index, got)
		}
	}
}

func TestCheckContentFindsEveryWrongByte(t *testing.T) {
	const off = 4090 // neither aligned nor within one of the check's own steps
	p := contentOf(off, 5000)
	if err := checkContent(p, testSeed, off); err != nil {
		t.Fatal(err)
	}
	for i := range p {
		p[i] ^= 1
		err := checkContent(p, testSeed, off)
		if want := fmt.Sprintf("byte at offset %d is", off+i); err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("byte %d flipped: error %v, want one with %q", i, err, want)
		}
		p[i] ^= 1
	}
}

func TestCheckContentDescribesTheDamage(t *testing.T) {
	tests := []struct {
		name   string
		damage func(p []byte) // of [1000,9000)
		want   string
	}{
		{"aligned block", func(p []byte) { fillContent(p[24:1000], testSeed, 8192) },
			"the bytes there belong to offset 8192 (misplaced by -7168 bytes)"},
		{"unaligned block", func(p []byte) { fillContent(p[25:1000], testSeed, 3) },
			"the bytes there belong to offset 3 (misplaced by +1022 bytes)"},
		{"NUL bytes", func(p []byte) { clear(p[100:200]) }, "100 NUL bytes stand there"},
		{"another stream", func(p []byte) { fillContent(p, testSeed+1, 1000) },
			"belong nowhere in this content"},
		{"one wrong bit", func(p []byte) { p[8] ^= 4 }, "belong nowhere in this content"},
		{"the last byte", func(p []byte) { p[7999]++ }, "belong nowhere in this content"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := contentOf(1000, 8000)
			tt.damage(p)
			err := checkContent(p, testSeed, 1000)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v\nwant one with %q", err, tt.want)
			}
		})
	}
}

func TestContentReader(t *testing.T) {
	const size = 5001
	if err := iotest.TestReader(newContentReader(testSeed, size), contentOf(0, size)); err != nil {
		t.Error(err)
	}
	if _, err := newContentReader(testSeed, size).ReadAt(make([]byte, 1), size); err != io.EOF {
		t.Errorf("ReadAt of the end: error %v, want io.EOF", err)
	}
}

func BenchmarkFillContent(b *testing.B) {
	p := make([]byte, 128<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		fillContent(p, testSeed, 1<<30)
	}
}

func BenchmarkCheckContent(b *testing.B) {
	p := contentOf(1<<30, 128<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if err := checkContent(p, testSeed, 1<<30); err != nil {
			b.Fatal(err)
		}
	}
}
