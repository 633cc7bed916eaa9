package apikey

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const ciKey = "0123456789abcdef"

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHoldersShowTheirKeysInEitherHeader(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte("hashed-key-of-a-partner"))
	file := filepath.Join(t.TempDir(), "keys")
	write(t, file, "# who\nci "+ciKey+"\n\n partner\tsha256:"+hex.EncodeToString(sum[:])+"\n")
	keys, err := Open(file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		header http.Header
		want   string // empty: nobody
		left   bool   // Authorization stays
	}{
		"header":           {http.Header{Header: {ciKey}}, "ci", false},
		"hashed":           {http.Header{Header: {"hashed-key-of-a-partner"}}, "partner", false},
		"bearer":           {http.Header{"Authorization": {"bearer " + ciKey}}, "ci", false},
		"the function's":   {http.Header{Header: {ciKey}, "Authorization": {"Bearer of-the-function"}}, "ci", true},
		"unknown":          {http.Header{"Authorization": {"Bearer 0123456789abcdeF"}}, "", true},
		"the hash":         {http.Header{Header: {"sha256:" + hex.EncodeToString(sum[:])}}, "", false},
		"basic":            {http.Header{"Authorization": {"Basic " + ciKey}}, "", true},
		"two":              {http.Header{Header: {ciKey, ciKey}}, "", false},
		"none":             {http.Header{}, "", false},
		"empty":            {http.Header{Header: {""}}, "", false},
		"larger than keys": {http.Header{Header: {strings.Repeat("a", longest+1)}}, "", false},
	} {
		got, ok := keys.Holder(c.header)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, %v", name, got, ok)
		}
		if left := c.header["Authorization"] != nil; left != c.left {
			t.Errorf("%s: Authorization stays: %v", name, left)
		}
	}
	if _, ok := (*Keys)(nil).Holder(http.Header{Header: {ciKey}}); ok {
		t.Error("without a file there is a holder")
	}
}

func TestAChangedFileIsTakenOverAndAMistakeIsNot(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys")
	write(t, file, "ci "+ciKey+"\n")
	keys, err := Open(file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ content, key, want string }{
		{"ci " + ciKey + "\nci new-key-of-the-ci\n", "new-key-of-the-ci", "ci"},
		{"ci short\n", "new-key-of-the-ci", "ci"},
		{"ci new-key-of-the-ci\n", ciKey, ""},
	} {
		write(t, file, step.content)
		_ = keys.look()
		if got, _ := keys.Holder(http.Header{Header: {step.key}}); got != step.want {
			t.Errorf("with %q, %q is of %q", step.content, step.key, got)
		}
	}
}

func TestMistakesAreNamedByLineAndTellNoKey(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]string{
		"":                                   "no key",
		"# only a comment\n":                 "no key",
		"ci\n":                               "line 1",
		"\nci tooshort\n":                    "line 2: the key of ci has 8 characters",
		"ci two words-and-more-than-16\n":    "line 1",
		"ci sha256:abc\n":                    "64 hexadecimal",
		"a " + ciKey + "\nb " + ciKey + "\n": "line 2: the key of b is the one of a",
	} {
		_, err := parse(content)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		} else if strings.Contains(err.Error(), ciKey) || strings.Contains(err.Error(), "tooshort") {
			t.Errorf("%q: the error tells a key: %v", content, err)
		}
	}
	if keys, err := Open("", nil); keys != nil || err != nil {
		t.Errorf("no file: %v, %v", keys, err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a file that is missing is no error")
	}
}
