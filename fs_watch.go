// fs_watch.go looks at the mount once a second and logs operations that are blocked for long, and
// requests that the kernel holds but fsmount never saw. It only reports, except that it wakes a
// reader whose bytes have arrived, and ends the reads of readers that are gone.

package main

import (
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	watchInterval = time.Second // how often the watchdog and the auditor look
	desertedLooks = 3           // of these looks, one is for readers that are gone: it costs a microsecond a reader
	reportsAtOnce = 200         // blocked operations that get a log line of their own at a time
	stacksBytes   = 4 << 20     // of a dump of all goroutines: at about 500 bytes each, it holds 8,000
)

// watchInBackground starts the watchdog, which ends when the mount stops. waiting returns
// the kernel's count of requests without a reply, or a negative number if it is unknown.
// The function that it returns waits for that end, which fs.Stop brings about.
func (fs *fileSystem) watchInBackground(stallReport time.Duration, waiting func() int) (wait func()) {
	var watching sync.WaitGroup
	watching.Go(func() {
		var started uint64
		for looks := 1; ; looks++ {
			select {
			case <-time.After(watchInterval): // a ticker may tick twice at once after a SIGSTOP
			case <-fs.ctx.Done():
				return
			}
			fs.audit()
			fs.reportBlocked(stallReport)
			started = fs.reportUnseen(started, waiting())
			if looks%desertedLooks == 0 {
				fs.ops.leaveDeserted()
			}
		}
	})
	return watching.Wait
}

// audit wakes waiters that were forgotten, and logs each as a bug.
func (fs *fileSystem) audit() {
	for _, v := range fs.allVersions() {
		store := v.latest()
		for _, r := range store.Audit() {
			fs.stats.lostWakeups.Add(1)
			fs.log.printf("BUG: lost wake-up: [TempFileStore #%d] a reader of %v of %q slept on with its answer there; it was woken now. Please report this",
				store.ID(), r, v.file.name())
		}
	}
}

// reportBlocked logs what an operation waits for, once for each that is at least
// limit old. It logs the events and stacks once for each stall.
func (fs *fileSystem) reportBlocked(limit time.Duration) {
	blocked := fs.ops.newlyBlocked(limit)
	for _, info := range fs.opInfos(blocked[:min(len(blocked), reportsAtOnce)]) {
		fs.log.printf("blocked: %v", info)
	}
	if more := len(blocked) - reportsAtOnce; more > 0 {
		fs.log.printf("blocked: %d more operations, see fsmount ps", more)
	}
	if len(blocked) > 0 && !fs.stalled {
		fs.stalled = true
		fs.logEventsAndStacks()
	}
	if _, _, oldest := fs.ops.totals(); len(blocked) == 0 && oldest < limit {
		fs.stalled = false
	}
}

// reportUnseen logs when the kernel holds requests and none has reached the loop between three looks. started is how
// many operations had begun at the last look; reportUnseen returns the present number. A loop that is merely busy takes
// some; one that went on just now, after a SIGSTOP or a suspend, has taken them by the third look.
func (fs *fileSystem) reportUnseen(started uint64, waiting int) uint64 {
	now, inFlight, _ := fs.ops.totals()
	unseen := waiting - inFlight
	if unseen <= 0 || now != started {
		fs.unseenLooks = 0
		return now
	}
	if fs.unseenLooks++; fs.unseenLooks == 2 {
		fs.log.printf("blocked: the kernel holds %d requests that have not reached fsmount (background requests over its limit?)", unseen)
	}
	return now
}

// dumpOnSignals writes a dump at every SIGUSR1 and SIGQUIT, until end is called.
func (fs *fileSystem) dumpOnSignals() (end func()) {
	received := make(chan os.Signal, 1)
	signal.Notify(received, syscall.SIGUSR1, syscall.SIGQUIT)
	var dumping sync.WaitGroup
	dumping.Go(func() {
		for sig := range received {
			fs.dump(unix.SignalName(sig.(syscall.Signal)))
		}
	})
	return func() {
		signal.Stop(received)
		close(received)
		dumping.Wait()
	}
}

// dump logs the operations in flight, the recent events and all stacks.
func (fs *fileSystem) dump(reason string) {
	all := fs.ops.snapshot()
	fs.log.printf("%s: %s in flight", reason, plural(int64(len(all)), "operation"))
	for _, info := range fs.opInfos(all) {
		fs.log.printf("in flight: %v", info)
	}
	fs.logEventsAndStacks()
}

func (fs *fileSystem) logEventsAndStacks() {
	if fs.trace.on {
		fs.log.printf("recent events: the trace above has them")
	} else {
		fs.log.printf("recent events:\n%s", strings.ReplaceAll(fs.trace.events(), traceMark, recentMark))
	}
	fs.log.printf("all goroutines:\n%s", allStacks())
}

// allStacks is every goroutine's stack, as far as stacksBytes reach.
func allStacks() []byte {
	buf := make([]byte, stacksBytes)
	return buf[:runtime.Stack(buf, true)]
}
