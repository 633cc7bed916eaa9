package queueclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// deliverLast is the longest pause between two attempts to open the stream.
const deliverLast = time.Second

// Stream is an open Deliver stream. Send and Receive may run at the same time, each from one goroutine at a time.
type Stream struct {
	client *Client
	url    string
	conn   *connect.BidiStreamForClient[wire.DeliverUp, wire.DeliverDown]
	cancel context.CancelFunc
	unhook func() bool
	once   sync.Once
}

// Deliver opens the stream to the leader, the last known first, and returns it with the node's address. While there is no leader, or
// streams keep ending before their Welcome, it waits 50 ms doubling to 1 s, until ctx ends. ctx bounds the life of the stream
// too. Whether the node still leads shows in the first Receive.
func (c *Client) Deliver(ctx context.Context) (*Stream, string, error) {
	for {
		c.mu.Lock()
		failed := c.failedStreams
		c.failedStreams++ // a Welcome makes it 0
		c.mu.Unlock()
		if failed > 1 { // the first NotLeader is followed at once
			sleep(ctx, min(backoffFirst<<min(failed-2, 10), deliverLast))
		}
		url, err := c.leader.find(ctx)
		switch {
		case c.life.Err() != nil:
			return nil, "", fmt.Errorf("opening the delivery stream: %w", ErrClosed)
		case ctx.Err() != nil:
			return nil, "", fmt.Errorf("opening the delivery stream: %w", ctx.Err())
		case err != nil:
			continue
		}
		life, cancel := context.WithCancel(ctx)
		conn := c.node(url).streams.Deliver(life)
		// HTTP/2 looks at the context of a request only when it is not reading the request's body: end that as well.
		context.AfterFunc(life, func() { _ = conn.CloseRequest() })
		return &Stream{client: c, url: url, conn: conn, cancel: cancel, unhook: context.AfterFunc(c.life, cancel)}, url, nil
	}
}

// Send sends one message up. After an error the stream is over; Receive says why.
func (s *Stream) Send(m *wire.DeliverUp) error {
	if err := s.conn.Send(m); err != nil {
		return fmt.Errorf("sending to %s: %w", s.url, err)
	}
	return nil
}

// Receive returns the next message. What it learns about the leader, the next Deliver knows.
func (s *Stream) Receive() (*wire.DeliverDown, error) {
	m, err := s.conn.Receive()
	if err != nil {
		n, refused := notLeader(err)
		switch {
		case refused:
			s.client.leader.learn(s.url, n.GetLeaderApi())
		case errors.Is(err, io.EOF): // it ends its office, or itself, in order
			s.client.leader.learn(s.url, "")
		case connect.CodeOf(err) != connect.CodeCanceled: // which is ours
			s.client.leader.failed(s.url)
		}
		return nil, fmt.Errorf("receiving from %s: %w", s.url, err)
	}
	switch {
	case m.GetWelcome() != nil:
		s.client.leader.answered(s.url)
		s.client.mu.Lock()
		s.client.failedStreams = 0
		s.client.mu.Unlock()
	case m.GetNotLeader() != nil:
		s.client.leader.learn(s.url, m.GetNotLeader().GetLeaderApi())
	}
	return m, nil
}

// CloseRequest says that nothing more is sent; what comes down can still be received.
func (s *Stream) CloseRequest() error { return s.conn.CloseRequest() }

// CloseResponse ends the stream at once. It may be called more than once.
func (s *Stream) CloseResponse() error {
	var err error
	s.once.Do(func() {
		s.unhook()
		s.cancel()
		err = s.conn.CloseResponse()
	})
	return err
}
