package async

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// bodyBytes is what a body on its way through this edge takes in memory, about: what the queue sent and the function has not
// taken yet, and the piece between.
const bodyBytes = 1 << 20

var errChecksum = errors.New("the stored body does not match its checksum")

// Pieces of a stored body; queueclient.Body has them.
type Pieces interface {
	// Next gives the next piece, io.EOF behind the last.
	Next() ([]byte, error)
	// Close ends the reading, from any goroutine.
	Close()
}

// storedBody is the body of a try, as its request wants it. failure says why a request that broke broke.
type storedBody struct {
	*message.StoredBody
	mu  sync.Mutex // guards err
	err error
}

// body of a grant that has one beside its payload; nil: it has none.
func (d *Deliverer) body(g *wire.Grant) *storedBody {
	if g.GetBodySize() == 0 {
		return nil
	}
	s := &storedBody{}
	s.StoredBody = &message.StoredBody{Size: int64(g.GetBodySize()), Open: func(ctx context.Context) io.ReadCloser {
		return &bodyReader{of: s, pieces: d.opts.ReadBody(ctx, g.GetId(), g.GetFence(), g.GetBodySize()), left: g.GetBodySize(), want: g.GetBodySum()}
	}}
	return s
}

// stored is nil where there is none.
func (s *storedBody) stored() *message.StoredBody {
	if s == nil {
		return nil
	}
	return s.StoredBody
}

// bodyFailed says whether a try broke because its body could not be read, and why, for people.
func (d *Deliverer) bodyFailed(ctx context.Context, h *held, body *storedBody) (reason string, ok bool) {
	err := body.failure()
	switch {
	case err == nil, ctx.Err() != nil: // which ends the reading too
		return "", false
	case errors.Is(err, errChecksum):
		d.opts.Log.Error("a stored body does not match its checksum; its request was broken off", "call", h.id.String(), "fn", h.grant.GetFunction(), "bytes", h.grant.GetBodySize())
		return errChecksum.Error(), true
	default:
		d.opts.Log.Warn("a stored body could not be read to its end; its request was broken off", "call", h.id.String(), "fn", h.grant.GetFunction(), "err", err)
		return "the stored body could not be read to its end", true
	}
}

// fail notes why the reading ended; its own end by Close is no reason.
func (s *storedBody) fail(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *storedBody) failure() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// bodyReader holds a piece back until it knows that it may be sent: the last one ends the request, so the sum of all is compared
// before it is given out, and a body that does not fit breaks its request where the function can see it.
type bodyReader struct {
	of     *storedBody
	pieces Pieces
	piece  []byte
	left   uint64 // to come from pieces, in bytes
	sum    uint32
	want   uint32
}

// Read implements io.Reader.
func (r *bodyReader) Read(p []byte) (int, error) {
	for len(r.piece) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		piece, err := r.pieces.Next()
		if err == nil && uint64(len(piece)) > r.left {
			err = fmt.Errorf("%d bytes came where %d were left", len(piece), r.left)
		}
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("the stored body ended %d bytes early: %w", r.left, io.ErrUnexpectedEOF)
		}
		if err != nil {
			r.of.fail(err)
			return 0, err
		}
		r.piece = piece
		r.left -= uint64(len(piece))
		r.sum = crc32.Update(r.sum, castagnoli, piece)
		if r.left == 0 && r.sum != r.want {
			r.of.fail(errChecksum)
			r.piece = nil
			r.left = 1 // never the end
			return 0, errChecksum
		}
	}
	n := copy(p, r.piece)
	r.piece = r.piece[n:]
	return n, nil
}

// Close implements io.Closer.
func (r *bodyReader) Close() error {
	r.pieces.Close()
	return nil
}
