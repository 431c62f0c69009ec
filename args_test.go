// Tests of the one-dash flags, against a small grammar of each kind of flag:
// what is rewritten, what is not, and that the parser then sees the same as
// from two dashes.

package main

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

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
