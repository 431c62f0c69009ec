// probe.go turns sources into files: it asks every origin for its file's size
// and version, several at once, before anything is mounted.

package main

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	// probesAtOnce is how many origins are asked at the same time: a thousand
	// files on a server 50 ms away take 3 s.
	probesAtOnce = 16

	// probeTimeout bounds one probe, all its redirects together.
	probeTimeout = 30 * time.Second
)

// probed is a source whose origin has answered, or has not: err says why.
type probed struct {
	source source
	origin Origin
	obj    Object
	err    error
}

// probeAll asks the origin of each source, and answers in their order.
//
// BLOCKS until each has answered or failed, at most probeTimeout for each
// probesAtOnce of them; wakes on the end of ctx.
func probeAll(ctx context.Context, client *http.Client, sources []source, stallTimeout time.Duration) []probed {
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
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	p.obj, p.err = p.origin.Stat(ctx)
}
