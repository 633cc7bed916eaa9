package queueclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// bodyWindow is how much of one body may be on its way to a reader that does not read, in bytes; net/http's 4 MiB would be
	// gigabytes with a few hundred slow functions.
	bodyWindow = 2 * wire.MaxFrame
	// bodyWait is how long a body may stand still because no node leads; longer, and its reader is told.
	bodyWait = 5 * time.Second
)

// bodyClient reads bodies on a connection of its own: their windows are smaller, and no heartbeat waits behind them.
func bodyClient(secure *tls.Config) *http.Client {
	c := houseClient(secure)
	if t, ok := c.Transport.(*http.Transport); ok {
		t.HTTP2.MaxReceiveBufferPerStream = bodyWindow
	}
	return c
}

// Body is the stored body of a call while its try runs, from the leader. It is for one goroutine, but for Close.
type Body struct {
	client *Client
	ctx    context.Context //nolint:containedctx // the reader's whole life, which ends with Close
	cancel context.CancelFunc
	unhook func() bool
	id     []byte
	fence  uint64
	size   uint64

	offset    uint64
	url       string
	stream    *connect.ServerStreamForClient[wire.ReadPayloadResponse] // nil: none is open
	hangUp    context.CancelFunc
	moved     time.Time // when the last piece came
	fruitless int       // attempts since
}

// ReadBody reads the body of size bytes of the call that this fence was granted for. Nothing is asked before the first Next. End it
// with Close.
func (c *Client) ReadBody(ctx context.Context, id []byte, fence, size uint64) *Body {
	ctx, cancel := context.WithCancel(ctx)
	return &Body{
		client: c, ctx: ctx, cancel: cancel, unhook: context.AfterFunc(c.life, cancel),
		id: id, fence: fence, size: size,
	}
}

// Next gives the next piece, io.EOF behind the last. Where the stream broke or the leader changed it goes on at the leader of
// then, for at most 5 s without a piece. Any other error is for good; nobody but the caller has the bytes so far.
func (b *Body) Next() ([]byte, error) {
	if b.offset == b.size {
		return nil, io.EOF
	}
	if b.moved.IsZero() {
		b.moved = time.Now()
	}
	for {
		data, err := b.piece()
		if err == nil {
			b.offset += uint64(len(data))
			b.moved, b.fruitless = time.Now(), 0
			return data, nil
		}
		switch {
		case b.client.life.Err() != nil:
			return nil, fmt.Errorf("reading a stored body: %w", ErrClosed)
		case b.ctx.Err() != nil:
			return nil, fmt.Errorf("reading a stored body: %w", b.ctx.Err())
		case over(err) || time.Since(b.moved) > bodyWait:
			return nil, fmt.Errorf("reading a stored body, %d of %d bytes came: %w", b.offset, b.size, err)
		case b.fruitless > 0 || errors.Is(err, ErrNoLeader):
			sleep(b.ctx, pause(b.fruitless))
		}
		b.fruitless++
	}
}

// piece of the stream, which is opened where none is. After an error there is none.
func (b *Body) piece() ([]byte, error) {
	if b.stream == nil {
		if err := b.open(); err != nil {
			return nil, err
		}
	}
	if b.stream.Receive() {
		data := b.stream.Msg().GetData()
		if len(data) > 0 && uint64(len(data)) <= b.size-b.offset {
			return data, nil
		}
		b.end()
		return nil, connect.NewError(connect.CodeDataLoss, fmt.Errorf("%s sent %d bytes where at most %d are left", b.url, len(data), b.size-b.offset))
	}
	err := b.stream.Err()
	if err == nil {
		err = fmt.Errorf("%s ended the stream early", b.url)
	}
	b.end()
	if n, ok := notLeader(err); ok {
		b.client.leader.learn(b.url, n.GetLeaderApi())
	} else if !over(err) && b.ctx.Err() == nil {
		b.client.leader.failed(b.url)
	}
	return nil, err
}

func (b *Body) open() error {
	url, err := b.client.leader.find(b.ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(b.ctx)
	stream, err := b.client.node(url).bodies.ReadPayload(ctx, connect.NewRequest(&wire.ReadPayloadRequest{Id: b.id, Fence: b.fence, Offset: b.offset}))
	if err != nil {
		cancel()
		if !over(err) && b.ctx.Err() == nil {
			b.client.leader.failed(url)
		}
		return err
	}
	b.url, b.stream, b.hangUp = url, stream, cancel
	return nil
}

func (b *Body) end() {
	b.hangUp()
	_ = b.stream.Close() // of a stream that is over
	b.stream = nil
}

// Close ends the reading, from any goroutine; a Next under way returns.
func (b *Body) Close() {
	b.unhook()
	b.cancel()
}

// over says that no other node, and no later time, brings the rest of the body.
func over(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeNotFound, connect.CodeInvalidArgument, connect.CodeInternal, connect.CodeDataLoss:
		return true
	}
	return final(err)
}
