// Tests of how operations are shown.

package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestOpsTable(t *testing.T) {
	got := opsTable([]opInfo{
		{ID: 1, Kind: "read", File: "a long name.bin", Range: "[0,131072)", PID: 7, Command: "ffmpeg", GoID: 42, Store: 3, Age: 125.4, Waits: "bytes [0,131072) of a fetch"},
		{ID: 2, Kind: "open", File: "new\nline", Range: "-", PID: 12345, GoID: 1, Age: 0.1, Waits: "its reply"},
	})
	want := `
AGE   PID    COMMAND  OP    FILE             RANGE       GOID  STORE  WAITS FOR
2m5s  7      ffmpeg   read  a long name.bin  [0,131072)  42    3      bytes [0,131072) of a fetch
0.1s  12345  -        open  "new\nline"      -           1     -      its reply
`
	if got != want[1:] {
		t.Errorf("got\n%s\nwant%s", got, want)
	}
	if got := opsTable(nil); got != "no operation in flight\n" {
		t.Errorf("of nothing: %q", got)
	}
}

func TestRedrawWithoutATerminal(t *testing.T) {
	var out bytes.Buffer
	got := redraw(&out, "one\n", true) + redraw(&out, "two\n", false)
	if got != "one\n\ntwo\n" {
		t.Errorf("%q", got)
	}
}

func TestDrawOverKeepsToTheScreen(t *testing.T) {
	got := drawOver(strings.Repeat("row\n", 10), 6)
	if n := strings.Count(got, "\n"); n != 5 {
		t.Errorf("%d lines on a screen of 6, want 5: %q", n, got)
	}
	if !strings.Contains(got, "and 6 more") || !strings.HasPrefix(got, wrapOff+cursorHome) || !strings.HasSuffix(got, eraseToEnd+wrapOn) {
		t.Errorf("%q", got)
	}
	if got := drawOver("row\nrow\n", 6); strings.Count(got, "row") != 2 || strings.Contains(got, "more") {
		t.Errorf("what fits is cut: %q", got)
	}
}
