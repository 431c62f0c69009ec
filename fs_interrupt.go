// fs_interrupt.go decides whether a signal ends a blocked read. The kernel sends
// FUSE_INTERRUPT for every signal, also for one that the reader catches and that
// must not fail its read (Go's SIGURG, git's SIGALRM).

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// fatalPoll is how often an interrupted reader is looked at again: the kernel sends
// one interrupt for an op, not one for each signal. A killed reader is gone within
// about this time.
const fatalPoll = 200 * time.Millisecond

// waitContext returns the context that an op of the thread pid waits under. It ends
// when the mount stops (errStopping), and when a fatal signal interrupts opCtx
// (errInterrupted). The caller calls cancel before the op gets its reply: the
// library then ends opCtx, which is no interrupt.
func (fs *fileSystem) waitContext(opCtx context.Context, pid uint32) (ctx context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(fs.ctx)
	unwatch := context.AfterFunc(opCtx, func() {
		if awaitFatal(ctx, pid) {
			end(errInterrupted)
		}
	})
	return ctx, func() {
		unwatch()
		end(nil)
	}
}

// awaitFatal reports true as soon as a fatal signal is pending for the thread pid,
// and false at the end of ctx.
//
// BLOCKS until then; wakes every fatalPoll and on the end of ctx.
func awaitFatal(ctx context.Context, pid uint32) bool {
	tick := time.NewTicker(fatalPoll)
	defer tick.Stop()
	for !fatalSignalPending(pid) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// signalMask is a set of signals as /proc/PID/status shows it: bit n-1 is signal n.
func signalMask(all ...syscall.Signal) (set uint64) {
	for _, sig := range all {
		set |= 1 << (sig - 1)
	}
	return set
}

// fatalSignalPending reports whether the thread pid is dying. For a fatal signal
// without a core dump the kernel marks SIGKILL as pending for each thread of the
// process (complete_signal in kernel/signal.c). A signal that dumps core stays what
// it is; it is fatal unless it is blocked, ignored or caught. If the status cannot
// be read the answer is yes: a failed read is better than an unkillable process.
func fatalSignalPending(pid uint32) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	sets := make(map[string]uint64) // by name (proc_pid_status(5)), among what else the status has
	for line := range strings.Lines(string(status)) {
		name, mask, _ := strings.Cut(line, ":")
		sets[name], _ = strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
	}
	// Signals whose default action is a core dump (signal(7)).
	dumping := signalMask(syscall.SIGQUIT, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGABRT, syscall.SIGBUS,
		syscall.SIGFPE, syscall.SIGSEGV, syscall.SIGXCPU, syscall.SIGXFSZ, syscall.SIGSYS)
	held := sets["SigBlk"] | sets["SigIgn"] | sets["SigCgt"]
	pending := sets["SigPnd"] | sets["ShdPnd"]
	return sets["SigPnd"]&signalMask(syscall.SIGKILL) != 0 || pending&dumping&^held != 0
}
