package queueclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// ReadPayload of the fakes: what read says, from the leader.
func (n *fakeNode) ReadPayload(ctx context.Context, r *connect.Request[wire.ReadPayloadRequest], s *connect.ServerStream[wire.ReadPayloadResponse]) error {
	if !n.leads() {
		return n.refuse()
	}
	return n.read(ctx, r.Msg, func(data []byte) error { return s.Send(&wire.ReadPayloadResponse{Data: data}) })
}

func readAll(b *Body) ([]byte, error) {
	defer b.Close()
	var got []byte
	for {
		piece, err := b.Next()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		got = append(got, piece...)
	}
}

func TestABodyGoesOnAtTheNextLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	whole := bytes.Repeat([]byte("0123456789"), 100)
	for i, n := range c.nodes {
		n.read = func(_ context.Context, r *wire.ReadPayloadRequest, send func([]byte) error) error {
			if string(r.GetId()) != "id" || r.GetFence() != 7 {
				t.Errorf("asked for %q, fence %d", r.GetId(), r.GetFence())
			}
			if i == 2 {
				return send(whole[r.GetOffset():])
			}
			err := send(whole[r.GetOffset():][:100])
			c.lead(c.nodes[i+1])
			if i == 0 {
				return errors.Join(err, connect.NewError(connect.CodeUnavailable, errors.New("dying")))
			}
			return err // ends early, in order
		}
	}
	got, err := readAll(c.client(t).ReadBody(within(t, 10*time.Second), []byte("id"), 7, uint64(len(whole))))
	if err != nil || !bytes.Equal(got, whole) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestABodyThatNoNodeHasIsGivenUpAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	client := c.client(t)
	var asked atomic.Int32
	for name, answer := range map[string]func(func([]byte) error) error{
		"moved on":       func(func([]byte) error) error { return connect.NewError(connect.CodeNotFound, errors.New("moved on")) },
		"too much":       func(send func([]byte) error) error { return send(make([]byte, 11)) },
		"an empty piece": func(send func([]byte) error) error { return send(nil) },
	} {
		asked.Store(0)
		c.nodes[0].read = func(_ context.Context, _ *wire.ReadPayloadRequest, send func([]byte) error) error {
			asked.Add(1)
			return answer(send)
		}
		if got, err := readAll(client.ReadBody(within(t, 5*time.Second), []byte("id"), 7, 10)); err == nil || len(got) != 0 || asked.Load() != 1 {
			t.Errorf("%s: %d bytes, %v, asked %d times", name, len(got), err, asked.Load())
		}
	}
}

func TestCloseEndsANextUnderWay(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	under := make(chan struct{})
	c.nodes[0].read = func(ctx context.Context, _ *wire.ReadPayloadRequest, send func([]byte) error) error {
		err := send([]byte("x"))
		close(under)
		<-ctx.Done()
		return err
	}
	b := c.client(t).ReadBody(within(t, 10*time.Second), []byte("id"), 7, 10)
	done := make(chan error, 1)
	go func() {
		_, err := readAll(b)
		done <- err
	}()
	<-under
	b.Close()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
