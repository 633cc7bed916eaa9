package function_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/slimfaas/slimfaas/shared/function"
)

func TestDefaults(t *testing.T) {
	t.Parallel()
	retries := function.RetryConfiguration{HttpTimeout: 120, TimeoutRetries: []int{2, 4, 8}, HttpStatusRetries: []int{500, 502, 503}}
	want := function.Specification{
		ReplicasAtStart: 1, TimeoutSecondBeforeSetReplicasMin: 300, NumberParallelRequest: 10, NumberParallelRequestPerPod: 10,
		Configuration: function.Configuration{DefaultSync: function.SyncConfiguration{HttpTimeout: 120}, DefaultAsync: retries, DefaultPublish: retries},
		Schedule:      function.Schedule{TimeZoneID: "GB"},
		ProbeEarly:    true,
	}
	blank := map[string]string{"SlimFaas/Function": "true", "unrelated": "x"}
	for _, key := range []string{"ReplicasMin", "ReplicasAtStart", "DependsOn", "Configuration", "Schedule", "Scale", "DefaultVisibility", "DefaultTrust", "ProbeEarly", "Port", "SubscribeEvents", "WaitingPage", "NoWakePaths", "NoWakeUserAgents", "Host", "RequireKey", "EventsWake"} {
		blank["SlimFaas/"+key] = " \n"
	}
	for name, annotations := range map[string]map[string]string{"none": nil, "blank values": blank} {
		spec, problems := function.Parse("f", annotations)
		if problems.Err() != nil || !reflect.DeepEqual(spec, want) {
			t.Errorf("%s: %+v, problems %v; want %+v", name, spec, problems, want)
		}
		if warnings := function.Warnings("f", annotations); len(warnings) != 0 {
			t.Errorf("%s: warnings %q", name, warnings)
		}
	}
}

func TestScalarAnnotations(t *testing.T) {
	t.Parallel()
	type specification = function.Specification
	for _, tt := range []struct {
		key, value string
		get        func(specification) any
		want       any
		problem    string // part of the one problem; empty: none
	}{
		{"Host", "App.example.com, b.example", func(s specification) any { return strings.Join(s.Hosts, " ") }, "app.example.com b.example", ""},
		{"Host", "https://app.example.com", func(s specification) any { return len(s.Hosts) }, 0, "without scheme"},
		{"Host", "*.example.com", func(s specification) any { return len(s.Hosts) }, 0, "wildcard"},
		{"Host", "a.example:80", func(s specification) any { return len(s.Hosts) }, 0, "port"},
		{"Host", "-a.example", func(s specification) any { return len(s.Hosts) }, 0, "host names"},
		{"RequireKey", "True", func(s specification) any { return fmt.Sprint(s.RequireKey, s.KeyHolders) }, "true []", ""},
		{"RequireKey", "false", func(s specification) any { return fmt.Sprint(s.RequireKey, s.KeyHolders) }, "false []", ""},
		{"RequireKey", "ci, partner", func(s specification) any { return fmt.Sprint(s.RequireKey, s.KeyHolders) }, "true [ci partner]", ""},
		{"RequireKey", "yes", func(s specification) any { return fmt.Sprint(s.RequireKey, s.KeyHolders) }, "true [yes]", ""},
		{"EventsWake", "true", func(s specification) any { return s.EventsWake }, true, ""},
		{"WaitingPage", "True", func(s specification) any { return s.WaitingPage }, true, ""},
		{"WaitingPage", "yes", func(s specification) any { return s.WaitingPage }, false, "true or false"},
		{"ReplicasMin", "2", func(s specification) any { return s.ReplicasMin }, 2, ""},
		{"ReplicasMin", " +3\n", func(s specification) any { return s.ReplicasMin }, 3, ""},
		{"ReplicasMin", "-1", func(s specification) any { return s.ReplicasMin }, 0, `SlimFaas/ReplicasMin="-1": expected a whole number, at least 0`},
		{"ReplicasMin", "1.0", func(s specification) any { return s.ReplicasMin }, 0, "a whole number"},
		{"ReplicasMin", "1_0", func(s specification) any { return s.ReplicasMin }, 0, "a whole number"},
		{"ReplicasMin", "0x1", func(s specification) any { return s.ReplicasMin }, 0, "a whole number"},
		{"ReplicasMin", "2147483648", func(s specification) any { return s.ReplicasMin }, 0, "a whole number"},
		{"ReplicasAtStart", "0", func(s specification) any { return s.ReplicasAtStart }, 0, ""},
		{"ReplicasAtStart", "two", func(s specification) any { return s.ReplicasAtStart }, 1, "a whole number"},
		{"TimeoutSecondBeforeSetReplicasMin", "0", func(s specification) any { return s.TimeoutSecondBeforeSetReplicasMin }, 0, ""},
		{"TimeoutSecondBeforeSetReplicasMin", "-5", func(s specification) any { return s.TimeoutSecondBeforeSetReplicasMin }, 300, "seconds, at least 0"},
		{"NumberParallelRequest", "1", func(s specification) any { return s.NumberParallelRequest }, 1, ""},
		{"NumberParallelRequest", "0", func(s specification) any { return s.NumberParallelRequest }, 10, "at least 1"},
		{"NumberParallelRequestPerPod", "0", func(s specification) any { return s.NumberParallelRequestPerPod }, 10, "at least 1"},
		{"ReplicasStartAsSoonAsOneFunctionRetrieveARequest", "TRUE", func(s specification) any { return s.ReplicasStartAsSoonAsOneFunctionRetrieveARequest }, true, ""},
		{"ReplicasStartAsSoonAsOneFunctionRetrieveARequest", "1", func(s specification) any { return s.ReplicasStartAsSoonAsOneFunctionRetrieveARequest }, false, "true or false"},
		{"DependsOn", " mysql , ,api,", func(s specification) any { return s.DependsOn }, []string{"mysql", "api"}, ""},
		{"DefaultVisibility", "private", func(s specification) any { return s.DefaultVisibility }, function.Private, ""},
		{"DefaultVisibility", "PUBLIC ", func(s specification) any { return s.DefaultVisibility }, function.Public, ""},
		{"DefaultVisibility", "1", func(s specification) any { return s.DefaultVisibility }, function.Private, ""},
		{"DefaultVisibility", "0", func(s specification) any { return s.DefaultVisibility }, function.Public, ""},
		{"DefaultVisibility", "2", func(s specification) any { return s.DefaultVisibility }, function.Private, "Public or Private"},
		{"DefaultVisibility", "Privat", func(s specification) any { return s.DefaultVisibility }, function.Private, "Public or Private"},
		{"DefaultTrust", "untrusted", func(s specification) any { return s.DefaultTrust }, function.Untrusted, ""},
		{"DefaultTrust", "no", func(s specification) any { return s.DefaultTrust }, function.Untrusted, "Trusted or Untrusted"},
		{"ProbeEarly", "False", func(s specification) any { return s.ProbeEarly }, false, ""},
		{"ProbeEarly", "nope", func(s specification) any { return s.ProbeEarly }, true, "true or false"},
		{"Port", "8080", func(s specification) any { return s.Port }, 8080, ""},
		{"Port", "0", func(s specification) any { return s.Port }, 0, "from 1 to 65535"},
		{"Port", "65536", func(s specification) any { return s.Port }, 0, "from 1 to 65535"},
	} {
		t.Run(tt.key+"="+tt.value, func(t *testing.T) {
			t.Parallel()
			spec, problems := function.Parse("f", map[string]string{"SlimFaas/" + tt.key: tt.value})
			if got := tt.get(spec); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			checkProblem(t, problems, tt.problem)
		})
	}
}

func checkProblem(t *testing.T, problems function.Problems, want string) {
	t.Helper()
	if want == "" {
		if err := problems.Err(); err != nil {
			t.Errorf("problems: %v", err)
		}
		return
	}
	if len(problems) != 1 || !strings.Contains(problems[0].String(), want) {
		t.Errorf("problems = %q, want one with %q", problems.Strings(), want)
	}
}

func TestEventsAndPaths(t *testing.T) {
	t.Parallel()
	spec := withRules(t, "DefaultVisibility", "Private", "SubscribeEvents", "Private:event-one,event-two, public : three ,Foo:x,:odd,a:b:c,1:one,event-one")
	want := []function.Subscription{
		{Name: "event-one", Visibility: function.Private}, {Name: "event-two", Visibility: function.Private},
		{Name: "three", Visibility: function.Public}, {Name: "x", Visibility: function.Private}, {Name: ":odd", Visibility: function.Private},
		{Name: "b:c", Visibility: function.Private}, {Name: "one", Visibility: function.Private}, {Name: "event-one", Visibility: function.Private},
	}
	if !slices.Equal(spec.SubscribeEvents, want) {
		t.Errorf("events %+v, want %+v", spec.SubscribeEvents, want)
	}
	if s, ok := spec.Subscription("three"); !ok || s.Visibility != function.Public {
		t.Errorf("three: %v %v", s, ok)
	}
	if _, ok := spec.Subscription("Three"); ok {
		t.Error("event names are told apart by case")
	}

	spec = withRules(t, "DefaultVisibility", "Private", "PathsStartWithVisibility", "Private:/admin,/public, 0:/zero,Privat:/typo,/v1/items:batch,Public:")
	rules := []function.PathRule{
		{Path: "/admin", Visibility: function.Private}, {Path: "/public"}, {Path: "/zero"}, {Path: "/typo", Visibility: function.Private}, {Path: "/v1/items:batch"},
	}
	if !slices.Equal(spec.PathsStartWithVisibility, rules) {
		t.Errorf("rules %+v, want %+v", spec.PathsStartWithVisibility, rules)
	}
}

func TestTheFirstSubscriptionOfANameDecides(t *testing.T) {
	t.Parallel()
	spec := withRules(t, "SubscribeEvents", "Private:e,Public:e")
	if s, _ := spec.Subscription("e"); s.Visibility != function.Private {
		t.Errorf("e is %v", s.Visibility)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	t.Parallel()
	spec, problems := function.Parse("Bad Name", map[string]string{
		"SlimFaas/ReplicasMin":       "many",
		"SlimFaas/DefaultVisibility": "Secret",
		"SlimFaas/Configuration":     `{"DefaultSync":{"HttpTimeout":0},"DefaultAsync":{"HttpTimeout":"9","TimeoutRetries":[1,-2]}}`,
		"SlimFaas/Schedule":          `{"TimeZoneID":"Mars/Olympus"}`,
		"SlimFaas/Scale":             `{`,
		"SlimFaas/DependsOn":         "fine",
	})
	keys := make([]string, len(problems))
	for i, p := range problems {
		keys[i] = p.Key
	}
	want := []string{
		"name", "SlimFaas/ReplicasMin", "SlimFaas/DefaultVisibility", "SlimFaas/Configuration.DefaultSync.HttpTimeout",
		"SlimFaas/Configuration.DefaultAsync.HttpTimeout", "SlimFaas/Configuration.DefaultAsync.TimeoutRetries[1]",
		"SlimFaas/Schedule.TimeZoneID", "SlimFaas/Scale",
	}
	if !slices.Equal(keys, want) {
		t.Errorf("keys %q\nwant %q", keys, want)
	}
	if spec.Configuration.DefaultSync.HttpTimeout != 120 || !slices.Equal(spec.DependsOn, []string{"fine"}) || spec.Schedule.TimeZoneID != "GB" {
		t.Errorf("the rest is not usable: %+v", spec)
	}
}

func TestManyAndLongProblemsStaySmall(t *testing.T) {
	t.Parallel()
	_, problems := function.Parse("f", map[string]string{
		"SlimFaas/Configuration": `{"DefaultAsync":{"TimeoutRetries":[` + strings.TrimSuffix(strings.Repeat("-1,", 5000), ",") + `]}}`,
		"SlimFaas/ReplicasMin":   strings.Repeat("é", 5000),
	})
	if size := len(problems.Error()); len(problems) > 40 || size > 8000 {
		t.Errorf("%d problems in %d bytes", len(problems), size)
	}
}

func TestTooManyPathRulesCloseTheFunction(t *testing.T) {
	t.Parallel()
	spec, problems := function.Parse("f", map[string]string{"SlimFaas/PathsStartWithVisibility": strings.Repeat("/b,", 1001) + "Private:/admin"})
	if problems.Err() == nil || spec.PathVisibility("/admin") != function.Private {
		t.Errorf("problems %v, /admin is %v", problems, spec.PathVisibility("/admin"))
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ key, value, want string }{
		{"SlimFaas/ReplicaMin", "1", "did you mean SlimFaas/ReplicasMin?"},
		{"slimfaas/ReplicasMin", "1", "did you mean SlimFaas/ReplicasMin?"},
		{"SlimFaas/DefaultTrusted", "Untrusted", "did you mean SlimFaas/DefaultTrust?"},
		{"SlimFaas/UrlsPathStartWithVisibility", "", "did you mean SlimFaas/PathsStartWithVisibility?"},
		{"SlimFaas/SomethingQuiteNew", "", "SlimFaas/SomethingQuiteNew is not known and ignored"},
		{"SlimFaas/ExcludeDeploymentsFromVisibilityPrivate", "a,b", "put SlimFaas/DefaultTrust: Untrusted"},
		{"SlimFaas/PublishedPorts", "[]", ""},
		{"SlimFaasOther", "", ""},
		{"SlimFaas/DependsOn", `["a","b"]`, "comma list, not JSON"},
		{"SlimFaas/SubscribeEvents", "Foo:x", `the event is "x"`},
		{"SlimFaas/PathsStartWithVisibility", "Privat:/x", "made Private"},
		{"SlimFaas/Configuration", `{"defaultAsync":{}}`, "did you mean DefaultAsync?"},
		{"SlimFaas/Configuration", `{"DefaultSync":{"TimeoutRetries":[1],"HttpStatusRetries":"x"}}`, ""},
		{"SlimFaas/Scale", `{"Triggers":[{"Query":"2","Threshold":1}]}`, "SlimFaas/Scale is parsed, not active yet"},
		{"SlimFaas/Scale", `{"ReplicaMax":3,"Triggers":[],"Behavior":{}}`, ""},
	} {
		warnings := function.Warnings("f", map[string]string{tt.key: tt.value})
		if tt.want == "" && len(warnings) == 0 {
			continue
		}
		if len(warnings) != 1 || !strings.Contains(warnings[0], tt.want) || tt.want == "" {
			t.Errorf("%s=%s: warnings %q, want one with %q", tt.key, tt.value, warnings, tt.want)
		}
		if _, problems := function.Parse("f", map[string]string{tt.key: tt.value}); problems.Err() != nil {
			t.Errorf("%s=%s: a warning must not be a problem: %v", tt.key, tt.value, problems)
		}
	}
}

func TestValidName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"f": true, "_": true, "a-b.c_d": true, "0": true, strings.Repeat("a", 253): true,
		"": false, "-a": false, "a-": false, ".a": false, "a.": false, "A": false, "a b": false, "é": false, "a/b": false,
		strings.Repeat("a", 254): false,
	} {
		if got := function.ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v", name, got)
		}
	}
}

func TestIsFunction(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]bool{"true": true, "True": true, " TRUE ": true, "1": false, "yes": false, "": false} {
		if got := function.IsFunction(map[string]string{"SlimFaas/Function": value}); got != want {
			t.Errorf("IsFunction(%q) = %v", value, got)
		}
	}
}
