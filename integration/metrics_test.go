package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMetricsThatRulesAndDocumentsNameExist: an alert on a series that nobody exposes never fires.
func TestMetricsThatRulesAndDocumentsNameExist(t *testing.T) {
	name := regexp.MustCompile(`\bslimfaas_[a-z0-9_]+\b`)
	read := func(path string) string {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	exposed := map[string]bool{}
	for _, module := range []string{"edge", "queue", "scaler", "shared"} {
		err := filepath.WalkDir("../"+module, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				for _, n := range name.FindAllString(read(path), -1) {
					exposed[n] = true
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var readers []string
	for _, pattern := range []string{"../deploy/prometheus/*.yaml", "../docs/*.md", "../*.md"} {
		found, _ := filepath.Glob(pattern)
		readers = append(readers, found...)
	}
	for _, path := range readers {
		for _, n := range name.FindAllString(read(path), -1) {
			base := n
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				base = strings.TrimSuffix(base, suffix)
			}
			if !exposed[n] && !exposed[base] && !strings.HasSuffix(n, "_") { // a family: slimfaas_raft_log_*
				t.Errorf("%s speaks of %s, which no program exposes", path, n)
			}
		}
	}
}
