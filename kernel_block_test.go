// Kernel tests of waiting reads: what they must not delay, which signals end them,
// and how the kernel caches a file before and after it is complete.

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKernelBlockedReadDoesNotBlockOpen(t *testing.T) {
	f := heldFile("a.bin", 4<<20, 0)
	m := f.mount(t, "--trace")

	first := m.reader().open(f)
	first.send(preadCall(f, 0, 4096))
	m.awaitBlocked(1)

	second := m.reader().open(f)
	second.send(preadCall(f, 0, 4096))
	m.awaitBlocked(2) // it does not queue for the first reader's page

	second.kill(unix.SIGKILL)
	second.awaitGone()
	m.awaitBlocked(1)

	f.allow(4096)
	requireBytes(t, first.answer(), 4096)
}

func TestKernelStalledFileSlowsNoOther(t *testing.T) {
	stalled, ready, fresh := heldFile("stalled.bin", 64<<20, 0), wholeFile("ready.bin", 4<<20), wholeFile("fresh.bin", 4<<20)
	startKernelOrigin(t, stalled, ready, fresh)
	m := startKernelMount(t, "--trace", stalled.url, ready.url, fresh.url)
	m.reader().requireWhole(ready)
	m.awaitBlocked(0)

	for i := range 24 {
		m.reader().open(stalled).send(preadCall(stalled, int64(i)<<20, 64<<10))
	}
	m.awaitBlocked(24)
	if os.Geteuid() == 0 { // only root can always raise the limit
		fillBackground(m.reader().open(stalled))
	}
	requireOthersAnswer(t, m, stalled, ready, fresh)
}

// fillBackground makes the kernel send 16 background requests, which stay
// unanswered. By itself the library allows 12.
func fillBackground(r *kernelReader) {
	r.t.Helper()
	for i := range 16 {
		call := readerCall{Op: "fadvise", Off: 32<<20 + int64(i)<<20, Len: 1 << 20}
		if answer := r.do(call); answer.Error != "" {
			r.t.Fatalf("make the kernel read ahead: %s", answer.Error)
		}
	}
}

// requireOthersAnswer requires that a new process can stat stalled, list the
// directory, and read all of others.
func requireOthersAnswer(t *testing.T, m *kernelMount, stalled *kernelFile, others ...*kernelFile) {
	t.Helper()
	r := m.reader()
	if st := r.do(readerCall{Op: "stat anew", Path: m.path(stalled.name)}); st.Size != stalled.size {
		t.Errorf("stat of the stalled file: %+v", st)
	}
	want := []string{stalled.name}
	total := stalled.size
	for _, f := range others {
		want, total = append(want, f.name), total+f.size
		r.requireWhole(f)
	}
	slices.Sort(want)
	if ls := r.do(readerCall{Op: "ls", Path: m.dir}); !slices.Equal(ls.Names, want) {
		t.Errorf("ls: %q, %q", ls.Error, ls.Names)
	}
	if df := r.do(readerCall{Op: "statfs", Path: m.dir}); df.Size != total {
		t.Errorf("df: %+v, want %d bytes", df, total)
	}
}

func TestKernelCompleteFileIsCached(t *testing.T) {
	f, probe := wholeFile("a.bin", 4<<20+123), heldFile("probe.bin", 4096, 4095)
	startKernelOrigin(t, f, probe)
	m := startKernelMount(t, "--trace", f.url, probe.url)
	prober := m.reader().open(probe)

	m.reader().requireWhole(f)
	download := f.readsLogged(m, prober, probe, 1)
	if download == 0 {
		t.Error("the reads while it downloaded were not logged")
	}
	m.reader().requireWhole(f)
	filled := f.readsLogged(m, prober, probe, 2)
	if filled == download {
		t.Error("the first read of the complete file made no request, so this shows nothing")
	}
	second := m.reader()
	second.requireWhole(f)
	second.requireWhole(f)
	if again := f.readsLogged(m, prober, probe, 3); again != filled {
		t.Errorf("reading the complete file again took %d requests, want the page cache", again-filled)
	}
	mapping := readerCall{Op: "mmap shared", Len: int(f.size), Seed: f.seed}
	requireBytes(t, second.do(mapping), f.size)
}

// readsLogged counts the kernel's reads of f, the first source, so far. The log is
// in order but late. So the function reads length bytes of another file, probe, and
// waits until the log shows that read.
func (f *kernelFile) readsLogged(m *kernelMount, prober *kernelReader, probe *kernelFile, length int) int {
	m.t.Helper()
	prober.requireRead(probe, 0, length, int64(length))
	m.awaitLogged("[TempFileStore #2] ReadAt EXIT off=0 len=" + string(rune('0'+length)) + " ")
	return strings.Count(m.stderr.String(), "[TempFileStore #1] ReadAt ENTER ")
}

func TestKernelIncompleteFileRefusesSharedMapping(t *testing.T) {
	f := heldFile("a.bin", 16<<20, 8<<20)
	m := f.mount(t)
	shared := readerCall{Op: "mmap shared", Len: 64 << 10, Seed: f.seed}
	private := readerCall{Op: "mmap private", Len: 64 << 10, Seed: f.seed}

	r := m.reader().open(f)
	if answer := r.do(shared); answer.Errno != "ENODEV" {
		t.Errorf("MAP_SHARED of an incomplete file: %+v, want ENODEV", answer)
	}
	requireBytes(t, r.do(private), 64<<10)

	f.allowAll()
	r.requireWhole(f)
	requireBytes(t, r.open(f).do(shared), 64<<10)
}

func TestKernelKilledReaderIsGone(t *testing.T) {
	f := heldFile("a.bin", 1<<20, 0)
	m := f.mount(t, "--trace")

	killed := m.reader().open(f)
	killed.send(preadCall(f, 0, 4096))
	m.awaitBlocked(1)
	killed.kill(unix.SIGKILL)
	killed.awaitGone()
	m.awaitBlocked(0)

	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGQUIT} {
		cat := m.program("cat", m.path(f.name))
		m.awaitBlocked(1)
		cat.kill(sig)
		cat.awaitGone()
		m.awaitBlocked(0)
		if got := cat.endedBy(); got != sig {
			t.Errorf("%v: cat ended by %v", sig, got)
		}
	}

	f.allowAll()
	m.reader().requireWhole(f)
	if n := len(f.requests()); n != 2 { // the head, and the rest
		t.Errorf("the file was fetched by %d requests: a killed reader ended the fetch", n)
	}
}

func TestKernelCaughtSignalDoesNotFailRead(t *testing.T) {
	f, other := heldFile("a.bin", 1<<20, 0), wholeFile("other.bin", 4096)
	startKernelOrigin(t, f, other)
	m := startKernelMount(t, "--trace", f.url, other.url)
	bystander := m.reader()

	r := m.reader().open(f)
	r.do(readerCall{Op: "catch"})
	r.send(preadCall(f, 0, 64<<10))
	m.awaitBlocked(1)
	for range 50 {
		r.interrupt(unix.SIGUSR1)
		r.interrupt(unix.SIGALRM)
		r.awaitState("D") // the kernel has sent the interrupt to the program
		bystander.requireWhole(other)
	}
	m.awaitBlocked(1)

	f.allowAll()
	requireBytes(t, r.answer(), 64<<10)
	if answer := r.do(readerCall{Op: "caught"}); answer.Error != "" {
		t.Errorf("the reader caught no signal: %+v", answer)
	}
}

func TestKernelInterruptedReaderCanStillBeKilled(t *testing.T) {
	f := heldFile("a.bin", 1<<20, 0)
	m := f.mount(t, "--trace")
	r := m.reader().open(f)
	r.do(readerCall{Op: "catch"})
	r.send(preadCall(f, 0, 4096))
	m.awaitBlocked(1)

	r.interrupt(unix.SIGUSR1)
	r.awaitState("D") // the kernel has sent the only interrupt of this read
	r.kill(unix.SIGKILL)
	r.awaitGone()
	m.awaitBlocked(0)
}

// While a signal is pending that the program catches, the kernel marks no SIGKILL for
// another one that ends it.
func TestKernelFatalSignalBesideACaughtOneEndsTheRead(t *testing.T) {
	f := heldFile("a.bin", 1<<20, 0)
	m := f.mount(t, "--trace")
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGKILL} {
		shell := m.program("bash", "-c", "trap : USR1; read -r < "+m.path(f.name))
		m.awaitBlocked(1)
		shell.thread = shell.cmd.Process.Pid
		shell.kill(unix.SIGUSR1)
		shell.awaitState("D") // the kernel has sent the only interrupt of this read
		shell.kill(sig)
		shell.awaitGone()
		m.awaitBlocked(0)
		if got := shell.endedBy(); got != sig {
			t.Errorf("the shell was ended by %v, want %v", got, sig)
		}
	}
}

// A page fault makes the kernel read ahead. It holds these pages, and who maps the file
// waits for them in a state in which nothing ends it, until the bytes come or the first
// program is gone.
func TestKernelMappingWaitsForNoProgramThatIsGone(t *testing.T) {
	f := heldFile("a.bin", 8<<20, 1<<20)
	m := f.mount(t)
	faulting, mapping := m.reader().open(f), m.reader().open(f)
	mapping.requireRead(f, 0, 4096, 4096)
	faulting.send(readerCall{Op: "mmap private", Off: 4 << 20, Len: 4096, Seed: f.seed})
	faulting.awaitState("D")
	mapping.send(readerCall{Op: "mmap private", Off: 0, Len: 4096, Seed: f.seed})
	mapping.awaitState("D")
	faulting.kill(unix.SIGKILL)
	faulting.awaitGone()
	if a := mapping.answer(); a.Error != "" {
		t.Errorf("the program that mapped the file: %s", a.Error)
	}
}

// Reads ahead of a private mapping are background requests. The mount raises their
// limit and the kernel's congestion threshold together, and the read-ahead.
func TestKernelMountIsTuned(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may always raise the limits of a mount")
	}
	m := wholeFile("a.bin", 1).mount(t)
	ctl := mountedAt(m.dir)
	for name, want := range map[string]string{"max_background": "1024\n", "congestion_threshold": "768\n"} {
		got := make([]byte, 32)
		f, err := ctl.openControl(name, unix.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, err := f.Read(got)
		if err != nil || string(got[:n]) != want {
			t.Errorf("%s: got %q, %v; want %q", name, got[:max(n, 0)], err, want)
		}
	}
	path := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", ctl.minor)
	if got, err := os.ReadFile(path); err != nil || string(got) != "1024\n" {
		t.Errorf("%s: got %q, %v; want 1024", path, got, err)
	}
}
