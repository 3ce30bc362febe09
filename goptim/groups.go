package goptim

import (
	"errors"
	"fmt"
	"slices"
)

// An Optimizer is any optimizer of this package except LBFGS, whose Step has a closure as its argument.
type Optimizer interface {
	// Check returns the error that Step would return for bad input.
	Check() error
	// Step updates each parameter that has a gradient. If the error wraps ErrOption or ErrParam, nothing has changed.
	Step() error
	Stateful
}

// Groups combines optimizers into one, like torch's parameter groups. The groups may be different optimizers and may have
// different element types. The options of a group are the fields of its optimizer.
type Groups struct{ optimizers []Optimizer }

// NewGroups returns new Groups. The error wraps ErrParam if there is no optimizer, if one is nil, or if a parameter is in two.
func NewGroups(optimizers ...Optimizer) (*Groups, error) {
	g := &Groups{slices.Clone(optimizers)}
	if _, err := groupsOf(optimizers); err != nil {
		return nil, fmt.Errorf("goptim: %w", err)
	}
	if len(optimizers) == 0 {
		return nil, fmt.Errorf("goptim: no groups: %w", ErrParam)
	}
	owner := map[any]int{}
	for i, o := range optimizers {
		for _, inner := range o.groups() {
			if e, ok := inner.(interface{ startAt(first int) }); ok {
				e.startAt(len(owner))
			}
			for k, p := range inner.handles() {
				if first, ok := owner[p.pointer]; ok {
					return nil, fmt.Errorf("goptim: group %d: parameter %d is in group %d too: %w", i, k, first, ErrParam)
				}
				owner[p.pointer] = i
			}
		}
	}
	return g, nil
}

// Optimizers returns the groups, in the order in which they step.
func (g *Groups) Optimizers() []Optimizer { return slices.Clone(g.optimizers) }

// Check returns the error that Step would return for bad input, with the index of the group.
func (g *Groups) Check() error {
	var all error
	for i, o := range g.optimizers {
		if err := o.Check(); err != nil {
			all = errors.Join(all, fmt.Errorf("group %d: %w", i, err))
		}
	}
	return all
}

// Step steps each group. If the error wraps ErrOption or ErrParam, no group has changed.
func (g *Groups) Step() error {
	if err := g.Check(); err != nil {
		return err
	}
	for i, o := range g.optimizers {
		if err := o.Step(); err != nil {
			return fmt.Errorf("group %d: %w", i, err)
		}
	}
	return nil
}

// MarshalBinary encodes the options and states of all groups. See Stateful.
func (g *Groups) MarshalBinary() ([]byte, error) { return marshal(g) }

// UnmarshalBinary restores the options and states of all groups. See Stateful.
func (g *Groups) UnmarshalBinary(data []byte) error { return unmarshal(g, data) }

func (g *Groups) groups() (all []group) {
	for _, o := range g.optimizers {
		all = append(all, o.groups()...)
	}
	return all
}
