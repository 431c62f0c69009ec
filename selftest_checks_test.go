// Tests of the parts of the self-test: its origin, its readers, and that each check
// can fail. The checks run over plain directories, which keep none of fsmount's
// promises, so no mount is needed.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
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
	running := &selftestChild{exited: make(chan struct{})}
	s := newSelftest(io.Discard)
	s.files, s.mnt, s.mount = newSelftestFiles(), t.TempDir(), running
	for _, f := range s.files.all {
		if f != s.files.stalled {
			f.size = 1 << 20
		}
		content := make([]byte, f.size)
		fillContent(content, f.seed, 0)
		if wrong != nil {
			content = wrong(f.name, content)
		}
		if err := os.WriteFile(s.path(f), content, 0o444); err != nil {
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
	for _, k := range selftestChecks() {
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
	if err := os.Chmod(s.path(s.files.cut), 0o644); err != nil {
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
		requireCheckFails(t, s, name, "list the blocked operations: text ops")
	}
	control := filepath.Join(s.mnt, controlName)
	if err := errors.Join(os.Mkdir(control, 0o700), os.WriteFile(filepath.Join(control, "ops"), nil, 0o400)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"streaming", "isolation", "kill", "signals"} {
		requireCheckFails(t, s, name, "a read of bytes that were never sent ended")
	}
}

func TestSelftestReaderProtocol(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.bin")
	content := make([]byte, 1000)
	fillContent(content, 3, 0)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	calls, answers := &strings.Builder{}, &strings.Builder{}
	for _, c := range []readerCall{
		{Op: "read", Path: path, Off: 10, Len: 500, Seed: 3},
		{Op: "read", Path: path, Off: 10, Len: 500, Seed: 4},
		{Op: "verify", Path: path, Len: 100, Size: 1000, Seed: 3},
		{Op: "stat", Path: path},
		{Op: "ls", Path: filepath.Dir(path)},
		{Op: "read", Path: path + "x", Len: 1},
		{Op: "nonsense"},
	} {
		if err := json.NewEncoder(calls).Encode(c); err != nil {
			t.Fatal(err)
		}
	}
	if status, err := new(readerCommand).run(strings.NewReader(calls.String()), answers); status != exitOK || err != nil {
		t.Errorf("status %d", status)
	}
	var got []readerAnswer
	for d := json.NewDecoder(strings.NewReader(answers.String())); ; {
		var a readerAnswer
		if d.Decode(&a) != nil {
			break
		}
		got = append(got, a)
	}
	if len(got) != 8 {
		t.Fatalf("%d answers, want 8: %s", len(got), answers)
	}
	for i, ok := range []bool{
		got[0].N > 0 && got[0].Error == "",
		got[1].N == 500 && got[1].Error == "",
		strings.Contains(got[2].Error, "byte at offset 10 "),
		got[3].N == 1000 && got[3].Error == "",
		got[4].Size == 1000 && got[4].Mode == unix.S_IFREG|0o600,
		len(got[5].Names) == 1 && got[5].Names[0] == "a.bin",
		strings.Contains(got[6].Error, "ENOENT"),
		strings.Contains(got[7].Error, "no such operation"),
	} {
		if !ok {
			t.Errorf("answer %d is %+v", i, got[i])
		}
	}
}
