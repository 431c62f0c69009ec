// Kernel tests of passthrough: the kernel itself reads complete files, and everything is
// right where it does not.

package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// metric returns a number of the mount's metrics file.
func (m *kernelMount) metric(name string) (n int64) {
	m.t.Helper()
	for line := range strings.Lines(m.lookAt("cat", m.path(controlName+"/metrics"))) {
		if text, found := strings.CutPrefix(line, "fsmount_"+name+" "); found {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				m.t.Error(err)
			}
			return n
		}
	}
	m.t.Fatalf("no metric %q", name)
	return 0
}

// requirePassthrough ends the test where the kernel has no passthrough.
func (m *kernelMount) requirePassthrough() {
	m.t.Helper()
	if state := m.lookAt("cat", m.path(controlName+"/disk")); !strings.Contains(state, "passthrough: on") {
		cannotTest(m.t, fmt.Errorf("of the mount: %s", state))
	}
}

// The server gets no read of a complete file, the bytes are right, also where O_DIRECT reads are not aligned,
// and there is no second copy of them in the page cache.
func TestKernelPassthroughReadsBypassTheServer(t *testing.T) {
	f := wholeFile("a.bin", 64<<20+4321)
	m := f.mount(t)
	m.requirePassthrough()
	first := m.reader()
	first.requireWhole(f)
	first.kill(unix.SIGKILL)
	eventually(t, func() (bool, string) {
		text := m.lookAt("cat", m.path(controlName+"/status"))
		return strings.Contains(text, "handles=0"), text
	})
	read := m.metric("read_bytes_total")
	before := pageCache(t)
	r := m.reader()
	r.requireWhole(f)
	for range 50 {
		r.do(readerCall{Op: "random", Count: 20, Len: 100_000, Size: f.size, Seed: f.seed})
	}
	m.lookAt("dd", "if="+m.path(f.name), "of=/dev/null", "iflag=direct", "bs=3001", "skip=7", "count=3")
	if opens := m.metric("passthrough_opens_total"); opens < 2 {
		t.Errorf("passed opens: %d, want at least 2", opens)
	}
	if answered := m.metric("read_bytes_total") - read; answered > mib { // control files
		t.Errorf("the server answered reads of %d bytes", answered)
	}
	if grown := pageCache(t) - before; grown > f.size/2 {
		t.Errorf("the page cache grew by %d bytes when a file of %d was read again", grown, f.size)
	}
}

// pageCache returns the size of the machine's page cache in bytes.
func pageCache(t *testing.T) (bytes int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "Cached: %d kB", &bytes); err == nil {
			return bytes << 10
		}
	}
	t.Fatal("/proc/meminfo has no line Cached")
	return 0
}

// While files become complete, programs open, read and close them: the kernel allows one kind of handle of an
// inode at a time, and no open fails, and no byte is wrong.
func TestKernelPassthroughOpensWhileFilesComplete(t *testing.T) {
	var files []*kernelFile
	for i := range 24 {
		f := wholeFile(fmt.Sprintf("%d.bin", i), 1<<20)
		f.rate = 32 << 20
		files = append(files, f)
	}
	startKernelOrigin(t, files...)
	var urls []string
	for _, f := range files {
		urls = append(urls, f.url)
	}
	m := startKernelMount(t, urls...)
	m.requirePassthrough()
	readers := []*kernelReader{m.reader(), m.reader(), m.reader(), m.reader()}
	whole := m.reader()
	for _, f := range files {
		whole.path = m.path(f.name)
		for range 2 { // the second time the file is complete
			whole.send(readAllCall(f))
			for _, r := range readers {
				r.path = m.path(f.name)
				r.send(readerCall{Op: "reopen", Count: 200, Len: 64 << 10, Size: f.size, Seed: f.seed})
			}
			for _, r := range readers {
				if a := r.answer(); a.Error != "" {
					t.Fatalf("%s: %s", f.name, a.Error)
				}
			}
			requireBytes(t, whole.answer(), f.size)
		}
	}
	eventually(t, func() (bool, string) { // none is passed before the release of the last handle of another kind
		readers[0].open(files[0])
		return m.metric("passthrough_opens_total") > 0, "no open was passed: " + m.lookAt("cat", m.path(controlName+"/status"))
	})
}

// SIGKILL gives back the space of every file that nobody has open. Who has a complete file open reads on.
func TestKernelPassthroughAfterAKill(t *testing.T) {
	dir := smallDisk(t, "64m")
	held, closed := wholeFile("held.bin", 8<<20), wholeFile("closed.bin", 16<<20)
	startKernelOrigin(t, held, closed)
	m := startKernelMount(t, "--temp-dir="+dir, held.url, closed.url)
	m.requirePassthrough()
	r := m.reader()
	for range 2 {
		r.requireWhole(closed)
		r.requireWhole(held)
	}
	opens := m.metric("passthrough_opens_total")
	eventually(t, func() (bool, string) { // a release comes after the close
		r.requireWhole(closed)
		r.requireWhole(held)
		now := m.metric("passthrough_opens_total")
		return now-opens >= 2, fmt.Sprintf("%d opens passed", now-opens)
	})
	m.signal(unix.SIGKILL)
	m.requireExit(-1)
	eventually(t, func() (bool, string) {
		used := diskUsed(t, dir)
		return used <= held.size+mib, fmt.Sprintf("%d bytes on the disk, of a file that %d bytes are open of", used, held.size)
	})
	r.requireRead(held, held.size-mib, mib, mib)
	if err := unmount(m.dir, nil); err != nil {
		t.Error(err)
	}
	r.kill(unix.SIGKILL)
	eventually(t, func() (bool, string) {
		used := diskUsed(t, dir)
		return used < mib, fmt.Sprintf("%d bytes on the disk", used)
	})
}

// A mount in a user namespace may mount, but not pass: it reads as before.
func TestKernelPassthroughInAUserNamespace(t *testing.T) {
	requireRoot(t)
	f := wholeFile("a.bin", 1<<20)
	startKernelOrigin(t, f)
	mnt, temp := kernelTestDir(t), t.TempDir()
	const script = `"$0" -mount "$1" --temp-dir "$2" "$3" & pid=$!
		for _ in $(seq 1000); do mountpoint -q "$1" && break; sleep 0.01; done
		for _ in 1 2 3; do sha256sum < "$1/a.bin"; done
		cat "$1/.fsmount/disk"; "$0" umount "$1"; wait $pid`
	hash := sha256.New()
	if _, err := io.Copy(hash, io.NewSectionReader(f.content(), 0, f.size)); err != nil {
		t.Fatal(err)
	}
	words := withDevice(t, forAll, "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, copyProgram(t, temp), mnt, temp, f.url)
	status, stdout, stderr := runToEnd(t, words[0], words[1:]...)
	if status != 0 || strings.Count(stdout, hex.EncodeToString(hash.Sum(nil))) != 3 || !strings.Contains(stdout, "passthrough: off: ") {
		t.Errorf("status %d, %q, %q", status, stdout, stderr)
	}
}

// What an older kernel offers, and a library that answers otherwise, leave the answer as it is.
func TestPassthroughIsAgreedOnOnlyWhereItIsOffered(t *testing.T) {
	request := func(flags, flags2 uint32) []byte {
		init := make([]byte, 104)
		binary.NativeEndian.PutUint32(init[40+12:], flags)
		binary.NativeEndian.PutUint32(init[40+16:], flags2)
		return init
	}
	for about, test := range map[string]struct {
		init   []byte
		answer int
		off    string
	}{
		"offered":            {request(initExt, initPassthrough|1), 80, ""},
		"Linux 6.8":          {request(initExt, 1), 80, "Linux 6.9"},
		"before flags2":      {request(1, initPassthrough), 80, "Linux 6.9"},
		"another library":    {request(initExt, initPassthrough), 88, "library"},
		"before minor 36":    {request(1, 0)[:56], 80, "Linux 6.9"},
		"the library failed": {request(initExt, initPassthrough), 16, "library"},
	} {
		var p passthrough
		answer := make([]byte, test.answer)
		p.agree(test.init, answer, 1)
		changed := strings.Trim(string(answer), "\x00") != ""
		if state := p.String(); changed != (test.off == "") || strings.HasPrefix(state, "on") != changed || !strings.Contains(state, test.off) {
			t.Errorf("%s: answer %v, %s", about, answer, state)
		}
	}
}
