// cli.go defines the command line: the flags, their help and the text of --version. It arranges the
// arguments so that -mount means --mount and sources may stand anywhere, then kong parses them. Its
// errors say what to type. It acts on nothing that it parses.

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"
)

// options are the flags and arguments of a mount.
type options struct {
	Mount   string   `placeholder:"DIR" help:"Mount at DIR, an empty directory that is not a mount yet."`
	Sources []string `arg:"" optional:"" name:"SOURCE" help:"URL or NAME=URL: mount the remote file at URL (http or https). A NAME with slashes is in directories. Default: the built-in demo files, unless --list or --empty is given."`

	Empty      bool      `help:"Mount no file: fsmount add adds some."`
	List       []string  `sep:"none" placeholder:"FILE" help:"Read more sources from FILE, one a line; - is standard input. Behind a URL may stand sha256=HEX, which the file must have, and size=BYTES, which spares the question at the start. Blank lines and lines that start with # are ignored. May be repeated."`
	TempDir    string    `placeholder:"DIR" default:"${tempdir}" help:"Keep downloads in DIR while mounted, in files without a name. Default: $$TMPDIR, else /var/tmp."`
	CacheDir   string    `placeholder:"DIR" help:"Keep downloads in DIR in the place of --temp-dir, and go on from them the next time, if the origin still has the same version. DIR is yours alone. Default: keep nothing."`
	CacheSize  cacheSize `placeholder:"SIZE" help:"Take at most SIZE of that disk, such as 10G or 20%, and 16M or more. Above it, closed files are forgotten, and larger ones stream through. Default: all but 5% of it."`
	IO         ioMode    `name:"io" default:"auto" words:"auto, direct or buffered" placeholder:"MODE" help:"auto, direct or buffered: once a file is complete, let the kernel read it (passthrough, or the page cache), use the page cache never, or always. buffered allows shared mappings of an incomplete file, but nobody can kill a blocked read. Default: ${default}."`
	AllowOther bool      `help:"Let other users read the files. Default: only the user who mounts."`

	StallReport time.Duration `placeholder:"TIME" default:"10s" help:"Log each operation that is blocked for TIME: what it waits for, all stacks and the recent events. 0: never. Default: ${default}."`
	Trace       bool          `help:"Log an ENTER and an EXIT line for every read, download and close."`
	LogFile     string        `placeholder:"FILE" help:"Append the log to FILE. Default: standard error."`

	Version kong.VersionFlag `help:"Print version, commit and Go version, and exit."`

	Header     []string `sep:"none" group:"access" placeholder:"'NAME: VALUE'" help:"Send this header to the origin of every source. @FILE reads headers from FILE, one a line: the list of processes does not show them. May be repeated."`
	BearerFile string   `group:"access" placeholder:"FILE" help:"Send 'Authorization: Bearer TOKEN' to the origin of every source; FILE holds only TOKEN, and is read again when an origin answers 401. Default: send user:password@ of the URL, else the entry for its host in $$NETRC or ~/.netrc."`
	CACert     string   `name:"ca-cert" group:"access" placeholder:"FILE" help:"Trust the certificate authorities in FILE (PEM) as well as the system's. Default: trust the system's only."`

	OnChange      string        `default:"fail" words:"fail or follow" placeholder:"MODE" group:"network" help:"fail or follow: what a name stands for after its file changed at the origin. fail: the version that was read first, with ESTALE for bytes that have not arrived, until 'fsmount refresh'. follow: the new version, from the next open on; for logs and live files, not for uploads. Default: ${default}."`
	Prefetch      prefetchFlag  `group:"network" help:"Download all files from the start, in the order of the sources, before anybody reads them. --prefetch=NAME,...: these files only."`
	Connections   int           `placeholder:"N" default:"4" group:"network" help:"Send at most N requests at once for one file, besides a second one where an answer is late. Default: ${default}."`
	Depth         int           `placeholder:"N" default:"1" group:"network" help:"Of a source that ends with / and lists files, mount those of N levels of folders; 1 is its own. Default: ${default}."`
	LimitRate     byteSize      `placeholder:"SIZE" group:"network" help:"Download at most SIZE a second, all files together. Files that programs wait for share it; other downloads get what these leave. Default: no limit."`
	StartTimeout  time.Duration `placeholder:"TIME" default:"30s" group:"network" help:"Ask an origin that does not answer, or that is busy, again for TIME before the mount starts without its file. Default: ${default}."`
	All           bool          `group:"network" help:"Mount nothing, and exit with 1, if any source cannot be opened. Default: mount the others."`
	AllowRedirect []string      `words:"private or http" placeholder:"KIND" group:"network" help:"private: follow redirects to private, link-local and loopback addresses, wherever the source is. http: follow redirects from https to http. May be repeated. Default: neither."`
	URLCommand    string        `name:"url-command" placeholder:"CMD" group:"network" help:"Run 'sh -c CMD', with the variables FSMOUNT_NAME and FSMOUNT_URL of a file, when its URL is refused (401, 403, 410) or its host is unknown, and go on at the URL that it writes to standard output within 30s. At another host than the source's, that URL gets no header and no login. CMD has no more rights than fsmount keeps: sudo fails in it."`
	Linger        time.Duration `placeholder:"TIME" default:"10s" group:"network" help:"Go on with a download for TIME after the last program closes the file, up to 16 times what was read. Default: ${default}."`
	StallTimeout  time.Duration `placeholder:"TIME" default:"15s" group:"network" help:"Replace a connection that sends nothing for TIME; an origin that is known to be slow gets more. 0: never. Default: ${default}."`
	ReadTimeout   time.Duration `placeholder:"TIME" default:"10m" group:"network" help:"Fail a read after TIME without any byte of its file; 0: never. Every byte restarts TIME, and the download goes on. Default: ${default}."`
}

// prefetchFlag is the value of --prefetch: names of files, or "" for all.
type prefetchFlag []string

// IsBool implements kong.BoolMapperValue: the flag may stand alone.
func (*prefetchFlag) IsBool() bool { return true }

// Decode implements kong.MapperValue.
func (f *prefetchFlag) Decode(ctx *kong.DecodeContext) error {
	names := ""
	if ctx.Scan.Peek().Type == kong.FlagValueToken {
		names = ctx.Scan.Pop().String()
	}
	*f = append(*f, strings.Split(names, ",")...)
	return nil
}

// noLimit stands for a time of 0 on the command line.
const noLimit = time.Duration(math.MaxInt64)

const description = `Mount remote HTTP(S) files as local read-only files of their full size, and
read them while they download.

Examples:

  fsmount -mount dir                                   the built-in demo files
  fsmount -mount dir https://host/film.mkv             dir/film.mkv
  fsmount -mount dir 'a.iso=https://host/x?id=7' URL2  dir/a.iso and another
  fsmount -mount dir --list urls.txt                   those in urls.txt

The first read of a file starts its download, and it downloads once. Ctrl-C or
an umount of DIR stops fsmount. A flag may have one dash or two. TIME is a
number with a unit, such as 500ms, 15s or 2m. A SIZE is in
bytes, or has a unit, such as 500M or 1.5GiB; as in dd, M is MiB, and MB is
1,000,000 bytes. Quote a URL that has ? or &: the shell changes it otherwise.

Commands, each with its own --help:
`

// parseOptions parses args. done is true after --help or --version, whose text is then on stdout.
func parseOptions(args []string, stdout, stderr io.Writer) (opts options, done bool, err error) {
	names, list := shownCommands()
	done, err = parseArguments(&opts, "fsmount -mount DIR", description+list, args, stdout, stderr)
	if err == nil && !done && opts.Mount == "" {
		err = missingMount(opts.Sources, names)
	}
	return opts, done, err
}

// missingMount returns the error for a command line without -mount. Its first word
// that is no URL was probably meant as a command.
func missingMount(sources, commandNames []string) error {
	const howToMount = "to mount: fsmount -mount DIR URL...; without a URL it mounts a demo; to stop: umount DIR"
	if len(sources) == 0 || slices.ContainsFunc(sources, func(s string) bool { return strings.Contains(s, "://") }) {
		return errors.New("-mount DIR is missing; " + howToMount)
	}
	word := redactArg(sources[0])
	if slices.Contains(commandNames, word) {
		return fmt.Errorf("the command goes first: fsmount %s", word)
	}
	guess := cmp.Or(didYouMean(word, "", commandNames), ".")
	if word == "mount" { // it is like umount, its opposite
		guess = "."
	}
	return fmt.Errorf("unknown command %q%s The commands: %s; %s", word, guess, strings.Join(commandNames, ", "), howToMount)
}

// parseArguments parses args into grammar, a pointer to a struct with kong tags, for the program or
// one of its commands. name is the start of its usage line. done is as in parseOptions.
func parseArguments(grammar any, name, about string, args []string, stdout, stderr io.Writer) (done bool, err error) {
	parser := kong.Must(grammar,
		kong.Name(name),
		kong.Description(about),
		kong.Vars{"tempdir": defaultTempDir(), "version": versionText()},
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { done = true }),
		kong.ExplicitGroups([]kong.Group{{Key: "access", Title: "Access flags:"}, {Key: "network", Title: "Network flags:"}}),
		kong.ConfigureHelp(kong.HelpOptions{WrapUpperBound: 80}),
		kong.Help(printHelp),
		kong.KindMapper(reflect.String, kong.MapperFunc(decodeValue)),
		kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(decodeValue)),
		kong.TypeMapper(reflect.TypeFor[int](), kong.MapperFunc(decodeValue)),
		kong.TypeMapper(reflect.TypeFor[byteSize](), kong.MapperFunc(decodeValue)),
		kong.TypeMapper(reflect.TypeFor[cacheSize](), kong.MapperFunc(decodeValue)),
	)
	flags, operands, err := arrange(args, longFlags(parser))
	if err != nil {
		return false, err
	}
	if slices.Contains(flags, "--help") {
		flags, operands = []string{"--help"}, nil
	}
	_, err = parser.Parse(slices.Concat(flags, []string{"--"}, operands))
	if done {
		return true, nil
	}
	if wrong := checkOperands(parser.Model, operands); wrong != nil {
		return false, wrong
	}
	if wrong := (*valueError)(nil); errors.As(err, &wrong) {
		return false, wrong // without the flag's name that kong puts before it
	}
	return false, err
}

// printHelp writes kong's help in the form of the README.
func printHelp(how kong.HelpOptions, ctx *kong.Context) error {
	stdout, text := ctx.Stdout, bytes.Buffer{}
	ctx.Stdout, ctx.Model.HelpFlag.Help = &text, "Show this help."
	err := kong.DefaultHelpPrinter(how, ctx)
	fmt.Fprint(stdout, inReadmeForm(text.String()))
	return err
}

// inReadmeForm writes flags and arguments of kong's help as the README does. Columns stay aligned.
func inReadmeForm(text string) string {
	return strings.NewReplacer("--mount=DIR", "-mount DIR ", "=DIR", " DIR", "=FILE", " FILE", "=TIME", " TIME",
		"=N ", " N ", "=SIZE", " SIZE", "=MODE", " MODE", "=KIND", " KIND", "=CMD", " CMD", "='", " '", "  [<SOURCE> ...]", "  [SOURCE...]   ", "<", "", "> ...", "...", ">", "").Replace(text)
}

// valueError marks a value that a flag does not take.
type valueError struct {
	flag, value string
	advice      string // what to write instead
}

func (e *valueError) Error() string {
	return fmt.Sprintf("--%s %s: %s", e.flag, redactArg(e.value), e.advice)
}

// byteSize is a number of bytes above zero.
type byteSize int64

// parseSize reads a size as dd and truncate do: 10G is 10GiB, and 10GB is decimal.
func parseSize(text string) (size byteSize, ok bool) {
	if text != strings.TrimRight(text, "kKmMgGtTpPeE") {
		text += "i"
	}
	n, err := humanize.ParseBytes(text)
	return byteSize(n), err == nil && 0 < n && n <= math.MaxInt64 && !strings.Contains(text, ",")
}

// decodeValue implements kong.Mapper. A flag's tag words may allow some texts only: "a, b or c".
// kong's own mapper of texts changes bytes that are no UTF-8, which the names of files may have.
func decodeValue(ctx *kong.DecodeContext, target reflect.Value) (err error) {
	text, words := ctx.Scan.Pop().String(), ctx.Value.Tag.Get("words")
	ok, advice := true, "write "+words
	switch value := target.Addr().Interface().(type) {
	case *time.Duration:
		*value, err = time.ParseDuration(text)
		ok, advice = err == nil, "write a number with a unit, such as 500ms, 10s or 2m"
		if _, err := time.ParseDuration(text + "s"); err == nil {
			advice = "write a unit, such as " + text + "s"
		}
	case *int:
		*value, err = strconv.Atoi(text)
		ok, advice = err == nil, "write a number, such as "+ctx.Value.Default
	case *byteSize:
		*value, ok = parseSize(text)
		advice = "write a size above zero, such as 500M, 1.5GiB or 4096"
	case *cacheSize:
		*value, ok = parseCacheSize(text)
		advice = "write 16M or more, as less is too little for a few readers at once: 10G, or 20% of the disk"
	default:
		target.SetString(text)
		ok = words == "" || slices.Contains(strings.Fields(strings.NewReplacer(",", "", " or ", " ").Replace(words)), text)
	}
	if !ok {
		return &valueError{ctx.Value.Name, text, advice}
	}
	return nil
}

// parseCacheSize reads a size of leastRoom or more, or a share of the disk.
func parseCacheSize(text string) (size cacheSize, ok bool) {
	if share, isShare := strings.CutSuffix(text, "%"); isShare {
		percent, err := strconv.Atoi(share)
		return cacheSize{percent: percent}, err == nil && 0 < percent && percent <= 100
	}
	n, ok := parseSize(text)
	return cacheSize{bytes: int64(n)}, ok && n >= leastRoom
}

// Validate refuses numbers and times that are out of range, and replaces a 0 that stands for no limit. kong calls it.
func (o *options) Validate() error {
	for _, limit := range []*time.Duration{&o.StallReport, &o.StallTimeout, &o.ReadTimeout} {
		*limit = cmp.Or(*limit, noLimit)
	}
	if o.Empty && len(o.Sources)+len(o.List) > 0 {
		return errors.New("--empty mounts no file: leave out the sources, or --empty")
	}
	o.TempDir = cmp.Or(o.CacheDir, o.TempDir)
	if o.Connections < 1 || o.Connections > requestsAtOnce {
		return &valueError{"connections", fmt.Sprint(o.Connections), fmt.Sprintf("write a number from 1 to %d", requestsAtOnce)}
	}
	if o.Depth < 1 {
		return &valueError{"depth", fmt.Sprint(o.Depth), "write a number from 1 on"}
	}
	for _, t := range []struct {
		flag         string
		given, least time.Duration
		advice       string
	}{
		{"linger", o.Linger, 0, "10s, or 0"},
		{"start-timeout", o.StartTimeout, time.Millisecond, "30s"},
		{"stall-timeout", o.StallTimeout, time.Millisecond, "15s, or 0 for no limit"},
		{"read-timeout", o.ReadTimeout, time.Millisecond, "15s, or 0 for no limit"},
		{"stall-report", o.StallReport, time.Millisecond, "15s, or 0 for no limit"},
	} {
		if t.given < t.least {
			return &valueError{t.flag, t.given.String(), "write a time such as " + t.advice}
		}
	}
	return nil
}

// checkOperands requires as many arguments besides flags as the usage line shows.
func checkOperands(model *kong.Application, operands []string) error {
	usage := inReadmeForm(model.Name + model.Summary())
	for i, p := range model.Positional {
		if p.Required && i >= len(operands) {
			return fmt.Errorf("%s is missing: write %s", p.Name, usage)
		}
		if p.IsCumulative() {
			return nil
		}
	}
	if n := len(model.Positional); len(operands) > n {
		return fmt.Errorf("%q is one argument too many: write %s", redactArg(operands[n]), usage)
	}
	return nil
}

// defaultTempDir returns $TMPDIR, else /var/tmp. /tmp is often in memory, /var/tmp never (file-hierarchy(7)).
func defaultTempDir() string { return cmp.Or(os.Getenv("TMPDIR"), "/var/tmp") }

// versionText formats the build information that the Go linker puts into every program that is built as a module.
func versionText() string {
	info, _ := debug.ReadBuildInfo()
	settings := make(map[string]string)
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	commit := cmp.Or(settings["vcs.revision"], "unknown")
	if settings["vcs.modified"] == "true" {
		commit += " with local changes"
	}
	race := map[bool]string{true: "yes", false: "no"}[settings["-race"] == "true"]
	return fmt.Sprintf("fsmount %s\ncommit: %s\ngo: %s %s/%s\nrace detector: %s",
		info.Main.Version, commit, info.GoVersion, settings["GOOS"], settings["GOARCH"], race)
}

// arrange returns args in two parts that kong takes: each flag with two dashes and its value behind a
// '=', and the operands, which are all else. kong refuses -mount, and at the first operand it stops to
// look for flags. arrange changes no value, and takes everything behind "--" for an operand.
func arrange(args []string, known map[string]*kong.Flag) (flags, operands []string, err error) {
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			return flags, append(operands, args[i+1:]...), nil
		}
		if !isFlag(args[i]) {
			operands = append(operands, args[i])
			continue
		}
		name, value, joined := splitFlag(args[i])
		flag := known[name]
		mayBeValue := func(arg string) bool {
			name, _, _ := splitFlag(arg)
			return !isFlag(arg) || known[name] == nil && arg != "--"
		}
		switch {
		case flag == nil:
			return nil, nil, unknownFlag(args[i], known)
		case flag.IsBool() && flag.Name != "prefetch" && joined && value != "true" && value != "false":
			return nil, nil, fmt.Errorf("--%s takes no value: write --%s alone", flag.Name, flag.Name)
		case flag.IsBool() && !joined:
			flags = append(flags, "--"+flag.Name)
			continue
		case !joined && i+1 < len(args) && mayBeValue(args[i+1]):
			i++
			value = args[i]
		}
		if value == "" {
			needs := map[string]string{"DIR": "a directory", "FILE": "a file", "TIME": "a time", "N": "a number", "SIZE": "a size", "MODE": "a mode", "KIND": "a kind", "CMD": "a command"}
			return nil, nil, fmt.Errorf("--%s needs %s", flag.Name, cmp.Or(needs[flag.PlaceHolder], flag.PlaceHolder, "a name"))
		}
		flags = append(flags, "--"+flag.Name+"="+value)
	}
	return flags, operands, nil
}

// isFlag reports whether arg is written as a flag. "-" is standard input.
func isFlag(arg string) bool { return strings.HasPrefix(arg, "-") && arg != "-" }

func splitFlag(arg string) (name, value string, joined bool) {
	name, value, joined = strings.Cut(strings.TrimPrefix(arg, "-"), "=")
	return strings.TrimPrefix(name, "-"), value, joined
}

// longFlags maps each name of a flag to the flag.
func longFlags(k *kong.Kong) map[string]*kong.Flag {
	known := make(map[string]*kong.Flag)
	for _, flag := range k.Model.Flags {
		known[flag.Name] = flag
		if flag.Short != 0 {
			known[string(flag.Short)] = flag
		}
	}
	return known
}

// unknownFlag returns the error for arg. It shows no more of arg than a name, and of one
// dash with more than a name only a letter: curl takes -Hvalue.
func unknownFlag(arg string, known map[string]*kong.Flag) error {
	name, _, _ := splitFlag(arg)
	written, _, _ := strings.Cut(arg, "=")
	dashes := strings.TrimSuffix(written, name)
	if more := strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-"); more != "" {
		_, end := utf8.DecodeRuneInString(name)
		if dashes == "--" {
			end = max(end, strings.Index(name, more))
		}
		return fmt.Errorf("unknown flag %s", dashes+name[:end])
	}
	return fmt.Errorf("unknown flag %s%s", written, didYouMean(name, dashes, slices.Sorted(maps.Keys(known))))
}

// didYouMean returns ", did you mean ...?" with the name that is most like word, or "" if none is.
func didYouMean(word, prefix string, names []string) string {
	best, like := "", len(word)/2
	for _, name := range names {
		if n := likeness(word, name); n > like && len(name) > 1 {
			best, like = fmt.Sprintf(", did you mean %s%s?", prefix, name), n
		}
	}
	return best
}

// likeness returns how many bytes a and b have in common at the start and, if both have two or more, at the end.
func likeness(a, b string) (n int) {
	shorter := min(len(a), len(b))
	for n < shorter && a[n] == b[n] {
		n++
	}
	for i := 1; n < shorter && shorter > 1 && a[len(a)-i] == b[len(b)-i]; i++ {
		n++
	}
	return n
}
