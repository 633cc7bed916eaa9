package queueclient

import (
	"context"
	"crypto/tls"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/shared/wire"
)

const (
	// probeTimeout of one question who leads.
	probeTimeout = 500 * time.Millisecond
	// suspectFor is how long the word of others is not enough to believe that a node leads which has just failed.
	suspectFor = time.Second
)

// finder knows where the leader is, or finds out by asking all nodes at once: a dead or paused node costs nobody time.
type finder struct {
	client *Client

	mu       sync.Mutex // guards the fields below; never held while asking
	hint     string     // url of the leader as last heard; empty: unknown
	suspects map[string]time.Time
	search   *search // under way
}

// search is one round of questions that everybody who needs the leader waits for together.
type search struct {
	done chan struct{}
	url  string // valid once done; empty: no node names a leader
}

// find returns the leader's url, at once when it is known; ErrNoLeader when a round of questions brought none.
func (f *finder) find(ctx context.Context) (string, error) {
	f.mu.Lock()
	if f.hint != "" {
		defer f.mu.Unlock()
		return f.hint, nil
	}
	s := f.search
	if s == nil {
		s = &search{done: make(chan struct{})}
		if !f.client.run(func() { f.ask(s) }) {
			f.mu.Unlock()
			return "", ErrClosed
		}
		f.search = s
	}
	f.mu.Unlock()
	select {
	case <-s.done:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if s.url == "" {
		return "", ErrNoLeader
	}
	return s.url, nil
}

// ask is one search: the first answer that names a leader we may believe wins, the other questions are called off.
func (f *finder) ask(s *search) {
	ctx, cancel := context.WithTimeout(f.client.life, probeTimeout)
	var asked sync.WaitGroup
	names := make(chan string)
	for _, url := range f.client.options.Endpoints {
		asked.Go(func() {
			answer, err := f.client.node(url).queue.Cluster(ctx, connect.NewRequest(&wire.ClusterRequest{}))
			if err != nil || answer.Msg.GetLeaderApi() == "" {
				return
			}
			leader := address(answer.Msg.GetLeaderApi(), f.client.options.TLS)
			if f.believes(leader, answer.Msg.GetLeader() == answer.Msg.GetNode()) {
				select {
				case names <- leader:
				case <-ctx.Done():
				}
			}
		})
	}
	go func() { // ends with the questions, which end with ctx; ask waits for them below
		asked.Wait()
		close(names)
	}()
	found := <-names
	cancel()
	for range names { // until all questions have ended
	}
	f.mu.Lock()
	f.search = nil
	if found != "" {
		f.hint = found
	}
	f.mu.Unlock()
	s.url = found
	close(s.done)
}

// believes: a node that failed a moment ago leads only if it says so itself.
func (f *finder) believes(url string, itself bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return itself || time.Now().After(f.suspects[url])
}

// learn takes the word of a node that does not lead: to ask leaderAPI, or nobody.
func (f *finder) learn(from, leaderAPI string) {
	url := ""
	if leaderAPI != "" {
		url = address(leaderAPI, f.client.options.TLS)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hint != from && f.hint != "" {
		return // somebody has learned better meanwhile
	}
	if url == from || time.Now().Before(f.suspects[url]) {
		url = ""
	}
	f.hint = url
}

// failed: the node did not answer as a leader does.
func (f *finder) failed(url string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hint == url {
		f.hint = ""
	}
	if len(f.suspects) >= maxNodes {
		clear(f.suspects)
	}
	f.suspects[url] = time.Now().Add(suspectFor)
}

// answered: the node answered as the leader does.
func (f *finder) answered(url string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hint = url
	delete(f.suspects, url)
}

// address makes a url of an endpoint, or of what nodes call one another. With TLS the scheme that is given does not matter.
func address(api string, secure *tls.Config) string {
	_, host, ok := strings.Cut(api, "://")
	switch {
	case secure == nil && ok:
		return strings.TrimRight(api, "/")
	case secure == nil:
		return "http://" + api
	case ok:
		api = strings.TrimRight(host, "/")
	}
	return "https://" + api
}

// pause before the next search after n fruitless ones.
func pause(n int) time.Duration { return min(backoffFirst<<min(n, 10), backoffLast) }

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
