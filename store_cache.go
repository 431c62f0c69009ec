// store_cache.go keeps downloads in a directory across runs (--cache-dir): of each file its data, and an index
// of which bytes of which version the data has. At every moment, after a crash too, the index on the disk
// claims no byte that the data there lacks: data is synced before an index claims it, and an index is gone from
// the disk before its data goes. It removes nothing that is damaged or not of a cache.

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A crash costs what came since the last save: saveBytes, or a saveShare of the file, or
	// the bytes of saveInterval. So what arrives twice is little beside the file.
	saveBytes    = 64 << 20
	saveShare    = 256
	saveInterval = 5 * time.Second
	indexHead    = "fsmount-cache 1 %08x\n" // begins an index: the number of the format, and the CRC-32 of the rest

	indexSuffix, dataSuffix = ".index", ".data"
)

// cacheFileName matches the files that a cache makes.
var cacheFileName = regexp.MustCompile(`^[0-9a-f]{64}\.(data|index(\.new)?)$`)

// diskCache is the directory of --cache-dir. One process at a time has it, until it ends.
type diskCache struct {
	// Write once, before any goroutine starts.
	dir  string
	root *os.File // dir, locked
	log  *eventLog

	held int64 // bytes of disk that the entries took at the start

	// Read write.
	mu      sync.Mutex
	entries map[string]cacheEntry // GUARDED_BY(mu); by path without suffix
}

// cacheEntry is who has the files of an entry; its zero value says that there are none.
type cacheEntry struct {
	taken bool      // somebody has them, and nobody else touches them
	since time.Time // when somebody had them last
	bytes int64     // of disk, while nobody has them
}

// openCache opens the cache at dir, and makes it if there is none.
func openCache(dir string, log *eventLog) (c *diskCache, err error) {
	c = &diskCache{dir: dir, log: log, entries: make(map[string]cacheEntry)}
	for _, step := range []func() error{c.openDir, c.takeLock} {
		if err = step(); err != nil {
			return nil, fmt.Errorf("cache directory %s: %w; --cache-dir names another", redactArg(dir), pathReason(err))
		}
	}
	return c, nil
}

// openDir opens the directory, which is this user's alone, and logs what is not of a cache.
func (c *diskCache) openDir() (err error) {
	if err = os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	if c.root, err = os.Open(c.dir); err != nil {
		return err
	}
	names, err1 := c.root.Readdirnames(-1)
	info, err2 := c.root.Stat()
	if err = errors.Join(err1, err2); err != nil {
		return err
	}
	switch {
	case info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()):
		return errors.New("it belongs to another user")
	case info.Mode().Perm()&0o077 != 0 && len(names) > 0:
		return errors.New("it has files, and is open to other users: chmod 700 makes it yours alone")
	}
	for _, name := range names {
		path, isData := strings.CutSuffix(filepath.Join(c.dir, name), dataSuffix)
		var data unix.Stat_t
		switch {
		case !cacheFileName.MatchString(name):
			c.log.often("foreign", "cache directory: %s is no file of a cache, and is left as it is", foreign(filepath.Join(c.dir, name)))
		case isData && unix.Lstat(path+dataSuffix, &data) == nil && data.Mode&unix.S_IFMT == unix.S_IFREG:
			c.entries[path] = cacheEntry{since: time.Unix(data.Mtim.Unix()), bytes: data.Blocks * 512}
			c.held += data.Blocks * 512
		}
	}
	return c.root.Chmod(0o700)
}

// takeLock keeps other processes out, until this one ends (flock(2)). The error names the one that
// has the lock, as proc_locks(5) tells it.
func (c *diskCache) takeLock() error {
	err := unix.Flock(int(c.root.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != unix.EWOULDBLOCK {
		return err
	}
	var dir unix.Stat_t
	_ = unix.Fstat(int(c.root.Fd()), &dir)
	locks, _ := os.ReadFile("/proc/locks")
	holder := regexp.MustCompile(fmt.Sprintf(`FLOCK +ADVISORY +WRITE +(\d+) \S+:%d `, dir.Ino)).FindSubmatch(locks)
	if holder == nil {
		return errors.New("another process uses it")
	}
	return fmt.Errorf("process %s uses it", holder[1])
}

// replace makes data the content of the file at path, which has the old content or the new one at every moment, after
// a crash too. BLOCKS until the disk has it.
func (c *diskCache) replace(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	return errors.Join(err, c.root.Sync())
}

// clear removes the files of an entry, and makes it free. BLOCKS until the disk has forgotten the index. REQUIRES:
// the caller has taken the entry, and has the turn of its store.
func (c *diskCache) clear(path string) error {
	err := unix.Unlink(path + indexSuffix)
	if err == nil || err == unix.ENOENT && unix.Access(path+dataSuffix, unix.F_OK) == nil {
		if err = c.root.Sync(); err == nil {
			err = unix.Unlink(path + dataSuffix)
		}
	}
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove %s.*: %w", path, err)
	}
	c.put(path, cacheEntry{})
	return nil
}

// cacheIndex says which bytes of which version the data of an entry has.
type cacheIndex struct {
	Entry     string  // its name
	Validator []byte  // Object.lasting; in a string, JSON changes what is no UTF-8
	Size      int64   // bytes
	Present   []int64 // bytes: each range's begin and end; INVARIANT: ascending, within Size
}

func withIndexHead(text []byte) []byte {
	return append(fmt.Appendf(nil, indexHead, crc32.ChecksumIEEE(text)), text...)
}

// decodeIndex returns the index of the entry called name, which data is.
func decodeIndex(name string, data []byte) (x cacheIndex, err error) {
	text := data[bytes.IndexByte(data, '\n')+1:]
	sound := bytes.Equal(data, withIndexHead(text)) && json.Unmarshal(text, &x) == nil
	sound = sound && x.Entry == name && len(x.Present)%2 == 0
	end := int64(-1)
	for _, off := range append(x.Present, x.Size+1) {
		sound, end = sound && off > end, off
	}
	if !sound {
		return cacheIndex{}, errors.New("it is damaged, or of another file, or of another version of fsmount")
	}
	return x, nil
}

// read returns the index of an entry whose data may have what the index claims. The error
// wraps os.ErrNotExist where there is no index, and else names the file that is damaged.
func (c *diskCache) read(path string) (x cacheIndex, err error) {
	index, err := os.Lstat(path + indexSuffix)
	var text []byte
	switch {
	case errors.Is(err, os.ErrNotExist):
		return x, err
	case err == nil && !index.Mode().IsRegular(): // a pipe keeps who opens it waiting
		err = errors.New("it is no file")
	case err == nil:
		text, err = readInputFile(path + indexSuffix)
	}
	if err == nil {
		x, err = decodeIndex(filepath.Base(path), text)
	}
	data, statErr := os.Lstat(path + dataSuffix)
	switch {
	case err != nil:
		return x, fmt.Errorf("%s: %w", path+indexSuffix, pathReason(err))
	case statErr != nil || !data.Mode().IsRegular() || data.Size() < slices.Max(append(x.Present, 0)):
		return x, fmt.Errorf("%s: it lacks bytes that its index claims", path+dataSuffix)
	}
	return x, nil
}

// take makes the caller the one that has an entry, and returns what its files took of the
// disk, in bytes. It reports false if somebody has it.
func (c *diskCache) take(path string) (bytes int64, free bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.entries[path]
	c.entries[path] = cacheEntry{taken: true}
	return was.bytes, !was.taken
}

// put gives an entry back that the caller has.
func (c *diskCache) put(path string, entry cacheEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[path] = entry
}

// dropIdle removes the entry that nobody has had for longest, and reports whether there was one. A damaged one stays,
// and frees nothing. BLOCKS until the disk has forgotten the index.
func (c *diskCache) dropIdle() (freed int64, found bool) {
	if c == nil {
		return 0, false
	}
	oldest := ""
	c.mu.Lock()
	for path, entry := range c.entries {
		if !entry.since.IsZero() && (oldest == "" || entry.since.Before(c.entries[oldest].since)) {
			oldest = path
		}
	}
	c.mu.Unlock()
	if oldest == "" {
		return 0, false
	}
	freed, free := c.take(oldest)
	if !free { // somebody was faster
		return 0, true
	}
	_, err := c.read(oldest)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = c.clear(oldest)
	}
	if err != nil {
		c.log.printf("cache directory: %v: it takes room, and is left as it is: remove it", err)
		freed = 0
		c.put(oldest, cacheEntry{})
	}
	return freed, true
}

// UseCache makes the cache, if there is one, keep what the store of the file with that identity
// downloads, and go on from what it has. It is called once, before the first read.
func (s *TempFileStore) UseCache(identity string) {
	if s.room.cache != nil {
		s.entry = filepath.Join(s.room.cache.dir, fmt.Sprintf("%x", sha256.Sum256([]byte(identity))))
		s.adoptEntry()
	}
}

// adoptEntry makes present what the cache has of the store's version, and removes what it has of another one. What is
// damaged stays, and taken. The first read opens the data: a thousand files are no thousand descriptors.
func (s *TempFileStore) adoptEntry() {
	c := s.room.cache
	if s.entry == "" || s.obj.assumed {
		return
	}
	was, free := c.take(s.entry)
	if !free {
		return
	}
	x, err := c.read(s.entry)
	if err == nil && string(x.Validator) == s.obj.lasting() && x.Size == s.obj.Size {
		if s.obj.ETag == "" {
			c.log.often("weaker", "%v goes on from the cache, as its Last-Modified and size are the same: a strong ETag, which its origin does not send, would prove more", s.origin)
		}
		s.mu.Lock()
		for pair := range slices.Chunk(x.Present, 2) {
			r := byteRange{pair[0], pair[1]}
			s.publishLocked(r)
			s.disk.blocks.add(wholeBlocks(r))
		}
		taken := s.disk.blocks.total()
		s.mu.Unlock()
		s.owns.Store(true)
		s.room.used.Add(taken - was)
		s.room.enter(s)
		return
	}
	if err == nil {
		c.log.often("other", "%v is another version than the cache has, which is thrown away", s.origin)
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		if err = c.clear(s.entry); err == nil {
			s.room.give(was)
			return
		}
	}
	c.log.printf("%v is not kept in the cache: %v: it is left as it is; remove it to keep the file again", s.origin, err)
}

// makeFile opens the data of the store's entry, or makes it. It makes an unlinked file for a version that the cache
// is not to keep, and where another one has the entry. REQUIRES: the caller has the turn.
func (s *TempFileStore) makeFile() (*os.File, error) {
	if !s.owns.Load() && s.entry != "" && s.obj.lasting() != "" {
		s.adoptEntry() // the store that had it may be closed by now
		if !s.owns.Load() {
			_, free := s.room.cache.take(s.entry)
			s.owns.Store(free)
		}
	}
	if !s.owns.Load() {
		return s.room.unlinked()
	}
	flags := os.O_RDWR
	if s.Snapshot().Present == 0 { // else bytes that are not there would be zeros
		flags |= os.O_CREATE | os.O_EXCL
	}
	return os.OpenFile(s.entry+dataSuffix, flags, 0o600)
}

// LeaveCache makes the cache forget the store's bytes. The store keeps them, and its file, which has no name then.
// Without an error, no index claims any of them from then on. BLOCKS until the disk has forgotten the index.
func (s *TempFileStore) LeaveCache() error {
	if !s.owns.Load() || !s.hold() {
		return nil
	}
	defer s.unhold()
	var err error
	if s.Replacement() == nil { // a program may read it, and this is the last moment to open it
		_, err = s.openFile()
	}
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if err == nil && s.owns.Load() {
		err = s.room.cache.clear(s.entry)
		s.owns.Store(err != nil)
	}
	if err != nil {
		s.room.cache.log.often("leave", "the cache still claims bytes of %v: %v", s.origin, err)
	}
	return err
}

// saveSoonLocked counts n bytes that arrived, and makes the next save due: within
// saveInterval, or at once if now, or if there is enough for one.
func (s *TempFileStore) saveSoonLocked(n int64, now bool) {
	s.unsaved += n
	wait := saveInterval
	if now || s.unsaved >= min(saveBytes, max(fetchBufferBytes, s.obj.Size/saveShare)) {
		wait = 0
	}
	switch {
	case s.unsaved == 0 || !s.owns.Load():
	case s.saver == nil:
		s.saver = time.AfterFunc(wait, func() {
			failed := false
			if s.hold() {
				failed = s.save() != nil
				s.unhold()
			}
			s.onTimer(func() {
				if s.saver = nil; failed {
					s.unsaved = 1 // the disk gets a pause
				}
				s.saveSoonLocked(0, s.ended && !failed) // what came meanwhile
			})
		})
	case wait == 0 && s.saver.Stop():
		s.saver.Reset(0)
	}
}

// save makes the index claim all that is present. BLOCKS until the disk has all of it.
func (s *TempFileStore) save() error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	x := cacheIndex{Entry: filepath.Base(s.entry), Validator: []byte(s.obj.lasting()), Size: s.obj.Size}
	s.mu.Lock()
	unsaved := s.unsaved
	for _, r := range s.present.ranges { // before the sync, which does not cover what comes later
		x.Present = append(x.Present, r.off, r.end)
	}
	s.mu.Unlock()
	if unsaved == 0 || !s.owns.Load() {
		return nil
	}
	err := s.file.Load().Sync()
	if err == nil {
		text, _ := json.Marshal(x) // no value of it can fail
		err = s.room.cache.replace(s.entry+indexSuffix, withIndexHead(text))
	} else { // the kernel does not tell a second time that bytes are lost
		clearErr := s.room.cache.clear(s.entry)
		s.owns.Store(clearErr != nil)
		err = errors.Join(err, clearErr)
	}
	if err != nil {
		s.room.cache.log.often("save", "the latest bytes of %v are not kept in the cache: %v", s.origin, err)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsaved -= unsaved
	return nil
}
