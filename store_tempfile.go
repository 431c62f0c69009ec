// store_tempfile.go is TempFileStore: one version of one remote file, which arrives in a temporary
// file while readers read it. It decides which bytes are present, who waits, and how each wait
// ends. store_plan.go decides what to fetch, store_fetch.go fetches it, store_disk.go makes the
// system calls. The store knows its Origin only through that interface and knows nothing of FUSE.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errClosed = errors.New("the file's store is closed") // ends every read of a closed store
	// errReadTimeout ends a read after readTimeout without any byte of its file.
	errReadTimeout = errors.New("no byte of the file arrived for too long")
	// errReplaced ends a read of a store whose place another store took: the read goes on there (Replacement).
	errReplaced = errors.New("another store took the place of this one")
)

// storeFate is decided once: a byte of the store was delivered, or next took its place.
type storeFate struct{ next *TempFileStore }

var fateDelivered = new(storeFate)

// storeConfig is what all stores of a mount share.
type storeConfig struct {
	room        *roomTable
	trace       *tracer
	connections int           // the most requests in flight for one file
	linger      time.Duration // how long fetches go on after the last handle closed
	readTimeout time.Duration // how long a read waits without any byte of its file
	follow      bool          // a changed file has a next version before its readers learn of the change
	total       *storeTotals
	pace        *pacer // nil: no limit
}

// storeTotals counts what all stores of a mount did, those that are gone too.
type storeTotals struct{ received, retries atomic.Int64 }

// TempFileStore fetches one version of a remote file, each byte once, into an unlinked temporary file or one in
// the cache, and serves any number of readers meanwhile. The first read starts the first fetch.
//
// A waiter wakes when it has its answer (its notifyCh), when no byte of the file arrived for readTimeout, and when
// its context ended. It evaluates answeredLocked and joins waiters under one hold of mu. Code that makes
// answeredLocked true for a waiter holds mu and closes the waiter's notifyCh before it unlocks. So no arrival can
// fall between "not yet" and "asleep". One who waits for no bytes in particular wakes by doneCh.
//
// Lock order: mu is the only lock. Nobody holds it across I/O, a wait or a log line.
type TempFileStore struct {
	// Write once, before any goroutine starts.
	debugID uint64
	origin  Origin
	obj     Object // the version
	*storeConfig
	ctx    context.Context // of the fetches; Close ends it
	cancel context.CancelFunc
	idleCh chan struct{} // holds a token once refCount fell to 0 in a closed store
	// OnChange is told what the origin has in the place of this version, or why it does not say, before
	// the readers of missing bytes are. It may replace the store. It is set before the first read.
	OnChange func(s *TempFileStore, now Object, err error)

	entry string        // the path, without suffix, of its files in the cache, "" for none; set before the first read
	turn  chan struct{} // holds a token while somebody makes, saves or clears the file, and blocks on the disk

	// Read write.
	mu sync.Mutex
	// present are the bytes in the temporary file. INVARIANT: it grows only after the bytes were written. In a store
	// that evicts, bytes leave it before they leave the file, and none that a read has pinned.
	present rangeSet // GUARDED_BY(mu)
	// waiters are the reads that sleep. INVARIANT: answeredLocked is false for each of them.
	waiters waiterTree // GUARDED_BY(mu)
	// doneCh is closed, once, when no byte can arrive any more: the store is complete,
	// failed or closed. The first read after another open makes a new one.
	doneCh chan struct{} // GUARDED_BY(mu)
	plan   fetchPlan     // GUARDED_BY(mu); what is being fetched, and what will be fetched when
	disk   diskState     // GUARDED_BY(mu); what the store has on the disk, and what of it may go
	// ended says that doneCh is closed; err says why, nil for a complete file. reopened
	// says that a program opened the file since: the next read tries again.
	ended    bool  // GUARDED_BY(mu)
	err      error // GUARDED_BY(mu)
	reopened bool  // GUARDED_BY(mu)
	// fate is nil as long as another version may take this one's place: nobody was
	// given a byte. deliver and Replace decide it, and one of them wins.
	fate atomic.Pointer[storeFate]
	// downloaded is the length in bytes of the contiguous start of present. Readers load it without mu: a read below
	// it needs no lock. INVARIANT: bytes [0, downloaded) are in file, or in the cache if file is not set. It only
	// grows, until the store evicts: then it is 0.
	downloaded atomic.Int64
	// evicts is set once, before anything leaves present. What was read before, without a
	// pin, is right if evicts is not set after the read.
	evicts atomic.Bool
	// file is the one descriptor for reads and writes. The first fetch sets it, or the
	// first read of bytes that the cache had; Close closes it when refCount is 0.
	file atomic.Pointer[os.File]
	// refCount counts reads, fetches and due timers under way. A read counts itself
	// before it looks at closed, and Close sets closed before it looks at refCount:
	// either the read sees closed and turns back, or Close sees the read and waits.
	refCount atomic.Int64
	closed   atomic.Bool
	closing  sync.Once
	// stale says that the kernel may have pages of a store that this one took the place of, without
	// a proof that the bytes are the same.
	stale   atomic.Bool
	asked   atomic.Int64 // counts the bytes that reads asked for
	paced   int64        // the number of its latest turn, which only the pacer's next reads and writes
	owns    atomic.Bool  // the store has its entry, whose index may claim its bytes
	unsaved int64        // GUARDED_BY(mu); bytes that arrived since the last save
	saver   *time.Timer  // GUARDED_BY(mu); saves; nil if no save is due or under way
}

// newTempFileStore returns a store for version obj of what origin serves. It makes
// no request and no file before the first read.
func newTempFileStore(origin Origin, obj Object, config *storeConfig) *TempFileStore {
	ctx, cancel := context.WithCancel(context.Background())
	s := &TempFileStore{
		debugID:     config.trace.ids.Add(1),
		origin:      origin,
		obj:         obj,
		storeConfig: config,
		ctx:         ctx,
		cancel:      cancel,
		doneCh:      make(chan struct{}),
		idleCh:      make(chan struct{}, 1),
		turn:        make(chan struct{}, 1),
		OnChange:    func(*TempFileStore, Object, error) {},
	}
	s.plan.inOrder = !obj.Ranges
	s.plan.fits = obj.Size
	if obj.Size == 0 {
		s.end(nil)
	}
	return s
}

// Object returns the version that the store serves.
func (s *TempFileStore) Object() Object { return s.obj }

// Complete reports whether every byte is present: no read of this store ever waits for the network again.
func (s *TempFileStore) Complete() bool { return s.downloaded.Load() == s.obj.Size }

// ReadAt fills p with the bytes [off, off+len(p)). As for every io.ReaderAt, n is less than len(p) only
// with an error, which is io.EOF at the end of the file. Any number of goroutines may call it at once.
// BLOCKS until the whole range is present; wakes on its arrival, on the end of ctx (the error is ctx's cause),
// on the end of the store (errClosed, errReplaced, or what ended the fetch), and after readTimeout without any
// byte (errReadTimeout). A read of a present range waits for nothing but the disk.
func (s *TempFileStore) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return s.whenPresent(ctx, off, len(p), 0, func(r byteRange) (int, error) {
		return s.readPresent(p[:r.len()], r.off)
	})
}

// View returns what the file has of [off, off+n), in memory that the store lends. A waiting View holds no memory. At
// the end of the file it returns fewer bytes, or none, and no error. goid is the caller's. BLOCKS as ReadAt does.
func (s *TempFileStore) View(ctx context.Context, off int64, n int, goid uint64) (v view, err error) {
	_, err = s.whenPresent(ctx, off, n, goid, func(r byteRange) (_ int, err error) {
		v.drop()
		v, err = s.lend(r, true)
		return len(v.data), err
	})
	if err == io.EOF {
		err = nil
	}
	return v, err
}

// ViewReady is View for a caller that must not wait, neither for bytes nor for the disk. It reports
// false where View would wait, or fail. goid is the caller's. With --trace it records an ENTER and an
// EXIT. Without, it records nothing: a million ready reads would push everything else out of the ring.
func (s *TempFileStore) ViewReady(off int64, n int, goid uint64) (v view, ready bool) {
	var start time.Time
	if s.trace.on {
		start = time.Now()
	}
	v, ready = s.tryView(off, n)
	s.asked.Add(int64(len(v.data)))
	if ready && s.trace.on {
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
	var pinned *waiter
	if r.end > s.downloaded.Load() { // else no lock and no pin: see evicts
		s.mu.Lock()
		if s.present.contains(r) {
			pinned = &waiter{r: r}
			s.pinLocked(pinned)
			s.noteReadLocked(r)
		}
		s.mu.Unlock()
		if pinned == nil {
			return view{}, false
		}
		defer s.unpin(pinned)
	}
	if s.file.Load() == nil && !r.empty() || !s.deliver() {
		return view{}, false
	}
	v, err := s.lend(r, false)
	if err == nil && pinned == nil && s.evicts.Load() {
		v.drop()
		return view{}, false
	}
	return v, err == nil
}

// whenPresent waits until the part of [off, off+n) that lies in the file is present, then calls use with it, and again
// if bytes left meanwhile. It returns what use returns, with io.EOF added where that is less than n bytes.
// BLOCKS as ReadAt does.
func (s *TempFileStore) whenPresent(ctx context.Context, off int64, n int, goid uint64,
	use func(r byteRange) (int, error)) (got int, err error) {
	if s.trace.on || off+int64(n) > s.downloaded.Load() {
		if goid == 0 {
			goid = goroutineID()
		}
		sp := s.trace.enter(s.debugID, "ReadAt", byteRange{off, off + int64(n)}, goid)
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
	s.asked.Add(r.len())
	for wait := r.end > s.downloaded.Load(); ; wait = true {
		var pinned *waiter
		if wait {
			if pinned, err = s.waitRange(ctx, r); err != nil {
				return 0, err
			}
		}
		switch {
		case !s.deliver():
			err = errReplaced
		case s.file.Load() == nil && !r.empty(): // the cache has it
			_, err = s.tempFile(ctx)
		}
		if err == nil {
			got, err = use(r)
		}
		s.unpin(pinned)
		if wait || !s.evicts.Load() {
			break
		}
	}
	if err == nil && got < n {
		err = io.EOF
	}
	return got, err
}

// deliver decides that the file keeps this version, because somebody gets a byte of it.
// It reports false if another store took this one's place before.
func (s *TempFileStore) deliver() bool {
	if s.fate.Load() == nil {
		s.fate.CompareAndSwap(nil, fateDelivered)
	}
	return s.fate.Load() == fateDelivered
}

// clamp returns the part of [off, off+n) that lies in the file. The error is io.EOF
// where no part does, and wraps os.ErrInvalid for a negative offset.
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

// waitRange is the only place where a reader sleeps. It returns no error only when r is present, and pinned until the
// caller unpins it. BLOCKS until r is present; wakes on notifyCh (r is present, or never will be), the end of ctx,
// and readTimeout. REQUIRES: the caller holds a reference (hold), and r lies within the file.
func (s *TempFileStore) waitRange(ctx context.Context, r byteRange) (*waiter, error) {
	w := newWaiter(r)
	if s.await(w) {
		return w, w.err
	}
	patience := time.NewTimer(s.readTimeout)
	defer patience.Stop()
	for {
		select {
		case <-w.notifyCh:
			return w, w.err
		case <-patience.C:
			left, err := s.timeLeft(w)
			if left <= 0 {
				s.unpin(w)
				return nil, err
			}
			patience.Reset(left)
		case <-ctx.Done():
			s.unpin(w)
			return nil, context.Cause(ctx)
		}
	}
}

// await reports whether w has its answer at once. Else it registers w, and makes sure that the plan will
// bring its bytes.
func (s *TempFileStore) await(w *waiter) (answered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tryAgainLocked()
	if s.answeredLocked(w.r) {
		s.answerLocked(w)
		return true
	}
	s.waiters.add(w)
	if !s.plan.crowded && !s.soonLocked(s.present.firstMissing(w.r.off)) {
		s.planLocked()
	}
	s.room.kick() // a fetch may have had to wait for somebody who wants its bytes
	return false
}

// answeredLocked is the one predicate of the store: whether a reader of r has its answer. Waiters
// are woken by it, and while it is false the plan brings r.
func (s *TempFileStore) answeredLocked(r byteRange) bool {
	return s.ended || s.present.contains(r) || r.end > s.plan.fits
}

// answerLocked wakes w with its answer: w.err, or its bytes, of which none may leave before it has run. It
// takes w off the waiters at once, so that nothing answers it again before it has run.
// REQUIRES: answeredLocked(w.r), or w.err is set
func (s *TempFileStore) answerLocked(w *waiter) {
	switch {
	case w.err != nil:
	case s.present.contains(w.r):
		s.pinLocked(w)
		s.noteReadLocked(w.r)
	case s.ended:
		w.err = s.err
	default:
		w.err = s.plan.fitsErr
	}
	s.waiters.remove(w)
	close(w.notifyCh)
}

// timeLeft returns how much longer w may sleep if no byte of the file arrives, and
// the error that ends its read when that time is over.
func (s *TempFileStore) timeLeft(w *waiter) (left time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := w.since
	if s.plan.progress.After(since) {
		since = s.plan.progress
	}
	err = fmt.Errorf("%w (%v); the read waits for %s", errReadTimeout, s.readTimeout, s.explainLocked(w.r))
	if s.plan.lastErr != nil {
		err = fmt.Errorf("%w: %w", err, s.plan.lastErr)
	}
	return s.readTimeout - time.Since(since), err
}

// publishLocked records that the bytes of r are in the temporary file, wakes the
// readers that wait for them, and ends the store when all that fits is present.
func (s *TempFileStore) publishLocked(r byteRange) {
	s.present.add(r)
	s.touchLocked(r)
	whole := byteRange{s.present.firstOf(r.off), s.present.firstMissing(r.off)}
	for _, w := range s.waiters.inside(whole) {
		s.answerLocked(w)
	}
	if !s.evicts.Load() {
		s.downloaded.Store(s.present.firstMissing(0))
		if s.downloaded.Load() == s.plan.fits {
			s.endLocked(s.plan.fitsErr)
		}
	}
}

func (s *TempFileStore) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(err)
}

// endLocked records that no byte can arrive any more, and why: nil means that all
// have. It wakes every waiter. The first call wins.
func (s *TempFileStore) endLocked(err error) {
	if s.ended {
		return
	}
	s.ended, s.err, s.reopened, s.plan.asking = true, err, false, false
	s.plan.stopTimers()
	close(s.doneCh)
	s.auditLocked()
}

// auditLocked wakes the waiters that have their answer, and returns the ranges that they wait for.
func (s *TempFileStore) auditLocked() (answered []byteRange) {
	for _, w := range slices.Collect(s.waiters.all()) {
		if s.answeredLocked(w.r) {
			s.answerLocked(w)
			answered = append(answered, w.r)
		}
	}
	return answered
}

// hold counts a read or a due timer in, or reports false if the store is closed. See
// refCount for why it counts first and looks then.
func (s *TempFileStore) hold() bool {
	s.refCount.Add(1)
	if s.closed.Load() {
		s.unhold()
		return false
	}
	return true
}

// unhold counts a read, a fetch or a due timer out. The last one to leave a closed
// store puts a token into idleCh for Close, unless one is there.
func (s *TempFileStore) unhold() {
	if s.refCount.Add(-1) > 0 || !s.closed.Load() {
		return
	}
	select {
	case s.idleCh <- struct{}{}:
	default:
	}
}

// Close refuses new reads, ends waiting reads with errClosed, cancels the fetches, and frees the temporary
// file's space. Any goroutine may call it, any number of times; each call returns when all of that is done.
// BLOCKS until the last read and the last fetch have left; wakes on idleCh. Reads leave when the
// disk answers, fetches when their Origin sees that its context ended.
func (s *TempFileStore) Close() (err error) {
	s.closing.Do(func() { err = s.close() })
	return err
}

// BLOCKS as Close does.
func (s *TempFileStore) close() (err error) {
	s.closed.Store(true)
	sp := s.trace.enter(s.debugID, "Close", byteRange{0, s.obj.Size}, goroutineID())
	defer func() { sp.exit(s.downloaded.Load(), err) }()
	s.end(errClosed)
	s.cancel()
	for s.refCount.Load() > 0 {
		<-s.idleCh
	}
	if s.owns.Load() {
		_ = s.save() // the log has its error
	}
	defer s.room.leave(s)
	if f := s.file.Load(); f != nil {
		defer s.room.open.Add(-1)
		return f.Close()
	}
	return nil
}
