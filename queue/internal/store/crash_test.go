package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// crashProcessEnv makes the test binary be the process that is killed: its value is the store's directory.
const crashProcessEnv = "STORE_TEST_PROCESS"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashProcessEnv); dir != "" {
		if err := applyForEver(dir, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// entry of the log at an index: the same in every process.
func entry(index uint64) command.Batch {
	b := command.Batch{NowUnixMs: int64(index)}
	if index == 1 {
		b.Commands = append(b.Commands, command.OpenSession{Name: "edge", Incarnation: "a", Kind: 1})
	}
	random := rand.New(rand.NewPCG(index, 7))
	for i := range uint64(6) {
		payload := bytes.Repeat(binary.BigEndian.AppendUint64(nil, random.Uint64()), random.IntN(2<<10))
		b.Commands = append(b.Commands, command.Accept{ID: entryID(index, i), Function: fmt.Sprintf("f-%d", i%2), Payload: payload})
	}
	for i := range uint64(5) { // every sixth waits for ever
		if index > 3 {
			b.Commands = append(b.Commands, command.Grant{ID: entryID(index-3, i), Session: 1, Replica: "r-0", MaxTries: 2})
		}
		if index > 30 {
			outcome := command.OutcomeSucceeded + command.Outcome(i) // the last is a release
			b.Commands = append(b.Commands, command.Finish{
				ID: entryID(index-30, i), Fence: index - 27, Outcome: outcome, Status: 200, NextTryUnixMs: int64(index) + 50, Error: "why",
			})
		}
	}
	if index%10 == 0 {
		b.Commands = append(b.Commands, command.Forget{BeforeUnixMs: int64(index) - 200, DeadBeforeUnixMs: int64(index) - 400})
	}
	return b
}

func entryID(index, i uint64) (id command.ID) {
	binary.BigEndian.PutUint64(id[:8], index)
	binary.BigEndian.PutUint64(id[8:], i)
	return id
}

// applyForEver goes on from what the store has, and says each index it has committed, and those that are flushed.
func applyForEver(dir string, out io.Writer) error {
	s, err := Open(dir, 0, nil)
	if err != nil {
		return err
	}
	m, err := fsm.Load(s.Durable(), s.Each)
	if err != nil {
		return err
	}
	for index := m.Applied() + 1; ; index++ {
		_, _, ops := m.Apply(index, entry(index))
		if err := s.Commit(index, ops); err != nil {
			return err
		}
		word := "committed"
		if index%97 == 0 { // as before the log is cut
			if err := s.Flush(index); err != nil {
				return err
			}
			word = "flushed"
		}
		if _, err := fmt.Fprintln(out, word, index); err != nil {
			return err
		}
	}
}

// pure is the state and the payloads after so many entries, of which no disk knows.
type pure struct {
	machine *fsm.Machine
	records map[string][]byte
}

func (p *pure) reach(index uint64) {
	for next := p.machine.Applied() + 1; next <= index; next++ {
		_, _, ops := p.machine.Apply(next, entry(next))
		for _, op := range ops {
			key := string([]byte{byte(op.Bucket)}) + string(op.Key)
			if op.Value == nil {
				delete(p.records, key)
			} else {
				p.records[key] = op.Value
			}
		}
	}
}

// A process is killed with -9 at random moments while it applies. What the next one finds is the state at one index, that of a
// pure replay, byte for byte with every payload; no flushed entry is missing; and it goes on from there.
func TestWhatAKilledProcessLeavesIsTheStateAtOneIndex(t *testing.T) {
	t.Parallel()
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	replay := &pure{machine: fsm.New(), records: map[string][]byte{}}
	lost := uint64(0)
	for range rounds {
		committed, flushed := killAfter(t, dir, 1+random.IntN(300))
		s, err := Open(dir, flushed, nil)
		if err != nil {
			t.Fatal(err)
		}
		at := s.Durable()
		if at > committed+1 || at < replay.machine.Applied() {
			t.Fatalf("state is at %d, was at %d before, %d was committed", at, replay.machine.Applied(), committed)
		}
		lost += committed - min(at, committed)
		replay.reach(at)
		compare(t, s, replay)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("at entry %d in the end; %d entries to replay after each kill, on average", replay.machine.Applied(), lost/uint64(rounds))
}

func killAfter(t *testing.T, dir string, lines int) (committed, flushed uint64) {
	t.Helper()
	process := exec.Command(os.Args[0])
	process.Env = append(os.Environ(), crashProcessEnv+"="+dir)
	process.Stderr = os.Stderr
	out, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewScanner(out)
	for in.Scan() {
		word, number, _ := strings.Cut(in.Text(), " ")
		index, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			break // cut in the middle
		}
		committed = index
		if word == "flushed" {
			flushed = index
		}
		if lines--; lines == 0 {
			_ = process.Process.Kill() // and read on what it said before
		}
	}
	_ = process.Wait()
	if lines > 0 {
		t.Fatal("the process ended by itself")
	}
	return committed, flushed
}

func compare(t *testing.T, s *Store, want *pure) {
	t.Helper()
	loaded, err := fsm.Load(s.Durable(), s.Each)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Hash() != want.machine.Hash() {
		t.Fatalf("state at %d differs from the replay's", s.Durable())
	}
	found := 0
	err = s.Each(func(op fsm.Op) error {
		found++
		if record, ok := want.records[string([]byte{byte(op.Bucket)})+string(op.Key)]; !ok || !bytes.Equal(record, op.Value) {
			return fmt.Errorf("record %x of bucket %d is not the replay's", op.Key, op.Bucket)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range want.records {
		if fsm.Bucket(key[0]) != fsm.BucketPayload {
			found--
			continue
		}
		payload, err := s.Payload(binary.BigEndian.Uint64([]byte(key[1:])))
		if err != nil || !bytes.Equal(payload, value) {
			t.Fatalf("payload %x: %d bytes, want %d: %v", key[1:], len(payload), len(value), err)
		}
	}
	if found != 0 {
		t.Fatalf("%d records too many or too few", found)
	}
}

func TestOneFlippedBitIsNeverServed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(dir, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := fsm.New()
	marks := [][]byte{[]byte("the payload of this call"), []byte("the name of the function")}
	_, _, ops := m.Apply(1, command.Batch{Commands: []command.Command{
		command.Accept{ID: command.ID{1}, Function: string(marks[1]), Payload: marks[0]},
	}})
	if err := errors.Join(s.Commit(1, ops), s.Close()); err != nil {
		t.Fatal(err)
	}
	file := s.path(stateFile)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i, mark := range marks {
		at := bytes.Index(good, mark)
		if at < 0 {
			t.Fatal("not in the file")
		}
		damaged := bytes.Clone(good)
		damaged[at+3] ^= 4
		if err := os.WriteFile(file, damaged, fileMode); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		payload, payloadErr := s.Payload(1)
		_, loadErr := fsm.Load(s.Durable(), s.Each)
		if i == 0 && (!errors.Is(payloadErr, ErrDamaged) || payload != nil || loadErr != nil) {
			t.Errorf("payload: %q, %v, %v", payload, payloadErr, loadErr)
		}
		if i == 1 && !errors.Is(loadErr, ErrDamaged) {
			t.Errorf("record: %v", loadErr)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
