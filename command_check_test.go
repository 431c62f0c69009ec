// Tests of how check judges, in bubbles where time is exact. That it comes back
// from a mount that does not answer, only the kernel tests can show.

package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// passingOp is an operation that is in flight for a while, from the start of
// the check on; since may be negative.
type passingOp struct {
	since, until time.Duration
}

const forever = time.Hour

// lookAt is the table of ops as it is at each look, which takes a while.
func lookAt(ops []passingOp, takes time.Duration) func(context.Context) ([]opInfo, error) {
	start := time.Now()
	return func(ctx context.Context) ([]opInfo, error) {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return nil, fmt.Errorf("DIR: %w", errNoAnswer)
		}
		now := time.Since(start)
		var infos []opInfo
		for i, op := range ops {
			if op.since <= now && now < op.until {
				infos = append(infos, opInfo{ID: uint64(i), Kind: "read", File: fmt.Sprintf("file%d", i),
					Range: "[0,10)", PID: uint32(100 + i), Command: "cat", Age: (now - op.since).Seconds(), Waits: "bytes [0,10)"})
			}
		}
		return infos, nil
	}
}

func TestCheckMount(t *testing.T) {
	const timeout = 2 * time.Second
	tests := []struct {
		about string
		ops   []passingOp
		takes time.Duration // a look
		after time.Duration // the check is done, at the latest
		says  string        // "" for all is well
	}{
		{"nothing in flight", nil, 0, 0, ""},
		{"blocked for long", []passingOp{{-10 * time.Second, forever}}, 0, 0,
			`DIR: blocked: 1 of 1 operations in flight, the oldest for 10.0s: read [0,10) of "file0" for pid 100 (cat), which waits for bytes [0,10)`},
		{"blocked for as long as the timeout", []passingOp{{-timeout, forever}}, 0, 0, "1 of 1 operations"},
		{"several", []passingOp{{-5 * time.Second, forever}, {-4 * time.Second, forever}, {-time.Second, forever}}, 0, 0,
			`2 of 3 operations in flight, the oldest for 5.0s: read [0,10) of "file0"`},
		{"ends soon", []passingOp{{0, 50 * time.Millisecond}}, 0, 100 * time.Millisecond, ""},
		{"ends just in time", []passingOp{{-time.Second, 900 * time.Millisecond}}, 0, time.Second + longestCheckPause, ""},
		{"gets too old", []passingOp{{-time.Second, forever}}, 0, time.Second + longestCheckPause, "1 of 1 operations"},
		{"is there all the time", []passingOp{{0, forever}}, 0, timeout, "the oldest for 1.8s"},
		{"another one each time", []passingOp{{-timeout / 2, 10 * time.Millisecond}, {time.Millisecond, forever}}, 0, timeout, ""},
		{"does not answer", nil, forever, timeout, "DIR: the mount does not answer within 2s"},
		{"answers late", nil, timeout - 1, timeout, ""},
		{"one look takes nearly all the time", []passingOp{{0, forever}}, timeout - timeout/20, timeout, "does not answer"},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			err := checkMount("DIR", timeout, lookAt(tt.ops, tt.takes))
			if took := time.Since(start); took > tt.after {
				t.Errorf("%s: took %v, want at most %v", tt.about, took, tt.after)
			}
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %v, want %q", tt.about, err, tt.says)
			}
		})
	}
}

func TestBlockedErrorIsOneLine(t *testing.T) {
	err := blockedError("DIR", []opInfo{{Kind: "open", File: "a\nb", Range: "-", Command: "c\nd", Waits: "e\nf"}}, 1)
	if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), `: open of "a\nb" for`) {
		t.Errorf("%v", err)
	}
}
