package app

import (
	"bytes"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
)

func part(id []byte, session uint64, number uint32, data []byte) *wire.Op {
	return &wire.Op{Op: &wire.Op_PutPart{PutPart: &wire.PutPart{Id: id, Session: session, Number: number, Data: data}}}
}

func drop(id []byte) *wire.Op {
	return &wire.Op{Op: &wire.Op_DropUpload{DropUpload: &wire.DropUpload{Id: id}}}
}

func acceptParts(id []byte, parts uint32, size int, sum uint32) *wire.Op {
	op := accept(id, "f", "head")
	op.GetAccept().Parts, op.GetAccept().BodySize, op.GetAccept().BodySum = parts, uint64(size), sum
	return op
}

func TestABodyInPartsIsGrantedWithoutIt(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	leader := c.leader()
	client := c.as("edge", leader)
	c.function("f", nil, "f-0")
	e := c.attach(leader, "edge-0", "a", 10)
	body := bytes.Repeat([]byte("0123456789abcdef"), (2*wire.PartSize+wire.PartSize/2)/16)
	id := newID()
	var ops []*wire.Op
	for at := 0; at < len(body); at += wire.PartSize {
		ops = append(ops, part(id, e.welcome.GetSession(), uint32(at/wire.PartSize), body[at:min(at+wire.PartSize, len(body))]))
	}
	ops = append(ops, ops[1], acceptParts(id, 3, len(body), 77))
	for i, r := range c.submit(client, ops...) {
		if r.GetCode() != wire.Code_CODE_OK || r.GetRepeated() != (i == 3) {
			t.Fatalf("operation %d: %v", i, r)
		}
	}
	g := e.grant()
	if string(g.GetId()) != string(id) || string(g.GetPayload()) != "head" || g.GetBodySize() != uint64(len(body)) || g.GetBodySum() != 77 || g.GetSize() != uint64(4+len(body)) {
		t.Fatalf("grant %v", g)
	}
	read := func(fence, offset uint64) ([]byte, error) {
		stream, err := client.ReadPayload(t.Context(), connect.NewRequest(&wire.ReadPayloadRequest{Id: id, Fence: fence, Offset: offset}))
		if err != nil {
			return nil, err
		}
		defer func() { _ = stream.Close() }()
		var got []byte
		for stream.Receive() {
			if len(stream.Msg().GetData()) > wire.MaxFrame {
				t.Errorf("a piece of %d bytes", len(stream.Msg().GetData()))
			}
			got = append(got, stream.Msg().GetData()...)
		}
		return got, stream.Err()
	}
	for _, offset := range []int{0, 1, wire.PartSize - 1, wire.PartSize, len(body) - 1} {
		if got, err := read(g.GetFence(), uint64(offset)); err != nil || !bytes.Equal(got, body[offset:]) {
			t.Errorf("from %d: %d bytes, %v", offset, len(got), err)
		}
	}
	if _, err := read(g.GetFence(), uint64(len(body))); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("behind the end: %v", err)
	}
	if _, err := read(g.GetFence()+1, 0); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("another fence: %v", err)
	}
	e.answer(g, 200)
	e.ack(g, wire.Code_CODE_OK)
	c.ended(client, id, stateSucceeded, 1)
	if _, err := read(g.GetFence(), 0); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("after the end: %v", err)
	}
}

func TestUploadsHaveLimits(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(config *Config) { config.MaxUploadBytes, config.MaxUnfinished = 10, 1 })
	leader := c.leader()
	client := c.as("edge", leader)
	e := c.attach(leader, "edge-0", "a", 10)
	first, second, third := newID(), newID(), newID()
	for i, x := range []struct {
		op   *wire.Op
		want wire.Code
	}{
		{part([]byte("short"), e.welcome.GetSession(), 0, []byte("x")), wire.Code_CODE_INVALID},
		{part(first, e.welcome.GetSession(), 0, nil), wire.Code_CODE_INVALID},
		{part(first, e.welcome.GetSession(), 0, make([]byte, wire.PartSize+1)), wire.Code_CODE_INVALID},
		{part(first, e.welcome.GetSession()+100, 0, []byte("x")), wire.Code_CODE_STALE},
		{part(first, e.welcome.GetSession(), 0, []byte("12345678")), wire.Code_CODE_OK},
		{part(second, e.welcome.GetSession(), 0, []byte("123")), wire.Code_CODE_FULL},
		{drop(second), wire.Code_CODE_NOT_FOUND},
		{part(second, e.welcome.GetSession(), 0, []byte("12")), wire.Code_CODE_OK},
		{drop(second), wire.Code_CODE_OK},
		{drop([]byte("short")), wire.Code_CODE_INVALID},
		{acceptParts(first, 1, 0, 0), wire.Code_CODE_INVALID},
		{acceptParts(first, 0, 8, 0), wire.Code_CODE_INVALID},
		{acceptParts(first, 2, 8, 0), wire.Code_CODE_CONFLICT},
		{part(second, e.welcome.GetSession(), 0, []byte("12")), wire.Code_CODE_OK},
		{acceptParts(first, 1, 8, 0), wire.Code_CODE_OK},
		// The queue has as many calls as it may: another upload would be for nothing.
		{part(third, e.welcome.GetSession(), 0, []byte("x")), wire.Code_CODE_FULL},
		{acceptParts(second, 1, 2, 0), wire.Code_CODE_FULL},
		{acceptParts(first, 1, 8, 0), wire.Code_CODE_OK}, // known
	} {
		if r := c.submit(client, x.op)[0]; r.GetCode() != x.want {
			t.Errorf("operation %d: %v, want %v", i, r, x.want)
		}
	}
	text := leader.metrics(t)
	for _, line := range []string{"slimfaas_queue_uploads 1", "slimfaas_queue_upload_bytes 2", "slimfaas_queue_state_hash "} {
		if !strings.Contains(text, line) {
			t.Errorf("metrics lack %q", line)
		}
	}
}
