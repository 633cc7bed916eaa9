package async

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
	"google.golang.org/protobuf/proto"
)

const (
	// partsPerUpload are under way at one time: while one is written to disks, the next travels.
	partsPerUpload = 2
	// partsPerEdge are under way at one time, of all uploads together: what everybody else hands to the queue waits behind that
	// many at most.
	partsPerEdge = 2
	// partWithin bounds the sending of one part, changes of the leader included.
	partWithin = 20 * time.Second
	// partFromCaller is how long a caller may take for one part; the queue drops an upload that stands still longer (60 s).
	partFromCaller = 45 * time.Second
	// dropWithin bounds the word that an upload is not wanted; unsaid, the queue finds out in time.
	dropWithin = 2 * time.Second
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Uploader takes calls whose bodies are too large for one command: parts go to the queue as they come, and the accept at the end
// refers to them. Parts alone are never a call.
type Uploader struct {
	// Do hands an operation to the queue leader.
	Do Do
	// Session of this edge in the queue, which owns its uploads; it waits for one until ctx ends.
	Session func(ctx context.Context) (uint64, error)
	parts   chan struct{} // a place for each under way
}

// NewUploader returns an Uploader.
func NewUploader(do Do, session func(context.Context) (uint64, error)) *Uploader {
	return &Uploader{Do: do, Session: session, parts: make(chan struct{}, partsPerEdge)}
}

// Body of a call, read as it comes. Within bounds the reads from then on.
type Body interface {
	io.Reader
	Within(t time.Duration)
}

// Accept is Accepter.Accept for a request without its body, which is read from body. An error of the reading is returned wrapped:
// nothing was enqueued then.
func (u *Uploader) Accept(ctx context.Context, function string, request *wire.StoredRequest, body Body, o message.CallOptions) (string, error) {
	id, err := message.NewID()
	if err != nil {
		return "", err
	}
	head, err := proto.Marshal(request)
	switch {
	case err != nil:
		return "", &RefusedError{id: id, code: wire.Code_CODE_INVALID, err: fmt.Errorf("encoding the request: %w", err)}
	case len(head) > wire.MaxFrame:
		return "", &RefusedError{id: id, code: wire.Code_CODE_TOO_LARGE, err: fmt.Errorf("the request without its body takes %d bytes of at most %d", len(head), wire.MaxFrame)}
	}
	session, err := u.session(ctx)
	if err != nil {
		return "", &RefusedError{id: id, code: wire.Code_CODE_UNAVAILABLE, err: fmt.Errorf("this edge has no session with the queue yet: %w", err)}
	}
	x := &upload{Uploader: u, id: id, session: session, sum: crc32.New(castagnoli)}
	if o.Key != "" {
		x.hash = sha256.New()
	}
	if err := x.send(ctx, body); err != nil {
		x.drop(ctx)
		return "", err
	}
	accept := acceptOf(id, function, head, o)
	accept.Parts, accept.BodySize, accept.BodySum = x.number, x.size, x.sum.Sum32()
	if o.Key != "" {
		hash := message.FingerprintOf(request, x.size, [sha256.Size]byte(x.hash.Sum(nil)))
		accept.IdempotencyKey, accept.RequestHash = o.Key, hash[:]
	}
	text, err := Accepter{Do: u.Do}.handOver(ctx, id, accept)
	var refused *RefusedError
	if errors.As(err, &refused) && !refused.unknown {
		x.drop(ctx)
	}
	return text, err
}

func (u *Uploader) session(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, queueclient.LeaderWait) // as long as a small call waits for a leader
	defer cancel()
	return u.Session(ctx)
}

// upload of one body.
type upload struct {
	*Uploader
	id      message.ID
	session uint64
	number  uint32 // of parts
	size    uint64
	sum     hash.Hash32
	hash    hash.Hash // nil: nobody asks for it
}

// send reads the body to its end, and returns when the queue has all parts, or none is under way any more.
func (x *upload) send(ctx context.Context, body Body) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel(nil)
	places := make(chan struct{}, partsPerUpload)
	before := make(chan struct{}) // closed when the part before is in the queue
	close(before)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		data := make([]byte, wire.PartSize) // a new one each time: the client keeps what it was given
		body.Within(partFromCaller)
		n, err := io.ReadFull(body, data)
		if cause := context.Cause(ctx); cause != nil {
			return cause // first: a part was refused meanwhile
		}
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return fmt.Errorf("reading the body of call %s: %w", x.id, err)
		}
		data = data[:n]
		if n > 0 {
			number, previous, done := x.number, before, make(chan struct{})
			x.number++
			x.size += uint64(n)
			_, _ = x.sum.Write(data) // a hash never fails
			if x.hash != nil {
				_, _ = x.hash.Write(data)
			}
			before = done
			sending.Go(func() {
				defer func() { <-places }()
				if err := x.put(ctx, number, data, previous); err != nil {
					cancel(err)
					return
				}
				close(done)
			})
		}
		if last {
			select {
			case <-before:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// put hands one part to the queue. It may overtake the one before on the way, and is sent again behind it then. The error is a
// *RefusedError, or the end of ctx.
func (x *upload) put(ctx context.Context, number uint32, data []byte, before <-chan struct{}) error {
	ctx, stop := context.WithTimeout(ctx, partWithin)
	defer stop()
	for follows := number == 0; ; {
		result, err := x.do(ctx, &wire.Op{Op: &wire.Op_PutPart{PutPart: &wire.PutPart{Id: x.id[:], Number: number, Data: data, Session: x.session}}})
		code := result.GetCode()
		switch {
		case err == nil && code == wire.Code_CODE_OK:
			return nil
		case !follows && (code == wire.Code_CODE_CONFLICT || errors.Is(err, queueclient.ErrUnknown)) && ctx.Err() == nil:
			select {
			case <-before:
				follows = true
				continue
			case <-ctx.Done():
			}
		case errors.Is(err, queueclient.ErrNoLeader) && ctx.Err() == nil:
			continue // which took its time, and says so until this part's is up
		}
		refusal := &RefusedError{id: x.id, code: wire.Code_CODE_UNAVAILABLE, err: fmt.Errorf("part %d of the body: %w", number, err)}
		switch {
		case err == nil:
			refusal.err = fmt.Errorf("part %d of the body: the queue answered %v: %s", number, code, result.GetDetail())
			if code == wire.Code_CODE_FULL {
				refusal.code = code
			}
		case errors.Is(err, queueclient.ErrFull):
			refusal.code = wire.Code_CODE_FULL
		}
		return refusal
	}
}

func (x *upload) do(ctx context.Context, op *wire.Op) (*wire.OpResult, error) {
	select {
	case x.parts <- struct{}{}:
		defer func() { <-x.parts }()
		return x.Do(ctx, op)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", queueclient.ErrNotHandedOver, ctx.Err())
	}
}

// drop tells the queue that no accept will come, also when the caller has gone.
func (x *upload) drop(ctx context.Context) {
	if x.number == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropWithin)
	defer cancel()
	_, _ = x.Do(ctx, &wire.Op{Op: &wire.Op_DropUpload{DropUpload: &wire.DropUpload{Id: x.id[:]}}})
}
