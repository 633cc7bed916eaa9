package message

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// ID is a call's element id: a UUIDv7, lower case wherever it is shown.
type ID [16]byte

// ErrBadID says that a text is no element id.
var ErrBadID = errors.New("an element id is 36 characters: 8-4-4-4-12 hexadecimal digits")

// NewID mints an id. Ids of one edge sort by the time they were minted.
func NewID() (ID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return ID{}, fmt.Errorf("minting an element id: %w", err)
	}
	return ID(id), nil
}

// ParseID reads the canonical form, in either case.
func ParseID(s string) (ID, error) {
	if len(s) != 36 {
		return ID{}, ErrBadID // uuid.Parse would also take braces, a urn prefix or no dashes
	}
	id, err := uuid.Parse(s)
	if err != nil {
		return ID{}, ErrBadID
	}
	return ID(id), nil
}

func (id ID) String() string { return uuid.UUID(id).String() }
