package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/shared/settings"
)

func TestMembers(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                "",
		"queue-0=host":                    "queue-0=host:3262:3263:6222",
		"queue-0=127.0.0.1:1:2:3":         "queue-0=127.0.0.1:1:2:3",
		"q=[::1]":                         "q=[::1]:3262:3263:6222",
		"q=[::1]:1:2:3":                   "q=[::1]:1:2:3",
		" a=x , b=y:1:2:3, c=z ":          "a=x:3262:3263:6222,b=y:1:2:3,c=z:3262:3263:6222",
		"a=x,b=y,c=z,d=w":                 "a=x:3262:3263:6222,b=y:3262:3263:6222,c=z:3262:3263:6222,d=w:3262:3263:6222",
		"a=x,a=y,c=z":                     "error: a is listed twice",
		"a":                               "error: expected name=host",
		"=x":                              "error: expected name=host",
		"a=":                              "error: expected name=host",
		"a=x:1":                           "error: expected name=host",
		"a=x:1:2:3:4":                     "error: expected name=host",
		"a=x:1:2:port":                    "error: is not a port",
		"a=x:1:2:70000":                   "error: is not a port",
		"a=x:0:2:3":                       "error: is not a port",
		"a=[::1:1:2:3":                    "error: is not closed",
		"a=:1:2:3":                        "error: expected name=host",
		"queue-0=a,queue-1=b,queue-2=c,,": "queue-0=a:3262:3263:6222,queue-1=b:3262:3263:6222,queue-2=c:3262:3263:6222",
	} {
		var m Members
		err := m.UnmarshalText([]byte(text))
		if wanted, fails := strings.CutPrefix(want, "error: "); fails {
			if err == nil || !strings.Contains(err.Error(), wanted) {
				t.Errorf("%q: %v, want %s", text, err, wanted)
			}
			continue
		}
		got, _ := m.MarshalText()
		if err != nil || string(got) != want {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
}

func TestConfigurationComesFromTheEnvironment(t *testing.T) {
	t.Parallel()
	var c Config
	warnings, err := settings.Load(prefix, &c, []string{
		"QUEUE_NAME=queue-1", "SlimData__Directory=/database", "QUEUE_MEMBERS=queue-0=a,queue-1=b,queue-2=c", "QUEUE_INSECURE=true", "LOG_LEVEL=debug",
	})
	if err != nil || len(warnings) != 0 {
		t.Fatal(err, warnings)
	}
	if c.Node.DataDir != "/database" || len(c.Node.Members) != 3 || c.Node.Members[2].APIAddress != "c:3263" || c.Listen.Bus != ":4222" || c.Keep.HistoryCount != 1_000_000 {
		t.Errorf("%+v", c)
	}
	_, err = settings.Load(prefix, &Config{}, []string{"QUEUE_HISTORY_AGE=1m", "QUEUE_API_ADDRESS=nowhere", "QUEUE_MEMBERS=a=x,b=y"})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"QUEUE_HISTORY_AGE", "QUEUE_API_ADDRESS", "2 members"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not speak of %s: %v", want, err)
		}
	}
}

func TestOnlyWhoJoinsMayListAnEvenNumber(t *testing.T) {
	t.Parallel()
	load := func(environ ...string) error {
		_, err := settings.Load(prefix, &Config{}, append(environ, "QUEUE_INSECURE=true"))
		return err
	}
	if err := load("QUEUE_MEMBERS=a=x,b=y,c=z,d=w"); err == nil || !strings.Contains(err.Error(), "4 members") {
		t.Errorf("four begin a cluster: %v", err)
	}
	if err := load("QUEUE_MEMBERS=a=x,b=y,c=z,d=w", "QUEUE_JOIN=true"); err != nil {
		t.Error(err)
	}
	if err := load("QUEUE_MEMBERS=a=x", "QUEUE_JOIN=true"); err == nil {
		t.Error("joins itself")
	}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{"version": "queue ", "--help": "queue health", "config-doc": "`QUEUE_MEMBERS`"} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{args}, nil, &out); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v, %s", args, err, out.String())
		}
	}
	if err := run(t.Context(), []string{"dance"}, nil, nil); err == nil {
		t.Error("dances")
	}
	if err := run(t.Context(), []string{"health"}, []string{"QUEUE_ADMIN_ADDRESS=127.0.0.1:1", "QUEUE_INSECURE=true"}, nil); err == nil {
		t.Error("nobody is healthy")
	}
}
