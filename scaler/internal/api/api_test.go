package api_test

import (
	"errors"
	"iter"
	"net/http/httptest"
	"slices"
	"testing"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/scaler/internal/api"
	"github.com/slimfaas/slimfaas/shared/testkit"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

type pages struct {
	err   error
	since *wire.Version
}

func (p *pages) Pages(since *wire.Version) (iter.Seq[*wire.PullResponse], error) {
	p.since = since
	return slices.Values([]*wire.PullResponse{
		{Digest: &wire.TableDigest{Leader: "scaler-0"}, Full: true}, {Records: []*wire.FunctionRecord{{Name: "a"}}},
	}), p.err
}

func pull(t *testing.T, table api.Table, token string) (records int, err error) {
	t.Helper()
	server := httptest.NewServer(api.Handler(table, "queue-token"))
	defer server.Close()
	request := connect.NewRequest(&wire.PullRequest{Since: &wire.Version{Epoch: 3}})
	request.Header().Set("Authorization", "Bearer "+token)
	stream, err := wireconnect.NewTableServiceClient(testkit.Client, server.URL).Pull(t.Context(), request)
	if err != nil {
		return 0, err
	}
	defer stream.Close() //nolint:errcheck // it was read to its end
	for stream.Receive() {
		records += len(stream.Msg().GetRecords())
	}
	return records, stream.Err()
}

func TestPull(t *testing.T) {
	t.Parallel()
	table := &pages{}
	if records, err := pull(t, table, "queue-token"); err != nil || records != 1 || table.since.GetEpoch() != 3 {
		t.Errorf("%d records, since %v, %v", records, table.since, err)
	}
	if _, err := pull(t, &pages{err: errors.New("this scaler does not lead")}, "queue-token"); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("not leading: %v", err)
	}
	for _, token := range []string{"", "edge-token"} {
		if _, err := pull(t, table, token); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("token %q: %v", token, err)
		}
	}
}
