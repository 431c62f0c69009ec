// Tests of how many fetches bring a file that is read in order.

package main

import (
	"fmt"
	"testing"
	"time"
)

// transmit lets o send for the given time, in pieces of at least piece bytes: at most perRequest
// bytes a second for each request, and at most total in all. A reader reads in order, as
// much as a piece at a time.
func transmit(t *testing.T, s *TempFileStore, o *scriptedOrigin, perRequest, total, piece int64, took time.Duration) {
	t.Helper()
	var rd *reading
	var off int64
	sent := make(map[*scriptedRequest]time.Time) // when it may send again
	for end := time.Now().Add(took); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if rd == nil || rd.returned() {
			rd = startRead(t.Context(), s, byteRange{off, off + piece})
			off += piece
		}
		var running []*scriptedRequest
		for _, req := range o.all() {
			if req.running() {
				running = append(running, req)
			}
		}
		for _, req := range running {
			rate := min(perRequest, total/int64(len(running)))
			if !time.Now().Before(sent[req]) && req.running() {
				n := max(piece, rate/1000)
				req.send(min(n, req.left.len()))
				sent[req] = time.Now().Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
			}
		}
	}
}

// Whether several requests are faster does not depend on the size of reads and pieces:
// often no reader sleeps after an arrival.
func TestSlowConnectionGetsCompanyThatHelps(t *testing.T) {
	for _, piece := range []int64{8 << 10, 64 << 10, 128 << 10} {
		for name, limits := range map[string]struct {
			perRequest, total int64
			want              int
		}{
			"each request is limited": {2 * mib, 1 << 40, 4},
			"the whole is limited":    {1 << 40, 4 * mib, 1},
			"nothing is slow":         {64 * mib, 1 << 40, 1},
		} {
			t.Run(fmt.Sprint(name, ", pieces of ", piece), func(t *testing.T) {
				inBubble(t, ranged(512*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
					transmit(t, s, o, limits.perRequest, limits.total, piece, 1500*time.Millisecond)
					o.mustHaveInFlight(t, limits.want)
				})
			})
		}
	}
}

// A reader in order never falls far behind what the path can bring, though several
// requests are tried on the way.
func TestTrialOfCompanyCostsAReaderLittle(t *testing.T) {
	const rate = 4 * mib
	inBubble(t, ranged(512*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		transmit(t, s, o, 1<<40, rate, 64<<10, 4*time.Second)
		if got := s.downloaded.Load(); got < 15*rate/4 {
			t.Errorf("bytes in order after 4 s: %d, want almost %d", got, 4*rate)
		}
	})
}

// The origin refuses a second request beside the first.
func TestRefusedCompanyIsNotTriedAgain(t *testing.T) {
	inBubble(t, ranged(512*mib), func(t *testing.T, s *TempFileStore, o *scriptedOrigin) {
		transmit(t, s, o, 2*mib, 1<<40, 64<<10, 500*time.Millisecond)
		o.mustHaveInFlight(t, 2)
		o.request(t, 1).end(statusError{code: 503})
		time.Sleep(backoffMax)
		transmit(t, s, o, 2*mib, 1<<40, 64<<10, 2*time.Second)
		o.mustHaveInFlight(t, 1)
	})
}
