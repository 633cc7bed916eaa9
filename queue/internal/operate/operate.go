// Package operate is the operator's side of the queue: the sub-commands that ask and change a running cluster through its
// AdminService, and those that work on a data directory no node uses. docs/operations.md shows them at work.
package operate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
)

// Exit codes of the sub-commands.
const (
	ExitFailed   = 1 // it did not work; the message says what is left as it was
	ExitUsage    = 2 // the command line is wrong, nothing was tried
	ExitDegraded = 3 // status: the cluster answers and is not whole
)

// Failure is an error with an exit code of its own.
type Failure struct {
	Code int
	Err  error
}

func (f Failure) Error() string { return f.Err.Error() }

// Unwrap gives the error.
func (f Failure) Unwrap() error { return f.Err }

func usagef(format string, args ...any) error {
	return Failure{ExitUsage, fmt.Errorf(format, args...)}
}

// Settings of the node whose environment the command runs in. All may be empty and given as flags.
type Settings struct {
	Name, DataDir, SecretsDir string
	Members                   []raftnode.Member
	API                       string // listen address of this node's API
	ParseMember               func(string) (raftnode.Member, error)
	FormatMembers             func([]raftnode.Member) string
	Version                   string
}

// Terminal is where a command reads and writes.
type Terminal struct {
	In       io.Reader
	Out, Err io.Writer
}

// command is one sub-command.
type command struct {
	name, arguments, about, help string
	run                          func(ctx context.Context, c *call) error
}

// call is one run of a command.
type call struct {
	Settings
	Terminal
	positional []string
	log        *slog.Logger

	api, secrets, dataDir, installation, to string
	json, force, even, env, nonVoter        bool
	wait                                    time.Duration
}

func commands() []command {
	return []command{
		{"status", "", "how the cluster and each of its nodes are", statusHelp, status},
		{"members", "", "who is a member, and where", membersHelp, members},
		{"add", "NAME=HOST[:RAFT:API:ROUTES] …", "add nodes to the cluster", addHelp, add},
		{"remove", "NAME …", "take nodes out of the cluster", removeHelp, remove},
		{"replace", "OLD NEW=HOST[:RAFT:API:ROUTES]", "put a new node in the place of an old one", replaceHelp, replace},
		{"transfer", "", "hand the leadership to another node", transferHelp, transfer},
		{"backup", "FILE", "copy the whole state to a file", backupHelp, backUp},
		{"restore", "FILE", "fill an empty data directory from a backup (offline)", restoreHelp, restore},
		{"recover", "", "go on with one survivor when the majority is lost (offline)", recoverHelp, recoverNode},
		{"inspect", "[PATH]", "read a data directory or a backup (offline)", inspectHelp, inspect},
	}
}

// Usage lists the commands, for the program's own help.
func Usage() string {
	var b strings.Builder
	for _, c := range commands() {
		fmt.Fprintf(&b, "  queue %-11s %s\n", c.name, c.about)
	}
	return b.String()
}

// Known says whether name is a sub-command of this package.
func Known(name string) bool {
	_, ok := lookUp(name)
	return ok
}

func lookUp(name string) (command, bool) {
	for _, c := range commands() {
		if c.name == name {
			return c, true
		}
	}
	return command{}, false
}

// Run a sub-command: name and arguments as on the command line.
func Run(ctx context.Context, args []string, s Settings, t Terminal) error {
	command, ok := lookUp(args[0])
	if !ok {
		return usagef("%q is no command", args[0])
	}
	c := &call{Settings: s, Terminal: t, log: slog.New(slog.NewTextHandler(t.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	flags := c.flags(command)
	rest := args[1:]
	for len(rest) > 0 { // flags may stand anywhere
		if err := flags.Parse(rest); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return c.explain(command, flags)
			}
			return usagef("queue %s: %w; `queue %s --help` explains", command.name, err, command.name)
		}
		if rest = flags.Args(); len(rest) > 0 {
			c.positional, rest = append(c.positional, rest[0]), rest[1:]
		}
	}
	if err := command.run(ctx, c); err != nil {
		return fmt.Errorf("%s: %w", command.name, err)
	}
	return nil
}

// flags of a command; each has those it uses.
func (c *call) flags(command command) *flag.FlagSet {
	f := flag.NewFlagSet(command.name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	offline := command.name == "restore" || command.name == "recover" || command.name == "inspect"
	if offline {
		f.StringVar(&c.dataDir, "data-dir", c.DataDir, "the data `directory` (QUEUE_DATA_DIR)")
	} else {
		f.StringVar(&c.api, "api", "", "APIs to begin with, comma list of host:port or URLs (default: those of QUEUE_MEMBERS, and QUEUE_API_ADDRESS)")
		f.StringVar(&c.secrets, "secrets", c.SecretsDir, "`directory` with token-queue, and the certificates when internal links use TLS (QUEUE_SECRETS_DIR)")
		f.DurationVar(&c.wait, "wait", defaultWait(command.name), "how long to try before giving up")
	}
	switch command.name {
	case "status", "inspect":
		f.BoolVar(&c.json, "json", false, "print JSON")
	case "members":
		f.BoolVar(&c.json, "json", false, "print JSON")
		f.BoolVar(&c.env, "env", false, "print a value for QUEUE_MEMBERS")
	case "add":
		f.BoolVar(&c.even, "allow-even", false, "also if an even number of voters is the result")
		f.BoolVar(&c.nonVoter, "non-voter", false, "leave them non-voters")
	case "remove":
		f.BoolVar(&c.even, "allow-even", false, "also if an even number of voters is the result")
		f.BoolVar(&c.force, "force", false, "also if the remaining voters do not answer")
	case "replace":
		f.BoolVar(&c.even, "allow-even", false, "also in a cluster of one, which is then two for a moment")
	case "transfer":
		f.StringVar(&c.to, "to", "", "`name` of the voter that shall lead (default: whoever has most of the log)")
	case "backup":
		f.BoolVar(&c.force, "force", false, "replace FILE if it exists")
	case "recover":
		f.StringVar(&c.installation, "installation", "", "the installation `id`, instead of typing it")
	}
	return f
}

func defaultWait(name string) time.Duration {
	switch name {
	case "status", "members":
		return 3 * time.Second
	case "transfer":
		return 15 * time.Second
	case "backup":
		return time.Hour
	}
	return 5 * time.Minute
}

func (c *call) explain(command command, flags *flag.FlagSet) error {
	fmt.Fprintf(c.Out, "queue %s %s\n\n%s\nFlags:\n", command.name, command.arguments, command.help)
	flags.SetOutput(c.Out)
	flags.PrintDefaults()
	fmt.Fprintf(c.Out, "\nExit status: 0 done, 1 it did not work, 2 wrong usage%s. See docs/operations.md.\n",
		map[bool]string{true: ", 3 answers and is not whole"}[command.name == "status"])
	return nil
}

// say one line of progress.
func (c *call) say(format string, args ...any) { fmt.Fprintf(c.Out, format+"\n", args...) }

// none says that a command takes no arguments.
func (c *call) none() error {
	if len(c.positional) > 0 {
		return usagef("unexpected argument %q", c.positional[0])
	}
	return nil
}

// oneFile is the one argument of a command that takes a file.
func (c *call) oneFile() (string, error) {
	if len(c.positional) != 1 {
		return "", usagef("expected one FILE, got %d arguments", len(c.positional))
	}
	return c.positional[0], nil
}
