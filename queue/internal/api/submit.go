package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/dispatch"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Submit carries out a batch: what is malformed is answered as such, the rest shares one proposal.
func (s *Server) Submit(
	ctx context.Context, r *connect.Request[wire.SubmitRequest],
) (*connect.Response[wire.SubmitResponse], error) {
	ops := r.Msg.GetOps()
	if len(ops) > maxOps {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d operations, more than %d", len(ops), maxOps))
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	b := submission{
		server: s, now: time.Now(), results: make([]*wire.OpResult, len(ops)), commands: make([]command.Command, 0, len(ops)), owners: make([]owner, 0, len(ops)),
	}
	defer b.settle()
	for i := 0; i < len(ops); {
		n, err := b.add(ctx, ops, i)
		if err != nil {
			return nil, s.failed(err)
		}
		i += n
	}
	b.refuseWhenFull()
	if len(b.commands) > 0 {
		results, index, err := s.config.Node.Propose(ctx, b.commands)
		switch {
		case err == nil:
			b.answer(results, index)
		case errors.Is(err, ErrUnknown) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
			b.answerAll(wire.Code_CODE_UNKNOWN, "handed over, and not known to be committed")
		case errors.Is(err, ErrNotLeader):
			return nil, s.NotLeader()
		default:
			s.config.Log.Warn("proposal refused", "ops", len(b.commands), "err", err)
			b.answerAll(wire.Code_CODE_UNAVAILABLE, err.Error())
		}
	}
	return connect.NewResponse(&wire.SubmitResponse{Results: b.results}), nil
}

// submission is one batch on its way: results in the order of the operations, commands with the operations they stand for.
type submission struct {
	server   *Server
	now      time.Time
	results  []*wire.OpResult
	commands []command.Command
	owners   []owner
	asked    bool   // the node whether it takes more
	refusal  string // what it said
}

// owner is the run of operations that one command stands for: an accept and its frames are several. The grant that goes with an
// accept stands for none.
type owner struct {
	first, count int
	callback     bool
	run          *dispatch.Reservation // of a grant, until it is settled
}

// add turns the operation at i, and what belongs to it, into a command or a refusal. n operations are dealt with.
func (b *submission) add(ctx context.Context, ops []*wire.Op, i int) (n int, err error) {
	switch op := ops[i].GetOp().(type) {
	case *wire.Op_Accept:
		return b.accept(op.Accept, ops, i), nil
	case *wire.Op_AcceptFrame:
		b.refuse(i, 1, wire.Code_CODE_INVALID, "frame does not follow its accept")
	case *wire.Op_PutPart:
		b.putPart(op.PutPart, i)
	case *wire.Op_DropUpload:
		if id, ok := b.id(op.DropUpload.GetId(), i, 1); ok {
			b.propose(command.DropUpload{ID: id}, owner{first: i, count: 1})
		}
	case *wire.Op_Callback:
		return 1, b.callback(ctx, op.Callback, i)
	case *wire.Op_Cancel:
		if id, ok := b.id(op.Cancel.GetId(), i, 1); ok {
			b.propose(command.Cancel{ID: id}, owner{first: i, count: 1})
		}
	case *wire.Op_OpenSession:
		o := op.OpenSession
		if o.GetKind() != wire.SessionKind_SESSION_KIND_EDGE && o.GetKind() != wire.SessionKind_SESSION_KIND_SCALER {
			b.refuse(i, 1, wire.Code_CODE_INVALID, "session needs a kind")
			break
		}
		if b.name("session", o.GetName(), i) && b.name("incarnation", o.GetIncarnation(), i) && b.short("address", o.GetAddress(), i) {
			b.propose(command.OpenSession{
				Name: o.GetName(), Incarnation: o.GetIncarnation(), Kind: uint8(o.GetKind()), Address: o.GetAddress(),
			}, owner{first: i, count: 1})
		}
	case *wire.Op_CloseSession:
		b.propose(command.EndSession{Session: op.CloseSession.GetSession()}, owner{first: i, count: 1})
	case *wire.Op_AcquireLock:
		if b.name("lock", op.AcquireLock.GetLock(), i) {
			b.propose(command.AcquireLock{Lock: op.AcquireLock.GetLock(), Session: op.AcquireLock.GetSession()}, owner{first: i, count: 1})
		}
	case *wire.Op_ReleaseLock:
		if b.name("lock", op.ReleaseLock.GetLock(), i) {
			b.propose(command.ReleaseLock{Lock: op.ReleaseLock.GetLock(), Session: op.ReleaseLock.GetSession()}, owner{first: i, count: 1})
		}
	case *wire.Op_RecordActivity:
		b.activity(op.RecordActivity, i)
	case *wire.Op_SetScale:
		b.scale(op.SetScale, i)
	default:
		b.refuse(i, 1, wire.Code_CODE_INVALID, "operation is empty, or not known to this node")
	}
	return 1, nil
}

func (b *submission) propose(c command.Command, o owner) {
	b.commands = append(b.commands, c)
	b.owners = append(b.owners, o)
}

func (b *submission) refuse(i, count int, code wire.Code, detail string) {
	for j := range count {
		b.results[i+j] = &wire.OpResult{Code: code, Detail: detail}
	}
}

func (b *submission) id(raw []byte, i, count int) (id command.ID, ok bool) {
	if len(raw) != len(id) {
		b.refuse(i, count, wire.Code_CODE_INVALID, fmt.Sprintf("id has %d bytes, want %d", len(raw), len(id)))
		return id, false
	}
	return command.ID(raw), true
}

func (b *submission) name(what, value string, i int) bool {
	if value == "" {
		b.refuse(i, 1, wire.Code_CODE_INVALID, what+" is empty")
		return false
	}
	return b.short(what, value, i)
}

func (b *submission) short(what, value string, i int) bool {
	if len(value) > maxName {
		b.refuse(i, 1, wire.Code_CODE_INVALID, fmt.Sprintf("%s has %d bytes, at most %d are allowed", what, len(value), maxName))
		return false
	}
	return true
}

// accept takes the frames behind it along.
func (b *submission) accept(a *wire.Accept, ops []*wire.Op, i int) (n int) {
	n = 1
	for i+n < len(ops) && bytes.Equal(ops[i+n].GetAcceptFrame().GetId(), a.GetId()) && ops[i+n].GetAcceptFrame() != nil {
		n++
	}
	id, ok := b.id(a.GetId(), i, n)
	if !ok {
		return n
	}
	refuse := func(code wire.Code, detail string) int {
		b.refuse(i, n, code, detail)
		return n
	}
	switch {
	case a.GetFunction() == "":
		return refuse(wire.Code_CODE_INVALID, "function is empty")
	case len(a.GetFunction()) > maxName:
		return refuse(wire.Code_CODE_INVALID, fmt.Sprintf("function has %d bytes, at most %d are allowed", len(a.GetFunction()), maxName))
	case b.full(id, i, n):
		return n
	case max(a.GetSize(), uint64(len(a.GetPayload()))) > wire.MaxPayload:
		return refuse(wire.Code_CODE_TOO_LARGE, fmt.Sprintf("payload has %d bytes, at most %d are allowed", max(a.GetSize(), uint64(len(a.GetPayload()))), wire.MaxPayload))
	}
	options, wrong := b.options(a)
	if wrong != "" {
		return refuse(wire.Code_CODE_INVALID, wrong)
	}
	payload := a.GetPayload()
	if n > 1 {
		payload = make([]byte, 0, a.GetSize())
		payload = append(payload, a.GetPayload()...)
		for _, op := range ops[i+1 : i+n] {
			f := op.GetAcceptFrame()
			if f.GetOffset() != uint64(len(payload)) || uint64(len(payload)+len(f.GetData())) > a.GetSize() {
				return refuse(wire.Code_CODE_INVALID, "frames do not add up to the payload")
			}
			payload = append(payload, f.GetData()...)
		}
	}
	if a.GetSize() != 0 && a.GetSize() != uint64(len(payload)) {
		return refuse(wire.Code_CODE_INVALID, fmt.Sprintf("payload is announced with %d bytes and has %d", a.GetSize(), len(payload)))
	}
	body := command.Body{Parts: a.GetParts(), Size: a.GetBodySize(), Sum: a.GetBodySum()}
	if (body.Parts == 0) != (body.Size == 0) || body.Parts == 0 && body.Sum != 0 {
		return refuse(wire.Code_CODE_INVALID, "parts and size of the body do not go together")
	}
	b.propose(command.Accept{ID: id, Function: a.GetFunction(), Payload: payload, AcceptOptions: options, Body: body}, owner{first: i, count: n})
	if a.GetRunSession() != 0 && options.NotBeforeUnixMs == 0 && body.Parts == 0 {
		if run := b.server.config.Dispatcher.Reserve(id, a.GetFunction(), a.GetRunSession()); run != nil {
			b.propose(run.Grant(), owner{first: i, run: run})
		}
	}
	return n
}

// settle the grants that were not proposed, or whose outcome is not known.
func (b *submission) settle() {
	for i := range b.owners {
		b.drop(&b.owners[i])
	}
}

func (b *submission) drop(o *owner) {
	if o.run != nil {
		b.server.config.Dispatcher.Settle(o.run, nil)
		o.run = nil
	}
}

// options turns what a caller asks for into times on this leader's clock. wrong says why it cannot be had; empty: it can.
func (b *submission) options(a *wire.Accept) (o command.AcceptOptions, wrong string) {
	for _, x := range []struct {
		what string
		ms   uint64
		most time.Duration
	}{
		{"delay", a.GetDelayMs(), wire.MaxDelay}, {"max age", a.GetMaxAgeMs(), wire.MaxAge}, {"keep result", a.GetKeepResultMs(), wire.MaxKeepResult},
	} {
		if x.ms > uint64(x.most.Milliseconds()) {
			return o, fmt.Sprintf("%s is %d ms, at most %s is allowed", x.what, x.ms, x.most)
		}
	}
	now := b.now.UnixMilli()
	if ms := a.GetDelayMs(); ms > 0 {
		o.NotBeforeUnixMs = now + int64(ms)
	}
	if ms := a.GetMaxAgeMs(); ms > 0 {
		o.ExpireUnixMs = now + int64(ms)
	}
	o.KeepResultMs = a.GetKeepResultMs()
	key := a.GetIdempotencyKey()
	switch {
	case key == "":
		return o, ""
	case len(key) > wire.MaxIdempotencyKey:
		return o, fmt.Sprintf("idempotency key has %d bytes, at most %d are allowed", len(key), wire.MaxIdempotencyKey)
	case len(a.GetRequestHash()) != len(o.RequestHash):
		return o, fmt.Sprintf("request hash has %d bytes, want %d", len(a.GetRequestHash()), len(o.RequestHash))
	}
	o.Key, o.RequestHash = key, command.Hash(a.GetRequestHash())
	o.KeyUntilUnixMs, o.MaxKeys = now+wire.IdempotencyWindow.Milliseconds(), b.server.config.MaxKeys
	return o, ""
}

// full refuses an accept while the disk has no room for more. One that is there already is told so, as ever.
func (b *submission) full(id command.ID, i, count int) bool {
	if !b.asked { // once a batch: it looks at the disks of all
		b.asked, b.refusal = true, b.server.config.Node.Refusal()
	}
	why := b.refusal
	if why == "" {
		return false
	}
	known := false
	b.server.config.Node.View(func(m *fsm.Machine) { _, known = m.Call(id) })
	if known {
		return false
	}
	b.refuse(i, count, wire.Code_CODE_FULL, why)
	for j := range count {
		b.results[i+j].Reason = wire.Reason_REASON_DISK
	}
	return true
}

// callback needs to know the try it ends. That none is known is said only by a node that is certain to lead.
func (b *submission) callback(ctx context.Context, c *wire.Callback, i int) error {
	id, ok := b.id(c.GetId(), i, 1)
	if !ok {
		return nil
	}
	dispatcher := b.server.config.Dispatcher
	f, found, err := dispatcher.Callback(id, c.GetFunction(), c.GetSuccess())
	if err == nil && !found {
		if err := b.server.config.Node.ReadBarrier(ctx); err != nil {
			return err
		}
		f, found, err = dispatcher.Callback(id, c.GetFunction(), c.GetSuccess())
	}
	if err != nil {
		return ErrNotLeader
	}
	if !found {
		b.refuse(i, 1, wire.Code_CODE_NOT_FOUND, noTry)
		return nil
	}
	b.propose(f, owner{first: i, count: 1, callback: true})
	return nil
}

const noTry = "no try of this call of this function is under way"

func (b *submission) activity(a *wire.RecordActivity, i int) {
	list := make([]command.Activity, 0, len(a.GetActivities()))
	for _, x := range a.GetActivities() {
		if !b.name("function", x.GetFunction(), i) {
			return
		}
		age := time.Duration(min(x.GetAgeMs(), uint64(10*365*24*time.Hour/time.Millisecond))) * time.Millisecond
		list = append(list, command.Activity{Function: x.GetFunction(), AtUnixMs: b.now.Add(-age).UnixMilli()})
	}
	b.propose(command.RecordActivity{Activities: list}, owner{first: i, count: 1})
}

func (b *submission) scale(o *wire.SetScale, i int) {
	if !b.name("function", o.GetFunction(), i) {
		return
	}
	length := time.Duration(min(o.GetForMs(), uint64(10*365*24*time.Hour/time.Millisecond))) * time.Millisecond
	b.propose(command.SetOverride{
		Function: o.GetFunction(), Replicas: o.GetReplicas(), UntilUnixMs: b.now.Add(length).UnixMilli(),
	}, owner{first: i, count: 1})
}

// refuseWhenFull takes the accepts out when the queue is full, but for repeats, which enqueue nothing.
func (b *submission) refuseWhenFull() {
	limit := b.server.config.MaxUnfinished
	if limit == 0 {
		return
	}
	b.server.config.Node.View(func(m *fsm.Machine) {
		unfinished, _, _ := m.Sizes()
		if uint64(unfinished+len(b.commands)) <= limit {
			return
		}
		kept := 0
		refused := false
		for i, c := range b.commands {
			if b.owners[i].run != nil && refused { // its accept
				b.drop(&b.owners[i])
				continue
			}
			refused = false
			if p, ok := c.(command.PutPart); ok && p.Number == 0 && uint64(unfinished) >= limit {
				b.refuse(b.owners[i].first, b.owners[i].count, wire.Code_CODE_FULL, fmt.Sprintf("%d calls wait already, the limit is %d", unfinished, limit))
				continue // before the caller has sent the rest of it
			}
			if a, ok := c.(command.Accept); ok {
				if !m.Known(a) && uint64(unfinished) >= limit {
					b.refuse(b.owners[i].first, b.owners[i].count, wire.Code_CODE_FULL, fmt.Sprintf("%d calls wait already, the limit is %d", unfinished, limit))
					refused = true
					continue
				}
				unfinished++
			}
			b.commands[kept], b.owners[kept] = c, b.owners[i]
			kept++
		}
		b.commands, b.owners = b.commands[:kept], b.owners[:kept]
	})
}

func (b *submission) answer(results []fsm.Result, index uint64) {
	slab := make([]wire.OpResult, len(b.owners)) // they go together
	for i, o := range b.owners {
		if o.run != nil {
			b.owners[i].run = nil
			b.results[o.first].Run = b.server.config.Dispatcher.Settle(o.run, &results[i])
			continue
		}
		r := &slab[i]
		r.Code, r.Detail, r.Repeated = code(results[i].Code), results[i].Detail, results[i].Repeated
		if r.GetCode() == wire.Code_CODE_OK {
			r.Index = index
		}
		if results[i].Index != 0 {
			r.Index = results[i].Index
		}
		if a, ok := b.commands[i].(command.Accept); ok && results[i].Repeated && results[i].ID != a.ID {
			id := results[i].ID
			r.Id = id[:]
		}
		if o.callback && r.GetCode() == wire.Code_CODE_STALE {
			r.Code, r.Detail = wire.Code_CODE_NOT_FOUND, noTry
		}
		for j := range o.count {
			b.results[o.first+j] = r
		}
	}
}

func (b *submission) answerAll(c wire.Code, detail string) {
	for _, o := range b.owners {
		b.refuse(o.first, o.count, c, detail)
	}
}

func code(c fsm.Code) wire.Code {
	switch c {
	case fsm.OK:
		return wire.Code_CODE_OK
	case fsm.NotFound:
		return wire.Code_CODE_NOT_FOUND
	case fsm.Conflict:
		return wire.Code_CODE_CONFLICT
	case fsm.Stale:
		return wire.Code_CODE_STALE
	case fsm.Invalid:
		return wire.Code_CODE_INVALID
	case fsm.Full:
		return wire.Code_CODE_FULL
	default:
		return wire.Code_CODE_INTERNAL
	}
}
