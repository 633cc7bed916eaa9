package nc

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// server speaks as much of the NATS protocol as this package uses. The embedded server of the queue, whose module this one cannot
// import, is tested against this package there.
type server struct {
	addr string

	mu       sync.Mutex // guards the fields below
	listener net.Listener
	clients  map[*serverClient]bool
	wg       sync.WaitGroup
}

type serverClient struct {
	conn net.Conn
	mu   sync.Mutex // guards writes and subs
	subs map[string]string
}

func startServer(t *testing.T) *server {
	t.Helper()
	s := &server{addr: "127.0.0.1:0", clients: map[*serverClient]bool{}}
	s.start(t)
	t.Cleanup(s.stop)
	return s
}

func (s *server) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.listener, s.addr = l, l.Addr().String()
	s.mu.Unlock()
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c := &serverClient{conn: conn, subs: map[string]string{}}
			s.mu.Lock()
			s.clients[c] = true
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(c) })
		}
	})
}

// stop cuts everybody and closes the port.
func (s *server) stop() {
	s.mu.Lock()
	s.listener.Close()
	for c := range s.clients {
		c.conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (c *serverClient) write(format string, a ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.conn, format, a...)
}

func (c *serverClient) matching(subject string) (sids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for sid, want := range c.subs {
		prefix, _ := strings.CutSuffix(want, "*")
		if want == subject || (prefix != want && strings.HasPrefix(subject, prefix)) {
			sids = append(sids, sid)
		}
	}
	return sids
}

func (s *server) serve(c *serverClient) {
	defer func() {
		c.conn.Close()
		s.mu.Lock()
		delete(s.clients, c)
		s.mu.Unlock()
	}()
	c.write("INFO {\"server_id\":\"test\",\"version\":\"2.15.2\",\"proto\":1,\"headers\":true,\"max_payload\":1048576}\r\n")
	in := bufio.NewReader(c.conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch strings.ToUpper(words[0]) {
		case "PING":
			c.write("PONG\r\n")
		case "SUB":
			c.mu.Lock()
			c.subs[words[len(words)-1]] = words[1]
			c.mu.Unlock()
		case "UNSUB":
			c.mu.Lock()
			delete(c.subs, words[1])
			c.mu.Unlock()
		case "PUB":
			size, _ := strconv.Atoi(words[len(words)-1])
			body := make([]byte, size+2)
			if _, err := io.ReadFull(in, body); err != nil {
				return
			}
			reply := ""
			if len(words) == 4 {
				reply = words[2]
			}
			s.route(c, words[1], reply, body[:size])
		}
	}
}

func (s *server) route(from *serverClient, subject, reply string, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	heard := false
	for c := range s.clients {
		for _, sid := range c.matching(subject) {
			heard = true
			c.write("MSG %s %s %s %d\r\n%s\r\n", subject, sid, reply, len(body), body)
		}
	}
	if !heard && reply != "" {
		for _, sid := range from.matching(reply) {
			from.write("HMSG %s %s 16 16\r\nNATS/1.0 503\r\n\r\n\r\n", reply, sid)
		}
	}
}
