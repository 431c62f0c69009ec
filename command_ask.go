// command_ask.go reads the control files of a mount, has it do something, and never hangs on one. A thread that
// waits for a FUSE mount can be unkillable, and then its process cannot exit. So a child process touches the
// mount; this process touches no path of it, and leaves the child behind when it takes too long.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// answerPatience is how long ps and status wait for the mount. A mount answers
	// within 100 ms even while a thousand reads are blocked.
	answerPatience  = 5 * time.Second
	readControlName = "read-control" // the command that the child runs
	// ownProgram is a path that runs this program, even after somebody replaced or removed its file (proc_pid_exe(5)).
	ownProgram = "/proc/self/exe"
)

// askMount is readControl within answerPatience. A missing mount is a usage error.
func askMount[T any](ctx context.Context, verb, dir, name string, parse func(line string) (T, error)) ([]T, error) {
	all, err := readControl(ctx, answerPatience, verb, dir, name, "", parse)
	if errors.Is(err, errNotMounted) {
		err = usageError{err}
	}
	return all, err
}

// askToDo asks the mount at dir to do verb to args, and writes to stdout what was done. The error has all that was
// not; after Ctrl-C there is none. BLOCKS until the mount has done it; wakes on the end of ctx and after limit.
func askToDo(ctx context.Context, limit time.Duration, verb, dir string, args []string, stdout io.Writer) (status int, err error) {
	ask := strings.Join(append([]string{verb}, args...), wordEnd)
	lines, err := readControl(ctx, limit, verb, dir, doName, ask, asIs)
	if errors.Is(err, context.Canceled) {
		return exitFailure, nil
	}
	for _, line := range lines {
		if failure, failed := strings.CutPrefix(line, failedMark); failed {
			err = errors.Join(err, errors.New(failure))
		} else {
			fmt.Fprintln(stdout, line)
		}
	}
	return exitOK, err
}

var errNotMounted = errors.New("no fsmount is mounted there")

// readControl returns the parsed lines of the control file called name of the mount at dir, for the command
// verb, after the request ask, which doName takes. Errors: errNotMounted, context.Canceled, and others.
// BLOCKS until the mount answers; wakes on the end of ctx and after limit.
func readControl[T any](ctx context.Context, limit time.Duration, verb, dir, name, ask string,
	parse func(line string) (T, error)) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := askChild(ctx, dir, name, ask)
	shown := redactArg(dir)
	switch {
	case errors.Is(err, context.Canceled):
		return nil, err
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("%s: the mount does not answer within %v", shown, limit)
	case err != nil:
		return nil, fmt.Errorf("%s: ask the mount: %w", shown, err)
	case answer.Inside != "":
		return nil, fmt.Errorf("%s: %w, %s; ask its mountpoint: fsmount %s %s", shown, errNotMounted, answer.Error, verb, shellQuote(answer.Inside))
	case !answer.Mounted:
		return nil, fmt.Errorf("%s: %w, %s (findmnt -t fuse.%s lists all)", shown, errNotMounted, answer.Error, fsSubtype)
	case answer.Error != "":
		return nil, fmt.Errorf("%s: %s", shown, answer.Error)
	}
	all, err := parseLines(answer.Text, parse)
	if err != nil {
		return nil, fmt.Errorf("%s: this version of fsmount cannot read %s/%s: %w", shown, controlName, name, err)
	}
	return all, nil
}

// controlAnswer is what the child writes to the pipe, as JSON.
type controlAnswer struct {
	Mounted bool
	Dead    bool   // nobody serves it
	Inside  string // the mountpoint above, "" for none
	Text    string // of the control file
	Error   string // why Text is not valid, "" if it is
}

// askChild runs the child and returns its answer. The child has its own session and of this process only pipes,
// one for ask, which may hold secrets: a child that is left behind keeps no terminal and no pipeline waiting.
// For root it runs as the user who mounted: without --allow-other the kernel lets nobody else in.
// BLOCKS until the child answers or dies; wakes on the end of ctx, with its error.
func askChild(ctx context.Context, dir, name, ask string) (answer controlAnswer, err error) {
	child := exec.Command(ownProgram, readControlName, "--", dir, name)
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	child.Stdin = strings.NewReader(ask)
	at, _ := filepath.Abs(dir) // without a working directory nothing is mounted there
	if m := mountedAt(at); m.isFsmount() && m.user != 0 && os.Geteuid() == 0 {
		child.SysProcAttr.Credential = &syscall.Credential{Uid: m.user, Gid: m.group}
	}
	pipe, err := child.StdoutPipe()
	if err != nil {
		return answer, err
	}
	defer pipe.Close()
	if err := child.Start(); err != nil {
		return answer, err
	}
	defer func() {
		child.Process.Kill() // ends an unkillable child once the mount answers it
		go child.Wait()
	}()
	defer context.AfterFunc(ctx, func() { pipe.Close() })()
	err = json.NewDecoder(pipe).Decode(&answer)
	switch {
	case errors.Is(err, os.ErrClosed):
		err = ctx.Err()
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		err = errors.New("the process that reads it died")
	}
	return answer, err
}

// readControlCommand is the child: it reads one control file of the mount, after the request on its
// stdin if it is doName, or with no File asks whether somebody serves the mount.
type readControlCommand struct {
	Dir  string `arg:""`
	File string `arg:""`
}

// BLOCKS until the mount answers, without a limit.
func (c *readControlCommand) run(stdin io.Reader, stdout io.Writer) (status int, err error) {
	runtime.LockOSThread() // the mount lists it by its name
	_ = os.WriteFile("/proc/thread-self/comm", []byte(fsSubtype), 0)
	return exitOK, json.NewEncoder(stdout).Encode(c.answer(stdin))
}

func (c *readControlCommand) answer(stdin io.Reader) controlAnswer {
	dir, err := resolve(c.Dir)
	if err != nil {
		return controlAnswer{Error: pathReason(err).Error()}
	}
	if !mountedAt(dir).isFsmount() {
		return controlAnswer{Inside: mountpointAbove(c.Dir), Error: kindOfFile(dir)}
	}
	if c.File == "" { // stat would answer from what the kernel has cached, statfs never does
		err := unix.Statfs(dir, new(unix.Statfs_t))
		return controlAnswer{Mounted: true, Dead: err == unix.ENOTCONN}
	}
	f, err := os.Open(filepath.Join(dir, controlName, c.File))
	if err != nil {
		return controlAnswer{Mounted: true, Error: controlAdvice(dir, err)}
	}
	defer f.Close() // before it answers: an umount may follow at once
	if c.File == doName {
		err = sendRequest(stdin, func(off int64, size int) error {
			_, err := unix.Pread(int(f.Fd()), make([]byte, size), off)
			return err
		})
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(f)
	}
	if err != nil {
		return controlAnswer{Mounted: true, Error: controlAdvice(dir, err)}
	}
	return controlAnswer{Mounted: true, Text: string(text)}
}

// mountpointAbove returns the directory above path, as path spells it, where an fsmount is mounted, "" for none.
func mountpointAbove(path string) string {
	for above := filepath.Dir(path); ; above = filepath.Dir(above) {
		if dir, err := resolve(above); err == nil && mountedAt(dir).isFsmount() {
			return above
		}
		if above == filepath.Dir(above) {
			return ""
		}
	}
}

// kindOfFile says what path is.
func kindOfFile(path string) string {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return pathReason(err).Error()
	case info.IsDir():
		return "it is a plain directory"
	}
	return "it is a file"
}

// controlAdvice tells why nobody can read a control file, and what the user can do.
func controlAdvice(dir string, err error) string {
	reason := pathReason(err)
	switch {
	case errors.Is(err, syscall.ENOTCONN):
		return fmt.Sprintf("%v: its fsmount is gone (remove the mount with: %s)", reason, unmountCommand(dir))
	case errors.Is(err, os.ErrPermission):
		return fmt.Sprintf("%v: only the user who mounted it can ask", reason)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Sprintf("it has no %s: another version of fsmount or another program serves it", controlName)
	}
	return reason.Error()
}

// asIs is the parser of a control file whose lines are for people.
func asIs(line string) (string, error) { return line, nil }
