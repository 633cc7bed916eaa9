package bus

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
)

type keyring struct {
	public map[Role]string
	pair   map[Role]nkeys.KeyPair
}

func newKeyring(t *testing.T) keyring {
	t.Helper()
	k := keyring{map[Role]string{}, map[Role]nkeys.KeyPair{}}
	for _, r := range Roles {
		pair, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		if k.public[r], err = pair.PublicKey(); err != nil {
			t.Fatal(err)
		}
		k.pair[r] = pair
	}
	return k
}

func (k keyring) connect(t *testing.T, url string, r Role, extra ...nats.Option) (*nats.Conn, chan error) {
	t.Helper()
	errs := make(chan error, 64)
	c, err := nats.Connect(url, append(extra,
		nats.Nkey(k.public[r], k.pair[r].Sign),
		nats.CustomInboxPrefix("_INBOX."+string(r)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { errs <- err }),
	)...)
	if err != nil {
		t.Fatalf("connecting as %s: %v", r, err)
	}
	t.Cleanup(c.Close)
	return c, errs
}

func start(t *testing.T, c Config) *Server {
	t.Helper()
	c.Log = slog.New(slog.DiscardHandler)
	c.ClientAddress = "127.0.0.1:0"
	s, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func startMesh(t *testing.T, k keyring) []*Server {
	t.Helper()
	routes := testkit.FreeAddresses(t, 3)
	var servers []*Server
	for i := range 3 {
		peers := slices.Delete(slices.Clone(routes), i, i+1)
		servers = append(servers, start(t, Config{
			Node: "queue-" + string(rune('0'+i)), RoutesAddress: routes[i], Peers: peers, RoutesPassword: "secret", Keys: k.public,
		}))
	}
	for _, s := range servers {
		eventually(t, "two peers", func() bool { return len(s.Peers()) == 2 })
	}
	return servers
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

func TestMessagesReachEveryNodeOfTheMesh(t *testing.T) {
	t.Parallel()
	k := newKeyring(t)
	servers := startMesh(t, k)
	got := make(chan string, 64)
	for _, s := range servers {
		c, _ := k.connect(t, s.URL(), RoleEdge)
		if _, err := c.Subscribe(wire.SubjectRecord, func(*nats.Msg) { got <- s.URL() }); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	scaler, _ := k.connect(t, servers[0].URL(), RoleScaler)
	// Interest travels between nodes in its own time, so the record is repeated, as the digest would be.
	seen := map[string]bool{}
	eventually(t, "record on three nodes", func() bool {
		_ = scaler.Publish(wire.SubjectRecord, []byte("x"))
		_ = scaler.Flush()
		for {
			select {
			case url := <-got:
				seen[url] = true
				continue
			default:
			}
			return len(seen) == 3
		}
	})
}

func TestEachRoleHasItsSubjectsAndNoOthers(t *testing.T) {
	t.Parallel()
	k := newKeyring(t)
	s := start(t, Config{Node: "queue-0", Keys: k.public})
	var subjects []string
	for _, l := range lines {
		subjects = append(subjects, l.subject)
	}
	subjects = append(subjects, "slimfaas.>", ">", "$SYS.REQ.SERVER.PING", "_INBOX.>", "somebody.else")
	for _, r := range Roles {
		publishTo, listenTo := permissions(r).Publish.Allow, permissions(r).Subscribe.Allow
		for _, subject := range subjects {
			if allowed := slices.Contains(listenTo, subject); refused(t, k, s, r, func(c *nats.Conn) error {
				_, err := c.SubscribeSync(subject)
				return err
			}) == allowed {
				t.Errorf("%s subscribes to %s: want allowed=%v", r, subject, allowed)
			}
			if slices.Contains([]byte(subject), '>') {
				continue
			}
			if allowed := slices.Contains(publishTo, subject); refused(t, k, s, r, func(c *nats.Conn) error {
				return c.Publish(subject, nil)
			}) == allowed {
				t.Errorf("%s publishes to %s: want allowed=%v", r, subject, allowed)
			}
		}
	}
}

// refused runs do on a connection of its own and says whether the server refused it.
func refused(t *testing.T, k keyring, s *Server, r Role, do func(*nats.Conn) error) bool {
	t.Helper()
	c, errs := k.connect(t, s.URL(), r)
	defer c.Close()
	if err := do(c); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	return errors.Is(c.LastError(), nats.ErrPermissionViolation) || len(errs) > 0
}

func TestAnswersReachTheInboxOfTheRoleThatAsked(t *testing.T) {
	t.Parallel()
	k := newKeyring(t)
	s := start(t, Config{Node: "queue-0", Keys: k.public})
	queue, _ := k.connect(t, s.URL(), RoleQueue)
	if _, err := queue.Subscribe(wire.SubjectTableAsk, func(m *nats.Msg) { _ = m.Respond([]byte("digest")) }); err != nil {
		t.Fatal(err)
	}
	if err := queue.Flush(); err != nil {
		t.Fatal(err)
	}
	scaler, _ := k.connect(t, s.URL(), RoleScaler)
	answer, err := scaler.Request(wire.SubjectTableAsk, nil, 2*time.Second)
	if err != nil || string(answer.Data) != "digest" {
		t.Fatalf("answer %v, error %v", answer, err)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	k := newKeyring(t)
	s := start(t, Config{Node: "queue-0", Keys: k.public})
	stranger := newKeyring(t)
	for name, option := range map[string]nats.Option{
		"no credentials":  nats.Timeout(2 * time.Second),
		"password":        nats.UserInfo("edge", "edge"),
		"unknown key":     nats.Nkey(stranger.public[RoleEdge], stranger.pair[RoleEdge].Sign),
		"key of another":  nats.Nkey(k.public[RoleEdge], stranger.pair[RoleEdge].Sign),
		"routes' secrets": nats.UserInfo(routesUser, "secret"),
	} {
		if c, err := nats.Connect(s.URL(), option); err == nil {
			c.Close()
			t.Errorf("%s: connected", name)
		} else if !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestANodeWithAWrongPasswordStaysOutside(t *testing.T) {
	t.Parallel()
	k := newKeyring(t)
	servers := startMesh(t, k)
	forged := start(t, Config{
		Node: "queue-9", RoutesAddress: testkit.FreeAddresses(t, 1)[0], Peers: []string{servers[0].nats.ClusterAddr().String()},
		RoutesPassword: "guess", Keys: k.public,
	})
	inside, _ := k.connect(t, servers[0].URL(), RoleScaler)
	outside, _ := k.connect(t, forged.URL(), RoleEdge)
	sub, err := outside.SubscribeSync(wire.SubjectRecord)
	if err != nil || outside.Flush() != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := inside.Publish(wire.SubjectRecord, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sub.NextMsg(300 * time.Millisecond); !errors.Is(err, nats.ErrTimeout) {
		t.Fatalf("a node with the wrong password heard the bus: %v", err)
	}
	if n := len(servers[0].Peers()); n != 2 {
		t.Fatalf("%d peers", n)
	}
}

func TestOversizedMessagesAreRefusedAtTheClient(t *testing.T) {
	t.Parallel()
	k := newKeyring(t)
	s := start(t, Config{Node: "queue-0", Keys: k.public})
	c, _ := k.connect(t, s.URL(), RoleEdge)
	if err := c.Publish(wire.SubjectLoad, make([]byte, wire.MaxBusMessage+1)); !errors.Is(err, nats.ErrMaxPayload) {
		t.Fatalf("error %v", err)
	}
}

func TestLameDuckSendsClientsToAnotherNode(t *testing.T) {
	t.Parallel()
	k := newKeyring(t)
	servers := startMesh(t, k)
	again := make(chan string, 1)
	c, _ := k.connect(t, servers[0].URL()+","+servers[1].URL(), RoleEdge, nats.DontRandomize(), nats.MaxReconnects(-1),
		nats.ReconnectWait(10*time.Millisecond), nats.ReconnectHandler(func(c *nats.Conn) { again <- c.ConnectedServerName() }))
	begin := time.Now()
	servers[0].LameDuck()
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("lame duck took %s", took)
	}
	select {
	case name := <-again:
		if name != "queue-1" {
			t.Fatalf("client is at %s", name)
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("client did not move; status %s", c.Status())
	}
	if servers[0].Ready() == nil {
		t.Error("a stopped bus says it is ready")
	}
}

func TestMissingSecretsStopTheStart(t *testing.T) {
	t.Parallel()
	k := newKeyring(t)
	for name, c := range map[string]Config{
		"no keys":     {Node: "queue-0", ClientAddress: "127.0.0.1:0"},
		"no password": {Node: "queue-0", ClientAddress: "127.0.0.1:0", RoutesAddress: "127.0.0.1:0", Peers: []string{"127.0.0.1:1"}, Keys: k.public},
		"bad address": {Node: "queue-0", ClientAddress: "nowhere", Keys: k.public},
	} {
		if s, err := Start(t.Context(), c); err == nil {
			s.Stop()
			t.Errorf("%s: started", name)
		}
	}
}
