//go:build !linux

package main

import (
	"fmt"
	"io"
)

const selftestReaderCommand = "selftest-reader"

// runSelftest fails: what it would test is Linux's.
func runSelftest(stdout io.Writer) (status int) {
	fmt.Fprintln(stdout, "FAIL platform: the self-test is for Linux; mount the demo and read it: fsmount -mount DIR")
	fmt.Fprintln(stdout, "0 passed, 1 failed")
	return exitFailure
}

func runSelftestReader(io.Reader, io.Writer) (status int) { return exitUsage }
