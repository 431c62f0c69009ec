// fs_watch.go looks at the mount once a second and logs operations that are blocked
// for long, and requests that the kernel holds but fsmount never saw. It only
// reports, except that it wakes a reader whose bytes have arrived.

package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// watchInterval is how often the watchdog and the auditor look.
const watchInterval = time.Second

// reportsAtOnce is how many blocked operations get a line of their own at a time.
const reportsAtOnce = 200

// stacksBytes bounds a dump of all goroutines: at about 500 bytes each, some
// thousand of them.
const stacksBytes = 4 << 20

// watch runs until the mount stops. waiting returns the kernel's count of
// requests that are not answered yet, or a negative number if it is not known.
//
// BLOCKS until fs.ctx ends; wakes every watchInterval.
func (fs *fileSystem) watch(stallReport time.Duration, waiting func() int) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	var started uint64
	for {
		select {
		case <-tick.C:
		case <-fs.ctx.Done():
			return
		}
		fs.audit()
		fs.reportBlocked(stallReport)
		started = fs.reportUnseen(started, waiting())
	}
}

// audit wakes waiters that were forgotten, and is loud about it.
func (fs *fileSystem) audit() {
	for _, f := range fs.dir.Load().byInode {
		for _, r := range f.store.Audit() {
			fs.stats.lostWakeups.Add(1)
			fs.log.printf("BUG: lost wake-up: [TempFileStore #%d] a reader of %v of %q slept on with its answer there; it was woken now. Please report this",
				f.store.ID(), r, f.name)
		}
	}
}

// reportBlocked says of each operation that has been blocked for limit what it
// waits for: once, and once for all of them with events and stacks.
func (fs *fileSystem) reportBlocked(limit time.Duration) {
	blocked := fs.ops.newlyBlocked(limit)
	for _, rec := range blocked[:min(len(blocked), reportsAtOnce)] {
		fs.log.printf("blocked: %v", fs.opInfoOf(rec))
	}
	if more := len(blocked) - reportsAtOnce; more > 0 {
		fs.log.printf("blocked: %d more operations, see fsmount ps", more)
	}
	if len(blocked) > 0 && fs.stalled.CompareAndSwap(false, true) {
		fs.logEventsAndStacks()
	}
	if len(blocked) == 0 && fs.ops.oldest() < limit {
		fs.stalled.Store(false)
	}
}

// reportUnseen says when the kernel has held requests for a whole interval in
// which none reached us: it is not that we were slow to take them. started is
// how many operations had begun by the last look. It returns that number of now.
func (fs *fileSystem) reportUnseen(started uint64, waiting int) uint64 {
	now, inFlight := fs.ops.started()
	unseen := waiting - inFlight
	switch {
	case unseen <= 0 || now != started:
		fs.unseenSaid.Store(false)
	case !fs.unseenSaid.Swap(true):
		fs.log.printf("blocked: the kernel holds %d requests that have not reached fsmount (background requests over its limit?)", unseen)
	}
	return now
}

// Dump writes everything that can be known of a hang to the log.
func (fs *fileSystem) Dump(reason string) {
	fs.log.printf("%s: %d operations in flight", reason, fs.ops.size())
	for _, rec := range fs.ops.snapshot() {
		fs.log.printf("in flight: %v", fs.opInfoOf(rec))
	}
	fs.logEventsAndStacks()
}

func (fs *fileSystem) logEventsAndStacks() {
	fs.log.printf("recent events:\n%s", fs.trace.events())
	fs.log.printf("all goroutines:\n%s", allStacks())
}

// allStacks is every goroutine's stack, as far as stacksBytes reach.
func allStacks() []byte {
	buf := make([]byte, stacksBytes)
	return buf[:runtime.Stack(buf, true)]
}

// dumpOnSignals writes a dump at every SIGUSR1 and SIGQUIT, until end is called.
func (fs *fileSystem) dumpOnSignals() (end func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGQUIT)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sig := range signals {
			fs.Dump(sig.String())
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}

// watchInBackground starts watch, and returns a function that waits for its
// end, which fs.Stop brings about.
func (fs *fileSystem) watchInBackground(stallReport time.Duration, waiting func() int) (wait func()) {
	ctx, done := context.WithCancel(context.Background())
	go func() {
		defer done()
		fs.watch(stallReport, waiting)
	}()
	return func() { <-ctx.Done() }
}
