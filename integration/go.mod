module github.com/slimfaas/slimfaas/integration

go 1.26.0

toolchain go1.26.11

require (
	github.com/anishathalye/porcupine v1.3.1
	github.com/slimfaas/slimfaas/shared v0.0.0
	google.golang.org/protobuf v1.36.12
)

require connectrpc.com/connect v1.21.1 // indirect

replace github.com/slimfaas/slimfaas/shared => ../shared
