package kube

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

// seen keeps the functions that a driver tells of.
type seen struct {
	mu     sync.Mutex
	wanted map[string]orchestrator.Scaled
	lost   int
	news   chan struct{}
}

func (s *seen) note(all ...orchestrator.Workload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range all {
		s.wanted[all[i].Name] = orchestrator.Scaled{Wanted: all[i].Wanted, Revision: all[i].Revision}
	}
	select {
	case s.news <- struct{}{}:
	default:
	}
}

func (s *seen) Reset(all []orchestrator.Workload, _ []orchestrator.Part) { s.note(all...) }
func (s *seen) Workload(w orchestrator.Workload)                         { s.note(w) }
func (s *seen) Deleted(string)                                           {}
func (s *seen) Part(orchestrator.Part)                                   {}
func (s *seen) Lost(error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost++
}

// of waits until a function is known.
func (s *seen) of(t *testing.T, function string) orchestrator.Scaled {
	t.Helper()
	for patience := time.After(20 * time.Second); ; {
		s.mu.Lock()
		scaled, known := s.wanted[function]
		s.mu.Unlock()
		if known {
			return scaled
		}
		select {
		case <-s.news:
		case <-patience:
			t.Fatalf("%s is not known", function)
		}
	}
}

// TestAnAPIServerThatSaysTooManyIsAskedLess: for three seconds every request that is no watch gets 429 with Retry-After. The wake is
// carried out once they end, the watch goes on, and the server is not asked in a storm.
func TestAnAPIServerThatSaysTooManyIsAskedLess(t *testing.T) {
	t.Parallel()
	namespace, config := settle(t)
	real, err := clientcmd.NewDefaultClientConfig(*config, nil).ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	through, err := rest.TransportFor(real)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(real.Host)
	if err != nil {
		t.Fatal(err)
	}
	var busy atomic.Bool
	var refused atomic.Int64
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: through, FlushInterval: -1,
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if busy.Load() && r.URL.Query().Get("watch") == "" {
			refused.Add(1)
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	direct := clientcmdapi.NewConfig()
	direct.Clusters["c"], direct.Contexts["c"], direct.CurrentContext = &clientcmdapi.Cluster{Server: front.URL}, &clientcmdapi.Context{Cluster: "c"}, "c"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*direct, file); err != nil {
		t.Fatal(err)
	}
	driver, err := New(Options{Kubeconfig: file, Own: namespace})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	s := &seen{wanted: map[string]orchestrator.Scaled{}, news: make(chan struct{}, 1)}
	work.Go(func() { _ = driver.Watch(ctx, s) })
	before := s.of(t, "single")

	busy.Store(true)
	const outage = 3 * time.Second
	end := time.AfterFunc(outage, func() { busy.Store(false) })
	defer end.Stop()
	began := time.Now()
	scaled, err := driver.Wake(ctx, "single", before.Revision, 1)
	if err != nil || scaled.Wanted != 1 {
		t.Fatalf("%+v %v", scaled, err)
	}
	if took := time.Since(began); took < outage || took > outage+3*time.Second {
		t.Errorf("carried out after %v", took)
	}
	if n := refused.Load(); n == 0 || n > 6 {
		t.Errorf("%d requests were refused in %v", n, outage)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost > 0 {
		t.Errorf("the watch was lost %d times", s.lost)
	}
}
