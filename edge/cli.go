package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// The client's environment.
const (
	urlVariable = "SLIMFAAS_URL"
	keyVariable = "SLIMFAAS_API_KEY"
)

// asking are the commands that print the answer to one request.
var asking = map[string]struct {
	method, path string // path ends with a slash where a function's name follows
}{
	"explain": {http.MethodGet, "/explain/"},
	"wake":    {http.MethodPost, "/wake-function/"},
	"status":  {http.MethodGet, "/status-functions"},
	"cluster": {http.MethodGet, "/cluster"},
}

const askTimeout = 10 * time.Second

// client is this binary as a client of an edge.
type client struct {
	base string // http://host:port
	key  string
	out  io.Writer
	http *http.Client
}

// newClient asks the edge at SLIMFAAS_URL, else the one on this machine by its internal listener: whoever may run a program beside
// it is internal.
func newClient(internal string, environ []string, out io.Writer) (*client, error) {
	c := &client{out: out, http: &http.Client{
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, line := range environ {
		name, value, _ := strings.Cut(line, "=")
		switch name {
		case urlVariable:
			c.base = strings.TrimRight(value, "/")
		case keyVariable:
			c.key = value
		}
	}
	if c.base == "" {
		host, port, err := net.SplitHostPort(internal)
		if err != nil {
			return nil, fmt.Errorf("reading EDGE_INTERNAL_ADDRESS=%q: %w", internal, err)
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		c.base = "http://" + net.JoinHostPort(host, port)
	}
	if u, err := url.Parse(c.base); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%s=%q: expected http://host:port or https://host", urlVariable, c.base)
	}
	return c, nil
}

func (c *client) run(ctx context.Context, command string, args []string, in io.Reader) error {
	switch command {
	case "call":
		return c.call(ctx, args, in)
	case "scale":
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		return c.scale(ctx, args)
	case "ls":
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		return c.list(ctx, args)
	default:
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		return c.ask(ctx, command, args)
	}
}

// do sends a request. The answer's body is the caller's to close.
func (c *client) do(ctx context.Context, method, path string, header http.Header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("asking the edge: %w", err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if c.key != "" {
		req.Header.Set("SlimFaas-Api-Key", c.key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the edge: %w", err)
	}
	return resp, nil
}

// ask carries out a command of asking and prints the answer.
func (c *client) ask(ctx context.Context, command string, args []string) error {
	what := asking[command]
	path := what.path
	if strings.HasSuffix(path, "/") {
		if len(args) != 1 {
			return fmt.Errorf("edge %s: expected the name of one function", command)
		}
		path += url.PathEscape(args[0])
	} else if len(args) != 0 {
		return fmt.Errorf("edge %s: expected nothing more", command)
	}
	resp, err := c.do(ctx, what.method, path, nil, nil)
	if err != nil {
		return err
	}
	return c.print(resp)
}

// print copies an answer out, JSON indented.
func (c *client) print(resp *http.Response) error {
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
		fmt.Fprintf(c.out, "%s\n", body)
	}
	return refusal(resp)
}

// scale asks for a number of replicas for a while.
func (c *client) scale(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("edge scale", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	during := flags.Duration("for", time.Minute, "")
	words, err := interspersed(flags, args)
	if err != nil {
		return fmt.Errorf("edge scale: %w", err)
	}
	if len(words) != 2 {
		return errors.New("edge scale: expected the name of a function and a number of replicas")
	}
	replicas, err := strconv.Atoi(words[1])
	if err != nil {
		return fmt.Errorf("edge scale: %q is no number of replicas", words[1])
	}
	body := fmt.Sprintf(`{"Replicas":%d,"ForSeconds":%d}`, replicas, int64(*during/time.Second))
	resp, err := c.do(ctx, http.MethodPut, "/scale/"+url.PathEscape(words[0]), http.Header{"Content-Type": {"application/json"}}, strings.NewReader(body))
	if err != nil {
		return err
	}
	return c.print(resp)
}

func refusal(resp *http.Response) error {
	if resp.StatusCode >= 400 {
		return fmt.Errorf("the edge answered %s", resp.Status)
	}
	return nil
}

// list prints the functions as a table.
func (c *client) list(ctx context.Context, args []string) error {
	if len(args) != 0 {
		return errors.New("edge ls: expected nothing more")
	}
	resp, err := c.do(ctx, http.MethodGet, "/", http.Header{"Accept": {"application/json"}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := refusal(resp); err != nil {
		return err
	}
	var home struct {
		Functions []struct {
			Name, State, Visibility, Reason string
			NumberReady, NumberRequested    int
		}
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(&home); err != nil {
		return fmt.Errorf("reading the edge's answer: %w", err)
	}
	table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FUNCTION\tSTATE\tREADY\tVISIBILITY\tWHY")
	for _, f := range home.Functions {
		fmt.Fprintf(table, "%s\t%s\t%d/%d\t%s\t%s\n", f.Name, f.State, f.NumberReady, f.NumberRequested, f.Visibility, f.Reason)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("printing the functions: %w", err)
	}
	return nil
}

// fields collects -H flags.
type fields http.Header

func (f fields) String() string { return "" }

func (f fields) Set(line string) error {
	name, value, ok := strings.Cut(line, ":")
	if name = strings.TrimSpace(name); !ok || name == "" {
		return errors.New("expected 'Name: value'")
	}
	http.Header(f).Add(name, strings.TrimSpace(value))
	return nil
}

// call calls a function and copies its answer out.
func (c *client) call(ctx context.Context, args []string, in io.Reader) error {
	flags := flag.NewFlagSet("edge call", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	header := http.Header{}
	flags.Var(fields(header), "H", "header")
	method := flags.String("X", "", "method")
	data := flags.String("d", "", "body")
	head := flags.Bool("i", false, "print the answer's head, too")
	async := flags.Bool("async", false, "queue the call and print its id")
	names, err := interspersed(flags, args)
	if err != nil {
		return fmt.Errorf("edge call: %w", err)
	}
	if len(names) == 0 || len(names) > 2 {
		return errors.New("edge call: expected the name of a function and, if need be, a path")
	}
	family, path := "/function/", "/"
	if *async {
		family = "/async-function/"
	}
	if len(names) == 2 {
		path = "/" + strings.TrimPrefix(names[1], "/")
	}
	body, err := bodyOf(*data, slices.Contains(args, "-d"), in)
	if err != nil {
		return err
	}
	if *method == "" {
		*method = http.MethodGet
		if body != nil {
			*method = http.MethodPost
		}
	}
	resp, err := c.do(ctx, strings.ToUpper(*method), family+url.PathEscape(names[0])+path, header, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if *head {
		fmt.Fprintf(c.out, "%s %s\n", resp.Proto, resp.Status)
		_ = resp.Header.Write(c.out) // the body's copy says so, too
		fmt.Fprintln(c.out)
	}
	if *async && resp.StatusCode == http.StatusAccepted && !*head {
		fmt.Fprintln(c.out, resp.Header.Get("SlimFaas-Element-Id"))
	}
	if _, err := io.Copy(c.out, resp.Body); err != nil {
		return fmt.Errorf("reading the function's answer: %w", err)
	}
	return refusal(resp)
}

// interspersed parses flags that may stand before, between and behind words, and gives the words.
func interspersed(flags *flag.FlagSet, args []string) (words []string, err error) {
	for {
		if err := flags.Parse(args); err != nil {
			return nil, err
		}
		if args = flags.Args(); len(args) == 0 {
			return words, nil
		}
		words, args = append(words, args[0]), args[1:]
	}
}

// bodyOf is what -d means: the text itself, @file, or @- for standard input. Nil: there is none.
func bodyOf(data string, given bool, in io.Reader) (io.Reader, error) {
	switch {
	case !given && data == "":
		return nil, nil
	case data == "@-":
		return in, nil
	case strings.HasPrefix(data, "@"):
		content, err := os.ReadFile(data[1:])
		if err != nil {
			return nil, fmt.Errorf("reading the body: %w", err)
		}
		return bytes.NewReader(content), nil
	}
	return strings.NewReader(data), nil
}
