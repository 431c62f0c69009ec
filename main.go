// Command fsmount mounts remote HTTP(S) files as local read-only files of their
// full size. Any program can open one and read it while it downloads.
//
// Start with runMain, which dispatches commands, and mountAndServe, which wires everything together. The files
// form six layers. Each uses names of its own layer and of those below, never of one above (layers_test.go):
//
//	program  main.go, cli.go, sources.go, command_*.go, hangs*.go, selftest*.go
//	mount    mount*.go: the mountpoint, and the kernel's controls for it
//	fs       fs*.go: answers the kernel's ops
//	store    store_*.go: TempFileStore, where each read waits or gets its bytes
//	origin   origin*.go: ranges of one version of a remote file, over HTTP
//	values   source*.go, credentials.go, rangeset.go, trace.go, goroutineid.go, text.go
//
// A function whose name ends in Locked is called with the mutex held that guards its fields (LOCKS_REQUIRED), and every
// other function without any (LOCKS_EXCLUDED): nobody takes two mutexes, and nobody waits with one (locks_test.go).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"math"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// Exit statuses.
const exitOK, exitFailure, exitUsage = 0, 1, 2

const (
	// requestsAtOnce bounds the requests in flight of all files together. It is far above what a
	// path can use; it keeps a thousand open files from opening four thousand connections.
	requestsAtOnce = 256
	filesAtLeast   = 4 // the fewest temporary files that fsmount serves anything with
	// logPatience bounds how long a stopping process waits until its log is written: the reader of the log may be gone.
	logPatience = time.Second
	// closePatience bounds how long a stopping process waits for its stores: a disk may not answer.
	closePatience = 2 * time.Second
)

// usageError marks a mistake on the command line: exit status 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() { os.Exit(runMain(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// runMain runs the program and returns its exit status.
func runMain(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	switch {
	case len(args) > 0 && args[0] == "help":
		args = append(slices.Clone(args[1:]), "--help")
	case len(args) == 1 && args[0] == "version":
		args = []string{"--version"}
	}
	if c, found := commandNamed(args); found {
		status, err := c.invoke(args[1:], stdin, stdout, stderr)
		return max(status, exitStatus(err, stderr))
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

// exitStatus prints err, if there is one, and returns the status to exit with.
func exitStatus(err error, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "fsmount: %v\n", err)
	if errors.As(err, new(usageError)) && !errors.Is(err, errInUse) {
		return exitUsage
	}
	return exitFailure
}

// command is something the program does besides mounting.
type command struct {
	name    string
	args    string // for help
	about   string // for help; a command without it is not shown
	grammar runner
}

// runner is a pointer to a struct whose kong tags are the grammar of a command's
// arguments. The program exits with the greater of run's status and its error's.
type runner interface {
	run(stdin io.Reader, stdout io.Writer) (status int, err error)
}

func commands() []command {
	return []command{
		{"ps", "DIR", "list the operations in flight, and what each waits for", new(psCommand)},
		{"status", "DIR", "show how much of each file has arrived", new(statusCommand)},
		{"refresh", "DIR NAME...", "take the version of a file that its origin has now", &fileCommand{verb: "refresh"}},
		{"fetch", "DIR NAME...", "download a file, whoever reads it", &fetchCommand{fileCommand: fileCommand{verb: "fetch"}}},
		{"forget", "DIR NAME...", "give back the space of a file that nobody has open", &fileCommand{verb: "forget"}},
		{"add", "DIR SOURCE...", "add files to a mount", new(addCommand)},
		{"rm", "DIR NAME...", "take files out of a mount, or directories with all files", &fileCommand{verb: "rm"}},
		{"umount", "DIR", "end a mount, or remove what a killed fsmount left", new(umountCommand)},
		{"check", "DIR", "exit 0 if the mount answers and nothing blocks, else 1", new(checkCommand)},
		{"hangs", "[LOG]", "find in a log of --trace what hangs", new(hangsCommand)},
		{"selftest", "", "check that fsmount works on this machine", new(selftestCommand)},
		{selftestReaderCommand, "", "", new(readerCommand)},
		{readControlName, "", "", new(readControlCommand)},
	}
}

// commandNamed finds the command whose name is the first of args.
func commandNamed(args []string) (c command, found bool) {
	for _, c := range commands() {
		if len(args) > 0 && args[0] == c.name {
			return c, true
		}
	}
	return command{}, false
}

// shownCommands returns the names of the commands that the help shows, and its text about them.
func shownCommands() (names []string, list string) {
	for _, c := range commands() {
		if c.about != "" {
			names = append(names, c.name)
			list += fmt.Sprintf("\n  fsmount %-19s %s", c.name+" "+c.args, c.about)
		}
	}
	return names, list
}

// invoke parses the arguments behind the command's name and runs the command, unless they ask for help.
func (c command) invoke(args []string, stdin io.Reader, stdout, stderr io.Writer) (status int, err error) {
	about := strings.ToUpper(c.about[:min(1, len(c.about))]) + c.about[min(1, len(c.about)):] + "."
	done, err := parseArguments(c.grammar, "fsmount "+c.name, about, args, stdout, stderr)
	if err != nil {
		return exitUsage, usageError{fmt.Errorf("%s: %w (see fsmount %s --help)", c.name, err, c.name)}
	}
	if done {
		return exitOK, nil
	}
	return c.grammar.run(stdin, stdout)
}

func untilInterrupted() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), stopSignals()...)
}

// mountAndServe goes from parsed options to the end of the mount.
// BLOCKS until the mount ends; wakes on a signal and on an unmount.
func mountAndServe(opts options, stdin io.Reader, stdout, stderr io.Writer) error {
	// namedSources may read stdin. The program catches signals only after that, so
	// Ctrl-C ends the wait for a list on stdin.
	sources, err := namedSources(opts.Sources, opts.List, stdin)
	if err != nil {
		return usageError{err}
	}
	login, err := loadCredentials(opts.Header, opts.BearerFile, opts.CACert)
	if err == nil {
		err = useProxies()
	}
	if err != nil {
		return usageError{err}
	}

	// The mount goes on when the reader of its output goes away.
	signal.Ignore(syscall.SIGPIPE)
	stopping := stopSignals()
	stopped, release := signal.NotifyContext(context.Background(), stopping...)
	defer release()

	dead, err := clearDead(opts.Mount)
	if err != nil {
		return err
	}
	dir, err := checkPaths(opts)
	if err != nil {
		return usageError{err}
	}
	log, closeLog, err := openLog(opts.LogFile, stderr)
	if err != nil {
		return usageError{err}
	}
	defer closeLog()
	if dead > 0 {
		log.printf("removed from %s what an fsmount that was killed had left mounted", dir)
	}
	if login.netrcProblem != nil {
		log.printf("ignored: %v", login.netrcProblem)
	}
	if opts.Trace {
		build, _ := debug.ReadBuildInfo()
		log.printf("%s", startLine(build.Main.Version, os.Getpid()))
	}

	if len(sources) == 0 && !opts.Empty {
		demo, err := startLocalOrigin(demoFiles())
		if err != nil {
			return err
		}
		defer demo.Close()
		if sources, err = namedSources(demo.urls, nil, nil); err != nil {
			return err
		}
	}
	var cache *diskCache
	if opts.CacheDir != "" {
		if cache, err = openCache(opts.CacheDir, log); err != nil {
			return usageError{err}
		}
	}
	room := newRoomTable(opts.TempDir, opts.CacheSize, cache)
	room.prepare()
	config := &storeConfig{
		room:        room,
		trace:       &tracer{log: log, on: opts.Trace},
		connections: opts.Connections,
		linger:      opts.Linger,
		readTimeout: belowKernelTimeout(opts.ReadTimeout),
		follow:      opts.OnChange == "follow",
		total:       new(storeTotals),
	}
	if opts.LimitRate > 0 {
		config.pace = newPacer(int(opts.LimitRate))
	}
	if room.most < filesAtLeast {
		return fmt.Errorf("ulimit -n is %d: allow this process %d open files or more", descriptorLimit(), ownDescriptors+2*filesAtLeast)
	}
	// Of the other half of the descriptors, one half is for connections in use, and one for idle ones.
	hosts := newHostTable(min(requestsAtOnce, int(room.most/2)), opts.StallTimeout)
	client := newWebClient(login, redirectRules{
		private: slices.Contains(opts.AllowRedirect, "private"),
		plain:   slices.Contains(opts.AllowRedirect, "http"),
	}, hosts, log)
	client.urlCommand = opts.URLCommand
	defer client.CloseIdleConnections()
	fs := newFileSystem(opts.IO, config, log)
	defer closeStores(fs)
	fs.control.verbs["add"] = addSources(fs, opts, client)
	slow := time.AfterFunc(startPatience, func() {
		fmt.Fprintf(stderr, "fsmount: not mounted yet: waiting for the origins to answer (--start-timeout %v)\n", opts.StartTimeout)
	})
	files, _, err := openFiles(stopped, opts, client, sources, fs, func(skipped error) {
		fmt.Fprintf(stderr, "fsmount: %v\n", skipped)
		if opts.LogFile != "" { // else the log is stderr too
			log.printf("%v", skipped)
		}
	})
	slow.Stop()
	if err != nil {
		return err
	}
	room.trim()
	if most := room.most; int64(len(files)) > most {
		log.printf("of these %d files at most %d can be kept at once, as ulimit -n is %d: fsmount forgets those that no program has open",
			len(files), most, descriptorLimit())
	}
	for _, name := range opts.Prefetch {
		switch f, isFile := fs.find(name); {
		case name == "":
			fs.prefetch(files...)
		case isFile:
			fs.prefetch(f)
		case len(files) == len(sources): // else it may be one that was skipped
			return usageError{fmt.Errorf("--prefetch: no file has the name %q", redactArg(name))}
		}
	}
	return serveUntil(stopped, stopping, dir, fs, opts, stdout)
}

// stopSignals are the signals that unmount, and end commands: SIGTERM, and of the others those that
// were not ignored at the start. nohup(1) ignores SIGHUP; a shell without job control ignores
// SIGINT for what it starts in the background, as Ctrl-C is meant for another program then.
func stopSignals() []os.Signal {
	stopping := []os.Signal{syscall.SIGTERM}
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			stopping = append(stopping, sig)
		}
	}
	return stopping
}

// checkPaths returns the mountpoint's absolute path if the mountpoint, the
// temporary directory and the log file can be used together.
func checkPaths(opts options) (dir string, err error) {
	dir, err = checkMountpoint(opts.Mount)
	if err == nil {
		err = checkOutside(dir, opts.TempDir, "temporary directory")
	}
	if err == nil && opts.LogFile != "" {
		err = checkOutside(dir, opts.LogFile, "log file")
	}
	if err != nil || opts.CacheDir != "" { // openCache makes that
		return dir, err
	}
	scratch, err := createUnlinked(opts.TempDir)
	if err != nil {
		return "", fmt.Errorf("temporary directory %s: %w (--temp-dir names another)", redactArg(opts.TempDir), pathReason(err))
	}
	return dir, scratch.Close()
}

// openLog starts the log: to the file at path, or to out if path is "".
func openLog(path string, out io.Writer) (log *eventLog, closeLog func(), err error) {
	var file *os.File
	if path != "" {
		if file, err = openLogFile(path); err != nil {
			return nil, nil, fmt.Errorf("log file %s: %w (--log-file names another)", redactArg(path), pathReason(err))
		}
		out = file
	}
	log = newEventLog(out)
	stdlog.SetOutput(log) // net/http logs there, and must not block an operation either
	stdlog.SetFlags(0)
	return log, func() {
		stdlog.SetOutput(os.Stderr)
		log.Close(logPatience)
		file.Close() // of no file it does nothing
	}, nil
}

// openLogFile opens a file of this user, or a device such as /dev/null. In a directory where others may write,
// a link could lead the log of root into any file, and a pipe would keep the start waiting for its reader.
func openLogFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	switch {
	case errors.Is(err, syscall.ELOOP):
		return nil, errors.New("it is a symbolic link")
	case errors.Is(err, syscall.ENXIO):
		return nil, errors.New("it is a pipe or a socket, and no file")
	case err != nil:
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.Mode()&os.ModeCharDevice != 0:
		return f, nil
	case !info.Mode().IsRegular():
		err = errors.New("it is no file")
	case info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()):
		err = errors.New("it belongs to another user")
	default:
		return f, nil
	}
	f.Close()
	return nil, err
}

// serveUntil mounts fs at dir and serves it until one of the signals stopping ends stopped, until fsmount
// umount asks for the end, or until somebody unmounts it. Further signals change nothing: stopping is bounded.
// BLOCKS until then; wakes on the unmount, the end of stopped, and every watchInterval.
func serveUntil(stopped context.Context, stopping []os.Signal, dir string, fs *fileSystem, opts options, stdout io.Writer) error {
	mount, err := mountAt(dir, fs, opts.AllowOther)
	if err != nil {
		return err
	}
	keptAnyFile, err := dropRights(opts.TempDir)
	if err != nil {
		return errors.Join(fmt.Errorf("drop privileges: %w", err), mount.Stop())
	}
	if keptAnyFile {
		fs.log.printf("this process keeps CAP_DAC_OVERRIDE: it can make no file in %s without", opts.TempDir)
	}
	howToStop := unmountCommand(dir)
	if slices.Contains(stopping, os.Signal(syscall.SIGINT)) {
		howToStop = "Ctrl-C or " + howToStop
	}
	fmt.Fprintf(stdout, "fsmount: %s mounted at %s; to stop: %s\n", countFiles(fs), dir, howToStop)
	go warmUp(fs.room)
	tellSupervisor(daemon.SdNotifyReady)

	endWatch := fs.watchInBackground(opts.StallReport, mount.own.waiting)
	defer endWatch()
	defer fs.dumpOnSignals()()

	unmounted := make(chan error, 1)
	go func() { unmounted <- mount.Wait() }()
	look := time.NewTicker(watchInterval)
	defer look.Stop()
	for detached := false; ; {
		select {
		case err := <-unmounted:
			tellSupervisor(daemon.SdNotifyStopping)
			return errors.Join(err, mount.unmount())
		case <-look.C:
			if !detached && mount.left() {
				detached = true
				fs.log.printf("%s is unmounted, but programs have files of it open, or another mount namespace has it: "+
					"fsmount serves these and ends with the last; kill %d ends it at once", dir, os.Getpid())
			}
			continue
		case <-stopped.Done():
		case <-fs.stopAsked:
		}
		tellSupervisor(daemon.SdNotifyStopping)
		return mount.Stop()
	}
}

// warmUp gives back the memory that only the start needed. Then it touches the two buffers of the first read, which
// would wait for each page: 10 us where the machine is virtual.
func warmUp(room *roomTable) {
	debug.FreeOSMemory()
	for range 2 {
		buffer := room.lendBuffer(smallBufferBytes)
		defer buffer.done()
		clear(buffer.bytes)
	}
}

// tellSupervisor tells systemd the state of a unit of Type=notify (sd_notify(3)).
// BLOCKS until systemd has room for the message, at most logPatience.
func tellSupervisor(state string) {
	within(logPatience, func() { _, _ = daemon.SdNotify(false, state) }) // without systemd it does nothing
}

// countFiles says how many files fs has, and their size.
func countFiles(fs *fileSystem) string {
	files, total := fs.allFiles(), int64(0)
	for _, f := range files {
		total += min(f.current.Load().size, math.MaxInt64-total)
	}
	if len(files) == 1 {
		return fmt.Sprintf("%q (%s)", files[0].name(), humanize.IBytes(uint64(total)))
	}
	return fmt.Sprintf("%d files (%s)", len(files), humanize.IBytes(uint64(total)))
}

// closeStores closes the store of every version there is, all at once. One that closes may still let another go, and
// is counted meanwhile. BLOCKS until all are closed, at most closePatience.
func closeStores(fs *fileSystem) {
	for _, v := range fs.allVersions() {
		fs.close(v.latest())
	}
	within(closePatience, fs.room.closing.Wait)
}
