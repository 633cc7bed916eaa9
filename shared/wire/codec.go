package wire

import (
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Codec is Connect's for protobuf, under its name and with its bytes, with a way of its own for what a batch is nearly always made
// of: accepts, and what became of them. A batch costs a few pieces of memory instead of six an operation, and no reflection.
// Whatever else there is goes the library's way, and so does every batch this does not take for plain at the first look:
// FuzzCodec compares both (docs/adr/0029-codec-of-batches.md).
type Codec struct{}

// Name of the encoding in the content type.
func (Codec) Name() string { return "proto" }

// Marshal encodes a message.
func (c Codec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// MarshalAppend encodes a message behind what is there. Connect looks for it.
func (Codec) MarshalAppend(b []byte, message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("encoding: %T is no protobuf message", message)
	}
	switch m := m.(type) {
	case *SubmitRequest:
		if len(m.unknownFields) == 0 {
			return appendOps(b, m.GetOps())
		}
	case *SubmitResponse:
		if len(m.unknownFields) == 0 {
			return appendResults(b, m.GetResults())
		}
	}
	return proto.MarshalOptions{}.MarshalAppend(b, m) //nolint:wrapcheck // Connect says what was encoded
}

// Unmarshal decodes a message. The data is the caller's again.
func (Codec) Unmarshal(data []byte, message any) error {
	switch m := message.(type) {
	case *SubmitRequest:
		if ops, plain := decodeOps(data); plain {
			m.Reset()
			m.Ops = ops
			return nil
		}
	case *SubmitResponse:
		if results, plain := decodeResults(data); plain {
			m.Reset()
			m.Results = results
			return nil
		}
	}
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("decoding: %T is no protobuf message", message)
	}
	return proto.Unmarshal(data, m) //nolint:wrapcheck // Connect says what was decoded
}

// OpSize is what an operation takes in a batch, in bytes.
func OpSize(op *Op) int {
	size := opSize(op)
	return 1 + protowire.SizeBytes(size)
}

// plainAccept is the accept that an operation is, if it is one that is encoded here.
func plainAccept(op *Op) *Accept {
	if a, ok := op.GetOp().(*Op_Accept); ok && a.Accept != nil && len(op.unknownFields) == 0 && len(a.Accept.unknownFields) == 0 &&
		utf8.ValidString(a.Accept.GetFunction()) && utf8.ValidString(a.Accept.GetIdempotencyKey()) {
		return a.Accept
	}
	return nil
}

func opSize(op *Op) int {
	if a := plainAccept(op); a != nil {
		return 1 + protowire.SizeBytes(acceptSize(a))
	}
	return proto.Size(op)
}

func acceptSize(a *Accept) int {
	size := sizeBytes(len(a.GetId())) + sizeBytes(len(a.GetFunction())) + sizeBytes(len(a.GetPayload())) + sizeVarint(a.GetSize()) +
		sizeVarint(a.GetDelayMs()) + sizeVarint(a.GetMaxAgeMs()) + sizeVarint(a.GetKeepResultMs()) + sizeBytes(len(a.GetIdempotencyKey())) +
		sizeBytes(len(a.GetRequestHash())) + sizeVarint(uint64(a.GetParts())) + sizeVarint(a.GetBodySize()) + sizeVarint(a.GetRunSession())
	if a.GetBodySum() != 0 {
		size += 1 + protowire.SizeFixed32()
	}
	return size
}

// sizeBytes of a field of a number below 16; 0: it is left out.
func sizeBytes(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(n)
}

// sizeVarint of a field of a number below 16; 0: it is left out.
func sizeVarint(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func appendOps(b []byte, ops []*Op) ([]byte, error) {
	for _, op := range ops {
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		a := plainAccept(op)
		if a == nil {
			var err error
			if b, err = appendMessage(b, op); err != nil {
				return nil, err
			}
			continue
		}
		size := acceptSize(a)
		b = protowire.AppendVarint(b, uint64(1+protowire.SizeBytes(size)))
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size))
		b = appendAccept(b, a)
	}
	return b, nil
}

// appendMessage behind its size.
func appendMessage(b []byte, m proto.Message) ([]byte, error) {
	b = protowire.AppendVarint(b, uint64(proto.Size(m)))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, m) //nolint:wrapcheck // Connect says what was encoded
}

func appendAccept(b []byte, a *Accept) []byte {
	b = appendBytes(b, 1, a.GetId())
	b = appendString(b, 2, a.GetFunction())
	b = appendBytes(b, 3, a.GetPayload())
	b = appendVarint(b, 4, a.GetSize())
	b = appendVarint(b, 5, a.GetDelayMs())
	b = appendVarint(b, 6, a.GetMaxAgeMs())
	b = appendVarint(b, 7, a.GetKeepResultMs())
	b = appendString(b, 8, a.GetIdempotencyKey())
	b = appendBytes(b, 9, a.GetRequestHash())
	b = appendVarint(b, 10, uint64(a.GetParts()))
	b = appendVarint(b, 11, a.GetBodySize())
	if a.GetBodySum() != 0 {
		b = protowire.AppendTag(b, 12, protowire.Fixed32Type)
		b = protowire.AppendFixed32(b, a.GetBodySum())
	}
	return appendVarint(b, 13, a.GetRunSession())
}

func appendBytes(b []byte, number protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), v)
}

func appendString(b []byte, number protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), v)
}

func appendVarint(b []byte, number protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), v)
}

// appendResults of a batch. A first try with an accept goes the library's way: it has a message of its own.
func appendResults(b []byte, results []*OpResult) ([]byte, error) {
	for _, r := range results {
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		if r == nil || r.GetRun() != nil || r.GetCode() < 0 || r.GetReason() < 0 || len(r.unknownFields) > 0 || !utf8.ValidString(r.GetDetail()) {
			var err error
			if b, err = appendMessage(b, r); err != nil {
				return nil, err
			}
			continue
		}
		size := sizeVarint(uint64(r.GetCode())) + sizeBytes(len(r.GetDetail())) + sizeVarint(r.GetIndex()) +
			sizeVarint(protowire.EncodeBool(r.GetRepeated())) + sizeBytes(len(r.GetId())) + sizeVarint(uint64(r.GetReason()))
		b = protowire.AppendVarint(b, uint64(size))
		b = appendVarint(b, 1, uint64(r.GetCode()))
		b = appendString(b, 2, r.GetDetail())
		b = appendVarint(b, 3, r.GetIndex())
		b = appendVarint(b, 4, protowire.EncodeBool(r.GetRepeated()))
		b = appendBytes(b, 5, r.GetId())
		b = appendVarint(b, 15, uint64(r.GetReason()))
	}
	return b, nil
}

// messages counts those of a batch; plain is false where there is anything else.
func messages(data []byte) (n int, plain bool) {
	for len(data) > 0 {
		_, rest, ok := message(data)
		if !ok {
			return 0, false
		}
		n, data = n+1, rest
	}
	return n, true
}

// message takes the first off, whose number is 1, without its tag and size.
func message(data []byte) (m, rest []byte, ok bool) {
	const tag = 1<<3 | byte(protowire.BytesType)
	if len(data) == 0 || data[0] != tag {
		return nil, nil, false
	}
	m, n := protowire.ConsumeBytes(data[1:])
	if n < 0 {
		return nil, nil, false
	}
	return m, data[1+n:], true
}

// decodeOps of a batch of nothing but accepts, each field of which comes at most once and in order. All byte slices are of one
// piece of memory.
func decodeOps(data []byte) (ops []*Op, plain bool) {
	n, plain := messages(data)
	if !plain || n == 0 {
		return nil, plain
	}
	data = append([]byte(nil), data...)
	type slab struct {
		op     Op
		kind   Op_Accept
		accept Accept
	}
	slabs := make([]slab, n)
	ops = make([]*Op, n)
	function := "" // of the accept before: mostly the same
	for i := range ops {
		var op []byte
		op, data, _ = message(data)
		raw, rest, ok := message(op)
		s := &slabs[i]
		if !ok || len(rest) > 0 || !s.accept.decode(raw, function) {
			return nil, false
		}
		function = s.accept.Function
		s.kind.Accept = &s.accept
		s.op.Op = &s.kind
		ops[i] = &s.op
	}
	return ops, true
}

// decode what appendAccept writes. False: it is something else.
func (a *Accept) decode(b []byte, likely string) bool {
	f := fields{b: b}
	for f.next() {
		switch f.number {
		case 1:
			a.Id = f.bytes()
		case 2:
			if v := f.bytes(); string(v) == likely {
				a.Function = likely
			} else {
				a.Function = f.text(v)
			}
		case 3:
			a.Payload = f.bytes()
		case 4:
			a.Size = f.varint()
		case 5:
			a.DelayMs = f.varint()
		case 6:
			a.MaxAgeMs = f.varint()
		case 7:
			a.KeepResultMs = f.varint()
		case 8:
			a.IdempotencyKey = f.text(f.bytes())
		case 9:
			a.RequestHash = f.bytes()
		case 10:
			a.Parts = uint32(f.varint()) //nolint:gosec // as the library cuts it
		case 11:
			a.BodySize = f.varint()
		case 12:
			a.BodySum = f.fixed32()
		case 13:
			a.RunSession = f.varint()
		default:
			return false
		}
	}
	return !f.odd
}

// decodeResults of a batch in which no try is given.
func decodeResults(data []byte) (results []*OpResult, plain bool) {
	n, plain := messages(data)
	if !plain || n == 0 {
		return nil, plain
	}
	slab := make([]OpResult, n)
	results = make([]*OpResult, n)
	for i := range results {
		var raw []byte
		raw, data, _ = message(data)
		if !slab[i].decode(raw) {
			return nil, false
		}
		results[i] = &slab[i]
	}
	return results, true
}

func (r *OpResult) decode(b []byte) bool {
	f := fields{b: b}
	for f.next() {
		switch f.number {
		case 1:
			r.Code = Code(f.varint()) //nolint:gosec // as the library cuts it
		case 2:
			r.Detail = f.text(f.bytes())
		case 3:
			r.Index = f.varint()
		case 4:
			r.Repeated = protowire.DecodeBool(f.varint())
		case 5:
			r.Id = append([]byte(nil), f.bytes()...)
		case 15:
			r.Reason = Reason(f.varint()) //nolint:gosec // as above
		default:
			return false
		}
	}
	return !f.odd
}

// fields of one message, which must come in order, each at most once.
type fields struct {
	b      []byte
	number protowire.Number
	kind   protowire.Type
	odd    bool // it is not as this encoder writes it, or broken: the library may say
}

func (f *fields) next() bool {
	if f.odd || len(f.b) == 0 {
		return false
	}
	number, kind, n := protowire.ConsumeTag(f.b)
	if n < 0 || number <= f.number {
		f.odd = true
		return false
	}
	f.number, f.kind, f.b = number, kind, f.b[n:]
	return true
}

func (f *fields) take(kind protowire.Type, n int) bool {
	if f.odd || f.kind != kind || n < 0 {
		f.odd = true
		return false
	}
	f.b = f.b[n:]
	return true
}

func (f *fields) varint() uint64 {
	v, n := protowire.ConsumeVarint(f.b)
	if !f.take(protowire.VarintType, n) {
		return 0
	}
	return v
}

func (f *fields) fixed32() uint32 {
	v, n := protowire.ConsumeFixed32(f.b)
	if !f.take(protowire.Fixed32Type, n) {
		return 0
	}
	return v
}

func (f *fields) bytes() []byte {
	v, n := protowire.ConsumeBytes(f.b)
	if !f.take(protowire.BytesType, n) {
		return nil
	}
	return v[:len(v):len(v)]
}

func (f *fields) text(v []byte) string {
	if !utf8.Valid(v) {
		f.odd = true
		return ""
	}
	return string(v)
}
