package serve

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

type closing chan struct{}

func (c closing) Close() error { close(c); return nil }

// watching is a server that holds each request until its watch says that the caller has gone, or until it is let go.
type watching struct {
	addr    string
	began   chan bool // whether it is watched
	letGo   chan struct{}
	stopped chan bool // what Stop said
	gone    chan struct{}
}

func newWatching(t *testing.T) (*watching, context.CancelFunc) {
	t.Helper()
	w := &watching{began: make(chan bool, 1), letGo: make(chan struct{}), stopped: make(chan bool, 1), gone: make(chan struct{}, 1)}
	s := New(Options{Name: "test", Log: slog.New(slog.DiscardHandler), Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var watch Watch
		closed := make(closing)
		ok := watch.Start(r, closed)
		w.began <- ok
		select {
		case <-closed:
			if !watch.Gone() {
				t.Error("closed, and not gone")
			}
			w.gone <- struct{}{}
		case <-w.letGo:
		}
		if ok {
			w.stopped <- watch.Stop()
		}
	})})
	stop, _ := run(t, s, 50*time.Millisecond)
	w.addr = s.Addr().String()
	return w, stop
}

func (w *watching) dial(t *testing.T, request string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c
}

const plainGet = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

func soon[T any](t *testing.T, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: not within 20 s", what)
	}
	return v
}

func TestACallerWhoGoesIsToldOf(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(net.Conn){
		"closed": func(c net.Conn) { _ = c.Close() },
		"half":   func(c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() }, // as net/http takes it
		"reset":  func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); _ = c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, _ := newWatching(t)
			c := w.dial(t, plainGet)
			if !soon(t, "watched", w.began) {
				t.Fatal("not watched")
			}
			leave(c)
			soon(t, "gone", w.gone)
			if soon(t, "stopped", w.stopped) {
				t.Error("stopping says that nothing was closed")
			}
		})
	}
}

func TestAServerThatIsOverTellsToo(t *testing.T) {
	t.Parallel()
	w, stop := newWatching(t)
	w.dial(t, plainGet)
	soon(t, "watched", w.began)
	stop()
	soon(t, "gone", w.gone)
}

func TestAnAnsweredRequestIsNotWatchedAnyMore(t *testing.T) {
	t.Parallel()
	w, _ := newWatching(t)
	c := w.dial(t, plainGet)
	for range 3 {
		if !soon(t, "watched", w.began) {
			t.Fatal("not watched")
		}
		w.letGo <- struct{}{}
		if !soon(t, "stopped", w.stopped) {
			t.Error("something was closed")
		}
		if _, err := io.WriteString(c, plainGet); err != nil { // the next one, on the same connection
			t.Fatal(err)
		}
	}
	soon(t, "watched", w.began)
	_ = c.Close()
	soon(t, "gone", w.gone)
}

func TestWhatCannotBeWatchedIsSaidToBe(t *testing.T) {
	t.Parallel()
	for _, head := range []string{"Content-Length: 5", "Transfer-Encoding: chunked", "Connection: Upgrade\r\nUpgrade: x"} {
		w, _ := newWatching(t)
		w.dial(t, fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", head))
		if soon(t, head, w.began) {
			t.Errorf("%s: watched", head)
			<-w.stopped
		}
		w.letGo <- struct{}{}
	}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if new(Watch).Start(r, make(closing)) {
			t.Error("another server's request is watched")
		}
	}))
	t.Cleanup(elsewhere.Close)
	resp, err := http.Get(elsewhere.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
}

func TestARequestBehindOneThatLastsIsNotLost(t *testing.T) {
	t.Parallel()
	w, _ := newWatching(t)
	c := w.dial(t, plainGet+plainGet)
	soon(t, "watched", w.began)
	<-time.After(5 * lookEvery) // it stands, and has seen the second
	w.letGo <- struct{}{}
	if !soon(t, "stopped", w.stopped) {
		t.Error("something was closed")
	}
	soon(t, "the second is watched", w.began)
	_ = c.Close()
	soon(t, "gone", w.gone)
}

func TestACallerWhoGoesWhileNetHTTPReadsIsToldOf(t *testing.T) {
	t.Parallel()
	began, gone := make(chan struct{}), make(chan struct{})
	s := New(Options{Name: "test", Log: slog.New(slog.DiscardHandler), Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-time.After(5 * lookEvery) // and so net/http reads
		var watch Watch
		closed := make(closing)
		if !watch.Start(r, closed) {
			t.Error("not watched")
		}
		close(began)
		<-closed
		<-r.Context().Done() // net/http knows, too
		if watch.alone.Load() || watch.Stop() {
			t.Error("net/http does not read")
		}
		close(gone)
	})})
	run(t, s, 0)
	c := (&watching{addr: s.Addr().String()}).dial(t, plainGet)
	soon(t, "begun", began)
	_ = c.Close()
	soon(t, "gone", gone)
}

func TestARequestThatForgoesIsNotCancelledAndTheNextOneIs(t *testing.T) {
	t.Parallel()
	began, letGo, cancelled := make(chan struct{}), make(chan struct{}), make(chan bool)
	s := New(Options{Name: "test", Log: slog.New(slog.DiscardHandler), Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/forgoes" {
			Forgo(r)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		began <- struct{}{}
		select {
		case <-r.Context().Done():
			cancelled <- true
		case <-letGo:
			cancelled <- false
		}
	})})
	run(t, s, 0)
	const forgoing = "POST /forgoes HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
	at := &watching{addr: s.Addr().String()}
	c := at.dial(t, forgoing)
	soon(t, "begun", began)
	_ = c.Close()
	select {
	case <-cancelled:
		t.Error("cancelled")
	case <-time.After(3 * lookEvery):
		letGo <- struct{}{}
		<-cancelled
	}
	c = at.dial(t, forgoing+plainGet)
	soon(t, "begun", began)
	letGo <- struct{}{}
	<-cancelled
	soon(t, "the next one", began)
	_ = c.Close()
	if !soon(t, "its caller gone", cancelled) {
		t.Error("not cancelled")
	}
}
