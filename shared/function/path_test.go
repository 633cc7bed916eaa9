package function_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/shared/function"
)

func TestNormalizePath(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ path, want string }{
		{"", ""},
		{"/", ""},
		{"admin", "admin"},
		{"/admin/", "admin/"},
		{"//admin///x", "admin/x"},
		{"/Admin/ÉTÉ", "admin/été"},
		{"/%41dmin/%C3%89", "admin/é"},
		{"/a/./b/../c", "a/c"},
		{"/a/..", ""},
		{"/a/b/..", "a/"},
		{"/../../a", "a"},
		{"/a%2Fb", "a/b"},
		{"/a/%2e%2e/b", "b"},
		{"/100%25", "100%"},
		{"/100%", "100%"},
		{"/%252e%252e/x", "%2e%2e/x"},
		{"/v1/items:batch", "v1/items:batch"},
		{"/.well-known/x", ".well-known/x"},
		{"/a/...", "a/..."},
	} {
		if got := function.NormalizePath(tt.path); got != tt.want {
			t.Errorf("NormalizePath(%q) = %q, want %q", tt.path, got, tt.want)
		}
	}
}

func withRules(t testing.TB, annotations ...string) function.Specification {
	t.Helper()
	values := map[string]string{}
	for i := 0; i < len(annotations); i += 2 {
		values["SlimFaas/"+annotations[i]] = annotations[i+1]
	}
	spec, problems := function.Parse("fibonacci", values)
	if err := problems.Err(); err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return spec
}

func TestPathVisibility(t *testing.T) {
	t.Parallel()
	open := withRules(t, "PathsStartWithVisibility", "/compute,Private:/private,Public:/noprefix,Private:/Admin/Secret/")
	ordered := withRules(t, "PathsStartWithVisibility", "Public:/admin/help,Private:/admin")
	closed := withRules(t, "DefaultVisibility", "Private", "PathsStartWithVisibility", "Public:/public,Public:/données,Private:/public/but,Public:/a/b")
	bare := withRules(t, "DefaultVisibility", "Private")
	for _, tt := range []struct {
		spec *function.Specification
		name string
		path string
		want function.Visibility
	}{
		{&open, "no rule", "/download", function.Public},
		{&open, "public rule", "/compute", function.Public},
		{&open, "no path", "", function.Public},
		{&open, "private rule", "/private", function.Private},
		{&open, "pure prefix", "/privateer/x", function.Private},
		{&open, "without the slash", "private", function.Private},
		{&open, "case of the path", "/PRIVATE/x", function.Private},
		{&open, "case of the rule", "/admin/secret/x", function.Private},
		{&open, "rule with a slash at its end", "/admin/secret", function.Private},
		{&open, "above the rule", "/admin", function.Public},
		{&open, "doubled slash in front", "//private", function.Private},
		{&open, "doubled slash inside", "/admin//secret/x", function.Private},
		{&open, "encoded letter", "/%70rivate", function.Private},
		{&open, "encoded slash in front", "/%2Fprivate", function.Private},
		{&open, "encoded slash inside", "/admin%2fsecret", function.Private},
		{&open, "encoded slash and dots", "/compute%2F..%2Fprivate", function.Private},
		{&open, "encoded twice", "/%2570rivate", function.Private},
		{&open, "slash encoded twice", "/admin%252fsecret", function.Private},
		{&open, "encoded without end", "/" + "%" + strings.Repeat("25", 200) + "70rivate", function.Private},
		{&open, "dot segments", "/compute/../private", function.Private},
		{&open, "encoded dot segments", "/compute/%2e%2E/private", function.Private},
		{&open, "half encoded dot segments", "/compute/.%2e/private", function.Private},
		{&open, "dots after a doubled slash", "/admin/x//../../secret", function.Private},
		{&open, "dots over a doubled slash by RFC 3986", "/admin/compute//../../secret", function.Private},
		{&open, "dots after a doubled slash that counts once", "/compute//../private", function.Private},
		{&open, "dots behind an encoded question mark", "/compute/../private%3F/../../compute", function.Private},
		{&open, "leaves the private path by dots", "/private/../compute", function.Private},
		{&open, "above the top", "/../../private", function.Private},
		{&open, "backslash", `/compute\..\private`, function.Private},
		{&open, "encoded backslash", "/compute%5C..%5Cprivate", function.Private},
		{&open, "parameter", "/admin;v=1/secret", function.Private},
		{&open, "parameter on dots", "/compute/..;/private", function.Private},
		{&open, "encoded parameter on dots", "/compute/..%3bx/private", function.Private},
		{&open, "NUL inside", "/pri%00vate", function.Private},
		{&open, "tab inside", "/pri%09vate", function.Private},
		{&open, "too long an encoding", "/admin%c0%afsecret", function.Private},
		{&open, "too long dots", "/compute/%c0%ae%c0%ae/private", function.Private},
		{&open, "full-width letters", "/%EF%BD%90rivate", function.Private},
		{&open, "full-width slash", "/admin%EF%BC%8Fsecret", function.Private},
		{&open, "long s", "/admin/%C5%BFecret", function.Private},
		{&open, "Windows file name", "/admin./secret", function.Private},
		{&open, "Windows file name with a blank", "/admin%20/secret", function.Private},
		{&open, "broken escape", "/%zz", function.Private},
		{&open, "harmless encoded slash", "/files/a%2Fb", function.Public},
		{&open, "harmless percent", "/files/100%25", function.Public},
		{&open, "harmless parameter", "/files/a;v=1", function.Public},
		{&open, "harmless dots", "/files/../x", function.Public},
		{&open, "harmless bytes", "/caf%E9", function.Public},

		{&ordered, "first match wins", "/admin/help", function.Public},
		{&ordered, "second rule", "/admin/x", function.Private},
		{&ordered, "out of the public part", "/admin/help/../x", function.Private},
		{&ordered, "out of the public part, encoded", "/admin/help%2f..%2fx", function.Private},

		{&closed, "default", "/x", function.Private},
		{&closed, "public part", "/public/x", function.Public},
		{&closed, "rule that never comes first", "/public/but", function.Public},
		{&closed, "public part with capitals", "/Public/X%20y", function.Public},
		{&closed, "public part, letters encoded", "/donn%C3%A9es/2024", function.Public},
		{&closed, "public part, doubled slash", "/a//b", function.Public},
		{&closed, "out of the public part", "/public/../x", function.Private},
		{&closed, "out of the public part with a backslash", `/public\..\x`, function.Private},
		{&closed, "through another public part", "/public/../a/b", function.Public},

		{&bare, "no rules", "/anything", function.Private},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := tt.spec.PathVisibility(tt.path); got != tt.want {
				t.Errorf("PathVisibility(%q) = %v, want %v", tt.path, got, tt.want)
			}
		})
	}
}

func TestAnOrdinaryPathCostsNoMemory(t *testing.T) {
	spec := withRules(t, "PathsStartWithVisibility", "Private:/admin,Public:/compute/fast")
	if n := testing.AllocsPerRun(100, func() { spec.PathVisibility("/compute/fast/42.json") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPathVisibility(b *testing.B) {
	spec := withRules(b, "PathsStartWithVisibility", "Private:/admin,Private:/Internal/x,Public:/compute/fast")
	for _, path := range []string{"/compute/fast/42", "/compute/fast%20er/42", strings.Repeat("/a;b%2f../%25", 300)} {
		b.Run(fmt.Sprint(len(path)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				spec.PathVisibility(path)
			}
		})
	}
}

// FuzzPathVisibility: no spelling of a private path is public. The path is respelled step by step, each step one that some
// server undoes before it routes.
func FuzzPathVisibility(f *testing.F) {
	f.Add([]byte{0, 0})
	f.Add([]byte{1, 1, 5, 2, 3, 9})
	f.Add([]byte{2, 4, 0, 8, 1, 0, 7, 3, 12})
	specs := []function.Specification{
		withRules(f, "PathsStartWithVisibility", "Public:/open,Private:/admin/secret"),
		withRules(f, "DefaultVisibility", "Private", "PathsStartWithVisibility", "Public:/open"),
		withRules(f, "PathsStartWithVisibility", "Public:/admin/secretary,Private:/Admin/Secret"),
	}
	f.Fuzz(func(t *testing.T, steps []byte) {
		path := "/admin/secret/x"
		for i := 0; i+1 < len(steps) && i < 12; i += 2 {
			path = respell(path, int(steps[i]), int(steps[i+1]))
		}
		for i := range specs {
			if specs[i].PathVisibility(path) != function.Private {
				t.Errorf("%q is public under rules %v", path, specs[i].PathsStartWithVisibility)
			}
		}
	})
}

// respell changes path at a place in one way.
func respell(path string, way, place int) string {
	at := place % len(path)
	c := path[at]
	replace := func(with string) string { return path[:at] + with + path[at+1:] }
	slash := strings.LastIndexByte(path[:at+1], '/')
	switch way % 10 {
	case 0:
		return replace(fmt.Sprintf("%%%02X", c))
	case 1:
		return replace(fmt.Sprintf("%%25%02x", c))
	case 2:
		return replace(strings.ToUpper(string(c)))
	case 3:
		if slash >= 0 {
			return path[:slash] + "//" + path[slash+1:]
		}
	case 4:
		if slash >= 0 {
			return path[:slash] + "/./" + path[slash+1:]
		}
	case 5:
		if slash >= 0 {
			return path[:slash] + "/open/../" + path[slash+1:]
		}
	case 6:
		if slash > 0 {
			return path[:slash] + `\` + path[slash+1:]
		}
	case 7:
		if slash > 0 && path[slash-1] != '.' && path[slash-1] != '/' {
			return path[:slash] + ";v=1" + path[slash:]
		}
	case 8:
		return "/open/%2e%2e" + path
	case 9:
		return path[:at] + "%00" + path[at:]
	}
	return path
}

func TestWhatDoesNotWake(t *testing.T) {
	t.Parallel()
	spec, problems := function.Parse("f", map[string]string{
		"SlimFaas/Function": "true", "SlimFaas/NoWakePaths": "/Health, metrics/,", "SlimFaas/NoWakeUserAgents": "kube-probe, UptimeRobot",
	})
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, agent string
		wakes       bool
	}{
		{"/", "curl/8", true}, {"", "", true}, {"/health", "", false}, {"/healthz/x", "", false}, {"//HEALTH", "", false}, {"/h%65alth", "", false},
		{"/a/../health", "", false}, {"/a/health", "", true}, {"/metrics", "", true}, {"/metrics/x", "", false},
		{"/", "Mozilla/5.0 (compatible; uptimerobot/2.0)", false}, {"/", "kube-probe/1.31", false}, {"/", "kube", true},
	} {
		if got := spec.Wakes(c.path, c.agent); got != c.wakes {
			t.Errorf("%s by %q: %v", c.path, c.agent, got)
		}
	}
	every, _ := function.Parse("f", map[string]string{"SlimFaas/NoWakePaths": "/"})
	if every.Wakes("/x", "") || every.Wakes("", "") {
		t.Error("/ is every path")
	}
	if plain := function.Default(); !plain.Wakes("/health", "kube-probe") {
		t.Error("without the annotations everything wakes")
	}
	if w := function.Warnings("f", map[string]string{"SlimFaas/NoWakePaths": "/./"}); len(w) != 1 {
		t.Errorf("warnings %q", w)
	}
}
