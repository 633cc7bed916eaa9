package forward_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/edge/internal/load"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// drain says in the table that a replica goes away.
func (b *bundle) drain(replica int) {
	rec := proto.Clone(b.record).(*wire.FunctionRecord)
	rec.Version.Seq++
	rec.Replicas[replica].State = wire.ReplicaState_REPLICA_STATE_DRAINING
	b.set.Apply(rec, &function.Specification{NumberParallelRequestPerPod: 10})
}

// A replica that ends in the middle of a call, with or without the table knowing that it is to go.
func TestACallThatBreaksOnAReplicaThatGoesAwayIsRepeatedWhereThatIsSafe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, body  string
		drained, some bool // some: part of an answer has come
		status        int
		late          time.Duration // after the break the table says so
	}{
		"GET":                           {"GET", "", true, false, 200, 0},
		"GET, the table is late":        {"GET", "", true, false, 200, 30 * time.Millisecond},
		"HEAD":                          {"HEAD", "", true, false, 200, 0},
		"DELETE":                        {"DELETE", "", true, false, 200, 0},
		"PUT without a body":            {"PUT", "", true, false, 200, 0},
		"POST":                          {"POST", "", true, false, 502, 0},
		"PATCH":                         {"PATCH", "", true, false, 502, 0},
		"PUT with a body":               {"PUT", "body", true, false, 502, 0},
		"GET, part of the answer came":  {"GET", "", true, true, 502, 0},
		"GET, the replica was to stay":  {"GET", "", false, false, 502, 0},
		"POST, the replica was to stay": {"POST", "body", false, false, 502, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b *bundle
			var calls atomic.Int32
			ends := raw(t, func(conn net.Conn, r *bufio.Reader) {
				if len(readHead(r)) == 0 {
					return
				}
				calls.Add(1)
				_, _ = io.CopyN(io.Discard, r, int64(len(c.body)))
				if c.drained && c.late > 0 {
					late := time.AfterFunc(c.late, func() { b.drain(0) })
					t.Cleanup(func() { late.Stop() })
				} else if c.drained {
					b.drain(0)
				}
				if c.some {
					_, _ = io.WriteString(conn, "HTTP/1.1 20")
				}
			})
			stays := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				calls.Add(1)
				w.Header().Set("X-From", "the other")
			})
			b = setup(t, ends, stays)
			hold, _ := b.fn.Choose(load.Sync, nil) // the first call goes to the replica that ends
			if hold.Name == "fn-fib-0" {
				hold.End()
				hold, _ = b.fn.Choose(load.Sync, nil)
			}
			defer hold.End()
			req, err := http.NewRequestWithContext(t.Context(), c.method, b.url+"/function/fib", strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := testkit.Client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			want := int32(1)
			if c.status == 200 {
				want = 2
			}
			if resp.StatusCode != c.status || calls.Load() != want || (c.status == 200) != (resp.Header.Get("X-From") != "") {
				t.Errorf("%d after %d calls, want %d after %d", resp.StatusCode, calls.Load(), c.status, want)
			}
		})
	}
}
