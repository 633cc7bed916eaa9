package raftnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/guard"
)

const (
	// askEvery other node while all is well, and askSoon while this node has no vote.
	askEvery = time.Second
	askSoon  = 50 * time.Millisecond
	// keepEvery is how often what the others have said is written down.
	keepEvery = 5 * time.Second
	// joinAtLeast this long a node is filled before it votes: what its lost life had acknowledged has reached the leader by then.
	joinAtLeast = 2 * time.Second
	// maxSkew of two nodes' clocks before it is a warning.
	maxSkew = 2 * time.Second
	// peersFile in the data directory keeps what the others have said.
	peersFile = "peers"
)

// claim is how far a node has come. It never goes back on a directory that is what it was.
type claim struct {
	Term   uint64 `json:"term"`
	Commit uint64 `json:"commit"` // on its disk, and committed
}

func (c claim) max(other claim) claim {
	return claim{max(c.Term, other.Term), max(c.Commit, other.Commit)}
}

// word is what nodes tell each other once a second, as question and as answer. It travels as a pre-vote for term 0, which Raft
// itself never sends: the link between nodes needs no second protocol.
type word struct {
	Cluster  string `json:"cluster,omitempty"` // installation id, as far as known
	Standing string `json:"standing"`
	claim
	Life        string  `json:"life"` // of the process: what it says in this one is no news to it
	DiskPercent float64 `json:"disk_percent"`
	DiskLevel   uint8   `json:"disk_level"`
	UnixMs      int64   `json:"unix_ms"`
	// Known is what the answering node remembers of the asking one from its lives before. In answers.
	Known claim `json:"known"`
}

// recollection of a node, kept across restarts.
type recollection struct {
	Before claim  `json:"before"` // in lives before the last
	Life   string `json:"life"`   // the last one heard
	Now    claim  `json:"now"`    // in it
}

// known is what a node in this life should find on its disk at least.
func (m recollection) known(life string) claim {
	if life == m.Life {
		return m.Before
	}
	return m.Before.max(m.Now)
}

// peer is another node as this one knows it.
type peer struct {
	recollection
	wasBlank  bool // said so in this life of ours
	seen      bool // has answered in this life of ours
	confirmed bool // remembers nothing newer of us
	last      word
	skew      time.Duration
	skewed    bool
}

// peers is what this node and the others know of each other.
type peers struct {
	node  *Node
	began claim // of this node when it started, Commit being its last entry

	mu    sync.Mutex // guards all below
	by    map[string]*peer
	dirty bool
}

func newPeers(n *Node) *peers {
	p := &peers{node: n, by: map[string]*peer{}}
	for _, m := range n.config.Members {
		if m.Name != n.config.Name {
			p.by[m.Name] = &peer{}
		}
	}
	raw, err := os.ReadFile(p.path())
	if err != nil {
		return p
	}
	kept := map[string]recollection{}
	if err := json.Unmarshal(raw, &kept); err != nil {
		n.log.Warn("what the other nodes said before cannot be read; they will say it again", "err", err)
	}
	for name, m := range kept {
		if other := p.by[name]; other != nil {
			other.recollection = m
		}
	}
	return p
}

func (p *peers) path() string { return filepath.Join(p.node.config.Dir, peersFile) }

// own word of this node.
func (p *peers) own() word {
	n := p.node
	space := n.disk.Space()
	w := word{
		Cluster: n.cluster(), Standing: n.gate.is().String(), DiskPercent: space.Used, DiskLevel: uint8(n.disk.Level()),
		UnixMs: n.config.Clock().UnixMilli(), Life: n.lifeID,
	}
	if r := n.running.Load(); r != nil {
		w.claim = claim{Term: r.CurrentTerm(), Commit: r.CommitIndex()}
	}
	return w
}

// answer a question of another node.
func (p *peers) answer(q *raft.RequestPreVoteRequest) *raft.RequestPreVoteResponse {
	own := p.own()
	var said word
	if err := json.Unmarshal(q.Addr, &said); err == nil {
		p.mu.Lock()
		if other := p.by[string(q.ID)]; other != nil {
			own.Known = other.known(said.Life)
			p.note(other, said)
		}
		p.mu.Unlock()
	}
	header := p.node.gate.header()
	header.Addr, _ = json.Marshal(own) // of plain fields: cannot fail
	return &raft.RequestPreVoteResponse{RPCHeader: header, Term: own.Term}
}

// note what a node says of itself. Called with mu held.
func (p *peers) note(other *peer, said word) {
	other.wasBlank = other.wasBlank || said.untouched()
	if said.Standing != member.String() {
		return // what it says is not tested yet
	}
	if said.Life != other.Life {
		other.recollection, p.dirty = recollection{Before: other.known(said.Life), Life: said.Life}, true
	}
	if grown := other.Now.max(said.claim); grown != other.Now {
		other.Now, p.dirty = grown, true
	}
}

// untouched: its node can never have taken part in a commit, blank or just told who the members are.
func (w word) untouched() bool {
	return w.Standing == blank.String() || w.Standing == returning.String() && w.Term <= 1 && w.Commit <= 1
}

// ask one node until the node's life ends.
func (p *peers) ask(life context.Context, m Member) {
	for {
		if err := p.askOnce(m); err != nil && life.Err() == nil {
			p.node.log.Debug("node did not answer", "peer", m.Name, "err", err)
		}
		pause := askEvery
		if p.node.gate.is() != member {
			pause = askSoon
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-life.Done():
			timer.Stop()
			return
		}
	}
}

func (p *peers) askOnce(m Member) error {
	own := p.own()
	began := p.node.config.Clock()
	header := p.node.gate.header()
	header.Addr, _ = json.Marshal(own) // of plain fields: cannot fail
	var response raft.RequestPreVoteResponse
	err := p.node.gate.NetworkTransport.RequestPreVote(raft.ServerID(m.Name), raft.ServerAddress(m.RaftAddress),
		&raft.RequestPreVoteRequest{RPCHeader: header}, &response)
	if err != nil {
		return err
	}
	took := p.node.config.Clock().Sub(began)
	var said word
	if err := json.Unmarshal(response.Addr, &said); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if own.Cluster != "" && said.Cluster != "" && own.Cluster != said.Cluster {
		p.node.fail(fmt.Errorf("%s is of cluster %s, %s says this is cluster %s: %w", p.node.config.Dir, own.Cluster, m.Name, said.Cluster, ErrForeignDir))
		return nil
	}
	if is := p.node.gate.is(); (is == returning || is == member) && own.Standing != blank.String() && p.newer(said.Known) {
		p.node.fail(fmt.Errorf("%s ends at entry %d of term %d, and %s remembers that %q had come to entry %d and term %d: %w. %s",
			p.node.config.Dir, p.began.Commit, p.began.Term, m.Name, p.node.config.Name, said.Known.Commit, said.Known.Term, ErrOlderCopy, howToRejoin(said.Cluster)))
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	other := p.by[m.Name]
	p.note(other, said)
	other.last, other.seen = said, true
	other.confirmed = other.confirmed || own.Standing != blank.String()
	other.skew = time.UnixMilli(said.UnixMs).Sub(began.Add(took / 2))
	if skewed := other.skew.Abs() > maxSkew+took/2; skewed != other.skewed {
		other.skewed = skewed
		if skewed {
			p.node.log.Warn("clocks of two nodes differ: schedules of calls move by as much when the leader changes", "peer", m.Name, "skew", other.skew.String())
		}
	}
	return nil
}

// newer than what this node had when it started.
func (p *peers) newer(known claim) bool {
	return known.Commit > p.began.Commit || known.Term > p.began.Term
}

// rise from one standing to the next, until this node is a member.
func (p *peers) rise(life context.Context) {
	tick := time.NewTicker(askSoon / 2)
	defer tick.Stop()
	began := time.Now()
	var filledSince time.Time
	told := false
	for p.node.gate.is() != member {
		select {
		case <-tick.C:
		case <-life.Done():
			return
		}
		var err error
		switch p.node.gate.is() {
		case blank:
			err = p.form()
		case returning:
			if p.count(func(o *peer) bool { return o.confirmed })+1 >= p.majority() {
				p.node.gate.become(member)
			}
		case joining:
			if filledSince.IsZero() && p.node.gate.heard.Load() != nil {
				filledSince = time.Now()
			}
			if !filledSince.IsZero() && time.Since(filledSince) >= joinAtLeast && p.filled() {
				err = p.node.joined()
			}
		}
		if err != nil {
			p.node.fail(err)
			return
		}
		if !told && time.Since(began) > 5*time.Second {
			told = true
			p.node.log.Warn("this node has no vote yet", "standing", p.node.gate.is().String(), "answered", p.count(func(o *peer) bool { return o.seen }), "others", len(p.by))
		}
	}
	p.node.log.Info("this node votes", "after", time.Since(began).String())
}

func (p *peers) majority() int { return (len(p.by)+1)/2 + 1 }

func (p *peers) count(what func(*peer) bool) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range p.by {
		if what(other) {
			n++
		}
	}
	return n
}

// form the cluster, once it is certain that there is none: of the others so many are blank that no majority can have
// committed anything. That takes all of three nodes, four of five.
func (p *peers) form() error {
	need := len(p.by) + 2 - p.majority()
	blanks := p.count(func(o *peer) bool { return o.wasBlank })
	if blanks >= need {
		return p.node.found()
	}
	silent := p.count(func(o *peer) bool { return !o.seen && !o.wasBlank })
	if blanks+silent >= need {
		return nil
	}
	cluster := ""
	p.mu.Lock()
	for _, other := range p.by {
		if other.last.Cluster != "" {
			cluster = other.last.Cluster
		}
	}
	p.mu.Unlock()
	return fmt.Errorf("%s is empty, and the other nodes are a cluster already: %w. %s", p.node.config.Dir, ErrLostLog, howToRejoin(cluster))
}

// filled: this node has everything the leader had committed, something of the leader's own term among it. Before that a new
// leader does not know what is committed.
func (p *peers) filled() bool {
	heard := p.node.gate.heard.Load()
	r := p.node.running.Load()
	if heard == nil || heard.commit == 0 || r == nil || r.AppliedIndex() < heard.commit {
		return false
	}
	var l raft.Log
	err := p.node.guarded.GetLog(heard.commit, &l)
	if errors.Is(err, raft.ErrLogNotFound) {
		index, term, snapshotErr := newestSnapshot(p.node.snapshots)
		return snapshotErr == nil && index == heard.commit && term == heard.term
	}
	return err == nil && l.Term == heard.term
}

// anyRoomier says whether another node answers whose disk is not nearly full.
func (p *peers) anyRoomier() bool { return p.roomier() != "" }

// roomier is a node to hand over to: one whose disk has the most room, below the hand-over; empty: none.
func (p *peers) roomier() (name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := 101.0
	for other, state := range p.by {
		if state.seen && state.last.Standing == member.String() && guard.Level(state.last.DiskLevel) < guard.HandOver && state.last.DiskPercent < best {
			name, best = other, state.last.DiskPercent
		}
	}
	return name
}

// short of room are so many of the others that no majority has any.
func (p *peers) short() bool {
	full := p.count(func(o *peer) bool { return o.seen && guard.Level(o.last.DiskLevel) >= guard.Refusing })
	return len(p.by)+1-full < p.majority()
}

// keep what the others say, until the node's life ends.
func (p *peers) keep(life context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-life.Done():
			return
		}
		if p.node.disk.Level() < guard.Halted {
			p.save()
			p.node.learnCluster()
		}
	}
}

func (p *peers) save() {
	p.mu.Lock()
	dirty := p.dirty
	p.dirty = false
	kept := map[string]recollection{}
	for name, other := range p.by {
		kept[name] = other.recollection
	}
	p.mu.Unlock()
	if !dirty {
		return
	}
	raw, err := json.Marshal(kept)
	if err == nil {
		err = guard.Replace(p.path(), raw)
	}
	if err != nil {
		p.node.log.Warn("what the other nodes said was not written down", "err", err)
	}
}

// Skews of the other nodes' clocks against this one's, by name; those that have answered.
func (n *Node) Skews() map[string]time.Duration {
	n.peers.mu.Lock()
	defer n.peers.mu.Unlock()
	skews := map[string]time.Duration{}
	for name, other := range n.peers.by {
		if other.seen {
			skews[name] = other.skew
		}
	}
	return skews
}

// cluster is the installation id as the state machine, or else the marker, knows it.
func (n *Node) cluster() (id string) {
	n.View(func(m *fsm.Machine) { id = m.Installation() })
	if id == "" {
		id = n.marker.Load().Cluster
	}
	return id
}
