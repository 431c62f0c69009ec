// Tests of a store whose origin has another version, and of one store in the place of
// another.

package main

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// named is ranged with an ETag.
func named(size int64) Object { return Object{Size: size, Ranges: true, ETag: `"a"`} }

// Only where the origin names the version can a store tell that it is back.
func TestChangedVersionIsTriedAgainAtTheNextOpen(t *testing.T) {
	for _, obj := range []Object{named(1000), ranged(1000)} {
		inBubble(t, obj, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
			if obj.named() {
				o.next.Size++
			}
			rd := startRead(t.Context(), s, byteRange{0, 1000})
			o.request(t, 0).send(10)
			o.request(t, 0).end(errChanged)
			rd.mustReturn(t, errChanged)
			startRead(t.Context(), s, byteRange{0, 1000}).mustReturn(t, errChanged)
			o.mustHave(t, 1)
			time.Sleep(idleAfter)
			s.AddHandle()
			if state := s.Snapshot().State; state != "changed" {
				t.Errorf("state after another open: %q, want it to show the change", state)
			}
			again := startRead(t.Context(), s, byteRange{0, 1000})
			if !obj.named() {
				again.mustReturn(t, errChanged)
				o.mustHave(t, 1)
				return
			}
			o.mustAsk(t, 1, byteRange{10, 1000}).send(990)
			again.mustReturn(t, nil)
		})
	}
}

// Readers of bytes that a reader of the present bytes has made the only version learn at
// once that the rest will not come. Others wait for what the origin says.
func TestReadersOfAChangedFileWaitOnlyForAReplacement(t *testing.T) {
	for _, follow := range []bool{false, true} {
		for _, read := range []bool{false, true} {
			inBubble(t, named(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
				o.statErr = networkError{errStalled}
				s.follow = follow
				var told atomic.Bool
				s.OnChange = func(*TempFileStore, Object, error) { told.Store(true) }
				rd := startRead(t.Context(), s, byteRange{0, 1000})
				o.request(t, 0).send(10)
				if read {
					startRead(t.Context(), s, byteRange{0, 10}).mustReturn(t, nil)
				}
				o.request(t, 0).end(errChanged)
				if read && !follow {
					rd.mustReturn(t, errChanged)
				} else {
					rd.mustWait(t)
				}
				o.mu.Lock()
				o.statErr = nil
				o.next.Size++
				o.mu.Unlock()
				time.Sleep(2 * backoffMax)
				synctest.Wait()
				rd.mustReturn(t, errChanged)
				if !told.Load() {
					t.Error("nobody was told what the origin has")
				}
			})
		}
	}
}

// A program that opens and reads a changed file in a loop, while the origin does not say
// which version it has, costs the origin little.
func TestReadsOfAChangedFileInALoopAskTheOriginRarely(t *testing.T) {
	inBubble(t, named(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		o.statErr = networkError{errStalled}
		rd := startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 0).send(10)
		rd.mustReturn(t, nil)
		answered := 0
		for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
			s.AddHandle()
			rd := startRead(t.Context(), s, byteRange{0, 1000})
			for all := o.all(); answered < len(all); answered++ {
				all[answered].end(errChanged)
			}
			rd.mustReturn(t, errChanged)
			s.DropHandle()
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.stats > 20 || len(o.requests) > 12 {
			t.Errorf("in 10 s the origin got %d requests and was asked %d times for its version", len(o.requests), o.stats)
		}
	})
}

func TestReplacementGetsTheHandlesAndTheReaders(t *testing.T) {
	inBubble(t, named(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		next := s.NewVersion(named(1000))
		defer next.Close()
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		if !s.Replace(next) {
			t.Fatal("a store of which nobody has a byte was not replaced")
		}
		synctest.Wait()
		rd.mustReturn(t, errReplaced)
		s.AddHandle()
		if next.Snapshot().Handles != 2 || s.Replacement() != next {
			t.Errorf("handles of the replacement: %d, want 2", next.Snapshot().Handles)
		}
		s.DropHandle()
		s.DropHandle()
		if after, _ := next.Forget(); after == nil || next.Snapshot().State != "failed" {
			t.Errorf("the replacement without handles keeps its space")
		}
	})
}

func TestStoreThatDeliveredIsNotReplaced(t *testing.T) {
	inBubble(t, named(1000), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		rd := startRead(t.Context(), s, byteRange{0, 10})
		o.request(t, 0).send(10)
		rd.mustReturn(t, nil)
		if s.Replace(s.NewVersion(named(1000))) {
			t.Error("a reader has bytes of a store that was replaced")
		}
		if next, _ := s.Forget(); next != nil {
			t.Error("a store with a handle gave its space back")
		}
		s.DropHandle()
		next, _ := s.Forget()
		if next == nil {
			t.Fatal("a store without handles keeps its space")
		}
		defer next.Close()
		if next.Replace(next.NewVersion(named(1000))) {
			t.Error("the file may become another version after its space was given back")
		}
	})
}

// Fetch needs no reader and no handle.
func TestFetchDownloadsAllAndStepsAsideWhenItStalls(t *testing.T) {
	inBubble(t, ranged(64*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		s.DropHandle()
		s.plan.reach = 0
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			s.Fetch(t.Context())
		}()
		o.mustAsk(t, 0, byteRange{0, 64 * mib})
		time.Sleep(stalledAfter + 2*idleAfter)
		<-returned
		time.Sleep(2 * s.linger)
		o.request(t, 0).send(64 * mib)
		if !s.Complete() {
			t.Error("the download paused, though somebody asked for the whole file")
		}
	})
}

// A store that knows only the size asks for the version when somebody reads, as often as
// it takes, and fetches nothing before.
func TestAssumedSizeIsAskedForAtTheFirstRead(t *testing.T) {
	obj := Object{Size: 1000, Ranges: true, assumed: true}
	for _, now := range []Object{named(1000), {Size: 1000, page: true}} {
		inBubble(t, obj, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
			o.next, o.statErr = now, networkError{errStalled}
			time.Sleep(time.Hour)
			if o.stats != 0 || len(obj.weaknesses()) != 0 {
				t.Errorf("asked %d times before the first read; weaknesses %q", o.stats, obj.weaknesses())
			}
			first, second := startRead(t.Context(), s, byteRange{0, 10}), startRead(t.Context(), s, byteRange{900, 1000})
			time.Sleep(time.Minute)
			first.mustWait(t)
			if status := s.Snapshot(); status.LastError == "" || status.Waiters != 2 || status.Error != "" {
				t.Errorf("while the origin does not answer: %+v", status)
			}
			o.mu.Lock()
			o.statErr = nil
			o.mu.Unlock()
			time.Sleep(2 * backoffMax)
			first.mustReturn(t, errReplaced)
			second.mustReturn(t, errReplaced)
			o.mustHave(t, 0)
			next := s.Replacement()
			defer next.Close()
			if next.Object() != now || next.Snapshot().Handles != 1 {
				t.Errorf("the next version is %v with %d handles, want %v with 1", next.Object(), next.Snapshot().Handles, now)
			}
		})
	}
}

func TestAssumedSizeThatIsWrongIsAChange(t *testing.T) {
	inBubble(t, Object{Size: 1000, Ranges: true, assumed: true}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		o.next = named(1001)
		var told Object
		s.OnChange = func(_ *TempFileStore, now Object, _ error) { told = now }
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		rd.mustReturn(t, errChanged)
		if told != named(1001) || s.Snapshot().State != "changed" || s.Replacement() != nil {
			t.Errorf("told of %v, state %q; want 1001 bytes and changed", told, s.Snapshot().State)
		}
		o.mustHave(t, 0)
	})
	// What cannot be served is as it is for any file, and tried again at the next open.
	inBubble(t, Object{Size: 1000, Ranges: true, assumed: true}, func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		o.statErr = statusError{code: 404}
		startRead(t.Context(), s, byteRange{0, 1000}).mustReturn(t, o.statErr)
		o.statErr, o.next = nil, named(1000)
		s.AddHandle()
		startRead(t.Context(), s, byteRange{0, 1000}).mustReturn(t, errReplaced)
		s.Replacement().Close()
	})
}
