//go:build !linux

package logfile

import "os"

func datasync(f *os.File) error { return f.Sync() }

func reserve(f *os.File, size int64) error { return f.Truncate(size) }
