package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/slimfaas/slimfaas/queue/internal/app"
	"github.com/slimfaas/slimfaas/queue/internal/operate"
	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
	"github.com/slimfaas/slimfaas/shared/obs"
	"github.com/slimfaas/slimfaas/shared/settings"
)

// operatorConfig is what the sub-commands for operators read: of a node's settings those that say where it is. The rest of a
// node's environment may be anything, or nothing at all.
type operatorConfig struct {
	Name       string  `env:"NAME"`
	DataDir    string  `env:"DATA_DIR" envDefault:"/data" alias:"SlimData__Directory,SLIMDATA_DIRECTORY"`
	Members    Members `env:"MEMBERS"`
	SecretsDir string  `env:"SECRETS_DIR"`
	API        string  `env:"API_ADDRESS" envDefault:":3263"`
	Raft       string  `env:"RAFT_ADDRESS" envDefault:":3262"`
	Routes     string  `env:"ROUTES_ADDRESS" envDefault:":6222"`
}

func runOperation(ctx context.Context, args, environ []string, out io.Writer) error {
	var c operatorConfig
	if _, err := settings.Load(prefix, &c, environ); err != nil { // warnings are the node's to give
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if c.Name == "" {
		c.Name, _ = os.Hostname() // only restore needs it, and says so
	}
	s := operate.Settings{
		Name: c.Name, DataDir: c.DataDir, SecretsDir: c.SecretsDir, API: c.API, Version: obs.Version,
		ParseMember: func(text string) (raftnode.Member, error) {
			m, err := parseMember(text)
			return raftnode.Member{Name: m.Name, RaftAddress: m.RaftAddress, APIAddress: m.APIAddress, RoutesAddress: m.RoutesAddress}, err
		},
		FormatMembers: func(list []raftnode.Member) string {
			members := make(Members, 0, len(list))
			for _, m := range list {
				members = append(members, app.Member{Name: m.Name, RaftAddress: m.RaftAddress, APIAddress: m.APIAddress, RoutesAddress: m.RoutesAddress})
			}
			text, _ := members.MarshalText() // never fails
			return string(text)
		},
	}
	members := c.Members
	if len(members) == 0 && args[0] == "restore" { // as the node does without QUEUE_MEMBERS
		members = Members{{Name: c.Name, RaftAddress: c.Raft, APIAddress: c.API, RoutesAddress: c.Routes}}
	}
	for _, m := range members {
		s.Members = append(s.Members, raftnode.Member{Name: m.Name, RaftAddress: m.RaftAddress, APIAddress: m.APIAddress, RoutesAddress: m.RoutesAddress})
	}
	err := operate.Run(ctx, args, s, operate.Terminal{In: os.Stdin, Out: out, Err: os.Stderr})
	if errors.Is(err, context.Canceled) {
		return errors.Join(err, errors.New("interrupted: the command can be repeated, it goes on where it was"))
	}
	return err
}
