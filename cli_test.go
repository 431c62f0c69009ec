// Tests of the command line: transcripts of command lines that never mount anything,
// and how arguments are rewritten and parsed.

package main

import (
	"bytes"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// runInProcess runs the program with args in this process. It fails the test if the
// output shows a panic or a stack.
func runInProcess(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	status = runMain(args, strings.NewReader(""), &out, &errOut)
	for _, text := range []string{out.String(), errOut.String()} {
		if strings.Contains(text, "goroutine ") || strings.Contains(text, "panic") || strings.Contains(text, ".go:") {
			t.Errorf("fsmount %q shows a panic or a stack:\n%s", args, text)
		}
	}
	return status, out.String(), errOut.String()
}

// transcript is a command line with the status and the output that it must have. "..."
// in an output stands for any text; "" is no output.
type transcript struct {
	line           string // its words are separated by blanks
	status         int
	stdout, stderr string
}

// transcripts uses these names: $EMPTY is an empty directory, $FULL is one with the file
// $FULL/file, $MISSING is a server that answers 404, $GONE is one that no longer runs.
var transcripts = []transcript{
	{"--help", exitOK, helpShown, ""},
	{"-help", exitOK, helpShown, ""},
	{"-h", exitOK, helpShown, ""},
	{"--help --io=nonsense ftp://h/x", exitOK, helpShown, ""},

	{"", exitUsage, "", "fsmount: ...--mount..."},
	{"http://h/x", exitUsage, "", "fsmount: ...--mount..."},
	{"-mount", exitUsage, "", "fsmount: ...--mount..."},
	{"-mount $EMPTY --nonsense", exitUsage, "", "fsmount: ...--nonsense..."},
	{"-nonsense -mount $EMPTY", exitUsage, "", "fsmount: ...-n..."},
	{"-mount $EMPTY --io=bad", exitUsage, "", `fsmount: ...--io must be one of "auto","direct","buffered"...`},
	{"-io bad -mount $EMPTY", exitUsage, "", "fsmount: ...--io must be..."},
	{"-mount $EMPTY --connections=0", exitUsage, "",
		"fsmount: --connections=0: it must be a number from 1 to 256 (see fsmount --help)"},
	{"-mount $EMPTY --linger=-1s", exitUsage, "",
		"fsmount: --linger=-1s: it must be a time such as 10s, or 0 (see fsmount --help)"},
	{"-mount $EMPTY --stall-report=0s", exitUsage, "",
		"fsmount: ...--stall-report must be times of at least 1ms, such as 15s (see fsmount --help)"},
	{"-mount $EMPTY ftp://h/x", exitUsage, "", `fsmount: ..."ftp://h/x"...`},
	{"-mount $EMPTY http://h/x file.bin", exitUsage, "", `fsmount: ..."file.bin"...`},
	{"-mount $FULL/none", exitUsage, "", "fsmount: ...mkdir..."},
	{"--mount=$FULL/none", exitUsage, "", "fsmount: ...none..."},
	{"-mount $FULL/file", exitUsage, "", "fsmount: ...not a directory..."},
	{"-mount $FULL", exitUsage, "", "fsmount: ...not empty..."},
	{"-mount $EMPTY -temp-dir $EMPTY", exitUsage, "", "fsmount: ...temporary directory..."},
	{"-mount $EMPTY -temp-dir $FULL/none", exitUsage, "", "fsmount: ...--temp-dir..."},
	{"-mount $EMPTY -log-file $EMPTY/log", exitUsage, "", "fsmount: ...log file..."},
	{"-mount $EMPTY -log-file $FULL/none/log", exitUsage, "", "fsmount: ...log file..."},

	// Messages name a source without its secrets.
	{"-mount $EMPTY ftp://user:SECRET@h/x?token=SECRET", exitUsage, "", "fsmount: ...source ..."},
	{"-mount $EMPTY name=ftp://SECRET@h/x", exitUsage, "", "fsmount: ...source ..."},
	{"-mount $EMPTY http://h:port/x?token=SECRET", exitUsage, "", "fsmount: ...source ..."},
	{"-mount $EMPTY h/x?token=SECRET", exitUsage, "", "fsmount: ...source ..."},
	{"-mount $EMPTY http://user:SECRET@$MISSING/a?token=SECRET b.bin=http://$GONE/b?SECRET", exitFailure, "",
		"fsmount: left out http://$MISSING/a: ...404...\n" +
			"fsmount: left out http://$GONE/b: ...refused...\n" +
			"fsmount: nothing to mount: none of the 2 sources could be opened"},

	{"ps", exitUsage, "", "fsmount: ...<dir>..."},
	{"ps / /", exitUsage, "", "fsmount: ...unexpected argument..."},
	{"ps / --nonsense", exitUsage, "", "fsmount: ...--nonsense..."},
	{"status", exitUsage, "", "fsmount: ...<dir>..."},
	{"check", exitUsage, "", "fsmount: ...<dir>..."},
	{"check / --timeout soon", exitUsage, "", "fsmount: ...--timeout..."},
	{"check / -timeout=0s", exitUsage, "", "fsmount: ...--timeout is a time above zero..."},

	{"ps $EMPTY", exitUsage, "", "fsmount: $EMPTY: no fsmount is mounted there"},
	{"ps $EMPTY/none", exitUsage, "", "fsmount: $EMPTY/none: no fsmount is mounted there"},
	{"ps /proc", exitUsage, "", "fsmount: /proc: no fsmount is mounted there"},
	{"status $EMPTY", exitUsage, "", "fsmount: $EMPTY: no fsmount is mounted there"},
	{"status $EMPTY/none", exitUsage, "", "fsmount: $EMPTY/none: no fsmount is mounted there"},
	{"status /proc", exitUsage, "", "fsmount: /proc: no fsmount is mounted there"},
	{"check $EMPTY", exitFailure, "", "fsmount: $EMPTY: no fsmount is mounted there"},
	{"check $EMPTY/none", exitFailure, "", "fsmount: $EMPTY/none: no fsmount is mounted there"},
	{"check /proc", exitFailure, "", "fsmount: /proc: no fsmount is mounted there"},
}

const helpShown = "Usage: fsmount...fsmount -mount dir...one dash...NAME=URL...--mount=DIR...--temp-dir=DIR..." +
	"$$TMPDIR, else /var/tmp...--io=...--trace...--log-file=FILE..."

func TestTranscripts(t *testing.T) {
	missing := httptest.NewServer(http.NotFoundHandler())
	defer missing.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	t.Setenv("TMPDIR", t.TempDir())
	names := map[string]string{"EMPTY": t.TempDir(), "FULL": t.TempDir(), "$": "$",
		"MISSING": missing.Listener.Addr().String(), "GONE": gone.Listener.Addr().String()}
	expand := func(text string) string { return os.Expand(text, func(name string) string { return names[name] }) }
	if err := os.WriteFile(expand("$FULL/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range transcripts {
		status, stdout, stderr := runInProcess(t, strings.Fields(expand(tt.line))...)
		if status != tt.status || !shows(stdout, expand(tt.stdout)) || !shows(stderr, expand(tt.stderr)) {
			t.Errorf("fsmount %s: status %d, stdout:\n%sstderr:\n%swant status %d, stdout %q, stderr %q",
				tt.line, status, stdout, stderr, tt.status, tt.stdout, tt.stderr)
		}
		if status == exitUsage && strings.Count(stderr, "\n") != 1 {
			t.Errorf("fsmount %s: want one line on stderr:\n%s", tt.line, stderr)
		}
		if strings.Contains(stdout+stderr, "SECRET") {
			t.Errorf("fsmount %s shows a secret:\n%s%s", tt.line, stdout, stderr)
		}
	}
	if entries, err := os.ReadDir(names["EMPTY"]); err != nil || len(entries) != 0 {
		t.Errorf("the mountpoint is not empty any more: %v, %v", entries, err)
	}
}

// shows reports whether text, without its last line's end, matches want.
func shows(text, want string) bool {
	parts := strings.Split(want, "...")
	for i, part := range parts {
		parts[i] = regexp.QuoteMeta(part)
	}
	return regexp.MustCompile("(?s)^" + strings.Join(parts, ".*") + "$").MatchString(strings.TrimSuffix(text, "\n"))
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

func TestOptions(t *testing.T) {
	t.Setenv("TMPDIR", "/some/temp")
	plain := options{Mount: "dir", TempDir: "/some/temp", IO: ioAuto, Connections: 4, Linger: 10 * time.Second,
		StallTimeout: 15 * time.Second, ReadTimeout: time.Minute, StallReport: 10 * time.Second}
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
		if !reflect.DeepEqual(got, tt.want) {
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

// newArgsParser builds a parser that accepts values with a hyphen. Only the comparison
// then notices that doubleDash changed a value.
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

// TestOneDashNeedsDoubleDash shows why doubleDash exists: kong refuses -mount.
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

// FuzzArgs writes a random command line with one dash and with two. doubleDash must turn
// the one into the other.
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

// FuzzArgsOfAnyText gives doubleDash arguments of any text.
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

// parseArgs returns the text of the error, so that FuzzArgs can compare two errors.
func parseArgs(t *testing.T, grammar *argsGrammar, args []string) string {
	t.Helper()
	k := newArgsParser(t, grammar)
	k.Exit = func(int) { t.Fatalf("parse %q: the parser exits", args) }
	if _, err := k.Parse(args); err != nil {
		return err.Error()
	}
	return ""
}

// commandLine is a list of arguments in both spellings, with the values that a parser
// must find in it.
type commandLine struct {
	oneDash, twoDashes []string
	mount, tempDir     string
	headers, sources   []string
}

// newCommandLine adds a flag or a source for each byte of program. The low half of the
// byte is the kind, the high half selects the value. Behind "--" it adds only sources.
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
		// kong takes "--" and "-x" here for flags.
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
