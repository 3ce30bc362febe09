//go:build !race

package goptim_test

const raceDetector = false
