package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

const (
	pullDial  = 500 * time.Millisecond
	pullPing  = time.Second // a source that is silent for so long is asked, and given up after as much again
	pullQuiet = 60 * time.Second
)

// Puller reads the function table for this node: from the leading scaler, else from another queue node that has it.
type Puller struct {
	client *http.Client
	token  string
	scheme string // http:// or https://
	// Leader gives host:port of the leading scaler's API; empty: none is known.
	leader func() string
	peers  func() []string // host:port of the other nodes' APIs, today
	next   int             // the peer to ask first
	failed string          // the leader's address, when it did not answer the last time
}

// NewPuller makes a puller that shows token. A nil configuration pulls unencrypted.
func NewPuller(token string, secure *tls.Config, leader func() string, peers func() []string) *Puller {
	var protocols http.Protocols
	protocols.SetHTTP2(secure != nil)
	protocols.SetUnencryptedHTTP2(secure == nil)
	scheme := "http://"
	if secure != nil {
		scheme = "https://"
	}
	transport := &http.Transport{
		Protocols:   &protocols,
		DialContext: (&net.Dialer{Timeout: pullDial}).DialContext,
		// Cloned: the transport adds what HTTP/2 needs to its own.
		TLSClientConfig:     secure.Clone(),
		TLSHandshakeTimeout: pullDial + pullPing,
		IdleConnTimeout:     pullQuiet,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pullPing, PingTimeout: pullPing},
	}
	return &Puller{client: &http.Client{Transport: transport}, token: token, scheme: scheme, leader: leader, peers: peers}
}

// Close the connections that are idle.
func (p *Puller) Close() { p.client.CloseIdleConnections() }

// Pull yields the pages of one source. After a failure it is called again, and asks the next one.
func (p *Puller) Pull(ctx context.Context, since *wire.Version) iter.Seq2[*wire.PullResponse, error] {
	return func(yield func(*wire.PullResponse, error) bool) {
		source := p.leader()
		if source == "" || source == p.failed {
			if peers := p.peers(); len(peers) > 0 {
				source = peers[p.next%len(peers)]
				p.next++
			}
		}
		p.failed = ""
		if source == "" {
			yield(nil, errors.New("no scaler leads, as far as this node knows"))
			return
		}
		if err := p.pull(ctx, source, since, yield); err != nil {
			p.failed = source
			yield(nil, fmt.Errorf("pulling from %s: %w", source, err))
		}
	}
}

// pull gives the pages of a source to yield until it wants no more.
func (p *Puller) pull(
	ctx context.Context, source string, since *wire.Version, yield func(*wire.PullResponse, error) bool,
) error {
	request := connect.NewRequest(&wire.PullRequest{Since: since})
	request.Header().Set("Authorization", "Bearer "+p.token)
	stream, err := wireconnect.NewTableServiceClient(p.client, p.scheme+source).Pull(ctx, request)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // read to its end, or given up
	for stream.Receive() {
		if !yield(stream.Msg(), nil) {
			return nil
		}
	}
	return stream.Err()
}

// Cluster asks another node, by host:port of its API, how it sees itself.
func (p *Puller) Cluster(ctx context.Context, address string) (*wire.ClusterResponse, error) {
	request := connect.NewRequest(&wire.ClusterRequest{})
	request.Header().Set("Authorization", "Bearer "+p.token)
	answer, err := wireconnect.NewQueueServiceClient(p.client, p.scheme+address).Cluster(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", address, err)
	}
	return answer.Msg, nil
}
