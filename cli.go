// cli.go defines the command line: the flags, their help and the text of
// --version. It rewrites the arguments so that -mount means --mount and sources may
// stand anywhere, then kong parses them. It acts on nothing that it parses.

package main

import (
	"cmp"
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

// options are the flags and arguments of a mount.
type options struct {
	Mount   string   `required:"" placeholder:"DIR" help:"Mount at DIR, an empty directory that is not a mount yet."`
	Sources []string `arg:"" optional:"" name:"source" help:"Mount the remote file at URL (http or https), as URL or NAME=URL. Default: the built-in demo files, unless --list is given."`

	List       []string   `sep:"none" placeholder:"FILE" help:"Read more sources from FILE, one a line; - is standard input. Blank lines and lines that start with # are ignored. May be repeated."`
	Header     headerFlag `group:"access" placeholder:"'NAME: VALUE'" help:"Send this header to the origin of every source. @FILE reads headers from FILE, one a line: the list of processes does not show them. May be repeated."`
	BearerFile string     `group:"access" placeholder:"FILE" help:"Send 'Authorization: Bearer TOKEN' to the origin of every source; FILE holds only TOKEN. Default: send user:password@ of the URL, else the entry for its host in $$NETRC or ~/.netrc."`
	CACert     string     `name:"ca-cert" group:"access" placeholder:"FILE" help:"Trust the certificate authorities in FILE (PEM) as well as the system's. Default: trust the system's only."`

	TempDir      string        `placeholder:"DIR" default:"${tempdir}" help:"Keep downloads in DIR while mounted, in files without a name. DIR needs room for every file that is read. Default: $$TMPDIR, else /var/tmp."`
	Connections  int           `placeholder:"N" default:"4" group:"network" help:"Send at most N requests at once for one file. Default: ${default}."`
	Linger       time.Duration `placeholder:"TIME" default:"10s" group:"network" help:"Go on with a download for TIME after the last program closes the file. Default: ${default}."`
	StallTimeout time.Duration `placeholder:"TIME" default:"15s" group:"network" help:"Replace a connection that sends nothing for TIME. Default: ${default}."`
	ReadTimeout  time.Duration `placeholder:"TIME" default:"60s" group:"network" help:"Fail a read (ETIMEDOUT) after TIME without any byte of its file. Every byte restarts TIME, and the download goes on. Default: ${default}."`

	IO         ioMode `name:"io" enum:"auto,direct,buffered" default:"auto" help:"Use the page cache: once a file is complete (auto), never (direct), or always (buffered). buffered allows shared mappings of an incomplete file, but nobody can kill a stalled read. Default: ${default}."`
	AllowOther bool   `help:"Let other users read the files. Default: only the user who mounts."`

	StallReport time.Duration `placeholder:"TIME" default:"10s" help:"Log each operation that is blocked for TIME: what it waits for, all stacks and the recent events. Default: ${default}."`

	Trace   bool   `help:"Log an ENTER and an EXIT line for every read, download and close."`
	LogFile string `placeholder:"FILE" help:"Append the log to FILE. Default: standard error."`

	Version kong.VersionFlag `help:"Print version, commit and Go version, and exit."`
}

// headerFlag holds the values of --header, a flag that may be repeated. It decodes
// itself, so that kong's errors never quote a secret.
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

The first read of a file starts its download; all readers share it. Ctrl-C or an
umount of DIR stops fsmount. A long flag may have one dash or two. TIME is a number
with a unit, such as 500ms, 15s or 2m.

Commands, each with its own --help:
`

// parseOptions parses args. done is true after --help or --version, whose text is
// then on stdout.
func parseOptions(args []string, stdout, stderr io.Writer) (opts options, done bool, err error) {
	done, err = parseArguments(&opts, "fsmount", description+commandList(), args, stdout, stderr)
	return opts, done, err
}

// parseArguments parses args into grammar, a pointer to a struct with kong tags, for
// the program or one of its commands. done is as in parseOptions.
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

// Validate refuses numbers and times that are out of range. kong calls it.
func (o *options) Validate() error {
	switch {
	case o.Connections < 1 || o.Connections > requestsAtOnce:
		return fmt.Errorf("--connections=%d: it must be a number from 1 to %d", o.Connections, requestsAtOnce)
	case o.Linger < 0:
		return fmt.Errorf("--linger=%v: it must be a time such as 10s, or 0", o.Linger)
	case min(o.StallTimeout, o.ReadTimeout, o.StallReport) < time.Millisecond:
		return fmt.Errorf("--stall-timeout, --read-timeout and --stall-report must be times of at least 1ms, such as 15s")
	}
	return nil
}

// defaultTempDir returns $TMPDIR, else /var/tmp. /tmp is often in memory, /var/tmp
// never (file-hierarchy(7)).
func defaultTempDir() string {
	return cmp.Or(os.Getenv("TMPDIR"), "/var/tmp")
}

// buildVersion returns the module version that this program was built from.
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

// versionText formats the build information that the Go linker put into this
// program.
func versionText() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "fsmount (no build information)"
	}
	settings := make(map[string]string)
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	commit := cmp.Or(settings["vcs.revision"], "unknown")
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

// doubleDash returns args with a second dash for each known long flag that has one:
// kong refuses -mount, and users write it. flags tells for each long flag whether a
// value follows it. doubleDash changes no value, even one that looks like a flag, and
// nothing behind "--".
//
// REQUIRES: no short flag takes a value, because doubleDash could change that value
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

// flagsFirst moves all sources behind the flags and a "--". kong stops its list of
// sources at the first flag; it then refuses the next source with an error that
// quotes it whole, secrets included.
func flagsFirst(args []string, flags map[string]bool) []string {
	var front, sources []string
	for i := 0; i < len(args); i++ {
		name, hasValue := flagName(args[i])
		switch {
		case args[i] == "--":
			sources = append(sources, args[i+1:]...)
			i = len(args)
		case args[i] == "-" || !strings.HasPrefix(args[i], "-"):
			sources = append(sources, args[i])
		case !flags[name] || hasValue:
			front = append(front, args[i])
		case i+1 == len(args):
			return args // kong reports the missing value
		default:
			front = append(front, args[i], args[i+1])
			i++
		}
	}
	if len(sources) == 0 {
		return front
	}
	return append(append(front, "--"), sources...)
}

// flagName returns the part of arg between its one or two dashes and its first '='.
// It returns "" if arg has no dash. hasValue is true if arg has a '='.
func flagName(arg string) (name string, hasValue bool) {
	flag, dashed := strings.CutPrefix(arg, "-")
	if !dashed {
		return "", false
	}
	name, _, hasValue = strings.Cut(strings.TrimPrefix(flag, "-"), "=")
	return name, hasValue
}

// longFlags maps the name of each long flag of k, its aliases and its negation to
// whether the next argument is its value.
func longFlags(k *kong.Kong) map[string]bool {
	flags := make(map[string]bool)
	for _, flag := range k.Model.Flags {
		takesValue := !flag.IsBool() && !flag.IsCounter()
		flags[flag.Name] = takesValue
		for _, alias := range flag.Aliases {
			if utf8.RuneCountInString(alias) > 1 { // kong makes an alias of one letter a short flag
				flags[alias] = takesValue
			}
		}
		if negation := flag.Tag.Negatable; negation == "_" { // kong's mark for the default name
			flags["no-"+flag.Name] = takesValue
		} else if negation != "" {
			flags[negation] = takesValue
		}
	}
	return flags
}
