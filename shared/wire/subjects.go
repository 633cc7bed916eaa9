package wire

import "time"

// Subjects of the bus. Fixed: none contains a user's string, names travel in the payload. Each line says who publishes,
// who listens, and what happens when a message is lost, doubled, late or reordered.
const (
	// SubjectWake: edge → every scaler, one of WakeGroup raises at once. Lost: the edge repeats. Doubled or late: raising 0 → n is
	// idempotent.
	SubjectWake = "slimfaas.wake"
	// WakeGroup is the group in which the bus picks the scaler that acts on a wake first.
	WakeGroup = "slimfaas.wake.first"
	// SubjectSighting: the scaler that raised a function → edges. Lost: the table record brings the replica.
	SubjectSighting = "slimfaas.sighting"
	// SubjectRecord: leading scaler → edges, queue nodes (RecordAnnouncement). Lost: the digest shows it within a second.
	SubjectRecord = "slimfaas.table.record"
	// SubjectDigest: leading scaler → edges, queue nodes, each second. Lost: the next one.
	SubjectDigest = "slimfaas.table.digest"
	// SubjectTableAsk: a new scaler leader asks, edges and queue nodes answer their digest on the reply subject.
	SubjectTableAsk = "slimfaas.table.ask"
	// SubjectLoad: edge → every scaler. Lost: the next second's, and everything every 5 s.
	SubjectLoad = "slimfaas.load"
	// SubjectDemand: queue leader → every scaler. Lost: the next second's, and everything every 5 s.
	SubjectDemand = "slimfaas.demand"
	// SubjectFacts: queue leader → every scaler, when an override changes. Lost: the scaler's poll finds it in 5 s.
	SubjectFacts = "slimfaas.facts"
	// SubjectExplain: edge asks, only the leading scaler answers. Lost: the edge answers 503 after its timeout.
	SubjectExplain = "slimfaas.explain"
	// SubjectEdgeHello: edge → edges, each second. Lost: the next one; three lost, and events are not shared with it.
	SubjectEdgeHello = "slimfaas.edge.hello"
	// SubjectEventShare and a dot and the incarnation of the edge that shall help: edge → that edge. Lost: the taker calls the
	// share itself after EventAckWithin, or what is left of it after EventSilence.
	SubjectEventShare = "slimfaas.event.share"
)

// Limits and periods that both ends must agree on.
const (
	// MaxBusMessage is the largest message on the bus, in bytes.
	MaxBusMessage = 64 << 10
	// MaxInlineRecord is the largest record published whole, in bytes; a larger one is announced and pulled.
	MaxInlineRecord = 48 << 10
	// MaxPayload is the largest StoredRequest of an async call that is one command, in bytes. A body over MaxInlineBody is put
	// before it, in parts (docs/adr/0016-large-bodies.md).
	MaxPayload = 1<<20 + 64<<10
	// MaxInlineBody is the largest body within a StoredRequest, in bytes.
	MaxInlineBody = 1 << 20
	// MaxFrame is the largest piece of a payload in one message, in bytes; more travels as frames.
	MaxFrame = 256 << 10
	// PartSize is how much of a large body is one command, in bytes: half an entry, so that others' commands share it.
	PartSize = MaxFrame
	// MaxBatchBytes and MaxBatchOps close a batch, in the edge and in the leader; one larger operation may travel alone.
	MaxBatchBytes = 512 << 10
	MaxBatchOps   = 1024
	// MaxBatchesInFlight is how many batches one sender has under way: the next gathers meanwhile, without a timer.
	MaxBatchesInFlight = 2

	// MaxAnswerBody is the largest body of a function's answer that is kept for the caller, in bytes.
	MaxAnswerBody = 1 << 20
	// MaxDelay, MaxAge and MaxKeepResult bound what a caller of an async call may ask for.
	MaxDelay      = 30 * 24 * time.Hour
	MaxAge        = 365 * 24 * time.Hour
	MaxKeepResult = 7 * 24 * time.Hour
	// MaxIdempotencyKey in bytes; a key is remembered for IdempotencyWindow, with a hash of RequestHashSize bytes.
	MaxIdempotencyKey = 200
	IdempotencyWindow = 24 * time.Hour
	RequestHashSize   = 16

	// HeartbeatEvery is the period of session heartbeats.
	HeartbeatEvery = time.Second
	// EdgeSessionTTL and ScalerSessionTTL: a session without a heartbeat for this long is expired by the queue leader.
	EdgeSessionTTL   = 4 * time.Second
	ScalerSessionTTL = 8 * time.Second
	// ReportEvery and FullReportEvery pace load and demand reports.
	ReportEvery     = time.Second
	FullReportEvery = 5 * time.Second
	// HelloEvery paces an edge's hello; one not heard for EdgeForgotten is asked for no help.
	HelloEvery    = time.Second
	EdgeForgotten = 3500 * time.Millisecond
	// EventAckWithin bounds the wait for a helper's word before it has begun, EventSilence that after. A helper waits for its
	// begin half of EventSilence at most, so it never starts what its taker has given up.
	EventAckWithin = 200 * time.Millisecond
	EventSilence   = 2 * time.Second
	// DigestEvery paces the table digest.
	DigestEvery = time.Second
	// DeletionKept is how long a deleted function's record stays in the table.
	DeletionKept = 10 * time.Minute
	// SightingKept is how long an edge uses a sighted replica without a record that confirms it.
	SightingKept = 30 * time.Second

	// ScalerLock is the lock in the queue whose holder leads the scalers.
	ScalerLock = "scaler"
)
