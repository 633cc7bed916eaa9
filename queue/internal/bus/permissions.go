package bus

import (
	"slices"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// Role is a program on the bus; each has one nkey.
type Role string

// Roles.
const (
	RoleEdge   Role = "edge"
	RoleQueue  Role = "queue"
	RoleScaler Role = "scaler"
)

// Roles lists them in a fixed order.
var Roles = []Role{RoleEdge, RoleQueue, RoleScaler}

// Inbox is the subject tree in which a role receives answers; shared/nc gives its clients this inbox prefix.
func (r Role) Inbox() string { return "_INBOX." + string(r) + ".>" }

// line says who may publish and who may subscribe to one subject.
type line struct {
	subject    string
	publishers []Role
	listeners  []Role
}

// lines is the whole traffic of the bus; whatever is not here is refused by the server. Answers go to the inbox of the role
// that asks, so each role that answers may publish there; inboxes of single clients are random and cannot be listed.
var lines = []line{
	{wire.SubjectWake, []Role{RoleEdge}, []Role{RoleScaler}},
	{wire.SubjectSighting, []Role{RoleScaler}, []Role{RoleEdge, RoleScaler}},
	{wire.SubjectRecord, []Role{RoleScaler}, []Role{RoleEdge, RoleQueue, RoleScaler}},
	{wire.SubjectDigest, []Role{RoleScaler}, []Role{RoleEdge, RoleQueue, RoleScaler}},
	{wire.SubjectTableAsk, []Role{RoleScaler}, []Role{RoleEdge, RoleQueue, RoleScaler}},
	{wire.SubjectLoad, []Role{RoleEdge}, []Role{RoleScaler}},
	{wire.SubjectDemand, []Role{RoleQueue}, []Role{RoleScaler}},
	{wire.SubjectFacts, []Role{RoleQueue}, []Role{RoleScaler}},
	{wire.SubjectExplain, []Role{RoleEdge}, []Role{RoleScaler}},
	{wire.SubjectEdgeHello, []Role{RoleEdge}, []Role{RoleEdge}},
	{wire.SubjectEventShare + ".*", []Role{RoleEdge}, []Role{RoleEdge}}, // the last part is an edge's incarnation

	{RoleEdge.Inbox(), []Role{RoleEdge, RoleScaler}, []Role{RoleEdge}},                // explain, event shares
	{RoleScaler.Inbox(), []Role{RoleEdge, RoleQueue, RoleScaler}, []Role{RoleScaler}}, // table digests
	{RoleQueue.Inbox(), nil, []Role{RoleQueue}},                                       // the queue asks nothing yet
}

// permissions of one role, derived from lines.
func permissions(r Role) *server.Permissions {
	var publish, subscribe []string
	for _, l := range lines {
		if slices.Contains(l.publishers, r) {
			publish = append(publish, l.subject)
		}
		if slices.Contains(l.listeners, r) {
			subscribe = append(subscribe, l.subject)
		}
	}
	return &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: publish},
		Subscribe: &server.SubjectPermission{Allow: subscribe},
	}
}
