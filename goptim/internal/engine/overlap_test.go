package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestShared compares with every pair of ranges.
func TestShared(t *testing.T) {
	// n ranges of some bytes in a multiple of n*n bytes.
	random := rand.New(rand.NewPCG(1, 2))
	found := map[bool]int{}
	for round := range 600 {
		n := []int{1, 3, 40, 700}[round%4]
		r, all := new(Ranges), [][3]uint64{}
		for range n {
			base := []uint64{0x5555_0000_0000, 0x7fff_1000_0000}[random.IntN(2)]
			lo := base + random.Uint64N(uint64(n)*uint64(n)*[]uint64{2, 20, 80}[round%3])
			m := [3]uint64{lo, lo + random.Uint64N(9), random.Uint64N(2)}
			if m[2] != 0 {
				r.Write(uintptr(m[0]), int(m[1]-m[0]))
			} else {
				r.Read(uintptr(m[0]), int(m[1]-m[0]))
			}
			all = append(all, m)
		}
		expected := false
		for i, a := range all {
			for _, b := range all[:i] {
				expected = expected || (a[2]|b[2] != 0 && max(a[0], b[0]) < min(a[1], b[1]))
			}
		}
		found[expected]++
		assert.Equal(t, expected, r.Shared(), "round %d, %d ranges", round, n)
	}
	assert.Greater(t, min(found[true], found[false]), 50, found)
}

// TestOwnedRows checks that rows of separate allocations are apart, unless an address occurs twice. Without the flag, nothing is
// known of a row.
func TestOwnedRows(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{1, 2, 5, 300} {
		rows := make([]Row, n)
		for i, place := range random.Perm(n) {
			at := func(k int) uintptr { return 0x7fff_ffff_0000 + uintptr(64*(9*place+k)) }
			rows[i] = Row{N: 3, Param: at(0), Grad: at(1), Step: at(2), Types: Types{Flags: Owned}}
			rows[i].State = [States]uintptr{at(3), 0, at(5), at(6), at(7), at(8)}
		}
		var r Ranges
		assert.True(t, r.Apart(rows))
		last := &rows[n-1]
		for _, address := range []*uintptr{&last.Param, &last.Grad, &last.Step, &last.State[0], &last.State[5]} {
			own := *address
			for _, other := range []uintptr{rows[0].Param, rows[0].Grad, rows[0].State[5]} {
				*address = other
				assert.Equal(t, other == own, r.Apart(rows), "%d rows", n)
			}
			*address = own
		}
		last.Flags = 0
		assert.False(t, r.Apart(rows))
	}
}

func BenchmarkShared(b *testing.B) {
	for _, order := range []string{"ascending", "interleaved", "random", "owned"} {
		b.Run(fmt.Sprintf("1000 rows of 1024, %s", order), func(b *testing.B) {
			rows := make([]Row, 1000)
			var at []uintptr
			for i := range 4 * len(rows) {
				at = append(at, uintptr(0x7f12_3456_0000+i*4160))
			}
			if order == "random" || order == "owned" {
				rand.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
			}
			for i := range rows {
				of := at[4*i:]
				if order == "ascending" {
					of = []uintptr{at[i], at[1000+i], at[2000+i], at[3000+i]}
				}
				rows[i] = Row{N: 1024, Types: TypesOf(Float32, Float32), Param: of[0], Grad: of[1], State: [States]uintptr{of[2], of[3]}}
				rows[i].StateType = [States]DType{Float32, Float32}
				if order == "owned" {
					rows[i].Flags = Owned
				}
			}
			if order == "interleaved" {
				slices.Reverse(rows)
			}
			var r Ranges
			for b.Loop() {
				if r.Apart(rows) {
					continue
				}
				r.Reset()
				if r.AddRows(rows); r.Shared() {
					b.Fatal("shared")
				}
			}
		})
	}
}
