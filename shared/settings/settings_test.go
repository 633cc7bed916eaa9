package settings_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/settings"
)

type listeners struct {
	Public string        `env:"PUBLIC_ADDRESS" envDefault:":5000" doc:"Where everybody calls."`
	Idle   time.Duration `env:"IDLE" envDefault:"60s" alias:"Kestrel__Limits__KeepAliveTimeout" doc:"Idle connections close after this; 0 never."`
	Limit  int           `env:"LIMIT" envDefault:"7" doc:"How many | at most."`
}

func (l listeners) Validate() error {
	if l.Limit < 1 {
		return errors.New("EDGE_HTTP_LIMIT: expected at least 1")
	}
	return nil
}

type trust struct {
	Proxies []netip.Prefix `env:"TRUSTED_PROXIES" doc:"Networks."`
	Origins []string       `env:"ORIGINS" envDefault:"*" alias:"SlimFaas__CorsAllowOrigin" doc:"Origins."`
	Wait    time.Duration  `env:"WAIT" alias:"RaftClientHandler:ConnectTimeoutMilliseconds" doc:"Wait."`
	Token   string         `env:"TOKEN" secret:"true" doc:"Token."`
	Bus     []string       `env:"BUS" doc:"Bus."`
}

type config struct {
	Log   settings.Log
	HTTP  listeners `envPrefix:"HTTP_"`
	Trust trust
	Name  string `env:"NAME,required" doc:"Name."`
	State any    `env:"-"`
}

func load(t *testing.T, environ ...string) (config, []string) {
	t.Helper()
	var cfg config
	warnings, err := settings.Load("EDGE_", &cfg, append([]string{"EDGE_NAME=edge-0"}, environ...))
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return cfg, warnings
}

func TestDefaultsApplyAndEmptyCountsAsMissing(t *testing.T) {
	t.Parallel()
	cfg, warnings := load(t, "EDGE_HTTP_LIMIT=")
	if cfg.HTTP.Public != ":5000" || cfg.HTTP.Idle != time.Minute || cfg.HTTP.Limit != 7 || cfg.Name != "edge-0" {
		t.Errorf("cfg = %+v", cfg)
	}
	if cfg.Log.Level.Level() != slog.LevelInfo || len(warnings) != 0 {
		t.Errorf("level %v, warnings %q", cfg.Log.Level, warnings)
	}
}

func TestSharedNamesHaveNoPrefixAndListsAreTidied(t *testing.T) {
	t.Parallel()
	cfg, warnings := load(t, "LOG_LEVEL=debug", "EDGE_TRUSTED_PROXIES= 10.0.0.0/8 , ::1/128,", "EDGE_HTTP_IDLE=90s")
	if cfg.Log.Level.Level() != slog.LevelDebug || cfg.HTTP.Idle != 90*time.Second {
		t.Errorf("cfg = %+v", cfg)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	if !slices.Equal(cfg.Trust.Proxies, want) || len(warnings) != 0 {
		t.Errorf("proxies %v, warnings %q", cfg.Trust.Proxies, warnings)
	}
}

func TestAliasesOfTheOriginal(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		environ []string
		check   func(config) bool
	}{
		{"exact", []string{"SlimFaas__CorsAllowOrigin=https://a, https://b"}, func(c config) bool { return slices.Equal(c.Trust.Origins, []string{"https://a", "https://b"}) }},
		{"colons and case", []string{"slimfaas:CORSALLOWORIGIN=x"}, func(c config) bool { return slices.Equal(c.Trust.Origins, []string{"x"}) }},
		{"array items", []string{"SlimFaas__CorsAllowOrigin__0=x", "slimfaas__corsalloworigin__1=y"}, func(c config) bool { return slices.Equal(c.Trust.Origins, []string{"x", "y"}) }},
		{"unit in the name", []string{"RaftClientHandler__ConnectTimeoutMilliseconds=1500"}, func(c config) bool { return c.Trust.Wait == 1500*time.Millisecond }},
		{"time span", []string{"Kestrel__Limits__KeepAliveTimeout=00:05:00"}, func(c config) bool { return c.HTTP.Idle == 5*time.Minute }},
		{"level words", []string{"Logging__LogLevel__Default=Warning"}, func(c config) bool { return c.Log.Level.Level() == slog.LevelWarn }},
		{"own name equal to the alias", []string{"EDGE_ORIGINS=x", "SlimFaas__CorsAllowOrigin= x"}, func(c config) bool { return slices.Equal(c.Trust.Origins, []string{"x"}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg, warnings := load(t, tt.environ...)
			if !tt.check(cfg) || len(warnings) != 0 {
				t.Errorf("cfg = %+v, warnings %q", cfg, warnings)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		environ []string
		want    string // part of the one warning; empty: none
	}{
		{"both names, different", []string{"EDGE_ORIGINS=a", "SlimFaas__CorsAllowOrigin=b"}, `EDGE_ORIGINS="a" and SlimFaas__CorsAllowOrigin="b" are both set and differ; EDGE_ORIGINS is used`},
		{"no meaning here", []string{"SlimData__WarmupRounds=3"}, "SlimData__WarmupRounds is set and has no meaning for this program"},
		{"unknown to the original too", []string{"SlimFaas:Ports=3"}, "the original does not know it either"},
		{"renamed long ago", []string{"SLIMDATA_DIRECTORY=/x"}, "replaced by SlimData__Directory"},
		{"typo under our prefix", []string{"EDGE_ORIGIN=3"}, "did you mean EDGE_ORIGINS?"},
		{"kubernetes service link", []string{"EDGE_SERVICE_HOST=1", "EDGE_PORT_80_TCP=2"}, ""},
		{"not ours at all", []string{"PATH=/bin", "HOSTNAME=x", "NAMESPACE=y", "QUEUE_X=1"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, warnings := load(t, tt.environ...)
			if tt.want == "" && len(warnings) == 0 {
				return
			}
			if len(warnings) != 1 || !strings.Contains(warnings[0], tt.want) {
				t.Errorf("warnings = %q, want one with %q", warnings, tt.want)
			}
		})
	}
}

func TestAllErrorsAreJoinedAndNameTheirVariable(t *testing.T) {
	t.Parallel()
	var cfg config
	_, err := settings.Load("EDGE_", &cfg, []string{"EDGE_HTTP_IDLE=soon", "EDGE_TRUSTED_PROXIES=nowhere", "LOG_FORMAT=xml"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`EDGE_HTTP_IDLE="soon": expected duration`, `EDGE_TRUSTED_PROXIES="nowhere"`, "EDGE_NAME", `LOG_FORMAT="xml"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
}

func TestValidateOfAPartIsAskedOnlyWhenThePartCouldBeRead(t *testing.T) {
	t.Parallel()
	var cfg config
	_, err := settings.Load("EDGE_", &cfg, []string{"EDGE_NAME=x", "EDGE_HTTP_LIMIT=0"})
	if err == nil || !strings.Contains(err.Error(), "at least 1") {
		t.Errorf("err = %v", err)
	}
	_, err = settings.Load("EDGE_", &cfg, []string{"EDGE_NAME=x", "EDGE_HTTP_LIMIT=0", "EDGE_HTTP_IDLE=soon"})
	if err == nil || strings.Contains(err.Error(), "at least 1") {
		t.Errorf("err = %v", err)
	}
}

func TestEffectiveHidesSecrets(t *testing.T) {
	t.Parallel()
	cfg, _ := load(t, "EDGE_TOKEN=hunter2", "EDGE_BUS=nats://u:pw@h:1,nats://h:2")
	shown := fmt.Sprint(settings.Effective(cfg)...)
	if strings.Contains(shown, "hunter2") || strings.Contains(shown, "pw") {
		t.Errorf("a secret is shown: %s", shown)
	}
	for _, want := range []string{"TOKEN=(set)", "HTTP_IDLE=1m0s", "BUS=nats://u:xxxxx@h:1,nats://h:2", "LOG_LEVEL=info"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is missing in %s", want, shown)
		}
	}
}

func TestMarkdownHasOneRowPerVariableInOrder(t *testing.T) {
	t.Parallel()
	page := settings.Markdown("EDGE_", &config{})
	at := 0
	for _, want := range []string{
		"| `LOG_LEVEL` | log level | `info` |",
		"| `EDGE_HTTP_PUBLIC_ADDRESS` | text | `:5000` | Where everybody calls. |  |",
		"| `EDGE_HTTP_LIMIT` | number | `7` | How many \\| at most. |",
		"| `EDGE_TRUSTED_PROXIES` | comma list of networks | – | Networks. |  |",
		"| `EDGE_ORIGINS` | comma list of texts | `*` | Origins. | `SlimFaas__CorsAllowOrigin` |",
		"| `EDGE_NAME` | text |",
	} {
		i := strings.Index(page[at:], want)
		if i < 0 {
			t.Fatalf("%q is missing or out of order in\n%s", want, page)
		}
		at += i
	}
}

func TestTwoFieldsOfOneNameAreRefused(t *testing.T) {
	t.Parallel()
	var cfg struct {
		A string `env:"X"`
		B string `env:"X"`
	}
	if _, err := settings.Load("", &cfg, nil); err == nil {
		t.Error("no error")
	}
}
