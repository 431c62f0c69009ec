package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// fatalSignalPending reports whether the thread pid is dying. Whatever signal
// it dies of, the kernel marks SIGKILL as pending for each thread of the
// process (complete_signal in kernel/signal.c), and /proc/PID/status shows that
// as bit 0x100 of SigPnd (proc(5)). Where that cannot be read, the answer is
// yes: a read that fails is better than a process that cannot be killed.
func fatalSignalPending(pid uint32) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mask, found := strings.CutPrefix(lines.Text(), "SigPnd:")
		if !found {
			continue
		}
		pending, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		return err != nil || pending&(1<<(syscall.SIGKILL-1)) != 0
	}
	return true
}
