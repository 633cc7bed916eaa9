// Package slots shares run slots of synchronous calls among edges. Pure: a pool takes what the edges say and the time, and returns
// what each is to be told. Nothing of it is in the log: after a change of leader the edges say what they have.
//
// An edge uses the slots it was given without asking. A slot moves only when its edge has said that it does not use it any more, so
// that no two edges have it, whatever is lost or late.
package slots

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"
)

// RotateEvery is how long an edge keeps a slot when there are fewer slots than edges that want one.
const RotateEvery = 250 * time.Millisecond

// Pool is one limit, of a function or of a replica, and the share of each session in it. Its zero value is empty.
type Pool struct {
	shares map[uint64]*share
}

// share of one session.
type share struct {
	given   uint32 // what it was last told that it may use
	counted uint32 // what it may be using, as far as anybody knows; given or more
	wanted  uint32
	version uint64 // of the message that told it given; 0: it has said so itself
}

// Say is what a session says of its share: held is all it uses and all it may use, wanted what it could use now. applied is the last
// version that it had taken when it said so.
func (p *Pool) Say(session uint64, held, wanted uint32, applied uint64) {
	if p.shares == nil {
		p.shares = map[uint64]*share{}
	}
	s := p.shares[session]
	if s == nil {
		s = &share{}
		p.shares[session] = s
	}
	s.wanted = wanted
	if applied < s.version {
		return // it did not know yet what it was given
	}
	s.counted = held
	s.given = min(s.given, held)
	if s.version == 0 {
		s.given = held // found with it, by a new leader or on a new connection
	}
	s.drop(p, session)
}

// Greet is Say of a session whose connection is new: what it was told on the last one and does not have, it has not got.
func (p *Pool) Greet(session uint64, held, wanted uint32) {
	delete(p.shares, session)
	p.Say(session, held, wanted, 0)
}

// Leave ends a session's share.
func (p *Pool) Leave(session uint64) { delete(p.shares, session) }

// Empty says that nobody has or wants anything of the pool.
func (p *Pool) Empty() bool { return len(p.shares) == 0 }

func (s *share) drop(p *Pool, session uint64) {
	if s.counted == 0 && s.wanted == 0 && s.given == 0 {
		delete(p.shares, session)
	}
}

// Order tells a session what it may use from now on.
type Order struct {
	Session uint64
	Given   uint32
}

// Plan shares out limit: evenly among those that want more than an even part, and what nobody wants stays where it is. version is
// that of the message that carries the orders. next is when to plan again though nobody says anything; zero: not.
func (p *Pool) Plan(limit uint32, now time.Time, version uint64) (orders []Order, next time.Time) {
	ids := slices.Sorted(maps.Keys(p.shares))
	targets, next := p.targets(ids, limit, now)
	before := make([]uint32, len(ids))
	counted, given, need := int64(0), int64(0), int64(0)
	for i, id := range ids {
		s := p.shares[id]
		before[i] = s.given
		counted += int64(s.counted)
		given += int64(s.given)
		need += max(0, int64(targets[i])-int64(s.given))
	}
	order := make([]int, len(ids)) // those that lack most first, those that have most to spare last
	lack := func(i int) int64 { return int64(targets[i]) - int64(p.shares[ids[i]].given) }
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(lack(b), lack(a)) })

	free := int64(limit) - counted
	for _, i := range order {
		s, more := p.shares[ids[i]], lack(i)
		if more <= 0 {
			break
		}
		// What it is still using of a former, larger share it need not be given again.
		more = min(more, int64(s.counted-s.given)+max(0, free))
		s.given += uint32(more)
		given += more
		if s.given > s.counted {
			free -= int64(s.given - s.counted)
			s.counted = s.given
		}
		need -= more
	}
	returning := int64(0)
	for _, id := range ids {
		returning += int64(p.shares[id].counted - p.shares[id].given)
	}
	take := max(need-max(0, free)-returning, given-int64(limit))
	for _, i := range slices.Backward(order) {
		surplus := -lack(i)
		if take <= 0 || surplus <= 0 {
			break
		}
		surplus = min(surplus, take)
		p.shares[ids[i]].given -= uint32(surplus)
		take -= surplus
	}
	for i, id := range ids {
		if s := p.shares[id]; s.given != before[i] {
			s.version = version
			orders = append(orders, Order{id, s.given})
		}
	}
	return orders, next
}

// targets is the even share of each. Where there are fewer slots than there are sessions that want one, they go round.
func (p *Pool) targets(ids []uint64, limit uint32, now time.Time) (targets []uint32, next time.Time) {
	targets = make([]uint32, len(ids))
	byWant := make([]int, 0, len(ids))
	for i, id := range ids {
		if p.shares[id].wanted > 0 {
			byWant = append(byWant, i)
		}
	}
	slices.SortStableFunc(byWant, func(a, b int) int { return cmp.Compare(p.shares[ids[a]].wanted, p.shares[ids[b]].wanted) })
	left := limit
	for n, i := range byWant {
		even := left / uint32(len(byWant)-n)
		if want := p.shares[ids[i]].wanted; want <= even {
			targets[i] = want
			left -= want
			continue
		}
		// All the rest want more than that. What does not divide goes to some of them.
		rest := slices.Clone(byWant[n:])
		slices.Sort(rest)
		odd := int(left) - int(even)*len(rest)
		first := 0
		if even == 0 && odd > 0 {
			turn := now.UnixNano() / int64(RotateEvery)
			first = int(turn % int64(len(rest)))
			next = time.Unix(0, (turn+1)*int64(RotateEvery))
		}
		for k := range rest {
			targets[rest[(first+k)%len(rest)]] = even
			if k < odd {
				targets[rest[(first+k)%len(rest)]]++
			}
		}
		break
	}
	return targets, next
}

// Sum of what may be in use; for tests and metrics.
func (p *Pool) Sum() (counted uint64) {
	for _, s := range p.shares {
		counted += uint64(s.counted)
	}
	return counted
}

// Most is the largest number a limit or a want can be.
const Most = math.MaxInt32
