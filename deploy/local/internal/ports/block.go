package ports

import (
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// blockSize is how many ports a stack has to itself: three queue nodes need twelve.
const blockSize = 100

// Block is a piece of the range that one stack of this user has as long as it runs. Without it two stacks that start at once find
// the same port free, and the one that is late to listen never runs.
type Block struct {
	first int
	lock  *os.File
}

// TakeBlock takes the block of a name, the state directory say, or the next one that no running stack has. Release it at the end;
// the end of the process does, too.
func TakeBlock(name string) (*Block, error) {
	dir := filepath.Join(os.TempDir(), "slimfaas-ports-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory that says which ports are taken: %w", err)
	}
	low, high := ours()
	blocks := (high - low + 1) / blockSize
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	for i := range blocks {
		block := (int(h.Sum32()%uint32(blocks)) + i) % blocks
		first := low + block*blockSize
		lock, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(first)), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("opening the lock of a block of ports: %w", err)
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return &Block{first: first, lock: lock}, nil
		}
		_ = lock.Close()
	}
	return nil, fmt.Errorf("no block of ports is free: %d stacks run", blocks)
}

func (b *Block) has(port int) bool { return port >= b.first && port < b.first+blockSize }

// Release lets another stack have the block.
func (b *Block) Release() error { return b.lock.Close() }
