//go:build bench

package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// payloadSize of every call, in bytes.
const payloadSize = 1024

// noise is what payloads are cut from: random, so that nothing compresses it.
var noise = func() []byte {
	b := make([]byte, 1<<20)
	_, _ = rand.Read(b)
	return b
}()

// payload n of a caller. Nobody writes to it.
func payload(n int) []byte {
	at := n * 7919 % (len(noise) - payloadSize)
	return noise[at : at+payloadSize]
}

// caller makes one call and waits for its answer; n counts all calls of this caller.
type caller func(ctx context.Context, n int) error

// drive lets so many callers call as fast as they are answered, for warm-up and then for length. Each gets a caller of its own
// from open. Calls that begin in the warm-up or end after the interval count for nothing.
func drive(t testing.TB, callers int, warm, length time.Duration, open func(i int) (caller, func())) sample {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	took := make([][]time.Duration, callers)
	var failed atomic.Int64
	var firstErr atomic.Pointer[error]
	var all, prepared sync.WaitGroup
	start := make(chan struct{})
	var from, to time.Time
	for i := range callers {
		prepared.Add(1)
		all.Go(func() {
			call, done := open(i)
			defer done()
			prepared.Done()
			<-start
			for n := i * 100_003; ; n++ {
				began := time.Now()
				if !began.Before(to) {
					return
				}
				err := call(ctx, n)
				ended := time.Now()
				switch {
				case began.Before(from) || ended.After(to):
				case err != nil:
					failed.Add(1)
					firstErr.CompareAndSwap(nil, &err)
				default:
					took[i] = append(took[i], ended.Sub(began))
				}
			}
		})
	}
	prepared.Wait()
	from = time.Now().Add(warm)
	to = from.Add(length)
	close(start)
	all.Wait()
	sorted := slices.Concat(took...)
	slices.Sort(sorted)
	if err := firstErr.Load(); err != nil {
		t.Logf("%d calls failed, the first: %v", failed.Load(), *err)
	}
	return sample{
		calls: len(sorted), failed: int(failed.Load()), rate: float64(len(sorted)) / length.Seconds(),
		p50: quantile(sorted, 0.5), p99: quantile(sorted, 0.99),
	}
}

// wire1 is one HTTP/1.1 connection with no more between us and the server than a buffer: the generator shares the processors
// with what it measures.
type wire1 struct {
	conn  net.Conn
	in    *bufio.Reader
	out   []byte
	where string // host:port
}

func dial(t testing.TB, where string) *wire1 {
	t.Helper()
	var conn net.Conn
	var err error
	for range 100 {
		if conn, err = (&net.Dialer{Timeout: 2 * time.Second}).DialContext(t.Context(), "tcp", where); err == nil {
			return &wire1{conn: conn, in: bufio.NewReaderSize(conn, 4096), where: where}
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Errorf("dialling %s: %v", where, err)
	return &wire1{where: where}
}

func (c *wire1) close() {
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

// post sends a body and wants 202.
func (c *wire1) post(path string, body []byte) error { return c.exchange("POST", path, body, 202) }

// exchange sends a request and wants the status.
func (c *wire1) exchange(method, path string, body []byte, want int) error {
	if c.conn == nil {
		return fmt.Errorf("not connected to %s", c.where)
	}
	c.out = append(c.out[:0], method...)
	c.out = append(append(c.out, ' '), path...)
	c.out = append(append(c.out, " HTTP/1.1\r\nHost: "...), c.where...)
	c.out = append(c.out, "\r\n"...)
	if body != nil {
		c.out = append(c.out, "Content-Type: application/octet-stream\r\nContent-Length: "...)
		c.out = strconv.AppendInt(c.out, int64(len(body)), 10)
		c.out = append(c.out, "\r\n"...)
	}
	c.out = append(c.out, "\r\n"...)
	c.out = append(c.out, body...)
	if _, err := c.conn.Write(c.out); err != nil {
		return err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(line) < 12 {
		return fmt.Errorf("status line %q", line)
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return fmt.Errorf("status line %q", line)
	}
	length := 0
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		if name := len("content-length:"); len(line) > name && bytes.EqualFold(line[:name], []byte("content-length:")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[name:]))); err != nil {
				return err
			}
		}
	}
	if _, err := c.in.Discard(length); err != nil {
		return err
	}
	if status != want {
		return fmt.Errorf("answered %d", status)
	}
	return nil
}
