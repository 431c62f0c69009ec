// origin_http.go is the Origin of a URL. It requests a range of one version, in the form that the origin takes,
// learns that form from what the origin refuses, and passes on just the bytes that were asked for. It has
// --url-command name another URL where its own is refused. It stores nothing. origin_follow.go sends the
// request, origin_answer.go judges the header of the answer, origin_version.go its version.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// httpOrigin is an Origin over HTTP (RFC 9110).
type httpOrigin struct {
	// Write once, before any goroutine starts.
	client       *webClient
	url          *url.URL
	name         string // of the file in the mount, as far as is known; for --url-command
	stallTimeout time.Duration
	running      chan struct{} // holds a token while --url-command runs

	// Read write.
	form  atomic.Value            // of type form; learned
	given atomic.Pointer[url.URL] // by --url-command, in place of url; nil: none
}

// form is how an origin wants to be asked. The zero form suits one that keeps RFC 9110.
type form struct {
	bare      bool       // without preconditions: it says 412 to its own validators
	noIfRange bool       // it answers If-Range with the whole file
	noRange   bool       // it refuses Range
	most      int64      // bytes; the longest range that it takes; 0: any
	ignored   validators // it sends these without a meaning
}

// newHTTPOrigin returns the origin at u. A body that brings no byte for
// stallTimeout ends with errStalled; 0 is no limit.
func newHTTPOrigin(client *webClient, u *url.URL, stallTimeout time.Duration) *httpOrigin {
	o := &httpOrigin{client: client, url: u, stallTimeout: stallTimeout}
	if client.urlCommand != "" {
		o.running = make(chan struct{}, 1)
	}
	o.form.Store(form{})
	return o
}

func (o *httpOrigin) String() string { return redactURL(o.url) }

// Stat implements Origin. It requests the first byte with GET, because a presigned
// URL refuses HEAD. An answer with Content-Range also proves that ranges work.
func (o *httpOrigin) Stat(ctx context.Context) (Object, error) {
	was, status := o.form.Load().(form), statusError{}
	f := was
	obj, err := o.statIn(ctx, f)
	errors.As(err, &status) // another error has no code
	if refused := refusesRange(status.code); !f.noRange && (refused || errors.Is(err, errNoSize)) {
		if whole, wrong := o.statIn(ctx, form{noRange: true}); wrong == nil { // else the first answer says more
			obj, f.noRange, err = whole, refused, nil
		}
	}
	if err != nil {
		return Object{}, err
	}
	o.learn(was, f)
	obj.ignored = f.ignored
	return obj, nil
}

// statIn is Stat by one request in form f.
func (o *httpOrigin) statIn(ctx context.Context, f form) (Object, error) {
	a, err := o.send(ctx, request{r: byteRange{0, 1}}, f)
	if err != nil {
		return Object{}, err
	}
	defer a.finish()
	return objectOf(a)
}

// Entries returns the entries of s, which is of o, if s ends with '/', has no options, which are of a file, and the
// origin sends a page; else none, without an error. A redirect must not leave the origin: the entries get what is for
// this origin alone. BLOCKS until the whole page has arrived; wakes on the end of ctx.
func (o *httpOrigin) Entries(ctx context.Context, s fileSource) (entries []fileSource, err error) {
	if !strings.HasSuffix(s.url.Path, "/") || s.url.RawQuery != "" || s.sized || s.sha256 != "" {
		return nil, nil
	}
	a, err := o.send(ctx, request{}, form{noRange: true})
	if err != nil {
		return nil, err
	}
	defer a.finish()
	kind, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type"))
	isJSON := kind == "application/json"
	attached := strings.HasPrefix(strings.ToLower(a.Header.Get("Content-Disposition")), "attachment")
	switch {
	case a.StatusCode != http.StatusOK:
		return nil, refusalOf(a)
	case attached, kind != "text/html" && !isJSON:
		return nil, nil
	case a.left:
		return nil, redirectError{fmt.Sprintf("to %s: write the URL of the listing there", foreign(hostOf(a.url)))}
	}
	page, err := readInput(a.Body)
	if err != nil {
		return nil, err
	}
	entries, deeper := s.entriesOf(page, isJSON, a.url)
	if deeper > 0 {
		o.client.note(o, "left out %s deeper than --depth", plural(int64(deeper), "folder"))
	}
	if len(entries) == 0 {
		err = errNothingListed
	}
	return entries, err
}

// Open implements Origin. If the origin sends no ranges, the first Reads receive and drop the bytes before r.
func (o *httpOrigin) Open(ctx context.Context, q request) (io.ReadCloser, error) {
	was, open := o.form.Load().(form), o.open
	if was.ignored != (validators{}) || !q.obj.named() { // nothing but the bytes tells of a change
		open = o.openBeside
	}
	body, f, err := open(ctx, q, was)
	if err != nil {
		return nil, err
	}
	o.learn(was, f)
	if f.ignored != (validators{}) && q.doubted != nil {
		q.doubted()
	}
	return body, nil
}

// repeatsMax is how often in a row an answer of another version is asked for again: several
// servers behind one name may have the file each in its own version.
const repeatsMax = 3

// open is Open, in form f first, and then in those that f's refusals suggest. It returns the form that works.
func (o *httpOrigin) open(ctx context.Context, q request, f form) (io.ReadCloser, form, error) {
	var doubt doubtError
	others := make(map[string]bool) // tags of other versions
	for repeats := 0; ; {
		wanted := q.r
		if f.most > 0 {
			wanted.end = min(wanted.end, wanted.off+f.most)
		}
		a, err := o.send(ctx, request{obj: q.obj, r: wanted, sent: q.sent, yield: q.yield, renewing: q.renewing}, f)
		if err != nil {
			return nil, f, err
		}
		q.obj.ignored = f.ignored
		held, err := judgeAnswer(a, q.obj, wanted)
		if err == nil && held.whole && q.obj.Ranges && wanted.len() < q.obj.Size && a.Request.Header.Get("If-Range") != "" {
			err = errWhole
		}
		if err == nil {
			if ranges := !held.whole; q.ranged != nil && (ranges || f.noRange) {
				q.ranged(ranges)
			}
			return &exactBody{
				ReadCloser: a.Body,
				skip:       wanted.off - held.off,
				left:       min(wanted.end, held.end) - wanted.off,
				goesOn:     held.end > wanted.end,
			}, f, nil
		}
		a.finish()
		switch {
		case errors.Is(err, errChanged) && repeats < repeatsMax:
			repeats++
			others[validatorsOf(a).tag()] = true
		case errors.As(err, &doubt):
			if doubt.about.tag {
				if err := o.watchTag(ctx, q.obj, f, doubt, others); err != nil {
					return nil, f, err
				}
			}
			f.ignored = f.ignored.or(doubt.about)
			return o.openBeside(ctx, q, f) // the bytes decide
		case !f.adapt(err, q.obj, wanted):
			return nil, f, err
		}
	}
}

// skipBytes is how much of a whole file one Read drops at most.
const skipBytes = 64 << 10

// exactBody drops the first skip bytes of a body and passes on the next left bytes. It holds back the last piece until
// the body ends, because a longer body is an error, unless the server said that it sends more of the file.
type exactBody struct {
	io.ReadCloser       // the body
	skip          int64 // bytes
	left          int64 // bytes
	goesOn        bool  // the body holds more of the file after them
}

// Read implements io.Reader. BLOCKS until bytes after those to skip arrive, or until it dropped skipBytes; wakes on
// the end of the request's context and when the origin is silent for too long.
func (b *exactBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.skip > 0 {
		n, err := io.CopyN(io.Discard, b.ReadCloser, min(b.skip, skipBytes))
		b.skip -= n
		if err != nil || b.skip > 0 {
			return 0, shortBodyError(err)
		}
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case b.left > 0:
		return n, shortBodyError(err)
	case b.goesOn:
		return n, nil
	}
	if err == nil {
		if _, err = io.ReadFull(b.ReadCloser, make([]byte, 1)); err == nil {
			return 0, errLongBody
		}
	}
	if err != io.EOF {
		return 0, shortBodyError(err)
	}
	return n, nil
}

// shortBodyError returns errShortBody for a body that ended before its last byte, and any other err as it is.
func shortBodyError(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, errCrowded) {
		return errShortBody
	}
	return err
}

// errWhole marks the whole file in place of a range, perhaps because of If-Range.
var errWhole = errors.New("the origin sent the whole file")

// adapt changes f to a form that may work where f got err, and reports false if there is none.
func (f *form) adapt(err error, obj Object, r byteRange) bool {
	var status statusError
	errors.As(err, &status) // another error has no code
	const long, short = 1 << 20, 64 << 10
	tooLong := []int{http.StatusBadRequest, http.StatusForbidden, http.StatusRequestEntityTooLarge, http.StatusRequestedRangeNotSatisfiable}
	switch {
	case err == errWhole && !f.noIfRange:
		f.noIfRange = true
	case (status.code == http.StatusPreconditionFailed || status.code == http.StatusNotModified) && !f.bare:
		f.bare = true
	case obj.Ranges && !f.noRange && r.len() > long && slices.Contains(tooLong, status.code):
		f.most = long
	case obj.Ranges && !f.noRange && r.len() > short && slices.Contains(tooLong, status.code):
		f.most = short
	case !f.noRange && refusesRange(status.code):
		f.noRange, f.most = true, 0
	default:
		return false
	}
	return true
}

// refusesRange reports whether a status may be about the field Range as such.
func refusesRange(code int) bool {
	return slices.Contains([]int{http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable,
		http.StatusRequestedRangeNotSatisfiable, http.StatusExpectationFailed, http.StatusNotImplemented}, code)
}

// learn puts f, a form that worked, in the place of was, and logs what is new and concerns
// the user. If another request has learned something meanwhile, a later one learns this.
func (o *httpOrigin) learn(was, f form) {
	first := o.form.CompareAndSwap(was, f)
	for name, is := range map[string]bool{
		"ETag": f.ignored.tag && !was.ignored.tag, "Last-Modified": f.ignored.date && !was.ignored.date,
	} {
		if is && first {
			o.client.note(o, "its %s changes though the file does not, and is ignored: a change that keeps its size may go unnoticed", name)
		}
	}
}

// send requests q.r of the version q.obj in form f, from where the origin redirected to before,
// from the origin itself if that refuses, and from where --url-command says if that does too.
//
// Its errors name no URL: a URL may hold secrets, and the caller names the file.
func (o *httpOrigin) send(ctx context.Context, q request, f form) (*webAnswer, error) {
	header := f.header(q.obj, q.r)
	var file any = o
	if q.obj.target == nil {
		file = new(byte) // a question of its own: the file's transfers make way for it
	} else if target := q.obj.target.Load(); target != nil {
		a, err := o.ask(ctx, *target, header, file, q)
		switch {
		case err == nil && decides(a.StatusCode):
			return a, nil
		case err == nil:
			a.finish()
		case ctx.Err() != nil, errors.Is(err, errMadeWay), errors.Is(err, errCrowded):
			return nil, err
		}
		q.obj.target.CompareAndSwap(target, nil)
	}
	h := o.start()
	a, err := o.ask(ctx, h, header, file, q)
	if o.renews(h, err) && o.renew(ctx, h.url, err, q.renewing) {
		h = o.start()
		h.fresh = true
		a, err = o.ask(ctx, h, header, file, q)
	}
	if err == nil && a.moved && q.obj.target != nil && a.StatusCode/100 == 2 {
		at := a.hop
		q.obj.target.Store(&at)
	}
	return a, err
}

// Connect implements Origin.
func (o *httpOrigin) Connect(obj Object) {
	h := o.start()
	if obj.target != nil {
		if target := obj.target.Load(); target != nil {
			h = *target
		}
	}
	o.client.connectTo(h)
}

// start returns the hop at the URL of the source, or the one that --url-command gave in its
// place. The user's headers and logins are for the source's own origin alone.
func (o *httpOrigin) start() hop {
	h := startAt(cmp.Or(o.given.Load(), o.url))
	h.left = hostOf(h.url) != hostOf(o.url)
	return h
}

// refusesURL reports whether an answer with that status may be about the URL alone.
func refusesURL(code int) bool {
	return code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusGone
}

// renews reports whether another URL may help after err ended a request for h, and --url-command may name one.
func (o *httpOrigin) renews(h hop, err error) bool {
	status, lookup := statusError{}, (*net.DNSError)(nil)
	return o.client.urlCommand != "" && !h.fresh &&
		(errors.As(err, &status) && !status.proxy && refusesURL(status.code) || errors.As(err, &lookup) && lookup.IsNotFound)
}

const (
	commandTime  = 30 * time.Second // bounds a run of --url-command, and commandBytes what is kept of its output
	commandBytes = 64 << 10
)

// renew has --url-command name another URL than refused, which err refused, unless it has done so meanwhile. It
// reports whether there is one. One command at a time runs for o. BLOCKS until the command has ended, at most
// commandTime; wakes on that and on the end of ctx, and then kills the command and all that it started.
func (o *httpOrigin) renew(ctx context.Context, refused *url.URL, err error, renewing func(bool)) bool {
	if renewing != nil {
		renewing(true)
		defer renewing(false)
	}
	select {
	case o.running <- struct{}{}:
		defer func() { <-o.running }()
	case <-ctx.Done():
		return false
	}
	if o.start().url != refused {
		return true
	}
	u, wrong := o.runCommand(ctx)
	o.client.note(o, "%v: --url-command for %q: %v", err, o.name, cmp.Or(wrong, errors.New("gave another URL")))
	if wrong == nil {
		o.given.Store(u)
	}
	return wrong == nil
}

var anyURL = regexp.MustCompile(`(?i)https?://\S+`)

// runCommand runs --url-command, logs what it wrote to standard error, and returns the URL that it wrote.
// BLOCKS as renew does.
func (o *httpOrigin) runCommand(ctx context.Context) (*url.URL, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.client.commandTime, fmt.Errorf("it did not end within %v", o.client.commandTime))
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", o.client.urlCommand)
	cmd.Env = append(os.Environ(), "FSMOUNT_NAME="+o.name, "FSMOUNT_URL="+o.url.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for what has left its process group
	var out, errOut headBuffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	for line := range strings.Lines(string(errOut)) { // which may show a URL
		o.client.note(o, "--url-command says: %s", foreign(anyURL.ReplaceAllStringFunc(strings.TrimSpace(line), redactArg)))
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) { // it ended well, and what it left has its output open
		return nil, cmp.Or(context.Cause(ctx), err)
	}
	text := strings.TrimSpace(string(out))
	src, err := parseNamedURL(text)
	if err != nil || src.name != "" || strings.Contains(text, "\n") { // err may quote it
		return nil, errors.New("its output is not one http or https URL")
	}
	return src.url, nil
}

// headBuffer keeps the first commandBytes that are written to it.
type headBuffer []byte

func (b *headBuffer) Write(p []byte) (int, error) {
	*b = append(*b, p[:min(len(p), commandBytes-len(*b))]...)
	return len(p), nil
}

// header returns the fields of a request for r of the version pinned. Naming the encoding keeps gzip
// out: the origin would send other bytes and another size, and net/http would ask for gzip by itself.
//
// The preconditions make the origin answer 412 (RFC 9110 section 13.1), or send the whole file, if it has another
// version than pinned. If-Range is for origins that know no other precondition: the rest evaluate it last (section
// 13.2.2), when it cannot fail any more. It may hold a date only if dateInIfRange (section 13.1.5).
func (f form) header(pinned Object, r byteRange) http.Header {
	h := make(http.Header)
	h.Set("Accept-Encoding", "identity")
	if !f.noRange {
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", r.off, r.end-1))
	}
	tag, date := pinned.ETag, pinned.LastModified
	if f.bare || f.ignored.tag {
		tag = ""
	}
	if f.bare || f.ignored.date {
		date = ""
	}
	if tag != "" {
		h.Set("If-Match", tag)
	} else if date != "" {
		h.Set("If-Unmodified-Since", date)
	}
	if !pinned.dateInIfRange() {
		date = ""
	}
	if condition := cmp.Or(tag, date); condition != "" && !f.noIfRange && !f.noRange {
		h.Set("If-Range", condition)
	}
	return h
}
