package ports

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Holder says who listens on a TCP port, as `name (pid n)`; empty when nobody visible does.
func Holder(port int) string {
	inodes := listeners(port)
	if len(inodes) == 0 {
		return ""
	}
	descriptors, err := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	if err != nil {
		return ""
	}
	for _, fd := range descriptors {
		target, err := os.Readlink(fd)
		if err != nil {
			continue // gone, or not ours to see
		}
		inode, isSocket := strings.CutPrefix(target, "socket:[")
		if !isSocket || !inodes[strings.TrimSuffix(inode, "]")] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, _ := os.ReadFile(filepath.Join("/proc", pid, "comm")) // the pid alone is of use too
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}

// listeners are the inodes of the sockets that listen on a port.
func listeners(port int) map[string]bool {
	const listening = "0A"
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		content, err := os.ReadFile(table)
		if err != nil {
			continue // no IPv6, say
		}
		for line := range strings.Lines(string(content)) {
			fields := strings.Fields(line)
			if len(fields) < 10 || fields[3] != listening {
				continue
			}
			_, local, _ := strings.Cut(fields[1], ":")
			if number, err := strconv.ParseUint(local, 16, 16); err == nil && int(number) == port {
				inodes[fields[9]] = true
			}
		}
	}
	return inodes
}
