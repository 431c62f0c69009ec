// Kernel tests of what a machine does to a mount: kill it and start it again, mount over
// it, move the directories above it, hide its readers, and leave it few descriptors and
// few rights.

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root may do this to a mount")
	}
}

// killed starts a mount of f at dir, and kills it.
func killed(t *testing.T, dir string, f *kernelFile) {
	t.Helper()
	m := startKernelMountBy(t, dir, nil, nil, f.url)
	m.signal(unix.SIGKILL)
	m.requireExit(-1)
}

// deadLayer mounts, over whatever is at dir, an fsmount that nobody serves.
func deadLayer(t *testing.T, dir string) {
	t.Helper()
	fd, err := mountDevice(dir, fsSource, "fuse."+fsSubtype)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

func TestKernelDeadMountIsReplaced(t *testing.T) {
	requireRoot(t)
	f := wholeFile("a.bin", 1<<20)
	startKernelOrigin(t, f)
	dir := kernelTestDir(t)
	deadLayer(t, dir)
	deadLayer(t, dir)
	killed := func() {
		m := startKernelMountBy(t, dir, nil, nil, f.url)
		m.awaitLogged("removed from " + dir)
		m.reader().requireWhole(f)
		r := m.reader().open(f) // the mount is busy
		m.signal(unix.SIGKILL)
		m.requireExit(-1)
		_ = r
	}
	killed()
	killed()
	m := startKernelMountBy(t, dir, nil, nil, f.url)
	m.reader().requireWhole(f)
}

func TestKernelUmountCommand(t *testing.T) {
	f := wholeFile("a.bin", 1<<20)
	f.holding(4096, f.size)
	m := f.mount(t)
	r := m.reader().open(f)
	r.send(preadCall(f, 8192, 4096))
	if status, stdout, stderr := runProgram(t, "umount", m.dir); status != 0 || stdout+stderr != "" {
		t.Errorf("of a mount: status %d, %q, %q", status, stdout, stderr)
	}
	m.requireExit(0)
	r.requireErrno("EIO")
	if status, _, stderr := runProgram(t, "umount", m.dir); status != 2 || !strings.Contains(stderr, "no fsmount is mounted there") {
		t.Errorf("of an empty directory: status %d, %q", status, stderr)
	}
	if os.Geteuid() != 0 {
		return
	}
	killed(t, m.dir, f)
	if status, stdout, stderr := runProgram(t, "umount", m.dir); status != 0 || !strings.Contains(stdout, "removed what a killed fsmount") {
		t.Errorf("of a dead mount: status %d, %q, %q", status, stdout, stderr)
	}
	if mounted(m.dir) {
		t.Error("the dead mount is still there")
	}
}

// A mount that somebody serves is never touched, whatever it is and however it hangs.
func TestKernelLiveMountIsLeft(t *testing.T) {
	requireRoot(t)
	f := wholeFile("a.bin", 4096)
	m := f.mount(t)
	pid := m.cmd.Process.Pid
	other := kernelTestDir(t)
	fd, err := mountDevice(other, "other", "fuse.other")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(other, unix.MNT_DETACH)
	for dir, says := range map[string]string{m.dir: fmt.Sprintf("served by pid %d (", pid), other: "fuse.other is mounted there already"} {
		before := mountedAt(dir)
		status, _, stderr := runProgram(t, "-mount", dir, f.url)
		after := mountedAt(dir)
		if status != 1 || !strings.Contains(stderr, says) || !strings.Contains(stderr, "umount "+dir) || before != after {
			t.Errorf("%s: status %d, %q, want 1 and %q; mounted before %v, after %v", dir, status, stderr, says, before, after)
		}
	}
	unix.Close(fd)
	if status, _, stderr := runProgram(t, "umount", other); status != 2 || !mounted(other) {
		t.Errorf("umount of another dead mount: status %d, %q, want 2 and nothing done", status, stderr)
	}
	m.reader().requireWhole(f)
}

func TestKernelOneOfTwoStartsWins(t *testing.T) {
	requireFUSE(t)
	f := wholeFile("a.bin", 4096)
	startKernelOrigin(t, f)
	dir := kernelTestDir(t)
	const starts = 4
	ready, ended := make(chan *exec.Cmd, starts), make(chan int, starts)
	for range starts {
		cmd := exec.Command(kernelProgram(t), "-mount", dir, "--temp-dir", kernelTestDir(t), f.url)
		log := newKernelLog()
		cmd.Stdout = log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			cmd.Wait()
			log.close()
			ended <- cmd.ProcessState.ExitCode()
		}()
		go func() {
			if log.await(func(text string) bool { return strings.Contains(text, "mounted at") }) {
				ready <- cmd
			}
		}()
	}
	winner := <-ready
	for range starts - 1 {
		if status := <-ended; status != exitFailure {
			t.Errorf("a start that lost: status %d, want 1", status)
		}
	}
	layers := 0
	for _, m := range mounts() {
		if m.dir == dir {
			layers++
		}
	}
	if layers != 1 {
		t.Errorf("mounts at the directory: %d, want 1", layers)
	}
	winner.Process.Signal(unix.SIGTERM)
	if status := <-ended; status != exitOK || mounted(dir) {
		t.Errorf("the start that won: status %d at its end, want 0 and no mount", status)
	}
}

func TestKernelDirectoryMayBeAMountpoint(t *testing.T) {
	requireRoot(t)
	f := wholeFile("a.bin", 1<<20)
	startKernelOrigin(t, f)
	dir := kernelTestDir(t)
	if err := unix.Mount("volume", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	volume := mountedAt(dir)
	m := startKernelMountBy(t, dir, nil, nil, f.url)
	m.ended = true // the harness would find the volume
	m.reader().requireWhole(f)
	m.stop()
	if left := mountedAt(dir); left != volume {
		t.Errorf("after the stop: %v is mounted, want the volume %v", left, volume)
	}
	unix.Unmount(dir, 0)
}

// What was mounted on top of a mount is not unmounted in its place. A mount whose
// directory was moved is found, and what has the old name now is left alone.
func TestKernelUnmountsOnlyWhatIsItsOwn(t *testing.T) {
	requireRoot(t)
	f := wholeFile("a.bin", 4096)
	startKernelOrigin(t, f)
	t.Run("mounted over", func(t *testing.T) {
		m := startKernelMount(t, f.url)
		if err := unix.Mount("over", m.dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		m.signal(unix.SIGTERM)
		m.requireExit(exitFailure)
		if over := mountedAt(m.dir); over.fsType != "tmpfs" || !strings.Contains(m.stderr.String(), "tmpfs is mounted over it") {
			t.Errorf("mounted: %v; log: %q", over, m.stderr)
		}
		for range 2 {
			unix.Unmount(m.dir, unix.MNT_DETACH)
		}
	})
	t.Run("directory above moved", func(t *testing.T) {
		above := kernelTestDir(t) + "/above"
		dir := above + "/dir"
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m := startKernelMountBy(t, dir, nil, nil, f.url)
		if err := os.Rename(above, above+"2"); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("another", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		m.signal(unix.SIGTERM)
		m.requireExit(exitOK)
		if !mounted(dir) || mounted(above+"2/dir") {
			t.Errorf("the other mount is there: %t, want true; its own: %t, want false", mounted(dir), mounted(above+"2/dir"))
		}
		unix.Unmount(dir, unix.MNT_DETACH)
	})
	t.Run("moved", func(t *testing.T) {
		m := startKernelMount(t, f.url)
		elsewhere := kernelTestDir(t)
		if out, err := exec.Command("mount", "--bind", m.dir, elsewhere).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		unix.Unmount(m.dir, unix.MNT_DETACH)
		m.awaitLogged("is unmounted, but programs have files of it open")
		m.signal(unix.SIGTERM)
		m.requireExit(exitOK)
		unix.Unmount(elsewhere, unix.MNT_DETACH)
	})
}

// A shell without job control starts a program in the background with SIGINT ignored:
// Ctrl-C is meant for another program then.
func TestKernelIgnoredInterruptStaysIgnored(t *testing.T) {
	f := wholeFile("a.bin", 4096)
	startKernelOrigin(t, f)
	m := startKernelMountBy(t, kernelTestDir(t), []string{"env", "--ignore-signal=INT"}, nil, f.url)
	m.signal(unix.SIGINT)
	m.reader().requireWhole(f)
}

func TestKernelLogFile(t *testing.T) {
	f := wholeFile("a.bin", 4096)
	startKernelOrigin(t, f)
	dir := t.TempDir()
	fifo, link, plain := dir+"/fifo", dir+"/link", dir+"/plain"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(plain, link); err != nil {
		t.Fatal(err)
	}
	refused := map[string]string{fifo: "no file", link: "symbolic link", dir: "is a directory"}
	if os.Geteuid() == 0 {
		foreignLog := dir + "/foreign"
		if err := os.WriteFile(foreignLog, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(foreignLog, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		refused[foreignLog] = "another user"
	}
	for path, says := range refused {
		status, _, stderr := runProgram(t, "-mount", kernelTestDir(t), "--log-file", path, f.url)
		if status != exitUsage || !strings.Contains(stderr, says) {
			t.Errorf("%s: status %d, %q, want 2 and %q", path, status, stderr, says)
		}
	}
	for _, path := range []string{plain, "/dev/null"} {
		startKernelMount(t, "--log-file", path, f.url).stop()
	}
	if _, err := os.Stat(plain); err != nil {
		t.Error(err)
	}
}

func TestKernelSupervisorIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	socket.SetReadDeadline(time.Now().Add(kernelPatience))
	requireMessage := func(want string) {
		t.Helper()
		message := make([]byte, 100)
		n, err := socket.Read(message)
		if got := string(message[:n]); err != nil || got != want {
			t.Fatalf("message: %q, %v, want %q", got, err, want)
		}
	}
	t.Setenv("NOTIFY_SOCKET", path)
	m := wholeFile("a.bin", 4096).mount(t)
	requireMessage("READY=1")
	m.stop()
	requireMessage("STOPPING=1")
}

func TestKernelListings(t *testing.T) {
	f := wholeFile("a.bin", 4096)
	m := f.mount(t)
	for dir, want := range map[string]string{m.dir: ". .. a.bin", m.path(controlName): ". .. status ops stacks events metrics disk"} {
		out, err := exec.Command("ls", "-aU", dir).Output()
		if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", dir, got, err, want)
		}
	}
	r := m.reader().open(f)
	if a := r.do(readerCall{Op: "listxattr", Path: m.path(f.name)}); a.N != 0 {
		t.Errorf("extended attributes: %d bytes, want none", a.N)
	}
}

// TestKernelFewDescriptors reads 1,000 files, 8 at a time, under ulimit -n 64.
func TestKernelFewDescriptors(t *testing.T) {
	if _, err := exec.LookPath("prlimit"); err != nil {
		cannotTest(t, err)
	}
	var files []*kernelFile
	for i := range 1000 {
		files = append(files, wholeFile(fmt.Sprintf("%d.bin", i), 20_000+int64(i)))
	}
	startKernelOrigin(t, files...)
	var urls []string
	for _, f := range files {
		urls = append(urls, f.url)
	}
	m := startKernelMountBy(t, kernelTestDir(t), []string{"prlimit", "--nofile=64:64"}, nil, urls...)
	m.awaitLogged("of these 1000 files at most 20 can be kept")
	done := make(chan bool)
	for i := range 8 {
		r := m.reader()
		go func() {
			defer func() { done <- true }()
			for _, f := range files[i*125 : (i+1)*125] {
				r.requireWhole(f)
			}
		}()
	}
	for range 8 {
		<-done
	}
	if text := m.stderr.String(); strings.Contains(text, " read ") {
		t.Errorf("reads failed: %.2000s", text)
	}
}

// A mount whose descriptors are all in use ends like any other.
func TestKernelStopWithoutADescriptorLeft(t *testing.T) {
	f := heldFile("a.bin", 1<<20, 4096)
	m := f.mount(t)
	r := m.reader().open(f)
	r.requireRead(f, 0, 4096, 4096)
	pid := m.cmd.Process.Pid
	if out, err := exec.Command("prlimit", "--pid", fmt.Sprint(pid), "--nofile=3:3").CombinedOutput(); err != nil {
		cannotTest(t, fmt.Errorf("%v: %s", err, out))
	}
	r.send(preadCall(f, 0, 8192))
	m.stop()
}

// copyProgram copies the program to dir, for those who cannot follow kernelProgram's path.
func copyProgram(t *testing.T, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "fsmount")
	if out, err := exec.Command("cp", kernelProgram(t), path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// forAll makes /dev/fuse as many machines and containers have it.
const forAll = `mknod -m 666 "$0/f" c 10 229 && mount --bind "$0/f" /dev/fuse`

// withDevice returns a command that runs another one where /dev/fuse is as device, a script, makes it.
func withDevice(t *testing.T, device string, as ...string) []string {
	return append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none "$0" && ` + device + ` && exec "$@"`, t.TempDir()}, as...)
}

// TestKernelSaysWhyItCannotMount has a sentence, with the way out, for each of what may be
// in the way.
func TestKernelSaysWhyItCannotMount(t *testing.T) {
	requireRoot(t)
	f := wholeFile("a.bin", 4096)
	startKernelOrigin(t, f)
	base, err := os.MkdirTemp("/var/tmp", "fsmount-test-") // that all users reach
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	mnt := filepath.Join(base, "mnt")
	for _, err := range []error{os.Chmod(base, 0o755), os.Mkdir(mnt, 0o755), os.Chown(mnt, 65534, 65534)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	program := copyProgram(t, base)
	nobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
	setpriv, err := exec.LookPath(nobody[0])
	if err != nil {
		t.Fatal(err)
	}
	const forRoot, none = `mknod -m 600 "$0/f" c 10 229 && mount --bind "$0/f" /dev/fuse`, `mount --bind "$0" /dev`
	withDevice := func(device string, as ...string) []string { return withDevice(t, device, as...) }
	for about, test := range map[string]struct {
		by   []string
		args []string
		says string
	}{
		"no device":        {withDevice(none), nil, "/dev/fuse is missing; as root: modprobe fuse; in a container: start it with --device /dev/fuse"},
		"device refused":   {withDevice(forRoot, nobody...), nil, "permission denied; as root: chmod 666 /dev/fuse"},
		"container":        {[]string{"setpriv", "--bounding-set=-sys_admin"}, nil, "(no CAP_SYS_ADMIN); start the container with --cap-add SYS_ADMIN"},
		"user namespace":   {withDevice(forAll, "unshare", "--user", "--map-root-user"), nil, "a user namespace forbids it; "},
		"no helper":        {withDevice(forAll, slices.Concat([]string{"env", "PATH=/nowhere", setpriv}, nobody[1:])...), nil, "install fusermount3"},
		"no_new_privs":     {withDevice(forAll, append(nobody, "--no-new-privs")...), nil, "no_new_privs is set, so "},
		"user_allow_other": {withDevice(forAll, nobody...), []string{"--allow-other"}, "add the line user_allow_other to /etc/fuse.conf"},
	} {
		words := slices.Concat(test.by, []string{program, "-mount", mnt, "--temp-dir", "/var/tmp", f.url}, test.args)
		status, _, stderr := runToEnd(t, words[0], words[1:]...)
		if status != exitFailure || !strings.Contains(stderr, test.says) {
			t.Errorf("%s: status %d, want 1; %q must say %q", about, status, stderr, test.says)
		}
	}
}

// A program that the mount cannot see catches signals, and is killed.
func TestKernelReaderInAnotherPIDNamespace(t *testing.T) {
	requireRoot(t)
	share := kernelTestDir(t)
	if err := unix.Mount("share", share, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(share, unix.MNT_DETACH)
	dir := share + "/dir"
	if err := unix.Mount("", share, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f := heldFile("a.bin", 4<<20, 1<<20)
	startKernelOrigin(t, f)
	program := copyProgram(t, share) // the path of kernelProgram leads nowhere in there
	m := startKernelMountBy(t, dir, []string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "unchanged",
		"sh", "-c", "exec " + program + ` "$@"`}, nil, f.url)
	m.ended = true // SIGTERM does not reach it: unshare ignores it
	defer m.requireExit(0)
	defer runProgram(t, "umount", dir)

	caught, victim := m.reader().open(f), m.reader().open(f)
	caught.do(readerCall{Op: "catch"})
	caught.send(preadCall(f, 2<<20, 4096))
	victim.send(preadCall(f, 3<<20, 4096))
	for _, r := range []*kernelReader{caught, victim} {
		r.awaitState("D")
	}
	for range 20 {
		caught.interrupt(unix.SIGUSR1)
	}
	victim.kill(unix.SIGKILL)
	victim.awaitGone()
	f.allowAll()
	if a := caught.answer(); a.Error != "" {
		t.Errorf("the read of a program that caught signals: %s", a.Error)
	}
}

func TestKernelRootKeepsOneCapability(t *testing.T) {
	requireRoot(t)
	f := wholeFile("a.bin", 1<<20)
	startKernelOrigin(t, f)
	theirs := kernelTestDir(t)
	if err := os.Chmod(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	const sysAdmin, dacOverride = "0000000000200000", "0000000000200002"
	for tempDir, want := range map[string]string{kernelTestDir(t): sysAdmin, theirs: dacOverride} {
		m := startKernelMount(t, "--temp-dir", tempDir, f.url)
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"CapPrm:\t" + want, "CapEff:\t" + want, "CapInh:\t0000000000000000", "NoNewPrivs:\t1"} {
			if !slices.Contains(strings.Split(string(status), "\n"), line) {
				t.Errorf("--temp-dir %s: no %q in\n%s", tempDir, line, status)
			}
		}
		m.reader().requireWhole(f)
		m.stop() // also below a directory of another user
	}
	below := filepath.Join(theirs, "dir")
	if err := os.Mkdir(below, 0o777); err != nil {
		t.Fatal(err)
	}
	startKernelMountBy(t, below, nil, nil, f.url).stop()
}

// A unit gives a user without rights CAP_SYS_ADMIN and no_new_privs: no fusermount3 then.
func TestKernelUserWithOneCapability(t *testing.T) {
	requireRoot(t)
	if info, err := os.Stat("/dev/fuse"); err == nil && info.Mode().Perm()&0o006 != 0o006 {
		t.Skip("SKIPPED: only root may open /dev/fuse here (chmod 666 /dev/fuse)")
	}
	f := wholeFile("a.bin", 1<<20)
	startKernelOrigin(t, f)
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	for path := mnt; path != "/" && path != os.TempDir(); path = filepath.Dir(path) {
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	as := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all,+sys_admin",
		"--inh-caps=-all,+sys_admin", "--ambient-caps=-all,+sys_admin", "--no-new-privs"}
	for range 2 { // the second finds what is left of the first
		m := startKernelMountBy(t, mnt, as, nil, "--temp-dir", dir, f.url)
		r := m.program(append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, "sha256sum", m.path(f.name))...)
		r.awaitGone()
		if status := r.cmd.ProcessState.ExitCode(); status != 0 {
			t.Errorf("a read by the user: status %d", status)
		}
		if status, stdout, stderr := runProgram(t, "status", mnt); status != 0 || !strings.Contains(stdout, "complete") {
			t.Errorf("status, asked by root: %d, %q, %q", status, stdout, stderr)
		}
		m.signal(unix.SIGKILL)
		m.requireExit(-1)
	}
	if status, stdout, stderr := runProgram(t, "umount", mnt); status != 0 || mounted(mnt) {
		t.Errorf("umount by root: %d, %q, %q; mounted: %t", status, stdout, stderr, mounted(mnt))
	}
}

// Pages that a program has mapped and touched stay right when the mount is gone.
func TestKernelMappedPagesOutliveTheMount(t *testing.T) {
	f := wholeFile("a.bin", 1<<20)
	m := f.mount(t)
	m.reader().requireWhole(f)
	r := m.reader().open(f)
	r.do(readerCall{Op: "keep mapped", Len: int(f.size), Seed: f.seed, Path: m.path(f.name)})
	m.stop()
	if a := r.do(readerCall{Op: "check mapped", Seed: f.seed}); a.Error != "" {
		t.Error(a.Error)
	}
}

// TestKernelBlockedReadsOfAUserAreBounded: beyond parkedPerUser, a read fails with EIO.
func TestBlockedReadsOfAUserAreBounded(t *testing.T) {
	ops := newOpTable()
	ops.mostPerUser = 2
	park := func(user uint32) (*opRecord, error) {
		op := readOp(0, 1)
		op.OpContext.Uid = user
		rec := ops.begin(op, 1)
		return rec, ops.park(rec)
	}
	first, err1 := park(7)
	_, err2 := park(7)
	third, err3 := park(7)
	_, err4 := park(8)
	if err1 != nil || err2 != nil || err4 != nil || errnoOf(err3) != syscall.EIO {
		t.Errorf("reads of a user: %v, %v, %v, want EIO from the third on; of another: %v", err1, err2, err3, err4)
	}
	ops.end(third)
	if _, err := park(7); err == nil {
		t.Error("the end of a read that did not wait made room for another")
	}
	ops.end(first)
	if _, err := park(7); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}
