// Kernel tests of directories, and of files that come and go while the file system is
// mounted.

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// names returns what a listing of a path in the mount has.
func (r *kernelReader) names(path string) []string {
	r.t.Helper()
	a := r.do(readerCall{Op: "ls", Path: r.m.path(path)})
	if a.Error != "" {
		r.t.Fatal(a.Error)
	}
	return a.Names
}

// requireOpenDir requires that the directory which r has open lists these names.
func (r *kernelReader) requireOpenDir(want ...string) {
	r.t.Helper()
	if a := r.do(readerCall{Op: "list open dir", Path: r.m.dir}); a.Error != "" || !slices.Equal(a.Names, want) {
		r.t.Errorf("an open directory: %q, %q, want %q", a.Names, a.Error, want)
	}
}

// keptDir is the directory that a reader process has open.
var keptDir *os.File

// listOpenDir opens the directory c.Path, the first time, and rewinds it, later.
func listOpenDir(_ *readerProcess, c readerCall, a *readerAnswer) (err error) {
	if keptDir == nil {
		keptDir, err = os.Open(c.Path)
	} else {
		_, err = keptDir.Seek(0, 0)
	}
	if err == nil {
		a.Names, err = keptDir.Readdirnames(-1)
	}
	return err
}

func TestKernelDirectoriesCanBeCopied(t *testing.T) {
	f := wholeFile("f.bin", 100_000)
	startKernelOrigin(t, f)
	m := startKernelMount(t, "a/b/c.bin="+f.url, "a/d.bin="+f.url, "e f/g.bin="+f.url, f.url)
	found := strings.Split(strings.TrimSpace(m.lookAt("sh", "-c", "cd "+m.dir+" && find . -printf '%p %y %n %s\n'")), "\n")
	slices.Sort(found)
	for i, row := range found {
		if fields := strings.Fields(row); strings.Contains(row, " d ") { // what matters of a directory is its links
			found[i] = strings.Join(fields[:len(fields)-1], " ")
		}
	}
	want := ". d 4;./a d 3;./a/b d 2;./a/b/c.bin f 1 100000;./a/d.bin f 1 100000;./e f d 2;./e f/g.bin f 1 100000;./f.bin f 1 100000"
	if got := strings.Join(found, ";"); got != want {
		t.Errorf("find: %s\nwant %s", got, want)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	m.lookAt("cp", "-r", m.dir, copied)
	m.lookAt("diff", "-r", m.dir, copied)
	if out := m.lookAt("ls", "-R", m.dir); strings.Count(out, ".bin") != 4 {
		t.Errorf("ls -R:\n%s", out)
	}
	for path, same := range map[string]string{"a/b/.": "a/b", "a/b/..": "a", "a/..": "."} {
		ids := strings.Fields(m.lookAt("stat", "-c", "%i", m.path(path), m.path(same)))
		listed := strings.Fields(m.lookAt("ls", "-aid", m.dir+"/"+path))
		if ids[0] != ids[1] || listed[0] != ids[1] {
			t.Errorf("inode of %s: %s, listed as %s, want %s", path, ids[0], listed[0], ids[1])
		}
	}
	m.fileCommand(0, "a/b/c.bin: downloading\na/d.bin: downloading\n", "fetch", "a/")
	status, _, stderr := runProgram(t, "-mount", t.TempDir(), "a="+f.url, "a/b="+f.url)
	if status != 2 || !strings.Contains(stderr, `"a" cannot be both the file for `+f.url+` and the directory of "a/b"`) {
		t.Errorf("a file that is a directory: status %d, %s", status, stderr)
	}
}

func TestKernelFilesComeAndGo(t *testing.T) {
	first, f := wholeFile("first.bin", 1000), wholeFile("f.bin", 100_000)
	startKernelOrigin(t, first, f)
	m := startKernelMount(t, "--empty")
	r, open := m.reader(), m.reader()
	open.requireOpenDir()
	if names := r.names("."); len(names) != 0 {
		t.Errorf("an empty mount has %q", names)
	}
	before := m.path("first.bin") // the kernel has been told that it is not there
	if a := r.do(readerCall{Op: "open", Path: before}); a.Errno != "ENOENT" {
		t.Errorf("a file that is yet to come: %+v", a)
	}
	m.fileCommand(0, "first.bin: added, 1000 B\nd/e/f.bin: added, 98 KiB\n", "add", first.url, "d/e/f.bin="+f.url)
	open.requireOpenDir("first.bin", "d")
	if names := r.names("d"); !slices.Equal(names, []string{"e"}) {
		t.Errorf("the new directory has %q", names)
	}
	r.requireWhole(first)
	f.name = "d/e/f.bin"
	r.requireWhole(f)
	ids := m.lookAt("stat", "-c", "%i", m.path("d"), m.path("d/e"), m.path(f.name))

	m.fileCommand(1, `skipped "none" (`+strings.TrimSuffix(first.url, "/first.bin")+"/none): the origin answered 404", "add", "none="+first.url[:len(first.url)-len("first.bin")]+"none?SECRET", "g="+first.url)
	m.fileCommand(1, `the mount has "d" already: `, "add", "d="+first.url)
	m.fileCommand(1, `skipped "g/h" (`+first.url+`): the mount has "g" already: `, "add", "g/h="+first.url)
	m.fileCommand(2, `"x" cannot be both the file`, "add", "x="+first.url, "x/y="+first.url)
	m.fileCommand(2, "missing http://", "add", "h/x?SECRET")
	m.fileCommand(2, "SOURCE is missing", "add")
	m.fileCommand(0, "first (2).bin: added", "add", first.url)
	open.requireOpenDir("first.bin", "d", "g", "first (2).bin")

	m.fileCommand(2, `no file has the name "nothing"`, "rm", "g", "nothing")
	m.fileCommand(0, "g: removed\nd/e/f.bin: removed\n", "rm", "g", m.path("d/"))
	open.requireOpenDir("first.bin", "first (2).bin")
	for _, gone := range []string{"d", "d/e", f.name, "g"} {
		if a := r.do(readerCall{Op: "open", Path: m.path(gone)}); a.Errno != "ENOENT" {
			t.Errorf("%s was removed: %+v", gone, a)
		}
	}
	m.fileCommand(0, "d/e/f.bin: added", "add", "d/e/f.bin="+f.url)
	for i, id := range strings.Fields(m.lookAt("stat", "-c", "%i", m.path("d"), m.path("d/e"), m.path(f.name))) {
		if slices.Contains(strings.Fields(ids), id) {
			t.Errorf("inode number %s (%d) was used again", id, i)
		}
	}
	m.reader().requireWhole(f)
	if strings.Contains(m.stderr.String(), "SECRET") {
		t.Error("the log shows a secret")
	}
}

func TestKernelRemovedFileIsReadToItsEnd(t *testing.T) {
	f := heldFile("d/a.bin", 8<<20, 1<<20)
	f.name = "a.bin"
	startKernelOrigin(t, f)
	m := startKernelMount(t, "--trace", "d/a.bin="+f.url)
	f.name = "d/a.bin"
	r, waiting := m.reader().open(f), m.reader().open(f)
	r.requireRead(f, 0, 1<<20, 1<<20)
	waiting.send(preadCall(f, 4<<20, 4096))
	m.awaitBlocked(1)
	m.fileCommand(0, "d/a.bin: removed", "rm", m.path("d/a.bin"))
	late := m.reader()
	if a := late.do(readerCall{Op: "open", Path: m.path(f.name)}); a.Errno != "ENOENT" {
		t.Errorf("open of a removed file: %+v", a)
	}
	if status, stdout, _ := runProgram(t, "status", m.dir); status != 0 || strings.Contains(stdout, "a.bin") {
		t.Errorf("status: %d, %s", status, stdout)
	}
	if _, stdout, _ := runProgram(t, "ps", m.dir); !strings.Contains(stdout, "d/a.bin") {
		t.Errorf("ps does not show the reader of a removed file: %s", stdout)
	}
	f.allowAll()
	requireBytes(t, waiting.answer(), 4096)
	requireBytes(t, r.do(readAllCall(f)), f.size)
	awaitHeld(t, m, 1)
	r.kill(unix.SIGKILL)
	waiting.kill(unix.SIGKILL)
	awaitHeld(t, m, 0)
}

func TestKernelOnlyTheUserWhoMountedAsks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may become another user")
	}
	f := wholeFile("a.bin", 1000)
	m := f.mount(t, "--allow-other")
	if err := os.Chmod(filepath.Dir(m.dir), 0o755); err != nil { // the other user gets as far as the mount
		t.Fatal(err)
	}
	nobody := []string{"--reuid=65534", "--regid=65534", "--clear-groups"}
	for _, args := range [][]string{{"add", m.dir, "b=" + f.url}, {"rm", m.dir, "a.bin"}, {readControlName, m.dir, doName}} {
		program := kernelProgram(t)
		status, stdout, stderr := runToEnd(t, "setpriv", slices.Concat(nobody, []string{program}, args)...)
		if (status == 0) != (args[0] == readControlName) || !strings.Contains(stdout+stderr, "only the user who mounted it can ask") {
			t.Errorf("%v by another user: status %d, %s%s", args, status, stdout, stderr)
		}
	}
	if names := m.reader().names("."); !slices.Equal(names, []string{"a.bin"}) {
		t.Errorf("the mount has %q", names)
	}
	attempts := m.lookAt("setpriv", append(nobody, "sh", "-c", "for t in 'echo >>' 'chmod 700' 'touch' 'truncate -s 0'; do sh -c \"$t "+m.path("a.bin")+"\" 2>&1; done; true")...)
	if strings.Count(attempts, "Read-only file system") != 4 {
		t.Errorf("writes by another user: %s", attempts)
	}
}

func TestKernelThousandFilesAreAdded(t *testing.T) {
	f := wholeFile("a.bin", 1000)
	startKernelOrigin(t, f)
	m := startKernelMount(t, "--prefetch", "first="+f.url)
	var list strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&list, "d%d/%d.bin=%s?sig=SECRET\n", i%3, i, f.url)
	}
	m.fileCommand(0, "d0/999.bin: added", "add", "--list", writeTestFile(t, list.String()))
	count := func() string { return strings.TrimSpace(m.lookAt("sh", "-c", "find "+m.dir+" -type f | wc -l")) }
	if n := count(); n != "1001" {
		t.Errorf("files after add: got %s, want 1001", n)
	}
	m.fileCommand(0, "", "fetch", "--wait", "d1/100.bin") // --prefetch stands alone
	f.await(t, "the downloads of all", func() bool { return len(f.asked) >= 1001 })
	script := fmt.Sprintf("printf 'x=%s\\ny=%s\\n' | %s add %s --list -", f.url, f.url, kernelProgram(t), m.dir)
	m.lookAt("sh", "-c", script)
	m.fileCommand(0, "d2/998.bin: removed", "rm", "d0", "d1", "d2")
	if n := count(); n != "3" {
		t.Errorf("files after rm: got %s, want 3", n)
	}
}

// An origin that does not answer holds up nobody, and the command ends by Ctrl-C and with
// the mount.
func TestKernelAddThatWaits(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	f := wholeFile("a.bin", 1000)
	m := f.mount(t)
	add := func() (cmd *exec.Cmd, ended func() (status int, text string)) {
		cmd = exec.Command(kernelProgram(t), "add", m.dir, "b=http://"+silent.Addr().String()+"/x?SECRET")
		var text strings.Builder
		cmd.Stderr = &text
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		conn, err := silent.Accept() // the mount asks
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return cmd, func() (int, string) {
			_ = cmd.Wait()
			return cmd.ProcessState.ExitCode(), text.String()
		}
	}
	cmd, ended := add()
	m.reader().requireWhole(f)
	if _, stdout, _ := runProgram(t, "ps", m.dir); !strings.Contains(stdout, "  fsmount  read  "+doPath+"  ") || strings.Contains(stdout, "SECRET") {
		t.Errorf("ps while origins are asked: %s", stdout)
	}
	if status, _, stderr := runProgram(t, "check", m.dir, "--timeout", "100ms"); status != 0 {
		t.Errorf("check while origins are asked: status %d, %s", status, stderr)
	}
	asks, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range asks {
		if line, _ := os.ReadFile(path); strings.Contains(string(line), readControlName) && strings.Contains(string(line), m.dir) && strings.Contains(string(line), "SECRET") {
			t.Errorf("the command line of the process that asks: %q", line)
		}
	}
	cmd.Process.Signal(os.Interrupt)
	if status, text := ended(); status != 1 || text != "" {
		t.Errorf("add after Ctrl-C: status %d, %q", status, text)
	}
	eventually(t, func() (bool, string) {
		_, stdout, _ := runProgram(t, "ps", m.dir)
		return stdout == "no operation in flight\n", stdout
	})
	_, ended = add()
	m.stop()
	if status, text := ended(); status != 1 || !strings.Contains(text, errStopping.Error()) {
		t.Errorf("add when the mount stops: status %d, %q", status, text)
	}
}
