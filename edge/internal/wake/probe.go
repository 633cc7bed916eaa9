package wake

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	probeEvery   = 25 * time.Millisecond
	probesAtOnce = 2 // open per replica
	probeTimeout = time.Second
	// quickConnect is how long all but one of the probes that are open try to connect. Networks swallow the first packet to an address
	// that they do not know the way to yet, and the kernel sends another after a second only; a new connection sends one at once. The
	// one has probeTimeout, for a network where connecting takes longer.
	quickConnect = 50 * time.Millisecond
	maxProbed    = 16 << 10 // bytes of an answer that are read, with its body, so that the server sees an orderly end
)

// probe starts one probe at each replica that may be decided by one and has less than two open. True: there are such, look
// again soon.
func (l *lot) probe(ctx context.Context, running *sync.WaitGroup) bool {
	any := false
	for _, r := range l.f.Replicas() {
		if !r.Probable() {
			continue
		}
		any = true
		nth := r.BeginProbe(probesAtOnce)
		if nth == 0 {
			continue
		}
		by := l.w.quick
		if nth == 1 {
			by = l.w.patient
		}
		running.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			r.EndProbe(l.f, by.ask(ctx, r))
		})
	}
	return any
}

// prober asks on a connection of its own each time.
type prober struct {
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	connect time.Duration // at most
}

// ask probes a replica as its record says.
func (p prober) ask(ctx context.Context, r *replica.Replica) bool {
	address := r.Address
	if port := r.Probe.GetPort(); port != 0 {
		address = net.JoinHostPort(r.Host, strconv.Itoa(int(port)))
	}
	if a, err := netip.ParseAddr(r.Host); err == nil && (a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified()) {
		return false // as in forward: no replica has such an address
	}
	connecting, cancel := context.WithTimeout(ctx, p.connect)
	conn, err := p.dial(connecting, "tcp", address)
	cancel()
	if err != nil {
		return false
	}
	defer conn.Close()
	if r.Probe.GetKind() == wire.ProbeKind_PROBE_KIND_TCP {
		return true
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/"+strings.TrimPrefix(r.Probe.GetPath(), "/"), nil)
	if err != nil {
		return false
	}
	req.Close = true
	req.Header.Set("User-Agent", "slimfaas-edge-probe")
	if err := req.Write(conn); err != nil {
		return false
	}
	in := bufio.NewReader(io.LimitReader(conn, maxProbed))
	for {
		resp, err := http.ReadResponse(in, req) // no redirects followed: a 3xx is an answer
		switch {
		case err != nil:
			return false
		case resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols:
			continue // and the answer follows
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp.StatusCode >= 200 && resp.StatusCode < 400
	}
}
