package obs

import (
	"bytes"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestLoggerFormatsAndLevels(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ level, format, want string }{
		{"", "", `"msg":"kept"`},
		{"", "json", `"msg":"kept"`},
		{"info", "text", "msg=kept"},
		{"DEBUG", "text", "msg=detail"},
	} {
		var out bytes.Buffer
		log, err := Logger(&out, c.level, c.format)
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("detail")
		log.Info("kept")
		if !strings.Contains(out.String(), c.want) {
			t.Errorf("level %q format %q: %s has no %s", c.level, c.format, out.String(), c.want)
		}
		if c.level != "DEBUG" && strings.Contains(out.String(), "detail") {
			t.Errorf("level %q lets debug lines through", c.level)
		}
	}
	for _, c := range [][2]string{{"loud", ""}, {"", "xml"}} {
		if _, err := Logger(&bytes.Buffer{}, c[0], c[1]); err == nil {
			t.Errorf("%v is accepted", c)
		}
	}
}

func TestMetricsTellTheBuild(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	Handler(Registry("edge"), slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if !strings.Contains(w.Body.String(), `slimfaas_build_info{`) || !strings.Contains(w.Body.String(), `program="edge"`) {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	if d := Describe("edge"); !strings.HasPrefix(d, "edge "+Version) {
		t.Error(d)
	}
}
