package goptim

import (
	"errors"
	"fmt"
	"slices"
)

// An Optimizer is any optimizer of this package but LBFGS, whose Step takes a closure.
type Optimizer interface {
	// Check reports what Step would refuse now.
	Check() error
	// Step updates what has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
	Step() error
	Stateful
}

// Groups are optimizers that step as one: torch's parameter groups, but that each may be of another kind, or for another
// type of elements. The options of a group are its optimizer's fields.
type Groups struct{ optimizers []Optimizer }

// NewGroups makes Groups. The error wraps ErrParam if there is no optimizer, one is nil, or a parameter is in two of them.
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

// Optimizers are the groups, in the order in which they step.
func (g *Groups) Optimizers() []Optimizer { return slices.Clone(g.optimizers) }

// Check reports what Step would refuse now, with the group's index.
func (g *Groups) Check() error {
	var all error
	for i, o := range g.optimizers {
		if err := o.Check(); err != nil {
			all = errors.Join(all, fmt.Errorf("group %d: %w", i, err))
		}
	}
	return all
}

// Step steps every group. On an error that wraps ErrOption or ErrParam no group has changed.
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

// MarshalBinary encodes options and states of all groups: see Stateful.
func (g *Groups) MarshalBinary() ([]byte, error) { return marshal(g) }

// UnmarshalBinary takes options and states of all groups: see Stateful.
func (g *Groups) UnmarshalBinary(data []byte) error { return unmarshal(g, data) }

func (g *Groups) groups() (all []group) {
	for _, o := range g.optimizers {
		all = append(all, o.groups()...)
	}
	return all
}
