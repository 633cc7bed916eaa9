// Package function turns `SlimFaas/*` annotations into a specification. It is the one parser for every source: pod
// templates, container labels, local manifests. Pure: values in, values out.
package function

import "time"

// Specification is what a function asks of SlimFaas: every annotation of contract §2 with its default applied. It travels
// as JSON in table records, so a field keeps its name for ever and its zero value must be harmless to an older reader.
type Specification struct {
	ReplicasMin     int
	ReplicasAtStart int
	// TimeoutSecondBeforeSetReplicasMin is the idle time, in seconds, after which the function goes to ReplicasMin. 0: at once.
	TimeoutSecondBeforeSetReplicasMin int
	// NumberParallelRequest and NumberParallelRequestPerPod cap async tries at one time, over the function and per replica.
	NumberParallelRequest       int
	NumberParallelRequestPerPod int
	// NumberParallelRequestSync and NumberParallelRequestPerPodSync (ours) cap sync calls at one time, over all edges. 0: no cap.
	NumberParallelRequestSync       int `json:",omitempty"`
	NumberParallelRequestPerPodSync int `json:",omitempty"`
	// ReplicasStartAsSoonAsOneFunctionRetrieveARequest: any function's activity is this one's too.
	ReplicasStartAsSoonAsOneFunctionRetrieveARequest bool
	DependsOn                                        []string       `json:",omitempty"`
	SubscribeEvents                                  []Subscription `json:",omitempty"`
	DefaultVisibility                                Visibility
	PathsStartWithVisibility                         []PathRule `json:",omitempty"`
	DefaultTrust                                     Trust
	Configuration                                    Configuration
	Schedule                                         Schedule
	// Scale is nil without the annotation. Parsed and shown; not acted on before the autoscaler exists.
	Scale *Scale `json:",omitempty"`
	// ProbeEarly (ours): edges may probe a starting replica themselves instead of waiting for the orchestrator's word.
	ProbeEarly bool
	// Port (ours) is where calls go; 0: the orchestrator's rule decides.
	Port int `json:",omitempty"`
	// Hosts (ours): requests for these host names are for the function, whose root is theirs. Lower case.
	Hosts []string `json:",omitempty"`
	// RequireKey (ours): callers that are not internal need a key; KeyHolders are the names of those whose keys do, none: any key.
	RequireKey bool     `json:",omitempty"`
	KeyHolders []string `json:",omitempty"`
	// EventsWake (ours): an event wakes the function where no replica is ready, and is then delivered.
	EventsWake bool `json:",omitempty"`
	// WaitingPage (ours): a browser that asks for a page of a function that sleeps gets one that loads again by itself.
	WaitingPage bool `json:",omitempty"`
	// NoWakePaths and NoWakeUserAgents (ours) are what neither wakes the function nor keeps it awake: starts of paths, as
	// NormalizePath leaves them (empty: every path), and parts of User-Agent headers, in any case.
	NoWakePaths      []string `json:",omitempty"`
	NoWakeUserAgents []string `json:",omitempty"`
}

// Visibility says who may call: everybody, or internal callers only. The numbers are upstream's.
type Visibility int

// Values of Visibility.
const (
	Public  Visibility = 0
	Private Visibility = 1
)

// Trust says whether a function's replicas count as internal callers.
type Trust int

// Values of Trust.
const (
	Trusted   Trust = 0
	Untrusted Trust = 1
)

// Subscription to an event; Visibility is about the publisher. The first of a name decides.
type Subscription struct {
	Name       string
	Visibility Visibility
}

// PathRule gives paths that start with Path a visibility of their own. The first match wins.
type PathRule struct {
	Path       string
	Visibility Visibility
}

// Configuration holds timeouts and retries; durations are whole seconds, as users write them.
type Configuration struct {
	DefaultSync    SyncConfiguration
	DefaultAsync   RetryConfiguration
	DefaultPublish RetryConfiguration
}

// SyncConfiguration of sync calls, which are never retried after a byte was sent.
type SyncConfiguration struct {
	HttpTimeout int // seconds until response headers, and for the wait of a cold call
}

// RetryConfiguration of async calls and events. MaxTries = 1 + len(TimeoutRetries).
type RetryConfiguration struct {
	HttpTimeout       int   // seconds for one try
	TimeoutRetries    []int // seconds to wait before the 2nd, 3rd, … try; empty: a single try
	HttpStatusRetries []int // statuses that are tried again
}

// Schedule wakes a function and changes its idle timeout by local time of day.
type Schedule struct {
	TimeZoneID string
	Default    ScheduleRules

	zone *time.Location // of TimeZoneID, loaded once; nil: load when asked
}

// ScheduleRules of one zone.
type ScheduleRules struct {
	WakeUp           []string           `json:",omitempty"` // "HH:mm"
	ScaleDownTimeout []ScaleDownTimeout `json:",omitempty"`
}

// ScaleDownTimeout says that from Time ("HH:mm") on, the idle timeout is Value seconds.
type ScaleDownTimeout struct {
	Time  string
	Value int
}

// Scale is the metric autoscaling annotation.
type Scale struct {
	ReplicaMax                 *int
	ScrapeIntervalMilliseconds *int
	Triggers                   []Trigger
	Behavior                   Behavior
}

// Trigger is one PromQL query and its threshold.
type Trigger struct {
	MetricType string // AverageValue or Value
	MetricName string
	Query      string
	Threshold  float64
}

// Behavior limits how fast a function grows and shrinks.
type Behavior struct {
	ScaleUp   ScaleDirection
	ScaleDown ScaleDirection
}

// ScaleDirection is one half of Behavior.
type ScaleDirection struct {
	StabilizationWindowSeconds int
	Policies                   []Policy
}

// Policy bounds one change.
type Policy struct {
	Type          string // Percent or Pods
	Value         int
	PeriodSeconds int
}
