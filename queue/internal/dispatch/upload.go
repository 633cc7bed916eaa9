package dispatch

import (
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// uploads that no accept has taken yet, timed by this leader: one whose edge lives and sends nothing more would stay for ever.
// The edge's session is the other end of an upload, and the usual one.
type uploads struct {
	by   map[command.ID]*uploading
	idle time.Duration // without a part for so long, an upload is dropped
	next time.Time     // none is over before
	over []*uploading  // to be proposed
}

// uploading is an upload since its last part; the next part makes another of it.
type uploading struct {
	fsm.Upload
	seen   time.Time // when this leader saw the part, or took office
	ending bool      // its drop is being proposed
}

func newUploads(m *fsm.Machine, now time.Time, idle time.Duration) uploads {
	u := uploads{by: map[command.ID]*uploading{}, idle: idle}
	for _, x := range m.Uploads() {
		u.change(x, now)
	}
	return u
}

// change follows the state machine.
func (u *uploads) change(x fsm.Upload, now time.Time) {
	if x.Ended {
		delete(u.by, x.ID)
		return
	}
	if len(u.by) == 0 || now.Add(u.idle).Before(u.next) {
		u.next = now.Add(u.idle)
	}
	u.by[x.ID] = &uploading{Upload: x, seen: now}
}

// tick brings the uploads whose time is over among what is proposed.
func (u *uploads) tick(now time.Time) {
	if len(u.by) == 0 || u.next.After(now) {
		return
	}
	u.next = now.Add(u.idle)
	for _, x := range u.by {
		end := x.seen.Add(u.idle)
		switch {
		case x.ending:
		case end.After(now):
			u.next = earlier(u.next, end)
		default:
			x.ending = true
			u.over = append(u.over, x)
		}
	}
}

// take gives the drops of the next batch. A part that came after the time was up, and before the drop, saves the upload.
func (u *uploads) take(limit int) (drops []*uploading, commands []command.Command) {
	n := min(len(u.over), limit)
	for _, x := range u.over[:n] {
		if u.by[x.ID] == x {
			drops = append(drops, x)
			commands = append(commands, command.DropUpload{ID: x.ID, Index: x.Index})
		}
	}
	u.over = rest(u.over, n)
	return drops, commands
}

// failed: not committed, or not known to be.
func (u *uploads) failed(drops []*uploading) { u.over = append(u.over, drops...) }
