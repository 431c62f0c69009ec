// Kernel tests of the cache that outlives the mount: the program is killed at any moment
// and started again on the same directory.

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// killWhileMounted kills the program, and requires that all that the cache in dir claims
// is right.
func (m *kernelMount) killWhileMounted(dir string, seed uint64) (claimed int64) {
	m.t.Helper()
	m.signal(unix.SIGKILL)
	m.requireExit(-1)
	unix.Unmount(m.dir, unix.MNT_DETACH)
	claimed, wrong := claimsOf(m.t, dir, seed)
	if wrong > 0 {
		m.t.Errorf("of %d bytes that the index claims after a kill %d are wrong", claimed, wrong)
	}
	return claimed
}

// What arrived before a kill is not requested again, and the next run without a byte to
// fetch asks for nothing but the version.
func TestKernelCacheOutlivesAKill(t *testing.T) {
	f := wholeFile("a.bin", 128<<20+5)
	f.rate = 64 << 20
	cache := t.TempDir()
	m := f.mount(t, "--cache-dir", cache)
	m.reader().open(f).requireRead(f, 0, 4096, 4096)
	half := m.reader().open(f)
	for off := int64(0); off < f.size/2; off += mib {
		half.requireRead(f, off, mib, mib)
	}
	if claimed := m.killWhileMounted(cache, f.seed); claimed < f.size/2-f.size/20 {
		t.Errorf("%d bytes of a half are kept", claimed)
	}
	m = startKernelMount(t, "--cache-dir", cache, f.url)
	m.reader().requireWhole(f)
	f.requireSent(t, f.size, f.size/50)
	m.stop()

	requests, probes := len(f.requests()), f.probes
	m = startKernelMount(t, "--cache-dir", cache, f.url)
	status := m.lookAt("cat", m.path(".fsmount/status"))
	r := m.reader()
	r.requireWhole(f)
	if n := len(f.requests()); n != requests || f.probes != probes+1 || !strings.Contains(status, "state=complete") {
		t.Errorf("%d requests and %d probes for a file that is in the cache; status %s", n-requests, f.probes-probes, status)
	}
	r.kill(unix.SIGKILL)
	eventually(t, func() (bool, string) { // the kernel tells later that nobody has it open
		status, stdout, stderr := runProgram(t, "forget", m.dir, f.name)
		return status == 0 && strings.Contains(stdout, "gave back 128 MiB"), stdout + stderr
	})
	requireFiles(t, cache)
}

// What was forgotten is gone from the kernel's page cache too.
func TestKernelForgetLeavesNoPage(t *testing.T) {
	f := wholeFile("a.bin", 1<<20)
	cache := t.TempDir()
	m := f.mount(t, "--cache-dir", cache)
	m.reader().requireWhole(f)
	m.stop()
	data, err := filepath.Glob(filepath.Join(cache, "*.data"))
	if err != nil || len(data) != 1 {
		t.Fatal(data, err)
	}
	damaged, err := os.OpenFile(data[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := damaged.WriteAt(make([]byte, 8192), 65536); err != nil {
		t.Fatal(err)
	}
	damaged.Close()
	m = startKernelMount(t, "--cache-dir", cache, f.url)
	m.lookAt("cat", m.path(f.name))
	eventually(t, func() (bool, string) { // the kernel tells later that nobody has it open
		status, stdout, stderr := runProgram(t, "forget", m.dir, f.name)
		return status == 0, stdout + stderr
	})
	for range 3 {
		m.reader().requireWhole(f)
	}
}

func TestKernelCacheForgetsAChangedFile(t *testing.T) {
	const sent = 1 << 20
	old, fresh := changedPair(sent)
	cache := t.TempDir()
	m := old.mount(t, "--cache-dir", cache)
	m.reader().open(old).requireRead(old, 0, sent, sent)
	eventually(t, func() (bool, string) {
		claimed, _ := claimsOf(t, cache, old.seed)
		return claimed == sent, fmt.Sprintf("the cache claims %d bytes of %d", claimed, sent)
	})
	m.killWhileMounted(cache, old.seed)
	old.change(fresh)
	m = startKernelMount(t, "--cache-dir", cache, old.url)
	m.reader().requireWhole(fresh)
	m.awaitLogged("another version")
	m.stop()
	if claimed, wrong := claimsOf(t, cache, fresh.seed); claimed != fresh.size || wrong > 0 {
		t.Errorf("the cache claims %d bytes of the new version, %d of them wrong", claimed, wrong)
	}
}

// A refresh takes the old version out of the cache; who has it open reads on.
func TestKernelCacheRefresh(t *testing.T) {
	const sent = 1 << 20
	old, fresh := changedPair(sent)
	cache := t.TempDir()
	m := old.mount(t, "--cache-dir", cache)
	stale := m.reader().open(old)
	stale.requireRead(old, 0, sent, sent)
	old.change(fresh)
	m.fileCommand(0, "is now 5242957 bytes", "refresh", "a.bin")
	requireFiles(t, cache)
	m.reader().requireWhole(fresh)
	stale.requireRead(old, 0, sent, sent)
	m.stop()
	if claimed, wrong := claimsOf(t, cache, fresh.seed); claimed != fresh.size || wrong > 0 {
		t.Errorf("the cache claims %d bytes of the new version, %d of them wrong", claimed, wrong)
	}
}

func TestKernelCacheServesOneProcess(t *testing.T) {
	f := wholeFile("a.bin", 4096)
	cache := t.TempDir()
	m := f.mount(t, "--cache-dir", cache)
	dir := kernelTestDir(t)
	for _, test := range []struct{ dir, says string }{
		{cache, fmt.Sprintf("process %d uses it", m.cmd.Process.Pid)},
		{dir, "lies in the mountpoint"},
		{dir + "/below", "lies in the mountpoint"},
	} {
		status, _, stderr := runProgram(t, "-mount", dir, "--cache-dir", test.dir, f.url)
		if status != exitUsage || !strings.Contains(stderr, "directory "+test.dir) || !strings.Contains(stderr, test.says) || mounted(dir) {
			t.Errorf("--cache-dir %s: status %d, %q, want 2 and %q", test.dir, status, stderr, test.says)
		}
	}
	if _, err := os.Stat(dir + "/below"); err == nil {
		t.Error("a directory was made in the mountpoint")
	}
	m.reader().requireWhole(f)
}

// The program is killed at random moments: after each, and at the end, every byte is right.
func TestKernelCacheSurvivesKills(t *testing.T) {
	requireFUSE(t)
	rounds := 100
	if testing.Short() {
		rounds = 5
	}
	f := wholeFile("a.bin", 48<<20+99)
	f.rate = 4 << 20
	startKernelOrigin(t, f)
	cache, dir := t.TempDir(), kernelTestDir(t)
	kept, complete := 0, 0
	for round := range rounds {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			m := startKernelMountBy(t, dir, nil, nil, "--cache-dir", cache, f.url)
			for range 2 {
				m.program("dd", "if="+m.path(f.name), "bs=64K", "iflag=skip_bytes", fmt.Sprint("skip=", rand.Int64N(f.size)))
			}
			if round == 0 { // at least one kill leaves a part
				eventually(t, func() (bool, string) {
					claimed, _ := claimsOf(t, cache, f.seed)
					return claimed > 0, "the index claims nothing"
				})
				f.update(func() { f.rate = 100 << 20 })
			} else {
				time.Sleep(rand.N(150 * time.Millisecond)) // a random moment, at which nothing is expected
			}
			switch claimed := m.killWhileMounted(cache, f.seed); {
			case claimed == f.size:
				complete++
				if err := os.RemoveAll(cache); err != nil { // begin again
					t.Fatal(err)
				}
			case claimed > 0:
				kept++
			}
		})
	}
	m := startKernelMountBy(t, dir, nil, nil, "--cache-dir", cache, f.url)
	m.reader().requireWhole(f)
	if kept == 0 {
		t.Error("no kill left a part of the file: nothing was tested")
	}
	t.Logf("%d kills, %d left a part of the file, %d all of it", rounds, kept, complete)
}

// A file that streams through is not kept: at no moment does the index claim what has left
// the disk. What else the cache has makes way first.
func TestKernelCacheKeepsNothingOfAStream(t *testing.T) {
	other, f := wholeFile("other.bin", 12<<20), wholeFile("large.bin", 96<<20+7)
	startKernelOrigin(t, other) // each the first of its server, so they have one seed
	startKernelOrigin(t, f)
	cache, dir := t.TempDir(), kernelTestDir(t)
	m := startKernelMountBy(t, dir, nil, nil, "--cache-dir", cache, other.url)
	m.reader().requireWhole(other)
	m.stop()
	if claimed, _ := claimsOf(t, cache, other.seed); claimed != other.size {
		t.Fatalf("the cache claims %d bytes of %d", claimed, other.size)
	}
	m = startKernelMountBy(t, dir, nil, nil, "--cache-dir", cache, "--cache-size=16M", f.url)
	r := m.reader().open(f)
	for off := int64(0); off < f.size-mib; off += mib {
		r.requireRead(f, off, mib, mib)
		claimed, wrong := claimsOf(t, cache, f.seed)
		if wrong > 0 { // the index may have gone between the two looks, at it and at the data
			claimed, wrong = claimsOf(t, cache, f.seed)
		}
		if wrong > 0 {
			t.Fatalf("at %d the indexes claim %d bytes, %d of them wrong", off, claimed, wrong)
		}
	}
	if claimed := m.killWhileMounted(cache, f.seed); claimed != 0 {
		t.Errorf("the index claims %d bytes of a file that streamed through", claimed)
	}
}
