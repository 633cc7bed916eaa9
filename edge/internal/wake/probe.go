package wake

import (
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
	probeEvery    = 25 * time.Millisecond
	probesAtOnce  = 2 // open per replica
	probeTimeout  = time.Second
	maxProbedBody = 4 << 10 // bytes of an answer that are read, so that the server sees an orderly end
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
		if r.BeginProbe(probesAtOnce) {
			running.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, probeTimeout)
				defer cancel()
				r.EndProbe(l.f, l.w.ask(ctx, r))
			})
		}
	}
	return any
}

// ask probes a replica as its record says.
func (w *Waker) ask(ctx context.Context, r *replica.Replica) bool {
	address := r.Address
	if p := r.Probe.GetPort(); p != 0 {
		address = net.JoinHostPort(r.Host, strconv.Itoa(int(p)))
	}
	if a, err := netip.ParseAddr(r.Host); err == nil && (a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified()) {
		return false // as in forward: no replica has such an address
	}
	if r.Probe.GetKind() == wire.ProbeKind_PROBE_KIND_TCP {
		conn, err := w.dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	}
	path := r.Probe.GetPath()
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return false
	}
	req.Header.Set("User-Agent", "slimfaas-edge-probe")
	resp, err := w.probing.RoundTrip(req) // no redirects followed: a 3xx is an answer
	if err != nil {
		return false
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxProbedBody)
	_ = resp.Body.Close()
	return resp.StatusCode >= 200 && resp.StatusCode < 400
}

func newProbing(d *net.Dialer) *http.Transport {
	return &http.Transport{
		DialContext: d.DialContext, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
	}
}
