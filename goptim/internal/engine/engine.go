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

// A Pass is what one optimizer does to its rows. Update works on one part of them; calls for disjoint parts run at the
// same time, in any order, and the result does not depend on how rows are split.
type Pass interface {
	Update(p Part)
}

// A Preparer is a Pass that changes memory of rows, as scalar states, at the first element of a row. Prepare does all of
// that before rows are updated in another order than their own. Without a call of Prepare they are updated in order.
type Preparer interface {
	Pass
	Prepare()
}

func prepare(p Pass) {
	if p, ok := p.(Preparer); ok {
		p.Prepare()
	}
}

// A Part is a stretch of rows laid end to end: from element Lo of row First up to element Hi of row Last.
type Part struct{ First, Lo, Last, Hi int }

// Of is which elements of a row, of n in all, are in the part.
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
	// alone is the number of elements below which waking a second thread costs more than it saves.
	alone = 1 << 19
	// minChunk keeps the cost of taking a chunk small beside its work.
	minChunk = 1 << 14
	// maxAlone bounds how long a kernel runs on a single thread until its goroutine can be stopped: a kernel has no place
	// for that, signals that would stop it anywhere are off in the extension, and Go's collector stops all goroutines.
	maxAlone = 1 << 22
	// chunksPerThread lets a thread that wakes late, or loses its core, leave the rest to the others.
	chunksPerThread = 32
)

// A Team calls work on as many as threads threads at the same time, one of them the caller's, and returns when every
// call has returned. A call is given its thread's number, from 0, so that a thread has the same elements at every step:
// they are in its caches, or in the memory of its socket. Negative numbers stand for threads without one.
type Team func(threads int, work func(thread int))

// Run applies p to every element of rows on the caller's thread and up to threads-1 others, and returns when all
// is done: on those of team, or on workers of its own if that is nil. Workers compute with the caller's rounding mode and
// treatment of subnormal numbers; a team does so by itself. A panic in p becomes an error.
func Run(p Pass, rows []Row, threads int, team Team) error {
	total := 0
	for i := range rows {
		total += int(rows[i].N)
	}
	if total == 0 {
		prepare(p)
		return nil
	}
	if threads < 2 || total < alone || !workers.mu.TryLock() {
		return runAlone(p, rows, total)
	}
	defer workers.mu.Unlock()
	return workers.run(p, rows, total, threads, team)
}

// Each calls do(i) for every i from 0 to n-1, on the caller's thread and up to threads-1 others, in order of their
// beginning, and returns when all have returned. A panic in do becomes an error.
func Each(n, threads int, team Team, do func(i int)) error {
	if threads < 2 || n < 2 || !workers.mu.TryLock() {
		return eachAlone(n, do)
	}
	defer workers.mu.Unlock()
	workers.job.each, workers.job.count, workers.job.shared = do, n, true
	return workers.start(min(threads, n), team)
}

func eachAlone(n int, do func(i int)) (err error) {
	defer recovered(&err)
	for i := range n {
		do(i)
	}
	return nil
}

func runAlone(p Pass, rows []Row, total int) (err error) {
	defer recovered(&err)
	if total <= maxAlone {
		last := len(rows) - 1
		p.Update(Part{Last: last, Hi: int(rows[last].N)})
		return nil
	}
	for first, lo := 0, 0; first < len(rows); {
		last, hi := reach(rows, first, lo)
		p.Update(Part{First: first, Lo: lo, Last: last, Hi: hi})
		if first, lo = last, hi; hi == int(rows[last].N) {
			first, lo = last+1, 0
		}
	}
	return nil
}

// reach is where a part ends that begins at element lo of row first and has maxAlone elements, if there are so many.
func reach(rows []Row, first, lo int) (last, hi int) {
	room := lo + maxAlone
	for last = first; last < len(rows)-1 && room > int(rows[last].N); last++ {
		room -= int(rows[last].N)
	}
	return last, min(room, int(rows[last].N))
}

// recovered turns a panic into an error with the place it came from, unless that is for want of memory.
func recovered(err *error) {
	if e := recover(); e != nil {
		if size, ok := e.(heap.Error); ok {
			*err = size
			return
		}
		*err = fmt.Errorf("panic in Go: %v\n%s", e, debug.Stack())
	}
}

// workers is the process's pool. One step has it at a time; a step that finds it taken runs alone.
var workers pool

type pool struct {
	mu    sync.Mutex
	bells []*event
	job   job
}

func (w *pool) run(p Pass, rows []Row, total, threads int, team Team) error {
	if w.job.plan(p, rows, total, threads) {
		return runAlone(p, rows, total)
	}
	prepare(p)
	return w.start(threads, team)
}

// start has threads work on the job.
func (w *pool) start(threads int, team Team) error {
	j := &w.job
	if team != nil {
		j.start(threads)
		team(threads, j.work)
		return j.wait()
	}
	threads = min(threads, runtime.GOMAXPROCS(0))
	for i := len(w.bells) + 1; i < threads; i++ {
		bell := new(event)
		w.bells = append(w.bells, bell)
		go w.serve(bell, i)
	}
	j.floats.Store(uint64(fpstate.Get()))
	j.start(threads)
	for _, bell := range w.bells[:threads-1] {
		bell.ring()
	}
	j.work(0)
	return j.wait()
}

// serve is a worker's life: it waits in the kernel, on a thread of its own, for there it wakes in a few
// microseconds where a goroutine behind a channel takes seventy.
func (w *pool) serve(bell *event, thread int) {
	runtime.LockOSThread()
	debug.SetPanicOnFault(true)
	own := fpstate.Get()
	for rung := uint32(0); ; {
		rung = bell.wait(rung)
		w.job.workAsCaller(thread)
		fpstate.Set(own)
	}
}

// A job is the work of one step, cut into chunks of the rows' elements laid end to end. Every thread has a share of
// them, one behind the other, and then takes what is left of the others'.
type job struct {
	pass   Pass
	rows   []Row
	each   func(i int) // what to do with a chunk, if not to update rows
	shared bool        // chunks have an order, and there is one share of all
	ends   []int       // ends[i] is where row i ends among all elements
	ranges Ranges
	chunk  int
	count  int
	floats atomic.Uint64 // the fpstate.State of the caller's thread, for workers
	shares [maxShares]share
	active atomic.Int64 // how many shares there are
	undone atomic.Int64
	done   event
	failed atomic.Pointer[error]
}

const maxShares = 256

// A share is the chunks from first up to end. Left counts down those to take. A worker that wakes after the end finds
// it below zero and touches nothing; what the chunks mean is written before left is set.
type share struct {
	left       atomic.Int64
	first, end int
	_          [5]int64 // a cache line of its own
}

// plan lays the rows out. It reports whether they must run in order on one thread, because two of them share memory.
func (j *job) plan(p Pass, rows []Row, total, threads int) (ordered bool) {
	j.ends = j.ends[:0]
	end := 0
	for i := range rows {
		end += int(rows[i].N)
		j.ends = append(j.ends, end)
	}
	if len(rows) > 1 {
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

// work takes chunks, of the thread's own share and then of the others', until none is left.
func (j *job) work(thread int) {
	shares := int(j.active.Load())
	thread = max(thread, 0)
	for i := range shares {
		j.empty(&j.shares[(thread+i)%shares], false)
	}
}

// workAsCaller is work with the caller's floating-point state, in which it leaves the thread.
func (j *job) workAsCaller(thread int) {
	shares := int(j.active.Load())
	for i := range shares {
		j.empty(&j.shares[(thread+i)%shares], true)
	}
}

// empty takes chunks of a share until none is left. The caller's state is known once a chunk is taken, as all of a job is.
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
			j.failed.CompareAndSwap(nil, &err)
		}
		if j.undone.Add(-1) == 0 {
			j.done.ring()
		}
	}
}

// update applies the pass to one chunk: parts of one row or several.
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

// spins is how often wait looks before it sleeps: about ten microseconds, the end of a chunk on another core.
const spins = 1 << 14

func (j *job) wait() error {
	for i := 0; j.undone.Load() != 0; i++ {
		if i < spins {
			continue
		}
		if heard := j.done.n.Load(); j.undone.Load() != 0 {
			j.done.wait(heard)
		}
	}
	j.pass, j.rows, j.each, j.shared = nil, nil, nil, false
	if err := j.failed.Load(); err != nil {
		return *err
	}
	return nil
}
