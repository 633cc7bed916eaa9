package async

import (
	"bytes"
	"net/http"
	"strconv"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

func TestAnAnswerIsHandedInWhereItIsWanted(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	e := run(t, q)
	e.serve(func(w http.ResponseWriter, r *http.Request) {
		size, _ := strconv.Atoi(r.URL.Path[1:])
		w.Header().Set("X-Function", "f")
		w.Header().Set("SlimFaas-Forged", "x")
		if r.URL.RawQuery == "broken" {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		if r.URL.RawQuery == "streamed" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = w.Write(bytes.Repeat([]byte("x"), size))
	})
	s := q.next().welcome(1)
	for i, c := range []struct {
		path, query string
		keep, whole bool
		size        int
	}{
		{"/5", "", false, false, 0},
		{"/5", "", true, true, 5},
		{"/0", "", true, true, 0},
		{"/100000", "streamed", true, true, 100_000},
		{"/1048576", "", true, true, 1 << 20},
		{"/1048576", "streamed", true, true, 1 << 20},
		{"/1048577", "", true, false, 0},
		{"/1048577", "streamed", true, false, 0},
		{"/5", "broken", true, false, 0},
	} {
		request := post(c.path)
		request.Query = c.query
		g := grantOf(t, uint64(i+1), request)
		g.KeepResult = c.keep
		s.grant(g)
		r := s.result()
		if r.GetStatus() != 200 || (len(r.GetAnswer()) > 0) != c.keep {
			t.Fatalf("%s %s: status %d, an answer of %d bytes", c.path, c.query, r.GetStatus(), len(r.GetAnswer()))
		}
		if c.keep {
			var a wire.StoredAnswer
			if err := proto.Unmarshal(r.GetAnswer(), &a); err != nil {
				t.Fatal(err)
			}
			if a.GetStatus() != 200 || len(a.GetBody()) != c.size || (a.GetOmitted() == "") != c.whole {
				t.Errorf("%s %s: status %d, %d bytes, omitted %q", c.path, c.query, a.GetStatus(), len(a.GetBody()), a.GetOmitted())
			}
			forged, ours := false, false
			for _, h := range a.GetHeaders() {
				forged, ours = forged || h.GetName() == "Slimfaas-Forged", ours || h.GetName() == "X-Function"
			}
			if forged || !ours {
				t.Errorf("headers %v", a.GetHeaders())
			}
		}
		s.ack(r, wire.Code_CODE_OK)
	}
	s.beat(func(h *wire.HeldHeartbeat) bool { return h.GetCount() == 0 })
	share, err := e.answers.Begin()
	if err != nil || share.Take(e.opts.MaxBytes) != nil {
		t.Error("memory of answers was not given back")
	}
}
