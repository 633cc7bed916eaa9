package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
)

// hashLabel is what the Deployment controller marks the pods of one ReplicaSet with; the ReplicaSet's name ends in it.
const hashLabel = "pod-template-hash"

// owner says which workload a pod belongs to: the StatefulSet that owns it, or the Deployment whose ReplicaSet does. The name of the
// ReplicaSet is exactly <deployment>-<hash>, so no ReplicaSet is watched and no prefix guessed (docs/adr/0023-kubernetes-driver.md).
func owner(pod *corev1.Pod) (ref, bool) {
	by := metav1.GetControllerOfNoCopy(pod)
	if by == nil {
		return ref{}, false
	}
	switch by.Kind {
	case statefulSet:
		return ref{pod.Namespace, statefulSet, by.Name}, true
	case "ReplicaSet":
		hash := pod.Labels[hashLabel]
		if name, found := strings.CutSuffix(by.Name, "-"+hash); found && hash != "" {
			return ref{pod.Namespace, deployment, name}, true
		}
	}
	return ref{}, false
}

// replica states a pod as the scaler sees it. wasReady: this life of it was seen ready before.
func replica(pod *corev1.Pod, wasReady bool) orchestrator.Replica {
	serving, port, ports := servingPort(pod)
	status := containerStatus(pod, serving)
	r := orchestrator.Replica{
		Name: pod.Name, Instance: instance(pod, status), Host: pod.Status.PodIP, Ports: ports, WasReady: wasReady || readyOnce(pod, status),
	}
	switch {
	case serving == nil:
	case readyByMore(pod, serving):
		r.ProbeOpaque = true
	default:
		r.HealthPath, r.ProbeOpaque = probe(serving, port)
	}
	r.Phase, r.Detail, r.Unplaced = phase(pod, status, r.WasReady)
	if r.Phase == orchestrator.Ready {
		r.WasReady = true
	}
	return r
}

// instance differs between two pods of one name (a StatefulSet's) and between two lives of one pod's container.
func instance(pod *corev1.Pod, status *corev1.ContainerStatus) string {
	restarts := int32(0)
	if status != nil {
		restarts = status.RestartCount
	}
	return string(pod.UID) + "/" + strconv.Itoa(int(restarts))
}

// servingPort chooses the container that serves and its ports, the one calls go to first: the first named http, else the first of
// all. SlimFaas/Port wins over it, later.
func servingPort(pod *corev1.Pod) (*corev1.Container, uint32, []uint32) {
	type candidate struct {
		container *corev1.Container
		port      uint32
		http      bool
	}
	var all []candidate
	for i := range pod.Spec.Containers {
		for _, p := range pod.Spec.Containers[i].Ports {
			if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP || p.ContainerPort < 1 || p.ContainerPort > 1<<16-1 {
				continue
			}
			all = append(all, candidate{&pod.Spec.Containers[i], uint32(p.ContainerPort), p.Name == "http"}) //nolint:gosec // bounded above
		}
	}
	if len(all) == 0 {
		if len(pod.Spec.Containers) == 0 {
			return nil, 0, nil
		}
		return &pod.Spec.Containers[0], 0, nil // SlimFaas/Port may name one
	}
	first := max(slices.IndexFunc(all, func(c candidate) bool { return c.http }), 0)
	ports := []uint32{all[first].port}
	for _, c := range all {
		if !slices.Contains(ports, c.port) {
			ports = append(ports, c.port)
		}
	}
	return all[first].container, all[first].port, ports
}

// readyByMore says whether a pod waits for more than its serving container before it is ready: a readiness gate (a load balancer, an
// operator), or the readiness probe of another container (a database proxy beside it).
func readyByMore(pod *corev1.Pod, serving *corev1.Container) bool {
	probed := func(c corev1.Container) bool { return c.ReadinessProbe != nil && c.Name != serving.Name }
	return len(pod.Spec.ReadinessGates) > 0 || slices.ContainsFunc(pod.Spec.Containers, probed) ||
		slices.ContainsFunc(pod.Spec.InitContainers, probed) // only one that stays may have a probe
}

// probe says what an edge may ask to find out early that a container is ready: the path of its readiness probe, where that is plain
// HTTP to the port that is called; "" and false: a TCP connect will do; opaque: only the kubelet can tell.
func probe(c *corev1.Container, port uint32) (path string, opaque bool) {
	if c.ReadinessProbe == nil {
		return "", false
	}
	get, tcp := c.ReadinessProbe.HTTPGet, c.ReadinessProbe.TCPSocket
	switch {
	case get != nil && portNumber(c, get.Port) == port && port != 0 && len(get.HTTPHeaders) == 0 && get.Host == "" &&
		(get.Scheme == "" || get.Scheme == corev1.URISchemeHTTP):
		return "/" + strings.TrimPrefix(get.Path, "/"), false
	case tcp != nil && portNumber(c, tcp.Port) == port && tcp.Host == "":
		return "", false
	}
	return "", true
}

func portNumber(c *corev1.Container, of intstr.IntOrString) uint32 {
	if of.Type == intstr.Int {
		return uint32(max(of.IntVal, 0)) //nolint:gosec // not negative
	}
	for _, p := range c.Ports {
		if p.Name == of.StrVal {
			return uint32(max(p.ContainerPort, 0)) //nolint:gosec // not negative
		}
	}
	n, _ := strconv.ParseUint(of.StrVal, 10, 16) //nolint:errcheck // 0 is no port
	return uint32(n)
}

func containerStatus(pod *corev1.Pod, of *corev1.Container) *corev1.ContainerStatus {
	if of == nil {
		return nil
	}
	for i := range pod.Status.ContainerStatuses {
		if pod.Status.ContainerStatuses[i].Name == of.Name {
			return &pod.Status.ContainerStatuses[i]
		}
	}
	return nil
}

func condition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// readyOnce says whether a pod that is not ready now was so in this life, from its own words: it turned to not ready after its
// container started. For a scaler that has just started; one that watches remembers.
func readyOnce(pod *corev1.Pod, status *corev1.ContainerStatus) bool {
	ready := condition(pod, corev1.PodReady)
	return ready != nil && ready.Status == corev1.ConditionFalse && status != nil && status.State.Running != nil &&
		ready.LastTransitionTime.After(status.State.Running.StartedAt.Time)
}

// phase of a pod, why it is not ready, and whether there is no room for it.
func phase(pod *corev1.Pod, status *corev1.ContainerStatus, wasReady bool) (p orchestrator.Phase, detail string, unplaced bool) {
	switch {
	case pod.DeletionTimestamp != nil:
		return orchestrator.Gone, "terminating", false
	case pod.Status.Phase == corev1.PodFailed:
		return orchestrator.Gone, "failed: " + cmp.Or(pod.Status.Message, pod.Status.Reason, "its containers ended"), false
	case pod.Status.Phase == corev1.PodSucceeded:
		return orchestrator.Gone, "its containers ended", false
	}
	if scheduled := condition(pod, corev1.PodScheduled); scheduled != nil && scheduled.Status == corev1.ConditionFalse {
		return orchestrator.Pending, fmt.Sprintf("%s: %s", scheduled.Reason, scheduled.Message), scheduled.Reason == corev1.PodReasonUnschedulable
	}
	// The first container that cannot run explains the pod; the serving one decides about calls.
	detail = stuck(pod)
	switch {
	case status != nil && (status.State.Waiting != nil && pod.Status.PodIP != "" && status.RestartCount > 0 || status.State.Terminated != nil):
		return orchestrator.Pending, cmp.Or(detail, "its container ended and will be started again"), false
	case pod.Status.PodIP == "":
		return orchestrator.Pending, detail, false
	}
	ready := condition(pod, corev1.PodReady)
	switch {
	case ready != nil && ready.Status == corev1.ConditionTrue:
		return orchestrator.Ready, "", false
	case detail != "":
		return orchestrator.Pending, detail, false
	case wasReady:
		return orchestrator.NotReady, notReady(ready), false
	default:
		return orchestrator.Starting, notReady(ready), false
	}
}

func notReady(ready *corev1.PodCondition) string {
	if ready == nil {
		return "not ready yet"
	}
	return cmp.Or(ready.Message, ready.Reason, "not ready yet")
}

// maxDetail bounds what a container runtime says, in bytes.
const maxDetail = 300

// stuck says why a container of a pod cannot run: an image that cannot be pulled, a crash, a missing ConfigMap. Empty: none is stuck.
func stuck(pod *corev1.Pod) string {
	for _, all := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range all {
			one := &all[i]
			waiting := one.State.Waiting
			if waiting == nil || waiting.Reason == "ContainerCreating" || waiting.Reason == "PodInitializing" || waiting.Reason == "" {
				continue
			}
			text := fmt.Sprintf("container %s: %s", one.Name, waiting.Reason)
			if waiting.Message != "" {
				text += ": " + waiting.Message
			}
			if ended := one.LastTerminationState.Terminated; ended != nil {
				text += fmt.Sprintf(" (it ended with exit code %d)", ended.ExitCode)
			}
			return strings.ToValidUTF8(text[:min(len(text), maxDetail)], "") // half a letter would spoil the whole record
		}
	}
	return ""
}
