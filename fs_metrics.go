// fs_metrics.go counts what the file system did, and renders that as Prometheus
// text (exposition format 0.0.4).

package main

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// waitBuckets are the upper bounds of the histogram of waits. It is never
// changed.
var waitBuckets = [...]time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second,
	10 * time.Second, time.Minute, 10 * time.Minute, time.Hour}

// fsStats are the file system's counters. They only grow.
type fsStats struct {
	ops, reads, readBytes, readErrors atomic.Int64
	waits                             [len(waitBuckets) + 1]atomic.Int64 // reads that waited, by waitBuckets, and those beyond
	waitNanos                         atomic.Int64
	lostWakeups                       atomic.Int64
}

// waited counts a read that had to wait for took.
func (s *fsStats) waited(took time.Duration) {
	i := 0
	for i < len(waitBuckets) && took > waitBuckets[i] {
		i++
	}
	s.waits[i].Add(1)
	s.waitNanos.Add(int64(took))
}

// metricLines renders all metrics.
func (fs *fileSystem) metricLines() string {
	var b strings.Builder
	metric := func(name, kind, help string, value any) {
		fmt.Fprintf(&b, "# HELP fsmount_%s %s\n# TYPE fsmount_%s %s\nfsmount_%s %v\n", name, help, name, kind, name, value)
	}
	s := &fs.stats
	metric("ops_total", "counter", "Operations answered.", s.ops.Load())
	metric("reads_total", "counter", "Reads answered.", s.reads.Load())
	metric("read_bytes_total", "counter", "Bytes that reads returned.", s.readBytes.Load())
	metric("read_errors_total", "counter", "Reads that failed.", s.readErrors.Load())
	metric("lost_wakeups_total", "counter", "Readers found asleep with their bytes on disk. Above 0 is a bug.", s.lostWakeups.Load())
	metric("ops_in_flight", "gauge", "Operations not answered yet.", fs.ops.size())
	metric("oldest_op_seconds", "gauge", "Age of the oldest operation in flight.", fs.ops.oldest().Seconds())
	fs.storeMetrics(metric)
	fs.waitHistogram(&b)
	return b.String()
}

// storeMetrics renders the sums over all stores.
func (fs *fileSystem) storeMetrics(metric func(name, kind, help string, value any)) {
	var sum storeSnapshot
	var waiters, fetches int
	for _, f := range fs.dir.Load().byInode {
		v := f.store.Snapshot()
		sum.Retries += v.Retries
		sum.Received += v.Received
		waiters += v.Waiters
		fetches += len(v.Fetches)
	}
	metric("received_bytes_total", "counter", "Bytes that origins sent.", sum.Received)
	metric("retries_total", "counter", "Requests that failed and were made again.", sum.Retries)
	metric("waiters", "gauge", "Reads that wait for bytes.", waiters)
	metric("fetches", "gauge", "Requests to origins in flight.", fetches)
}

// waitHistogram renders how long reads waited that had to.
func (fs *fileSystem) waitHistogram(b *strings.Builder) {
	const name = "fsmount_read_wait_seconds"
	fmt.Fprintf(b, "# HELP %s How long reads waited that had to.\n# TYPE %s histogram\n", name, name)
	var count int64
	for i, bound := range waitBuckets {
		count += fs.stats.waits[i].Load()
		fmt.Fprintf(b, "%s_bucket{le=\"%g\"} %d\n", name, bound.Seconds(), count)
	}
	count += fs.stats.waits[len(waitBuckets)].Load()
	fmt.Fprintf(b, "%s_bucket{le=\"+Inf\"} %d\n", name, count)
	fmt.Fprintf(b, "%s_sum %g\n%s_count %d\n", name, time.Duration(fs.stats.waitNanos.Load()).Seconds(), name, count)
}
