package testkit

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy forwards TCP to a target and does harm on request. Its address stays the same from beginning to end.
type Proxy struct {
	addr   string
	target string
	wg     sync.WaitGroup
	life   context.Context
	end    context.CancelFunc

	mu       sync.Mutex // guards the fields below
	listener net.Listener
	pairs    map[*pair]struct{}
	paused   chan struct{} // closed while bytes may flow
	faults   Faults
}

// Faults that apply to every chunk of bytes from now on. The zero value does no harm.
type Faults struct {
	Delay  time.Duration // before each chunk is passed on, each way
	Jitter time.Duration // added to or taken from Delay at random
	// CutAfter closes the connection when this many bytes have come from the client; 0: never.
	CutAfter int64
	// DropUp and DropDown let bytes vanish towards the target or the client, as a one-way cut does.
	DropUp, DropDown bool
}

type pair struct {
	client, server net.Conn
	up             int64 // bytes from the client; one goroutine
}

// NewProxy listens on a free loopback port and ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	life, end := context.WithCancel(context.Background())
	p := &Proxy{addr: "127.0.0.1:0", target: target, life: life, end: end, pairs: map[*pair]struct{}{}, paused: make(chan struct{})}
	close(p.paused)
	p.Accept(t)
	t.Cleanup(func() {
		p.Refuse()
		p.Resume()
		p.end()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// Addr is host:port of the proxy.
func (p *Proxy) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

// Accept takes connections again after Refuse.
func (p *Proxy) Accept(t testing.TB) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(p.life, "tcp", p.Addr())
	if err != nil {
		t.Fatalf("listening for the proxy: %v", err)
	}
	p.mu.Lock()
	p.listener, p.addr = l, l.Addr().String()
	p.mu.Unlock()
	p.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.forward(conn) })
		}
	})
}

// Refuse closes the listener: new connections are refused. Open ones go on; see Cut.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.listener.Close()
}

// Cut resets all open connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		c.cut()
	}
}

// Pause lets no byte through, in either direction, and closes nothing: what SIGSTOP looks like from outside. New connections are
// accepted.
func (p *Proxy) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.paused:
		p.paused = make(chan struct{})
	default:
	}
}

// Resume ends Pause; what was held back goes on.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.paused:
	default:
		close(p.paused)
	}
}

// Set replaces the faults.
func (p *Proxy) Set(f Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = f
}

// cut resets both ends.
func (c *pair) cut() {
	for _, conn := range []net.Conn{c.client, c.server} {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		if conn != nil {
			_ = conn.Close()
		}
	}
}

func (p *Proxy) forward(client net.Conn) {
	server, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(p.life, "tcp", p.target)
	if err != nil {
		(&pair{client: client}).cut()
		return
	}
	c := &pair{client: client, server: server}
	p.mu.Lock()
	p.pairs[c] = struct{}{}
	p.mu.Unlock()
	if p.life.Err() != nil { // Cut may have come before we were in the list
		c.cut()
	}
	var both sync.WaitGroup
	both.Go(func() { p.copy(c, client, server, true) })
	both.Go(func() { p.copy(c, server, client, false) })
	both.Wait()
	_ = client.Close()
	_ = server.Close()
	p.mu.Lock()
	delete(p.pairs, c)
	p.mu.Unlock()
}

func (p *Proxy) copy(c *pair, from, to net.Conn, up bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && !p.pass(c, to, buffer[:n], up) {
			return
		}
		if errors.Is(err, io.EOF) {
			if tcp, ok := to.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
			return
		}
		if err != nil {
			c.cut()
			return
		}
	}
}

// pass writes one chunk with the faults of this moment.
func (p *Proxy) pass(c *pair, to net.Conn, chunk []byte, up bool) bool {
	p.mu.Lock()
	faults, flow := p.faults, p.paused
	p.mu.Unlock()
	select {
	case <-flow:
	case <-p.life.Done():
		return false
	}
	if delay := faults.Delay + time.Duration((2*rand.Float64()-1)*float64(faults.Jitter)); delay > 0 {
		select {
		case <-time.After(delay):
		case <-p.life.Done():
			return false
		}
	}
	if up {
		if left := faults.CutAfter - c.up; faults.CutAfter > 0 && int64(len(chunk)) >= left {
			_, _ = to.Write(chunk[:max(left, 0)])
			c.cut()
			return false
		}
		c.up += int64(len(chunk))
	}
	if up && faults.DropUp || !up && faults.DropDown {
		return true
	}
	_, err := to.Write(chunk)
	return err == nil
}
