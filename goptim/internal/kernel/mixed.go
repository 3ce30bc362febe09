package kernel

import (
	"bytes"
	"sync"
	"unsafe"
)

// An Operand is a buffer of a step in any format. Its address is nil if there is none.
type Operand struct {
	Address unsafe.Pointer
	Format  Format
}

// Operands are the buffers of a step: those of a Func, and what else is stored. Their elements have the index First and those after
// it in their tensors.
type Operands struct {
	Param, Grad Operand
	State       [4]Operand
	// Copy is the parameter rounded to nearest even, of which Param is the master copy in float32. An element of Param whose rounded
	// value is not that of Copy is set to the value of Copy first.
	Copy Operand
	// Compensation is what the parameter lacks. The Func gets the sum of both. A rounded sum is the parameter, and the rounded rest
	// the compensation, or 0 if the rest is not finite.
	Compensation Operand
	First        int
	Noise        Noise // if it is on, the parameter is rounded with it, and otherwise to nearest even
}

// span is the number of elements that are widened at a time, and half of it with more than four buffers, so that all blocks and what
// is read for them are in the L1 cache. Each block costs a call for every buffer, and one of the kernel.
const span = 1024

// spans have a block for each buffer of a Func, one more, and space for a group of elements of each operand. They are pooled because
// arguments of a call through a function value escape to the heap.
type spans struct {
	block [7][span + 16]float32 // not a multiple of a page apart
	tail  [operands][group]uint32
}

// operands is the number of Operands.
const operands = 8

var spanPool = sync.Pool{New: func() any { return new(spans) }}

// ApplyMixed is Apply for buffers of n elements in any format. The arithmetic is in float32, and each stored element is rounded
// once. Buffers of float32 are used in place.
func ApplyMixed[S any](f Func[S, float32], h *S, o *Operands, n int) {
	m := spanPool.Get().(*spans)
	most := o.span()
	for lo := 0; lo < n; {
		count := min(most, n-lo)
		if at := (o.First + lo) % group; o.Noise.On && at != 0 { // the noise is that of whole groups
			count = min(count, group-at)
		}
		whole := count &^ (group - 1)
		if whole == 0 {
			t, at := m.begin(o, lo, count)
			c := m.load(&t, 0, group, 0)
			f(h, c[0], c[1], [4][]float32(c[2:]))
			Leave()
			m.store(&t, &c, 0)
			m.end(o, lo, at, count)
			lo += count
			continue
		}
		ahead := 0
		if n-lo-whole >= most {
			ahead = most * 2
		}
		c := m.load(o, lo, whole, ahead)
		f(h, c[0], c[1], [4][]float32(c[2:]))
		Leave()
		m.store(o, &c, lo)
		lo += whole
	}
	spanPool.Put(m)
}

// span returns how many elements are widened at a time.
func (o *Operands) span() int {
	blocks := 0
	for k := range operands {
		if b := o.of(k); b.Address != nil && b.Format != Float32 {
			blocks++
		}
	}
	if blocks > 4 {
		return span / 2
	}
	return span
}

// of returns an operand. The first six are those of a Func.
func (o *Operands) of(k int) *Operand {
	switch k {
	case 0:
		return &o.Param
	case 1:
		return &o.Grad
	case 6:
		return &o.Copy
	case 7:
		return &o.Compensation
	}
	return &o.State[k-2]
}

// at returns the address of element i.
func (b *Operand) at(i int) unsafe.Pointer { return unsafe.Add(b.Address, i*b.Format.size()) }

// Read copies len(to) elements from element lo on, in float32. Their number can be any.
func (b *Operand) Read(to []float32, lo int) {
	if b.Format == Float32 {
		copy(to, unsafe.Slice((*float32)(b.at(lo)), len(to)))
		return
	}
	whole := len(to) &^ (group - 1)
	if whole > 0 {
		widen(to[:whole], b.at(lo), b.Format, 0)
	}
	if rest := to[whole:]; len(rest) > 0 {
		widenEach(rest, b.at(lo+whole), b.Format)
	}
}

// ReadParam copies len(to) elements of the parameter from element lo on, in float32, as a Func gets them: with what something else has
// written to it if it has a master copy, and with its compensation.
func (o *Operands) ReadParam(to []float32, lo int) {
	o.Param.Read(to, lo)
	b := &o.Compensation
	if o.Copy.Address != nil {
		b = &o.Copy
	}
	if b.Address == nil {
		return
	}
	m := spanPool.Get().(*spans)
	for at := 0; at < len(to); {
		n := min(span, len(to)-at)
		if whole := n &^ (group - 1); whole > 0 {
			n = whole
		}
		some := to[at:][:n]
		switch {
		case n%group != 0:
			o.readEach(some, lo+at)
		case o.Copy.Address != nil:
			m.follow(some, b, lo+at)
		default:
			rest := m.block[0][:n]
			widen(rest, b.at(lo+at), b.Format, 0)
			add(some, rest)
		}
		at += n
	}
	spanPool.Put(m)
}

// WriteParam is the inverse of ReadParam: it stores elements of the parameter as the step of a Func does.
func (o *Operands) WriteParam(from []float32, lo int) {
	if o.Noise.On {
		o.writeWithNoise(from, lo)
	} else {
		o.Param.Write(from, lo)
	}
	if o.Copy.Address != nil {
		o.Copy.Write(from, lo)
	}
	if o.Compensation.Address == nil {
		return
	}
	m := spanPool.Get().(*spans)
	for at := 0; at < len(from); at += span {
		rest := m.block[0][:min(span, len(from)-at)]
		o.Param.Read(rest, lo+at)
		subtractEach(rest, from[at:])
		o.Compensation.Write(rest, lo+at)
	}
	spanPool.Put(m)
}

// writeWithNoise rounds elements to Param.
func (o *Operands) writeWithNoise(from []float32, lo int) {
	for at := 0; at < len(from); {
		first := lo + at
		n := min(group-first%group, len(from)-at) // up to the next group
		if n == group {
			n = (len(from) - at) &^ (group - 1)
			narrowWith(&o.Noise, o.Param.at(first), from[at:][:n], o.Param.Format, first)
		} else {
			narrowEachWith(&o.Noise, o.Param.at(first), from[at:][:n], o.Param.Format, first)
		}
		at += n
	}
}

// readEach adds what ReadParam adds to a few elements of Param.
func (o *Operands) readEach(to []float32, lo int) {
	if o.Copy.Address != nil {
		rounded := make([]uint16, len(to))
		narrowEach(unsafe.Pointer(&rounded[0]), to, o.Copy.Format)
		o.Copy.follow(to, rounded, lo)
		return
	}
	for i := range to {
		var rest [1]float32
		widenEach(rest[:], o.Compensation.at(lo+i), o.Compensation.Format)
		to[i] += rest[0]
	}
}

// Write is the inverse of Read. It rounds the elements.
func (b *Operand) Write(from []float32, lo int) {
	if b.Format == Float32 {
		copy(unsafe.Slice((*float32)(b.at(lo)), len(from)), from)
		return
	}
	whole := len(from) &^ (group - 1)
	if whole > 0 {
		narrow(b.at(lo), from[:whole], b.Format)
	}
	if rest := from[whole:]; len(rest) > 0 {
		narrowEach(b.at(lo+whole), rest, b.Format)
	}
}

// load returns n elements of each operand of a Func from lo on.
func (m *spans) load(o *Operands, lo, n, ahead int) (c [6][]float32) {
	for k := range c {
		switch b := o.of(k); {
		case b.Address == nil:
		case b.Format == Float32:
			c[k] = unsafe.Slice((*float32)(b.at(lo)), n)
		default:
			c[k] = m.block[k][:n]
			widen(c[k], b.at(lo), b.Format, ahead)
		}
	}
	if o.Copy.Address != nil {
		m.follow(c[0], &o.Copy, lo)
	}
	if b := &o.Compensation; b.Address != nil {
		rest := m.block[6][:n]
		widen(rest, b.at(lo), b.Format, ahead)
		add(c[0], rest)
	}
	return c
}

// follow sets the elements of a master copy whose rounded value is not that of the parameter: something else has written it.
func (m *spans) follow(master []float32, b *Operand, lo int) {
	rounded := unsafe.Slice((*uint16)(unsafe.Pointer(&m.block[6])), len(master))
	narrow(unsafe.Pointer(&rounded[0]), master, b.Format)
	if n := 2 * len(master); bytes.Equal(unsafe.Slice((*byte)(unsafe.Pointer(&rounded[0])), n), unsafe.Slice((*byte)(b.at(lo)), n)) {
		return
	}
	b.follow(master, rounded, lo)
}

// follow sets the elements of a master copy whose rounded value is not that of the parameter b.
func (b *Operand) follow(master []float32, rounded []uint16, lo int) {
	for i, x := range unsafe.Slice((*uint16)(b.at(lo)), len(master)) {
		switch {
		case x == rounded[i]:
		case b.Format == BFloat16:
			master[i] = WidenBFloat16(x)
		default:
			master[i] = WidenFloat16(x)
		}
	}
}

// store stores the elements of load, which a Func has changed.
func (m *spans) store(o *Operands, c *[6][]float32, lo int) {
	for k := range c {
		switch b := o.of(k); {
		case k == 1 || b.Address == nil || b.Format == Float32:
		case k == 0 && o.Noise.On:
			narrowWith(&o.Noise, b.at(lo), c[k], b.Format, o.First+lo)
		default:
			narrow(b.at(lo), c[k], b.Format)
		}
	}
	if b := &o.Copy; b.Address != nil {
		narrow(b.at(lo), c[0], b.Format)
	}
	if b := &o.Compensation; b.Address != nil {
		rest := m.block[6][:len(c[0])]
		widen(rest, o.Param.at(lo), o.Param.Format, 0)
		subtract(rest, c[0])
		narrow(b.at(lo), rest, b.Format)
	}
}

// begin copies n elements of each operand, fewer than a group, to a group of their own, whose other elements are any numbers. It
// returns these groups, and the place of the elements in them.
func (m *spans) begin(o *Operands, lo, n int) (t Operands, at int) {
	t = *o
	if o.Noise.On {
		at = (o.First + lo) % group
	}
	t.First = o.First + lo - at
	for k := range operands {
		if b := o.of(k); b.Address != nil {
			t.of(k).Address = unsafe.Pointer(&m.tail[k])
			b.copy(t.of(k).at(at), b.at(lo), n)
		}
	}
	return t, at
}

// end copies the elements of begin back, except those of the gradient.
func (m *spans) end(o *Operands, lo, at, n int) {
	for k := range operands {
		if b := o.of(k); k != 1 && b.Address != nil {
			b.copy(b.at(lo), unsafe.Add(unsafe.Pointer(&m.tail[k]), at*b.Format.size()), n)
		}
	}
}

// copy copies n elements in the operand's format.
func (b *Operand) copy(to, from unsafe.Pointer, n int) {
	n *= b.Format.size()
	copy(unsafe.Slice((*byte)(to), n), unsafe.Slice((*byte)(from), n))
}
