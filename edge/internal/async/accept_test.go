package async

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestAnAcceptedCallIsWholeInTheQueue(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	var got *wire.Accept
	var frames int
	q.submit = func(op *wire.Op) (*wire.OpResult, error) {
		if a := op.GetAccept(); a != nil {
			got = a
		} else {
			got.Payload = append(got.Payload, op.GetAcceptFrame().GetData()...)
			frames++
		}
		return &wire.OpResult{Code: wire.Code_CODE_OK, Index: 7}, nil
	}
	for _, size := range []int{0, 10, wire.MaxFrame, 1 << 20} {
		frames = 0
		request := &wire.StoredRequest{Method: "POST", Path: "/a%20b", Query: "x", Body: make([]byte, size), Headers: []*wire.Header{{Name: "A", Values: []string{"b"}}}}
		text, err := Accepter{Do: q.client().Do}.Accept(t.Context(), "f", request, message.CallOptions{})
		if err != nil {
			t.Fatal(err)
		}
		id, err := message.ParseID(text)
		if err != nil || string(got.GetId()) != string(id[:]) || got.GetFunction() != "f" || got.GetSize() != uint64(len(got.GetPayload())) {
			t.Errorf("id %q (%v), accept of %q, %d of %d bytes", text, err, got.GetFunction(), len(got.GetPayload()), got.GetSize())
		}
		var back wire.StoredRequest
		if err := proto.Unmarshal(got.GetPayload(), &back); err != nil || !proto.Equal(&back, request) {
			t.Errorf("%d bytes came back as %v: %v", size, back.GetPath(), err)
		}
		if large := size >= wire.MaxFrame; large != (frames > 0) {
			t.Errorf("%d bytes travelled in %d further frames", size, frames)
		}
	}
}

func TestWhatACallerAsksForReachesTheQueue(t *testing.T) {
	t.Parallel()
	var got *wire.Accept
	first, _ := message.NewID()
	a := Accepter{Do: func(_ context.Context, op *wire.Op) (*wire.OpResult, error) {
		got = op.GetAccept()
		return &wire.OpResult{Code: wire.Code_CODE_OK, Repeated: true, Id: first[:]}, nil
	}}
	id, err := a.Accept(t.Context(), "f", post("/"), message.CallOptions{
		Delay: time.Nanosecond, MaxAge: time.Hour, KeepResult: 90 * time.Second, Key: "k",
	})
	if err != nil || id != first.String() {
		t.Errorf("id %s (%v), want that of the first call, %s", id, err, first)
	}
	if got.GetDelayMs() != 1 || got.GetMaxAgeMs() != 3_600_000 || got.GetKeepResultMs() != 90_000 || got.GetIdempotencyKey() != "k" {
		t.Errorf("accept %v", got)
	}
	hash := message.Fingerprint(post("/"))
	if !bytes.Equal(got.GetRequestHash(), hash[:]) {
		t.Errorf("hash %x, want %x", got.GetRequestHash(), hash)
	}
}

func TestOutcomesOfAnAccept(t *testing.T) {
	t.Parallel()
	answer := func(code wire.Code) Do {
		return func(context.Context, *wire.Op) (*wire.OpResult, error) { return &wire.OpResult{Code: code}, nil }
	}
	fail := func(err error) Do {
		return func(context.Context, *wire.Op) (*wire.OpResult, error) { return nil, err }
	}
	for name, c := range map[string]struct {
		do      Do
		code    wire.Code
		unknown bool
	}{
		"full":                {answer(wire.Code_CODE_FULL), wire.Code_CODE_FULL, false},
		"too large":           {answer(wire.Code_CODE_TOO_LARGE), wire.Code_CODE_TOO_LARGE, false},
		"not handed over":     {answer(wire.Code_CODE_UNAVAILABLE), wire.Code_CODE_UNAVAILABLE, false},
		"a key reused":        {answer(wire.Code_CODE_CONFLICT), wire.Code_CODE_CONFLICT, false},
		"invalid":             {answer(wire.Code_CODE_INVALID), wire.Code_CODE_INVALID, false},
		"unknown":             {answer(wire.Code_CODE_UNKNOWN), wire.Code_CODE_UNKNOWN, true},
		"a bug":               {answer(wire.Code_CODE_INTERNAL), wire.Code_CODE_INTERNAL, true},
		"a code of later":     {answer(wire.Code(99)), wire.Code(99), true},
		"client: none":        {fail(fmt.Errorf("x: %w", queueclient.ErrNotHandedOver)), wire.Code_CODE_UNAVAILABLE, false},
		"client: no leader":   {fail(queueclient.ErrNoLeader), wire.Code_CODE_UNAVAILABLE, false},
		"client: full":        {fail(queueclient.ErrFull), wire.Code_CODE_FULL, false},
		"client: unknown":     {fail(fmt.Errorf("x: %w", queueclient.ErrUnknown)), wire.Code_CODE_UNKNOWN, true},
		"client: what is it?": {fail(errFake), wire.Code_CODE_UNKNOWN, true},
	} {
		_, err := Accepter{Do: c.do}.Accept(t.Context(), "f", post("/"), message.CallOptions{})
		var refused *RefusedError
		if !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, bad := message.ParseID(refused.ID()); refused.Code() != c.code || refused.Unknown() != c.unknown || bad != nil {
			t.Errorf("%s: code %v, unknown %v, id %q", name, refused.Code(), refused.Unknown(), refused.ID())
		}
	}
	_, err := Accepter{Do: answer(wire.Code_CODE_OK)}.Accept(t.Context(), "f", &wire.StoredRequest{Body: make([]byte, wire.MaxPayload+1)}, message.CallOptions{})
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Code() != wire.Code_CODE_TOO_LARGE || refused.Unknown() {
		t.Errorf("over the limit: %v", err)
	}
}
