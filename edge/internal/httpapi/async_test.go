package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/edge/internal/httpapi"
	"github.com/slimfaas/slimfaas/edge/internal/message"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// largest body that these tests' edge takes, in bytes.
const largest = 3 << 20

const callID = "01990000-0000-7000-8000-00000000abcd"

// refusal is an accept that has no yes to give.
type refusal struct {
	code    wire.Code
	unknown bool
}

func (r refusal) Error() string   { return "made up" }
func (r refusal) ID() string      { return callID }
func (r refusal) Code() wire.Code { return r.code }
func (r refusal) Unknown() bool   { return r.unknown }

// asyncBundle is the surface with a queue the test plays.
type asyncBundle struct {
	*bundle
	accepted []*wire.StoredRequest
	options  message.CallOptions // of the last accept
	names    []string
	refuse   error
	hold     func() // called under an accept
	ops      []*wire.Op
	result   *wire.OpResult
	doErr    error
	asked    *wire.GetCallRequest
	call     *wire.Call
	callErr  error
	answer   *wire.StoredAnswer
	streamed int64 // bytes of the last large body
}

func setupAsync(t *testing.T) *asyncBundle {
	t.Helper()
	b := &asyncBundle{bundle: setup(t), result: &wire.OpResult{Code: wire.Code_CODE_OK}}
	b.api.MaxBody = 10 << 20
	b.api.HandleAsync(httpapi.Async{
		Accept: func(_ context.Context, function string, request *wire.StoredRequest, o message.CallOptions) (string, error) {
			b.options = o
			if b.hold != nil {
				b.hold()
				return callID, nil
			}
			if b.refuse != nil {
				return "", b.refuse
			}
			b.names, b.accepted = append(b.names, function), append(b.accepted, request)
			return callID, nil
		},
		AcceptLarge: func(_ context.Context, _ string, request *wire.StoredRequest, body *message.Rest, _ message.CallOptions) (string, error) {
			if b.hold != nil {
				b.hold()
				return callID, nil
			}
			n, err := io.Copy(io.Discard, body)
			if err != nil {
				return "", fmt.Errorf("reading it: %w", err)
			}
			if b.refuse != nil {
				return "", b.refuse
			}
			b.accepted, b.streamed = append(b.accepted, request), n
			return callID, nil
		},
		Do: func(_ context.Context, op *wire.Op) (*wire.OpResult, error) {
			b.ops = append(b.ops, op)
			return b.result, b.doErr
		},
		GetCall: func(_ context.Context, r *wire.GetCallRequest) (*wire.GetCallResponse, error) {
			b.asked = r
			return &wire.GetCallResponse{Call: b.call}, b.callErr
		},
		GetResult: func(context.Context, *wire.GetResultRequest) (*wire.GetResultResponse, error) {
			r := &wire.GetResultResponse{Call: b.call}
			if b.answer != nil {
				r.Answer, _ = proto.Marshal(b.answer)
			}
			return r, b.callErr
		},
		Budget: message.NewBudget(4, 8<<20), Uploads: message.NewBudget(2, 0), MaxBody: largest, Log: slog.New(slog.DiscardHandler),
	})
	return b
}

// elementID reads the header in the case it is sent in, which old clients compare.
func elementID(w *httptest.ResponseRecorder) string {
	return strings.Join(map[string][]string(w.Header())[message.HeaderElementID], ",")
}

// wantProblem checks an error answer of ours.
func wantProblem(t *testing.T, what string, w *httptest.ResponseRecorder, status int) map[string]any {
	t.Helper()
	var p map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != status || w.Header().Get("Content-Type") != "application/problem+json" ||
		p["status"] != float64(status) || !strings.HasPrefix(p["type"].(string), "urn:slimfaas:") || p["detail"] == "" {
		t.Errorf("%s: status %d, want %d; %s %s", what, w.Code, status, w.Header().Get("Content-Type"), w.Body)
	}
	return p
}

func TestAsyncCallIsTakenWhole(t *testing.T) {
	t.Parallel()
	b := setupAsync(t)
	for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"} {
		r := httptest.NewRequest(method, "/ASYNC-function/fibonacci/a%2Fb/?x=%20", strings.NewReader("the body"))
		r.RemoteAddr = outsider
		r.Header.Set("Accept", "text/x")
		r.Header.Set("Slimfaas-Element-Id", "forged")
		w := httptest.NewRecorder()
		b.api.Public().ServeHTTP(w, r)
		if w.Code != http.StatusAccepted || elementID(w) != callID || w.Body.Len() != 0 {
			t.Fatalf("%s: %d %v %s", method, w.Code, w.Header(), w.Body)
		}
		got := b.accepted[len(b.accepted)-1]
		if got.GetMethod() != method || got.GetPath() != "/a%2Fb/" || got.GetQuery() != "x=%20" || string(got.GetBody()) != "the body" {
			t.Errorf("%s: stored %v", method, got)
		}
		headers := map[string]string{}
		for _, h := range got.GetHeaders() {
			headers[h.GetName()] = strings.Join(h.GetValues(), "|")
		}
		if headers["Accept"] != "text/x" || headers["X-Forwarded-For"] != "203.0.113.5" || headers["Slimfaas-Element-Id"] != "" {
			t.Errorf("%s: headers %v", method, headers)
		}
	}
}

func TestAsyncFollowsTheRulesOfSync(t *testing.T) {
	t.Parallel()
	b := setupAsync(t)
	for target, want := range map[string]int{
		"/async-function/fibonacci/x": 202, "/async-function/fibonacci": 202, "/async-function/fibonacci/private": 404, "/async-function/fibonacci//PRIVATE/x": 404,
		"/async-function/fibonacci/%61dmin": 404, "/async-function/secret/x": 404, "/async-function/wrong": 404,
	} {
		if got := do(b.api.Public(), outsider, "POST", target); got.Code != want {
			t.Errorf("%s from outside: %d, want %d", target, got.Code, want)
		}
	}
	if got := do(b.api.Public(), insider, "POST", "/async-function/secret/x"); got.Code != 202 {
		t.Errorf("from inside: %d", got.Code)
	}
}

func TestOutcomesAreTold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err     error
		status  int
		outcome string
		retry   bool
	}{
		"none":         {refusal{wire.Code_CODE_UNAVAILABLE, false}, 503, "none", true},
		"unknown":      {refusal{wire.Code_CODE_UNKNOWN, true}, 503, "unknown", true},
		"a bug there":  {refusal{wire.Code_CODE_INTERNAL, true}, 503, "unknown", true},
		"full":         {refusal{wire.Code_CODE_FULL, false}, 429, "none", true},
		"too large":    {refusal{wire.Code_CODE_TOO_LARGE, false}, 413, "none", false},
		"not accepted": {refusal{wire.Code_CODE_INVALID, false}, 500, "none", false},
	} {
		b := setupAsync(t)
		b.refuse = c.err
		w := do(b.api.Public(), outsider, "POST", "/async-function/fibonacci")
		p := wantProblem(t, name, w, c.status)
		if p["outcome"] != c.outcome || w.Header().Get("Outcome") != c.outcome || (w.Header().Get("Retry-After") != "") != c.retry {
			t.Errorf("%s: outcome %v, headers %v", name, p["outcome"], w.Header())
		}
		if id := elementID(w); (c.outcome == "unknown") != (id == callID) {
			t.Errorf("%s: id %v", name, id)
		}
	}
	b := setupAsync(t)
	b.refuse = io.ErrUnexpectedEOF
	wantProblem(t, "no id was minted", do(b.api.Public(), outsider, "POST", "/async-function/fibonacci"), 500)
}

func TestAsyncOptionsAreHeard(t *testing.T) {
	t.Parallel()
	b := setupAsync(t)
	w := do(b.api.Public(), outsider, "POST", "/async-function/fibonacci",
		"Idempotency-Key: order 17", "SlimFaas-Delay: 90s", "slimfaas-max-age: 3600", "SlimFaas-Keep-Result: 1h30m")
	want := message.CallOptions{Delay: 90 * time.Second, MaxAge: time.Hour, KeepResult: 90 * time.Minute, Key: "order 17"}
	if w.Code != 202 || b.options != want {
		t.Errorf("%d, options %+v", w.Code, b.options)
	}
	for _, h := range b.accepted[0].GetHeaders() { // the key is the function's to see, the rest is ours
		if strings.HasPrefix(strings.ToLower(h.GetName()), "slimfaas-") {
			t.Errorf("the function would get %s", h.GetName())
		}
	}
	do(b.api.Public(), outsider, "POST", "/async-function/fibonacci")
	if b.options != (message.CallOptions{}) {
		t.Errorf("nothing asked for: %+v", b.options)
	}
	taken := len(b.accepted)
	for _, bad := range []string{
		"Idempotency-Key: ", "Idempotency-Key: " + strings.Repeat("k", 201), "Idempotency-Key: a\r\nIdempotency-Key: b",
		"SlimFaas-Delay: soon", "SlimFaas-Delay: -1s", "SlimFaas-Delay: 721h", "SlimFaas-Max-Age: 0", "SlimFaas-Max-Age: 8761h",
		"SlimFaas-Keep-Result: 0s", "SlimFaas-Keep-Result: 169h", "SlimFaas-Delay: 1s\r\nSlimFaas-Delay: 2s",
	} {
		name, _, _ := strings.Cut(bad, ":")
		p := wantProblem(t, bad, do(b.api.Public(), outsider, "POST", "/async-function/fibonacci", bad), 400)
		if detail, _ := p["detail"].(string); !strings.Contains(detail, name) {
			t.Errorf("%s is not named: %v", name, p["detail"])
		}
	}
	if len(b.accepted) != taken {
		t.Error("something was enqueued")
	}
	b.refuse = refusal{code: wire.Code_CODE_CONFLICT}
	if p := wantProblem(t, "key reused", do(b.api.Public(), outsider, "POST", "/async-function/fibonacci", "Idempotency-Key: k"), 422); p["outcome"] != "none" {
		t.Errorf("%v", p)
	}
	b.refuse = refusal{code: wire.Code_CODE_FULL}
	w = do(b.api.Public(), outsider, "POST", "/async-function/fibonacci", "Idempotency-Key: k")
	if p := wantProblem(t, "full of keys", w, 429); !strings.Contains(p["detail"].(string), "Idempotency-Key") || w.Header().Get("Retry-After") == "" {
		t.Errorf("%v %v", p, w.Header())
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	b := setupAsync(t)
	cancel := func(peer string) *httptest.ResponseRecorder {
		return do(b.api.Public(), peer, "DELETE", "/async-calls/"+callID)
	}
	wantProblem(t, "unknown", cancel(outsider), 404)
	wantProblem(t, "no id", do(b.api.Public(), outsider, "DELETE", "/async-calls/17"), 404)
	b.call = &wire.Call{Function: "secret"}
	wantProblem(t, "of a private function, from outside", cancel(outsider), 404)
	if len(b.ops) != 0 {
		t.Fatal("the queue was asked to cancel what the caller may not see")
	}
	b.call.Function = "fibonacci"
	if w := cancel(outsider); w.Code != 204 || len(b.ops) != 1 || b.ops[0].GetCancel() == nil {
		t.Errorf("%d, %v", w.Code, b.ops)
	}
	for code, status := range map[wire.Code]int{wire.Code_CODE_CONFLICT: 409, wire.Code_CODE_NOT_FOUND: 404, wire.Code_CODE_INVALID: 500} {
		b.result = &wire.OpResult{Code: code}
		wantProblem(t, code.String(), cancel(outsider), status)
	}
	b.doErr = errors.New("gone")
	wantProblem(t, "not confirmed", cancel(outsider), 503)
	b.callErr = errors.New("gone")
	wantProblem(t, "queue away", cancel(outsider), 503)
}

func TestResult(t *testing.T) {
	t.Parallel()
	b := setupAsync(t)
	result := func(peer string) *httptest.ResponseRecorder {
		return do(b.api.Public(), peer, "GET", "/async-calls/"+callID+"/result")
	}
	wantProblem(t, "unknown", result(outsider), 404)
	b.call = &wire.Call{Function: "fibonacci", State: wire.CallState_CALL_STATE_RUNNING}
	wantProblem(t, "while it runs", result(outsider), 409)
	b.call.State, b.call.FinishedUnixMs = wire.CallState_CALL_STATE_SUCCEEDED, 1
	wantProblem(t, "not kept", result(outsider), 404)
	b.answer = &wire.StoredAnswer{Status: 203, Headers: []*wire.Header{{Name: "X-A", Values: []string{"1", "2"}}}, Body: []byte("hello")}
	w := result(outsider)
	if w.Code != 203 || w.Body.String() != "hello" || strings.Join(w.Header()["X-A"], ",") != "1,2" || len(w.Header()["Content-Type"]) != 0 {
		t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
	}
	b.answer.Status = 204
	if w := result(outsider); w.Code != 204 || w.Body.Len() != 0 {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	b.answer = &wire.StoredAnswer{Status: 200, Omitted: "it was larger"}
	if p := wantProblem(t, "omitted", result(outsider), 404); !strings.Contains(p["detail"].(string), "it was larger") {
		t.Errorf("%v", p)
	}
	b.call.Function = "secret"
	wantProblem(t, "of a private function, from outside", result(outsider), 404)
	b.callErr = errors.New("gone")
	wantProblem(t, "queue away", result(outsider), 503)
}

func TestAsyncBodiesAreBounded(t *testing.T) {
	t.Parallel()
	b := setupAsync(t)
	send := func(size int, chunked bool) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/async-function/fibonacci", io.LimitReader(zeros{}, int64(size)))
		r.RemoteAddr = outsider
		if r.ContentLength = int64(size); chunked {
			r.ContentLength = -1
		}
		w := httptest.NewRecorder()
		b.api.Public().ServeHTTP(w, r)
		return w
	}
	for _, chunked := range []bool{false, true} {
		if w := send(1<<20, chunked); w.Code != 202 || b.streamed != 0 || len(b.accepted[len(b.accepted)-1].GetBody()) != 1<<20 {
			t.Errorf("1 MiB, chunked %v: %d %s, %d streamed", chunked, w.Code, w.Body, b.streamed)
		}
		for _, size := range []int{1<<20 + 1, largest} {
			if w := send(size, chunked); w.Code != 202 || elementID(w) != callID || b.streamed != int64(size) || len(b.accepted[len(b.accepted)-1].GetBody()) != 0 {
				t.Errorf("%d bytes, chunked %v: %d %s, %d streamed", size, chunked, w.Code, w.Body, b.streamed)
			}
			b.streamed = 0
		}
		w := send(largest+1, chunked)
		wantProblem(t, "one byte more", w, 413)
		if w.Header().Get("Connection") != "close" {
			t.Error("the rest of the body would be read")
		}
	}
}

// What a large body comes to is said as for a small one, and its rest is not read.
func TestALargeBodyIsRefusedInWords(t *testing.T) {
	t.Parallel()
	b := setupAsync(t)
	send := func(from io.Reader) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/async-function/fibonacci", from)
		r.RemoteAddr, r.ContentLength = outsider, 2<<20
		w := httptest.NewRecorder()
		b.api.Public().ServeHTTP(w, r)
		return w
	}
	two := func() io.Reader { return io.LimitReader(zeros{}, 2<<20) }
	for _, c := range []struct {
		refusal
		status  int
		outcome string
	}{
		{refusal{wire.Code_CODE_FULL, false}, 429, "none"}, {refusal{wire.Code_CODE_UNAVAILABLE, false}, 503, "none"}, {refusal{wire.Code_CODE_UNKNOWN, true}, 503, "unknown"},
	} {
		b.refuse = c.refusal
		w := send(two())
		if p := wantProblem(t, "refused", w, c.status); p["outcome"] != c.outcome || w.Header().Get("Retry-After") == "" || w.Header().Get("Connection") != "close" {
			t.Errorf("%v: %v %v", c.refusal, p, w.Header())
		}
	}
	b.refuse = nil
	wantProblem(t, "broken off", send(io.MultiReader(strings.NewReader("begin"), iotest.ErrReader(io.ErrUnexpectedEOF))), 400)

	release, under := make(chan struct{}), make(chan struct{}, 2)
	b.hold = func() {
		under <- struct{}{}
		<-release
	}
	var uploads sync.WaitGroup
	for range 2 {
		uploads.Go(func() {
			if w := send(two()); w.Code != 202 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
		<-under
	}
	w := send(iotest.ErrReader(errors.New("nobody is to read this")))
	if p := wantProblem(t, "a third upload of two", w, 503); p["outcome"] != "none" || w.Header().Get("Retry-After") == "" || w.Header().Get("Connection") != "close" {
		t.Errorf("%v %v", p, w.Header())
	}
	close(release)
	uploads.Wait()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestAFullEdgeTakesNoMore(t *testing.T) {
	t.Parallel()
	b := setupAsync(t)
	release, under := make(chan struct{}), make(chan struct{}, 4)
	b.hold = func() {
		under <- struct{}{}
		<-release
	}
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			if w := do(b.api.Public(), outsider, "POST", "/async-function/fibonacci"); w.Code != 202 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
		<-under
	}
	w := do(b.api.Public(), outsider, "POST", "/async-function/fibonacci")
	if p := wantProblem(t, "a fifth of four", w, 429); p["outcome"] != "none" || w.Header().Get("Retry-After") == "" {
		t.Errorf("%v %v", p, w.Header())
	}
	close(release)
	calls.Wait()
	b.hold = nil
	if w := do(b.api.Public(), outsider, "POST", "/async-function/fibonacci"); w.Code != 202 {
		t.Errorf("afterwards: %d", w.Code)
	}
}

func TestCallback(t *testing.T) {
	t.Parallel()
	const path = "/async-function-callback/fibonacci/" + callID
	b := setupAsync(t)
	for status, want := range map[string]bool{"success": true, "Success": true, "SUCCESS": true, "error": false, "anything": false} {
		w := do(b.api.Public(), outsider, "POST", path+"/"+status)
		c := b.ops[len(b.ops)-1].GetCallback()
		if w.Code != 200 || w.Body.Len() != 0 || c.GetSuccess() != want || c.GetFunction() != "fibonacci" || message.ID(c.GetId()).String() != callID {
			t.Errorf("%s: %d %s, %v", status, w.Code, w.Body, c)
		}
	}
	for _, code := range []wire.Code{wire.Code_CODE_NOT_FOUND, wire.Code_CODE_STALE, wire.Code_CODE_CONFLICT} {
		b.result = &wire.OpResult{Code: code}
		if w := do(b.api.Public(), outsider, "POST", path+"/success"); w.Code != 200 {
			t.Errorf("%v: %d", code, w.Code)
		}
	}
	b.result = &wire.OpResult{Code: wire.Code_CODE_UNAVAILABLE}
	wantProblem(t, "queue refuses", do(b.api.Public(), outsider, "POST", path+"/success"), 503)
	b.doErr = errors.New("gone")
	wantProblem(t, "queue away", do(b.api.Public(), outsider, "POST", path+"/success"), 503)
	asked := len(b.ops)
	wantProblem(t, "no id", do(b.api.Public(), outsider, "POST", "/async-function-callback/fibonacci/1/success"), 400)
	wantProblem(t, "wrong method", do(b.api.Public(), outsider, "GET", path+"/success"), 405)
	wantProblem(t, "private", do(b.api.Public(), outsider, "POST", "/async-function-callback/secret/"+callID+"/success"), 404)
	wantProblem(t, "unknown function", do(b.api.Public(), outsider, "POST", "/async-function-callback/wrong/"+callID+"/success"), 404)
	if len(b.ops) != asked {
		t.Error("the queue was asked for what is refused here")
	}
}

func TestAsyncCallStatus(t *testing.T) {
	t.Parallel()
	b := setupAsync(t)
	get := func(peer, query string) *httptest.ResponseRecorder {
		return do(b.api.Public(), peer, "GET", "/async-calls/"+callID+query)
	}
	wantProblem(t, "unknown", get(outsider, ""), 404)
	wantProblem(t, "no id", do(b.api.Public(), outsider, "GET", "/async-calls/17"), 404)

	at := time.Date(2026, 2, 3, 4, 5, 6, 7_000_000, time.UTC).UnixMilli()
	b.call = &wire.Call{Function: "fibonacci", State: wire.CallState_CALL_STATE_AWAITING, Tries: 1, MaxTries: 4, EnqueuedUnixMs: at, StartedUnixMs: at + 1000}
	w := get(outsider, "")
	want := `{"Id":"` + callID + `","Function":"fibonacci","State":"Running","Tries":1,"MaxTries":4,"EnqueuedAt":"2026-02-03T04:05:06.007Z","StartedAt":"2026-02-03T04:05:07.007Z","NextTryAt":null,"FinishedAt":null,"LastStatus":null,"LastError":null}`
	if w.Code != 200 || w.Body.String() != want {
		t.Errorf("%d\n%s\nwant\n%s", w.Code, w.Body, want)
	}
	for state, name := range map[wire.CallState]string{
		wire.CallState_CALL_STATE_QUEUED: "Queued", wire.CallState_CALL_STATE_RUNNING: "Running", wire.CallState_CALL_STATE_WAITING: "Waiting",
		wire.CallState_CALL_STATE_SUCCEEDED: "Succeeded", wire.CallState_CALL_STATE_DEAD: "Dead", wire.CallState_CALL_STATE_CANCELLED: "Cancelled",
	} {
		b.call.State, b.call.LastStatus, b.call.LastError, b.call.NextTryUnixMs, b.call.FinishedUnixMs = state, 503, "status 503", at, at
		var got map[string]any
		if err := json.Unmarshal(get(outsider, "").Body.Bytes(), &got); err != nil || got["State"] != name || got["LastStatus"] != 503.0 ||
			got["LastError"] != "status 503" || got["NextTryAt"] == nil || got["FinishedAt"] == nil {
			t.Errorf("%v: %v", state, got)
		}
	}
	for query, want := range map[string]uint64{"": 0, "?wait=30s": 30_000, "?wait=500ms": 500, "?wait=7": 7000, "?wait=5m": 60_000, "?wait=0": 0} {
		if got := get(outsider, query); got.Code != 200 || b.asked.GetWaitMs() != want {
			t.Errorf("%q: %d, waits %d ms, want %d", query, got.Code, b.asked.GetWaitMs(), want)
		}
	}
	for _, query := range []string{"?wait=soon", "?wait=-1s", "?wait=%zz"} {
		wantProblem(t, query, get(outsider, query), 400)
	}
	b.call.Function = "secret"
	wantProblem(t, "of a private function, from outside", get(outsider, ""), 404)
	if got := get(insider, ""); got.Code != 200 {
		t.Errorf("of a private function, from inside: %d", got.Code)
	}
	b.call.Function = "forgotten"
	wantProblem(t, "of a function that is gone, from outside", get(outsider, ""), 404)
	b.callErr = errors.New("gone")
	wantProblem(t, "queue away", get(outsider, ""), 503)
}
