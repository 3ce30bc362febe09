package fpstate

// Get returns the state of the current thread.
func Get() State { return State(fpcr()) }

// Set sets the state of the current thread.
func Set(s State) { setFPCR(uint64(s)) }

func fpcr() uint64

func setFPCR(x uint64)
