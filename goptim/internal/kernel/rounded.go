package kernel

import "unsafe"

// Load widens elements of 16 bits, of any number. ahead is the distance in bytes of what is prefetched meanwhile.
func Load(to []float32, from unsafe.Pointer, f Format, ahead int) {
	whole := len(to) &^ (group - 1)
	if whole > 0 {
		widen(to[:whole], from, f, ahead)
	}
	if rest := to[whole:]; len(rest) > 0 {
		var tail [group]uint16
		var wide [group]float32
		copy(tail[:], unsafe.Slice((*uint16)(unsafe.Add(from, 2*whole)), len(rest)))
		widen(wide[:], unsafe.Pointer(&tail), f, 0)
		copy(rest, wide[:])
	}
}

// A Stage is one of several operations on an average and a parameter of 16 bits, whose result is rounded before the next one, as
// torch rounds the result of every operation. To and From are 0 for the average and 1 for the parameter, which is not stored.
type Stage struct {
	Func     Func[Average, float32]
	To, From int
}

// ApplyStages applies stages to n elements of an average, the operand Param, and of a parameter, the operand Grad. The last one
// computes the average.
func ApplyStages(stages []Stage, h *Average, o Operands, n int) {
	m := spanPool.Get().(*spans)
	rounded := (*[span]uint16)(unsafe.Pointer(&m.block[2]))
	for lo := 0; lo < n; lo += span {
		count := min(span, n-lo)
		filled := (count + group - 1) &^ (group - 1) // the rest of a group has any numbers
		Load(m.block[0][:count], o.Param.at(lo), o.Param.Format, 0)
		Load(m.block[1][:count], o.Grad.at(lo), o.Grad.Format, 0)
		for i := range stages {
			s := &stages[i]
			to := m.block[s.To][:filled]
			s.Func(h, to, m.block[s.From][:filled], [4][]float32{})
			Leave()
			narrow(unsafe.Pointer(rounded), to, o.Param.Format)
			if i < len(stages)-1 {
				widen(to, unsafe.Pointer(rounded), o.Param.Format, 0)
			}
		}
		copy(unsafe.Slice((*uint16)(o.Param.at(lo)), count), rounded[:])
	}
	spanPool.Put(m)
}

// ScanNarrow is Scan for n elements of 16 bits, without storing the results of the operation.
func ScanNarrow[S any](f ScanFunc[S, float32], h *S, b Operand, n int) float32 {
	m := spanPool.Get().(*spans)
	var most [2]float32
	for lo := 0; lo < n; lo += span {
		x := m.block[0][:min(span, n-lo)]
		ahead := 0
		if n-lo >= 2*span {
			ahead = span * 2
		}
		Load(x, b.at(lo), b.Format, ahead)
		most[1] = Scan(f, h, x)
		most[0] = largest(most[:])
	}
	spanPool.Put(m)
	return most[0]
}
