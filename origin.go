// origin.go defines Origin, the one interface of the program, with the values that
// cross it: a version of a remote file, and what makes two of them the same. It
// knows neither HTTP messages nor the temporary file.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Object is one version of a remote file, as its origin described it. The
// caller pins it: every later Open names the Object whose bytes it wants.
type Object struct {
	Size         int64     // bytes
	ModTime      time.Time // Last-Modified, to the second; zero where the origin gives none
	ETag         string    // strong entity tag with its quotes, else ""
	LastModified string    // as the origin wrote it, else "": the validator where there is no ETag
	Filename     string    // the name the origin suggests, unsanitised, else ""
	Ranges       bool      // the origin answers a byte range with just that range

	// weakETag is the opaque part of a weak entity tag, else "". Equal ones prove
	// nothing, different ones a change.
	weakETag string

	// dateInIfRange says that LastModified may stand in If-Range.
	dateInIfRange bool
}

// changedTo returns an errChanged that says in what p differs from o, or nil
// for the same version: they agree in size and in the strongest validator that
// both have, and two that have none in common are told apart by their size alone.
// A strong ETag promises equal bytes (RFC 9110 section
// 8.8.3), so a date beside it is not asked: servers of one file may differ in
// that.
func (o Object) changedTo(p Object) error {
	switch {
	case o.Size != p.Size:
		return fmt.Errorf("%w: its size was %d and is %d bytes", errChanged, o.Size, p.Size)
	case o.opaqueTag() != "" && p.opaqueTag() != "" && o.opaqueTag() != p.opaqueTag():
		return fmt.Errorf("%w: its ETag was %s and is %s", errChanged, o.opaqueTag(), p.opaqueTag())
	case o.ETag != "" && p.ETag != "":
	case o.LastModified != "" && p.LastModified != "":
		if !sameDate(o.LastModified, p.LastModified) {
			return fmt.Errorf("%w: its Last-Modified was %q and is %q", errChanged, o.LastModified, p.LastModified)
		}
	}
	return nil
}

// opaqueTag is the entity tag without its weakness, "" if there is none.
func (o Object) opaqueTag() string {
	if o.ETag != "" {
		return o.ETag
	}
	return o.weakETag
}

// missingValidator returns an errChanged if answer, which does not contradict o, does
// not say that it is of o either, although o had something to say it by. A 206 to
// If-Range may leave out the date (RFC 9110 section 15.3.7), not the ETag.
func (o Object) missingValidator(answer Object) error {
	if o.ETag != "" && answer.ETag == "" || o.ETag == "" && o.LastModified != "" && answer.LastModified == "" && !o.dateInIfRange {
		return fmt.Errorf("%w, or so it must be taken: the origin named its version before and does not any more", errChanged)
	}
	return nil
}

// sharesValidator reports whether something beside the size tells o from p.
func (o Object) sharesValidator(p Object) bool {
	return o.ETag != "" && p.ETag != "" || o.LastModified != "" && p.LastModified != ""
}

// sameDate compares dates that may be written in different forms (RFC 9110
// section 5.6.7), and what is no date as it stands.
func sameDate(a, b string) bool {
	if a == b {
		return true
	}
	timeA, errA := http.ParseTime(a)
	timeB, errB := http.ParseTime(b)
	return errA == nil && errB == nil && timeA.Equal(timeB)
}

// weaknesses says, in sentences for people, which promises are weaker for this
// file than for others, because its origin does not do its part.
func (o Object) weaknesses() []string {
	var said []string
	if !o.Ranges && o.Size > 0 {
		said = append(said, "its origin does not send parts of it: "+
			"it arrives from the start to the end only, a jump ahead waits for all bytes before it, "+
			"and a transfer that was cut off begins again at the first byte")
	}
	if o.ETag == "" && o.LastModified == "" && o.Size > 0 {
		said = append(said, "its origin names no version of it (neither a strong ETag nor Last-Modified): "+
			"a change that keeps its size goes unnoticed while it arrives, and bytes of both versions may then be read")
	}
	return said
}

// Origin serves the bytes of one remote file. Its methods are safe to call
// from several goroutines at once. They make one attempt; retryAdvice says of
// their errors, and of those of a body, whether another may do better.
type Origin interface {
	// Stat asks the origin for the file's present version.
	//
	// BLOCKS until the origin answered; wakes on the end of ctx.
	Stat(ctx context.Context) (Object, error)

	// Open returns a body of exactly r of the version obj, or errChanged where
	// the origin has another version by now. The body ends with io.EOF after
	// r.len() bytes; a body the origin ends sooner gives errShortBody, one it
	// does not end there errLongBody, one that falls silent errStalled. ctx
	// covers the body as well as the call.
	//
	// BLOCKS until the header of the answer arrived; wakes on the end of ctx.
	//
	// REQUIRES: !r.empty() && r.end <= obj.Size
	Open(ctx context.Context, obj Object, r byteRange) (io.ReadCloser, error)

	// String names the origin for people: no userinfo and no query, for these
	// may hold secrets.
	String() string
}

// statTimeout bounds one Stat, all its redirects together.
const statTimeout = 30 * time.Second

var (
	errShortBody = errors.New("the origin ended the body early")
	errLongBody  = errors.New("the origin sent more bytes than it promised")
	errNoSize    = errors.New("the origin does not say how large the file is")
	errChanged   = errors.New("the remote file changed")
	errStalled   = errors.New("the origin sent no byte")
)
