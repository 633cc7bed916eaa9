package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/edge/internal/httpapi"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/function"
	"github.com/slimfaas/slimfaas/shared/queueclient"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// operatorBundle is the surface with a scaler and a queue the test plays.
type operatorBundle struct {
	*bundle
	explains   func(name string) (*wire.ExplainResponse, error)
	scaled     []*wire.SetScale
	doErr      error
	clusterErr error
	factsErr   error
	dead       []string // what was asked of dead calls
	deadErr    error
	deadCode   wire.Code
}

func setupOperator(t *testing.T) *operatorBundle {
	t.Helper()
	b := &operatorBundle{bundle: setup(t)}
	b.api.InternalOnPublic = true
	b.api.MaxBody = 1 << 20
	b.explains = func(name string) (*wire.ExplainResponse, error) {
		return &wire.ExplainResponse{Found: name == "fibonacci", Json: []byte(`{"Function":"` + name + `"}`)}, nil
	}
	most := 5
	b.set.Apply(&wire.FunctionRecord{Name: "limited", Version: &wire.Version{Epoch: 1, Seq: 1}}, &function.Specification{ReplicasMin: 2, Scale: &function.Scale{ReplicaMax: &most}})
	b.api.HandleOperator(httpapi.Operator{
		Ask: func(_ context.Context, subject string, m proto.Message) ([]byte, error) {
			if subject != wire.SubjectExplain {
				t.Errorf("asked on %s", subject)
			}
			answer, err := b.explains(m.(*wire.ExplainRequest).GetFunction())
			if err != nil {
				return nil, err
			}
			return proto.Marshal(answer)
		},
		Do: func(_ context.Context, op *wire.Op) (*wire.OpResult, error) {
			b.scaled = append(b.scaled, op.GetSetScale())
			return &wire.OpResult{Code: wire.Code_CODE_OK}, b.doErr
		},
		Cluster: func(context.Context) (*wire.ClusterResponse, error) {
			return &wire.ClusterResponse{Node: "queue-1", Leader: "queue-0", AppliedIndex: 9, Members: []*wire.Member{{Name: "queue-0", Voter: true}}}, b.clusterErr
		},
		Facts: func(context.Context) (*wire.FactsResponse, error) {
			return &wire.FactsResponse{
				Sessions: []*wire.Session{
					{Id: 3, Name: "edge-0", Kind: wire.SessionKind_SESSION_KIND_EDGE}, {Id: 4, Name: "scaler-0", Kind: wire.SessionKind_SESSION_KIND_SCALER},
					{Id: 5, Name: "edge-1", Kind: wire.SessionKind_SESSION_KIND_EDGE, Vanished: true, EndedUnixMs: 1},
				},
				Locks: []*wire.Lock{{Name: wire.ScalerLock, Holder: "scaler-0"}},
			}, b.factsErr
		},
		Digest:      func() *wire.TableDigest { return &wire.TableDigest{Version: &wire.Version{Epoch: 6}} },
		MaxReplicas: 64, Log: slog.New(slog.DiscardHandler),
		Dead: httpapi.DeadLetters{
			List: func(_ context.Context, r *wire.ListDeadRequest) (*wire.ListDeadResponse, error) {
				b.dead = append(b.dead, fmt.Sprintf("list %s %d %x", r.GetFunction(), r.GetLimit(), r.GetAfter()))
				id, _ := message.ParseID(callID)
				return &wire.ListDeadResponse{Code: b.deadCode, Calls: []*wire.Call{
					{Id: id[:], Function: r.GetFunction(), State: wire.CallState_CALL_STATE_DEAD, LastError: "no answer", Tries: 3, MaxTries: 3, FinishedUnixMs: 1},
				}}, b.deadErr
			},
			Redrive: func(_ context.Context, r *wire.RedriveRequest) (*wire.RedriveResponse, error) {
				b.dead = append(b.dead, fmt.Sprintf("redrive %s %x", r.GetFunction(), r.GetId()))
				return &wire.RedriveResponse{Count: 7}, b.deadErr
			},
			Purge: func(_ context.Context, r *wire.PurgeRequest) (*wire.PurgeResponse, error) {
				b.dead = append(b.dead, fmt.Sprintf("purge %s %x", r.GetFunction(), r.GetId()))
				return &wire.PurgeResponse{Count: 8}, b.deadErr
			},
		},
	})
	return b
}

func (b *operatorBundle) scale(peer, name, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("PUT", "/scale/"+name, strings.NewReader(body))
	r.RemoteAddr = peer
	w := httptest.NewRecorder()
	b.api.Public().ServeHTTP(w, r)
	return w
}

func TestOperatorRoutesAreForInternalCallers(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	for _, c := range []struct{ method, target string }{
		{"GET", "/explain/fibonacci"}, {"GET", "/cluster"}, {"GET", "/dead-letters/fibonacci"}, {"POST", "/dead-letters/fibonacci/redrive"}, {"DELETE", "/dead-letters/fibonacci?id=" + callID},
	} {
		wantProblem(t, c.target+" from outside", do(b.api.Public(), outsider, c.method, c.target), 404)
		if got := do(b.api.Public(), insider, c.method, c.target); got.Code != 200 {
			t.Errorf("%s %s from inside: %d", c.method, c.target, got.Code)
		}
	}
	wantProblem(t, "scale from outside", b.scale(outsider, "fibonacci", `{"Replicas":1}`), 404)
	if len(b.scaled) != 0 {
		t.Error("an outsider scaled")
	}
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	ask := func(method, target string) *httptest.ResponseRecorder {
		b.dead = nil
		return do(b.api.Public(), insider, method, "/dead-letters/"+target)
	}
	raw := strings.ReplaceAll(callID, "-", "")
	for _, c := range []struct{ method, target, asked, body string }{
		{"GET", "fibonacci", "list fibonacci 0 ", `[{"Id":"` + callID + `","Function":"fibonacci","State":"Dead","Tries":3,`},
		{"GET", "fibonacci/?limit=5&after=" + callID, "list fibonacci 5 " + raw, `[{`},
		{"GET", "fibonacci.default", "list fibonacci 0 ", `[{`},
		{"GET", "long-gone", "list long-gone 0 ", `[{`},
		{"POST", "fibonacci/redrive", "redrive fibonacci ", `{"Redriven":7}`},
		{"POST", "fibonacci/redrive?id=" + callID, "redrive fibonacci " + raw, `{"Redriven":7}`},
		{"DELETE", "fibonacci", "purge fibonacci ", `{"Purged":8}`},
		{"DELETE", "fibonacci?id=" + callID, "purge fibonacci " + raw, `{"Purged":8}`},
	} {
		w := ask(c.method, c.target)
		if w.Code != 200 || len(b.dead) != 1 || b.dead[0] != c.asked || !strings.HasPrefix(w.Body.String(), c.body) {
			t.Errorf("%s %s: %d %s, asked %q", c.method, c.target, w.Code, w.Body, b.dead)
		}
	}
	for target, status := range map[string]int{
		"GET fibonacci?limit=0": 400, "GET fibonacci?limit=1001": 400, "GET fibonacci?after=17": 400, "DELETE fibonacci?id=": 400,
		"POST fibonacci/redrive?id=x": 400, "POST fibonacci": 405, "GET fibonacci/redrive": 404, "DELETE fibonacci/all": 404, "DELETE fibonacci?a=%zz": 400,
	} {
		method, target, _ := strings.Cut(target, " ")
		if wantProblem(t, method+" "+target, ask(method, target), status); len(b.dead) != 0 {
			t.Errorf("%s %s reached the queue: %q", method, target, b.dead)
		}
	}
	b.deadCode = wire.Code_CODE_NOT_FOUND
	wantProblem(t, "behind a call that is not dead", ask("GET", "fibonacci?after="+callID), 404)
	b.deadErr = queueclient.ErrNoLeader
	wantProblem(t, "no queue", ask("GET", "fibonacci"), 503)
	if p := wantProblem(t, "not handed over", ask("DELETE", "fibonacci"), 503); p["type"] != "urn:slimfaas:unavailable" {
		t.Errorf("%v", p)
	}
	b.deadErr = queueclient.ErrUnknown
	if p := wantProblem(t, "unknown", ask("POST", "fibonacci/redrive"), 503); p["type"] != "urn:slimfaas:outcome-unknown" {
		t.Errorf("%v", p)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	w := do(b.api.Public(), insider, "GET", "/explain/fibonacci.default")
	if w.Code != 200 || w.Body.String() != `{"Function":"fibonacci"}` || !strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	wantProblem(t, "unknown to the scaler", do(b.api.Public(), insider, "GET", "/explain/wrong"), 404)

	b.explains = func(string) (*wire.ExplainResponse, error) { return nil, errors.New("nobody answered") }
	b.set.Apply(&wire.FunctionRecord{Name: "broken", Version: &wire.Version{Epoch: 1, Seq: 2}, Problems: []string{"ReplicasMin: a number"}, Reason: "why"}, &function.Specification{})
	p := wantProblem(t, "no scaler", do(b.api.Public(), insider, "GET", "/explain/broken"), 503)
	known, _ := p["Known"].(map[string]any)
	if known["Reason"] != "why" || known["Problems"].([]any)[0] != "ReplicasMin: a number" || len(known["Replicas"].([]any)) != 0 {
		t.Errorf("known %v", known)
	}
	p = wantProblem(t, "no scaler", do(b.api.Public(), insider, "GET", "/explain/fibonacci"), 503)
	replicas := p["Known"].(map[string]any)["Replicas"].([]any)
	if first := replicas[0].(map[string]any); first["State"] != "Ready" || first["Usable"] != true || replicas[1].(map[string]any)["State"] != "Starting" {
		t.Errorf("replicas %v", replicas)
	}
	wantProblem(t, "no scaler and unknown here", do(b.api.Public(), insider, "GET", "/explain/wrong"), 404)
	b.synced = false
	wantProblem(t, "no scaler and no table", do(b.api.Public(), insider, "GET", "/explain/wrong"), 503)
}

func TestScale(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	w := b.scale(insider, "fibonacci", `{"Replicas":3,"ForSeconds":120}`)
	if w.Code != 200 || w.Body.String() != `{"Function":"fibonacci"}` {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got := b.scaled[0]; got.GetFunction() != "fibonacci" || got.GetReplicas() != 3 || got.GetForMs() != 120_000 {
		t.Errorf("scaled %v", got)
	}
	if b.scale(insider, "fibonacci", `{"Replicas":0}`); b.scaled[1].GetForMs() != 60_000 {
		t.Errorf("without ForSeconds: %v", b.scaled[1])
	}
	for _, body := range []string{
		`{"Replicas":`, ``, `[]`, `null`, `{}`, `{"Replicas":-1}`, `{"Replicas":65}`, `{"Replicas":1000000,"ForSeconds":10}`, `{"Replicas":99999999999}`, `{"Replicas":"1"}`, `{"Replicas":1.5}`,
		`{"Replicas":1,"ForSeconds":0}`, `{"Replicas":1,"ForSeconds":-5}`, `{"Replicas":1,"ForSeconds":9999999999}`, `{"Replcas":1}`, `{"Replicas":1,"Extra":1}`, `{"Replicas":1} {}`, `{"Replicas":1}x`,
		`{"Replicas":1,` + strings.Repeat(" ", 5000) + `"ForSeconds":1}`,
	} {
		wantProblem(t, body[:min(len(body), 60)], b.scale(insider, "fibonacci", body), 400)
	}
	wantProblem(t, "below ReplicasMin", b.scale(insider, "limited", `{"Replicas":1}`), 400)
	wantProblem(t, "above ReplicaMax", b.scale(insider, "limited", `{"Replicas":6}`), 400)
	wantProblem(t, "unknown", b.scale(insider, "wrong", `{"Replicas":1}`), 404)
	if len(b.scaled) != 2 {
		t.Errorf("%d commands, of which two were right", len(b.scaled))
	}
	b.explains = func(string) (*wire.ExplainResponse, error) { return nil, errors.New("nobody answered") }
	if w := b.scale(insider, "limited", `{"Replicas":5}`); w.Code != 200 || !strings.Contains(w.Body.String(), `"Function":"limited"`) {
		t.Errorf("recorded, but no scaler leads: %d %s", w.Code, w.Body)
	}
	b.doErr = errors.New("gone")
	wantProblem(t, "queue away", b.scale(insider, "fibonacci", `{"Replicas":1}`), 503)
}

func TestCluster(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	type answer struct {
		Queue struct {
			Leader       string
			AppliedIndex uint64
			Members      []struct{ Name string }
		}
		Scaler struct {
			Leader string
			Epoch  uint64
		}
		Edges []struct {
			Name    string
			Session uint64
		}
	}
	read := func() (a answer) {
		w := do(b.api.Public(), insider, "GET", "/cluster")
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != 200 {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		return a
	}
	a := read()
	if a.Queue.Leader != "queue-0" || a.Queue.AppliedIndex != 9 || len(a.Queue.Members) != 1 || a.Scaler.Leader != "scaler-0" || a.Scaler.Epoch != 6 ||
		len(a.Edges) != 1 || a.Edges[0].Name != "edge-0" || a.Edges[0].Session != 3 {
		t.Errorf("cluster %+v", a)
	}
	b.factsErr = errors.New("no leader")
	if a = read(); a.Edges != nil || a.Queue.Leader != "queue-0" {
		t.Errorf("without facts: %+v", a)
	}
	b.clusterErr = errors.New("nobody")
	wantProblem(t, "no node", do(b.api.Public(), insider, "GET", "/cluster"), 503)
}
