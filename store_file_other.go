//go:build !linux

package main

import "os"

// createUnlinked makes a temporary file, 0600, in dir that has a name for a
// moment only.
func createUnlinked(dir string) (*os.File, error) { return createNamed(dir) }

// readCached would read without waiting for the disk; here nothing can promise
// that, so every read goes the way that may wait.
func readCached(*os.File, []byte, int64) bool { return false }

// mapping is a piece of a file in memory; here there is none.
type mapping struct{ data []byte }

func (mapping) unmap() {}

// mapCached would map bytes that are in the page cache.
func mapCached(*os.File, int64, int) (mapping, bool) { return mapping{}, false }
