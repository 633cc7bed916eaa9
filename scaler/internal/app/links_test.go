package app

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/tlsconf"
)

func TestLinksThatLeaveTheMachineAreEncryptedOrAllowed(t *testing.T) {
	t.Parallel()
	certified, mistaken := t.TempDir(), t.TempDir()
	a, err := tlsconf.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for dir, name := range map[string]string{certified: "scaler", mistaken: "edge"} {
		if err := a.Write(dir, nil, time.Now().Add(time.Hour), name); err != nil {
			t.Fatal(err)
		}
	}
	for what, c := range map[string]struct {
		options Options
		want    string // in the error; empty: none
	}{
		"loopback":                 {Options{APIAddress: "127.0.0.1:1", QueueAPI: []string{"http://127.0.0.1:1"}}, ""},
		"an API others reach":      {Options{APIAddress: ":1"}, "refusing to serve an internal link unencrypted"},
		"a queue elsewhere":        {Options{APIAddress: "127.0.0.1:1", QueueAPI: []string{"http://queue-0:1"}}, "refusing to send the scaler's token unencrypted to queue-0:1"},
		"a bus elsewhere":          {Options{APIAddress: "127.0.0.1:1", BusURLs: []string{"nats://queue-0:1"}}, "refusing to send"},
		"allowed":                  {Options{APIAddress: ":1", QueueAPI: []string{"http://queue-0:1"}, Insecure: true}, ""},
		"certified":                {Options{APIAddress: ":1", QueueAPI: []string{"http://queue-0:1"}, SecretsDir: certified}, ""},
		"another's certificate":    {Options{APIAddress: "127.0.0.1:1", SecretsDir: mistaken}, `needs "scaler"`},
		"TLS without certificates": {Options{APIAddress: "127.0.0.1:1", QueueAPI: []string{"https://127.0.0.1:1"}}, "asks for TLS"},
	} {
		c.options.Log = slog.New(slog.DiscardHandler)
		got, err := (&App{Options: c.options}).links()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, expected %q", what, err, c.want)
		}
		if encrypted := got.api != nil && got.queue != nil; encrypted != (what == "certified") {
			t.Errorf("%s: %+v", what, got)
		}
	}
}
