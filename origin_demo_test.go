// Tests of the demo origin over its real server, and of the computed content that
// all other tests check reads against.

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// smallDemoFiles returns files that are quick to download and to hash. Their sizes
// are not aligned.
func smallDemoFiles() []*localFile {
	files := []*localFile{
		newLocalFile("a.bin", 11, 100_003), newLocalFile("empty.bin", 12, 0), newLocalFile("slow.bin", 13, 70_001),
	}
	files[2].rate = 1 << 30
	return files
}

// startTestDemo serves files until the test ends. Then it requires that no goroutine
// of the server or of the returned client is left.
func startTestDemo(t *testing.T, files []*localFile) (*localOrigin, *http.Client) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	d, err := startLocalOrigin(files)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		transport.CloseIdleConnections()
		goleak.VerifyNone(t, before)
	})
	return d, &http.Client{Transport: transport}
}

// demoGet returns the answer to a GET and its whole body.
func demoGet(t *testing.T, c *http.Client, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return resp, body
}

func TestDemoFilesAreWhatTheDemoPromises(t *testing.T) {
	files := demoFiles()
	if len(files) != 4 {
		t.Errorf("%d files, want 4", len(files))
	}
	var largest, slow int64
	seeds := map[uint64]bool{}
	for _, f := range files {
		largest = max(largest, f.size)
		seeds[f.seed] = true
		if f.rate > 0 {
			slow++
		}
		if escaped := url.PathEscape(f.name); escaped != f.name {
			t.Errorf("name %q needs escaping", f.name)
		}
	}
	if largest != 64<<20 || slow != 1 || len(seeds) != len(files) {
		t.Errorf("largest %d, rate-limited %d, distinct seeds %d: want 64 MiB, 1, %d",
			largest, slow, len(seeds), len(files))
	}
}

func TestDemoServesEveryByte(t *testing.T) {
	files := smallDemoFiles()
	d, client := startTestDemo(t, files)
	for i, f := range files {
		resp, body := demoGet(t, client, d.urls[i])
		if resp.StatusCode != http.StatusOK || resp.ContentLength != f.size || int64(len(body)) != f.size {
			t.Errorf("%s: %s, Content-Length %d, body of %d bytes, want 200 and %d",
				f.name, resp.Status, resp.ContentLength, len(body), f.size)
		}
		if err := checkContent(body, f.seed, 0); err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
	}
}

func TestDemoSourcesNameTheFiles(t *testing.T) {
	d, _ := startTestDemo(t, smallDemoFiles())
	var names []string
	for _, s := range d.urls {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" || u.Hostname() != "127.0.0.1" {
			t.Errorf("source %q: not an http URL of 127.0.0.1 (%v)", s, err)
		}
		names = append(names, u.Path)
	}
	if got, want := strings.Join(names, " "), "/a.bin /empty.bin /slow.bin"; got != want {
		t.Errorf("sources %q, want %q", got, want)
	}
}

func TestDemoAnswersARangeOfOneVersion(t *testing.T) {
	files := smallDemoFiles()
	d, client := startTestDemo(t, files)
	for i, source := range d.urls {
		if files[i].size == 0 {
			continue
		}
		whole, all := demoGet(t, client, source)
		etag := whole.Header.Get("ETag")
		if !strings.HasPrefix(etag, `"`) || whole.Header.Get("Last-Modified") != "Thu, 01 Jan 2026 00:00:00 GMT" {
			t.Errorf("%s: ETag %s, Last-Modified %q, want a strong one and the fixed date",
				source, etag, whole.Header.Get("Last-Modified"))
		}
		part, body := demoGet(t, client, source, "Range", "bytes=70-76", "If-Range", etag)
		if want := fmt.Sprintf("bytes 70-76/%d", len(all)); part.StatusCode != http.StatusPartialContent ||
			part.Header.Get("Content-Range") != want || !bytes.Equal(body, all[70:77]) {
			t.Errorf("%s: %s, Content-Range %q, body %x, want 206, %q, %x",
				source, part.Status, part.Header.Get("Content-Range"), body, want, all[70:77])
		}
		other, body := demoGet(t, client, source, "Range", "bytes=70-76", "If-Range", `"other"`)
		if other.StatusCode != http.StatusOK || !bytes.Equal(body, all) {
			t.Errorf("%s: If-Range of another version: %s, want 200 and the whole", source, other.Status)
		}
	}
}

func TestDemoETagsDiffer(t *testing.T) {
	d, client := startTestDemo(t, []*localFile{
		{name: "a", size: 10, seed: 1},
		{name: "a-other-content", size: 10, seed: 2},
		{name: "a-longer", size: 11, seed: 1},
	})
	seen := map[string]string{}
	for _, source := range d.urls {
		resp, _ := demoGet(t, client, source)
		etag := resp.Header.Get("ETag")
		if seen[etag] != "" {
			t.Errorf("%s and %s share ETag %s", source, seen[etag], etag)
		}
		seen[etag] = source
	}
}

func TestDemoAnswersOtherPathsWith404(t *testing.T) {
	d, client := startTestDemo(t, smallDemoFiles())
	base := strings.TrimSuffix(d.urls[0], "a.bin")
	for _, name := range []string{"", "b.bin", "a.bin/", "SHA256SUMS", "%2e%2e/a.bin/x"} {
		if resp, _ := demoGet(t, client, base+name); resp.StatusCode != http.StatusNotFound {
			t.Errorf("GET /%s: %s, want 404", name, resp.Status)
		}
	}
	resp, err := client.Post(base+"a.bin", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s, want 405", resp.Status)
	}
}

func TestDemoSumsAreThoseOfTheFiles(t *testing.T) {
	files := demoFiles()
	last := len(files) - 1
	var want strings.Builder
	for _, f := range files[:last] {
		h := sha256.New()
		if _, err := io.Copy(h, newContentReader(f.seed, f.size)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&want, "%x  %s\n", h.Sum(nil), f.name)
	}
	d, client := startTestDemo(t, files)
	resp, got := demoGet(t, client, d.urls[last])
	if string(got) != want.String() || resp.ContentLength != int64(len(got)) {
		t.Errorf("Content-Length %d, sums:\n%s\nwant:\n%s", resp.ContentLength, got, want.String())
	}
}

func TestDemoRateFollowsTheBytesDue(t *testing.T) {
	const rate, piece, pieces = 16 << 20, 32 << 10, 2048
	tests := []struct {
		name  string
		stall time.Duration // of the client, once, halfway
		want  time.Duration // until the last piece was sent
	}{
		{"steady client", 0, 4 * time.Second * (pieces - 1) / pieces},
		{"client catches up after a stall", time.Second, 4 * time.Second * (pieces - 1) / pieces},
		{"client that stalls for longer than the rest takes", 10 * time.Second, 12 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				content := &localContent{file: &localFile{size: piece * pieces, rate: rate}, ctx: t.Context()}
				start, p := time.Now(), make([]byte, piece)
				for i := range pieces {
					if n, err := content.ReadAt(p, int64(i)*piece); n != piece || err != nil {
						t.Fatalf("%d bytes, %v", n, err)
					}
					if i == pieces/2 {
						time.Sleep(tt.stall)
					}
				}
				got := time.Since(start)
				if diff := (got - tt.want).Abs(); diff > time.Microsecond {
					t.Errorf("it took %v, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestDemoRateWaitEndsWithTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		content := &localContent{file: &localFile{size: 3601, rate: 1}, ctx: ctx}
		if _, err := content.ReadAt(make([]byte, 3600), 0); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := content.ReadAt(make([]byte, 1), 3600)
			ended <- err
		}()
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("the read before its time returned: %v", err)
		default:
		}
		start := time.Now()
		cancel()
		if err := <-ended; err != context.Canceled || time.Since(start) != 0 {
			t.Errorf("error %v after %v, want context canceled at once", err, time.Since(start))
		}
	})
}

// Of five clients the first does not read, the second waits for bytes that are not
// due, the third sent half a request, the fourth sent nothing, and the fifth is idle.
// The cleanup of startTestDemo requires that Close leaves none of their goroutines.
func TestDemoCloseEndsEveryConnection(t *testing.T) {
	d, client := startTestDemo(t, []*localFile{
		{name: "flood.bin", size: 1 << 40, seed: 1},
		{name: "drip.bin", size: 1 << 40, seed: 2, rate: 1},
		{name: "small.bin", size: 10, seed: 3},
	})
	flood, drip, small := d.urls[0], d.urls[1], d.urls[2]
	for _, source := range []string{flood, drip} {
		resp, err := client.Get(source)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	demoGet(t, client, small)
	host := strings.TrimPrefix(strings.TrimSuffix(small, "/small.bin"), "http://")
	for _, text := range []string{"GET /small.bin HTTP/1.1\r\nHost:", ""} {
		conn, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if resp, err := client.Get(small); err == nil {
		resp.Body.Close()
		t.Error("the closed server still answers")
	}
}

const testSeed = 1234567

// contentOf returns the bytes [off, off+n) of the stream of testSeed.
func contentOf(off int64, n int) []byte {
	p := make([]byte, n)
	fillContent(p, testSeed, off)
	return p
}

// The numbers are the usual test vector for ports of splitmix64.
func TestContentIsSplitmix64(t *testing.T) {
	want := []uint64{
		6457827717110365317,
		3203168211198807973,
		9817491932198370423,
		4593380528125082431,
		16408922859458223821,
	}
	p := contentOf(0, len(want)*contentWord)
	for i, w := range want {
		if got := binary.LittleEndian.Uint64(p[i*contentWord:]); got != w {
			t.Errorf("word %d = %d, want %d", i, got, w)
		}
	}
}

func TestContentAtAnyOffsetAndLength(t *testing.T) {
	const base, reach = 1<<40 + 8, 64
	whole := contentOf(base, reach)
	for off := range 2*contentWord + 1 {
		for n := range reach - off + 1 {
			got := contentOf(base+int64(off), n)
			if string(got) != string(whole[off:off+n]) {
				t.Fatalf("[%d,+%d) = %x, want %x", off, n, got, whole[off:off+n])
			}
		}
	}
}

func TestContentDiffersBySeed(t *testing.T) {
	a, b := make([]byte, 64), make([]byte, 64)
	fillContent(a, 1, 0)
	fillContent(b, 2, 0)
	if string(a) == string(b) {
		t.Error("seeds 1 and 2 give the same content")
	}
}

func TestContentAllocatesNothing(t *testing.T) {
	p := make([]byte, 10000)
	allocs := testing.AllocsPerRun(10, func() {
		fillContent(p, testSeed, 3)
		if err := checkContent(p, testSeed, 3); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("fill and check allocate %v times, want 0", allocs)
	}
}

func TestCheckContentFindsEveryWrongByte(t *testing.T) {
	const off = 4090 // not aligned; p spans several steps of the check
	p := contentOf(off, 5000)
	if err := checkContent(p, testSeed, off); err != nil {
		t.Fatal(err)
	}
	for i := range p {
		p[i] ^= 1
		err := checkContent(p, testSeed, off)
		if want := fmt.Sprintf("byte at offset %d is", off+i); err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("byte %d flipped: error %v, want one with %q", i, err, want)
		}
		p[i] ^= 1
	}
}

func TestCheckContentDescribesTheDamage(t *testing.T) {
	tests := []struct {
		name   string
		damage func(p []byte) // of [1000,9000)
		want   string
	}{
		{"aligned block", func(p []byte) { fillContent(p[24:1000], testSeed, 8192) },
			"byte at offset 1024 is"},
		{"unaligned block", func(p []byte) { fillContent(p[25:1000], testSeed, 3) },
			"byte at offset 1025 is"},
		{"NUL bytes", func(p []byte) { clear(p[100:200]) }, "100 NUL bytes stand there"},
		{"another stream", func(p []byte) { fillContent(p, testSeed+1, 1000) },
			"byte at offset 1000 is"},
		{"one wrong bit", func(p []byte) { p[8] ^= 4 }, "byte at offset 1008 is"},
		{"the last byte", func(p []byte) { p[7999]++ }, "byte at offset 8999 is"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := contentOf(1000, 8000)
			tt.damage(p)
			err := checkContent(p, testSeed, 1000)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v\nwant one with %q", err, tt.want)
			}
		})
	}
}

// newContentReader reads the first size bytes of the stream of seed. ReadAt is safe for
// concurrent use, Read and Seek are not.
func newContentReader(seed uint64, size int64) *io.SectionReader {
	return io.NewSectionReader(contentStream(seed), 0, size)
}

func TestContentReader(t *testing.T) {
	const size = 5001
	if err := iotest.TestReader(newContentReader(testSeed, size), contentOf(0, size)); err != nil {
		t.Error(err)
	}
	if _, err := newContentReader(testSeed, size).ReadAt(make([]byte, 1), size); err != io.EOF {
		t.Errorf("ReadAt of the end: error %v, want io.EOF", err)
	}
}

func BenchmarkFillContent(b *testing.B) {
	p := make([]byte, 128<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		fillContent(p, testSeed, 1<<30)
	}
}

func BenchmarkCheckContent(b *testing.B) {
	p := contentOf(1<<30, 128<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if err := checkContent(p, testSeed, 1<<30); err != nil {
			b.Fatal(err)
		}
	}
}

// Other users of the machine can reach the demo, and must not use up its descriptors.
func TestTheDemoServesSoManyConnectionsAtOnce(t *testing.T) {
	o, err := startLocalOrigin([]*localFile{{name: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	address := mustParseURL(t, o.urls[0]).Host
	ask := func() net.Conn {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
		return conn
	}
	answered := func(conn net.Conn) bool {
		n, _ := conn.Read(make([]byte, 10))
		return n > 0
	}
	first := ask()
	for range localConns - 1 {
		if !answered(ask()) {
			t.Fatal("a connection got no answer")
		}
	}
	more := ask()
	more.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if !answered(first) || answered(more) {
		t.Error("one connection too many got an answer, or the first got none")
	}
	more.SetReadDeadline(time.Now().Add(kernelPatience))
	if first.Close(); !answered(more) {
		t.Error("after the end of another, a connection got no answer")
	}
}
