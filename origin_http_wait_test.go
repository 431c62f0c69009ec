// Tests of how long the HTTP origin waits, over pipes in synctest bubbles,
// where a day passes at once; and of what its errors must not tell.

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipeOrigin returns an origin whose one connection is a pipe to serve. REQUIRES:
// a bubble.
func pipeOrigin(t *testing.T, serve func(conn net.Conn)) *httpOrigin {
	client := newHTTPClient()
	client.Transport.(*redirectChecker).DialContext = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
				serve(theirs)
			}
		}()
		return ours, nil
	}
	t.Cleanup(client.CloseIdleConnections)
	return &httpOrigin{client: client, url: mustParseURL(t, "http://pipe/f.bin")}
}

// untilClosed BLOCKS until the client closes the connection.
func untilClosed(conn net.Conn) { io.Copy(io.Discard, conn) }

const tenBytes = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n"

func TestCancelEndsAStalledBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := pipeOrigin(t, func(conn net.Conn) {
			io.WriteString(conn, tenBytes+"01234")
			untilClosed(conn)
		})
		ctx, cancel := context.WithCancel(t.Context())
		body, err := o.Open(ctx, Object{Size: 10}, byteRange{0, 10})
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		done := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(body)
			done <- err
		}()
		synctest.Wait()
		if len(done) != 0 {
			t.Fatalf("the stalled body ended: %v", <-done)
		}
		start := time.Now()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) || time.Since(start) != 0 {
			t.Errorf("error %v after %v, want context.Canceled at once", err, time.Since(start))
		}
	})
}

func TestCancelEndsAnUnansweredRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := pipeOrigin(t, untilClosed)
		done := make(chan error, 1)
		go func() {
			_, err := o.Stat(ctx)
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
}

func TestOriginThatNeverAnswersIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := pipeOrigin(t, untilClosed).Open(t.Context(), Object{Size: 10}, byteRange{0, 10})
		if err == nil || time.Since(start) != headerTimeout {
			t.Errorf("error %v after %v, want one after %v", err, time.Since(start), headerTimeout)
		}
	})
}

// TestTransferHasNoTimeLimit sends a byte a day.
func TestTransferHasNoTimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := pipeOrigin(t, func(conn net.Conn) {
			io.WriteString(conn, tenBytes)
			for i := range 10 {
				time.Sleep(24 * time.Hour)
				fmt.Fprint(conn, i)
			}
		})
		body, err := o.Open(t.Context(), Object{Size: 10}, byteRange{0, 10})
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if got, err := io.ReadAll(body); err != nil || string(got) != "0123456789" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// TestErrorsShowNoSecret asks with a password, a token as name and a query, and
// is sent elsewhere with more of them.
func TestErrorsShowNoSecret(t *testing.T) {
	redirect := func(location string) string {
		return answerOf("302 Found", "Location: "+location+"\nContent-Length: 0", "")
	}
	answers := map[string]string{
		"no answer":            "",
		"no HTTP":              "hello\r\n\r\n",
		"404":                  answerOf("404 Not Found", "Content-Length: 0", ""),
		"no size":              answerOf("206 Partial Content", "Content-Range: bytes 0-9/*\nContent-Length: 0", ""),
		"gzip":                 answerOf("200 OK", "Content-Encoding: gzip\nContent-Length: 0", ""),
		"range":                answerOf("206 Partial Content", "Content-Range: bytes 0-0/0\nContent-Length: 0", ""),
		"redirect loop":        redirect("?t=SECRET"),
		"redirect to ftp":      redirect("ftp://SECRET:SECRET@h/x?t=SECRET"),
		"redirect to no host":  redirect("http:///x?t=SECRET"),
		"redirect to refusal":  redirect("http://SECRET:SECRET@127.0.0.1:1/x?t=SECRET"),
		"redirect to nowhere":  redirect("http://h/%zz?t=SECRET"),
		"redirect to no port":  redirect("http://u:SECRET@h:port/?t=SECRET"),
		"redirect to no place": answerOf("302 Found", "Content-Length: 0", ""),
	}
	for about, answer := range answers {
		o := originOf(t, "http://SECRET:SECRET@"+listenText(t, answer)+"/f.bin?token=SECRET")
		_, statErr := o.Stat(t.Context())
		_, openErr := o.Open(t.Context(), Object{Size: 10}, byteRange{0, 10})
		for _, err := range []error{statErr, openErr} {
			if err == nil || strings.Contains(err.Error(), "SECRET") {
				t.Errorf("%s: error %v, want one without a secret", about, err)
			}
		}
		if strings.Contains(o.String(), "SECRET") || !strings.HasSuffix(o.String(), "/f.bin") {
			t.Errorf("the origin is named %s", o)
		}
	}
}

// TestRedirectTellsNoSecretToAnotherHost looks at all that the second host
// gets.
func TestRedirectTellsNoSecretToAnotherHost(t *testing.T) {
	var told http.Header
	second := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		told = r.Header.Clone()
		contentHandler(10, "")(w, r)
	})
	elsewhere := strings.Replace(second.url.String(), "127.0.0.1", "localhost", 1)
	first := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere, http.StatusFound)
	})
	first.url = mustParseURL(t, strings.Replace(first.url.String(), "://", "://user:SECRET@", 1)+"?token=SECRET")
	if _, err := first.Stat(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(told); strings.Contains(text, "SECRET") || told.Get("Authorization") != "" {
		t.Errorf("the second host is told %v", text)
	}
}
