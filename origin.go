// Origin is where a file's bytes come from. This file holds the one interface
// of the program, the values that cross it and the errors it may answer with;
// it knows neither HTTP nor the temporary file.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// byteRange is the half-open interval [off, end) of a file's bytes.
//
// INVARIANT: 0 <= off <= end
type byteRange struct {
	off, end int64
}

func (r byteRange) len() int64     { return r.end - r.off }
func (r byteRange) empty() bool    { return r.off >= r.end }
func (r byteRange) String() string { return fmt.Sprintf("[%d,%d)", r.off, r.end) }

// Object is one version of a remote file, as its origin described it. The
// caller pins it: every later Open names the Object whose bytes it wants.
type Object struct {
	Size     int64     // bytes
	ModTime  time.Time // Last-Modified, to the second; zero where the origin gives none
	ETag     string    // strong entity tag with its quotes, else ""
	Filename string    // the name the origin suggests, unsanitised, else ""
	Ranges   bool      // the origin answers a byte range with just that range
}

// Origin serves the bytes of one remote file. Its methods are safe to call
// from several goroutines at once.
type Origin interface {
	// Stat asks the origin for the file's present version.
	//
	// BLOCKS until the origin answered; wakes on the end of ctx.
	Stat(ctx context.Context) (Object, error)

	// Open returns a body of exactly r of the version obj. The body ends with
	// io.EOF after r.len() bytes; a body the origin ends sooner gives
	// errShortBody, one it does not end there errLongBody. ctx covers the body
	// as well as the call.
	//
	// BLOCKS until the header of the answer arrived; wakes on the end of ctx.
	//
	// REQUIRES: !r.empty() && r.end <= obj.Size
	Open(ctx context.Context, obj Object, r byteRange) (io.ReadCloser, error)

	// String names the origin for people: no userinfo and no query, for these
	// may hold secrets.
	String() string
}

var (
	errShortBody = errors.New("the origin ended the body early")
	errLongBody  = errors.New("the origin sent more bytes than it promised")
	errNoSize    = errors.New("the origin does not say how large the file is")
	errChanged   = errors.New("the remote file changed")
)
