// Tests of the cache across power cuts: after one at any moment, each byte that an index
// claims is right. The counter-example shows that the tests would see a missing sync.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	powerCutSize   = 48 * mib
	powerCutRounds = 25
)

// loopDisk is a file system in a file, which a power cut may hit.
type loopDisk struct {
	t          *testing.T
	image, dir string
}

// newLoopDisk makes an empty file system with the program mkfs, such as mkfs.ext4.
func newLoopDisk(t *testing.T, mkfs string) *loopDisk {
	t.Helper()
	d := &loopDisk{t, filepath.Join(t.TempDir(), "image"), kernelTestDir(t)}
	err := errors.Join(os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, 320*mib))
	if err == nil {
		err = exec.Command(mkfs, "-q", d.image).Run()
	}
	if err == nil {
		err = d.mount()
	}
	if err != nil {
		t.Skipf("SKIPPED, NO POWER CUT IS TESTED: %s on a loop device: %v", mkfs, err)
	}
	t.Cleanup(func() { unix.Unmount(d.dir, unix.MNT_DETACH) })
	return d
}

func (d *loopDisk) mount() error {
	out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// cut makes the disk lose what it has not got yet (the ioctl of ext4 and xfs that is called
// SHUTDOWN or GOINGDOWN, here without a flush of the log).
func (d *loopDisk) cut() {
	d.t.Helper()
	root, err := os.Open(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	defer root.Close()
	if err := unix.IoctlSetPointerInt(int(root.Fd()), 0x8004587d, 2); err != nil {
		d.t.Skipf("SKIPPED, NO POWER CUT IS TESTED: %v", err)
	}
}

// claimsOf returns how many bytes the indexes in a cache claim, and how many of these the
// data lacks or has wrong. The content is that of seed.
func claimsOf(t *testing.T, dir string, seed uint64) (claimed, wrong int64) {
	t.Helper()
	indexes, _ := filepath.Glob(filepath.Join(dir, "*"+indexSuffix))
	for _, index := range indexes {
		text, err := os.ReadFile(index)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(index[:len(index)-len(indexSuffix)])
		x, err := decodeIndex(name, text)
		if err != nil {
			t.Fatalf("%s: %v", index, err)
		}
		data, err := os.ReadFile(filepath.Join(dir, name+dataSuffix))
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, make([]byte, max(0, x.Size-int64(len(data))))...)
		want := make([]byte, 64<<10)
		for r := range slices.Chunk(x.Present, 2) {
			claimed += r[1] - r[0]
			for off := r[0]; off < r[1]; off += int64(len(want)) {
				piece := want[:min(int64(len(want)), r[1]-off)]
				fillContent(piece, seed, off)
				if !bytes.Equal(piece, data[off:off+int64(len(piece))]) {
					wrong += int64(len(piece))
				}
			}
		}
	}
	return claimed, wrong
}

// untilCut calls use, which cuts the power, with a store of a file that its origin sends at
// once, and returns what the cache claims afterwards.
func (d *loopDisk) untilCut(use func(ctx context.Context, s *TempFileStore)) (claimed, wrong int64) {
	d.t.Helper()
	log := newEventLog(newKernelLog())
	defer log.Close(logPatience)
	c, err := openCache(filepath.Join(d.dir, "cache"), log)
	if err != nil {
		d.t.Fatal(err)
	}
	s, o := c.store(tagged(powerCutSize), "a.bin")
	o.atOnce = powerCutSize
	ctx, cancel := context.WithCancel(d.t.Context())
	use(ctx, s)
	cancel()
	s.Close()
	c.root.Close()
	if err := errors.Join(unix.Unmount(d.dir, 0), d.mount()); err != nil { // nobody uses it any more
		d.t.Fatal(err)
	}
	return claimsOf(d.t, c.dir, testSeed)
}

// readUntil reads the file until it ends, or ctx does.
func readUntil(ctx context.Context, s *TempFileStore) {
	for off := int64(0); off < powerCutSize && ctx.Err() == nil; off += mib {
		s.ReadAt(ctx, make([]byte, mib), off)
	}
}

func TestCacheSurvivesAPowerCut(t *testing.T) {
	rounds := powerCutRounds
	if testing.Short() {
		rounds = 3
	}
	for _, mkfs := range []string{"mkfs.ext4", "mkfs.xfs"} {
		t.Run(mkfs, func(t *testing.T) {
			var total int64
			for range rounds {
				d := newLoopDisk(t, mkfs)
				claimed, wrong := d.untilCut(func(ctx context.Context, s *TempFileStore) {
					go readUntil(ctx, s)
					eventually(t, func() (bool, string) { return s.room.cache.claimed(t, s.entry) != nil, "nothing was saved" })
					s.turn <- struct{}{} // the save whose index can be seen has ended: the disk has it
					<-s.turn
					time.Sleep(rand.N(100 * time.Millisecond)) // a random moment, at which nothing is expected
					d.cut()
				})
				if total += claimed; claimed == 0 || wrong > 0 {
					t.Errorf("of %d bytes that the index claims after a power cut %d are wrong", claimed, wrong)
				}
			}
			t.Logf("%d rounds, %d MiB claimed", rounds, total/mib)
		})
		t.Run(mkfs+" without the sync of the data", func(t *testing.T) {
			d := newLoopDisk(t, mkfs)
			claimed, wrong := d.untilCut(func(ctx context.Context, s *TempFileStore) {
				if _, err := s.openFile(); err != nil {
					t.Fatal(err)
				}
				s.turn <- struct{}{} // no save comes between
				defer func() { <-s.turn }()
				readUntil(ctx, s)
				x := cacheIndex{filepath.Base(s.entry), nil, powerCutSize, []int64{0, powerCutSize}}
				if err := s.room.cache.replace(s.entry+indexSuffix, x.encode()); err != nil {
					t.Fatal(err)
				}
				d.cut()
			})
			if claimed == 0 || wrong == 0 {
				t.Errorf("of %d bytes that the index claims %d are wrong: this test sees no missing sync", claimed, wrong)
			}
		})
	}
}
