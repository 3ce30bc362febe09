package fpstate

// flags are the bits of MXCSR that say what has happened so far. They do not change how a thread computes.
const flags = 0x3f

// Get returns the state of the current thread.
func Get() State { return State(mxcsr() &^ flags) }

// Set changes the state of the current thread.
func Set(s State) { setMXCSR(uint32(s)) }

func mxcsr() uint32

func setMXCSR(x uint32)
