// Tests of the second request beside one that is not answered, in synctest bubbles over
// a network in memory.

package main

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// serveLate returns an origin that answers the n-th request of a range, from 1, when
// answer returns, with the status that answer returns; 0 is never, and 1 breaks the
// connection.
func serveLate(t *testing.T, answer func(n int64) (status int)) (o *httpOrigin, asked, left *atomic.Int64) {
	asked, left = new(atomic.Int64), new(atomic.Int64)
	_, o = serveMemory(t, "http", func(w http.ResponseWriter, r *http.Request) {
		switch status := answer(asked.Add(1)); status {
		case 0:
			<-r.Context().Done()
		case 1:
			panic(http.ErrAbortHandler)
		case http.StatusPartialContent:
			if r.Context().Err() != nil {
				left.Add(1)
			}
			servePart(w, byteRange{0, 1000}, 1000)
		default:
			w.WriteHeader(status)
		}
	})
	return o, asked, left
}

// openLate opens the whole file and requires its bytes after want.
func openLate(t *testing.T, o *httpOrigin, want time.Duration) {
	t.Helper()
	start := time.Now()
	body, err := o.Open(t.Context(), request{obj: Object{Size: 1000, Ranges: true}, r: byteRange{0, 1000}})
	if err != nil {
		t.Fatalf("%v after %v", err, time.Since(start))
	}
	if took := time.Since(start); took != want {
		t.Errorf("the answer came after %v, want %v", took, want)
	}
	checkBody(t, body, byteRange{0, 1000})
}

// The slow answer is the answer, as any other would be as slow. The next one is given
// the time that it needs.
func TestASlowAnswerIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow = 35 * time.Second
		o, asked, left := serveLate(t, func(n int64) int {
			time.Sleep(slow)
			return http.StatusPartialContent
		})
		openLate(t, o, slow)
		if n := asked.Load(); n != 3 { // a second one at 15 s, and a third when that was given up at 30 s
			if n != 2 {
				t.Errorf("%d requests for a slow answer, want one and a second one beside it", n)
			}
		}
		synctest.Wait()
		before := asked.Load()
		openLate(t, o, slow)
		if n := asked.Load() - before; n != 1 || left.Load() > 2 {
			t.Errorf("%d requests for the next slow answer, want one", n)
		}
	})
}

func TestASecondRequestSavesOneThatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, asked, _ := serveLate(t, func(n int64) int {
			return []int{0, http.StatusPartialContent}[n-1]
		})
		openLate(t, o, stallLimit)
		if n := asked.Load(); n != 2 {
			t.Errorf("%d requests, want 2", n)
		}
	})
}

// Only an answer that comes late shows that a host is slow.
func TestALostRequestGivesNoPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _, _ := serveLate(t, func(n int64) int { return []int{http.StatusPartialContent, 0}[n%2] })
		for range 4 {
			openLate(t, o, stallLimit)
		}
	})
}

func TestALostSecondRequestIsFollowedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _, _ := serveLate(t, func(n int64) int {
			return []int{0, 0, http.StatusPartialContent}[n-1]
		})
		openLate(t, o, 2*stallLimit)
	})
}

// A refusal of the second request counts for nothing but the number of requests.
func TestARefusedSecondRequestHarmsNothing(t *testing.T) {
	for _, status := range []int{403, 404, 429, 503, 1} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const slow = 20 * time.Second
				o, _, _ := serveLate(t, func(n int64) int {
					if n > 1 {
						return status
					}
					time.Sleep(slow)
					return http.StatusPartialContent
				})
				openLate(t, o, slow)
			})
		})
	}
}

func TestTheSecondRequestOutlivesTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _, _ := serveLate(t, func(n int64) int {
			time.Sleep([]time.Duration{20 * time.Second, 10 * time.Second}[n-1])
			return []int{1, http.StatusPartialContent}[n-1]
		})
		openLate(t, o, 25*time.Second)
	})
}

// A host that takes one request at a time gets no second one, and one host never more
// than one.
func TestNoSecondRequestWhereItWouldBeOneTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, asked, _ := serveLate(t, func(n int64) int {
			time.Sleep(20 * time.Second)
			return http.StatusPartialContent
		})
		o.client.hosts = newHostTable(1, stallLimit)
		openLate(t, o, 20*time.Second)
		if n := asked.Load(); n != 1 {
			t.Errorf("%d requests to a host with one place", n)
		}
		asked.Store(0)
		o.client.hosts = newHostTable(100, stallLimit)
		done := make(chan struct{})
		for range 5 {
			go func() {
				openLate(t, o, 20*time.Second)
				done <- struct{}{}
			}()
		}
		for range 5 {
			<-done
		}
		if n := asked.Load(); n != 6 {
			t.Errorf("%d requests for 5 slow answers, want 6", n)
		}
	})
}

func TestCancelEndsBothRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, asked, _ := serveLate(t, func(int64) int { return 0 })
		ctx, cancel := context.WithTimeout(t.Context(), stallLimit+time.Second)
		defer cancel()
		start := time.Now()
		_, err := o.Open(ctx, request{obj: Object{Size: 1000, Ranges: true}, r: byteRange{0, 1000}})
		if took := time.Since(start); took != stallLimit+time.Second || asked.Load() != 2 {
			t.Errorf("%v after %v and %d requests", err, took, asked.Load())
		}
		synctest.Wait()
		o.client.hosts.mu.Lock()
		defer o.client.hosts.mu.Unlock()
		if n := len(o.client.hosts.places); n != 0 {
			t.Errorf("%d places are still held", n)
		}
	})
}
