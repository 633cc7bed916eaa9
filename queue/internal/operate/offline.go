package operate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/backup"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
)

const inspectHelp = `Reads the data directory of a stopped node (PATH, --data-dir or QUEUE_DATA_DIR), or a backup file: whose it is, the range of
its log, its snapshots, the membership it knows, and the state after its last entry with a hash that is equal on every node with
the same state; and what a node would refuse the directory for (docs/reliability.md). Changes nothing. It is read in a copy, in the system's directory for temporary files, which must hold as much.
The last entries of a log may be ones that no majority has.
`

const recoverHelp = `Makes the node of this data directory the only member of its cluster, when the majority is lost for good. Use the survivor whose
log reaches furthest ('queue inspect' on each). Asks for the installation id. Copy the directory first.

What may be lost: what was accepted with the majority that is lost and had not reached this node. What had reached this node and
was never committed becomes committed. Never start an old node again on its old data directory: two of them would be the old
cluster. Empty their directories, and add them under new names (queue add).
`

// contents of a directory or backup, for --json.
type contents struct {
	Backup       *backup.Header   `json:",omitempty"`
	Directory    *directory       `json:",omitempty"`
	Installation string           // empty: none was given yet
	Index        uint64           // the state is after this entry
	Hash         string           // of the state
	Functions    []functionCounts // by name
}

type directory struct {
	Path, Node                 string
	Term, VotedTerm            uint64
	VotedFor                   string
	FirstLog, LastLog, LogTerm uint64
	LogFileBytes               int64
	LogPayloadBytes            int64
	Snapshots                  []raftnode.SnapshotInfo
	Members                    []raftnode.Member
	MembersIndex               uint64
	Problems                   []string // that a node refuses the directory for, or that it may lack something
}

type functionCounts struct {
	Function                                       string
	Queued, Running, Awaiting, Waiting             uint64
	Accepted, Redriven, Succeeded, Dead, Cancelled uint64
	Conserved                                      bool
}

func inspect(_ context.Context, c *call) error {
	path := c.dataDir
	switch len(c.positional) {
	case 0:
	case 1:
		path = c.positional[0]
	default:
		return usagef("expected one PATH, got %d", len(c.positional))
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("looking at %s: %w", path, err)
	}
	var found *contents
	if info.IsDir() {
		found, err = c.readDirectory(path)
	} else {
		found, err = c.readBackup(path)
	}
	if err != nil {
		return err
	}
	if c.json {
		err = c.print(found)
	} else {
		c.show(found)
	}
	if d := found.Directory; err == nil && d != nil && len(d.Problems) > 0 {
		return fmt.Errorf("%s is not as it should be; docs/reliability.md says what to do about it", d.Path)
	}
	return err
}

// withScratch gives an empty directory that is gone afterwards.
func withScratch(use func(dir string) error) (err error) {
	dir, err := os.MkdirTemp("", "queue-inspect-")
	if err != nil {
		return fmt.Errorf("making a scratch directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return use(dir)
}

func (c *call) readDirectory(path string) (out *contents, err error) {
	err = withScratch(func(scratch string) error {
		r, err := raftnode.Inspect(path, scratch, c.log)
		if err != nil {
			return err
		}
		out = describe(r.State, r.StateIndex)
		problems := []string{}
		for _, p := range r.Problems {
			problems = append(problems, p.Error())
		}
		out.Directory = &directory{
			Problems: problems,
			Path:     path, Node: r.Name, Term: r.Term, VotedTerm: r.VotedTerm, VotedFor: r.VotedFor, FirstLog: r.FirstLog, LastLog: r.LastLog,
			LogTerm: r.LogTerm, LogFileBytes: r.LogFileBytes, LogPayloadBytes: r.LogPayloadBytes,
			Snapshots: r.Snapshots, Members: r.Members, MembersIndex: r.MembersIndex,
		}
		return nil
	})
	return out, err
}

func (c *call) readBackup(path string) (out *contents, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the backup: %w", err)
	}
	defer f.Close()
	content, err := backup.NewReader(f)
	if err != nil {
		return nil, err
	}
	err = withScratch(func(scratch string) error {
		state, err := raftnode.ReadState(content, content.Header.Index, scratch, c.log)
		if err != nil {
			return err
		}
		out = describe(state, content.Header.Index)
		out.Backup = &content.Header
		return nil
	})
	return out, err
}

func describe(state *fsm.Machine, index uint64) *contents {
	out := &contents{Installation: state.Installation(), Index: index, Hash: fmt.Sprintf("%016x", state.Hash()), Functions: []functionCounts{}}
	for _, f := range state.Counters() {
		out.Functions = append(out.Functions, functionCounts{
			Function: f.Function, Queued: f.Queued, Running: f.Running, Awaiting: f.Awaiting, Waiting: f.Waiting, Accepted: f.Accepted,
			Redriven: f.Redriven, Succeeded: f.Succeeded, Dead: f.Dead, Cancelled: f.Cancelled, Conserved: f.Conserved(),
		})
	}
	return out
}

func (c *call) show(found *contents) {
	if b := found.Backup; b != nil {
		c.say("backup by %s (%s) at %s: entry %d, term %d, %d bytes, checksum right", b.Node, b.Version,
			time.UnixMilli(b.CreatedUnixMs).UTC().Format(time.RFC3339), b.Index, b.Term, b.Size)
	}
	if d := found.Directory; d != nil {
		node := d.Node
		if node == "" {
			node = "nobody yet"
		}
		c.say("%s belongs to %s", d.Path, node)
		c.say("term %d, voted for %q in term %d", d.Term, d.VotedFor, d.VotedTerm)
		c.say("log %d to %d (last term %d), file of %d bytes", d.FirstLog, d.LastLog, d.LogTerm, d.LogFileBytes)
		c.say("payloads that the state has in the log only: %d bytes", d.LogPayloadBytes)
		for _, s := range d.Snapshots {
			c.say("snapshot %s: entry %d, term %d, %d bytes", s.ID, s.Index, s.Term, s.Size)
		}
		for _, m := range d.Members {
			role := "voter"
			if !m.Voter {
				role = "non-voter"
			}
			c.say("member since entry %d: %s, %s, raft %s api %s routes %s", d.MembersIndex, m.Name, role, m.RaftAddress, m.APIAddress, m.RoutesAddress)
		}
	}
	if d := found.Directory; d != nil {
		for _, p := range d.Problems {
			c.say("PROBLEM: %s", p)
		}
	}
	c.say("installation %s, state after entry %d, hash %s", found.Installation, found.Index, found.Hash)
	t := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FUNCTION\tQUEUED\tRUNNING\tAWAITING\tWAITING\tACCEPTED\tREDRIVEN\tSUCCEEDED\tDEAD\tCANCELLED\tCONSERVED")
	for _, f := range found.Functions {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%v\n", f.Function, f.Queued, f.Running, f.Awaiting, f.Waiting, f.Accepted,
			f.Redriven, f.Succeeded, f.Dead, f.Cancelled, f.Conserved)
	}
	_ = t.Flush() // to a terminal
}

func recoverNode(_ context.Context, c *call) error {
	if err := c.none(); err != nil {
		return err
	}
	found, err := c.readDirectory(c.dataDir)
	if err != nil {
		return err
	}
	c.show(found)
	d := found.Directory
	if found.Installation == "" {
		return errors.New("the directory holds no installation: there is nothing to go on with")
	}
	c.say("")
	node := d.Node
	if node == "" {
		node = c.Name // the marker is lost; QUEUE_NAME says it
	}
	c.say("%s becomes the only member, with everything up to entry %d. Lost is what the others had above it; nobody can say how much.", node, found.Index)
	c.say("The data directories of the other members must never be started again: empty them, and add the nodes under new names.")
	typed := c.installation
	if typed == "" {
		fmt.Fprint(c.Out, "Type the installation id to go on: ")
		typed, err = bufio.NewReader(c.In).ReadString('\n')
		if err != nil && typed == "" {
			return fmt.Errorf("reading the installation id: %w", err)
		}
	}
	if strings.TrimSpace(typed) != found.Installation {
		return errors.New("that is not the installation id: nothing was changed")
	}
	var self raftnode.Member
	for _, m := range c.Members {
		if m.Name == node {
			self = m
		}
	}
	done, err := raftnode.Recover(c.dataDir, self, c.log)
	if err != nil {
		return err
	}
	c.say("%s is alone, at entry %d of term %d. Start it, look at it with `queue status`, then `queue add` the others.", done.Member.Name, done.Index, done.Term)
	return nil
}
