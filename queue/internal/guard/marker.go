package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
)

// MarkerFile in a data directory says whose directory this is and which log belongs to it. Log stores open a missing or emptied file as an empty
// log without a word, and a blank voter under an old name can vote away what was committed (reliability.md §0.3).
const MarkerFile = "member"

const markerVersion = 1

// ErrMarker is a marker that cannot be read.
var ErrMarker = errors.New("the member marker is damaged")

// Marker of a data directory, kept beside the log. The log's own file carries Directory and Epoch as well: what does not agree
// is not of one directory, or not of one time.
type Marker struct {
	Version   int    `json:"version"`
	Node      string `json:"node"`
	Directory string `json:"directory"` // random, made with the directory
	// Cluster is the installation id; empty until the node has learnt it.
	Cluster string `json:"cluster,omitempty"`
	// Epoch counts the starts on this directory. The log's file is written first: it may be one ahead, never behind.
	Epoch uint64 `json:"epoch"`
	// Joining: the directory is being filled by the leader, and what the others remember of its node is no reproach to it.
	Joining bool `json:"joining,omitempty"`
	// Added, with Joining: no node of this name had a vote when the directory was made, so this one has the vote Raft gives it.
	// Without it the directory stands for a lost one, and its node has no vote before it is filled.
	Added bool `json:"added,omitempty"`
}

// ReadMarker gives the marker of a directory, and whether there is one.
func ReadMarker(dir string) (Marker, bool, error) {
	raw, err := os.ReadFile(filepath.Join(dir, MarkerFile))
	if errors.Is(err, os.ErrNotExist) {
		return Marker{}, false, nil
	}
	if err != nil {
		return Marker{}, false, fmt.Errorf("reading the member marker: %w", err)
	}
	body, sum, ok := strings.Cut(string(raw), "\n")
	if !ok || strings.TrimSpace(sum) != checksum(body) {
		return Marker{}, false, fmt.Errorf("reading the member marker %s: %w", filepath.Join(dir, MarkerFile), ErrMarker)
	}
	var m Marker
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		return Marker{}, false, fmt.Errorf("decoding the member marker: %w", errors.Join(ErrMarker, err))
	}
	if m.Version != markerVersion {
		return Marker{}, false, fmt.Errorf("member marker has version %d, this program knows %d: %w", m.Version, markerVersion, ErrMarker)
	}
	return m, true, nil
}

// WriteMarker replaces the marker of a directory; it is on disk when this returns.
func WriteMarker(dir string, m Marker) error {
	m.Version = markerVersion
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding the member marker: %w", err)
	}
	if err := Replace(filepath.Join(dir, MarkerFile), fmt.Appendf(nil, "%s\n%s\n", body, checksum(string(body)))); err != nil {
		return fmt.Errorf("writing the member marker: %w", err)
	}
	return nil
}

func checksum(body string) string {
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli)))
}

// Replace writes a file whole or not at all: beside it, synced, renamed, and the directory synced.
func Replace(path string, content []byte) error {
	beside := path + ".new"
	if err := writeSynced(beside, content); err != nil {
		return err
	}
	if err := os.Rename(beside, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func writeSynced(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}
