// fs_interrupt.go decides when a signal to a blocked reader ends its read. The
// kernel sends FUSE_INTERRUPT for any signal, also one that the program catches
// and that must not fail its read (Go's own SIGURG, git's SIGALRM).

package main

import (
	"context"
	"time"
)

// fatalPoll is how often a reader that was interrupted, but not fatally, is
// looked at again: the kernel sends one interrupt for an op, not one for every
// signal. A killed reader is gone within about this time.
const fatalPoll = 200 * time.Millisecond

// waitContext returns the context that a read waits under. It ends when the
// mount stops, and when opCtx was interrupted by a fatal signal to the thread
// pid. cancel must be called before the op is answered: the library then ends
// opCtx, which is no interrupt.
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

// awaitFatal reports true as soon as a fatal signal is pending for pid.
//
// BLOCKS until then; wakes every fatalPoll and on the end of ctx, and reports
// false at that.
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
