package catalogue

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/table"
	"github.com/slimfaas/slimfaas/shared/wire"
)

// Catalogue is the table of the leading scaler. Before the first Begin, and after End, it states nothing. Its methods may be
// called from many goroutines; only the leader changes it.
type Catalogue struct {
	name string // of this scaler
	api  string // where it is pulled from

	mu      sync.Mutex
	leading bool
	epoch   uint64
	seq     uint64
	table   *table.Table
	records map[string]*wire.FunctionRecord // newest by name, deletions included
	deleted map[string]time.Time            // when, by name
}

// New makes a catalogue that states nothing.
func New(name, api string) *Catalogue { return &Catalogue{name: name, api: api} }

// Begin starts afresh under an epoch: every record is stated anew.
func (c *Catalogue) Begin(epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leading, c.epoch, c.seq = true, epoch, 0
	c.table, c.records, c.deleted = table.New(), map[string]*wire.FunctionRecord{}, map[string]time.Time{}
	c.table.MarkSynced() // it is its own source
}

// End stops stating anything.
func (c *Catalogue) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leading, c.table, c.records, c.deleted = false, nil, nil, nil
}

// Set states one record. It returns the record with its version, and whether it differs from what was stated before.
func (c *Catalogue) Set(record *wire.FunctionRecord) (*wire.FunctionRecord, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leading {
		return record, false
	}
	old := c.records[record.GetName()]
	if old != nil {
		record.Version = old.GetVersion()
		if proto.Equal(old, record) {
			return old, false
		}
	}
	c.seq++
	record.Version = &wire.Version{Epoch: c.epoch, Seq: c.seq}
	c.records[record.GetName()] = record
	delete(c.deleted, record.GetName())
	c.table.Apply(record)
	return record, true
}

// Delete states that a function is gone; nil when it was not there.
func (c *Catalogue) Delete(now time.Time, name string) *wire.FunctionRecord {
	c.mu.Lock()
	old := c.records[name]
	c.mu.Unlock()
	if old == nil || old.GetDeleted() {
		return nil
	}
	gone, _ := c.Set(&wire.FunctionRecord{Name: name, Deleted: true})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leading {
		c.deleted[name] = now
	}
	return gone
}

// Names lists the functions that are stated and not deleted, in order.
func (c *Catalogue) Names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := make([]string, 0, len(c.records))
	for name, record := range c.records {
		if !record.GetDeleted() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Digest of everything that is stated; nil while not leading.
func (c *Catalogue) Digest() *wire.TableDigest {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leading {
		return nil
	}
	digest := c.table.Digest()
	c.sign(digest, c.epoch)
	return digest
}

// sign says whose table it is. A table without a function has an epoch too.
func (c *Catalogue) sign(digest *wire.TableDigest, epoch uint64) {
	if digest.GetVersion().GetEpoch() < epoch {
		digest.Version = &wire.Version{Epoch: epoch}
	}
	digest.Leader, digest.LeaderApi, digest.Sender = c.name, c.api, c.name
}

// Forget drops deletions older than age.
func (c *Catalogue) Forget(now time.Time, age time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leading {
		return
	}
	for name, at := range c.deleted {
		if now.Sub(at) >= age {
			delete(c.deleted, name)
			delete(c.records, name)
		}
	}
	c.table.Forget(age)
}

// ErrNotLeading says that only the leader's table may be copied from a scaler.
var ErrNotLeading = errors.New("this scaler does not lead")

// Pages answers a pull: one consistent state in pages, the first with the digest.
func (c *Catalogue) Pages(since *wire.Version) (iter.Seq[*wire.PullResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leading {
		return nil, ErrNotLeading
	}
	pages, err := c.table.Pages(since)
	if err != nil {
		return nil, fmt.Errorf("read the table: %w", err)
	}
	epoch := c.epoch
	return func(yield func(*wire.PullResponse) bool) {
		for page := range pages {
			if page.GetDigest() != nil {
				c.sign(page.Digest, epoch)
			}
			if !yield(page) {
				return
			}
		}
	}, nil
}
