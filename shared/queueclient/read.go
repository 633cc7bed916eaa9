package queueclient

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// GetCall reads one call; with wait_ms it answers when the call ends or that time is up.
func (c *Client) GetCall(ctx context.Context, r *wire.GetCallRequest) (*wire.GetCallResponse, error) {
	return ask(ctx, c, "reading a call", time.Duration(r.GetWaitMs())*time.Millisecond, func(ctx context.Context, n *node) (*connect.Response[wire.GetCallResponse], error) {
		return n.queue.GetCall(ctx, connect.NewRequest(r))
	})
}

// GetResult reads what the function answered to a call.
func (c *Client) GetResult(ctx context.Context, r *wire.GetResultRequest) (*wire.GetResultResponse, error) {
	return ask(ctx, c, "reading a result", 0, func(ctx context.Context, n *node) (*connect.Response[wire.GetResultResponse], error) {
		return n.queue.GetResult(ctx, connect.NewRequest(r))
	})
}

// ListDead reads a page of dead calls.
func (c *Client) ListDead(ctx context.Context, r *wire.ListDeadRequest) (*wire.ListDeadResponse, error) {
	return ask(ctx, c, "listing dead calls", 0, func(ctx context.Context, n *node) (*connect.Response[wire.ListDeadResponse], error) {
		return n.queue.ListDead(ctx, connect.NewRequest(r))
	})
}

// Facts reads sessions, locks, history and overrides.
func (c *Client) Facts(ctx context.Context) (*wire.FactsResponse, error) {
	return ask(ctx, c, "reading the facts", 0, func(ctx context.Context, n *node) (*connect.Response[wire.FactsResponse], error) {
		return n.queue.Facts(ctx, connect.NewRequest(&wire.FactsRequest{}))
	})
}

// Demand reads the demand of every function.
func (c *Client) Demand(ctx context.Context) (*wire.DemandReport, error) {
	return ask(ctx, c, "reading the demand", 0, func(ctx context.Context, n *node) (*connect.Response[wire.DemandReport], error) {
		return n.queue.Demand(ctx, connect.NewRequest(&wire.DemandRequest{}))
	})
}

// Heartbeat keeps the session of a scaler.
func (c *Client) Heartbeat(ctx context.Context, r *wire.HeartbeatRequest) (*wire.HeartbeatResponse, error) {
	return ask(ctx, c, "keeping the session", 0, func(ctx context.Context, n *node) (*connect.Response[wire.HeartbeatResponse], error) {
		return n.queue.Heartbeat(ctx, connect.NewRequest(r))
	})
}

// manyCallsWithin bounds what is done to every dead call of a function.
const manyCallsWithin = 60 * time.Second

// Redrive puts dead calls back. It is not repeated once it was handed over, for the sake of the count: ErrUnknown then.
func (c *Client) Redrive(ctx context.Context, r *wire.RedriveRequest) (*wire.RedriveResponse, error) {
	return askOnce(ctx, c, "redriving dead calls", manyCallsWithin, func(ctx context.Context, n *node) (*connect.Response[wire.RedriveResponse], error) {
		return n.queue.Redrive(ctx, connect.NewRequest(r))
	})
}

// Purge forgets dead calls. It is not repeated once it was handed over: ErrUnknown then.
func (c *Client) Purge(ctx context.Context, r *wire.PurgeRequest) (*wire.PurgeResponse, error) {
	return askOnce(ctx, c, "purging dead calls", manyCallsWithin, func(ctx context.Context, n *node) (*connect.Response[wire.PurgeResponse], error) {
		return n.queue.Purge(ctx, connect.NewRequest(r))
	})
}

// askOnce is ask for what must not be repeated: an attempt that may have been carried out is the last.
func askOnce[T any](ctx context.Context, c *Client, what string, patience time.Duration, call func(context.Context, *node) (*connect.Response[T], error)) (*T, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var broken error
	answer, err := ask(ctx, c, what, patience, func(ctx context.Context, n *node) (*connect.Response[T], error) {
		answer, err := call(ctx, n)
		if err == nil || final(err) || connect.CodeOf(err) == connect.CodeInvalidArgument {
			return answer, err
		}
		if _, elsewhere := notLeader(err); !elsewhere && !unsent(err) {
			broken = err
			stop()
		}
		return nil, err
	})
	if broken != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, ErrUnknown, broken)
	}
	return answer, err
}

// unsent says that no connection came about.
func unsent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// ask carries out something that may be repeated without harm through the leader, going on from one to the next until
// ctx ends, or until there has been none for LeaderWait. patience is added to the time of one attempt.
func ask[T any](ctx context.Context, c *Client, what string, patience time.Duration, call func(context.Context, *node) (*connect.Response[T], error)) (*T, error) {
	lost := time.Now() // since when there has been no leader
	fruitless := 0
	var last error
	for {
		url, err := c.leader.find(ctx)
		if err == nil {
			var answer *T
			began := time.Now()
			if answer, err = try(ctx, c, url, patience, call); err == nil {
				return answer, nil
			}
			if time.Since(began) > c.options.RPCTimeout/2 { // it was there, or seemed to be: the wait for one begins afresh
				lost = time.Now()
			}
			if final(err) || connect.CodeOf(err) == connect.CodeInvalidArgument {
				return nil, fmt.Errorf("%s: %w: %w", what, ErrNotHandedOver, err)
			}
		}
		if ctx.Err() == nil || last == nil { // the end of ctx is not the reason
			last = err
		}
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%s: %w (%w)", what, ctx.Err(), last)
		case c.life.Err() != nil:
			return nil, fmt.Errorf("%s: %w", what, ErrClosed)
		case time.Since(lost) > c.options.LeaderWait:
			return nil, fmt.Errorf("%s: %w (%w)", what, ErrNoLeader, last)
		case fruitless > 0 || errors.Is(err, ErrNoLeader):
			sleep(ctx, pause(fruitless))
		}
		fruitless++
	}
}

// try is one attempt at one node.
func try[T any](ctx context.Context, c *Client, url string, patience time.Duration, call func(context.Context, *node) (*connect.Response[T], error)) (*T, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.RPCTimeout+patience)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	answer, err := call(ctx, c.node(url))
	if err == nil {
		c.leader.answered(url)
		return answer.Msg, nil
	}
	if n, ok := notLeader(err); ok {
		c.leader.learn(url, n.GetLeaderApi())
	} else if !final(err) && connect.CodeOf(err) != connect.CodeCanceled {
		c.leader.failed(url)
	}
	return nil, err
}

// Cluster describes the members, in the words of the first node that answers; one that knows a leader is preferred.
func (c *Client) Cluster(ctx context.Context) (*wire.ClusterResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.RPCTimeout)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	type said struct {
		answer *wire.ClusterResponse
		err    error
	}
	all := make(chan said, len(c.options.Endpoints))
	var asked sync.WaitGroup
	for _, url := range c.options.Endpoints {
		asked.Go(func() {
			r, err := c.node(url).queue.Cluster(ctx, connect.NewRequest(&wire.ClusterRequest{}))
			if err != nil {
				all <- said{err: err}
				return
			}
			all <- said{answer: r.Msg}
		})
	}
	defer asked.Wait()
	defer cancel()
	var best *wire.ClusterResponse
	last := fmt.Errorf("no queue node is configured: %w", ErrNotHandedOver)
	for range c.options.Endpoints {
		s := <-all
		switch {
		case s.err != nil:
			last = s.err
		case s.answer.GetLeader() != "":
			return s.answer, nil
		case best == nil:
			best = s.answer
		}
	}
	if best == nil {
		return nil, fmt.Errorf("describing the cluster: %w", last)
	}
	return best, nil
}

// PullTable asks a queue node for its copy of the function table, what is newer than since or (nil) all of it; each call begins with
// another node and goes on to the next while none has answered. It has the shape table.Follower wants.
func (c *Client) PullTable(ctx context.Context, since *wire.Version) iter.Seq2[*wire.PullResponse, error] {
	return func(yield func(*wire.PullResponse, error) bool) {
		c.mu.Lock()
		first := c.pulls
		c.pulls++
		c.mu.Unlock()
		var err error
		for i := range c.options.Endpoints {
			n := c.node(c.options.Endpoints[(first+i)%len(c.options.Endpoints)])
			var answered, goOn bool
			if answered, goOn, err = n.pull(ctx, since, c.options.RPCTimeout, yield); err == nil || !goOn {
				return
			}
			if answered || ctx.Err() != nil { // half a table must not be taken for the beginning of another node's
				break
			}
		}
		if err == nil {
			err = fmt.Errorf("no queue node is configured: %w", ErrNotHandedOver)
		}
		yield(nil, fmt.Errorf("pulling the function table: %w", err))
	}
}

// pull yields the pages of one node. answered: a page came; goOn is false when the receiver has had enough.
func (n *node) pull(ctx context.Context, since *wire.Version, patience time.Duration, yield func(*wire.PullResponse, error) bool) (answered, goOn bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A node that does not begin is left; one that has begun is watched by its connection.
	slow := time.AfterFunc(patience, func() { cancel(fmt.Errorf("%s has not begun in %v", n.url, patience)) })
	defer slow.Stop()
	stream, err := n.table.Pull(ctx, connect.NewRequest(&wire.PullRequest{Since: since}))
	if err != nil {
		return false, true, cmp.Or(context.Cause(ctx), err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		slow.Stop()
		answered = true
		if !yield(stream.Msg(), nil) {
			return true, false, nil
		}
	}
	if err := stream.Err(); err != nil {
		return answered, true, cmp.Or(context.Cause(ctx), err)
	}
	return answered, true, nil
}

// Puller pulls tables from addresses that are not known beforehand: a queue node from the leading scaler. End it with Close.
type Puller struct {
	token string
	tls   *tls.Config
	http  *http.Client
}

// NewPuller makes a Puller that shows token. A nil configuration pulls unencrypted.
func NewPuller(token string, secure *tls.Config) *Puller {
	return &Puller{token: token, tls: secure, http: houseClient(secure)}
}

// Pull asks the TableService at api (host:port) as PullTable asks queue nodes.
func (p *Puller) Pull(ctx context.Context, api string, since *wire.Version) iter.Seq2[*wire.PullResponse, error] {
	return func(yield func(*wire.PullResponse, error) bool) {
		n := newNode(address(api, p.tls), p.token, p.http, p.http, p.http)
		if _, goOn, err := n.pull(ctx, since, RPCTimeout, yield); err != nil && goOn {
			yield(nil, fmt.Errorf("pulling the function table from %s: %w", api, err))
		}
	}
}

// Close closes idle connections.
func (p *Puller) Close() { p.http.CloseIdleConnections() }
