// Kernel tests of what a reader sees: sizes, modes, times and refused writes, bytes
// while they arrive, the end of a file, many processes at once, a full disk, and
// errors in place of bytes that never came.

package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestKernelStatShowsSizeModeAndFixedMtime(t *testing.T) {
	published := time.Date(2020, time.February, 29, 12, 34, 56, 0, time.UTC)
	dated, undated := wholeFile("dated.bin", 1<<20+1), wholeFile("undated.bin", 4099)
	dated.modTime = published
	startKernelOrigin(t, dated, undated)
	before := time.Now()
	m := startKernelMount(t, dated.url, undated.url)
	after := time.Now()
	r := m.reader()

	first := map[*kernelFile]readerAnswer{}
	for _, f := range []*kernelFile{dated, undated} {
		st := r.do(readerCall{Op: "stat anew", Path: m.path(f.name)})
		if st.Error != "" || st.Size != f.size || st.Mode != unix.S_IFREG|0o444 {
			t.Errorf("stat of %s: error %q, %d bytes, mode %o; want %d bytes and mode %o",
				f.name, st.Error, st.Size, st.Mode, f.size, unix.S_IFREG|0o444)
		}
		first[f] = st
	}
	if got := first[dated].Mtime; got != published.UnixNano() {
		t.Errorf("mtime is %v, Last-Modified was %v", time.Unix(0, got).UTC(), published)
	}
	if got := time.Unix(0, first[undated].Mtime); got.Before(before) || got.After(after) {
		t.Errorf("mtime is %v, it was mounted between %v and %v", got, before, after)
	}

	for f, st := range first {
		r.open(f)
		requireSameStat(t, m, f, st, "while it is open")
		requireBytes(t, r.do(readAllCall(f)), f.size)
		requireSameStat(t, m, f, st, "when it has been read")
	}
}

// requireSameStat requires that a new process sees the attributes want.
func requireSameStat(t *testing.T, m *kernelMount, f *kernelFile, want readerAnswer, when string) {
	t.Helper()
	got := m.reader().do(readerCall{Op: "stat anew", Path: m.path(f.name)})
	if got.Error != "" || got.Size != want.Size || got.Mode != want.Mode || got.Mtime != want.Mtime {
		t.Errorf("stat of %s %s: %+v; it was %+v", f.name, when, got, want)
	}
}

func TestKernelWritesAreRefused(t *testing.T) {
	f := wholeFile("a.bin", 10_000)
	m := f.mount(t)
	r := m.reader()

	refused := r.do(readerCall{Op: "writes", Path: m.path(f.name)}).Names
	if len(refused) < 20 {
		t.Errorf("only %d operations were tried: %v", len(refused), refused)
	}
	for _, attempt := range refused {
		if !strings.HasSuffix(attempt, ": EROFS") {
			t.Errorf("%s, want EROFS", attempt)
		}
	}
	if names := r.do(readerCall{Op: "ls", Path: m.dir}).Names; !slices.Equal(names, []string{f.name}) {
		t.Errorf("the directory has %q", names)
	}
	r.requireWhole(f)
}

func TestKernelStreamsWhileDownloading(t *testing.T) {
	const sent = 1 << 20
	f := heldFile("film.mkv", 8<<20+5, sent)
	m := f.mount(t, "--trace")
	early, late := m.reader().open(f), m.reader().open(f)

	early.requireRead(f, 0, 64<<10, 64<<10)
	early.requireRead(f, sent-4096, 4096, 4096)

	late.send(preadCall(f, 4<<20, 4096))
	m.awaitBlocked(1)
	early.requireRead(f, 12_345, 100_000, 100_000)

	f.allowAll()
	requireBytes(t, late.answer(), 4096)
	requireBytes(t, early.do(readAllCall(f)), f.size)
}

func TestKernelReadsPastEndOfFile(t *testing.T) {
	const size = 3<<20 + 4099
	for _, mode := range []string{"auto", "direct", "buffered"} {
		t.Run(mode, func(t *testing.T) {
			f, empty := heldFile("a.bin", size, 0), wholeFile("empty.bin", 0)
			startKernelOrigin(t, f, empty)
			m := startKernelMount(t, "--io="+mode, f.url, empty.url)
			m.reader().requireWhole(empty)

			r := m.reader().open(f)
			requireNothingBehindEnd(r, f)
			f.allowAll()
			requireEnd(r, f)
			requireBytes(t, r.do(readAllCall(f)), size)
			requireEnd(m.reader().open(f), f) // of a complete file
		})
	}
}

// requireNothingBehindEnd requires that reads at and behind the end return no byte.
// No byte of the file needs to have arrived.
func requireNothingBehindEnd(r *kernelReader, f *kernelFile) {
	r.t.Helper()
	for _, off := range []int64{f.size, f.size + 1, f.size + 1<<20, 1 << 40} {
		r.requireRead(f, off, 1, 0)
		r.requireRead(f, off, 1<<20, 0)
	}
}

func requireEnd(r *kernelReader, f *kernelFile) {
	r.t.Helper()
	for back := int64(10); back > 0; back-- {
		r.requireRead(f, f.size-back, 1, 1)
	}
	for _, back := range []int64{1, 3, 4095, 4096, 4097, 5000, 1 << 20} {
		r.requireRead(f, f.size-back, 2<<20, back)
	}
	requireNothingBehindEnd(r, f)
}

func TestKernelSixteenProcesses(t *testing.T) {
	f := wholeFile("a.bin", 16<<20+77)
	m := f.mount(t)
	var readers []*kernelReader
	for range 16 {
		readers = append(readers, m.reader().open(f))
	}
	for i, r := range readers {
		if i%2 == 0 {
			r.send(readAllCall(f))
		} else {
			r.send(readerCall{Op: "random", Count: 100, Len: 200_000, Size: f.size, Seed: f.seed})
		}
	}
	for i, r := range readers {
		answer := r.answer()
		if i%2 == 0 {
			requireBytes(t, answer, f.size)
		} else if answer.Error != "" || answer.N == 0 {
			t.Errorf("random reads: %d bytes, error %q", answer.N, answer.Error)
		}
	}
}

// On a buffered handle, a short answer would show as NUL bytes up to the end of the
// page, or as the end of the file.
func TestKernelNoShortAnswerBeforeEnd(t *testing.T) {
	const cut = 1<<20 + 1001 // within a page
	for _, mode := range []string{"auto", "buffered"} {
		for _, how := range []string{"cut", "ended"} {
			t.Run(mode+"/"+how, func(t *testing.T) {
				f := wholeFile("a.bin", 3<<20)
				f.cutAt = func(int64) int64 { return cut }
				f.unsized = how == "ended" // in good order, after too few chunks
				m := f.mount(t, "--io="+mode, "--read-timeout=500ms")
				r := m.reader().open(f)

				requireError(t, r.do(readerCall{Op: "readAll", Len: 4096, Seed: f.seed}), cut)
				requireError(t, r.do(preadCall(f, 1<<20, 4096)), 0)
				requireError(t, m.reader().open(f).do(readAllCall(f)), cut)
				if f.cuts.Load() < 1 {
					t.Error("the origin broke off no body")
				}
				m.awaitLogged(fmt.Sprintf("read %q ", f.name))
				if !strings.Contains(m.stderr.String(), errShortBody.Error()) {
					t.Errorf("the log does not say why: %s", m.stderr)
				}
			})
		}
	}
}

// requireError requires that the read ended with EIO, after at most most right bytes.
func requireError(t *testing.T, answer readerAnswer, most int64) {
	t.Helper()
	if answer.Errno != "EIO" || answer.N > most {
		t.Errorf("the read returned %d bytes, want at most %d and EIO; error %q", answer.N, most, answer.Error)
	}
}
