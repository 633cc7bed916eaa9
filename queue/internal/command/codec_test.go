package command

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func everyKind() []Command {
	id := ID{1, 2, 3, 15: 9}
	return []Command{
		Accept{ID: id, Function: "fibonacci", Payload: []byte("body")},
		Accept{ID: id, Function: "", Payload: []byte{}},
		Grant{ID: id, Session: 7, Replica: "fibonacci-0", MaxTries: 4},
		Finish{ID: id, Fence: 99, Outcome: OutcomeRetry, Status: 503, Error: "status 503", NextTryUnixMs: -5},
		Cancel{ID: id},
		OpenSession{Name: "edge-0", Incarnation: "a", Kind: 1, Address: "127.0.0.1:5000"},
		EndSession{Session: 12, Expired: true},
		AcquireLock{Lock: "scaler", Session: 12},
		ReleaseLock{Lock: "scaler", Session: 12},
		RecordActivity{Activities: []Activity{{Function: "a", AtUnixMs: 1}, {Function: "b", AtUnixMs: 2}}},
		RecordActivity{},
		SetOverride{Function: "a", Replicas: -1, UntilUnixMs: 3},
		Forget{BeforeUnixMs: 1, DeadBeforeUnixMs: 2, KeepCount: 3, Limit: 4},
		SetInstallation{ID: "x"},
		Accept{ID: id, Function: "f", Payload: []byte("body"), AcceptOptions: AcceptOptions{
			NotBeforeUnixMs: 1, ExpireUnixMs: -2, KeepResultMs: 3, Key: "k", RequestHash: Hash{4, 15: 5}, KeyUntilUnixMs: 6, MaxKeys: 7,
		}},
		Finish{ID: id, Fence: 1, Outcome: OutcomePostponed, Status: 429, NextTryUnixMs: 7},
		Finish{ID: id, Fence: 1, Outcome: OutcomeSucceeded, Status: 200, Answer: []byte("answer")},
		Bury{ID: id, Error: "expired"},
		Redrive{DeadCalls{Function: "f", ID: id}},
		Purge{DeadCalls{Function: "f", UpTo: 9, Limit: 8}},
		Forget{BeforeUnixMs: 1, DeadKeepCount: 5},
		Accept{ID: id, Function: "f", Payload: []byte("head"), Body: Body{Parts: 3, Size: 9, Sum: 1 << 31}},
		Accept{ID: id, Function: "f", Payload: []byte{}, Body: Body{Parts: 1, Size: 1}, AcceptOptions: AcceptOptions{KeepResultMs: 3}},
		PutPart{ID: id, Session: 12, Number: 7, MaxBytes: 1 << 30, MaxUploads: 4096, Data: []byte("part")},
		DropUpload{ID: id, Index: 99},
	}
}

func TestEveryKindComesBackAsItWas(t *testing.T) {
	t.Parallel()
	want := Batch{NowUnixMs: 1_764_000_000_123, Commands: everyKind()}
	entry, err := Encode(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(entry)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range got.Commands {
		if a, ok := c.(Accept); ok {
			if at := entry[a.PayloadAt:]; a.PayloadAt == 0 || !bytes.HasPrefix(at, a.Payload) {
				t.Errorf("the payload %q of command %d is said to be at %d", a.Payload, i, a.PayloadAt)
			}
			a.PayloadAt = 0
			got.Commands[i] = a
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

// A node of the release before must be able to read everything that uses nothing new, and must stop, with the version in its
// message, at everything else.
func TestAnEntryHasTheOldestVersionThatCanSayIt(t *testing.T) {
	t.Parallel()
	for _, c := range everyKind() {
		entry, err := Encode(Batch{Commands: []Command{Cancel{}, c, Cancel{}}})
		if err != nil {
			t.Fatal(err)
		}
		want := byte(1)
		switch k := c.kind(); {
		case k > kindForgetWith:
			want = 3
		case k > kindSetInstallation:
			want = 2
		}
		if entry[0] != want {
			t.Errorf("%+v is in version %d, want %d", c, entry[0], want)
		}
	}
	entry, err := Encode(Batch{Commands: []Command{Bury{}}})
	if err != nil {
		t.Fatal(err)
	}
	entry[0] = 1
	if _, err := Decode(entry); !errors.Is(err, ErrMalformed) {
		t.Errorf("a kind of version 2 in an entry of version 1: %v", err)
	}
	if entry, err = Encode(Batch{Commands: []Command{PutPart{Data: []byte("part")}}}); err != nil {
		t.Fatal(err)
	}
	entry[0] = 2
	if _, err := Decode(entry); !errors.Is(err, ErrMalformed) {
		t.Errorf("a kind of version 3 in an entry of version 2: %v", err)
	}
	entry[0] = Version + 1
	var version VersionError
	if _, err := Decode(entry); !errors.As(err, &version) || version.Version != Version+1 {
		t.Errorf("a version of the future: %v", err)
	}
}

func TestPayloadIsASliceOfTheEntry(t *testing.T) {
	t.Parallel()
	entry, err := Encode(Batch{Commands: []Command{Accept{Payload: []byte("payload")}}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Decode(entry)
	if err != nil {
		t.Fatal(err)
	}
	payload := b.Commands[0].(Accept).Payload
	at := bytes.Index(entry, []byte("payload"))
	if &payload[0] != &entry[at] || cap(payload) != len(payload) {
		t.Fatal("payload was copied, or reaches past its end")
	}
}

func TestDamageIsATypedError(t *testing.T) {
	t.Parallel()
	good, err := Encode(Batch{NowUnixMs: 1, Commands: everyKind()})
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		damaged := bytes.Clone(good)
		damaged[i] ^= 0x40
		_, err := Decode(damaged)
		var version VersionError
		if !errors.Is(err, ErrChecksum) && !(i == 0 && errors.As(err, &version)) {
			t.Fatalf("flipped bit in byte %d: %v", i, err)
		}
	}
	for i := range good {
		if _, err := Decode(good[:i]); err == nil {
			t.Fatalf("cut at %d was accepted", i)
		}
	}
}

func TestEncoderRefusesWhatTheDecoderWould(t *testing.T) {
	t.Parallel()
	for _, c := range []Command{
		Accept{Function: strings.Repeat("f", MaxName+1)},
		Accept{Payload: make([]byte, MaxEntry)},
		Finish{Error: strings.Repeat("e", MaxErrorText+1)},
		OpenSession{Address: strings.Repeat("a", MaxName+1)},
	} {
		if _, err := EncodeCommands([]Command{OpenSession{}, c}); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("%T: %v", c, err)
		}
	}
}

// Property: Decode never panics, and what it accepts encodes to an entry that decodes to the same.
func FuzzDecode(f *testing.F) {
	for _, c := range everyKind() {
		encoded, err := EncodeCommands([]Command{c})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded[0])
	}
	f.Fuzz(func(t *testing.T, commands []byte) {
		_, _ = Decode(commands)
		if len(commands) == 0 {
			return
		}
		b, err := Decode(Assemble(5, [][]byte{commands})) // past the checksum
		if err != nil {
			return
		}
		entry, err := Encode(b)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(entry)
		if err != nil || !reflect.DeepEqual(again, b) {
			t.Fatalf("%v\n%+v\n%+v", err, again, b)
		}
	})
}
