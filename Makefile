# SlimFaas: every command a person needs. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The toolchain is pinned: see docs/adr/0001-workspace.md.
export GOTOOLCHAIN := go1.26.11
MODULES  := shared edge queue scaler deploy integration
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X github.com/slimfaas/slimfaas/shared/obs.Version=$(VERSION)
MANIFEST ?= deploy/local/slimfaas.local.yaml
STATE    ?= .slimfaas/local
comma    := ,
PROGRAMS := edge queue scaler local demo-function
package_edge := ./edge
package_queue := ./queue
package_scaler := ./scaler
package_local := ./deploy/local
package_demo-function := ./deploy/local/demo-function

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build build-race
build: ## build bin/edge, bin/queue, bin/scaler, bin/local and the demo function
	@mkdir -p bin
	@$(foreach p,$(PROGRAMS),CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/$(p) $(package_$(p)) &&) true
build-race: ## the same with the race detector, into bin/race
	@mkdir -p bin/race
	@$(foreach p,$(PROGRAMS),go build -race -trimpath -ldflags '$(LDFLAGS)' -o bin/race/$(p) $(package_$(p)) &&) true

.PHONY: run
run: build ## run the local stack in the foreground: MANIFEST=a.yaml[,b.yaml] STATE=dir
	@exec bin/local $(foreach f,$(subst $(comma), ,$(MANIFEST)),-f $(f)) --state $(STATE)

# A program with the race detector waits a second at its end for reports of what still runs; some hundred of them are started.
RACE := atexit_sleep_ms=0

.PHONY: test unit integration timing
test: unit integration ## every test that needs nothing but this machine, with the race detector: one after the other, for both hold elections
unit: ## tests of the packages; they wait more than they compute, so more run at once than there are cores
	@GORACE=$(RACE) go test -race -trimpath -ldflags="-s -w" -timeout 5m -parallel 6 $(foreach m,queue edge scaler deploy shared,./$(m)/...)
integration: build-race ## real processes, killed and counted, one cluster at a time; CLUSTERS=n for a larger machine
	@cd integration && GORACE=$(RACE) SLIMFAAS_BIN=$(CURDIR)/bin/race go test -race -trimpath -p 1 -parallel 48 -count=1 -timeout 30m ./...
timing: build ## the figures that a race detector would spoil, on plain binaries
	@cd integration && SLIMFAAS_BIN=$(CURDIR)/bin go test -p 1 -count=1 -timeout 15m -tags timing -run '^TestTiming' -v ./... | grep -vE '^(=== |\?)'

.PHONY: images
SLIMFAAS_REGISTRY ?= slimfaas
SLIMFAAS_TAG ?= dev
images: build ## container images FROM scratch, with docker: SLIMFAAS_REGISTRY=slimfaas SLIMFAAS_TAG=dev
	@mkdir -p bin/.empty
	@$(foreach p,edge queue scaler demo-function,docker build -q -f deploy/Dockerfile --target $(p) -t $(SLIMFAAS_REGISTRY)/$(p):$(SLIMFAAS_TAG) bin &&) true

.PHONY: e2e-kube e2e-kube-full
# Ours, and upstream's demo images by name: our demo function answers for them.
KUBE_IMAGES := $(foreach p,edge queue scaler demo-function,-image slimfaas/$(p):dev=$(CURDIR)/bin/$(p) -image slimfaas/$(p):next=$(CURDIR)/bin/$(p)$(comma)BUILD=next) \
  $(foreach i,axaguildev/fibonacci-api:latest$(comma)5000 axaguildev/fibonacci-batch:latest$(comma)5000 library/mysql:8.0$(comma)3306,\
    -image $(word 1,$(subst $(comma), ,$(i)))=$(CURDIR)/bin/demo-function$(comma)PORT=$(word 2,$(subst $(comma), ,$(i))))
bin/kubecluster: FORCE
	@cd integration/kube && GOWORK=off go build -o $(CURDIR)/bin/kubecluster ./cmd/kubecluster
.PHONY: FORCE
FORCE:
KUBE_TESTS = $(CURDIR)/bin/kube-conformance.test -test.v -test.run "$(or $(RUN),^Test(Conformance|AnAPIServer|ANamespace))" && \
  $(CURDIR)/bin/kube-e2e.test -test.v -test.run "$(or $(RUN),.)" -test.timeout $(KUBE_TIMEOUT)
KUBE_TIMEOUT := 20m
e2e-kube: build bin/kubecluster ## a real Kubernetes on this machine, our installation on it (root; apt-get install containerd runc iptables containernetworking-plugins kubernetes-client); RUN=regexp some
	@cd scaler && go test -c -trimpath -o $(CURDIR)/bin/kube-conformance.test ./internal/orchestrator/kube
	@cd integration/kube && GOWORK=off go test -c -trimpath -o $(CURDIR)/bin/kube-e2e.test ./e2e
	@cd integration/kube/e2e && $(CURDIR)/bin/kubecluster -kwok -logs 4000 -components ../components $(KUBE_IMAGES) -- bash -euc '$(KUBE_TESTS)'
e2e-kube-full: export SLIMFAAS_FULL := 1
e2e-kube-full: KUBE_TIMEOUT := 3h
e2e-kube-full: export HELM := $(CURDIR)/bin/helm
e2e-kube-full: KUBE_TESTS += && cd ../helm && $(CURDIR)/bin/kube-helm.test -test.v -test.run "$(or $(RUN),.)"
e2e-kube-full: bin/helm e2e-kube ## the same with the sizes of docs/reliability.md, and the Helm chart: against the overlay, and on the cluster
bin/helm: FORCE
	@cd integration/kube/helm && GOWORK=off go build -o $(CURDIR)/bin/helm helm.sh/helm/v3/cmd/helm && GOWORK=off go test -c -o $(CURDIR)/bin/kube-helm.test .
.PHONY: chart
chart: ## deploy/helm from deploy/kubernetes/base, with kubectl
	@deploy/helm/generate.sh

.PHONY: chaos
chaos: build ## the full-sized fault tests of docs/reliability.md: SEED=n again the same, RUN=regexp some, CHAOS_PERCENT=n smaller
	@cd integration && SLIMFAAS_FULL=1 SLIMFAAS_BIN=$(CURDIR)/bin go test -p 1 -count=1 -timeout 8h -run '$(or $(RUN),^Test(Chaos|AFullDisk|AHungDisk|ADirectory))' -v ./... | grep -vE '^(=== |\?)'
.PHONY: bench bench-queue bench-backlog bench-edge
bench: bench-queue bench-edge ## the benchmarks against peers, in one run on this machine (docs/benchmarks.md)
bench-queue: build ## the queue against nats-server JetStream: LENGTH=3s of an interval, ROUNDS=5
	@cd integration && SLIMFAAS_BIN=$(CURDIR)/bin go test -tags bench -count=1 -timeout 20m -run '^TestBenchQueue' -v ./bench \
	  -args -rounds $${ROUNDS:-5} -length $${LENGTH:-3s} | grep --line-buffered -vE '^(=== | *--- |PASS|\?)'
bench-backlog: build ## a million calls that wait, and who is called beside a flood (twenty minutes)
	@cd integration && SLIMFAAS_BIN=$(CURDIR)/bin go test -tags bench -count=1 -timeout 60m -run '^TestBench(Fairness|Backlog)' -v ./bench \
	  -args -length $${LENGTH:-5s} | grep --line-buffered -vE '^(=== | *--- |PASS|\?)'
bench-edge: build ## the edge against nginx and httputil.ReverseProxy: LENGTH=3s of an interval, ROUNDS=5
	@cd integration && SLIMFAAS_BIN=$(CURDIR)/bin go test -tags bench -count=1 -timeout 20m -run '^TestBenchEdge' -v ./bench \
	  -args -rounds $${ROUNDS:-5} -length $${LENGTH:-3s} | grep --line-buffered -vE '^(=== | *--- |PASS|\?)'

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (20s)
	@for m in $(MODULES); do (cd $$m && for f in $$(grep -rlE '^func Fuzz' --include='*_test.go' . || true); do \
	  for t in $$(grep -oE '^func Fuzz[A-Za-z0-9_]+' $$f | cut -c6-); do echo "== $$m $$t"; go test -run '^$$' -fuzz "^$$t$$" -fuzztime $${FUZZTIME:-20s} ./$$(dirname $$f); done; done); done

.PHONY: lint vuln verify generate docs tidy tools
lint: bin/tools/golangci-lint ## formatters, vet, linters
	@test -z "$$(gofmt -l $(MODULES))" || { gofmt -l $(MODULES); exit 1; }
	@for m in $(MODULES); do echo "== $$m"; (cd $$m && ../bin/tools/golangci-lint run --config ../.golangci.yml ./...); done
	@echo "== integration/kube"; cd integration/kube && GOWORK=off ../../bin/tools/golangci-lint run --config ../../.golangci.yml ./...
vuln: ## govulncheck, where its database can be reached
	@curl -fsm 5 -o /dev/null https://vuln.go.dev/index/db.json || { echo "vuln: the vulnerability database cannot be reached from here; nothing checked"; exit 0; }; \
	for m in $(MODULES); do (cd $$m && go run golang.org/x/vuln/cmd/govulncheck@latest ./...); done
tools: bin/tools/buf bin/tools/protoc-gen-go bin/tools/golangci-lint ## build the pinned tools from source
bin/tools/buf: .tools/buf/go.mod
	@mkdir -p bin/tools && cd .tools/buf && GOWORK=off go build -o ../../bin/tools/ tool
bin/tools/protoc-gen-go: .tools/protoc/go.mod
	@mkdir -p bin/tools && cd .tools/protoc && GOWORK=off go build -o ../../bin/tools/ tool
bin/tools/golangci-lint: .tools/lint/go.mod
	@mkdir -p bin/tools && cd .tools/lint && GOWORK=off go build -o ../../bin/tools/ tool
generate: bin/tools/buf bin/tools/protoc-gen-go docs ## generated code and docs/configuration.md
	@cd shared && PATH=$(CURDIR)/bin/tools:$$PATH ../bin/tools/buf generate
docs: ## docs/configuration.md from the configuration structs
	@{ cat docs/configuration.header.md; for p in edge queue scaler; do printf '\n## %s\n\n' $$p; (cd $$p && go run . config-doc); done; } > docs/configuration.md
tidy: ## go mod tidy, each module alone
	@for m in $(MODULES); do (cd $$m && GOWORK=off go mod tidy); done
verify: tidy generate ## nothing generated, tidied or formatted differs from what is committed; each module builds alone
	@for m in $(MODULES); do (cd $$m && GOWORK=off go vet ./...); done
	@git diff --exit-code --stat -- . || { echo "verify: run 'make generate tidy' and commit the result"; exit 1; }
