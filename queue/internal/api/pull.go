package api

import (
	"context"
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
	// Leader gives host:port of the leading scaler's API; empty: none is known.
	leader func() string
	peers  []string // host:port of the other nodes' APIs
	next   int      // the peer to ask first
	failed string   // the leader's address, when it did not answer the last time
}

// NewPuller makes a puller that shows token.
func NewPuller(token string, leader func() string, peers []string) *Puller {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols:       &protocols,
		DialContext:     (&net.Dialer{Timeout: pullDial}).DialContext,
		IdleConnTimeout: pullQuiet,
		HTTP2:           &http.HTTP2Config{SendPingTimeout: pullPing, PingTimeout: pullPing},
	}
	return &Puller{client: &http.Client{Transport: transport}, token: token, leader: leader, peers: peers}
}

// Close the connections that are idle.
func (p *Puller) Close() { p.client.CloseIdleConnections() }

// Pull yields the pages of one source. After a failure it is called again, and asks the next one.
func (p *Puller) Pull(ctx context.Context, since *wire.Version) iter.Seq2[*wire.PullResponse, error] {
	return func(yield func(*wire.PullResponse, error) bool) {
		source := p.leader()
		if (source == "" || source == p.failed) && len(p.peers) > 0 {
			source = p.peers[p.next%len(p.peers)]
			p.next++
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
	stream, err := wireconnect.NewTableServiceClient(p.client, "http://"+source).Pull(ctx, request)
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
