package command

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Version is the newest encoding, the first byte of an entry; every older one is read. An entry is written in the oldest version
// that has all its kinds, so that nodes of two releases understand one another until something new is used. A node that reads
// a newer one stops before it applies anything.
const Version = 3

// lastKind of each version, by version.
var lastKind = [Version + 1]kind{1: kindSetInstallation, 2: kindForgetWith, 3: kindDropUpload}

// Limits of one entry, checked by the encoder and the decoder alike.
const (
	// MaxName bounds names (function, session, replica, lock, address, installation), in bytes.
	MaxName = 1 << 10
	// MaxErrorText bounds Finish.Error, in bytes.
	MaxErrorText = 4 << 10
	// MaxKey bounds an idempotency key, in bytes.
	MaxKey = 200
	// MaxEntry bounds an encoded entry, in bytes: one payload of wire.MaxPayload and room for names.
	MaxEntry = 1<<20 + 128<<10
	// MaxCommands bounds the commands of one entry.
	MaxCommands = 1 << 12
	// HeaderSize is what an entry costs before its first command, in bytes.
	HeaderSize = 1 + 4 + 8
)

// Why an entry cannot be read. The node must stop: the log of this node, or its program, is not the others'.
var (
	ErrChecksum  = errors.New("entry fails its checksum")
	ErrMalformed = errors.New("entry is malformed")
	// ErrTooLarge is the encoder's: a command over the limits above is never proposed.
	ErrTooLarge = errors.New("command is too large")
)

// VersionError is an entry of an encoding this program does not know.
type VersionError struct{ Version byte }

func (e VersionError) Error() string {
	return fmt.Sprintf("entry has encoding version %d, this program knows 1 to %d only", e.Version, Version)
}

type kind uint8

// Numbers in the log for ever.
const (
	kindAccept kind = 1 + iota
	kindGrant
	kindFinish
	kindCancel
	kindOpenSession
	kindEndSession
	kindAcquireLock
	kindReleaseLock
	kindRecordActivity
	kindSetOverride
	kindForget
	kindSetInstallation

	// Since version 2. The …With kinds are the kinds above with fields that are not zero.

	kindAcceptWith
	kindFinishWith
	kindBury
	kindRedrive
	kindPurge
	kindForgetWith

	// Since version 3.

	kindAcceptBody
	kindPutPart
	kindDropUpload
)

func (c Accept) kind() kind {
	if c.Body != (Body{}) {
		return kindAcceptBody
	}
	if c.AcceptOptions != (AcceptOptions{}) {
		return kindAcceptWith
	}
	return kindAccept
}

func (c Finish) kind() kind {
	if c.Outcome == OutcomePostponed || len(c.Answer) > 0 {
		return kindFinishWith
	}
	return kindFinish
}

func (c Forget) kind() kind {
	if c.DeadKeepCount > 0 {
		return kindForgetWith
	}
	return kindForget
}

func (Grant) kind() kind           { return kindGrant }
func (Bury) kind() kind            { return kindBury }
func (PutPart) kind() kind         { return kindPutPart }
func (DropUpload) kind() kind      { return kindDropUpload }
func (Redrive) kind() kind         { return kindRedrive }
func (Purge) kind() kind           { return kindPurge }
func (Cancel) kind() kind          { return kindCancel }
func (OpenSession) kind() kind     { return kindOpenSession }
func (EndSession) kind() kind      { return kindEndSession }
func (AcquireLock) kind() kind     { return kindAcquireLock }
func (ReleaseLock) kind() kind     { return kindReleaseLock }
func (RecordActivity) kind() kind  { return kindRecordActivity }
func (SetOverride) kind() kind     { return kindSetOverride }
func (SetInstallation) kind() kind { return kindSetInstallation }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode gives the entry of a batch.
func Encode(b Batch) ([]byte, error) {
	commands, err := EncodeCommands(b.Commands)
	if err != nil {
		return nil, err
	}
	return Assemble(b.NowUnixMs, commands), nil
}

// Assemble gives the entry of commands that EncodeCommands made. Limits on the whole are the caller's to keep.
//
// Entry: version byte, CRC-32C of the rest (little endian), now (8 bytes, big endian), then each command as kind byte,
// uvarint length, body.
func Assemble(nowUnixMs int64, commands [][]byte) []byte {
	size := HeaderSize
	for _, c := range commands {
		size += len(c)
	}
	entry := make([]byte, 5, size)
	entry[0] = 1
	entry = binary.BigEndian.AppendUint64(entry, uint64(nowUnixMs))
	for _, c := range commands {
		for entry[0] < Version && kind(c[0]) > lastKind[entry[0]] {
			entry[0]++
		}
		entry = append(entry, c...)
	}
	binary.LittleEndian.PutUint32(entry[1:5], crc32.Checksum(entry[5:], castagnoli))
	return entry
}

// EncodeCommands gives the encoded form of each command, as Assemble takes it. They lie in one piece of memory.
func EncodeCommands(commands []Command) ([][]byte, error) {
	room := 0
	for _, c := range commands {
		room += roomFor(c)
	}
	w := writer{b: make([]byte, 0, room)}
	all := make([][]byte, len(commands))
	for i, c := range commands {
		var err error
		if all[i], err = w.command(c); err != nil {
			return nil, fmt.Errorf("encoding command %d: %w", i, err)
		}
	}
	return all, nil
}

// roomFor a command, header included: what nearly all of its kind need at most, in bytes.
func roomFor(c Command) int {
	const fields = 96
	switch c := c.(type) {
	case Accept:
		return fields + len(c.Function) + len(c.Payload)
	case PutPart:
		return fields + len(c.Data)
	case Finish:
		return fields + len(c.Error) + len(c.Answer)
	default:
		return fields
	}
}

// command appends one, and gives its encoded form.
func (w *writer) command(c Command) ([]byte, error) {
	from := len(w.b)
	w.b = append(w.b, make([]byte, commandHeader)...)
	switch c := c.(type) {
	case Accept:
		w.id(c.ID)
		w.text(c.Function, MaxName)
		if k := c.kind(); k != kindAccept {
			w.options(c.AcceptOptions)
			if k == kindAcceptBody {
				w.uint(uint64(c.Body.Parts))
				w.uint(c.Body.Size)
				w.uint(uint64(c.Body.Sum))
			}
		}
		w.b = append(w.b, c.Payload...)
	case PutPart:
		w.id(c.ID)
		w.uint(c.Session)
		w.uint(uint64(c.Number))
		w.uint(c.MaxBytes)
		w.uint(c.MaxUploads)
		w.b = append(w.b, c.Data...)
	case DropUpload:
		w.id(c.ID)
		w.uint(c.Index)
	case Grant:
		w.id(c.ID)
		w.uint(c.Session)
		w.text(c.Replica, MaxName)
		w.uint(uint64(c.MaxTries))
	case Finish:
		w.id(c.ID)
		w.uint(c.Fence)
		w.uint(uint64(c.Outcome))
		w.uint(uint64(c.Status))
		w.text(c.Error, MaxErrorText)
		w.int(c.NextTryUnixMs)
		w.b = append(w.b, c.Answer...)
	case Cancel:
		w.id(c.ID)
	case Bury:
		w.id(c.ID)
		w.text(c.Error, MaxErrorText)
	case Redrive:
		w.dead(c.DeadCalls)
	case Purge:
		w.dead(c.DeadCalls)
	case OpenSession:
		w.text(c.Name, MaxName)
		w.text(c.Incarnation, MaxName)
		w.uint(uint64(c.Kind))
		w.text(c.Address, MaxName)
	case EndSession:
		w.uint(c.Session)
		w.bool(c.Expired)
	case AcquireLock:
		w.text(c.Lock, MaxName)
		w.uint(c.Session)
	case ReleaseLock:
		w.text(c.Lock, MaxName)
		w.uint(c.Session)
	case RecordActivity:
		w.uint(uint64(len(c.Activities)))
		for _, a := range c.Activities {
			w.text(a.Function, MaxName)
			w.int(a.AtUnixMs)
		}
	case SetOverride:
		w.text(c.Function, MaxName)
		w.int(int64(c.Replicas))
		w.int(c.UntilUnixMs)
	case Forget:
		w.int(c.BeforeUnixMs)
		w.int(c.DeadBeforeUnixMs)
		w.uint(c.KeepCount)
		w.uint(uint64(c.Limit))
		if c.kind() == kindForgetWith {
			w.uint(c.DeadKeepCount)
		}
	case SetInstallation:
		w.text(c.ID, MaxName)
	default:
		return nil, fmt.Errorf("encoding %T: %w", c, ErrMalformed)
	}
	if w.tooLarge || HeaderSize+len(w.b)-from > MaxEntry {
		return nil, fmt.Errorf("encoding %T: %w", c, ErrTooLarge)
	}
	// The header goes right before the body, into the room that was left: no payload is copied for it.
	var head [commandHeader]byte
	n := len(binary.AppendUvarint(append(head[:0], byte(c.kind())), uint64(len(w.b)-from-commandHeader)))
	start := from + commandHeader - n
	copy(w.b[start:], head[:n])
	return w.b[start:len(w.b):len(w.b)], nil
}

// commandHeader is the room for kind and length.
const commandHeader = 1 + binary.MaxVarintLen32

// Decode reads an entry. Payloads are slices of it: the caller leaves it unchanged for as long as it keeps the batch.
func Decode(entry []byte) (Batch, error) {
	if len(entry) == 0 {
		return Batch{}, fmt.Errorf("decoding an empty entry: %w", ErrMalformed)
	}
	if entry[0] == 0 || entry[0] > Version {
		return Batch{}, VersionError{Version: entry[0]}
	}
	if len(entry) < HeaderSize || len(entry) > MaxEntry {
		return Batch{}, fmt.Errorf("decoding an entry of %d bytes: %w", len(entry), ErrMalformed)
	}
	if binary.LittleEndian.Uint32(entry[1:5]) != crc32.Checksum(entry[5:], castagnoli) {
		return Batch{}, ErrChecksum
	}
	b := Batch{NowUnixMs: int64(binary.BigEndian.Uint64(entry[5:HeaderSize]))}
	rest := entry[HeaderSize:]
	for len(rest) > 0 {
		if len(b.Commands) == MaxCommands {
			return Batch{}, fmt.Errorf("decoding more than %d commands: %w", MaxCommands, ErrMalformed)
		}
		k := kind(rest[0])
		if k > lastKind[entry[0]] {
			return Batch{}, fmt.Errorf("decoding command %d: kind %d in version %d: %w", len(b.Commands), k, entry[0], ErrMalformed)
		}
		size, n := binary.Uvarint(rest[1:])
		if n <= 0 || size > uint64(len(rest)-1-n) {
			return Batch{}, fmt.Errorf("decoding the length of command %d: %w", len(b.Commands), ErrMalformed)
		}
		start := 1 + n
		end := start + int(size)
		c, err := decodeCommand(k, rest[start:end:end], len(entry)-len(rest)+end)
		if err != nil {
			return Batch{}, fmt.Errorf("decoding command %d: %w", len(b.Commands), err)
		}
		b.Commands = append(b.Commands, c)
		rest = rest[end:]
	}
	return b, nil
}

// decodeCommand of a body that ends at a place in its entry.
func decodeCommand(k kind, body []byte, end int) (Command, error) {
	r := reader{b: body}
	var c Command
	switch k {
	case kindAccept, kindAcceptWith, kindAcceptBody:
		a := Accept{ID: r.id(), Function: r.text(MaxName)}
		if k != kindAccept {
			a.AcceptOptions = r.options()
		}
		if k == kindAcceptBody {
			a.Body = Body{Parts: r.uint32(), Size: r.uint(), Sum: r.uint32()}
		}
		a.Payload, r.b = r.b, nil
		a.PayloadAt = uint32(end - len(a.Payload))
		c = a
	case kindPutPart:
		p := PutPart{ID: r.id(), Session: r.uint(), Number: r.uint32(), MaxBytes: r.uint(), MaxUploads: r.uint()}
		p.Data, r.b = r.b, nil
		c = p
	case kindDropUpload:
		c = DropUpload{ID: r.id(), Index: r.uint()}
	case kindGrant:
		c = Grant{ID: r.id(), Session: r.uint(), Replica: r.text(MaxName), MaxTries: r.uint32()}
	case kindFinish, kindFinishWith:
		f := Finish{
			ID: r.id(), Fence: r.uint(), Outcome: Outcome(r.uint8()), Status: r.uint32(), Error: r.text(MaxErrorText),
			NextTryUnixMs: r.int(),
		}
		if k == kindFinishWith && len(r.b) > 0 {
			f.Answer, r.b = r.b, nil
		}
		c = f
	case kindCancel:
		c = Cancel{ID: r.id()}
	case kindBury:
		c = Bury{ID: r.id(), Error: r.text(MaxErrorText)}
	case kindRedrive:
		c = Redrive{r.dead()}
	case kindPurge:
		c = Purge{r.dead()}
	case kindOpenSession:
		c = OpenSession{Name: r.text(MaxName), Incarnation: r.text(MaxName), Kind: r.uint8(), Address: r.text(MaxName)}
	case kindEndSession:
		c = EndSession{Session: r.uint(), Expired: r.bool()}
	case kindAcquireLock:
		c = AcquireLock{Lock: r.text(MaxName), Session: r.uint()}
	case kindReleaseLock:
		c = ReleaseLock{Lock: r.text(MaxName), Session: r.uint()}
	case kindRecordActivity:
		n := r.uint()
		if n > uint64(len(r.b)) { // each takes two bytes at least
			return nil, ErrMalformed
		}
		a := RecordActivity{}
		for range n {
			a.Activities = append(a.Activities, Activity{Function: r.text(MaxName), AtUnixMs: r.int()})
		}
		c = a
	case kindSetOverride:
		o := SetOverride{Function: r.text(MaxName)}
		replicas := r.int()
		o.Replicas, o.UntilUnixMs = int32(replicas), r.int()
		if int64(o.Replicas) != replicas {
			return nil, ErrMalformed
		}
		c = o
	case kindForget, kindForgetWith:
		f := Forget{BeforeUnixMs: r.int(), DeadBeforeUnixMs: r.int(), KeepCount: r.uint(), Limit: r.uint32()}
		if k == kindForgetWith {
			f.DeadKeepCount = r.uint()
		}
		c = f
	case kindSetInstallation:
		c = SetInstallation{ID: r.text(MaxName)}
	default:
		return nil, fmt.Errorf("kind %d: %w", k, ErrMalformed)
	}
	if r.bad || len(r.b) > 0 {
		return nil, fmt.Errorf("body of kind %d: %w", k, ErrMalformed)
	}
	return c, nil
}

func (w *writer) options(o AcceptOptions) {
	w.int(o.NotBeforeUnixMs)
	w.int(o.ExpireUnixMs)
	w.uint(o.KeepResultMs)
	w.text(o.Key, MaxKey)
	w.b = append(w.b, o.RequestHash[:]...)
	w.int(o.KeyUntilUnixMs)
	w.uint(o.MaxKeys)
}

func (r *reader) options() AcceptOptions {
	return AcceptOptions{
		NotBeforeUnixMs: r.int(), ExpireUnixMs: r.int(), KeepResultMs: r.uint(),
		Key: r.text(MaxKey), RequestHash: Hash(r.id()), KeyUntilUnixMs: r.int(), MaxKeys: r.uint(),
	}
}

func (w *writer) dead(d DeadCalls) {
	w.text(d.Function, MaxName)
	w.id(d.ID)
	w.uint(d.UpTo)
	w.uint(uint64(d.Limit))
}

func (r *reader) dead() DeadCalls {
	return DeadCalls{Function: r.text(MaxName), ID: r.id(), UpTo: r.uint(), Limit: r.uint32()}
}
