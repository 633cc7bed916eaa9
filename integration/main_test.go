// Package integration holds the tests that start the real programs, kill them and count every call. One file per scenario
// family.
package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// recorderPath is the built recorder, the function of these tests.
var recorderPath string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "slimfaas-recorder-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a directory for the recorder:", err)
		os.Exit(1)
	}
	recorderPath = filepath.Join(dir, "recorder")
	build := exec.Command("go", "build", "-o", recorderPath, "./recorder")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building the recorder:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// company has a place for each test that runs beside others: CLUSTERS of them, one unless a larger machine is told otherwise.
var company = make(chan struct{}, clusters())

func clusters() int {
	n, err := strconv.Atoi(os.Getenv("CLUSTERS"))
	if err != nil || os.Getenv("SLIMFAAS_FULL") != "" { // a full fault test judges time, and is alone
		return 1
	}
	return max(n, 1)
}

// inCompany lets a test with a cluster of its own run beside other such tests, after all tests that are alone: for tests that
// wait more than they compute and judge no short time.
func inCompany(t *testing.T) {
	t.Helper()
	if cap(company) == 1 {
		return
	}
	t.Parallel()
	company <- struct{}{}
	t.Cleanup(func() { <-company }) // the first registered: after the cluster's
}

// fn describes one function of a test's manifest, served by the recorder.
type fn struct {
	name        string
	annotations map[string]string // without the SlimFaas/ prefix; Function is set
	env         map[string]string
	debugURL    string // of a function the test itself serves; empty: the recorder is started
}

// scenario is a part of a test with functions of its own, which harms nothing but them.
type scenario struct {
	functions []fn
	run       func(t *testing.T, c *cluster.Cluster, rec records)
}

// sideBySide runs scenarios at the same time on one cluster, of one queue node and in this
// environment: they wait most of their time, and what several nodes are for has tests of its own.
func sideBySide(t *testing.T, scenarios map[string]scenario, environment ...string) {
	t.Helper()
	rec := newRecords(t)
	var functions []fn
	for _, s := range scenarios {
		functions = append(functions, s.functions...)
	}
	c := cluster.Start(t, cluster.Options{Queues: 1, Env: environment, Functions: rec.yaml(functions...)})
	t.Run("side by side", func(t *testing.T) { // ends before the cluster does
		for name, s := range scenarios {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s.run(t, c.With(t), rec)
			})
		}
	})
}

// records is the directory where the functions of a test record their calls.
type records struct{ dir string }

func newRecords(t testing.TB) records {
	t.Helper()
	return records{t.TempDir()}
}

func (r records) path(function string) string { return filepath.Join(r.dir, function+".jsonl") }

// yaml is the functions section for these functions.
func (r records) yaml(functions ...fn) string {
	var b strings.Builder
	for _, f := range functions {
		runs := fmt.Sprintf("command: [%q]", recorderPath)
		if f.debugURL != "" {
			runs = "debugUrl: " + f.debugURL
		}
		fmt.Fprintf(&b, "  %s:\n    %s\n    annotations:\n      SlimFaas/Function: \"true\"\n", f.name, runs)
		keys := make([]string, 0, len(f.annotations))
		for k := range f.annotations {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			fmt.Fprintf(&b, "      SlimFaas/%s: %q\n", k, f.annotations[k])
		}
		fmt.Fprintf(&b, "    environment:\n      RECORD: %q\n", r.path(f.name))
		for k, v := range f.env {
			fmt.Fprintf(&b, "      %s: %q\n", k, v)
		}
		b.WriteString("    health:\n      path: /health\n")
	}
	return b.String()
}

// line is what the recorder writes.
type line struct {
	Phase   string
	AtMs    int64
	Replica string
	PID     int
	Method  string
	URI     string
	Header  http.Header
	Remote  string
	Body    string
	Seq     int
	Aborted bool
}

// read every record of a function, in file order. A last half-written line of a killed recorder is skipped.
func (r records) read(t testing.TB, function string) []line {
	t.Helper()
	file, err := os.Open(r.path(function))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatalf("reading the records of %s: %v", function, err)
	}
	defer file.Close()
	var lines []line
	scan := bufio.NewScanner(file)
	scan.Buffer(nil, 4<<20)
	for scan.Scan() {
		var l line
		if json.Unmarshal(scan.Bytes(), &l) == nil {
			lines = append(lines, l)
		}
	}
	return lines
}

// started are the records of requests that reached the function.
func (r records) started(t testing.TB, function string) []line {
	t.Helper()
	var out []line
	for _, l := range r.read(t, function) {
		if l.Phase == "start" {
			out = append(out, l)
		}
	}
	return out
}

// cut are requests that a replica began and never ended, or whose caller was gone: a replica stopped with a call in it.
func (r records) cut(t testing.TB, function string) []line {
	t.Helper()
	open := map[[2]int]line{}
	var out []line
	for _, l := range r.read(t, function) {
		switch l.Phase {
		case "start":
			open[[2]int{l.PID, l.Seq}] = l
		case "end":
			delete(open, [2]int{l.PID, l.Seq})
			if l.Aborted {
				out = append(out, l)
			}
		}
	}
	for _, l := range open {
		out = append(out, l)
	}
	return out
}

// problem is the body of our errors.
type problem struct {
	Type    string `json:"type"`
	Title   string `json:"title"`
	Status  int    `json:"status"`
	Detail  string `json:"detail"`
	Outcome string `json:"outcome"`
}

// wantProblem checks status, content type and that the detail says something.
func wantProblem(t testing.TB, c *cluster.Cluster, method, path string, header http.Header, body []byte, status int) problem {
	t.Helper()
	got, head, answer, err := c.Send(0, method, path, header, body)
	if err != nil {
		t.Errorf("%s %s: %v", method, path, err)
		return problem{}
	}
	var p problem
	if got != status {
		t.Errorf("%s %s answered %d, want %d: %s", method, path, got, status, answer)
		return p
	}
	if ct := head.Get("Content-Type"); !strings.HasPrefix(ct, "application/problem+json") {
		t.Errorf("%s %s: content type %q, want application/problem+json", method, path, ct)
	}
	if err := json.Unmarshal(answer, &p); err != nil || p.Type == "" || p.Detail == "" || p.Status != status {
		t.Errorf("%s %s: not a useful problem: %s (%v)", method, path, answer, err)
	}
	return p
}
