// Tests of how the progress of files is shown where there is no terminal, and of
// the bars' arithmetic.

package main

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/vbauerster/mpb/v8"
)

func TestStatusTable(t *testing.T) {
	got := statusTable([]fileStatus{
		{File: "film.mkv", State: "downloading", Present: 1 << 20, Size: 3 << 20, Rate: 1 << 19, Waiters: 2},
		{File: "empty", State: "complete"},
		{File: "odd\x1bname", State: "retrying", Present: 999, Size: 1000, RetryIn: 1.5, LastError: "read: reset"},
		{File: "gone", State: "failed", Size: 10, Rate: 5, Error: "404 Not Found", LastError: "x"},
	})
	want := `
FILE           STATE        DONE  PRESENT    SIZE        RATE         LEFT  WAITING  NOTE
film.mkv       downloading  33%   1.0 MiB    3.0 MiB     512.0 KiB/s  4s    2        -
empty          complete     100%  0 bytes    0 bytes     -            -     0        -
"odd\x1bname"  retrying     99%   999 bytes  1000 bytes  -            -     0        retry in 1.5s, after: read: reset
gone           failed       0%    0 bytes    10 bytes    -            -     0        404 Not Found
`
	if got != want[1:] {
		t.Errorf("got\n%s\nwant%s", got, want)
	}
}

func TestBriefNoteEndsWithTheCause(t *testing.T) {
	f := fileStatus{State: "retrying", RetryIn: 2, LastError: "fetch [0,10) of http://h/x: dial tcp: connection refused"}
	if got := f.briefNote(); got != "retry in 2.0s, after: connection refused" {
		t.Errorf("%q", got)
	}
	f.LastError = "no colon\n" + strings.Repeat("x", 1000)
	if got := []rune(f.briefNote()); len(got) != noteColumns || strings.ContainsRune(string(got), '\n') {
		t.Errorf("%q", string(got))
	}
}

func TestShorten(t *testing.T) {
	for in, want := range map[string]string{"": "", "1234567": "1234567", "12345678": "123…678", "äöüßäöüß": "äöü…öüß"} {
		if got := shorten(in, 7); got != want {
			t.Errorf("shorten(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestBarsEndWithTheirFiles is about when they do: live waits for all of them.
func TestBarsEndWithTheirFiles(t *testing.T) {
	progress := mpb.New(mpb.WithOutput(io.Discard))
	defer progress.Shutdown()
	files := []fileStatus{
		{File: "a", State: "downloading", Size: 100},
		{File: "empty", State: "idle"},
		{File: "b", State: "downloading", Size: 100},
	}
	bars := make(map[string]*statusBar)
	for _, f := range files {
		bars[f.File] = newStatusBar(progress, f)
	}
	step := func(want bool, ended ...string) {
		t.Helper()
		if got := update(bars, files); got != want {
			t.Errorf("%+v: the end is %v", files, got)
		}
		for name, b := range bars {
			if got := b.bar.AbortedOrCompleted(); got != slices.Contains(ended, name) {
				t.Errorf("%+v: the bar of %s has ended: %v", files, name, got)
			}
		}
	}
	step(false)
	files[0].Present = 100
	step(false)
	files[0].State, files[1].State = "complete", "complete"
	step(false, "a", "empty")
	files[2].State, files[2].Present = "failed", 50
	step(true, "a", "empty", "b")
}
