package forward

import (
	"net/http"
	"sync"
	"time"
)

// guardedWriter bounds each write to an HTTP/1 caller. An answer that is silent for hours is not touched: only writes are timed.
type guardedWriter struct {
	http.ResponseWriter
	control *http.ResponseController // see controller
	stalled time.Duration
	set     time.Time // of the deadline in force; zero: none
	off     bool      // what is written fits into buffers and waits for nobody
}

// controller of the response, which small answers do without.
func (g *guardedWriter) controller() *http.ResponseController {
	if g.control == nil {
		g.control = http.NewResponseController(g.ResponseWriter)
	}
	return g.control
}

// unguarded is the length of bodies that net/http keeps until the handler has returned, in bytes.
const unguarded = 2 << 10

func (g *guardedWriter) Write(p []byte) (int, error) {
	g.arm()
	return g.ResponseWriter.Write(p)
}

// arm the deadline of the next write.
func (g *guardedWriter) arm() {
	if g.off {
		return
	}
	if now := time.Now(); now.Sub(g.set) > min(time.Second, g.stalled/4) { // not with every chunk of a fast answer
		if g.controller().SetWriteDeadline(now.Add(g.stalled)) == nil {
			g.set = now
		}
	}
}

// Unwrap is for http.ResponseController: flush, hijack, deadlines.
func (g *guardedWriter) Unwrap() http.ResponseWriter { return g.ResponseWriter }

// clear leaves the connection as it was, for its next request.
func (g *guardedWriter) clear() {
	if !g.set.IsZero() {
		_ = g.controller().SetWriteDeadline(time.Time{}) // fails when the connection is gone
	}
}

// buffers keeps copy buffers of 32 KiB.
type buffers struct{ pool sync.Pool }

func (b *buffers) take() *[]byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, 32<<10)
	return &p
}

func (b *buffers) give(p *[]byte) { b.pool.Put(p) }

// Get and Put are for httputil.ReverseProxy.
func (b *buffers) Get() []byte  { return *b.take() }
func (b *buffers) Put(p []byte) { b.give(&p) }
