// fs_errno.go makes an errno of each error, and decides which errnos reach readers.
// fileSystem.reply logs the reason of a failed read.

package main

import (
	"errors"
	"slices"
	"syscall"
)

var (
	errStopping = errors.New("the mount is stopping") // ends every wait when the mount stops
	// errWrongSum fails opens of a file whose bytes are not those that the user named.
	errWrongSum = errors.New("its sha256 is not that of the list: opens fail until it was fetched again, once by itself, then by fsmount refresh, and is right")
	errPanic    = errors.New("internal error") // stands for a bug: an op that panicked
)

// errnoOf returns the errno for err, nil for nil. The library's Reply makes EIO of
// everything that is not a bare syscall.Errno, so reply hands it nothing else.
//
// Programs take some errnos for something else than a failure. EIO and ESTALE are not among these.
// ECANCELED is the user's own cancel to a browser, ETIMEDOUT makes rclone read again, EAGAIN is an end
// of file to Python, and after EINTR most programs repeat the read, so only a reader that dies gets it.
func errnoOf(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errInterrupted), errors.Is(err, errUnseen):
		return syscall.EINTR
	case errors.Is(err, errStopping), errors.Is(err, errClosed), errors.Is(err, errReadTimeout), errors.Is(err, errWrongSum):
		return syscall.EIO
	case errors.Is(err, errChanged):
		return syscall.ESTALE
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && slices.Contains(ownErrnos, errno) {
		return errno
	}
	return syscall.EIO
}

// ownErrnos tell the reader of a mounted file what they told fsmount: the file system's
// own answers, and a full disk. A network's ECONNREFUSED does not.
var ownErrnos = []syscall.Errno{syscall.ENOENT, syscall.ENOSYS, syscall.EROFS, syscall.EINVAL, syscall.ENOTDIR,
	syscall.EISDIR, syscall.EACCES, syscall.ENODATA, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG}
