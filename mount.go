// mount.go mounts the file system, tunes the kernel's side of it, and unmounts it
// within bounds whatever the readers do. It never asks a mounted file system for
// anything: that file system may be hanging.

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jacobsa/fuse"
	"golang.org/x/sys/unix"
)

const (
	// fsSubtype makes the type fuse.fsmount in /proc/mounts.
	fsSubtype = "fsmount"

	// fsSource is the device in /proc/mounts. By its colon df -l, updatedb and the like
	// know that the files are remote, and leave them alone.
	fsSource = "fsmount:http"

	// requestPages is the largest read that the kernel may send, in 4 KiB pages.
	requestPages = maxReadBytes / 4096

	// requestBytes is the room for data in the library's buffer of a request. Only
	// writes carry data, and there are none. One page, the least that the kernel
	// accepts, keeps a blocked read at 8 KiB.
	requestBytes = 4096

	// readAheadKiB is how far the kernel reads ahead in a complete file: one largest
	// request. The default of 128 KiB halves the throughput.
	readAheadKiB = maxReadBytes / 1024

	// maxBackground replaces the library's 12. Only a private mapping of an incomplete
	// file makes read-ahead that blocks; 12 of these would stop the page cache of every
	// other file. The kernel calls a mount congested at three quarters of its limit.
	maxBackground       = 1024
	congestionThreshold = maxBackground * 3 / 4

	// drainPatience is how long a stopping mount waits, from its unmount on, for
	// readers to close their files before it cuts them off.
	drainPatience = time.Second
)

// mountpoint is a file system at a directory.
type mountpoint struct {
	dir string // absolute
	fs  *fileSystem
	mfs *fuse.MountedFileSystem
	ctl fusectl
}

// mountAt mounts fs at dir, an absolute path that checkMountpoint has accepted.
func mountAt(dir string, fs *fileSystem, allowOther bool) (*mountpoint, error) {
	config := mountConfig(fs.io)
	if allowOther {
		config.Options = map[string]string{"allow_other": ""}
	}
	mfs, err := fuse.Mount(dir, fuse.NewServerWithNotifier(fs.kernel, fs), config)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, mountProblem(err))
	}
	m := &mountpoint{dir: dir, fs: fs, mfs: mfs, ctl: openFusectl(dir)}
	m.ctl.tune()
	return m, nil
}

// mountConfig is what the kernel is told of the mount. Async reads are safe only
// where no waiting read goes through the page cache.
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

// mountProblem says why a mount failed with err, and what to try.
func mountProblem(err error) error {
	if advice, problem := deviceProblem(); problem != nil {
		return fmt.Errorf("%w; %s", problem, advice)
	}
	if _, advice, problem := mountRights(); problem != nil {
		return fmt.Errorf("%w; %s", problem, advice)
	}
	if mayMount() {
		return err
	}
	return errors.New("fusermount3 refuses, and said why; without root, the directory must belong to you, " +
		"and --allow-other needs the line user_allow_other in /etc/fuse.conf")
}

// deviceProblem returns why /dev/fuse cannot be opened, nil if it can, and what to do.
func deviceProblem() (advice string, problem error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		_ = unix.Close(fd) // a device without a mount: nothing is lost
		return "", nil
	case unix.ENOENT:
		return "as root: modprobe fuse; in a container: start it with --device /dev/fuse",
			errors.New("/dev/fuse is missing")
	case unix.ENODEV, unix.ENXIO:
		return "as root: modprobe fuse; on a container's host, if this is one",
			fmt.Errorf("open /dev/fuse: %w: the kernel has no FUSE", err)
	}
	return "as root: chmod 666 /dev/fuse; in a container: start it with --device /dev/fuse",
		fmt.Errorf("open /dev/fuse: %w", err)
}

// mountRights looks for the two ways to mount, in the order in which a mount tries
// them: CAP_SYS_ADMIN, then the set-user-ID helper. It returns how this user mounts, or
// why not and what to do.
func mountRights() (how, advice string, problem error) {
	if mayMount() {
		return "may mount by itself", "", nil
	}
	if os.Geteuid() == 0 { // set-user-ID gives root nothing
		return "", "start the container with --cap-add SYS_ADMIN", errors.New("root may not mount here (no CAP_SYS_ADMIN)")
	}
	for _, name := range []string{"fusermount3", "fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return "mounts by " + path, "", nil
		}
	}
	return "", "run it as root, or install fusermount3 (Debian: apt install fuse3)",
		fmt.Errorf("user %d may not mount (no CAP_SYS_ADMIN), and there is no fusermount3 in $PATH", os.Geteuid())
}

// mayMount reports whether this process has CAP_SYS_ADMIN (mount(2)).
func mayMount() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	err := unix.Capget(&header, &sets[0])
	return err == nil && sets[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// Wait returns when the file system is unmounted, by Stop or from outside.
//
// BLOCKS until that, and until every op has its reply.
func (m *mountpoint) Wait() error { return m.mfs.Join(context.Background()) }

// Stop unmounts. It ends every wait, so that readers get their replies; detaches the
// mount, so that no new reader comes; and after drainPatience cuts off the readers
// that still hold files open. The error says that the mount is still there.
//
// BLOCKS until ServeOps has returned, at most three times drainPatience, and without
// root as long as fusermount3 takes. The end of the process cuts off readers that
// hold files open even then.
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

// joined reports whether ServeOps returned within patience.
func (m *mountpoint) joined(patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return m.mfs.Join(ctx) == nil
}

// Clear removes what is left of a mount whose connection was cut (umount -f, or an
// abort through fusectl): the kernel leaves the mount in place, and every access to
// it fails with ENOTCONN.
func (m *mountpoint) Clear() error {
	if m.ctl == (fusectl{}) || openFusectl(m.dir) != m.ctl {
		return nil
	}
	return unmount(m.dir)
}

// checkMountpoint returns the absolute path of dir, without symbolic links, if dir
// is an empty directory with nothing mounted there. Its errors say what to do.
func checkMountpoint(dir string) (string, error) {
	shown := redactArg(dir)
	abs, err := resolve(dir)
	if err == nil && mounted(abs) {
		return "", fmt.Errorf("mountpoint %s: something is mounted there already (unmount it with: %s)", shown, unmountCommand(abs))
	}
	var entries []os.DirEntry
	if err == nil {
		entries, err = os.ReadDir(abs)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("mountpoint %s: %w (create it with: mkdir %s)", shown, pathReason(err), shown)
	case err != nil:
		return "", fmt.Errorf("mountpoint %s: %w: name an empty directory", shown, pathReason(err))
	case len(entries) > 0:
		return "", fmt.Errorf("mountpoint %s: not empty, its files would be hidden: name an empty directory", shown)
	case !mayMount() && unix.Access(abs, unix.W_OK) != nil:
		return "", fmt.Errorf("mountpoint %s: you may not write there: name a directory of yours", shown)
	}
	return abs, nil
}

// checkOutside refuses a path at or below the mountpoint: a process that uses its own
// mount can wait for itself. The error calls the path what.
func checkOutside(mountDir, path, what string) error {
	abs, err := resolve(path)
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, redactArg(path), pathReason(err))
	}
	rel, err := filepath.Rel(mountDir, abs)
	if err == nil && filepath.IsLocal(rel) {
		return fmt.Errorf("%s %s: lies in the mountpoint %s: name one outside", what, path, mountDir)
	}
	return nil
}

// resolve makes path absolute and follows symbolic links: those of its parents, and
// path itself. It does not touch a file system mounted at path, which may be
// hanging.
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

// mountEntry is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mountEntry struct {
	minor  uint32 // of a device with the major number 0, which FUSE mounts have
	dir    string
	fsType string // with its subtype, as in fuse.fsmount
}

// mounts lists what is mounted, the latest last.
func mounts() (all []mountEntry) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	// The kernel escapes these (show_mountinfo and mangle in fs/proc_namespace.c).
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#")
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, device, _ := strings.Cut(lines.Text(), " - ") // it ends the optional fields
		fields := strings.Fields(mount)
		if len(fields) < 5 {
			continue
		}
		m := mountEntry{dir: unescape.Replace(fields[4])}
		m.fsType, _, _ = strings.Cut(device, " ")
		_, _ = fmt.Sscanf(fields[2], "0:%d", &m.minor)
		all = append(all, m)
	}
	return all
}

// mountedAt returns what is mounted at dir. Of several mounts, the latest counts.
func mountedAt(dir string) (found mountEntry, ok bool) {
	for _, m := range mounts() {
		if m.dir == dir {
			found, ok = m, true
		}
	}
	return found, ok
}

// mounted reports whether something is mounted at dir.
func mounted(dir string) bool {
	_, ok := mountedAt(dir)
	return ok
}

// fsmountAt reports whether an fsmount is mounted at dir.
func fsmountAt(dir string) bool {
	m, ok := mountedAt(dir)
	return ok && m.fsType == "fuse."+fsSubtype
}

// unmount unmounts dir. If files are open there, it detaches the mount: no new
// reader gets in, and the kernel frees the mount with the last close (MNT_DETACH,
// umount(2)). For root it is no error if nothing is mounted at dir.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err == unix.EPERM {
		err = unmountAsUser(dir)
	}
	if err == unix.EINVAL || err == unix.ENOENT {
		return nil // not mounted any more
	}
	return err
}

// unmountAsUser lets the set-user-ID helper detach the mount.
func unmountAsUser(dir string) error {
	if fuse.Unmount(dir) == nil {
		return nil
	}
	out, err := exec.Command("fusermount3", "-u", "-z", "--", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3 -u -z %s: %w: %s", dir, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// unmountCommand is what a person types to unmount dir.
func unmountCommand(dir string) string {
	if os.Geteuid() == 0 {
		return "umount " + dir
	}
	return "fusermount3 -u " + dir
}

// fusectl is the kernel's control of one FUSE mount: its files in
// /sys/fs/fuse/connections/N. The zero fusectl is of no mount and does nothing.
type fusectl struct {
	minor uint32 // N
}

// openFusectl returns the control of what is mounted at dir. A stat of dir would
// tell N too, but would ask this very process.
func openFusectl(dir string) fusectl {
	m, _ := mountedAt(dir)
	return fusectl{minor: m.minor}
}

// tune raises read-ahead and the limit of background requests, where this user may.
// Both only make reads faster, so it ignores failures.
func (c fusectl) tune() {
	path := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", c.minor)
	_ = os.WriteFile(path, strconv.AppendInt(nil, readAheadKiB, 10), 0)
	c.write("max_background", strconv.Itoa(maxBackground))
	c.write("congestion_threshold", strconv.Itoa(congestionThreshold))
}

// abort ends the connection: every request without a reply fails with ECONNABORTED,
// and ReadOp returns io.EOF (Documentation/filesystems/fuse).
func (c fusectl) abort() { c.write("abort", "1") }

// waiting returns how many requests have no reply, those that the loop has not
// taken yet included. It returns -1 if it cannot tell.
func (c fusectl) waiting() int {
	f, err := c.open("waiting", os.O_RDONLY)
	if err != nil {
		return -1
	}
	defer f.Close()
	text := make([]byte, 32)
	n, _ := f.Read(text)
	requests, err := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	if err != nil {
		return -1
	}
	return requests
}

// write sets one control file, if this user may.
func (c fusectl) write(name, value string) {
	if f, err := c.open(name, os.O_WRONLY); err == nil {
		_, _ = f.WriteString(value)
		f.Close()
	}
}

// open opens one control file, as the owner of the mount may. Where fusectl is not
// mounted, root reaches it through a mount without a place in the file tree
// (fsopen(2)).
func (c fusectl) open(name string, flags int) (*os.File, error) {
	if c.minor == 0 {
		return nil, errors.New("no connection")
	}
	f, err := os.OpenFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/%s", c.minor, name), flags, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	root, err := mountFusectl()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d/%d/%s", root, c.minor, name), flags, 0)
}

// mountFusectl returns the root directory of a fusectl mount of its own.
func mountFusectl() (int, error) {
	fd, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	if err := unix.FsconfigCreate(fd); err != nil {
		return -1, err
	}
	return unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
}

// belowKernelTimeout returns how long a read may wait: as asked, but at most half of
// fs.fuse.max_request_timeout (in seconds, 0 for none, Linux 6.15). After that time
// the kernel gives up the whole mount for one request without a reply.
func belowKernelTimeout(asked time.Duration) time.Duration {
	text, _ := os.ReadFile("/proc/sys/fs/fuse/max_request_timeout")
	seconds, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if limit := time.Duration(seconds) * time.Second / 2; limit > 0 {
		return min(asked, limit)
	}
	return asked
}
