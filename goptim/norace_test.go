//go:build !race

package goptim

// RaceDetector is whether the tests run under the race detector.
const RaceDetector = false
