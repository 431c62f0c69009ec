// origin.go defines Origin, from which a store gets its bytes, and the values that cross it: Object, a
// version of a remote file, and request. It knows neither HTTP messages nor the temporary file.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"sync/atomic"
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

	weakETag string               // a weak entity tag without its W/, else ""
	dated    dateStrength         // of LastModified
	assumed  bool                 // the user said the size; nobody has asked the origin yet
	page     bool                 // it is sent as HTML
	coding   string               // Content-Encoding, "" if there is none
	server   string               // which described it: other servers may tag it otherwise
	final    *url.URL             // where the origin redirected to, else nil
	target   *atomic.Pointer[hop] // where it redirects to now; shared by all copies
	ignored  validators           // those that this origin sends without a meaning
}

// validators are those that a comparison leaves out.
type validators struct{ tag, date bool }

func (v validators) or(w validators) validators { return validators{v.tag || w.tag, v.date || w.date} }

// dateStrength says what an equal Last-Modified proves (RFC 9110 section 8.8.2.2).
type dateStrength int

const (
	dateWeak   dateStrength = iota
	dateNow                 // it is the time of the answer, and perhaps of any answer
	dateStrong              // it was 2 s before the answer: a later change has another one
)

// String describes the version for people.
func (o Object) String() string {
	text := fmt.Sprintf("%d bytes", o.Size)
	if tag := o.tag(); tag != "" {
		text += ", ETag " + foreign(tag)
	}
	if o.LastModified != "" {
		text += ", Last-Modified " + foreign(o.LastModified)
	}
	return text
}

// lasting returns what proves, in another run too, that a version of the same size is this
// one; "" where nothing does. It is for comparison alone.
func (o Object) lasting() string {
	switch {
	case o.ignored != validators{}:
	case o.ETag != "":
		return "ETag " + o.ETag
	case o.dated == dateStrong:
		return "Last-Modified " + o.LastModified + " " + o.weakETag
	}
	return ""
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
	if o.coding != "" {
		sentences = append(sentences, fmt.Sprintf("its origin says that it is coded as %s: "+
			"it is served as it is stored, as curl and wget save it", foreign(o.coding)))
	}
	if !o.named() && o.Size > 0 && !o.assumed {
		sentences = append(sentences, "its origin names no version of it by ETag or Last-Modified: "+
			"a change that keeps its size goes unnoticed while it arrives, and bytes of both versions may then be read")
	}
	return sentences
}

// Origin serves the bytes of one remote file. Its methods are safe for concurrent use. Each makes one attempt;
// retryAdvice tells whether another attempt after its error, or after an error of its body, may succeed.
type Origin interface {
	// Stat asks the origin for the file's present version. BLOCKS until the origin answers; wakes on the end of ctx.
	Stat(ctx context.Context) (Object, error)
	// Open returns a body of what is requested, or of its beginning, or errChanged if the origin has another version
	// by now, or errUnproven if it does not tell. The body ends with io.EOF after the bytes that the origin promised,
	// with errShortBody if the origin ends it sooner, with errLongBody if the origin goes on, and with errStalled if
	// the origin falls silent. ctx covers the call and the body. BLOCKS until the header of the answer arrives; wakes
	// on the end of ctx. REQUIRES: !r.r.empty() && r.r.end <= r.obj.Size
	Open(ctx context.Context, r request) (io.ReadCloser, error)
	// Connect has a connection made for the next request for obj, if none is free. It makes no request, and
	// waits for nothing.
	Connect(obj Object)
	// String names the origin in messages. It leaves out userinfo and query, which may hold secrets.
	String() string
}

// request is what a store wants of its origin.
type request struct {
	obj Object
	r   byteRange
	// sent is called when the request has its turn at the host, each time it is made; nil: nobody wants to know.
	sent func()
	// yield is called when another file needs the request's place at the host; nil: the
	// body ends then, and nobody else wants to know.
	yield func()
	// renewing is told when --url-command begins to look for another URL, and when it has ended;
	// nil: nobody wants to know.
	renewing func(bool)
	// known returns present bytes of obj, from offset at on, that end at off if possible; nil: there are none.
	known func(off int64) (at int64, data []byte)
	// ranged is told whether the origin sends ranges, where it differs from what obj says; nil: nobody wants to know.
	ranged  func(bool)
	doubted func() // told that the origin sends a validator without a meaning; nil: nobody wants to know
}

// statTimeout bounds one Stat with all its redirects.
const statTimeout = 30 * time.Second

var (
	errShortBody = errors.New("the origin ended the body early")
	errLongBody  = errors.New("the origin sent more bytes than it promised")
	errNoSize    = errors.New("the origin does not say how large the file is, and a mount must know it")
	errChanged   = errors.New("the remote file changed")
	errShortPart = errors.New("the origin sends only a few bytes of each part that is requested")
	errStalled   = errors.New("the origin sent no byte")
	// errUnproven marks an answer that tells less of its version than the pinned one did,
	// such as a login page in the file's place. It passes.
	errUnproven = errors.New("the origin sent something that does not prove to be the file")
)
