package wire

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// both encodes a batch with the codec and the library, and wants the same message of either by both.
func both(t *testing.T, m, into1, into2 proto.Message) {
	t.Helper()
	ours, oursErr := Codec{}.Marshal(m)
	theirs, theirsErr := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if (oursErr == nil) != (theirsErr == nil) {
		t.Fatalf("encoded with %v, by the library with %v", oursErr, theirsErr)
	}
	if oursErr != nil {
		return
	}
	if !bytes.Equal(ours, theirs) {
		t.Fatalf("encoded as\n%x, by the library as\n%x", ours, theirs)
	}
	if err := (Codec{}).Unmarshal(ours, into1); err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(ours, into2); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(into1, m) || !proto.Equal(into2, m) {
		t.Fatalf("decoded as\n%v\nby the library as\n%v, was\n%v", into1, into2, m)
	}
}

func anyNumber(r *rand.Rand) uint64 {
	switch r.IntN(4) {
	case 0:
		return r.Uint64()
	case 1:
		return r.Uint64N(300)
	default:
		return 0
	}
}

func anyText(r *rand.Rand) string {
	return []string{"", "f", "fibonacci1", "größer", string(bytes.Repeat([]byte("x"), 130)), "\xff no text"}[min(r.IntN(60)/10+r.IntN(2), 5)]
}

func anyBytes(r *rand.Rand) []byte {
	b := make([]byte, []int{0, 1, 16, 127, 128, 1100, 40000}[r.IntN(7)])
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func anyAccept(r *rand.Rand) *Accept {
	return &Accept{
		Id: anyBytes(r), Function: anyText(r), Payload: anyBytes(r), Size: anyNumber(r), DelayMs: anyNumber(r), MaxAgeMs: anyNumber(r),
		KeepResultMs: anyNumber(r), IdempotencyKey: anyText(r), RequestHash: anyBytes(r), Parts: uint32(anyNumber(r)), BodySize: anyNumber(r),
		BodySum: uint32(anyNumber(r)), RunSession: anyNumber(r),
	}
}

func TestABatchIsEncodedAsTheLibraryDoes(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		request, response := &SubmitRequest{}, &SubmitResponse{}
		for range r.IntN(5) {
			op := &Op{Op: &Op_Accept{Accept: anyAccept(r)}}
			switch r.IntN(12) {
			case 0:
				op.Op = &Op_Cancel{Cancel: &Cancel{Id: anyBytes(r)}}
			case 1:
				op.Op = nil
			case 2:
				op.Op = &Op_AcceptFrame{AcceptFrame: &AcceptFrame{Id: anyBytes(r), Offset: anyNumber(r), Data: anyBytes(r)}}
			}
			request.Ops = append(request.Ops, op)
			result := &OpResult{
				Code: Code(r.IntN(9)), Detail: anyText(r), Index: anyNumber(r), Repeated: r.IntN(2) == 0, Id: anyBytes(r), Reason: Reason(r.IntN(3)),
			}
			switch r.IntN(12) {
			case 0:
				result.Run = &Grant{Id: anyBytes(r)}
			case 1:
				result.Code = -1
			case 2:
				result.Code = math.MaxInt32
			}
			response.Results = append(response.Results, result)
		}
		both(t, request, &SubmitRequest{}, &SubmitRequest{})
		both(t, response, &SubmitResponse{}, &SubmitResponse{})
		for _, op := range request.GetOps() {
			if got, want := OpSize(op), proto.Size(&SubmitRequest{Ops: []*Op{op}}); got != want {
				t.Fatalf("size %d, want %d of %v", got, want, op)
			}
		}
	}
}

// A field that is added to a message and not to the codec would be left out, and nobody told.
func TestTheCodecKnowsEveryField(t *testing.T) {
	t.Parallel()
	some := map[protoreflect.Kind]protoreflect.Value{
		protoreflect.BytesKind: protoreflect.ValueOfBytes([]byte("b")), protoreflect.StringKind: protoreflect.ValueOfString("s"),
		protoreflect.Uint64Kind: protoreflect.ValueOfUint64(300), protoreflect.Uint32Kind: protoreflect.ValueOfUint32(300),
		protoreflect.Fixed32Kind: protoreflect.ValueOfUint32(300), protoreflect.BoolKind: protoreflect.ValueOfBool(true),
		protoreflect.EnumKind: protoreflect.ValueOfEnum(1), protoreflect.MessageKind: protoreflect.ValueOfMessage((&Grant{Id: []byte("g")}).ProtoReflect()),
	}
	each := func(of proto.Message, check func(m proto.Message)) {
		fields := of.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			m := of.ProtoReflect().New()
			value, ok := some[fields.Get(i).Kind()]
			if !ok {
				t.Fatalf("%s: this test has no value of its kind", fields.Get(i).FullName())
			}
			m.Set(fields.Get(i), value)
			check(m.Interface())
		}
	}
	each(&Accept{}, func(m proto.Message) {
		both(t, &SubmitRequest{Ops: []*Op{{Op: &Op_Accept{Accept: m.(*Accept)}}}}, &SubmitRequest{}, &SubmitRequest{})
	})
	each(&OpResult{}, func(m proto.Message) {
		both(t, &SubmitResponse{Results: []*OpResult{m.(*OpResult)}}, &SubmitResponse{}, &SubmitResponse{})
	})
}

func TestWhatIsDecodedIsNotTheCallersMemory(t *testing.T) {
	t.Parallel()
	data, err := Codec{}.Marshal(&SubmitRequest{Ops: []*Op{{Op: &Op_Accept{Accept: &Accept{Id: []byte("id"), Function: "f", Payload: []byte("payload")}}}}})
	if err != nil {
		t.Fatal(err)
	}
	var m SubmitRequest
	if err := (Codec{}).Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	clear(data)
	a := m.GetOps()[0].GetAccept()
	if string(a.GetPayload()) != "payload" || string(a.GetId()) != "id" || cap(a.GetPayload()) != len(a.GetPayload()) {
		t.Errorf("%v, with room for %d", a, cap(a.GetPayload()))
	}
}

// FuzzCodec: whatever comes, the codec takes it as the library does.
func FuzzCodec(f *testing.F) {
	for _, m := range []proto.Message{
		&SubmitRequest{Ops: []*Op{{Op: &Op_Accept{Accept: &Accept{Id: []byte("0123456789abcdef"), Function: "f", Payload: []byte("p"), BodySum: 7}}}}},
		&SubmitRequest{Ops: []*Op{{Op: &Op_Cancel{Cancel: &Cancel{}}}, {}}},
		&SubmitResponse{Results: []*OpResult{{Code: Code_CODE_FULL, Detail: "d", Index: 9, Repeated: true, Reason: Reason_REASON_DISK}}},
		&SubmitResponse{Results: []*OpResult{{Run: &Grant{}}}},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, pair := range [][2]proto.Message{{&SubmitRequest{}, &SubmitRequest{}}, {&SubmitResponse{}, &SubmitResponse{}}} {
			ours, theirs := (Codec{}).Unmarshal(raw, pair[0]), proto.Unmarshal(raw, pair[1])
			if (ours == nil) != (theirs == nil) {
				t.Fatalf("%T: decoded with %v, by the library with %v", pair[0], ours, theirs)
			}
			if ours != nil {
				continue
			}
			if !proto.Equal(pair[0], pair[1]) {
				t.Fatalf("%T: decoded as\n%v\nby the library as\n%v", pair[0], pair[0], pair[1])
			}
			again, err := Codec{}.Marshal(pair[0])
			library, libraryErr := proto.MarshalOptions{Deterministic: true}.Marshal(pair[1])
			if (err == nil) != (libraryErr == nil) || len(again) != len(library) {
				t.Fatalf("%T: encoded as %x (%v), by the library as %x (%v)", pair[0], again, err, library, libraryErr)
			}
		}
	})
}

// BenchmarkCodec: a batch of 200 accepts of a kilobyte, there and back.
func BenchmarkCodec(b *testing.B) {
	request := &SubmitRequest{}
	for range 200 {
		request.Ops = append(request.Ops, &Op{Op: &Op_Accept{Accept: &Accept{Id: make([]byte, 16), Function: "fibonacci1", Payload: make([]byte, 1100)}}})
	}
	for name, f := range map[string]struct {
		marshal   func([]byte, any) ([]byte, error)
		unmarshal func([]byte, any) error
	}{
		"codec": {Codec{}.MarshalAppend, Codec{}.Unmarshal},
		"library": {
			func(b []byte, m any) ([]byte, error) {
				return proto.MarshalOptions{}.MarshalAppend(b, m.(proto.Message))
			},
			func(b []byte, m any) error { return proto.Unmarshal(b, m.(proto.Message)) },
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var buffer []byte
			for b.Loop() {
				var err error
				if buffer, err = f.marshal(buffer[:0], request); err != nil {
					b.Fatal(err)
				}
				if err := f.unmarshal(buffer, &SubmitRequest{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
