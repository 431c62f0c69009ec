// cli.go is the command line: its grammar, its help, and what --version says.
// It decides nothing of what the program then does.

package main

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/alecthomas/kong"
)

// options are the command line's flags and arguments.
type options struct {
	Mount   string   `required:"" placeholder:"DIR" help:"Directory to mount at: empty, and not a mount yet."`
	Sources []string `arg:"" optional:"" name:"source" help:"URL or NAME=URL of a remote file (http or https). None: the built-in demo files."`

	TempDir    string `placeholder:"DIR" default:"${tempdir}" help:"Where downloads are kept while mounted, in files without a name. Needs room for every file that is read. Default: $$TMPDIR, else /var/tmp."`
	IO         ioMode `name:"io" enum:"auto,direct,buffered" default:"auto" help:"Page cache for files: auto (once complete), direct (never), buffered (always; allows shared mappings while a file is incomplete, at the price that a stalled read cannot be killed)."`
	AllowOther bool   `help:"Let other users read the files too."`

	Trace   bool   `help:"Log an ENTER and an EXIT line for every read, download and close."`
	LogFile string `placeholder:"FILE" help:"Append the log to FILE instead of standard error."`

	Version kong.VersionFlag `help:"Print version, commit and Go version, and exit."`
}

const description = `Mount remote HTTP(S) files as local read-only files of their full size, and
read them while they download.

Examples:

  fsmount -mount dir                                   the built-in demo files
  fsmount -mount dir https://host/film.mkv             dir/film.mkv
  fsmount -mount dir a.iso=https://host/x?id=7 URL2    dir/a.iso and another

Each file downloads once, from its first read on. Ctrl-C, or an umount of DIR,
stops the program. A long flag may have one dash or two.`

// parseOptions reads the command line. done says that it asked for help or the
// version, which stdout has now got.
func parseOptions(args []string, stdout, stderr io.Writer) (opts options, done bool, err error) {
	parser, err := kong.New(&opts,
		kong.Name("fsmount"),
		kong.Description(description),
		kong.Vars{"tempdir": defaultTempDir(), "version": versionText()},
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { done = true }),
		kong.ConfigureHelp(kong.HelpOptions{WrapUpperBound: 100}),
	)
	if err != nil {
		return opts, false, err
	}
	flags := longFlags(parser)
	_, err = parser.Parse(flagsFirst(doubleDash(args, flags), flags))
	if done {
		return opts, true, nil
	}
	return opts, false, err
}

// defaultTempDir is $TMPDIR, else /var/tmp: unlike /tmp, that is never in
// memory (file-hierarchy(7)).
func defaultTempDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	return "/var/tmp"
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
