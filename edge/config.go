package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/slimfaas/slimfaas/edge/internal/access"
	"github.com/slimfaas/slimfaas/edge/internal/app"
	"github.com/slimfaas/slimfaas/edge/internal/gate"
	"github.com/slimfaas/slimfaas/edge/internal/shed"
	"github.com/slimfaas/slimfaas/shared/settings"
)

const prefix = "EDGE_"

// config is everything the edge can be told, one struct per concern.
type config struct {
	Log      settings.Log
	Identity identityConfig
	Listen   listenConfig
	Neighbor neighborConfig
	Access   accessConfig
	Traffic  trafficConfig
	Sync     syncConfig
	Async    asyncConfig
	Drain    drainConfig
}

type identityConfig struct {
	Name string `env:"NAME" doc:"Name of this edge, unique among the edges; it is the name of its session in the queue. Empty: the host name."`
}

type listenConfig struct {
	Public           string `env:"PUBLIC_ADDRESS" envDefault:":5000" doc:"Address of the public HTTP listener (HTTP/1.1, and HTTP/2 by prior knowledge)."`
	Internal         string `env:"INTERNAL_ADDRESS" envDefault:":5001" doc:"Address of the internal HTTP listener: the public routes, explain, scale, cluster, dead letters. Every caller is still checked."`
	Admin            string `env:"ADMIN_ADDRESS" envDefault:":9090" doc:"Address of /metrics, /health and /ready."`
	TLSCertFile      string `env:"TLS_CERT_FILE" doc:"Certificate of the public listener, PEM, with what lies between it and its authority. With it and EDGE_TLS_KEY_FILE the listener speaks TLS (1.2 and 1.3, HTTP/1.1 and HTTP/2) and nothing else; both files are read again when they change. Empty: no TLS."`
	TLSKeyFile       string `env:"TLS_KEY_FILE" doc:"Key of EDGE_TLS_CERT_FILE, PEM."`
	MaxConnections   int    `env:"MAX_CONNECTIONS" envDefault:"10000" doc:"Connections that may be open on the public listener. One more closes the one that has been idle for longest, or, where all have a request under way, is closed itself. Upgraded connections (WebSocket) do not count. 0: any number."`
	InternalOnPublic bool   `env:"INTERNAL_ON_PUBLIC" envDefault:"false" doc:"Answer the internal routes on the public listener too, to internal callers."`
	Profile          bool   `env:"PROFILE" doc:"Serve /debug/pprof/ on the admin address."`
	PublicMetrics    bool   `env:"PUBLIC_METRICS" envDefault:"true" doc:"Answer /metrics on the public listener too, as the original does."`
}

type neighborConfig struct {
	QueueAPI   []string `env:"QUEUE_API,required,notEmpty" doc:"APIs of the queue nodes, comma list of http://host:port; with certificates in the secrets directory they are reached by TLS, whatever the scheme."`
	BusURLs    []string `env:"BUS_URLS,required,notEmpty" doc:"Buses of the queue nodes, comma list of nats://host:port; TLS as above."`
	SecretsDir string   `env:"SECRETS_DIR" doc:"Directory with bus-edge.seed and token-edge; ca.crt, tls.crt and tls.key when internal links use TLS (docs/security.md). Empty: neither is presented (only for neighbours that ask for none)."`
	Insecure   bool     `env:"INSECURE" envDefault:"false" doc:"Allow links without TLS to queue nodes on other machines."`
}

type accessConfig struct {
	TrustedProxies []netip.Prefix `env:"TRUSTED_PROXIES" doc:"Networks (CIDR, comma list) of proxies whose X-Forwarded-* headers are believed. Empty: nobody's."`
	InternalCIDRs  []netip.Prefix `env:"INTERNAL_CIDRS" doc:"Networks (CIDR, comma list) whose callers count as internal, beside replicas of trusted functions. Empty: none."`
	KeysFile       string         `env:"API_KEYS_FILE" doc:"File with the keys of callers, a name and a key a line, or sha256: and the hash of one; it is read again when it changes. With it, callers that are not internal need a key to wake and to publish. Functions with SlimFaas/RequireKey need one in any case. Empty: no keys."`
	CorsAllow      string         `env:"CORS_ALLOW_ORIGIN" envDefault:"*" alias:"SlimFaas__CorsAllowOrigin" doc:"Origins a browser may call from: * or a comma list."`
}

type trafficConfig struct {
	Log          bool     `env:"ACCESS_LOG" envDefault:"false" doc:"Write a line a request into the log, those for health, readiness and metrics left out."`
	LogPerSecond int      `env:"ACCESS_LOG_PER_SECOND" envDefault:"1000" doc:"Lines of it a second; of further requests only the number is written."`
	Limit        bool     `env:"RATE_LIMIT" envDefault:"false" alias:"SlimFaas__RateLimiting__Enabled" doc:"Refuse requests of the public listener (429) while this edge uses too much of its processors."`
	CPUHigh      float64  `env:"RATE_LIMIT_CPU_HIGH" envDefault:"80" alias:"SlimFaas__RateLimiting__CpuHighThreshold" doc:"Percentage of the processors from which on requests are refused."`
	CPULow       float64  `env:"RATE_LIMIT_CPU_LOW" envDefault:"60" alias:"SlimFaas__RateLimiting__CpuLowThreshold" doc:"Percentage down to which they still are."`
	IntervalMs   int64    `env:"RATE_LIMIT_INTERVAL_MS" envDefault:"1000" alias:"SlimFaas__RateLimiting__SampleIntervalMs" doc:"Interval that is measured, in milliseconds, at least 100."`
	RetryAfter   int64    `env:"RATE_LIMIT_RETRY_AFTER" envDefault:"5" alias:"SlimFaas__RateLimiting__RetryAfterSeconds" doc:"Retry-After of the refused, in seconds. 0: none."`
	Excluded     []string `env:"RATE_LIMIT_EXCLUDED_PATHS" envDefault:"/health,/metrics,/ready" doc:"Paths that are never refused, comma list, exact, in any case."`
}

func (c *trafficConfig) rule() shed.Rule {
	return shed.Rule{
		High: c.CPUHigh, Low: c.CPULow, Every: time.Duration(c.IntervalMs) * time.Millisecond,
		RetryAfter: time.Duration(c.RetryAfter) * time.Second, Excluded: c.Excluded,
	}
}

// Validate implements settings.Validator.
func (c *trafficConfig) Validate() error {
	var errs []error
	if err := c.rule().Validate(); err != nil {
		errs = append(errs, fmt.Errorf("EDGE_RATE_LIMIT_…: %w", err))
	}
	return errors.Join(append(errs, positive(map[string]int64{"ACCESS_LOG_PER_SECOND": int64(c.LogPerSecond)}))...)
}

type syncConfig struct {
	MaxBody           int64 `env:"MAX_BODY_BYTES" envDefault:"524288000" alias:"Kestrel__Limits__MaxRequestBodySize" doc:"Largest body of a sync call, in bytes; more is 413."`
	ParkedPerFunction int   `env:"PARKED_PER_FUNCTION" envDefault:"1000" doc:"Requests of one function that may wait for a replica; more is 503."`
	ParkedTotal       int   `env:"PARKED_TOTAL" envDefault:"10000" doc:"Requests of all functions that may wait for a replica; more is 503."`
}

type asyncConfig struct {
	Deliver          bool   `env:"DELIVER" envDefault:"true" doc:"Deliver async calls. Without it this edge takes calls and leaves their delivery to others; it keeps its session."`
	MaxHeld          uint32 `env:"DELIVERIES" envDefault:"512" doc:"Async tries under way at one time, all functions together."`
	MaxHeldBytes     int64  `env:"DELIVERY_BYTES" envDefault:"134217728" doc:"About how much their payloads may take together, in bytes."`
	MaxBody          int64  `env:"MAX_ASYNC_BODY" envDefault:"67108864" alias:"EDGE_ASYNC_MAX_BODY_BYTES" doc:"Largest body of an async call, in bytes; more is 413. One over 1 MiB goes to the queue while it comes and is never in memory as a whole."`
	Uploads          int64  `env:"ASYNC_UPLOADS" envDefault:"32" doc:"Bodies over 1 MiB being taken at one time, each with up to 2 MiB of memory; more is 503."`
	EventMaxBody     int64  `env:"EVENT_MAX_BODY_BYTES" envDefault:"1048576" doc:"Largest body of an event, in bytes; more is 413."`
	Taking           int64  `env:"ASYNC_TAKING" envDefault:"2048" doc:"Async calls and events being taken at one time; more is 503."`
	TakingBytes      int64  `env:"ASYNC_TAKING_BYTES" envDefault:"134217728" doc:"How much their bodies may take together, in bytes; more is 503."`
	EventConcurrency int    `env:"EVENT_CONCURRENCY" envDefault:"64" doc:"Calls of one event that are open at one time."`
	MaxReplicas      int    `env:"SCALE_MAX" envDefault:"64" doc:"What PUT /scale may ask for where a function sets no ReplicaMax. 0: any number (Kubernetes)."`
}

type drainConfig struct {
	Delay time.Duration `env:"DRAIN_DELAY" envDefault:"0s" doc:"At a stop, how long to go on taking requests after /ready turned red, so that balancers notice. Kubernetes: 5s."`
	Limit time.Duration `env:"DRAIN" envDefault:"30s" doc:"At a stop, how long requests under way may go on; then, again, deliveries. What is left is cut."`
}

// Validate implements settings.Validator.
func (c *syncConfig) Validate() error {
	return positive(map[string]int64{
		"MAX_BODY_BYTES": c.MaxBody, "PARKED_PER_FUNCTION": int64(c.ParkedPerFunction), "PARKED_TOTAL": int64(c.ParkedTotal),
	})
}

// Validate implements settings.Validator.
func (c *asyncConfig) Validate() error {
	return positive(map[string]int64{
		"DELIVERIES": int64(c.MaxHeld), "DELIVERY_BYTES": c.MaxHeldBytes, "MAX_ASYNC_BODY": c.MaxBody,
		"ASYNC_UPLOADS": c.Uploads, "EVENT_MAX_BODY_BYTES": c.EventMaxBody,
		"ASYNC_TAKING": c.Taking, "ASYNC_TAKING_BYTES": c.TakingBytes, "EVENT_CONCURRENCY": int64(c.EventConcurrency),
	})
}

// Validate implements settings.Validator.
func (c *listenConfig) Validate() error {
	if c.MaxConnections < 0 {
		return fmt.Errorf("EDGE_MAX_CONNECTIONS=%d: expected a number, at least 0", c.MaxConnections)
	}
	return nil
}

// Validate implements settings.Validator.
func (c *drainConfig) Validate() error {
	if c.Delay < 0 || c.Limit < 0 {
		return errors.New("EDGE_DRAIN_DELAY and EDGE_DRAIN cannot be negative")
	}
	return nil
}

func positive(values map[string]int64) error {
	var errs []error
	for name, v := range values {
		if v <= 0 {
			errs = append(errs, fmt.Errorf("%s%s=%d: expected a number greater than 0", prefix, name, v))
		}
	}
	return errors.Join(errs...)
}

// options turns the configuration into what app wants.
func (c *config) options() (app.Options, error) {
	name := c.Identity.Name
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return app.Options{}, fmt.Errorf("reading the host name, for EDGE_NAME is empty: %w", err)
		}
		name = host
	}
	o := app.Options{
		Name:             name,
		PublicAddress:    c.Listen.Public,
		InternalAddress:  c.Listen.Internal,
		AdminAddress:     c.Listen.Admin,
		CertFile:         c.Listen.TLSCertFile,
		KeyFile:          c.Listen.TLSKeyFile,
		MaxConns:         c.Listen.MaxConnections,
		KeysFile:         c.Access.KeysFile,
		Profile:          c.Listen.Profile,
		InternalOnPublic: c.Listen.InternalOnPublic,
		PublicMetrics:    c.Listen.PublicMetrics,
		QueueAPI:         c.Neighbor.QueueAPI,
		BusURLs:          c.Neighbor.BusURLs,
		SecretsDir:       c.Neighbor.SecretsDir,
		Insecure:         c.Neighbor.Insecure,
		Access:           access.Rules{TrustedProxies: c.Access.TrustedProxies, Networks: c.Access.InternalCIDRs},
		Cors:             gate.NewCors(c.Access.CorsAllow),
		MaxBody:          c.Sync.MaxBody,
		ParkedPer:        c.Sync.ParkedPerFunction,
		ParkedTotal:      c.Sync.ParkedTotal,
		MaxHeld:          c.Async.MaxHeld,
		MaxHeldBytes:     c.Async.MaxHeldBytes,
		AsyncMaxBody:     c.Async.MaxBody,
		EventMaxBody:     c.Async.EventMaxBody,
		Uploads:          c.Async.Uploads,
		Taking:           c.Async.Taking,
		TakingBytes:      c.Async.TakingBytes,
		EventConcurrency: c.Async.EventConcurrency,
		MaxReplicas:      c.Async.MaxReplicas,
		DrainDelay:       c.Drain.Delay,
		Drain:            c.Drain.Limit,
	}
	if c.Traffic.Log {
		o.AccessLog = c.Traffic.LogPerSecond
	}
	if c.Traffic.Limit {
		rule := c.Traffic.rule()
		o.Shed = &rule
	}
	if !c.Async.Deliver {
		o.MaxHeld = 0
	}
	return o, nil
}
