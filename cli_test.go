// Tests of the command line: what the program says and exits with where it
// never comes to mount anything.

package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// runInProcess runs it in this process. Whatever it was asked, it must say
// nothing that only its authors can read.
func runInProcess(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	status = run(args, strings.NewReader(""), &out, &errOut)
	for _, text := range []string{out.String(), errOut.String()} {
		if strings.Contains(text, "goroutine ") || strings.Contains(text, "panic") || strings.Contains(text, ".go:") {
			t.Errorf("fsmount %q shows its inside:\n%s", args, text)
		}
	}
	return status, out.String(), errOut.String()
}

func TestHelpIsOnStdoutAndExitsZero(t *testing.T) {
	for _, flag := range []string{"--help", "-help", "-h"} {
		status, stdout, stderr := runInProcess(t, flag)
		if status != exitOK || stderr != "" {
			t.Errorf("%s: status %d, stderr %q; want 0 and nothing", flag, status, stderr)
		}
		for _, want := range []string{"Usage: fsmount", "--mount=DIR", "--io=", "--trace", "--log-file=FILE", "--temp-dir=DIR",
			"$TMPDIR, else /var/tmp", "fsmount -mount dir", "NAME=URL", "one dash"} {
			if !strings.Contains(stdout, want) {
				t.Errorf("%s does not say %q:\n%s", flag, want, stdout)
			}
		}
	}
}

func TestHelpWinsOverWhatElseIsWrong(t *testing.T) {
	if status, stdout, stderr := runInProcess(t, "--help", "--io=nonsense", "ftp://h/x"); status != exitOK || stdout == "" || stderr != "" {
		t.Errorf("status %d, stderr %q; want help and 0", status, stderr)
	}
}

func TestVersionNamesWhatWasBuilt(t *testing.T) {
	for _, flag := range []string{"--version", "-version"} {
		status, stdout, stderr := runInProcess(t, flag)
		if status != exitOK || stderr != "" {
			t.Errorf("%s: status %d, stderr %q; want 0 and nothing", flag, status, stderr)
		}
		form := regexp.MustCompile(`^fsmount .*\ncommit: \S.*\ngo: (\S+) (\S+)\nrace detector: (yes|no)\n$`)
		m := form.FindStringSubmatch(stdout)
		if m == nil || m[1] != runtime.Version() || m[2] != runtime.GOOS+"/"+runtime.GOARCH {
			t.Errorf("%s says:\n%s", flag, stdout)
		}
	}
}

func TestUsageErrorsExitTwo(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	empty := t.TempDir()
	tests := []struct {
		about string
		args  []string
		says  string
	}{
		{"nothing", nil, "--mount"},
		{"no mountpoint", []string{"http://h/x"}, "--mount"},
		{"no value", []string{"-mount"}, "--mount"},
		{"unknown flag", []string{"-mount", empty, "--nonsense"}, "--nonsense"},
		{"unknown flag of one dash", []string{"-nonsense", "-mount", empty}, "-n"},
		{"bad io", []string{"-mount", empty, "--io=bad"}, `--io must be one of "auto","direct","buffered"`},
		{"bad io of one dash", []string{"-io", "bad", "-mount", empty}, "--io must be"},
		{"bad URL", []string{"-mount", empty, "ftp://h/x"}, `"ftp://h/x"`},
		{"no URL", []string{"-mount", empty, "http://h/x", "file.bin"}, `"file.bin"`},
		{"mountpoint is missing", []string{"-mount", filepath.Join(dir, "none")}, "mkdir"},
		{"mountpoint is missing, two dashes", []string{"--mount=" + filepath.Join(dir, "none")}, "none"},
		{"mountpoint is a file", []string{"-mount", file}, "not a directory"},
		{"mountpoint is not empty", []string{"-mount", dir}, "not empty"},
		{"mountpoint holds the temporary files", []string{"-mount", empty, "-temp-dir", empty}, "temporary directory"},
		{"temporary directory is missing", []string{"-mount", empty, "-temp-dir", filepath.Join(dir, "none")}, "--temp-dir"},
		{"log file in the mountpoint", []string{"-mount", empty, "-log-file", filepath.Join(empty, "log")}, "log file"},
		{"log file in no directory", []string{"-mount", empty, "-log-file", filepath.Join(dir, "none", "log")}, "log file"},
	}
	for _, tt := range tests {
		status, stdout, stderr := runInProcess(t, tt.args...)
		if status != exitUsage || stdout != "" || !strings.HasPrefix(stderr, "fsmount: ") || !strings.Contains(stderr, tt.says) {
			t.Errorf("%s: status %d, stdout %q, stderr %q; want 2, nothing and %q", tt.about, status, stdout, stderr, tt.says)
		}
		if strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: more than a line: %q", tt.about, stderr)
		}
	}
	if entries, err := os.ReadDir(empty); err != nil || len(entries) != 0 {
		t.Errorf("the mountpoint was left with %v, %v", entries, err)
	}
}

func TestBadURLIsNamedWithoutItsSecrets(t *testing.T) {
	for _, arg := range []string{
		"ftp://user:SECRET@h/x?token=SECRET",
		"name=ftp://SECRET@h/x",
		"http://h:port/x?token=SECRET",
		"h/x?token=SECRET",
	} {
		status, _, stderr := runInProcess(t, "-mount", t.TempDir(), arg)
		if status != exitUsage || strings.Contains(stderr, "SECRET") || !strings.Contains(stderr, "source ") {
			t.Errorf("%s: status %d, stderr %q; want 2 and no secret", arg, status, stderr)
		}
	}
}

// TestNoSourceLeftExitsOne names each source with its reason, and no secret.
func TestNoSourceLeftExitsOne(t *testing.T) {
	missing := httptest.NewServer(http.NotFoundHandler())
	defer missing.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	dir := t.TempDir()
	status, stdout, stderr := runInProcess(t, "-mount", dir, "-temp-dir", t.TempDir(),
		strings.Replace(missing.URL, "://", "://user:SECRET@", 1)+"/a?token=SECRET", "b.bin="+gone.URL+"/b?SECRET")
	if status != exitFailure || stdout != "" {
		t.Errorf("status %d, stdout %q; want 1 and nothing", status, stdout)
	}
	for _, want := range []string{missing.URL + "/a: ", "404", gone.URL + "/b: ", "refused", "nothing to mount"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("stderr does not say %q:\n%s", want, stderr)
		}
	}
	if strings.Contains(stderr, "SECRET") {
		t.Errorf("stderr shows a secret:\n%s", stderr)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the mountpoint was left with %v, %v", entries, err)
	}
}

func TestOptions(t *testing.T) {
	t.Setenv("TMPDIR", "/some/temp")
	plain := options{Mount: "dir", TempDir: "/some/temp", IO: ioAuto}
	with := func(change func(o *options)) options {
		o := plain
		change(&o)
		return o
	}
	tests := []struct {
		args []string
		want options
	}{
		{[]string{"-mount", "dir"}, plain},
		{[]string{"-mount=dir"}, plain},
		{[]string{"--mount", "dir"}, plain},
		{[]string{"-mount", "dir", "http://h/a,b", "n=http://h/?x=1,2"},
			with(func(o *options) { o.Sources = []string{"http://h/a,b", "n=http://h/?x=1,2"} })},
		{[]string{"http://h/a", "-trace", "-mount", "dir", "-io=direct", "-allow-other"},
			with(func(o *options) {
				o.Sources, o.Trace, o.IO, o.AllowOther = []string{"http://h/a"}, true, ioDirect, true
			})},
		{[]string{"-mount", "dir", "-io", "buffered", "-temp-dir", "t", "-log-file", "l"},
			with(func(o *options) { o.IO, o.TempDir, o.LogFile = ioBuffered, "t", "l" })},
	}
	for _, tt := range tests {
		var out bytes.Buffer
		got, done, err := parseOptions(tt.args, &out, &out)
		if err != nil || done || out.Len() > 0 {
			t.Errorf("%q: done %v, %v, output %q", tt.args, done, err, out.String())
		}
		if got.Mount != tt.want.Mount || !slices.Equal(got.Sources, tt.want.Sources) || got.TempDir != tt.want.TempDir ||
			got.IO != tt.want.IO || got.AllowOther != tt.want.AllowOther || got.Trace != tt.want.Trace || got.LogFile != tt.want.LogFile {
			t.Errorf("%q: %+v, want %+v", tt.args, got, tt.want)
		}
	}
}

func TestTempDirIsNeverInMemoryByDefault(t *testing.T) {
	t.Setenv("TMPDIR", "")
	if got := defaultTempDir(); got != "/var/tmp" {
		t.Errorf("without TMPDIR: %q, want /var/tmp", got)
	}
}
