// command_ask.go asks a mount for one of its control files and never hangs on it.
// A thread that waits for a FUSE mount can be unkillable, and then its process
// cannot exit. So a child process does the reading; this process leaves the child
// behind when it takes too long, and touches no path itself.

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
	"strings"
	"syscall"
	"time"
)

const (
	// answerPatience is how long ps and status wait for the mount, which answers
	// within 100 ms even while a thousand reads are blocked.
	answerPatience = 5 * time.Second

	// readControlName is the command that readControl runs.
	readControlName = "read-control"
)

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

var (
	errNotMounted = errors.New("no fsmount is mounted there")
	errNoAnswer   = errors.New("the mount does not answer")
)

// controlAnswer is what the child has to say, as it travels through the pipe.
type controlAnswer struct {
	Mounted bool
	Text    string
	Error   string // "" if Text is what the file has
}

// readControl returns what the control file called name of the mount at dir has.
// Errors: errNotMounted, errNoAnswer when ctx ended by its deadline, and others.
//
// BLOCKS until the mount has answered; wakes on that and the end of ctx.
func readControl(ctx context.Context, dir, name string) (string, error) {
	answer, err := askChild(ctx, dir, name)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == context.Canceled:
		return "", context.Canceled
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", fmt.Errorf("%s: %w", dir, errNoAnswer)
	case err != nil:
		return "", fmt.Errorf("%s: ask the mount: %w", dir, err)
	case !answer.Mounted && answer.Error != "":
		return "", fmt.Errorf("%s: %w: %s", dir, errNotMounted, answer.Error)
	case !answer.Mounted:
		return "", fmt.Errorf("%s: %w", dir, errNotMounted)
	case answer.Error != "":
		return "", fmt.Errorf("%s: %s", dir, answer.Error)
	}
	return answer.Text, nil
}

// askChild runs the child and takes its answer. The child has a session of its
// own and nothing of this process but the pipe: left behind, it keeps neither a
// terminal nor a pipeline waiting.
func askChild(ctx context.Context, dir, name string) (answer controlAnswer, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return answer, err
	}
	defer r.Close()
	program, err := ownProgram()
	if err != nil {
		w.Close()
		return answer, err
	}
	child := exec.Command(program, readControlName, "--", dir, name)
	child.Stdout = w
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	w.Close()
	if err != nil {
		return answer, err
	}
	defer func() {
		child.Process.Kill() // which has its effect when the mount lets go of it
		go child.Wait()
	}()
	defer context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })()
	err = json.NewDecoder(r).Decode(&answer)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = errors.New("the process that reads it died")
	}
	return answer, err
}

// readControlCommand is the child.
type readControlCommand struct {
	Dir  string `arg:""`
	File string `arg:""`
}

// BLOCKS until the mount has answered, for ever if it does not.
func (c *readControlCommand) run(stdout io.Writer) error {
	return json.NewEncoder(stdout).Encode(c.answer())
}

func (c *readControlCommand) answer() controlAnswer {
	dir, err := resolve(c.Dir)
	if err != nil {
		return controlAnswer{Error: pathReason(err).Error()}
	}
	if !fsmountAt(dir) {
		return controlAnswer{}
	}
	text, err := readText(filepath.Join(dir, controlName, c.File))
	if err != nil {
		return controlAnswer{Mounted: true, Error: controlAdvice(dir, err)}
	}
	return controlAnswer{Mounted: true, Text: text}
}

// readText reads in larger pieces than os.ReadFile does where the size is not
// known.
func readText(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var b strings.Builder
	_, err = io.Copy(&b, f)
	return b.String(), err
}

// controlAdvice says why a control file cannot be read, and what to do.
func controlAdvice(dir string, err error) string {
	reason := pathReason(err)
	switch {
	case errors.Is(err, syscall.ENOTCONN):
		return fmt.Sprintf("%v: its fsmount is gone (remove the mount with: %s)", reason, unmountCommand(dir))
	case errors.Is(err, os.ErrPermission):
		return fmt.Sprintf("%v: only the user who mounted it can ask", reason)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Sprintf("it has no %s: it is another version's, or none of fsmount", controlName)
	}
	return reason.Error()
}

// ownProgram is a path that runs this very program, also when its file has been
// replaced or removed since it was started (proc_pid_exe(5)).
func ownProgram() (string, error) { return "/proc/self/exe", nil }
