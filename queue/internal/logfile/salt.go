package logfile

import (
	"crypto/rand"
	"fmt"
)

// newSalt is never zero in the part that records carry: zeros are no record.
func newSalt() (salt [8]byte, err error) {
	if _, err := rand.Read(salt[:]); err != nil {
		return salt, fmt.Errorf("making a salt: %w", err)
	}
	salt[0] |= 1
	return salt, nil
}
