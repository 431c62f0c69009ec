package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// signalSet is a set of signals as /proc/PID/status shows it: bit n-1 is
// signal n.
type signalSet uint64

func signals(all ...syscall.Signal) (set signalSet) {
	for _, sig := range all {
		set |= 1 << (sig - 1)
	}
	return set
}

// fatalSignalPending reports whether the thread pid is dying. If it dies of a
// signal without a core dump, the kernel marks SIGKILL as pending for each
// thread of the process, whatever the signal was (complete_signal in
// kernel/signal.c). One that dumps core (Ctrl-\, a fault in another thread)
// stays what it is, and kills unless it is blocked, ignored or caught. Where the
// status cannot be read, the answer is yes: a read that fails is better than a
// process that cannot be killed.
func fatalSignalPending(pid uint32) bool {
	sets, err := signalSets(pid)
	if err != nil {
		return true
	}
	// Signals whose default action is a core dump (signal(7)).
	dumping := signals(syscall.SIGQUIT, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGABRT, syscall.SIGBUS,
		syscall.SIGFPE, syscall.SIGSEGV, syscall.SIGXCPU, syscall.SIGXFSZ, syscall.SIGSYS)
	held := sets["SigBlk"] | sets["SigIgn"] | sets["SigCgt"]
	pending := sets["SigPnd"] | sets["ShdPnd"]
	return sets["SigPnd"]&signals(syscall.SIGKILL) != 0 || pending&dumping&^held != 0
}

// signalSets returns the signal sets of the thread pid by their names in
// /proc/PID/status (proc_pid_status(5)).
func signalSets(pid uint32) (map[string]signalSet, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sets := make(map[string]signalSet)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, mask, _ := strings.Cut(lines.Text(), ":")
		if !strings.HasPrefix(name, "Sig") && name != "ShdPnd" || name == "SigQ" {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		if err != nil {
			return nil, err
		}
		sets[name] = signalSet(set)
	}
	return sets, lines.Err()
}
