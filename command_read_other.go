//go:build !linux

// command_read_other.go knows how a program finds itself elsewhere. It opens
// nothing.

package main

import "os"

// ownProgram is the path of this program.
func ownProgram() (string, error) { return os.Executable() }
