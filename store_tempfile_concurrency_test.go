// Concurrency tests of TempFileStore over a real HTTP server, for the race detector
// and for stress-test.sh. Many readers check every byte that they read.

package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	concurrencySize    = 32 << 20
	concurrencyReaders = 8
	concurrencyRanges  = 100

	// hangTimeout bounds what must not hang. It is far above the time that a run takes
	// under the race detector on a busy machine.
	hangTimeout = 2 * time.Minute
)

// startContentServer serves size bytes of the content of testSeed at every path.
func startContentServer(t *testing.T, size int64) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "content.bin", time.Time{}, newContentReader(testSeed, size))
	}))
	t.Cleanup(server.Close)
	return server
}

// openHTTPStore returns a store of what server serves. The caller closes it.
func openHTTPStore(t *testing.T, server *httptest.Server) *TempFileStore {
	u, err := url.Parse(server.URL + "/content.bin")
	if err != nil {
		t.Fatal(err)
	}
	origin := originOf(t, u.String())
	obj, err := origin.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := newTempFileStore(origin, obj, testConfig(t.TempDir()))
	s.AddHandle()
	return s
}

// readRandomRanges reads n random ranges of up to 128 KiB, some of them beyond the
// end of the file, and checks each byte.
func readRandomRanges(s *TempFileStore, rng *rand.Rand, n int) error {
	p := make([]byte, 128<<10)
	for range n {
		off := rng.Int64N(s.Object().Size)
		want := int(min(rng.Int64N(int64(len(p)))+1, s.Object().Size-off))
		got, err := s.ReadAt(context.Background(), p[:rng.IntN(len(p)-want+1)+want], off)
		if err != nil && err != io.EOF {
			return err
		}
		if got < want {
			return io.ErrUnexpectedEOF
		}
		if err := checkContent(p[:got], testSeed, off); err != nil {
			return err
		}
	}
	return nil
}

// inTime runs f, and fails the test with all stacks if it hangs.
func inTime(t *testing.T, f func()) {
	t.Helper()
	if !within(hangTimeout, f) {
		stacks := make([]byte, 1<<20)
		t.Fatalf("hangs:\n%s", stacks[:runtime.Stack(stacks, true)])
	}
}

// readAll has readers goroutines read random ranges of each store at once.
func readAll(t *testing.T, readers int, stores ...*TempFileStore) {
	inTime(t, func() {
		var group sync.WaitGroup
		for _, s := range stores {
			for reader := range readers {
				group.Go(func() {
					rng := rand.New(rand.NewPCG(s.debugID, uint64(reader)))
					if err := readRandomRanges(s, rng, concurrencyRanges); err != nil {
						t.Errorf("reader %d: %v", reader, err)
					}
				})
			}
		}
		group.Wait()
	})
}

func closeInTime(t *testing.T, s *TempFileStore) {
	t.Helper()
	inTime(t, func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

func TestConcurrentReaders(t *testing.T) {
	s := openHTTPStore(t, startContentServer(t, concurrencySize))
	readAll(t, concurrencyReaders, s)
	closeInTime(t, s)
}

// Close comes after every reader has read once. The readers read until Close ends
// them, so Close meets reads under way.
func TestReadCloseConcurrent(t *testing.T) {
	s := openHTTPStore(t, startContentServer(t, concurrencySize))
	var reading, stopped sync.WaitGroup
	reading.Add(concurrencyReaders)
	for reader := range concurrencyReaders {
		stopped.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(reader)))
			arrive := sync.OnceFunc(reading.Done)
			defer arrive()
			var err error
			for err == nil {
				if err = readRandomRanges(s, rng, 1); err == nil {
					arrive()
				}
			}
			if !errors.Is(err, errClosed) {
				t.Errorf("reader %d: got %v, want %v", reader, err, errClosed)
			}
		})
	}
	inTime(t, reading.Wait)
	closeInTime(t, s)
	inTime(t, stopped.Wait)
	if n := s.refCount.Load(); n != 0 {
		t.Errorf("references after Close: got %d, want 0", n)
	}
}

func TestMultiFileParallelism(t *testing.T) {
	server := startContentServer(t, concurrencySize/4)
	var stores []*TempFileStore
	for range 4 {
		stores = append(stores, openHTTPStore(t, server))
	}
	readAll(t, 4, stores...)
	for _, s := range stores {
		closeInTime(t, s)
	}
}

func TestStressWithRandomGOMAXPROCS(t *testing.T) {
	if testing.Short() {
		t.Skip("ten downloads of 32 MiB: not with -short")
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	server := startContentServer(t, concurrencySize)
	for range 10 {
		runtime.GOMAXPROCS(rng.IntN(runtime.NumCPU()) + 1)
		s := openHTTPStore(t, server)
		readAll(t, concurrencyReaders, s)
		closeInTime(t, s)
	}
}

// The origin knows no ranges. It sends half the file and then nothing. Readers wait
// for the other half when Close comes.
func TestNoDeadlockOnEarlyClose(t *testing.T) {
	const size = 1 << 20
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		w.Header().Set("Content-Length", strconv.Itoa(size))
		io.CopyN(w, newContentReader(testSeed, size), size/2)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer server.Close()
	s := openHTTPStore(t, server)
	results := make(chan error, concurrencyReaders)
	for reader := range concurrencyReaders {
		go func() {
			p := make([]byte, 1000)
			_, err := s.ReadAt(context.Background(), p, int64(reader)*1000)
			if err == nil {
				_, err = s.ReadAt(context.Background(), p, size-1000*int64(reader+1))
			}
			results <- err
		}()
	}
	inTime(t, func() {
		for waiterCount(s) < concurrencyReaders || s.downloaded.Load() < size/2 {
			runtime.Gosched()
		}
	})
	closeInTime(t, s)
	inTime(t, func() {
		for range concurrencyReaders {
			if err := <-results; !errors.Is(err, errClosed) {
				t.Errorf("error of a waiting reader: got %v, want %v", err, errClosed)
			}
		}
	})
	if n := requests.Load(); n != 2 {
		t.Errorf("requests: got %d, want 2: the probe and the fetch", n)
	}
}
