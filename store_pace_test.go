// Tests of --limit-rate, in fake time: how fast all downloads are together, and who gets
// what of it.

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// throttled runs test in a bubble, with stores of so many files of 512 MiB, whose origins
// send all at once, below one limit.
func throttled(t *testing.T, limit, files int, test func(t *testing.T, stores []*TempFileStore, origins []*scriptedOrigin)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		config := testConfig(dir)
		config.pace = newPacer(limit)
		var stores []*TempFileStore
		var origins []*scriptedOrigin
		for range files {
			o := newScriptedOrigin(ranged(512 * mib))
			o.atOnce = o.obj.Size
			s := newTempFileStore(o, o.obj, config)
			s.AddHandle()
			s.plan.reach = o.obj.Size
			defer s.Close()
			stores, origins = append(stores, s), append(origins, o)
		}
		test(t, stores, origins)
	})
}

// readOn reads s in order from off on, as fast as it comes, until ctx ends.
func readOn(ctx context.Context, s *TempFileStore, off int64) {
	for p := make([]byte, 128<<10); ; off += int64(len(p)) {
		if _, err := s.ReadAt(ctx, p, off); err != nil {
			return
		}
	}
}

// requireShare fails unless s received share of what perSecond brings in took, within 5 %.
func requireShare(t *testing.T, s *TempFileStore, perSecond int, share float64, took time.Duration) {
	t.Helper()
	want := float64(perSecond) * took.Seconds()
	if got := float64(s.Snapshot().Received); got < (share-0.05)*want || got > (share+0.05)*want {
		t.Errorf("after %v, received %.3f of what the limit allows, want %.2f", took, got/want, share)
	}
}

// TestLimitRateIsKept: from the first second on, for one file and for several.
func TestLimitRateIsKept(t *testing.T) {
	for _, perSecond := range []int{10, 100e3, 5 << 20, 50e6} {
		for _, files := range []int{1, 3} {
			t.Run(fmt.Sprint(perSecond, " a second, files: ", files), func(t *testing.T) {
				throttled(t, perSecond, files, func(t *testing.T, stores []*TempFileStore, _ []*scriptedOrigin) {
					ctx, stop := context.WithCancel(t.Context())
					defer stop()
					for _, s := range stores {
						go readOn(ctx, s, 0)
					}
					var received int64
					for second := int64(1); second <= 3; second++ {
						time.Sleep(time.Second)
						received = stores[0].total.received.Load()
						if want := second * int64(perSecond); received < want*95/100-1 || received > want*105/100+1 {
							t.Errorf("after %d s: %d bytes, want %d within 5 %%", second, received, want)
						}
					}
				})
			})
		}
	}
}

// TestLimitRateIsFairToFiles: a file gets no more for having more readers and requests.
func TestLimitRateIsFairToFiles(t *testing.T) {
	const perSecond = 8 << 20
	throttled(t, perSecond, 2, func(t *testing.T, stores []*TempFileStore, origins []*scriptedOrigin) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		for i := range int64(4) {
			go readOn(ctx, stores[0], i*128*mib)
		}
		go readOn(ctx, stores[1], 0)
		time.Sleep(3 * time.Second)
		if n := origins[0].inFlight(); n < 3 {
			t.Errorf("requests of the file with many readers: %d", n)
		}
		for _, s := range stores {
			requireShare(t, s, perSecond, 0.5, 3*time.Second)
		}
	})
}

// TestLimitRateServesReadersFirst: what nobody waits for gets what is left, and is not
// stalled for that.
func TestLimitRateServesReadersFirst(t *testing.T) {
	const perSecond = 4 << 20
	throttled(t, perSecond, 2, func(t *testing.T, stores []*TempFileStore, _ []*scriptedOrigin) {
		read, rest := stores[0], stores[1]
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go readOn(ctx, read, 0)
		synctest.Wait()
		rest.WantRest()
		time.Sleep(10 * time.Second)
		requireShare(t, read, perSecond, 1, 10*time.Second)
		requireShare(t, rest, perSecond, 0, 10*time.Second)
		if got := rest.Snapshot(); got.State != "downloading" || got.Silent > 0.1 {
			t.Errorf("the file that waits for its turn: %+v", got)
		}
		stop()
		synctest.Wait()
		read.Close()
		before := rest.Snapshot().Received
		time.Sleep(2 * time.Second)
		if got := float64(rest.Snapshot().Received - before); got < 0.95*2*perSecond {
			t.Errorf("alone, the rest got %.0f bytes in 2 s", got)
		}
		if rest.plan.latency > time.Second {
			t.Errorf("the wait for the limit counts as latency: %v", rest.plan.latency)
		}
	})
}

// TestLimitRateIsNoSilence: what an origin is silent for begins when it may send.
func TestLimitRateIsNoSilence(t *testing.T) {
	throttled(t, 4<<20, 2, func(t *testing.T, stores []*TempFileStore, origins []*scriptedOrigin) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go readOn(ctx, stores[0], 0)
		synctest.Wait()
		origins[1].atOnce = 0
		stores[1].WantRest()
		time.Sleep(10 * time.Second)
		stop()
		time.Sleep(3 * time.Second)
		if got := stores[1].Snapshot(); got.State != "stalled" || got.Silent > 3 {
			t.Errorf("silent for 3 s after it was held back: %+v", got)
		}
	})
}

// TestReaderMakesADownloadItsOwn: the download that waited for its turn has one as soon as
// a reader waits for it.
func TestReaderMakesADownloadItsOwn(t *testing.T) {
	throttled(t, 4<<20, 2, func(t *testing.T, stores []*TempFileStore, _ []*scriptedOrigin) {
		stores[1].WantRest()
		synctest.Wait()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go readOn(ctx, stores[0], 0)
		time.Sleep(5 * time.Second)
		began, off := time.Now(), stores[1].downloaded.Load()
		if _, err := stores[1].ReadAt(ctx, make([]byte, 64<<10), off); err != nil || time.Since(began) > 100*time.Millisecond {
			t.Errorf("a read of 64 KiB took %v, %v", time.Since(began), err)
		}
	})
}

// TestLimitRateWastesNothing: short requests use little of a turn, and leave the rest to
// others. Nor does a request that waits for its turn keep the store from closing.
func TestLimitRateWastesNothing(t *testing.T) {
	const perSecond = 16 << 20
	throttled(t, perSecond, 1, func(t *testing.T, stores []*TempFileStore, _ []*scriptedOrigin) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		rng := rand.New(rand.NewPCG(1, 2))
		for range 8 {
			at := rng.Perm(512 * mib / (64 << 10))
			go func() {
				for _, block := range at {
					if _, err := stores[0].ReadAt(ctx, make([]byte, 4<<10), int64(block)*64<<10); err != nil {
						return
					}
				}
			}()
		}
		time.Sleep(3 * time.Second)
		requireShare(t, stores[0], perSecond, 1, 3*time.Second)
	})
}

// TestLimitRateNeedsNoCompany: a limit of our own is none of each connection.
func TestLimitRateNeedsNoCompany(t *testing.T) {
	throttled(t, 2<<20, 1, func(t *testing.T, stores []*TempFileStore, origins []*scriptedOrigin) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go readOn(ctx, stores[0], 0)
		time.Sleep(20 * time.Second)
		origins[0].mustHave(t, 1)
	})
}

// droppingBody drops what skipBytes counts, and brings nothing.
type droppingBody struct{ io.ReadCloser }

func (droppingBody) Read([]byte) (int, error) { return 0, nil }

func TestLimitRateCountsDroppedBytes(t *testing.T) {
	throttled(t, 1<<20, 1, func(t *testing.T, stores []*TempFileStore, _ []*scriptedOrigin) {
		b := &throttledBody{ReadCloser: droppingBody{}, ctx: t.Context(), store: stores[0], fetch: new(fetch), turn: make(chan int, 1)}
		began := time.Now()
		for range 3 << 20 / skipBytes {
			b.Read(make([]byte, 1<<20))
		}
		if took := time.Since(began).Seconds(); took < 2.85 || took > 3.15 {
			t.Errorf("dropped 3 MiB in %.2f s, want 3 s within 5 %%", took)
		}
	})
}
