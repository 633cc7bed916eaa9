package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// programs is the directory of the programs to run. With preludes it is one of the cluster's own, in which the programs that
// have one are shell scripts that end in exec: same pid, same parent, other environment.
func (c *Cluster) programs() string {
	if len(c.opts.Prelude) == 0 {
		return Bin()
	}
	if c.bin != "" {
		return c.bin
	}
	dir := filepath.Join(c.State, "bin")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatalf("making a directory for programs: %v", err)
	}
	for _, program := range []string{"local", "queue", "edge", "scaler"} {
		from, to := filepath.Join(Bin(), program), filepath.Join(dir, program)
		prelude, wrapped := c.opts.Prelude[program]
		var err error
		if wrapped {
			script := fmt.Sprintf("#!/bin/sh\n%s\nexec %s \"$@\"\n", prelude, from)
			err = os.WriteFile(to, []byte(script), 0o700) //nolint:gosec // it is run
		} else if program == "local" { // it looks for the others beside its own file
			var content []byte
			if content, err = os.ReadFile(from); err == nil {
				err = os.WriteFile(to, content, 0o700) //nolint:gosec // it is run
			}
		} else {
			err = os.Symlink(from, to)
		}
		if err != nil {
			c.t.Fatalf("preparing %s: %v", program, err)
		}
	}
	c.bin = dir
	return dir
}

// Redirect is a prelude that replaces parts of a variable with sed expressions.
func Redirect(variable string, expressions ...string) string {
	quoted := make([]string, 0, len(expressions))
	for _, e := range expressions {
		quoted = append(quoted, "-e '"+e+"'")
	}
	return fmt.Sprintf(`%[1]s=$(printf %%s "$%[1]s" | sed %[2]s); export %[1]s`, variable, strings.Join(quoted, " "))
}
