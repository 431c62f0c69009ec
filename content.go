// Content that is computable from its offset: the demo origin serves it and
// the tests check every byte of any read against it, wherever the read began.
// Every 8-byte word is a hash of its own index, and the hash can be inverted,
// so a block that arrived in the wrong place tells where it came from. This
// file does no I/O and keeps no state.

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

const (
	contentWord = 8 // bytes

	// contentReach bounds, in bytes, the offsets that a misplaced block is
	// looked for at. Eight random words are tried, each claims one of the 2^61
	// word indexes, and 2^37 of those lie below 1 TiB: a chance of 2^-21 that
	// bytes of no stream are given a place in this one.
	contentReach = 1 << 40
)

// The constants of splitmix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", 2014): the stream of a seed is exactly the
// output of that generator, which gives word n without the n before it.
const (
	splitmixGamma = 0x9e3779b97f4a7c15
	splitmixMulA  = 0xbf58476d1ce4e5b9
	splitmixMulB  = 0x94d049bb133111eb
)

// fillContent fills p with the bytes [off, off+len(p)) of the endless stream
// of seed. It allocates nothing.
//
// REQUIRES: off >= 0
func fillContent(p []byte, seed uint64, off int64) {
	state := contentState(seed, off/contentWord)
	if skip := off % contentWord; skip != 0 {
		word := contentBytes(state)
		p = p[copy(p, word[skip:]):]
		state += splitmixGamma
	}
	for len(p) >= contentWord {
		binary.LittleEndian.PutUint64(p, contentMix(state))
		p = p[contentWord:]
		state += splitmixGamma
	}
	word := contentBytes(state)
	copy(p, word[:])
}

// checkContent returns nil if p holds the bytes [off, off+len(p)) of the
// stream of seed. Otherwise the error names the first wrong offset and, where
// the bytes found there belong elsewhere in the stream, that offset.
//
// REQUIRES: off >= 0
func checkContent(p []byte, seed uint64, off int64) error {
	i := firstWrongByte(p, seed, off)
	if i < 0 {
		return nil
	}
	at, found := off+int64(i), p[i:]
	var want [1]byte
	fillContent(want[:], seed, at)
	return fmt.Errorf("check content of [%d,%d): byte at offset %d is 0x%02x, want 0x%02x: %s",
		off, off+int64(len(p)), at, found[0], want[0], describeWrong(found, seed, at))
}

// firstWrongByte returns the index in p of the first byte that is not the
// stream's, or -1.
func firstWrongByte(p []byte, seed uint64, off int64) int {
	var buf [4096]byte
	for done := 0; done < len(p); {
		got := p[done:min(done+len(buf), len(p))]
		want := buf[:len(got)]
		fillContent(want, seed, off+int64(done))
		if !bytes.Equal(got, want) {
			return done + firstDifference(got, want)
		}
		done += len(got)
	}
	return -1
}

// REQUIRES: len(a) == len(b) && !bytes.Equal(a, b)
func firstDifference(a, b []byte) int {
	i := 0
	for a[i] == b[i] {
		i++
	}
	return i
}

// describeWrong says what found is, which stands at offset at and should not.
func describeWrong(found []byte, seed uint64, at int64) string {
	if nul := len(found) - len(bytes.TrimLeft(found, "\x00")); nul >= contentWord {
		return fmt.Sprintf("%d NUL bytes stand there", nul)
	}
	if home, ok := contentHome(found, seed); ok {
		return fmt.Sprintf("the bytes there belong to offset %d (misplaced by %+d bytes)", home, at-home)
	}
	return "the bytes there belong nowhere in this content"
}

// contentHome returns the offset of the stream at which p stands. One word of
// the stream is enough to tell, at whatever alignment it lies in p.
func contentHome(p []byte, seed uint64) (int64, bool) {
	for skip := 0; skip < contentWord && skip+contentWord <= len(p); skip++ {
		index := contentIndex(seed, binary.LittleEndian.Uint64(p[skip:]))
		if index >= contentReach/contentWord {
			continue
		}
		home := int64(index)*contentWord - int64(skip)
		if home >= 0 && firstWrongByte(p[:skip+contentWord], seed, home) < 0 {
			return home, true
		}
	}
	return 0, false
}

// contentState returns the generator's state for the word with that index.
func contentState(seed uint64, index int64) uint64 {
	return seed + (uint64(index)+1)*splitmixGamma
}

// contentIndex returns the index of the word with that value: contentMix and
// contentState undone.
func contentIndex(seed, word uint64) uint64 {
	return (contentUnmix(word)-seed)*inverse64(splitmixGamma) - 1
}

func contentBytes(state uint64) (word [contentWord]byte) {
	binary.LittleEndian.PutUint64(word[:], contentMix(state))
	return word
}

func contentMix(z uint64) uint64 {
	z = (z ^ z>>30) * splitmixMulA
	z = (z ^ z>>27) * splitmixMulB
	return z ^ z>>31
}

func contentUnmix(z uint64) uint64 {
	z = (z ^ z>>31 ^ z>>62) * inverse64(splitmixMulB)
	z = (z ^ z>>27 ^ z>>54) * inverse64(splitmixMulA)
	return z ^ z>>30 ^ z>>60
}

// inverse64 returns the inverse of an odd number modulo 2^64 by Newton's
// iteration: a number is its own inverse modulo 8, and each round doubles the
// bits that are right, so that five make 96.
func inverse64(odd uint64) uint64 {
	x := odd
	for range 5 {
		x *= 2 - odd*x
	}
	return x
}

// contentReader reads the first Size() bytes of a stream: what
// http.ServeContent serves. ReadAt is safe for concurrent use, Read and Seek
// are not.
type contentReader struct {
	*io.SectionReader
}

// REQUIRES: size >= 0
func newContentReader(seed uint64, size int64) contentReader {
	return contentReader{io.NewSectionReader(contentStream(seed), 0, size)}
}

// contentStream is the endless stream of a seed as an io.ReaderAt.
type contentStream uint64

func (s contentStream) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > math.MaxInt64-int64(len(p)) {
		return 0, fmt.Errorf("read content at offset %d: out of range", off)
	}
	fillContent(p, uint64(s), off)
	return len(p), nil
}
