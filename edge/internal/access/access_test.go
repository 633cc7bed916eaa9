package access_test

import (
	"net/netip"
	"testing"

	"github.com/slimfaas/slimfaas/edge/internal/access"
)

func TestWhoIsInternal(t *testing.T) {
	t.Parallel()
	rules := access.Rules{
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28"), netip.MustParsePrefix("2001:db8::1/128")},
		Networks:       []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
	}
	replica := func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.1") }
	for _, c := range []struct {
		name, peer string
		forwarded  []string
		internal   bool
		addr       string
	}{
		{"a replica", "10.0.0.1:4000", nil, true, "10.0.0.1"},
		{"a replica as mapped IPv6", "[::ffff:10.0.0.1]:4000", nil, true, "10.0.0.1"},
		{"not a substring", "10.0.0.12:4000", nil, false, "10.0.0.12"},
		{"not a substring either", "110.0.0.1:4000", nil, false, "110.0.0.1"},
		{"configured network", "127.0.0.9:1", nil, true, "127.0.0.9"},
		{"IPv6 loopback", "[::1]:1", nil, true, "::1"},
		{"outside", "203.0.113.5:1", nil, false, "203.0.113.5"},
		{"forged by an outsider", "203.0.113.5:1", []string{"10.0.0.1"}, false, "203.0.113.5"},
		{"a proxy speaks for a replica", "192.0.2.1:1", []string{"10.0.0.1"}, true, "10.0.0.1"},
		{"a proxy speaks for an outsider who forged", "192.0.2.1:1", []string{"10.0.0.1, 203.0.113.5"}, false, "203.0.113.5"},
		{"forged in a line of its own", "192.0.2.1:1", []string{"10.0.0.1", "203.0.113.5"}, false, "203.0.113.5"},
		{"two proxies", "192.0.2.1:1", []string{"203.0.113.5, 10.0.0.1, 192.0.2.2"}, true, "10.0.0.1"},
		{"two proxies in two lines", "192.0.2.1:1", []string{"10.0.0.1", "192.0.2.2"}, true, "10.0.0.1"},
		{"proxies only", "192.0.2.1:1", []string{"192.0.2.3,192.0.2.2"}, false, "192.0.2.3"},
		{"a proxy for itself", "192.0.2.1:1", nil, false, "192.0.2.1"},
		{"empty items", "192.0.2.1:1", []string{" , 10.0.0.1 , "}, true, "10.0.0.1"},
		{"with port", "192.0.2.1:1", []string{"10.0.0.1:8080"}, true, "10.0.0.1"},
		{"bracketed", "[2001:db8::1]:1", []string{"[::1]"}, true, "::1"},
		{"bracketed with port", "[2001:db8::1]:1", []string{"[::1]:99"}, true, "::1"},
		{"no address stops there", "192.0.2.1:1", []string{"10.0.0.1, unknown"}, false, "invalid IP"},
		{"no peer", "@", nil, false, "invalid IP"},
		{"zone", "[fe80::1%eth0]:1", nil, false, "fe80::1"},
	} {
		caller := rules.Caller(access.Peer(c.peer), c.forwarded)
		if got := rules.Internal(caller, replica); got != c.internal || caller.Addr.String() != c.addr {
			t.Errorf("%s: internal %v as %v, want %v as %s", c.name, got, caller.Addr, c.internal, c.addr)
		}
	}
	if (access.Rules{}).Internal((access.Rules{}).Caller(access.Peer("127.0.0.1:1"), []string{"10.0.0.1"}), replica) {
		t.Error("loopback is internal without being configured")
	}
}

// FuzzCaller: nobody becomes another by what he says himself. Behind trusted proxies the caller is whom the last of them names,
// whatever stands to the left of it.
func FuzzCaller(f *testing.F) {
	for _, s := range [][2]string{
		{"10.0.0.1", "203.0.113.5"}, {"unknown", "192.0.2.2,,"}, {"[::1]:99", "::ffff:10.0.0.1"}, {"fe80::1%a,b", "\"10.0.0.1\""}, {"", " "},
	} {
		f.Add(s[0], s[1])
	}
	rules := access.Rules{
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28")},
		Networks:       []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}
	nobody := func(netip.Addr) bool { return false }
	f.Fuzz(func(t *testing.T, forged, said string) {
		outsider := rules.Caller(access.Peer("203.0.113.5:1"), []string{forged, said})
		if outsider.ViaProxy || rules.Internal(outsider, nobody) || outsider.Addr.String() != "203.0.113.5" {
			t.Errorf("%q, %q: an outsider is %+v", forged, said, outsider)
		}
		// The proxy adds whom it heard from behind what it was told.
		heard := rules.Caller(access.Peer("192.0.2.1:1"), []string{forged, said + ", 203.0.113.6"})
		if !heard.ViaProxy || rules.Internal(heard, nobody) || heard.Addr.String() != "203.0.113.6" {
			t.Errorf("%q, %q: whom the proxy heard from is %+v", forged, said, heard)
		}
		// Two proxies: the second heard from the first, which heard from an outsider.
		chain := rules.Caller(access.Peer("192.0.2.1:1"), []string{forged, said + ",203.0.113.6,192.0.2.3"})
		if rules.Internal(chain, nobody) || chain.Addr.String() != "203.0.113.6" {
			t.Errorf("%q, %q: behind two proxies: %+v", forged, said, chain)
		}
	})
}
