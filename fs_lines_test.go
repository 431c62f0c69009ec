// Tests that the lines of the control directory say exactly what was put into
// them, whatever the names and errors look like.

package main

import (
	"reflect"
	"strings"
	"testing"
)

// oddTexts are what file names, programs and origins can come up with.
func oddTexts() []string {
	return []string{"", "plain", `quo"ted \" back\slash`, "two\nlines\r\tand a tab", "ünï 漢字 🎬", "not UTF-8 \xff\xfe",
		"a=b c=\"d\" ", "`back`", "\x00\x1b[2J", `trailing\`, "pid=1"}
}

func TestOpInfoRoundTrip(t *testing.T) {
	for i, text := range oddTexts() {
		want := opInfo{ID: 1<<64 - 1, Kind: "read", File: text, Range: "[0,4096)", PID: 1<<32 - 1, Command: text,
			GoID: uint64(i), Store: 7, Age: 12.3, Waits: text}
		line := want.String()
		got, err := parseOpInfo(line)
		if err != nil || got != want {
			t.Errorf("%s\nis read as %+v, %v", line, got, err)
		}
		if strings.ContainsAny(line, "\n\r\x1b") {
			t.Errorf("%q is more than a line of text", line)
		}
	}
}

func TestFileStatusRoundTrip(t *testing.T) {
	for _, text := range oddTexts() {
		want := fileStatus{File: text, State: "retrying", Present: 1, Size: 1<<63 - 1, Rate: 3, Fetches: 4, Waiters: 5,
			Handles: 6, Retries: 7, Received: 8, Store: 9, Version: text, RetryIn: 1.5, LastError: text, Error: text}
		if fields := reflect.ValueOf(want); text != "" {
			for i := range fields.NumField() {
				if fields.Field(i).IsZero() {
					t.Fatalf("%s is not tried", fields.Type().Field(i).Name)
				}
			}
		}
		line := want.String()
		got, err := parseFileStatus(line)
		if err != nil || got != want {
			t.Errorf("%s\nis read as %+v, %v", line, got, err)
		}
	}
}

func TestParseOpInfoOfAnotherVersion(t *testing.T) {
	info := opInfo{Kind: "open", File: "a", Range: "-", Waits: "x"}
	if got, err := parseOpInfo(info.String() + ` later="field of a \"later\" version" n=1`); err != nil || got != info {
		t.Errorf("with fields that this version does not know: %+v, %v", got, err)
	}
}

func TestParseOpInfoRefuses(t *testing.T) {
	good := opInfo{Kind: "read", File: "a", Range: "-"}.String()
	for about, line := range map[string]string{
		"nothing":                "",
		"no field":               "nonsense",
		"a missing field":        strings.Replace(good, "pid=0 ", "", 1),
		"no number":              strings.Replace(good, "pid=0", "pid=x", 1),
		"a number too large":     strings.Replace(good, "pid=0", "pid=4294967296", 1),
		"a time without unit":    strings.Replace(good, "age=0.0s", "age=0.0", 1),
		"a line that was cut":    strings.TrimSuffix(good, `"`),
		"quotes and then more":   strings.Replace(good, `file="a"`, `file="a"b`, 1),
		"a word without its key": good + " word",
	} {
		if info, err := parseOpInfo(line); err == nil {
			t.Errorf("%s: %q is read as %+v", about, line, info)
		}
	}
}

func TestParseLines(t *testing.T) {
	a, b := opInfo{ID: 1, Kind: "read", File: "a\nb", Range: "-"}, opInfo{ID: 2, Kind: "open", Range: "-"}
	all, err := parseLines(a.String()+"\n"+b.String()+"\n", parseOpInfo)
	if err != nil || len(all) != 2 || all[0] != a || all[1] != b {
		t.Errorf("two lines are read as %+v, %v", all, err)
	}
	if none, err := parseLines("", parseOpInfo); err != nil || none == nil || len(none) != 0 {
		t.Errorf("no line is read as %+v, %v", none, err)
	}
}

// FuzzParseFields looks for a value that is not read back as it was written, and
// for text that the parser does not survive.
func FuzzParseFields(f *testing.F) {
	for _, text := range oddTexts() {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parseFields(text)
		want := opInfo{Kind: "read", Range: "-", File: text, Waits: text}
		if got, err := parseOpInfo(want.String()); err != nil || got != want {
			t.Errorf("%s\nis read as %+v, %v", want, got, err)
		}
	})
}
