package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"

	"github.com/slimfaas/slimfaas/queue/internal/api"
	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

// openTLS reads the certificates, and refuses to be reached by other machines without them unless that is allowed.
func (a *App) openTLS() (err error) {
	c := a.config
	if a.tls, err = tlsconf.Open(c.SecretsDir, a.log, api.RoleQueue, c.Name); err != nil || a.tls != nil {
		return err
	}
	listeners := []struct{ name, address string }{{"raft", c.RaftAddress}, {"API", c.APIAddress}, {"bus", c.BusAddress}}
	if a.secrets.password != "" { // a node alone opens its routes, too, if it could be joined by a second one
		listeners = append(listeners, struct{ name, address string }{"routes", c.RoutesAddress})
	}
	var errs []error
	open := false
	for _, l := range listeners {
		if err := serve.RefuseInsecure(l.address, c.Insecure); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.name, err))
		}
		open = open || !serve.Loopback(l.address)
	}
	if open && len(errs) == 0 {
		a.log.Warn("internal links are not encrypted, and other machines reach them: QUEUE_INSECURE allows it")
	}
	return errors.Join(errs...)
}

// links are the TLS configurations of a node's connections, each pinned to who has business there; nil: unencrypted.
type links struct {
	api, bus, routes, pull *tls.Config
}

func (a *App) links() links {
	if a.tls == nil {
		return links{}
	}
	return links{
		api:    a.tls.Server(tlsconf.Names(api.RoleEdge, api.RoleScaler, api.RoleQueue)),
		bus:    a.tls.Server(tlsconf.Names(api.RoleEdge, api.RoleScaler)), // the node's own client uses no socket
		routes: a.tls.Mesh(a.memberNames),
		pull:   a.tls.Client(tlsconf.Names(api.RoleScaler, api.RoleQueue)),
	}
}

// memberNames are the nodes that the configuration lists and those that the Raft log has: a node that waits to be added knows
// only the former, one that has run for long must know the latter.
func (a *App) memberNames() []string {
	var names []string
	for _, m := range a.config.Members {
		names = append(names, m.Name)
	}
	if n := a.members.Load(); n != nil {
		for _, m := range n.Members() {
			if !slices.Contains(names, m.Name) {
				names = append(names, m.Name)
			}
		}
	}
	return names
}
