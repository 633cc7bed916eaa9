module github.com/slimfaas/slimfaas/deploy

go 1.26.0

toolchain go1.26.11

require github.com/slimfaas/slimfaas/shared v0.0.0

require google.golang.org/protobuf v1.36.12 // indirect

require (
	github.com/nats-io/nkeys v0.4.17
	go.yaml.in/yaml/v3 v3.0.6
	golang.org/x/crypto v0.57.0 // indirect
	golang.org/x/sys v0.48.0
)

replace github.com/slimfaas/slimfaas/shared => ../shared
