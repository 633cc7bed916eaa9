package function_test

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/shared/function"
)

func TestConfiguration(t *testing.T) {
	t.Parallel()
	type sync = function.SyncConfiguration
	type retry = function.RetryConfiguration
	def := retry{HttpTimeout: 120, TimeoutRetries: []int{2, 4, 8}, HttpStatusRetries: []int{500, 502, 503}}
	for _, tt := range []struct {
		name, text string
		want       function.Configuration
		problem    string
	}{
		{"H3: null sections", `{"DefaultSync":null,"DefaultAsync":null,"DefaultPublish":null}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, ""},
		{"null lists", `{"DefaultAsync":{"HttpTimeout":5,"TimeoutRetries":null,"HttpStatusRetries":null}}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: retry{5, []int{2, 4, 8}, []int{500, 502, 503}}, DefaultPublish: def}, ""},
		{"null", `null`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, ""},
		{"empty lists", `{"DefaultAsync":{"TimeoutRetries":[],"HttpStatusRetries":[]}}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: retry{120, []int{}, []int{}}, DefaultPublish: def}, ""},
		{"all given, over lines", "{\n\"DefaultSync\": {\"HttpTimeout\": 1},\t\"DefaultAsync\":{\"HttpTimeout\":2,\"TimeoutRetries\":[0],\"HttpStatusRetries\":[404]},\n\"DefaultPublish\":{\"HttpTimeout\":3}}",
			function.Configuration{DefaultSync: sync{1}, DefaultAsync: retry{2, []int{0}, []int{404}}, DefaultPublish: retry{3, []int{2, 4, 8}, []int{500, 502, 503}}}, ""},
		{"names in another case are unknown", `{"defaultsync":{"HttpTimeout":1},"DefaultSync":{"httpTimeout":2}}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, ""},
		{"the last of two", `{"DefaultSync":{"HttpTimeout":1},"DefaultSync":{"HttpTimeout":2}}`, function.Configuration{DefaultSync: sync{2}, DefaultAsync: def, DefaultPublish: def}, ""},
		{"comment", `{/*x*/}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, "expected JSON without comments"},
		{"trailing comma", `{"DefaultSync":{},}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, "trailing commas"},
		{"something behind", `{} {}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, "something follows"},
		{"cut", `{"DefaultSync":`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, "ends too early"},
		{"not an object", `[1]`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, "a JSON object"},
		{"section of another type", `{"DefaultSync":7}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, `SlimFaas/Configuration.DefaultSync="7": expected a JSON object`},
		{"number in quotes", `{"DefaultSync":{"HttpTimeout":"7"}}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, `HttpTimeout="\"7\"": expected a whole number of seconds, at least 1`},
		{"number with a point", `{"DefaultSync":{"HttpTimeout":7.0}}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, "a whole number"},
		{"null number", `{"DefaultSync":{"HttpTimeout":null}}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, `"null"`},
		{"no timeout", `{"DefaultSync":{"HttpTimeout":0}}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, "at least 1"},
		{"negative retry", `{"DefaultAsync":{"TimeoutRetries":[1,-1]}}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, `DefaultAsync.TimeoutRetries[1]="-1"`},
		{"no status", `{"DefaultPublish":{"HttpStatusRetries":[5]}}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, "from 100 to 999"},
		{"list of another type", `{"DefaultPublish":{"HttpStatusRetries":500}}`, function.Configuration{DefaultSync: sync{120}, DefaultAsync: def, DefaultPublish: def}, "a JSON array"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec, problems := function.Parse("f", map[string]string{"SlimFaas/Configuration": tt.text})
			if !reflect.DeepEqual(spec.Configuration, tt.want) {
				t.Errorf("got %+v\nwant %+v", spec.Configuration, tt.want)
			}
			checkProblem(t, problems, tt.problem)
		})
	}
}

func TestTries(t *testing.T) {
	t.Parallel()
	spec := withRules(t, "Configuration", `{"DefaultAsync":{"HttpTimeout":3,"TimeoutRetries":[5,7]}}`)
	async := spec.Configuration.DefaultAsync
	if spec.MaxTries() != 3 || async.Timeout() != 3*time.Second || !async.Retries(502) || async.Retries(504) {
		t.Errorf("async %+v", async)
	}
	for tries, want := range map[int]time.Duration{0: 0, 1: 5 * time.Second, 2: 7 * time.Second, 3: 0} {
		if wait, more := async.Wait(tries); wait != want || more != (want > 0) {
			t.Errorf("Wait(%d) = %v, %v", tries, wait, more)
		}
	}
}

func TestScale(t *testing.T) {
	t.Parallel()
	up := function.ScaleDirection{Policies: []function.Policy{{Type: "Percent", Value: 100, PeriodSeconds: 15}, {Type: "Pods", Value: 4, PeriodSeconds: 15}}}
	down := function.ScaleDirection{StabilizationWindowSeconds: 300, Policies: []function.Policy{{Type: "Percent", Value: 100, PeriodSeconds: 15}}}
	behavior := function.Behavior{ScaleUp: up, ScaleDown: down}
	three, thousand := 3, 1000
	none := []function.Trigger{}
	for _, tt := range []struct {
		name, text string
		want       *function.Scale
		problem    string
	}{
		{"null", `null`, nil, ""},
		{"empty", `{}`, &function.Scale{Triggers: none, Behavior: behavior}, ""},
		{"nulls", `{"ReplicaMax":null,"ScrapeIntervalMilliseconds":null,"Triggers":null,"Behavior":null}`, &function.Scale{Triggers: none, Behavior: behavior}, ""},
		{"H6: shortest interval", `{"ReplicaMax":3,"ScrapeIntervalMilliseconds":1000}`, &function.Scale{ReplicaMax: &three, ScrapeIntervalMilliseconds: &thousand, Triggers: none, Behavior: behavior}, ""},
		{"H6: interval too short", `{"ScrapeIntervalMilliseconds":999}`, &function.Scale{Triggers: none, Behavior: behavior}, "milliseconds from 1000 to 300000"},
		{"H6: interval too long", `{"ScrapeIntervalMilliseconds":300001}`, &function.Scale{Triggers: none, Behavior: behavior}, "milliseconds from 1000 to 300000"},
		{"H7: no JSON", `{"Triggers":[`, nil, "ends too early"},
		{"H8: words in another case, and numbers", `{"Triggers":[{"MetricType":"VALUE","MetricName":"rps","Query":"q","Threshold":1.5},{"MetricType":0,"Query":"q","Threshold":2},{"MetricType":1,"Query":"q","Threshold":2}]}`,
			&function.Scale{Triggers: []function.Trigger{{"Value", "rps", "q", 1.5}, {"AverageValue", "", "q", 2}, {"Value", "", "q", 2}}, Behavior: behavior}, ""},
		{"unknown word", `{"Triggers":[{"MetricType":"Total","Query":"q","Threshold":1}]}`, &function.Scale{Triggers: []function.Trigger{{"AverageValue", "", "q", 1}}, Behavior: behavior}, "AverageValue or Value"},
		{"defaults of a trigger", `{"Triggers":[{}]}`, &function.Scale{Triggers: []function.Trigger{{MetricType: "AverageValue"}}, Behavior: behavior}, ""},
		{"threshold too large", `{"Triggers":[{"Query":"q","Threshold":1e999}]}`, &function.Scale{Triggers: []function.Trigger{{"AverageValue", "", "q", 0}}, Behavior: behavior}, "a number"},
		{"window missing in a given direction", `{"Behavior":{"ScaleUp":{},"ScaleDown":{"Policies":[]}}}`,
			&function.Scale{Triggers: none, Behavior: function.Behavior{ScaleUp: up, ScaleDown: function.ScaleDirection{Policies: down.Policies}}}, ""},
		{"policies", `{"Behavior":{"ScaleDown":{"StabilizationWindowSeconds":7,"Policies":[{"Type":"pods"},{"Value":5,"PeriodSeconds":60}]}}}`,
			&function.Scale{Triggers: none, Behavior: function.Behavior{ScaleUp: up, ScaleDown: function.ScaleDirection{StabilizationWindowSeconds: 7, Policies: []function.Policy{{"Pods", 100, 15}, {"Percent", 5, 60}}}}}, ""},
		{"policy without a period", `{"Behavior":{"ScaleUp":{"Policies":[{"PeriodSeconds":0}]}}}`,
			&function.Scale{Triggers: none, Behavior: function.Behavior{ScaleUp: function.ScaleDirection{Policies: []function.Policy{{"Percent", 100, 15}}}, ScaleDown: down}}, "Behavior.ScaleUp.Policies[0].PeriodSeconds"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec, problems := function.Parse("f", map[string]string{"SlimFaas/Scale": tt.text})
			if !reflect.DeepEqual(spec.Scale, tt.want) {
				t.Errorf("got %+v\nwant %+v", spec.Scale, tt.want)
			}
			checkProblem(t, problems, tt.problem)
		})
	}
}

func TestDecodeOfAnOlderOrNewerRecord(t *testing.T) {
	t.Parallel()
	spec, err := function.Decode([]byte(`{"ReplicasMin":2,"FromTheFuture":{"x":1},"Configuration":{"DefaultAsync":{"TimeoutRetries":[]}}}`))
	want := function.Default()
	want.ReplicasMin = 2
	want.Configuration.DefaultAsync.TimeoutRetries = []int{}
	if err != nil || !reflect.DeepEqual(spec, want) {
		t.Errorf("%+v, %v", spec, err)
	}
	if _, err := function.Decode([]byte(`{`)); err == nil {
		t.Error("no error")
	}
}

// FuzzParse: no annotation makes Parse or Warnings panic, what Parse returns is within bounds, and it survives the table.
func FuzzParse(f *testing.F) {
	f.Add("f", "1", "Private:/a,b", `{"DefaultAsync":{"TimeoutRetries":[1]}}`, `{"TimeZoneID":"Europe/Paris","Default":{"WakeUp":["07:00"],"ScaleDownTimeout":[{"Time":"7:5","Value":1}]}}`, `{"ReplicaMax":1,"Triggers":[{"Query":"q","Threshold":1}]}`)
	f.Add("", "-", ":,:", `null`, `{"Default":{"WakeUp":[null,7,"25:00"]}}`, `{"Behavior":{"ScaleUp":{"Policies":[{}]}}}`)
	f.Fuzz(func(t *testing.T, name, scalar, list, configuration, schedule, scale string) {
		annotations := map[string]string{"SlimFaas/Configuration": configuration, "SlimFaas/Schedule": schedule, "SlimFaas/Scale": scale, "SlimFaas/" + name: scalar}
		for _, key := range []string{"ReplicasMin", "ReplicasAtStart", "TimeoutSecondBeforeSetReplicasMin", "NumberParallelRequest", "NumberParallelRequestPerPod", "ReplicasStartAsSoonAsOneFunctionRetrieveARequest", "DefaultVisibility", "DefaultTrust", "ProbeEarly", "Port"} {
			annotations["SlimFaas/"+key] = scalar
		}
		for _, key := range []string{"DependsOn", "SubscribeEvents", "PathsStartWithVisibility"} {
			annotations["SlimFaas/"+key] = list
		}
		spec, problems := function.Parse(name, annotations)
		_, _ = problems.Error(), function.Warnings(name, annotations)
		if spec.ReplicasMin < 0 || spec.NumberParallelRequest < 1 || spec.Port < 0 || spec.Port > math.MaxUint16 || spec.Configuration.DefaultSync.HttpTimeout < 1 || spec.MaxTries() < 1 {
			t.Errorf("out of bounds: %+v", spec)
		}
		encoded := function.Encode(spec)
		decoded, err := function.Decode(encoded)
		if err != nil || !bytes.Equal(function.Encode(decoded), encoded) || fmt.Sprint(decoded.Configuration) != fmt.Sprint(spec.Configuration) {
			t.Errorf("decoded %+v, %v\nwant %+v", decoded, err, spec)
		}
		now := time.Date(2026, 3, 29, 1, 30, 0, 0, time.UTC)
		if last, ok := spec.LastWake(now); ok && (last.After(now) || now.Sub(last) > 50*time.Hour) {
			t.Errorf("last wake %v", last)
		}
		if next, ok := spec.NextScheduled(now); ok && (!next.After(now) || next.Sub(now) > 50*time.Hour) {
			t.Errorf("next %v", next)
		}
		if spec.IdleTimeout(now) < 0 {
			t.Error("idle timeout below 0")
		}
	})
}
