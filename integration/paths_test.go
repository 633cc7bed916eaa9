package integration

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// E7 and E8 of docs/reliability.md: what a caller from outside may write into a path and into headers.

// Spellings of the three parts of a path. The first of each is the plain one.
var (
	spelledRoutes = []string{
		"/function", "/FUNCTION", "//function", "/./function", "/../function", "/function/../function", "/%66unction", "/function%2f", "/function;a=b", "/function%00",
		"\\function", "/x/../function", "http://doors/function", "http://vault/../function", "/async-function", "/Async-Function", "/async-function-callback", "/explain", "/scale", "/cluster/..", "/dead-letters",
	}
	spelledNames = []string{
		"doors", "d%6f%6frs", "doors%2e", "doors.", "DOORS", "doors%00", "doors%0d%0aX-A:%20b", "doors;vault", "doors,vault", "doors%2f..%2fvault", "doors%2fvault", "doors\\..\\vault", "doors%5c..%5cvault",
		".", "..", "%2e%2e", "%252e%252e", "./doors", "../doors", "", "%20doors", "doors%20", "d\xc3\xb6ors", "doors%c0%af", "doors%zz", "doors%", strings.Repeat("d", 64), "vault", "%76ault", "Vault", "vault.default", "doors.vault", "vault%2fopen",
	}
	spelledRests = []string{
		"/a", "", "/", "//a", "///", "/./a", "/../a", "/..", "/../vault/a", "/../../function/vault/a", "/%2e%2e/%2e%2e/function/vault", "/..%2f..%2fvault", "/..%5c..%5cvault", "/\\..\\vault", "/..;/vault", "/a;b=c", "/a%00", "/a%2500",
		"/%c0%ae%c0%ae/", "/a%zz", "/a%", "/a#b", "/a%23b", "/a%3fb", "/a%20b", "/ a", "/\x00", "/\x7f", "/\xff", "/ä", "/a+b", "/%61dmin", "/ADMIN", "/metrics", "/ready", "/" + strings.Repeat("x", 5000), "/" + strings.Repeat("../", 100) + "vault",
	}
)

// anOddPathLandsOnTheFunctionItNames: whatever a path looks like, it reaches the function that it names, with all behind the name as it
// was written, or nothing at all, which the caller is told.
func anOddPathLandsOnTheFunctionItNames() scenario {
	return scenario{[]fn{
		{name: "doors", annotations: map[string]string{"ReplicasMin": "1", "PathsStartWithVisibility": "Private:/admin"}},
		{name: "vault", annotations: map[string]string{"ReplicasMin": "1", "DefaultVisibility": "Private"}},
	}, func(t *testing.T, c *cluster.Cluster, rec records) {
		outside := outsideAddress(t)
		if outside == "" {
			t.Skip("this machine has no address but loopback: nobody can be outside")
		}
		readyReplicas(c, "doors", 1)
		readyReplicas(c, "vault", 1)
		address := fmt.Sprintf("%s:%d", outside, c.Ports()["edge-0"]["public"])
		n := newNemesis(t)
		type call struct {
			route, name, rest string
			status            int
		}
		var calls []*call
		for i, route := range spelledRoutes {
			for j, name := range spelledNames {
				for k, rest := range spelledRests {
					odd := min(i, 1) + min(j, 1) + min(k, 1)
					if n.full || odd <= 1 || n.IntN(20) == 0 {
						calls = append(calls, &call{route: route, name: name, rest: rest})
					}
				}
			}
		}
		var senders sync.WaitGroup
		work := make(chan int)
		for range 8 {
			senders.Go(func() {
				for i := range work {
					x := calls[i]
					x.status = raw(t, address, "GET", x.route+"/"+x.name+x.rest+"?call="+strconv.Itoa(i))
				}
			})
		}
		for i := range calls {
			work <- i
		}
		close(work)
		senders.Wait()

		seen := map[int][]string{}
		for _, l := range rec.started(t, "doors") {
			if _, id, ok := strings.Cut(l.URI, "?call="); ok {
				i, err := strconv.Atoi(id)
				if err != nil {
					t.Errorf("the function saw %q", l.URI)
				}
				seen[i] = append(seen[i], strings.TrimSuffix(l.URI, "?call="+id))
			}
		}
		for _, l := range rec.started(t, "vault") {
			t.Errorf("a call from outside reached the private function: %q", l.URI)
		}
		answered := 0
		for i, x := range calls {
			target, came := x.route+"/"+x.name+x.rest, seen[i]
			async := strings.Contains(strings.ToLower(x.route), "async")
			switch {
			case x.status >= 200 && x.status < 300 && (async || len(came) == 1):
				answered++
			case (x.status == 0 || x.status >= 400 && x.status < 500) && len(came) == 0:
			default:
				t.Errorf("%.200q answered %d, and the function saw it as %.200q", target, x.status, came)
			}
			for _, uri := range came {
				rest := x.rest
				if rest == "" {
					rest = "/"
				}
				rest = strings.ToValidUTF8(rest, "\ufffd") // the record is JSON
				if name, err := url.PathUnescape(x.name); uri != rest || err != nil || name != "doors" {
					t.Errorf("%.200q was seen by doors as %.200q", target, uri)
				}
			}
		}
		t.Logf("%d paths, %d reached the function", len(calls), answered)
		if answered < 20 {
			t.Error("so few that the test says nothing")
		}
		forgedHeadersAreOurs(t, address, outside, rec)
	}}
}

// forgedHeadersAreOurs: what says who called is written by the edge, whatever the caller writes there.
func forgedHeadersAreOurs(t *testing.T, address, outside string, rec records) {
	t.Helper()
	forged := [][]string{
		{"X-Forwarded-For: 127.0.0.1", "X-Forwarded-For: 10.0.0.1"}, {"x-forwarded-for: 127.0.0.1", "X-FORWARDED-HOST: vault"}, {"X-Forwarded-Proto: https", "X-Forwarded-Prefix: /vault"},
		{"Forwarded: for=127.0.0.1;host=vault"}, {"Connection: X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, X-Forwarded-Prefix, Host, Content-Length"},
		{"SlimFaas-Element-Id: x", "SLIMFAAS-LAST-TRY: true", "SlimFaas-Try-Number: 3"}, {"X-SlimFaas-Job: x", "x-slimfaas-anything: y"}, {"Connection: SlimFaas-Element-Id", "SlimFaas-Element-Id: x"},
	}
	for i, headers := range forged {
		mark := fmt.Sprintf("/forged/%d", i)
		if got := raw(t, address, "GET", "/function/doors"+mark, headers...); got != 200 {
			t.Errorf("with %q: %d, want 200", headers, got)
			continue
		}
		for _, l := range rec.started(t, "doors") {
			if l.URI != mark {
				continue
			}
			want := map[string]string{
				"X-Forwarded-For": outside, "X-Forwarded-Host": "x", "X-Forwarded-Proto": "http", "X-Forwarded-Prefix": "/function/doors",
				"Forwarded": "", "Slimfaas-Element-Id": "", "Slimfaas-Last-Try": "", "Slimfaas-Try-Number": "", "X-Slimfaas-Job": "", "X-Slimfaas-Anything": "",
			}
			for name, value := range want {
				if got := strings.Join(l.Header.Values(name), " and "); got != value {
					t.Errorf("with %q the function was told %s: %q, want %q", headers, name, got, value)
				}
			}
		}
	}
	for _, host := range []string{"169.254.169.254", "127.0.0.1:1", "vault", "doors.svc", "[::1]", "evil.example"} {
		// One Host that is somebody else's, and no second.
		if got := statusOf(t, address, "GET /function/doors/host HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n"); got != 200 {
			t.Errorf("Host %s: %d, want 200: it says nothing of where a call goes", host, got)
		}
		if got := statusOf(t, address, "GET http://"+host+"/function/vault/host HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n"); got != 404 {
			t.Errorf("Host %s: the private function answered %d, want 404", host, got)
		}
	}
}
