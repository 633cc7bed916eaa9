package kube

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/slimfaas/slimfaas/scaler/internal/orchestrator"
	"github.com/slimfaas/slimfaas/shared/function"
)

// Kinds of workloads, as Kubernetes and /status-function write them.
const (
	deployment  = "Deployment"
	statefulSet = "StatefulSet"
)

// ref names one workload.
type ref struct{ namespace, kind, name string }

func (r ref) key() string { return r.namespace + "/" + r.kind + "/" + r.name }

// object is what is kept of a Deployment or a StatefulSet. Never changed.
type object struct {
	ref
	uid         string
	generation  int64
	resource    string // resourceVersion
	replicas    int
	annotations map[string]string
	ordered     bool // a StatefulSet that starts one pod after the other
	image       string
}

// revision of an object's scale: it changes with the specification (also by a rollout, which a decision must see), not with its status.
func (o *object) revision() orchestrator.Revision {
	return orchestrator.Revision(o.uid[:min(len(o.uid), 8)] + "." + strconv.FormatInt(o.generation, 10))
}

func (o *object) scaled() orchestrator.Scaled {
	return orchestrator.Scaled{Wanted: o.replicas, Revision: o.revision()}
}

// autoscaler is what is kept of a HorizontalPodAutoscaler.
type autoscaler struct {
	name   string
	target ref
	least  int
	keda   bool // owned by a KEDA ScaledObject
}

// life is what is remembered of one pod beyond what it says itself.
type life struct {
	pod      *corev1.Pod
	owner    ref
	wasReady string // instance that was seen ready
}

// view is all that is watched, as values; every change returns the workloads that look different now. It is not for use from several
// goroutines.
type view struct {
	namespace   string // empty: several, and the names of functions carry theirs
	objects     map[ref]*object
	lives       map[string]*life // by namespace/name
	members     map[ref]map[string]*life
	autoscalers map[string]*autoscaler // by namespace/name
	targets     map[ref]*autoscaler    // the same, by what they scale
	upstream    map[string]string      // StatefulSet of an upstream SlimFaas, by namespace
}

func newView(namespace string) *view {
	return &view{
		namespace: namespace, objects: map[ref]*object{}, lives: map[string]*life{}, members: map[ref]map[string]*life{},
		autoscalers: map[string]*autoscaler{}, targets: map[ref]*autoscaler{}, upstream: map[string]string{},
	}
}

// name of the function a workload is.
func (v *view) name(r ref) string {
	if v.namespace == "" {
		return r.name + "." + r.namespace
	}
	return r.name
}

// find is the workload behind the name of a function; of two with one name the Deployment; nil: there is none.
func (v *view) find(name string) *object {
	namespace := v.namespace
	if namespace == "" {
		at := strings.LastIndexByte(name, '.') // a namespace has no dot
		if at < 0 {
			return nil
		}
		name, namespace = name[:at], name[at+1:]
	}
	for _, kind := range []string{deployment, statefulSet} {
		if o := v.objects[ref{namespace, kind, name}]; o != nil && function.IsFunction(o.annotations) {
			return o
		}
	}
	return nil
}

// annotationsOf are those that concern us: of the pod template, as upstream reads them, and of the object itself; the template wins.
func annotationsOf(own, template map[string]string) map[string]string {
	all := map[string]string{}
	for _, from := range []map[string]string{own, template} {
		for key, value := range from {
			if strings.HasPrefix(key, "SlimFaas/") {
				all[key] = value
			}
		}
	}
	return all
}

func replicasOf(n *int32) int {
	if n == nil {
		return 1 // what the API server's default is
	}
	return int(*n)
}

func ofDeployment(d *appsv1.Deployment) *object {
	return &object{
		ref: ref{d.Namespace, deployment, d.Name}, uid: string(d.UID), generation: d.Generation, resource: d.ResourceVersion,
		replicas: replicasOf(d.Spec.Replicas), annotations: annotationsOf(d.Annotations, d.Spec.Template.Annotations),
	}
}

func ofStatefulSet(s *appsv1.StatefulSet) *object {
	o := &object{
		ref: ref{s.Namespace, statefulSet, s.Name}, uid: string(s.UID), generation: s.Generation, resource: s.ResourceVersion,
		replicas: replicasOf(s.Spec.Replicas), annotations: annotationsOf(s.Annotations, s.Spec.Template.Annotations),
		ordered: s.Spec.PodManagementPolicy != appsv1.ParallelPodManagement,
	}
	for i := range s.Spec.Template.Spec.Containers {
		if image := s.Spec.Template.Spec.Containers[i].Image; upstreamImage(image) {
			o.image = image
		}
	}
	return o
}

// upstreamImage says whether an image is upstream's SlimFaas, which would fight over the same functions.
func upstreamImage(image string) bool {
	path, _, _ := strings.Cut(image, "@")
	if at := strings.LastIndexByte(path, ':'); at > strings.LastIndexByte(path, '/') {
		path = path[:at]
	}
	return path == "axaguildev/slimfaas" || strings.HasSuffix(path, "/axaguildev/slimfaas")
}

func ofAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) *autoscaler {
	a := &autoscaler{name: h.Name, least: replicasOf(h.Spec.MinReplicas)}
	a.target = ref{h.Namespace, h.Spec.ScaleTargetRef.Kind, h.Spec.ScaleTargetRef.Name}
	for i := range h.OwnerReferences {
		a.keda = a.keda || h.OwnerReferences[i].Kind == "ScaledObject"
	}
	return a
}

// put takes an object over, unless it is older than the one that is known: the answer to a request may be faster than the watch.
func (v *view) put(o *object) (changed []ref) {
	if old := v.objects[o.ref]; old != nil && old.uid == o.uid && old.generation > o.generation {
		return nil
	}
	v.objects[o.ref] = o
	changed = append(changed, o.ref)
	if o.image != "" && v.upstream[o.namespace] == "" {
		v.upstream[o.namespace] = o.name
		changed = v.in(o.namespace)
	}
	return changed
}

func (v *view) remove(r ref) (changed []ref) {
	delete(v.objects, r)
	if r.kind == statefulSet && v.upstream[r.namespace] == r.name {
		delete(v.upstream, r.namespace)
		return append(v.in(r.namespace), r)
	}
	return []ref{r}
}

func (v *view) in(namespace string) (all []ref) {
	for r := range v.objects {
		if r.namespace == namespace {
			all = append(all, r)
		}
	}
	return all
}

func (v *view) putPod(pod *corev1.Pod) []ref {
	key := pod.Namespace + "/" + pod.Name
	of, owned := owner(pod)
	old := v.lives[key]
	if !owned {
		if old == nil {
			return nil
		}
		return v.removePod(pod.Namespace, pod.Name)
	}
	one := &life{pod: pod, owner: of}
	if old != nil {
		one.wasReady = old.wasReady
	}
	if r := replica(pod, false); r.Phase == orchestrator.Ready {
		one.wasReady = r.Instance
	}
	v.lives[key] = one
	if v.members[of] == nil {
		v.members[of] = map[string]*life{}
	}
	v.members[of][pod.Name] = one
	if old != nil && old.owner != of { // one name, another owner: a StatefulSet that took a Deployment's place
		delete(v.members[old.owner], pod.Name)
		return []ref{of, old.owner}
	}
	return []ref{of}
}

func (v *view) removePod(namespace, name string) []ref {
	key := namespace + "/" + name
	old := v.lives[key]
	if old == nil {
		return nil
	}
	delete(v.lives, key)
	delete(v.members[old.owner], name)
	if len(v.members[old.owner]) == 0 {
		delete(v.members, old.owner)
	}
	return []ref{old.owner}
}

func (v *view) putAutoscaler(namespace string, a *autoscaler) []ref {
	changed := append(v.removeAutoscaler(namespace, a.name), a.target)
	v.autoscalers[namespace+"/"+a.name] = a
	v.targets[a.target] = a
	return changed
}

func (v *view) removeAutoscaler(namespace, name string) []ref {
	key := namespace + "/" + name
	old := v.autoscalers[key]
	if old == nil {
		return nil
	}
	delete(v.autoscalers, key)
	if v.targets[old.target] == old {
		delete(v.targets, old.target)
	}
	return []ref{old.target}
}

// workload states one function; ok is false where there is none, or what there is is no function.
func (v *view) workload(r ref) (w orchestrator.Workload, ok bool) {
	o := v.objects[r]
	if o == nil || !function.IsFunction(o.annotations) {
		return w, false
	}
	w = orchestrator.Workload{
		Key: r.key(), Name: v.name(r), Namespace: r.namespace, Kind: r.kind, Annotations: o.annotations,
		Wanted: o.replicas, Revision: o.revision(),
	}
	if a := v.targets[r]; a != nil {
		w.Autoscaler, w.AutoscalerMin = "HorizontalPodAutoscaler "+a.name, a.least
		if a.keda && !strings.EqualFold(o.annotations["SlimFaas/Autoscaler"], "slimfaas") {
			w.Fixed, w.FixedBy = true, fmt.Sprintf("managed by KEDA (HorizontalPodAutoscaler %s)", a.name)
		}
	}
	if upstream := v.upstream[r.namespace]; upstream != "" {
		w.Fixed, w.FixedBy = true, fmt.Sprintf("an upstream SlimFaas runs in namespace %s (StatefulSet %s): remove it, two would fight", r.namespace, upstream)
	}
	members := v.members[r]
	for _, name := range slices.Sorted(maps.Keys(members)) {
		one := members[name]
		status := containerStatusOf(one.pod)
		w.Replicas = append(w.Replicas, replica(one.pod, one.wasReady != "" && one.wasReady == instance(one.pod, status)))
	}
	if o.annotations["SlimFaas/Port"] == "" {
		withoutPort(w.Replicas)
	}
	if o.ordered {
		inOrder(w.Replicas, o.name)
	}
	return w, true
}

func containerStatusOf(pod *corev1.Pod) *corev1.ContainerStatus {
	serving, _, _ := servingPort(pod)
	return containerStatus(pod, serving)
}

// withoutPort says of pods that nobody could call what is missing.
func withoutPort(replicas []orchestrator.Replica) {
	for i := range replicas {
		if r := &replicas[i]; len(r.Ports) == 0 && r.Phase != orchestrator.Gone {
			r.Phase, r.Detail = orchestrator.Pending, `no container names a port to call: add ports: [{containerPort: 8080}] to it, or SlimFaas/Port: "8080"`
		}
	}
}

// inOrder says what the next pod of an ordered StatefulSet waits for.
func inOrder(replicas []orchestrator.Replica, set string) {
	for i := range replicas {
		r := &replicas[i]
		if r.Phase == orchestrator.Starting || r.Phase == orchestrator.NotReady || r.Phase == orchestrator.Pending {
			ordinal := strings.TrimPrefix(r.Name, set+"-")
			r.Detail = strings.TrimPrefix(r.Detail+"; ", "; ") + "later pods wait for ordinal " + ordinal + " (OrderedReady)"
		}
	}
}

// workloads states every function.
func (v *view) workloads() []orchestrator.Workload {
	all := make([]orchestrator.Workload, 0, len(v.objects))
	for r := range v.objects {
		if w, ok := v.workload(r); ok {
			all = append(all, w)
		}
	}
	return all
}

// part states one of our own pods: alive while its containers run.
func part(pod *corev1.Pod) orchestrator.Part {
	alive := pod.Status.Phase == corev1.PodRunning
	for i := range pod.Status.ContainerStatuses {
		alive = alive && pod.Status.ContainerStatuses[i].State.Running != nil
	}
	return orchestrator.Part{Name: pod.Name, Alive: alive}
}
