package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/slimfaas/slimfaas/shared/serve"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

// links are the TLS configurations of a scaler's connections; nil: unencrypted.
type links struct {
	api   *tls.Config // queue nodes dial it
	queue *tls.Config // API and bus of the queue nodes
}

// links reads the certificates. Without them it keeps tokens and the bus off networks nobody has called trusted.
func (a *App) links() (links, error) {
	var err error
	if a.tls, err = tlsconf.Open(a.SecretsDir, a.Log, "scaler"); err != nil {
		return links{}, err
	}
	if a.tls != nil {
		queue := tlsconf.Names("queue")
		return links{api: a.tls.Server(queue), queue: a.tls.Client(queue)}, nil
	}
	var errs []error
	if err := serve.RefuseInsecure(a.APIAddress, a.Insecure); err != nil {
		errs = append(errs, fmt.Errorf("SCALER_API_ADDRESS: %w", err))
	}
	open := !serve.Loopback(a.APIAddress)
	for _, raw := range slices.Concat(a.QueueAPI, a.BusURLs) {
		u, err := url.Parse(strings.TrimSpace(raw))
		switch {
		case err != nil || u.Host == "":
			errs = append(errs, fmt.Errorf("reading the address %q: expected scheme://host:port", raw))
		case u.Scheme == "https" || u.Scheme == "tls":
			errs = append(errs, fmt.Errorf("%s asks for TLS: put ca.crt, tls.crt and tls.key into SCALER_SECRETS_DIR", raw))
		case serve.Loopback(u.Host):
		case a.Insecure:
			open = true
		default:
			errs = append(errs, fmt.Errorf("refusing to send the scaler's token unencrypted to %s on another machine: put ca.crt, tls.crt and tls.key into SCALER_SECRETS_DIR, or allow it with SCALER_INSECURE=true where the network is trusted", u.Host))
		}
	}
	if open && len(errs) == 0 {
		a.Log.Warn("internal links are not encrypted, and other machines reach them: SCALER_INSECURE allows it")
	}
	return links{}, errors.Join(errs...)
}
