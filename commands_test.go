// Tests of what the commands have in common: which command lines are theirs, how
// they fail, and how they show text that others chose.

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// init makes of this process the child that reads a control file, if it was
// started as one: the commands under test run their own program for that.
func init() {
	if len(os.Args) > 1 && os.Args[1] == readControlName {
		os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
}

// runCommand runs it in this process.
func runCommand(args ...string) (status int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	status = run(args, strings.NewReader(""), &out, &errOut)
	return status, out.String(), errOut.String()
}

func TestHelpListsTheCommands(t *testing.T) {
	_, help, _ := runCommand("--help")
	for _, c := range commands() {
		listed := strings.Contains(help, "fsmount "+c.name)
		if listed != (c.about != "") {
			t.Errorf("%s in the help: %v; about: %q", c.name, listed, c.about)
		}
	}
}

func TestCommandsHaveHelp(t *testing.T) {
	for _, c := range commands() {
		for _, flag := range []string{"--help", "-help", "-h"} {
			status, stdout, stderr := runCommand(c.name, flag)
			if status != exitOK || stderr != "" || !strings.Contains(stdout, "Usage: fsmount "+c.name) {
				t.Errorf("%s %s: status %d, stderr %q, stdout:\n%s", c.name, flag, status, stderr, stdout)
			}
		}
	}
}

func TestCommandUsageErrorsExitTwo(t *testing.T) {
	tests := []struct {
		args []string
		says string
	}{
		{[]string{"ps"}, "<dir>"},
		{[]string{"ps", "/", "/"}, "unexpected argument"},
		{[]string{"ps", "/", "--nonsense"}, "--nonsense"},
		{[]string{"status"}, "<dir>"},
		{[]string{"check"}, "<dir>"},
		{[]string{"check", "/", "--timeout", "soon"}, "--timeout"},
		{[]string{"check", "/", "-timeout=0s"}, "--timeout is a time above zero"},
	}
	for _, tt := range tests {
		status, stdout, stderr := runCommand(tt.args...)
		if status != exitUsage || stdout != "" || !strings.Contains(stderr, tt.says) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: status %d, stdout %q, stderr %q; want 2, nothing and a line with %q", tt.args, status, stdout, stderr, tt.says)
		}
	}
}

// TestCommandIsTheFirstArgumentOnly keeps sources of such names what they are.
func TestCommandIsTheFirstArgumentOnly(t *testing.T) {
	for _, args := range [][]string{nil, {"-mount", "ps"}, {"-trace", "check", "/"}, {"http://h/ps"}, {"PS"}} {
		if c, found := commandNamed(args); found {
			t.Errorf("%q is taken for the command %s", args, c.name)
		}
	}
}

func TestNotMounted(t *testing.T) {
	for _, dir := range []string{t.TempDir(), t.TempDir() + "/none", "/proc"} {
		for name, want := range map[string]int{"ps": exitUsage, "status": exitUsage, "check": exitFailure} {
			status, stdout, stderr := runCommand(name, dir)
			if status != want || stdout != "" || stderr != "fsmount: "+dir+": no fsmount is mounted there\n" {
				t.Errorf("%s %s: status %d, stdout %q, stderr %q; want %d", name, dir, status, stdout, stderr, want)
			}
		}
	}
}

func TestReadControlEndsWithItsContext(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancelLate := context.WithDeadline(context.Background(), time.Unix(1, 0))
	defer cancelLate()
	for ctx, want := range map[context.Context]error{canceled: context.Canceled, late: errNoAnswer} {
		if _, err := readControl(ctx, "/", "ops"); !errors.Is(err, want) {
			t.Errorf("read control file: %v, want %v", err, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                   "",
		`a "näme" 漢字.bin`:    `a "näme" 漢字.bin`,
		"two\nlines":         `"two\nlines"`,
		"\x1b[2Jgone":        `"\x1b[2Jgone"`,
		"not UTF-8: \xff":    `"not UTF-8: \xff"`,
		"turned \u202E back": `"turned \u202e back"`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestTerminalSizeOfAFile(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, isTerminal := terminalSize(f); isTerminal {
		t.Error("a file is taken for a terminal")
	}
	if _, _, isTerminal := terminalSize(new(bytes.Buffer)); isTerminal {
		t.Error("a buffer is taken for a terminal")
	}
}
