package raftnode

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	// meetEvery is how often the membership is looked at for nodes to ask.
	meetEvery = 100 * time.Millisecond
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
	Address  string `json:"address,omitempty"` // where Raft reaches the node
	Standing string `json:"standing"`
	claim
	Life        string  `json:"life"` // of the process: what it says in this one is no news to it
	DiskPercent float64 `json:"disk_percent"`
	DiskLevel   uint8   `json:"disk_level"`
	UnixMs      int64   `json:"unix_ms"`
	// Known is what the answering node remembers of the asking one from its lives before. In answers.
	Known claim `json:"known"`
	// Asker is what the asking node is in the newest membership the answering one knows of. In answers.
	Asker suffrage `json:"asker,omitempty"`
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
	stranger  bool // says that it is of another cluster
	last      word
	skew      time.Duration
	skewed    bool
}

// peers is what this node and the other members know of each other. Who they are is the membership's to say: see addresses.members.
type peers struct {
	node  *Node
	began claim // of this node when it started, Commit being its last entry

	mu sync.Mutex // guards all below
	by map[string]*peer
	// vouched are leaders that are of this node's cluster; few, and of this life.
	vouched map[string]bool
	kept    map[string]recollection // of an earlier life, of nodes that are not met yet: they may be in entries still to come
	dirty   bool
}

func newPeers(n *Node) *peers {
	p := &peers{node: n, by: map[string]*peer{}, vouched: map[string]bool{}, kept: map[string]recollection{}}
	raw, err := os.ReadFile(p.path())
	if err != nil {
		return p
	}
	if err := json.Unmarshal(raw, &p.kept); err != nil {
		n.log.Warn("what the other nodes said before cannot be read; they will say it again", "err", err)
	}
	return p
}

// others are the members but this node, voters or not.
func (p *peers) others() []Member {
	return slices.DeleteFunc(p.node.where.members(), func(m Member) bool { return m.Name == p.node.config.Name })
}

// electorate: the other voters, and how many of all voters, this node included if it is one, are a majority.
func (p *peers) electorate() (others []string, majority int) {
	voters := 0
	for _, m := range p.node.where.members() {
		if !m.Voter {
			continue
		}
		voters++
		if m.Name != p.node.config.Name {
			others = append(others, m.Name)
		}
	}
	return others, voters/2 + 1
}

// know these others, and forget those who are members no more: what a removed node remembers, or was heard to say, binds nobody.
func (p *peers) know(others []Member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.by {
		if !slices.ContainsFunc(others, func(m Member) bool { return m.Name == name }) {
			delete(p.by, name)
			p.dirty = true
		}
	}
	for _, m := range others {
		if p.by[m.Name] == nil {
			p.by[m.Name] = &peer{recollection: p.kept[m.Name]}
			delete(p.kept, m.Name)
		}
	}
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
	w.Address, _, _ = decodeAddress(n.gate.LocalAddr())
	if r := n.where.raft.Load(); r != nil {
		w.claim = claim{Term: r.CurrentTerm(), Commit: r.CommitIndex()}
	}
	return w
}

// answer a question of another node.
func (p *peers) answer(q *raft.RequestPreVoteRequest) *raft.RequestPreVoteResponse {
	own := p.own()
	own.Asker = p.node.where.suffrage(string(q.ID))
	var said word
	if err := json.Unmarshal(q.Addr, &said); err == nil {
		if said.strange(own) && said.Address != "" && p.node.alone() {
			// Its leader sends nothing to a stranger, as which it may have this node by now.
			p.node.gate.caller.Store(&Member{Name: string(q.ID), RaftAddress: said.Address})
		}
		p.mu.Lock()
		if other := p.by[string(q.ID)]; other != nil && !said.strange(own) {
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

// strange: the two are known to be of different clusters.
func (w word) strange(other word) bool {
	return w.Cluster != "" && other.Cluster != "" && w.Cluster != other.Cluster
}

// meet the others: ask each from the moment on that this node knows of it until it is a member no more, or the node's life ends.
func (p *peers) meet(life context.Context) {
	asked := map[string]context.CancelFunc{}
	var asking sync.WaitGroup
	defer asking.Wait()
	tick := time.NewTicker(meetEvery)
	defer tick.Stop()
	for {
		others := p.others()
		p.know(others)
		for name, end := range asked {
			if !slices.ContainsFunc(others, func(m Member) bool { return m.Name == name }) {
				end()
				delete(asked, name)
			}
		}
		for _, m := range others {
			if asked[m.Name] == nil {
				membership, end := context.WithCancel(life)
				asked[m.Name] = end
				asking.Go(func() {
					defer end()
					p.ask(membership, m.Name)
				})
			}
		}
		p.heed()
		select {
		case <-tick.C:
		case <-life.Done():
			return
		}
	}
}

// heed a leader, or a member of another cluster, that calls and is not known. A node that is filled takes nothing before it knows that the leader is of its own
// cluster. One that is alone in its cluster has lost its directory, and has begun a cluster of its own with an empty one, where the
// leader's cluster is another and has it as a member.
func (p *peers) heed() {
	leader := p.node.gate.caller.Load()
	if leader == nil {
		return
	}
	filled := p.node.gate.is() == joining && p.unheard(leader.Name)
	if !filled && !p.node.alone() {
		return
	}
	own := p.own()
	said, err := p.question(*leader, own)
	if err != nil {
		p.node.log.Debug("the leader that calls did not answer", "peer", leader.Name, "err", err)
		return
	}
	p.node.gate.caller.CompareAndSwap(leader, nil) // until it, or another, calls again
	switch strange := said.strange(own); {
	case strange && filled:
		p.node.fail(fmt.Errorf("%s was given up for cluster %s, and its leader %s says that it is cluster %s: %w. %s",
			p.node.config.Dir, own.Cluster, leader.Name, said.Cluster, ErrForeignDir, howToRejoin(said.Cluster)))
	case filled && said.Cluster != "":
		p.vouch(leader.Name)
	case filled: // it does not know yet
	case strange && said.Asker != noMember:
		p.node.fail(fmt.Errorf("%s is of cluster %s, which has no other member, and %s says that %q is a member of cluster %s: %w. %s",
			p.node.config.Dir, own.Cluster, leader.Name, p.node.config.Name, said.Cluster, ErrForeignDir, howToRejoin(said.Cluster)))
	}
}

// ask one node as long as it is a member.
func (p *peers) ask(membership context.Context, name string) {
	for {
		if err := p.askOnce(name); err != nil && membership.Err() == nil {
			p.node.log.Debug("node did not answer", "peer", name, "err", err)
		}
		pause := askEvery
		if is := p.node.gate.is(); is != member && is != newcomer { // what it waits for is not the others' to say
			pause = askSoon
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-membership.Done():
			timer.Stop()
			return
		}
	}
}

// question another node, wherever it is.
func (p *peers) question(m Member, own word) (said word, err error) {
	header := p.node.gate.header()
	header.Addr, _ = json.Marshal(own) // of plain fields: cannot fail
	var response raft.RequestPreVoteResponse
	err = p.node.gate.NetworkTransport.RequestPreVote(raft.ServerID(m.Name), raft.ServerAddress(m.RaftAddress),
		&raft.RequestPreVoteRequest{RPCHeader: header}, &response)
	if err != nil {
		return said, err // the library names the step
	}
	if err := json.Unmarshal(response.Addr, &said); err != nil {
		return said, fmt.Errorf("reading the answer: %w", err)
	}
	return said, nil
}

func (p *peers) askOnce(name string) error {
	address, err := p.node.where.ServerAddr(raft.ServerID(name))
	if err != nil {
		return err
	}
	own := p.own()
	began := p.node.config.Clock()
	said, err := p.question(Member{Name: name, RaftAddress: string(address)}, own)
	if err != nil {
		return err
	}
	took := p.node.config.Clock().Sub(began)
	if said.strange(own) {
		p.estrange(name, own.Cluster, said.Cluster)
		return nil
	}
	if is := p.node.gate.is(); (is == returning || is == member) && !own.untold() && p.newer(said.Known) {
		p.node.fail(fmt.Errorf("%s ends at entry %d of term %d, and %s remembers that %q had come to entry %d and term %d: %w. %s",
			p.node.config.Dir, p.began.Commit, p.began.Term, name, p.node.config.Name, said.Known.Commit, said.Known.Term, ErrOlderCopy, howToRejoin(said.Cluster)))
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	other := p.by[name]
	if other == nil {
		return nil // it was removed meanwhile
	}
	p.note(other, said)
	other.last, other.seen, other.stranger = said, true, false
	other.confirmed = other.confirmed || !own.untold()
	other.skew = time.UnixMilli(said.UnixMs).Sub(began.Add(took / 2))
	if skewed := other.skew.Abs() > maxSkew+took/2; skewed != other.skewed {
		other.skewed = skewed
		if skewed {
			p.node.log.Warn("clocks of two nodes differ: schedules of calls move by as much when the leader changes", "peer", name, "skew", other.skew.String())
		}
	}
	return nil
}

// untold: its node had nothing when it said this, so what it was answered says nothing of what it has.
func (w word) untold() bool { return w.Standing == blank.String() || w.Standing == newcomer.String() }

// estrange a node that says that it is of another cluster: nothing is taken from it or sent to it. Where most others say so, this
// node is the one that is wrong.
func (p *peers) estrange(name, own, says string) {
	p.mu.Lock()
	other := p.by[name]
	told := other != nil && other.stranger
	if other != nil {
		other.stranger, other.confirmed = true, false
	}
	p.mu.Unlock()
	if others, _ := p.electorate(); 2*p.count(func(o *peer) bool { return o.stranger }) > len(others) {
		p.node.fail(fmt.Errorf("%s is of cluster %s, %s says this is cluster %s: %w", p.node.config.Dir, own, name, says, ErrForeignDir))
		return
	}
	if !told {
		p.node.log.Error("a member is of another cluster: nothing is taken from it or sent to it. Give it its own data directory back, or have it rejoin",
			"peer", name, "cluster", own, "says", says)
	}
}

// stranger says whether a node has said that it is of another cluster.
func (p *peers) stranger(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	other := p.by[name]
	return other != nil && other.stranger
}

// unheard: a node that has not said yet of which cluster it is; one that has just started may not know. A directory that was
// given up for a cluster takes nothing from it.
func (p *peers) unheard(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if other := p.by[name]; other != nil && other.last.Cluster != "" {
		return false
	}
	return !p.vouched[name]
}

// vouch for a leader that is of this node's cluster, although no member that this node knows of.
func (p *peers) vouch(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.vouched[name] = true
}

// newer than what this node had when it started.
func (p *peers) newer(known claim) bool {
	return known.Commit > p.began.Commit || known.Term > p.began.Term
}

// count the other voters of whom something holds.
func (p *peers) count(what func(*peer) bool) (n int) {
	others, _ := p.electorate()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range others {
		if other := p.by[name]; other != nil && what(other) {
			n++
		}
	}
	return n
}

// anyRoomier says whether another node answers whose disk is not nearly full.
func (p *peers) anyRoomier() bool { return p.roomier() != "" }

// roomier is a node to hand over to: a voter whose disk has the most room, below the hand-over; empty: none.
func (p *peers) roomier() (name string) {
	others, _ := p.electorate()
	p.mu.Lock()
	defer p.mu.Unlock()
	best := 101.0
	for _, other := range others {
		state := p.by[other]
		if state != nil && state.seen && state.last.Standing == member.String() && guard.Level(state.last.DiskLevel) < guard.HandOver && state.last.DiskPercent < best {
			name, best = other, state.last.DiskPercent
		}
	}
	return name
}

// short of room are so many of the other voters that no majority has any. This node has: it asks itself first.
func (p *peers) short() bool {
	others, majority := p.electorate()
	full := p.count(func(o *peer) bool { return o.seen && guard.Level(o.last.DiskLevel) >= guard.Refusing })
	return len(others)+1-full < majority
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
	kept := maps.Clone(p.kept)
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
