// store_tempfile.go is TempFileStore: one version of one remote file, which arrives
// in a temporary file while readers read it. It decides which bytes are present,
// who waits, and how each wait ends. store_plan.go decides what to fetch,
// store_fetch.go fetches it, store_disk.go makes the system calls. The store knows
// its Origin only through that interface and knows nothing of FUSE.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// errClosed is what reads of a closed store end with.
	errClosed = errors.New("the file's store is closed")

	// errReadTimeout is what a read ends with that saw no progress for too long.
	errReadTimeout = errors.New("no byte of the file arrived for too long")
)

// storeConfig is what all stores of a mount have in common.
type storeConfig struct {
	dir         string // where temporary files are made
	trace       *tracer
	connections int           // the most requests in flight for one file
	slots       chan struct{} // a place for each request in flight, of any file
	linger      time.Duration // how long fetches go on when no handle is open
	readTimeout time.Duration // how long a read waits without progress of its file
}

// TempFileStore fetches a remote file once, into an unlinked temporary file,
// and serves any number of readers while it does. The fetch starts with the
// first read that needs it.
//
// A wait can end in three ways, each a channel or the predicate below:
//
//   - bytes arrived: notifyCh is a generation. It is closed and replaced under
//     mu, so that one close wakes every waiter of that generation and a waiter
//     that comes later has the next one.
//   - no byte can arrive any more: doneCh is closed, once (Open makes another
//     for a store that failed and is tried again).
//   - the waiter gave up: its context ended, or its patience.
//
// A waiter evaluates the predicate (contains its range, or ended) and takes
// both channels under one hold of mu; who changes what the predicate reads does it
// under mu and closes the channel before letting go. So there is no moment
// between "not yet" and "asleep" in which an arrival can go unseen.
//
// Lock order: mu is the only lock. It is never held across I/O, a wait or a
// log line.
type TempFileStore struct {
	// Write once, before any goroutine starts.
	debugID uint64
	origin  Origin
	obj     Object
	storeConfig
	ctx     context.Context // the fetches' life; ended by Close
	cancel  context.CancelFunc
	closeCh chan struct{} // closed when Close is done
	idleCh  chan struct{} // holds a token after refCount fell to 0 while closed
	buffers sync.Pool     // *lentBuffer, for views and fetches

	// Read write.

	mu sync.Mutex

	// present are the bytes that are in the temporary file.
	//
	// INVARIANT: it only grows, and only after the bytes were written.
	present rangeSet // GUARDED_BY(mu)

	// notifyCh is the generation that the present waiters sleep on.
	notifyCh chan struct{} // GUARDED_BY(mu)

	// waiters are the reads that are asleep.
	//
	// INVARIANT: none is satisfied by present, and doneCh is open or they are
	// awake and on their way out.
	waiters map[*waiter]struct{} // GUARDED_BY(mu)

	// doneCh is closed once no byte can arrive any more: complete, failed or
	// closed.
	doneCh chan struct{} // GUARDED_BY(mu)

	// plan is what is being fetched, and when what will be.
	plan fetchPlan // GUARDED_BY(mu)

	// ended says that doneCh is closed; err is why, nil for a complete file.
	ended bool  // GUARDED_BY(mu)
	err   error // GUARDED_BY(mu)

	// downloaded is the length of the contiguous prefix of present. It is read
	// without a lock: a ready read below it needs none.
	//
	// INVARIANT: bytes [0, downloaded) are in file, and file is set.
	downloaded atomic.Int64

	// file is the one handle, for WriteAt and ReadAt alike. It is set once,
	// before the first byte is present, and closed by Close when refCount is 0.
	file atomic.Pointer[os.File]

	// refCount counts reads under way and fetches running. closed is set before
	// Close looks at refCount, and a read counts itself before it looks at
	// closed: either the read sees closed and turns back, or Close sees the
	// read and waits for it.
	refCount atomic.Int64
	closed   atomic.Bool
}

// waiter is a read that is asleep.
type waiter struct {
	r     byteRange
	goid  uint64
	since time.Time
}

// newTempFileStore returns a store for the version obj of what origin serves.
// It makes no request and no file until the first read.
func newTempFileStore(origin Origin, obj Object, config storeConfig) *TempFileStore {
	ctx, cancel := context.WithCancel(context.Background())
	s := &TempFileStore{
		debugID:     config.trace.nextID(),
		origin:      origin,
		obj:         obj,
		storeConfig: config,
		ctx:         ctx,
		cancel:      cancel,
		doneCh:      make(chan struct{}),
		closeCh:     make(chan struct{}),
		idleCh:      make(chan struct{}, 1),
		notifyCh:    make(chan struct{}),
		waiters:     make(map[*waiter]struct{}),
	}
	s.buffers.New = func() any { return newLentBuffer(&s.buffers) }
	if obj.Size == 0 {
		s.end(nil)
	}
	return s
}

// ID is the store's number in traces: [TempFileStore #5].
func (s *TempFileStore) ID() uint64 { return s.debugID }

// Size returns the file's length in bytes.
func (s *TempFileStore) Size() int64 { return s.obj.Size }

// ModTime is the version's Last-Modified, zero where the origin gives none.
func (s *TempFileStore) ModTime() time.Time { return s.obj.ModTime }

// Weaknesses says which promises are weaker for this file, because its origin does
// not do its part.
func (s *TempFileStore) Weaknesses() []string { return s.obj.weaknesses() }

// Complete reports whether every byte is present, so that no read will ever
// wait for the network again.
func (s *TempFileStore) Complete() bool { return s.downloaded.Load() == s.obj.Size }

// ReadAt fills p with the bytes at [off, off+len(p)), as io.ReaderAt has it: n
// is less than len(p) only with an error, which is io.EOF at the file's end.
// Any number of goroutines may call it at once.
//
// BLOCKS until the whole range arrived; wakes on its arrival, on the end of ctx
// (ctx's cause), and on the end of the store (errClosed, or what ended the
// fetch). A range that is present never waits for anything but the disk.
func (s *TempFileStore) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return s.whenPresent(ctx, off, len(p), func(r byteRange) (int, error) {
		return s.readPresent(p[:r.len()], r.off)
	})
}

// View is ReadAt in memory that the store lends: what the file has of
// [off, off+n). Until its bytes have arrived, a read holds no memory.
//
// BLOCKS as ReadAt does. At the end of the file it returns what is left, which
// may be nothing, with no error.
func (s *TempFileStore) View(ctx context.Context, off int64, n int) (v view, err error) {
	_, err = s.whenPresent(ctx, off, n, func(r byteRange) (_ int, err error) {
		v, err = s.lend(r, true)
		return len(v.data), err
	})
	if err == io.EOF {
		err = nil
	}
	return v, err
}

// ViewReady is View for a caller that must not wait: not for bytes to arrive,
// and not for the disk either. It reports false where View would have to, and
// has then done nothing. goid is the caller's. It leaves no event: a million
// reads that were ready would push out of the ring what matters.
func (s *TempFileStore) ViewReady(off int64, n int, goid uint64) (v view, ready bool) {
	start := s.trace.now()
	if v, ready = s.tryView(off, n); ready && s.trace.enabled() {
		sp := s.trace.enter(s.debugID, "ReadAt", byteRange{off, off + int64(n)}, goid)
		sp.start = start
		sp.exit(int64(len(v.data)), nil)
	}
	return v, ready
}

func (s *TempFileStore) tryView(off int64, n int) (view, bool) {
	r, err := s.clamp(off, n)
	if err == io.EOF {
		return view{}, true
	}
	if err != nil || !s.hold() {
		return view{}, false
	}
	defer s.unhold()
	if !s.isPresent(r) {
		return view{}, false
	}
	v, err := s.lend(r, false)
	return v, err == nil
}

// whenPresent calls use, which reads r, with the part of [off, off+n) that the
// file has, once all of it is in the temporary file. It returns what use does,
// and io.EOF where that is less than n.
//
// BLOCKS as ReadAt does.
func (s *TempFileStore) whenPresent(ctx context.Context, off int64, n int, use func(r byteRange) (int, error)) (got int, err error) {
	if s.trace.enabled() || off+int64(n) > s.downloaded.Load() {
		sp := s.trace.enter(s.debugID, "ReadAt", byteRange{off, off + int64(n)}, goroutineIDFrom(ctx))
		defer func() { sp.exit(int64(got), err) }()
	}
	r, err := s.clamp(off, n)
	if err != nil {
		return 0, err
	}
	if !s.hold() {
		return 0, errClosed
	}
	defer s.unhold()
	if r.end > s.downloaded.Load() {
		if err := s.waitRange(ctx, r); err != nil {
			return 0, err
		}
	}
	got, err = use(r)
	if err == nil && got < n {
		err = io.EOF
	}
	return got, err
}

// clamp returns the part of [off, off+n) that lies in the file: io.EOF where
// none does, and an error where the range makes no sense.
func (s *TempFileStore) clamp(off int64, n int) (byteRange, error) {
	switch {
	case off < 0:
		return byteRange{}, fmt.Errorf("read at offset %d: %w", off, os.ErrInvalid)
	case n == 0:
		return byteRange{off, off}, nil
	case off >= s.obj.Size:
		return byteRange{}, io.EOF
	}
	return byteRange{off, off + min(int64(n), s.obj.Size-off)}, nil
}

// waitRange is the only place where a reader sleeps.
//
// BLOCKS until r is present; wakes on notifyCh (bytes arrived), doneCh (none
// can any more), the end of ctx, and, to see whether there was any progress,
// after readTimeout. The error is nil only if r is present.
//
// REQUIRES: the caller holds a reference, and r lies within the file.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) waitRange(ctx context.Context, r byteRange) error {
	w := &waiter{r: r, goid: goroutineIDFrom(ctx), since: time.Now()}
	patience := time.NewTimer(s.readTimeout)
	defer patience.Stop()
	for {
		arrival, done, err := s.await(w)
		if arrival == nil {
			return err
		}
		select {
		case <-arrival:
		case <-done:
		case <-patience.C:
			left, err := s.timeLeft(w)
			if left <= 0 {
				s.forget(w)
				return err
			}
			patience.Reset(left)
		case <-ctx.Done():
			s.forget(w)
			return context.Cause(ctx)
		}
	}
}

// await answers w, or makes sure that its bytes are on their way and returns
// the channels whose closing says that some arrived, or that none will. Both
// are nil when there is nothing to wait for: w's range is present, or err says
// why it never will be.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) await(w *waiter) (arrival, done <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answeredLocked(w.r) {
		delete(s.waiters, w)
		if s.present.contains(w.r) {
			return nil, nil, nil
		}
		return nil, nil, s.err
	}
	s.waiters[w] = struct{}{}
	if !s.soonLocked(s.present.firstMissing(w.r.off)) {
		s.planLocked()
	}
	return s.notifyCh, s.doneCh, nil
}

// timeLeft returns how long w may still sleep without progress of the file,
// and the error to end with if that is over.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) timeLeft(w *waiter) (left time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := w.since
	if s.plan.progress.After(since) {
		since = s.plan.progress
	}
	err = fmt.Errorf("bytes %v: %w (%v)", w.r, errReadTimeout, s.readTimeout)
	if s.plan.lastErr != nil {
		err = fmt.Errorf("%w: %w", err, s.plan.lastErr)
	}
	return s.readTimeout - time.Since(since), err
}

// answeredLocked is the one predicate: whether a reader of r has its answer. A
// reader wakes by it, arrived notifies by it, and where it is false a fetch is
// on its way to r.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) answeredLocked(r byteRange) bool {
	return s.ended || s.present.contains(r)
}

// forget takes w, which gave up, off the list.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) forget(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiters, w)
}

// isPresent reports whether every byte of r is in the temporary file. Within
// the contiguous prefix it takes no lock.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) isPresent(r byteRange) bool {
	if r.end <= s.downloaded.Load() {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.present.contains(r)
}

// publishLocked says that the bytes of r are in the temporary file: it wakes
// who waits for them, and ends a file that is now complete. Waiters that none
// of this answers sleep on.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) publishLocked(r byteRange) {
	s.present.add(r)
	s.downloaded.Store(s.present.prefix())
	if s.downloaded.Load() == s.obj.Size {
		s.endLocked(nil)
	}
	s.notifyLocked()
}

// notifyLocked wakes this generation if anyone in it has its answer. Those are
// taken off the list here, so that they are not found again by the next arrival
// before they have run.
//
// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) notifyLocked() {
	woken := false
	for w := range s.waiters {
		if s.answeredLocked(w.r) {
			delete(s.waiters, w)
			woken = true
		}
	}
	if woken {
		close(s.notifyCh)
		s.notifyCh = make(chan struct{})
	}
}

// end says that no byte can arrive any more: err is why, nil if all have. The
// first call wins.
//
// LOCKS_EXCLUDED(s.mu)
func (s *TempFileStore) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(err)
}

// LOCKS_REQUIRED(s.mu)
func (s *TempFileStore) endLocked(err error) {
	if s.ended {
		return
	}
	s.ended, s.err = true, err
	s.plan.stopTimers()
	close(s.doneCh)
}

// hold counts a read in, and reports false if the store is closed. See
// refCount for why it counts first.
func (s *TempFileStore) hold() bool {
	s.refCount.Add(1)
	if s.closed.Load() {
		s.unhold()
		return false
	}
	return true
}

// unhold counts a read or a fetch out. The last one out of a closed store
// leaves a token for Close; one that finds a token there need not.
func (s *TempFileStore) unhold() {
	if s.refCount.Add(-1) > 0 || !s.closed.Load() {
		return
	}
	select {
	case s.idleCh <- struct{}{}:
	default:
	}
}

// Close refuses new reads, ends those that wait with errClosed, cancels the
// fetch, and gives the temporary file's space back. It may be called by any
// goroutine, any number of times; every call returns when all is done.
//
// BLOCKS until the last read and the fetch have left; wakes on idleCh. Reads
// leave when the disk answers, the fetch when its Origin honours the end of its
// context.
func (s *TempFileStore) Close() (err error) {
	if s.closed.Swap(true) {
		<-s.closeCh
		return nil
	}
	defer close(s.closeCh)
	sp := s.trace.enter(s.debugID, "Close", byteRange{0, s.obj.Size}, goroutineID())
	defer func() { sp.exit(s.downloaded.Load(), err) }()
	s.end(errClosed)
	s.cancel()
	for s.refCount.Load() > 0 {
		<-s.idleCh
	}
	if f := s.file.Load(); f != nil {
		return f.Close()
	}
	return nil
}
