// Concurrency tests of TempFileStore over a real HTTP server, for the race
// detector and for stress-test.sh: many readers, and every byte checked.

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
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	concurrencySize    = 32 << 20
	concurrencyReaders = 8
	concurrencyRanges  = 100

	// hangTimeout bounds what must not hang. It is no measure of speed: a run
	// under the race detector on a busy machine is far below it.
	hangTimeout = 2 * time.Minute
)

// startContentServer serves size bytes of content, the same at every path.
func startContentServer(t *testing.T, size int64) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "content.bin", time.Time{}, newContentReader(storeSeed, size))
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
	origin := &httpOrigin{client: server.Client(), url: u}
	obj, err := origin.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := newTempFileStore(origin, obj, testConfig(t.TempDir()))
	s.AddHandle()
	return s
}

// readRandomRanges reads n ranges of up to 128 KiB anywhere in the file, some
// of them beyond its end, and checks each byte.
func readRandomRanges(s *TempFileStore, rng *rand.Rand, n int) error {
	p := make([]byte, 128<<10)
	for range n {
		off := rng.Int64N(s.Size())
		want := int(min(rng.Int64N(int64(len(p)))+1, s.Size()-off))
		got, err := s.ReadAt(context.Background(), p[:rng.IntN(len(p)-want+1)+want], off)
		if err != nil && err != io.EOF {
			return err
		}
		if got < want {
			return io.ErrUnexpectedEOF
		}
		if err := checkContent(p[:got], storeSeed, off); err != nil {
			return err
		}
	}
	return nil
}

// inTime runs f, and fails the test with all stacks if it hangs.
func inTime(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(hangTimeout):
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

// Every reader has read at least once when Close comes, and none stops before
// it: Close always meets reads under way.
func TestReadCloseConcurrent(t *testing.T) {
	s := openHTTPStore(t, startContentServer(t, concurrencySize))
	var reading, stopped sync.WaitGroup
	reading.Add(concurrencyReaders)
	for reader := range concurrencyReaders {
		stopped.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(reader)))
			arrive := sync.OnceFunc(reading.Done)
			defer arrive()
			for {
				err := readRandomRanges(s, rng, 1)
				if errors.Is(err, errClosed) {
					return
				}
				if err != nil {
					t.Errorf("reader %d: %v", reader, err)
					return
				}
				arrive()
			}
		})
	}
	inTime(t, reading.Wait)
	closeInTime(t, s)
	inTime(t, stopped.Wait)
	if n := s.refCount.Load(); n != 0 {
		t.Errorf("%d references left", n)
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

// The origin, which knows no ranges, sends half the file and then nothing;
// readers wait for the rest when Close comes.
func TestNoDeadlockOnEarlyClose(t *testing.T) {
	const size = 1 << 20
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w = &halfWriter{ResponseWriter: w, left: size / 2, ctx: r.Context()}
		requests.Add(1)
		r.Header.Del("Range")
		http.ServeContent(w, r, "content.bin", time.Time{}, newContentReader(storeSeed, size))
	}))
	defer server.Close()
	s := openHTTPStore(t, server)
	results := make(chan error, concurrencyReaders)
	for reader := range concurrencyReaders {
		go func() {
			p := make([]byte, 1000)
			if _, err := s.ReadAt(context.Background(), p, int64(reader)*1000); err != nil {
				results <- err
				return
			}
			_, err := s.ReadAt(context.Background(), p, size-1000*int64(reader+1))
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
				t.Errorf("a reader of what never came ended with %v", err)
			}
		}
	})
	if n := requests.Load(); n != 2 {
		t.Errorf("%d requests, want the probe and the fetch", n)
	}
}

// halfWriter sends left bytes and then nothing, until the client is gone.
type halfWriter struct {
	http.ResponseWriter
	left int
	ctx  context.Context
}

func (w *halfWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		n, _ := w.ResponseWriter.Write(p[:w.left])
		w.ResponseWriter.(http.Flusher).Flush()
		w.left = 0
		<-w.ctx.Done()
		return n, w.ctx.Err()
	}
	w.left -= len(p)
	return w.ResponseWriter.Write(p)
}
