package raftnode

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/guard"
)

const (
	// diskEvery is how often the disk is looked at.
	diskEvery = time.Second
	// muteAtLeast this long a silent leader stays silent: the others have elected by then, or there is nobody to.
	muteAtLeast = 2 * raftTimeout
)

// watchWrites makes a leader whose disk hangs go silent, as if it were cut off: its main loop is stuck in the write, so that it
// cannot hand over, while its heartbeats go on without it. The others elect; when the write comes back it follows.
func (n *Node) watchWrites() {
	tick := time.NewTicker(max(n.config.WriteTimeout/10, time.Millisecond))
	defer tick.Stop()
	var since time.Time
	for {
		select {
		case <-tick.C:
		case <-n.life.Done():
			return
		}
		longest := n.watch.Longest()
		switch hanging := longest > n.config.WriteTimeout; {
		case hanging && since.IsZero():
			since = time.Now()
			n.log.Error("a write to the data directory hangs", "for", longest.String(), "dir", n.config.Dir, "leading", n.IsLeader())
			if n.voters() > 1 { // else there is nobody who could lead instead
				n.gate.mute.Store(true)
				n.office.leave()
			}
		case !hanging && !since.IsZero() && longest == 0 && time.Since(since) > muteAtLeast && (!n.gate.mute.Load() || n.raft.State() != raft.Leader):
			n.log.Warn("writes to the data directory come back again", "after", time.Since(since).String())
			n.gate.mute.Store(false)
			since = time.Time{}
		}
	}
}

// watchDisk looks at the space, and hands over where another node has more of it.
func (n *Node) watchDisk() {
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-n.life.Done():
			return
		}
		if err := n.disk.Check(); err != nil {
			n.log.Warn("the disk's space is not known", "err", err)
			continue
		}
		if n.disk.Level() < guard.HandOver || n.raft.State() != raft.Leader {
			continue
		}
		to := n.peers.roomier()
		if to == "" {
			continue // nobody is better off
		}
		address, err := n.where.ServerAddr(raft.ServerID(to))
		if err != nil {
			continue // it was just removed
		}
		n.log.Warn("disk nearly full: handing the leadership over", "to", to, "used_percent", int(n.disk.Space().Used))
		future := n.raft.LeadershipTransferToServer(raft.ServerID(to), address)
		if err := future.Error(); err != nil {
			n.log.Warn("the leadership was not handed over", "to", to, "err", err)
		}
	}
}

// Refusal is why this node accepts no calls now: its own disk, or those of so many others that no majority has room. Empty:
// it accepts.
func (n *Node) Refusal() string {
	if n.disk.Level() >= guard.Refusing {
		return fmt.Sprintf("the disk of %s is %.0f %% full", n.config.Name, n.disk.Space().Used)
	}
	if n.peers.short() {
		return "the disks of most nodes are nearly full"
	}
	return ""
}

// Disk as last looked at: its space, and how much of it is ballast.
func (n *Node) Disk() (space guard.Space, level guard.Level, ballast int64) {
	return n.disk.Space(), n.disk.Level(), n.disk.Ballast()
}

// Hanging is how long the longest write under way has taken, once that is too long; 0: none.
func (n *Node) Hanging() time.Duration {
	if longest := n.watch.Longest(); longest > n.config.WriteTimeout {
		return longest
	}
	return 0
}

// Votes says whether this node takes part in elections, and how it stands among the others.
func (n *Node) Votes() (votes bool, standing string) {
	_, votes = n.Member()
	is := n.gate.is()
	return votes && is.trusted(), is.String()
}

// alone: this node is the whole cluster, so nobody can lead it. One that is being filled reads of such times in the log.
func (n *Node) alone() bool {
	if is := n.gate.is(); is != returning && is != member {
		return false
	}
	members := n.where.members()
	return len(members) == 1 && members[0].Name == n.config.Name
}

// Trusted says whether what this node votes would count, were it a voter; if not, what it waits for.
func (n *Node) Trusted() (trusted bool, waitsFor string) {
	switch is := n.gate.is(); is {
	case blank:
		return false, "the data directory is empty: waits until all other nodes of the first start are up"
	case newcomer:
		return false, "not a member yet: waits for `queue add` at a member"
	case joining:
		if known, _ := n.Member(); !known {
			return false, "the leader has not begun to fill the data directory (has the cluster a member " + n.config.Name + "? `queue members`)"
		}
		return false, "the leader fills the data directory"
	case returning:
		return false, "waits until most nodes have said that the data directory is not an older copy"
	default:
		return true, ""
	}
}
