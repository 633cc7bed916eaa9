package table

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// fakeBus delivers at once, in the caller's goroutine, unless it is away.
type fakeBus struct {
	mu       sync.Mutex
	away     bool
	handlers map[string]func([]byte, string)
	hooks    map[int]func()
	answers  []proto.Message
}

func newFakeBus() *fakeBus {
	return &fakeBus{handlers: map[string]func([]byte, string){}, hooks: map[int]func(){}}
}

func (b *fakeBus) Subscribe(subject string, handle func([]byte, string)) (func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handlers[subject] = handle
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.handlers, subject)
	}, nil
}

func (b *fakeBus) Respond(_ string, m proto.Message) error {
	b.answers = append(b.answers, m)
	return nil
}

func (b *fakeBus) Flush(context.Context) error {
	if b.away {
		return errors.New("away")
	}
	return nil
}

func (b *fakeBus) OnReconnect(f func()) func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.hooks)
	b.hooks[n] = f
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.hooks, n)
	}
}

func (b *fakeBus) send(subject string, m proto.Message) {
	b.mu.Lock()
	handle := b.handlers[subject]
	b.mu.Unlock()
	if data, err := proto.Marshal(m); err == nil && handle != nil && !b.away {
		handle(data, "reply")
	}
}

func (b *fakeBus) reconnect() {
	b.away = false
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.hooks {
		f()
	}
}

// bench is a follower, its bus, and the leader's table behind a source that may be something else.
type bench struct {
	*testing.T
	bus      *fakeBus
	leader   *Table // what the leader has
	ours     *Table
	follower *Follower
	epoch    uint64
	seq      uint64

	mu     sync.Mutex      // guards the fields below
	source *Table          // what is pulled; nil: fails
	pulls  []*wire.Version // since, of each pull
}

func (b *bench) from(source *Table) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.source = source
}

// taken returns the pulls since it was last called.
func (b *bench) taken() []*wire.Version {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() { b.pulls = nil }()
	return b.pulls
}

// follow runs f in a bubble with a follower that has read its table.
func follow(t *testing.T, f func(b *bench)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, bus: newFakeBus(), leader: New(), ours: New(), epoch: 1}
		b.leader.MarkSynced()
		b.source = b.leader
		b.follower = &Follower{Table: b.ours, Bus: b.bus, Name: "edge-0", Pull: b.pull, Log: slog.New(slog.DiscardHandler)}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.follower.Run(ctx) }()
		synctest.Wait()
		f(b)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if len(b.bus.handlers) != 0 || len(b.bus.hooks) != 0 {
			t.Error("the bus still calls a follower that has ended")
		}
	})
}

func (b *bench) pull(_ context.Context, since *wire.Version) iter.Seq2[*wire.PullResponse, error] {
	return func(yield func(*wire.PullResponse, error) bool) {
		b.mu.Lock()
		b.pulls = append(b.pulls, since)
		source := b.source
		b.mu.Unlock()
		if source == nil {
			yield(nil, errors.New("broken"))
			return
		}
		pages, err := source.Pages(since)
		if err != nil {
			yield(nil, err)
			return
		}
		for p := range pages {
			if !yield(p, nil) {
				return
			}
		}
	}
}

// change the leader's table; lost: the bus does not carry it.
func (b *bench) change(name string, deleted, lost bool) {
	b.seq++
	r := record(name, b.epoch, b.seq)
	r.Deleted = deleted
	b.leader.Apply(r)
	if !lost {
		b.bus.send(wire.SubjectRecord, &wire.RecordAnnouncement{Record: r})
	}
}

// tick lets seconds pass, each with a digest.
func (b *bench) tick(seconds int) {
	for range seconds {
		d := b.leader.Digest()
		d.Leader = "scaler-0"
		b.bus.send(wire.SubjectDigest, d)
		time.Sleep(wire.DigestEvery) // of the bubble
		synctest.Wait()
	}
}

func (b *bench) equal(what string) {
	b.Helper()
	if !proto.Equal(b.leader.Digest(), b.ours.Digest()) {
		b.Errorf("%s: %v, the leader has %v", what, b.ours.Digest(), b.leader.Digest())
	}
}

func (b *bench) pulled(n int, what string) {
	b.Helper()
	if pulls := b.taken(); len(pulls) != n {
		b.Errorf("%s: %d pulls (%v), want %d", what, len(pulls), pulls, n)
	}
}

func TestRecordsNeedNoPull(t *testing.T) {
	follow(t, func(b *bench) {
		b.pulled(1, "at the start")
		if !b.ours.Synced() {
			t.Error("not synced after the first pull")
		}
		for range 30 {
			for _, name := range []string{"a", "b", "c"} {
				b.change(name, false, false)
			}
			b.tick(1)
		}
		b.equal("after 30 s")
		b.pulled(0, "while nothing is lost")
	})
}

func TestALostRecordIsPulledAfterTheNextDigest(t *testing.T) {
	follow(t, func(b *bench) {
		b.change("a", false, false)
		b.tick(3)
		b.taken()
		b.change("b", false, true)
		b.change("c", false, false) // its higher version must not hide that b is missing
		b.tick(1)
		b.equal("one digest later")
		if pulls := b.taken(); len(pulls) != 1 || pulls[0].GetSeq() != 1 {
			t.Errorf("pulls since %v, want one since what was confirmed last", pulls)
		}
		b.change("a", true, true)
		b.tick(1)
		b.equal("after a lost deletion")
		b.pulled(1, "a lost deletion")
	})
}

func TestARecordThatIsOvertakenByTheDigestNeedsNoPull(t *testing.T) {
	follow(t, func(b *bench) {
		b.tick(1)
		b.taken()
		b.change("a", false, true)
		d := b.leader.Digest()
		d.Leader = "scaler-0"
		b.bus.send(wire.SubjectDigest, d)
		time.Sleep(grace / 2)
		b.bus.send(wire.SubjectRecord, &wire.RecordAnnouncement{Record: record("a", 1, 1)})
		b.tick(1)
		b.equal("after both")
		b.pulled(0, "in the wrong order")
	})
}

func TestALargeRecordIsPulledAtOnce(t *testing.T) {
	follow(t, func(b *bench) {
		b.change("a", false, true)
		b.bus.send(wire.SubjectRecord, &wire.RecordAnnouncement{Name: "a", Version: &wire.Version{Epoch: 1, Seq: 1}})
		synctest.Wait()
		b.equal("at once")
		b.taken()
		b.bus.send(wire.SubjectRecord, &wire.RecordAnnouncement{Name: "a", Version: &wire.Version{Epoch: 1, Seq: 1}})
		synctest.Wait()
		b.pulled(0, "announced again")
	})
}

func TestANewConnectionIsAPull(t *testing.T) {
	follow(t, func(b *bench) {
		b.change("a", false, true)
		b.bus.reconnect()
		synctest.Wait()
		b.equal("at once")
	})
}

func TestWithoutTheBusTheTableIsPolled(t *testing.T) {
	follow(t, func(b *bench) {
		b.tick(1)
		b.bus.away = true
		for range 10 {
			b.change("a", false, false)
			b.change("b", b.seq%3 == 0, false)
			b.tick(7)
			b.equal("some seconds later")
		}
		if n := len(b.taken()); n > 200 {
			t.Errorf("%d pulls in 70 s", n)
		}
		b.change("a", false, false)
		b.tick(1)
		b.equal("a second later, the bus being away for long")
	})
}

func TestANewLeadersTableReplacesTheOld(t *testing.T) {
	follow(t, func(b *bench) {
		for _, name := range []string{"a", "b", "vanished"} {
			b.change(name, false, false)
		}
		b.tick(2)
		b.leader = New() // it has never heard of one of them
		b.leader.MarkSynced()
		b.from(b.leader)
		b.epoch, b.seq = 2, 0
		b.change("a", false, false)
		b.change("b", false, true)
		b.bus.send(wire.SubjectRecord, &wire.RecordAnnouncement{Record: record("vanished", 1, 99)}) // the old one has not noticed
		b.bus.send(wire.SubjectDigest, &wire.TableDigest{Version: &wire.Version{Epoch: 1, Seq: 99}, Count: 3})
		b.tick(2)
		b.equal("under the new leader")
		if d := b.follower.Leader(); d.GetVersion().GetEpoch() != 2 {
			t.Errorf("the leader's digest is %v", d)
		}
	})
}

func TestASourceThatMissesARecordDoesNotRemoveIt(t *testing.T) {
	follow(t, func(b *bench) {
		b.change("a", false, false)
		b.change("b", false, false)
		b.tick(2)
		hole := New() // a queue node that has missed b
		hole.MarkSynced()
		hole.Apply(record("a", 1, 1))
		hole.Apply(record("d", 1, 4))
		b.from(hole)
		b.seq = 2
		b.change("c", false, true)
		b.change("d", false, false)
		b.tick(3)
		if _, ok := b.ours.Get("b"); !ok {
			t.Error("b is gone because a source has missed it")
		}
		b.from(b.leader)
		b.tick(3)
		b.equal("with a better source")
	})
}

func TestForgottenDeletionsGo(t *testing.T) {
	follow(t, func(b *bench) {
		b.change("a", false, false)
		b.change("b", false, false)
		b.change("b", true, false)
		b.tick(2)
		b.leader.Forget(0)
		b.tick(3)
		b.equal("after the source forgot")
	})
}

// At a start of everything nobody can be asked for the table yet, but the leader states it on the bus.
func TestATableTheBusHasCompletedNeedsNoSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, bus: newFakeBus(), leader: New(), ours: New(), epoch: 1}
		b.leader.MarkSynced()
		b.follower = &Follower{Table: b.ours, Bus: b.bus, Name: "edge-0", Pull: b.pull, Log: slog.New(slog.DiscardHandler)}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.follower.Run(ctx) }()
		synctest.Wait()
		b.change("a", false, false)
		b.change("b", false, true)
		b.tick(1)
		if b.ours.Synced() {
			t.Error("a table without a record that the digest counts is taken for complete")
		}
		b.bus.send(wire.SubjectRecord, &wire.RecordAnnouncement{Record: record("b", 1, 2)})
		d := b.leader.Digest()
		d.Leader = "scaler-0"
		b.bus.send(wire.SubjectDigest, d)
		if synctest.Wait(); !b.ours.Synced() {
			time.Sleep(grace)
			synctest.Wait()
		}
		if !b.ours.Synced() {
			t.Error("not complete although it is what the digest says")
		}
		b.equal("by the bus alone")
		b.taken()
		b.from(b.leader)
		b.tick(10)
		b.pulled(0, "later, when a source could be asked")
		stop()
		<-ended
	})
}

func TestAFailingSourceIsAskedAgainButNotHammered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, bus: newFakeBus(), leader: New(), ours: New(), epoch: 1}
		b.leader.MarkSynced()
		b.bus.away = true
		b.follower = &Follower{Table: b.ours, Bus: b.bus, Name: "edge-0", Pull: b.pull, Log: slog.New(slog.DiscardHandler)}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.follower.Run(ctx) }()
		for _, span := range []struct {
			length      time.Duration
			least, most int
		}{{10 * time.Second, emptyPulls - 2, emptyPulls + 2}, {20 * time.Second, 18, 22}} {
			time.Sleep(span.length)
			synctest.Wait()
			if n := len(b.taken()); n < span.least || n > span.most || b.ours.Synced() {
				t.Errorf("%d pulls in %v, synced %v", n, span.length, b.ours.Synced())
			}
		}
		b.from(b.leader)
		if err := b.ours.WaitSynced(t.Context()); err != nil {
			t.Error(err)
		}
		b.change("a", false, true)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		b.equal("without any digest")
		stop()
		<-ended
	})
}

func TestTheDigestIsAnsweredWhenAsked(t *testing.T) {
	follow(t, func(b *bench) {
		b.change("a", false, false)
		b.bus.send(wire.SubjectTableAsk, &wire.TableAsk{Scaler: "scaler-1"})
		if len(b.bus.answers) != 1 {
			t.Fatalf("%d answers", len(b.bus.answers))
		}
		if d, ok := b.bus.answers[0].(*wire.TableDigest); !ok || d.Sender != "edge-0" || d.Count != 1 || d.Leader != "" {
			t.Errorf("answered %v", b.bus.answers[0])
		}
	})
}
