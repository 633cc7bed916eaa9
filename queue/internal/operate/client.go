package operate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/queue/internal/api"
	"github.com/slimfaas/slimfaas/shared/secret"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

const (
	// askWithin bounds one question to one node.
	askWithin = 1500 * time.Millisecond
	// pauseBetween two tries.
	pauseBetween = 200 * time.Millisecond
	dialWithin   = 500 * time.Millisecond
)

// errNoLeader: no node that answers leads.
var errNoLeader = errors.New("no node leads")

// client of all nodes, with the queue's own token.
type client struct {
	http      *http.Client
	token     string
	scheme    string   // http:// or https://
	endpoints []string // to begin with
}

func (c *call) client() (*client, error) {
	token, err := secret.Read(c.secrets, "token-queue")
	if err != nil {
		return nil, err
	}
	files, err := tlsconf.Open(c.secrets, c.log, api.RoleQueue)
	if err != nil {
		return nil, err
	}
	out := &client{token: token, scheme: "http://"}
	var secure *tls.Config
	if files != nil {
		// A role, not a member's name: the nodes to begin with may be given by address alone.
		out.scheme, secure = "https://", files.Client(tlsconf.Names(api.RoleQueue))
	}
	for _, e := range strings.Split(c.api, ",") {
		out.add(e)
	}
	if len(out.endpoints) == 0 {
		for _, m := range c.Members {
			out.add(m.APIAddress)
		}
		out.add(local(c.API))
	}
	if len(out.endpoints) == 0 {
		return nil, usagef("no API is known: give --api or set QUEUE_MEMBERS")
	}
	var protocols http.Protocols
	protocols.SetHTTP2(secure != nil)
	protocols.SetUnencryptedHTTP2(secure == nil)
	out.http = &http.Client{Transport: &http.Transport{
		Protocols: &protocols, DialContext: (&net.Dialer{Timeout: dialWithin}).DialContext,
		TLSClientConfig: secure, TLSHandshakeTimeout: askWithin,
	}}
	return out, nil
}

// add an endpoint; with certificates every node is asked over TLS, whatever its scheme says.
func (c *client) add(endpoint string) {
	at := address(strings.TrimSpace(endpoint))
	if at == "" {
		return
	}
	if endpoint = c.scheme + at; !slices.Contains(c.endpoints, endpoint) {
		c.endpoints = append(c.endpoints, endpoint)
	}
}

// address is host:port of an endpoint.
func address(endpoint string) string {
	if _, rest, ok := strings.Cut(endpoint, "://"); ok {
		endpoint = rest
	}
	return strings.TrimRight(endpoint, "/")
}

// local is where a listen address answers on this machine; empty when it is none.
func local(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

func (c *client) at(endpoint string) wireconnect.AdminServiceClient {
	return wireconnect.NewAdminServiceClient(c.http, endpoint)
}

func request[T any](c *client, message *T) *connect.Request[T] {
	r := connect.NewRequest(message)
	r.Header().Set("Authorization", "Bearer "+c.token)
	return r
}

// answer of one node.
type answer struct {
	endpoint string
	node     *wire.NodeResponse // nil with err
	err      error
}

// survey asks all nodes that are known, and those that they know.
func (c *client) survey(ctx context.Context) []answer {
	var all []answer
	for asked := 0; asked < len(c.endpoints); {
		round := make([]answer, len(c.endpoints)-asked)
		var wait sync.WaitGroup
		for i, endpoint := range c.endpoints[asked:] {
			wait.Go(func() { round[i] = c.ask(ctx, endpoint) })
		}
		wait.Wait()
		asked += len(round)
		all = append(all, round...)
		for _, a := range round {
			for _, m := range a.node.GetCluster().GetMembers() {
				c.add(m.GetApiAddress())
			}
		}
	}
	return all
}

func (c *client) ask(ctx context.Context, endpoint string) answer {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	response, err := c.at(endpoint).Node(ctx, request(c, &wire.NodeRequest{}))
	if err != nil {
		return answer{endpoint: endpoint, err: fmt.Errorf("asking %s: %w", endpoint, err)}
	}
	return answer{endpoint: endpoint, node: response.Msg}
}

// leading is the answer of the node in office, of the highest term if there seem to be two.
func leading(all []answer) (best answer, ok bool) {
	for _, a := range all {
		if a.node.GetInOffice() && (!ok || a.node.GetCluster().GetTerm() > best.node.GetCluster().GetTerm()) {
			best, ok = a, true
		}
	}
	return best, ok
}

// step is told the leader's view and does what is next; done ends the steps.
type step func(ctx context.Context, leader wireconnect.AdminServiceClient, view *wire.NodeResponse, all []answer) (done bool, err error)

// until repeats a step at whoever leads until it is done, an error says that repeating is of no use, or ctx ends. Each step
// reads before it changes, so one whose outcome was not known is simply looked at again.
func (c *client) until(ctx context.Context, s step) error {
	last := errNoLeader
	for {
		all := c.survey(ctx)
		leader, ok := leading(all)
		err := errNoLeader
		if ok {
			var done bool
			if done, err = s(ctx, c.at(leader.endpoint), leader.node, all); done {
				return err
			}
		} else if refused := refusal(all); refused != nil {
			return refused
		}
		if err != nil {
			if final(err) {
				return err
			}
			if ctx.Err() == nil {
				last = err
			}
		}
		timer := time.NewTimer(pauseBetween)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("giving up (%w); last: %w", ctx.Err(), last)
		}
	}
}

// final errors do not go away by themselves.
func final(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeFailedPrecondition, connect.CodeInvalidArgument, connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeUnimplemented:
		return true
	}
	return false
}

// refusal is why every node that answers refuses to talk to us.
func refusal(all []answer) error {
	var refused error
	for _, a := range all {
		if a.err == nil {
			return nil
		}
		if final(a.err) {
			refused = a.err
		}
	}
	return refused
}

func member(view *wire.NodeResponse, name string) *wire.Member {
	for _, m := range view.GetCluster().GetMembers() {
		if m.GetName() == name {
			return m
		}
	}
	return nil
}

func voters(view *wire.NodeResponse) (names []string) {
	for _, m := range view.GetCluster().GetMembers() {
		if m.GetVoter() {
			names = append(names, m.GetName())
		}
	}
	return names
}
