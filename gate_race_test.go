//go:build gaterace

// A data race on purpose, for TestRaceGate to see that the race detector
// reports it. It is never part of an ordinary build.

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
