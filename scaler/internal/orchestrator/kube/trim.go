package kube

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The informers keep what is read here and nothing else: 6,000 whole pods alone would need more memory than this program may take.

func trimDeployment(object any) (any, error) {
	if d, is := object.(*appsv1.Deployment); is {
		d.Spec = appsv1.DeploymentSpec{Replicas: d.Spec.Replicas, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{
			Annotations: annotationsOf(nil, d.Spec.Template.Annotations),
		}}}
		d.Status = appsv1.DeploymentStatus{}
	}
	return trimMeta(object)
}

func trimStatefulSet(object any) (any, error) {
	if s, is := object.(*appsv1.StatefulSet); is {
		var containers []corev1.Container
		for i := range s.Spec.Template.Spec.Containers {
			containers = append(containers, corev1.Container{Image: s.Spec.Template.Spec.Containers[i].Image})
		}
		s.Spec = appsv1.StatefulSetSpec{
			Replicas: s.Spec.Replicas, PodManagementPolicy: s.Spec.PodManagementPolicy,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Annotations: annotationsOf(nil, s.Spec.Template.Annotations)},
				Spec:       corev1.PodSpec{Containers: containers},
			},
		}
		s.Status = appsv1.StatefulSetStatus{}
	}
	return trimMeta(object)
}

func trimPod(object any) (any, error) {
	p, is := object.(*corev1.Pod)
	if !is {
		return object, nil
	}
	containers := make([]corev1.Container, 0, len(p.Spec.Containers))
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		containers = append(containers, corev1.Container{Name: c.Name, Ports: c.Ports, ReadinessProbe: c.ReadinessProbe})
	}
	var sidecars []corev1.Container // those that the pod's readiness waits for
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.ReadinessProbe != nil {
			sidecars = append(sidecars, corev1.Container{Name: c.Name, ReadinessProbe: c.ReadinessProbe})
		}
	}
	p.Spec = corev1.PodSpec{Containers: containers, InitContainers: sidecars, ReadinessGates: p.Spec.ReadinessGates}
	p.Status = corev1.PodStatus{
		Phase: p.Status.Phase, PodIP: p.Status.PodIP, Reason: p.Status.Reason, Message: p.Status.Message,
		Conditions: conditions(p.Status.Conditions), ContainerStatuses: statuses(p.Status.ContainerStatuses), InitContainerStatuses: statuses(p.Status.InitContainerStatuses),
	}
	if hash := p.Labels[hashLabel]; hash != "" {
		p.Labels = map[string]string{hashLabel: hash}
	} else {
		p.Labels = nil
	}
	return trimMeta(object)
}

func conditions(all []corev1.PodCondition) (kept []corev1.PodCondition) {
	for i := range all {
		if all[i].Type == corev1.PodReady || all[i].Type == corev1.PodScheduled {
			kept = append(kept, all[i])
		}
	}
	return kept
}

func statuses(all []corev1.ContainerStatus) []corev1.ContainerStatus {
	kept := make([]corev1.ContainerStatus, 0, len(all))
	for i := range all {
		kept = append(kept, corev1.ContainerStatus{
			Name: all[i].Name, State: all[i].State, LastTerminationState: all[i].LastTerminationState, RestartCount: all[i].RestartCount,
		})
	}
	return kept
}

func trimMeta(object any) (any, error) {
	meta, is := object.(metav1.Object)
	if !is {
		return object, nil // a tombstone of an informer
	}
	meta.SetManagedFields(nil)
	switch object.(type) {
	case *corev1.Pod:
		meta.SetAnnotations(nil)
	case *appsv1.Deployment, *appsv1.StatefulSet:
		meta.SetLabels(nil)
		meta.SetAnnotations(annotationsOf(meta.GetAnnotations(), nil))
	}
	if meta.GetName() == "" {
		return nil, fmt.Errorf("an object without a name: %T", object)
	}
	return object, nil
}
