// mount_point.go knows what is mounted where: it says which directory can be a mountpoint, and unmounts what this
// program mounted, and nothing else. It never asks a mounted file system for anything: that file system may be hanging.

package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// errInUse says that a live FUSE mount is where another one is wanted. It may end at
// any time, so it is no mistake on the command line.
var errInUse = errors.New("is in use")

// checkMountpoint returns the absolute path of dir, without symbolic links, if dir is an empty directory. Another mount
// may be there, such as a container's volume, but no FUSE mount (errInUse). Its errors say what to do.
func checkMountpoint(dir string) (string, error) {
	shown := redactArg(dir)
	abs, err := resolve(dir)
	if err == nil {
		err = checkFree(abs)
	}
	var entries []os.DirEntry
	if err == nil {
		entries, err = os.ReadDir(abs)
		if err != nil || len(entries) > 0 { // another program that started at the same time may have mounted
			err = cmp.Or(checkFree(abs), err)
		}
	}
	switch {
	case errors.Is(err, errInUse):
		return "", fmt.Errorf("mountpoint %s %w", shown, err)
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("mountpoint %s: %w (create it with: mkdir %s)", shown, pathReason(err), shellQuote(shown))
	case err != nil:
		return "", fmt.Errorf("mountpoint %s: %w: name an empty directory", shown, pathReason(err))
	case len(entries) > 0:
		return "", fmt.Errorf("mountpoint %s: not empty, its files would be hidden: name an empty directory", shown)
	case !mayMount() && unix.Access(abs, unix.W_OK) != nil:
		return "", fmt.Errorf("mountpoint %s: you may not write there: name a directory of yours", shown)
	}
	return abs, nil
}

func checkFree(dir string) error {
	if m := mountedAt(dir); m.isFUSE() {
		return fmt.Errorf("%w: %s is mounted there already, served by %s (to unmount it: %s)", errInUse, m.fsType, serverOf(m.minor), unmountCommand(dir))
	}
	return nil
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

// resolve makes path absolute and follows symbolic links: those of its parents, and path itself. It
// does not touch a file system mounted at path, which may be hanging.
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
	switch {
	case errors.Is(err, os.ErrNotExist):
		return abs, nil
	case errors.Is(err, unix.ENOTCONN): // a link leads to a dead mount, which does not tell what it is
		if link, err := os.Readlink(abs); err == nil && filepath.IsAbs(link) {
			return resolve(link)
		} else if err == nil {
			return resolve(filepath.Join(parent, link))
		}
	}
	return target, err
}

// mountEntry is a line of mountTable.
type mountEntry struct {
	id, parent uint64 // of mounts; the kernel uses the number of a mount that is gone again
	minor      uint32 // of a device with the major number 0, which FUSE mounts have
	dir        string
	fsType     string // with its subtype, as in fuse.fsmount
	user       uint32 // who mounted it, if it is a FUSE mount; with the group
	group      uint32
}

func (m mountEntry) isFUSE() bool    { return m.fsType == "fuse" || strings.HasPrefix(m.fsType, "fuse.") }
func (m mountEntry) isFsmount() bool { return m.fsType == "fuse."+fsSubtype }

// mountTable is where the kernel lists what is mounted (proc_pid_mountinfo(5)).
const mountTable = "/proc/self/mountinfo"

// mounts lists what is mounted.
func mounts() []mountEntry {
	f, err := os.Open(mountTable)
	if err != nil {
		return nil
	}
	defer f.Close()
	all, _ := readMounts(f)
	return all
}

// readMounts reads a list in the form of mountTable.
func readMounts(list io.Reader) (all []mountEntry, err error) {
	// The kernel escapes these (show_mountinfo and mangle in fs/proc_namespace.c).
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#")
	lines := bufio.NewScanner(list)
	lines.Buffer(nil, 1<<20) // overlay mounts list all their layers
	for lines.Scan() {
		mount, device, _ := strings.Cut(lines.Text(), " - ") // it ends the optional fields
		fields := strings.Fields(mount)
		if len(fields) < 5 {
			continue
		}
		m := mountEntry{dir: unescape.Replace(fields[4])}
		m.fsType, device, _ = strings.Cut(device, " ")
		_, _ = fmt.Sscanf(strings.Join(fields[:3], " "), "%d %d 0:%d", &m.id, &m.parent, &m.minor)
		if _, owner, ok := strings.Cut(device, ",user_id="); ok {
			_, _ = fmt.Sscanf(owner, "%d,group_id=%d", &m.user, &m.group)
		}
		all = append(all, m)
	}
	return all, lines.Err()
}

// mountID returns the number of the mount that path, or the descriptor fd for the path "", lies in:
// of several mounts at path, the topmost. Linux before 5.8 returns 0. It asks for nothing that a
// file system knows, so the kernel asks none (fuse_getattr in fs/fuse/dir.c).
func mountID(fd int, path string) uint64 {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC | unix.AT_EMPTY_PATH
	if unix.Statx(fd, path, flags, 0, &st) != nil {
		return 0
	}
	return st.Mnt_id
}

// mountedAt returns what is mounted at dir, the zero mountEntry for nothing. Of several mounts, the topmost counts.
func mountedAt(dir string) (found mountEntry) {
	top := mountID(unix.AT_FDCWD, dir)
	for _, m := range mounts() {
		if m.dir == dir && (top == 0 || top == m.id) {
			found = m
		}
	}
	return found
}

func mounted(dir string) bool { return mountedAt(dir) != mountEntry{} }

// serverOf names the process that serves the FUSE connection of that number, as far as
// this user may see it. The kernel tells from Linux 6.16 on.
func serverOf(minor uint32) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if device, _ := os.Readlink(link); device != "/dev/fuse" {
			continue
		}
		info, _ := os.ReadFile(strings.Replace(link, "/fd/", "/fdinfo/", 1))
		var pid uint32
		if _, err := fmt.Sscanf(link, "/proc/%d/", &pid); err == nil && strings.Contains(string(info), fmt.Sprintf("fuse_connection:\t%d\n", minor)) {
			return readerOf(pid)
		}
	}
	return "a process that cannot be seen from here"
}

// spareDescriptors are what fusermount3 takes, with the pipes to it, and more than the files of fusectl do.
const spareDescriptors = 6

// lockMountpoint returns the directory dir, locked: of programs that mount there at once, one
// goes on, and the others get errInUse.
func lockMountpoint(dir string) (*mountpoint, error) {
	below, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("mountpoint %s: %w", dir, pathReason(err))
	}
	err = unix.Flock(int(below.Fd()), unix.LOCK_EX|unix.LOCK_NB) // a file system without locks: nothing tells the two apart
	if err == unix.EWOULDBLOCK || mountedAt(dir).isFUSE() {
		below.Close()
		return nil, fmt.Errorf("mountpoint %s %w: another program mounts there at this moment", dir, errInUse)
	}
	m := &mountpoint{dir: dir, below: below}
	for range spareDescriptors {
		if f, err := os.Open(os.DevNull); err == nil { // without it, the end may fail
			m.spare = append(m.spare, f)
		}
	}
	return m, nil
}

// recognize finds out which mount is this program's, and ends the lock. It fails if the kernel does not list one.
func (m *mountpoint) recognize() error {
	fd, err := unix.Open(mountTable, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", mountTable, err)
	}
	m.table = os.NewFile(uintptr(fd), mountTable)
	below := mountID(int(m.below.Fd()), "")
	all, err := readMounts(m.table)
	for _, entry := range all {
		if entry.dir == m.dir && entry.isFsmount() && (below == 0 || below == entry.parent) {
			m.own = entry
		}
	}
	if m.own.id == 0 {
		return fmt.Errorf("%s does not list it: %w", mountTable, err)
	}
	return unix.Flock(int(m.below.Fd()), unix.LOCK_UN)
}

// find returns the mount as it is now, wherever it was moved to, and what is mounted on
// top of it; ok is false if it is mounted no more. If it cannot tell, all is as it was.
func (m *mountpoint) find() (own, over mountEntry, ok bool) {
	_, seekErr := m.table.Seek(0, io.SeekStart)
	all, err := readMounts(m.table)
	if seekErr != nil || err != nil || len(all) == 0 {
		return m.own, over, true
	}
	for _, entry := range all {
		if entry.id == m.own.id && entry.minor == m.own.minor {
			own, ok = entry, true
		}
	}
	for _, entry := range all {
		if ok && entry.parent == own.id && entry.dir == own.dir {
			over = entry
		}
	}
	return own, over, ok
}

// left reports whether the mount has left this mount namespace since the last call, or
// before. It does not look where the kernel says that no mount came or went.
func (m *mountpoint) left() bool {
	events := []unix.PollFd{{Fd: int32(m.table.Fd()), Events: unix.POLLPRI}} // proc_pid_mounts(5)
	if n, err := unix.Poll(events, 0); n == 0 && err == nil {
		return false
	}
	_, _, ok := m.find()
	return !ok
}

// unmount detaches the mount, if it is still there: no new reader gets in, and the kernel frees the mount when the last
// file is closed (MNT_DETACH, umount(2)). It is there, and every access fails with ENOTCONN, after its connection was
// cut (umount -f, or an abort). It fails, and leaves all as it is, if something else is mounted on top.
// BLOCKS, without the right to mount, as long as fusermount3 takes.
func (m *mountpoint) unmount() error {
	for _, f := range m.spare {
		f.Close() // the end has come
	}
	own, over, ok := m.find()
	switch {
	case !ok:
		return nil
	case over.id != 0:
		return fmt.Errorf("unmount %s: %s is mounted over it: unmount that, and then this: %s",
			own.dir, over.fsType, unmountCommand(own.dir))
	}
	var by *os.File
	if below, err := os.Readlink(fdPath(m.below)); err == nil && below == own.dir {
		by = m.below // whoever owns the directories above, and wherever their names lead by now
	}
	err := unmount(own.dir, by)
	if _, _, still := m.find(); err == nil || !still {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", own.dir, err)
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// unmount detaches m, and reports whether it did: not if something is mounted on top by now, or if m is mounted no
// more. What is at its place then stays. BLOCKS, without the right to mount, as long as fusermount3 takes.
func (m mountEntry) unmount() (done bool, err error) {
	fd, err := unix.Open(m.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	root := os.NewFile(uintptr(fd), m.dir)
	defer root.Close()
	covers := func(other mountEntry) bool { return other.parent == m.id }
	if id := mountID(fd, ""); id != 0 && id != m.id || slices.ContainsFunc(mounts(), covers) {
		return false, nil
	}
	err = unmount(m.dir, root)
	if err == unix.EINVAL { // it is attached nowhere any more
		return false, nil
	}
	return err == nil, err
}

// unmount detaches what is on top at path. The descriptor by, if there is one, is of that mount or of the directory
// below. BLOCKS, without the right to mount, as long as fusermount3 takes.
func unmount(path string, by *os.File) (err error) {
	if by != nil {
		err = unix.Unmount(fdPath(by), unix.MNT_DETACH)
	} else {
		err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != unix.EPERM {
		return err
	}
	helper, err := fusermount()
	if err != nil {
		return err
	}
	if out, err := exec.Command(helper, "-u", "-z", "--", path).CombinedOutput(); err != nil {
		return fmt.Errorf("%s -u -z %s: %w: %s", helper, path, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// fusermount returns the path of the set-user-ID helper that mounts and unmounts for users without the right to.
func fusermount() (path string, err error) {
	if path, err = exec.LookPath("fusermount3"); err != nil {
		path, err = exec.LookPath("fusermount")
	}
	return path, err
}

func unmountCommand(dir string) string {
	if os.Geteuid() == 0 {
		return "umount " + shellQuote(dir)
	}
	return "fusermount3 -u " + shellQuote(dir)
}
