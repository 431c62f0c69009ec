// origin.go defines Origin, from which a store gets its bytes, and the values that
// cross it: Object, a version of a remote file, and the rules by which two versions
// are the same. It knows neither HTTP messages nor the temporary file.

package main

import (
	"cmp"
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
	ModTime      time.Time // Last-Modified, to the second; zero if the origin gives none
	ETag         string    // strong entity tag with its quotes, else ""
	LastModified string    // as the origin wrote it, else "": the validator if there is no ETag
	Filename     string    // the name the origin suggests, unsanitised, else ""
	Ranges       bool      // the origin answers a byte range with just that range

	// weakETag is a weak entity tag without its W/, else "". Equal weak tags prove
	// nothing; different ones prove a change.
	weakETag string

	// dateInIfRange reports whether If-Range may hold LastModified.
	dateInIfRange bool
}

// changedTo returns an errChanged that says how p differs from o, or nil if both
// count as one version: they agree in size, and in each of ETag and Last-Modified
// that both have.
//
// A strong ETag promises equal bytes (RFC 9110 section 8.8.3), so the dates beside
// two strong ETags are not compared: servers of one file may differ in them.
func (o Object) changedTo(p Object) error {
	wasTag, isTag := cmp.Or(o.ETag, o.weakETag), cmp.Or(p.ETag, p.weakETag)
	bothStrong := o.ETag != "" && p.ETag != ""
	bothDated := o.LastModified != "" && p.LastModified != ""
	switch {
	case o.Size != p.Size:
		return fmt.Errorf("%w: its size was %d and is %d bytes", errChanged, o.Size, p.Size)
	case wasTag != "" && isTag != "" && wasTag != isTag:
		return fmt.Errorf("%w: its ETag was %s and is %s", errChanged, wasTag, isTag)
	case !bothStrong && bothDated && !sameDate(o.LastModified, p.LastModified):
		return fmt.Errorf("%w: its Last-Modified was %q and is %q", errChanged, o.LastModified, p.LastModified)
	}
	return nil
}

// sameDate compares two dates, which may be written in different forms (RFC 9110
// section 5.6.7). It compares text that is no date literally.
func sameDate(a, b string) bool {
	if a == b {
		return true
	}
	timeA, errA := http.ParseTime(a)
	timeB, errB := http.ParseTime(b)
	return errA == nil && errB == nil && timeA.Equal(timeB)
}

// confirmedBy returns an errChanged if answer contradicts o, or if it lacks the
// validator that o has: a weak ETag if there is no other. A 206 to If-Range may leave
// out the date (RFC 9110 section 15.3.7), but not the ETag.
func (o Object) confirmedBy(answer Object) error {
	if err := o.changedTo(answer); err != nil {
		return err
	}
	lostTag := o.ETag != "" && answer.ETag == "" ||
		o.LastModified == "" && o.weakETag != "" && cmp.Or(answer.ETag, answer.weakETag) == ""
	lostDate := o.ETag == "" && o.LastModified != "" && answer.LastModified == "" && !o.dateInIfRange
	if lostTag || lostDate {
		return fmt.Errorf("%w (treated as changed: the origin no longer sends ETag or Last-Modified)", errChanged)
	}
	return nil
}

// named reports whether the origin names this version by ETag or Last-Modified.
func (o Object) named() bool { return cmp.Or(o.ETag, o.weakETag, o.LastModified) != "" }

// String describes the version for people.
func (o Object) String() string {
	text := fmt.Sprintf("%d bytes", o.Size)
	if tag := cmp.Or(o.ETag, o.weakETag); tag != "" {
		text += ", ETag " + tag
	}
	if o.LastModified != "" {
		text += ", Last-Modified " + o.LastModified
	}
	return text
}

// weaknesses returns a sentence for each promise that is weaker for this file than
// for others, because its origin does not do its part. The user reads them.
func (o Object) weaknesses() []string {
	var sentences []string
	if !o.Ranges && o.Size > 0 {
		sentences = append(sentences, "its origin does not send parts of it: "+
			"it arrives from the start to the end only, a jump ahead waits for all bytes before it, "+
			"and a transfer that was cut off begins again at the first byte")
	}
	if !o.named() && o.Size > 0 {
		sentences = append(sentences, "its origin names no version of it by ETag or Last-Modified: "+
			"a change that keeps its size goes unnoticed while it arrives, and bytes of both versions may then be read")
	}
	return sentences
}

// Origin serves the bytes of one remote file. Its methods are safe for concurrent
// use. Each makes one attempt; retryAdvice tells whether another attempt after its
// error, or after an error of its body, may succeed.
type Origin interface {
	// Stat asks the origin for the file's present version.
	//
	// BLOCKS until the origin answers; wakes on the end of ctx.
	Stat(ctx context.Context) (Object, error)

	// Open returns a body of r, or of its beginning, in the version obj, or
	// errChanged if the origin has another version by now. The body ends with io.EOF
	// after the bytes that the origin promised, with errShortBody if the origin ends
	// it sooner, with errLongBody if the origin goes on, and with errStalled if the
	// origin falls silent. ctx covers the call and the body.
	//
	// BLOCKS until the header of the answer arrives; wakes on the end of ctx.
	//
	// REQUIRES: !r.empty() && r.end <= obj.Size
	Open(ctx context.Context, obj Object, r byteRange) (io.ReadCloser, error)

	// String names the origin in messages. It leaves out userinfo and query,
	// which may hold secrets.
	String() string
}

// statTimeout bounds one Stat with all its redirects.
const statTimeout = 30 * time.Second

var (
	errShortBody = errors.New("the origin ended the body early")
	errLongBody  = errors.New("the origin sent more bytes than it promised")
	errNoSize    = errors.New("the origin does not say how large the file is, and a mount must know it")
	errChanged   = errors.New("the remote file changed")
	errStalled   = errors.New("the origin sent no byte")
)
