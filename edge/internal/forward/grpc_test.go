package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type text = wrapperspb.StringValue

// talker is a gRPC service of all four kinds.
func talker() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/t.T/Unary", connect.NewUnaryHandler("/t.T/Unary", func(_ context.Context, r *connect.Request[text]) (*connect.Response[text], error) {
		if r.Msg.GetValue() == "fail" {
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("as asked"))
		}
		answer := connect.NewResponse(wrapperspb.String("hello " + r.Msg.GetValue() + r.Header().Get("X-Forwarded-Prefix")))
		answer.Trailer().Set("X-Late", "1")
		return answer, nil
	}))
	mux.Handle("/t.T/Down", connect.NewServerStreamHandler("/t.T/Down", func(_ context.Context, r *connect.Request[text], s *connect.ServerStream[text]) error {
		for i := range 3 {
			if err := s.Send(wrapperspb.String(fmt.Sprint(r.Msg.GetValue(), i))); err != nil {
				return err
			}
		}
		return nil
	}))
	mux.Handle("/t.T/Up", connect.NewClientStreamHandler("/t.T/Up", func(_ context.Context, s *connect.ClientStream[text]) (*connect.Response[text], error) {
		all := ""
		for s.Receive() {
			all += s.Msg().GetValue()
		}
		return connect.NewResponse(wrapperspb.String(all)), s.Err()
	}))
	mux.Handle("/t.T/Both", connect.NewBidiStreamHandler("/t.T/Both", func(_ context.Context, s *connect.BidiStream[text, text]) error {
		for {
			m, err := s.Receive()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := s.Send(wrapperspb.String("echo " + m.GetValue())); err != nil {
				return err
			}
		}
	}))
	return mux
}

// overHTTP2 is a client of the bundle that speaks h2c.
func overHTTP2(t *testing.T) *http.Client {
	t.Helper()
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &p}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestGRPCOfAllFourKinds(t *testing.T) {
	t.Parallel()
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	function := httptest.NewUnstartedServer(talker())
	function.Config.Protocols = &p
	function.Start()
	defer function.Close()
	b := setup(t, function.Listener.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	call := func(method string) *connect.Client[text, text] {
		return connect.NewClient[text, text](overHTTP2(t), b.url+"/function/fib/t.T/"+method, connect.WithGRPC())
	}

	answer, err := call("Unary").CallUnary(ctx, connect.NewRequest(wrapperspb.String("you")))
	if err != nil || answer.Msg.GetValue() != "hello you" || answer.Trailer().Get("X-Late") != "1" {
		t.Errorf("unary: %v, %v", answer, err)
	}
	if _, err := call("Unary").CallUnary(ctx, connect.NewRequest(wrapperspb.String("fail"))); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("an error of the function came as %v", err)
	}

	down, err := call("Down").CallServerStream(ctx, connect.NewRequest(wrapperspb.String("n")))
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for down.Receive() {
		got += down.Msg().GetValue()
	}
	if down.Err() != nil || got != "n0n1n2" {
		t.Errorf("server stream: %q, %v", got, down.Err())
	}
	_ = down.Close()

	up := call("Up").CallClientStream(ctx)
	for _, part := range []string{"a", "b", "c"} {
		if err := up.Send(wrapperspb.String(part)); err != nil {
			t.Fatal(err)
		}
	}
	if answer, err := up.CloseAndReceive(); err != nil || answer.Msg.GetValue() != "abc" {
		t.Errorf("client stream: %v, %v", answer, err)
	}

	both := call("Both").CallBidiStream(ctx)
	for _, part := range []string{"a", "b"} { // each answer before the next question
		if err := both.Send(wrapperspb.String(part)); err != nil {
			t.Fatal(err)
		}
		if m, err := both.Receive(); err != nil || m.GetValue() != "echo "+part {
			t.Fatalf("both: %v, %v", m, err)
		}
	}
	if err := both.CloseRequest(); err != nil {
		t.Error(err)
	}
	if _, err := both.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("both ended with %v", err)
	}
	_ = both.CloseResponse()
	b.idle(t)
}

// A gRPC call of a function that speaks HTTP/1 only ends with an error of ours, and nothing hangs.
func TestGRPCToAFunctionThatDoesNotSpeakItIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, serve(t, func(http.ResponseWriter, *http.Request) {}))
	client := connect.NewClient[text, text](overHTTP2(t), b.url+"/function/fib/t.T/Unary", connect.WithGRPC())
	if _, err := client.CallUnary(t.Context(), connect.NewRequest(wrapperspb.String("you"))); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("%v", err)
	}
	b.idle(t)
}
