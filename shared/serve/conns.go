package serve

import (
	"container/list"
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

	mu     sync.Mutex // guards all below
	busy   map[net.Conn]struct{}
	idle   *list.List // of net.Conn, longest idle first
	places map[net.Conn]*list.Element
	open   map[net.Conn]struct{}
	fresh  map[net.Conn]time.Time // those without a request yet, and since when
	away   uint64
}

func newConns(limit int) *conns {
	return &conns{limit: limit, busy: map[net.Conn]struct{}{}, idle: list.New(), places: map[net.Conn]*list.Element{}, open: map[net.Conn]struct{}{}, fresh: map[net.Conn]time.Time{}}
}

// note is http.Server's ConnState. A connection is busy while it has a request under way, its headers included; an HTTP/2
// connection is idle while it has no stream.
func (s *conns) note(c net.Conn, state http.ConnState) {
	if ours := under(c); ours != nil {
		ours.note(state)
	}
	if victim := s.change(c, state); victim != nil {
		_ = victim.Close() // the server, which reads from it, tells of the end
	}
}

// change takes the state over, and returns the connection that must go where there is one more than may be: the one that has
// been idle for longest, or, where all are in use, the new one.
func (s *conns) change(c net.Conn, state http.ConnState) (victim net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if place := s.places[c]; place != nil {
		s.idle.Remove(place)
		delete(s.places, c)
	}
	delete(s.busy, c)
	delete(s.fresh, c)
	switch state {
	case http.StateNew:
		s.open[c], s.fresh[c] = struct{}{}, time.Now()
		if s.limit == 0 || len(s.open) <= s.limit {
			return nil
		}
		victim = c
		if oldest := s.idle.Front(); oldest != nil {
			victim = s.idle.Remove(oldest).(net.Conn)
			delete(s.places, victim)
		}
		delete(s.open, victim)
		delete(s.fresh, victim)
		s.away++
		return victim
	case http.StateActive:
		s.busy[c] = struct{}{}
	case http.StateIdle:
		if _, open := s.open[c]; open { // not one that is being closed
			s.places[c] = s.idle.PushBack(c)
		}
	case http.StateClosed, http.StateHijacked:
		delete(s.open, c)
	}
	return nil
}

func (s *conns) quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.busy) == 0
}

// closeUnused closes the connections that have no request under way, nor one that waits to be read.
func (s *conns) closeUnused() {
	s.mu.Lock()
	var unused []net.Conn
	for c := range s.open {
		if _, busy := s.busy[c]; !busy {
			unused = append(unused, c)
		}
	}
	s.mu.Unlock()
	for _, c := range unused {
		if ours := under(c); ours != nil && ours.waiting() {
			continue
		}
		_ = c.Close() // the server, which reads from it, tells of the end
	}
}

// closeUntouched closes the HTTP/1 connections that are idle and on which nothing has come, and says how many idle ones it found.
func (s *conns) closeUntouched() (found int) {
	s.mu.Lock()
	var idle []net.Conn
	for place := s.idle.Front(); place != nil; place = place.Next() {
		if c := place.Value.(net.Conn); under(c) != nil && !under(c).http2.Load() {
			idle = append(idle, c)
		}
	}
	s.mu.Unlock()
	for _, c := range idle {
		if under(c).untouched() {
			_ = c.Close() // the server, which reads from it, tells of the end
		}
	}
	return len(idle)
}

// expecting: a connection has just come whose first request is still on its way.
func (s *conns) expecting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, since := range s.fresh {
		if time.Since(since) < firstRequest {
			return true
		}
	}
	return false
}

// count of open connections, and of those that were closed to keep the limit.
func (s *conns) count() (open int, turnedAway uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open), s.away
}
