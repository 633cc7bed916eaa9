// Package fsm is the replicated state machine: commands in, results and store operations out. Pure: no clock, no I/O, no
// goroutine, no map order in anything it returns.
package fsm

import "github.com/slimfaas/slimfaas/queue/internal/command"

// Code of a result.
type Code uint8

// Values of Code.
const (
	OK       Code = iota
	NotFound      // no such call, session, lock
	Conflict      // the state forbids it
	Stale         // the fence or session has moved on
	Invalid
	Full // a limit that the command carries is reached
)

// Result of one command.
type Result struct {
	Code     Code
	Detail   string
	Index    uint64     // id of the session, token of the lock, fence of the grant; 0 otherwise
	Repeated bool       // accept: the id or its key was known; awaiting: it was so already; open session, acquire lock: already had
	More     bool       // forget, redrive, purge: its limit ended it, propose another
	ID       command.ID // accept, unless refused: of the call, which with a known key is the first one's
	Count    uint64     // redrive, purge: calls
}

// Bucket names a part of the store.
type Bucket uint8

// Buckets of the store. Keys are big endian so that they sort.
const (
	BucketMeta Bucket = iota // "state": clock and counters; "installation"
	BucketCall               // sequence → call record without payload
	// BucketPayload: sequence → payload bytes; the answer of a call, when it is kept, has a sequence of its own. A large body has
	// one too, with the number of the part behind it (PartKey).
	BucketPayload
	BucketFunction // function → conservation counters
	BucketSession  // session id → session record
	BucketLock     // lock → lock record
	BucketActivity // function → unix ms
	BucketOverride // function → override record
	BucketKey      // digest of function and idempotency key → key record
	BucketUpload   // id → upload record

	Buckets = int(BucketUpload) + 1 // how many there are
)

// Op is one store operation: Value nil deletes the key. All operations of an entry are executed in one transaction together
// with the applied index.
type Op struct {
	Bucket Bucket
	Key    []byte
	Value  []byte
	// Source is set where the value is a part of the entry.
	Source Source
}

// Source is where in the Raft log a value lies as it is, so that who keeps the log need not write it again. Zero: nowhere.
type Source struct {
	Index  uint64 // of the entry
	Offset uint32 // in the entry's data, in bytes
}

// State of a call. The numbers are wire.CallState's.
type State uint8

// Values of State.
const (
	Queued State = 1 + iota
	Running
	Awaiting
	Waiting
	Succeeded
	Dead
	Cancelled
)

// Call is the index entry of one call. Times are UTC milliseconds, 0 unknown.
type Call struct {
	ID             command.ID
	Seq            uint64 // order of acceptance: FIFO place, key in the store
	Function       string
	State          State
	Tries          uint32
	MaxTries       uint32
	EnqueuedUnixMs int64
	StartedUnixMs  int64 // of the last try
	NextTryUnixMs  int64 // with Waiting
	ExpireUnixMs   int64 // no try begins later; 0: never
	FinishedUnixMs int64
	LastStatus     uint32
	LastError      string
	Session        uint64 // with Running
	Fence          uint64 // with Running and Awaiting
	Replica        string // with Running and Awaiting
	Size           uint32 // of the payload, without a Body
	Body           *Body  // nil: the payload is all there is. Never changed
	Ended          uint64 // place in the order of ending; 0: unfinished
	KeepResult     bool   // the caller asked to keep what the function answers
	Answer         uint64 // sequence of the kept answer; 0: none
	KeptUntilMs    int64  // with an Answer, once the call has ended: UTC milliseconds
}

// Topic says what a Change is about.
type Topic uint8

// Values of Topic. The zero value is the frequent one.
const (
	TopicCall Topic = iota
	TopicSession
	TopicLock
	TopicOverride
	TopicInstallation
	TopicUpload
)

// Change tells the shell around the state machine that something moved; the dispatcher of a leader keeps its lanes by it.
// Forgetting and activity make no change.
type Change struct {
	Topic Topic
	Call  Call  // with TopicCall: after the change
	From  State // with TopicCall: before it; 0: new

	Session  *Session  // with TopicSession: after the change
	Lock     *Lock     // with TopicLock: after the change; Session 0: free
	Override *Override // with TopicOverride: after the change; Replicas < 0: ended
	Upload   *Upload   // with TopicUpload: after the change
}

// Session of an edge or a scaler. Live until it ended; a closed one is dropped at once, an expired one is kept as Vanished.
type Session struct {
	ID          uint64 // index of the entry that opened it, or the next free number if that entry gave out several
	Name        string
	Incarnation string
	Kind        uint8 // wire.SessionKind
	Address     string
	Vanished    bool
	Ended       bool  // in a Change only: closed, expired or replaced by another incarnation
	EndedUnixMs int64 // with Vanished
}

// Lock that a live session has.
type Lock struct {
	Name    string
	Session uint64 // 0: free (in a Change only)
	Token   uint64 // grows with every holder of any lock; the index of the entry that gave it, or the next free number
}

// Override of a function's replicas by an operator.
type Override struct {
	Function    string
	Replicas    int32
	UntilUnixMs int64
}

// Counters of one function. Conservation: Accepted + Redriven = Succeeded + Dead + Cancelled + Queued + Running + Awaiting +
// Waiting, where the first five only ever grow (forgetting changes none).
type Counters struct {
	Accepted, Redriven, Succeeded, Dead, Cancelled uint64
	Queued, Running, Awaiting, Waiting             uint64
}

// Unfinished calls of the function.
func (n Counters) Unfinished() uint64 { return n.Queued + n.Running + n.Awaiting + n.Waiting }

// Conserved says whether the law holds.
func (n Counters) Conserved() bool {
	return n.Accepted+n.Redriven == n.Succeeded+n.Dead+n.Cancelled+n.Unfinished()
}
