package history

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Counts of one function, as one queue node exports them.
type Counts struct {
	Accepted, Redriven, Succeeded, Dead, Cancelled, Queued, Running, Waiting float64
}

// Holds is the law: what came in is what ended and what is there.
func (c Counts) Holds() bool {
	return c.Accepted+c.Redriven == c.Succeeded+c.Dead+c.Cancelled+c.Queued+c.Running+c.Waiting
}

// Unfinished calls.
func (c Counts) Unfinished() float64 { return c.Queued + c.Running + c.Waiting }

// Counters is what one queue node says at one moment.
type Counters struct {
	Node      string
	Applied   float64 // Raft index at which the rest is true
	Functions map[string]Counts
	// Hash of the replicated state at Applied; empty on a node that exports none.
	Hash string
}

const (
	appliedMetric = "slimfaas_queue_applied_index"
	hashMetric    = "slimfaas_queue_state_hash"
)

// ParseCounters reads the text of a queue node's /metrics.
func ParseCounters(node string, text io.Reader) (Counters, error) {
	c := Counters{Node: node, Functions: map[string]Counts{}}
	found := false
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		head, number, ok := strings.Cut(lines.Text(), " ")
		if !ok || strings.HasPrefix(head, "#") {
			continue
		}
		name, labels, _ := strings.Cut(head, "{")
		switch {
		case name == hashMetric:
			c.Hash = labels + " " + number
			continue
		case name != appliedMetric && !strings.HasPrefix(name, "slimfaas_async_"):
			continue
		}
		value, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return c, fmt.Errorf("reading %q of %s: %w", lines.Text(), node, err)
		}
		if name == appliedMetric {
			c.Applied, found = value, true
			continue
		}
		_, function, ok := strings.Cut(labels, `function="`)
		if !ok {
			continue
		}
		function, _, _ = strings.Cut(function, `"`)
		f := c.Functions[function]
		if field := f.field(name); field != nil {
			*field = value
			c.Functions[function] = f
		}
	}
	if err := lines.Err(); err != nil {
		return c, fmt.Errorf("reading the metrics of %s: %w", node, err)
	}
	if !found {
		return c, fmt.Errorf("the metrics of %s have no %s", node, appliedMetric)
	}
	return c, nil
}

func (c *Counts) field(metric string) *float64 {
	switch metric {
	case "slimfaas_async_accepted_total":
		return &c.Accepted
	case "slimfaas_async_redriven_total":
		return &c.Redriven
	case "slimfaas_async_succeeded_total":
		return &c.Succeeded
	case "slimfaas_async_dead_total":
		return &c.Dead
	case "slimfaas_async_cancelled_total":
		return &c.Cancelled
	case "slimfaas_async_queued":
		return &c.Queued
	case "slimfaas_async_running":
		return &c.Running
	case "slimfaas_async_waiting":
		return &c.Waiting
	}
	return nil
}

// ErrApart says that the nodes are not at one index, so nothing can be said yet. Ask again.
var ErrApart = errors.New("the nodes are at different indexes")

// Agree checks that all nodes are at one applied index, that the law holds there for every function, and that the nodes say the
// same.
func Agree(nodes []Counters) error {
	for _, n := range nodes {
		if n.Applied != nodes[0].Applied {
			return fmt.Errorf("%s at %.0f, %s at %.0f: %w", nodes[0].Node, nodes[0].Applied, n.Node, n.Applied, ErrApart)
		}
	}
	var errs []error
	for _, n := range nodes {
		for _, f := range slices.Sorted(maps.Keys(n.Functions)) {
			if !n.Functions[f].Holds() {
				errs = append(errs, fmt.Errorf("conservation of %s does not hold on %s at %.0f: %+v", f, n.Node, n.Applied, n.Functions[f]))
			}
		}
		if !maps.Equal(n.Functions, nodes[0].Functions) {
			errs = append(errs, fmt.Errorf("at index %.0f %s says %+v and %s says %+v", n.Applied, nodes[0].Node, nodes[0].Functions, n.Node, n.Functions))
		}
		if n.Hash != nodes[0].Hash {
			errs = append(errs, fmt.Errorf("at index %.0f the state of %s has hash %s, that of %s %s", n.Applied, nodes[0].Node, nodes[0].Hash, n.Node, n.Hash))
		}
	}
	return errors.Join(errs...)
}
