package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BusLinks stand between edges and scalers and the bus. They can cut the bus off, and lose, double and reorder what is published;
// the queue nodes' own clients are inside their processes, and what they publish passes a link on its way to whoever listens.
type BusLinks struct {
	listeners []net.Listener // one per queue node, in order
	life      context.Context
	end       context.CancelFunc
	work      sync.WaitGroup

	// Harmed counts messages lost, doubled and held back behind the next.
	Lost, Doubled, Reordered atomic.Int64

	mu      sync.Mutex // guards the fields below
	cluster *Cluster
	cut     bool
	pairs   map[net.Conn]net.Conn
	hints   Hints
}

// Hints is what happens to messages, each with a probability between 0 and 1. The zero value does no harm.
type Hints struct{ Lose, Double, Reorder float64 }

// NewBusLinks listens for the buses of queue-0 to queue-(n-1). Give Prelude to the cluster's edge and scaler, and the cluster to
// Attach.
func NewBusLinks(t testing.TB, nodes int) *BusLinks {
	t.Helper()
	life, end := context.WithCancel(context.Background())
	b := &BusLinks{life: life, end: end, pairs: map[net.Conn]net.Conn{}}
	for i := range nodes {
		l, err := (&net.ListenConfig{}).Listen(life, "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("listening in front of the bus: %v", err)
		}
		b.listeners = append(b.listeners, l)
		b.work.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				b.work.Go(func() { b.forward(conn, fmt.Sprintf("queue-%d", i)) })
			}
		})
	}
	t.Cleanup(func() {
		b.end()
		for _, l := range b.listeners {
			_ = l.Close()
		}
		b.Cut()
		b.work.Wait()
	})
	return b
}

// Prelude of a program (EDGE, SCALER): the bus is where the links are.
func (b *BusLinks) Prelude(prefix string) string {
	urls := make([]string, 0, len(b.listeners))
	for _, l := range b.listeners {
		urls = append(urls, "nats://"+l.Addr().String())
	}
	return fmt.Sprintf("%s_BUS_URLS=%s; export %s_BUS_URLS", prefix, strings.Join(urls, ","), prefix)
}

// Attach says which cluster's bus this is, before it runs.
func (b *BusLinks) Attach(c *Cluster) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cluster = c
}

// Cut closes every connection and takes none until Mend.
func (b *BusLinks) Cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cut = true
	for client, server := range b.pairs {
		_, _ = client.Close(), server.Close()
	}
}

// Mend lets connections through again.
func (b *BusLinks) Mend() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cut = false
}

// Harm messages from now on.
func (b *BusLinks) Harm(h Hints) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hints = h
}

func (b *BusLinks) forward(client net.Conn, node string) {
	defer client.Close()
	b.mu.Lock()
	c, cut := b.cluster, b.cut
	b.mu.Unlock()
	if c == nil || cut {
		return
	}
	server, err := (&net.Dialer{Timeout: time.Second}).DialContext(b.life, "tcp", fmt.Sprintf("127.0.0.1:%d", c.Ports()[node]["bus"]))
	if err != nil {
		return
	}
	defer server.Close()
	b.mu.Lock()
	b.pairs[client] = server
	cut = b.cut
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.pairs, client)
	}()
	if cut {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { b.copy(server, client); _ = server.Close() })
	both.Go(func() { b.copy(client, server); _ = client.Close() })
	both.Wait()
}

// copy protocol lines one way; messages (PUB from clients, MSG from servers) may come to harm.
func (b *BusLinks) copy(to io.Writer, from io.Reader) {
	lines := bufio.NewReaderSize(from, 64<<10)
	var held []byte
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		fields := strings.Fields(string(line))
		if len(fields) < 3 || fields[0] != "PUB" && fields[0] != "MSG" {
			if _, err := to.Write(line); err != nil {
				return
			}
			continue
		}
		size, err := strconv.Atoi(fields[len(fields)-1])
		if err != nil {
			return
		}
		message := append(line, make([]byte, size+2)...) //nolint:gocritic // line is not used again
		if _, err := io.ReadFull(lines, message[len(message)-size-2:]); err != nil {
			return
		}
		out := [][]byte{message}
		if strings.HasPrefix(fields[1], "slimfaas.") {
			out = b.harm(message, &held)
		}
		for _, m := range out {
			if _, err := to.Write(m); err != nil {
				return
			}
		}
	}
}

// harm is what becomes of one message, with what was held back before it.
func (b *BusLinks) harm(message []byte, held *[]byte) (out [][]byte) {
	b.mu.Lock()
	h := b.hints
	b.mu.Unlock()
	before := *held
	*held = nil
	switch p := rand.Float64(); {
	case p < h.Lose:
		b.Lost.Add(1)
	case p < h.Lose+h.Double:
		b.Doubled.Add(1)
		out = append(out, message, message)
	case p < h.Lose+h.Double+h.Reorder && before == nil:
		b.Reordered.Add(1)
		*held = message
	default:
		out = append(out, message)
	}
	if before != nil {
		out = append(out, before)
	}
	return out
}
