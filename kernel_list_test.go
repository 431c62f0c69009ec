// Kernel tests of what a list says of a file besides its URL: the sha256 and the size.

package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// zeros sends zeros in the place of the bytes of an answer.
type zeros struct{ http.ResponseWriter }

func (w zeros) Write(p []byte) (int, error) { return w.ResponseWriter.Write(make([]byte, len(p))) }

// listed returns a list of f with options in which %x is its sha256.
func (f *kernelFile) listed(t *testing.T, options string) string {
	content := make([]byte, f.size)
	fillContent(content, f.seed, 0)
	options = strings.ReplaceAll(options, "%x", fmt.Sprintf("%x", sha256.Sum256(content)))
	return writeTestFile(t, f.name+"="+f.url+"  "+options+"\n")
}

// Wrong bytes are never opened twice: not before they were fetched again and are right.
func TestKernelWrongSha256FailsOpens(t *testing.T) {
	for _, test := range []struct {
		about  string
		damage []bool // of each download but the first, which is damaged
	}{{"healed by itself", []bool{false}}, {"healed by refresh", []bool{true, false}}} {
		t.Run(test.about, func(t *testing.T) {
			var downloads atomic.Int64
			damage := make(chan bool)
			f := wholeFile("f.bin", 100_000)
			f.carry = func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
				if r.Header.Get("Range") == "bytes=0-0" {
					return w
				}
				damaged := true
				if downloads.Add(1) > 1 {
					select {
					case damaged = <-damage:
					case <-r.Context().Done():
					}
				}
				if damaged {
					return zeros{w}
				}
				return w
			}
			startKernelOrigin(t, f)
			m := startKernelMount(t, "--list", f.listed(t, "sha256=%x"))
			before := m.statOf(f)
			old := m.reader().open(f)
			requireZeros := func() {
				if a := old.do(readAllCall(f)); a.Error == "" || a.Errno != "" {
					t.Errorf("the handle of the wrong bytes reads %+v, want wrong bytes", a)
				}
			}
			requireZeros()
			for i, damaged := range test.damage {
				eventually(t, func() (bool, string) {
					n := strings.Count(m.stderr.String(), `WRONG BYTES: "f.bin" has the sha256 `)
					return n == i+1, fmt.Sprintf("the log says %d times that the bytes are wrong, want %d", n, i+1)
				})
				other := m.reader()
				other.path = m.path(f.name)
				other.send(readerCall{Op: "open"})
				other.requireErrno("EIO")
				requireZeros()
				for _, format := range []string{"--json", "--watch=false"} {
					status, stdout, _ := runProgram(t, "status", format, m.dir)
					if status != 0 || !strings.Contains(stdout, "its sha256 is not that of the list") {
						t.Errorf("status %s: %d, %s", format, status, stdout)
					}
				}
				if i > 0 {
					m.fileCommand(0, "f.bin: is now 100000 bytes", "refresh", "f.bin")
				}
				select {
				case damage <- damaged:
				case <-time.After(kernelPatience):
					t.Fatal("it is not fetched again")
				}
			}
			m.awaitLogged(`"f.bin" has the sha256 of the list`)
			m.reader().requireWhole(f)
			if after := m.statOf(f); after == before || downloads.Load() != int64(len(test.damage))+1 {
				t.Errorf("%d downloads; stat %q, as before; want another inode", downloads.Load(), after)
			}
			m.stop()
		})
	}
}

// The file is there before its host is, and a read waits for that.
func TestKernelGivenSizeSparesTheProbe(t *testing.T) {
	f := wholeFile("f.bin", 1<<20)
	f.seed = 7
	n := newNginx(t, f)
	f.url = n.url()
	start := time.Now()
	m := startKernelMount(t, "--trace", "--all", "--list", f.listed(t, "size=1048576 sha256=%x"))
	if took := time.Since(start); took > kernelPatience {
		t.Errorf("the mount took %v without its origin", took)
	}
	before := m.statOf(f)
	r := m.reader().open(f)
	r.send(preadCall(f, f.size-10, 100))
	m.awaitBlocked(1)
	m.awaitLogged("connection refused: retry in ")
	n.start()
	requireBytes(t, r.answer(), 10)
	m.reader().requireWhole(f)
	m.awaitLogged("its origin has 1048576 bytes, ETag ")
	m.awaitLogged(`"f.bin" has the sha256 of the list`)
	if after := m.statOf(f); after != before || !strings.Contains(after, " 1048576 ") {
		t.Errorf("stat was %q and is %q", before, after)
	}
	m.stop()
}

func TestKernelWrongSizeIsStale(t *testing.T) {
	f := wholeFile("f.bin", 1<<20)
	startKernelOrigin(t, f)
	m := startKernelMount(t, "--list", f.listed(t, "size=1048577"))
	f.update(func() {
		if f.probes+len(f.asked) > 0 {
			t.Error("the origin was asked before the first read")
		}
	})
	r := m.reader().open(f)
	r.send(preadCall(f, 0, 100))
	r.requireErrno("ESTALE")
	m.awaitLogged(`changed: "f.bin" has another version at its origin: it was 1048577 bytes and is 1048576 bytes, ETag `)
	m.fileCommand(0, "f.bin: is now 1048576 bytes", "refresh", "f.bin")
	m.reader().requireWhole(f)
	m.stop()
}
