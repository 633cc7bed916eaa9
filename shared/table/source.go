package table

import (
	"errors"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// ErrNotSynced says that the table has not been read from its source yet, so nobody may copy it.
var ErrNotSynced = errors.New("the function table has not been read yet")

// A page closes at pageBytes; a single record may be larger.
const pageBytes = 256 << 10

// Digest describes the table as it is now. The sender fields are the caller's to fill.
func (t *Table) Digest() *wire.TableDigest {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state.digest()
}

// Matches says whether the table is, or was a moment ago, exactly what d describes.
func (t *Table) Matches(d *wire.TableDigest) bool {
	want := stateOf(d)
	t.mu.Lock()
	defer t.mu.Unlock()
	return want == t.state || t.past.has(want)
}

// Since returns the records newer than version (nil: all), deletions too, the oldest first.
func (t *Table) Since(version *wire.Version) []*wire.FunctionRecord {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.since(version)
}

func (t *Table) since(version *wire.Version) []*wire.FunctionRecord {
	var records []*wire.FunctionRecord
	for i := range t.shards {
		m := t.shards[i].Load()
		if m == nil {
			continue
		}
		for _, e := range *m {
			if version == nil || compare(e.Record.Version, version) > 0 {
				records = append(records, e.Record)
			}
		}
	}
	slices.SortFunc(records, func(a, b *wire.FunctionRecord) int { return compare(a.Version, b.Version) })
	return records
}

// Pages answers a pull of what is newer than since: one consistent state, cut into pages of about 256 KiB. A receiver without a
// version, or with one of another epoch, gets everything (full). It is ErrNotSynced before the table is. The caller puts leader
// and sender into the digest of the first page.
func (t *Table) Pages(since *wire.Version) (iter.Seq[*wire.PullResponse], error) {
	if !t.Synced() {
		return nil, ErrNotSynced
	}
	t.mu.Lock()
	full := since == nil || since.Epoch != t.state.epoch
	if full {
		since = nil
	}
	digest, records := t.state.digest(), t.since(since)
	t.mu.Unlock()
	return func(yield func(*wire.PullResponse) bool) {
		page, size := &wire.PullResponse{Digest: digest, Full: full}, 0
		for _, r := range records {
			n := proto.Size(r)
			if size > 0 && size+n > pageBytes {
				if !yield(page) {
					return
				}
				page, size = &wire.PullResponse{}, 0
			}
			page.Records, size = append(page.Records, r), size+n
		}
		yield(page)
	}, nil
}
