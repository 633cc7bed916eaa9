package nc

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"
	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

func connect(t *testing.T, s *server) *Bus {
	t.Helper()
	b, err := Connect(t.Context(), Options{URLs: []string{"nats://" + s.addr}, Name: t.Name(), Role: "edge", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func wake(name string) *wire.Wake { return &wire.Wake{Functions: []string{name}} }

func read(t *testing.T, msg []byte) string {
	t.Helper()
	var w wire.Wake
	if err := proto.Unmarshal(msg, &w); err != nil || len(w.Functions) != 1 {
		t.Fatalf("message %x: %v", msg, err)
	}
	return w.Functions[0]
}

func TestMessagesArriveInOrder(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	from, to := connect(t, s), connect(t, s)
	got := make(chan string, 100)
	stop, err := to.Subscribe(wire.SubjectWake, func(msg []byte, _ string) { got <- read(t, msg) })
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := from.Publish(wire.SubjectWake, wake(strings.Repeat("f", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		if f := <-got; len(f) != i+1 {
			t.Fatalf("message %d is %q", i, f)
		}
	}
	stop()
}

func TestWhatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	b := connect(t, startServer(t))
	if err := b.Publish(wire.SubjectWake, wake(strings.Repeat("f", wire.MaxBusMessage))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestRequestsAndTheirInbox(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	asker := connect(t, s)
	if _, err := asker.Request(t.Context(), wire.SubjectExplain, wake("f")); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody listens: %v", err)
	}
	if many, err := asker.RequestMany(t.Context(), wire.SubjectTableAsk, wake("f"), time.Minute); len(many) != 0 || err != nil {
		t.Errorf("nobody listens: %v, %v", many, err)
	}
	for range 3 {
		b := connect(t, s)
		for _, subject := range []string{wire.SubjectExplain, wire.SubjectTableAsk} {
			if _, err := b.Subscribe(subject, func(msg []byte, reply string) {
				if !strings.HasPrefix(reply, "_INBOX.edge.") {
					t.Errorf("reply subject %q", reply)
				}
				_ = b.Respond(reply, wake(read(t, msg)+"!"))
			}); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if answer, err := asker.Request(t.Context(), wire.SubjectExplain, wake("f")); err != nil || read(t, answer) != "f!" {
		t.Errorf("%x, %v", answer, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		many, err := asker.RequestMany(ctx, wire.SubjectTableAsk, wake("f"), 100*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if len(many) == 3 {
			break
		}
	}
}

func TestABusThatIsAwayCostsNothingAndComesBack(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	b := connect(t, s)
	got := make(chan string, 10)
	if _, err := b.Subscribe(wire.SubjectWake, func(msg []byte, _ string) { got <- read(t, msg) }); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := make(chan struct{}, 10)
	b.OnReconnect(func() { back <- struct{}{} })
	taken := make(chan struct{}, 10)
	b.OnReconnect(func() { taken <- struct{}{} })() // and taken back
	s.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for b.Connected() {
		if ctx.Err() != nil {
			t.Fatal("the cut is not noticed")
		}
		time.Sleep(time.Millisecond) // polls a black box
	}
	if err := b.Publish(wire.SubjectWake, wake("late")); !errors.Is(err, ErrAway) {
		t.Errorf("publishing into the void: %v", err)
	}
	if err := b.Flush(ctx); !errors.Is(err, ErrAway) {
		t.Errorf("flushing into the void: %v", err)
	}
	if _, err := b.Request(ctx, wire.SubjectExplain, wake("f")); !errors.Is(err, ErrAway) {
		t.Errorf("asking the void: %v", err)
	}
	s.start(t)
	select {
	case <-back:
	case <-ctx.Done():
		t.Fatal("does not come back")
	}
	if len(taken) != 0 {
		t.Error("a hook that was taken back is called")
	}
	if err := b.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(wire.SubjectWake, wake("now")); err != nil {
		t.Fatal(err)
	}
	if f := <-got; f != "now" {
		t.Errorf("got %q: what was published while the bus was away must be lost", f)
	}
}

func TestAProgramStartsBeforeTheBus(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.stop()
	b := connect(t, s)
	back := make(chan struct{}, 10)
	b.OnReconnect(func() { back <- struct{}{} })
	got := make(chan string, 1)
	if _, err := b.Subscribe(wire.SubjectWake, func(msg []byte, _ string) { got <- read(t, msg) }); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	<-back
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(wire.SubjectWake, wake("f")); err != nil {
		t.Fatal(err)
	}
	if f := <-got; f != "f" {
		t.Errorf("got %q", f)
	}
}

func TestSeedsAreReadOnceAndTrimmed(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	key, _ := nkeys.CreateUser()
	seed, _ := key.Seed()
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "bus-edge.seed"), filepath.Join(dir, "bad.seed")
	_ = os.WriteFile(good, append(seed, '\n'), 0o600)
	_ = os.WriteFile(bad, []byte("hello"), 0o600)
	for file, ok := range map[string]bool{good: true, bad: false, filepath.Join(dir, "none"): false} {
		b, err := Connect(t.Context(), Options{URLs: []string{"nats://" + s.addr}, SeedFile: file, Log: slog.New(slog.DiscardHandler)})
		if (err == nil) != ok {
			t.Errorf("%s: %v", file, err)
		}
		if b != nil {
			b.Close()
		}
	}
	if _, err := Connect(t.Context(), Options{Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("no address is no error")
	}
}
