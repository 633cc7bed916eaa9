package async

import (
	"context"
	"sync"
	"time"
)

// term hands out contexts that end a given while from now, or a twentieth of it earlier: those who ask within that time share one. A
// timer and a context of its own is a twentieth of what an edge spends on an accepted call. The zero term is ready. Safe for concurrent use.
type term struct {
	mu    sync.Mutex // guards the rest
	ctx   context.Context
	until time.Time
}

// within gives the context; nobody cancels it. Always asked for the same while.
func (t *term) within(d time.Duration) context.Context {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx == nil || t.until.Sub(now) < d-d/20 {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		context.AfterFunc(ctx, cancel) // when it has ended by itself
		t.ctx, t.until = ctx, now.Add(d)
	}
	return t.ctx
}
