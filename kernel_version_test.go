// Kernel tests of what a name stands for after its file changed at the origin, and of
// the commands on files.

package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// changedPair returns a file that sends its first sent bytes, and what becomes of it:
// another size, another date, and other content everywhere.
func changedPair(sent int64) (old, fresh *kernelFile) {
	old, fresh = heldFile("a.bin", 8<<20, sent), wholeFile("a.bin", 5<<20+77)
	old.modTime, fresh.modTime = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2021, 6, 7, 8, 9, 10, 0, time.UTC)
	fresh.seed = 2
	return old, fresh
}

// statOf is what stat says of a file, without a word of the time of access.
func (m *kernelMount) statOf(f *kernelFile) string {
	m.t.Helper()
	return strings.TrimSpace(m.lookAt("stat", "-c", "%i %s %Y", m.path(f.name)))
}

// A program that opens the name again after ESTALE, to go on where it was, gets no byte
// of the new version, until the user takes it.
func TestKernelChangedFileIsStale(t *testing.T) {
	const sent = 1 << 20
	old, fresh := changedPair(sent)
	m := old.mount(t, "--trace", "--linger=1h")
	stale, waiting := m.reader().open(old), m.reader().open(old)
	stale.requireRead(old, 0, sent, sent)
	before := m.statOf(old)
	waiting.send(preadCall(old, 4<<20, 4096))
	m.awaitBlocked(1)

	old.change(fresh)
	waiting.requireErrno("ESTALE")
	for range 3 {
		requireOldVersion(t, stale, old, sent)
		stale.open(old)
	}
	if now := m.statOf(old); now != before {
		t.Errorf("stat after the change: %s, want %s as before", now, before)
	}
	m.awaitLogged(`changed: "a.bin"`)
	if n := strings.Count(m.stderr.String(), `changed: "a.bin" has another version`); n != 1 {
		t.Errorf("the log says %d times that the file changed, want 1", n)
	}
	requireNamed(t, m.stderr.String(), "8388608 bytes, ETag ", "5242957 bytes, ETag ", `fsmount refresh DIR a.bin`)
	for _, command := range []string{"status", "ps", "check"} {
		status, stdout, stderr := runProgram(t, command, m.dir)
		if status != 0 || !strings.Contains(stdout, "a.bin") || !strings.Contains(stdout, "its size was 8388608 and is 5242957 bytes; fsmount refresh") {
			t.Errorf("%s: status %d, %s%s", command, status, stdout, stderr)
		}
	}

	m.fileCommand(0, "a.bin: is now 5242957 bytes, ETag ", "refresh", "a.bin")
	m.reader().requireWhole(fresh)
	if now, want := m.statOf(fresh), fmt.Sprint(fresh.size, " ", fresh.modTime.Unix()); !strings.HasSuffix(now, " "+want) || now == before {
		t.Errorf("stat of the new version: %s, want another inode and %s", now, want)
	}
	requireOldVersion(t, stale, old, sent)
	for _, r := range []*kernelReader{stale, waiting} { // the handles of the old version go
		r.open(fresh)
	}
	awaitHeld(t, m, 1)
	m.fileCommand(0, "a.bin: the origin still has this version", "refresh", m.path("a.bin"))
}

// fileCommand runs a command on files, which must exit with status and say want.
func (m *kernelMount) fileCommand(status int, want, command string, args ...string) {
	m.t.Helper()
	got, stdout, stderr := runProgram(m.t, append([]string{command, m.dir}, args...)...)
	if got != status || !strings.Contains(stdout+stderr, want) {
		m.t.Errorf("%s %q: status %d, %s%s, want %d, %q", command, args, got, stdout, stderr, status, want)
	}
}

// requireOldVersion requires that a handle of a replaced version can read the first
// present bytes, and nothing else.
func requireOldVersion(t *testing.T, r *kernelReader, old *kernelFile, present int64) {
	t.Helper()
	r.requireRead(old, 0, int(present), present)
	r.send(preadCall(old, old.size-4096, 4096))
	r.requireErrno("ESTALE")
	r.send(preadCall(old, present, 1<<20))
	r.requireErrno("ESTALE")
	r.requireRead(old, present-10, 10, 10)
}

// awaitHeld returns when n temporary files are open.
func awaitHeld(t *testing.T, m *kernelMount, n int) {
	t.Helper()
	eventually(t, func() (bool, string) {
		held := storesBelow(m.tempDir)
		return len(held) == n, fmt.Sprintf("temporary files: %v, want %d", held, n)
	})
}

func TestKernelFollowedFileIsTheNewVersionAtTheNextOpen(t *testing.T) {
	const sent = 1 << 20
	old, fresh := changedPair(sent)
	fresh.modTime = old.modTime
	m := old.mount(t, "--trace", "--on-change=follow")
	stale, waiting := m.reader().open(old), m.reader().open(old)
	stale.requireRead(old, 0, sent, sent)
	before := m.statOf(old)
	waiting.send(preadCall(old, 4<<20, 4096))
	m.awaitBlocked(1)

	old.change(fresh)
	waiting.requireErrno("ESTALE")
	want := fmt.Sprint(fresh.size, " ", old.modTime.Unix()+2)
	if now := m.statOf(fresh); !strings.HasSuffix(now, " "+want) || now == before {
		t.Errorf("stat after the change: %s, want another inode and %s", now, want)
	}
	waiting.open(fresh)
	waiting.requireWhole(fresh)
	requireOldVersion(t, stale, old, sent)
	stale.open(fresh) // the last handle of the old version is gone
	awaitHeld(t, m, 1)
}

// A complete file fetches nothing that would show a change: opens ask.
func TestKernelFollowedCompleteFileIsAskedFor(t *testing.T) {
	old, fresh := wholeFile("a.bin", 1<<20), wholeFile("a.bin", 1<<20+5)
	fresh.seed = 2
	m := old.mount(t, "--on-change=follow")
	r := m.reader()
	r.requireWhole(old)
	old.change(fresh)
	eventually(t, func() (bool, string) {
		r.open(old)
		now := m.statOf(fresh)
		return strings.Contains(now, fmt.Sprint(" ", fresh.size, " ")), "stat: " + now
	})
	r.requireWhole(fresh)
}

// A download that somebody asked for goes on in the next version.
func TestKernelFetchGoesOnAfterAChange(t *testing.T) {
	old, fresh := changedPair(1 << 20)
	m := old.mount(t, "--on-change=follow", "--prefetch")
	m.reader().open(old).requireRead(old, 0, 1<<20, 1<<20)
	old.change(fresh)
	m.fileCommand(0, "downloading", "fetch", "--wait", "a.bin")
	if asked := fresh.requests(); len(asked) == 0 {
		t.Error("the new version was not requested")
	}
}

// Nobody has a byte of the old version yet. Only a replacement of the same size is what
// the name promised.
func TestKernelFileThatChangedBeforeItWasRead(t *testing.T) {
	for _, size := range []int64{4 << 20, 4<<20 + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			old, fresh := heldFile("a.bin", 4<<20, 0), wholeFile("a.bin", size)
			fresh.seed = 2
			m := old.mount(t, "--trace")
			before := m.statOf(old)
			waiting, later := m.reader().open(old), m.reader().open(old)
			waiting.send(preadCall(fresh, 1<<20, 4096))
			m.awaitBlocked(1)
			old.change(fresh)
			if size != old.size {
				waiting.requireErrno("ESTALE")
				later.send(preadCall(old, 0, 4096))
				later.requireErrno("ESTALE")
				return
			}
			requireBytes(t, waiting.answer(), 4096)
			later.requireWhole(fresh)
			if now := m.statOf(fresh); now != before {
				t.Errorf("stat: %s, want %s as before", now, before)
			}
			requireNoReadError(t, m)
			waiting.kill(unix.SIGKILL)
			awaitHeld(t, m, 1)
		})
	}
}

// A program that reads the head to know the kind of a file gets little more. The rest
// comes when somebody reads on.
func TestKernelHeadAloneIsNotAReasonToDownload(t *testing.T) {
	f := wholeFile("a.bin", 16<<20)
	m := f.mount(t)
	r := m.reader().open(f)
	r.requireRead(f, 0, 4096, 4096)
	r.requireRead(f, 4096, 8192, 8192)
	r.requireRead(f, f.size-100, 100, 100)
	r.kill(unix.SIGKILL)
	r.awaitGone()
	if asked := f.requests(); len(asked) != 2 || asked[0].span != (byteRange{0, headBytes}) || asked[1].span != (byteRange{f.size - 100, f.size}) {
		t.Errorf("requests: %+v, want one for the first %d bytes, and one for the last 100", asked, headBytes)
	}
	m.reader().requireWhole(f)
	f.requireSent(t, f.size, 0)
}

func TestKernelFetchAndForget(t *testing.T) {
	files := []*kernelFile{wholeFile("a.bin", 2<<20), wholeFile("b.bin", 3<<20), wholeFile("c.bin", 1<<20)}
	startKernelOrigin(t, files...)
	m := startKernelMount(t, "--prefetch=b.bin", files[0].url, files[1].url, files[2].url)
	m.fileCommand(0, "a.bin: downloading", "fetch", "--wait", "b.bin", "a.bin")
	awaitHeld(t, m, 2)
	for i, want := range []int{1, 1, 0} {
		if asked := files[i].requests(); len(asked) != want {
			t.Errorf("requests for %s: %+v, want %d", files[i].name, asked, want)
		}
	}

	r := m.reader().open(files[0])
	m.fileCommand(1, "a.bin: 1 handle open: close it first", "forget", "a.bin")
	r.requireWhole(files[0])
	r.kill(unix.SIGKILL)
	r.awaitGone()
	eventually(t, func() (bool, string) {
		_, stdout, _ := runProgram(t, "status", "--json", m.dir)
		return !strings.Contains(stdout, `"handles": 1`), stdout
	})
	m.fileCommand(0, "a.bin: gave back 2.0 MiB", "forget", "a.bin")
	awaitHeld(t, m, 1)
	m.reader().requireWhole(files[0])
	m.fileCommand(2, `no file has the name "d.bin", did you mean a.bin?`, "forget", "b.bin", "d.bin")
	m.fileCommand(2, "NAME is missing", "refresh")

	m.fileCommand(0, "b.bin: gave back", "forget", "b.bin")
	for _, test := range []struct {
		f                  *kernelFile
		verb, did, outcome string
	}{
		{files[2], "forget", "gave back", "its space was given back"},
		{files[1], "rm", "removed", "it was removed from the mount"},
	} {
		ended := make(chan string)
		test.f.allow(1 << 19)
		asked := len(test.f.requests())
		go func() {
			status, _, stderr := runProgram(t, "fetch", m.dir, "--wait", test.f.name)
			ended <- fmt.Sprint(status, stderr)
		}()
		test.f.await(t, "the download begin", func() bool { return len(test.f.asked) > asked })
		m.fileCommand(0, test.f.name+": "+test.did, test.verb, test.f.name)
		if text := <-ended; !strings.HasPrefix(text, "1") || !strings.Contains(text, test.f.name+": "+test.outcome) {
			t.Errorf("fetch --wait of a file after %s: %s", test.verb, text)
		}
	}
	files[2].gone.Store(true)
	m.fileCommand(1, "c.bin: the origin answered 404", "fetch", "--wait", "c.bin")
	m.fileCommand(1, "c.bin: ask ", "refresh", "c.bin")
}

// The files come in the order of the sources. One that stalls holds up no other.
func TestKernelPrefetch(t *testing.T) {
	files := []*kernelFile{wholeFile("a.bin", 2<<20), heldFile("b.bin", 2<<20, 1<<20), wholeFile("c.bin", 1<<20)}
	startKernelOrigin(t, files...)
	m := startKernelMount(t, "--prefetch", files[0].url, files[1].url, files[2].url)
	files[2].await(t, "the download of the last file", func() bool { return len(files[2].asked) > 0 })
	if first, second := files[0].requests(), files[1].requests(); len(first) != 1 || len(second) != 1 || second[0].at.Before(first[0].at) {
		t.Errorf("requests: %+v, then %+v, want one each", first, second)
	}
	files[1].allowAll()
	m.fileCommand(0, "downloading", "fetch", "--wait", "a.bin", "b.bin", "c.bin")
	status, stdout, stderr := runProgram(t, "-mount", t.TempDir(), "--prefetch=x.bin", files[0].url)
	if status != 2 || stdout != "" || !strings.Contains(stderr, `--prefetch: no file has the name "x.bin"`) {
		t.Errorf("--prefetch of a name that is not there: status %d, %s%s", status, stdout, stderr)
	}
}

// Uploaders that resume open the name again after any error and go on where they were.
// None gets a byte of the new version, whenever the file changes and to whatever.
func TestKernelResumingReaderNeverMixesVersions(t *testing.T) {
	const size, piece, count = 1 << 20, 64 << 10, 200
	rng := rand.New(rand.NewPCG(1, 2))
	files, urls := make([]*kernelFile, count), make([]string, count)
	for i := range files {
		files[i] = heldFile(fmt.Sprintf("%d.bin", i), size, piece+rng.Int64N(size-piece))
		files[i].modTime = demoModTime()
	}
	startKernelOrigin(t, files...)
	for i, f := range files {
		urls[i] = f.url
	}
	m := startKernelMount(t, urls...)
	type upload struct {
		*kernelReader
		f           *kernelFile
		off, change int64 // bytes; the file changes while change is read
		stale       int
	}
	var uploads []*upload
	for i, f := range files {
		if i < 20 {
			uploads = append(uploads, &upload{kernelReader: m.reader()})
		}
		u := uploads[i%20]
		*u = upload{kernelReader: u.open(f), f: f, change: piece * (1 + rng.Int64N(f.held.off/piece))}
		fresh := wholeFile(f.name, []int64{size, size + 4096}[i%2])
		fresh.seed, fresh.modTime = f.seed+count, []time.Time{f.modTime, f.modTime.Add(time.Hour)}[i/2%2]
		for u.off < u.change {
			u.requireRead(f, u.off, piece, piece)
			u.off += piece
		}
		u.send(preadCall(f, u.off, piece))
		f.change(fresh)
		if i%20 < 19 {
			continue
		}
		for running := slices.Clone(uploads); len(running) > 0; { // all at once: each waits for its retry
			running = slices.DeleteFunc(running, func(u *upload) bool {
				switch answer := u.answer(); {
				case answer.Error == "":
					u.off += answer.N
				case answer.Errno == "ESTALE":
					u.stale++
					u.open(u.f)
				default:
					t.Errorf("%s: %+v", u.f.name, answer)
					return true
				}
				if u.stale < 3 {
					u.send(preadCall(u.f, u.off, piece))
				}
				return u.stale == 3
			})
		}
	}
}
