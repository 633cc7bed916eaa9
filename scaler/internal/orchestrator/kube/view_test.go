package kube

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

func deploymentOf(name string, generation int64, replicas int32, annotations map[string]string) *object {
	all := map[string]string{"SlimFaas/Function": "true", "prometheus.io/scrape": "true"}
	for k, v := range annotations {
		all[k] = v
	}
	return ofDeployment(&appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "0123456789", Generation: generation, ResourceVersion: "7"},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Annotations: all}}},
	})
}

func setOf(name, image string) *object {
	return ofStatefulSet(&appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "s"},
		Spec: appsv1.StatefulSetSpec{Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"SlimFaas/Function": "true"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Image: image}}},
		}},
	})
}

func TestAWorkloadIsToldWholeWhateverCameFirst(t *testing.T) {
	t.Parallel()
	v := newView("ns")
	v.putPod(at())
	if changed := v.put(deploymentOf("web", 3, 1, nil)); !slices.Equal(changed, []ref{{"ns", deployment, "web"}}) {
		t.Errorf("changed %v", changed)
	}
	w, ok := v.workload(ref{"ns", deployment, "web"})
	if !ok || w.Key != "ns/Deployment/web" || w.Name != "web" || w.Wanted != 1 || w.Revision != "01234567.3" || len(w.Replicas) != 1 || len(w.Annotations) != 1 {
		t.Errorf("%v %+v", ok, w)
	}
	if changed := v.removePod("ns", "web-5d9f-abcde"); len(changed) != 1 {
		t.Errorf("changed %v", changed)
	}
	if w, _ = v.workload(ref{"ns", deployment, "web"}); len(w.Replicas) != 0 {
		t.Errorf("%+v", w.Replicas)
	}
	v.remove(ref{"ns", deployment, "web"})
	if _, ok = v.workload(ref{"ns", deployment, "web"}); ok || v.find("web") != nil {
		t.Error("a deleted one is still there")
	}
}

func TestWhatIsNoFunctionIsNotTold(t *testing.T) {
	t.Parallel()
	v := newView("ns")
	v.put(deploymentOf("web", 1, 1, map[string]string{"SlimFaas/Function": "false"}))
	if _, ok := v.workload(ref{"ns", deployment, "web"}); ok || len(v.workloads()) != 0 || v.find("web") != nil {
		t.Error("it is told")
	}
}

func TestAnAnswerThatIsNewerThanTheWatchIsKept(t *testing.T) {
	t.Parallel()
	v := newView("ns")
	v.put(deploymentOf("web", 4, 2, nil))
	if changed := v.put(deploymentOf("web", 3, 0, nil)); changed != nil {
		t.Errorf("an older one changed %v", changed)
	}
	if w, _ := v.workload(ref{"ns", deployment, "web"}); w.Wanted != 2 {
		t.Errorf("%+v", w)
	}
}

func TestTheTemplatesAnnotationsWin(t *testing.T) {
	t.Parallel()
	got := annotationsOf(map[string]string{"SlimFaas/ReplicasMin": "1", "SlimFaas/Port": "1", "x": "y"}, map[string]string{"SlimFaas/ReplicasMin": "2"})
	if len(got) != 2 || got["SlimFaas/ReplicasMin"] != "2" || got["SlimFaas/Port"] != "1" {
		t.Errorf("%v", got)
	}
}

func TestOfOneNameTheDeploymentCounts(t *testing.T) {
	t.Parallel()
	v := newView("ns")
	v.put(setOf("web", "x"))
	if o := v.find("web"); o == nil || o.kind != statefulSet {
		t.Errorf("%+v", o)
	}
	v.put(deploymentOf("web", 1, 1, nil))
	if o := v.find("web"); o == nil || o.kind != deployment {
		t.Errorf("%+v", o)
	}
}

func TestOverSeveralNamespacesNamesCarryTheirs(t *testing.T) {
	t.Parallel()
	v := newView("")
	v.put(deploymentOf("web", 1, 1, nil))
	if v.find("web") != nil || v.find("web.other") != nil || v.find("web.ns") == nil {
		t.Error("found by another name than its own")
	}
	if w, _ := v.workload(ref{"ns", deployment, "web"}); w.Name != "web.ns" {
		t.Errorf("%+v", w)
	}
}

func TestAPodWithoutAPortSaysWhatToAdd(t *testing.T) {
	t.Parallel()
	web := ref{"ns", deployment, "web"}
	v := newView("ns")
	v.putPod(at(func(p *corev1.Pod) { p.Spec.Containers[0].Ports = nil }))
	v.put(deploymentOf("web", 1, 1, nil))
	if w, _ := v.workload(web); w.Replicas[0].Phase != orchestrator.Pending || !strings.Contains(w.Replicas[0].Detail, "SlimFaas/Port") {
		t.Errorf("%+v", w.Replicas[0])
	}
	v.put(deploymentOf("web", 2, 1, map[string]string{"SlimFaas/Port": "80"}))
	if w, _ := v.workload(web); w.Replicas[0].Phase != orchestrator.Ready {
		t.Errorf("%+v", w.Replicas[0])
	}
}

func hpaOf(keda bool) *autoscaler {
	least := int32(2)
	h := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "h"},
		Spec:       autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: &least, ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: deployment, Name: "web"}},
	}
	if keda {
		h.OwnerReferences = []metav1.OwnerReference{{Kind: "ScaledObject", Name: "web"}}
	}
	return ofAutoscaler(h)
}

func TestAutoscalers(t *testing.T) {
	t.Parallel()
	web := ref{"ns", deployment, "web"}
	v := newView("ns")
	v.put(deploymentOf("web", 1, 1, nil))
	if changed := v.putAutoscaler("ns", hpaOf(false)); !slices.Equal(changed, []ref{web}) {
		t.Errorf("changed %v", changed)
	}
	if w, _ := v.workload(web); w.Fixed || w.AutoscalerMin != 2 || !strings.Contains(w.Autoscaler, "HorizontalPodAutoscaler h") {
		t.Errorf("%+v", w)
	}
	v.putAutoscaler("ns", hpaOf(true))
	if w, _ := v.workload(web); !w.Fixed || !strings.Contains(w.FixedBy, "KEDA") {
		t.Errorf("%+v", w)
	}
	v.put(deploymentOf("web", 2, 1, map[string]string{"SlimFaas/Autoscaler": "slimfaas"}))
	if w, _ := v.workload(web); w.Fixed {
		t.Errorf("%+v", w)
	}
	v.removeAutoscaler("ns", "h")
	if w, _ := v.workload(web); w.Fixed || w.Autoscaler != "" {
		t.Errorf("%+v", w)
	}
}

func TestBesideAnUpstreamSlimFaasNothingIsScaled(t *testing.T) {
	t.Parallel()
	web := ref{"ns", deployment, "web"}
	v := newView("ns")
	v.put(deploymentOf("web", 1, 1, nil))
	for image, upstream := range map[string]bool{
		"axaguildev/slimfaas:latest": true, "docker.io/axaguildev/slimfaas@sha256:ab": true, "localhost:5000/axaguildev/slimfaas:1": true,
		"axaguildev/slimfaas-mcp:1": false, "slimfaas/queue:dev": false,
	} {
		changed := v.put(setOf("slimfaas", image))
		if w, _ := v.workload(web); w.Fixed != upstream || upstream && !strings.Contains(w.FixedBy, "StatefulSet slimfaas") {
			t.Errorf("%s: %+v", image, w)
		}
		if upstream && !slices.Contains(changed, web) {
			t.Errorf("%s: the others are not told: %v", image, changed)
		}
		if changed = v.remove(ref{"ns", statefulSet, "slimfaas"}); upstream && !slices.Contains(changed, web) {
			t.Errorf("%s: the end is not told: %v", image, changed)
		}
	}
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	for wanted, want := range map[string]string{"": "own", "a, b,a": "a b", "*": ""} {
		got, err := namespaces(strings.Split(wanted, ","), "own")
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: %v %v", wanted, got, err)
		}
	}
	if _, err := namespaces([]string{"a", "*"}, "own"); err == nil {
		t.Error("* beside another is taken")
	}
}
