//go:build linux

// selftest_host.go checks what fsmount needs of the machine before anything can
// be mounted: the device, the rights, the kernel and room for downloads. It
// changes nothing there.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// selftestSpace is the room that the self-test wants for its own downloads,
// several times what they take. In bytes.
const selftestSpace = 256 << 20

// kernelVersion is the start of what uname -r says.
type kernelVersion struct{ major, minor int }

// Kernels that matter: FUSE requests of more than 128 KiB came with 4.20
// (FUSE_MAX_PAGES), and cachestat(2), without which large reads are copied once
// more, with 6.5.
var (
	kernelNeeded = kernelVersion{4, 20}
	kernelFast   = kernelVersion{6, 5}
)

// Names of the checks that others need.
const (
	checkNameDevice = "device"
	checkNameRights = "rights"
	checkNameKernel = "kernel"
	checkNameSpace  = "temporary space"
)

func selftestHostChecks() []selftestCheck {
	return []selftestCheck{
		{name: checkNameDevice, run: checkFUSEDevice,
			todo: "as root: chmod 666 /dev/fuse; in a container: start it with --device /dev/fuse"},
		{name: checkNameRights, run: checkMountRights,
			todo: "run it as root, or install fusermount3 (Debian: apt install fuse3); as root in a container: start it with --cap-add SYS_ADMIN"},
		{name: checkNameKernel, run: checkKernel,
			todo: "use a kernel of 4.20 or later"},
		{name: checkNameSpace, run: checkTempSpace,
			todo: "free some, or name another directory in $TMPDIR (for a mount: --temp-dir DIR)"},
	}
}

func checkFUSEDevice(context.Context) (string, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", advisedError{errors.New("/dev/fuse is missing"),
			`as root: modprobe fuse; in a container: start it with --device /dev/fuse`}
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return "", advisedError{fmt.Errorf("open /dev/fuse: %w: the kernel has no FUSE", err),
			`as root: modprobe fuse; on a container's host, if this is one`}
	case err != nil:
		return "", fmt.Errorf("open /dev/fuse: %w", err)
	}
	return "/dev/fuse can be opened", unix.Close(fd)
}

// checkMountRights looks for one of the two ways to mount: the right to do it,
// and the set-user-ID helper, in the order in which they are tried.
func checkMountRights(context.Context) (string, error) {
	if mayMount() {
		return fmt.Sprintf("user %d may mount by itself", os.Geteuid()), nil
	}
	for _, name := range []string{"fusermount3", "fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return fmt.Sprintf("user %d mounts by %s", os.Geteuid(), path), nil
		}
	}
	return "", fmt.Errorf("user %d may not mount (no CAP_SYS_ADMIN), and there is no fusermount3 in $PATH", os.Geteuid())
}

// mayMount reports whether this process has CAP_SYS_ADMIN (mount(2)).
func mayMount() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	err := unix.Capget(&header, &sets[0])
	return err == nil && sets[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

func checkKernel(context.Context) (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("ask for the kernel's version: %w", err)
	}
	return judgeKernel(unix.ByteSliceToString(name.Release[:]))
}

// judgeKernel says what release, as uname -r has it, means for fsmount.
func judgeKernel(release string) (string, error) {
	var v kernelVersion
	if _, err := fmt.Sscanf(release, "%d.%d", &v.major, &v.minor); err != nil {
		return "", fmt.Errorf("the kernel's version %q has no number", release)
	}
	switch {
	case v.before(kernelNeeded):
		return "", fmt.Errorf("the kernel, Linux %s, is older than 4.20", release)
	case v.before(kernelFast):
		return fmt.Sprintf("Linux %s (from 6.5 on, large reads are faster)", release), nil
	}
	return "Linux " + release, nil
}

func (v kernelVersion) before(w kernelVersion) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

// checkTempSpace looks at the directory that --temp-dir names by default.
func checkTempSpace(context.Context) (string, error) {
	dir := defaultTempDir()
	f, err := createUnlinked(dir)
	if err != nil {
		return "", fmt.Errorf("no file can be made in %s: %w", dir, pathReason(err))
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("ask for the room in %s: %w", dir, err)
	}
	return judgeSpace(dir, int64(st.Bavail)*st.Bsize)
}

// judgeSpace says whether free bytes in dir are enough.
func judgeSpace(dir string, free int64) (string, error) {
	if free < selftestSpace {
		return "", fmt.Errorf("%s has room for %s only, the self-test wants %s", dir, formatBytes(free), formatBytes(selftestSpace))
	}
	return fmt.Sprintf("%s has room for %s", dir, formatBytes(free)), nil
}
