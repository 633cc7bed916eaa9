package fsm

import (
	"cmp"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

var update = flag.Bool("update", false, "write what the state machine answers into testdata/*.txt")

// A script is blocks of "input, ----, expected output", separated by empty lines. Input is `apply now=ms` and one command per
// line, which make one entry; or `state`. Entries are numbered from 1. IDs of calls are short words.
func TestScripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(content))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(content) {
				t.Errorf("run with -update and review. Got:\n%s", got)
			}
		})
	}
}

func play(t *testing.T, script string) string {
	t.Helper()
	s := stage{t: t, machine: New(), stored: map[string]string{}}
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(script, "\n"), "\n\n") {
		input, _, hasOutput := strings.Cut(block, "\n----")
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		out.WriteString(input + "\n")
		var lines []string
		for line := range strings.SplitSeq(input, "\n") {
			if line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		if len(lines) == 0 && !hasOutput {
			continue // a remark
		}
		out.WriteString("----\n" + s.block(lines))
	}
	return out.String()
}

type stage struct {
	t       *testing.T
	machine *Machine
	stored  map[string]string
	index   uint64
}

func (s *stage) block(lines []string) string {
	var out strings.Builder
	head := fieldsOf(lines[0])
	switch head[""] {
	case "state":
		s.state(&out)
	case "apply":
		batch := command.Batch{NowUnixMs: head.int("now")}
		for _, line := range lines[1:] {
			batch.Commands = append(batch.Commands, s.parse(line))
		}
		s.index++
		results, changes, ops := s.machine.Apply(s.index, batch)
		fmt.Fprintf(&out, "entry %d\n", s.index)
		for _, r := range results {
			fmt.Fprintf(&out, "  %s\n", showResult(r))
		}
		for _, c := range changes {
			fmt.Fprintf(&out, "  change %s\n", showChange(c))
		}
		for _, o := range ops {
			key := showKey(o)
			if o.Value == nil {
				delete(s.stored, key)
			} else {
				s.stored[key] = string(o.Value)
			}
			if o.Bucket != BucketMeta || string(o.Key) != "state" { // each entry writes that one
				fmt.Fprintf(&out, "  %s\n", showOp(key, o))
			}
		}
	default:
		s.t.Fatalf("unknown input %q", lines[0])
	}
	return out.String()
}

func (s *stage) state(out *strings.Builder) {
	m := s.machine
	for c := range m.Unfinished() {
		fmt.Fprintf(out, "%s\n", showCall(c))
	}
	for c := range m.Finished() {
		fmt.Fprintf(out, "%s\n", showCall(c))
	}
	for c := range m.DeadLetters() {
		fmt.Fprintf(out, "%s\n", showCall(c))
	}
	for _, n := range m.Counters() {
		fmt.Fprintf(out, "counters %s %+v\n", n.Function, n.Counters)
		if !n.Conserved() {
			s.t.Errorf("not conserved: %+v", n)
		}
	}
	for _, session := range m.Sessions() {
		fmt.Fprintf(out, "session %s\n", showSession(session))
	}
	for _, l := range m.Locks() {
		fmt.Fprintf(out, "lock %s session=%d token=%d\n", l.Name, l.Session, l.Token)
	}
	for _, a := range m.Activities() {
		fmt.Fprintf(out, "activity %s at=%d\n", a.Function, a.AtUnixMs)
	}
	for _, o := range m.Overrides() {
		fmt.Fprintf(out, "override %s replicas=%d until=%d\n", o.Function, o.Replicas, o.UntilUnixMs)
	}
	if m.Installation() != "" {
		fmt.Fprintf(out, "installation %s\n", m.Installation())
	}
	for _, u := range m.Uploads() {
		fmt.Fprintf(out, "upload %s\n", showUpload(u))
	}
	if m.Keys() != 0 {
		fmt.Fprintf(out, "keys %d\n", m.Keys())
	}
	for c := range m.Unfinished() {
		if _, ok := s.stored[fmt.Sprintf("payload/%d", c.Seq)]; !ok {
			s.t.Errorf("no payload for %s", showCall(c))
		}
	}
}

func (s *stage) parse(line string) command.Command {
	f := fieldsOf(line)
	words := strings.Fields(line)
	second := ""
	if len(words) > 1 && !strings.Contains(words[1], "=") {
		second = words[1]
	}
	switch words[0] {
	case "accept":
		o := command.AcceptOptions{
			NotBeforeUnixMs: f.int("notbefore"), ExpireUnixMs: f.int("expire"), KeepResultMs: uint64(f.int("keep")),
			Key: f["key"], KeyUntilUnixMs: f.int("until"), MaxKeys: uint64(f.int("maxkeys")),
		}
		copy(o.RequestHash[:], f["hash"])
		return command.Accept{
			ID: scriptID(second), Function: f["fn"], Payload: []byte(f["payload"]), AcceptOptions: o,
			Body: command.Body{Parts: uint32(f.int("parts")), Size: uint64(f.int("size")), Sum: uint32(f.int("sum"))},
		}
	case "part":
		return command.PutPart{
			ID: scriptID(second), Session: uint64(f.int("session")), Number: uint32(f.int("n")), Data: []byte(f["data"]),
			MaxBytes: uint64(f.int("maxbytes")), MaxUploads: uint64(f.int("maxuploads")),
		}
	case "drop":
		return command.DropUpload{ID: scriptID(second), Index: uint64(f.int("index"))}
	case "grant":
		return command.Grant{ID: scriptID(second), Session: uint64(f.int("session")), Replica: f["replica"], MaxTries: uint32(f.int("max"))}
	case "finish":
		outcome := map[string]command.Outcome{
			"succeeded": command.OutcomeSucceeded, "retry": command.OutcomeRetry, "dead": command.OutcomeDead,
			"awaiting": command.OutcomeAwaiting, "released": command.OutcomeReleased,
			"postponed": command.OutcomePostponed,
		}[f["outcome"]]
		return command.Finish{
			ID: scriptID(second), Fence: uint64(f.int("fence")), Outcome: outcome, Status: uint32(f.int("status")),
			Error: f["error"], NextTryUnixMs: f.int("next"), Answer: []byte(f["answer"]),
		}
	case "bury":
		return command.Bury{ID: scriptID(second), Error: f["error"]}
	case "redrive", "purge":
		d := command.DeadCalls{Function: f["fn"], ID: scriptID(second), UpTo: uint64(f.int("upto")), Limit: uint32(f.int("limit"))}
		if words[0] == "redrive" {
			return command.Redrive{DeadCalls: d}
		}
		return command.Purge{DeadCalls: d}
	case "cancel":
		return command.Cancel{ID: scriptID(second)}
	case "open":
		return command.OpenSession{Name: second, Incarnation: f["inc"], Kind: uint8(f.int("kind")), Address: f["address"]}
	case "close":
		return command.EndSession{Session: uint64(f.int("session"))}
	case "expire":
		return command.EndSession{Session: uint64(f.int("session")), Expired: true}
	case "lock":
		return command.AcquireLock{Lock: second, Session: uint64(f.int("session"))}
	case "unlock":
		return command.ReleaseLock{Lock: second, Session: uint64(f.int("session"))}
	case "active":
		return command.RecordActivity{Activities: []command.Activity{{Function: second, AtUnixMs: f.int("at")}}}
	case "override":
		return command.SetOverride{Function: second, Replicas: int32(f.int("replicas")), UntilUnixMs: f.int("until")}
	case "forget":
		return command.Forget{
			BeforeUnixMs: f.int("before"), DeadBeforeUnixMs: f.int("dead"), KeepCount: uint64(f.int("keep")),
			DeadKeepCount: uint64(f.int("keepdead")), Limit: uint32(f.int("limit")),
		}
	case "install":
		return command.SetInstallation{ID: second}
	}
	s.t.Fatalf("unknown command %q", line)
	return nil
}

type fields map[string]string

// fieldsOf a line: the first word under "", then key=value words.
func fieldsOf(line string) fields {
	f := fields{}
	for i, word := range strings.Fields(line) {
		if i == 0 {
			f[""] = word
		} else if key, value, ok := strings.Cut(word, "="); ok {
			f[key] = value
		}
	}
	return f
}

func (f fields) int(key string) int64 {
	n, _ := strconv.ParseInt(cmp.Or(f[key], "0"), 10, 64)
	return n
}

func scriptID(word string) (id command.ID) {
	copy(id[:], word)
	return id
}

func word(id command.ID) string { return strings.TrimRight(string(id[:]), "\x00") }

var (
	codeNames  = []string{"ok", "not found", "conflict", "stale", "invalid", "full"}
	stateNames = []string{"new", "Queued", "Running", "Awaiting", "Waiting", "Succeeded", "Dead", "Cancelled"}
)

func showResult(r Result) string {
	out := codeNames[r.Code]
	if r.Index != 0 {
		out += fmt.Sprintf(" index=%d", r.Index)
	}
	if r.Repeated {
		out += " repeated"
		if r.ID != (command.ID{}) {
			out += "=" + word(r.ID)
		}
	}
	if r.Count != 0 {
		out += fmt.Sprintf(" count=%d", r.Count)
	}
	if r.More {
		out += " more"
	}
	if r.Detail != "" {
		out += " (" + r.Detail + ")"
	}
	return out
}

func showCall(c Call) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s #%d %s %s try=%d/%d", word(c.ID), c.Seq, c.Function, stateNames[c.State], c.Tries, c.MaxTries)
	for _, field := range []struct {
		name  string
		value int64
	}{
		{"enqueued", c.EnqueuedUnixMs}, {"started", c.StartedUnixMs}, {"next", c.NextTryUnixMs}, {"finished", c.FinishedUnixMs},
		{"expire", c.ExpireUnixMs}, {"answer", int64(c.Answer)}, {"kept", c.KeptUntilMs}, {"status", int64(c.LastStatus)}, {"session", int64(c.Session)}, {"fence", int64(c.Fence)},
	} {
		if field.value != 0 {
			fmt.Fprintf(&out, " %s=%d", field.name, field.value)
		}
	}
	if b := c.Body; b != nil {
		fmt.Fprintf(&out, " body=#%d/%dx%d size=%d sum=%d", b.Place, b.Parts, b.Part, b.Size, b.Sum)
	}
	if c.Replica != "" {
		fmt.Fprintf(&out, " replica=%s", c.Replica)
	}
	if c.LastError != "" {
		fmt.Fprintf(&out, " error=%q", c.LastError)
	}
	return out.String()
}

func showUpload(u Upload) string {
	out := fmt.Sprintf("%s session=%d parts=%d bytes=%d index=%d", word(u.ID), u.Session, u.Parts, u.Bytes, u.Index)
	if u.Ended {
		out += " ended"
	}
	return out
}

func showSession(s Session) string {
	out := fmt.Sprintf("%d %s/%s", s.ID, s.Name, s.Incarnation)
	if s.Vanished {
		out += fmt.Sprintf(" vanished at=%d", s.EndedUnixMs)
	}
	if s.Ended {
		out += " ended"
	}
	return out
}

func showChange(c Change) string {
	switch c.Topic {
	case TopicCall:
		return fmt.Sprintf("%s→%s: %s", stateNames[c.From], stateNames[c.Call.State], showCall(c.Call))
	case TopicSession:
		return "session " + showSession(*c.Session)
	case TopicLock:
		return fmt.Sprintf("lock %s session=%d token=%d", c.Lock.Name, c.Lock.Session, c.Lock.Token)
	case TopicOverride:
		return fmt.Sprintf("override %s replicas=%d until=%d", c.Override.Function, c.Override.Replicas, c.Override.UntilUnixMs)
	case TopicUpload:
		return "upload " + showUpload(*c.Upload)
	default:
		return "installation"
	}
}

var scriptBuckets = []string{"meta", "call", "payload", "function", "session", "lock", "activity", "override", "key", "upload"}

func showKey(o Op) string {
	switch o.Bucket {
	case BucketUpload:
		return fmt.Sprintf("%s/%s", scriptBuckets[o.Bucket], word(command.ID(o.Key)))
	case BucketCall, BucketPayload, BucketSession:
		if len(o.Key) == 12 {
			return fmt.Sprintf("%s/%d.%d", scriptBuckets[o.Bucket], binary.BigEndian.Uint64(o.Key), binary.BigEndian.Uint32(o.Key[8:]))
		}
		return fmt.Sprintf("%s/%d", scriptBuckets[o.Bucket], binary.BigEndian.Uint64(o.Key))
	case BucketKey:
		return fmt.Sprintf("%s/%.4x", scriptBuckets[o.Bucket], o.Key)
	default:
		return fmt.Sprintf("%s/%s", scriptBuckets[o.Bucket], o.Key)
	}
}

func showOp(key string, o Op) string {
	if o.Value == nil {
		return "delete " + key
	}
	return fmt.Sprintf("put %s (%d bytes)", key, len(o.Value))
}
