// command_ops.go implements the commands that ask a mount. The mount says what each operation waits for and how
// much of each file has arrived; "fsmount ps" and "status" format it, and "check" reports whether an operation
// is blocked. "add", "rm", "refresh", "fetch" and "forget" have the mount do something, and print what came of
// it. "umount" ends it, or removes what a killed one left, as the next start does: it detaches a mount only if
// that is an fsmount and answers ENOTCONN, which proves that nobody serves it any more.

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// redrawInterval is the time between two tables of --watch.
const redrawInterval = time.Second

// showCommand shows what a control file lists.
type showCommand struct {
	Dir   string `arg:"" name:"DIR" help:"Ask the fsmount that is mounted at DIR."`
	Watch bool   `help:"Show it again every second, until Ctrl-C."`
	JSON  bool   `name:"json" help:"Print a JSON array instead of a table."`
}

type psCommand struct {
	showCommand `embed:""`
}

// BLOCKS until the mount answers, as askMount does; with --watch until Ctrl-C.
func (c *psCommand) run(_ io.Reader, stdout io.Writer) (status int, err error) {
	return exitOK, showFrames(stdout, c.Watch, func(ctx context.Context, columns int) (string, error) {
		ops, err := askMount(ctx, "ps", c.Dir, "ops", parseOpInfo)
		if err != nil || c.JSON {
			return jsonFrame(ops), err
		}
		return opsTable(ops, columns) + changedFiles(ctx, c.Dir), nil
	})
}

// changedFiles returns a line for each file of the mount that changed at its origin, none if the mount does not say.
// BLOCKS until the mount answers; wakes on the end of ctx.
func changedFiles(ctx context.Context, dir string) (lines string) {
	files, _ := askMount(ctx, "status", dir, "status", parseFileStatus)
	for _, f := range files {
		if f.State == "changed" {
			lines += fmt.Sprintf("%s: %s\n", printable(f.File), f.note())
		}
	}
	return lines
}

// showFrames writes a frame once, or every redrawInterval. frame gets the width of the terminal, 0 if stdout is none.
// BLOCKS as frame does; with watch until Ctrl-C.
func showFrames(stdout io.Writer, watch bool, frame func(ctx context.Context, columns int) (string, error)) error {
	ctx, cancel := untilInterrupted()
	defer cancel()
	tick := time.NewTicker(redrawInterval)
	defer tick.Stop()
	for first := true; ; first = false {
		lines, columns := terminalSize(stdout)
		text, err := frame(ctx, columns)
		if watch && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case watch && lines > 0:
			text = drawOver(text, lines)
		case !first:
			text = "\n" + text
		}
		if _, err := io.WriteString(stdout, text); err != nil || !watch {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func jsonFrame[T any](values []T) string {
	text, _ := json.MarshalIndent(values, "", "  ") // of strings and numbers only
	return string(text) + "\n"
}

// opsTable formats ops as a table, in their order, as tableWithin does.
func opsTable(ops []opInfo, columns int) string {
	if len(ops) == 0 {
		return "no operation in flight\n"
	}
	rows := [][]string{{"AGE", "PID", "COMMAND", "OP", "FILE", "RANGE", "WAITS FOR"}}
	for _, op := range ops {
		rows = append(rows, []string{
			formatSeconds(op.Age), fmt.Sprint(op.PID), cmp.Or(op.Command, "-"), op.Kind, op.File, op.Range, op.Waits,
		})
	}
	return tableWithin(columns, rows)
}

type statusCommand struct {
	showCommand `embed:""`
}

// BLOCKS until the mount answers, as askMount does; with --watch until Ctrl-C.
func (c *statusCommand) run(_ io.Reader, stdout io.Writer) (status int, err error) {
	return exitOK, showFrames(stdout, c.Watch, func(ctx context.Context, columns int) (string, error) {
		files, err := askMount(ctx, "status", c.Dir, "status", parseFileStatus)
		if err != nil || c.JSON {
			return jsonFrame(files), err
		}
		disk, err := askMount(ctx, "status", c.Dir, "disk", asIs)
		return statusTable(files, columns) + strings.Join(disk, "\n") + "\n", err
	})
}

// statusTable formats files as a table, in their order, as tableWithin does. A stalled
// file shows the time since its last byte. Percentages are rounded down, so that only a
// complete file shows 100%. RATE and LEFT are unknown while no bytes arrive.
func statusTable(files []fileStatus, columns int) string {
	rows := [][]string{{"FILE", "STATE", "DONE", "PRESENT", "SIZE", "RATE", "LEFT", "WAITING", "NOTE"}}
	for _, f := range files {
		state, done, rate, left := f.State, "100%", "-", "-"
		if f.State == "stalled" {
			state = "stalled " + (time.Duration(f.Silent) * time.Second).String()
		}
		if f.Size > 0 {
			done = fmt.Sprintf("%d%%", int64(float64(f.Present)/float64(f.Size)*100))
		}
		if f.Rate > 0 {
			rate = humanize.IBytes(uint64(f.Rate)) + "/s"
			left = (time.Duration((f.Size-f.Present)/f.Rate) * time.Second).String()
		}
		rows = append(rows, []string{f.File, state, done, humanize.IBytes(uint64(f.Present)), humanize.IBytes(uint64(f.Size)),
			rate, left, fmt.Sprint(f.Waiters), cmp.Or(f.note(), "-")})
	}
	return tableWithin(columns, rows)
}

// note tells what went wrong, "" for nothing.
func (s fileStatus) note() (text string) {
	switch {
	case s.Error != "" && s.State != "changed":
		return fetchCause(s.Error)
	case s.State == "changed" && s.Error == "":
		return "the origin has another version, and is asked which"
	case s.State == "changed":
		return fetchCause(s.Error) + "; fsmount refresh takes the new version"
	case s.NoRoom:
		return "the disk has no room for the rest: it goes on when another file is forgotten"
	case s.State == "paused" && s.Fetches > 0 && !s.Streams:
		return "waits for room on the disk"
	case s.LastError == "" && s.Streams:
		return "streams through: the disk has no room for all of it"
	case s.LastError == "":
		return ""
	case s.RetryIn > 0:
		text = fmt.Sprintf("next in %.1fs, ", s.RetryIn)
	}
	return fmt.Sprintf("%s%s, the last: %s", text, plural(s.Retries, "retry"), fetchCause(s.LastError))
}

// fetchCause leaves out the range and the URL of a fetch, which precede the first ": ".
func fetchCause(text string) string {
	if what, cause, found := strings.Cut(text, ": "); found && strings.HasPrefix(what, "fetch [") {
		return cause
	}
	return text
}

// The control sequences of drawOver (ECMA-48, and the DEC private mode 7).
const (
	frameStart = "\x1b[?7l\x1b[H" // no wrapping of long rows; cursor to the top left
	rowEnd     = "\x1b[K\n"       // erase the rest of the row
	frameEnd   = "\x1b[J\x1b[?7h" // erase the rest of the screen; wrap again
)

// drawOver returns the text that draws frame from the top of the screen. It drops the
// rows that do not fit into lines, and tells how many; a long row ends at the margin.
func drawOver(frame string, lines int) string {
	rows := strings.Split(strings.TrimSuffix(frame, "\n"), "\n")
	if keep := max(lines-2, 1); len(rows) > keep {
		rows = append(rows[:keep:keep], fmt.Sprintf("and %d more", len(rows)-keep))
	}
	return frameStart + strings.Join(rows, rowEnd) + rowEnd + frameEnd
}

// terminalSize returns the size of w if w is a terminal that can move its cursor, else 0.
func terminalSize(w io.Writer) (lines, columns int) {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	if size.Col == 0 || size.Row == 0 {
		return 24, 80 // a serial line does not know its size
	}
	return int(size.Row), int(size.Col)
}

const (
	// check pauses between two looks, from firstCheckPause on for twice as long each time, up to
	// longestCheckPause: most operations end soon, and each look costs a process.
	firstCheckPause   = 20 * time.Millisecond
	longestCheckPause = 250 * time.Millisecond
)

type checkCommand struct {
	Dir     string        `arg:"" name:"DIR" help:"Check the fsmount that is mounted at DIR."`
	Timeout time.Duration `placeholder:"TIME" default:"2s" help:"Fail if an operation, or the mount's answer, takes TIME or longer. The check itself takes at most TIME, such as 500ms or 2s. Default: ${default}."`
}

// Validate refuses a timeout that is not positive. kong calls it.
func (c *checkCommand) Validate() error {
	if c.Timeout <= 0 {
		return &valueError{"timeout", c.Timeout.String(), "write a time above zero, such as 2s"}
	}
	return nil
}

// run returns an error of one line if an operation is blocked or the mount does not answer. It prints which files
// changed. BLOCKS as checkMount does.
func (c *checkCommand) run(_ io.Reader, stdout io.Writer) (status int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	err = checkMount(c.Dir, c.Timeout, func() ([]opInfo, error) {
		return readControl(ctx, c.Timeout, "check", c.Dir, "ops", "", parseOpInfo)
	})
	if err == nil {
		_, err = io.WriteString(stdout, changedFiles(ctx, c.Dir))
	}
	return exitOK, err
}

// checkMount calls look until every operation of the first look has ended, which is success, or one of them is as old
// as timeout, which is an error. It ignores later operations: none can reach that age before the timeout. The last
// look starts when a tenth of the timeout is left; an operation of the first look that is still there then counts as
// blocked. BLOCKS until it knows; wakes at the latest after timeout, with look.
func checkMount(dir string, timeout time.Duration, look func() ([]opInfo, error)) error {
	lastLook := time.Now().Add(timeout - timeout/10)
	var newest uint64 // highest ID of the first look: operations that begin later have higher ones
	for pause := time.Duration(0); ; pause = min(max(2*pause, firstCheckPause), longestCheckPause) {
		time.Sleep(min(pause, time.Until(lastLook)))
		ops, err := look()
		if err != nil {
			return err
		}
		first := pause == 0
		var suspects, blocked []opInfo
		ops = slices.DeleteFunc(ops, func(op opInfo) bool { return op.File == doPath }) // a command waits, and no reader
		for _, op := range ops {
			if first {
				newest = max(newest, op.ID)
			}
			if op.ID <= newest {
				suspects = append(suspects, op)
			}
			if op.ID <= newest && op.Age >= timeout.Seconds() {
				blocked = append(blocked, op)
			}
		}
		switch {
		case len(suspects) == 0:
			return nil
		case len(blocked) > 0:
			return blockedError(dir, blocked, len(ops))
		case !first && !time.Now().Before(lastLook):
			return blockedError(dir, suspects, len(ops))
		}
	}
}

// blockedError returns an error that counts the blocked operations and describes the first of them.
func blockedError(dir string, blocked []opInfo, inFlight int) error {
	op := blocked[0]
	what := strings.TrimSuffix(op.Kind+" "+op.Range, " -") // "-" is no range
	return fmt.Errorf("%s: blocked: %d of %d operations in flight, the oldest for %s: %s of %q for pid %d (%s), which waits for %s",
		dir, len(blocked), inFlight, formatSeconds(op.Age), what, op.File, op.PID, printable(op.Command), printable(op.Waits))
}

// verbPatience is how long the commands wait for the mount: refresh asks an origin.
const verbPatience = statTimeout + answerPatience

// fileCommand has the mount do verb to files.
type fileCommand struct {
	verb  string
	Dir   string   `arg:"" name:"DIR" help:"Ask the fsmount that is mounted at DIR."`
	Names []string `arg:"" name:"NAME" help:"The files, by their names in DIR, or directories."`
}

type fetchCommand struct {
	fileCommand `embed:""`
	Wait        bool `help:"Wait until the files are complete; exit 1 if one fails."`
}

// run does verb to each file in turn, of a directory to all files in it, and prints what came of it. It does nothing
// if the mount lacks one of the names. BLOCKS until the mount has done it, at most verbPatience for each file.
func (c *fileCommand) run(_ io.Reader, stdout io.Writer) (status int, err error) {
	ctx, cancel := untilInterrupted()
	defer cancel()
	files, err := askMount(ctx, c.verb, c.Dir, "status", parseFileStatus)
	if err != nil {
		return exitFailure, err
	}
	var names, known []string
	for _, f := range files {
		known = append(known, f.File)
	}
	for _, name := range c.Names {
		below := filesAt(known, name)
		dir, err1 := filepath.Abs(c.Dir)
		path, err2 := filepath.Abs(name)
		if inDir, found := strings.CutPrefix(path, dir+"/"); len(below) == 0 && found && errors.Join(err1, err2) == nil {
			below = filesAt(known, inDir) // a shell completes the path
		}
		if len(below) == 0 {
			return exitUsage, usageError{fmt.Errorf("%s: no file has the name %q%s", redactArg(c.Dir), redactArg(name), didYouMean(name, "", known))}
		}
		names = append(names, below...)
	}
	c.Names = names
	return askToDo(ctx, verbPatience*time.Duration(len(names)), c.verb, c.Dir, names, stdout)
}

// filesAt returns which of the files known are meant by name: the one of that name, or
// those in the directory of that name.
func filesAt(known []string, name string) []string {
	name = strings.TrimRight(name, "/")
	return slices.DeleteFunc(slices.Clone(known), func(file string) bool {
		return file != name && !strings.HasPrefix(file, name+"/")
	})
}

// BLOCKS as fileCommand does; with --wait until the files are complete, one fails, or Ctrl-C.
func (c *fetchCommand) run(stdin io.Reader, stdout io.Writer) (status int, err error) {
	status, err = c.fileCommand.run(stdin, stdout)
	ctx, cancel := untilInterrupted()
	defer cancel()
	for left := len(c.Names); status == exitOK && err == nil && c.Wait && left > 0; {
		files, failure := askMount(ctx, c.verb, c.Dir, "status", parseFileStatus)
		if ctx.Err() != nil {
			return exitFailure, nil
		}
		if failure != nil {
			return exitFailure, failure
		}
		byName := make(map[string]fileStatus)
		for _, f := range files {
			byName[f.File] = f
		}
		left = len(c.Names)
		for _, name := range c.Names {
			switch f, found := byName[name]; {
			case !found:
				err = errors.Join(err, fmt.Errorf("%s: it was removed from the mount", printable(name)))
			case f.State == "complete":
				left--
			case f.Error != "", f.Streams, f.NoRoom:
				err = errors.Join(err, fmt.Errorf("%s: %s", printable(f.File), f.note()))
			case !f.Wanted:
				err = errors.Join(err, fmt.Errorf("%s: its space was given back, by forget or to another file, see the log", printable(f.File)))
			}
		}
		select {
		case <-time.After(min(time.Duration(left), 1) * redrawInterval):
		case <-ctx.Done():
		}
	}
	return status, err
}

type addCommand struct {
	Dir     string   `arg:"" name:"DIR" help:"Add to the fsmount that is mounted at DIR."`
	Sources []string `arg:"" optional:"" name:"SOURCE" help:"URL or NAME=URL, as for a mount. The flags of the mount hold for it too."`
	List    []string `sep:"none" placeholder:"FILE" help:"Read more sources from FILE, one a line; - is standard input, which shows no secret to other users. May be repeated."`
}

// BLOCKS until the mount has the answers of all origins, which its --start-timeout bounds; wakes on Ctrl-C.
func (c *addCommand) run(stdin io.Reader, stdout io.Writer) (status int, err error) {
	sources, err := namedSources(c.Sources, c.List, stdin)
	if err == nil && len(sources) == 0 {
		err = errors.New("SOURCE is missing: write fsmount add DIR SOURCE..., or --list FILE")
	}
	if err != nil {
		return exitUsage, usageError{err}
	}
	ctx, cancel := untilInterrupted()
	defer cancel()
	if _, err := askMount(ctx, "add", c.Dir, "status", asIs); err != nil { // it answers
		return exitFailure, err
	}
	var args []string
	for _, src := range sources {
		args = append(args, src.line())
	}
	return askToDo(ctx, noLimit, "add", c.Dir, args, stdout)
}

// umountPatience is how long a mount that was asked to stop may take: mountpoint.Stop
// takes three times drainPatience at most.
const umountPatience = 5 * drainPatience

type umountCommand struct {
	Dir string `arg:"" name:"DIR" help:"End the fsmount that is mounted at DIR, or remove what one that was killed left there."`
}

// run ends the mounts of this program at a directory. BLOCKS until they are gone: while one does not answer at most
// answerPatience, and then at most umountPatience; wakes on Ctrl-C.
func (c *umountCommand) run(_ io.Reader, stdout io.Writer) (status int, err error) {
	ctx, cancel := untilInterrupted()
	defer cancel()
	shown := redactArg(c.Dir)
	dir, err := resolve(c.Dir)
	m := mountedAt(dir)
	all := m.copies()
	switch {
	case err != nil || !m.isFsmount():
		_, err := askMount(ctx, "umount", c.Dir, "status", asIs) // says what is there
		return exitFailure, err
	case len(all) > 0 && all[0].id != m.id: // the kernel lists the oldest mount first
		_, err := m.unmount()
		return exitOK, err
	}
	dead, err := clearDead(dir)
	if dead > 0 {
		fmt.Fprintf(stdout, "%s: removed what a killed fsmount had left mounted\n", shown)
	}
	if m = mountedAt(dir); err != nil || !m.isFsmount() {
		return exitOK, err
	}
	_, err = askToDo(ctx, answerPatience, "stop", dir, nil, io.Discard)
	for begin := time.Now(); mountedAt(dir) == m; time.Sleep(20 * time.Millisecond) {
		_, deadErr := clearDead(dir) // it may be killed meanwhile
		switch {
		case deadErr != nil:
			return exitFailure, deadErr
		case mountedAt(dir) != m:
		case err != nil:
			return exitFailure, fmt.Errorf("%w; to end it without being asked: kill -9 its process, %s, then repeat this command", err, serverOf(m.minor))
		case time.Since(begin) > umountPatience || ctx.Err() != nil:
			return exitFailure, fmt.Errorf("%s: still mounted after it was asked to stop, see its log", shown)
		}
	}
	for _, other := range m.copies() {
		fmt.Fprintf(stdout, "a copy of it stays, and answers no more: fsmount umount %s\n", shellQuote(other.dir))
	}
	return exitOK, nil
}

// copies returns all mounts of the file system of m (mount --bind), m among them if it is there.
func (m mountEntry) copies() []mountEntry {
	return slices.DeleteFunc(mounts(), func(other mountEntry) bool { return other.minor != m.minor || !other.isFsmount() })
}

// clearDead detaches the mounts at a path that killed fsmounts left, the topmost first, and returns their number.
// BLOCKS until each has answered, at most answerPatience.
func clearDead(path string) (n int, err error) {
	dir, err := resolve(path)
	if err != nil {
		return 0, nil // nothing is there
	}
	for {
		m := mountedAt(dir)
		if !m.isFsmount() {
			return n, nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), answerPatience)
		answer, err := askChild(ctx, dir, "", "")
		cancel()
		if err != nil || !answer.Dead {
			return n, nil
		}
		done, err := m.unmount()
		if err != nil {
			return n, fmt.Errorf("remove what a killed fsmount of user %d left mounted at %s: %w", m.user, dir, err)
		}
		if !done {
			return n, nil
		}
		n++
	}
}
