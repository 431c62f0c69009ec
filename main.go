// Command fsmount mounts remote HTTP(S) files as local read-only files of their
// full size. Any program can open one and read it while it downloads.
//
// Start with main, which dispatches commands, and mountAndServe, which wires
// everything together. The files form six layers, and each uses only its own
// layer and those below:
//
//	program  main.go, cli.go, sources.go, command_*.go, hangs*.go, selftest*.go
//	mount    mount.go: the mountpoint and the kernel's controls for it
//	fs       fs*.go: answers the kernel's ops
//	store    store_*.go: TempFileStore, where every read waits or is served
//	origin   origin*.go: HTTP ranges of one version of a remote file
//	values   the rest: sources, credentials, ranges, traces, text
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// logPatience is how long a stopping process waits for its log to be written:
// its reader may be gone.
const logPatience = time.Second

// requestsAtOnce bounds the requests in flight of all files together. It is far
// above what a path can use: it keeps a thousand open files from opening four
// thousand connections.
const requestsAtOnce = 256

// closePatience is how long a stopping process waits for its stores: only a
// disk that does not answer makes it run out.
const closePatience = 2 * time.Second

// usageError is an error of who called the program.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	os.Exit(runMain(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// runMain is the program. It returns its exit status.
func runMain(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if c, found := commandNamed(args); found {
		return c.run(invocation{command: c, argv: args[1:], stdin: stdin, stdout: stdout, stderr: stderr})
	}
	opts, done, err := parseOptions(args, stdout, stderr)
	if err != nil {
		err = usageError{fmt.Errorf("%w (see fsmount --help)", err)}
	}
	if err == nil && !done {
		err = mountAndServe(opts, stdin, stdout, stderr)
	}
	return exitStatus(err, stderr)
}

// exitStatus reports err on stderr, if it is one, and returns the status to exit
// with.
func exitStatus(err error, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "fsmount: %v\n", err)
	if errors.As(err, new(usageError)) {
		return exitUsage
	}
	return exitFailure
}

// mountAndServe does what the program is for, from checked options to the end
// of the mount.
func mountAndServe(opts options, stdin io.Reader, stdout, stderr io.Writer) error {
	// Before signals are caught: Ctrl-C ends the wait for a list on stdin.
	named, access, err := readInputs(opts, stdin)
	if err != nil {
		return usageError{err}
	}

	// A reader of our output that goes away is no reason to die.
	signal.Ignore(syscall.SIGPIPE)
	stopped, release := signal.NotifyContext(context.Background(), stopSignals()...)
	defer release()

	dir, err := checkPaths(opts)
	if err != nil {
		return usageError{err}
	}
	log, closeLog, err := openLog(opts.LogFile, stderr)
	if err != nil {
		return usageError{err}
	}
	defer closeLog()
	if opts.Trace {
		log.printf("%s", startLine(buildVersion(), os.Getpid()))
	}

	sources, closeDemo, err := sourcesOrDemo(named)
	if err != nil {
		return err
	}
	defer closeDemo()
	config := storeConfigOf(opts, log)
	client := access.httpClient()
	defer client.CloseIdleConnections()
	files, err := openFiles(stopped, opts, client, sources, config, stderr)
	if err != nil {
		return err
	}
	logWeaknesses(files, log)
	fs := newFileSystem(files, opts.IO, log, config.trace)
	defer closeStores(fs)
	return serveUntil(stopped, dir, fs, opts, stdout)
}

// readInputs reads the files that opts name, before anything else is done.
//
// BLOCKS until stdin ends, where it is one of them.
func readInputs(opts options, stdin io.Reader) (named []fileSource, access *credentials, err error) {
	if named, err = namedSources(opts.Sources, opts.List, stdin); err != nil {
		return nil, nil, err
	}
	access, err = loadCredentials(opts.Header, opts.BearerFile, opts.CACert)
	return named, access, err
}

// storeConfigOf returns what all stores have in common.
func storeConfigOf(opts options, log *eventLog) storeConfig {
	return storeConfig{
		dir:         opts.TempDir,
		trace:       &tracer{log: log, on: opts.Trace},
		connections: opts.Connections,
		slots:       make(chan struct{}, requestsAtOnce),
		linger:      opts.Linger,
		readTimeout: belowKernelTimeout(opts.ReadTimeout),
	}
}

// serveUntil mounts fs at dir and serves them until stopped or unmounted.
// Further signals change nothing: stopping is bounded.
func serveUntil(stopped context.Context, dir string, fs *fileSystem, opts options, stdout io.Writer) error {
	mount, err := mountAt(dir, fs, opts.AllowOther)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "fsmount: %s mounted at %s; to stop: Ctrl-C or %s\n", countFiles(fs), dir, unmountCommand(dir))

	endWatch := fs.watchInBackground(opts.StallReport, mount.ctl.waiting)
	defer endWatch()
	defer fs.dumpOnSignals()()

	unmounted := make(chan error, 1)
	go func() { unmounted <- mount.Wait() }()
	select {
	case err := <-unmounted:
		return errors.Join(err, mount.Clear())
	case <-stopped.Done():
		return mount.Stop()
	}
}

// stopSignals are the signals that unmount. A hang-up is one of them unless the
// program was started under nohup(1).
func stopSignals() []os.Signal {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

// checkPaths returns the mountpoint's absolute path if it, the temporary
// directory and the log file can be used together.
func checkPaths(opts options) (dir string, err error) {
	dir, err = checkMountpoint(opts.Mount)
	if err != nil {
		return "", err
	}
	if err := checkOutside(dir, opts.TempDir, "temporary directory"); err != nil {
		return "", err
	}
	if opts.LogFile != "" {
		if err := checkOutside(dir, opts.LogFile, "log file"); err != nil {
			return "", err
		}
	}
	probe, err := createUnlinked(opts.TempDir)
	if err != nil {
		return "", fmt.Errorf("temporary directory %s: %w (--temp-dir names another)", opts.TempDir, pathReason(err))
	}
	return dir, probe.Close()
}

// openLog starts the log, to the file at path if there is one.
func openLog(path string, stderr io.Writer) (log *eventLog, closeLog func(), err error) {
	if path == "" {
		log = newEventLog(stderr)
		return log, log.adopt(func() { log.Close(logPatience) }), nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("log file %s: %w", path, pathReason(err))
	}
	log = newEventLog(f)
	return log, log.adopt(func() {
		log.Close(logPatience)
		f.Close()
	}), nil
}

// sourcesOrDemo returns named, or the files of the demo origin, started for
// them, where there are none.
func sourcesOrDemo(named []fileSource) (sources []fileSource, closeDemo func(), err error) {
	if len(named) > 0 {
		return named, func() {}, nil
	}
	demo, err := startDemo(demoFiles())
	if err != nil {
		return nil, nil, err
	}
	sources, err = parseSources(demo.sources())
	return sources, func() { demo.Close() }, err
}

// logWeaknesses says of each file, in one line, which promises its origin makes
// weaker than those of others.
func logWeaknesses(files []*fileVersion, log *eventLog) {
	for _, f := range files {
		if said := f.store.Object().weaknesses(); len(said) > 0 {
			log.printf("%q: %s", f.name, strings.Join(said, "; "))
		}
	}
}

// closeStores closes the store of every version there was, all at once, and
// gives up after closePatience.
func closeStores(fs *fileSystem) {
	var closing sync.WaitGroup
	for _, f := range fs.dir.Load().byInode {
		closing.Go(func() { f.store.Close() })
	}
	done := make(chan struct{})
	go func() {
		closing.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closePatience):
	}
}

func countFiles(fs *fileSystem) string {
	files := fs.dir.Load().files
	var bytes int64
	for _, f := range files {
		bytes += f.store.Size()
	}
	if len(files) == 1 {
		return fmt.Sprintf("%q (%s)", files[0].name, formatBytes(bytes))
	}
	return fmt.Sprintf("%d files (%s)", len(files), formatBytes(bytes))
}

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
