package heap

import "testing"

func TestGrowKeepsWhatIsEnough(t *testing.T) {
	s, err := Grow([]float32(nil), 1<<21)
	if err != nil || len(s) != 1<<21 {
		t.Fatalf("%d elements, %v", len(s), err)
	}
	again, err := Grow(s[:0], 1<<20)
	if err != nil || len(again) != 1<<20 || &again[0] != &s[0] {
		t.Fatalf("%d elements, %v", len(again), err)
	}
}
