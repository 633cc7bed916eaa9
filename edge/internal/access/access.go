// Package access says who is internal: one rule for every route. Pure.
package access

import (
	"net/netip"
	"strings"
)

// Rules are the addresses of configuration. The zero Rules trust no proxy and hold nobody internal but replicas.
type Rules struct {
	// TrustedProxies may say for whom they speak in X-Forwarded-For.
	TrustedProxies []netip.Prefix
	// Networks hold addresses that count as internal whatever runs there.
	Networks []netip.Prefix
}

// Caller is who sent a request.
type Caller struct {
	// Addr is the address after unwinding; the zero Addr when a trusted proxy named something that is no address.
	Addr netip.Addr
	// ViaProxy says that the peer itself is a trusted proxy: what it says in X-Forwarded-* is kept.
	ViaProxy bool
}

// Caller unwinds X-Forwarded-For from the right: as long as the address at hand is a trusted proxy, the value to its left is
// whom it speaks for. values are the header lines in order.
func (r Rules) Caller(peer netip.Addr, values []string) Caller {
	c := Caller{Addr: plain(peer)}
	c.ViaProxy = contains(r.TrustedProxies, c.Addr)
	if !c.ViaProxy {
		return c
	}
	for i := len(values) - 1; i >= 0; i-- {
		line := values[i]
		for more := true; more; {
			var token string
			if cut := strings.LastIndexByte(line, ','); cut < 0 {
				token, more = line, false
			} else {
				token, line = line[cut+1:], line[:cut]
			}
			if token = strings.TrimSpace(token); token == "" {
				continue
			}
			c.Addr = parse(token)
			if !contains(r.TrustedProxies, c.Addr) {
				return c
			}
		}
	}
	return c
}

// Internal says whether the caller is: in the configured networks, or exactly the address of a replica that replica knows.
func (r Rules) Internal(c Caller, replica func(netip.Addr) bool) bool {
	return c.Addr.IsValid() && (contains(r.Networks, c.Addr) || replica(c.Addr))
}

// Peer reads the address of `host:port`; the zero Addr when there is none.
func Peer(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return plain(ap.Addr())
}

// parse reads an address as proxies write it: bare, in brackets, with a port. Anything else ("unknown", "_hidden") is the zero
// Addr, which is nobody.
func parse(token string) netip.Addr {
	if a, err := netip.ParseAddr(token); err == nil {
		return plain(a)
	}
	if ap, err := netip.ParseAddrPort(token); err == nil {
		return plain(ap.Addr())
	}
	if strings.HasPrefix(token, "[") && strings.HasSuffix(token, "]") {
		if a, err := netip.ParseAddr(token[1 : len(token)-1]); err == nil {
			return plain(a)
		}
	}
	return netip.Addr{}
}

// plain takes ::ffff: and the zone away, so that one machine has one address.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func contains(all []netip.Prefix, a netip.Addr) bool {
	if !a.IsValid() {
		return false
	}
	for _, p := range all {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
