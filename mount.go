// mount.go puts the file system at its mountpoint and takes it away again,
// within bounds whatever the readers do. What only the kernel can tell or tune
// is in mount_linux.go.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jacobsa/fuse"
)

const (
	// fsSubtype makes the type fuse.fsmount in /proc/mounts.
	fsSubtype = "fsmount"

	// fsSource has a colon, by which df -l, updatedb and the like tell that the
	// files are remote, and keep off.
	fsSource = "fsmount:http"

	// requestPages is the largest read the kernel may send, in 4 KiB pages.
	requestPages = maxReadBytes / 4096

	// requestBytes is the room for a request's data in the library's buffer for
	// it. Only writes carry data, and there are none: the least the kernel
	// accepts (one page) keeps a blocked read at 8 KiB.
	requestBytes = 4096

	// drainPatience is how long a stopping mount waits for readers to let go of
	// their files, once every read has been answered, before it cuts them off.
	drainPatience = time.Second
)

// mountpoint is a file system at a directory.
type mountpoint struct {
	dir string // absolute
	fs  *fileSystem
	mfs *fuse.MountedFileSystem
	ctl control
}

// mountAt mounts fs at dir, an absolute path that checkMountpoint has accepted.
func mountAt(dir string, fs *fileSystem, allowOther bool) (*mountpoint, error) {
	config := mountConfig(fs.io)
	if allowOther {
		config.Options = map[string]string{"allow_other": ""}
	}
	mfs, err := fuse.Mount(dir, fs, config)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w%s", dir, err, mountAdvice(err))
	}
	m := &mountpoint{dir: dir, fs: fs, mfs: mfs}
	m.ctl = openControl(dir)
	m.ctl.tune()
	return m, nil
}

// mountConfig is what the kernel is told of the mount. Async reads are safe only
// where no read that waits goes through the page cache.
func mountConfig(mode ioMode) *fuse.MountConfig {
	return &fuse.MountConfig{
		FSName:                  fsSource,
		Subtype:                 fsSubtype,
		ReadOnly:                true,
		DisableWritebackCaching: true,
		EnableAsyncReads:        mode == ioAuto,
		EnableParallelDirOps:    true,
		EnableReaddirplus:       true,
		MaxPages:                requestPages,
		MaxWrite:                requestBytes,
	}
}

// mountAdvice says what to try.
func mountAdvice(err error) string {
	if _, statErr := os.Stat("/dev/fuse"); statErr != nil {
		return " (/dev/fuse is missing: load the module with \"modprobe fuse\", or give the container --device /dev/fuse)"
	}
	if os.Geteuid() != 0 {
		return " (not as root: the fuse3 package has the fusermount3 that is needed, and allow_other must be permitted in /etc/fuse.conf)"
	}
	return ""
}

// Wait returns when the file system is unmounted, by Stop or from outside, and
// every op has been answered.
func (m *mountpoint) Wait() error { return m.mfs.Join(context.Background()) }

// Stop unmounts: it ends every wait, so that the readers get their answers;
// detaches the mount, so that no new reader comes; and gives those who still
// hold a file open drainPatience to let go before it cuts them off.
//
// BLOCKS until ServeOps has returned; wakes on that, and at the latest after
// three times drainPatience: those who hold files open even then are cut off by
// the end of the process. It is an error only if the mount is still there.
func (m *mountpoint) Stop() error {
	m.fs.Stop()
	unmountErr := unmount(m.dir)
	if m.joined(drainPatience) {
		return nil
	}
	m.ctl.abort()
	m.joined(2 * drainPatience)
	if unmountErr != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, unmountErr)
	}
	return nil
}

// Clear takes away what is left of a mount whose connection was cut (umount -f,
// an abort through fusectl): the kernel leaves it in its place, where every
// access fails with ENOTCONN.
func (m *mountpoint) Clear() error {
	if m.ctl == (control{}) || openControl(m.dir) != m.ctl {
		return nil
	}
	return unmount(m.dir)
}

func (m *mountpoint) joined(patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return m.mfs.Join(ctx) == nil
}

// checkMountpoint returns the absolute path of dir, with no symbolic link in
// it, if a mount there does no harm. Its errors say what is wrong with dir.
func checkMountpoint(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("mountpoint: the name of the directory is empty")
	}
	abs, err := resolve(dir)
	if err != nil {
		return "", fmt.Errorf("mountpoint %s: %w (create it with: mkdir %s)", dir, pathReason(err), dir)
	}
	if mounted(abs) {
		return "", fmt.Errorf("mountpoint %s: something is mounted there already (unmount it with: %s)", dir, unmountCommand(abs))
	}
	info, err := os.Stat(abs)
	switch {
	case err != nil:
		return "", fmt.Errorf("mountpoint %s: %w (create it with: mkdir %s)", dir, pathReason(err), dir)
	case !info.IsDir():
		return "", fmt.Errorf("mountpoint %s: not a directory", dir)
	}
	entries, err := os.ReadDir(abs)
	switch {
	case err != nil:
		return "", fmt.Errorf("mountpoint %s: %w", dir, pathReason(err))
	case len(entries) > 0:
		return "", fmt.Errorf("mountpoint %s: not empty, its files would be hidden", dir)
	}
	return abs, nil
}

// checkOutside refuses a path below the mountpoint: a process that uses its own
// mount can wait for itself. what says whose path it is.
func checkOutside(mountDir, path, what string) error {
	abs, err := resolve(path)
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, path, pathReason(err))
	}
	rel, err := filepath.Rel(mountDir, abs)
	if err == nil && filepath.IsLocal(rel) {
		return fmt.Errorf("%s %s: lies in the mountpoint %s", what, path, mountDir)
	}
	return nil
}

// resolve makes path absolute and follows the symbolic links of its parents,
// and its own if it is one, without asking a file system that is mounted at
// path for anything: it may be hanging.
func resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	abs = filepath.Join(parent, filepath.Base(abs))
	if mounted(abs) {
		return abs, nil
	}
	target, err := filepath.EvalSymlinks(abs)
	if errors.Is(err, os.ErrNotExist) {
		return abs, nil
	}
	return target, err
}

// pathReason drops the operation and the path, which the caller has said.
func pathReason(err error) error {
	if pathErr := (*os.PathError)(nil); errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}
