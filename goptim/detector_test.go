//go:build race || asan

package goptim

// Detector is whether the tests run under the race detector or AddressSanitizer, with which code allocates more.
const Detector = true
