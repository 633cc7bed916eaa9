// Package command is what the Raft log holds: batches of commands in a versioned, checksummed encoding. Pure.
//
// Whoever proposes a command has decided; the command carries the outcome and every time it needs. Nothing here knows a
// clock, a limit, a function's settings.
package command

import "fmt"

// ID of a call: a UUIDv7, 16 bytes, minted by the edge.
type ID [16]byte

// String is the lower-case form with dashes that callers see.
func (id ID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
}

// Batch is one Raft entry: commands of every kind, applied in order at one moment.
type Batch struct {
	// NowUnixMs is the proposing leader's wall clock, UTC milliseconds. The state machine uses max(NowUnixMs, last now).
	NowUnixMs int64
	Commands  []Command
}

// Command is one of the types below.
type Command interface{ kind() kind }

// Accept enqueues a call with the whole payload. An ID that lives, or is still remembered, is answered as repeated and changes nothing.
type Accept struct {
	ID       ID
	Function string
	Payload  []byte // opaque StoredRequest; goes to the store, never into the index
	// PayloadAt is where in its entry the payload lies, in bytes. Decode sets it; 0: this was not decoded.
	PayloadAt uint32
	AcceptOptions
	// Body was put before, under this ID; the payload is the request without it. Zero: the payload is all there is. An upload that
	// is not exactly this is a conflict.
	Body Body
}

// Body of a call that was put in parts.
type Body struct {
	Parts uint32 // 0: there is none
	Size  uint64 // of all parts together, in bytes
	Sum   uint32 // CRC-32C of all parts together, as the edge counted it; the state machine takes it as it is
}

// PutPart stores one part of a body under the id of the call that will be accepted with it. Parts come in order and are as large
// as the first, but for the last. One that is there already is answered as repeated; one that does not follow the last is a
// conflict; a session that is not live is stale.
type PutPart struct {
	ID      ID
	Session uint64 // owner: what it has not accepted goes with it
	Number  uint32 // 0 begins the upload
	// MaxBytes of all unfinished uploads together, MaxUploads how many there may be: over them the part is refused (full). 0: no limit.
	MaxBytes, MaxUploads uint64
	Data                 []byte // goes to the store, never into the index
}

// DropUpload forgets an upload that no accept has taken.
type DropUpload struct {
	ID ID
	// Index of the entry with the last part, as the proposer knows it: an upload that has moved on since stays (conflict). 0: whatever
	// it is.
	Index uint64
}

// AcceptOptions are what a caller may ask for. The zero value asks for nothing.
type AcceptOptions struct {
	NotBeforeUnixMs int64  // the first try not before; 0: at once
	ExpireUnixMs    int64  // whoever leads ends the call as dead then, unless a try is under way; 0: never
	KeepResultMs    uint64 // how long after the end the function's answer is kept; 0: not at all

	// Key under which a second accept of the function with the same hash is a repeat, and one with another hash a conflict,
	// until KeyUntilUnixMs. Empty: none, and the rest means nothing.
	Key            string
	RequestHash    Hash
	KeyUntilUnixMs int64
	MaxKeys        uint64 // with so many keys alive, a new one is refused (full); 0: no limit
}

// Hash tells one request from another.
type Hash [16]byte

// Grant starts a try of a queued or due waiting call for one session and replica. The fence is the index of the entry.
// Refused (conflict) when the call is not Queued or Waiting, (stale) when the session is not live.
type Grant struct {
	ID       ID
	Session  uint64
	Replica  string
	MaxTries uint32 // as the function asks at this moment, for status
}

// Outcome of a try, decided by the leader.
type Outcome uint8

// Values of Outcome. Only Released takes the try back.
const (
	OutcomeSucceeded Outcome = 1 + iota
	OutcomeRetry             // Waiting until NextTryUnixMs
	OutcomeDead
	OutcomeAwaiting // the function answered 202: keeps its slot, leaves its session
	OutcomeReleased // not sent: back to Queued (or Waiting, due) at its place, the try is not counted
	// OutcomePostponed: the function answered "not now": Waiting until NextTryUnixMs, the try is not counted.
	OutcomePostponed
)

// Finish ends the try with this fence; another fence, or a call that is neither Running nor Awaiting, is stale and changes nothing.
type Finish struct {
	ID            ID
	Fence         uint64
	Outcome       Outcome
	Status        uint32 // 0: no answer
	Error         string // for people, at most 500 bytes
	NextTryUnixMs int64  // with OutcomeRetry and OutcomePostponed
	// Answer is what the function answered, an opaque StoredAnswer, to be kept with the call until its next try. Empty: nothing.
	Answer []byte
}

// Bury ends a call that is Queued or Waiting as Dead, without a try; any other is a conflict.
type Bury struct {
	ID    ID
	Error string // for people, at most 500 bytes
}

// Redrive puts dead calls of a function back among the queued ones: ids and places stay, tries restart, a maximum age does not
// apply any more.
type Redrive struct{ DeadCalls }

// Purge forgets dead calls of a function.
type Purge struct{ DeadCalls }

// DeadCalls of one function.
type DeadCalls struct {
	Function string
	ID       ID     // this one; zero: all, the oldest first
	UpTo     uint64 // without an ID: none that ended later than this place in the order of ending
	Limit    uint32 // without an ID: so many at most, so that apply stays short; 0: no limit
}

// Cancel ends a call that is Queued or Waiting; Running or Awaiting is a conflict, ended too.
type Cancel struct{ ID ID }

// OpenSession begins a session, or returns the live one of the same name and incarnation. Another incarnation of the name is ended first.
type OpenSession struct {
	Name        string
	Incarnation string
	Kind        uint8 // wire.SessionKind
	Address     string
}

// EndSession ends a session and frees its locks. Expired: it vanished (no close), and is remembered as such until its name
// comes back or ForgetBefore passes. Calls it held stay Running: the leader finishes each with the outcome the function's settings give.
type EndSession struct {
	Session uint64
	Expired bool
}

// AcquireLock gives the lock to a live session if it is free or already its own. The token is the index of the entry that gave it.
type AcquireLock struct {
	Lock    string
	Session uint64
}

// ReleaseLock frees the lock if this session has it.
type ReleaseLock struct {
	Lock    string
	Session uint64
}

// RecordActivity raises the last activity of functions; an older time than the known one changes nothing.
type RecordActivity struct {
	Activities []Activity
}

// Activity of one function.
type Activity struct {
	Function string
	AtUnixMs int64
}

// SetOverride is what an operator asked for; Replicas < 0 ends it.
type SetOverride struct {
	Function    string
	Replicas    int32
	UntilUnixMs int64
}

// Forget drops finished calls that ended before BeforeUnixMs, then the oldest finished ones over KeepCount (of those whose
// answer is kept, the first to expire last of all); answers whose time is up; Dead calls ended before DeadBeforeUnixMs or over
// DeadKeepCount; idempotency keys, overrides whose time is up; vanished sessions ended before BeforeUnixMs. Payloads go with
// their calls.
type Forget struct {
	BeforeUnixMs     int64
	DeadBeforeUnixMs int64
	KeepCount        uint64 // finished calls to keep at most, dead ones not counted; 0: no limit
	DeadKeepCount    uint64 // dead calls to keep at most, all functions together; 0: no limit
	Limit            uint32 // calls, answers and keys dropped by this one command at most, so that apply stays short; 0: no limit
}

// SetInstallation names the installation, once: a second one changes nothing.
type SetInstallation struct{ ID string }
