// Tests of the command line: transcripts of command lines that never mount anything,
// and how arguments are rewritten and parsed.

package main

import (
	"bytes"
	"errors"
	"io"
	"math"
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

	{"help", exitOK, helpShown, ""},
	{"help ps", exitOK, "Usage: fsmount ps DIR...", ""},
	{"version", exitOK, "fsmount ...commit: ...", ""},

	{"", exitUsage, "", "fsmount: -mount DIR is missing; " + howToMount},
	{"http://h/x?a $EMPTY", exitUsage, "", "fsmount: -mount DIR is missing; " + howToMount},
	{"a=http://h/x", exitUsage, "", "fsmount: -mount DIR is missing; " + howToMount},
	{"pss $EMPTY", exitUsage, "", `fsmount: unknown command "pss", did you mean ps? ` + theCommands},
	{"stop $EMPTY", exitUsage, "", `fsmount: unknown command "stop". ` + theCommands},
	{"mount $EMPTY", exitUsage, "", `fsmount: unknown command "mount". ` + theCommands},
	{"user:SECRET@h --trace", exitUsage, "", `fsmount: unknown command "...". ` + theCommands},
	{"--trace ps $EMPTY", exitUsage, "", "fsmount: the command goes first: fsmount ps (see fsmount --help)"},
	{"-mount", exitUsage, "", "fsmount: --mount needs a directory (see fsmount --help)"},
	{"-mount $EMPTY --list", exitUsage, "", "fsmount: --list needs a file (see fsmount --help)"},
	{"-mont $EMPTY", exitUsage, "", "fsmount: unknown flag -mont, did you mean -mount? (see fsmount --help)"},
	{"-mount $EMPTY --nonsense", exitUsage, "", "fsmount: unknown flag --nonsense (see fsmount --help)"},
	{"-mount $EMPTY --bearer=SECRET", exitUsage, "",
		"fsmount: unknown flag --bearer, did you mean --bearer-file? (see fsmount --help)"},
	{"-mount $EMPTY --io=bad", exitUsage, "", "fsmount: --io bad: write auto, direct or buffered (see fsmount --help)"},
	{"-mount $EMPTY --connections=0", exitUsage, "",
		"fsmount: --connections 0: write a number from 1 to 256 (see fsmount --help)"},
	{"-mount $EMPTY --connections many", exitUsage, "",
		"fsmount: --connections many: write a number, such as 4 (see fsmount --help)"},
	{"-mount $EMPTY --linger 10", exitUsage, "", "fsmount: --linger 10: write a unit, such as 10s (see fsmount --help)"},
	{"-mount $EMPTY --linger soon", exitUsage, "",
		"fsmount: --linger soon: write a number with a unit, such as 500ms, 10s or 2m (see fsmount --help)"},
	{"-mount $EMPTY --linger=-1s", exitUsage, "",
		"fsmount: --linger -1s: write a time such as 10s, or 0 (see fsmount --help)"},
	{"-mount $EMPTY --stall-report=-1s", exitUsage, "",
		"fsmount: --stall-report -1s: write a time such as 15s, or 0 for no limit (see fsmount --help)"},
	{"-mount $EMPTY --limit-rate 1,5M", exitUsage, "",
		"fsmount: --limit-rate 1,5M: write a size above zero, such as 500M, 1.5GiB or 4096 (see fsmount --help)"},
	{"-mount $EMPTY --limit-rate=-1", exitUsage, "", "fsmount: --limit-rate -1: write a size..."},
	{"-mount $EMPTY --limit-rate", exitUsage, "", "fsmount: --limit-rate needs a size (see fsmount --help)"},
	{"-mount $EMPTY --trace=maybe", exitUsage, "",
		"fsmount: --trace takes no value: write --trace alone (see fsmount --help)"},
	{"-mount $EMPTY ftp://h/x", exitUsage, "", `fsmount: ..."ftp://h/x"...`},
	{"-mount $EMPTY http://h/x www.example.com/f", exitUsage, "", `fsmount: source "www.example.com/f": missing http:// or https://: write ...`},
	{"-mount $FULL/none", exitUsage, "", "fsmount: ...mkdir..."},
	{"--mount=$FULL/none", exitUsage, "", "fsmount: ...none..."},
	{"-mount $FULL/file", exitUsage, "", "fsmount: ...not a directory..."},
	{"-mount $FULL", exitUsage, "", "fsmount: ...not empty..."},
	{"-mount $EMPTY -temp-dir $EMPTY", exitUsage, "", "fsmount: ...temporary directory..."},
	{"-mount $EMPTY -temp-dir $FULL/none", exitUsage, "", "fsmount: ...--temp-dir..."},
	{"-mount $EMPTY -log-file $EMPTY/log", exitUsage, "", "fsmount: ...log file..."},
	{"-mount $EMPTY -log-file $FULL/none/log", exitUsage, "", "fsmount: ...log file..."},

	{"-mount $EMPTY a=http://h/1 a=http://h/2", exitUsage, "", `fsmount: name "a" is used twice, for http://h/1 and http://h/2...`},

	// Messages name a source without its secrets.
	{"-mount $EMPTY ftp://user:SECRET@h/x?token=SECRET", exitUsage, "", "fsmount: ...source ..."},
	{"-mount $EMPTY name=ftp://SECRET@h/x", exitUsage, "", "fsmount: ...source ..."},
	{"-mount $EMPTY http://h:port/x?token=SECRET", exitUsage, "", "fsmount: ...source ..."},
	{"-mount $EMPTY h/x?token=SECRET", exitUsage, "", "fsmount: ...source ..."},
	{"-mount $EMPTY --start-timeout 1s http://user:SECRET@$MISSING/a?token=SECRET b.bin=http://$GONE/b?SECRET", exitFailure, "",
		`fsmount: skipped "a" (http://$MISSING/a): the origin answered 404 Not Found (check the URL)` + "\n" +
			`fsmount: skipped "b.bin" (http://$GONE/b): cannot connect to $GONE: connection refused (--start-timeout gives it more time)` + "\n" +
			"fsmount: nothing to mount: no source could be opened"},

	{"-mount $EMPTY --header http://u:SECRET@h/x?SECRET", exitUsage, "", "fsmount: header number 1: it looks like a URL: ..."},
	{"-mount $EMPTY --connections http://u:SECRET@h/x", exitUsage, "", "fsmount: --connections http://...: write a number..."},
	{"-mount $EMPTY --linger http://h/x?SECRET", exitUsage, "", "fsmount: --linger http://h/x...: write a number..."},
	{"-mount $EMPTY --io http://u:SECRET@h/x", exitUsage, "", "fsmount: --io http://...: write auto..."},
	{"-mount $EMPTY --trace=SECRET", exitUsage, "", "fsmount: --trace takes no value..."},
	{"-mount $EMPTY --bearer-file SECRET", exitUsage, "", "fsmount: bearer file: there is none of that name: name a file that holds only the token"},
	{"-mount $EMPTY --list http://u:SECRET@h/x", exitUsage, "", "fsmount: list http://...: no such file or directory: name an existing file"},
	{"-mount $EMPTY --header @http://h/?SECRET", exitUsage, "", "fsmount: header http://h/...: no such file or directory: name an existing file"},
	{"-mount $EMPTY --ca-cert http://u:SECRET@h/x", exitUsage, "", "fsmount: CA certificates http://...: no such file or directory..."},
	{"-mount $EMPTY --log-file http://u:SECRET@h/x", exitUsage, "", "fsmount: log file http://...: no such file or directory..."},
	{"-mount $EMPTY --temp-dir http://u:SECRET@h/x", exitUsage, "", "fsmount: temporary directory http://...: no such file or directory..."},
	{"-mount http://u:SECRET@h/x", exitUsage, "", "fsmount: mountpoint http://...: no such file or directory..."},
	{"ps http://u:SECRET@h/x", exitUsage, "", "fsmount: http://...: no fsmount is mounted there..."},
	{"check http://u:SECRET@h/x", exitFailure, "", "fsmount: http://...: no fsmount is mounted there..."},
	{"hangs http://u:SECRET@h/x", exitUsage, "", "fsmount: hangs: http://...: no such file or directory"},

	{"-mount $EMPTY https://$MISSING/a", exitFailure, "",
		"fsmount: skipped \"a\" (https://$MISSING/a): the server speaks http: write http://\nfsmount: nothing to mount: ..."},
	{"ps", exitUsage, "", "fsmount: ps: DIR is missing: write fsmount ps DIR [flags] (see fsmount ps --help)"},
	{"status --json", exitUsage, "", "fsmount: status: DIR is missing: write fsmount status DIR [flags] (see fsmount status --help)"},
	{"ps / /x", exitUsage, "", `fsmount: ps: "/x" is one argument too many: write fsmount ps DIR [flags] (see fsmount ps --help)`},
	{"selftest now", exitUsage, "",
		`fsmount: selftest: "now" is one argument too many: write fsmount selftest (see fsmount selftest --help)`},
	{"ps / --watsh", exitUsage, "", "fsmount: ps: unknown flag --watsh, did you mean --watch? (see fsmount ps --help)"},
	{"check / --timeout 2", exitUsage, "", "fsmount: check: --timeout 2: write a unit, such as 2s (see fsmount check --help)"},
	{"check / -timeout=0s", exitUsage, "", "fsmount: ...--timeout 0s: write a time above zero, such as 2s..."},

	{"ps $EMPTY", exitUsage, "", "fsmount: $EMPTY: no fsmount is mounted there, it is a plain directory (findmnt -t fuse.fsmount lists all)"},
	{"ps $EMPTY/none", exitUsage, "", "fsmount: $EMPTY/none: no fsmount is mounted there, no such file or directory (findmnt -t fuse.fsmount lists all)"},
	{"ps /proc", exitUsage, "", "fsmount: /proc: no fsmount is mounted there, it is a plain directory (findmnt -t fuse.fsmount lists all)"},
	{"ps $FULL/file", exitUsage, "", "fsmount: $FULL/file: no fsmount is mounted there, it is a file (findmnt -t fuse.fsmount lists all)"},
	{"ps $FULL/none/x", exitUsage, "", "fsmount: $FULL/none/x: no fsmount is mounted there, no such file or directory (findmnt -t fuse.fsmount lists all)"},
	{"status $EMPTY", exitUsage, "", "fsmount: $EMPTY: no fsmount is mounted there, it is a plain directory (findmnt -t fuse.fsmount lists all)"},
	{"status $EMPTY/none", exitUsage, "", "fsmount: $EMPTY/none: no fsmount is mounted there, no such file or directory (findmnt -t fuse.fsmount lists all)"},
	{"status /proc", exitUsage, "", "fsmount: /proc: no fsmount is mounted there, it is a plain directory (findmnt -t fuse.fsmount lists all)"},
	{"check $EMPTY", exitFailure, "", "fsmount: $EMPTY: no fsmount is mounted there, it is a plain directory (findmnt -t fuse.fsmount lists all)"},
	{"check $EMPTY/none", exitFailure, "", "fsmount: $EMPTY/none: no fsmount is mounted there, no such file or directory (findmnt -t fuse.fsmount lists all)"},
	{"check /proc", exitFailure, "", "fsmount: /proc: no fsmount is mounted there, it is a plain directory (findmnt -t fuse.fsmount lists all)"},
}

const (
	helpShown = "Usage: fsmount -mount DIR [SOURCE...] [flags]...fsmount -mount dir...one dash...NAME=URL...-h, --help ...Show this help" +
		"...  -mount DIR ...  --list FILE ...  --temp-dir DIR ...$$TMPDIR, else /var/tmp...  --io MODE ...--trace...--log-file FILE..."
	howToMount  = "to mount: fsmount -mount DIR URL...; without a URL it mounts a demo; to stop: umount DIR (see fsmount --help)"
	theCommands = "The commands: ps, status, refresh, fetch, forget, add, rm, umount, check, hangs, selftest; " + howToMount
)

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
	plain := options{Mount: "dir", TempDir: "/some/temp", IO: ioAuto, OnChange: "fail", Connections: 4, Depth: 1, Linger: 10 * time.Second,
		StartTimeout: 30 * time.Second, StallTimeout: 15 * time.Second, ReadTimeout: 10 * time.Minute, StallReport: 10 * time.Second}
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

// parserOf returns a parser of the program's own flags.
func parserOf(t testing.TB, opts *options) *kong.Kong {
	t.Helper()
	k, err := kong.New(opts, kong.Vars{"tempdir": "/tmp", "version": "1"},
		kong.TypeMapper(reflect.TypeFor[cacheSize](), kong.MapperFunc(decodeValue)),
		kong.ExplicitGroups([]kong.Group{{Key: "access"}, {Key: "network"}}))
	if err != nil {
		t.Fatalf("build the parser: %v", err)
	}
	return k
}

func TestArrange(t *testing.T) {
	known := longFlags(parserOf(t, new(options)))
	tests := []struct {
		about    string
		args     []string
		flags    []string
		operands []string
		says     string // the error
	}{
		{"nothing", nil, nil, nil, ""},
		{"one dash", []string{"-mount", "dir", "URL"}, []string{"--mount=dir"}, []string{"URL"}, ""},
		{"two dashes", []string{"--mount", "dir"}, []string{"--mount=dir"}, nil, ""},
		{"sources anywhere", []string{"u1", "-mount", "dir", "u2"}, []string{"--mount=dir"}, []string{"u1", "u2"}, ""},
		{"with =", []string{"-mount=dir", "-trace"}, []string{"--mount=dir", "--trace"}, nil, ""},
		{"= in the value", []string{"-mount=a=-mount"}, []string{"--mount=a=-mount"}, nil, ""},
		{"bool with =", []string{"-trace=false"}, []string{"--trace=false"}, nil, ""},
		{"bool takes no argument", []string{"-trace", "false"}, []string{"--trace"}, []string{"false"}, ""},
		{"short", []string{"-h"}, []string{"--help"}, nil, ""},
		{"standard input", []string{"-list", "-", "-"}, []string{"--list=-"}, []string{"-"}, ""},
		{"value like a flag", []string{"-temp-dir", "-x", "-mount", "--y"}, []string{"--temp-dir=-x", "--mount=--y"}, nil, ""},
		{"behind --", []string{"-trace", "--", "-mount", "-trace"}, []string{"--trace"}, []string{"-mount", "-trace"}, ""},
		{"empty operand", []string{""}, nil, []string{""}, ""},

		{"no value left", []string{"-trace", "-mount"}, nil, nil, "--mount needs a directory"},
		{"empty after =", []string{"-mount=", "-trace"}, nil, nil, "--mount needs a directory"},
		{"empty value", []string{"-list", ""}, nil, nil, "--list needs a file"},
		{"a flag is no value", []string{"-linger", "-mount", "dir"}, nil, nil, "--linger needs a time"},
		{"-- is no value", []string{"-connections", "--", "URL"}, nil, nil, "--connections needs a number"},
		{"header", []string{"--header"}, nil, nil, "--header needs 'NAME: VALUE'"},
		{"mode", []string{"--io"}, nil, nil, "--io needs a mode"},
		{"unknown", []string{"-mont", "dir"}, nil, nil, "unknown flag -mont, did you mean -mount?"},
		{"letter case", []string{"--Mount", "dir"}, nil, nil, "unknown flag --Mount, did you mean --mount?"},
		{"three dashes", []string{"---mount"}, nil, nil, "unknown flag ---mount, did you mean --mount?"},
		{"part of a name", []string{"-temp=SECRET"}, nil, nil, "unknown flag -temp, did you mean -temp-dir?"},
		{"one letter", []string{"-m", "dir"}, nil, nil, "unknown flag -m, did you mean -mount?"},
		{"dash and =", []string{"-=x"}, nil, nil, "unknown flag -"},
	}
	for _, test := range tests {
		flags, operands, err := arrange(test.args, known)
		if !slices.Equal(flags, test.flags) || !slices.Equal(operands, test.operands) || (err == nil) != (test.says == "") ||
			err != nil && err.Error() != test.says {
			t.Errorf("%s: arrange(%q) = %q, %q, %v; want %q, %q, %q",
				test.about, test.args, flags, operands, err, test.flags, test.operands, test.says)
		}
	}
}

// TestOneDashNeedsArrange shows why arrange exists: kong refuses -mount.
func TestOneDashNeedsArrange(t *testing.T) {
	if _, err := parserOf(t, new(options)).Parse([]string{"-mount", "dir"}); err == nil {
		t.Error("kong parses -mount by itself")
	}
}

// FuzzArrange gives arrange arguments of any text. One dash or two make no difference,
// and what arrange returns arranges to itself.
func FuzzArrange(f *testing.F) {
	f.Add("-mount", "-mount", "--", "-mount")
	f.Add("-trace=", "-", "---mount", "-linger")
	f.Add("-list", "a=b", "-trace", "x")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		args := []string{a, b, c, d}
		known := longFlags(parserOf(t, new(options)))
		flags, operands, err := arrange(args, known)
		if err != nil {
			return
		}
		again, same, err := arrange(slices.Concat(flags, []string{"--"}, operands), known)
		if err != nil || !slices.Equal(again, flags) || !slices.Equal(same, operands) {
			t.Errorf("arrange(%q) = %q, %q, again %q, %q, %v", args, flags, operands, again, same, err)
		}
	})
}

func TestDidYouMean(t *testing.T) {
	names := []string{"check", "hangs", "mount", "ps", "selftest", "status", "h"}
	for word, want := range map[string]string{"mont": "mount", "pss": "ps", "chekc": "check", "statsu": "status", "Mount": "mount",
		"selftests": "selftest", "m": "mount", "stop": "", "e": "", "x": "", "": "", "h": "hangs", "k": ""} {
		if want != "" {
			want = ", did you mean -" + want + "?"
		}
		if got := didYouMean(word, "-", names); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}

func TestSizesAreReadAsDDReadsThem(t *testing.T) {
	for text, want := range map[string]int64{"4096": 4096, "1": 1, "10G": 10 << 30, "10g": 10 << 30, "500M": 500 << 20, "2 K": 2 << 10, "3T": 3 << 40,
		"1.5GiB": 3 << 29, "1.5Gi": 3 << 29, "10GB": 10e9, "100kB": 100e3, "7b": 7, "9223372036854775807": math.MaxInt64, "7E": 7 << 60} {
		var grammar struct{ Size byteSize }
		if _, err := parseArguments(&grammar, "", "", []string{"--size", text}, io.Discard, io.Discard); err != nil || int64(grammar.Size) != want {
			t.Errorf("%q: got %d, %v, want %d", text, grammar.Size, err, want)
		}
	}
	for _, text := range []string{"0", "0.1", "-1", "-1M", "1,5G", "1,000", "G", "1e3", "10X", "1GG", "20%", "8E", "9223372036854775808", "1e99", "0x10", ".", "NaN", "inf", "+1"} {
		var grammar struct{ Size byteSize }
		_, err := parseArguments(&grammar, "", "", []string{"--size=" + text}, io.Discard, io.Discard)
		if wrong := (*valueError)(nil); !errors.As(err, &wrong) || wrong.value != text {
			t.Errorf("%q: got %d, %v, want a valueError", text, grammar.Size, err)
		}
	}
}

// TestArgumentsKeepTheirBytes: the names of files may have any byte but 0.
func TestArgumentsKeepTheirBytes(t *testing.T) {
	const word = "a \xff\xc3b\n\xf0"
	opts, _, err := parseOptions([]string{"-mount", word, "--list", word, "--temp-dir=" + word, "--log-file", word,
		"--header", word, "--bearer-file", word, "--prefetch=" + word, word}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []string{opts.Mount, opts.List[0], opts.TempDir, opts.LogFile, opts.Header[0], opts.BearerFile, opts.Prefetch[0], opts.Sources[0]} {
		if got != word {
			t.Errorf("got %q, want %q", got, word)
		}
	}
	umount := new(umountCommand)
	if _, err := parseArguments(umount, "fsmount umount", "", []string{word}, io.Discard, io.Discard); err != nil || umount.Dir != word {
		t.Errorf("umount: %q, %v, want %q", umount.Dir, err, word)
	}
}
