// Package nc connects to the bus with the values of the house. The bus carries hints: a message may be lost, late, doubled or
// reordered, publishing never waits, and nothing is kept back for later while the bus is away. It is the only package beside the
// embedded server that imports NATS.
package nc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// House values. The defaults of the library would notice a silent cut after minutes and give up after 60 attempts.
const (
	reconnectWait   = 250 * time.Millisecond
	reconnectJitter = 100 * time.Millisecond
	pingEvery       = 5 * time.Second
	pingsOut        = 2
	dialTimeout     = time.Second
	// pendingMessages and pendingBytes of one subscription: over it new messages are dropped and counted.
	pendingMessages = 10_000
	pendingBytes    = 64 << 20
	// flushTimeout bounds a Flush whose context has no nearer end.
	flushTimeout = 2 * time.Second
	drainTimeout = 5 * time.Second
	// maxAnswers of one RequestMany.
	maxAnswers = 1024
)

// Errors a caller may branch on.
var (
	// ErrTooLarge: the message is over wire.MaxBusMessage and was not published.
	ErrTooLarge = errors.New("message larger than the bus carries")
	// ErrNobody: no one listens on the subject of a request.
	ErrNobody = errors.New("nobody listens on the subject")
	// ErrAway: there is no connection to the bus at this moment; nothing was published.
	ErrAway = errors.New("no connection to the bus")
)

// Options of Connect.
type Options struct {
	URLs []string // nats://host:port, any of them will do
	Name string   // of this process, shown in the server's logs
	// Role is edge, queue or scaler: the inbox of a role is _INBOX.<role>, and no other may read it.
	Role string
	// SeedFile holds the role's nkey seed; empty: no authentication (tests).
	SeedFile string
	Log      *slog.Logger
	// TLS, when set, is used whatever the scheme of the URLs says, before the server says a word; nil: unencrypted.
	TLS *tls.Config
	// InProcess, when set, connects without a socket to the server of the same process (a queue node's own), instead of URLs.
	InProcess interface{ InProcessConn() (net.Conn, error) }
}

// Bus is a connection to the bus that heals itself. Safe for concurrent use.
type Bus struct {
	conn    *nats.Conn
	log     *slog.Logger
	dropped atomic.Uint64
	closed  chan struct{} // closed when the library has given the connection up; only Close brings that about

	mu        sync.Mutex // guards hooks, callbacks and ending
	hooks     []*func()
	callbacks sync.WaitGroup // running handlers; none is added once ending is set
	ending    bool
}

// Connect returns a connection that works or, while no server answers, one that goes on trying for ever. Its errors are
// mistakes that trying again does not mend: no address, an unreadable seed.
func Connect(ctx context.Context, o Options) (*Bus, error) {
	if len(o.URLs) == 0 && o.InProcess == nil {
		return nil, errors.New("connecting to the bus: no address is given (…_BUS_URLS)")
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("connecting to the bus: %w", err)
	}
	b := &Bus{log: o.Log.With("part", "bus"), closed: make(chan struct{})}
	first := make(chan struct{}) // closed when the library tells of the first connection, in a goroutine of its own
	options := []nats.Option{
		nats.Name(o.Name),
		nats.Timeout(dialTimeout),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectJitter, reconnectJitter),
		nats.ReconnectBufSize(-1), // a late hint is worse than none
		nats.PingInterval(pingEvery),
		nats.MaxPingsOutstanding(pingsOut),
		nats.DrainTimeout(drainTimeout),
		nats.IgnoreAuthErrorAbort(), // keys are renewed while programs run
		nats.ErrorHandler(b.onError),
		nats.ConnectHandler(func(*nats.Conn) { b.onConnect(false); close(first) }),
		nats.ReconnectHandler(func(*nats.Conn) { b.onConnect(true) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				b.log.Warn("lost the bus", "err", err)
			}
		}),
		nats.ClosedHandler(func(*nats.Conn) { close(b.closed) }),
	}
	if o.Role != "" {
		options = append(options, nats.CustomInboxPrefix("_INBOX."+o.Role))
	}
	if o.SeedFile != "" {
		public, sign, err := identity(o.SeedFile)
		if err != nil {
			return nil, fmt.Errorf("reading the bus key: %w", err)
		}
		options = append(options, nats.Nkey(public, sign))
	}
	if o.TLS != nil {
		options = append(options, nats.Secure(o.TLS), nats.TLSHandshakeFirst())
	}
	if o.InProcess != nil {
		options = append(options, nats.InProcessServer(o.InProcess))
	}
	conn, err := nats.Connect(strings.Join(o.URLs, ","), options...)
	if err != nil {
		return nil, fmt.Errorf("connecting to the bus: %w", err)
	}
	b.conn = conn
	if conn.IsConnected() { // a hook set from now on is not told of a connection that was made before
		select {
		case <-first:
		case <-ctx.Done():
			conn.Close()
			return nil, fmt.Errorf("connecting to the bus: %w", ctx.Err())
		}
	}
	return b, nil
}

// identity reads the seed once and signs with it as often as the library reconnects.
func identity(file string) (public string, sign nats.SignatureHandler, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", nil, err
	}
	key, err := nkeys.FromSeed([]byte(strings.TrimSpace(string(raw))))
	if err != nil {
		return "", nil, fmt.Errorf("%s is no nkey seed: %w", file, err)
	}
	public, err = key.PublicKey()
	if err != nil {
		return "", nil, fmt.Errorf("deriving the public key of %s: %w", file, err)
	}
	return public, key.Sign, nil
}

func (b *Bus) onConnect(again bool) {
	b.log.Info("connected to the bus", "again", again)
	b.mu.Lock()
	hooks := slices.Clone(b.hooks)
	b.mu.Unlock()
	for _, hook := range hooks {
		(*hook)()
	}
}

func (b *Bus) onError(_ *nats.Conn, s *nats.Subscription, err error) {
	subject := ""
	if s != nil {
		subject = s.Subject
	}
	if errors.Is(err, nats.ErrSlowConsumer) {
		b.dropped.Add(1)
		b.log.Warn("too slow for the bus: messages are being dropped", "subject", subject)
		return
	}
	b.log.Warn("the bus reports an error", "subject", subject, "err", err)
}

// Connected says whether there is a connection at this moment.
func (b *Bus) Connected() bool { return b.conn.IsConnected() }

// Overruns counts how often a subscription began to drop messages because its handler was too slow.
func (b *Bus) Overruns() uint64 { return b.dropped.Load() }

// Closed ends when the connection is gone for good, which only Close brings about; a program that sees it otherwise should exit.
func (b *Bus) Closed() <-chan struct{} { return b.closed }

// OnReconnect calls f after every connection that is made from now on, in a goroutine of the library: f must not block. stop
// takes it back.
func (b *Bus) OnReconnect(f func()) (stop func()) {
	hook := &f
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hooks = append(b.hooks, hook)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.hooks = slices.DeleteFunc(b.hooks, func(h *func()) bool { return h == hook })
	}
}

// Publish sends m to whoever listens now, without waiting.
func (b *Bus) Publish(subject string, m proto.Message) error {
	data, err := encode(m)
	if err != nil {
		return fmt.Errorf("publishing on %s: %w", subject, err)
	}
	if err := b.conn.Publish(subject, data); err != nil {
		return fmt.Errorf("publishing on %s: %w", subject, translate(err))
	}
	return nil
}

// Respond answers a request; reply is what the handler was given. Without one it does nothing.
func (b *Bus) Respond(reply string, m proto.Message) error {
	if reply == "" {
		return nil
	}
	return b.Publish(reply, m)
}

// Subscribe calls handle for each message, one at a time and in the order of one publisher, in a goroutine of the library. The
// message is the handler's to keep. reply is empty unless the sender waits for an answer. Interest elsewhere is certain only after a Flush.
// stop ends it; a handler that runs at that moment ends in its own time.
func (b *Bus) Subscribe(subject string, handle func(msg []byte, reply string)) (stop func(), err error) {
	return b.subscribe(subject, "", func(m *nats.Msg) { handle(m.Data, m.Reply) })
}

// SubscribeShared is Subscribe where each message goes to one connected member of the group only, whichever the server picks. A
// member that died is out of it as soon as its connection is; one that hangs goes on being picked.
func (b *Bus) SubscribeShared(subject, group string, handle func(msg []byte, reply string)) (stop func(), err error) {
	return b.subscribe(subject, group, func(m *nats.Msg) { handle(m.Data, m.Reply) })
}

func (b *Bus) subscribe(subject, group string, handle nats.MsgHandler) (stop func(), err error) {
	s, err := b.conn.QueueSubscribe(subject, group, func(m *nats.Msg) {
		b.mu.Lock()
		if b.ending {
			b.mu.Unlock()
			return
		}
		b.callbacks.Add(1)
		b.mu.Unlock()
		defer b.callbacks.Done()
		handle(m)
	})
	if err != nil {
		return nil, fmt.Errorf("subscribing to %s: %w", subject, err)
	}
	if err := s.SetPendingLimits(pendingMessages, pendingBytes); err != nil {
		return nil, fmt.Errorf("bounding the subscription to %s: %w", subject, err)
	}
	return func() { _ = s.Unsubscribe() }, nil // fails only when the connection is closed
}

// Flush waits until the server has what was sent so far: subscriptions, mostly. At most 2 s.
func (b *Bus) Flush(ctx context.Context) error {
	if !b.conn.IsConnected() {
		return fmt.Errorf("flushing: %w", ErrAway)
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := b.conn.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("flushing: %w", translate(err))
	}
	return nil
}

// Request sends m and waits for the first answer, until ctx ends. ErrNobody when no one listens.
func (b *Bus) Request(ctx context.Context, subject string, m proto.Message) ([]byte, error) {
	data, err := encode(m)
	if err != nil {
		return nil, fmt.Errorf("asking on %s: %w", subject, err)
	}
	answer, err := b.conn.RequestWithContext(ctx, subject, data)
	if err != nil {
		return nil, fmt.Errorf("asking on %s: %w", subject, translate(err))
	}
	return answer.Data, nil
}

// RequestMany sends m and gathers the answers of the time during, or until ctx ends. No answer is no error; at most 1,024 are
// taken.
func (b *Bus) RequestMany(ctx context.Context, subject string, m proto.Message, during time.Duration) ([][]byte, error) {
	data, err := encode(m)
	if err != nil {
		return nil, fmt.Errorf("asking everybody on %s: %w", subject, err)
	}
	inbox := b.conn.NewInbox()
	s, err := b.conn.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("asking everybody on %s: %w", subject, translate(err))
	}
	defer func() { _ = s.Unsubscribe() }()
	if err := b.conn.PublishRequest(subject, inbox, data); err != nil {
		return nil, fmt.Errorf("asking everybody on %s: %w", subject, translate(err))
	}
	ctx, cancel := context.WithTimeout(ctx, during)
	defer cancel()
	var answers [][]byte
	for len(answers) < maxAnswers {
		answer, err := s.NextMsgWithContext(ctx)
		if err != nil { // the time is up, nobody listens, or the bus went away: what has come is the answer
			break
		}
		answers = append(answers, answer.Data)
	}
	return answers, nil
}

// Converse sends m to whoever listens and hands each answer to handle, one at a time and in order, in a goroutine of the library,
// until stop. When no one listens, handle is called once, with ErrNobody. An answer on the way at that moment may come after stop.
func (b *Bus) Converse(subject string, m proto.Message, handle func(answer []byte, err error)) (stop func(), err error) {
	data, err := encode(m)
	if err != nil {
		return nil, fmt.Errorf("conversing on %s: %w", subject, err)
	}
	inbox := b.conn.NewInbox()
	stop, err = b.subscribe(inbox, "", func(m *nats.Msg) {
		if len(m.Data) == 0 && m.Header.Get("Status") == "503" { // the server's word (nats.go: noResponders)
			handle(nil, ErrNobody)
			return
		}
		handle(m.Data, nil)
	})
	if err != nil {
		return nil, err
	}
	if err := b.conn.PublishRequest(subject, inbox, data); err != nil {
		stop()
		return nil, fmt.Errorf("conversing on %s: %w", subject, translate(err))
	}
	return stop, nil
}

// Close lets running handlers end, sends what is buffered, and closes the connection; at most 5 s.
func (b *Bus) Close() {
	b.mu.Lock()
	b.ending = true
	b.mu.Unlock()
	if b.conn.IsConnected() {
		_ = b.conn.FlushTimeout(flushTimeout) // a hint that does not make it is a hint lost
	}
	b.conn.Close()
	done := make(chan struct{})
	go func() {
		b.callbacks.Wait()
		<-b.closed
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(drainTimeout):
		b.log.Warn("handlers of the bus still run after the time to end them")
	}
}

func encode(m proto.Message) ([]byte, error) {
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding: %w", err)
	}
	if len(data) > wire.MaxBusMessage {
		return nil, fmt.Errorf("%d bytes: %w", len(data), ErrTooLarge)
	}
	return data, nil
}

// translate names what callers branch on.
func translate(err error) error {
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return ErrNobody
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrConnectionReconnecting):
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	return err
}
