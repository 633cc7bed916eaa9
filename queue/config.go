package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/app"
	"github.com/slimfaas/slimfaas/queue/internal/guard"
	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
	"github.com/slimfaas/slimfaas/shared/settings"
)

// prefix of this program's variables.
const prefix = "QUEUE_"

// Config is everything the environment says.
type Config struct {
	Log     settings.Log
	Node    NodeConfig
	Listen  ListenConfig
	Keep    KeepConfig
	Guard   GuardConfig
	Profile bool `env:"PROFILE" doc:"Serve /debug/pprof/ on the admin address."`
}

// NodeConfig says which node this is.
type NodeConfig struct {
	Name       string           `env:"NAME" doc:"Name of this node, one of those in QUEUE_MEMBERS. Empty: the name of the host."`
	DataDir    string           `env:"DATA_DIR" envDefault:"/data" alias:"SlimData__Directory,SLIMDATA_DIRECTORY" doc:"Directory of the Raft log, the snapshots and the state. One process at a time."`
	Members    Members          `env:"MEMBERS" doc:"All nodes of the first start, the same list on each: comma list of name=host[:raft:api:routes], ports 3262, 3263 and 6222 when left out. Later the Raft log says who is a member, and this only where those are that it lists. Empty: this node alone."`
	Join       bool             `env:"JOIN" doc:"With an empty data directory, begin no cluster: wait until 'queue add' adds this node to one, under a name that was never used. QUEUE_MEMBERS then lists this node and members that are there. A member that lost its directory is refused: it rejoins (QUEUE_REJOIN)."`
	LogStore   raftnode.LogKind `env:"LOG_STORE" envDefault:"segments" doc:"Where the entries of the Raft log are kept: segments (one fsync for a group of calls) or bolt (two, and more processor time). A log in bolt moves into segments at the start, not back."`
	SecretsDir string           `env:"SECRETS_DIR" doc:"Directory of the secret files: bus keys, routes password, tokens; ca.crt, tls.crt and tls.key when internal links use TLS (docs/security.md)."`
}

// complete takes the host's name where none is set.
func (c *NodeConfig) complete() (err error) {
	if c.Name != "" {
		return nil
	}
	if c.Name, err = os.Hostname(); err != nil {
		return fmt.Errorf("QUEUE_NAME is not set, and the host has no name: %w", err)
	}
	return nil
}

// ListenConfig says where this node listens. An empty host is every interface.
type ListenConfig struct {
	Raft     string `env:"RAFT_ADDRESS" envDefault:":3262" doc:"Listen address of Raft, for the other nodes."`
	API      string `env:"API_ADDRESS" envDefault:":3263" doc:"Listen address of the API, for edges, scalers and nodes."`
	Bus      string `env:"BUS_ADDRESS" envDefault:":4222" doc:"Listen address of the bus, for edges and scalers."`
	Routes   string `env:"ROUTES_ADDRESS" envDefault:":6222" doc:"Listen address of the bus, for the other nodes."`
	Admin    string `env:"ADMIN_ADDRESS" envDefault:":9090" doc:"Listen address of /metrics, /health and /ready."`
	Insecure bool   `env:"INSECURE" doc:"Allow internal links without TLS on addresses that other machines reach."`
}

// KeepConfig says what is kept, and for how long.
type KeepConfig struct {
	MaxUnfinished   uint64        `env:"MAX_UNFINISHED" envDefault:"1000000" doc:"How many calls may wait or run, all functions together; over it new ones are refused (429). 0: no limit."`
	HistoryAge      time.Duration `env:"HISTORY_AGE" envDefault:"10m" doc:"How long a succeeded or cancelled call is remembered, at least 10m."`
	HistoryCount    uint64        `env:"HISTORY_COUNT" envDefault:"1000000" doc:"How many succeeded and cancelled calls are remembered at most; the oldest go first. 0: no limit."`
	DeadCount       uint64        `env:"DEAD_COUNT" envDefault:"1000000" doc:"How many dead calls are kept at most, all functions together; the oldest go first. 0: no limit."`
	MaxKeys         uint64        `env:"MAX_IDEMPOTENCY_KEYS" envDefault:"1000000" doc:"How many idempotency keys are remembered at most, each for 24h; over it calls with a new key are refused (429), and none is forgotten early. 0: no limit."`
	DeadAge         time.Duration `env:"DEAD_AGE" envDefault:"168h" doc:"How long a dead call is kept, payload included."`
	MaxUploadBytes  uint64        `env:"MAX_UPLOAD_BYTES" envDefault:"1073741824" doc:"How many bytes of bodies over 1 MiB may be here before their calls are accepted, all edges together; over it they are refused (429). 0: no limit."`
	UploadIdle      time.Duration `env:"UPLOAD_IDLE" envDefault:"60s" doc:"A body of which no further part comes for so long, and whose edge lives, is dropped."`
	OrphanDeadAfter time.Duration `env:"ORPHAN_DEAD_AFTER" envDefault:"24h" doc:"How long calls of a function that is gone wait for it before they are dead."`
}

// GuardConfig says how far this node trusts its disk.
type GuardConfig struct {
	WriteTimeout time.Duration `env:"WRITE_TIMEOUT" envDefault:"3s" doc:"How long one write to the data directory may take before a leader goes silent, so that another node is elected."`
	DiskRefuse   float64       `env:"DISK_REFUSE_PERCENT" envDefault:"85" doc:"Use of the disk from which no calls are accepted."`
	DiskHandOver float64       `env:"DISK_HANDOVER_PERCENT" envDefault:"90" doc:"Use of the disk from which another node leads, where one has room, and the ballast is given back. Half-way from here to 100 the log does not grow any more."`
	DiskBallast  int64         `env:"DISK_BALLAST_BYTES" envDefault:"67108864" doc:"Space set aside for a disk that fills up, in bytes, at most a twentieth of the disk. 0: none."`
	Rejoin       string        `env:"REJOIN" doc:"Installation id of the cluster that may fill this node's empty data directory. Set it for the one start after a member's data was lost for good, under the same name ('queue rejoin' does the same for a directory that is refused); empty: an empty directory is refused where a cluster exists. A new node is added instead (QUEUE_JOIN)."`
}

// Validate implements settings.Validator.
func (c *GuardConfig) Validate() error {
	if c.WriteTimeout < 500*time.Millisecond {
		return fmt.Errorf("reading %sWRITE_TIMEOUT=%s: expected 500ms or more", prefix, c.WriteTimeout)
	}
	if err := (guard.Limits{Refuse: c.DiskRefuse, HandOver: c.DiskHandOver, Ballast: c.DiskBallast}).Validate(); err != nil {
		return fmt.Errorf("reading %sDISK_REFUSE_PERCENT, %sDISK_HANDOVER_PERCENT, %sDISK_BALLAST_BYTES: %w", prefix, prefix, prefix, err)
	}
	return nil
}

// Validate implements settings.Validator.
func (c *ListenConfig) Validate() error {
	var errs []error
	for _, a := range []struct{ name, address string }{
		{"RAFT", c.Raft}, {"API", c.API}, {"BUS", c.Bus}, {"ROUTES", c.Routes}, {"ADMIN", c.Admin},
	} {
		if _, _, err := net.SplitHostPort(a.address); err != nil {
			errs = append(errs, fmt.Errorf("reading %s%s_ADDRESS=%q: expected host:port: %w", prefix, a.name, a.address, err))
		}
	}
	return errors.Join(errs...)
}

// Validate implements settings.Validator.
func (c *NodeConfig) Validate() error {
	switch n := len(c.Members); {
	case c.Join && n < 2:
		return fmt.Errorf("reading %sMEMBERS: %d members: expected this node and members of the cluster it joins (%sJOIN)", prefix, n, prefix)
	case !c.Join && n != 0 && n != 1 && n != 3 && n != 5:
		return fmt.Errorf("reading %sMEMBERS: %d members: expected 1, 3 or 5 (an even number survives no more deaths than one less)", prefix, n)
	}
	return nil
}

// Validate implements settings.Validator.
func (c *KeepConfig) Validate() error {
	switch {
	case c.HistoryAge < 10*time.Minute:
		return fmt.Errorf("reading %sHISTORY_AGE=%s: expected 10m or more, in which a repeated accept is recognised", prefix, c.HistoryAge)
	case c.DeadAge <= 0:
		return fmt.Errorf("reading %sDEAD_AGE=%s: expected more than 0", prefix, c.DeadAge)
	case c.UploadIdle <= 0:
		return fmt.Errorf("reading %sUPLOAD_IDLE=%s: expected more than 0", prefix, c.UploadIdle)
	case c.OrphanDeadAfter <= 0:
		return fmt.Errorf("reading %sORPHAN_DEAD_AFTER=%s: expected more than 0", prefix, c.OrphanDeadAfter)
	}
	return nil
}

// Members of the cluster as QUEUE_MEMBERS lists them.
type Members []app.Member

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Members) UnmarshalText(text []byte) error {
	var list Members
	seen := map[string]bool{}
	for item := range strings.SplitSeq(string(text), ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		member, err := parseMember(item)
		if err != nil {
			return err
		}
		if seen[member.Name] {
			return fmt.Errorf("%s is listed twice", member.Name)
		}
		seen[member.Name] = true
		list = append(list, member)
	}
	*m = list
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (m Members) MarshalText() ([]byte, error) {
	var items []string
	for _, x := range m {
		_, raft, _ := net.SplitHostPort(x.RaftAddress)
		_, api, _ := net.SplitHostPort(x.APIAddress)
		host, routes, _ := net.SplitHostPort(x.RoutesAddress)
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		items = append(items, fmt.Sprintf("%s=%s:%s:%s:%s", x.Name, host, raft, api, routes))
	}
	return []byte(strings.Join(items, ",")), nil
}

// parseMember reads name=host or name=host:raft:api:routes; an IPv6 host stands in brackets.
func parseMember(item string) (app.Member, error) {
	name, where, ok := strings.Cut(item, "=")
	if !ok || name == "" || where == "" {
		return app.Member{}, fmt.Errorf("%q: expected name=host[:raft:api:routes]", item)
	}
	var host, ports string
	if strings.HasPrefix(where, "[") {
		end := strings.Index(where, "]")
		if end < 0 {
			return app.Member{}, fmt.Errorf("%q: the bracket of the host is not closed", item)
		}
		host, ports = where[1:end], strings.TrimPrefix(where[end+1:], ":")
	} else {
		host, ports, _ = strings.Cut(where, ":")
	}
	port := []string{"3262", "3263", "6222"}
	if ports != "" {
		port = strings.Split(ports, ":")
	}
	if len(port) != 3 || host == "" {
		return app.Member{}, fmt.Errorf("%q: expected name=host or name=host:raft:api:routes", item)
	}
	for _, p := range port {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return app.Member{}, fmt.Errorf("%q: %q is not a port", item, p)
		}
	}
	return app.Member{
		Name:          name,
		RaftAddress:   net.JoinHostPort(host, port[0]),
		APIAddress:    net.JoinHostPort(host, port[1]),
		RoutesAddress: net.JoinHostPort(host, port[2]),
	}, nil
}
