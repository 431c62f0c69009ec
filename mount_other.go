//go:build !linux

package main

import (
	"syscall"
	"time"

	"github.com/jacobsa/fuse"
)

func mounted(string) bool { return false }

// fsmountAt cannot know; whether there is a control directory will tell.
func fsmountAt(string) bool { return true }

// unmount takes away what is mounted at dir, open files or not.
func unmount(dir string) error {
	if fuse.Unmount(dir) == nil {
		return nil
	}
	const force = 0x80000 // MNT_FORCE, unmount(2)
	return syscall.Unmount(dir, force)
}

// unmountCommand is what a person types to unmount dir.
func unmountCommand(dir string) string { return "umount " + dir }

// control is the kernel's side of a mount, of which there is none to reach.
type control struct{}

func openControl(string) control { return control{} }
func (control) tune()            {}
func (control) abort()           {}
func (control) waiting() int     { return -1 }

func readTimeout(asked time.Duration) time.Duration { return asked }
