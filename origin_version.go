// origin_version.go decides whether two descriptions are of one version of a file: by the fields of
// the answers, never by what was believed before, and where the fields contradict each other by the
// bytes. No byte of another version gets through where anything tells it apart.

package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
)

const (
	knownBytes = 64 << 10 // how many present bytes settle a doubt
	flapsMax   = 3        // how many small requests, after repeatsMax answers, show whether a tag means anything
)

// doubtError is a validator that differs where another does not, or that may mean nothing.
type doubtError struct {
	error            // what changed, if it did
	about validators // the one of them that is doubted
}

func (e doubtError) Unwrap() error { return e.error }

// tag returns the opaque tag, without regard to its strength.
func (o Object) tag() string { return cmp.Or(o.ETag, o.weakETag) }

// named reports whether the origin names this version by ETag or Last-Modified.
func (o Object) named() bool { return cmp.Or(o.tag(), o.LastModified) != "" }

// changedTo returns nil if p is the same version as o, as far as both tell, else an
// errChanged, an errUnproven if p tells less than o did, or a doubtError.
//
// A strong ETag promises equal bytes (RFC 9110 section 8.8.3), so the dates beside two
// equal ones are not compared: servers of one file may differ in them.
func (o Object) changedTo(p Object) error {
	ignored := o.ignored.or(p.ignored)
	tagged := o.tag() != "" && p.tag() != "" && !ignored.tag
	dated := o.LastModified != "" && p.LastModified != "" && !ignored.date
	equalTag, equalDate := tagged && o.tag() == p.tag(), dated && sameDate(o.LastModified, p.LastModified)
	otherTag, otherDate := tagged && !equalTag, dated && !equalDate
	bothNow := o.dated == dateNow && p.dated == dateNow
	changed := func(what, was, is string) error {
		return fmt.Errorf("%w: its %s was %s and is %s", errChanged, what, foreign(was), foreign(is))
	}
	byTag := func() error { return changed("ETag", o.tag(), p.tag()) }
	byDate := func() error { return changed("Last-Modified", o.LastModified, p.LastModified) }
	switch {
	case p.page && !o.page && (o.Size != p.Size || !equalTag && !equalDate):
		return fmt.Errorf("%w: an HTML page (a login, a portal or maintenance?)", errUnproven)
	case o.tellsMore(p):
		return fmt.Errorf("%w: it has no ETag or Last-Modified any more", errUnproven)
	case o.Size != p.Size:
		return fmt.Errorf("%w: its size was %d and is %d bytes", errChanged, o.Size, p.Size)
	case equalTag && o.ETag != "" && p.ETag != "":
		return nil
	case otherTag && otherDate && !bothNow:
		return byTag()
	case otherTag && equalDate && o.server != p.server: // each server may have tags of its own
		return nil
	case otherTag:
		return doubtError{byTag(), validators{tag: true}}
	case otherDate && bothNow:
		return doubtError{byDate(), validators{date: true}}
	case otherDate:
		return byDate()
	}
	return nil
}

// tellsMore reports whether o names its version in a way that p does not. A 206 to
// If-Range may leave out the date (section 15.3.7), but not the ETag.
func (o Object) tellsMore(p Object) bool {
	if o.tag() != "" {
		return p.tag() == "" && (p.LastModified == "" || o.LastModified == "")
	}
	return o.LastModified != "" && p.LastModified == "" && (!o.dateInIfRange() || o.Size != p.Size)
}

// dateInIfRange reports whether If-Range may hold the date (RFC 9110 section 13.1.5).
func (o Object) dateInIfRange() bool { return o.tag() == "" && o.dated == dateStrong }

// sameDate compares two dates, which may be written in different forms (RFC 9110
// section 5.6.7). It compares text that is no date literally.
func sameDate(a, b string) bool {
	timeA, errA := http.ParseTime(a)
	timeB, errB := http.ParseTime(b)
	return a == b || errA == nil && errB == nil && timeA.Equal(timeB)
}

// openBeside opens q if present bytes are still the same, and returns errChanged if they are
// not. It compares those before q in the body that brings q, as an earlier answer proves
// nothing of a later one. Where there are none, it compares others before it opens q.
// BLOCKS until the origin has answered, and until the bytes to compare arrived; wakes on the end of ctx.
func (o *httpOrigin) openBeside(ctx context.Context, q request, f form) (io.ReadCloser, form, error) {
	if q.known == nil || !q.obj.Ranges {
		return o.open(ctx, q, f)
	}
	at, known := q.known(q.r.off)
	if most := int(f.most / 4); most > 0 && len(known) > most { // leave room for q
		at, known = at+int64(len(known)-most), known[len(known)-most:]
	}
	q.known = nil
	beside := at+int64(len(known)) == q.r.off
	if len(known) == 0 || !beside && !q.obj.named() {
		return o.open(ctx, q, f)
	}
	compared := q
	compared.r = byteRange{at, at + int64(len(known))}
	if beside {
		compared.r.end = q.r.end
	}
	body, f, err := o.open(ctx, compared, f)
	if err != nil {
		return nil, f, err
	}
	again := make([]byte, len(known))
	if _, err = io.ReadFull(body, again); err == nil && !bytes.Equal(known, again) {
		err = fmt.Errorf("%w: bytes [%d,%d) are others now", errChanged, at, at+int64(len(known)))
	}
	if err == nil && beside {
		return body, f, nil
	}
	body.Close()
	if err != nil {
		return nil, f, shortBodyError(err)
	}
	return o.open(ctx, q, f)
}

// watchTag, after repeatsMax answers with the other tags, returns nil if the origin's tags mean nothing: each
// answer has a new one, or the pinned one comes with the range that it was pinned by, and only there. It
// returns doubt's error if the file changed, or if several servers have their own version of it.
// BLOCKS until the origin has answered; wakes on the end of ctx.
func (o *httpOrigin) watchTag(ctx context.Context, obj Object, f form, doubt doubtError, others map[string]bool) error {
	f.bare = true
	pinned := 0
	for range flapsMax {
		a, err := o.send(ctx, request{obj: obj, r: byteRange{0, 1}}, f)
		if err != nil {
			return err
		}
		if tag := validatorsOf(a).tag(); tag == obj.tag() {
			pinned++
		} else {
			others[tag] = true
		}
		a.finish()
	}
	if pinned == flapsMax || len(others) > 2 {
		return nil
	}
	return doubt.error
}
