//go:build gateleak

// A goroutine leaked on purpose, for TestLeakGate to see that the leak check
// of this package's TestMain reports it. It is never part of an ordinary build.

package main

import "testing"

func TestDeliberateLeak(*testing.T) {
	running := make(chan struct{})
	go leakOnPurpose(running)
	<-running
}

func leakOnPurpose(running chan struct{}) {
	close(running)
	select {}
}
