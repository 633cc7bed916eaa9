package async

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// parts is a queue that knows of one upload, as the state machine does.
type parts struct {
	mu      sync.Mutex
	put     []byte
	number  uint32
	refused int // parts that came too early
	accept  *wire.Accept
	dropped int
	// answer, when set, comes first; nil goes on to the ordinary one.
	answer func(*wire.Op) (*wire.OpResult, error)
}

func (p *parts) do(_ context.Context, op *wire.Op) (*wire.OpResult, error) {
	if p.answer != nil {
		if r, err := p.answer(op); r != nil || err != nil {
			return r, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case op.GetPutPart() != nil:
		part := op.GetPutPart()
		if part.GetNumber() > p.number {
			p.refused++
			return &wire.OpResult{Code: wire.Code_CODE_CONFLICT}, nil
		}
		if part.GetNumber() == p.number {
			p.put = append(p.put, part.GetData()...)
			p.number++
		}
	case op.GetAccept() != nil:
		p.accept = op.GetAccept()
	case op.GetDropUpload() != nil:
		p.dropped++
	}
	return &wire.OpResult{Code: wire.Code_CODE_OK}, nil
}

// arriving is a caller's body.
type arriving struct{ io.Reader }

func (arriving) Within(time.Duration) {}

func session1(context.Context) (uint64, error) { return 1, nil }

// noSession is that of an edge that has none: the wait for it ends with ctx.
func noSession(ctx context.Context) (uint64, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8 ^ i)
	}
	return b
}

func TestABodyInPartsIsWholeInTheQueue(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, wire.PartSize, wire.PartSize + 1, 5 * wire.PartSize, 7*wire.PartSize - 1} {
		p := &parts{}
		sent := pattern(size)
		request := &wire.StoredRequest{Method: "POST", Path: "/x"}
		text, err := NewUploader(p.do, session1).Accept(t.Context(), "f", request, arriving{iotest.HalfReader(bytes.NewReader(sent))}, message.CallOptions{Key: "k", KeepResult: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		id, _ := message.ParseID(text)
		want := message.FingerprintOf(request, uint64(size), sha256.Sum256(sent))
		a := p.accept
		if !bytes.Equal(p.put, sent) || a.GetParts() != p.number || a.GetBodySize() != uint64(size) || a.GetBodySum() != crc32.Checksum(sent, castagnoli) ||
			!bytes.Equal(a.GetId(), id[:]) || a.GetKeepResultMs() == 0 || a.GetIdempotencyKey() != "k" || !bytes.Equal(a.GetRequestHash(), want[:]) {
			t.Errorf("%d bytes: %d in %d parts, accept %v", size, len(p.put), p.number, a)
		}
		if p.dropped != 0 {
			t.Error("an accepted upload was dropped")
		}
	}
}

// Two parts are under way at one time, on connections that do not keep their order.
func TestAPartThatOvertookTheOneBeforeIsSentAgain(t *testing.T) {
	t.Parallel()
	for _, early := range []error{nil, queueclient.ErrUnknown} { // the repetition of an attempt that broke is refused in these words
		p := &parts{}
		overtaken := make(chan struct{})
		var once sync.Once
		p.answer = func(op *wire.Op) (*wire.OpResult, error) {
			switch part := op.GetPutPart(); {
			case part == nil:
			case part.GetNumber() == 0:
				<-overtaken
			case part.GetNumber() == 1:
				first := false
				once.Do(func() { first = true })
				if first {
					defer close(overtaken)
					return &wire.OpResult{Code: wire.Code_CODE_CONFLICT}, early
				}
			}
			return nil, nil
		}
		sent := pattern(4 * wire.PartSize)
		if _, err := NewUploader(p.do, session1).Accept(t.Context(), "f", post("/"), arriving{bytes.NewReader(sent)}, message.CallOptions{}); err != nil || !bytes.Equal(p.put, sent) {
			t.Errorf("%d bytes of %d: %v", len(p.put), len(sent), err)
		}
	}
}

func TestAnUploadIsBounded(t *testing.T) {
	t.Parallel()
	p := &parts{}
	var under, most int
	var mu sync.Mutex
	p.answer = func(op *wire.Op) (*wire.OpResult, error) {
		if op.GetPutPart() == nil {
			return nil, nil
		}
		mu.Lock()
		under++
		most = max(most, under)
		mu.Unlock()
		defer func() {
			mu.Lock()
			under--
			mu.Unlock()
		}()
		return &wire.OpResult{Code: wire.Code_CODE_OK}, nil
	}
	u := NewUploader(p.do, session1)
	var uploads sync.WaitGroup
	for range 5 {
		uploads.Go(func() {
			if _, err := u.Accept(t.Context(), "f", post("/"), arriving{bytes.NewReader(pattern(6 * wire.PartSize))}, message.CallOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	uploads.Wait()
	if most > partsPerEdge {
		t.Errorf("%d parts were under way, at most %d may be", most, partsPerEdge)
	}
}

// Parts alone are no call: whatever becomes of them, nothing was enqueued, and the queue is told that no accept will come.
func TestAnUploadThatFailsIsDropped(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken off")
	answer := func(number uint32, r *wire.OpResult, err error) func(*wire.Op) (*wire.OpResult, error) {
		return func(op *wire.Op) (*wire.OpResult, error) {
			if op.GetPutPart() != nil && op.GetPutPart().GetNumber() == number {
				return r, err
			}
			return nil, nil
		}
	}
	body := func() io.Reader { return bytes.NewReader(pattern(3 * wire.PartSize)) }
	for name, c := range map[string]struct {
		body    io.Reader
		answer  func(*wire.Op) (*wire.OpResult, error)
		session func(context.Context) (uint64, error)
		code    wire.Code // 0: the error is the body's
		drops   int
	}{
		"the body breaks":      {io.MultiReader(bytes.NewReader(pattern(wire.PartSize+5)), iotest.ErrReader(broken)), nil, session1, 0, 1},
		"it breaks at once":    {iotest.ErrReader(broken), nil, session1, 0, 0},
		"no room":              {body(), answer(2, &wire.OpResult{Code: wire.Code_CODE_FULL}, nil), session1, wire.Code_CODE_FULL, 1},
		"no room on this edge": {body(), answer(1, nil, queueclient.ErrFull), session1, wire.Code_CODE_FULL, 1},
		"session over":         {body(), answer(0, &wire.OpResult{Code: wire.Code_CODE_STALE}, nil), session1, wire.Code_CODE_UNAVAILABLE, 1},
		"dropped meanwhile":    {body(), answer(2, &wire.OpResult{Code: wire.Code_CODE_CONFLICT}, nil), session1, wire.Code_CODE_UNAVAILABLE, 1},
		"unknown":              {body(), answer(0, nil, queueclient.ErrUnknown), session1, wire.Code_CODE_UNAVAILABLE, 1},
		"no session":           {body(), nil, noSession, wire.Code_CODE_UNAVAILABLE, 0},
	} {
		p := &parts{answer: c.answer}
		_, err := NewUploader(p.do, c.session).Accept(t.Context(), "f", post("/"), arriving{c.body}, message.CallOptions{})
		var refused *RefusedError
		switch is := errors.As(err, &refused); {
		case c.code == 0 && (is || !errors.Is(err, broken)), c.code != 0 && (!is || refused.Code() != c.code || refused.Unknown()):
			t.Errorf("%s: %v", name, err)
		}
		if p.dropped != c.drops || p.accept != nil {
			t.Errorf("%s: %d drops, accept %v", name, p.dropped, p.accept)
		}
	}
}

// A caller that goes takes its upload along, although its context has ended.
func TestACallerThatGoesTakesItsUploadAlong(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	p := &parts{}
	from, to := io.Pipe()
	go func() { // ends with the pipe
		_, _ = to.Write(pattern(2 * wire.PartSize))
		cancel()
		_ = to.CloseWithError(context.Canceled)
	}()
	if _, err := NewUploader(p.do, session1).Accept(ctx, "f", post("/"), arriving{from}, message.CallOptions{}); err == nil || p.dropped != 1 {
		t.Errorf("%v, %d drops", err, p.dropped)
	}
}

// Refused for certain, its parts are of no use; an accept of which nothing is known may yet be committed.
func TestTheAcceptOfAnUpload(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		result  *wire.OpResult
		err     error
		unknown bool
	}{
		{&wire.OpResult{Code: wire.Code_CODE_FULL}, nil, false}, {&wire.OpResult{Code: wire.Code_CODE_CONFLICT}, nil, false},
		{nil, queueclient.ErrNoLeader, false}, {nil, queueclient.ErrUnknown, true},
	} {
		p := &parts{answer: func(op *wire.Op) (*wire.OpResult, error) {
			if op.GetAccept() != nil {
				return c.result, c.err
			}
			return nil, nil
		}}
		_, err := NewUploader(p.do, session1).Accept(t.Context(), "f", post("/"), arriving{bytes.NewReader(pattern(10))}, message.CallOptions{})
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Unknown() != c.unknown || (p.dropped == 0) != c.unknown {
			t.Errorf("%v %v: %v, %d drops", c.result, c.err, err, p.dropped)
		}
	}
}

// large is a grant whose body is to be read.
func large(t *testing.T, fence uint64, body []byte) *wire.Grant {
	g := grantOf(t, fence, &wire.StoredRequest{Method: "POST", Path: "/in"})
	g.BodySize, g.BodySum = uint64(len(body)), crc32.Checksum(body, castagnoli)
	g.Size += g.GetBodySize()
	return g
}

func TestABodyIsReadWhileItIsSent(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	sent := pattern(3*wire.PartSize + 7)
	broke := false
	q.read = func(r *wire.ReadPayloadRequest, send func([]byte) error) error {
		for piece := range slices.Chunk(sent[r.GetOffset():], wire.MaxFrame) {
			if err := send(piece); err != nil {
				return err
			}
			if !broke {
				broke = true
				return errFake // a leader that dies; the next one goes on behind what came
			}
		}
		return nil
	}
	e := run(t, q)
	type seen struct {
		length int64
		body   []byte
		err    error
	}
	got := make(chan seen, 1)
	e.serve(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		got <- seen{r.ContentLength, body, err}
	})
	s := q.next().welcome(1)
	g := large(t, 1, sent)
	s.grant(g)
	if x := receive(t, "the body", got); x.err != nil || x.length != int64(len(sent)) || !bytes.Equal(x.body, sent) {
		t.Errorf("%d bytes, length %d, %v", len(x.body), x.length, x.err)
	}
	wantResult(t, s.result(), g, answered, 200, "")
}

// A function must never take a body for whole that is not.
func TestABodyThatIsNotWholeBreaksItsRequest(t *testing.T) {
	t.Parallel()
	sent := pattern(2 * wire.PartSize)
	wrong := bytes.Clone(sent)
	wrong[len(wrong)-1]++
	for reason, read := range map[string]func(*wire.ReadPayloadRequest, func([]byte) error) error{
		errChecksum.Error(): func(_ *wire.ReadPayloadRequest, send func([]byte) error) error {
			return errors.Join(send(wrong[:wire.PartSize]), send(wrong[wire.PartSize:]))
		},
		"the stored body could not be read to its end": func(_ *wire.ReadPayloadRequest, send func([]byte) error) error {
			return errors.Join(send(sent[:wire.PartSize]), connect.NewError(connect.CodeNotFound, errFake))
		},
	} {
		q := newQueue(t)
		q.read = read
		e := run(t, q)
		whole := make(chan error, 1)
		e.serve(func(_ http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			whole <- err
		})
		s := q.next().welcome(1)
		g := large(t, 1, sent)
		s.grant(g)
		wantResult(t, s.result(), g, silent, 0, reason)
		if err := receive(t, "the end of the request", whole); err == nil {
			t.Errorf("%s: the function took it for whole", reason)
		}
	}
}
