package kube

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// at is a pod of a Deployment that runs on 10.0.0.1:8080 and is ready, changed by what is given.
func at(change ...func(*corev1.Pod)) *corev1.Pod {
	controller := true
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "web-5d9f-abcde", UID: "u1", Labels: map[string]string{hashLabel: "5d9f"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-5d9f", Controller: &controller}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "web", Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/health", Port: intstr.FromInt32(8080)}}},
		}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1",
			Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "web", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(noon)}}}},
		},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func notReadySince(when time.Time) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Conditions[0].Status, p.Status.Conditions[0].LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(when)
	}
}

func waiting(reason, message string, restarts int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Conditions[0].Status = corev1.ConditionFalse
		p.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
		p.Status.ContainerStatuses[0].RestartCount = restarts
	}
}

func TestPhaseOfAPod(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		pod      *corev1.Pod
		phase    orchestrator.Phase
		wasReady bool
		unplaced bool
		detail   string
	}{
		"ready":                     {pod: at(), phase: orchestrator.Ready, wasReady: true},
		"an address, not ready yet": {pod: at(notReadySince(noon.Add(-time.Second))), phase: orchestrator.Starting, detail: "not ready yet"},
		"was ready": {
			pod: at(notReadySince(noon.Add(time.Minute))), phase: orchestrator.NotReady, wasReady: true, detail: "not ready yet",
		},
		"no address yet": {pod: at(notReadySince(noon), func(p *corev1.Pod) { p.Status.PodIP = "" }), phase: orchestrator.Pending},
		"terminating, though ready": {
			pod: at(func(p *corev1.Pod) { now := metav1.NewTime(noon); p.DeletionTimestamp = &now }), phase: orchestrator.Gone, detail: "terminating",
		},
		"evicted": {
			pod: at(func(p *corev1.Pod) { p.Status.Phase, p.Status.Reason = corev1.PodFailed, "Evicted" }), phase: orchestrator.Gone, detail: "failed: Evicted",
		},
		"no room": {
			pod: at(func(p *corev1.Pod) {
				p.Status = corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{
					Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/1 nodes are available",
				}}}
			}), phase: orchestrator.Pending, unplaced: true, detail: "Unschedulable: 0/1 nodes are available",
		},
		"an image that cannot be pulled": {
			pod: at(waiting("ImagePullBackOff", "no such image", 0)), phase: orchestrator.Pending, detail: "container web: ImagePullBackOff: no such image",
		},
		"a long word in another script": {
			pod:   at(waiting("ImagePullBackOff", strings.Repeat("é", 200), 0)),
			phase: orchestrator.Pending, detail: "container web: ImagePullBackOff: " + strings.Repeat("é", 133),
		},
		"crashes": {pod: at(waiting("CrashLoopBackOff", "", 3)), phase: orchestrator.Pending, detail: "container web: CrashLoopBackOff"},
		"another container crashes": {
			pod: at(notReadySince(noon.Add(-time.Second)), func(p *corev1.Pod) {
				p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
					Name: "side", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
					LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3}},
				})
			}), phase: orchestrator.Pending, detail: "container side: CrashLoopBackOff (it ended with exit code 3)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := replica(test.pod, false)
			if got.Phase != test.phase || got.WasReady != test.wasReady || got.Unplaced != test.unplaced || got.Detail != test.detail {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestAContainerThatStartedAgainIsAnotherInstance(t *testing.T) {
	t.Parallel()
	again := at(func(p *corev1.Pod) { p.Status.ContainerStatuses[0].RestartCount = 1 })
	if a, b := replica(at(), false).Instance, replica(again, false).Instance; a == b {
		t.Errorf("both lives are %q", a)
	}
}

func gated(p *corev1.Pod) {
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/registered"}}
}

func sidecar(p *corev1.Pod) {
	always := corev1.ContainerRestartPolicyAlways
	p.Spec.InitContainers = []corev1.Container{{Name: "setup"}, {Name: "proxy", RestartPolicy: &always, ReadinessProbe: &corev1.Probe{}}}
}

func TestPortsAndProbes(t *testing.T) {
	t.Parallel()
	probeOf := func(h corev1.ProbeHandler) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: h} }
	}
	for name, test := range map[string]struct {
		pod    *corev1.Pod
		ports  []uint32
		path   string
		opaque bool
	}{
		"one port":         {pod: at(), ports: []uint32{8080}, path: "/health"},
		"no port":          {pod: at(func(p *corev1.Pod) { p.Spec.Containers[0].Ports = nil }), opaque: true},
		"no probe":         {pod: at(func(p *corev1.Pod) { p.Spec.Containers[0].ReadinessProbe = nil }), ports: []uint32{8080}},
		"exec":             {pod: at(probeOf(corev1.ProbeHandler{Exec: &corev1.ExecAction{}})), ports: []uint32{8080}, opaque: true},
		"gRPC":             {pod: at(probeOf(corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 8080}})), ports: []uint32{8080}, opaque: true},
		"TCP":              {pod: at(probeOf(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}})), ports: []uint32{8080}},
		"TCP else":         {pod: at(probeOf(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(1)}})), ports: []uint32{8080}, opaque: true},
		"HTTPS":            {pod: at(probeOf(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Scheme: "HTTPS", Port: intstr.FromInt32(8080)}})), ports: []uint32{8080}, opaque: true},
		"a header":         {pod: at(probeOf(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{HTTPHeaders: []corev1.HTTPHeader{{Name: "Host"}}, Port: intstr.FromInt32(8080)}})), ports: []uint32{8080}, opaque: true},
		"else HTTP":        {pod: at(probeOf(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "up", Port: intstr.FromInt32(9)}})), ports: []uint32{8080}, opaque: true},
		"a readiness gate": {pod: at(gated), ports: []uint32{8080}, opaque: true},
		"a probed neighbour": {
			pod: at(func(p *corev1.Pod) {
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "proxy", ReadinessProbe: &corev1.Probe{}})
			}), ports: []uint32{8080}, opaque: true,
		},
		"a probed sidecar": {pod: at(sidecar), ports: []uint32{8080}, opaque: true},
		"a neighbour without a probe": {
			pod:   at(func(p *corev1.Pod) { p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "log"}) }),
			ports: []uint32{8080}, path: "/health",
		},
		"UDP is none": {
			pod: at(func(p *corev1.Pod) {
				p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 53, Protocol: corev1.ProtocolUDP}, {ContainerPort: 80}}
			}),
			ports: []uint32{80}, opaque: true,
		},
		"the one named http of the second container": {
			pod: at(func(p *corev1.Pod) {
				p.Spec.Containers[0].ReadinessProbe = nil
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
					Name: "b", Ports: []corev1.ContainerPort{{ContainerPort: 9, Name: "x"}, {ContainerPort: 90, Name: "http"}},
					ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "up", Port: intstr.FromString("http")}}},
				})
				p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: "b"})
			}), ports: []uint32{90, 8080, 9}, path: "/up",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := replica(test.pod, false)
			if len(got.Ports) != len(test.ports) || got.HealthPath != test.path || got.ProbeOpaque != test.opaque {
				t.Fatalf("got %+v", got)
			}
			for i := range got.Ports {
				if got.Ports[i] != test.ports[i] {
					t.Errorf("ports %v, want %v", got.Ports, test.ports)
				}
			}
		})
	}
}

func TestOwner(t *testing.T) {
	t.Parallel()
	controller := true
	for name, test := range map[string]struct {
		pod  *corev1.Pod
		want ref
	}{
		"a Deployment": {at(), ref{"ns", deployment, "web"}},
		"its name holds the hash": {at(func(p *corev1.Pod) {
			p.Labels[hashLabel] = "b"
			p.OwnerReferences[0].Name = "a-b-b"
		}), ref{"ns", deployment, "a-b"}},
		"a ReplicaSet of nobody":    {at(func(p *corev1.Pod) { p.OwnerReferences[0].Name = "web" }), ref{}},
		"a name that only looks so": {at(func(p *corev1.Pod) { p.OwnerReferences[0].Name = "web-5d9" }), ref{}},
		"nobody":                    {at(func(p *corev1.Pod) { p.OwnerReferences = nil }), ref{}},
		"a Job":                     {at(func(p *corev1.Pod) { p.OwnerReferences[0].Kind = "Job" }), ref{}},
		"a StatefulSet": {at(func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: statefulSet, Name: "db", Controller: &controller}}
		}), ref{"ns", statefulSet, "db"}},
	} {
		if got, _ := owner(test.pod); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

// Every trimmed object looks the same to the view.
func TestTrimmingLosesNothingThatIsRead(t *testing.T) {
	t.Parallel()
	for name, pod := range map[string]*corev1.Pod{
		"ready": at(), "crashes": at(waiting("CrashLoopBackOff", "x", 3)), "was ready": at(notReadySince(noon.Add(time.Minute))),
		"gated": at(gated), "has a sidecar": at(sidecar),
	} {
		want := replica(pod, false)
		wantOwner, _ := owner(pod)
		trimmed, err := trimPod(pod.DeepCopy())
		if err != nil {
			t.Fatal(err)
		}
		got := trimmed.(*corev1.Pod)
		gotOwner, _ := owner(got)
		if r := replica(got, false); r.Phase != want.Phase || r.Detail != want.Detail || r.Instance != want.Instance || r.HealthPath != want.HealthPath || r.ProbeOpaque != want.ProbeOpaque || r.WasReady != want.WasReady || gotOwner != wantOwner {
			t.Errorf("%s: %+v, want %+v", name, r, want)
		}
	}
}
