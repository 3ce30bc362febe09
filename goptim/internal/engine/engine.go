package engine

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/goptim/goptim/goptim/internal/fpstate"
	"github.com/goptim/goptim/goptim/internal/heap"
)

// A Pass updates the rows of one optimizer. Update processes one part of them. Calls for disjoint parts run concurrently and
// in any order, and the result does not depend on how rows are split.
type Pass interface {
	Update(p Part)
}

// A Preparer is a Pass that changes memory of rows, such as scalar states, at the first element of a row. Prepare makes these
// changes before rows are updated in a different order. If it reports false, or is not called, rows are updated in their order.
type Preparer interface {
	Pass
	Prepare() bool
}

func prepare(p Pass) bool {
	preparer, ok := p.(Preparer)
	return !ok || preparer.Prepare()
}

// A Part is a range of the concatenated rows: from element Lo of row First up to element Hi of row Last.
type Part struct{ First, Lo, Last, Hi int }

// Of returns the range of elements of a row, which has n elements, that the part contains.
func (p Part) Of(row, n int) (lo, hi int) {
	hi = n
	if row == p.First {
		lo = p.Lo
	}
	if row == p.Last {
		hi = p.Hi
	}
	return lo, hi
}

const (
	// minParallel is the smallest number of elements for two threads. Below it, waking a thread costs more than it saves.
	minParallel = 1 << 19
	// minChunk makes the cost of taking a chunk small compared with its work.
	minChunk = 1 << 14
	// maxSerial bounds how long a kernel on a single thread delays Go's garbage collector, which stops all goroutines.
	// A kernel has no preemption points, and preemption by signals is off in the extension.
	maxSerial = 1 << 22
	// chunksPerThread lets other threads take the work of a thread that wakes up late or loses its core.
	chunksPerThread = 32
)

// A Team calls work concurrently on up to the given number of threads, including the caller's, and returns when all calls have
// returned. A call gets the number of its thread, from 0, so that a thread gets the same elements in every step: they are in
// its caches, or in the memory of its socket. A negative number stands for an unnumbered thread.
type Team func(threads int, work func(thread int))

// Run applies p to every element of rows on the caller's thread and up to threads-1 others, and returns when it is done. The
// others are those of team, or workers of this package if team is nil. Workers use the caller's rounding mode and treatment
// of subnormal numbers; a team must do so itself. A panic in p becomes an error.
func Run(p Pass, rows []Row, threads int, team Team) error {
	total := 0
	for i := range rows {
		total += int(rows[i].N)
	}
	if total == 0 && (len(rows) == 0 || prepare(p)) {
		return nil
	}
	if threads < 2 || total < minParallel || !workers.mu.TryLock() {
		return runSerial(p, rows, total)
	}
	defer workers.mu.Unlock()
	return workers.run(p, rows, total, threads, team)
}

// Each calls do(i) for every i from 0 to n-1 on the caller's thread and up to threads-1 others, and returns when all calls have
// returned. The calls start in order. A panic in do becomes an error.
func Each(n, threads int, team Team, do func(i int)) error {
	if threads < 2 || n < 2 || !workers.mu.TryLock() {
		return eachSerial(n, do)
	}
	defer workers.mu.Unlock()
	workers.job.each, workers.job.count, workers.job.shared = do, n, true
	return workers.start(min(threads, n), team)
}

func eachSerial(n int, do func(i int)) (err error) {
	defer recovered(&err)
	for i := range n {
		do(i)
	}
	return nil
}

func runSerial(p Pass, rows []Row, total int) (err error) {
	defer recovered(&err)
	if total <= maxSerial {
		last := len(rows) - 1
		p.Update(Part{Last: last, Hi: int(rows[last].N)})
		return nil
	}
	for first, lo := 0, 0; first < len(rows); {
		last, hi := partEnd(rows, first, lo)
		p.Update(Part{First: first, Lo: lo, Last: last, Hi: hi})
		if first, lo = last, hi; hi == int(rows[last].N) {
			first, lo = last+1, 0
		}
	}
	return nil
}

// partEnd returns the end of a part that begins at element lo of row first and has up to maxSerial elements.
func partEnd(rows []Row, first, lo int) (last, hi int) {
	room := lo + maxSerial
	for last = first; last < len(rows)-1 && room > int(rows[last].N); last++ {
		room -= int(rows[last].N)
	}
	return last, min(room, int(rows[last].N))
}

// recovered turns a panic into an error with its stack trace, or without one if the system has no memory.
func recovered(err *error) {
	if e := recover(); e != nil {
		if size, ok := e.(heap.Error); ok {
			*err = size
			return
		}
		*err = fmt.Errorf("panic in Go: %v\n%s", e, debug.Stack())
	}
}

// workers is the pool of the process. One step uses it at a time; a concurrent step runs on its own thread.
var workers pool

type pool struct {
	mu      sync.Mutex
	wakeups []*event
	job     job
}

func (w *pool) run(p Pass, rows []Row, total, threads int, team Team) error {
	if w.job.plan(p, rows, total, threads) || !prepare(p) {
		return runSerial(p, rows, total)
	}
	return w.start(threads, team)
}

// start runs the job on the threads, and waits for its end.
func (w *pool) start(threads int, team Team) error {
	j := &w.job
	if team != nil {
		j.start(threads)
		team(threads, j.work)
		return j.wait()
	}
	threads = min(threads, runtime.GOMAXPROCS(0))
	for i := len(w.wakeups) + 1; i < threads; i++ {
		wakeup := new(event)
		w.wakeups = append(w.wakeups, wakeup)
		go w.serve(wakeup, i)
	}
	j.floats.Store(uint64(fpstate.Get()))
	j.start(threads)
	for _, wakeup := range w.wakeups[:threads-1] {
		wakeup.signal()
	}
	j.work(0)
	return j.wait()
}

// serve is the loop of a worker. It waits in the system kernel on its own thread, which wakes up in a few microseconds. A
// goroutine that receives from a channel takes seventy.
func (w *pool) serve(wakeup *event, thread int) {
	runtime.LockOSThread()
	debug.SetPanicOnFault(true)
	own := fpstate.Get()
	for seen := uint32(0); ; {
		seen = wakeup.wait(seen)
		w.job.workAsCaller(thread)
		fpstate.Set(own)
	}
}

// A job is the work of one step, divided into chunks of the rows' concatenated elements. Each thread has a contiguous share of
// the chunks, and then steals from the shares of other threads.
type job struct {
	pass   Pass
	rows   []Row
	each   func(i int) // processes a chunk instead of the pass, if not nil
	shared bool        // whether all chunks are in one share, so that they start in order
	ends   []int       // ends[i] is the end of row i in the concatenated elements
	ranges Ranges
	chunk  int
	count  int
	floats atomic.Uint64 // the fpstate.State of the caller's thread
	shares [maxShares]share
	active atomic.Int64 // the number of shares
	undone atomic.Int64
	done   event
	failed atomic.Pointer[error]
}

const maxShares = 256

// A share contains the chunks from first up to end. Left counts the remaining ones. A worker that wakes up late finds a negative
// count and does nothing. All other fields are written before left is set.
type share struct {
	left       atomic.Int64
	first, end int
	_          [5]int64 // fills a cache line
}

// plan divides the rows into chunks. It reports whether they must run in order on one thread because they share memory.
func (j *job) plan(p Pass, rows []Row, total, threads int) (ordered bool) {
	j.ends = j.ends[:0]
	end := 0
	for i := range rows {
		end += int(rows[i].N)
		j.ends = append(j.ends, end)
	}
	if len(rows) > 1 && !j.ranges.Apart(rows) {
		j.ranges.Reset()
		if j.ranges.AddRows(rows); j.ranges.Shared() {
			return true
		}
	}
	j.pass, j.rows = p, rows
	j.chunk = max(minChunk, (total/(threads*chunksPerThread)+63)&^63)
	j.count = (total + j.chunk - 1) / j.chunk
	return false
}

func (j *job) start(threads int) {
	shares := min(threads, maxShares)
	if j.shared {
		shares = 1
	}
	j.failed.Store(nil)
	j.undone.Store(int64(j.count))
	j.active.Store(int64(shares))
	for i := range shares {
		s := &j.shares[i]
		s.first, s.end = i*j.count/shares, (i+1)*j.count/shares
		s.left.Store(int64(s.end - s.first))
	}
}

// work processes chunks of the thread's share and then of the other shares until none is left.
func (j *job) work(thread int) {
	shares := int(j.active.Load())
	thread = max(thread, 0)
	for i := range shares {
		j.empty(&j.shares[(thread+i)%shares], false)
	}
}

// workAsCaller is like work, but sets the thread's floating-point state to the caller's.
func (j *job) workAsCaller(thread int) {
	shares := int(j.active.Load())
	for i := range shares {
		j.empty(&j.shares[(thread+i)%shares], true)
	}
}

// empty processes chunks of a share until none is left. The caller's state is valid after a chunk is taken, like all of the job.
func (j *job) empty(s *share, asCaller bool) {
	for {
		left := s.left.Add(-1)
		if left < 0 {
			return
		}
		if asCaller {
			fpstate.Set(fpstate.State(j.floats.Load()))
		}
		if err := j.update(s.end - 1 - int(left)); err != nil {
			failed := err // err itself would be allocated for every chunk
			j.failed.CompareAndSwap(nil, &failed)
		}
		if j.undone.Add(-1) == 0 {
			j.done.signal()
		}
	}
}

// update applies the pass to one chunk, which contains parts of one or more rows.
func (j *job) update(chunk int) (err error) {
	defer recovered(&err)
	if j.each != nil {
		j.each(chunk)
		return nil
	}
	at := chunk * j.chunk
	stop := min(at+j.chunk, j.ends[len(j.ends)-1])
	first, _ := slices.BinarySearch(j.ends, at+1)
	last, _ := slices.BinarySearch(j.ends, stop)
	j.pass.Update(Part{
		First: first, Lo: at - j.ends[first] + int(j.rows[first].N),
		Last: last, Hi: stop - j.ends[last] + int(j.rows[last].N),
	})
	return nil
}

// spins is the number of checks before wait sleeps. They take about ten microseconds, as long as the end of a chunk elsewhere.
const spins = 1 << 14

func (j *job) wait() error {
	for i := 0; j.undone.Load() != 0; i++ {
		if i < spins {
			continue
		}
		if seen := j.done.n.Load(); j.undone.Load() != 0 {
			j.done.wait(seen)
		}
	}
	j.pass, j.rows, j.each, j.shared = nil, nil, nil, false
	if err := j.failed.Load(); err != nil {
		return *err
	}
	return nil
}
