package goptim_test

import (
	"fmt"
	"log"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

// A network's matrices go to Muon and all else to AdamW, which does not decay the bias.
func ExampleNewGroups() {
	weight := &goptim.Param[float32]{Name: "weight", Value: []float32{1, 2, 3, 4}, Shape: []int{2, 2}}
	head := &goptim.Param[float32]{Name: "head", Value: []float32{1, 1}}
	bias := &goptim.Param[float32]{Name: "bias", Value: []float32{1}}
	hidden, err := goptim.NewMuon([]*goptim.Param[float32]{weight}, goptim.MuonOptions{LR: 0.5, Nesterov: true})
	if err != nil {
		log.Fatal(err)
	}
	decayed, err := goptim.NewAdamW([]*goptim.Param[float32]{head}, goptim.AdamOptions{LR: 0.5, WeightDecay: 0.1})
	if err != nil {
		log.Fatal(err)
	}
	plain, err := goptim.NewAdamW([]*goptim.Param[float32]{bias}, goptim.AdamOptions{LR: 0.5})
	if err != nil {
		log.Fatal(err)
	}
	groups, err := goptim.NewGroups(hidden, decayed, plain)
	if err != nil {
		log.Fatal(err)
	}
	weight.Grad, head.Grad, bias.Grad = []float32{1, 0, 0, 1}, []float32{1, -1}, []float32{1}
	if err := groups.Step(); err != nil {
		log.Fatal(err)
	}
	plain.LR = 0.25 // the next step's
	if err := groups.Step(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.1f %.2f %.2f\n", weight.Value, head.Value, bias.Value)
	// Output: [-0.1 2.0 3.0 2.9] [-0.07 1.88] [0.25]
}

func TestGroupsChangeTogetherOrNot(t *testing.T) {
	first, second := params[float32](5), params[float64](4)
	second[0].Name = "bias"
	a, err := goptim.NewAdam(first, goptim.AdamOptions{})
	require.NoError(t, err)
	b, err := goptim.NewSGD(second, goptim.SGDOptions{})
	require.NoError(t, err)
	groups, err := goptim.NewGroups(a, b)
	require.NoError(t, err)
	require.NoError(t, groups.Step())
	assert.Equal(t, []goptim.Optimizer{a, b}, groups.Optimizers())
	before := append([]float32(nil), first[0].Value...)

	second[0].Grad = second[0].Grad[:3]
	err = groups.Step()
	require.ErrorIs(t, err, goptim.ErrParam)
	require.ErrorContains(t, err, "group 1: goptim: SGD: parameter 0 (bias): the gradient has 3 elements, expected 4")
	b.LR = -1
	require.ErrorIs(t, groups.Step(), goptim.ErrOption)
	assert.Equal(t, before, first[0].Value)
}

func TestGroupsRefuse(t *testing.T) {
	all := params[float32](5, 6)
	a, err := goptim.NewAdam(all, goptim.AdamOptions{})
	require.NoError(t, err)
	b, err := goptim.NewSGD(all[1:], goptim.SGDOptions{})
	require.NoError(t, err)
	_, err = goptim.NewGroups(a, b)
	require.ErrorIs(t, err, goptim.ErrParam)
	require.ErrorContains(t, err, "group 1: parameter 0 is in group 0 too")
	inner, err := goptim.NewGroups(a)
	require.NoError(t, err)
	_, err = goptim.NewGroups(inner, b)
	require.ErrorIs(t, err, goptim.ErrParam)
	_, err = goptim.NewGroups(a, nil)
	require.ErrorContains(t, err, "group 1 is nil")
	_, err = goptim.NewGroups((*goptim.Adam[float32])(nil))
	require.ErrorIs(t, err, goptim.ErrParam)
	_, err = goptim.NewGroups()
	require.ErrorContains(t, err, "no groups: invalid parameter")
	_, err = goptim.NewGroups(struct{ goptim.Optimizer }{a}, b)
	require.ErrorContains(t, err, "group 1: parameter 0 is in group 0 too", "a type of the program's own")
}

// TestOptionsChangeBetweenSteps steps with options that change against new optimizers of those options, whose state is
// that of the first step: SGD's without momentum, which is none.
func TestOptionsChangeBetweenSteps(t *testing.T) {
	changing, fresh := params[float64](7), params[float64](7)
	opt, err := goptim.NewSGD(changing, goptim.SGDOptions{LR: 1})
	require.NoError(t, err)
	for _, o := range []goptim.SGDOptions{{LR: 1}, {LR: .1, WeightDecay: .5}, {LR: .3, Maximize: true}} {
		opt.SGDOptions = o
		require.NoError(t, opt.Step())
		one, err := goptim.NewSGD(fresh, o)
		require.NoError(t, err)
		require.NoError(t, one.Step())
		require.Equal(t, fresh[0].Value, changing[0].Value)
	}
	opt.LR = 0
	require.NoError(t, opt.Step(), "0 is a learning rate after New")
	require.Equal(t, fresh[0].Value, changing[0].Value)
}
