// cli.go defines the command line: its flags, its help and the text of --version.
// It rewrites arguments so that one dash works like two, then lets kong parse
// them. It never acts on what it parsed.

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/alecthomas/kong"
)

// options are the command line's flags and arguments.
type options struct {
	Mount   string   `required:"" placeholder:"DIR" help:"Directory to mount at: empty, and not a mount yet."`
	Sources []string `arg:"" optional:"" name:"source" help:"URL or NAME=URL of a remote file (http or https). None, and no --list: the built-in demo files."`

	List       []string   `sep:"none" placeholder:"FILE" help:"More sources, one a line of FILE (- for standard input). Lines that are blank or start with # are passed over."`
	Header     headerFlag `group:"access" placeholder:"'NAME: VALUE'" help:"Send this header to the origin of every source. @FILE has headers one a line, and keeps them out of the list of processes. May be repeated."`
	BearerFile string     `group:"access" placeholder:"FILE" help:"Send the token in FILE, as 'Authorization: Bearer', to the origin of every source. Else user:password@ of the URL is sent, else what $$NETRC or ~/.netrc has for its host."`
	CACert     string     `name:"ca-cert" group:"access" placeholder:"FILE" help:"Trust the certificate authorities in FILE (PEM) as well as the system's."`

	TempDir      string        `placeholder:"DIR" default:"${tempdir}" help:"Where downloads are kept while mounted, in files without a name. Needs room for every file that is read. Default: $$TMPDIR, else /var/tmp."`
	Connections  int           `placeholder:"N" default:"4" group:"network" help:"The most requests in flight for one file. Default: ${default}."`
	Linger       time.Duration `placeholder:"TIME" default:"10s" group:"network" help:"How long a download goes on when no program has the file open any more. Default: ${default}."`
	StallTimeout time.Duration `placeholder:"TIME" default:"15s" group:"network" help:"Replace a connection that has sent nothing for so long. Default: ${default}."`
	ReadTimeout  time.Duration `placeholder:"TIME" default:"60s" group:"network" help:"Fail a read (ETIMEDOUT) when nothing of its file has arrived for so long. The download goes on. Default: ${default}."`

	IO         ioMode `name:"io" enum:"auto,direct,buffered" default:"auto" help:"Page cache for files: auto (once complete), direct (never), buffered (always; allows shared mappings while a file is incomplete, at the price that a stalled read cannot be killed)."`
	AllowOther bool   `help:"Let other users read the files too."`

	StallReport time.Duration `placeholder:"TIME" default:"10s" help:"Log an operation that has been blocked for so long, with what it waits for, all stacks and the recent events. Default: ${default}."`

	Trace   bool   `help:"Log an ENTER and an EXIT line for every read, download and close."`
	LogFile string `placeholder:"FILE" help:"Append the log to FILE instead of standard error."`

	Version kong.VersionFlag `help:"Print version, commit and Go version, and exit."`
}

// headerFlag is the values of a flag that may be repeated, and that no complaint
// of the parser's is to quote.
type headerFlag []string

// Decode implements kong.MapperValue.
func (f *headerFlag) Decode(ctx *kong.DecodeContext) error {
	value := ctx.Scan.Pop()
	if !value.IsValue() {
		return errors.New("it has no value: write 'NAME: VALUE' or @FILE behind it")
	}
	*f = append(*f, value.String())
	return nil
}

const description = `Mount remote HTTP(S) files as local read-only files of their full size, and
read them while they download.

Examples:

  fsmount -mount dir                                   the built-in demo files
  fsmount -mount dir https://host/film.mkv             dir/film.mkv
  fsmount -mount dir a.iso=https://host/x?id=7 URL2    dir/a.iso and another
  fsmount -mount dir --list urls.txt                   those in urls.txt

Each file downloads once, from its first read on. Ctrl-C, or an umount of DIR,
stops the program. A long flag may have one dash or two.

Commands, each with a --help of its own:
`

// parseOptions reads the command line. done says that it asked for help or the
// version, which stdout has now got.
func parseOptions(args []string, stdout, stderr io.Writer) (opts options, done bool, err error) {
	done, err = parseArguments(&opts, "fsmount", description+commandList(), args, stdout, stderr)
	return opts, done, err
}

// parseArguments reads args into grammar, a struct with kong tags, for the
// program or a command of it. done says that they asked for help or the version,
// which stdout has now got.
func parseArguments(grammar any, name, about string, args []string, stdout, stderr io.Writer) (done bool, err error) {
	parser, err := kong.New(grammar,
		kong.Name(name),
		kong.Description(about),
		kong.Vars{"tempdir": defaultTempDir(), "version": versionText()},
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { done = true }),
		kong.ExplicitGroups([]kong.Group{{Key: "access", Title: "Access flags:"}, {Key: "network", Title: "Network flags:"}}),
		kong.ConfigureHelp(kong.HelpOptions{WrapUpperBound: 100}),
	)
	if err != nil {
		return false, err
	}
	flags := longFlags(parser)
	_, err = parser.Parse(flagsFirst(doubleDash(args, flags), flags))
	if done {
		return true, nil
	}
	return false, err
}

// Validate refuses numbers that make no sense. (kong calls it.)
func (o *options) Validate() error {
	switch {
	case o.Connections < 1:
		return fmt.Errorf("--connections=%d: at least 1 is needed", o.Connections)
	case o.Connections > requestsAtOnce:
		return fmt.Errorf("--connections=%d: at most %d requests are made at once", o.Connections, requestsAtOnce)
	case o.Linger < 0:
		return fmt.Errorf("--linger=%v: a time such as 10s is needed, or 0", o.Linger)
	case min(o.StallTimeout, o.ReadTimeout, o.StallReport) < time.Millisecond:
		return fmt.Errorf("--stall-timeout, --read-timeout and --stall-report are times such as 15s")
	}
	return nil
}

// defaultTempDir is $TMPDIR, else /var/tmp: unlike /tmp, that is never in
// memory (file-hierarchy(7)).
func defaultTempDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	return "/var/tmp"
}

// buildVersion is the version of the module that was built.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}

// versionText says what was built from what, by the build's own record.
func versionText() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "fsmount (no build information)"
	}
	settings := make(map[string]string)
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	commit := settings["vcs.revision"]
	if commit == "" {
		commit = "unknown"
	}
	if settings["vcs.modified"] == "true" {
		commit += " with local changes"
	}
	race := "no"
	if settings["-race"] == "true" {
		race = "yes"
	}
	return fmt.Sprintf("fsmount %s\ncommit: %s\ngo: %s %s/%s\nrace detector: %s",
		info.Main.Version, commit, info.GoVersion, settings["GOOS"], settings["GOARCH"], race)
}

// doubleDash returns args with each known long flag that has one dash given
// its second: -mount DIR, -mount=DIR. flags tells of every long flag whether a
// value follows it. Such a value is left alone whatever it looks like, as is
// all behind "--".
//
// REQUIRES: no short flag takes a value, for its value could be rewritten
func doubleDash(args []string, flags map[string]bool) []string {
	rewritten := slices.Clone(args)
	for i := 0; i < len(args) && args[i] != "--"; i++ {
		name, hasValue := flagName(args[i])
		takesValue, known := flags[name]
		if !known {
			continue
		}
		if !strings.HasPrefix(args[i], "--") {
			rewritten[i] = "-" + args[i]
		}
		if takesValue && !hasValue {
			i++
		}
	}
	return rewritten
}

// flagsFirst puts the sources behind the flags and a "--", wherever they stood:
// the parser ends its list of them at the first flag, and quotes the next one
// whole in its complaint, secrets and all.
func flagsFirst(args []string, flags map[string]bool) []string {
	var front, sources []string
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			sources = append(sources, args[i+1:]...)
			break
		}
		if args[i] == "-" || !strings.HasPrefix(args[i], "-") {
			sources = append(sources, args[i])
			continue
		}
		front = append(front, args[i])
		if name, hasValue := flagName(args[i]); flags[name] && !hasValue {
			if i++; i == len(args) {
				return args // the value is missing, as the parser will say
			}
			front = append(front, args[i])
		}
	}
	if len(sources) == 0 {
		return front
	}
	return append(append(front, "--"), sources...)
}

// flagName is what stands between the one or two dashes of arg and its first
// '='; "" where arg has no dash. hasValue tells whether there is an '='.
func flagName(arg string) (name string, hasValue bool) {
	flag, dashed := strings.CutPrefix(arg, "-")
	if !dashed {
		return "", false
	}
	name, _, hasValue = strings.Cut(strings.TrimPrefix(flag, "-"), "=")
	return name, hasValue
}

// longFlags maps every name a flag of k may have behind two dashes, its
// negation and aliases with it, to whether an argument follows it as its value.
func longFlags(k *kong.Kong) map[string]bool {
	flags := make(map[string]bool)
	for _, flag := range k.Model.Flags {
		for _, name := range longNames(flag) {
			flags[name] = !flag.IsBool() && !flag.IsCounter()
		}
	}
	return flags
}

func longNames(flag *kong.Flag) []string {
	names := []string{flag.Name}
	for _, alias := range flag.Aliases {
		// To kong an alias of one letter is a short flag.
		if utf8.RuneCountInString(alias) > 1 {
			names = append(names, alias)
		}
	}
	switch negation := flag.Tag.Negatable; negation {
	case "":
	case "_": // kong's mark for the negation without a name of its own
		names = append(names, "no-"+flag.Name)
	default:
		names = append(names, negation)
	}
	return names
}
