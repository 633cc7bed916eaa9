// Package queueclient is how edges and scalers talk to the queue: it finds the leader, groups operations into few calls, and
// is honest about outcomes. An operation ends with a result, or was not handed over (nothing happened), or it is unknown
// whether it was carried out. Nothing else.
package queueclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

// Errors of Do and of the readers. Others (a wrong token, say) wrap ErrNotHandedOver too.
var (
	// ErrNotHandedOver: nothing happened, and nothing will.
	ErrNotHandedOver = errors.New("not handed over to the queue")
	// ErrUnknown: the queue may have carried it out, now or in a moment.
	ErrUnknown = errors.New("handed over to the queue, outcome unknown")
	// ErrNoLeader: no node knows a leader, for as long as a caller waits for one.
	ErrNoLeader = fmt.Errorf("the queue has no leader: %w", ErrNotHandedOver)
	// ErrFull: too much waits to be sent already.
	ErrFull = fmt.Errorf("too many operations wait for the queue: %w", ErrNotHandedOver)
	// ErrClosed: Close was called.
	ErrClosed = fmt.Errorf("the queue client is closed: %w", ErrNotHandedOver)
)

// House values.
const (
	// LeaderWait is how long a caller waits while no node knows a leader, unless Options say otherwise: an election and a half.
	LeaderWait = 2 * time.Second
	// RPCTimeout of one attempt, after which the next node is asked.
	RPCTimeout = 2 * time.Second
	// MaxWaitingOps and MaxWaitingBytes bound what waits to be sent.
	MaxWaitingOps   = 1 << 16
	MaxWaitingBytes = 64 << 20

	dialTimeout      = time.Second
	handshakeTimeout = 2 * time.Second
	// A connection on which nothing comes for pingAfter is asked, and cut without an answer in pingTimeout: a paused node breaks
	// streams within 2.5 s.
	pingAfter   = time.Second
	pingTimeout = 1500 * time.Millisecond
	// maxMessage is the largest answer read, in bytes.
	maxMessage = 32 << 20
	// While there is no leader it is looked for after backoffFirst, doubling to backoffLast.
	backoffFirst = 50 * time.Millisecond
	backoffLast  = 250 * time.Millisecond
	// maxNodes bounds the addresses that are kept, configured and learned.
	maxNodes = 32
)

// Options of New.
type Options struct {
	Endpoints []string // http://host:port or https://host:port of queue nodes; one that answers is enough
	Token     string   // the role's bearer token
	Name      string   // of this process, for logs
	Log       *slog.Logger
	// TLS, when set, is used for every node whatever the scheme of its endpoint says; nil: unencrypted.
	TLS *tls.Config
	// LeaderWait bounds the wait for a leader; 0: 2 s.
	LeaderWait time.Duration
	// RPCTimeout bounds one attempt; 0: 2 s.
	RPCTimeout time.Duration
}

// Client is safe for concurrent use. It has no goroutine of its own while nothing is under way. Make it with New, end it with
// Close.
type Client struct {
	options Options
	calls   *http.Client // short calls
	streams *http.Client // deliveries and pulls, on connections of their own
	bodies  *http.Client // stored bodies, likewise
	life    context.Context
	end     context.CancelFunc
	work    sync.WaitGroup
	leader  finder
	batcher batcher

	mu            sync.Mutex // guards the fields below
	nodes         map[string]*node
	ended         bool // no goroutine is added to work any more
	pulls         int  // counts pulls, so that each begins with another node
	failedStreams int  // delivery streams in a row that did not come to their Welcome
}

// node is one queue node's API.
type node struct {
	url     string
	queue   wireconnect.QueueServiceClient
	streams wireconnect.QueueServiceClient
	bodies  wireconnect.QueueServiceClient
	table   wireconnect.TableServiceClient
}

// New makes a client; it connects when it is used.
func New(o Options) *Client {
	if o.LeaderWait == 0 {
		o.LeaderWait = LeaderWait
	}
	if o.RPCTimeout == 0 {
		o.RPCTimeout = RPCTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{options: o, calls: houseClient(o.TLS), streams: houseClient(o.TLS), bodies: bodyClient(o.TLS), nodes: map[string]*node{}}
	c.options.Endpoints = make([]string, len(o.Endpoints))
	for i, endpoint := range o.Endpoints {
		c.options.Endpoints[i] = address(endpoint, o.TLS)
	}
	// Batches outlive the callers in them, who may give up; Close ends what is left.
	c.life, c.end = context.WithCancel(context.Background())
	c.leader.client, c.batcher.client = c, c
	c.leader.suspects = map[string]time.Time{}
	c.batcher.lastContact = time.Now()
	return c
}

func houseClient(secure *tls.Config) *http.Client {
	var protocols http.Protocols
	protocols.SetHTTP2(secure != nil)
	protocols.SetUnencryptedHTTP2(secure == nil)
	return &http.Client{Transport: &http.Transport{
		Protocols:   &protocols,
		DialContext: (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		// Cloned: the transport adds what HTTP/2 needs to its own.
		TLSClientConfig:     secure.Clone(),
		TLSHandshakeTimeout: handshakeTimeout,
		DisableCompression:  true,
		IdleConnTimeout:     90 * time.Second,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:  pingAfter,
			PingTimeout:      pingTimeout,
			WriteByteTimeout: pingTimeout,
		},
	}}
}

// Close cuts what is under way, waits for it, and closes the connections. Operations that were not sent end with ErrClosed,
// those that were with ErrUnknown.
func (c *Client) Close() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.end()
	c.work.Wait()
	c.batcher.failAll(ErrClosed)
	c.calls.CloseIdleConnections()
	c.streams.CloseIdleConnections()
	c.bodies.CloseIdleConnections()
}

// run starts f in a goroutine that Close waits for; false after Close.
func (c *Client) run(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.work.Go(f)
	return true
}

// node returns the stubs of an address.
func (c *Client) node(url string) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.nodes[url]; n != nil {
		return n
	}
	if len(c.nodes) >= maxNodes { // addresses come and go; the few that are needed come back
		clear(c.nodes)
	}
	n := newNode(url, c.options.Token, c.calls, c.streams, c.bodies)
	c.nodes[url] = n
	return n
}

func newNode(url, token string, calls, streams, bodies *http.Client) *node {
	options := []connect.ClientOption{
		connect.WithCodec(wire.Codec{}),
		connect.WithInterceptors(bearer(token)),
		connect.WithReadMaxBytes(maxMessage),
		connect.WithAcceptCompression("gzip", nil, nil), // a millisecond saved on the wire is not worth two of CPU
	}
	return &node{
		url:     url,
		queue:   wireconnect.NewQueueServiceClient(calls, url, options...),
		streams: wireconnect.NewQueueServiceClient(streams, url, options...),
		bodies:  wireconnect.NewQueueServiceClient(bodies, url, options...),
		table:   wireconnect.NewTableServiceClient(streams, url, options...),
	}
}

// bearer puts the role's token on every call.
type bearer string

func (b bearer) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		r.Header().Set("Authorization", "Bearer "+string(b))
		return next(ctx, r)
	}
}

func (b bearer) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, s connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, s)
		conn.RequestHeader().Set("Authorization", "Bearer "+string(b))
		return conn
	}
}

func (b bearer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// notLeader finds the detail of a node that does not lead.
func notLeader(err error) (*wire.NotLeader, bool) {
	var broken *connect.Error
	if !errors.As(err, &broken) {
		return nil, false
	}
	for _, detail := range broken.Details() {
		if value, err := detail.Value(); err == nil {
			if n, ok := value.(*wire.NotLeader); ok {
				return n, true
			}
		}
	}
	return nil, false
}

// final says whether asking again, here or elsewhere, would end the same: the call was refused before anything was done.
func final(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeUnimplemented:
		return true
	}
	return false
}
