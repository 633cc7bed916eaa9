package raftnode

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// stream is how bytes travel between nodes: plain TCP here, TLS takes its place with the queue issue.
type stream struct {
	net.Listener
	advertise advertised
	// life ends dials under way when the node stops; the library's interface gives no context.
	life context.Context
}

var _ raft.StreamLayer = (*stream)(nil)

// advertised is a node's name for itself, host:port, never resolved here.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

func newStream(life context.Context, config Config) (*stream, error) {
	listener := config.Listener
	if listener == nil {
		var err error
		if listener, err = (&net.ListenConfig{}).Listen(life, "tcp", config.ListenAddress); err != nil {
			return nil, fmt.Errorf("listening for raft: %w", err)
		}
	}
	self, _ := config.member(config.Name)
	return &stream{Listener: listener, advertise: advertised(self.RaftAddress), life: life}, nil
}

// Addr is what the others dial, not what is listened on.
func (s *stream) Addr() net.Addr { return s.advertise }

// Dial resolves the name each time: pods come back with other addresses.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	dialled, err := (&net.Dialer{Timeout: timeout}).DialContext(s.life, "tcp", string(address))
	if err != nil {
		return nil, err // the library names the step
	}
	return &connection{Conn: dialled, forget: context.AfterFunc(s.life, func() { _ = dialled.Close() })}, nil
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

// addresses by name from the configuration of this start: those in the log are of the first one.
type addresses []Member

func (a addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	for _, m := range a {
		if m.Name == string(id) {
			return raft.ServerAddress(m.RaftAddress), nil
		}
	}
	return "", fmt.Errorf("node %q is not a member", id)
}
