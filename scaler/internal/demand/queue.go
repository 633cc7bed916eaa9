package demand

import (
	"maps"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// Work is what the queue holds of one function.
type Work struct {
	Queued, Running, Awaiting, Waiting uint64
	NextTry                            time.Time // of the earliest waiting call; zero: none
}

// Queue keeps the newest demand of the queue's leader. Its methods may be called from many goroutines.
type Queue struct {
	mu        sync.Mutex
	term      uint64
	sequence  uint64
	complete  bool // everything of some term was heard
	functions map[string]*queued
	round     round
}

type queued struct {
	work     Work
	term     uint64
	sequence uint64
	heard    time.Time
}

// NewQueue makes an empty keeper.
func NewQueue() *Queue { return &Queue{functions: map[string]*queued{}} }

// Apply takes one report, heard now. It says whether it was news. What an older leader said stays until the newer one has
// stated everything: too much demand keeps a function awake a little longer, too little would put it to sleep.
func (q *Queue) Apply(now time.Time, report *wire.DemandReport) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	term, sequence := report.GetTerm(), report.GetSequence()
	if term < q.term {
		return false
	}
	if term > q.term {
		q.term, q.sequence, q.round = term, 0, round{}
	}
	again := report.GetFull() && sequence == q.sequence && q.round.heard != nil && !q.round.heard[report.GetPart()] && q.round.first == sequence
	if sequence <= q.sequence && !again && q.sequence != 0 {
		return false
	}
	q.sequence = sequence
	for _, f := range report.GetFunctions() {
		if len(q.functions) >= maxReported && q.functions[f.GetFunction()] == nil {
			continue
		}
		q.functions[f.GetFunction()] = &queued{work: work(now, f), term: term, sequence: sequence, heard: now}
	}
	if report.GetFull() {
		q.part(term, sequence, report.GetPart(), max(report.GetParts(), 1))
	}
	return true
}

func (q *Queue) part(term, sequence uint64, part, parts uint32) {
	if part == 0 || q.round.parts != parts || q.round.heard == nil {
		if part != 0 {
			q.round = round{}
			return
		}
		q.round = round{first: sequence, parts: parts, heard: map[uint32]bool{}}
	}
	q.round.heard[part] = true
	if uint32(len(q.round.heard)) < parts { //nolint:gosec // at most parts
		return
	}
	maps.DeleteFunc(q.functions, func(_ string, f *queued) bool {
		return f.term < term || f.sequence < q.round.first
	})
	q.complete = true
}

// Functions lists the work by function.
func (q *Queue) Functions() map[string]Work {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := make(map[string]Work, len(q.functions))
	for name, f := range q.functions {
		all[name] = f.work
	}
	return all
}

// Complete says whether everything the queue holds was heard at least once.
func (q *Queue) Complete() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.complete
}

// Answer takes the answer to a question that was asked at began: everything the queue held. What was heard since is newer. It
// says whether any number of calls is another now.
func (q *Queue) Answer(began, now time.Time, report *wire.DemandReport) (news bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if report.GetTerm() < q.term {
		return false
	}
	before := maps.Clone(q.functions)
	if report.GetTerm() > q.term {
		q.term, q.sequence, q.round = report.GetTerm(), 0, round{}
	}
	maps.DeleteFunc(q.functions, func(_ string, f *queued) bool { return f.heard.Before(began) })
	for _, f := range report.GetFunctions() {
		if q.functions[f.GetFunction()] == nil && len(q.functions) < maxReported {
			q.functions[f.GetFunction()] = &queued{work: work(now, f), term: report.GetTerm(), sequence: q.sequence, heard: now}
		}
	}
	news = !q.complete || !maps.EqualFunc(before, q.functions, func(a, b *queued) bool { return a.work.counts() == b.work.counts() })
	q.complete = true
	return news
}

// counts without the time of the next try, which is measured anew each time.
func (w Work) counts() [4]uint64 { return [4]uint64{w.Queued, w.Running, w.Awaiting, w.Waiting} }

func work(now time.Time, f *wire.FunctionDemand) Work {
	w := Work{Queued: f.GetQueued(), Running: f.GetRunning(), Awaiting: f.GetAwaiting(), Waiting: f.GetWaiting()}
	if f.GetHasNextTry() {
		w.NextTry = now.Add(milliseconds(f.GetNextTryInMs()))
	}
	return w
}
