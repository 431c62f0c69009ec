// Tests of the gates that the other tests rely on. The build tag gatefault adds a data
// race and a leaked goroutine to this package: the race detector and the leak check must
// report them. And each test that the README names must exist.

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain fails the package if a test leaves a goroutine behind.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// goCommandLimit ends a go command that hangs. With an empty cache it builds the package
// and the standard library for the race detector, which takes a minute or two.
const goCommandLimit = 10 * time.Minute

func TestRaceGate(t *testing.T) {
	skipGateIfShort(t)
	skipWithoutRaceRuntime(t)
	out, err := goCommand(t, raceEnv(), "test", "-race", "-tags=gatefault", "-run=^TestDeliberateRace$", "-count=1", "-v", ".")
	requireGateReport(t, out, err,
		`WARNING: DATA RACE\n`,
		`TestDeliberateRace\.`,
		`(?m)^--- FAIL: TestDeliberateRace `)
}

func TestLeakGate(t *testing.T) {
	skipGateIfShort(t)
	out, err := goCommand(t, nil, "test", "-tags=gatefault", "-run=^TestDeliberateLeak$", "-count=1", "-v", ".")
	requireGateReport(t, out, err,
		`(?m)^--- PASS: TestDeliberateLeak `,
		`found unexpected goroutines`,
		`leakOnPurpose`)
}

func skipGateIfShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this test compiles and runs the package's tests once more")
	}
}

// raceEnv turns on cgo, which -race needs and the program's own build turns off.
func raceEnv() []string { return []string{"CGO_ENABLED=1"} }

// skipWithoutRaceRuntime skips the test if nothing can be built with -race here, for
// example without a C compiler.
func skipWithoutRaceRuntime(t *testing.T) {
	t.Helper()
	out, err := goCommand(t, raceEnv(), "build", "-race", "runtime/race", "runtime/cgo")
	if err != nil {
		t.Skipf("SKIPPED, THE RACE GATE IS UNTESTED: nothing can be built with -race here "+
			"(it needs a C compiler, Debian's gcc and libc6-dev): %v\n%s", err, out)
	}
}

// requireGateReport requires that the go command failed and that its output matches
// every pattern, so that the gate made it fail and nothing else did.
func requireGateReport(t *testing.T, out string, err error, patterns ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("the run with a deliberate fault passed:\n%s", out)
	}
	for _, pattern := range patterns {
		if !regexp.MustCompile(pattern).MatchString(out) {
			t.Errorf("%v, but the output has no match of %q:\n%s", err, pattern, out)
		}
	}
}

// goCommand runs the go command in this package's directory, with env added to
// the environment, and returns what it wrote to both streams.
//
// BLOCKS until the command ends; wakes on goCommandLimit and on the end of the test.
func goCommand(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), goCommandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("go %s: no end within %v:\n%s", strings.Join(args, " "), goCommandLimit, out)
	}
	return string(out), err
}

// The README and the man page name a test for each promise. Every such test must exist.
func TestReadmeNamesTestsThatExist(t *testing.T) {
	readme, err1 := os.ReadFile("README.md")
	manual, err2 := os.ReadFile("docs/fsmount.1")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tests.Write(text)
	}
	names := regexp.MustCompile(`\bTest\w+`).FindAllString(string(readme)+string(manual), -1)
	if len(names) == 0 {
		t.Fatal("no test is named")
	}
	for _, name := range names {
		if !strings.Contains(tests.String(), "func "+name+"(t *testing.T)") {
			t.Errorf("there is no %s", name)
		}
	}
}

// TestUnitOfTheReadmeIsSafe lets systemd judge the unit that the README shows. It exposes
// less than half of what a unit may (systemd-analyze(1)).
func TestUnitOfTheReadmeIsSafe(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		cannotTest(t, err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	unit := regexp.MustCompile("(?s)```ini\n(.*?)```").FindSubmatch(readme)
	if unit == nil {
		t.Fatal("the README has no unit")
	}
	path := filepath.Join(t.TempDir(), "fsmount@me.service")
	text := strings.Replace(string(unit[1]), "/usr/local/bin/fsmount", "/bin/true", 1) // it is not installed here
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"verify", path}, {"security", "--offline=true", "--threshold=50", path}} {
		if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %v: %v\n%s", args, err, out)
		}
	}
}
