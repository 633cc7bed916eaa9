package function_test

import (
	"testing"

	"github.com/slimfaas/slimfaas/shared/function"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	words := []string{"SlimFaas/ReplicasMin", "SlimFaas/ReplicasAtStart", "SlimFaas/DefaultTrust", "ab"}
	for _, tt := range []struct{ name, want string }{
		{"SlimFaas/ReplicaMin", "SlimFaas/ReplicasMin"},
		{"slimfaas/replicasmin", "SlimFaas/ReplicasMin"},
		{"SlimFaas/DefaultTrusted", "SlimFaas/DefaultTrust"},
		{"SlimFaas/ReplicasMin", "SlimFaas/ReplicasMin"},
		{"entirely different", ""},
		{"ax", ""},
		{"", ""},
	} {
		if got := function.Nearest(tt.name, words); got != tt.want {
			t.Errorf("Nearest(%q) = %q, want %q", tt.name, got, tt.want)
		}
	}
}
