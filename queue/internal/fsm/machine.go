package fsm

import (
	"encoding/binary"
	"slices"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/priority"
)

// Machine is the state: an index of calls without payloads, sessions, locks, history, overrides. Not safe for concurrent
// use; its owner locks. Two machines that applied the same entries are equal, and gave the same store operations.
type Machine struct {
	applied      uint64
	now          int64  // highest proposer's clock seen, UTC milliseconds
	seq          uint64 // last place given to an accepted call
	ended        uint64 // last place given to a finished call: forgetting goes in this order
	issued       uint64 // last session id or lock token
	installation string

	hash     uint64 // sum of the records' hashes, but the meta state's
	payloads uint64 // sum of the hashes of all payloads there ever were
	sums     sums

	backlog   backlog              // accepted, not touched since
	calls     map[command.ID]*call // all others
	functions map[string]*function
	numbered  []*function // by number
	// Each of calls is in exactly one place: unfinished (in no order that means anything), finished (in order of ending), kept
	// (succeeded, with an answer, until its time is up), or the dead of its function (in order of ending).
	unfinished, finished list
	kept                 priority.Heap[*call]
	dead                 int // of all functions

	uploads     map[command.ID]*upload
	uploadBytes uint64 // of all of them

	keys      map[keyDigest]key
	keysByAge priority.Heap[agingKey]

	sessions  map[uint64]*Session // live and vanished
	names     map[string]uint64   // name → its one session
	locks     map[string]Lock
	activity  map[string]int64
	overrides map[string]Override

	spare  []*call // to be used again
	warmth uint64  // so that warm is not optimized away
}

// function is the one copy of a function's name, and its counters.
type function struct {
	name     string
	number   uint32 // in numbered; differs from node to node
	counters Counters
	dead     list
	touched  bool
}

// call is the index entry of one call that is not in the backlog. What only a running call needs is in try.
type call struct {
	previous, next *call // in its list

	function   *function
	try        *try
	extras     *extras // nil: none
	lastError  string
	seq        uint64
	ended      uint64 // place in the order of finishing; 0: unfinished
	enqueued   int64
	started    int64
	nextTry    int64
	finished   int64
	id         command.ID
	tries      uint32
	maxTries   uint32
	lastStatus uint32
	size       uint32
	sum        uint64 // its record's hash
	state      State
	touched    bool
	dropped    bool
}

// try is a grant under way, and what a release restores.
type try struct {
	session uint64 // 0: awaiting
	fence   uint64
	replica string
	from    State
	started int64 // of the try before
}

// extras are what few calls have.
type extras struct {
	expire    int64  // no try begins later, UTC milliseconds; 0: never
	keepFor   uint64 // after the end, milliseconds; 0: the answer is not asked for
	answer    uint64 // its sequence; 0: none
	keptUntil int64  // once the call has ended with an answer
	body      *Body  // nil: none beside the payload, or gone with it
}

// New is the state before the first entry.
func New() *Machine {
	return &Machine{
		sums:      make(sums),
		backlog:   backlog{table: newTable()},
		calls:     make(map[command.ID]*call),
		kept:      priority.New(soonerKept),
		uploads:   make(map[command.ID]*upload),
		keys:      make(map[keyDigest]key),
		keysByAge: priority.New(agingKey.before),
		functions: make(map[string]*function),
		sessions:  make(map[uint64]*Session),
		names:     make(map[string]uint64),
		locks:     make(map[string]Lock),
		activity:  make(map[string]int64),
		overrides: make(map[string]Override),
	}
}

// Apply carries out the commands of the entry with this index, in order: one result each, the changes for those who watch,
// and the operations that bring the store to the new state. Indexes never fall. The operations share the payloads' memory.
func (m *Machine) Apply(index uint64, b command.Batch) ([]Result, []Change, []Op) {
	m.applied = max(m.applied, index)
	m.now = max(m.now, b.NowUnixMs)
	n := len(b.Commands) // most change one call, which is a record, and bring a payload
	a := application{
		Machine: m, index: index, results: make([]Result, 0, n), changes: make([]Change, 0, n), ops: make([]Op, 0, 2*n+2), touched: make([]*call, 0, n),
		memory: make([]byte, 0, n*memoryPerCommand),
	}
	m.warm(b.Commands)
	for _, c := range b.Commands {
		a.results = append(a.results, a.apply(c))
	}
	a.flush()
	return a.results, a.changes, a.ops
}

// warm the table for those accepts that are about to look into it.
func (m *Machine) warm(commands []command.Command) {
	for _, c := range commands {
		if accept, ok := c.(command.Accept); ok {
			m.warmth ^= m.backlog.table.warm(accept.ID)
		}
	}
}

// application of one entry: the machine and what comes out.
type application struct {
	*Machine
	index            uint64
	results          []Result
	changes          []Change
	ops              []Op
	touched          []*call
	touchedFunctions []*function
	memory           []byte // of keys and records, in a few pieces
}

const (
	// memoryPerCommand is about what the keys and the record of a call take, in bytes.
	memoryPerCommand = 88
	// memoryPiece is taken where that was not enough, in bytes.
	memoryPiece = 1 << 10
)

// take memory for n bytes to be appended to.
func (a *application) take(n int) []byte {
	if cap(a.memory)-len(a.memory) < n {
		a.memory = make([]byte, 0, max(n, memoryPiece))
	}
	from := len(a.memory)
	a.memory = a.memory[:from+n]
	return a.memory[from : from : from+n]
}

// number is numberKey in memory of the entry.
func (a *application) number(n uint64) []byte { return binary.BigEndian.AppendUint64(a.take(8), n) }

func (a *application) apply(c command.Command) Result {
	switch c := c.(type) {
	case command.Accept:
		return a.accept(c)
	case command.PutPart:
		return a.putPart(c)
	case command.DropUpload:
		return a.dropUploadCommand(c)
	case command.Grant:
		return a.grant(c)
	case command.Finish:
		return a.finish(c)
	case command.Cancel:
		return a.cancel(c)
	case command.Bury:
		return a.bury(c)
	case command.Redrive:
		return a.redrive(c)
	case command.Purge:
		return a.purge(c)
	case command.OpenSession:
		return a.openSession(c)
	case command.EndSession:
		return a.endSession(c)
	case command.AcquireLock:
		return a.acquireLock(c)
	case command.ReleaseLock:
		return a.releaseLock(c)
	case command.RecordActivity:
		return a.recordActivity(c)
	case command.SetOverride:
		return a.setOverride(c)
	case command.Forget:
		return a.forget(c)
	case command.SetInstallation:
		return a.setInstallation(c)
	default:
		return Result{Code: Invalid, Detail: "unknown command"}
	}
}

// flush writes each touched record once, in the order of first touch.
func (a *application) flush() {
	for _, c := range a.touched {
		c.touched = false
		if !c.dropped {
			key, record := a.number(c.seq), appendCall(a.take(callBytes(c)), c)
			a.put(BucketCall, key, record)
			a.accountCall(c, key, record)
			a.rest(c)
		}
	}
	for _, f := range a.touchedFunctions {
		f.touched = false
		a.put(BucketFunction, []byte(f.name), encodeCounters(f.counters))
	}
	a.put(BucketMeta, keyState, a.encodeState())
}

func (a *application) put(b Bucket, key, value []byte) {
	a.account(b, key, value)
	a.ops = append(a.ops, Op{Bucket: b, Key: key, Value: value})
}

func (a *application) remove(b Bucket, key []byte) {
	a.account(b, key, nil)
	a.ops = append(a.ops, Op{Bucket: b, Key: key})
}

func (a *application) touch(c *call) {
	if !c.touched {
		c.touched = true
		a.touched = append(a.touched, c)
	}
	if !c.function.touched {
		c.function.touched = true
		a.touchedFunctions = append(a.touchedFunctions, c.function)
	}
}

// issue gives a number for a session or a lock: the index of the entry, or the next free one if the entry gave it already.
func (a *application) issue() uint64 {
	a.Machine.issued = max(a.index, a.Machine.issued+1)
	return a.Machine.issued
}

func (a *application) setInstallation(c command.SetInstallation) Result {
	switch a.installation {
	case "":
		if c.ID == "" {
			return Result{Code: Invalid, Detail: "installation id is empty"}
		}
		a.Machine.installation = c.ID
		a.put(BucketMeta, keyInstallation, []byte(c.ID))
		a.changes = append(a.changes, Change{Topic: TopicInstallation})
		return Result{}
	case c.ID:
		return Result{Repeated: true}
	default:
		return Result{Code: Conflict, Detail: "installation is " + a.installation}
	}
}

func (m *Machine) intern(name string) *function {
	f, ok := m.functions[name]
	if !ok {
		f = &function{name: name, number: uint32(len(m.numbered))}
		m.functions[name] = f
		m.numbered = append(m.numbered, f)
	}
	return f
}

func numberKey(n uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 0, 8), n)
}

// sortedKeys because map order must reach nothing that leaves the machine.
func sortedKeys[K interface{ ~string | ~uint64 }, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
