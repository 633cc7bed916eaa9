package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/integration/history"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

// Node asks one queue node and nobody else, follows no leader and repeats nothing, so that what this very node says can be
// judged. Errors are those of the transport, or an RPCError.
type Node struct {
	Name  string
	url   string
	token string
	http  *http.Client
}

// RPCError is a refusal in the words of the node.
type RPCError struct {
	Status        int
	Code, Message string
}

func (e *RPCError) Error() string { return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message) }

// Node to ask by name. It may be dead at the moment.
func (c *Cluster) Node(name string) *Node {
	c.t.Helper()
	// A connection per request: one that was open while its node was stopped would hold up the next question.
	transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: time.Second}).DialContext}
	return &Node{Name: name, url: c.api(name), token: c.Token("edge"), http: &http.Client{Transport: transport}}
}

func (c *Cluster) api(node string) string {
	return fmt.Sprintf("http://127.0.0.1:%d", c.Ports()[node]["api"])
}

// Token of a role, from the secrets of the stack.
func (c *Cluster) Token(role string) string {
	c.t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.State, "secrets", "token-"+role))
	if err != nil {
		c.t.Fatalf("reading the token of %s: %v", role, err)
	}
	return strings.TrimSpace(string(raw))
}

// Queues are the names of the queue nodes, dead ones included.
func (c *Cluster) Queues() []string {
	names := make([]string, c.opts.Queues)
	for i := range names {
		names[i] = fmt.Sprintf("queue-%d", i)
	}
	return names
}

// Client of the queue, as an edge has one. It ends with the test.
func (c *Cluster) Client(o queueclient.Options) *queueclient.Client {
	c.t.Helper()
	for _, name := range c.Queues() {
		o.Endpoints = append(o.Endpoints, c.api(name))
	}
	o.Token = c.Token("edge")
	client := queueclient.New(o)
	c.t.Cleanup(client.Close)
	return client
}

// Submit one operation to this node.
func (n *Node) Submit(ctx context.Context, op *wire.Op) (*wire.OpResult, error) {
	var answer wire.SubmitResponse
	if err := n.call(ctx, wireconnect.QueueServiceSubmitProcedure, &wire.SubmitRequest{Ops: []*wire.Op{op}}, &answer); err != nil {
		return nil, err
	}
	if len(answer.GetResults()) != 1 {
		return nil, fmt.Errorf("%s gave %d results for one operation", n.Name, len(answer.GetResults()))
	}
	return answer.GetResults()[0], nil
}

// GetCall reads a call from this node; nil: it says that there is none.
func (n *Node) GetCall(ctx context.Context, id []byte) (*wire.Call, error) {
	var answer wire.GetCallResponse
	err := n.call(ctx, wireconnect.QueueServiceGetCallProcedure, &wire.GetCallRequest{Id: id}, &answer)
	return answer.GetCall(), err
}

// Cluster as this node sees it.
func (n *Node) Cluster(ctx context.Context) (*wire.ClusterResponse, error) {
	var answer wire.ClusterResponse
	err := n.call(ctx, wireconnect.QueueServiceClusterProcedure, &wire.ClusterRequest{}, &answer)
	return &answer, err
}

func (n *Node) call(ctx context.Context, procedure string, in, out proto.Message) error {
	body, err := proto.Marshal(in)
	if err != nil {
		return fmt.Errorf("encoding a request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.url+procedure, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/proto")
	req.Header.Set("Authorization", "Bearer "+n.token)
	res, err := n.http.Do(req)
	if err != nil {
		return fmt.Errorf("asking %s: %w", n.Name, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("asking %s: %w", n.Name, err)
	}
	if res.StatusCode != http.StatusOK {
		refused := &RPCError{Status: res.StatusCode}
		_ = json.Unmarshal(answer, refused) // an answer in other words keeps its status
		return refused
	}
	return proto.Unmarshal(answer, out)
}

// Counters of all queue nodes, each at its own moment. Without restarts the dead stay dead, and have none.
func (c *Cluster) Counters() ([]history.Counters, error) {
	var all []history.Counters
	for _, name := range c.Queues() {
		if c.opts.NoRestart && c.PID(name) == 0 {
			continue
		}
		res, err := Client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", c.Ports()[name]["admin"]))
		if err != nil {
			return nil, err
		}
		counters, err := history.ParseCounters(name, res.Body)
		_ = res.Body.Close()
		if err != nil {
			return nil, err
		}
		all = append(all, counters)
	}
	return all, nil
}

// Agreed waits until every node runs, follows the same leader, and agrees with the others at one index.
func (c *Cluster) Agreed(limit time.Duration) []history.Counters {
	c.t.Helper()
	var all []history.Counters
	c.Eventually(limit, "all nodes agree at one index", func() error {
		if _, err := c.Settled(); err != nil {
			return err
		}
		var err error
		if all, err = c.Counters(); err != nil {
			return err
		}
		return history.Agree(all)
	})
	return all
}

// Settled is the cluster as its leader sees it, once every node is there and names the same leader and term.
func (c *Cluster) Settled() (*wire.ClusterResponse, error) {
	var agreed *wire.ClusterResponse
	for _, name := range c.Queues() {
		if c.PID(name) == 0 {
			return nil, fmt.Errorf("%s does not run", name)
		}
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		seen, err := c.Node(name).Cluster(ctx)
		cancel()
		switch {
		case err != nil:
			return nil, err
		case seen.GetLeader() == "":
			return nil, fmt.Errorf("%s knows no leader", name)
		case agreed != nil && (seen.GetLeader() != agreed.GetLeader() || seen.GetTerm() != agreed.GetTerm()):
			return nil, fmt.Errorf("%s follows %s in term %d, %s follows %s in term %d",
				seen.GetNode(), seen.GetLeader(), seen.GetTerm(), agreed.GetNode(), agreed.GetLeader(), agreed.GetTerm())
		case agreed == nil || seen.GetNode() == seen.GetLeader():
			agreed = seen
		}
	}
	return agreed, nil
}
