package dispatch

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/queue/internal/command"
	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

// What taking office costs with a million calls waiting.
func BenchmarkTakeOfficeWithAMillionCalls(b *testing.B) {
	m := fsm.New()
	for i := range 1000 {
		var batch command.Batch
		for j := range 1000 {
			var id command.ID
			binary.BigEndian.PutUint64(id[8:], uint64(i*1000+j))
			batch.Commands = append(batch.Commands, command.Accept{ID: id, Function: "f"})
		}
		m.Apply(uint64(i+1), batch)
	}
	b.ReportAllocs()
	for b.Loop() {
		newOffice(m, time.Now(), func(string) (Function, bool) { return Function{}, false }, true, Limits{})
	}
}

// One accept, grant, result round, without log and network.
func BenchmarkRound(b *testing.B) {
	w := newWorld(b)
	w.function("f", 1000, 1000, "f-0")
	e := w.edge("edge-0", 1000)
	b.ReportAllocs()
	for b.Loop() {
		w.accept("f")
		w.propose()
		for _, g := range w.sent(e) {
			w.answer(e, g, 200)
		}
		w.propose()
	}
}
