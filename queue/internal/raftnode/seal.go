package raftnode

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// sealKey is where the log's file keeps the seals of the snapshot's record.
var sealKey = []byte("slimfaas-snapshots")

// seal of a snapshot's record. The record has a checksum of its own; the seal says that it is the one this log was cut by, and
// not one that was lost, or put there from an older copy.
type seal struct {
	ID  string `json:"id"`
	Sum uint32 `json:"sum"`
}

// seals in the log's file: until a record is on the disk, the one before it is as good.
type seals struct {
	Newest *seal `json:"newest,omitempty"`
	Next   *seal `json:"next,omitempty"`
}

func sealOf(m *raft.SnapshotMeta) *seal {
	if m == nil {
		return nil
	}
	raw, _ := json.Marshal(m) // of plain fields: cannot fail
	return &seal{m.ID, crc32.Checksum(raw, castagnoli)}
}

func (s *seal) is(other *seal) bool {
	return s == nil && other == nil || s != nil && other != nil && *s == *other
}

func (g *guardedLog) seals() (s seals, err error) {
	raw, err := g.Get(sealKey)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil {
		return s, fmt.Errorf("reading the seals of the snapshot: %w", err)
	}
	return s, nil
}

func (g *guardedLog) seal(s seals) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding the seals of the snapshot: %w", err)
	}
	if err := g.Set(sealKey, raw); err != nil {
		return fmt.Errorf("sealing the snapshot: %w", err)
	}
	return nil
}

// checkSeal compares the record with what the log was cut by.
func (s *snapshots) checkSeal() error {
	sealed, err := s.log.seals()
	if err != nil {
		return err
	}
	s.mu.Lock()
	found := sealOf(s.latest)
	s.mu.Unlock()
	switch {
	case found.is(sealed.Newest), found.is(sealed.Next) && found != nil:
		return nil
	case found == nil:
		return s.log.damage("the record of snapshot %s is missing", sealed.Newest.ID)
	default:
		return s.log.damage("the record of snapshot %s is not the one this log was cut by", found.ID)
	}
}
