package settings

import "strings"

// upstreamNotes says, for each setting of the original (contract/config.md) by canonical name or name prefix (ending in ':'),
// why a program that does not read it does not. A setting that some program reads as an alias is named with that program.
var upstreamNotes = []struct{ key, note string }{
	{"slimfaas:allowunsecuressl", "certificates are verified always"},
	{"slimfaas:enablefront", "there is no switch; activity is always tracked"},
	{"slimfaas:jobsconfiguration", "jobs are the scaler's"},
	{"slimfaas:corsalloworigin", "CORS is the edge's"},
	{"slimfaas:baseslimdataurl", "queue nodes are named by QUEUE_MEMBERS"},
	{"slimfaas:basefunctionurl", "the function table holds addresses and ports of replicas"},
	{"slimfaas:basefunctionpodurl", "the function table holds addresses and ports of replicas"},
	{"slimfaas:namespace", "the orchestrator's namespace is the scaler's"},
	{"slimfaas:orchestrator", "the orchestrator is the scaler's"},
	{"slimfaas:podscaledupbydefaultwheninfrastructurehasnevercalled", "a function seen for the first time counts as active at that moment"},
	{"slimfaas:websocketport", "WebSocket clients are the edge's"},
	{"slimfaas:local:", "the orchestrator Local does not exist"},
	{"slimfaas:process:", "the scaler is given SCALER_PROCESS_SOCKET"},
	{"slimfaas:metricsscraping:", "metrics are not scraped"},
	{"slimfaas:ratelimiting:", "limits are the edge's and count requests, not processor load"},
	{"slimfaas:statusstream:", "the status stream is the edge's"},
	{"slimfaas:", "the original does not know it either"},
	{"slimdata:directory", "state on disk is the queue's (QUEUE_DATA_DIR)"},
	{"slimdata:allowcoldstart", "queue nodes bootstrap from QUEUE_MEMBERS, the same on every node"},
	{"slimdata:", "the queue replaced SlimData; see docs/configuration.md, QUEUE_"},
	{"workers:", "nothing polls at a fixed pace; every hand-over is an event"},
	{"raftclienthandler:", "the connections between queue nodes have no settings"},
	{"data:defaultvisibility", "the data routes are the edge's"},
	{"opentelemetry:", "there is no OpenTelemetry export; see /metrics"},
	{"kestrel:", "limits of HTTP are the edge's"},
	{"usekubeconfig", "the way to the cluster is the scaler's"},
	{"allowedhosts", "every host name is served"},
	{"logging:loglevel:", "there is one level for all: LOG_LEVEL"},
	{"aspnetcore_environment", "there are no profiles"},
}

// oldNames were replaced in the original itself, which reads them no more. NAMESPACE is left out: too many set it for themselves.
var oldNames = map[string]string{
	"SLIMFAAS_ALLOW_UNSECURE_SSL":                                   "SlimFaas__AllowUnsecureSsl",
	"SLIMFAAS_JOBS_CONFIGURATION":                                   "SlimFaas__JobsConfiguration",
	"SLIMFAAS_CORS_ALLOW_ORIGIN":                                    "SlimFaas__CorsAllowOrigin",
	"BASE_SLIMDATA_URL":                                             "SlimFaas__BaseSlimDataUrl",
	"BASE_FUNCTION_URL":                                             "SlimFaas__BaseFunctionUrl",
	"BASE_FUNCTION_POD_URL":                                         "SlimFaas__BaseFunctionPodUrl",
	"SLIMFAAS_ORCHESTRATOR":                                         "SlimFaas__Orchestrator",
	"SLIM_WORKER_DELAY_MILLISECONDS":                                "Workers__QueuesDelayMilliseconds",
	"SLIM_JOBS_WORKER_DELAY_MILLISECONDS":                           "Workers__JobsDelayMilliseconds",
	"POD_SCALED_UP_BY_DEFAULT_WHEN_INFRASTRUCTURE_HAS_NEVER_CALLED": "SlimFaas__PodScaledUpByDefaultWhenInfrastructureHasNeverCalled",
	"REPLICAS_SYNCHRONISATION_WORKER_DELAY_MILLISECONDS":            "Workers__ReplicasSynchronizationDelayMilliseconds",
	"HISTORY_SYNCHRONISATION_WORKER_DELAY_MILLISECONDS":             "Workers__HistorySynchronizationDelayMilliseconds",
	"SCALE_REPLICAS_WORKER_DELAY_MILLISECONDS":                      "Workers__ScaleReplicasDelayMilliseconds",
	"HEALTH_WORKER_DELAY_MILLISECONDS":                              "Workers__HealthDelayMilliseconds",
	"HEALTH_WORKER_DELAY_TO_EXIT_SECONDS":                           "Workers__HealthDelayToExitSeconds",
	"HEALTH_WORKER_DELAY_TO_START_HEALTH_CHECK_SECONDS":             "Workers__HealthDelayToStartHealthCheckSeconds",
	"SLIMDATA_DIRECTORY":                                            "SlimData__Directory",
	"SLIMDATA_CONFIGURATION":                                        "SlimData__Configuration",
	"SLIMDATA_SOCKETS_HTTP_HANDLER_TIMEOUT":                         "RaftClientHandler__ConnectTimeoutMilliseconds",
	"SLIMFAAS_PORTS":                                                "",
	"MOCK_KUBERNETES_FUNCTIONS":                                     "",
}

// upstreamNote says why a variable of the original is not read; false for a variable that is not the original's.
func upstreamNote(key, name string) (string, bool) {
	if replaced, ok := oldNames[name]; ok {
		if replaced == "" {
			return "the original removed it", true
		}
		return "an old name the original reads no more; it was replaced by " + replaced, true
	}
	for _, n := range upstreamNotes {
		if key == n.key || strings.HasSuffix(n.key, ":") && strings.HasPrefix(key, n.key) {
			return n.note, true
		}
	}
	return "", false
}
