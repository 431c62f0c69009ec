//go:build browser

// The browser tests: chromium uploads files of a mount while they download from a slow
// origin, one that misbehaves by script. Every byte that arrives is checked, and so is
// the time: an upload takes as long as the slower side, not the sum of both. Each test
// has an origin, a mount, an upload server and a tab of its own.

package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// fileBytes is the size of a file, more or less, which then takes 21 s: so an upload
	// may lose 2 s, beside which a busy machine's delays are short.
	fileBytes = 64 << 20

	// amid is how much of an upload arrives before the test interferes: more than a
	// piece.
	amid = pieceBytes + 1<<20

	// silence is longer than the program's default --stall-timeout, so the program
	// replaces the silent connections by others, which are silent too at first.
	silence = 20 * time.Second
)

// TestBrowser runs each scenario for each way to upload. Each way has a browser of its
// own, and they run side by side. A browser has one scenario at a time: it reads files
// in a few threads only, which the reads of other scenarios that wait would occupy.
func TestBrowser(t *testing.T) {
	for _, way := range uploadWays {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			b := startChromium(t)
			for _, scenario := range scenariosOf(way) {
				t.Run(scenario.name, func(t *testing.T) { scenario.run(t, b, way) })
			}
		})
	}
}

type uploadScenario struct {
	name string
	run  func(t *testing.T, b *chromium, way string)
}

func scenariosOf(way string) []uploadScenario {
	all := []uploadScenario{
		{"slow", uploadOfSlow},
		{"cut", uploadOfCut},
		{"stalled", uploadOfStalled},
		{"tab closed", uploadClosed},
		{"fsmount ended", uploadEnded},
		{"changed", changedUpload{}.run},
		{"changed with its time", changedUpload{otherTime: true}.run},
		{"changed with its size", changedUpload{otherSize: true}.run},
		{"changed with its size and time", changedUpload{otherSize: true, otherTime: true}.run},
	}
	if way != "form" { // it sends its files one after the other
		all = append(all, uploadScenario{"four at once", uploadOfFour})
	}
	return all
}

// browserCase is a mount whose files are chosen in a tab.
type browserCase struct {
	t      *testing.T
	files  []*kernelFile
	m      *kernelMount
	server *uploadServer
	tab    *uploadTab
}

func (b *chromium) choose(t *testing.T, files ...*kernelFile) *browserCase {
	t.Helper()
	startKernelOrigin(t, files...)
	c := &browserCase{t: t, files: files, server: startUploadServer(t, files)}
	var urls, paths []string
	for _, f := range files {
		urls = append(urls, f.url)
	}
	c.m = startKernelMount(t, urls...)
	for _, f := range files {
		paths = append(paths, c.m.path(f.name))
	}
	c.tab = b.tab(t, c.server, paths)
	return c
}

// awaitUploaded returns when n bytes of f were uploaded. It requires that much of f is
// still to be sent to the mount.
func (c *browserCase) awaitUploaded(f *kernelFile, n int64) {
	c.t.Helper()
	c.server.await(f, fmt.Sprintf("%d bytes", n), func(u *receivedUpload) bool { return u.bytes >= n })
	if sent := f.sent.Load(); sent > f.size*3/4 {
		c.t.Errorf("%d of %d bytes of %s had been sent when %d were uploaded: it is not uploaded while it downloads", sent, f.size, f.name, n)
	}
}

// requireUploaded uploads all files and requires that each arrives whole and at once,
// that all takes a tenth more than slower at most, and that no read fails.
func (c *browserCase) requireUploaded(way string, slower time.Duration) {
	c.t.Helper()
	upload := c.tab.start(way)
	c.awaitUploaded(c.files[0], 1<<20)
	took := upload.require("load")
	c.t.Logf("%.3f of the slower side: %v of %v", took.Seconds()/slower.Seconds(), took, slower)
	if took > slower*11/10 {
		c.t.Errorf("the upload took %v, the slower side takes %v", took, slower)
	}
	for _, f := range c.files {
		requests := 1
		if way == "pieces" {
			requests = int((f.size + pieceBytes - 1) / pieceBytes)
		}
		u := c.server.upload(f)
		if !u.whole(f) || u.begun != requests || u.broken > 0 {
			c.t.Errorf("%s did not arrive whole in %d requests: %+v", f.name, requests, u)
		}
	}
	requireNoReadError(c.t, c.m)
}

// requireFailed requires that the page sees an error, and that f did not arrive.
func (c *browserCase) requireFailed(upload *pageUpload, f *kernelFile) {
	c.t.Helper()
	upload.require("error")
	if u := c.server.upload(f); u.whole(f) {
		c.t.Errorf("%s arrived whole, though it could not be read: %+v", f.name, u)
	}
}

func uploadOfSlow(t *testing.T, b *chromium, way string) {
	f := slowFile("slow.bin", fileBytes+123)
	b.choose(t, f).requireUploaded(way, download(f.size))
}

// Each of the files has a link of its own.
func uploadOfFour(t *testing.T, b *chromium, way string) {
	var files []*kernelFile
	for i := range 4 {
		files = append(files, slowFile(fmt.Sprintf("%d.bin", i), fileBytes+int64(i)))
	}
	b.choose(t, files...).requireUploaded(way, download(files[3].size))
}

// Each place cuts the bodies that begin before it and come to it.
func uploadOfCut(t *testing.T, b *chromium, way string) {
	const places = 4
	f := slowFile("cut.bin", fileBytes)
	f.cutAt = func(start int64) int64 {
		for i := range int64(places) {
			if place := f.size*(i+1)/(places+1) + i; start < place {
				return place
			}
		}
		return f.size
	}
	c := b.choose(t, f)
	c.requireUploaded(way, download(f.size))
	if n := f.cuts.Load(); n < places {
		t.Errorf("%d bodies were cut, want at least %d", n, places)
	}
	c.m.awaitLogged("ended the body early: retry in ")
}

func uploadOfStalled(t *testing.T, b *chromium, way string) {
	f := slowFile("stalled.bin", fileBytes/2)
	f.carry = (&slowLink{rate: slowRate, silentAt: f.size / 2}).carry
	c := b.choose(t, f)
	c.requireUploaded(way, download(f.size)+silence)
	c.m.awaitLogged("the origin sent no byte for 15s")
}

// changedUpload is a file that becomes another one amid its upload. Its bodies break off
// at that moment, so the rest of the version that the page chose cannot be had any more.
// The content and the ETag are other ones in any case.
type changedUpload struct{ otherTime, otherSize bool }

func (change changedUpload) run(t *testing.T, b *chromium, way string) {
	old := slowFile("changed.bin", fileBytes)
	fresh := wholeFile(old.name, old.size)
	fresh.seed = 2 // startKernelOrigin gives 1 to the old one
	old.modTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	fresh.modTime = old.modTime
	if change.otherTime {
		fresh.modTime = old.modTime.Add(time.Hour)
	}
	if change.otherSize {
		fresh.size += 1 << 20
	}
	c := b.choose(t, old)
	upload := c.tab.start(way)
	c.awaitUploaded(old, amid)
	old.change(fresh)
	c.requireFailed(upload, old)
	c.m.awaitLogged(errChanged.Error())
	tries := 1
	if way == "pieces" {
		tries = pieceTries
	}
	c.server.await(old, "each try break off", func(u *receivedUpload) bool { return u.broken == tries })
	fresh.await(t, "a request after the change", func() bool { return len(fresh.asked)+fresh.probes > 0 })
}

func uploadClosed(t *testing.T, b *chromium, way string) {
	f := slowFile("closed.bin", fileBytes/2)
	c := b.choose(t, f)
	c.tab.start(way)
	c.awaitUploaded(f, 2<<20)
	c.tab.close()
	c.server.await(f, "the end of the upload", func(u *receivedUpload) bool { return u.broken == 1 })

	requireCheck(t, c.m.dir, 2*time.Second, 0)
	const step = 8 << 20 // takes 3 s
	r := c.m.reader().open(f)
	for off := int64(0); off < f.size; off += step {
		r.requireRead(f, off, step, step)
	}
	r.kill(unix.SIGKILL)
	r.awaitGone()
	eventually(t, func() (bool, string) {
		_, stdout, stderr := runProgram(t, "ps", c.m.dir)
		return stdout == "no operation in flight\n", "the whole file was read, but operations are in flight: " + stdout + stderr
	})
	eventually(t, func() (bool, string) { // the browser closes the file after the connection
		_, stdout, stderr := runProgram(t, "status", "--json", c.m.dir)
		return strings.Contains(stdout, `"handles": 0`), stdout + stderr
	})
	requireCheck(t, c.m.dir, 2*time.Second, 0)
	requireNoReadError(t, c.m)
	command := strings.Fields(unmountCommand(c.m.dir))
	if status, stdout, stderr := runToEnd(t, command[0], command[1:]...); status != 0 {
		t.Errorf("%v: status %d: %s%s", command, status, stdout, stderr)
	}
	c.m.requireExit(0)
	if u := c.server.upload(f); u.whole(f) {
		t.Errorf("the file arrived whole, though its tab was closed: %+v", u)
	}
}

func uploadEnded(t *testing.T, b *chromium, way string) {
	f := slowFile("ended.bin", fileBytes)
	c := b.choose(t, f)
	upload := c.tab.start(way)
	c.awaitUploaded(f, amid)
	c.m.signal(unix.SIGTERM)
	c.m.requireExit(0)
	c.requireFailed(upload, f)
}
