// Tests of the host table in synctest bubbles: who gets a place, who makes way, and what
// the table learns of a host that takes few requests at once.

package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const testHost = "http://h.test:80"

// seeker asks for a place in a goroutine of its own.
type seeker struct {
	granted chan *place
	cancel  context.CancelFunc
}

func seek(t *testing.T, table *hostTable, host string, file any, yield func()) *seeker {
	ctx, cancel := context.WithCancel(t.Context())
	s := &seeker{make(chan *place, 1), cancel}
	go func() {
		if p, err := table.take(ctx, host, file, yield); err == nil {
			s.granted <- p
		}
	}()
	synctest.Wait()
	return s
}

// place returns the place that s was granted, nil if it still waits.
func (s *seeker) place() *place {
	synctest.Wait()
	select {
	case p := <-s.granted:
		return p
	default:
		return nil
	}
}

func mustTake(t *testing.T, table *hostTable, host string, file any) *place {
	t.Helper()
	p := seek(t, table, host, file, func() {}).place()
	if p == nil {
		t.Fatalf("no place at %s", host)
	}
	return p
}

// Whoever holds all places, of another host, or of the same one: a silent request makes
// way within two seconds, and one that delivers after its turn.
func TestAFileWithoutAPlaceGetsOne(t *testing.T) {
	for name, tt := range map[string]struct {
		host    string
		brings  int // bytes a second
		longest time.Duration
	}{
		"silent, another host": {"http://other.test:80", 0, 2 * time.Second},
		"silent, same host":    {testHost, 0, 2 * time.Second},
		"a drip":               {testHost, 10, turnTime + 2*time.Second},
		"busy":                 {testHost, 1 << 20, turnTime + 2*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const places = 6
				table := newHostTable(places, stallLimit)
				stop := make(chan struct{})
				for i := range places {
					file := i / 2
					var p *place
					p = seek(t, table, testHost, file, func() { go p.done(false) }).place()
					if tt.brings > 0 {
						p.opened(0)
						go func() {
							for tick := time.Tick(100 * time.Millisecond); ; {
								select {
								case <-tick:
									p.arrived(tt.brings / 10)
								case <-stop:
									return
								}
							}
						}()
					}
				}
				start := time.Now()
				p, err := table.take(t.Context(), tt.host, "new", func() {})
				if took := time.Since(start); err != nil || took > tt.longest {
					t.Errorf("a place after %v, %v; want one within %v", took, err, tt.longest)
				}
				close(stop)
				p.done(true)
			})
		})
	}
}

// A host that takes one request at a time needs 20 s for each answer. Nobody's request is
// ended again and again for another's.
func TestSlowAnswersOfACrowdedHostCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow = 20 * time.Second
		table := newHostTable(1, stallLimit)
		start, done := time.Now(), make(chan struct{})
		for file := range 5 {
			go func() {
				defer func() { done <- struct{}{} }()
				for {
					ctx, cancel := context.WithCancel(t.Context())
					p, err := table.take(ctx, testHost, file, cancel)
					if err != nil {
						return
					}
					answered := sleepUntil(ctx, time.Now().Add(slow)) == nil
					if answered {
						p.opened(slow)
					}
					p.done(true)
					cancel()
					if answered {
						return
					}
				}
			}()
		}
		for range 5 {
			<-done
		}
		if took := time.Since(start); took > 4*5*slow {
			t.Errorf("5 answers of %v took %v", slow, took)
		}
	})
}

func TestAFileWithAPlaceWaitsForOneWithout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newHostTable(2, stallLimit)
		first, second := mustTake(t, table, testHost, "a"), mustTake(t, table, testHost, "b")
		more := seek(t, table, testHost, "a", func() {})
		none := seek(t, table, testHost, "c", func() {})
		second.done(true)
		p := none.place()
		if p == nil || more.place() != nil {
			t.Fatal("a file that has a place got another one before a file without any")
		}
		first.done(true)
		if p := more.place(); p == nil {
			t.Error("the free place went to nobody")
		}
	})
}

func TestWhoGivesUpTakesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newHostTable(1, stallLimit)
		p := mustTake(t, table, testHost, "a")
		gone := seek(t, table, testHost, "b", func() {})
		gone.cancel()
		p.done(true)
		synctest.Wait()
		mustTake(t, table, testHost, "c")
	})
}

var errBusy = statusError{code: 503}

// A host that refuses a request beside others gets no more at once than it took, and is
// tried with one more from time to time.
func TestAHostIsAskedForNoMoreThanItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 3
		table := newHostTable(100, stallLimit)
		var underWay, refused atomic.Int64
		for range 8 {
			go func() {
				for time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) < 5*time.Minute {
					p, err := table.take(t.Context(), testHost, new(byte), func() {})
					if err != nil {
						return
					}
					if underWay.Add(1) > takes {
						refused.Add(1)
						if err := p.refused(errBusy); !errors.Is(err, errCrowded) {
							t.Errorf("a refusal beside others: %v, want errCrowded", err)
						}
						underWay.Add(-1)
						p.done(true)
						time.Sleep(100 * time.Millisecond)
						continue
					}
					time.Sleep(100 * time.Millisecond)
					p.opened(100 * time.Millisecond)
					for range 10 {
						time.Sleep(100 * time.Millisecond)
						p.arrived(1 << 20)
					}
					underWay.Add(-1)
					p.done(true)
				}
			}()
		}
		time.Sleep(6 * time.Minute)
		// 5 at first, then one at each trial, whose gap doubles: 5, 10, 20, 40, 80, 160 s.
		if n := refused.Load(); n > 14 || n == 0 {
			t.Errorf("%d requests were refused in 5 minutes, want 14 at most, and some", n)
		}
		table.mu.Lock()
		defer table.mu.Unlock()
		if h := table.hosts[testHost]; h.limit != takes {
			t.Errorf("the table believes in %d requests at once, want %d", h.limit, takes)
		}
	})
}

func TestARefusalOfTheOnlyRequestIsTheFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustTake(t, newHostTable(9, stallLimit), testHost, "a")
		if err := p.refused(errBusy); err != errBusy {
			t.Errorf("got %v, want the refusal itself", err)
		}
	})
}

// Some hosts count a connection for a while after it was closed.
func TestARefusalSoonAfterALeaveIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newHostTable(9, stallLimit)
		mustTake(t, table, testHost, "a").done(false)
		forbidden := statusError{code: 403}
		for n := range leavesMax + 1 {
			p := mustTake(t, table, testHost, "a")
			retry, _ := retryAdvice(p.refused(forbidden))
			if want := n < leavesMax; retry != want {
				t.Errorf("refusal %d: asked again: %v, want %v", n, retry, want)
			}
			p.done(true)
		}
	})
}

// A host that starts again refuses all connections, and gets as many as before.
func TestAHostThatIsGoneIsNotALimitedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newHostTable(9, stallLimit)
		gone := networkError{syscall.ECONNREFUSED}
		for range 3 {
			a, b := mustTake(t, table, testHost, "a"), mustTake(t, table, testHost, "a")
			if errors.Is(a.refused(gone), errCrowded) || errors.Is(b.refused(gone), errCrowded) {
				t.Error("a host that is gone counts as crowded")
			}
			a.done(true)
			b.done(true)
		}
		delivers := mustTake(t, table, testHost, "a")
		delivers.opened(0)
		delivers.arrived(1)
		if err := mustTake(t, table, testHost, "a").refused(gone); !errors.Is(err, errCrowded) {
			t.Errorf("a refusal while another request delivers: %v", err)
		}
	})
}

func TestOneRefusalBesideOthersProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newHostTable(9, stallLimit)
		mustTake(t, table, testHost, "a")
		second := mustTake(t, table, testHost, "b")
		second.refused(errBusy)
		second.done(true)
		mustTake(t, table, testHost, "b").opened(0)
		mustTake(t, table, testHost, "c").refused(errBusy)
		mustTake(t, table, testHost, "d")
	})
}

// A host that ends the older connections for newer ones takes fewer, too.
func TestAHostThatBreaksOlderConnectionsGetsFewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newHostTable(9, stallLimit)
		broken := networkError{errShortBody}
		for n := range killsMax {
			old, young := mustTake(t, table, testHost, "a"), mustTake(t, table, testHost, "a")
			err := old.broke(broken)
			if crowded := errors.Is(err, errCrowded); crowded != (n == killsMax-1) {
				t.Errorf("break %d: %v", n, err)
			}
			old.done(true)
			young.done(true)
		}
		mustTake(t, table, testHost, "a")
		if seek(t, table, testHost, "a", func() {}).place() != nil {
			t.Error("a second request goes out to a host that breaks the first for it")
		}
	})
}

func TestPatienceFollowsTheAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustTake(t, newHostTable(9, stallLimit), testHost, "a")
		for _, step := range []struct{ wait, want time.Duration }{
			{time.Second, stallLimit}, {35 * time.Second, 70 * time.Second}, {20 * time.Second, 70 * time.Second},
			{time.Second, 52500 * time.Millisecond}, {3 * time.Minute, lateMax}, {0, 3 * time.Minute},
		} {
			p.opened(step.wait)
			if got := p.host.patience; got != step.want {
				t.Errorf("after an answer in %v: patience %v, want %v", step.wait, got, step.want)
			}
		}
	})
}

// Thousands of files, each with a host of its own, wait for a place. If each of them looked
// at all the others, or at all hosts, this took minutes.
func TestThousandsWaitForAPlaceAtLittleCost(t *testing.T) {
	const files, places, most = 5000, 10, 10 * time.Second // of the processors' time
	synctest.Test(t, func(t *testing.T) {
		began := processorTime(t)
		table := newHostTable(places, time.Second)
		var asked atomic.Int64
		waiting := make([]*seeker, files)
		for i := range waiting {
			waiting[i] = seek(t, table, fmt.Sprint(i), i, func() { asked.Add(1) })
		}
		for range 200 {
			time.Sleep(lookInterval)
			if took := processorTime(t) - began; took > most {
				t.Fatalf("%v, want at most %v for all", took, most)
			}
		}
		if asked.Load() == 0 {
			t.Error("nobody was asked to make way")
		}
		for i, s := range waiting {
			if p := s.place(); (p != nil) != (i < places) {
				t.Errorf("place of file %d of %d: got %v, want that the first %d have one", i, files, p, places)
			}
			s.cancel()
		}
	})
}
