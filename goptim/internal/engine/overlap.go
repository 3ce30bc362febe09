package engine

import (
	"cmp"
	"math/bits"
	"slices"
	"unsafe"
)

// Ranges are the memory that rows read and write. Rows may be stepped concurrently or in another order unless one of them writes
// memory of another one.
type Ranges struct {
	all, spare []memory
	seen       []uint32 // a hash table
}

// A memory is a range from lo up to hi>>2. The two lowest bits of hi are its use.
type memory struct{ lo, hi uint64 }

// The uses of memory. Scalar states change before all tensors, in the order of the rows. They may therefore overlap each other,
// but not a tensor.
const (
	read uint64 = iota
	written
	scalar
	uses = 3
)

// Apart reports whether rows are known to share no memory: all are Owned, and no address occurs twice. This takes less time than
// sorting.
func (r *Ranges) Apart(rows []Row) bool {
	const addresses = 3 + States
	n := 0
	for i := range rows {
		if rows[i].Flags&Owned == 0 {
			return false
		}
		for _, a := range (*[addresses]uintptr)(unsafe.Pointer(&rows[i].Step)) {
			if a != 0 {
				n++
			}
		}
	}
	shift := 32 - bits.Len(uint(2*n))
	r.seen = slices.Grow(r.seen[:0], 1<<(32-shift))[:1<<(32-shift)]
	seen := r.seen
	clear(seen)
	for i := range rows {
		for _, a := range (*[addresses]uintptr)(unsafe.Pointer(&rows[i].Step)) {
			if a == 0 {
				continue
			}
			// Addresses with the same key may be equal.
			key := uint32(a>>4) | 1 // 0 is a free place
			at := int(key * 0x9E3779B1 >> shift)
			for seen[at] != 0 {
				if seen[at] == key {
					return false
				}
				at = (at + 1) & (len(seen) - 1)
			}
			seen[at] = key
		}
	}
	return true
}

// Reset removes all ranges.
func (r *Ranges) Reset() { r.all = r.all[:0] }

// Read adds a range that is read.
func (r *Ranges) Read(address uintptr, bytes int) { r.add(address, bytes, read) }

// Write adds a range that is written.
func (r *Ranges) Write(address uintptr, bytes int) { r.add(address, bytes, written) }

// Scalar adds a scalar state.
func (r *Ranges) Scalar(address uintptr, bytes int) { r.add(address, bytes, scalar) }

func (r *Ranges) add(address uintptr, bytes int, use uint64) {
	if bytes > 0 {
		r.all = append(r.all, memory{uint64(address), (uint64(address)+uint64(bytes))<<2 | use})
	}
}

// AddRows adds the tensors and the scalar states of rows.
func (r *Ranges) AddRows(rows []Row) { r.addRows(rows, read) }

// AddClearedRows is AddRows for rows whose gradients are written too, or may not be read twice.
func (r *Ranges) AddClearedRows(rows []Row) { r.addRows(rows, written) }

func (r *Ranges) addRows(rows []Row, ofGrad uint64) {
	r.all = slices.Grow(r.all, len(rows)*(3+States))
	for i := range rows {
		row := &rows[i]
		if row.Step != 0 {
			r.Scalar(row.Step, row.StepType.Size())
		}
		if row.N != 0 {
			bytes := int(row.N) * row.ParamType.Size()
			r.Write(row.Param, bytes)
			if row.Grad != 0 {
				r.add(row.Grad, int(row.N)*row.GradType.Size(), ofGrad)
			}
		}
		for k, state := range row.State {
			switch {
			case state == 0:
			case row.Flags&ScalarState(k) != 0:
				r.Scalar(state, row.StateType[k].Size())
			default:
				r.Write(state, int(row.N)*row.StateType[k].Size())
			}
		}
	}
}

// Shared reports whether two ranges overlap, and one is a written tensor or exactly one is a scalar state.
func (r *Ranges) Shared() bool {
	r.sort()
	var ends [uses]uint64 // the largest end of the ranges so far, by use
	for _, m := range r.all {
		use := m.hi & 3
		switch use {
		case read:
			if m.lo < max(ends[written], ends[scalar]) {
				return true
			}
		case written:
			if m.lo < max(ends[read], ends[written], ends[scalar]) {
				return true
			}
		case scalar:
			if m.lo < max(ends[read], ends[written]) {
				return true
			}
		}
		ends[use] = max(ends[use], m.hi>>2)
	}
	return false
}

// sort sorts the ranges by their start. A radix sort of many ranges takes a third of the time of a comparison sort.
func (r *Ranges) sort() {
	const few, digit = 256, 11
	sorted, differ := true, uint64(0)
	for i := 1; i < len(r.all); i++ {
		sorted = sorted && r.all[i-1].lo <= r.all[i].lo
		differ |= r.all[i].lo ^ r.all[0].lo
	}
	if sorted {
		return
	}
	if len(r.all) < few {
		slices.SortFunc(r.all, func(a, b memory) int { return cmp.Compare(a.lo, b.lo) })
		return
	}
	r.spare = slices.Grow(r.spare[:0], len(r.all))[:len(r.all)]
	for shift := bits.TrailingZeros64(differ); differ>>shift != 0; shift += digit {
		if differ>>shift&(1<<digit-1) == 0 {
			continue
		}
		var ends [1 << digit]int32
		for i := range r.all {
			ends[r.all[i].lo>>shift&(1<<digit-1)]++
		}
		sum := int32(0)
		for d, n := range ends {
			ends[d] = sum
			sum += n
		}
		for _, m := range r.all {
			d := m.lo >> shift & (1<<digit - 1)
			r.spare[ends[d]] = m
			ends[d]++
		}
		r.all, r.spare = r.spare, r.all
	}
}
