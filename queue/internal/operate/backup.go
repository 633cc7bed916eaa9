package operate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"connectrpc.com/connect"

	"github.com/slimfaas/slimfaas/queue/internal/backup"
	"github.com/slimfaas/slimfaas/queue/internal/raftnode"
	"github.com/slimfaas/slimfaas/shared/wire"
	"github.com/slimfaas/slimfaas/shared/wire/wireconnect"
)

const backupHelp = `Copies everything that is committed when the command starts from the leader into FILE, with the installation id, the index of
the last entry and a checksum. The queue goes on meanwhile. Payloads are in it: FILE is readable by its owner only, keep it so.
FILE appears when it is whole. FILE - is the standard output, and then only exit status 0 says that it is whole.
'queue inspect FILE' checks it and counts what is in it.
`

const restoreHelp = `Fills the empty data directory of this node (QUEUE_NAME, QUEUE_MEMBERS) from FILE, - for the standard input. The cluster must be stopped, and every
member of QUEUE_MEMBERS must be given the same FILE in the same way before the first one is started. What was accepted after the
backup is lost; what ended after it runs again, once more. The installation keeps its id: never run it beside the one it is of.
`

// stream stands for standard output or input where a command takes a file.
const stream = "-"

func backUp(ctx context.Context, c *call) error {
	path, err := c.oneFile()
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); path != stream && err == nil && !c.force {
		return fmt.Errorf("%s exists (--force replaces it)", path)
	}
	nodes, err := c.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	begun := time.Now()
	var head backup.Header
	report := c.Out
	if path == stream {
		report = c.Err
		head, err = backUpTo(ctx, nodes, c.Out)
	} else {
		head, err = backUpFile(ctx, nodes, path)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(report, "installation %s up to entry %d (term %d) from %s: %d bytes in %s\n", head.Installation, head.Index, head.Term, head.Node, head.Size,
		time.Since(begun).Round(time.Millisecond))
	return nil
}

// backUpFile names the file once it is whole.
func backUpFile(ctx context.Context, nodes *client, path string) (head backup.Header, err error) {
	partial := path + ".partial"
	err = nodes.until(ctx, func(ctx context.Context, leader wireconnect.AdminServiceClient, _ *wire.NodeResponse, _ []answer) (bool, error) {
		f, err := os.OpenFile(partial, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return true, fmt.Errorf("making the backup's file: %w", err)
		}
		head, err = download(ctx, nodes, leader, f)
		if err == nil {
			if err = f.Sync(); err != nil {
				err = fmt.Errorf("syncing the backup: %w", err)
			}
		}
		if closed := f.Close(); err == nil && closed != nil {
			err = fmt.Errorf("closing the backup: %w", closed)
		}
		var remote *connect.Error
		return !errors.As(err, &remote), err // what is wrong here, as a full disk, does not get better by trying again
	})
	if err != nil {
		return head, errors.Join(err, os.RemoveAll(partial))
	}
	if err := os.Rename(partial, path); err != nil {
		return head, fmt.Errorf("naming the backup: %w", err)
	}
	return head, nil
}

// counter counts what was written.
type counter struct {
	to io.Writer
	n  int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.n += int64(n)
	return n, err
}

// backUpTo a stream, which cannot be begun again once something is in it.
func backUpTo(ctx context.Context, nodes *client, out io.Writer) (head backup.Header, err error) {
	written := &counter{to: out}
	err = nodes.until(ctx, func(ctx context.Context, leader wireconnect.AdminServiceClient, _ *wire.NodeResponse, _ []answer) (bool, error) {
		var err error
		head, err = download(ctx, nodes, leader, written)
		return err == nil || written.n > 0, err
	})
	return head, err
}

// download one backup.
func download(ctx context.Context, c *client, leader wireconnect.AdminServiceClient, to io.Writer) (head backup.Header, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts, err := leader.Backup(ctx, request(c, &wire.BackupRequest{}))
	if err != nil {
		return head, err
	}
	defer func() { _ = parts.Close() }() // read to its end, or given up
	if !parts.Receive() {
		return head, ended(parts.Err())
	}
	h := parts.Msg().GetHeader()
	if h == nil {
		return head, fmt.Errorf("the stream does not begin with a header: %w", backup.ErrBackup)
	}
	head = backup.Header{
		Installation: h.GetInstallation(), Node: h.GetNode(), Version: h.GetVersion(), Index: h.GetIndex(), Term: h.GetTerm(),
		Size: h.GetSize(), CreatedUnixMs: h.GetCreatedUnixMs(),
	}
	out, err := backup.NewWriter(to, head)
	if err != nil {
		return head, err
	}
	sum := sha256.New()
	for parts.Receive() {
		if end := parts.Msg().GetEnd(); end != nil {
			if !bytes.Equal(end.GetSha256(), sum.Sum(nil)) {
				return head, fmt.Errorf("checking what arrived: %w", backup.ErrBackup)
			}
			return head, out.Close()
		}
		sum.Write(parts.Msg().GetData())
		if _, err := out.Write(parts.Msg().GetData()); err != nil {
			return head, fmt.Errorf("writing the backup: %w", err)
		}
	}
	return head, ended(parts.Err())
}

func ended(err error) error {
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("receiving the backup: %w", err)
}

func restore(_ context.Context, c *call) error {
	path, err := c.oneFile()
	if err != nil {
		return err
	}
	if c.Name == "" {
		return usagef("QUEUE_NAME is not set")
	}
	listed := false
	for _, m := range c.Members {
		listed = listed || m.Name == c.Name
	}
	if !listed {
		return usagef("%s (QUEUE_NAME) is not among QUEUE_MEMBERS", c.Name)
	}
	from := c.In
	if path != stream {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("opening the backup: %w", err)
		}
		defer f.Close()
		from = f
	}
	content, err := backup.NewReader(from)
	if err != nil {
		return err
	}
	h := content.Header
	if h.Index == 0 || h.Term == 0 {
		return fmt.Errorf("the backup ends at entry %d of term %d: %w", h.Index, h.Term, backup.ErrBackup)
	}
	if err := raftnode.Restore(c.dataDir, c.Name, c.Members, h.Index, h.Term, content, c.log); err != nil {
		return fmt.Errorf("%w (the directory must be emptied before the next try if it was empty before)", err)
	}
	c.say("%s of %s: installation %s as of entry %d, %s", c.dataDir, c.Name, h.Installation, h.Index, time.UnixMilli(h.CreatedUnixMs).UTC().Format(time.RFC3339))
	c.say("give every other member the same file in the same way, then start all of them")
	return nil
}
