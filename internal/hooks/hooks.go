// Package hooks holds functions of package goptim that only package bindings calls. They are not part of the API for Go
// programs, and package bindings cannot import the packages in goptim/internal; so package goptim assigns them here.
package hooks

// ResumeLBFGS resumes the lbfgs.Machine at an address, of a size in bytes. It returns an lbfgs.Ask; the error wraps
// goptim.ErrParam if the machine cannot be valid.
var ResumeLBFGS func(address uintptr, size, threads int, team func(threads int, work func(thread int))) (ask int64, err error)
