//go:build gatefault

// The faults that the gates must report in gate_test.go: a data race and a leaked
// goroutine. Only the build tag gatefault includes them.

package main

import (
	"sync"
	"testing"
)

// No schedule orders the two increments, so the detector reports them in every run.
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
