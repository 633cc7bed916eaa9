package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// commands are requests to the internal listener of the edge on this machine: whoever may run a program beside it is internal.
var commands = map[string]struct {
	method, path string // path ends with a slash where a function's name follows
}{
	"explain": {http.MethodGet, "/explain/"},
	"wake":    {http.MethodPost, "/wake-function/"},
	"status":  {http.MethodGet, "/status-functions"},
	"cluster": {http.MethodGet, "/cluster"},
}

const askTimeout = 10 * time.Second

// ask carries out one of commands against the internal listener at addr and prints the answer.
func ask(ctx context.Context, addr, command string, args []string, out io.Writer) error {
	c := commands[command]
	path := c.path
	if strings.HasSuffix(path, "/") {
		if len(args) != 1 {
			return fmt.Errorf("edge %s: expected the name of one function", command)
		}
		path += url.PathEscape(args[0])
	} else if len(args) != 0 {
		return fmt.Errorf("edge %s: expected nothing more", command)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("reading EDGE_INTERNAL_ADDRESS=%q: %w", addr, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, c.method, "http://"+net.JoinHostPort(host, port)+path, nil)
	if err != nil {
		return fmt.Errorf("asking the edge: %w", err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return fmt.Errorf("asking the edge: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("reading the edge's answer: %w", err)
	}
	var pretty bytes.Buffer
	if json.Indent(&pretty, body, "", "  ") == nil {
		body = pretty.Bytes()
	}
	if len(body) > 0 {
		fmt.Fprintf(out, "%s\n", body)
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("the edge answered %s", resp.Status)
	}
	return nil
}
