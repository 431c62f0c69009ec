// fsmount mounts remote files as local ones, which can be read while they
// download. main.go wires the parts together: from the command line over the
// probes to the mount, and back down when a signal or an unmount ends it. It is
// the only place that exits.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
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
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program. It returns its exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
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
func readInputs(opts options, stdin io.Reader) (named []source, access *access, err error) {
	if named, err = namedSources(opts.Sources, opts.List, stdin); err != nil {
		return nil, nil, err
	}
	access, err = loadAccess(opts)
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
		readTimeout: readTimeout(opts.ReadTimeout),
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
func sourcesOrDemo(named []source) (sources []source, closeDemo func(), err error) {
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

func parseSources(args []string) ([]source, error) {
	sources := make([]source, 0, len(args))
	for _, arg := range args {
		src, err := parseSource(arg)
		if err != nil {
			return nil, err
		}
		sources = append(sources, src)
	}
	return sources, nil
}

// openFiles probes the sources and makes a file of each that answers. Those
// that do not are named on stderr; it is an error if none does.
func openFiles(ctx context.Context, opts options, client *http.Client, sources []source, config storeConfig, stderr io.Writer) ([]file, error) {
	var found []probed
	for _, p := range probeAll(ctx, client, sources, opts.StallTimeout) {
		if p.err != nil {
			fmt.Fprintf(stderr, "fsmount: left out %s: %v\n", p.origin, p.err)
			continue
		}
		found = append(found, p)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("stopped before anything was mounted")
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("nothing to mount: none of the %d sources could be opened", len(sources))
	}
	return newFiles(found, config), nil
}

// logWeaknesses says of each file, in one line, which promises its origin makes
// weaker than those of others.
func logWeaknesses(files []file, log *eventLog) {
	for _, f := range files {
		if said := f.store.obj.weaknesses(); len(said) > 0 {
			log.printf("%q: %s", f.name, strings.Join(said, "; "))
		}
	}
}

func newFiles(found []probed, config storeConfig) []file {
	names := make([]string, len(found))
	for i, p := range found {
		names[i] = fileName(p.source, p.obj.Filename)
	}
	now := time.Now()
	files := make([]file, len(found))
	for i, name := range uniqueNames(names) {
		p := found[i]
		files[i] = file{name: name, mtime: p.obj.ModTime, store: newTempFileStore(p.origin, p.obj, config)}
		if files[i].mtime.IsZero() {
			files[i].mtime = now
		}
	}
	return files
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

// formatBytes writes n as people do: 81.0 MiB.
func formatBytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	value, prefixes := float64(n), "KMGTPE"
	i := -1
	for ; value >= 1024; i++ {
		value /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", value, prefixes[i])
}
