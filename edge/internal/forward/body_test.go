package forward_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A caller whose body stops, or trickles, holds a replica no longer than it may, is told, and the function sees the request break.
func TestABodyThatDoesNotMoveIsCut(t *testing.T) {
	t.Parallel()
	saw := make(chan error, 2)
	b := setup(t, serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		saw <- err
	}))
	b.forward.BodyIdle = 200 * time.Millisecond
	for name, more := range map[string]func(net.Conn) error{
		"stops": func(net.Conn) error { return nil },
		"trickles": func(c net.Conn) error {
			for range 200 { // a byte each 20 ms: 50 a second
				if _, err := c.Write([]byte("x")); err != nil {
					return err
				}
				time.Sleep(20 * time.Millisecond)
			}
			return errors.New("nobody minds")
		},
	} {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "POST /function/fib HTTP/1.1\r\nHost: e\r\nContent-Length: 1000\r\n\r\nbegin")
		sent := make(chan error, 1)
		go func() { sent <- more(c) }()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusRequestTimeout || !resp.Close || !strings.Contains(string(body), "body-too-slow") {
			t.Errorf("%s: %s %s", name, resp.Status, body)
		}
		if err := <-saw; err == nil {
			t.Errorf("%s: the function took a part of the body for the whole", name)
		}
		_ = c.Close()
		if err := <-sent; err != nil && strings.Contains(err.Error(), "minds") {
			t.Errorf("%s: %v", name, err)
		}
		b.idle(t)
	}
}

// A body that moves may take its time, and a connection is as it was for the request behind it.
func TestASlowBodyThatMovesIsForwarded(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	}))
	b.forward.BodyIdle = 400 * time.Millisecond
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for range 2 {
		fmt.Fprint(c, "POST /function/fib HTTP/1.1\r\nHost: e\r\nContent-Length: 10000\r\n\r\n")
		for range 10 {
			fmt.Fprint(c, strings.Repeat("x", 1000))
			time.Sleep(60 * time.Millisecond) // 600 ms in all: more than the idle time
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "10000 <nil>" {
			t.Errorf("%s %s", resp.Status, body)
		}
		time.Sleep(500 * time.Millisecond) // an idle connection is not a slow body
	}
}

// Once the answer has begun, both sides may be silent.
func TestATalkInBothDirectionsMayBeSilent(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		_, _ = io.Copy(w, r.Body)
	}))
	b.forward.BodyIdle = 100 * time.Millisecond
	from, to := io.Pipe()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/function/fib", from)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	time.Sleep(400 * time.Millisecond) // longer than a body may be silent before the answer
	if _, err := to.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	_ = to.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "late" {
		t.Errorf("%q %v", body, err)
	}
}
