// mount_linux.go asks Linux for what is mounted, and reaches the two places
// where it tunes a FUSE mount: the connection's control files (fusectl) and the
// read-ahead of its backing device.

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jacobsa/fuse"
	"golang.org/x/sys/unix"
)

const (
	// readAheadKiB is how far the kernel reads ahead in a complete file: one
	// largest request. Its default of 128 KiB halves the throughput.
	readAheadKiB = maxReadBytes / 1024

	// maxBackground replaces the library's 12: that many blocked read-aheads,
	// which only a private mapping of an incomplete file can make, would stop
	// the page cache of every other file.
	maxBackground = 1024
)

// mountEntry is the part of a line of /proc/self/mountinfo that matters here
// (proc_pid_mountinfo(5)).
type mountEntry struct {
	minor  uint32 // of the device; FUSE mounts have major 0
	dir    string
	fsType string // with its subtype, as in fuse.fsmount
}

// mounts lists what is mounted, the latest last.
func mounts() []mountEntry {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var all []mountEntry
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		_, minor, _ := strings.Cut(fields[2], ":")
		n, _ := strconv.ParseUint(minor, 10, 32)
		all = append(all, mountEntry{minor: uint32(n), dir: unescapeMountPath(fields[4]), fsType: mountType(fields)})
	}
	return all
}

// mountType is what follows the "-" that ends the optional fields of a line.
func mountType(fields []string) string {
	if i := slices.Index(fields, "-"); i >= 0 && i+1 < len(fields) {
		return fields[i+1]
	}
	return ""
}

// unescapeMountPath undoes the octal escapes of mountinfo, such as \040 for a
// blank.
func unescapeMountPath(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mounted reports whether something is mounted at dir.
func mounted(dir string) bool {
	for _, m := range mounts() {
		if m.dir == dir {
			return true
		}
	}
	return false
}

// fsmountAt reports whether what is mounted at dir is a file system of this
// program. It does not ask that file system.
func fsmountAt(dir string) (yes bool) {
	for _, m := range mounts() {
		if m.dir == dir {
			yes = m.fsType == "fuse."+fsSubtype
		}
	}
	return yes
}

// unmount takes away what is mounted at dir. If files are open there, it
// detaches the mount: nobody new gets in, and the kernel frees it with the last
// close (MNT_DETACH, umount(2)).
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

// unmountAsUser has the set-user-ID helper detach the mount.
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

// control is the kernel's side of one FUSE mount. The zero control is of no
// mount and does nothing.
type control struct {
	minor uint32
}

// openControl returns the control of what is mounted at dir. It looks the mount
// up by its path in mountinfo, for a stat of it would ask this very process.
func openControl(dir string) control {
	c := control{}
	for _, m := range mounts() {
		if m.dir == dir {
			c.minor = m.minor
		}
	}
	return c
}

// tune raises read-ahead and the limit of background requests, where this user
// may. Both are matters of speed, so a failure is none.
func (c control) tune() {
	if c.minor == 0 {
		return
	}
	path := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", c.minor)
	_ = os.WriteFile(path, strconv.AppendInt(nil, readAheadKiB, 10), 0)
	_ = c.write("max_background", strconv.Itoa(maxBackground))
}

// abort ends the connection: every request, answered or not, fails with
// ECONNABORTED, and ReadOp returns io.EOF (Documentation/filesystems/fuse).
func (c control) abort() {
	if c.minor != 0 {
		_ = c.write("abort", "1")
	}
}

// waiting returns how many requests the kernel has not got an answer to, those
// that have not reached us among them, or -1 if that cannot be read.
func (c control) waiting() int {
	text := make([]byte, 32)
	n, err := c.file("waiting", unix.O_RDONLY, func(fd int) (int, error) { return unix.Read(fd, text) })
	if err != nil {
		return -1
	}
	count, err := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	if err != nil {
		return -1
	}
	return count
}

// write sets one control file of the connection.
func (c control) write(name, value string) error {
	_, err := c.file(name, unix.O_WRONLY, func(fd int) (int, error) { return unix.Write(fd, []byte(value)) })
	return err
}

// file uses one control file of the connection, which the mount's owner may.
// Where fusectl is not mounted, root reaches it by a mount that has no place in
// the file tree (fsopen(2)).
func (c control) file(name string, flags int, use func(fd int) (int, error)) (int, error) {
	root, err := unix.Open("/sys/fs/fuse/connections", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { unix.Close(root) }()
	path := fmt.Sprintf("%d/%s", c.minor, name)
	fd, err := unix.Openat(root, path, flags|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		unix.Close(root)
		if root, err = openFusectl(); err != nil {
			return 0, err
		}
		fd, err = unix.Openat(root, path, flags|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return use(fd)
}

// openFusectl returns the root directory of a fusectl mount of our own.
func openFusectl() (int, error) {
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

// readTimeout returns how long a read may wait: as asked, but less than the time
// after which the kernel would give up the whole mount for one request that was
// not answered (fs.fuse.max_request_timeout, seconds, Linux 6.15; 0: never).
func readTimeout(asked time.Duration) time.Duration {
	text, err := os.ReadFile("/proc/sys/fs/fuse/max_request_timeout")
	if err != nil {
		return asked
	}
	seconds, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if limit := time.Duration(seconds) * time.Second / 2; limit > 0 {
		return min(asked, limit)
	}
	return asked
}
