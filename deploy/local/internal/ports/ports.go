// Package ports chooses the ports of the local stack: fixed ones that must be free, free ones that stay the same across
// restarts (ports.json), and the range functions are given from.
package ports

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Book is ports.json: process → what for → port.
type Book map[string]map[string]int

// Want is one port to be had.
type Want struct {
	Process string // edge-0
	Use     string // admin
	Fixed   int    // 0: any free one
}

// Busy is the error of a fixed port that somebody else listens on.
type Busy struct {
	Port   int
	For    string
	Holder string // empty: not visible to this user
}

func (e *Busy) Error() string {
	holder := e.Holder
	if holder == "" {
		holder = "a process of another user"
	}
	return fmt.Sprintf("port %d for %s is in use by %s", e.Port, e.For, holder)
}

// Choose gives every want a port: the fixed one, else the one of the last run when still free and of the block, else a free one,
// of the block as long as that has any. avoid says what is not ours. All busy fixed ports are reported at once.
func (b *Block) Choose(path string, wants []Want, avoid func(port int) bool) (Book, error) {
	before, err := read(path)
	if err != nil {
		return nil, err
	}
	book, taken := Book{}, map[int]bool{}
	put := func(w Want, port int) {
		if book[w.Process] == nil {
			book[w.Process] = map[string]int{}
		}
		book[w.Process][w.Use] = port
		taken[port] = true
	}
	var busy []error
	for _, w := range wants {
		if w.Fixed == 0 {
			continue
		}
		if !free(w.Fixed) {
			busy = append(busy, &Busy{Port: w.Fixed, For: w.Process + " (" + w.Use + ")", Holder: Holder(w.Fixed)})
		}
		put(w, w.Fixed)
	}
	if len(busy) > 0 {
		return nil, errors.Join(busy...)
	}
	usable := func(port int) bool { return port > 0 && !taken[port] && !avoid(port) && free(port) }
	var open []Want
	for _, w := range wants {
		if w.Fixed > 0 {
			continue
		}
		if port := before[w.Process][w.Use]; b.has(port) && usable(port) {
			put(w, port)
		} else {
			open = append(open, w)
		}
	}
	low, high := ours()
	next := b.first
	for _, w := range open {
		tried := 0
		for ; !usable(next) && tried <= high-low; tried++ {
			next = after(next, low, high)
		}
		if tried > high-low {
			return nil, fmt.Errorf("choosing a port for %s (%s): none is free between %d and %d", w.Process, w.Use, low, high)
		}
		put(w, next)
	}
	return book, write(path, book)
}

func after(port, low, high int) int {
	if port >= high {
		return low
	}
	return port + 1
}

// ours is the range just below the system's ports for outgoing connections, where any connection may take one between two runs.
func ours() (low, high int) {
	high = 32767
	if content, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if fields := strings.Fields(string(content)); len(fields) == 2 {
			if first, err := strconv.Atoi(fields[0]); err == nil && first > 20000 {
				high = first - 1
			}
		}
	}
	return max(10000, high-12000), high
}

// free says whether the port can be listened on, on loopback and on all addresses.
func free(port int) bool {
	for _, ip := range []net.IP{nil, net.IPv4(127, 0, 0, 1)} {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip, Port: port})
		if err != nil {
			return false
		}
		_ = l.Close()
	}
	return true
}

func read(path string) (Book, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Book{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the chosen ports: %w", err)
	}
	book := Book{}
	if err := json.Unmarshal(content, &book); err != nil {
		return Book{}, nil // half written or not ours: choose anew
	}
	return book, nil
}

func write(path string, book Book) error {
	content, err := json.MarshalIndent(book, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the chosen ports: %w", err)
	}
	if err := os.WriteFile(path+".new", append(content, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the chosen ports: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("putting the chosen ports in place: %w", err)
	}
	return nil
}

// Range hands out ports of functions. It goes round, so that a port comes back as late as possible: whoever still knows a
// stopped replica's address should meet a refusal there and not another function.
type Range struct {
	from, to int

	mu   sync.Mutex // guards what follows
	next int
	out  map[int]bool
}

// NewRange hands out from–to, both included.
func NewRange(from, to int) *Range {
	return &Range{from: from, to: to, next: from, out: map[int]bool{}}
}

// Take returns a port that nobody listens on. Give it back with Give.
func (r *Range) Take() (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range r.to - r.from + 1 {
		port := r.next
		r.next = after(r.next, r.from, r.to)
		if !r.out[port] && free(port) {
			r.out[port] = true
			return port, nil
		}
	}
	return 0, fmt.Errorf("no port of processPorts %d–%d is free (%d are ours)", r.from, r.to, len(r.out))
}

// Give returns a port.
func (r *Range) Give(port int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.out, port)
}

// String lists the book in order, for messages.
func (b Book) String() string {
	var parts []string
	for _, process := range slices.Sorted(maps.Keys(b)) {
		for _, use := range slices.Sorted(maps.Keys(b[process])) {
			parts = append(parts, fmt.Sprintf("%s.%s=%d", process, use, b[process][use]))
		}
	}
	return strings.Join(parts, " ")
}
