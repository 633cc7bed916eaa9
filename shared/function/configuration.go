package function

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
)

// Default is the specification of a function without annotations.
func Default() Specification {
	return Specification{
		ReplicasAtStart:                   1,
		TimeoutSecondBeforeSetReplicasMin: 300,
		NumberParallelRequest:             10,
		NumberParallelRequestPerPod:       10,
		Configuration: Configuration{
			DefaultSync:    SyncConfiguration{HttpTimeout: defaultHTTPTimeout},
			DefaultAsync:   defaultRetries(),
			DefaultPublish: defaultRetries(),
		},
		Schedule:   Schedule{TimeZoneID: defaultZone},
		ProbeEarly: true,
	}
}

const (
	defaultHTTPTimeout = 120 // seconds
	defaultZone        = "GB"
)

func defaultRetries() RetryConfiguration {
	return RetryConfiguration{HttpTimeout: defaultHTTPTimeout, TimeoutRetries: []int{2, 4, 8}, HttpStatusRetries: []int{500, 502, 503}}
}

func readConfiguration(text string, r *report) Configuration {
	c := Default().Configuration
	root, ok := document(AnnotationConfiguration, text, r)
	if !ok {
		return c
	}
	if s, ok := root.section("DefaultSync"); ok {
		c.DefaultSync.HttpTimeout = s.whole("HttpTimeout", defaultHTTPTimeout, atLeast(1, "seconds"))
		s.asked["TimeoutRetries"], s.asked["HttpStatusRetries"] = true, true // accepted and ignored: sync calls are not retried
		s.done()
	}
	c.DefaultAsync = readRetries(root, "DefaultAsync")
	c.DefaultPublish = readRetries(root, "DefaultPublish")
	root.done()
	return c
}

func readRetries(root section, name string) RetryConfiguration {
	c := defaultRetries()
	s, ok := root.section(name)
	if !ok {
		return c
	}
	c.HttpTimeout = s.whole("HttpTimeout", c.HttpTimeout, atLeast(1, "seconds"))
	c.TimeoutRetries = s.wholes("TimeoutRetries", c.TimeoutRetries, atLeast(0, "seconds"))
	c.HttpStatusRetries = s.wholes("HttpStatusRetries", c.HttpStatusRetries, bounds{100, 999, ""})
	s.done()
	return c
}

// Bounds of Scale.ScrapeIntervalMilliseconds.
const (
	minScrapeInterval = 1_000
	maxScrapeInterval = 300_000
)

func readScale(text string, r *report) *Scale {
	root, ok := document(AnnotationScale, text, r)
	if !ok {
		return nil
	}
	scale := Scale{
		ReplicaMax:                 root.optionalWhole("ReplicaMax", atLeast(0, "")),
		ScrapeIntervalMilliseconds: root.optionalWhole("ScrapeIntervalMilliseconds", bounds{minScrapeInterval, maxScrapeInterval, "milliseconds"}),
		Triggers:                   []Trigger{},
	}
	for _, s := range root.sections("Triggers") {
		trigger := Trigger{
			MetricType: s.word("MetricType", "AverageValue", "Value"),
			MetricName: s.text("MetricName", ""),
			Query:      s.text("Query", ""),
			Threshold:  s.decimal("Threshold"),
		}
		if trigger.Query == "" || trigger.Threshold <= 0 {
			r.warn("%s is without effect: it needs a Query and a Threshold above 0", s.at)
		}
		s.done()
		scale.Triggers = append(scale.Triggers, trigger)
	}
	behavior, _ := root.section("Behavior")
	scale.Behavior.ScaleUp = readDirection(behavior, "ScaleUp", ScaleDirection{
		Policies: []Policy{{Type: "Percent", Value: 100, PeriodSeconds: 15}, {Type: "Pods", Value: 4, PeriodSeconds: 15}},
	})
	scale.Behavior.ScaleDown = readDirection(behavior, "ScaleDown", ScaleDirection{
		StabilizationWindowSeconds: 300,
		Policies:                   []Policy{{Type: "Percent", Value: 100, PeriodSeconds: 15}},
	})
	behavior.done()
	root.done()
	return &scale
}

// readDirection: where the section is present but its window is not, the window is 0, whatever the default says.
func readDirection(behavior section, name string, def ScaleDirection) ScaleDirection {
	s, ok := behavior.section(name)
	if !ok {
		return def
	}
	direction := ScaleDirection{StabilizationWindowSeconds: s.whole("StabilizationWindowSeconds", 0, atLeast(0, "seconds"))}
	for _, p := range s.sections("Policies") {
		direction.Policies = append(direction.Policies, Policy{
			Type:          p.word("Type", "Percent", "Pods"),
			Value:         p.whole("Value", 100, atLeast(0, "")),
			PeriodSeconds: p.whole("PeriodSeconds", 15, bounds{1, math.MaxInt32, "seconds"}),
		})
		p.done()
	}
	if len(direction.Policies) == 0 {
		direction.Policies = def.Policies
	}
	s.done()
	return direction
}

// NotActive lists what the specification asks for and this version does not do yet, one line each, for explain.
func (s Specification) NotActive() []string {
	if s.Scale == nil || len(s.Scale.Triggers) == 0 {
		return nil
	}
	return []string{AnnotationScale + " is parsed, not active yet: the number of replicas does not follow its triggers"}
}

// Subscription is the one that decides for the event called name, whose case counts: the first.
func (s Specification) Subscription(name string) (Subscription, bool) {
	for _, subscription := range s.SubscribeEvents {
		if subscription.Name == name {
			return subscription, true
		}
	}
	return Subscription{}, false
}

// MaxTries is how often an async call is tried at most.
func (s Specification) MaxTries() int { return s.Configuration.DefaultAsync.MaxTries() }

// MaxTries is how often one call or delivery is tried at most.
func (c RetryConfiguration) MaxTries() int { return 1 + len(c.TimeoutRetries) }

// Timeout of one try.
func (c RetryConfiguration) Timeout() time.Duration {
	return time.Duration(c.HttpTimeout) * time.Second
}

// Wait is how long to wait before the next try after tries tries; false when there is none.
func (c RetryConfiguration) Wait(tries int) (time.Duration, bool) {
	if tries < 1 || tries > len(c.TimeoutRetries) {
		return 0, false
	}
	return time.Duration(c.TimeoutRetries[tries-1]) * time.Second, true
}

// Retries reports whether an answer with this status is tried again.
func (c RetryConfiguration) Retries(status int) bool {
	for _, s := range c.HttpStatusRetries {
		if s == status {
			return true
		}
	}
	return false
}

// Timeout until response headers, and for the wait of a cold call.
func (c SyncConfiguration) Timeout() time.Duration {
	return time.Duration(c.HttpTimeout) * time.Second
}

// String is the word users write.
func (v Visibility) String() string {
	if v == Public {
		return "Public"
	}
	return "Private"
}

// String is the word users write.
func (t Trust) String() string {
	if t == Trusted {
		return "Trusted"
	}
	return "Untrusted"
}

// Encode is the specification as it travels in table records.
func Encode(s Specification) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic("encoding a specification: " + err.Error()) // only a NaN threshold could: Parse and Decode let none through
	}
	return b
}

// Decode reads what Encode wrote, also by another version: unknown fields are ignored, missing ones have their default.
func Decode(encoded []byte) (Specification, error) {
	s := Default()
	if err := json.Unmarshal(encoded, &s); err != nil {
		return Default(), fmt.Errorf("decoding a specification: %w", err)
	}
	s.Schedule = s.Schedule.located()
	return s, nil
}
