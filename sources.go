// sources.go turns the command line's sources and lists into mounted files, in three steps:
// namedSources parses them, probeAll asks each origin for the file's size and version, or for a listing
// of files, openFiles names the files and gives each a store. It never reads a file's content.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
)

// namedSources returns the sources of args, then those of the lists. A list is the path of a file with one source a
// line; "-" is stdin. checkNames holds for them. BLOCKS until stdin ends, if a list is "-".
func namedSources(args, lists []string, stdin io.Reader) ([]fileSource, error) {
	var sources []fileSource
	for _, arg := range args {
		src, err := parseSource(arg)
		if err != nil {
			return nil, err
		}
		sources = append(sources, src)
	}
	for _, list := range lists {
		lines, err := readLines(list, stdin)
		if err != nil {
			return nil, fmt.Errorf("list %w", err)
		}
		for _, line := range lines {
			src, err := parseListed(line.text)
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", line.where, err)
			}
			sources = append(sources, src)
		}
	}
	if len(lists) > 0 && len(sources) == 0 {
		return nil, fmt.Errorf("list %s: it names no source: write one URL a line", strings.Join(lists, ", "))
	}
	return sources, checkNames(sources)
}

// checkNames returns an error if two sources have the same NAME, or a NAME is a directory of another.
func checkNames(sources []fileSource) error {
	given := make(map[string]*url.URL)
	named := slices.DeleteFunc(slices.Clone(sources), func(src fileSource) bool { return src.name == "" })
	for _, src := range named {
		name := fileName(src, "", nil)
		if other := given[name]; other != nil {
			return fmt.Errorf("name %q is used twice, for %s and %s: write another NAME= before one of the URLs",
				name, redactURL(other), redactURL(src.url))
		}
		given[name] = src.url
	}
	for _, src := range named {
		name := fileName(src, "", nil)
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if file := given[dir]; file != nil {
				return fmt.Errorf("%q cannot be both the file for %s and the directory of %q, for %s: write another NAME= before one of the URLs",
					dir, redactURL(file), name, redactURL(src.url))
			}
		}
	}
	return nil
}

// probesAtOnce bounds the probes in flight to one host. With 16, a thousand files on a server 50 ms away take 3 s.
const probesAtOnce = 16

// slowProbe is how long a probe keeps its place. Those that fail or hang, and are asked again, leave
// the places to others.
const slowProbe = 250 * time.Millisecond

// probedHost is a host that is asked for files.
type probedHost struct {
	places chan struct{}
	retry  time.Time    // no file is asked for again after
	until  atomic.Int64 // it is asked until then, in Unix nanoseconds; each answer adds twice its share of the time
}

// startPatience is how long the user waits without a word why nothing is mounted yet.
const startPatience = 3 * time.Second

// entriesMax bounds the entries of all listings that one call of probeAll reads.
const entriesMax = 100_000

// probed is a source with the answer of its origin: obj, or entries, or err if there is neither.
type probed struct {
	source  fileSource
	origin  *httpOrigin
	obj     Object
	entries []fileSource // of a listing
	listed  []*probed    // the entries
	err     error
}

// probeAll asks the origin of each source for size and version, again and again while that may help, as
// a read would. After timeout it asks nobody again, and no other source of a host but one that answers;
// then it waits for the answers under way, timeout/2 more. The result has the order of sources, and the
// files of a listing, of depth levels, in its place. Nobody is asked for a file whose size is given.
// BLOCKS until every probe has ended; wakes on answers, failures and the end of ctx.
func probeAll(ctx context.Context, client *webClient, sources []fileSource, depth int, stallTimeout, timeout time.Duration) []probed {
	var probes sync.WaitGroup
	var entries atomic.Int64 // of all listings
	var start func(src fileSource, h *probedHost) *probed
	start = func(src fileSource, h *probedHost) *probed {
		p := &probed{source: src, origin: newHTTPOrigin(client, src.url, stallTimeout)}
		p.origin.name = fileName(src, "", nil)
		if src.sized {
			p.obj = Object{Size: src.size, Ranges: true, assumed: true}
			return p
		}
		probes.Go(func() {
			h.places <- struct{}{}
			leave := sync.OnceFunc(func() { <-h.places })
			slow := time.AfterFunc(slowProbe, leave)
			p.ask(ctx, h, timeout/2)
			slow.Stop()
			leave()
			if entries.Add(int64(len(p.entries))) > entriesMax {
				p.err, p.entries = fmt.Errorf("the listings have more than %d entries", entriesMax), nil
			}
			for _, entry := range p.entries {
				p.listed = append(p.listed, start(entry, h))
			}
		})
		return p
	}
	root := probed{listed: make([]*probed, len(sources))}
	hosts := make(map[string]*probedHost)
	for i, src := range sources {
		host := hostOf(src.url)
		if hosts[host] == nil {
			hosts[host] = &probedHost{places: make(chan struct{}, probesAtOnce), retry: time.Now().Add(timeout)}
			hosts[host].until.Store(hosts[host].retry.UnixNano())
		}
		src.depth = depth
		root.listed[i] = start(src, hosts[host])
	}
	probes.Wait()
	return root.appendTo(nil)
}

// appendTo appends p, or what it lists without the folders that have nothing in them.
func (p *probed) appendTo(all []probed) []probed {
	if p.listed == nil {
		return append(all, *p)
	}
	for _, entry := range p.listed {
		if isRoot := p.source.url == nil; isRoot || !errors.Is(entry.err, errNothingListed) {
			all = entry.appendTo(all)
		}
	}
	return all
}

// ask asks the origin until it has answered, or refused for good, while h is asked.
// BLOCKS until then, at most patience longer; wakes on the end of ctx.
func (p *probed) ask(ctx context.Context, h *probedHost, patience time.Duration) {
	if time.Now().UnixNano() >= h.until.Load() {
		p.err = errors.New("its host took too long for the sources before it (--start-timeout gives it more time)")
		return
	}
	begin, limit := time.Now(), max(0, time.Until(h.retry))+patience
	ctx, cancel := context.WithTimeoutCause(ctx, limit, networkError{unansweredError{within: limit.Round(time.Second)}})
	defer cancel()
	for n, refusals := 1, 0; n == 1 || time.Now().Before(h.retry) && ctx.Err() == nil; n++ {
		if p.entries, p.err = p.origin.Entries(ctx, p.source); p.err == nil && p.entries == nil {
			p.obj, p.err = p.origin.Stat(ctx)
		}
		retry, after := retryAdvice(p.err)
		if redirectedRefusal(p.err) {
			refusals++
		}
		if p.err == nil {
			h.until.Add(int64(2 * time.Since(begin) / probesAtOnce))
		}
		noHost := (*net.DNSError)(nil)
		if p.err == nil || !retry || refusals >= refusalsMax || errors.As(p.err, &noHost) && noHost.IsNotFound {
			return
		}
		wait := max(after, backoff(n))
		if errors.Is(p.err, errCrowded) {
			wait = 0 // the host has fewer requests by now
		}
		_ = sleepUntil(ctx, time.Now().Add(min(wait, time.Until(h.retry)))) // the loop looks at ctx
	}
	p.err = fmt.Errorf("%w (--start-timeout gives it more time)", p.err)
}

// openFiles probes the sources and puts a file for each origin that answers into fs. It returns these files, and their
// nodes. It reports every other source, and fails if no file is left, or if opts want all. BLOCKS as probeAll does.
func openFiles(ctx context.Context, opts options, client *webClient, sources []fileSource, fs *fileSystem,
	report func(skipped error)) (files, fresh []*node, err error) {
	all := probeAll(ctx, client, sources, opts.Depth, opts.StallTimeout, opts.StartTimeout)
	if ctx.Err() != nil {
		return nil, nil, errors.New("stopped before anything was mounted")
	}
	for i, name := range namesOf(all, func(name string) bool { n, _ := fs.find(name); return n != nil }) {
		p, nodes := all[i], []*node(nil)
		f, err := (*node)(nil), p.err
		if err == nil {
			p.origin.name = name
			store := newTempFileStore(p.origin, p.obj, fs.storeConfig)
			store.UseCache(name + "\x00" + identityOf(p.source.url))
			f = newFile(name, store)
			f.sha256 = p.source.sha256
			nodes, err = fs.link(f)
		}
		if err != nil {
			report(fmt.Errorf("skipped %q (%s): %w", fileName(p.source, "", nil), p.origin, err))
			continue
		}
		if weak := p.obj.weaknesses(); len(weak) > 0 {
			fs.log.printf("%q: %s", name, strings.Join(weak, "; "))
		}
		files, fresh = append(files, f), append(fresh, nodes...)
	}
	switch missing := len(all) - len(files); {
	case len(files) == 0 && missing > 0:
		err = errors.New("nothing to mount: no source could be opened")
	case opts.All && missing > 0:
		err = fmt.Errorf("nothing is mounted: %s could not be opened, and --all wants all", plural(int64(missing), "source"))
	}
	return files, fresh, err
}

// addSources returns the verb that adds sources to fs, with the checks, names and access of
// the start. It BLOCKS as probeAll and tellKernel do.
func addSources(fs *fileSystem, opts options, client *webClient) controlVerb {
	return func(ctx context.Context, args []string, say func(done string, err error)) {
		var sources []fileSource
		for _, arg := range args {
			src, err := parseListed(arg)
			if err != nil {
				say("", err)
				return
			}
			sources = append(sources, src)
		}
		files, fresh, _ := openFiles(ctx, opts, client, sources, fs, func(skipped error) { say("", skipped) })
		fs.tellKernel(func() {}, fresh...)
		for _, f := range files {
			fs.log.printf("added %q", f.name())
			say(fmt.Sprintf("%s: added, %s", printable(f.name()), humanize.IBytes(uint64(f.current.Load().size))), nil)
		}
		if slices.Contains(opts.Prefetch, "") {
			fs.prefetch(files...)
		}
		if ctx.Err() != nil {
			say("", context.Cause(ctx))
		}
	}
}

// namesOf returns a name for each file in all that was found. No other file gets a NAME of the user's, even
// that of a source which was not found, nor a name in use. Names of listings give way as those of URLs do.
// REQUIRES: no two sources have the same NAME
func namesOf(all []probed, inUse func(name string) bool) []string {
	var wanted []string
	var order []int // of wanted: indexes in all
	for _, named := range []bool{true, false} {
		for i, p := range all {
			if named == p.source.isNamed() && (named || p.err == nil) {
				order = append(order, i)
				wanted = append(wanted, fileName(p.source, p.obj.Filename, p.obj.final))
			}
		}
	}
	names := make([]string, len(all))
	for i, name := range uniqueNames(wanted, inUse) {
		if all[order[i]].source.isNamed() {
			name = wanted[i] // it is the user's to change
		}
		names[order[i]] = name
	}
	return names
}
