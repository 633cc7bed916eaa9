package forward

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/slimfaas/slimfaas/edge/internal/upstream"
)

// tunnelBuffer is what each direction of an upgraded connection holds while it is silent, in bytes.
const tunnelBuffer = 4 << 10

// upgradeOf a request: the protocol its connection is to be switched to; empty: none. HTTP/2 has no upgrades.
func upgradeOf(r *http.Request) string {
	if r.ProtoMajor != 1 || !listed(r.Header["Connection"], "Upgrade") {
		return ""
	}
	return strings.Join(r.Header["Upgrade"], ", ") // the gate lets one through, websocket
}

// tunnel passes bytes both ways once the function has switched protocols, until either side ends or ctx does.
func tunnel(ctx context.Context, w http.ResponseWriter, resp *http.Response, conn *upstream.Conn) {
	var head bytes.Buffer
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	out := w.Header()
	for name, values := range resp.Header {
		out[name] = values
	}
	if err := out.Write(&head); err != nil { // of a buffer: cannot fail
		panic(http.ErrAbortHandler)
	}
	head.WriteString("\r\n")
	caller, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // the caller is gone
	}
	defer caller.Close()
	function, early := conn.Detach()
	head.Write(early)
	sent, _ := buffered.Reader.Peek(buffered.Reader.Buffered()) // of what is there: cannot fail
	end := sync.OnceFunc(func() {
		_ = caller.Close()
		_ = function.Close()
	})
	defer context.AfterFunc(ctx, end)()
	var up sync.WaitGroup
	up.Go(func() {
		defer end()
		pass(function, caller, sent)
	})
	pass(caller, function, head.Bytes())
	end()
	up.Wait()
}

// pass what there is already, and then everything that comes, until either end is closed.
func pass(to, from net.Conn, first []byte) {
	if len(first) > 0 {
		if _, err := to.Write(first); err != nil {
			return
		}
	}
	_, _ = io.CopyBuffer(onlyWriter{to}, onlyReader{from}, make([]byte, tunnelBuffer)) // how it ended is nobody's to know
}

// Without these io.CopyBuffer would take the connections' own ways, which need more for a silent connection than a small buffer.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)
