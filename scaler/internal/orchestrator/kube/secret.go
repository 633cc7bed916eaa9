package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Secret reads one of the scaler's own namespace; found is false where there is none. The version is what ReplaceSecret expects.
func (d *Driver) Secret(ctx context.Context, name string) (data map[string][]byte, version string, found bool, err error) {
	var secret corev1.Secret
	err = d.lease.get(ctx, d.lease.core, d.own, "secrets", name, &secret)
	switch {
	case apierrors.IsNotFound(err):
		return nil, "", false, nil
	case err != nil:
		return nil, "", false, fmt.Errorf("read the Secret %s/%s: %w", d.own, name, err)
	}
	return secret.Data, secret.ResourceVersion, true, nil
}

// CreateSecret makes one that is not there; created is false where another was faster.
func (d *Driver) CreateSecret(ctx context.Context, name string, data map[string][]byte) (created bool, err error) {
	err = d.lease.core.Post().Namespace(d.own).Resource("secrets").Body(secretOf(name, "", data)).Do(ctx).Error()
	switch {
	case apierrors.IsAlreadyExists(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("create the Secret %s/%s: %w", d.own, name, err)
	}
	return true, nil
}

// ReplaceSecret replaces the content of one that has not changed since it was read.
func (d *Driver) ReplaceSecret(ctx context.Context, name, version string, data map[string][]byte) error {
	err := d.lease.core.Put().Namespace(d.own).Resource("secrets").Name(name).Body(secretOf(name, version, data)).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("replace the Secret %s/%s: %w", d.own, name, err)
	}
	return nil
}

func secretOf(name, version string, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: version, Labels: map[string]string{
			"app.kubernetes.io/name": "slimfaas", "app.kubernetes.io/part-of": "slimfaas",
		}},
		Type: corev1.SecretTypeOpaque, Data: data,
	}
}
