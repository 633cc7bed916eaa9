package serve

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/slimfaas/slimfaas/shared/problem"
	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

type roleKey struct{}

// Role of the caller, as RequireToken found it; empty outside of it.
func Role(ctx context.Context) string {
	role, _ := ctx.Value(roleKey{}).(string)
	return role
}

// RequireToken lets through requests with `Authorization: Bearer <token>` of one of the roles (role → token) and tells the
// handler which role it is (Role). Others get 401. A role with an empty token is never let in. Over mutual TLS the caller's
// certificate must carry the name of the role too, so that a token alone is worth nothing. Which role may do what is the handler's
// to say.
func RequireToken(tokens map[string]string, next http.Handler) http.Handler {
	known := make(map[string][sha256.Size]byte, len(tokens))
	for role, token := range tokens {
		if token != "" {
			known[role] = sha256.Sum256([]byte(token))
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		given, found := sha256.Sum256([]byte(token)), ""
		for role, want := range known { // all of them, hashed: the time says nothing about a token
			if subtle.ConstantTimeCompare(given[:], want[:]) == 1 {
				found = role
			}
		}
		if r.TLS != nil && !tlsconf.Carries(r.TLS, found) {
			found = ""
		}
		if found == "" || !strings.EqualFold(scheme, "Bearer") {
			w.Header().Set("WWW-Authenticate", "Bearer")
			problem.Write(w, problem.Problem{Type: problem.TypeForbidden, Status: http.StatusUnauthorized, Detail: "this listener wants the bearer token of a role"})
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), roleKey{}, found)))
	})
}

// Loopback says whether the listen address addr (host:port) can only be reached from this machine. A name other than
// localhost may mean anything and is not loopback.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || (ip != nil && ip.IsLoopback())
}

// RefuseInsecure is an error when an internal link would be served unencrypted on an address that other machines reach,
// and nobody has allowed it (insecure, the …_INSECURE setting).
func RefuseInsecure(addr string, insecure bool) error {
	if insecure || Loopback(addr) {
		return nil
	}
	return fmt.Errorf("refusing to serve an internal link unencrypted on %s: other machines reach this address; put ca.crt, tls.crt and tls.key into the secrets directory, listen on 127.0.0.1, or allow it with …_INSECURE=true where the network is trusted", addr)
}
