// Command peer is what the queue is measured against: one process of a NATS cluster with JetStream on files, or a plain
// net/http server that publishes what it receives to a stream (as OpenFaaS's gateway does).
//
//	peer server  NAME DIR CLIENT-PORT ROUTE-PORT ALL-ROUTE-PORTS always|default
//	peer gateway ADDRESS NATS-URL
//
// It prints "ready" when it serves and ends on SIGTERM.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const maxBody = 1 << 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := errors.New("usage: peer server|gateway …")
	switch {
	case len(os.Args) == 8 && os.Args[1] == "server":
		err = serve(ctx, os.Args[2:])
	case len(os.Args) == 4 && os.Args[1] == "gateway":
		err = gateway(ctx, os.Args[2], os.Args[3])
	}
	if err != nil {
		log.Fatal(err)
	}
}

// serve runs one member until ctx ends.
func serve(ctx context.Context, args []string) error {
	clientPort, err := strconv.Atoi(args[2])
	if err != nil {
		return fmt.Errorf("reading the client port: %w", err)
	}
	routePort, err := strconv.Atoi(args[3])
	if err != nil {
		return fmt.Errorf("reading the route port: %w", err)
	}
	options := &server.Options{
		ServerName: args[0], Host: "127.0.0.1", Port: clientPort, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: args[1], SyncAlways: args[5] == "always",
		Cluster: server.ClusterOpts{Name: "peer", Host: "127.0.0.1", Port: routePort},
	}
	for port := range strings.SplitSeq(args[4], ",") {
		options.Routes = append(options.Routes, &url.URL{Scheme: "nats", Host: "127.0.0.1:" + port})
	}
	s, err := server.NewServer(options)
	if err != nil {
		return fmt.Errorf("making the server: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		return errors.New("not ready for connections after 10 s")
	}
	fmt.Println("ready")
	<-ctx.Done()
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

// gateway takes POST /async-function/NAME/…, publishes method, path, query, headers and body to calls.NAME, and answers 202 when
// the stream has acknowledged it.
func gateway(ctx context.Context, address, natsURL string) error {
	conn, err := nats.Connect(natsURL, nats.MaxReconnects(-1))
	if err != nil {
		return fmt.Errorf("connecting to NATS: %w", err)
	}
	defer conn.Close()
	stream, err := conn.JetStream()
	if err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, "/async-function/")
		if !ok {
			http.NotFound(w, r)
			return
		}
		name, path, _ := strings.Cut(rest, "/")
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			http.Error(w, "body", http.StatusBadRequest)
			return
		}
		header := make(nats.Header, len(r.Header)+3)
		for k, v := range r.Header {
			header[k] = v
		}
		header["X-Method"], header["X-Path"], header["X-Query"] = []string{r.Method}, []string{path}, []string{r.URL.RawQuery}
		if _, err := stream.PublishMsg(&nats.Msg{Subject: "calls." + name, Header: header, Data: body}); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	s := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- s.ListenAndServe() }()
	fmt.Println("ready") // whoever dials retries for a moment
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return s.Close()
	}
}
