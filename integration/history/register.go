package history

import (
	"fmt"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind of an operation on one call, seen as a register.
type Kind uint8

// Kinds.
const (
	Accept Kind = iota + 1 // absent → queued; on anything else it changes nothing
	Cancel                 // queued → cancelled
	Read
)

// Seen is what an operation found. As the state of a call it is Absent, Queued or Cancelled: a call that nobody delivers is in no
// other.
type Seen uint8

// What operations find.
const (
	Absent Seen = iota
	Queued
	Cancelled
	// Done: the operation was carried out, whatever the state was before (accept), or changed it (cancel).
	Done
	// Perhaps: the outcome is unknown. It may be carried out at any time after it was asked for, or never.
	Perhaps
)

// Op is one operation with the times of its invocation and return, since the recorder began.
type Op struct {
	Client       int
	Key          string
	Kind         Kind
	Seen         Seen
	Call, Return time.Duration
}

func (o Op) String() string {
	kinds := map[Kind]string{Accept: "accept", Cancel: "cancel", Read: "read"}
	seen := map[Seen]string{Absent: "absent", Queued: "queued", Cancelled: "cancelled", Done: "done", Perhaps: "?"}
	return fmt.Sprintf("%s → %s [client %d, %v to %v]", kinds[o.Kind], seen[o.Seen], o.Client, o.Call, o.Return)
}

// Recorder takes down operations; safe for concurrent use. Make it with NewRecorder.
type Recorder struct {
	began time.Time

	mu  sync.Mutex
	ops map[string][]Op // guarded by mu; by key
	n   int             // guarded by mu
}

// NewRecorder begins now.
func NewRecorder() *Recorder { return &Recorder{began: time.Now(), ops: map[string][]Op{}} }

// Now is the time on the recorder's clock, which is monotonic.
func (r *Recorder) Now() time.Duration { return time.Since(r.began) }

// Add an operation. A read without an answer says nothing and is not added by its caller.
func (r *Recorder) Add(o Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops[o.Key] = append(r.ops[o.Key], o)
	r.n++
}

// Size is how many operations on how many keys there are.
func (r *Recorder) Size() (ops, keys int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n, len(r.ops)
}

// perKeyLimit bounds the search on one key. A key that is not decided in that time is an error: it has too many operations.
const perKeyLimit = 60 * time.Second

// Linearizable searches for an order of the operations of each key that a single call could have gone through, and in which
// nothing returns before it was asked for.
func (r *Recorder) Linearizable() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, ops := range r.ops {
		switch check(ops) {
		case porcupine.Illegal:
			text := ""
			for _, o := range ops {
				text += "\n  " + o.String()
			}
			return fmt.Errorf("the history of call %x is not linearizable:%s", key, text)
		case porcupine.Unknown:
			return fmt.Errorf("the history of call %x (%d operations) was not decided in %v", key, len(ops), perKeyLimit)
		}
	}
	return nil
}

func check(ops []Op) porcupine.CheckResult {
	end := time.Duration(0)
	for _, o := range ops {
		end = max(end, o.Return)
	}
	events := make([]porcupine.Operation, 0, len(ops))
	for _, o := range ops {
		e := porcupine.Operation{ClientId: o.Client, Input: o.Kind, Output: o.Seen, Call: int64(o.Call), Return: int64(o.Return)}
		if o.Seen == Perhaps {
			e.Return = int64(end) + 1 // it may still happen when all others have returned
		}
		events = append(events, e)
	}
	return porcupine.CheckOperationsTimeout(register, events, perKeyLimit)
}

// register is the life of one call that nobody delivers.
var register = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{Absent} },
	Step: func(state, input, output any) []any {
		from, seen := state.(Seen), output.(Seen)
		to := from
		switch kind := input.(Kind); {
		case kind == Accept && from == Absent:
			to = Queued
		case kind == Cancel && from == Queued:
			to = Cancelled
		}
		switch kind := input.(Kind); {
		case seen == Perhaps && to != from:
			return []any{from, to}
		case seen == Perhaps, kind == Accept && seen == Done:
			return []any{to}
		case kind == Cancel && seen == Done && to != from, kind != Accept && seen == from && to == from:
			return []any{to}
		}
		return nil
	},
}).ToModel()
