package decide_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slimfaas/slimfaas/scaler/internal/decide"
	"github.com/slimfaas/slimfaas/shared/function"
)

var noon = time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return noon.Add(-d) }

// fn is a function with the defaults and an idle time of 10 s, changed by edit.
func fn(name string, edit func(*decide.Function)) *decide.Function {
	spec := function.Default()
	spec.TimeoutSecondBeforeSetReplicasMin = 10
	f := &decide.Function{Name: name, Spec: &spec}
	if edit != nil {
		edit(f)
	}
	return f
}

func TestDecideOneFunction(t *testing.T) {
	t.Parallel()
	five := 5
	tests := map[string]struct {
		edit     func(*decide.Function)
		replicas int
		kind     decide.Kind
		reason   string // a part of it
		next     time.Time
	}{
		"asleep and nobody calls": {func(*decide.Function) {}, 0, decide.Keep, "sleeps", time.Time{}},
		"asleep and seen just now: first sight wakes nobody": {func(f *decide.Function) { f.Seen = noon },
			0, decide.Keep, "sleeps", time.Time{}},
		"asleep with recent history only": {func(f *decide.Function) { f.LastActive = ago(time.Second) },
			0, decide.Keep, "sleeps", time.Time{}},
		"awake and seen just now: first sight counts as activity": {func(f *decide.Function) { f.Wanted, f.Seen = 1, noon },
			1, decide.Keep, "active within", noon.Add(10 * time.Second)},
		"awake, never active": {func(f *decide.Function) { f.Wanted = 1 }, 0, decide.Idle, "no activity for its idle time of 10s", time.Time{}},
		"a parked call wakes": {func(f *decide.Function) { f.Open.Parked = 1 }, 1, decide.Raise, "wait for a replica", time.Time{}},
		"a queued call wakes": {func(f *decide.Function) { f.Demand.Queued = 1 }, 1, decide.Raise, "queued", time.Time{}},
		"a wake wakes":        {func(f *decide.Function) { f.Woken = ago(time.Second) }, 1, decide.Raise, "wake", time.Time{}},
		"an old wake does not": {func(f *decide.Function) { f.Woken = ago(time.Minute) },
			0, decide.Keep, "sleeps", time.Time{}},
		"a wake starts ReplicasAtStart": {func(f *decide.Function) { f.Woken, f.Spec.ReplicasAtStart = noon, 3 },
			3, decide.Raise, "wake", time.Time{}},
		"a wake starts at least ReplicasMin": {func(f *decide.Function) { f.Woken, f.Spec.ReplicasAtStart, f.Spec.ReplicasMin = noon, 1, 2 },
			2, decide.Raise, "wake", time.Time{}},
		"a wake starts one when ReplicasAtStart is 0": {func(f *decide.Function) { f.Woken, f.Spec.ReplicasAtStart = noon, 0 },
			1, decide.Raise, "wake", time.Time{}},
		"a waiting call that is due wakes": {func(f *decide.Function) { f.Demand.Waiting, f.Demand.NextTry = 1, noon },
			1, decide.Raise, "due", time.Time{}},
		"a waiting call that is not due lets it sleep": {func(f *decide.Function) { f.Demand.Waiting, f.Demand.NextTry = 1, noon.Add(time.Minute) },
			0, decide.Keep, "sleeps", noon.Add(time.Minute)},
		"a waiting call far away does not keep it awake": {func(f *decide.Function) {
			f.Wanted, f.LastActive, f.Demand.Waiting, f.Demand.NextTry = 1, ago(11*time.Second), 1, noon.Add(time.Minute)
		}, 0, decide.Idle, "no activity", noon.Add(time.Minute)},
		"a waiting call due in a moment keeps it awake": {func(f *decide.Function) {
			f.Wanted, f.LastActive, f.Demand.Waiting, f.Demand.NextTry = 1, ago(11*time.Second), 1, noon.Add(time.Second)
		}, 1, decide.Keep, "due in a moment", noon.Add(time.Second)},
		"active just within the idle time": {func(f *decide.Function) { f.Wanted, f.LastActive = 2, ago(10*time.Second-1) },
			2, decide.Keep, "active within", noon.Add(1)},
		"idle for exactly the idle time": {func(f *decide.Function) { f.Wanted, f.LastActive = 2, ago(10*time.Second) },
			0, decide.Idle, "no activity", time.Time{}},
		"idle goes to ReplicasMin": {func(f *decide.Function) { f.Wanted, f.Spec.ReplicasMin = 4, 2 },
			2, decide.Idle, "no activity", time.Time{}},
		"idle at ReplicasMin stays": {func(f *decide.Function) { f.Wanted, f.Spec.ReplicasMin = 2, 2 },
			2, decide.Keep, "ReplicasMin", time.Time{}},
		"below ReplicasMin rises without a call": {func(f *decide.Function) { f.Wanted, f.Spec.ReplicasMin = 1, 2 },
			2, decide.Raise, "ReplicasMin is 2", time.Time{}},
		"an idle time of 0 is at once": {func(f *decide.Function) {
			f.Wanted, f.LastActive, f.Spec.TimeoutSecondBeforeSetReplicasMin = 1, noon, 0
		},
			0, decide.Idle, "no activity", time.Time{}},
		"a slow call keeps it awake": {func(f *decide.Function) { f.Wanted, f.Open.InFlight, f.LastActive = 1, 1, ago(time.Hour) },
			1, decide.Keep, "in progress", time.Time{}},
		"an open stream keeps it awake": {func(f *decide.Function) { f.Wanted, f.Open.Streams = 1, 1 }, 1, decide.Keep, "in progress", time.Time{}},
		"a delivery keeps it awake":     {func(f *decide.Function) { f.Wanted, f.Open.Deliveries = 1, 1 }, 1, decide.Keep, "deliveries", time.Time{}},
		"a running call keeps it awake": {func(f *decide.Function) { f.Wanted, f.Demand.Running = 1, 1 }, 1, decide.Keep, "running", time.Time{}},
		"an awaited callback keeps it awake": {func(f *decide.Function) { f.Wanted, f.Demand.Awaiting = 1, 1 },
			1, decide.Keep, "callback", time.Time{}},
		"more replicas than at start stay while active": {func(f *decide.Function) { f.Wanted, f.LastActive = 7, ago(time.Second) },
			7, decide.Keep, "active within", noon.Add(9 * time.Second)},
		"broken is left alone": {func(f *decide.Function) { f.Wanted, f.Broken = 3, true }, 3, decide.Untouched, "problems", time.Time{}},
		"fixed says by whom": {func(f *decide.Function) { f.Wanted, f.Fixed, f.FixedBy = 1, true, "managed by KEDA" },
			1, decide.Untouched, "someone else (managed by KEDA)", time.Time{}},
		"an autoscaler scales what is awake": {func(f *decide.Function) {
			f.Wanted, f.Spec.ReplicasMin, f.Autoscaler = 5, 1, "HorizontalPodAutoscaler web"
		}, 5, decide.Keep, "HorizontalPodAutoscaler web scales it while it is awake", time.Time{}},
		"beside an autoscaler it sleeps": {func(f *decide.Function) { f.Wanted, f.Autoscaler = 5, "HorizontalPodAutoscaler web" },
			0, decide.Idle, "no activity", time.Time{}},
		"beside an autoscaler it wakes": {func(f *decide.Function) { f.Woken, f.Autoscaler = noon, "HorizontalPodAutoscaler web" },
			1, decide.Raise, "wake", time.Time{}},
		"fixed is left alone": {func(f *decide.Function) { f.Wanted, f.Fixed = 1, true }, 1, decide.Untouched, "someone else", time.Time{}},
		"I3: no room, no further scale-up": {func(f *decide.Function) { f.Open.Parked, f.StartFailure = 1, "exceeded quota" },
			0, decide.Keep, "exceeded quota", time.Time{}},
		"no room does not hinder sleep": {func(f *decide.Function) { f.Wanted, f.StartFailure = 2, "exceeded quota" },
			0, decide.Idle, "no activity", time.Time{}},
		"I5: Scale without triggers, idle": {func(f *decide.Function) { f.Wanted, f.Spec.Scale = 1, &function.Scale{} },
			0, decide.Idle, "no activity", time.Time{}},
		"operator asks for more": {func(f *decide.Function) {
			f.Wanted, f.Override = 1, &decide.Override{Replicas: 3, Until: noon.Add(time.Minute)}
		},
			3, decide.Operator, "operator asked for 3", noon.Add(time.Minute)},
		"operator asks for fewer, calls or not": {func(f *decide.Function) {
			f.Wanted, f.Open.InFlight, f.Override = 3, 5, &decide.Override{Replicas: 1, Until: noon.Add(time.Minute)}
		}, 1, decide.Operator, "operator asked for 1", noon.Add(time.Minute)},
		"operator keeps an idle function": {func(f *decide.Function) {
			f.Wanted, f.Override = 2, &decide.Override{Replicas: 2, Until: noon.Add(time.Minute)}
		},
			2, decide.Operator, "operator", noon.Add(time.Minute)},
		"operator is held to ReplicasMin": {func(f *decide.Function) {
			f.Wanted, f.Spec.ReplicasMin, f.Override = 3, 2, &decide.Override{Replicas: 0, Until: noon.Add(time.Minute)}
		}, 2, decide.Operator, "allows 2", noon.Add(time.Minute)},
		"operator is held to ReplicaMax": {func(f *decide.Function) {
			f.Spec.Scale, f.Override = &function.Scale{ReplicaMax: &five}, &decide.Override{Replicas: 9, Until: noon.Add(time.Minute)}
		}, 5, decide.Operator, "allows 5", noon.Add(time.Minute)},
		"operator's time is over": {func(f *decide.Function) { f.Wanted, f.Override = 2, &decide.Override{Replicas: 2, Until: noon} },
			0, decide.Idle, "no activity", time.Time{}},
		"operator's zero puts to sleep at once": {func(f *decide.Function) {
			f.Wanted, f.LastActive, f.Override = 2, ago(time.Second), &decide.Override{Until: noon.Add(time.Minute)}
		}, 0, decide.Operator, "operator asked for 0", noon.Add(time.Minute)},
		"work that waits is stronger than the operator's zero": {func(f *decide.Function) {
			f.Open.Parked, f.Override = 1, &decide.Override{Until: noon.Add(time.Minute)}
		}, 1, decide.Operator, "but calls wait", noon.Add(time.Minute)},
		"a schedule wakes": {func(f *decide.Function) {
			f.Spec.Schedule.TimeZoneID, f.Spec.Schedule.Default.WakeUp = "UTC", []string{"12:00"}
		},
			1, decide.Raise, "schedule", noon.Add(24 * time.Hour)},
		"a schedule that woke long ago lets it sleep": {func(f *decide.Function) {
			f.Wanted, f.Spec.Schedule.TimeZoneID, f.Spec.Schedule.Default.WakeUp = 1, "UTC", []string{"11:00"}
		}, 0, decide.Idle, "no activity", noon.Add(23 * time.Hour)},
		"the idle time follows the time of day": {func(f *decide.Function) {
			f.Wanted, f.LastActive = 1, ago(30*time.Second)
			f.Spec.Schedule.TimeZoneID = "UTC"
			f.Spec.Schedule.Default.ScaleDownTimeout = []function.ScaleDownTimeout{{Time: "08:00", Value: 60}, {Time: "21:00", Value: 10}}
		}, 1, decide.Keep, "active within", noon.Add(30 * time.Second)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := fn("hello", test.edit)
			d := decide.NewFacts(noon, []*decide.Function{f}).Decide(f)
			if d.Replicas != test.replicas || d.Kind != test.kind || !strings.Contains(d.Reason, test.reason) {
				t.Errorf("got %d replicas, kind %d, because %q; want %d, kind %d, because … %s …", d.Replicas, d.Kind, d.Reason, test.replicas, test.kind, test.reason)
			}
			if !d.Next.Equal(test.next) {
				t.Errorf("next look at %v, want %v", d.Next, test.next)
			}
			if d.Change == "" {
				t.Error("it does not say what would change it")
			}
		})
	}
}

func dependsOn(names ...string) func(*decide.Function) {
	return func(f *decide.Function) { f.Spec.DependsOn = names }
}

func all(edits ...func(*decide.Function)) func(*decide.Function) {
	return func(f *decide.Function) {
		for _, edit := range edits {
			edit(f)
		}
	}
}

func parked(f *decide.Function)   { f.Open.Parked = 1 }
func running(f *decide.Function)  { f.Wanted, f.Ready = 1, 1 }
func broken(f *decide.Function)   { f.Broken = true }
func idleLong(f *decide.Function) { f.LastActive = ago(time.Hour) }
func startsTogether(f *decide.Function) {
	f.Spec.ReplicasStartAsSoonAsOneFunctionRetrieveARequest = true
}

func TestDecideTogether(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		functions []*decide.Function
		replicas  map[string]int
		awaited   map[string][]string
		warns     map[string]string
		raise     map[string][]string // start order by function
	}{
		"a dependency starts first": {
			functions: []*decide.Function{fn("shop", all(dependsOn("db"), parked)), fn("db", nil)},
			replicas:  map[string]int{"shop": 0, "db": 1},
			awaited:   map[string][]string{"shop": {"db"}},
			raise:     map[string][]string{"shop": {"db"}},
		},
		"then the function": {
			functions: []*decide.Function{fn("shop", all(dependsOn("db"), parked)), fn("db", running)},
			replicas:  map[string]int{"shop": 1, "db": 1},
			raise:     map[string][]string{"shop": {"shop"}},
		},
		"a chain starts from its end": {
			functions: []*decide.Function{fn("a", all(dependsOn("b"), parked)), fn("b", dependsOn("c")), fn("c", nil)},
			replicas:  map[string]int{"a": 0, "b": 0, "c": 1},
			awaited:   map[string][]string{"a": {"b"}, "b": {"c"}},
			raise:     map[string][]string{"a": {"c"}},
		},
		"a dependency is ready with its own ReplicasAtStart": {
			functions: []*decide.Function{
				fn("shop", all(dependsOn("db"), parked)),
				fn("db", func(f *decide.Function) { f.Spec.ReplicasAtStart, f.Wanted, f.Ready = 2, 2, 1 }),
			},
			replicas: map[string]int{"shop": 0, "db": 2},
			awaited:  map[string][]string{"shop": {"db"}},
			raise:    map[string][]string{"shop": nil},
		},
		"a dependency that was told to have fewer is ready with those": {
			functions: []*decide.Function{
				fn("shop", all(dependsOn("db"), parked)),
				fn("db", func(f *decide.Function) { f.Spec.ReplicasAtStart, f.Wanted, f.Ready = 2, 1, 1 }),
			},
			replicas: map[string]int{"shop": 1, "db": 1},
		},
		"an unknown dependency counts as ready and is told": {
			functions: []*decide.Function{fn("shop", all(dependsOn("mysql"), parked))},
			replicas:  map[string]int{"shop": 1},
			warns:     map[string]string{"shop": "mysql"},
			raise:     map[string][]string{"shop": {"shop"}},
		},
		"processes: entries are no functions": {
			functions: []*decide.Function{fn("shop", all(dependsOn("processes:redis"), parked))},
			replicas:  map[string]int{"shop": 1},
		},
		"a broken dependency counts as ready, is told and left alone": {
			functions: []*decide.Function{fn("shop", all(dependsOn("db"), parked)), fn("db", broken)},
			replicas:  map[string]int{"shop": 1, "db": 0},
			warns:     map[string]string{"shop": "broken"},
		},
		"a cycle does not stop anybody and is told": {
			functions: []*decide.Function{fn("a", all(dependsOn("b"), parked)), fn("b", dependsOn("a"))},
			replicas:  map[string]int{"a": 1, "b": 1},
			warns:     map[string]string{"a": "cycle", "b": "cycle"},
			raise:     map[string][]string{"a": {"a", "b"}},
		},
		"itself as a dependency": {
			functions: []*decide.Function{fn("a", all(dependsOn("a"), parked))},
			replicas:  map[string]int{"a": 1},
			warns:     map[string]string{"a": "cycle"},
		},
		"who depends on a cycle still waits for it": {
			functions: []*decide.Function{fn("c", all(dependsOn("a"), parked)), fn("a", dependsOn("b")), fn("b", dependsOn("a"))},
			replicas:  map[string]int{"c": 0, "a": 1, "b": 1},
			awaited:   map[string][]string{"c": {"a"}},
			warns:     map[string]string{"a": "cycle", "b": "cycle"},
		},
		"activity keeps dependencies awake, transitively": {
			functions: []*decide.Function{
				fn("a", all(dependsOn("b"), running, func(f *decide.Function) { f.Open.InFlight = 1 })),
				fn("b", all(dependsOn("c"), running, idleLong)), fn("c", all(running, idleLong)),
			},
			replicas: map[string]int{"a": 1, "b": 1, "c": 1},
		},
		"activity is not handed to those that depend on me": {
			functions: []*decide.Function{
				fn("a", all(dependsOn("b"), running, idleLong)),
				fn("b", all(running, func(f *decide.Function) { f.Open.InFlight = 1 })),
			},
			replicas: map[string]int{"a": 0, "b": 1},
		},
		"recent reported activity wakes a dependency that sleeps": {
			functions: []*decide.Function{
				fn("a", all(dependsOn("b"), running, func(f *decide.Function) { f.LastActive, f.LastLive = ago(time.Second), ago(time.Second) })),
				fn("b", nil),
			},
			replicas: map[string]int{"a": 1, "b": 1},
		},
		"history alone wakes no dependency": {
			functions: []*decide.Function{
				fn("a", all(dependsOn("b"), running, func(f *decide.Function) { f.LastActive = ago(time.Second) })), fn("b", nil),
			},
			replicas: map[string]int{"a": 1, "b": 0},
		},
		"a function that starts with any, starts with any": {
			functions: []*decide.Function{fn("a", all(parked)), fn("b", startsTogether), fn("c", nil)},
			replicas:  map[string]int{"a": 1, "b": 1, "c": 0},
		},
		"and brings its dependencies": {
			functions: []*decide.Function{fn("a", parked), fn("b", all(startsTogether, dependsOn("c"))), fn("c", nil)},
			replicas:  map[string]int{"a": 1, "b": 0, "c": 1},
			awaited:   map[string][]string{"b": {"c"}},
		},
		"and sleeps when nobody has had a call for its idle time": {
			functions: []*decide.Function{fn("a", all(running, idleLong)), fn("b", all(startsTogether, running, idleLong))},
			replicas:  map[string]int{"a": 0, "b": 0},
		},
		"I7 and law 9: a broken function hurts only itself": {
			functions: []*decide.Function{fn("a", all(broken, parked, func(f *decide.Function) { f.Wanted = 4 })), fn("b", parked)},
			replicas:  map[string]int{"a": 4, "b": 1},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The order in which functions are listed must not matter.
			for _, functions := range [][]*decide.Function{test.functions, reversed(test.functions)} {
				facts := decide.NewFacts(noon, functions)
				for _, f := range functions {
					d := facts.Decide(f)
					if want := test.replicas[f.Name]; d.Replicas != want {
						t.Errorf("%s gets %d replicas because %q, want %d", f.Name, d.Replicas, d.Reason, want)
					}
					if want := test.awaited[f.Name]; !slices.Equal(d.Awaited, want) {
						t.Errorf("%s awaits %v, want %v", f.Name, d.Awaited, want)
					}
					if want := test.warns[f.Name]; (want == "") != (len(d.Warnings) == 0) || !strings.Contains(strings.Join(d.Warnings, "\n"), want) {
						t.Errorf("%s warns %q, want … %s …", f.Name, d.Warnings, want)
					}
					if want, listed := test.raise[f.Name]; listed {
						if got := facts.StartOrder(f.Name); !slices.Equal(got, want) {
							t.Errorf("to start %s, raise %v, want %v", f.Name, got, want)
						}
					}
				}
			}
		})
	}
}

func reversed(functions []*decide.Function) []*decide.Function {
	turned := slices.Clone(functions)
	slices.Reverse(turned)
	return turned
}

func BenchmarkTenThousandFunctions(b *testing.B) {
	functions := make([]*decide.Function, 10_000)
	for i := range functions {
		functions[i] = fn("f"+string(rune('a'+i%26))+time.Duration(i).String(), running)
	}
	for b.Loop() {
		facts := decide.NewFacts(noon, functions)
		for _, f := range functions {
			facts.Decide(f)
		}
	}
}
