//go:build gatefault

// The faults that gate_test.go expects the gates to report: a data race and a
// leaked goroutine. No ordinary build has them.

package main

import (
	"sync"
	"testing"
)

// Nothing orders the two increments, whatever the schedule, so that the
// detector reports them in every run.
func TestDeliberateRace(t *testing.T) {
	var n int
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { n++ })
	}
	wg.Wait()
	t.Logf("%d increments without a lock", n)
}

func TestDeliberateLeak(*testing.T) {
	running := make(chan struct{})
	go leakOnPurpose(running)
	<-running
}

func leakOnPurpose(running chan struct{}) {
	close(running)
	select {}
}
