package fpstate

// flags are the exception flags of MXCSR, which do not affect computations.
const flags = 0x3f

// Get returns the state of the current thread.
func Get() State { return State(mxcsr() &^ flags) }

// Set sets the state of the current thread.
func Set(s State) { setMXCSR(uint32(s)) }

func mxcsr() uint32

func setMXCSR(x uint32)
