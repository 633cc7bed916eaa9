module github.com/slimfaas/slimfaas/integration

go 1.26.0

toolchain go1.26.11

require github.com/slimfaas/slimfaas/shared v0.0.0

require (
	github.com/anishathalye/porcupine v1.3.1 // indirect
	golang.org/x/sync v0.24.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/slimfaas/slimfaas/shared => ../shared
