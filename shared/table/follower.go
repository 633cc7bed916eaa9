package table

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// grace between a digest that differs and the pull: the records it speaks of may be in another subscription's queue.
	grace = 50 * time.Millisecond
	// leaderSilent is how long a digest says what the table should be; after it nobody leads, or the bus is away.
	leaderSilent = 3 * wire.DigestEvery
	// pollEvery is the safety net: the comparison with the last digest.
	pollEvery = 2 * time.Second
	// silentEvery paces small pulls while nobody sends digests. A record takes two of them to an edge, by way of a queue node, and
	// asynchronous work may be late by 2 s altogether (reliability.md, B1).
	silentEvery = 400 * time.Millisecond
	// pullTimeout of one pull, all pages.
	pullTimeout = 15 * time.Second
	// A pull that failed or did not suffice is repeated after backoffFirst, doubling to backoffLast. While there is no table yet, and
	// so nothing can be served, it doubles to backoffEmpty only, for emptyPulls.
	backoffFirst = 50 * time.Millisecond
	backoffEmpty = 200 * time.Millisecond
	emptyPulls   = 50
	backoffLast  = time.Second
)

// Bus is what a Follower needs of the bus; *nc.Bus is one.
type Bus interface {
	// Subscribe calls handle for each message in order; the message is handle's to keep.
	Subscribe(subject string, handle func(msg []byte, reply string)) (stop func(), err error)
	// Respond answers a request.
	Respond(reply string, m proto.Message) error
	// Flush returns when the bus knows the subscriptions.
	Flush(ctx context.Context) error
	// OnReconnect calls f after each new connection; f does not block.
	OnReconnect(f func()) (stop func())
}

// Follower keeps a table equal to the leading scaler's: records from the bus, and a pull whenever a digest shows a difference.
// Fill the fields, call Run once.
type Follower struct {
	Table *Table
	Bus   Bus
	Name  string // of this process, in its answers to wire.TableAsk
	// Pull asks a source for what is newer than since (nil: everything) and yields its pages; an error ends them. It is called
	// by one goroutine, again and again, and should ask another source after a failure. A source that is not synced is a failure.
	Pull func(ctx context.Context, since *wire.Version) iter.Seq2[*wire.PullResponse, error]
	Log  *slog.Logger

	leader atomic.Pointer[heard]
	must   atomic.Bool   // pull without comparing: new connection, record too large for the bus
	kick   chan struct{} // one slot: something happened
	base   *wire.Version // up to here nothing is missing; used by Run's goroutine only
	errors int           // pulls that failed or did not suffice in a row
}

// heard is the last digest of the leader and when it came.
type heard struct {
	digest *wire.TableDigest
	at     time.Time
}

// Leader returns the last digest a leader published under the table's epoch or a higher one; nil when none came in the last 3 s.
func (f *Follower) Leader() *wire.TableDigest {
	h := f.leader.Load()
	if h == nil || time.Since(h.at) > leaderSilent {
		return nil
	}
	return h.digest
}

// Run follows until ctx ends. It subscribes first and pulls then, so that nothing falls between. It returns an error only when it
// could not subscribe.
func (f *Follower) Run(ctx context.Context) error {
	f.kick = make(chan struct{}, 1)
	for subject, handle := range map[string]func([]byte, string){
		wire.SubjectRecord:   f.onRecord,
		wire.SubjectDigest:   f.onDigest,
		wire.SubjectTableAsk: f.onAsk,
	} {
		stop, err := f.Bus.Subscribe(subject, handle)
		if err != nil {
			return fmt.Errorf("following the function table: %w", err)
		}
		defer stop()
	}
	defer f.Bus.OnReconnect(func() { f.now() })()
	if err := f.Bus.Flush(ctx); err != nil {
		f.Log.Debug("the bus does not confirm the subscriptions yet", "err", err) // it will connect, and then we pull again
	}
	f.must.Store(true)
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.kick:
			if !f.must.Load() { // a digest differs: let the records arrive
				wait.Reset(grace)
				continue
			}
		case <-wait.C:
		}
		wait.Reset(f.step(ctx))
	}
}

// now makes Run pull at once.
func (f *Follower) now() {
	f.must.Store(true)
	f.poke()
}

func (f *Follower) poke() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// step brings the table up to date where needed and says when to look again.
func (f *Follower) step(ctx context.Context) time.Duration {
	leader, must := f.Leader(), f.must.Swap(false)
	if leader != nil && f.confirm(leader) && (!must || !f.Table.Synced()) {
		f.synced(leader) // at a start of everything the records come by the bus before any source can be asked
		f.errors = 0
		return pollEvery
	}
	since := f.base
	if f.errors > 0 || !f.Table.Synced() { // what a small pull brings did not suffice
		since = nil
	}
	digest, err := f.pull(ctx, since, leader)
	switch {
	case ctx.Err() != nil:
		return 0
	case err != nil:
		f.must.Store(true)
		return f.backoff("pulling the function table", "err", err)
	}
	f.synced(digest)
	if newer := f.Leader(); newer != nil {
		leader = newer
	}
	switch {
	case leader != nil && !f.confirm(leader):
		return f.backoff("the function table still differs from the leader's", "count", leader.GetCount(), "epoch", leader.GetVersion().GetEpoch())
	case leader == nil && !f.confirm(digest) && compare(digest.GetVersion(), f.Table.Digest().GetVersion()) >= 0:
		return f.backoff("the function table still differs from its source", "count", digest.GetCount(), "epoch", digest.GetVersion().GetEpoch())
	}
	f.errors = 0
	if leader == nil {
		return silentEvery
	}
	return pollEvery
}

// synced marks the table complete, once.
func (f *Follower) synced(digest *wire.TableDigest) {
	if !f.Table.Synced() {
		f.Log.Info("the function table has been read", "functions", digest.GetCount(), "epoch", digest.GetVersion().GetEpoch())
		f.Table.MarkSynced()
	}
}

// confirm says whether the table has everything d describes, and remembers it as the point from which small pulls start.
func (f *Follower) confirm(d *wire.TableDigest) bool {
	if !f.Table.Matches(d) {
		return false
	}
	if f.base == nil || compare(d.GetVersion(), f.base) > 0 {
		f.base = d.GetVersion()
	}
	return true
}

// backoff logs when failures do not end, once in a row, and says how long to wait after this one.
func (f *Follower) backoff(message string, attributes ...any) time.Duration {
	if f.errors == 3 { // the first few happen at every start, and when a digest overtakes its record
		f.Log.Warn(message, attributes...) //nolint:sloglint // the message is one of three constants of step
	}
	last := backoffLast
	if !f.Table.Synced() && f.errors < emptyPulls {
		last = backoffEmpty
	}
	pause := min(backoffFirst<<min(f.errors, 10), last)
	f.errors++
	return pause
}

// pull applies the pages as they come. Functions the source does not list are removed only when the source is known to be complete:
// a queue node may have missed a record that this table has.
func (f *Follower) pull(ctx context.Context, since *wire.Version, leader *wire.TableDigest) (*wire.TableDigest, error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	var digest *wire.TableDigest
	full, listed := false, map[string]struct{}{}
	for page, err := range f.Pull(ctx, since) {
		if err != nil {
			return nil, err
		}
		if digest == nil {
			digest, full = page.GetDigest(), page.GetFull()
			if digest == nil {
				return nil, errors.New("the first page has no digest")
			}
		}
		for _, r := range page.GetRecords() {
			listed[r.GetName()] = struct{}{}
			f.Table.Apply(r)
		}
	}
	if digest == nil {
		return nil, errors.New("the source sent nothing")
	}
	if full {
		complete := digest.GetLeader() != "" || leader == nil ||
			digest.GetVersion().GetEpoch() == leader.GetVersion().GetEpoch() && digest.GetCount() == leader.GetCount() && compare(digest.GetVersion(), leader.GetVersion()) >= 0
		f.Table.dropUnlisted(listed, digest.GetVersion(), complete)
	}
	return digest, nil
}

// onRecord takes records of the table's epoch or a higher one: one of an older epoch comes from a leader that was replaced, and
// whatever is right in it comes again from the new one.
func (f *Follower) onRecord(msg []byte, _ string) {
	var a wire.RecordAnnouncement
	if err := proto.Unmarshal(msg, &a); err != nil {
		f.Log.Warn("unreadable message on the bus", "subject", wire.SubjectRecord, "err", err)
		return
	}
	if r := a.GetRecord(); r != nil {
		if r.GetVersion().GetEpoch() >= f.Table.Digest().GetVersion().GetEpoch() {
			f.Table.Apply(r)
		}
		return
	}
	if e := f.Table.lookup(a.GetName()); e == nil || compare(a.GetVersion(), e.Record.GetVersion()) > 0 {
		f.now()
	}
}

func (f *Follower) onDigest(msg []byte, _ string) {
	var d wire.TableDigest
	if err := proto.Unmarshal(msg, &d); err != nil {
		f.Log.Warn("unreadable message on the bus", "subject", wire.SubjectDigest, "err", err)
		return
	}
	if d.GetVersion().GetEpoch() < f.Table.Digest().GetVersion().GetEpoch() {
		return
	}
	if last := f.leader.Load(); last != nil && compare(d.GetVersion(), last.digest.GetVersion()) < 0 {
		return // late, or of a leader that was replaced
	}
	f.leader.Store(&heard{digest: &d, at: time.Now()})
	if !f.Table.Synced() || !f.Table.Matches(&d) {
		f.poke()
	}
}

func (f *Follower) onAsk(_ []byte, reply string) {
	d := f.Table.Digest()
	d.Sender = f.Name
	if err := f.Bus.Respond(reply, d); err != nil {
		f.Log.Debug("answering the table digest", "err", err) // the asker goes on without
	}
}
