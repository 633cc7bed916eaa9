package raftnode

import (
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// The library's pipeline, left alone by its reader after a refusal as raft leaves it, takes two messages more and then waits for ever.
func TestAPipelineEndsWithTheFirstMessageThatIsNotTaken(t *testing.T) {
	t.Parallel()
	transport := func() *raft.NetworkTransport {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		out := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: &stream{Listener: l, advertise: advertised(l.Addr().String()), life: t.Context()}, MaxPool: 1, Timeout: ioTimeout,
			Logger: hclogger(slog.New(slog.DiscardHandler)),
		})
		t.Cleanup(func() { _ = out.Close() })
		return out
	}
	leader, follower := transport(), transport()
	go func() {
		for {
			select {
			case rpc := <-follower.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Success: false}, nil)
			case <-t.Context().Done():
				return
			}
		}
	}()
	inner, err := leader.AppendEntriesPipeline("follower", follower.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{config: Config{Name: "leader"}, where: &addresses{}}
	n.peers = &peers{node: n}
	n.gate = newGate(n, leader)
	p := newGatedPipeline(n.gate, "follower", inner)
	defer func() { _ = p.Close() }()
	send := func() error {
		_, err := p.AppendEntries(&raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{})
		return err
	}
	if err := send(); err != nil {
		t.Fatal(err)
	}
	if answer := <-p.Consumer(); answer.Response().Success {
		t.Fatal("the follower took it")
	}
	ended := make(chan error, 1)
	go func() {
		for {
			if err := send(); err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the pipeline waits for ever")
	}
}
