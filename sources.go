// sources.go turns the command line's sources and lists into mounted files: it
// parses them, asks each origin for size and version, several at once, and names
// the files. It never reads a file's content.

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// namedSources are the sources of the command line, and after them those of the
// lists. A list is a file of sources, one a line; "-" is stdin.
//
// BLOCKS until stdin ends, where a list is "-".
func namedSources(args, lists []string, stdin io.Reader) ([]fileSource, error) {
	sources, err := parseSources(args)
	if err != nil {
		return nil, err
	}
	for _, list := range lists {
		listed, err := readList(list, stdin)
		if err != nil {
			return nil, fmt.Errorf("list %w", err)
		}
		sources = append(sources, listed...)
	}
	if len(lists) > 0 && len(sources) == 0 {
		return nil, fmt.Errorf("list %s: it names no source", strings.Join(lists, ", "))
	}
	return sources, nil
}

func readList(path string, stdin io.Reader) ([]fileSource, error) {
	lines, err := listLines(path, stdin)
	if err != nil {
		return nil, err
	}
	sources := make([]fileSource, 0, len(lines))
	for _, line := range lines {
		src, err := parseSource(line.text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line.where, err)
		}
		sources = append(sources, src)
	}
	return sources, nil
}

func listLines(path string, stdin io.Reader) ([]fileLine, error) {
	if path == "-" {
		return readLines("standard input", stdin)
	}
	return readLinesOf(path)
}

func parseSources(args []string) ([]fileSource, error) {
	sources := make([]fileSource, 0, len(args))
	for _, arg := range args {
		src, err := parseSource(arg)
		if err != nil {
			return nil, err
		}
		sources = append(sources, src)
	}
	return sources, nil
}

const (
	// probesAtOnce is how many origins are asked at the same time: a thousand
	// files on a server 50 ms away take 3 s.
	probesAtOnce = 16
)

// probed is a source whose origin has answered, or has not: err says why.
type probed struct {
	source fileSource
	origin Origin
	obj    Object
	err    error
}

// probeAll asks the origin of each source, and answers in their order.
//
// BLOCKS until each has answered or failed, at most statTimeout for each
// probesAtOnce of them; wakes on the end of ctx.
func probeAll(ctx context.Context, client *http.Client, sources []fileSource, stallTimeout time.Duration) []probed {
	all := make([]probed, len(sources))
	turns := make(chan struct{}, probesAtOnce)
	var probes sync.WaitGroup
	for i, src := range sources {
		all[i] = probed{source: src, origin: newHTTPOrigin(client, src.url, stallTimeout)}
		turns <- struct{}{}
		probes.Go(func() {
			defer func() { <-turns }()
			all[i].stat(ctx)
		})
	}
	probes.Wait()
	return all
}

func (p *probed) stat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, statTimeout)
	defer cancel()
	p.obj, p.err = p.origin.Stat(ctx)
}

// openFiles probes the sources and makes a file of each that answers. Those
// that do not are named on stderr; it is an error if none does.
func openFiles(ctx context.Context, opts options, client *http.Client, sources []fileSource, config storeConfig, stderr io.Writer) ([]*fileVersion, error) {
	var found []probed
	for _, p := range probeAll(ctx, client, sources, opts.StallTimeout) {
		if p.err != nil {
			fmt.Fprintf(stderr, "fsmount: left out %s: %v\n", p.origin, p.err)
			continue
		}
		found = append(found, p)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("stopped before anything was mounted")
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("nothing to mount: none of the %d sources could be opened", len(sources))
	}
	return newFiles(found, config), nil
}

func newFiles(found []probed, config storeConfig) []*fileVersion {
	names := make([]string, len(found))
	for i, p := range found {
		names[i] = fileName(p.source, p.obj.Filename)
	}
	files := make([]*fileVersion, len(found))
	for i, name := range uniqueNames(names) {
		p := found[i]
		files[i] = newFileVersion(name, newTempFileStore(p.origin, p.obj, config))
	}
	return files
}
