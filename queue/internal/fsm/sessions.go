package fsm

import "github.com/slimfaas/slimfaas/queue/internal/command"

func (a *application) openSession(c command.OpenSession) Result {
	if c.Name == "" {
		return Result{Code: Invalid, Detail: "session name is empty"}
	}
	if id, ok := a.names[c.Name]; ok {
		known := a.sessions[id]
		if !known.Vanished && known.Incarnation == c.Incarnation {
			return Result{Index: id, Repeated: true}
		}
		a.dropSession(known)
	}
	opened := &Session{ID: a.issue(), Name: c.Name, Incarnation: c.Incarnation, Kind: c.Kind, Address: c.Address}
	a.sessions[opened.ID] = opened
	a.names[opened.Name] = opened.ID
	a.put(BucketSession, numberKey(opened.ID), encodeSession(opened))
	a.changeSession(*opened)
	return Result{Index: opened.ID}
}

func (a *application) endSession(c command.EndSession) Result {
	s, ok := a.sessions[c.Session]
	if !ok || s.Vanished {
		return Result{Code: NotFound, Detail: "session is not live"}
	}
	if !c.Expired {
		a.dropSession(s)
		return Result{}
	}
	a.freeLocks(s.ID)
	a.dropUploadsOf(s.ID)
	s.Vanished, s.EndedUnixMs = true, a.now
	a.put(BucketSession, numberKey(s.ID), encodeSession(s))
	change := *s
	change.Ended = true
	a.changeSession(change)
	return Result{}
}

// dropSession of a name that closed or came back. A live one ends here; a vanished one had ended before.
func (a *application) dropSession(s *Session) {
	a.freeLocks(s.ID)
	a.dropUploadsOf(s.ID)
	delete(a.sessions, s.ID)
	delete(a.names, s.Name)
	a.remove(BucketSession, numberKey(s.ID))
	change := *s
	change.Ended = true
	a.changeSession(change)
}

func (a *application) changeSession(s Session) {
	a.changes = append(a.changes, Change{Topic: TopicSession, Session: &s})
}

func (a *application) freeLocks(session uint64) {
	for _, name := range sortedKeys(a.locks) {
		if l := a.locks[name]; l.Session == session {
			a.freeLock(l)
		}
	}
}

func (a *application) freeLock(l Lock) {
	delete(a.locks, l.Name)
	a.remove(BucketLock, []byte(l.Name))
	l.Session = 0
	a.changes = append(a.changes, Change{Topic: TopicLock, Lock: &l})
}

func (a *application) acquireLock(c command.AcquireLock) Result {
	if c.Lock == "" {
		return Result{Code: Invalid, Detail: "lock name is empty"}
	}
	if !a.live(c.Session) {
		return Result{Code: Stale, Detail: "session is not live"}
	}
	if held, ok := a.locks[c.Lock]; ok {
		if held.Session == c.Session {
			return Result{Index: held.Token, Repeated: true}
		}
		return Result{Code: Conflict, Detail: "held by " + a.sessions[held.Session].Name}
	}
	l := Lock{Name: c.Lock, Session: c.Session, Token: a.issue()}
	a.locks[l.Name] = l
	a.put(BucketLock, []byte(l.Name), encodeLock(l))
	a.changes = append(a.changes, Change{Topic: TopicLock, Lock: &l})
	return Result{Index: l.Token}
}

func (a *application) releaseLock(c command.ReleaseLock) Result {
	held, ok := a.locks[c.Lock]
	if !ok {
		return Result{Code: NotFound, Detail: "lock is free"}
	}
	if held.Session != c.Session {
		return Result{Code: Conflict, Detail: "held by " + a.sessions[held.Session].Name}
	}
	a.freeLock(held)
	return Result{}
}

func (a *application) recordActivity(c command.RecordActivity) Result {
	for _, activity := range c.Activities {
		if activity.Function == "" {
			continue
		}
		if known, ok := a.activity[activity.Function]; ok && known >= activity.AtUnixMs {
			continue
		}
		a.activity[a.intern(activity.Function).name] = activity.AtUnixMs
		a.put(BucketActivity, []byte(activity.Function), encodeTime(activity.AtUnixMs))
	}
	return Result{}
}

func (a *application) setOverride(c command.SetOverride) Result {
	if c.Function == "" {
		return Result{Code: Invalid, Detail: "function is empty"}
	}
	o := Override{Function: c.Function, Replicas: c.Replicas, UntilUnixMs: c.UntilUnixMs}
	if c.Replicas < 0 {
		if _, ok := a.overrides[c.Function]; !ok {
			return Result{Code: NotFound, Detail: "no override"}
		}
		a.endOverride(o)
		return Result{}
	}
	a.overrides[o.Function] = o
	a.put(BucketOverride, []byte(o.Function), encodeOverride(o))
	a.changes = append(a.changes, Change{Topic: TopicOverride, Override: &o})
	return Result{}
}

func (a *application) endOverride(o Override) {
	delete(a.overrides, o.Function)
	a.remove(BucketOverride, []byte(o.Function))
	o.Replicas = -1
	a.changes = append(a.changes, Change{Topic: TopicOverride, Override: &o})
}
