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
)

// Result of one command.
type Result struct {
	Code     Code
	Detail   string
	Index    uint64 // id of the session, token of the lock, fence of the grant; 0 otherwise
	Repeated bool   // accept: the id was known
}

// Bucket names a part of the store.
type Bucket uint8

// Buckets of the store. Keys are big endian so that they sort.
const (
	BucketMeta     Bucket = iota // "now", "installation", counters
	BucketCall                   // sequence → call record without payload
	BucketPayload                // sequence → payload bytes
	BucketFunction               // function → conservation counters
	BucketSession                // session id → session record
	BucketLock                   // lock → lock record
	BucketActivity               // function → unix ms
	BucketOverride               // function → override record
)

// Op is one store operation: Value nil deletes the key. All operations of an entry are executed in one transaction together
// with the applied index.
type Op struct {
	Bucket Bucket
	Key    []byte
	Value  []byte
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
	FinishedUnixMs int64
	LastStatus     uint32
	LastError      string
	Session        uint64 // with Running
	Fence          uint64 // with Running and Awaiting
	Replica        string // with Running and Awaiting
	Size           uint32 // of the payload
}

// Change tells the shell around the state machine that a call moved; the dispatcher of a leader keeps its lanes by it.
type Change struct {
	Call Call // after the change
	From State // 0: new
}
