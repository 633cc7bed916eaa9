package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/slimfaas/slimfaas/queue/internal/fsm"
)

func TestPayloadsStayInTheLogUntilItIsCut(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newPayloadWorld(t, seed, true)
	referred, blocks := 0, 0
	for i := range 60 {
		w.layer()
		w.check()
		if _, size, err := w.s.Referenced(); err != nil {
			t.Fatal(err)
		} else if size > 0 {
			referred++
		}
		if i%4 == 3 {
			w.cut()
			blocks = max(blocks, w.check())
		}
		if i%10 == 9 {
			w.reopen()
			w.check()
		}
	}
	if referred < 20 || blocks < 3 {
		t.Errorf("%d layers with references, never more than %d blocks: this tests nothing", referred, blocks)
	}
	if err := w.s.Forget(w.index); err != nil {
		t.Fatal(err)
	}
	w.check()
	if first, size, err := w.s.Referenced(); first != 0 || size != 0 || err != nil {
		t.Errorf("%d bytes from entry %d on are still in the log: %v", size, first, err)
	}
}

// payloadInLog commits one payload that is in the log.
func payloadInLog(t *testing.T) (w *payloadWorld, payload []byte) {
	t.Helper()
	w = newPayloadWorld(t, 1, true)
	payload = w.random(1000)
	w.index, w.next = 1, 7
	op := fsm.Op{Bucket: fsm.BucketPayload, Key: placeKey(7), Value: payload, Source: fsm.Source{Index: 1, Offset: 5}}
	if err := errors.Join(w.log.Append(1, [][][]byte{{[]byte("entry"), payload}}), w.s.Commit(1, []fsm.Op{op}), w.s.Flush(1)); err != nil {
		t.Fatal(err)
	}
	if first, size, err := w.s.Referenced(); first != 1 || size != 1000 || err != nil {
		t.Fatalf("%d bytes are referred to, from entry %d on: %v", size, first, err)
	}
	return w, payload
}

func TestASnapshotHasWhatLiesInTheLog(t *testing.T) {
	t.Parallel()
	w, payload := payloadInLog(t)
	snapshot, err := w.s.Snapshot(Replica)
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Release()
	other := newPayloadWorld(t, 1, false)
	incoming, err := other.s.Receive()
	if err != nil {
		t.Fatal(err)
	}
	var content bytes.Buffer
	if _, err := snapshot.WriteTo(&content); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(incoming, &content); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(incoming.Finish(1), other.s.Adopt()); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{w.s, other.s} {
		if got, err := s.Payload(7); err != nil || !bytes.Equal(got, payload) {
			t.Errorf("%d bytes, want %d: %v", len(got), len(payload), err)
		}
	}
	w.layer() // goes on to refer
	if _, size, err := w.s.Referenced(); size == 0 || err != nil {
		t.Errorf("%d bytes are referred to after the snapshot: %v", size, err)
	}
}

func TestAStateWhoseLogLacksItsPayloadsIsRefused(t *testing.T) {
	t.Parallel()
	w, _ := payloadInLog(t)
	if err := errors.Join(w.log.Append(2, [][][]byte{{[]byte("entry")}}), w.log.CutFront(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.Payload(7); !errors.Is(err, ErrDamaged) {
		t.Errorf("reading what the log has lost: %v", err)
	}
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(w.dir, 1, readableLog{w.log}); !errors.Is(err, ErrLost) {
		t.Errorf("opening it: %v", err)
	}
	if _, err := Open(w.dir, 1, nil); !errors.Is(err, ErrLost) {
		t.Errorf("opening it without a log: %v", err)
	}
}

func TestAPayloadThatTheLogHasDamagedIsNotGiven(t *testing.T) {
	t.Parallel()
	w, payload := payloadInLog(t)
	files, err := filepath.Glob(filepath.Join(w.logDir, "*.log"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	content, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	content[bytes.Index(content, payload)+500] ^= 4
	if err := os.WriteFile(files[0], content, fileMode); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.Payload(7); !errors.Is(err, ErrDamaged) {
		t.Errorf("reading it: %v", err)
	}
	if err := w.s.Forget(1); !errors.Is(err, ErrDamaged) {
		t.Errorf("bringing it into the file: %v", err)
	}
}

func TestPayloadsAreReadWhileTheyMove(t *testing.T) {
	t.Parallel()
	w := newPayloadWorld(t, 3, true)
	for range 10 {
		w.layer()
	}
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	for range 4 {
		reading.Go(func() {
			for ctx.Err() == nil {
				for place, want := range w.alive {
					if got, err := w.s.Payload(place); err != nil || !bytes.Equal(got, want) {
						t.Errorf("payload %d: %d bytes, want %d: %v", place, len(got), len(want), err)
						return
					}
				}
			}
		})
	}
	for upTo := range w.index {
		if err := errors.Join(w.s.Forget(upTo+1), w.log.CutFront(upTo+1)); err != nil {
			t.Error(err)
		}
	}
	cancel()
	reading.Wait()
	w.check()
}

// cutBefore is a log that is cut before it is read the first time.
type cutBefore struct {
	Log
	done atomic.Bool
	cut  func()
}

func (l *cutBefore) ReadData(index uint64, offset uint32, part []byte) error {
	if !l.done.Swap(true) {
		l.cut() // reads, too
	}
	return l.Log.ReadData(index, offset, part)
}

func TestAPayloadThatMovesBeforeTheLogIsReadIsFoundInTheFile(t *testing.T) {
	t.Parallel()
	w, payload := payloadInLog(t)
	log := &cutBefore{Log: w.s.log}
	log.cut = func() {
		if err := errors.Join(w.s.Forget(1), w.log.CutFront(1)); err != nil {
			t.Error(err)
		}
	}
	w.s.log = log
	if got, err := w.s.Payload(7); err != nil || !bytes.Equal(got, payload) {
		t.Errorf("%d bytes, want %d: %v", len(got), len(payload), err)
	}
}

func TestWhatIsForgottenBeforeItIsWrittenIsNotReferredTo(t *testing.T) {
	t.Parallel()
	w := newPayloadWorld(t, 1, true)
	payload := w.random(1000)
	op := fsm.Op{Bucket: fsm.BucketPayload, Key: placeKey(7), Value: payload, Source: fsm.Source{Index: 1, Offset: 5}}
	if err := errors.Join(w.log.Append(1, [][][]byte{{[]byte("entry"), payload}}), w.s.Commit(1, []fsm.Op{op}),
		w.s.Forget(1), w.log.CutFront(1), w.s.Flush(1)); err != nil {
		t.Fatal(err)
	}
	if got, err := w.s.Payload(7); err != nil || !bytes.Equal(got, payload) {
		t.Errorf("%d bytes, want %d: %v", len(got), len(payload), err)
	}
}
