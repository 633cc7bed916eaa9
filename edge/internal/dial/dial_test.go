package dial

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/testkit"
)

func TestAddressesNoFunctionHasAreRefused(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"169.254.169.254:80", "[fe80::1]:80", "224.0.0.1:80", "0.0.0.0:80", "[::]:80", "[::ffff:169.254.169.254]:80"} {
		conn, err := Context(t.Context(), "tcp", address)
		var refused *Error
		if !errors.As(err, &refused) {
			t.Errorf("%s: %v, %v", address, conn, err)
		}
	}
}

func TestAListenerThatIsFullIsDialledAgain(t *testing.T) {
	t.Parallel()
	listener, free := testkit.FullListener(t)
	_, err := Context(t.Context(), "tcp", listener.Addr().String())
	var dialing *Error
	if !errors.As(err, &dialing) || !dialing.Timeout() {
		t.Fatalf("a full listener: %v", err)
	}
	time.AfterFunc(2*Timeout, free)
	conn, err := Patiently(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	if _, err := Patiently(ctx, "tcp", listener.Addr().String()); !errors.Is(err, context.Canceled) || time.Since(began) > AgainFor/2 {
		t.Errorf("cancelled: %v after %v", err, time.Since(began))
	}
}

func TestNothingIsWrittenToAnIdleConnectionThatTheFunctionClosed(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	far := make(chan net.Conn, 1)
	go func() {
		if conn, err := listener.Accept(); err == nil {
			far <- conn
		}
	}()
	near, err := Context(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	conn, function := near.(*Conn), <-far
	unsent := conn.Request(false)
	if _, err := conn.Write([]byte("first")); err != nil || unsent() {
		t.Fatalf("first request: %v, unsent %v", err, unsent())
	}
	buf := make([]byte, 5)
	if _, err := function.Read(buf); err != nil {
		t.Fatal(err)
	}
	if unsent = conn.Request(true); unsent() != true {
		t.Fatal("nothing written yet, and not unsent")
	}
	_ = function.Close()
	if _, err := conn.Conn.Read(buf); err == nil { // the end of the stream has arrived
		t.Fatal("read something")
	}
	if _, err := conn.Write([]byte("second")); !errors.Is(err, ErrIdleClosed) || !unsent() {
		t.Fatalf("second request: %v, unsent %v", err, unsent())
	}
}
