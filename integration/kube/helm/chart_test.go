// Package helm holds the chart against the kustomize overlay, object by object, with Helm's own engine. A module of its own: the engine
// is large.
package helm

import (
	"maps"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/yaml"
)

const namespace = "slimfaas-demo"

// objects by kind and name. What belongs to a namespace has none written in a chart.
func objects(t *testing.T, manifest string) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	for document := range strings.SplitSeq("\n"+manifest, "\n---") {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatalf("%v: %s", err, document)
		}
		if len(object) == 0 {
			continue
		}
		metadata, _ := object["metadata"].(map[string]any)
		if metadata["namespace"] == namespace {
			delete(metadata, "namespace")
		}
		all[object["kind"].(string)+" "+metadata["name"].(string)] = object
	}
	return all
}

func rendered(t *testing.T, values map[string]any) map[string]map[string]any {
	t.Helper()
	chart, err := loader.Load("../../../deploy/helm/slimfaas")
	if err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(chart, values, chartutil.ReleaseOptions{Name: "slimfaas", Namespace: namespace, IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(chart, all)
	if err != nil {
		t.Fatal(err)
	}
	var manifest strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, ".yaml") {
			manifest.WriteString("\n---\n" + files[name])
		}
	}
	return objects(t, manifest.String())
}

func TestTheChartInstallsWhatTheDemoOverlayDoes(t *testing.T) {
	raw, err := exec.CommandContext(t.Context(), "kubectl", "kustomize", "../../../deploy/kubernetes/overlays/demo").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := objects(t, string(raw))
	delete(want, "Namespace "+namespace)
	got := rendered(t, map[string]any{"nodePort": 30021})
	if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
		t.Fatalf("the chart has %v\nthe overlay %v", g, w)
	}
	for name := range want {
		if !reflect.DeepEqual(got[name], want[name]) {
			g, _ := yaml.Marshal(got[name])
			w, _ := yaml.Marshal(want[name])
			t.Errorf("%s\n%s\nin the overlay\n%s", name, g, w)
		}
	}
}

func TestValuesOfTheChart(t *testing.T) {
	got := rendered(t, map[string]any{
		"registry": "registry.example/x", "tag": "1.2.3",
		"edge":  map[string]any{"autoscaled": true, "env": []any{map[string]any{"name": "EDGE_ACCESS_LOG", "value": "true"}}},
		"queue": map[string]any{"storage": "1Ti"}, "scaler": map[string]any{"replicas": 3},
	})
	text := func(name string) string {
		raw, err := yaml.Marshal(got[name])
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for object, has := range map[string][]string{
		"Deployment slimfaas-edge":   {"image: registry.example/x/edge:1.2.3", "name: EDGE_ACCESS_LOG"},
		"Deployment slimfaas-scaler": {"replicas: 3"},
		"StatefulSet slimfaas-queue": {"storage: 1Ti"},
		"Job slimfaas-certs-1.2.3":   {"image: registry.example/x/scaler:1.2.3"},
	} {
		for _, part := range has {
			if !strings.Contains(text(object), part) {
				t.Errorf("%s lacks %s:\n%s", object, part, text(object))
			}
		}
	}
	if strings.Contains(text("Deployment slimfaas-edge"), "replicas:") || got["Service slimfaas-nodeport"] != nil {
		t.Error("an autoscaled edge has a number of replicas, or there is a NodePort nobody asked for")
	}
}
