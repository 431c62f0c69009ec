// Tests of the parts of the self-test: its origin, its readers, and that each check
// can fail. The checks run over plain directories, which keep none of fsmount's
// promises, so no mount is needed.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// fetchFrom makes one request, with header if it is not empty.
func fetchFrom(t *testing.T, url, header string) *http.Response {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if name, value, found := strings.Cut(header, ": "); found {
		req.Header.Set(name, value)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestSelftestOriginCuts(t *testing.T) {
	f := newLocalFile("a", 9, 1000)
	f.cutAt = func(start int64) int64 { return start + 400 }
	origin, err := startLocalOrigin([]*localFile{f})
	if err != nil {
		t.Fatal(err)
	}
	defer origin.Close()
	url := origin.urls[0]

	body, err := io.ReadAll(fetchFrom(t, url, "").Body)
	if cuts := f.cuts.Load(); len(body) != 400 || !errors.Is(err, io.ErrUnexpectedEOF) || cuts != 1 {
		t.Errorf("%d bytes, %v, %d cuts; want 400 and one cut", len(body), err, cuts)
	}
	body, err = io.ReadAll(fetchFrom(t, url, "Range: bytes=600-999").Body)
	sent, cuts := f.sent.Load(), f.cuts.Load()
	if err != nil || len(body) != 400 || checkContent(body, 9, 600) != nil || cuts != 1 {
		t.Errorf("a short body: %d bytes, %v, %d cuts in all", len(body), err, cuts)
	}
	if sent != 800 {
		t.Errorf("%d bytes were counted, want 800", sent)
	}
}

func TestSelftestOriginHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newLocalFile("a", 9, 100_000)
		f.allow(1)
		answer := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/a", nil))
		}()
		for _, allowed := range []int64{1, 50_001, f.size} {
			f.allow(allowed)
			synctest.Wait()
			if sent := f.sent.Load(); int64(answer.Body.Len()) != allowed || sent != allowed {
				t.Errorf("with %d bytes allowed, %d came and %d were counted", allowed, answer.Body.Len(), sent)
			}
		}
		<-done
		if err := checkContent(answer.Body.Bytes(), 9, 0); err != nil {
			t.Error(err)
		}
	})
}

// plainSelftest is a self-test over a plain directory of complete files. wrong may
// change the content of each.
func plainSelftest(t *testing.T, wrong func(name string, content []byte) []byte) *selftest {
	t.Helper()
	s := newSelftest(io.Discard)
	s.files, s.mnt = newSelftestFiles(), t.TempDir()
	for _, f := range s.files.all {
		if f != s.files.stalled {
			f.size = 1 << 20
		}
		content := make([]byte, f.size)
		fillContent(content, f.seed, 0)
		if wrong != nil {
			content = wrong(f.name, content)
		}
		if err := os.WriteFile(filepath.Join(s.mnt, f.name), content, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if c := s.runBounded(context.Background(), cleanCheck(), selftestCleanLimit); c.err != nil {
			t.Error(c.err)
		}
	})
	return s
}

// runByName runs the check of that name.
func (s *selftest) runByName(ctx context.Context, name string) (figure string, err error) {
	for _, k := range slices.Concat(selftestStages()...) {
		if k.name == name {
			c := s.runBounded(ctx, k, selftestCheckLimit)
			return c.figure, c.err
		}
	}
	return "", fmt.Errorf("no check is called %q", name)
}

func requireCheckFails(t *testing.T, s *selftest, name, want string) {
	t.Helper()
	figure, err := s.runByName(t.Context(), name)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %q, %v; want it to fail with %q", name, figure, err, want)
	}
}

func TestSelftestSeesWrongBytes(t *testing.T) {
	s := plainSelftest(t, func(_ string, content []byte) []byte {
		content[777_777]++
		return content
	})
	for _, name := range []string{"concurrent readers", "cut connections"} {
		requireCheckFails(t, s, name, "byte at offset 777777")
	}
}

func TestSelftestSeesShortAnswers(t *testing.T) {
	s := plainSelftest(t, func(_ string, content []byte) []byte { return content[:len(content)-1] })
	requireCheckFails(t, s, "sizes and modes", "has 1048575 bytes")
	for _, name := range []string{"concurrent readers", "seeks", "cut connections"} {
		requireCheckFails(t, s, name, " bytes came")
	}
}

func TestSelftestSeesLongFiles(t *testing.T) {
	s := plainSelftest(t, func(_ string, content []byte) []byte { return append(content, 0) })
	requireCheckFails(t, s, "concurrent readers", "read beyond the end: 1 bytes")
}

func TestSelftestSeesWrongModes(t *testing.T) {
	s := plainSelftest(t, nil)
	if _, err := s.runByName(t.Context(), "sizes and modes"); err != nil {
		t.Errorf("with right files: %v", err)
	}
	if err := os.Chmod(filepath.Join(s.mnt, s.files.cut.name), 0o644); err != nil {
		t.Fatal(err)
	}
	requireCheckFails(t, s, "sizes and modes", "mode 100644")
}

// A check must say so when its fault did not happen.
func TestSelftestSeesThatNothingHappened(t *testing.T) {
	s := plainSelftest(t, nil)
	requireCheckFails(t, s, "cut connections", "nothing was cut")
	s.files.slow.sent.Store(s.files.slow.size)
	requireCheckFails(t, s, "seeks", "seems to wait for the bytes before it")
	for _, name := range []string{"streaming", "isolation", "kill", "signals"} {
		requireCheckFails(t, s, name, "a read of bytes that were never sent ended")
	}
}

func TestSelftestReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.bin")
	content := make([]byte, 1000)
	fillContent(content, 3, 0)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		call selftestCall
		n    int64
		says string
	}{
		{selftestCall{Path: path, Off: 10, End: 510, Size: 1000, Seed: 3}, 500, ""},
		{selftestCall{Path: path, Off: 10, End: 510, Size: 1000, Seed: 4}, 500, "a.bin: check content of [10,510): byte at offset 10 "},
		{selftestCall{Path: path, End: 1000, Size: 1000, Seed: 3}, 1000, ""},
		{selftestCall{Path: path, End: 1001, Size: 1001, Seed: 3}, 0, "a.bin: read [0,1001): 1000 bytes came"},
		{selftestCall{Path: path, End: 999, Size: 999, Seed: 3}, 999, "a.bin: read beyond the end: 1 bytes"},
		{selftestCall{Path: path, Size: 1000}, 0, "a.bin: stat"},
		{selftestCall{Path: path, End: 1000, Size: 1000, Seed: 3, Signal: true}, 1000, "a.bin: no signal arrived"},
		{selftestCall{Path: path + "x", End: 1, Size: 1}, 0, "a.binx: open: no such file or directory"},
	} {
		r, err := startSelftestReader(t.Context(), test.call)
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.answer(t.Context())
		if a.N != test.n || a.Took <= 0 || (err != nil) != (test.says != "") || !strings.HasPrefix(a.Error, test.says) {
			t.Errorf("%+v: %+v, %v; want %d bytes and %q", test.call, a, err, test.n, test.says)
		}
	}
	r, err := startSelftestReader(t.Context(), selftestCall{Path: filepath.Dir(path)})
	if err != nil {
		t.Fatal(err)
	}
	if a, err := r.answer(t.Context()); err != nil || len(a.Names) != 1 || a.Names[0] != "a.bin" {
		t.Errorf("the directory: %+v, %v", a, err)
	}
}
