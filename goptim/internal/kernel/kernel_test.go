package kernel_test

import (
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// registry has the kernels by package and name: those of f32 and f64, the one-lane copies and, on amd64, those for vectors of
// 256 bits, including f32x8, the source of all. `make generate` writes the list.
var registry = map[string]map[string]any{}

// kernels are the kernels of one package, for one vector width.
type kernels struct {
	byName   map[string]any
	bits     int
	bfloat16 map[string]any // those for bfloat16
}

// registryOf returns the kernels of a package for float32 or float64, and for vectors of float32 those for bfloat16.
func registryOf(name string, bits int) kernels {
	return kernels{registry[name], bits, registry[map[string]string{"f32": "bf16", "f32x8": "bf16x16"}[name]]}
}

// onCopies runs a test on the kernels that this process uses, and with wider vectors also on those for 256 bits.
func onCopies(t *testing.T, float32s, float64s func(t *testing.T, k kernels)) {
	run := func(name string, bits int, test func(t *testing.T, k kernels)) {
		t.Run(name, func(t *testing.T) { test(t, registryOf(name, bits)) })
	}
	run("f32", kernel.VectorBits(), float32s)
	run("f64", kernel.VectorBits(), float64s)
	if kernel.VectorBits() > 256 {
		run("f32x8", 256, float32s)
		run("f64x4", 256, float64s)
	}
}

// single is the one-lane copy.
func single[T kernel.Float]() kernels {
	if unsafe.Sizeof(T(0)) == 8 {
		return registryOf("f64x1", 0)
	}
	return registryOf("f32x1", 0)
}

func (k kernels) named(name string) any {
	f, ok := k.byName[name]
	if !ok {
		panic("there is no kernel " + name + ": a name in a list of kernel_test.go is wrong, or `make generate` is due")
	}
	return f
}

func funcOf[S any, T kernel.Float](k kernels, name string) kernel.Func[S, T] {
	return k.named(name).(func(*S, []T, []T, [4][]T))
}

// A variant is one path through a kernel: the number of its buffers, of which the second one is the gradient, and the call. Its
// name begins with the kernel's.
type variant[T kernel.Float] struct {
	name    string
	columns int
	update  func(c [][]T)
	// mixed is update for buffers in any format, for elementwise kernels of float32.
	mixed func(o *kernel.Operands, n int)
	// halves applies the kernel for bfloat16, if there is one, and otherwise mixed. It adds 1 to applied if the kernel applies
	// the step.
	halves func(o *kernel.Operands, n int, applied *int)
}

func kernelOf(name string) string { return strings.Fields(name)[0] }

// builder collects the variants of a package's kernels.
type builder[T kernel.Float] struct {
	kernels  kernels
	variants []variant[T]
}

// add adds a variant with the scalars h. A wrap changes the kernel's arguments.
func add[S any, T kernel.Float](b *builder[T], name string, columns int, h S, wraps ...func(kernel.Func[S, T]) kernel.Func[S, T]) {
	f := funcOf[S, T](b.kernels, kernelOf(name))
	narrow, _ := b.kernels.bfloat16[kernelOf(name)].(func(*S, []uint16, []uint16, [4][]uint16, *kernel.Draws, []uint16) bool)
	for _, wrap := range wraps {
		f = wrap(f)
		if narrow != nil {
			narrow = wrapNarrow(narrow, wrap)
		}
	}
	addFunc(b, name, columns, h, f, narrow)
}

// wrapNarrow passes the buffers to a kernel for bfloat16 in the order of a wrap.
func wrapNarrow[S any, T kernel.Float](narrow kernel.BFloat16Func[S], wrap func(kernel.Func[S, T]) kernel.Func[S, T]) kernel.BFloat16Func[S] {
	var given [6][]T
	for k := range given {
		given[k] = make([]T, 1)
	}
	place := func(x []T) int {
		return slices.IndexFunc(given[:], func(c []T) bool { return x != nil && &c[0] == &x[0] })
	}
	order := [6]int{}
	wrap(func(_ *S, p, g []T, s [4][]T) {
		order = [6]int{place(p), place(g), place(s[0]), place(s[1]), place(s[2]), place(s[3])}
	})(nil, given[0], given[1], [4][]T(given[2:]))
	return func(h *S, p, g []uint16, s [4][]uint16, z *kernel.Draws, rest []uint16) bool {
		all := [6][]uint16{p, g, s[0], s[1], s[2], s[3]}
		var c [6][]uint16
		for k, from := range order {
			if from >= 0 {
				c[k] = all[from]
			}
		}
		return narrow(h, c[0], c[1], [4][]uint16(c[2:]), z, rest)
	}
}

func addFunc[S any, T kernel.Float](b *builder[T], name string, columns int, h S, f kernel.Func[S, T], narrow kernel.BFloat16Func[S]) {
	v := variant[T]{name: name, columns: columns, update: func(c [][]T) {
		var states [4][]T
		copy(states[:], c[2:])
		kernel.Apply(f, &h, c[0], c[1], states)
	}}
	if f, ok := any(f).(kernel.Func[S, float32]); ok {
		v.mixed = func(o *kernel.Operands, n int) { kernel.ApplyMixed(f, &h, o, n) }
		if narrow != nil {
			v.halves = func(o *kernel.Operands, n int, applied *int) {
				kernel.ApplyOperands(func(h *S, p, g []uint16, s [4][]uint16, z *kernel.Draws, rest []uint16) bool {
					ok := narrow(h, p, g, s, z, rest)
					if ok {
						*applied++
					}
					return ok
				}, f, &h, o, n)
			}
		}
	}
	b.variants = append(b.variants, v)
}

// addRows adds a variant of a kernel of rows, whose buffers are passed in two parts of the same length, and the rest.
func addRows[S any, T kernel.Float](b *builder[T], name string, columns int, h S) {
	var f kernel.RowsFunc[S, T] = b.kernels.named(kernelOf(name)).(func(*S, []T, [4][]T, []kernel.Part[T], int))
	b.variants = append(b.variants, variant[T]{name: name, columns: columns, update: func(c [][]T) {
		var states [4][]T
		copy(states[:], c[2:])
		n := len(c[0]) / 2
		parts := []kernel.Part[T]{{At: n, Grad: c[1][n:]}, {At: 0, Grad: c[1]}}
		kernel.ApplyRows(f, &h, c[0], states, parts, n)
		kernel.ApplyRows(f, &h, c[0], states, []kernel.Part[T]{{At: 2 * n, Grad: c[1][2*n:]}}, len(c[0])-2*n)
	}})
}

// addScan adds a variant of a kernel that also returns a magnitude, which TestScan checks.
func addScan[S any, T kernel.Float](b *builder[T], name string, h S) {
	f := scanOf[S, T](b.kernels, name)
	b.variants = append(b.variants, variant[T]{name: name, columns: 2, update: func(c [][]T) { kernel.Scan(f, &h, c[0]) }})
}

func scanOf[S any, T kernel.Float](k kernels, name string) kernel.ScanFunc[S, T] {
	return k.named(name).(func(*S, []T, []T))
}

// fromSecond passes the buffers from the second state on to a kernel, fromThird those from the third on.
func fromSecond[S any, T kernel.Float](f kernel.Func[S, T]) kernel.Func[S, T] {
	return func(h *S, p, g []T, s [4][]T) { f(h, p, g, [4][]T{nil, s[0], s[1]}) }
}

func fromThird[S any, T kernel.Float](f kernel.Func[S, T]) kernel.Func[S, T] {
	return func(h *S, p, g []T, s [4][]T) { f(h, p, g, [4][]T{nil, nil, s[0], s[1]}) }
}

// onlySecond passes the parameter to a kernel as its second state, and the gradient as the parameter, which it only reads.
func onlySecond[S any, T kernel.Float](f kernel.Func[S, T]) kernel.Func[S, T] {
	return func(h *S, p, g []T, _ [4][]T) { f(h, g[:len(p)], g, [4][]T{nil, p}) }
}

// onlyStates passes the parameter and the first state to a kernel as its states, and the gradient as the parameter, which it only reads.
func onlyStates[S any, T kernel.Float](f kernel.Func[S, T]) kernel.Func[S, T] {
	return func(h *S, p, g []T, s [4][]T) { f(h, g[:len(p)], g, [4][]T{p, s[0]}) }
}

// withoutFirst passes the first state to a kernel as its second one.
func withoutFirst[S any, T kernel.Float](f kernel.Func[S, T]) kernel.Func[S, T] {
	return func(h *S, p, g []T, s [4][]T) { f(h, p, g, [4][]T{nil, s[0]}) }
}

// aroundGrad passes the gradient to a kernel as its second state, and a copy of the parameter as its fourth one. It only reads both.
func aroundGrad[S any, T kernel.Float](f kernel.Func[S, T]) kernel.Func[S, T] {
	return func(h *S, p, g []T, s [4][]T) { f(h, p, g, [4][]T{s[0], g, s[1], append([]T(nil), p...)}) }
}

// withGrad passes the gradient to a kernel as its states, which it only reads.
func withGrad[S any, T kernel.Float](f kernel.Func[S, T]) kernel.Func[S, T] {
	return func(h *S, p, g []T, _ [4][]T) { f(h, p, g, [4][]T{g, g, g, g}) }
}

// withoutGrad passes no gradient to a kernel.
func withoutGrad[S any, T kernel.Float](f kernel.Func[S, T]) kernel.Func[S, T] {
	return func(h *S, p, _ []T, s [4][]T) { f(h, p, nil, s) }
}

// addOthers adds a variant of every elementwise kernel that does not have one. All its scalars are different numbers between 0
// and 1, so that flags are set. Its states are those that the one-lane copy writes.
func addOthers[T kernel.Float](b *builder[T]) {
	has := map[string]bool{"AdafactorSmall": true} // tested by TestAdafactorSmall
	for _, v := range b.variants {
		has[kernelOf(v.name)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(b.kernels.byName)) {
		f := reflect.ValueOf(b.kernels.byName[name])
		if t := f.Type(); has[name] || t.NumIn() != 4 || t.In(3) != reflect.TypeFor[[4][]T]() {
			continue
		}
		h := reflect.New(f.Type().In(0).Elem())
		setScalars(h.Elem(), 0)
		call := func(f reflect.Value) kernel.Func[kernel.None, T] {
			return func(_ *kernel.None, p, g []T, s [4][]T) {
				f.Call([]reflect.Value{h, reflect.ValueOf(p), reflect.ValueOf(g), reflect.ValueOf(s)})
			}
		}
		states := writtenStates(call(reflect.ValueOf(single[T]().named(name))))
		var narrow kernel.BFloat16Func[kernel.None]
		if k, ok := b.kernels.bfloat16[name]; ok && !reflect.ValueOf(k).IsNil() {
			narrow = func(_ *kernel.None, p, g []uint16, s [4][]uint16, z *kernel.Draws, rest []uint16) bool {
				return reflect.ValueOf(k).Call([]reflect.Value{h, reflect.ValueOf(p), reflect.ValueOf(g), reflect.ValueOf(s), reflect.ValueOf(z), reflect.ValueOf(rest)})[0].Bool()
			}
		}
		addFunc(b, name, 2+states, kernel.None{}, call(f), narrow)
	}
}

// setScalars sets the numbers in a struct, of which n have been set before, and returns how many there are now.
func setScalars(v reflect.Value, n int) int {
	if v.Kind() == reflect.Float64 {
		_, x := math.Modf(.9 + .618*float64(n))
		v.SetFloat(x)
		return n + 1
	}
	for i := range v.NumField() {
		n = setScalars(v.Field(i), n)
	}
	return n
}

// writtenStates returns the number of states up to the last one that a kernel writes.
func writtenStates[T kernel.Float](f kernel.Func[kernel.None, T]) (n int) {
	c := make([][]T, 6)
	for k := range c {
		c[k] = make([]T, 1)
	}
	fill(c)
	before := [4]T{c[2][0], c[3][0], c[4][0], c[5][0]}
	f(nil, c[0], c[1], [4][]T(c[2:]))
	for k, x := range before {
		if c[2+k][0] != x {
			n = k + 1
		}
	}
	return n
}

// variants returns the variants of a package's kernels: those of kernels with several paths or unusual arguments, and one of
// every other elementwise kernel.
func variants[T kernel.Float](k kernels) []variant[T] {
	coupledTo := kernel.CoupledOf(false, .01)
	adam := kernel.Adam{
		Coupled: kernel.CoupledOf(false, 0), Decay: .9996, C1: kernel.WeightOf[T](.1), Beta2: .999, C2: .001, Step: -1e-3,
		BC2Sqrt: kernel.DivisorOf[T](.5), Eps: 1e-8,
	}
	coupled := adam
	coupled.Coupled, coupled.Decay, coupled.C1 = kernel.CoupledOf(true, .01), 1, kernel.WeightOf[T](.6)
	extreme := adam
	extreme.BC2Sqrt = kernel.DivisorOf[T](1e-13)
	sgd := kernel.SGD{Coupled: coupledTo, Momentum: .9, C: .7, Nesterov: 1, Step: -.1}
	first := sgd
	first.First = 1
	heavyBall := sgd
	heavyBall.Nesterov = 0
	adagrad := kernel.Adagrad{Coupled: coupledTo, Step: -.1, Eps: 1e-8}
	loud := adagrad // without weight decay, some squares would not change the sum
	loud.Sign = 100
	asgd := kernel.ASGD{Coupled: coupledTo, Decay: .99, Step: -.1, Mu: .5, Averages: 1}
	nadam := kernel.NAdam{
		Coupled: coupledTo, Decay: .99, C1: kernel.WeightOf[T](.1), Beta2: .999, C2: .001, BC2: .1, Eps: 1e-8,
		StepG: -.01, StepM: -.02,
	}
	radam := kernel.RAdam{
		Coupled: coupledTo, Decay: .99, C1: kernel.WeightOf[T](.1), Beta2: .999, C2: .001, BC1: .5, LR: .01,
	}
	rectified := radam
	rectified.Rectified, rectified.BC2Sqrt, rectified.Eps, rectified.Rect = 1, .5, 1e-8, .7
	rmsprop := kernel.RMSprop{
		Coupled: coupledTo, Alpha: .3, C: .7, Centre: kernel.WeightOf[T](.2), Eps: 1e-3, Momentum: .9, Step: -.1,
	}
	uncoupled := rmsprop
	uncoupled.Coupled = kernel.CoupledOf(true, 0)
	rprop := kernel.Rprop{Sign: 1, EtaMinus: .5, Minus: .5, Plus: 1.2, Min: 1e-9, Max: 50}
	adopt := kernel.ADOPT{
		Coupled: coupledTo, Decays: 1, Decay: -.01, C1: kernel.WeightOf[T](.1), Beta2: .99, C2: .01, Eps: 1e-6, Clip: .5, Step: -.1,
	}
	firstAdopt := adopt
	firstAdopt.First = 1
	nadamw := kernel.NAdamW{
		Coupled: adam.Coupled, Decay: .99, C1: kernel.WeightOf[T](.6), Beta2: .999, C2: .001, Step: -1e-3,
		BC2Sqrt: kernel.DivisorOf[T](.5), Eps: 1e-8,
	}
	extremeNadamw := nadamw
	extremeNadamw.BC2Sqrt = extreme.BC2Sqrt
	tf := kernel.RMSpropTF{Coupled: coupledTo, Decay: .99, C: .7, Eps: 1e-3, Momentum: .9, LR: .1}
	inBuffer := tf
	inBuffer.LRInBuffer = 1
	lion := kernel.Lion{Decay: .99, Beta1: .9, C1: .1, Beta2: .7, C2: .3, Step: -.1}
	lerps := kernel.Lion{
		Sign: -1, Decay: .99, Lerps: 1, W1: kernel.WeightOf[T](.1), W2: kernel.WeightOf[T](.6), Step: -.1,
	}
	like := kernel.RMSpropTFLike{Coupled: coupledTo, Alpha: .3, C: .7, Eps: 1e-3, Momentum: .9, Step: -.1}
	adan := kernel.Adan{
		Coupled: adam.Coupled, Decay: .99, Shrink: 1.01, C1: kernel.WeightOf[T](.1), Beta2: .9, C2: .1, Beta3: .99, C3: .01,
		Step: -1e-3, StepDiff: -2e-3, BC3Sqrt: kernel.DivisorOf[T](.5), Eps: 1e-8,
	}
	firstAdan, extremeAdan := adan, adan
	firstAdan.First, extremeAdan.BC3Sqrt = 1, extreme.BC2Sqrt
	ademamix := kernel.AdEMAMix{
		Coupled: kernel.CoupledOf(false, 0), Decay: .99, Beta1: .9, C1: .1, Beta2: .999, C2: .001, Beta3: .99, C3: .01, BC1: .3,
		BC2Sqrt: kernel.DivisorOf[T](.5), Alpha: 5, Eps: 1e-8, Step: -1e-3,
	}
	lerpAdemamix, extremeAdemamix := ademamix, ademamix
	lerpAdemamix.Coupled, lerpAdemamix.Lerps = coupledTo, 1
	lerpAdemamix.W1, lerpAdemamix.W3 = kernel.WeightOf[T](.6), kernel.WeightOf[T](.01)
	extremeAdemamix.BC2Sqrt = extreme.BC2Sqrt
	laprop := kernel.LaProp{
		Coupled: adam.Coupled, Beta1: .9, C1: .1, Beta2: .99, C2: .01, BC2: .5, Eps: 1e-8, Step: -.1, Decays: 1, Decay: -.01,
	}
	adafactor := kernel.Adafactor{
		Sign: 1, W: kernel.WeightOf[T](.3), Eps1: 1e-7, EpsSq: 1e-14, N: 7, Row: .4, Mean: .6, Decay: .9, Step: -.1,
	}
	hfAdafactor := kernel.HFAdafactor{
		Eps1: 1e-5, Beta2: .7, C2: .3, Mean: .6, Row: .4, Clip: 1.1, LR: .1, Beta1: .9, C1: .1, Decays: 1, Decay: -.01,
	}
	caution, clipping := kernel.Caution{Cautious: 1, Inverse: 1.7}, kernel.Clipping{Threshold: 1, Excess: 1.3}
	legacy := kernel.AdamWLegacy{Adam: adam, Caution: caution, Clipping: clipping}
	extremeLegacy := legacy
	extremeLegacy.Adam = extreme
	cautiousNadamw := nadamw
	cautiousNadamw.Caution, cautiousNadamw.Clipping = caution, clipping
	cautiousAdopt := adopt
	cautiousAdopt.Caution = caution
	cautiousLion, cautiousAdan, cautiousLaprop := lerps, adan, laprop
	cautiousLion.Caution, cautiousAdan.Caution, cautiousLaprop.Caution = caution, caution, caution
	cautiousTF, cautiousInBuffer := tf, inBuffer
	cautiousTF.Caution, cautiousInBuffer.Caution = caution, caution
	b := &builder[T]{kernels: k}
	add(b, "AdafactorMean", 2, adafactor)
	add(b, "AdafactorRow", 2, adafactor, withGrad)
	add(b, "AdafactorProduct", 2, adafactor, withGrad)
	add(b, "AdafactorVector", 3, adafactor)
	add(b, "AdafactorSingles", 4, adafactor)
	add(b, "AdafactorStep", 2, adafactor)
	add(b, "HFAdafactorMoment", 2, hfAdafactor)
	add(b, "HFAdafactorSquares", 2, hfAdafactor)
	add(b, "HFAdafactorFactor", 2, hfAdafactor)
	add(b, "HFAdafactorRow", 2, hfAdafactor, withGrad)
	add(b, "HFAdafactorVector", 3, hfAdafactor)
	add(b, "HFAdafactorStep", 3, hfAdafactor)
	add(b, "Adam", 4, adam)
	add(b, "Adam coupled", 4, coupled)
	add(b, "Adam extreme", 4, extreme)
	add(b, "Adam amsgrad", 5, adam)
	add(b, "SGD", 2, sgd)
	add(b, "SGD usual", 2, kernel.SGD{Coupled: kernel.CoupledOf(false, 0), Step: -.1})
	add(b, "SGD momentum", 3, sgd)
	add(b, "SGD heavy ball", 3, heavyBall)
	add(b, "SGD first", 3, first)
	add(b, "SGD first, usual", 3, kernel.SGD{Coupled: kernel.CoupledOf(true, 0), Momentum: .9, First: 1, Nesterov: 1, Step: -.1})
	add(b, "Adagrad", 3, adagrad)
	add(b, "NAdam", 4, nadam, fromSecond)
	add(b, "ASGD", 3, asgd, fromThird)
	add(b, "ASGD usual", 3, kernel.ASGD{Coupled: coupledTo, Decay: .99, Step: -.1, Mu: 1}, fromThird)
	add(b, "RAdam", 4, radam)
	add(b, "RAdam rectified", 4, rectified)
	add(b, "RMSprop", 3, rmsprop)
	add(b, "RMSprop momentum", 4, rmsprop)
	add(b, "RMSprop centered", 5, rmsprop)
	add(b, "RMSprop centered, usual", 5, uncoupled)
	add(b, "Rprop", 4, rprop)
	add(b, "Lion", 3, lion)
	add(b, "Lion lerps", 3, lerps)
	add(b, "AdamWLegacy", 4, legacy)
	add(b, "AdamWLegacy extreme", 4, extremeLegacy)
	add(b, "AdamWLegacy amsgrad", 5, legacy)
	add(b, "AdamWAgrees", 2, legacy, withGrad)
	add(b, "AdamWQuotient", 2, legacy, withGrad)
	add(b, "NAdamW cautious", 4, cautiousNadamw)
	add(b, "NAdamWAgrees", 2, nadamw, withGrad)
	add(b, "NAdamWQuotient", 2, nadamw, withGrad)
	add(b, "ADOPT cautious", 4, cautiousAdopt)
	add(b, "ADOPTAgrees", 2, adopt, withGrad)
	lars := kernel.LARS{Adapts: 1, WeightDecay: .01, Trust: .3, Momentum: .9, C: .7, Nesterov: 1, Step: -.1}
	firstLars := lars
	firstLars.Adapts, firstLars.First, firstLars.Nesterov = 0, 1, 0
	lamb := kernel.LAMB{
		Caution: caution, Total: 1.3, Averages: 1, C1: kernel.WeightOf[T](.1), Beta1: .9, Beta2: .999, C2: .001, BC1: .3,
		BC2Sqrt: kernel.DivisorOf[T](.5), Eps: 1e-6, Couples: 1, WeightDecay: .01, Trust: .3, Step: -.1,
	}
	otherLamb := lamb
	otherLamb.BC2Sqrt, otherLamb.Cautious, otherLamb.Averages, otherLamb.Couples = extreme.BC2Sqrt, 0, 0, 0
	otherLamb.Decays, otherLamb.Decay = 1, -.01
	add(b, "LAMB", 4, lamb)
	add(b, "LAMB extreme", 4, otherLamb)
	add(b, "LAMBAgrees", 2, lamb, withGrad)
	add(b, "LAMBUpdate", 2, lamb, withGrad)
	add(b, "LAMBDecayed", 2, otherLamb, withGrad)
	prodigy := kernel.Prodigy{
		Coupled: sgd.Coupled, Beta1: .9, C1: .01, Beta2: .999, C2: .001, Beta3: .99, C3: .3, Decays: 1, Decay: -.01, Eps: 1e-6, Step: -.1, Estimates: 1,
	}
	idleProdigy := prodigy
	idleProdigy.Estimates = 0
	add(b, "Prodigy", 4, prodigy)
	add(b, "Prodigy without exp_avg", 3, prodigy, withoutFirst)
	add(b, "Prodigy idle", 2, idleProdigy, withGrad)
	add(b, "ProdigyMoments", 3, prodigy, onlyStates)
	add(b, "ProdigyMoments without exp_avg", 2, prodigy, onlySecond)
	add(b, "ProdigyDistance", 4, prodigy, aroundGrad)
	add(b, "StableAdamWSquares", 2, kernel.StableAdamW{Coupled: adam.Coupled, Beta2: .99, C2: .01, EpsSq: 1e-12}, withGrad)
	optimiAdam := kernel.OptimiAdam{
		Coupled: kernel.CoupledOf(false, 0), Decay: .99, C1: kernel.WeightOf[T](.1), Beta2: .99, C2: .01, Eps: 1e-6, Step: -.1,
	}
	normalizing := optimiAdam
	normalizing.Coupled, normalizing.Decay, normalizing.C1, normalizing.Normalizes = coupledTo, 1, kernel.WeightOf[T](.6), 1
	add(b, "OptimiAdam", 4, optimiAdam)
	add(b, "OptimiAdam normalizes", 4, normalizing)
	optimiSGD := kernel.OptimiSGD{Coupled: coupledTo, Decay: .99, C: kernel.WeightOf[T](.1), Momentum: .9, Step: -.1}
	cleared, averages := optimiSGD, optimiSGD
	cleared.Clears, averages.Averages = 1, 1
	started, clearedAverages := averages, averages
	started.Starts, clearedAverages.Clears = 1, 1
	add(b, "OptimiSGD", 2, optimiSGD)
	add(b, "OptimiSGD momentum", 3, optimiSGD)
	add(b, "OptimiSGD clears", 3, cleared)
	add(b, "OptimiSGD averages", 3, averages)
	add(b, "OptimiSGD averages, starts", 3, started)
	add(b, "OptimiSGD averages, clears", 3, clearedAverages)
	optimiAdan := kernel.OptimiAdan{
		Coupled: kernel.CoupledOf(false, 0), Shrink: 1.1, C1: kernel.WeightOf[T](.02), C2: kernel.WeightOf[T](.6), Beta2: .92,
		Beta3: .99, C3: .01, Step: -.1, StepDiff: -.092, Eps: 1e-6,
	}
	firstOptimiAdan := optimiAdan
	firstOptimiAdan.First = 1
	add(b, "OptimiAdan", 6, optimiAdan)
	add(b, "OptimiAdan first", 6, firstOptimiAdan)
	add(b, "LARS", 2, lars)
	add(b, "LARS momentum", 3, lars)
	add(b, "LARS first", 3, firstLars)
	add(b, "SGDW cautious", 3, kernel.SGDW{SGD: sgd, Decay: .99, Caution: caution})
	add(b, "SGDWAgrees", 2, kernel.SGDW{SGD: sgd}, withGrad)
	add(b, "RMSpropTF cautious", 4, cautiousTF)
	add(b, "RMSpropTF cautious, centered", 5, cautiousInBuffer)
	add(b, "RMSpropTFAgrees", 2, tf, withGrad)
	add(b, "ADOPT", 4, adopt)
	add(b, "ADOPT first", 2, firstAdopt, onlySecond)
	add(b, "NAdamW", 4, nadamw)
	add(b, "NAdamW extreme", 4, extremeNadamw)
	add(b, "SGDW", 2, kernel.SGDW{SGD: sgd, Decay: .99})
	add(b, "SGDW nesterov", 3, kernel.SGDW{SGD: sgd, Decay: .99})
	add(b, "SGDW momentum", 3, kernel.SGDW{SGD: heavyBall, Decay: .99})
	add(b, "SGDW first", 3, kernel.SGDW{SGD: first, Decay: .99})
	add(b, "RMSpropTF", 3, tf)
	add(b, "RMSpropTF momentum", 4, tf)
	add(b, "RMSpropTF centered", 5, inBuffer)
	add(b, "RMSpropTFLike", 3, like)
	add(b, "RMSpropTFLike momentum", 4, like)
	add(b, "RMSpropTFLike centered", 5, like)
	add(b, "Adan", 6, adan)
	add(b, "LaProp", 4, laprop, fromThird)
	add(b, "AdEMAMix", 5, ademamix)
	add(b, "AdEMAMix lerps", 5, lerpAdemamix)
	add(b, "AdEMAMix extreme", 5, extremeAdemamix)
	add(b, "Adan first", 6, firstAdan)
	add(b, "Adan extreme", 6, extremeAdan)
	add(b, "Adan cautious", 6, cautiousAdan)
	add(b, "AdanAgrees", 2, adan, withGrad)
	add(b, "Lion cautious", 3, cautiousLion)
	add(b, "LionAgrees", 2, lerps, withGrad)
	add(b, "LaProp cautious", 4, cautiousLaprop, fromThird)
	add(b, "LaPropAgrees", 2, laprop, withGrad)
	addRows(b, "SparseSGD", 2, sgd)
	addRows(b, "SparseAdagrad", 3, loud)
	addRows(b, "SparseAdam", 4, kernel.SparseAdam{Sign: 1, C1: .1, C2: .001, Eps: 1e-8, Step: -.1})
	addRows(b, "Accumulate", 2, kernel.None{})
	add(b, "MuonMomentum", 3, kernel.MuonMomentum{C: kernel.WeightOf[T](.1), Momentum: kernel.WeightOf[T](.9)})
	add(b, "MuonMomentum nesterov", 3, kernel.MuonMomentum{C: kernel.WeightOf[T](.7), Momentum: kernel.WeightOf[T](.3), Nesterov: 1})
	add(b, "Combine", 2, kernel.Combine{A: [4]float64{.1, .2, .3, .4}}, withGrad)
	add(b, "AverageLerp", 2, kernel.Average{Weight: kernel.WeightOf[T](.1)})
	add(b, "AverageLerp from the end", 2, kernel.Average{Weight: kernel.WeightOf[T](.7)})
	add(b, "AverageMulAdd", 2, kernel.Average{Keep: .9, C: .1})
	add(b, "AveragePolyak", 2, kernel.Average{Keep: .9, C: .1})
	add(b, "AverageSWA", 2, kernel.Average{N: 7})
	add(b, "Copy", 2, kernel.None{})
	add(b, "Zero", 2, kernel.None{}, withoutGrad)
	add(b, "Scale", 2, kernel.Factor{X: .7}, withoutGrad)
	add(b, "Product", 2, kernel.Factor{X: .7})
	add(b, "Divide", 2, kernel.Factor{X: .7}, withoutGrad)
	add(b, "Clamp", 2, kernel.Clamp{Min: -1e-9, Max: 1e-8}, withoutGrad)
	addScan(b, "Unscale", kernel.Factor{X: .7})
	addOthers(b)
	return b.variants
}

// flats are the passes of L-BFGS, with the number of their vectors and of those that are written, which come first.
var flats = []struct {
	name             string
	columns, written int
}{
	{"LBFGSFirst", 3, 2},
	{"LBFGSPair", 6, 4},
	{"LBFGSDot", 2, 0},
	{"LBFGSAxpy", 3, 1},
	{"LBFGSTurn", 2, 1},
	{"LBFGSScale", 2, 1},
	{"LBFGSMove", 3, 1},
}

// longest is a few elements more than three of the widest vectors of float32.
const longest = 3*16 + 5

// fill sets every element of every buffer to a different number, the same in every run. All but the parameter are positive, so
// that square roots are not NaN and no sign changes, and maxima are so small that every step increases them.
func fill[T kernel.Float](columns [][]T) {
	for k, c := range columns {
		for i := range c {
			c[i] = T(math.Sin(float64(1+i*7+k*131))) * T(k+1)
			if k > 0 {
				c[i] *= c[i]
			}
			if k > 3 {
				c[i] *= 1e-12
			}
		}
	}
}

func TestGuards(t *testing.T) { onCopies(t, testGuards[float32], testGuards[float64]) }

// testGuards runs every kernel on buffers between guard values, at every length and alignment. It must write all elements,
// nothing outside the buffers, and not the gradient.
func testGuards[T kernel.Float](t *testing.T, k kernels) {
	const guard, around = 12345, 17
	for _, v := range variants[T](k) {
		for n := range longest + 1 {
			before := make([][]T, v.columns)
			columns := make([][]T, v.columns)
			whole := make([][]T, v.columns)
			for k := range columns {
				whole[k] = make([]T, around+k+n+around)
				for i := range whole[k] {
					whole[k][i] = guard
				}
				columns[k] = whole[k][around+k:][:n]
			}
			fill(columns)
			for k := range columns {
				before[k] = append([]T(nil), columns[k]...)
			}
			v.update(columns)
			for k := range columns {
				for i, x := range whole[k] {
					if i < around+k || i >= around+k+n {
						require.Equal(t, T(guard), x, "%s, %d elements: column %d is written at %d", v.name, n, k, i-around-k)
					}
				}
				for i := range columns[k] {
					if k == 1 {
						require.Equal(t, before[k][i], columns[k][i], "%s, %d elements: the gradient is written at %d", v.name, n, i)
					} else {
						require.NotEqual(t, before[k][i], columns[k][i], "%s, %d elements: column %d is not written at %d", v.name, n, k, i)
					}
				}
			}
		}
	}
}

func TestSplit(t *testing.T) { onCopies(t, testSplit[float32], testSplit[float64]) }

// testSplit compares every kernel on whole buffers with the same kernel on single elements. The results must not depend on how
// the elements are grouped in vectors.
func testSplit[T kernel.Float](t *testing.T, k kernels) {
	for _, v := range variants[T](k) {
		for n := range longest + 1 {
			whole, single := make([][]T, v.columns), make([][]T, v.columns)
			for k := range whole {
				whole[k], single[k] = make([]T, n), make([]T, n)
			}
			fill(whole)
			fill(single)
			v.update(whole)
			for i := range n {
				element := make([][]T, v.columns)
				for k := range element {
					element[k] = single[k][i : i+1]
				}
				v.update(element)
			}
			require.Equal(t, single, whole, "%s, %d elements", v.name, n)
		}
	}
}

func TestVectorBits(t *testing.T) {
	assert.Contains(t, []int{0, 128, 256, 512}, kernel.VectorBits())
	t.Logf("vectors of %d bits", kernel.VectorBits())
	kernel.Leave()
}

func bytes[T kernel.Float](n int) int { return n * int(unsafe.Sizeof(T(0))) }

// TestQuotient compares the division by a constant with the CPU's, for square roots that cover every path, and for divisors
// from the most common ones to the limits of what is not extreme. It calls Adam's kernel: with beta2 of 1, a gradient of 0,
// exp_avg of 1 and a step of 1, the parameter becomes 1 / (sqrt(v)/by) for v in exp_avg_sq.
func TestQuotient(t *testing.T) { onCopies(t, testQuotient[float32], testQuotient[float64]) }

func testQuotient[T kernel.Float](t *testing.T, k kernels) {
	f := funcOf[kernel.Adam, T](k, "Adam")
	const n = 1 << 12
	p, g, m, v := make([]T, n), make([]T, n), make([]T, n), make([]T, n)
	r := rand.New(rand.NewPCG(1, 2))
	square := func(i int) T {
		if special := []float64{0, math.Copysign(0, -1), math.Inf(1), math.NaN(), -1, 1, 0x1p-149, math.MaxFloat32}; i < len(special) {
			return T(special[i])
		}
		return T(math.Ldexp(1+r.Float64(), r.IntN(250)-125))
	}
	divisors := []float64{1, 0x1.fffffep-1, 0x1.fffffffffffffp-1, 0x1.000002p0, 0x1.0000000000001p0, 0x1p-40, 0x1p40, .5, 1.0 / 3}
	for len(divisors) < 500 {
		divisors = append(divisors, math.Sqrt(1-math.Pow(r.Float64(), float64(1+r.IntN(1000)))))
	}
	usual := len(divisors)
	for i, by := range append(divisors, 0x1p-130, 1e-13, 0x1p41, 0x1p100) { // the others are for one lane
		h := kernel.Adam{Coupled: kernel.CoupledOf(false, 0), Beta2: 1, Step: 1, BC2Sqrt: kernel.DivisorOf[T](by), C1: kernel.WeightOf[T](0)}
		require.Equal(t, i >= usual, h.BC2Sqrt.Extreme())
		for i := range p {
			p[i], m[i], v[i] = 0, 1, square(i)
		}
		kernel.Apply(f, &h, p, g, [4][]T{m, v})
		for i := range p {
			want := 1 / (T(math.Sqrt(float64(v[i])))/T(by) + T(h.Eps))
			if p[i] != want && (p[i] == p[i] || want == want) {
				require.Failf(t, "quotient", "sqrt(%v)/%v: 1 / it is %v, expected %v", v[i], by, p[i], want)
			}
		}
	}
}

func TestScan(t *testing.T) { onCopies(t, testScan[float32], testScan[float64]) }

// testScan checks the magnitudes that kernels return: at every length, with the largest element, an infinity or a NaN at every
// position.
func testScan[T kernel.Float](t *testing.T, k kernels) {
	largest, unscale := scanOf[kernel.None, T](k, "Largest"), scanOf[kernel.Factor, T](k, "Unscale")
	require.Zero(t, kernel.Scan(largest, &kernel.None{}, nil))
	for n := 1; n <= longest; n++ {
		for i := range n {
			for _, special := range []float64{3, -4, math.Inf(1), math.Inf(-1), math.NaN()} {
				x := make([]T, n)
				fill([][]T{x})
				x[i] = T(special)
				if special != special {
					x[(i+1)%n], x[i] = T(math.Inf(1)), T(special)
				}
				before := append([]T(nil), x...)
				want := T(math.Abs(special))
				for _, most := range []T{kernel.Scan(largest, &kernel.None{}, x), kernel.Scan(unscale, &kernel.Factor{X: .5}, x)} {
					require.True(t, most == want || (most != most && want != want), "%d elements, %v at %d: %v", n, special, i, most)
				}
				for e := range x {
					require.True(t, x[e] == before[e]/2 || x[e] != x[e], "%d elements, %v at %d: element %d", n, special, i, e)
				}
			}
		}
	}
}

func TestPrefetchOfWrongAddressesIsHarmless(t *testing.T) {
	for _, lines := range []int{0, 1, 3} {
		kernel.Prefetch([]uintptr{0, 1, 1 << 62, ^uintptr(0)}, lines)
		kernel.Prefetch(nil, lines)
	}
}

// TestEveryKernelIsTested reports kernels that are missing from the lists of variants and passes.
func TestEveryKernelIsTested(t *testing.T) {
	tested := map[string]bool{"AdafactorSmall": true, "Largest": true} // tested by TestAdafactorSmall and TestScan
	for _, v := range variants[float32](single[float32]()) {
		tested[kernelOf(v.name)] = true
	}
	for _, v := range flats {
		tested[v.name] = true
	}
	assert.Greater(t, len(registry["f32"]), 30)
	for name, f := range registry["f32"] {
		list := "variants"
		if _, isFlat := f.(func(*kernel.LBFGS, *kernel.Columns[float32], *kernel.Sums[float32])); isFlat {
			list = "flats"
		}
		assert.True(t, tested[name], "kernel %s has no test: add it to %s in kernel_test.go", name, list)
	}
}
