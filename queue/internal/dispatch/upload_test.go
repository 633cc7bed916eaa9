package dispatch

import (
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

func (w *world) part(id byte, owner *session, number uint32) {
	w.t.Helper()
	if r := w.commit(command.PutPart{ID: command.ID{id}, Session: owner.ID, Number: number, Data: []byte("part")}); r[0].Code != fsm.OK {
		w.t.Fatalf("part %d: %+v", number, r[0])
	}
}

// elapse lets time go by, the edge's heartbeats included.
func (w *world) elapse(t time.Duration, edges ...*session) {
	w.t.Helper()
	for end := w.now.Add(t); w.now.Before(end); {
		w.now = w.now.Add(time.Second)
		for _, s := range edges {
			s.seen = w.now
		}
		w.propose()
	}
}

func (w *world) uploads(want int) {
	w.t.Helper()
	if n, _ := w.machine.UploadSizes(); n != want {
		w.t.Errorf("%d uploads, want %d", n, want)
	}
}

func TestAnUploadThatStandsStillIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.edge("edge-0", 1)
	w.part(1, e, 0)
	w.elapse(40*time.Second, e)
	w.part(2, e, 0)
	w.part(1, e, 1) // goes on: its time begins anew
	if next := w.office.next(); next.After(w.now.Add(time.Minute)) {
		t.Errorf("looked at again only after %s", next.Sub(w.now))
	}
	w.elapse(59*time.Second, e)
	w.uploads(2)
	w.elapse(time.Second, e)
	w.uploads(0)
	w.part(1, e, 0)
	w.uploads(1) // the id is free again
}

func TestANewLeaderGivesUploadsTheirWholeTimeAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.edge("edge-0", 1)
	w.part(1, e, 0)
	w.elapse(50*time.Second, e)
	w.takeOffice()
	for _, s := range w.office.sessions {
		e = s
	}
	w.elapse(59*time.Second, e)
	w.uploads(1)
	w.elapse(time.Second, e)
	w.uploads(0)
}

// The drop is on its way, and so is a part: the part wins, wherever they meet.
func TestAPartSavesItsUploadFromTheDrop(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.edge("edge-0", 1)
	w.part(1, e, 0)
	w.now = w.now.Add(time.Minute)
	e.seen = w.now
	w.office.tick(w.now)
	b := w.office.batch(w.now)
	if len(b.drops) != 1 {
		t.Fatalf("batch %+v", b)
	}
	w.part(1, e, 1) // before the drop in the log
	w.office.committed(b, w.commit(b.commands...), w.now)
	w.uploads(1)
	w.elapse(time.Minute, e)
	w.uploads(0)
}

func TestADropThatFailedIsProposedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.edge("edge-0", 1)
	w.part(1, e, 0)
	w.now = w.now.Add(time.Minute)
	e.seen = w.now
	w.office.tick(w.now)
	w.office.failed(w.office.batch(w.now))
	w.propose()
	w.uploads(0)
}

func TestUploadsGoWithTheirSessionAndTakeNoTimer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.edge("edge-0", 1)
	w.part(1, e, 0)
	w.elapse(5 * time.Second) // no heartbeat
	w.uploads(0)
	if len(w.office.uploads.by) != 0 {
		t.Error("a timer is left")
	}
}
