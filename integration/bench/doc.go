// Package bench measures SlimFaas against its peers on one machine, in one run: real processes of both, the same load from the
// same generator, rounds that alternate. `make bench` runs it; docs/benchmarks.md says how to read it. Everything but the
// programs it starts is in test files behind the build tag `bench`.
package bench
