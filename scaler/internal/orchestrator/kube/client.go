package kube

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

// The scheme holds what is used here. client-go's clientset knows every group of Kubernetes, which costs four times the packages
// to compile and half of this program's size (docs/adr/0023-kubernetes-driver.md).
var (
	scheme     = newScheme()
	codecs     = serializer.NewCodecFactory(scheme)
	parameters = runtime.NewParameterCodec(scheme)
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, autoscalingv1.AddToScheme, autoscalingv2.AddToScheme, coordinationv1.AddToScheme, corev1.AddToScheme,
	} {
		utilruntime.Must(add(s))
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s
}

// client of the groups that are used, with one limit over all of them.
type client struct{ apps, core, autoscaling, coordination rest.Interface }

// newClient makes one. timeout bounds each of its requests; 0: none does, it watches.
func newClient(config *rest.Config, qps float32, burst int, timeout time.Duration) (*client, error) {
	shared := rest.CopyConfig(config)
	shared.UserAgent, shared.Timeout = userAgent, timeout
	shared.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(qps, burst)
	shared.ContentType = runtime.ContentTypeProtobuf
	shared.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	shared.NegotiatedSerializer = codecs.WithoutConversion()
	transport, err := rest.HTTPClientFor(shared)
	if err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	c := &client{}
	for _, group := range []struct {
		version schema.GroupVersion
		into    *rest.Interface
	}{
		{corev1.SchemeGroupVersion, &c.core},
		{appsv1.SchemeGroupVersion, &c.apps},
		{autoscalingv2.SchemeGroupVersion, &c.autoscaling},
		{coordinationv1.SchemeGroupVersion, &c.coordination},
	} {
		one := rest.CopyConfig(shared)
		one.GroupVersion, one.APIPath = &group.version, "/apis"
		if group.version.Group == "" {
			one.APIPath = "/api"
		}
		made, err := rest.RESTClientForConfigAndClient(one, transport)
		if err != nil {
			return nil, fmt.Errorf("make a client of %s: %w", group.version, err)
		}
		*group.into = made
	}
	return c, nil
}

var (
	emptyWatch  = reflect.TypeOf(watch.NewEmptyWatch())
	errNoAnswer = errors.New("the connection ended before the API server had answered")
)

// source of the objects of one resource in one namespace; empty: all.
type source struct {
	client              rest.Interface
	resource, namespace string
	selector            string // of labels; empty: every one
}

func (s source) request(o metav1.ListOptions) *rest.Request {
	o.LabelSelector = s.selector
	return s.client.Get().NamespaceIfScoped(s.namespace, s.namespace != "").Resource(s.resource).VersionedParams(&o, parameters)
}

func (s source) list(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return s.request(o).Do(ctx).Get()
}

func (s source) watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	// A watch that cannot be opened is told: client-go would try again in silence for ten seconds, and calls a connection that was closed
	// or timed out before the answer a watch that saw nothing.
	events, err := s.request(o).MaxRetries(0).Watch(ctx)
	if err == nil && reflect.TypeOf(events) == emptyWatch {
		return nil, errNoAnswer
	}
	return events, err
}

func (c *client) get(ctx context.Context, from rest.Interface, namespace, resource, name string, into runtime.Object) error {
	return from.Get().Namespace(namespace).Resource(resource).Name(name).Do(ctx).Into(into)
}

// answers says whether the API server answers at all.
func (c *client) answers(ctx context.Context) error {
	_, err := c.core.Get().AbsPath("/version").DoRaw(ctx)
	return err
}
