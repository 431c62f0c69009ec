// mount.go mounts the file system, tunes the kernel's side of it, and unmounts it within bounds whatever the
// readers do. It never asks a mounted file system for anything: that file system may be hanging.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/jacobsa/fuse"
	"golang.org/x/sys/unix"
)

const (
	fsSubtype = "fsmount" // makes the type fuse.fsmount in /proc/mounts
	// fsSource is the device in /proc/mounts. By its colon df -l, updatedb and the like
	// know that the files are remote, and leave them alone.
	fsSource = "fsmount:http"

	requestPages = maxReadBytes / 4096 // of the largest read that the kernel may send: 4 KiB each
	readAheadKiB = maxReadBytes / 1024 // in a complete file: one largest request; the default of 128 halves the throughput
	// requestBytes is the room for data in the library's buffer of a request. Only writes carry data,
	// and there are none. One page, the least that the kernel accepts, keeps a blocked read at 8 KiB.
	requestBytes = 4096
	// maxBackground replaces the library's 12. Only a private mapping of an incomplete
	// file makes read-ahead that blocks; 12 of these would stop the page cache of every
	// other file. The kernel calls a mount congested at three quarters of its limit.
	maxBackground       = 1024
	congestionThreshold = maxBackground * 3 / 4
	// drainPatience is how long a stopping mount waits, from its unmount on, for
	// readers to close their files before it cuts them off.
	drainPatience = time.Second
)

// mountpoint is a directory that a mount of this program lies on, or will.
type mountpoint struct {
	dir   string   // absolute
	below *os.File // the directory itself: it is below the mount wherever its path leads
	fs    *fileSystem
	mfs   *fuse.MountedFileSystem
	own   mountEntry

	// At the end there may be no descriptor left. table is the open mountTable, which Go's
	// own poller must not have; spare ones are for what else the end needs.
	table *os.File
	spare []*os.File
}

// mountAt mounts fs at dir, an absolute path that checkMountpoint has accepted.
func mountAt(dir string, fs *fileSystem, allowOther bool) (*mountpoint, error) {
	m, err := lockMountpoint(dir)
	if err != nil {
		return nil, err
	}
	config := mountConfig(fs.io)
	if allowOther {
		config.Options = map[string]string{"allow_other": ""}
		fs.ops.mostPerUser = parkedPerUser
	}
	m.fs = fs
	server, at := fuse.NewServerWithNotifier(fs.kernel, fs), dir
	d := openDevice(dir, fs, allowOther)
	if d != nil {
		d.Server, server, at = server, d, fmt.Sprintf("/dev/fd/%d", d.ends[1])
	}
	m.mfs, err = fuse.Mount(at, server, config)
	if err != nil {
		if d != nil {
			_ = unmount(dir, nil) // err says why
		}
		m.below.Close()
		return nil, fmt.Errorf("mount %s: %w", dir, mountProblem(err, allowOther))
	}
	if err := m.recognize(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", dir, err), unmount(dir, nil))
	}
	m.own.tune()
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

// fuseDevice stands between the kernel and the library while these agree on what they can do:
// the library does not know passthrough.
type fuseDevice struct {
	fuse.Server
	fs     *fileSystem
	kernel int    // descriptor of /dev/fuse
	init   []byte // the kernel's first request, with what it can do
	ends   [2]int // descriptors of a pair of sockets; the library has the second one, until that is /dev/fuse
}

// openDevice mounts fs at dir as the library would, and passes the kernel's first request on to the library.
// It returns nil, and leaves no mount, where passthrough cannot be, or something fails: the library knows what then.
// BLOCKS until the kernel has sent that request, which a mount makes it do at once.
func openDevice(dir string, fs *fileSystem, allowOther bool) *fuseDevice {
	if fs.io != ioAuto || !mayMount() {
		return nil
	}
	d := &fuseDevice{fs: fs, init: make([]byte, 2*requestBytes)}
	var err error
	if d.kernel, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return nil
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,default_permissions", d.kernel, os.Getuid(), os.Getgid())
	if allowOther {
		data += ",allow_other"
	}
	err = unix.Mount(fsSource, dir, "fuse."+fsSubtype, unix.MS_NODEV|unix.MS_NOSUID|unix.MS_RDONLY, data)
	if err != nil {
		unix.Close(d.kernel)
		return nil
	}
	if d.ends, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err == nil {
		var n int
		n, err = unix.Read(d.kernel, d.init)
		d.init = d.init[:max(n, 0)]
	}
	if err == nil {
		_, err = unix.Write(d.ends[0], d.init)
	}
	if err != nil {
		unix.Close(d.kernel)
		_ = unmount(dir, nil) // the next mount says what is wrong
		return nil
	}
	return d
}

// ServeOps implements fuse.Server. The library has answered the kernel's first request by then.
// BLOCKS as fileSystem.ServeOps does.
func (d *fuseDevice) ServeOps(c *fuse.Connection) {
	if err := d.agree(); err != nil { // the mount ends
		d.fs.log.printf("agree with the kernel: %v", err)
		return
	}
	d.Server.ServeOps(c)
}

// agree hands the library's answer on, with passthrough in it. The library talks to the kernel from then on: it
// keeps its descriptor, which dup3(2) makes /dev/fuse.
func (d *fuseDevice) agree() error {
	defer unix.Close(d.kernel)
	defer unix.Close(d.ends[0])
	answer := make([]byte, requestBytes)
	n, err := unix.Read(d.ends[0], answer)
	if err != nil {
		return err
	}
	answer = answer[:n]
	d.fs.passthrough.agree(d.init, answer, d.fs.room.stacking)
	d.fs.passthrough.device = d.ends[1]
	if _, err := unix.Write(d.kernel, answer); err != nil {
		return err
	}
	return unix.Dup3(d.kernel, d.ends[1], unix.O_CLOEXEC)
}

// mountProblem says why a mount failed with err, and what to try.
func mountProblem(err error, allowOther bool) error {
	if problem := deviceProblem(); problem != nil {
		return problem
	}
	if _, problem := mountRights(allowOther); problem != nil {
		return problem
	}
	if mayMount() {
		return fmt.Errorf("%w, although this process has CAP_SYS_ADMIN: AppArmor or a user namespace forbids it; "+
			"start the container with --security-opt apparmor=unconfined, or mount in a namespace of your own: unshare --user --map-root-user --mount", err)
	}
	return errors.New("fusermount3 refuses, and said why; the directory must belong to you, and AppArmor must allow it (see dmesg)")
}

// deviceProblem returns why /dev/fuse cannot be opened, and what to do, or nil if it can.
func deviceProblem() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		return unix.Close(fd) // a device without a mount: nothing is lost
	case unix.ENOENT:
		return errors.New("/dev/fuse is missing; as root: modprobe fuse; in a container: start it with --device /dev/fuse")
	case unix.ENODEV, unix.ENXIO:
		return fmt.Errorf("open /dev/fuse: %w: the kernel has no FUSE; as root: modprobe fuse; on a container's host, if this is one", err)
	}
	return fmt.Errorf("open /dev/fuse: %w; as root: chmod 666 /dev/fuse; in a container: start it with --device /dev/fuse", err)
}

// userAllowsOther matches the line of /etc/fuse.conf that lets users mount for others.
var userAllowsOther = regexp.MustCompile(`(?m)^\s*user_allow_other\s*$`)

// mountRights looks for the two ways to mount, in the order in which a mount tries them: CAP_SYS_ADMIN, then the
// set-user-ID helper. It returns how this user mounts, for other users too if allowOther, or why not and what to do.
func mountRights(allowOther bool) (how string, problem error) {
	if mayMount() {
		return "may mount by itself", nil
	}
	if os.Geteuid() == 0 { // set-user-ID gives root nothing
		return "", errors.New("root may not mount here (no CAP_SYS_ADMIN); start the container with --cap-add SYS_ADMIN")
	}
	helper, err := fusermount()
	if err != nil {
		return "", fmt.Errorf("user %d may not mount (no CAP_SYS_ADMIN), and there is no fusermount3 in $PATH; "+
			"run it as root, or install fusermount3 (Debian: apt install fuse3)", os.Geteuid())
	}
	if info, err := os.Stat(helper); err == nil && info.Mode()&os.ModeSetuid == 0 {
		return "", fmt.Errorf("%s is not set-user-ID, so it may not mount; as root: chmod u+s %s", helper, shellQuote(helper))
	}
	if bound, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); bound == 1 {
		return "", fmt.Errorf("no_new_privs is set, so %s may not mount; start it without "+
			"(systemd: NoNewPrivileges=no, docker: without --security-opt no-new-privileges), or as root", helper)
	}
	if conf, _ := os.ReadFile("/etc/fuse.conf"); allowOther && !userAllowsOther.Match(conf) {
		return "", errors.New("users other than root may not use --allow-other here; " +
			"as root, add the line user_allow_other to /etc/fuse.conf, or leave out --allow-other")
	}
	return "mounts by " + helper, nil
}

// capabilities is a set: bit n is capability n (capabilities(7)).
type capabilities uint32

const (
	unmounting = capabilities(1 << unix.CAP_SYS_ADMIN)
	anyFile    = capabilities(1 << unix.CAP_DAC_OVERRIDE)
)

// ownCapabilities returns the first 32 of those that this thread has.
func ownCapabilities() (effective, permitted capabilities) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	_ = unix.Capget(&header, &sets[0]) // it fails for other processes only (capget(2))
	return capabilities(sets[0].Effective), capabilities(sets[0].Permitted)
}

// mayMount reports whether this process has CAP_SYS_ADMIN (mount(2)).
func mayMount() bool {
	effective, _ := ownCapabilities()
	return effective&unmounting != 0
}

// dropRights gives up, for good, every capability but CAP_SYS_ADMIN, which the unmount needs, and reports whether it
// kept CAP_DAC_OVERRIDE too, because no file can be made in tempDir without it. A program that this one starts gets no
// others either (no_new_privs), and no debugger of the same user reads this one's memory, which holds logins. A process
// without CAP_SYS_ADMIN keeps all it has: it unmounts by fusermount3, whose rights no_new_privs would take. So does a
// build with cgo, such as one with the race detector, in which only the C library reaches all threads.
func dropRights(tempDir string) (keptAnyFile bool, err error) {
	if !mayMount() {
		return false, nil
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
	if errno == unix.ENOTSUP {
		return false, nil
	}
	if errno != 0 {
		return false, errno
	}
	if err := setCapabilities(unmounting, unmounting|anyFile); err != nil {
		return false, err
	}
	keep := unmounting
	if f, err := createUnlinked(tempDir); err == nil {
		f.Close()
	} else {
		keptAnyFile, keep = true, unmounting|anyFile
	}
	if err := setCapabilities(keep, keep); err != nil {
		return false, err
	}
	return keptAnyFile, unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // of the process, not of a thread
}

// setCapabilities sets the effective and the permitted capabilities of all threads, to
// some of those that they have. They have no inheritable ones then.
func setCapabilities(effective, permitted capabilities) error {
	_, has := ownCapabilities()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	sets := [2]unix.CapUserData{{Effective: uint32(effective & has), Permitted: uint32(permitted & has)}}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Wait returns when the file system is unmounted, by Stop or from outside.
// BLOCKS until that, and until every op has its reply.
func (m *mountpoint) Wait() error { return m.mfs.Join(context.Background()) }

// Stop unmounts. It ends every wait, so that readers get their replies; detaches the mount, so that no new reader
// comes; and after drainPatience cuts off the readers that still hold files open. The error says that the mount is
// still there. BLOCKS until ServeOps has returned, at most three times drainPatience, and without root as long as
// fusermount3 takes. The end of the process cuts off readers that hold files open even then.
func (m *mountpoint) Stop() error {
	m.fs.Stop()
	unmountErr := m.unmount()
	if m.joined(drainPatience) {
		return nil
	}
	m.own.abort()
	m.joined(2 * drainPatience)
	return unmountErr
}

func (m *mountpoint) joined(patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return m.mfs.Join(ctx) == nil
}

// tune raises read-ahead and the limit of background requests, where this user may.
// Both only make reads faster, so it ignores failures.
func (m mountEntry) tune() {
	path := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", m.minor)
	_ = os.WriteFile(path, strconv.AppendInt(nil, readAheadKiB, 10), 0)
	m.writeControl("max_background", strconv.Itoa(maxBackground))
	m.writeControl("congestion_threshold", strconv.Itoa(congestionThreshold))
}

// abort ends the connection: every request without a reply fails with ECONNABORTED,
// and ReadOp returns io.EOF (Documentation/filesystems/fuse).
func (m mountEntry) abort() { m.writeControl("abort", "1") }

// waiting returns how many requests have no reply, those that the loop has not
// taken yet included. It returns -1 if it cannot tell.
func (m mountEntry) waiting() int {
	f, err := m.openControl("waiting", os.O_RDONLY)
	if err != nil {
		return -1
	}
	defer f.Close()
	requests := -1
	_, _ = fmt.Fscan(f, &requests)
	return requests
}

// writeControl sets one of the kernel's control files, if this user may.
func (m mountEntry) writeControl(name, value string) {
	if f, err := m.openControl(name, os.O_WRONLY); err == nil {
		_, _ = f.WriteString(value)
		f.Close()
	}
}

// openControl opens one of the kernel's control files for the FUSE mount m, as its owner may. Where
// fusectl is not mounted, root reaches it through a mount without a place in the file tree (fsopen(2)).
func (m mountEntry) openControl(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/%s", m.minor, name), flags, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	ctl, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ctl)
	if err := unix.FsconfigCreate(ctl); err != nil {
		return nil, err
	}
	root, err := unix.Fsmount(ctl, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d/%d/%s", root, m.minor, name), flags, 0)
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
