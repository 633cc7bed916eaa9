// Package upstream speaks HTTP/1.1 to functions over connections of its own: one request at a time on each, written and read by the
// goroutine that serves the caller. net/http's Transport needs two goroutines and a dozen channel operations for the same, which is
// half of what a proxied call costs (docs/adr/0018-lean-upstream.md). Everything that is not a plain request and its answer, such as
// an upgrade, is not for this package.
package upstream

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/dial"
)

// readBuffer holds the head of almost every answer and the whole of many, in bytes.
const readBuffer = 8 << 10

// Options of a pool.
type Options struct {
	// Dial makes a connection. Nil: dial.Context.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// MaxIdle connections are kept per address; 0: none.
	MaxIdle int
	// IdleTimeout is how long an unused connection is kept. Shorter than what servers use themselves (2 s and up), so that this side
	// closes first: a request that meets a connection its function is just closing cannot be sent again.
	IdleTimeout time.Duration
	// MaxHeader bounds an answer's head, all 1xx answers before it included, in bytes.
	MaxHeader int
}

// Pool of connections to functions, by address. Safe for concurrent use.
type Pool struct {
	options Options

	mu     sync.Mutex // guards all below
	idle   map[string][]*Conn
	sweep  *time.Timer // nil: nothing is idle
	closed bool
}

// NewPool returns an empty pool.
func NewPool(o Options) *Pool {
	if o.Dial == nil {
		o.Dial = dial.Context
	}
	return &Pool{options: o, idle: map[string][]*Conn{}}
}

// Get gives a connection to the address, the one used last where some are idle, and else a new one. The error of a dial is the
// dialer's own. Whoever gets it puts it back or closes it.
func (p *Pool) Get(ctx context.Context, address string) (*Conn, error) {
	for {
		c := p.take(address)
		if c == nil {
			break
		}
		if time.Since(c.since) < p.options.IdleTimeout && c.quiet() {
			return c, nil
		}
		_ = c.Close()
	}
	raw, err := p.options.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: raw, pool: p, address: address, maxHeader: p.options.MaxHeader}
	c.r = bufio.NewReaderSize((*headLimit)(c), readBuffer)
	return c, nil
}

func (p *Pool) take(address string) *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle := p.idle[address]
	if len(idle) == 0 {
		return nil
	}
	last := len(idle) - 1
	c := idle[last]
	idle[last] = nil
	p.idle[address] = idle[:last]
	return c
}

// put a connection back whose answer has been read to its end.
func (p *Pool) put(c *Conn) {
	c.since = time.Now()
	p.mu.Lock()
	idle := p.idle[c.address]
	if p.closed || len(idle) >= p.options.MaxIdle {
		p.mu.Unlock()
		_ = c.Close()
		return
	}
	p.idle[c.address] = append(idle, c)
	if p.sweep == nil {
		p.sweep = time.AfterFunc(p.options.IdleTimeout, p.expire)
	}
	p.mu.Unlock()
}

// expire closes what was idle for too long, and comes again while something is left.
func (p *Pool) expire() {
	now := time.Now()
	var old []*Conn
	p.mu.Lock()
	for address, idle := range p.idle {
		n := 0
		for n < len(idle) && now.Sub(idle[n].since) >= p.options.IdleTimeout { // the oldest are first
			n++
		}
		old = append(old, idle[:n]...)
		if n == len(idle) {
			delete(p.idle, address)
		} else if n > 0 {
			p.idle[address] = append([]*Conn(nil), idle[n:]...)
		}
	}
	if p.sweep = nil; len(p.idle) > 0 && !p.closed {
		p.sweep = time.AfterFunc(p.options.IdleTimeout/2, p.expire)
	}
	p.mu.Unlock()
	for _, c := range old {
		_ = c.Close()
	}
}

// Idle is how many connections wait to be used again.
func (p *Pool) Idle() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, idle := range p.idle {
		n += len(idle)
	}
	return n
}

// Close closes the idle connections, and the others when they are put back.
func (p *Pool) Close() {
	p.mu.Lock()
	all := p.idle
	p.idle, p.closed = map[string][]*Conn{}, true
	if p.sweep != nil {
		p.sweep.Stop()
	}
	p.mu.Unlock()
	for _, idle := range all {
		for _, c := range idle {
			_ = c.Close()
		}
	}
}

// Conn is a connection that one request at a time is sent over.
type Conn struct {
	net.Conn
	pool      *Pool
	address   string
	r         *bufio.Reader
	since     time.Time // when it was put back
	due       time.Time // its read deadline; zero: none
	maxHeader int
	left      int    // bytes of the head that may still come
	limited   bool   // a head is being read
	broke     error  // why reading it ended; nil: it did not
	used      bool   // it has carried a request before
	upgrade   string // what the last request asked for
}

// Used says whether the connection has carried a request before.
func (c *Conn) Used() bool { return c.used }

// quiet: nothing has come on the idle connection, neither its end nor bytes nobody asked for.
func (c *Conn) quiet() bool {
	if c.r.Buffered() > 0 {
		return false
	}
	if conn, ok := c.Conn.(*dial.Conn); ok {
		return conn.Quiet()
	}
	return true
}

// AnswerUntil bounds the wait for the next answer: a deadline that is set already, and a twentieth of the wait early at most, stays,
// for setting one costs more than all the rest of a pool. The zero time: no bound.
func (c *Conn) AnswerUntil(now, deadline time.Time) error {
	if early := deadline.Sub(c.due); !c.due.IsZero() && early >= 0 && early <= deadline.Sub(now)/20 || c.due.Equal(deadline) {
		return nil
	}
	c.due = deadline
	if err := c.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("bounding the wait for the answer: %w", err)
	}
	return nil
}

// Arrived says whether so many bytes of an answer's body are there already; -1: nobody knows how many there are.
func (c *Conn) Arrived(length int64) bool { return length >= 0 && int64(c.r.Buffered()) >= length }

// Put gives the connection back for the next request. Only after an answer that Reusable was said of.
func (c *Conn) Put() { c.pool.put(c) }

// Buffered is how many bytes have come that were not read yet.
func (c *Conn) Buffered() int { return c.r.Buffered() }

// headLimit is the connection as its bufio.Reader sees it.
type headLimit Conn

func (l *headLimit) Read(p []byte) (int, error) {
	if !l.limited {
		return l.Conn.Read(p)
	}
	if l.left <= 0 {
		return 0, fmt.Errorf("the answer's head is larger than %d bytes: %w", l.maxHeader, ErrHeader)
	}
	if len(p) > l.left {
		p = p[:l.left]
	}
	n, err := l.Conn.Read(p)
	l.left -= n
	l.broke = err
	return n, err
}
