package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/integration/cluster"
)

// kill -9 a node of ours.
func (o *operator) kill(name string) {
	o.t.Helper()
	x := o.extra[name]
	if err := x.cmd.Process.Kill(); err != nil {
		o.t.Fatal(err)
	}
	_ = x.cmd.Wait() // killed
	x.cmd = nil
}

// ended waits until a node of ours has ended by itself, and gives what it said from then on.
func (o *operator) ended(name string, from int) string {
	o.t.Helper()
	x := o.extra[name]
	over := make(chan struct{})
	go func() { _ = x.cmd.Wait(); close(over) }()
	select {
	case <-over:
		x.cmd = nil
	case <-time.After(30 * time.Second):
		_ = x.cmd.Process.Kill()
		<-over
		x.cmd = nil
		o.t.Fatalf("%s does not end by itself: %s", name, o.log(name)[from:])
	}
	return o.log(name)[from:]
}

func (o *operator) log(name string) string {
	raw, err := os.ReadFile(filepath.Join(o.c.State, "logs", name+".log"))
	if err != nil {
		o.t.Fatal(err)
	}
	return string(raw)
}

// serves waits until a node of ours votes and is ready.
func (o *operator) serves(name string) {
	o.t.Helper()
	o.c.Eventually(60*time.Second, name+" votes and is ready", func() error {
		for path, want := range map[string]string{"/ready": "", "/metrics": "\nslimfaas_queue_votes 1\n"} {
			res, err := cluster.Client.Get("http://" + o.extra[name].admin + path)
			if err != nil {
				return err
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			switch {
			case err != nil:
				return err
			case res.StatusCode != http.StatusOK:
				return fmt.Errorf("%s: %d %s", path, res.StatusCode, body)
			case !strings.Contains(string(body), want):
				return fmt.Errorf("%s lacks %q", path, want)
			}
		}
		return nil
	})
}

// Nodes are added to a single one under load, killed without warning, and lose their directories; QUEUE_JOIN stays set, as
// operators are told. A lost directory is refused, rejoins, and nothing is lost.
func TestOperateAddedNodesAreKilledAndALostOneRejoins(t *testing.T) {
	inCompany(t)
	c, r, o := operated(t, 1)
	load := produce(c, 3)
	one, two := o.start("queue-1"), o.start("queue-2")
	o.must("add", one, two)
	for _, name := range []string{"queue-1", "queue-2"} {
		o.kill(name)
		o.run(name)
		o.serves(name)
	}
	load.reach(c, 100)

	const victim = "queue-2"
	o.kill(victim)
	must(t, os.RemoveAll(o.extra[victim].dir))
	from := len(o.log(victim))
	o.run(victim)
	installation := o.status().Installation
	if said := o.ended(victim, from); !strings.Contains(said, "queue rejoin "+installation) {
		t.Errorf("a voter without its directory, with QUEUE_JOIN, says: %s", said)
	}
	must(t, o.offline(victim, "rejoin", installation))
	o.run(victim)
	o.serves(victim)
	c.Kill("queue-0") // the two that were added are the majority
	load.reach(c, load.count.Load()+50)

	three, four := o.start("queue-3"), o.start("queue-4")
	o.must("add", three, four)
	o.kill("queue-4")
	must(t, os.RemoveAll(o.extra["queue-4"].dir))
	o.must("remove", "queue-4", "--allow-even") // a dead one whose directory is gone
	o.must("remove", "queue-3")
	o.want("queue-0", "queue-1", "queue-2")
	o.kill("queue-1") // while the removed one still runs
	o.run("queue-1")
	o.serves("queue-1")
	load.end(t, c, r)
	o.must("status")
}

// offline runs a sub-command with a node's own environment.
func (o *operator) offline(name string, args ...string) error {
	o.t.Helper()
	x := o.extra[name]
	cmd := exec.CommandContext(o.t.Context(), filepath.Join(cluster.Bin(), "queue"), args...)
	cmd.Env = append(x.env, "QUEUE_DATA_DIR="+x.dir)
	out, err := cmd.CombinedOutput()
	o.t.Logf("queue %s on %s: %v\n%s", strings.Join(args, " "), name, err, out)
	return err
}
