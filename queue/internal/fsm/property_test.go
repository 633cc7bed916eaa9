package fsm

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

// disk is what a store would hold.
type disk map[Bucket]map[string][]byte

func (d disk) execute(ops []Op) {
	for _, o := range ops {
		if d[o.Bucket] == nil {
			d[o.Bucket] = map[string][]byte{}
		}
		if o.Value == nil {
			delete(d[o.Bucket], string(o.Key))
		} else {
			d[o.Bucket][string(o.Key)] = bytes.Clone(o.Value)
		}
	}
}

func (d disk) each(yield func(Op) error) error {
	for b := range Buckets {
		keys := make([]string, 0, len(d[Bucket(b)]))
		for k := range d[Bucket(b)] {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if Bucket(b) == BucketPayload {
				continue
			}
			if err := yield(Op{Bucket: Bucket(b), Key: []byte(k), Value: d[Bucket(b)][k]}); err != nil {
				return err
			}
		}
	}
	return nil
}

// generator of commands that are often right and often late, doubled or for the wrong one.
type generator struct {
	*rand.Rand
	machine *Machine
	ids     uint64
}

func (g *generator) batch(now int64) command.Batch {
	b := command.Batch{NowUnixMs: now + int64(g.IntN(2000)) - 500}
	for range 1 + g.IntN(12) {
		b.Commands = append(b.Commands, g.command(now))
	}
	return b
}

func (g *generator) id() (id command.ID) {
	n := g.ids - min(g.ids, uint64(g.IntN(60)))
	binary.BigEndian.PutUint64(id[:], n)
	return id
}

func (g *generator) session() uint64 {
	sessions := g.machine.Sessions()
	if len(sessions) == 0 || g.IntN(10) == 0 {
		return g.machine.applied - min(g.machine.applied, uint64(g.IntN(20)))
	}
	return sessions[g.IntN(len(sessions))].ID
}

func (g *generator) name(of string, n int) string { return of + string(rune('a'+g.IntN(n))) }

func (g *generator) command(now int64) command.Command {
	switch p := g.IntN(112); {
	case p >= 101:
		return g.upload()
	case p < 30:
		if g.IntN(5) > 0 {
			g.ids++
		}
		payload := make([]byte, g.IntN(40))
		return command.Accept{ID: g.id(), Function: g.name("f-", 3), Payload: payload, AcceptOptions: g.options(now)}
	case p < 55:
		return command.Grant{ID: g.id(), Session: g.session(), Replica: g.name("r-", 3), MaxTries: uint32(g.IntN(4))}
	case p < 80:
		f := command.Finish{
			ID: g.id(), Outcome: command.Outcome(g.IntN(8)), Status: uint32(g.IntN(600)), NextTryUnixMs: now + int64(g.IntN(5000)),
		}
		if c, ok := g.machine.Call(f.ID); ok && g.IntN(4) > 0 {
			f.Fence = c.Fence
		} else {
			f.Fence = uint64(g.IntN(int(g.machine.applied + 2)))
		}
		if g.IntN(3) == 0 {
			f.Error = string(bytes.Repeat([]byte("é"), g.IntN(400)))
		}
		if g.IntN(3) == 0 {
			f.Answer = make([]byte, g.IntN(30))
		}
		return f
	case p < 82:
		return command.Cancel{ID: g.id()}
	case p < 83:
		return command.Bury{ID: g.id(), Error: "expired"}
	case p < 84:
		return command.Redrive{DeadCalls: g.dead()}
	case p < 85:
		return command.Purge{DeadCalls: g.dead()}
	case p < 87:
		return command.OpenSession{Name: g.name("s-", 4), Incarnation: g.name("i-", 2), Kind: uint8(1 + g.IntN(2))}
	case p < 89:
		return command.EndSession{Session: g.session(), Expired: g.IntN(2) == 0}
	case p < 91:
		return command.AcquireLock{Lock: g.name("l-", 2), Session: g.session()}
	case p < 92:
		return command.ReleaseLock{Lock: g.name("l-", 2), Session: g.session()}
	case p < 94:
		return command.RecordActivity{Activities: []command.Activity{
			{Function: g.name("f-", 3), AtUnixMs: now - int64(g.IntN(3000))}, {Function: g.name("f-", 5), AtUnixMs: now},
		}}
	case p < 96:
		return command.SetOverride{Function: g.name("f-", 3), Replicas: int32(g.IntN(4) - 1), UntilUnixMs: now + int64(g.IntN(4000))}
	case p < 99:
		return command.Forget{
			BeforeUnixMs: now - int64(g.IntN(20000)), DeadBeforeUnixMs: now - int64(g.IntN(40000)),
			KeepCount: uint64(g.IntN(20)), DeadKeepCount: uint64(g.IntN(40)), Limit: uint32(g.IntN(10)),
		}
	default:
		return command.SetInstallation{ID: g.name("x-", 2)}
	}
}

// upload is a step of a body's way into the queue: often the right one.
func (g *generator) upload() command.Command {
	uploads := g.machine.Uploads()
	begin := command.PutPart{ID: g.id(), Session: g.session(), Data: make([]byte, 1+g.IntN(9)), MaxBytes: 100, MaxUploads: 6}
	if g.IntN(2) == 0 {
		g.ids++
		binary.BigEndian.PutUint64(begin.ID[:], g.ids)
	}
	if len(uploads) == 0 || g.IntN(4) == 0 {
		return begin
	}
	u := uploads[g.IntN(len(uploads))]
	switch g.IntN(8) {
	case 0:
		return command.DropUpload{ID: u.ID, Index: u.Index * uint64(g.IntN(2))}
	case 1:
		return command.DropUpload{ID: g.id(), Index: g.machine.applied}
	case 2, 3:
		return command.Accept{
			ID: u.ID, Function: g.name("f-", 3), Payload: []byte("head"), AcceptOptions: g.options(1_000_000),
			Body: command.Body{Parts: u.Parts, Size: u.Bytes + uint64(g.IntN(5)/4), Sum: g.Uint32()},
		}
	default:
		begin.ID, begin.Session, begin.Number = u.ID, u.Session, u.Parts+uint32(g.IntN(8)/7)-uint32(g.IntN(8)/7)
		if size := uint64(g.machine.uploads[u.ID].part); g.IntN(8) > 0 {
			begin.Data = make([]byte, size)
		}
		return begin
	}
}

func (g *generator) options(now int64) (o command.AcceptOptions) {
	if g.IntN(4) == 0 {
		o.NotBeforeUnixMs = now + int64(g.IntN(4000)) - 1000
	}
	if g.IntN(4) == 0 {
		o.ExpireUnixMs = now + int64(g.IntN(4000))
	}
	if g.IntN(2) == 0 {
		o.KeepResultMs = uint64(g.IntN(8000))
	}
	if g.IntN(3) == 0 {
		o.Key, o.RequestHash = g.name("k-", 20), command.Hash{byte(g.IntN(2))}
		o.KeyUntilUnixMs, o.MaxKeys = now+int64(g.IntN(6000)), uint64(g.IntN(15))
	}
	return o
}

func (g *generator) dead() command.DeadCalls {
	d := command.DeadCalls{Function: g.name("f-", 3)}
	if g.IntN(2) == 0 {
		d.ID = g.id()
	} else {
		d.UpTo, d.Limit = g.machine.ended-min(g.machine.ended, uint64(g.IntN(3))), uint32(g.IntN(4))
	}
	return d
}

// Properties, after every entry of any commands: conservation, redriving, purging and burying included; the store holds exactly
// the state, payloads exactly of unfinished and dead calls, the parts of bodies and of uploads, and the kept answers; no upload outlives its session; a key leads to the same id until its time is up; a machine loaded from the store answers everything after as the one that lived on; one command
// per entry gives the same as many.
func TestRandomCommandsKeepTheLaws(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		entries := 600 // the checks after each entry grow with what there is: a few go deep, many go wide
		switch {
		case testing.Short():
			entries = 200
		case seed < 4 && os.Getenv("SLIMFAAS_FULL") != "":
			entries = 1500
		case seed < 4:
			entries = 1000
		}
		t.Run("", func(t *testing.T) {
			t.Parallel()
			run(t, seed, entries)
		})
	}
}

func run(t *testing.T, seed uint64, entries int) {
	t.Helper()
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 1)), machine: New()}
	reloaded, single := New(), New()
	stored, storedSingly := disk{}, disk{}
	now := int64(1_000_000)
	keys := keyModel{}
	for index := uint64(1); index <= uint64(entries); index++ {
		now += int64(g.IntN(1000))
		b := g.batch(now)
		results, changes, ops := g.machine.Apply(index, b)
		stored.execute(ops)
		if err := keys.check(g.machine, b, results); err != nil {
			t.Fatalf("seed %d, entry %d: %v", seed, index, err)
		}

		otherResults, otherChanges, otherOps := reloaded.Apply(index, b)
		if !reflect.DeepEqual(results, otherResults) || !reflect.DeepEqual(changes, otherChanges) || !reflect.DeepEqual(ops, otherOps) {
			t.Fatalf("seed %d, entry %d: the reloaded machine differs", seed, index)
		}
		for i, c := range b.Commands {
			r, _, singleOps := single.Apply(index, command.Batch{NowUnixMs: b.NowUnixMs, Commands: []command.Command{c}})
			storedSingly.execute(singleOps)
			if !reflect.DeepEqual(r[0], results[i]) {
				t.Fatalf("seed %d, entry %d, command %d alone: %+v, in its batch %+v", seed, index, i, r[0], results[i])
			}
		}
		if err := lawful(g.machine, stored); err != nil {
			t.Fatalf("seed %d, entry %d: %v", seed, index, err)
		}
		if g.IntN(20) == 0 {
			var records uint64
			_ = g.machine.Each(func(o Op) error { records += recordHash(o.Bucket, o.Key, o.Value); return nil })
			if records != g.machine.Hash() {
				t.Fatalf("seed %d, entry %d: hash is not that of the records", seed, index)
			}
			reloaded = g.reload(t, seed, index, stored)
		}
	}
	if single.Hash() != g.machine.Hash() || !reflect.DeepEqual(stored, storedSingly) {
		t.Fatalf("seed %d: splitting the batches made a difference", seed)
	}
}

// The same at length: as many commands as a busy node sees in minutes, whole entries against single commands, and at random moments
// the laws, and a machine loaded from the store that goes on in the place of another. SLIMFAAS_FULL=1 is a million commands for each of
// a hundred seeds.
func TestAMillionRandomCommands(t *testing.T) {
	t.Parallel()
	seeds, commands, looks := uint64(2), 10_000, 100
	if os.Getenv("SLIMFAAS_FULL") != "" {
		seeds, commands, looks = 100, 1_000_000, 3000
	}
	for seed := range seeds {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			runLong(t, seed, commands, looks)
		})
	}
}

// runLong looks at everything once in so many entries.
func runLong(t *testing.T, seed uint64, commands, looks int) {
	t.Helper()
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 2)), machine: New()}
	reloaded, single := New(), New()
	stored := disk{}
	now := int64(1_000_000)
	for index := uint64(1); commands > 0; index++ {
		now += int64(g.IntN(1000))
		b := g.batch(now)
		commands -= len(b.Commands)
		results, _, ops := g.machine.Apply(index, b)
		stored.execute(ops)
		reloaded.Apply(index, b)
		for i, c := range b.Commands {
			r, _, _ := single.Apply(index, command.Batch{NowUnixMs: b.NowUnixMs, Commands: []command.Command{c}})
			if !reflect.DeepEqual(r[0], results[i]) {
				t.Fatalf("seed %d, entry %d, command %d alone: %+v, in its batch %+v", seed, index, i, r[0], results[i])
			}
		}
		if g.IntN(looks) > 0 && commands > 0 {
			continue
		}
		if h := g.machine.Hash(); h != reloaded.Hash() || h != single.Hash() {
			t.Fatalf("seed %d, entry %d: hashes %x, reloaded %x, singly %x", seed, index, h, reloaded.Hash(), single.Hash())
		}
		if err := lawful(g.machine, stored); err != nil {
			t.Fatalf("seed %d, entry %d: %v", seed, index, err)
		}
		reloaded = g.reload(t, seed, index, stored)
	}
}

// reload gives the machine that the store makes, which must be as the one that lives.
func (g *generator) reload(t *testing.T, seed, index uint64, stored disk) *Machine {
	t.Helper()
	loaded, err := Load(index, stored.each)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Hash() != g.machine.Hash() {
		t.Fatalf("seed %d, entry %d: loaded state differs", seed, index)
	}
	return loaded
}

// keyModel is the promise of idempotency keys, kept the simple way.
type keyModel map[[2]string]struct {
	id    command.ID
	hash  command.Hash
	until int64
}

func (known keyModel) check(m *Machine, b command.Batch, results []Result) error {
	for i, c := range b.Commands {
		a, ok := c.(command.Accept)
		r := results[i]
		if !ok || a.Key == "" || r.Repeated && r.ID == a.ID {
			continue // not keyed, or known by its id
		}
		pair := [2]string{a.Function, a.Key}
		k, used := known[pair]
		used = used && k.until > m.now
		switch {
		case used && k.hash == a.RequestHash && (!r.Repeated || r.ID != k.id):
			return errors.New("a repeat was not recognised")
		case used && k.hash != a.RequestHash && r.Code != Conflict:
			return errors.New("another request under a key was let through")
		case !used && r.Code == OK:
			if r.Repeated {
				return errors.New("a new key was taken for a repeat")
			}
			k.id, k.hash, k.until = a.ID, a.RequestHash, a.KeyUntilUnixMs
			known[pair] = k
		case !used && r.Code == Conflict && a.Body != (command.Body{}): // its upload is not as it says: the key stays free
		case !used && (r.Code != Full || a.MaxKeys == 0):
			return errors.New("a new key was refused")
		}
	}
	return nil
}

func lawful(m *Machine, stored disk) error {
	gauges := map[string]*Counters{}
	payloads := 0
	hasAnswer := func(c Call) bool {
		if c.Answer == 0 {
			return true
		}
		payloads++
		_, ok := stored[BucketPayload][string(numberKey(c.Answer))]
		return ok && c.KeepResult
	}
	hasParts := func(place uint64, parts uint32, size uint64) error {
		bytes := uint64(0)
		for n := range parts {
			value, ok := stored[BucketPayload][string(PartKey(place, n))]
			if !ok {
				return errors.New("a part is gone")
			}
			bytes += uint64(len(value))
			payloads++
		}
		if bytes != size || parts == 0 {
			return errors.New("parts have not the bytes they should")
		}
		return nil
	}
	hasBody := func(c Call) error {
		if c.Body == nil {
			return nil
		}
		return hasParts(c.Body.Place, c.Body.Parts, c.Body.Size)
	}
	live := map[uint64]bool{}
	for _, s := range m.Sessions() {
		live[s.ID] = !s.Vanished
	}
	uploading := uint64(0)
	for _, u := range m.Uploads() {
		if !live[u.Session] {
			return errors.New("an upload outlived its session")
		}
		if err := hasParts(m.uploads[u.ID].place, u.Parts, u.Bytes); err != nil {
			return err
		}
		uploading += u.Bytes
	}
	if uploads, bytes := m.UploadSizes(); uploads != len(stored[BucketUpload]) || bytes != uploading || bytes > 100 || uploads > 6 {
		return errors.New("uploads are not counted right, or over their limits")
	}
	seen := uint64(0)
	for c := range m.Unfinished() {
		if c.Seq <= seen {
			return errors.New("unfinished calls are out of order")
		}
		seen = c.Seq
		if !hasAnswer(c) || c.Answer != 0 && c.State != Awaiting {
			return errors.New("answer of an unfinished call does not fit")
		}
		n := gauges[c.Function]
		if n == nil {
			n = &Counters{}
			gauges[c.Function] = n
		}
		n.count(0, c.State)
		if running := c.State == Running || c.State == Awaiting; running != (c.Fence != 0) || (c.State == Running) != (c.Session != 0) {
			return errors.New("fence or session does not fit the state")
		}
		if (c.State == Waiting) != (c.NextTryUnixMs != 0) {
			return errors.New("next try does not fit the state")
		}
		if _, ok := stored[BucketPayload][string(numberKey(c.Seq))]; !ok {
			return errors.New("payload of an unfinished call is gone")
		}
		payloads++
		if err := hasBody(c); err != nil {
			return err
		}
	}
	for c := range m.Finished() {
		if c.Body != nil {
			return errors.New("a call that ended well has its body still")
		}
		if !hasAnswer(c) || (c.Answer != 0) != (c.KeptUntilMs != 0) {
			return errors.New("answer of a finished call does not fit")
		}
	}
	for c := range m.DeadLetters() {
		if !hasAnswer(c) {
			return errors.New("answer of a dead letter does not fit")
		}
		if _, ok := stored[BucketPayload][string(numberKey(c.Seq))]; !ok {
			return errors.New("payload of a dead letter is gone")
		}
		payloads++
		if err := hasBody(c); err != nil {
			return err
		}
	}
	if payloads != len(stored[BucketPayload]) {
		return errors.New("payloads are left over")
	}
	for _, n := range m.Counters() {
		if !n.Conserved() {
			return errors.New("not conserved: " + n.Function)
		}
		want := cmp.Or(gauges[n.Function], &Counters{})
		if n.Queued != want.Queued || n.Running != want.Running || n.Awaiting != want.Awaiting || n.Waiting != want.Waiting {
			return errors.New("gauges are wrong: " + n.Function)
		}
	}
	unfinished, finished, dead := m.Sizes()
	if unfinished+finished+dead != len(m.calls)+m.backlog.size || unfinished+finished+dead != len(stored[BucketCall]) {
		return errors.New("lists, index and store do not hold the same calls")
	}
	if len(m.keys) != m.keysByAge.Len() || len(m.keys) != len(stored[BucketKey]) {
		return errors.New("keys, their order and the store differ")
	}
	held := map[uint64]bool{}
	for _, s := range m.Sessions() {
		held[s.ID] = !s.Vanished
	}
	for _, l := range m.Locks() {
		if !held[l.Session] {
			return errors.New("a lock is held by no live session")
		}
	}
	return nil
}

// BenchmarkApply measures one accept, and what a queued call takes in memory (B/call; payloads are the store's).
func BenchmarkApply(b *testing.B) {
	m := New()
	payload := make([]byte, 1024)
	before := heapInUse()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		var id command.ID
		binary.BigEndian.PutUint64(id[8:], uint64(i))
		m.Apply(uint64(i+1), command.Batch{Commands: []command.Command{command.Accept{ID: id, Function: "f", Payload: payload}}})
	}
	b.StopTimer()
	b.ReportMetric(float64(heapInUse()-before)/float64(b.N), "B/call")
	runtime.KeepAlive(m)
}

func heapInUse() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// BenchmarkApplyBatch measures one accept of entries of 200, where half a million wait.
func BenchmarkApplyBatch(b *testing.B) {
	const batch = 200
	m, random := New(), rand.New(rand.NewPCG(5, 6))
	payload := make([]byte, 1024)
	index := uint64(0)
	entry := func() {
		commands := make([]command.Command, batch)
		for i := range commands {
			var id command.ID
			binary.BigEndian.PutUint64(id[8:], random.Uint64())
			commands[i] = command.Accept{ID: id, Function: "f", Payload: payload}
		}
		index++
		b.StartTimer()
		m.Apply(index, command.Batch{Commands: commands})
		b.StopTimer()
	}
	b.StopTimer()
	for range 500_000 / batch {
		entry()
	}
	b.ResetTimer()
	b.ReportAllocs()
	for range b.N {
		entry()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/call")
}
