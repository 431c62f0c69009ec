// command_file.go implements "fsmount refresh", "fetch" and "forget". The mount does
// what they ask for when a control file is opened, and says what came of it.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// verbPatience is how long the commands wait for the mount: refresh asks an origin.
const verbPatience = statTimeout + answerPatience

// fileCommand has the mount do verb to files.
type fileCommand struct {
	verb  string
	Dir   string   `arg:"" name:"DIR" help:"Ask the fsmount that is mounted at DIR."`
	Names []string `arg:"" name:"NAME" help:"The files, by their names in DIR."`
}

type fetchCommand struct {
	fileCommand `embed:""`
	Wait        bool `help:"Wait until the files are complete; exit 1 if one fails."`
}

// run does verb to each file in turn, prints what came of it, and stops at the first
// failure. It does nothing if the mount lacks one of the names.
//
// BLOCKS until the mount has done it, at most verbPatience for each file.
func (c *fileCommand) run(_ io.Reader, stdout io.Writer) (status int, err error) {
	ctx, cancel := untilInterrupted()
	defer cancel()
	files, err := askMount(ctx, c.verb, c.Dir, "status", parseFileStatus)
	if err != nil {
		return exitFailure, err
	}
	var known []string
	for _, f := range files {
		known = append(known, f.File)
	}
	for i, name := range c.Names {
		dir, err1 := filepath.Abs(c.Dir)
		path, err2 := filepath.Abs(name)
		if errors.Join(err1, err2) == nil && filepath.Dir(path) == dir {
			name = filepath.Base(path) // a shell completes the path
		}
		if c.Names[i] = name; !slices.Contains(known, name) {
			return exitUsage, usageError{fmt.Errorf("%s: no file has the name %q%s", redactArg(c.Dir), redactArg(name), didYouMean(name, "", known))}
		}
	}
	for _, name := range c.Names {
		text, err := readControl(ctx, verbPatience, c.verb, c.Dir, c.verb+":"+name, asIs)
		if errors.Is(err, context.Canceled) {
			return exitFailure, nil // Ctrl-C
		}
		if err != nil {
			return exitFailure, err
		}
		what, failed := strings.CutPrefix(strings.Join(text, " "), failedMark)
		if failed {
			return exitFailure, fmt.Errorf("%s: %s", printable(name), what)
		}
		fmt.Fprintf(stdout, "%s: %s\n", printable(name), what)
	}
	return exitOK, nil
}

// BLOCKS as fileCommand does; with --wait until the files are complete, one fails, or
// Ctrl-C.
func (c *fetchCommand) run(stdin io.Reader, stdout io.Writer) (status int, err error) {
	status, err = c.fileCommand.run(stdin, stdout)
	ctx, cancel := untilInterrupted()
	defer cancel()
	for left := len(c.Names); status == exitOK && err == nil && c.Wait && left > 0; {
		files, failure := askMount(ctx, c.verb, c.Dir, "status", parseFileStatus)
		if ctx.Err() != nil {
			return exitFailure, nil
		}
		left, err = len(files), failure
		for _, f := range files {
			switch {
			case !slices.Contains(c.Names, f.File) || f.State == "complete":
				left--
			case f.Error != "":
				err = errors.Join(err, fmt.Errorf("%s: %s", printable(f.File), f.note()))
			case !f.Wanted:
				err = errors.Join(err, fmt.Errorf("%s: somebody gave its space back", printable(f.File)))
			}
		}
		select {
		case <-time.After(min(time.Duration(left), 1) * redrawInterval):
		case <-ctx.Done():
		}
	}
	return status, err
}
