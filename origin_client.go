// origin_client.go connects to servers: by which transport, over which proxy, and to which
// addresses. A redirect leads to the public network, or to where its source is, and not from https
// to http, unless the user allows it. origin_follow.go sends the requests.

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// connectTimeout bounds the name lookup and the TCP connection together, and after them the TLS handshake.
	connectTimeout = 10 * time.Second
	// A client pings an HTTP/2 connection that brought no frame for pingAfter, and closes it if no answer comes
	// within pingTimeout: all requests to a host share one connection. The sum is the default --stall-timeout.
	// Closing a body of HTTP/2 waits until the peer reads, at most writeTimeout.
	pingAfter      = 5 * time.Second
	pingTimeout    = 10 * time.Second
	writeTimeout   = 2 * time.Second
	idlePerHost    = 16       // how many idle connections to a host are kept for later requests
	maxHeaderBytes = 64 << 10 // bounds the text of a server that can get into errors and the log
	// firstPieceBytes is how much of a body is read at first: a reader waits for it, and needs
	// only a few bytes. They come with the header.
	firstPieceBytes = 16 << 10
)

// webClient sends requests. It limits no transfer's duration.
type webClient struct {
	// Write once, before any goroutine starts.
	credentials *credentials
	allow       redirectRules
	hosts       *hostTable
	log         *eventLog     // nil: none
	urlCommand  string        // names another URL for a file whose own is refused; "": none
	commandTime time.Duration // bounds a run of it
	connect     func(route) http.RoundTripper

	// Read write.
	transports sync.Map // from route to http.RoundTripper
	http1      sync.Map // the hosts that refuse HTTP/2, by hostOf
	free       sync.Map // from serverAddress to *atomic.Int64: the connections that its next request finds
}

// redirectRules are what the user allows besides the default (--allow-redirect).
type redirectRules struct {
	private bool // redirects to addresses that are not public
	plain   bool // redirects from https to http
}

// route is a way to a server. Each has a transport, with connections of its own: with a
// common one, a redirect could take a connection that was dialed for its source.
type route struct {
	reach addressClass // it dials public addresses, and those of this class
	http1 bool         // without HTTP/2
}

// serverAddress is an address, HOST:PORT, and the way to it.
type serverAddress struct {
	route
	address string
}

// newWebClient returns the client of the process. It trusts c.roots and uses the proxy of
// the environment (http_proxy, https_proxy, all_proxy, no_proxy).
func newWebClient(c *credentials, allow redirectRules, hosts *hostTable, log *eventLog) *webClient {
	idle := hosts.free // as many connections as there are places for requests
	client := &webClient{credentials: c, allow: allow, hosts: hosts, log: log, commandTime: commandTime}
	client.connect = func(r route) http.RoundTripper {
		t := newHTTPTransport(&net.Dialer{}, r, client.freeAt)
		t.TLSClientConfig = &tls.Config{RootCAs: c.roots}
		t.MaxIdleConns = idle
		return t
	}
	return client
}

// freeAt returns the number of connections to s that serve no request, or are being made.
func (c *webClient) freeAt(s serverAddress) *atomic.Int64 {
	free, _ := c.free.LoadOrStore(s, new(atomic.Int64))
	return free.(*atomic.Int64)
}

// connectTo has a connection made for the next request for h, if none is free: that request costs one round trip
// then. A proxy is near, and gets none. It waits for nothing.
func (c *webClient) connectTo(h hop) {
	proxied, reach, err := c.reachOf(h)
	_, refused := c.http1.Load(hostOf(h.url))
	to := serverAddress{route{reach, refused}, strings.TrimPrefix(hostOf(h.url), h.url.Scheme+"://")}
	if proxied || err != nil {
		return
	}
	free := c.freeAt(to)
	if free.Add(1) > 1 {
		free.Add(-1)
		return
	}
	go func() {
		defer free.Add(-1) // the connection counts itself
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		// When ctx ends, net/http goes on to make the connection, and keeps it.
		req := (&http.Request{Method: http.MethodHead, URL: h.url, Header: make(http.Header)}).
			WithContext(context.WithValue(ctx, dialBegun{}, cancel))
		if resp, err := c.transport(to.route).RoundTrip(req); err == nil { // another one became free just now
			resp.Body.Close()
		}
	}()
}

// newHTTPTransport returns a transport that dials with d as r allows, and sets the limits of
// both. It counts its connections in freeAt.
func newHTTPTransport(d *net.Dialer, r route, freeAt func(serverAddress) *atomic.Int64) *http.Transport {
	d.Timeout = connectTimeout
	t := &http.Transport{
		OnProxyConnectResponse: refuseProxyAnswer,
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    connectTimeout,
		MaxIdleConnsPerHost:    idlePerHost,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
		ReadBufferSize:         firstPieceBytes,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: writeTimeout,
		},
	}
	t.DialContext = countDials(d.DialContext, r, freeAt)
	if r.http1 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
	}
	if r.reach == anyAddress {
		t.Proxy = http.ProxyFromEnvironment
	} else {
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(address)
			if err == nil {
				err = r.reach.check(at.Addr())
			}
			return err
		}
	}
	return t
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// dialBegun is the key of a context's function that is called when its connection begins to be made.
type dialBegun struct{}

// countDials returns dial, which counts its connections, by way r, in freeAt.
func countDials(dial dialFunc, r route, freeAt func(serverAddress) *atomic.Int64) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		free := freeAt(serverAddress{r, address})
		free.Add(1)
		if begun, ok := ctx.Value(dialBegun{}).(context.CancelFunc); ok {
			begun()
		}
		conn, err := dial(ctx, network, address)
		if err != nil {
			free.Add(-1)
			return nil, err
		}
		return &idleGuard{Conn: conn, free: free}, nil
	}
}

// idleMax is how many bytes a connection may bring while no request has it: those that
// were under way when a request was left are at most a few windows of HTTP/2.
const idleMax = 16 << 20

var errIdleFlood = errors.New("the server floods an idle connection")

// idleGuard ends a connection that brings bytes without end that nobody asked for.
type idleGuard struct {
	net.Conn
	free     *atomic.Int64 // of the connections of its server
	mu       sync.Mutex
	requests int  // GUARDED_BY(mu); that have the connection
	idle     int  // GUARDED_BY(mu); bytes since none has
	shared   bool // GUARDED_BY(mu); it takes more requests (HTTP/2)
	closed   bool // GUARDED_BY(mu)
}

// Read implements net.Conn.
func (g *idleGuard) Read(p []byte) (n int, err error) {
	n, err = g.Conn.Read(p)
	flood := false
	g.change(func() {
		g.idle += n
		flood = g.requests == 0 && g.idle > idleMax
	})
	if flood {
		g.Close()
		return 0, errIdleFlood
	}
	return n, err
}

func (g *idleGuard) Close() error {
	g.change(func() { g.closed = true })
	return g.Conn.Close()
}

// change makes a change and counts whether the connection is free.
func (g *idleGuard) change(make func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	free := func() bool { return !g.closed && (g.shared || g.requests == 0) }
	was := free()
	make()
	switch is := free(); {
	case is && !was:
		g.free.Add(1)
	case was && !is:
		g.free.Add(-1)
	}
}

// useConn counts a request in, which has conn, until ctx ends.
func useConn(ctx context.Context, conn net.Conn) {
	shared := false
	if secure, ok := conn.(*tls.Conn); ok {
		conn, shared = secure.NetConn(), secure.ConnectionState().NegotiatedProtocol == "h2"
	}
	if g, ok := conn.(*idleGuard); ok {
		g.change(func() { g.requests, g.shared = g.requests+1, shared })
		context.AfterFunc(ctx, func() { g.change(func() { g.requests, g.idle = g.requests-1, 0 }) })
	}
}

// refuseProxyAnswer returns an error with the status of a proxy that does not connect
// to the origin. net/http's own error is text without a number.
func refuseProxyAnswer(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return statusError{code: resp.StatusCode, proxy: true}
	}
	return nil
}

// transport returns the transport of r, and makes it if there is none.
func (c *webClient) transport(r route) http.RoundTripper {
	t, found := c.transports.Load(r)
	if !found {
		t, _ = c.transports.LoadOrStore(r, c.connect(r))
	}
	return t.(http.RoundTripper)
}

func (c *webClient) CloseIdleConnections() {
	for _, t := range c.transports.Range {
		(&http.Client{Transport: t.(http.RoundTripper)}).CloseIdleConnections()
	}
}

func (c *webClient) note(o Origin, format string, args ...any) {
	if c.log != nil {
		c.log.often(o.String(), "%v: %s", o, fmt.Sprintf(format, args...))
	}
}

// addressClass says from where an address can be reached.
type addressClass int

const (
	publicAddress addressClass = iota
	privateAddress
	linkLocalAddress // as clouds serve a machine's secrets
	loopbackAddress
	anyAddress // for a route: all of them
)

var (
	nat64         = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour     = netip.MustParsePrefix("2002::/16")
	thisNetwork   = netip.MustParsePrefix("0.0.0.0/8")
	sharedNetwork = netip.MustParsePrefix("100.64.0.0/10")
)

// classOf returns the class of a: of the IPv4 address within it, if NAT64 (RFC 6052) or
// 6to4 (RFC 3056) hides one there. Shared addresses (RFC 6598) count as private.
func classOf(a netip.Addr) addressClass {
	a = a.Unmap()
	switch b := a.As16(); {
	case nat64.Contains(a):
		a = netip.AddrFrom4([4]byte(b[12:]))
	case sixToFour.Contains(a):
		a = netip.AddrFrom4([4]byte(b[2:6]))
	}
	switch {
	case a.IsLoopback(), thisNetwork.Contains(a), a.IsUnspecified():
		return loopbackAddress
	case a.IsLinkLocalUnicast(), a.IsMulticast():
		return linkLocalAddress
	case a.IsPrivate(), sharedNetwork.Contains(a):
		return privateAddress
	}
	return publicAddress
}

func (reach addressClass) check(a netip.Addr) error {
	if class := classOf(a); class != publicAddress && class != reach && reach != anyAddress {
		return redirectError{fmt.Sprintf("to %v, which is no public address (--allow-redirect private allows it)", a)}
	}
	return nil
}

// useProxies makes ProxyFromEnvironment see all_proxy, and returns an error for a proxy
// that it would ignore. The errors quote no userinfo.
func useProxies() error {
	for _, name := range []string{"http_proxy", "https_proxy"} {
		value := ""
		for _, from := range []string{strings.ToUpper(name), name, "all_proxy", "ALL_PROXY"} {
			value = cmp.Or(value, os.Getenv(from))
		}
		if err := checkProxy(value); err != nil {
			return fmt.Errorf("the proxy of %s or all_proxy: %w: write http://HOST:PORT, https:// or socks5://", name, err)
		}
		os.Setenv(name, value)
	}
	return nil
}

// checkProxy returns what is wrong with the value of a proxy variable.
func checkProxy(value string) error {
	if value == "" {
		return nil
	}
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	u, err := url.Parse(value)
	switch {
	case err != nil:
		return errors.New("it is no URL")
	case !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme):
		return fmt.Errorf("scheme %q is not supported", u.Scheme)
	case u.Hostname() == "":
		return errors.New("it names no host")
	}
	return checkPort(u)
}
