package serve

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// firstRequest is how soon a connection brings its first request, if it was opened for one.
const firstRequest = 500 * time.Millisecond

// conns are a server's connections as http.Server tells of them. An upgraded connection is its handler's, and not among them.
type conns struct {
	limit int // 0: any number

	mu   sync.Mutex // guards all below, and what says so in conn
	open map[*conn]struct{}
	busy int
	away uint64
	// idle is the ring of the idle connections: next is the one that has been idle for longest.
	idle conn
	// active is the ring of those with a request.
	active conn
}

func newConns(limit int) *conns {
	s := &conns{limit: limit, open: map[*conn]struct{}{}}
	s.idle.prev, s.idle.next = &s.idle, &s.idle
	s.active.prev, s.active.next = &s.active, &s.active
	return s
}

// note is http.Server's ConnState. A connection is busy while it has a request under way, its headers included; an HTTP/2
// connection is idle while it has no stream.
func (s *conns) note(c net.Conn, state http.ConnState) {
	ours := under(c)
	if ours == nil {
		return // none that lastCall accepted: there is no such
	}
	ours.note(state)
	if victim := s.change(ours, state); victim != nil {
		_ = victim.Close() // the server, which reads from it, tells of the end
	}
}

// change takes the state over, and returns the connection that must go where there is one more than may be: the one that has
// been idle for longest, or, where all are in use, the new one.
func (s *conns) change(c *conn, state http.ConnState) (victim *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.state == http.StateActive {
		s.busy--
	}
	c.leave()
	c.state = state
	switch state {
	case http.StateNew:
		s.open[c], c.came = struct{}{}, time.Now()
		if s.limit == 0 || len(s.open) <= s.limit {
			return nil
		}
		victim = c
		if oldest := s.idle.next; oldest != &s.idle {
			victim = oldest
			victim.leave()
		}
		victim.parting = true
		delete(s.open, victim)
		s.away++
		return victim
	case http.StateActive:
		s.busy++
		c.join(&s.active)
	case http.StateIdle:
		if !c.parting {
			c.join(&s.idle)
		}
	case http.StateClosed, http.StateHijacked:
		delete(s.open, c)
	}
	return nil
}

// join a ring, as its last.
func (c *conn) join(ring *conn) {
	c.prev, c.next = ring.prev, ring
	c.prev.next, c.next.prev = c, c
}

// leave the ring it is in, if it is in one.
func (c *conn) leave() {
	if c.next != nil {
		c.prev.next, c.next.prev = c.next, c.prev
		c.prev, c.next = nil, nil
	}
}

func (s *conns) quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy == 0
}

// closeUnused closes the connections that have no request under way, nor one that waits to be read.
func (s *conns) closeUnused() {
	for _, c := range s.those(func(c *conn) bool { return c.state != http.StateActive }) {
		if !c.waiting() {
			_ = c.Close() // the server, which reads from it, tells of the end
		}
	}
}

// closeUntouched closes the HTTP/1 connections that are idle and on which nothing has come, and says how many idle ones it found.
func (s *conns) closeUntouched() (found int) {
	idle := s.those(func(c *conn) bool { return c.state == http.StateIdle && !c.http2.Load() })
	for _, c := range idle {
		if c.untouched() {
			_ = c.Close() // the server, which reads from it, tells of the end
		}
	}
	return len(idle)
}

// expecting: a connection has just come whose first request is still on its way.
func (s *conns) expecting() bool {
	return len(s.those(func(c *conn) bool { return c.state == http.StateNew && time.Since(c.came) < firstRequest })) > 0
}

// those open connections of which is says so, at this moment.
func (s *conns) those(is func(*conn) bool) (all []*conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		if is(c) {
			all = append(all, c)
		}
	}
	return all
}

// count of open connections, and of those that were closed to keep the limit.
func (s *conns) count() (open int, turnedAway uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open), s.away
}
