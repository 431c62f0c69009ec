// Tests of the command line: how arguments are rewritten and parsed, what the
// program prints, and its exit status where it never mounts anything.

package main

import (
	"bytes"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// runInProcess runs it in this process. Whatever it was asked, it must say
// nothing that only its authors can read.
func runInProcess(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	status = runMain(args, strings.NewReader(""), &out, &errOut)
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

// argsGrammar has a flag of every kind that matters to doubleDash.
type argsGrammar struct {
	Mount   string `aliases:"at,a"`
	TempDir string
	Header  []string `sep:"none"`
	Wait    time.Duration
	Trace   bool   `short:"t"`
	Cache   bool   `negatable:"" default:"true"`
	Fuse    bool   `negatable:"bare"`
	Quiet   int    `type:"counter"`
	Secret  string `hidden:""`
	Version kong.VersionFlag
	Source  []string `arg:"" optional:""`
}

// newArgsParser builds a parser that takes hyphened values, so that a rewritten
// value would go through unnoticed but for the comparison.
func newArgsParser(t testing.TB, grammar *argsGrammar) *kong.Kong {
	t.Helper()
	k, err := kong.New(grammar, kong.WithHyphenPrefixedParameters(true))
	if err != nil {
		t.Fatalf("build the parser: %v", err)
	}
	return k
}

func TestLongFlags(t *testing.T) {
	want := map[string]bool{
		"mount": true, "at": true, "temp-dir": true, "header": true, "wait": true, "secret": true,
		"trace": false, "cache": false, "no-cache": false, "fuse": false, "bare": false,
		"quiet": false, "version": false, "help": false,
	}
	if got := longFlags(newArgsParser(t, new(argsGrammar))); !maps.Equal(got, want) {
		t.Errorf("longFlags = %v, want %v", got, want)
	}
}

func TestDoubleDash(t *testing.T) {
	flags := longFlags(newArgsParser(t, new(argsGrammar)))
	tests := []struct {
		about      string
		args, want []string
	}{
		{"nothing", nil, nil},
		{"one dash", []string{"-mount", "dir", "URL"}, []string{"--mount", "dir", "URL"}},
		{"two dashes", []string{"--mount", "dir"}, []string{"--mount", "dir"}},
		{"behind sources", []string{"URL", "-mount", "dir"}, []string{"URL", "--mount", "dir"}},
		{"with =", []string{"-mount=dir", "-trace"}, []string{"--mount=dir", "--trace"}},
		{"empty after =", []string{"-mount=", "-trace"}, []string{"--mount=", "--trace"}},
		{"= in the value", []string{"-mount=a=-mount"}, []string{"--mount=a=-mount"}},
		{"bool", []string{"-trace", "-mount", "dir"}, []string{"--trace", "--mount", "dir"}},
		{"bool with =", []string{"-trace=false", "-no-cache"}, []string{"--trace=false", "--no-cache"}},
		{"negation by name", []string{"-bare", "-mount", "dir"}, []string{"--bare", "--mount", "dir"}},
		{"counter", []string{"-quiet", "-quiet", "-mount", "dir"}, []string{"--quiet", "--quiet", "--mount", "dir"}},
		{"alias", []string{"-at", "-trace"}, []string{"--at", "-trace"}},
		{"hidden", []string{"-secret", "-trace"}, []string{"--secret", "-trace"}},
		{"help and version", []string{"-help", "-version"}, []string{"--help", "--version"}},

		{"value like a flag", []string{"-temp-dir", "-mount", "-mount", "dir"}, []string{"--temp-dir", "-mount", "--mount", "dir"}},
		{"value of two dashes", []string{"--temp-dir", "-mount", "-trace"}, []string{"--temp-dir", "-mount", "--trace"}},
		{"value like the end", []string{"-temp-dir", "--", "-mount", "dir"}, []string{"--temp-dir", "--", "--mount", "dir"}},
		{"value of a list", []string{"-header", "-trace", "-trace"}, []string{"--header", "-trace", "--trace"}},
		{"no value left", []string{"-trace", "-mount"}, []string{"--trace", "--mount"}},

		{"behind --", []string{"-trace", "--", "-mount", "-trace"}, []string{"--trace", "--", "-mount", "-trace"}},
		{"unknown", []string{"-mounts", "-x", "-t", "-h", "-a", "-mount dir"}, []string{"-mounts", "-x", "-t", "-h", "-a", "-mount dir"}},
		{"unknown takes no value", []string{"-x", "-trace"}, []string{"-x", "--trace"}},
		{"letter case", []string{"-Mount", "dir"}, []string{"-Mount", "dir"}},
		{"three dashes", []string{"---mount", "-trace"}, []string{"---mount", "--trace"}},
		{"lone dash", []string{"-", "-trace"}, []string{"-", "--trace"}},
		{"dash and =", []string{"-=x", "-trace"}, []string{"-=x", "--trace"}},
		{"no dash", []string{"mount", "trace=-trace", ""}, []string{"mount", "trace=-trace", ""}},
	}
	for _, test := range tests {
		given := slices.Clone(test.args)
		if got := doubleDash(test.args, flags); !slices.Equal(got, test.want) {
			t.Errorf("%s: doubleDash(%q) = %q, want %q", test.about, test.args, got, test.want)
		}
		if !slices.Equal(test.args, given) {
			t.Errorf("%s: doubleDash changed its argument to %q", test.about, test.args)
		}
	}
}

// TestOneDashNeedsDoubleDash shows what doubleDash is for: kong by itself
// refuses -mount.
func TestOneDashNeedsDoubleDash(t *testing.T) {
	var grammar argsGrammar
	args := []string{"-mount", "dir", "URL"}
	if _, err := newArgsParser(t, &grammar).Parse(args); err == nil {
		t.Errorf("kong parses %q by itself", args)
	}
	k := newArgsParser(t, &grammar)
	if _, err := k.Parse(doubleDash(args, longFlags(k))); err != nil {
		t.Fatalf("parse %q: %v", args, err)
	}
	if grammar.Mount != "dir" || !slices.Equal(grammar.Source, []string{"URL"}) {
		t.Errorf("parse %q: mount %q, sources %q", args, grammar.Mount, grammar.Source)
	}
}

// FuzzArgs writes a random command line twice, with one dash and with two.
func FuzzArgs(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	f.Add([]byte{0x00, 0x00, 0x11, 0x12, 0x23, 0x34, 0x45})
	f.Add([]byte{0x00, 0x0e, 0xce})
	f.Add([]byte{0x11, 0x0f, 0x1f, 0x3e, 0x5e})
	f.Fuzz(func(t *testing.T, program []byte) {
		line := newCommandLine(program)
		rewritten := doubleDash(line.oneDash, longFlags(newArgsParser(t, new(argsGrammar))))
		if !slices.Equal(rewritten, line.twoDashes) {
			t.Fatalf("doubleDash(%q) = %q, want %q", line.oneDash, rewritten, line.twoDashes)
		}
		var got, want argsGrammar
		gotErr := parseArgs(t, &got, rewritten)
		wantErr := parseArgs(t, &want, line.twoDashes)
		if gotErr != wantErr || !reflect.DeepEqual(got, want) {
			t.Fatalf("%q parses as %+v, %q; %q as %+v, %q", rewritten, got, gotErr, line.twoDashes, want, wantErr)
		}
		if gotErr != "" {
			return
		}
		if got.Mount != line.mount || got.TempDir != line.tempDir ||
			!slices.Equal(got.Header, line.headers) || !slices.Equal(got.Source, line.sources) {
			t.Fatalf("%q parses as %+v, want the values of %+v", rewritten, got, line)
		}
	})
}

// FuzzArgsOfAnyText gives doubleDash what no generator thinks of.
func FuzzArgsOfAnyText(f *testing.F) {
	f.Add("-mount", "-mount", "--", "-mount")
	f.Add("-trace=", "-", "---mount", "-no-cache")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		args := []string{a, b, c, d}
		flags := longFlags(newArgsParser(t, new(argsGrammar)))
		rewritten := doubleDash(args, flags)
		for i, arg := range rewritten {
			if arg != args[i] && arg != "-"+args[i] {
				t.Errorf("doubleDash(%q)[%d] = %q", args, i, arg)
			}
		}
		if again := doubleDash(rewritten, flags); !slices.Equal(again, rewritten) {
			t.Errorf("doubleDash(%q) = %q, again %q", args, rewritten, again)
		}
	})
}

// parseArgs returns the error's text, for two parsers' errors to be compared.
func parseArgs(t *testing.T, grammar *argsGrammar, args []string) string {
	t.Helper()
	k := newArgsParser(t, grammar)
	k.Exit = func(int) { t.Fatalf("parse %q: the parser exits", args) }
	if _, err := k.Parse(args); err != nil {
		return err.Error()
	}
	return ""
}

// commandLine is one list of arguments in both spellings, with the values that
// a parser is to find in it.
type commandLine struct {
	oneDash, twoDashes []string
	mount, tempDir     string
	headers, sources   []string
}

// newCommandLine makes a piece from each byte of program: the low half says of
// what kind, the high half with which value. Behind "--" each is a source.
func newCommandLine(program []byte) *commandLine {
	values := []string{"dir", "-mount", "--mount", "-trace", "-", "--", "a=-mount", "-mount=a", "",
		"mount", "-header", "-x", "http://h/x?a=b", "a,b", "-temp-dir=", "-no-cache"}
	var line commandLine
	for i, b := range program {
		if b&15 == 15 {
			line.addBoth("--")
			line.addSources(values, program[i+1:])
			break
		}
		line.add(b&15, values[b>>4])
	}
	return &line
}

func (line *commandLine) add(kind byte, value string) {
	switch kind {
	case 0, 1:
		line.addValue("-mount", value, kind == 0)
		line.mount = value
	case 2, 3:
		line.addValue("-temp-dir", value, kind == 2)
		line.tempDir = value
	case 4, 5:
		line.addValue("-header", value, kind == 4)
		line.headers = append(line.headers, value)
	case 6:
		line.addValue("-at", value, false)
		line.mount = value
	case 7, 8, 9, 10, 11, 12:
		line.addFlag([]string{"-trace", "-no-cache", "-bare", "-quiet", "-trace=false", "-cache"}[kind-7])
	case 13:
		line.addBoth("-t")
	case 14:
		// The parser takes "--" and "-x" here for what they look like.
		if value == "-" || !strings.HasPrefix(value, "-") {
			line.addBoth(value)
			line.sources = append(line.sources, value)
		}
	}
}

func (line *commandLine) addSources(values []string, program []byte) {
	for _, b := range program {
		line.addBoth(values[b>>4])
		line.sources = append(line.sources, values[b>>4])
	}
}

func (line *commandLine) addFlag(flag string) {
	line.oneDash = append(line.oneDash, flag)
	line.twoDashes = append(line.twoDashes, "-"+flag)
}

func (line *commandLine) addValue(flag, value string, joined bool) {
	if joined {
		line.addFlag(flag + "=" + value)
		return
	}
	line.addFlag(flag)
	line.addBoth(value)
}

func (line *commandLine) addBoth(arg string) {
	line.oneDash = append(line.oneDash, arg)
	line.twoDashes = append(line.twoDashes, arg)
}

func TestSourcesMayStandAnywhere(t *testing.T) {
	flags := map[string]bool{"mount": true, "trace": false}
	for _, test := range []struct{ args, want []string }{
		{nil, nil},
		{[]string{"--mount", "d"}, []string{"--mount", "d"}},
		{[]string{"u1", "--mount", "d", "u2"}, []string{"--mount", "d", "--", "u1", "u2"}},
		{[]string{"--trace", "u1", "--mount=d", "--", "-u2"}, []string{"--trace", "--mount=d", "--", "u1", "-u2"}},
		{[]string{"u1", "--mount"}, []string{"u1", "--mount"}},
		{[]string{"-", "--mount", "--"}, []string{"--mount", "--", "--", "-"}},
	} {
		if got := flagsFirst(test.args, flags); !slices.Equal(got, test.want) {
			t.Errorf("flagsFirst(%q) = %q, want %q", test.args, got, test.want)
		}
	}
}
