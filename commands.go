// commands.go is the table of the program's commands and what they have in
// common: how one is found, parsed and ended, and how text from elsewhere is
// shown. A command line that does not begin with a command's name is one to
// mount.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// answerPatience is how long ps and status wait for the mount, which answers
	// within 100 ms even while a thousand reads are blocked.
	answerPatience = 5 * time.Second

	// readControlName is the command that readControl runs.
	readControlName = "read-control"
)

// command is what the program does besides mounting.
type command struct {
	name  string
	args  string // for help
	about string // for help; a command without is not shown
	run   func(in invocation) (status int)
}

// commands is the one table of them: a command is added here and nowhere else.
// Each entry parses its arguments into a type whose kong tags are its grammar.
func commands() []command {
	return []command{
		{"ps", "DIR", "list the operations in flight, and what each waits for", func(in invocation) int {
			c := psCommand{}
			return in.perform(&c, func() int { return in.exit(c.run(in.stdout)) })
		}},
		{"status", "DIR", "show how much of each file has arrived", func(in invocation) int {
			c := statusCommand{}
			return in.perform(&c, func() int { return in.exit(c.run(in.stdout)) })
		}},
		{"check", "DIR", "exit 0 if the mount answers and nothing is blocked, else 1", func(in invocation) int {
			c := checkCommand{}
			return in.perform(&c, func() int { return in.exit(c.run()) })
		}},
		{"hangs", "[LOG]", "find in a log of --trace what hangs", func(in invocation) int {
			c := hangsCommand{}
			return in.perform(&c, func() int {
				status, err := c.run(in.stdin, in.stdout)
				if err != nil {
					return in.exit(usageError{err})
				}
				return status
			})
		}},
		{"selftest", "", "check that fsmount works on this machine", func(in invocation) int {
			return in.perform(new(struct{}), func() int { return runSelftest(in.stdout) })
		}},
		{selftestReaderCommand, "", "", func(in invocation) int {
			return in.perform(new(struct{}), func() int { return runSelftestReader(in.stdin, in.stdout) })
		}},
		{readControlName, "DIR FILE", "", func(in invocation) int {
			c := readControlCommand{}
			return in.perform(&c, func() int { return in.exit(c.run(in.stdout)) })
		}},
	}
}

// commandNamed finds the command that args begin with.
func commandNamed(args []string) (c command, found bool) {
	for _, c := range commands() {
		if len(args) > 0 && args[0] == c.name {
			return c, true
		}
	}
	return command{}, false
}

// commandList is the part of the help that tells of the commands.
func commandList() string {
	var b strings.Builder
	for _, c := range commands() {
		if c.about != "" {
			fmt.Fprintf(&b, "\n  fsmount %-16s %s", c.name+" "+c.args, c.about)
		}
	}
	return b.String()
}

// invocation is one run of a command.
type invocation struct {
	command
	argv           []string // behind the command's name
	stdin          io.Reader
	stdout, stderr io.Writer
}

// perform parses the arguments into grammar, and does what they ask for: help,
// or do.
func (in invocation) perform(grammar any, do func() int) (status int) {
	about := ""
	if in.about != "" {
		about = strings.ToUpper(in.about[:1]) + in.about[1:] + "."
	}
	done, err := parseArguments(grammar, "fsmount "+in.name, about, in.argv, in.stdout, in.stderr)
	if err != nil {
		return in.exit(usageError{fmt.Errorf("%s: %w (see fsmount %s --help)", in.name, err, in.name)})
	}
	if done {
		return exitOK
	}
	return do()
}

// exit reports err, if it is one, and returns the status to exit with.
func (in invocation) exit(err error) int { return exitStatus(err, in.stderr) }

// untilInterrupted is a context that Ctrl-C ends.
func untilInterrupted() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}

// askMount reads a control file of the mount at dir for a person, and parses its
// lines. That there is no such mount is an error of who asked.
//
// BLOCKS until the mount has answered; wakes on that, the end of ctx, and after
// answerPatience.
func askMount[T any](ctx context.Context, dir, name string, parse func(line string) (T, error)) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	text, err := readControl(ctx, dir, name)
	switch {
	case errors.Is(err, errNotMounted):
		return nil, usageError{err}
	case errors.Is(err, errNoAnswer):
		return nil, fmt.Errorf("%w within %v", err, answerPatience)
	case err != nil:
		return nil, err
	}
	return parseControl(dir, name, text, parse)
}

func parseControl[T any](dir, name, text string, parse func(line string) (T, error)) ([]T, error) {
	all, err := parseLines(text, parse)
	if err != nil {
		return nil, fmt.Errorf("%s: %s/%s has what this version of fsmount cannot read: %w", dir, controlName, name, err)
	}
	return all, nil
}

// printable returns s if a terminal shows it as it is, else s quoted.
func printable(s string) string {
	for _, r := range s {
		if !strconv.IsPrint(r) || r == '\uFFFD' {
			return strconv.Quote(s)
		}
	}
	return s
}

// terminalSize returns how many columns and lines w has, if it is a terminal
// that understands how to move the cursor.
func terminalSize(w io.Writer) (columns, lines int, isTerminal bool) {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return 0, 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	if size.Col == 0 || size.Row == 0 {
		return 80, 24, true // a serial line, which does not know
	}
	return int(size.Col), int(size.Row), true
}
