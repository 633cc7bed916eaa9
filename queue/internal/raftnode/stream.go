package raftnode

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

// maxHandshakes is how many accepted connections may be in their handshake; more are closed. The nodes need a few.
const maxHandshakes = 64

// stream is how bytes travel between nodes: TCP, with TLS around it where the node has certificates. Raft itself asks nobody
// who he is: whoever gets through here can append to the log.
type stream struct {
	net.Listener
	advertise advertised
	// life ends dials under way when the node stops; the library's interface gives no context.
	life context.Context
	// tls is nil on an unencrypted stream.
	tls     *tlsconf.Files
	members *addresses

	server     *tls.Config
	handshakes atomic.Int32
}

var _ raft.StreamLayer = (*stream)(nil)

// advertised is a node's name for itself, host:port, never resolved here.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

func newStream(life context.Context, config Config, members *addresses) (*stream, error) {
	listener, err := (&net.ListenConfig{}).Listen(life, "tcp", config.ListenAddress)
	if err != nil {
		return nil, fmt.Errorf("listening for raft: %w", err)
	}
	self, _ := config.member(config.Name)
	s := &stream{
		Listener: listener, advertise: advertised(self.RaftAddress), life: life, tls: config.TLS, members: members,
	}
	if s.tls != nil {
		s.server = s.tls.Server(s.names)
	}
	return s, nil
}

// names of the members, listed or in the log, of which every peer must carry one.
func (s *stream) names() []string {
	members := s.members.all()
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.Name
	}
	return names
}

// Addr is what the others dial, not what is listened on.
func (s *stream) Addr() net.Addr { return s.advertise }

// Accept returns at once: the handshake is made by the goroutine that reads the connection, so that a peer that is slow with it
// holds up no other.
func (s *stream) Accept() (net.Conn, error) {
	for {
		conn, err := s.Listener.Accept()
		if err != nil || s.tls == nil {
			return conn, err
		}
		if s.handshakes.Add(1) > maxHandshakes {
			s.handshakes.Add(-1)
			_ = conn.Close()
			continue
		}
		return &accepted{Conn: tls.Server(conn, s.server), stream: s}, nil
	}
}

// Dial resolves the name each time: pods come back with other addresses. Who answers must be the member that was meant.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.life, timeout)
	defer cancel()
	host, _, _ := decodeAddress(address)
	dialled, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, err // the library names the step
	}
	c := &connection{Conn: dialled, forget: context.AfterFunc(s.life, func() { _ = dialled.Close() })}
	if s.tls == nil {
		return c, nil
	}
	secure := tls.Client(dialled, s.tls.Client(func() []string { return s.at(address) }))
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("TLS with %s: %w", address, err)
	}
	c.Conn = secure
	return c, nil
}

// at is the name of the member with this address; any member's when the address is nobody's, as of one that is just removed.
func (s *stream) at(address raft.ServerAddress) []string {
	host, _, _ := decodeAddress(address)
	for _, m := range s.members.all() {
		if m.RaftAddress == host {
			return []string{m.Name}
		}
	}
	return s.names()
}

// connection ends with the node's life: raft waits for its RPCs when it shuts down, and a hung peer answers none.
type connection struct {
	net.Conn
	forget func() bool
}

func (c *connection) Close() error {
	c.forget()
	return c.Conn.Close()
}

// accepted makes its handshake at the first Read, within ioTimeout; until then nothing it carries is looked at.
type accepted struct {
	*tls.Conn
	stream *stream
	once   sync.Once
	failed error
}

func (a *accepted) Read(p []byte) (int, error) {
	a.once.Do(func() {
		defer a.stream.handshakes.Add(-1)
		ctx, cancel := context.WithTimeout(a.stream.life, ioTimeout)
		defer cancel()
		if a.failed = a.HandshakeContext(ctx); a.failed != nil {
			a.failed = fmt.Errorf("TLS with %s: %w", a.RemoteAddr(), a.failed)
		}
	})
	if a.failed != nil {
		return 0, a.failed
	}
	return a.Conn.Read(p)
}

// Close of a connection that was never read gives its place among the handshakes back.
func (a *accepted) Close() error {
	a.once.Do(func() {
		a.stream.handshakes.Add(-1)
		a.failed = net.ErrClosed
	})
	return a.Conn.Close()
}
