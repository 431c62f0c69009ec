package main

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails the package for a goroutine that any test left behind.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}
