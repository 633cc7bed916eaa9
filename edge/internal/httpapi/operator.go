package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/problem"
	"github.com/slimfaas/slimfaas/shared/wire"
	"google.golang.org/protobuf/proto"
)

const (
	// explainWithin is how long the leading scaler may take to answer.
	explainWithin = 2 * time.Second
	// defaultScaleFor holds where the operator does not say ForSeconds; maxScaleFor is the most they can say.
	defaultScaleFor = 60 * time.Second
	maxScaleFor     = 30 * 24 * time.Hour
	maxScaleBody    = 4 << 10 // bytes
)

// Operator is what the routes for operators need.
type Operator struct {
	// Ask is a request on the bus: the first answer, or an error when none came before ctx ended.
	Ask func(ctx context.Context, subject string, m proto.Message) ([]byte, error)
	// Do hands an operation to the queue leader.
	Do      func(context.Context, *wire.Op) (*wire.OpResult, error)
	Cluster func(context.Context) (*wire.ClusterResponse, error)
	Facts   func(context.Context) (*wire.FactsResponse, error)
	// Digest is of the table this edge has.
	Digest func() *wire.TableDigest
	// MaxReplicas is what PUT /scale may ask for where a function sets no ReplicaMax. 0: any number.
	MaxReplicas int
	Dead        DeadLetters
	Log         *slog.Logger
}

// HandleOperator answers /explain, /scale, /cluster and /dead-letters, all for internal callers only.
func (a *API) HandleOperator(o Operator) {
	a.Handle(route.Explain, func(w http.ResponseWriter, r *http.Request, in *Request) {
		a.explain(o, w, r, a.fullName(in.Name))
	})
	a.Handle(route.Scale, func(w http.ResponseWriter, r *http.Request, in *Request) { a.scale(o, w, r, in) })
	a.Handle(route.Cluster, func(w http.ResponseWriter, r *http.Request, _ *Request) { o.cluster(w, r) })
	a.Handle(route.DeadLetters, func(w http.ResponseWriter, r *http.Request, in *Request) { a.deadLetters(o, w, r, in) })
}

// fullName is the function's key in the table where this edge knows it, else the name as asked.
func (a *API) fullName(name string) string {
	if f, ok := a.Find(name); ok {
		return f.Name()
	}
	return name
}

func (a *API) explain(o Operator, w http.ResponseWriter, r *http.Request, name string) {
	answer, err := o.explanation(r.Context(), name)
	switch {
	case err == nil && answer.GetFound():
		rawJSON(w, answer.GetJson())
	case err == nil:
		Refuse(w, gate.NotFound())
	default:
		o.Log.Warn("no explanation from a scaler", "fn", name, "err", err)
		f, ok := a.Find(name)
		if !ok && a.Synced() {
			Refuse(w, gate.NotFound())
			return
		}
		p := problem.FromCode(wire.Code_CODE_UNAVAILABLE, "No scaler that leads answered within "+explainWithin.String()+". What this edge knows itself is in Known; calls to replicas that run go on.")
		p.Title = "No scaler leads"
		if ok {
			p.Extra = map[string]any{"Known": knownOf(f)}
		}
		problem.Write(w, p)
	}
}

func (o Operator) explanation(ctx context.Context, name string) (*wire.ExplainResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, explainWithin)
	defer cancel()
	data, err := o.Ask(ctx, wire.SubjectExplain, &wire.ExplainRequest{Function: name})
	if err != nil {
		return nil, fmt.Errorf("asking the scaler: %w", err)
	}
	answer := &wire.ExplainResponse{}
	if err := proto.Unmarshal(data, answer); err != nil {
		return nil, fmt.Errorf("reading the scaler's answer: %w", err)
	}
	return answer, nil
}

// known is what this edge can tell of a function without a scaler.
type known struct {
	Function string
	Wanted   int32
	Reason   string
	Epoch    uint64
	Seq      uint64
	Replicas []knownReplica
	Problems []string
}

type knownReplica struct {
	Name   string
	State  string
	Detail string
	Usable bool // by this edge, now
}

var replicaStates = map[wire.ReplicaState]string{
	wire.ReplicaState_REPLICA_STATE_PENDING: "Pending", wire.ReplicaState_REPLICA_STATE_STARTING: "Starting", wire.ReplicaState_REPLICA_STATE_READY: "Ready",
	wire.ReplicaState_REPLICA_STATE_DRAINING: "Draining", wire.ReplicaState_REPLICA_STATE_GONE: "Gone",
}

func knownOf(f *replica.Function) known {
	rec := f.Record()
	usable := map[string]bool{}
	for _, r := range f.Ready() {
		usable[r.Name] = true
	}
	k := known{
		Function: f.Name(), Wanted: rec.GetWanted(), Reason: rec.GetReason(),
		Epoch: rec.GetVersion().GetEpoch(), Seq: rec.GetVersion().GetSeq(),
		Replicas: []knownReplica{}, Problems: append([]string{}, rec.GetProblems()...),
	}
	for _, r := range rec.GetReplicas() {
		k.Replicas = append(k.Replicas, knownReplica{
			Name: r.GetName(), State: replicaStates[r.GetState()], Detail: r.GetDetail(), Usable: usable[r.GetName()],
		})
	}
	return k
}

// scaleRequest is the body of PUT /scale.
type scaleRequest struct {
	Replicas   *int32
	ForSeconds *int64
}

func (a *API) scale(o Operator, w http.ResponseWriter, r *http.Request, in *Request) {
	f, ok := a.Find(in.Name)
	switch {
	case !ok && !a.Synced():
		noTable(w)
		return
	case !ok:
		Refuse(w, gate.NotFound())
		return
	}
	replicas, lasts, err := readScale(r, f, o.MaxReplicas)
	if err != nil {
		Refuse(w, gate.Refusal{Status: http.StatusBadRequest, Type: "bad-request", Title: "Bad request", Detail: err.Error()})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), queueWithin)
	defer cancel()
	result, err := o.Do(ctx, &wire.Op{Op: &wire.Op_SetScale{SetScale: &wire.SetScale{
		Function: f.Name(), Replicas: replicas, ForMs: uint64(lasts.Milliseconds()),
	}}})
	if err != nil || result.GetCode() != wire.Code_CODE_OK {
		o.Log.Warn("scale not recorded", "fn", f.Name(), "replicas", replicas, "code", result.GetCode().String(), "err", err)
		problem.Write(w, problem.FromCode(wire.Code_CODE_UNAVAILABLE, "The queue did not confirm. Ask again; asking twice is asking once."))
		return
	}
	o.Log.Info("an operator asked for replicas", "fn", f.Name(), "replicas", replicas, "for", lasts)
	answer, err := o.explanation(r.Context(), f.Name())
	if err != nil || !answer.GetFound() { // it is recorded all the same, and the next leading scaler reads it
		o.Log.Warn("no explanation from a scaler", "fn", f.Name(), "err", err)
		WriteJSON(w, knownOf(f))
		return
	}
	rawJSON(w, answer.GetJson())
}

// readScale reads and checks what an operator asks for.
func readScale(r *http.Request, f *replica.Function, most int) (replicas int32, lasts time.Duration, err error) {
	data, err := io.ReadAll(io.LimitReader(r.Body, maxScaleBody+1))
	if err != nil || len(data) > maxScaleBody {
		return 0, 0, fmt.Errorf("the body is a JSON object of at most %d bytes", maxScaleBody)
	}
	var asked scaleRequest
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&asked); err != nil {
		return 0, 0, fmt.Errorf(`the body is {"Replicas":n,"ForSeconds":60}: %w`, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return 0, 0, errors.New("there is something behind the JSON object")
	}
	if asked.Replicas == nil {
		return 0, 0, errors.New("Replicas is missing") //nolint:staticcheck // the member's name, for the caller
	}
	lasts = defaultScaleFor
	if asked.ForSeconds != nil {
		if *asked.ForSeconds < 1 || *asked.ForSeconds > int64(maxScaleFor/time.Second) {
			return 0, 0, fmt.Errorf("ForSeconds is %d, from 1 to %d is possible", *asked.ForSeconds, int64(maxScaleFor/time.Second))
		}
		lasts = time.Duration(*asked.ForSeconds) * time.Second
	}
	spec := f.Spec()
	least, limit := spec.ReplicasMin, "any number"
	if spec.Scale != nil && spec.Scale.ReplicaMax != nil {
		most = *spec.Scale.ReplicaMax
	}
	if most > 0 {
		limit = strconv.Itoa(most)
	}
	if n := int(*asked.Replicas); n < max(least, 0) || most > 0 && n > most {
		return 0, 0, fmt.Errorf("Replicas is %d, from %d (ReplicasMin) to %s is possible for %s", n, least, limit, f.Name()) //nolint:staticcheck // as above
	}
	return *asked.Replicas, lasts, nil
}

// clusterStatus is the object of /cluster.
type clusterStatus struct {
	Installation string
	Queue        clusterQueue
	Scaler       clusterScaler
	Edges        []clusterEdge // null: could not be read
}

type clusterQueue struct {
	Node         string // that answered
	Leader       string // empty: none known
	Term         uint64
	AppliedIndex uint64
	CommitIndex  uint64
	Members      []clusterMember
}

type clusterMember struct {
	Name        string
	RaftAddress string
	APIAddress  string `json:"ApiAddress"`
	Voter       bool
}

type clusterScaler struct {
	Leader string // empty: none holds the lock, or it could not be read
	Epoch  uint64 // of the table this edge has
}

type clusterEdge struct {
	Name    string
	Session uint64
	Address string
}

func (o Operator) cluster(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), queueWithin)
	defer cancel()
	c, err := o.Cluster(ctx)
	if err != nil {
		o.Log.Warn("reading the cluster", "err", err)
		problem.Write(w, problem.FromCode(wire.Code_CODE_UNAVAILABLE, "No queue node answered. Sync calls to replicas that run go on without the queue."))
		return
	}
	s := clusterStatus{
		Installation: c.GetInstallation(),
		Queue: clusterQueue{
			Node: c.GetNode(), Leader: c.GetLeader(), Term: c.GetTerm(),
			AppliedIndex: c.GetAppliedIndex(), CommitIndex: c.GetCommitIndex(), Members: []clusterMember{},
		},
		Scaler: clusterScaler{Epoch: o.Digest().GetVersion().GetEpoch()},
	}
	for _, m := range c.GetMembers() {
		s.Queue.Members = append(s.Queue.Members, clusterMember{Name: m.GetName(), RaftAddress: m.GetRaftAddress(), APIAddress: m.GetApiAddress(), Voter: m.GetVoter()})
	}
	// Without a leader sessions and locks cannot be read; the members still tell something.
	if facts, err := o.Facts(ctx); err != nil {
		o.Log.Warn("reading sessions and locks", "err", err)
	} else {
		s.Edges = []clusterEdge{}
		for _, x := range facts.GetSessions() {
			if x.GetKind() == wire.SessionKind_SESSION_KIND_EDGE && !x.GetVanished() && x.GetEndedUnixMs() == 0 {
				s.Edges = append(s.Edges, clusterEdge{Name: x.GetName(), Session: x.GetId(), Address: x.GetAddress()})
			}
		}
		for _, l := range facts.GetLocks() {
			if l.GetName() == wire.ScalerLock {
				s.Scaler.Leader = l.GetHolder()
			}
		}
	}
	WriteJSON(w, s)
}

// rawJSON answers 200 with JSON another program made.
func rawJSON(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, _ = w.Write(body) // the caller is gone when this fails
}
