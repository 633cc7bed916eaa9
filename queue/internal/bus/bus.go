// Package bus embeds the NATS server that every queue node runs: core subjects only, clustered over all nodes, one account,
// one nkey per role with the subjects that role needs. It is the only package that imports nats-server.
package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// House values, with the reason where it is not obvious.
const (
	pingEvery   = 5 * time.Second // a silent cut is noticed after 10–15 s, not minutes
	pingsOut    = 2
	maxPending  = 8 << 20 // bytes waiting for one client; over it the client is cut as slow
	maxClients  = 4096    // edges and scalers, with room for reconnects after a fault
	maxSubs     = 64      // per client: fixed subjects and an inbox
	authTimeout = 2.0     // seconds
	tlsTimeout  = 2.0     // seconds for a handshake
	writeLimit  = 5 * time.Second

	lameDuckGrace = 100 * time.Millisecond // between the announcement and the first cut
	lameDuckSpan  = 600 * time.Millisecond // within which all clients are cut

	account    = "slimfaas"
	routesUser = "routes"
)

// Config of one node's server.
type Config struct {
	Node          string // name of this node, unique in the cluster
	ClientAddress string // host:port for clients; port 0 takes a free one
	RoutesAddress string // host:port for other nodes; not opened when there are neither Peers nor a RoutesPassword
	Peers         []string
	// RoutesPassword is what nodes show to one another.
	RoutesPassword string
	// Keys are the public nkeys of the roles; all of them are needed.
	Keys map[Role]string
	// ClientTLS and RoutesTLS are for clients and for the other nodes; nil: unencrypted. The node's own client, which uses no
	// socket, needs none.
	ClientTLS, RoutesTLS *tls.Config
	Log                  *slog.Logger
}

// Server is a running node of the bus.
type Server struct {
	nats *server.Server
}

// Start opens the listeners and returns when clients are accepted, at the latest after 10 s. Peers connect in their own time.
func Start(ctx context.Context, c Config) (*Server, error) {
	options, err := c.options()
	if err != nil {
		return nil, fmt.Errorf("configuring the bus: %w", err)
	}
	s, err := server.NewServer(options)
	if err != nil {
		return nil, fmt.Errorf("creating the bus: %w", err)
	}
	s.SetLoggerV2(logger{c.Log}, false, false, false)
	s.Start() // returns once the listeners' goroutines run; the server owns them until Shutdown
	deadline := time.Now().Add(10 * time.Second)
	for !s.ReadyForConnections(100 * time.Millisecond) {
		if ctx.Err() != nil || time.Now().After(deadline) || !s.Running() {
			s.Shutdown()
			s.WaitForShutdown()
			return nil, fmt.Errorf("starting the bus on %s and %s: listeners did not open (is a port taken?)", c.ClientAddress, c.RoutesAddress)
		}
	}
	return &Server{nats: s}, nil
}

func (c Config) options() (*server.Options, error) {
	host, port, err := splitAddress(c.ClientAddress)
	if err != nil {
		return nil, fmt.Errorf("client address: %w", err)
	}
	tenant := server.NewAccount(account)
	users := make([]*server.NkeyUser, 0, len(Roles))
	for _, r := range Roles {
		key := c.Keys[r]
		if key == "" {
			return nil, fmt.Errorf("public key of role %s is missing", r)
		}
		users = append(users, &server.NkeyUser{Nkey: key, Account: tenant, Permissions: permissions(r)})
	}
	o := &server.Options{
		ServerName: c.Node,
		Host:       host,
		Port:       port,
		NoSigs:     true, // the process handles signals, not the server
		Accounts:   []*server.Account{tenant},
		Nkeys:      users,
		// Nobody administers the server over the bus, so there is no account to break into.
		NoSystemAccount:     true,
		MaxPayload:          wire.MaxBusMessage,
		MaxPending:          maxPending,
		MaxConn:             maxClients,
		MaxSubs:             maxSubs,
		PingInterval:        pingEvery,
		MaxPingsOut:         pingsOut,
		AuthTimeout:         authTimeout,
		WriteDeadline:       writeLimit,
		LameDuckGracePeriod: lameDuckGrace,
		LameDuckDuration:    lameDuckSpan,
	}
	if c.ClientTLS != nil {
		o.TLSConfig, o.TLSTimeout = c.ClientTLS.Clone(), tlsTimeout
		o.TLSHandshakeFirst = true // nobody is told the server's version before he has shown a certificate
	}
	if len(c.Peers) == 0 && c.RoutesPassword == "" {
		return o, nil // alone, and nobody could be let in
	}
	if c.RoutesPassword == "" {
		return nil, errors.New("routes password is missing")
	}
	if host, port, err = splitAddress(c.RoutesAddress); err != nil {
		return nil, fmt.Errorf("routes address: %w", err)
	}
	o.Cluster = server.ClusterOpts{
		Name:           "slimfaas",
		Host:           host,
		Port:           port,
		Username:       routesUser,
		Password:       c.RoutesPassword,
		AuthTimeout:    authTimeout,
		NoAdvertise:    true, // clients keep to the addresses they were given
		PoolSize:       1,    // the traffic is small
		PingInterval:   pingEvery,
		MaxPingsOut:    pingsOut,
		ConnectBackoff: true,
	}
	if c.RoutesTLS != nil {
		o.Cluster.TLSConfig, o.Cluster.TLSTimeout = c.RoutesTLS.Clone(), tlsTimeout
	}
	for _, p := range c.Peers {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: p, User: url.UserPassword(routesUser, c.RoutesPassword)})
	}
	return o, nil
}

// splitAddress takes host:port apart in the server's terms: every interface is spelled out, a free port is -1.
func splitAddress(address string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	if host == "" {
		host = "0.0.0.0"
	}
	if port, err = strconv.Atoi(p); err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("%q is not a port", p)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

// Ready says why clients cannot be served, or nil.
func (s *Server) Ready() error {
	if !s.nats.Running() || !s.nats.ReadyForConnections(time.Millisecond) {
		return errors.New("bus: not accepting clients")
	}
	return nil
}

// Peers names the other nodes with an open route, sorted. Routes are counted by node: one node may have several connections.
func (s *Server) Peers() []string {
	routes, err := s.nats.Routez(nil)
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(routes.Routes))
	for _, r := range routes.Routes {
		names = append(names, r.RemoteName)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Clients counts open client connections.
func (s *Server) Clients() int { return s.nats.NumClients() }

// SlowConsumers counts clients that were cut because they did not read.
func (s *Server) SlowConsumers() int64 { return s.nats.NumSlowConsumers() }

// URL is where a client on this machine connects.
func (s *Server) URL() string {
	a, ok := s.nats.Addr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	host := a.IP.String()
	if a.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "nats://" + net.JoinHostPort(host, strconv.Itoa(a.Port))
}

// LameDuck refuses new clients, asks the others to go elsewhere, cuts who stays, and shuts down. It takes under a second.
func (s *Server) LameDuck() {
	s.nats.LameDuckShutdown()
	s.nats.WaitForShutdown()
}

// Stop shuts down at once; after LameDuck it does nothing.
func (s *Server) Stop() {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
}

// InProcessConn connects the node's own client without a socket.
func (s *Server) InProcessConn() (net.Conn, error) { return s.nats.InProcessConn() }
