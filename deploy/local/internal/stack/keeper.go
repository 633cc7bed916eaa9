package stack

import (
	"log/slog"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/deploy/local/internal/manifest"
	"github.com/slimfaas/slimfaas/deploy/local/internal/proc"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// A dead part is started again at once the first time and then after pauses that never reach a second, as pinned
// (interface.md); one that lived for a while starts counting anew.
const (
	firstPause = 50 * time.Millisecond
	maxPause   = 800 * time.Millisecond
	calmAfter  = 10 * time.Second
)

// keeper keeps one process alive: a part of ours, or a process of the manifest.
type keeper struct {
	spec    proc.Spec
	restart manifest.Restart
	grace   time.Duration // between SIGTERM and SIGKILL

	host  *proc.Host
	tell  func(wire.LocalPart)
	hurry <-chan struct{}
	log   *slog.Logger

	stop chan struct{}  // closed by end
	life sync.WaitGroup // of run
}

// end stops the process for good and waits for it.
func (k *keeper) end() {
	close(k.stop)
	k.life.Wait()
}

func (k *keeper) run() {
	pause := firstPause
	for {
		began := time.Now()
		reason, failed, stopped := k.once()
		if stopped {
			return
		}
		if time.Since(began) > calmAfter {
			pause = firstPause
		}
		again := k.restart == manifest.RestartAlways || k.restart == manifest.RestartOnFailure && failed
		k.log.Warn("a process has ended", "process", k.spec.Name, "reason", reason, "again", again)
		if !again {
			<-k.stop
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-k.stop:
			timer.Stop()
			return
		case <-timer.C:
		}
		pause = min(2*pause, maxPause)
	}
}

// once runs the process to its end.
func (k *keeper) once() (reason string, failed, stopped bool) {
	p, err := k.host.Start(k.spec)
	if err != nil {
		return err.Error(), true, false
	}
	k.tell(wire.LocalPart{Name: k.spec.Name, PID: p.PID, Alive: true})
	defer k.tell(wire.LocalPart{Name: k.spec.Name})
	select {
	case <-p.Done():
		return p.Ended(), p.Failed(), false
	case <-k.stop:
		p.Stop(k.grace, k.hurry)
		return "", false, true
	}
}

// endAll stops several at the same time.
func endAll(keepers []*keeper) {
	var all sync.WaitGroup
	for _, k := range keepers {
		all.Go(k.end)
	}
	all.Wait()
}
