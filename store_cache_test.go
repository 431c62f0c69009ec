// Tests of the cache that outlives its stores: what a later store takes over, what the
// index claims and when, what is thrown away, and what is left as it is.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// tagged is a file of size bytes with a strong ETag.
func tagged(size int64) Object { return Object{Size: size, Ranges: true, ETag: `"v1"`} }

// inCache runs test in a bubble with the cache at dir, and returns what the cache logged.
func inCache(t *testing.T, dir string, test func(t *testing.T, c *diskCache)) (logged string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		text := newKernelLog()
		log := newEventLog(text)
		c, err := openCache(dir, log)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			c.root.Close()
			log.Close(logPatience)
			logged = text.String()
		}()
		test(t, c)
	})
	return logged
}

// store returns a store of obj, which is the version of the file called name, and its origin.
func (c *diskCache) store(obj Object, name string) (*TempFileStore, *scriptedOrigin) {
	config := testConfig(c.dir)
	config.room.cache = c
	o := newScriptedOrigin(obj)
	s := newTempFileStore(o, obj, config)
	s.UseCache(name)
	s.AddHandle()
	return s, o
}

// keep leaves the first n bytes of obj in the cache, in run of their own.
func keep(t *testing.T, dir string, obj Object, n int64) (entry string) {
	t.Helper()
	inCache(t, dir, func(t *testing.T, c *diskCache) {
		s, o := c.store(obj, "a.bin")
		defer s.Close()
		startRead(t.Context(), s, byteRange{0, n})
		o.send(n)
		entry = s.entry
	})
	return entry
}

// claimed returns what the index of an entry claims, nil if there is none.
func (c *diskCache) claimed(t *testing.T, path string) []int64 {
	t.Helper()
	x, err := c.read(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return x.Present
}

func requireFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	var names []string
	files, err := os.ReadDir(dir)
	for _, f := range files {
		names = append(names, f.Name())
	}
	slices.Sort(want)
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("the cache has %q, %v, want %q", names, err, want)
	}
}

func TestCacheGoesOnFromWhatWasPresent(t *testing.T) {
	const size, half = 4 * mib, 2*mib + 5
	dir := filepath.Join(t.TempDir(), "not", "there")
	obj := tagged(size)
	keep(t, dir, obj, half)
	inCache(t, dir, func(t *testing.T, c *diskCache) {
		s, o := c.store(obj, "a.bin")
		defer s.Close()
		if status := s.Snapshot(); status.Present != half || status.State != "paused" || (s.file.Load() != nil) {
			t.Errorf("at the start: %v, a descriptor: %t, want %d bytes, paused, none", status, (s.file.Load() != nil), half)
		}
		if _, ready := s.ViewReady(0, 100, 0); ready {
			t.Error("a read was ready before anybody waited for the disk to open the data")
		}
		for _, r := range []byteRange{{0, 100}, {half - 5, half}} {
			startRead(t.Context(), s, r).mustReturn(t, nil)
		}
		if v, ready := s.ViewReady(mib, mib, 0); !ready || checkContent(v.data, testSeed, mib) != nil {
			t.Error("the data is open, and a view of it is not ready, or wrong")
		} else {
			v.done()
		}
		o.mustHave(t, 0)
		rd := startRead(t.Context(), s, byteRange{0, size})
		o.mustAsk(t, 0, byteRange{half, size}).send(size - half)
		rd.mustReturn(t, nil)
	})
	inCache(t, dir, func(t *testing.T, c *diskCache) {
		s, o := c.store(obj, "a.bin")
		defer s.Close()
		if !s.Complete() || s.Snapshot().State != "complete" {
			t.Error("a file whose every byte is in the cache is not complete")
		}
		startRead(t.Context(), s, byteRange{mib, size}).mustReturn(t, nil)
		o.mustHave(t, 0)
		other, _ := c.store(obj, "another name of it")
		defer other.Close()
		if other.Snapshot().Present != 0 {
			t.Error("the file has another name, and the bytes of this one")
		}
	})
}

func TestCacheKeepsNothingButTheSameVersion(t *testing.T) {
	const size = 100_000
	date := Object{Size: size, LastModified: "Tue, 01 Jan 2030 00:00:00 GMT", dated: dateStrong}
	with := func(obj Object, change func(*Object)) Object {
		change(&obj)
		return obj
	}
	for about, test := range map[string]struct {
		was, is Object
		kept    bool
		says    string
	}{
		"the same":             {tagged(size), tagged(size), true, ""},
		"the date":             {date, date, true, "a strong ETag, which its origin does not send"},
		"another tag":          {tagged(size), with(tagged(size), func(o *Object) { o.ETag = `"v2"` }), false, "another version"},
		"another size":         {tagged(size), tagged(size + 1), false, "another version"},
		"a tag that is gone":   {with(date, func(o *Object) { o.ETag = `"v1"` }), date, false, "another version"},
		"another date":         {date, with(date, func(o *Object) { o.LastModified = "Tue, 01 Jan 2030 00:00:01 GMT" }), false, "another version"},
		"another weak tag":     {with(date, func(o *Object) { o.weakETag = `"v1"` }), with(date, func(o *Object) { o.weakETag = `"v2"` }), false, "another version"},
		"a date of now":        {with(date, func(o *Object) { o.dated = dateNow }), date, false, ""},
		"no validator":         {Object{Size: size}, Object{Size: size}, false, ""},
		"a tag of no meaning":  {with(tagged(size), func(o *Object) { o.ignored.tag = true }), tagged(size), false, ""},
		"doubted from then on": {tagged(size), with(tagged(size), func(o *Object) { o.ignored.tag = true }), false, "another version"},
		"a tag beyond UTF-8":   {with(tagged(size), func(o *Object) { o.ETag = "\"\xff\"" }), with(tagged(size), func(o *Object) { o.ETag = "\"\xfe\"" }), false, "another version"},
	} {
		t.Run(about, func(t *testing.T) {
			dir := t.TempDir()
			keep(t, dir, test.was, size/2)
			logged := inCache(t, dir, func(t *testing.T, c *diskCache) {
				s, _ := c.store(test.is, "a.bin")
				defer s.Close()
				if kept := s.Snapshot().Present == size/2; kept != test.kept {
					t.Errorf("%d bytes are present, want them kept: %t", s.Snapshot().Present, test.kept)
				}
				if !test.kept {
					requireFiles(t, dir)
				}
			})
			if !strings.Contains(logged, test.says) || test.says == "" && logged != "" {
				t.Errorf("logged %q, want %q", logged, test.says)
			}
		})
	}
}

// What the cache did not make, or cannot read, stays what it is, and its source goes without.
func TestCacheLeavesWhatIsNotItsOwn(t *testing.T) {
	const size = 100_000
	for about, damage := range map[string]func(entry string) error{
		"cut":        func(entry string) error { return os.Truncate(entry+".index", 50) },
		"empty":      func(entry string) error { return os.Truncate(entry+".index", 0) },
		"foreign":    func(entry string) error { return os.WriteFile(entry+".index", []byte("my diary\n"), 0o600) },
		"short data": func(entry string) error { return os.Truncate(entry+".data", size/2-1) },
		"no data":    func(entry string) error { return os.Remove(entry + ".data") },
		"a pipe": func(entry string) error {
			return errors.Join(os.Remove(entry+".index"), syscall.Mkfifo(entry+".index", 0o600))
		},
		"a directory": func(entry string) error {
			return errors.Join(os.Remove(entry+".index"), os.Mkdir(entry+".index", 0o700))
		},
		"data is a dir": func(entry string) error {
			return errors.Join(os.Remove(entry+".data"), os.Remove(entry+".index"), os.Mkdir(entry+".data", 0o700))
		},
		"of another file": func(entry string) error {
			other := filepath.Join(filepath.Dir(entry), strings.Repeat("0", 64))
			text, err := cacheIndex{Entry: filepath.Base(other), Size: size, Present: []int64{0, 5}}.encode(), error(nil)
			return errors.Join(err, os.WriteFile(entry+".index", text, 0o600))
		},
	} {
		t.Run(about, func(t *testing.T) {
			dir := t.TempDir()
			obj := tagged(size)
			entry := keep(t, dir, obj, size/2)
			diary := filepath.Join(dir, "diary.txt")
			if err := errors.Join(damage(entry), os.WriteFile(diary, nil, 0o600), os.WriteFile(entry+".index.new", nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			before := treeOf(t, dir)
			logged := inCache(t, dir, func(t *testing.T, c *diskCache) {
				s, o := c.store(obj, "a.bin")
				defer s.Close()
				rd := startRead(t.Context(), s, byteRange{0, size})
				o.send(size)
				rd.mustReturn(t, nil)
				if _, dropped := c.dropIdle(); dropped {
					t.Error("it was removed for its room")
				}
			})
			if after := treeOf(t, dir); after != before {
				t.Errorf("the cache had\n%s and has\n%s", before, after)
			}
			if !strings.Contains(logged, entry) || !strings.Contains(logged, diary) {
				t.Errorf("the log names not both of %s and %s: %s", entry, diary, logged)
			}
		})
	}
}

// treeOf lists the files of dir with their content.
func treeOf(t *testing.T, dir string) (tree string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		var text []byte
		if f.Type().IsRegular() {
			text, _ = os.ReadFile(filepath.Join(dir, f.Name()))
		}
		tree += f.Name() + " " + f.Type().String() + " " + string(text[:min(len(text), 300)]) + "\n"
	}
	return tree
}

func TestCacheSavesInTime(t *testing.T) {
	const size = 512 * mib // a saveShare of it is 2 MiB
	inCache(t, t.TempDir(), func(t *testing.T, c *diskCache) {
		s, o := c.store(tagged(size), "a.bin")
		s.AddHandle()
		startRead(t.Context(), s, byteRange{0, size})
		requireClaim := func(n int64) {
			t.Helper()
			synctest.Wait()
			if got := c.claimed(t, s.entry); n == 0 && got != nil || n > 0 && !slices.Equal(got, []int64{0, n}) {
				t.Errorf("the index claims %v, want the first %d bytes", got, n)
			}
		}
		o.send(1000)
		time.Sleep(saveInterval - 1)
		requireClaim(0)
		time.Sleep(time.Nanosecond)
		requireClaim(1000)
		o.send(2*mib - 1)
		requireClaim(1000)
		o.send(1)
		requireClaim(1000 + 2*mib)
		o.send(1)
		s.DropHandle()
		requireClaim(1000 + 2*mib)
		s.DropHandle()
		requireClaim(1001 + 2*mib)
		o.send(1)
		s.Close()
		requireClaim(1002 + 2*mib)
	})
	inCache(t, t.TempDir(), func(t *testing.T, c *diskCache) { // a file that is complete
		s, o := c.store(tagged(1000), "a.bin")
		defer s.Close()
		startRead(t.Context(), s, byteRange{0, 1000})
		o.send(1000)
		synctest.Wait()
		if got := c.claimed(t, s.entry); !slices.Equal(got, []int64{0, 1000}) {
			t.Errorf("the index claims %v", got)
		}
	})
}

// Bytes whose sync failed may be gone, although the next sync succeeds.
func TestCacheClaimsNothingAfterAFailedSync(t *testing.T) {
	dir := t.TempDir()
	logged := inCache(t, dir, func(t *testing.T, c *diskCache) {
		s, o := c.store(tagged(1000), "a.bin")
		startRead(t.Context(), s, byteRange{0, 1000})
		o.send(100)
		time.Sleep(saveInterval)
		o.send(100)
		good := s.file.Load()
		bad, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		s.file.Store(bad) // fsync(2) fails with EINVAL
		time.Sleep(saveInterval)
		synctest.Wait()
		requireFiles(t, dir)
		s.file.Store(good)
		o.send(100)
		s.Close()
		errors.Join(bad.Close(), w.Close())
		requireFiles(t, dir)
	})
	if !strings.Contains(logged, "invalid argument") {
		t.Errorf("logged %q", logged)
	}
}

// Whatever makes a store leave the cache, no file of it stays, and its readers keep what
// they have, even if nobody had opened the data yet.
func TestCacheForgets(t *testing.T) {
	const size = 100_000
	obj, fresh := tagged(size), Object{Size: size, Ranges: true, ETag: `"v2"`}
	for about, leave := range map[string]func(t *testing.T, s *TempFileStore) *TempFileStore{
		"on demand": func(t *testing.T, s *TempFileStore) *TempFileStore {
			if err := s.LeaveCache(); err != nil {
				t.Error(err)
			}
			return s
		},
		"a change after a delivery": func(t *testing.T, s *TempFileStore) *TempFileStore {
			startRead(t.Context(), s, byteRange{0, 10}).mustReturn(t, nil)
			if s.Replace(s.NewVersion(fresh)) {
				t.Error("another version took the place of delivered bytes")
			}
			return s
		},
	} {
		t.Run(about, func(t *testing.T) {
			dir := t.TempDir()
			keep(t, dir, obj, size)
			inCache(t, dir, func(t *testing.T, c *diskCache) {
				s, o := c.store(obj, "a.bin")
				defer s.Close()
				leave(t, s)
				requireFiles(t, dir)
				startRead(t.Context(), s, byteRange{0, size}).mustReturn(t, nil)
				o.mustHave(t, 0)
				if err := s.LeaveCache(); err != nil {
					t.Error(err)
				}
			})
		})
	}
	for about, replace := range map[string]func(s *TempFileStore) *TempFileStore{
		"forget": func(s *TempFileStore) *TempFileStore {
			next, _ := s.Forget()
			return next
		},
		"refresh": func(s *TempFileStore) *TempFileStore {
			next := s.NewVersion(fresh)
			s.Replace(next)
			return next
		},
	} {
		t.Run(about, func(t *testing.T) {
			dir := t.TempDir()
			keep(t, dir, obj, size/2)
			inCache(t, dir, func(t *testing.T, c *diskCache) {
				s, o := c.store(obj, "a.bin")
				if next, _ := s.Forget(); next != nil {
					t.Error("the cache forgot a file that a program has open")
				}
				s.DropHandle()
				next := replace(s)
				requireFiles(t, dir)
				rd := startRead(t.Context(), next, byteRange{0, size})
				o.send(size)
				rd.mustReturn(t, nil)
				s.Close()
				next.Close()
				if x, err := c.read(s.entry); err != nil || string(x.Validator) != next.obj.lasting() || !slices.Equal(x.Present, []int64{0, size}) {
					t.Errorf("the cache has %+v, %v, want all of what came then", x, err)
				}
			})
		})
	}
}

// The file was removed and added again while a program had it open.
func TestCacheGoesToTheNextStoreOfAFile(t *testing.T) {
	const size = 1000
	inCache(t, t.TempDir(), func(t *testing.T, c *diskCache) {
		s, o := c.store(tagged(size), "a.bin")
		startRead(t.Context(), s, byteRange{0, size})
		o.send(size)
		next, o := c.store(tagged(size), "a.bin")
		defer next.Close()
		synctest.Wait()
		if next.Snapshot().Present > 0 {
			t.Error("two stores have the files")
		}
		s.Close()
		rd := startRead(t.Context(), next, byteRange{0, size})
		o.send(size)
		rd.mustReturn(t, nil)
	})
}

// doubtingOrigin finds out at the first byte that its validators mean nothing.
type doubtingOrigin struct{ *scriptedOrigin }

func (o doubtingOrigin) Open(ctx context.Context, q request) (io.ReadCloser, error) {
	q.doubted()
	return o.scriptedOrigin.Open(ctx, q)
}

func TestCacheForgetsADoubtedVersion(t *testing.T) {
	dir := t.TempDir()
	keep(t, dir, tagged(1000), 500)
	inCache(t, dir, func(t *testing.T, c *diskCache) {
		s, o := c.store(tagged(1000), "a.bin")
		s.origin = doubtingOrigin{o}
		rd := startRead(t.Context(), s, byteRange{0, 1000})
		o.send(500)
		rd.mustReturn(t, nil)
		s.Close()
		requireFiles(t, dir)
	})
}

// The first byte has the same tag in every run, whatever becomes of the file.
func TestCacheForgetsAnOriginWithHabits(t *testing.T) {
	h := habits()["a tag per range, and no dates"]
	h.clock = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	o := serveHTTP(t, h.ServeHTTP)
	obj, err := o.Stat(t.Context())
	if err != nil || obj.lasting() == "" {
		t.Fatalf("%v, %v", obj, err)
	}
	log := newEventLog(newKernelLog())
	defer log.Close(logPatience)
	config := testConfig(t.TempDir())
	if config.room.cache, err = openCache(config.room.dir, log); err != nil {
		t.Fatal(err)
	}
	s := newTempFileStore(o, obj, config)
	s.UseCache("a.bin")
	_, err = s.ReadAt(t.Context(), make([]byte, habitSize), 0)
	s.Close()
	if err != nil {
		t.Error(err)
	}
	requireFiles(t, config.room.dir)
}

// Entries of sources that are not mounted stay until somebody needs the room, and count.
func TestCacheDropsIdleEntriesFirst(t *testing.T) {
	const size = 100_000
	dir := t.TempDir()
	keep(t, dir, tagged(size), size)
	orphan := filepath.Join(dir, strings.Repeat("a", 64)) + dataSuffix
	for _, path := range []string{orphan, filepath.Join(dir, "mine.data")} {
		if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(dir, strings.Repeat("b", 64)) + dataSuffix
	if err := os.Symlink("/etc/hostname", link); err != nil {
		t.Fatal(err)
	}
	inCache(t, dir, func(t *testing.T, c *diskCache) {
		room := newRoomTable(dir, cacheSize{}, c)
		config := testConfig(dir)
		config.room = room
		const block = 4096
		all := int64(size+block-1)/block*block + 8192
		requireUsed := func(when string, want int64) {
			t.Helper()
			if used := room.used.Load(); used != want {
				t.Errorf("%s: %d bytes in the account, want %d", when, used, want)
			}
		}
		requireUsed("at the start", all)
		s := newTempFileStore(newStubOrigin(size), tagged(size), config)
		s.UseCache("a.bin")
		requireUsed("with the mounted file", all)
		if !room.dropIdle() {
			t.Error("nothing was dropped")
		}
		requireUsed("without what is not mounted", all-8192)
		if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the entry that is not mounted: %v", err)
		}
		s.Close()
		requireUsed("after Close", all-8192) // the cache keeps it
		if !room.dropIdle() || room.dropIdle() {
			t.Error("one entry was to be dropped")
		}
		requireUsed("at the end", 0)
	})
	requireFiles(t, dir, filepath.Base(link), "mine.data")
}

// What the cache cannot forget stays on the disk: a read that needs the room fails, and with it
// no read of what is there.
func TestCacheThatCannotForgetKeepsItsBytes(t *testing.T) {
	dir, obj := t.TempDir(), Object{Size: 24 * mib, ETag: `"v"`, Ranges: true}
	inCache(t, dir, func(t *testing.T, c *diskCache) {
		config := roomConfig(dir, 8*mib)
		config.room.cache = c
		s := newTempFileStore(newStubOrigin(obj.Size), obj, config)
		s.UseCache("a.bin")
		s.AddHandle()
		defer s.Close()
		startRead(t.Context(), s, byteRange{0, mib})
		time.Sleep(2 * saveInterval)
		if c.claimed(t, s.entry) == nil {
			t.Fatal("nothing was saved")
		}
		if err := errors.Join(os.Remove(s.entry+indexSuffix), os.Mkdir(s.entry+indexSuffix, 0o700)); err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < obj.Size; off += mib {
			rd := startRead(t.Context(), s, byteRange{off, off + mib})
			time.Sleep(2 * roomPatience)
			synctest.Wait()
			if rd.err != nil {
				rd.mustReturn(t, syscall.ENOSPC)
				s.DropHandle()
				next, err := s.Forget()
				if next == nil || err == nil {
					t.Errorf("Forget says %v, though the cache keeps its copy", err)
				}
				next.Close()
				return
			}
		}
		t.Error("a file of three times the budget was read, though nothing of it could go")
	})
}

func TestCacheRefusesADirectory(t *testing.T) {
	file, shared, other := filepath.Join(t.TempDir(), "file"), t.TempDir(), t.TempDir()
	for _, err := range []error{
		os.WriteFile(file, nil, 0o600), os.WriteFile(filepath.Join(shared, "x"), nil, 0o600), os.Chmod(shared, 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{file: "not a directory", shared: "chmod 700"}
	if os.Geteuid() == 0 && os.Chown(other, 65534, 65534) == nil {
		want[other] = "belongs to another user"
	}
	log := newEventLog(newKernelLog())
	defer log.Close(logPatience)
	for dir, says := range want {
		if _, err := openCache(dir, log); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", dir, err, says)
		}
	}
	empty := t.TempDir()
	if _, err := openCache(empty, log); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(empty); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("an empty directory of ours has the mode %v, %v", info.Mode(), err)
	}
}

func TestIndexSurvivesItsEncoding(t *testing.T) {
	for _, x := range []cacheIndex{
		{"name", []byte("ETag \"\xff\xfe\""), 100, []int64{0, 1, 2, 100}},
		{"name", []byte("a"), 1 << 62, []int64{1 << 61, 1 << 62}},
	} {
		got, err := decodeIndex("name", x.encode())
		if err != nil || !slices.Equal(got.Present, x.Present) || !bytes.Equal(got.Validator, x.Validator) || got.Size != x.Size {
			t.Errorf("decoded %+v, %v, want %+v", got, err, x)
		}
		text := x.encode()
		for i := range text {
			text[i] ^= 1
			if _, err := decodeIndex("name", text); err == nil {
				t.Errorf("a wrong byte at %d is not noticed", i)
			}
			text[i] ^= 1
		}
	}
	for _, present := range [][]int64{{0}, {0, 101}, {-1, 5}, {5, 5}, {5, 4}, {0, 5, 5, 6}, {0, 5, 3, 9}} {
		if _, err := decodeIndex("name", cacheIndex{"name", nil, 100, present}.encode()); err == nil {
			t.Errorf("an index claims %v of 100 bytes", present)
		}
	}
}

func (x cacheIndex) encode() []byte {
	text, _ := json.Marshal(x)
	return withIndexHead(text)
}

// Whatever an index holds, it claims ranges of its file, in order.
func FuzzIndex(f *testing.F) {
	x := cacheIndex{"name", []byte("a"), 100, []int64{0, 1, 2, 100}}
	f.Add(x.encode()[len("fsmount-cache 1 00000000\n"):], true)
	f.Add(x.encode(), false)
	f.Add([]byte(`{"Entry":"name","Size":-5}`), true)
	f.Fuzz(func(t *testing.T, text []byte, headed bool) {
		if headed { // get past the CRC
			text = withIndexHead(text)
		}
		x, err := decodeIndex("name", text)
		var all rangeSet
		for r := range slices.Chunk(x.Present, 2) {
			all.add(byteRange{r[0], r[1]})
		}
		if err == nil && (len(all.ranges) != len(x.Present)/2 || len(x.Present) > 0 && (x.Present[0] < 0 || slices.Max(x.Present) > x.Size)) || err != nil && x.Present != nil {
			t.Errorf("%q claims %v of %d bytes, error %v", text, x.Present, x.Size, err)
		}
	})
}
