//go:build bench

package bench

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// sample is one measured interval.
type sample struct {
	calls    int           // answered with a yes
	failed   int           // answered otherwise
	rate     float64       // yes per second
	p50, p99 time.Duration // of the yes
	servers  time.Duration // processor time per call, of all processes that took it
	client   time.Duration // the same of the generator and the client in it
	fsyncs   float64       // of the leader's log, per call; ours only
	entries  float64       // Raft entries per call; ours only
}

// samples of one thing, a sample a round.
type samples []sample

// middle is the sample with the median rate.
func (s samples) middle() sample {
	sorted := slices.Clone(s)
	slices.SortFunc(sorted, func(a, b sample) int {
		if a.rate < b.rate {
			return -1
		}
		return 1
	})
	return sorted[len(sorted)/2]
}

// joined makes one sample of the pieces of an interval, all of the same length: the quantiles are the medians of theirs.
func (s samples) joined() (all sample) {
	var p50s, p99s, servers, client []time.Duration
	for _, piece := range s {
		all.calls += piece.calls
		all.failed += piece.failed
		all.rate += piece.rate / float64(len(s))
		p50s, p99s = append(p50s, piece.p50), append(p99s, piece.p99)
		servers, client = append(servers, piece.servers*time.Duration(piece.calls)), append(client, piece.client*time.Duration(piece.calls))
	}
	all.p50, all.p99 = median(p50s), median(p99s)
	if all.calls > 0 {
		all.servers, all.client = sum(servers)/time.Duration(all.calls), sum(client)/time.Duration(all.calls)
	}
	return all
}

func sum(of []time.Duration) (all time.Duration) {
	for _, d := range of {
		all += d
	}
	return all
}

// median of values, 0 for none.
func median[T ~int64 | ~float64](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}

// quantile of sorted values, 0 for none.
func quantile[T ~int64 | ~float64](sorted []T, q float64) T {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(float64(len(sorted))*q))]
}

// atLeast prints the line of a figure that should be large.
func atLeast(name, peerName string, ours, peer, bar float64) {
	figure(name, peerName, ours, peer, ours/peer, fmt.Sprintf(">=%.2f", bar), ours/peer >= bar)
}

// roundsAtLeast prints the line of a rate that should be large. Its ratio is the median of the rounds' own: from round to round the
// machine's neighbours take as much as a third of it, and from both alike.
func roundsAtLeast(name, peerName string, ours, peer samples, bar float64) {
	var ratios []float64
	for i := range min(len(ours), len(peer)) {
		ratios = append(ratios, ours[i].rate/peer[i].rate)
	}
	ratio := median(ratios)
	figure(name, peerName, ours.middle().rate, peer.middle().rate, ratio, fmt.Sprintf(">=%.2f", bar), ratio >= bar)
	fmt.Printf("       by round %.2f\n", ratios)
}

// atMost prints the line of a figure that should be small.
func atMost(name, peerName string, ours, peer, bar float64) {
	figure(name, peerName, ours, peer, ours/peer, fmt.Sprintf("<=%.2f", bar), ours/peer <= bar)
}

func figure(name, peerName string, ours, peer, ratio float64, bar string, ok bool) {
	verdict := "short"
	if ok {
		verdict = "ok"
	}
	fmt.Printf("figure %s ours=%s peer=%s:%s ratio=%.2f bar=%s %s\n", name, number(ours), peerName, number(peer), ratio, bar, verdict)
}

func number(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// table prints rows for people, the first one as the head.
func table(rows [][]string) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t")+"\t")
	}
	_ = w.Flush()
	fmt.Println()
}
