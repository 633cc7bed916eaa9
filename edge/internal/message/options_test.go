package message

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestAFingerprintTellsRequestsApart(t *testing.T) {
	t.Parallel()
	base := &wire.StoredRequest{Method: "POST", Path: "/a", Query: "b", Body: []byte("c"), Headers: []*wire.Header{{Name: "Content-Type", Values: []string{"d"}}}}
	if Fingerprint(base) != Fingerprint(proto.CloneOf(base)) {
		t.Error("the same request has two fingerprints")
	}
	same := proto.CloneOf(base)
	same.Headers = append(same.Headers, &wire.Header{Name: "Traceparent", Values: []string{"x"}})
	if Fingerprint(base) != Fingerprint(same) {
		t.Error("a header that changes with each sending makes another request")
	}
	for what, change := range map[string]func(*wire.StoredRequest){
		"method": func(r *wire.StoredRequest) { r.Method = "PUT" },
		"path":   func(r *wire.StoredRequest) { r.Path = "/A" },
		"query":  func(r *wire.StoredRequest) { r.Query = "" },
		"body":   func(r *wire.StoredRequest) { r.Body = []byte("C") },
		"type":   func(r *wire.StoredRequest) { r.Headers[0].Values[0] = "D" },
		"name":   func(r *wire.StoredRequest) { r.Headers[0].Name = "Content-Encoding" },
		"border": func(r *wire.StoredRequest) { r.Path, r.Query = "/ab", "" },
	} {
		other := proto.CloneOf(base)
		change(other)
		if Fingerprint(base) == Fingerprint(other) {
			t.Errorf("another %s has the same fingerprint", what)
		}
	}
}
