// Package async is both ends of an asynchronous call at the edge: taking it, which ends with the queue's word that it is
// durable, and delivering it, which is one stream to the queue leader over which tries come and results go.
package async

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
	"google.golang.org/protobuf/proto"
)

// AcceptWithin is how long the queue may take to say yes before the caller gets an answer anyway.
const AcceptWithin = 5 * time.Second

// Do hands one operation to the queue leader; queueclient.Client has it.
type Do func(context.Context, *wire.Op) (*wire.OpResult, error)

// RefusedError says that Accept has no yes to give.
type RefusedError struct {
	id      message.ID
	code    wire.Code
	unknown bool
	err     error
}

func (e *RefusedError) Error() string {
	outcome := "nothing was handed over"
	if e.unknown {
		outcome = "handed over, outcome unknown"
	}
	return fmt.Sprintf("accepting call %s (%s): %v", e.id, outcome, e.err)
}

// Unwrap gives the reason.
func (e *RefusedError) Unwrap() error { return e.err }

// ID is the call's, also when it does not exist.
func (e *RefusedError) ID() string { return e.id.String() }

// Code says why.
func (e *RefusedError) Code() wire.Code { return e.code }

// Unknown says that the call was handed over and may have been committed; else it does not exist.
func (e *RefusedError) Unknown() bool { return e.unknown }

// Accepter takes calls.
type Accepter struct {
	Do Do
	// Runs delivers calls; where one waits for nothing, its first try comes with the answer. Nil: it never does.
	Runs *Deliverer
}

// Accept enqueues a call of a function and returns its id when the queue has it durably, at most AcceptWithin later. The error is a
// *RefusedError wherever the call got as far as an id.
// With an idempotency key that was used for the same request the id is that call's, and nothing was enqueued.
func (a Accepter) Accept(ctx context.Context, function string, request *wire.StoredRequest, o message.CallOptions) (string, error) {
	id, err := message.NewID()
	if err != nil {
		return "", err
	}
	refuse := func(code wire.Code, unknown bool, err error) (string, error) {
		return "", &RefusedError{id: id, code: code, unknown: unknown, err: err}
	}
	payload, err := proto.Marshal(request)
	if err != nil {
		return refuse(wire.Code_CODE_INVALID, false, fmt.Errorf("encoding the request: %w", err))
	}
	if len(payload) > wire.MaxPayload {
		return refuse(wire.Code_CODE_TOO_LARGE, false, fmt.Errorf("the request with its headers takes %d bytes of at most %d", len(payload), wire.MaxPayload))
	}
	accept := acceptOf(id, function, payload, o)
	if o.Key != "" {
		hash := message.Fingerprint(request)
		accept.IdempotencyKey, accept.RequestHash = o.Key, hash[:]
	}
	return a.handOver(ctx, id, accept)
}

func acceptOf(id message.ID, function string, payload []byte, o message.CallOptions) *wire.Accept {
	return &wire.Accept{
		Id: id[:], Function: function, Payload: payload, Size: uint64(len(payload)),
		DelayMs: milliseconds(o.Delay), MaxAgeMs: milliseconds(o.MaxAge), KeepResultMs: milliseconds(o.KeepResult),
	}
}

// handOver gives the accept to the queue, and says what became of it.
func (a Accepter) handOver(ctx context.Context, id message.ID, accept *wire.Accept) (string, error) {
	refuse := func(code wire.Code, unknown bool, err error) (string, error) {
		return "", &RefusedError{id: id, code: code, unknown: unknown, err: err}
	}
	if a.Runs != nil && accept.GetParts() == 0 && accept.GetDelayMs() == 0 {
		accept.RunSession = a.Runs.Expect(id)
	}
	if accept.GetRunSession() != 0 {
		// Not given up with the caller: the try in an answer that nobody waits for would be late by two heartbeats.
		ctx = a.Runs.accepts.within(AcceptWithin)
	} else {
		bounded, cancel := context.WithTimeout(ctx, AcceptWithin)
		defer cancel()
		ctx = bounded
	}
	result, err := a.Do(ctx, &wire.Op{Op: &wire.Op_Accept{Accept: accept}})
	if session := accept.GetRunSession(); session != 0 {
		try := result.GetRun()
		if try != nil {
			try.Payload, try.Size = accept.GetPayload(), uint64(len(accept.GetPayload()))
		}
		a.Runs.Expected(id, session, try)
	}
	switch {
	case errors.Is(err, queueclient.ErrFull):
		return refuse(wire.Code_CODE_FULL, false, err)
	case errors.Is(err, queueclient.ErrNotHandedOver):
		return refuse(wire.Code_CODE_UNAVAILABLE, false, err)
	case err != nil:
		// What cannot be told from "handed over" must not be called a failure.
		return refuse(wire.Code_CODE_UNKNOWN, true, err)
	}
	switch code := result.GetCode(); code {
	case wire.Code_CODE_OK:
		if first := result.GetId(); len(first) == len(id) {
			id = message.ID(first)
		}
		return id.String(), nil
	case wire.Code_CODE_CONFLICT, wire.Code_CODE_INVALID, wire.Code_CODE_TOO_LARGE, wire.Code_CODE_FULL, wire.Code_CODE_UNAVAILABLE:
		return refuse(code, false, fmt.Errorf("the queue answered %v: %s", code, result.GetDetail()))
	default:
		return refuse(code, true, fmt.Errorf("the queue answered %v: %s", code, result.GetDetail()))
	}
}

// milliseconds, rounded up: a little is not nothing.
func milliseconds(d time.Duration) uint64 {
	return uint64((d + time.Millisecond - 1) / time.Millisecond)
}
