// fs_interrupt.go decides whether a signal ends a blocked read. The kernel sends FUSE_INTERRUPT for every
// signal, also for one that the reader catches and that must not fail its read (Go's SIGURG, git's SIGALRM).

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// fatalPoll is how often an interrupted reader is looked at again: the kernel sends one
	// interrupt for an op, not one for each signal. A killed reader is gone within about this time.
	fatalPoll = 200 * time.Millisecond
	// unseenPatience is how long the read of an interrupted reader goes on that this process cannot
	// see: the kernel does not tell a killed reader from one that caught the signal.
	unseenPatience = 10 * time.Second
)

var (
	errInterrupted = errors.New("the reader was killed") // ends a wait whose reader is being killed
	// errUnseen ends a wait whose reader may be dying.
	errUnseen = fmt.Errorf("the reader got a signal, and cannot be seen: it is in another PID namespace, or /proc hides it; "+
		"its read was given up after %v", unseenPatience)
	// errDeserted ends a wait whose reader is gone: a read ahead of a page fault. While it
	// waits, the kernel holds its pages, and nobody can kill who maps the file.
	errDeserted = errors.New("the reader is gone")
)

// waitContext returns the context that an op of the thread pid waits under. It ends when the mount stops (errStopping),
// when a signal interrupts opCtx and awaitFatal gives the reader up, and when opCtx ends with errDeserted. The caller
// calls cancel before the op gets its reply: the library then ends opCtx, which is no interrupt.
func (fs *fileSystem) waitContext(opCtx context.Context, pid uint32) (ctx context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(fs.ctx)
	unwatch := context.AfterFunc(opCtx, func() {
		if context.Cause(opCtx) == errDeserted {
			end(errDeserted)
		} else if err := fs.readers.awaitFatal(ctx, pid); err != nil {
			end(err)
		}
	})
	return ctx, func() {
		unwatch()
		end(nil)
	}
}

// readerWatch looks at the threads that read, by /proc.
type readerWatch struct {
	mu    sync.Mutex
	spare *os.File // GUARDED_BY(mu); the descriptor for a look while all others are in use
}

func newReaderWatch() *readerWatch {
	spare, _ := os.Open(os.DevNull) // without it, a look may have to wait
	return &readerWatch{spare: spare}
}

// awaitFatal returns errInterrupted as soon as the thread pid is dying, errUnseen if it could not be seen for
// unseenPatience, and nil at the end of ctx. BLOCKS until then; wakes every fatalPoll and on the end of ctx.
func (w *readerWatch) awaitFatal(ctx context.Context, pid uint32) error {
	tick := time.NewTicker(fatalPoll)
	defer tick.Stop()
	for lastSeen := time.Now(); ; {
		switch dying, seen := w.look(pid); {
		case dying:
			return errInterrupted
		case seen:
			lastSeen = time.Now()
		case time.Since(lastSeen) >= unseenPatience:
			return errUnseen
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// canSee reports whether a look at the thread pid would tell whether it is dying. The pid
// is 0 outside of this process's PID namespace.
func canSee(pid uint32) bool { return unix.Access(statusPath(pid), unix.R_OK) == nil }

func statusPath(pid uint32) string { return fmt.Sprintf("/proc/%d/status", pid) }

// look reports whether the thread pid is dying, and whether it can be seen.
func (w *readerWatch) look(pid uint32) (dying, seen bool) {
	status, err := os.ReadFile(statusPath(pid))
	if errors.Is(err, syscall.EMFILE) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.spare.Close()
		status, err = os.ReadFile(statusPath(pid))
		w.spare, _ = os.Open(os.DevNull)
	}
	return err == nil && isDying(string(status)), err == nil
}

// isDying reports whether a thread with that status (proc_pid_status(5)) is dying: whether a signal is
// pending for it that ends a process, and that it neither catches, ignores nor blocks. For most fatal
// signals the kernel marks SIGKILL as pending for each thread (complete_signal in kernel/signal.c), but
// not for one that dumps core, nor under a tracer, nor while another signal is pending.
func isDying(status string) bool {
	sets := statusSets(status)
	survived := signalMask(syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN,
		syscall.SIGTTOU, syscall.SIGURG, syscall.SIGWINCH) // by default (signal(7))
	pending := sets["SigPnd"] | sets["ShdPnd"]
	return pending&^(sets["SigBlk"]|sets["SigIgn"]|sets["SigCgt"]|survived) != 0
}

// statusSets returns the sets of signals and of capabilities in a status, by name.
func statusSets(status string) map[string]uint64 {
	sets := make(map[string]uint64) // among what else the status has
	for line := range strings.Lines(status) {
		name, mask, _ := strings.Cut(line, ":")
		sets[name], _ = strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
	}
	return sets
}

// signalMask is a set of signals as /proc/PID/status shows it: bit n-1 is signal n.
func signalMask(all ...syscall.Signal) (set uint64) {
	for _, sig := range all {
		set |= 1 << (sig - 1)
	}
	return set
}
