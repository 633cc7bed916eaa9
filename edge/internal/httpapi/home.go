package httpapi

import (
	"fmt"
	"html"
	"net/http"
	"strings"

	"github.com/slimfaas/slimfaas/edge/internal/replica"
	"github.com/slimfaas/slimfaas/edge/internal/route"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// home is the object of `GET /`.
type home struct {
	Version   string
	Functions []homeFunction
	Links     []homeLink
}

type homeFunction struct {
	functionStatus
	State  string // Ready, Starting, Asleep or Broken
	Reason string // why it is to have the replicas it is to have
}

type homeLink struct{ Path, About string }

var homeLinks = []homeLink{
	{"/status-functions", "the functions, as JSON"},
	{"/metrics", "metrics, for Prometheus"},
	{"/health", "whether this edge lives"},
	{"/ready", "whether it should be sent requests"},
}

func stateOf(f *replica.Function, s functionStatus) string {
	switch {
	case len(f.Record().GetProblems()) > 0:
		return "Broken"
	case s.NumberReady > 0:
		return "Ready"
	case s.NumberRequested > 0 || len(living(f)) > 0:
		return "Starting"
	}
	return "Asleep"
}

// living replicas: those that are, or will be, there.
func living(f *replica.Function) (names []string) {
	for _, r := range f.Record().GetReplicas() {
		if s := r.GetState(); s == wire.ReplicaState_REPLICA_STATE_PENDING || s == wire.ReplicaState_REPLICA_STATE_STARTING {
			names = append(names, r.GetName())
		}
	}
	return names
}

// HandleHome answers `GET /`: what this is and what there is, as a page or as JSON.
func (a *API) HandleHome(version string) {
	a.Handle(route.Home, func(w http.ResponseWriter, r *http.Request, _ *Request) {
		h := home{Version: version, Functions: []homeFunction{}, Links: homeLinks}
		for _, f := range a.Functions.All() {
			s := statusOf(f)
			h.Functions = append(h.Functions, homeFunction{s, stateOf(f, s), f.Record().GetReason()})
		}
		if !WantsPage(r) {
			WriteJSON(w, h)
			return
		}
		PageHeaders(w)
		_, _ = w.Write([]byte(h.page())) // the caller is gone when this fails
	})
}

func (h home) page() string {
	var b strings.Builder
	b.WriteString(PageHead("SlimFaas", ""))
	fmt.Fprintf(&b, "<h1>SlimFaas</h1><p>%s</p>\n", html.EscapeString(h.Version))
	if len(h.Functions) == 0 {
		b.WriteString("<p>There is no function yet: give a deployment the annotation <code>SlimFaas/Function: \"true\"</code>.</p>\n")
	} else {
		b.WriteString("<table><tr><th>function<th>state<th>replicas<th>visibility<th>why</tr>\n")
		for _, f := range h.Functions {
			name := html.EscapeString(f.Name)
			fmt.Fprintf(&b, "<tr><td>%s<td>%s<td>%d of %d<td>%s<td>%s</tr>\n", name, f.State, f.NumberReady, f.NumberRequested,
				html.EscapeString(f.Visibility), html.EscapeString(f.Reason))
		}
		b.WriteString("</table>\n<p>Call one at <code>/function/{name}/…</code>, queue a call at <code>/async-function/{name}/…</code>.</p>\n")
	}
	b.WriteString("<ul>")
	for _, l := range h.Links {
		fmt.Fprintf(&b, `<li><a href="%s">%s</a> %s`, l.Path, l.Path, html.EscapeString(l.About))
	}
	b.WriteString("</ul></body></html>\n")
	return b.String()
}
