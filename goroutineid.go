// goroutineid.go finds the number by which stack dumps name a goroutine, so that a person can
// match log lines with a dump, and grows a goroutine's stack. No decision depends on either.

package main

import (
	"bytes"
	"runtime"
	"strconv"
)

// goroutineID returns the number of the calling goroutine, as in the first line of its
// runtime.Stack ("goroutine 42 [running]:"), or 0 if that line ever changes its form. It costs
// about a microsecond: call it once per goroutine and keep the answer.
func goroutineID() uint64 {
	var buf [64]byte
	line := bytes.TrimPrefix(buf[:runtime.Stack(buf[:], false)], []byte("goroutine "))
	digits, _, _ := bytes.Cut(line, []byte(" "))
	id, _ := strconv.ParseUint(string(digits), 10, 64)
	return id
}

// growStack(0) grows the caller's stack to what a read or a request needs, at once. By itself it grows in three steps,
// each in new memory, which takes a tenth of the time to a first byte.
//
//go:noinline
func growStack(more int) {
	if more > 0 {
		var room [9 << 10]byte // the frame has it, and only this branch touches it
		growStack(int(room[more]))
	}
}
