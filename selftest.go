//go:build linux

// selftest.go tells whether fsmount works on this machine, with nothing but the
// program itself: it runs checks in order, each within a bound, prints a line
// for each, and takes away what they made, however they ended. What is checked
// is in selftest_host.go and selftest_checks.go. It never touches the mount: the
// processes it starts for that do (selftest_process.go), and it waits for none
// of them without a bound.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

const (
	// selftestLimit bounds the whole self-test.
	selftestLimit = 60 * time.Second

	// selftestCheckLimit bounds one check: several times what the slowest one
	// takes on one busy core.
	selftestCheckLimit = 15 * time.Second

	// selftestGrace is how long a check that ran into its bound has to say what
	// it saw.
	selftestGrace = time.Second

	// selftestCleanLimit bounds the last check, which takes everything away.
	selftestCleanLimit = 8 * time.Second
)

var (
	errSelftestLimit = fmt.Errorf("the self-test may take %v in all", selftestLimit)
	errCheckHangs    = errors.New("the check hangs")
)

// selftestCheck is one line of the self-test.
type selftestCheck struct {
	name  string
	needs []string // names of checks that must have passed
	run   func(ctx context.Context) (figure string, err error)
	todo  string // what to do where it fails; an advisedError knows better
}

// advisedError is an error that knows what to do about it.
type advisedError struct {
	error
	todo string
}

func (e advisedError) Unwrap() error { return e.error }

// runSelftest prints what works on this machine and what does not, and returns
// the exit status: exitOK only if every check passed.
//
// BLOCKS until all is done and taken away, at most selftestLimit; wakes on the
// signals that stop a mount as well.
func runSelftest(stdout io.Writer) (status int) {
	// A reader of our output that goes away is no reason to leave a mount behind.
	signal.Ignore(syscall.SIGPIPE)
	ctx, release := signal.NotifyContext(context.Background(), stopSignals()...)
	defer release()
	ctx, cancel := context.WithTimeoutCause(ctx, selftestLimit-selftestCleanLimit-2*selftestGrace, errSelftestLimit)
	defer cancel()

	s := &selftest{}
	report := &selftestReport{out: stdout, passed: make(map[string]bool)}
	report.run(ctx, append(selftestHostChecks(), s.checks()...))
	report.runOne(context.Background(), s.made.cleanCheck(), selftestCleanLimit)
	if report.failures > 0 {
		report.printLog(s.made.log())
	}
	return report.finish()
}

// selftestReport prints what came of each check.
type selftestReport struct {
	out      io.Writer
	passed   map[string]bool // by name
	failures int
	skips    int
	halted   error // why no further check is run
}

// run runs the checks that can be run.
func (r *selftestReport) run(ctx context.Context, checks []selftestCheck) {
	for _, c := range checks {
		if reason := r.reasonToSkip(ctx, c); reason != "" {
			r.skips++
			r.print("SKIP", c.name, reason)
			continue
		}
		r.runOne(ctx, c, selftestCheckLimit)
	}
}

func (r *selftestReport) reasonToSkip(ctx context.Context, c selftestCheck) string {
	switch {
	case ctx.Err() != nil:
		return "not reached: " + context.Cause(ctx).Error()
	case r.halted != nil:
		return "not tried: " + r.halted.Error()
	}
	for _, need := range c.needs {
		if !r.passed[need] {
			return fmt.Sprintf("not tried: it needs %q, which did not pass", need)
		}
	}
	return ""
}

// runOne runs c and prints its line.
//
// BLOCKS until c is done, at most limit and selftestGrace; wakes on the end of
// ctx.
func (r *selftestReport) runOne(ctx context.Context, c selftestCheck, limit time.Duration) {
	figure, err := c.bounded(ctx, limit)
	if err == nil {
		r.passed[c.name] = true
		r.print("PASS", c.name, figure)
		return
	}
	r.failures++
	if errors.Is(err, errCheckHangs) {
		r.halted = fmt.Errorf("the check %q still hangs", c.name)
	}
	r.print("FAIL", c.name, fmt.Sprintf("%v; %s", err, c.advice(ctx, err)))
}

// bounded runs c in a goroutine, which it gives up, with errCheckHangs, where
// nothing else ends it.
func (c selftestCheck) bounded(ctx context.Context, limit time.Duration) (figure string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no end within %v", limit))
	defer cancel()
	type outcome struct {
		figure string
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		figure, err := c.guarded(ctx)
		done <- outcome{figure, err}
	}()
	select {
	case o := <-done:
		return o.figure, o.err
	case <-ctx.Done():
	}
	grace := time.NewTimer(selftestGrace)
	defer grace.Stop()
	select {
	case o := <-done:
		return o.figure, o.err
	case <-grace.C:
		return "", fmt.Errorf("%w: %w", errCheckHangs, context.Cause(ctx))
	}
}

// guarded runs c; a panic is a failure like any other.
func (c selftestCheck) guarded(ctx context.Context) (figure string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v %s", p, debug.Stack())
		}
	}()
	return c.run(ctx)
}

// advice says what to do about err.
func (c selftestCheck) advice(ctx context.Context, err error) string {
	if advised := (advisedError{}); errors.As(err, &advised) {
		return advised.todo
	}
	if ctx.Err() != nil && context.Cause(ctx) != errSelftestLimit {
		return "run the self-test again and let it end"
	}
	return c.todo
}

// print writes one line, whatever text is made of.
func (r *selftestReport) print(verdict, name, text string) {
	text = strings.Join(strings.FieldsFunc(text, func(c rune) bool { return c == '\n' || c == '\t' }), " ")
	fmt.Fprintf(r.out, "%s %s: %s\n", verdict, name, text)
}

// printLog shows what the mount had to say.
func (r *selftestReport) printLog(lines []string) {
	for _, line := range lines {
		fmt.Fprintf(r.out, "log: %s\n", line)
	}
}

// finish prints the sums and returns the exit status.
func (r *selftestReport) finish() (status int) {
	skipped := ""
	if r.skips > 0 {
		skipped = fmt.Sprintf(", %d skipped", r.skips)
	}
	fmt.Fprintf(r.out, "%d passed, %d failed%s\n", len(r.passed), r.failures, skipped)
	if r.failures > 0 || r.skips > 0 {
		return exitFailure
	}
	return exitOK
}
