// The counter-example to the store's signalling.

package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// seedStore is the signalling of the program that hung: one channel of tokens
// that all readers share, a token for each arrival.
type seedStore struct {
	downloaded atomic.Int64
	doneCh     chan struct{}
	notifyCh   chan struct{}
}

func (s *seedStore) waitFor(ctx context.Context, end int64) error {
	for s.downloaded.Load() < end {
		select {
		case <-s.doneCh:
			return fmt.Errorf("done")
		case <-s.notifyCh:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (s *seedStore) arrive(n int64) {
	s.downloaded.Add(n)
	select {
	case s.notifyCh <- struct{}{}:
	default:
	}
}

// The counter-example to TestNearWaiterIsWokenBehindAFarOne: the one token for
// the first 100 bytes goes to the reader that waits longest, who wants others.
func TestSharedTokenChannelLosesWakeups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &seedStore{doneCh: make(chan struct{}), notifyCh: make(chan struct{}, 100)}
		ctx, cancel := context.WithCancel(t.Context())
		far, near := make(chan error, 1), make(chan error, 1)
		go func() { far <- s.waitFor(ctx, 1000) }()
		synctest.Wait()
		go func() { near <- s.waitFor(ctx, 100) }()
		synctest.Wait()
		s.arrive(100)
		time.Sleep(time.Hour) // of the bubble: nothing else can happen any more
		select {
		case <-near:
			t.Error("the near reader was woken: the counter-example shows nothing")
		default:
		}
		cancel()
		<-far
		<-near
	})
}
