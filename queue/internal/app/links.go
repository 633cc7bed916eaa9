package app

import (
	"crypto/tls"
	"errors"
	"fmt"

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
	if len(c.Members) > 1 {
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
	members := make([]string, len(a.config.Members))
	for i, m := range a.config.Members {
		members[i] = m.Name
	}
	return links{
		api:    a.tls.Server(tlsconf.Names(api.RoleEdge, api.RoleScaler, api.RoleQueue)),
		bus:    a.tls.Server(tlsconf.Names(api.RoleEdge, api.RoleScaler)), // the node's own client uses no socket
		routes: a.tls.Mesh(tlsconf.Names(members...)),
		pull:   a.tls.Client(tlsconf.Names(api.RoleScaler, api.RoleQueue)),
	}
}
