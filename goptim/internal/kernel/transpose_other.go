//go:build !amd64 || !goexperiment.simd

package kernel

import "unsafe"

type shuffle struct{}

func shuffleOf[T Float](_, _ int) *shuffle { return nil }

func (*shuffle) across(_, _, _ unsafe.Pointer, _, _ int) {}
func (*shuffle) back(_, _, _ unsafe.Pointer, _, _ int)   {}
