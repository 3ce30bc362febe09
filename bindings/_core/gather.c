/* step_groups steps groups of parameters: it finds their tensors, writes a table of rows (goptim/table.go) and calls Go.
 *
 * A step has two phases. The first phase reads the groups' scalars and acquires references to every tensor of every
 * group. Python code may run in it (hash functions, descriptors, flags, finalizers, the garbage collector) and may
 * change anything that has not been read yet. The second phase reads addresses, checks them and passes them to Go. It
 * runs no Python code and creates no Python object. So every address is read after the last Python code before the call
 * of Go, and everything that a row refers to is referenced until Go has returned. Another thread can still change a
 * referenced tensor while Go writes, for example assign its data; this cannot be prevented.
 *
 * With many small tensors, finding their addresses dominates the step: about forty cache lines per parameter, which the
 * model's forward and backward passes have evicted to memory. So parameters are processed in blocks, and a block in
 * passes, each of which prefetches the lines that the next one reads. Fields are read at offsets probed for this torch
 * (python/goptim/_layout.py), because calling torch, even through its C interfaces, takes ten times as long as reading
 * the words. Only the fast path is here, with every check that keeps it safe. For any other parameter the answer is a
 * code, and nothing is written (python/goptim/_step.py).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "_cgo_export.h"

void goptim_enter(void); /* bindings/internal/openmp/team.c */

enum { NONE = 0, FLOAT32 = 1, FLOAT64 = 2, BFLOAT16 = 3, FLOAT16 = 4 }; /* engine.DType */
enum { SCALARS = 28, STATES = 6, TYPES = 4, BLOCK = 32 };
/* Structs that Go reads; a test compares their layouts with those in Go (layouts, below). */
typedef struct { /* engine.Row */
	int64_t n;
	uint64_t step, param, grad, state[STATES];
	uint8_t param_type, grad_type, step_type, unused;
	uint32_t flags;
	uint8_t state_type[STATES], padding[2];
	uint32_t rows, cols;
} Row;
typedef struct { /* goptim.sparseRow */
	uint64_t param, state[2];
	int64_t rows, width, dtype;
	uint64_t indices, values, order;
	int64_t n;
	double step;
	uint64_t extra;
	int64_t index, state_type, flags;
} SparseRow;
typedef struct { /* steps.Group */
	uint64_t next, table;
	int64_t rows, count;
	uint64_t around, seed;
	double scalars[SCALARS];
} Group;
typedef struct { /* steps.Around */
	int64_t flags, order;
	double max_norm, coefficient, weight, norm;
	int64_t done;
} Around;
enum { CLIP = 1 << 0, SCALED = 1 << 1, AVERAGE = 1 << 2, CLEAR = 1 << 3, WIDEN = 1 << 4 }; /* steps.Clip and so on */
enum { FIRST = 1 << 0, OWNED = 1 << 1, MASTER = 1 << 2, STOCHASTIC = 1 << 3, KAHAN = 1 << 4, FIRST_SCALAR = 1 << 8 }; /* engine.Flags */
enum { EXTRA = STATES - 2 }; /* engine.MasterState: the index of the master copy or the compensation of a parameter */

/* Who steps a parameter; the codes of _step.py. Of two codes, the larger one applies. */
enum { GO = 0, NO_GRADIENT = 1, TORCH = 2, PYTHON = 3 };
/* Shapes of states. FULL: the parameter's shape. SCALAR: one element. ROWS, COLS: one value per row or column of the
 * matrices in the last two dimensions. VECTOR: the parameter's shape if it has fewer than two dimensions. FLAT_ROWS,
 * FLAT_COLS: ROWS and COLS without the dimension of size 1. FLOAT: a Python float instead of a tensor. SLICES: a vector with
 * an element for every n-th one of the parameter, where n is the scalar that enables it. START: the same, or a zero
 * without dimensions, which is missing in the row. */
enum { FULL, SCALAR, ROWS, COLS, VECTOR, FLAT_ROWS, FLAT_COLS, FLOAT, SLICES, START };
enum { KEYS = 6 };

/* A Kind describes what a step reads from a group and from a parameter's state (steps.Kind). It owns its keys. */
typedef struct {
	int64_t number;
	int n_scalars, n_states, n_leave;
	struct {
		PyObject *key; /* NULL: always the default, never read from the group */
		int index, length; /* index in a sequence, or -1 for a scalar; length of the sequence */
		int flag, optional;
		double value; /* the default, if optional */
	} scalar[SCALARS];
	struct {
		PyObject *key; /* NULL: the tensor is passed with the row */
		int shape, flat; /* flat: ROWS or COLS without the dimension of size 1 */
		int when, above; /* index of the scalar that enables it, or -1; enabled by > 0 instead of != 0 */
		uint64_t narrow; /* the dtype for a 16-bit parameter, or 0 for that of the parameter */
		int late; /* it may be missing in a state that has others */
	} state[STATES];
	PyObject *step; /* key of the step, or NULL */
	int integer;    /* the step is a Python int */
	int real;       /* index of the state of the shape FLOAT, or -1 */
	int keeps;      /* the step or a state is a Python number, which is stored in the state after a step with dense gradients */
	int n_results;
	struct {
		PyObject *key; /* of a group's dict */
		int integer;   /* it is an int instead of a float */
	} result[KEYS]; /* what Go writes after the scalars of a group, which is stored in its dict */
	int paths;      /* the keys of path are read */
	int matrices;   /* some states have one value per row or column */
	int slices;     /* some states are SLICES or START */
	int narrow;     /* rows may have 16-bit elements */
	int stored;     /* groups may have a Storage */
	PyObject *leave[KEYS]; /* keys of flags: a group in which one is set falls back to torch */
	PyObject *path[2];     /* "foreach" and "fused", if narrow: where they select torch's arithmetic for 16 bits */
	PyObject *inner; /* a function that returns the tensors whose memory a tensor uses, or NULL */
	struct {
		int known;       /* whether there are steps with sparse gradients */
		int only;        /* all gradients are sparse */
		int64_t number;  /* of the kind of these steps, whose scalars and states are the same */
		int sums;        /* the gradients of a repeated row are added up before the step */
		uint32_t zeros;  /* bit i: scalar i must be zero */
	} sparse;
} Kind;

/* A Layout has the offsets of fields in torch's objects, in words of 8 bytes unless noted: the fields of _layout.Layout. */
typedef struct {
	int64_t impl;                                                /* in the Python object of a tensor: its TensorImpl */
	int64_t storage, autograd, version, ndim, sizes, strides, offset, numel, keys; /* in a TensorImpl */
	int64_t type;                                                /* in a TensorImpl, in units of 2 bytes */
	int64_t counter;                                             /* in the object that version points to, in units of 4 bytes */
	int64_t data, size;                                          /* in a StorageImpl */
	int64_t guard;                                               /* in a StorageImpl, in bytes: nonzero if read-only */
	int64_t context, deleter;                                    /* in a StorageImpl: what to free, and how */
	int64_t plain, float32, float64, bfloat16, float16, freed;   /* values of keys, type and deleter; freed 0: unknown */
	int64_t indices, values;                                     /* in a SparseTensorImpl: TensorImpls */
	int64_t coalesced;                                           /* in a SparseTensorImpl, in bytes */
	int64_t sparse, int64;                                       /* values of keys and type; sparse 0: the fields above are unknown */
} Layout;
enum { INLINE = 5 }; /* dimensions; with more, sizes and strides are allocated separately */

/* The functions that read a tensor are inlined, which saves a tenth of their time. */
#define INLINED static inline __attribute__((always_inline))

static char *word(const void *object, int64_t i) { return ((char **)object)[i]; }

/* Prefetches into the L2 cache, which allows more outstanding misses than L1. */
static void prefetch(const void *from, int64_t bytes)
{
	enum { LINE = 64 };
	const char *at = (const char *)((uintptr_t)from & ~(uintptr_t)(LINE - 1));
	for (; at < (const char *)from + bytes; at += LINE) __builtin_prefetch(at, 0, 2);
}

/* prefetch_impl prefetches the fields of a TensorImpl. */
static void prefetch_impl(const Layout *l, const char *impl)
{
	prefetch(impl + 8 * l->storage, 8 * (l->keys - l->storage + 1)); /* the first and the last field in every torch so far */
}

/* A View is a tensor in CPU memory. */
typedef struct {
	uint64_t at, dtype; /* both are 0 if the dtype is not supported */
	int64_t ndim, n;
	const int64_t *sizes, *strides; /* NULL if filled by view_in_python */
	int64_t last[2];                /* if filled by view_in_python: the last two sizes, of two or more dimensions */
	uint32_t *version;              /* NULL if there is no version counter, or if filled by view_in_python */
	int owned;                      /* whether it is at the start of memory that no other storage has */
} View;

static int is_narrow(uint64_t dtype) { return dtype >= BFLOAT16; }

static int64_t size_of(uint64_t dtype) { return dtype == FLOAT32 ? 4 : is_narrow(dtype) ? 2 : 8; }

/* bytes returns the size in bytes of a view whose elements fill one block of memory. */
static int64_t bytes(const View *v) { return v->n * size_of(v->dtype); }

/* view_impl reads a TensorImpl. It returns 1, or 0 if the tensor is on the slow path or its storage is too small.
 * Fast-path tensors have their own memory, without the negative bit and without hidden sharing; if vouched, the caller has
 * checked this. */
INLINED int view_impl(const Layout *l, const void *impl, int vouched, View *v)
{
	if (impl == NULL || (!vouched && (int64_t)word(impl, l->keys) != l->plain)) return 0;
	const char *storage = word(impl, l->storage);
	if (storage == NULL || storage[l->guard]) return 0;
	uint16_t type = ((const uint16_t *)impl)[l->type];
	v->dtype = type == l->float32    ? FLOAT32
	           : type == l->float64  ? FLOAT64
	           : type == l->bfloat16 ? BFLOAT16
	           : type == l->float16  ? FLOAT16
	                                 : 0;
	v->n = (int64_t)word(impl, l->numel);
	v->ndim = (int64_t)word(impl, l->ndim);
	v->sizes = (const int64_t *)impl + l->sizes;
	v->strides = (const int64_t *)impl + l->strides;
	if (v->ndim > INLINE) {
		v->sizes = (const int64_t *)word(impl, l->sizes);
		v->strides = v->sizes + v->ndim;
	}
	const char *version = word(impl, l->version);
	v->version = version == NULL ? NULL : (uint32_t *)version + l->counter;
	v->at = 0;
	if (v->dtype == 0) return 1;
	const char *data = word(storage, l->data);
	int64_t offset = size_of(v->dtype) * (int64_t)word(impl, l->offset);
	v->at = (uint64_t)(uintptr_t)data + offset;
	v->owned = offset == 0 && word(storage, l->context) == data && (int64_t)word(storage, l->deleter) == l->freed;
	return v->n == 0 || (data != NULL && offset + bytes(v) <= (int64_t)word(storage, l->size));
}

/* view is view_impl for the Python object of a tensor. */
INLINED int view(const Layout *l, PyObject *o, int vouched, View *v)
{
	return view_impl(l, word(o, l->impl), vouched, v);
}

/* dense reports whether v's elements fill one block of memory, each once, in any order of dimensions. */
INLINED int dense(const View *v)
{
	int64_t filled = 1;
	uint64_t seen = 0;
	if (v->n == 0) return 1;
	if (v->ndim > 64) return 0;
	for (int64_t found = 0; found < v->ndim; found++) {
		int64_t i = v->ndim - 1; /* the dimension whose stride is the size of the dimensions found before */
		while (i >= 0 && (seen >> i & 1 || (v->sizes[i] != 1 && v->strides[i] != filled))) i--;
		if (i < 0) return 0;
		seen |= (uint64_t)1 << i;
		filled *= v->sizes[i];
	}
	return 1;
}

/* contiguous reports whether v's elements fill one block of memory in the order of its dimensions. */
static int contiguous(const View *v)
{
	int64_t filled = 1;
	for (int64_t i = v->ndim - 1; i >= 0 && v->n > 0; i--) {
		if (v->sizes[i] != 1 && v->strides[i] != filled) return 0;
		filled *= v->sizes[i];
	}
	return 1;
}

/* same_layout_of returns the code for a parameter p with a gradient or state v of the same shape, which must be of a dtype. */
INLINED int same_layout_of(const View *p, const View *v, uint64_t dtype)
{
	if (v->dtype == 0 || p->ndim != v->ndim) return PYTHON;
	int code = v->dtype == dtype ? GO : TORCH;
	for (int64_t i = 0; i < p->ndim; i++) {
		if (p->sizes[i] != v->sizes[i]) return PYTHON;
		if (p->sizes[i] != 1 && p->strides[i] != v->strides[i] && p->n != 0) code = TORCH;
	}
	return code;
}

INLINED int same_layout(const View *p, const View *v) { return same_layout_of(p, v, p->dtype); }

/* reduced returns the code for a parameter p with a state v of its shape in which dimension -i has size 1, or is missing
 * if flat. */
static int reduced(const View *p, const View *v, int64_t i, int flat)
{
	if (v->dtype == 0 || p->ndim != v->ndim + flat) return PYTHON;
	for (int64_t k = 0, of_v = 0; k < p->ndim; k++) {
		if (k == p->ndim - i && flat) continue;
		if (v->sizes[of_v++] != (k == p->ndim - i ? 1 : p->sizes[k])) return PYTHON;
	}
	return v->dtype == p->dtype && contiguous(v) ? GO : TORCH;
}

/* slices returns the number of elements of a state that has one for every n-th one of a parameter; -1 if n is wrong. */
static int64_t slices(const View *p, double n)
{
	if (!(n >= 1) || n > INT32_MAX || n != (double)(int64_t)n) return -1;
	return (p->n + (int64_t)n - 1) / (int64_t)n;
}

/* zero reports whether the only element of a view is a zero without a sign. */
static int zero(const View *v)
{
	static const char zeros[8];
	return v->n == 1 && memcmp((const void *)(uintptr_t)v->at, zeros, (size_t)size_of(v->dtype)) == 0;
}

/* sliced returns the code for a parameter p with a state v of every n-th element. */
static int sliced(const View *p, const View *v, double n)
{
	if (v->dtype != p->dtype || v->ndim != 1 || slices(p, n) < 0 || v->n != slices(p, n)) return PYTHON;
	return contiguous(v) ? GO : TORCH;
}

static int max(int a, int b) { return a > b ? a : b; }

/* Ranges are the memory ranges of one row, for overlap checks: first the parameter, then its gradient. An empty tensor
 * has a range of one byte at an address that is never mapped. */
enum { RANGES = 3 + STATES };
typedef struct {
	int n, owned; /* owned: whether all views are */
	uint64_t at[RANGES], size[RANGES];
} Ranges;

INLINED void put(Ranges *s, const View *v)
{
	int64_t size = bytes(v);
	s->at[s->n] = size == 0 ? (uint64_t)(s->n + 1) << 56 : v->at;
	s->size[s->n++] = size == 0 ? 1 : size;
	s->owned &= v->owned;
}

INLINED int overlap_of(const Ranges *s, int n)
{
	int found = 0;
#pragma GCC unroll 9
	for (int i = 1; i < n; i++)
#pragma GCC unroll 9
		for (int j = 0; j < i; j++) found |= s->at[i] - s->at[j] + s->size[i] - 1 < s->size[i] + s->size[j] - 1;
	return found;
}

INLINED int overlap(const Ranges *s)
{
	switch (s->n) { /* with constant trip counts it takes a third of the time */
	case 2: return overlap_of(s, 2);
	case 3: return overlap_of(s, 3);
	case 4: return overlap_of(s, 4);
	case 5: return overlap_of(s, 5);
	case 6: return overlap_of(s, 6);
	default: return overlap_of(s, s->n);
	}
}

/* Indices of the tensors that belong to a parameter. */
enum { GRAD, STEP, STATE, TENSORS = STATE + STATES };
enum { VERSIONS = 2 + STATES }; /* the parameter, the step and the states: everything that Go writes */
/* Sizes to prefetch, in bytes: STORAGE from data to guard. DICT_KEYS is the word of a dict that points to its keys and values. */
enum { OBJECT = 24, DICT_KEYS = 4, DICT = 112, AUTOGRAD = 64, STORAGE = 44 };

/* A Storage is how a step stores a group's parameters of 16 bits, and the states of parameters of up to 32 bits: the keys
 * state_dtype, master_weights, rounding and seed (_storage.py). */
typedef struct {
	int state_type; /* NONE: that of the parameter */
	uint32_t flags; /* of rows of 16 bits: MASTER, STOCHASTIC, KAHAN or 0 */
	int stateful;   /* whether other parameters have a state */
} Storage;

/* A Given is a row that was passed as a tuple. */
typedef struct {
	PyObject *row; /* borrowed from the group */
	int in_python; /* whether the views below are from view_in_python */
	double step;   /* if the kind's step is an int */
	View param, view[TENSORS];
	PyObject *storage[1 + TENSORS]; /* the storages of the tensors, owned */
} Given;

/* A Found is one parameter of a group. It owns its tensors. */
typedef struct {
	PyObject *p;    /* borrowed from the group */
	PyObject *with; /* borrowed from the group: a tensor that was passed with the parameter, or NULL */
	Given *given;   /* NULL unless the row was passed as a tuple */
	const Storage *storage; /* of the group, or NULL */
	uint32_t index; /* of the parameter in the optimizer */
	double step;    /* if the kind's step is an int; in a list, the number that Go writes */
	double number;  /* the state of the shape FLOAT */
	double every;   /* of the states SLICES and START: the distance of their elements in the parameter */
	PyObject *of;   /* owned: the dict of the state, if the kind keeps numbers, or NULL */
	uint8_t code;
	uint8_t fresh;  /* it does not have a state yet */
	uint8_t slow;   /* slow path: some of its state is not a tensor, or a tensor subclass */
	uint8_t group_falls_back; /* to torch */
	uint8_t wide_group;       /* 16-bit parameters of the group fall back to torch */
	PyObject *tensor[]; /* Call.tensors of them; NULL for a missing one */
} Found;

/* In Found.code: a parameter with a sparse gradient that may be stepped in Go (prepare_sparse). */
enum { SPARSE = PYTHON + 1 };

/* A Sparse is a row with a sparse gradient. It owns its objects. */
typedef struct {
	Py_ssize_t param; /* index of the parameter */
	PyObject *state;  /* if the kind's step is an int: the dict that has it */
	PyObject *order;  /* a tensor of the positions that sort the indices, or NULL */
	uint64_t step, step_size; /* address and size in bytes of a step that is a tensor */
	uint32_t *version[VERSIONS];
	int versions;
} Sparse;

/* Flags of step_lists. */
enum {
	LIST = 1 << 0,      /* set in C */
	GRADIENTS = 1 << 1, /* the rows are the gradients of the tensors */
	LEAVES = 1 << 2,    /* one that requires a gradient falls back to torch */
	ONE_TYPE = 1 << 3,  /* all rows in Go have one dtype */
	FINITE = 1 << 4,    /* nothing is written unless the first result is finite */
	FILLED = 1 << 5,    /* one without elements falls back to torch */
	EACH = 1 << 6,      /* Go writes a number for each row, as state 0 */
	WIDE = 1 << 7,      /* one with 16-bit elements falls back to torch */
	NOT_FLOAT16 = 1 << 8, /* one with float16 elements falls back to torch */
	WIDENED = 1 << 9,   /* 16-bit rows count as float32 */
	NOISY = 1 << 10,    /* set in C: 16-bit rows are rounded with random numbers */
};

/* An Attribute is one that torch defines for its tensors. */
typedef struct {
	PyObject *name;
	PyObject *descriptor; /* owned; NULL if it is looked up in each tensor */
} Attribute;

/* A Call has the arguments and the memory of one call of step_groups. */
typedef struct {
	const Kind *kind;
	const Layout *layout;    /* NULL if this torch's layout is not known */
	Layout wide;             /* the layout of a kind that is not narrow: without 16-bit types */
	PyObject *plain[TYPES];  /* types of parameters; the first is torch.Tensor */
	PyObject *state;         /* the optimizer's state */
	Attribute grad, requires_grad;
	descrgetfunc get;        /* the getter of descriptors, or NULL */
	Py_ssize_t at;           /* position in state, after the parameter found last */
	PyObject *key[TENSORS];  /* keys of a parameter's state in the current group; NULL for one that is not read */
	int stateful;            /* whether any key is read */
	int tensors;             /* tensors that belong to a parameter: those of the kind, or TENSORS if there are storages */
	int members;             /* the number of tensors of the kind */
	Storage *storage;        /* of each group, or NULL if no group has one */
	PyObject *inner[2];      /* lists, or NULL: tensors in those of parameters that torch may step, and in their gradients */
	Py_ssize_t n, groups;
	char *found;             /* n of size_of_found bytes, which depends on the kind; below, n of each */
	size_t size_of_found;
	char *rows;
	uint32_t **version;      /* up to 2 + tensors per parameter */
	uint8_t *code;
	Group *group;
	Py_ssize_t *size;        /* number of parameters per group */
	PyObject *averages;      /* of each parameter, or None; NULL without averages */
	int clears;              /* whether Go clears the gradients */
	int list, pairs;         /* in step_lists: a list's flags, and whether a row has two tensors */
	Sparse *sparse;          /* one block of memory: n_sparse of these, and of the rows, and a group for each of group */
	SparseRow *sparse_row;
	Group *sparse_group;
	Py_ssize_t n_sparse;
	int unsure;              /* Python code has run since the order of repeated rows was examined */
} Call;

static Found *found_at(const Call *c, Py_ssize_t i) { return (Found *)(c->found + i * c->size_of_found); }

/* of_param returns the state of p, borrowed, or NULL. It first searches near the state found last, because the hash of p
 * is a Python function. */
static PyObject *of_param(Call *c, PyObject *p)
{
	PyObject *key, *value;
	Py_ssize_t at = c->at;
	for (int tries = 0; tries < 3 && PyDict_Next(c->state, &at, &key, &value); tries++)
		if (key == p) {
			c->at = at;
			return value;
		}
	return PyDict_GetItemWithError(c->state, p);
}

/* is_extra reports whether a tensor of a parameter is a master copy or a compensation, and not a state of the kind. */
INLINED int is_extra(const Kind *kind, int i) { return i == STATE + EXTRA && kind->stored; }

static int is_plain(const Call *c, PyObject *p)
{
	for (int i = 0; i < TYPES; i++)
		if ((PyObject *)Py_TYPE(p) == c->plain[i]) return 1;
	return 0;
}

/* find_descriptor finds torch's own descriptor of an attribute, if the first n plain types share it, so that it can be
 * called without a lookup per tensor. It returns 1, or -1 with an exception. */
static int find_descriptor(Call *c, Attribute *a, int n)
{
	for (int i = 0; i < n && c->plain[i] != NULL; i++) {
		PyObject *found = PyObject_GetAttr(c->plain[i], a->name);
		if (found == NULL) return -1;
		int same = (i == 0 || found == a->descriptor) && Py_IS_TYPE(found, &PyGetSetDescr_Type) &&
		           PyType_GetSlot((PyTypeObject *)c->plain[i], Py_tp_getattro) == (void *)PyObject_GenericGetAttr;
		if (i == 0 && same) a->descriptor = found;
		else Py_DECREF(found);
		if (!same) {
			Py_CLEAR(a->descriptor);
			return 1;
		}
	}
	c->get = (descrgetfunc)PyType_GetSlot(&PyGetSetDescr_Type, Py_tp_descr_get);
	return 1;
}

/* find_attributes prepares value for gradients, and in lists for requires_grad, with descriptors for at least few
 * tensors. It returns 1, or -1 with an exception. */
static int find_attributes(Call *c, Py_ssize_t few)
{
	static PyObject *grad, *requires_grad;
	if (grad == NULL && (grad = PyUnicode_InternFromString("grad")) == NULL) return -1;
	if (requires_grad == NULL && (requires_grad = PyUnicode_InternFromString("requires_grad")) == NULL) return -1;
	c->grad.name = grad;
	c->requires_grad.name = requires_grad;
	if (c->n < few || c->layout == NULL) return 1;
	if ((!c->list || c->list & GRADIENTS) && find_descriptor(c, &c->grad, TYPES) < 0) return -1;
	return c->list & LEAVES ? find_descriptor(c, &c->requires_grad, 1) : 1;
}

/* value returns a new reference to an attribute of t, or NULL with an exception. */
static PyObject *value(const Call *c, const Attribute *a, PyObject *t, int plain)
{
	return plain && a->descriptor != NULL ? c->get(a->descriptor, t, (PyObject *)Py_TYPE(t)) : PyObject_GetAttr(t, a->name);
}

/* find gets a parameter's gradient and, in of, the dict of its state. It returns 1, or -1 with an exception. */
static int find(Call *c, Found *f, PyObject **of)
{
	int plain = c->layout != NULL && is_plain(c, f->p);
	PyObject *g = f->tensor[GRAD] = value(c, &c->grad, f->p, plain);
	if (g == NULL) return -1;
	int simple = plain && (PyObject *)Py_TYPE(g) == c->plain[0];
	if (c->layout != NULL && c->stateful && (plain || g != Py_None)) { /* also without a gradient, so that c->at advances */
		*of = of_param(c, f->p);
		Py_XINCREF(*of);
		if (*of == NULL && PyErr_Occurred()) return -1;
		f->fresh = *of == NULL || !PyDict_Check(*of); /* set in find_states too */
		simple &= f->fresh || Py_IS_TYPE(*of, &PyDict_Type); /* a subclass may override the lookup */
		if (!f->fresh) prefetch(word(*of, DICT_KEYS), DICT);
	}
	int in_c = !c->kind->integer || c->kind->keeps || c->kind->sparse.only || f->with != NULL; /* otherwise Python reads the step */
	f->code = g == Py_None ? NO_GRADIENT : simple && in_c ? GO : PYTHON;
	if (c->kind->keeps && f->code == GO) {
		f->of = *of;
		Py_XINCREF(f->of);
	}
	return 1;
}

/* find_pair is find for a parameter that was passed with a tensor, which is used as the last state without a key. */
static int find_pair(Call *c, Found *f, PyObject **of)
{
	int place = -1;
	for (int k = 0; k < c->kind->n_states; k++)
		if (c->kind->state[k].key == NULL && !is_extra(c->kind, STATE + k)) place = k;
	if (place < 0) {
		PyErr_Format(PyExc_ValueError, "step_groups: a row of 2, expected %d", 2 + c->members);
		return -1;
	}
	f->with = PyTuple_GetItem(f->p, 1);
	f->p = PyTuple_GetItem(f->p, 0);
	if ((PyObject *)Py_TYPE(f->with) != c->plain[0]) {
		PyErr_Format(PyExc_TypeError, "step_groups: a %R with a parameter, expected a tensor", Py_TYPE(f->with));
		return -1;
	}
	if (find(c, f, of) < 0) return -1;
	Py_INCREF(f->with);
	f->tensor[STATE + place] = f->with;
	return 1;
}

/* leave_number leaves the decision to Python, because member i, expected to be a number, is another object or NULL. It may
 * be a tensor, whose memory keep_order compares. */
static void leave_number(Found *f, int i, PyObject *found)
{
	PyObject *before = f->tensor[i];
	Py_XINCREF(found);
	f->tensor[i] = found;
	Py_XDECREF(before);
	f->slow = 1;
	f->code = max(f->code, PYTHON);
}

/* find_step reads the step of a kind whose step is an int. If it is not an int, Python decides. */
static int find_step(const Call *c, Found *f, PyObject *of)
{
	PyObject *step = PyDict_GetItemWithError(of, c->kind->step);
	if (step == NULL && PyErr_Occurred()) return -1;
	if (step == NULL || !PyLong_CheckExact(step)) {
		leave_number(f, STEP, step);
		return 1;
	}
	f->step = PyLong_AsDouble(step);
	if (f->step == -1 && PyErr_Occurred()) return -1;
	if (f->step < 0) f->code = max(f->code, PYTHON);
	return 1;
}

/* find_numbers reads the numbers that the kind keeps. If they are of other types, Python decides. */
static int find_numbers(const Call *c, Found *f, PyObject *of)
{
	const Kind *kind = c->kind;
	if (kind->integer && find_step(c, f, of) < 0) return -1;
	if (kind->real < 0) return 1;
	PyObject *number = PyDict_GetItemWithError(of, kind->state[kind->real].key);
	if (number == NULL && PyErr_Occurred()) return -1;
	if (number != NULL && PyFloat_CheckExact(number)) f->number = PyFloat_AsDouble(number);
	else leave_number(f, STATE + kind->real, number);
	return 1;
}

/* find_states gets the tensors of a parameter's state. It returns 1, or -1 with an exception. */
static int find_states(const Call *c, Found *f, PyObject *of)
{
	if (f->code == NO_GRADIENT || f->fresh || of == NULL) return 1;
	if (c->kind->keeps && f->code != PYTHON && find_numbers(c, f, of) < 0) return -1;
	if (c->kind->integer && !c->kind->keeps && f->code != PYTHON && find_step(c, f, of) < 0) return -1;
	int own = !Py_IS_TYPE(of, &PyDict_Type) &&
	          PyType_GetSlot(Py_TYPE(of), Py_mp_subscript) != PyType_GetSlot(&PyDict_Type, Py_mp_subscript);
	Py_ssize_t after = 0; /* after the key found last: keys are usually in the order in which torch creates states */
	for (int i = STEP; i < c->tensors && c->stateful; i++) {
		if (c->key[i] == NULL) continue;
		PyObject *key, *t;
		Py_ssize_t at = after;
		if (own) {
			t = PyObject_GetItem(of, c->key[i]);
			if (t == NULL && !PyErr_ExceptionMatches(PyExc_Exception)) return -1;
			PyErr_Clear(); /* torch may not read this key */
		} else if (PyDict_Next(of, &at, &key, &t) && key == c->key[i]) {
			after = at;
			Py_INCREF(t);
		} else {
			t = PyDict_GetItemWithError(of, c->key[i]);
			if (t == NULL && PyErr_Occurred()) return -1;
			Py_XINCREF(t);
		}
		if (t == NULL) {
			if (PyDict_Size(of) == 0) f->fresh = 1;
			if (f->fresh) return 1;
			if (i == STEP ? c->kind->step == NULL : is_extra(c->kind, i)) continue; /* set_storage decides */
			if (i != STEP && c->kind->state[i - STATE].late) f->code = max(f->code, PYTHON);
			if (i == STEP || c->kind->state[i - STATE].shape <= SCALAR) f->code = max(f->code, TORCH); /* keeps PYTHON; see fill */
			continue;
		}
		f->tensor[i] = t;
		f->slow |= (PyObject *)Py_TYPE(t) != c->plain[0];
		prefetch(t, OBJECT);
	}
	return 1;
}

/* prefetch_params prefetches what find reads of the parameters a few indices after i and below n. */
static void prefetch_params(const Call *c, Py_ssize_t i, Py_ssize_t n)
{
	PyObject *p;
	const Layout *l = c->layout;
	if (i + 8 < n) prefetch(found_at(c, i + 8)->p, OBJECT);
	if (i + 6 < n && is_plain(c, p = found_at(c, i + 6)->p)) prefetch_impl(l, word(p, l->impl));
	if (i + 3 < n && is_plain(c, p = found_at(c, i + 3)->p) && word(p, l->impl) != NULL)
		prefetch(word(word(p, l->impl), l->autograd), AUTOGRAD);
}

/* int_of calls a method of a tensor or storage that returns an int. It returns -1 with an exception. */
static int64_t int_of(PyObject *t, const char *what)
{
	PyObject *answer = PyObject_CallMethod(t, what, NULL);
	if (answer == NULL) return -1;
	int64_t n = PyLong_AsLongLong(answer);
	Py_DECREF(answer);
	return n;
}

/* narrow_type returns the dtype of a tensor with elements of 16 bits, 0 if it is not supported, or -1 with an exception. */
static int narrow_type(PyObject *t)
{
	PyObject *dtype = PyObject_GetAttrString(t, "dtype"), *name = dtype == NULL ? NULL : PyObject_Str(dtype);
	int found = name == NULL                                                        ? -1
	            : PyUnicode_CompareWithASCIIString(name, "torch.bfloat16") == 0 ? BFLOAT16
	            : PyUnicode_CompareWithASCIIString(name, "torch.float16") == 0  ? FLOAT16
	                                                                            : 0;
	Py_XDECREF(dtype);
	Py_XDECREF(name);
	return found;
}

/* view_in_python is view through torch's Python API, for a tensor of a floating-point type. It returns 1, or -1 with an
 * exception. The address is in the storage that it references, so it stays valid if the tensor changes. */
static int view_in_python(PyObject *t, int narrow, View *v, PyObject **storage)
{
	if (int_of(t, "data_ptr") < 0 && PyErr_Occurred()) return -1; /* this materializes copy-on-write memory */
	*storage = PyObject_CallMethod(t, "untyped_storage", NULL);
	if (*storage == NULL) return -1;
	int64_t size = int_of(t, "element_size"), offset = int_of(t, "storage_offset");
	v->n = int_of(t, "numel");
	v->ndim = int_of(t, "dim");
	for (int i = 0; i < 2 && v->ndim >= 2 && !PyErr_Occurred(); i++) {
		PyObject *x = PyObject_CallMethod(t, "size", "i", i - 2);
		v->last[i] = x == NULL ? -1 : PyLong_AsLongLong(x);
		Py_XDECREF(x);
	}
	int64_t has = int_of(*storage, "nbytes"), at = int_of(*storage, "data_ptr");
	int of_16_bits = narrow && size == 2 ? narrow_type(t) : 0;
	if (PyErr_Occurred()) return -1;
	v->dtype = size == 4 ? FLOAT32 : size == 8 ? FLOAT64 : of_16_bits;
	if (v->n < 0 || (v->n > 0 && (offset + v->n) * size > has)) v->dtype = 0; /* it has changed since Python checked it */
	v->at = (uint64_t)at + offset * size;
	return 1;
}

/* read_tuple reads a row that was passed as a tuple. It returns 1, or -1 with an exception. */
static int read_tuple(const Call *c, Found *f)
{
	PyObject *row = f->p;
	Py_ssize_t members = PyTuple_Size(row);
	int more = c->storage != NULL && members == 4 + c->members;
	if (members != 2 + c->members && !more) {
		PyErr_Format(PyExc_ValueError, "step_groups: a row of %zd, expected %d", members, 2 + c->members);
		return -1;
	}
	if (more) {
		f->index = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GetItem(row, members - 1));
		if (PyErr_Occurred()) return -1;
	}
	f->code = GO;
	if ((f->given = calloc(1, sizeof *f->given)) == NULL) {
		PyErr_NoMemory();
		return -1;
	}
	f->given->row = row;
	f->given->in_python = c->layout == NULL;
	for (int i = -1; i < c->tensors; i++) {
		int extra = is_extra(c->kind, i);
		if (extra ? !more : i >= c->members) continue;
		PyObject *t = PyTuple_GetItem(row, extra ? members - 2 : i + 1);
		if (i == STEP && c->kind->keeps && PyDict_Check(t)) { /* the state; it keeps a step too that is a tensor */
			f->of = t;
			Py_INCREF(t);
			if (find_numbers(c, f, t) < 0) return -1;
			if (c->kind->integer) continue;
			t = PyDict_GetItemWithError(f->of, c->kind->step);
			if (t == NULL) {
				if (!PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, c->kind->step);
				return -1;
			}
		}
		if (i == STEP && c->kind->integer) {
			if (!PyLong_Check(t)) {
				PyErr_Format(PyExc_TypeError, "step_groups: step %R, expected an int", t);
				return -1;
			}
			f->given->step = PyLong_AsDouble(t);
			if (f->given->step == -1 && PyErr_Occurred()) return -1;
			continue;
		}
		if (t == Py_None && i > GRAD) continue;
		if (!PyObject_TypeCheck(t, (PyTypeObject *)c->plain[0])) {
			PyErr_Format(PyExc_TypeError, "step_groups: a %R in a row, expected a tensor", Py_TYPE(t));
			return -1;
		}
		if (i < 0) {
			f->p = t;
		} else {
			Py_INCREF(t);
			f->tensor[i] = t;
		}
		if (f->given->in_python) {
			View *v = i < 0 ? &f->given->param : &f->given->view[i];
			if (view_in_python(t, c->kind->narrow, v, &f->given->storage[i + 1]) < 0) return -1;
		} else {
			const char *impl = word(t, c->layout->impl), *storage = impl == NULL ? NULL : word(impl, c->layout->storage);
			if (storage != NULL && storage[c->layout->guard] && int_of(t, "data_ptr") < 0 && PyErr_Occurred()) return -1;
		}
	}
	return 1;
}

/* number_of reads a number. It returns 1; 0 if it is not a float or int that torch uses unconverted; -1 with an exception. */
static int number_of(PyObject *x, double *to)
{
	if (!PyFloat_Check(x) && !PyLong_Check(x)) return 0; /* _numbers.py handles other types */
	if (PyLong_Check(x)) { /* torch's operations raise for larger ones, Python's do not */
		int beyond;
		PyLong_AsLongLongAndOverflow(x, &beyond);
		if (beyond) return 0;
	}
	*to = PyFloat_AsDouble(x);
	return *to == -1 && PyErr_Occurred() ? -1 : 1;
}

/* element_of reads the number at an index of a sequence that must have the given length. It returns what number_of does. */
static int element_of(PyObject *sequence, int index, int length, double *to)
{
	PyObject *x;
	if (PyTuple_Check(sequence) && PyTuple_Size(sequence) == length) x = PyTuple_GetItem(sequence, index);
	else if (PyList_Check(sequence) && PyList_Size(sequence) == length) x = PyList_GetItem(sequence, index);
	else return 0;
	if (x == NULL) return -1;
	Py_INCREF(x);
	int ok = number_of(x, to);
	Py_DECREF(x);
	return ok;
}

/* is_wide reports whether torch's own arithmetic steps the 16-bit parameters of a group: with foreach=True, and with both
 * foreach=False and fused=False. It returns -1 with an exception. It may run Python code. */
static int is_wide(const Kind *kind, PyObject *dict)
{
	int set[2] = {-1, -1}; /* -1 for None or missing */
	for (int i = 0; i < 2 && kind->narrow && kind->paths; i++) {
		PyObject *x = PyDict_GetItemWithError(dict, kind->path[i]);
		if (x == NULL && PyErr_Occurred()) return -1;
		if (x == NULL || x == Py_None) continue;
		Py_INCREF(x);
		set[i] = PyObject_IsTrue(x);
		Py_DECREF(x);
		if (set[i] < 0) return -1;
	}
	return set[0] == 1 || (set[0] == 0 && set[1] == 0);
}

/* pack writes a group's scalars: those in its dict, then the extra ones. It returns 1; 0 if one of them is not a number or
 * the group falls back to torch; -1 with an exception. Flags and numbers may run Python code. */
static int pack(const Kind *kind, PyObject *dict, PyObject *extra, Group *group)
{
	int ok = 1, n = kind->n_scalars;
	for (int i = 0; i < kind->n_leave; i++) {
		PyObject *flag = PyDict_GetItemWithError(dict, kind->leave[i]);
		if (flag == NULL && PyErr_Occurred()) return -1;
		if (flag == NULL || flag == Py_False) continue;
		Py_INCREF(flag);
		ok = PyObject_IsTrue(flag);
		Py_DECREF(flag);
		if (ok) return ok < 0 ? -1 : 0;
	}
	PyObject *x = NULL;
	ok = 1;
	for (int i = 0; i < n && ok > 0; i++) {
		double *to = &group->scalars[i];
		if (kind->scalar[i].index <= 0) { /* otherwise x is the sequence of the element before */
			Py_CLEAR(x);
			if (kind->scalar[i].key != NULL) x = PyDict_GetItemWithError(dict, kind->scalar[i].key);
			Py_XINCREF(x);
		}
		if (x == NULL) {
			*to = kind->scalar[i].value;
			if (PyErr_Occurred()) {
				ok = -1;
			} else if (!kind->scalar[i].optional) {
				PyErr_SetObject(PyExc_KeyError, kind->scalar[i].key);
				ok = -1;
			}
		} else if (kind->scalar[i].flag) {
			int set = x == Py_False ? 0 : PyObject_IsTrue(x);
			*to = set;
			if (set < 0) ok = -1;
		} else if (kind->scalar[i].index >= 0) {
			ok = element_of(x, kind->scalar[i].index, kind->scalar[i].length, to);
		} else {
			ok = number_of(x, to);
		}
	}
	Py_XDECREF(x);
	group->count = n + PyTuple_Size(extra);
	if (group->count > SCALARS) {
		PyErr_Format(PyExc_ValueError, "step_groups: %lld scalars, expected up to %d", (long long)group->count, SCALARS);
		return -1;
	}
	for (Py_ssize_t i = n; i < group->count && ok > 0; i++) ok = number_of(PyTuple_GetItem(extra, i - n), &group->scalars[i]);
	return ok;
}

/* The keys of a group that a Storage is read from, and of the states that it adds. */
enum { STATE_DTYPE, MASTER_WEIGHTS, ROUNDING, SEED, STORAGE_KEYS };
static PyObject *storage_key[STORAGE_KEYS], *master_key, *compensation_key, *step_key, *storage_dtype[2];

/* find_storage_keys returns 1, or -1 with an exception. */
static int find_storage_keys(void)
{
	static const char *const names[] = {"state_dtype", "master_weights", "rounding", "seed"};
	if (step_key != NULL) return 1;
	PyObject *torch = PyImport_ImportModule("torch");
	for (int i = 0; i < 2 && torch != NULL; i++)
		if (storage_dtype[i] == NULL && (storage_dtype[i] = PyObject_GetAttrString(torch, i == 0 ? "float32" : "bfloat16")) == NULL) break;
	Py_XDECREF(torch);
	if (storage_dtype[1] == NULL) return -1;
	for (int i = 0; i < STORAGE_KEYS; i++)
		if (storage_key[i] == NULL && (storage_key[i] = PyUnicode_InternFromString(names[i])) == NULL) return -1;
	if (master_key == NULL && (master_key = PyUnicode_InternFromString("master_param")) == NULL) return -1;
	if (compensation_key == NULL && (compensation_key = PyUnicode_InternFromString("compensation")) == NULL) return -1;
	return (step_key = PyUnicode_InternFromString("step")) == NULL ? -1 : 1;
}

/* has_storage reports whether a group of a kind has a Storage. It returns -1 with an exception. */
static int has_storage(const Kind *kind, PyObject *dict)
{
	if (!kind->stored) return 0;
	if (find_storage_keys() < 0) return -1;
	for (int i = 0; i < STORAGE_KEYS; i++) {
		PyObject *x = PyDict_GetItemWithError(dict, storage_key[i]);
		if (x == NULL && PyErr_Occurred()) return -1;
		if (x != NULL && x != Py_None) return 1;
	}
	return 0;
}

/* read_storage reads the Storage of a group that has one. It returns 1; 0 if it has no effect; -1 with an exception. */
static int read_storage(PyObject *dict, Py_ssize_t number, Storage *to, Group *group)
{
	PyObject *x[STORAGE_KEYS];
	for (int i = 0; i < STORAGE_KEYS; i++) {
		x[i] = PyDict_GetItemWithError(dict, storage_key[i]);
		if (x[i] == NULL && PyErr_Occurred()) return -1;
		if (x[i] == Py_None) x[i] = NULL;
	}
	*to = (Storage){0};
	if (x[STATE_DTYPE] != NULL) {
		to->state_type = x[STATE_DTYPE] == storage_dtype[0] ? FLOAT32 : x[STATE_DTYPE] == storage_dtype[1] ? BFLOAT16 : NONE;
		if (to->state_type == NONE) {
			PyErr_Format(PyExc_ValueError, "group %zd: state_dtype %R, expected torch.float32 or torch.bfloat16", number, x[STATE_DTYPE]);
			return -1;
		}
	}
	if (x[MASTER_WEIGHTS] != NULL && !PyBool_Check(x[MASTER_WEIGHTS])) {
		PyErr_Format(PyExc_ValueError, "group %zd: master_weights %R, expected True or False", number, x[MASTER_WEIGHTS]);
		return -1;
	}
	if (x[MASTER_WEIGHTS] == Py_True) to->flags = MASTER;
	if (x[ROUNDING] != NULL) {
		int text = PyUnicode_Check(x[ROUNDING]), nearest = text && PyUnicode_CompareWithASCIIString(x[ROUNDING], "nearest") == 0;
		uint32_t flag = !text                                                                        ? 0
		                : PyUnicode_CompareWithASCIIString(x[ROUNDING], "stochastic") == 0 ? STOCHASTIC
		                : PyUnicode_CompareWithASCIIString(x[ROUNDING], "kahan") == 0      ? KAHAN
		                                                                                   : 0;
		if (!nearest && flag == 0) {
			PyErr_Format(PyExc_ValueError, "group %zd: rounding %R, expected 'nearest', 'stochastic' or 'kahan'", number, x[ROUNDING]);
			return -1;
		}
		if (flag != 0 && to->flags != 0) {
			PyErr_Format(PyExc_ValueError, "group %zd: rounding %R with master_weights, expected 'nearest'", number, x[ROUNDING]);
			return -1;
		}
		to->flags |= flag;
	}
	if (to->flags == STOCHASTIC && x[SEED] != NULL) {
		group->seed = PyLong_Check(x[SEED]) ? PyLong_AsUnsignedLongLong(x[SEED]) : (PyErr_SetNone(PyExc_TypeError), 0);
		if (PyErr_Occurred()) {
			PyErr_Clear();
			PyErr_Format(PyExc_ValueError, "group %zd: seed %R, expected an int from 0 to 2**64 - 1", number, x[SEED]);
			return -1;
		}
	}
	return to->flags != 0 || to->state_type != NONE;
}

/* choose_keys sets the keys to read from the states of a group's parameters: all keys if the scalars were not read. */
static void choose_keys(Call *c, const Group *group, int packed)
{
	memset(c->key, 0, sizeof c->key);
	c->key[STEP] = c->kind->integer ? NULL : c->kind->step;
	c->stateful = c->key[STEP] != NULL;
	for (int k = 0; k < c->kind->n_states; k++) {
		int when = c->kind->state[k].when;
		double x = when < 0 || !packed ? 1 : group->scalars[when];
		if (c->kind->state[k].above ? !(x > 0) : x == 0) continue;
		if (c->kind->state[k].shape == FLOAT) { /* find_numbers reads it */
			c->stateful = 1;
			continue;
		}
		c->key[STATE + k] = c->kind->state[k].key;
		c->stateful |= c->key[STATE + k] != NULL;
	}
}

/* choose_storage_keys adds the keys of the states of a Storage. */
static void choose_storage_keys(Call *c, Storage *s)
{
	s->stateful = c->stateful;
	if (s->flags & STOCHASTIC && c->key[STEP] == NULL && !c->kind->integer) c->key[STEP] = step_key;
	if (s->flags & MASTER) c->key[STATE + EXTRA] = master_key;
	if (s->flags & KAHAN) c->key[STATE + EXTRA] = compensation_key;
	c->stateful |= s->flags != 0;
}

/* collect acquires references to everything that the rows of a group's parameters can refer to. It returns 1, or -1 with
 * an exception. first is the index of the group's first parameter among all parameters. */
static int collect(Call *c, PyObject *params, Py_ssize_t first, const Storage *storage)
{
	Py_ssize_t all = first + PyTuple_Size(params);
	for (Py_ssize_t i = first; i < all; i++) found_at(c, i)->p = PyTuple_GetItem(params, i - first);
	for (Py_ssize_t i = first; i < all && storage != NULL; i++) {
		Found *f = found_at(c, i);
		f->storage = storage;
		f->index = (uint32_t)i;
		Py_ssize_t members = PyTuple_CheckExact(f->p) ? PyTuple_Size(f->p) : 0;
		if ((members != 2 && members != 3) || !PyLong_CheckExact(PyTuple_GetItem(f->p, members - 1))) continue;
		f->index = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GetItem(f->p, members - 1));
		if (PyErr_Occurred()) return -1;
		if (members == 2) f->p = PyTuple_GetItem(f->p, 0);
	}
	for (Py_ssize_t start = first; start < all; start += BLOCK) {
		PyObject *of[BLOCK] = {NULL};
		Py_ssize_t end = start + BLOCK < all ? start + BLOCK : all;
		int ok = 1;
		for (Py_ssize_t i = start; ok > 0 && i < end; i++) {
			Found *f = found_at(c, i);
			if (c->layout != NULL) prefetch_params(c, i, all);
			PyObject **state = &of[i - start];
			int members = PyTuple_CheckExact(f->p) ? (int)PyTuple_Size(f->p) : 0;
			int with = members == 2 || (members == 3 && storage != NULL); /* a tensor, and then maybe an index */
			ok = members == 0 ? find(c, f, state) : with ? find_pair(c, f, state) : read_tuple(c, f);
		}
		for (Py_ssize_t i = start; ok > 0 && i < end; i++) {
			Found *f = found_at(c, i);
			if (f->given == NULL) ok = find_states(c, f, of[i - start]);
		}
		for (Py_ssize_t i = 0; i < BLOCK; i++) Py_XDECREF(of[i]);
		if (ok < 0) return -1;
	}
	return 1;
}

/* scalar_state reads a scalar state. It returns a code. */
INLINED int scalar_state(const Call *c, PyObject *o, View *v)
{
	if ((PyObject *)Py_TYPE(o) != c->plain[0]) return TORCH;
	if (!view(c->layout, o, 0, v)) return PYTHON;
	if (v->ndim != 0 || v->dtype == 0) return TORCH;
	prefetch((const void *)(uintptr_t)v->at, 1);
	return GO;
}

/* state_tensor reads a state tensor that is not scalar. It returns a code; the caller checks the shape and dtype. */
INLINED int state_tensor(const Call *c, PyObject *o, View *v)
{
	if ((PyObject *)Py_TYPE(o) != c->plain[0]) /* Python checks the shape of a subclass */
		return PyObject_TypeCheck(o, (PyTypeObject *)c->plain[0]) ? PYTHON : TORCH;
	return view(c->layout, o, 0, v) ? GO : PYTHON;
}

/* applies reports whether a parameter with ndim dimensions has a state of a shape. */
static int applies(int shape, int64_t ndim) { return shape <= SCALAR || (shape == VECTOR) == (ndim < 2); }

/* state_type returns the dtype of state k, a tensor, of a parameter. */
INLINED uint64_t state_type(const Found *f, const Kind *kind, int k, const View *p)
{
	int stored = kind->state[k].key != NULL && f->storage != NULL && f->storage->state_type != NONE && p->dtype != FLOAT64;
	if (stored) return (uint64_t)f->storage->state_type;
	return kind->state[k].narrow != 0 && is_narrow(p->dtype) ? kind->state[k].narrow : p->dtype;
}

/* fits returns the code for a parameter p with v as state k, for a kind with matrices. */
static int fits(const Found *f, const Kind *kind, int k, const View *p, const View *v)
{
	View like = *p;
	int flat = kind->state[k].flat;
	like.dtype = state_type(f, kind, k, p);
	if (like.dtype != v->dtype && kind->state[k].narrow != 0 && is_narrow(v->dtype)) return PYTHON; /* of load_state_dict */
	if (kind->state[k].shape == ROWS) return reduced(&like, v, 1, flat);
	return kind->state[k].shape == COLS ? reduced(&like, v, 2, flat) : same_layout(&like, v);
}

static int64_t last_size(const View *v, int i) { return v->sizes == NULL ? v->last[i] : v->sizes[v->ndim - 2 + i]; }

/* set_matrices writes the shape of a parameter's matrices. It returns 1, or 0 if a size exceeds the fields of Row. */
static int set_matrices(Row *row, const View *p)
{
	int64_t rows = last_size(p, 0), cols = last_size(p, 1);
	if (rows > INT32_MAX || cols > INT32_MAX) return 0;
	row->rows = (uint32_t)rows;
	row->cols = (uint32_t)cols;
	return 1;
}

/* extra_type returns the type of the master copy or the compensation of a parameter, or NONE. */
static uint64_t extra_type(const Found *f, const View *p)
{
	if (f->storage == NULL || !is_narrow(p->dtype)) return NONE;
	return f->storage->flags & MASTER ? FLOAT32 : f->storage->flags & KAHAN ? p->dtype : NONE;
}

/* is_fresh reports whether a parameter needs a state and does not have one. A Storage may add states to those of 16 bits alone. */
static int is_fresh(const Found *f, const View *p)
{
	return f->fresh && !(f->storage != NULL && !f->storage->stateful && !is_narrow(p->dtype));
}

/* set_storage writes what a Storage adds to a row of 16 bits. It returns 1, or 0 if a state is missing. */
static int set_storage(const Found *f, const View *p, int matrices, Row *row)
{
	if (f->storage == NULL || !is_narrow(p->dtype)) return 1;
	row->flags |= f->storage->flags;
	if (f->storage->flags & STOCHASTIC && matrices) row->state[EXTRA] = f->index;
	else if (f->storage->flags & STOCHASTIC) row->rows = f->index;
	if (f->storage->flags & STOCHASTIC && row->step == 0) return 0;
	return extra_type(f, p) == NONE || f->tensor[STATE + EXTRA] != NULL;
}

/* set_number writes the address of the state of the shape FLOAT. */
static void set_number(const Kind *kind, const Found *f, Row *row)
{
	row->state[kind->real] = (uint64_t)(uintptr_t)&f->number;
	row->state_type[kind->real] = FLOAT64;
	row->flags |= (uint32_t)FIRST_SCALAR << kind->real;
}

/* fill_of is fill for a kind with n_states states. */
INLINED int fill_of(const Call *c, const Found *f, Row *row, uint32_t ***version, Ranges *memory, int n_states, int matrices)
{
	View param, v;
	const Kind *kind = c->kind;
	uint32_t **at = *version;
	int code = f->code, found;
	if (!view(c->layout, f->p, 0, &param)) return PYTHON;
	if (param.dtype == 0 || !dense(&param) || (f->wide_group && is_narrow(param.dtype))) return TORCH;
	if (matrices && (param.n == 0 || !contiguous(&param))) return TORCH;
	if (kind->slices && !contiguous(&param)) return TORCH;
	if (is_fresh(f, &param) || kind->sparse.only || !view(c->layout, f->tensor[GRAD], 0, &v)) return PYTHON;
	code = max(code, same_layout(&param, &v));
	*row = (Row){.n = param.n, .param = param.at, .grad = v.at, .param_type = param.dtype, .grad_type = v.dtype};
	if (matrices && param.ndim >= 2 && !set_matrices(row, &param)) return TORCH;
	*at++ = param.version;
	memory->n = 0;
	memory->owned = 1;
	put(memory, &param);
	put(memory, &v);
	if (f->tensor[STEP] != NULL) {
		found = scalar_state(c, f->tensor[STEP], &v);
		code = max(code, found);
		if (found == GO) {
			row->step = v.at;
			row->step_type = v.dtype;
			put(memory, &v);
			*at++ = v.version;
		}
	}
	if (kind->integer) {
		row->step = (uint64_t)(uintptr_t)&f->step;
		row->step_type = FLOAT64;
	}
	if (kind->real >= 0) set_number(kind, f, row);
	for (int k = 0; k < n_states; k++) {
		PyObject *o = f->tensor[STATE + k];
		int shape = kind->state[k].shape;
		if (matrices && (!applies(shape, param.ndim) || is_extra(kind, STATE + k))) continue;
		if (o == NULL) {
			if (matrices && shape > SCALAR) code = max(code, TORCH);
			continue;
		}
		if (shape == SCALAR) found = scalar_state(c, o, &v);
		else if (shape >= SLICES && (found = state_tensor(c, o, &v)) == GO) {
			if (shape == START && v.ndim == 0 && v.dtype == param.dtype) {
				if (!zero(&v)) code = max(code, TORCH);
				continue;
			}
			found = sliced(&param, &v, f->every);
		} else if (shape < SLICES && (found = state_tensor(c, o, &v)) == GO)
			found = matrices ? fits(f, kind, k, &param, &v) : same_layout_of(&param, &v, state_type(f, kind, k, &param));
		code = max(code, found);
		if (found != GO) continue;
		row->state[k] = v.at;
		row->state_type[k] = v.dtype;
		if (shape == SCALAR) row->flags |= (uint32_t)FIRST_SCALAR << k;
		put(memory, &v);
		if (shape != START) *at++ = v.version; /* which Go only reads */
	}
	if (f->storage != NULL) {
		if (!set_storage(f, &param, matrices, row)) return max(code, PYTHON);
		uint64_t of = extra_type(f, &param);
		if (of != NONE) {
			if ((found = state_tensor(c, f->tensor[STATE + EXTRA], &v)) == GO) found = same_layout_of(&param, &v, of);
			if ((code = max(code, found)) != GO) return code;
			row->state[EXTRA] = v.at;
			row->state_type[EXTRA] = v.dtype;
			put(memory, &v);
			*at++ = v.version;
		}
	}
	if (memory->owned) row->flags |= OWNED;
	if (code == GO && overlap(memory)) code = TORCH;
	if (code == GO) *version = at;
	return code;
}

/* fill writes the row and the memory ranges of one parameter, and returns a code. The row is valid only for GO. */
static int fill(const Call *c, const Found *f, Row *row, uint32_t ***version, Ranges *memory)
{
	if (!c->kind->matrices) switch (c->kind->n_states) { /* constant trip counts are faster */
	case 1: return fill_of(c, f, row, version, memory, 1, 0);
	case 2: return fill_of(c, f, row, version, memory, 2, 0);
	case 3: return fill_of(c, f, row, version, memory, 3, 0);
	}
	return fill_of(c, f, row, version, memory, c->kind->n_states, c->kind->matrices);
}

/* expected returns the number of elements of a state of a shape. */
static int64_t expected(const View *p, int shape)
{
	if (shape == SCALAR) return 1;
	if (shape == FULL || shape == VECTOR || p->ndim < 2 || p->n == 0) return p->n;
	return shape == ROWS ? p->n / last_size(p, 1) : p->n / last_size(p, 0);
}

/* copy writes the row of a tuple, whose tensors the caller has checked, and returns a code. */
static int copy(const Call *c, const Found *f, Row *row, uint32_t ***version)
{
	const Kind *kind = c->kind;
	View param, v;
	uint32_t **at = *version;
	Given *given = f->given;
	if (given->in_python) param = given->param;
	else if (!view(c->layout, f->p, 1, &param)) return PYTHON;
	if (param.dtype == 0 || (f->wide_group && is_narrow(param.dtype))) return PYTHON;
	*row = (Row){.n = param.n, .param = param.at, .param_type = param.dtype};
	if (kind->matrices && param.ndim >= 2 && !set_matrices(row, &param)) return PYTHON;
	if (param.version != NULL && !given->in_python) *at++ = param.version;
	if (kind->keeps && (f->of == NULL || f->code != GO)) return PYTHON;
	if (kind->integer) {
		row->step = (uint64_t)(uintptr_t)(kind->keeps ? &f->step : &given->step);
		row->step_type = FLOAT64;
	}
	if (kind->real >= 0) set_number(kind, f, row);
	for (int i = 0; i < c->tensors; i++) {
		if (f->tensor[i] == NULL) continue;
		int extra = is_extra(kind, i);
		if (extra && extra_type(f, &param) == NONE) continue;
		if (given->in_python) v = given->view[i];
		else if (!view(c->layout, f->tensor[i], 1, &v)) return PYTHON;
		if (v.dtype == 0) return PYTHON;
		int shape = i == GRAD || extra ? FULL : i == STEP ? SCALAR : kind->state[i - STATE].shape;
		uint64_t of = extra ? extra_type(f, &param) : i > STEP ? state_type(f, kind, i - STATE, &param) : param.dtype;
		if (shape == START && v.n == 1 && slices(&param, f->every) != 1 && v.dtype == of && zero(&v)) continue;
		int64_t elements = shape >= SLICES ? slices(&param, f->every) : expected(&param, shape);
		if (v.n != elements || (shape != SCALAR && v.dtype != of)) return PYTHON;
		if (i >= STEP && shape != START && !given->in_python && v.version != NULL) *at++ = v.version;
		if (i == GRAD) {
			row->grad = v.at;
			row->grad_type = v.dtype;
		} else if (i == STEP) {
			row->step = v.at;
			row->step_type = v.dtype;
		} else {
			row->state[i - STATE] = v.at;
			row->state_type[i - STATE] = v.dtype;
			if (shape == SCALAR) row->flags |= (uint32_t)FIRST_SCALAR << (i - STATE);
		}
	}
	if (!set_storage(f, &param, kind->matrices, row)) return PYTHON;
	if (PyTuple_GetItem(given->row, 1 + c->members) != Py_None) row->flags |= FIRST;
	*version = at;
	return GO;
}

/* fill_list writes the row of a list, and returns a code. */
static int fill_list(const Call *c, Found *f, Row *row, uint32_t ***version)
{
	View first, second;
	if (!view(c->layout, f->p, 0, &first) || first.dtype == 0 || !dense(&first)) return TORCH;
	if (first.n == 0 && c->list & FILLED) return TORCH;
	if (is_narrow(first.dtype) && (c->list & WIDE || (c->list & NOT_FLOAT16 && first.dtype == FLOAT16))) return TORCH;
	*row = (Row){.n = first.n, .param = first.at, .param_type = first.dtype};
	Ranges memory = {.owned = 1};
	put(&memory, &first);
	if (c->pairs) {
		if (!view(c->layout, f->tensor[GRAD], 0, &second) || same_layout(&first, &second) != GO) return TORCH;
		put(&memory, &second);
		if (overlap(&memory)) return TORCH;
		row->grad = second.at;
		row->grad_type = second.dtype;
	}
	if (c->list & EACH) {
		row->state[0] = (uint64_t)(uintptr_t)&f->step;
		row->state_type[0] = FLOAT64;
		row->flags |= FIRST_SCALAR;
	}
	if (c->list & NOISY && is_narrow(first.dtype)) {
		row->flags |= STOCHASTIC;
		row->rows = f->index;
		row->step = (uint64_t)(uintptr_t)&f->step;
		row->step_type = FLOAT64;
	}
	if (memory.owned) row->flags |= OWNED;
	*(*version)++ = first.version;
	return GO;
}

/* is_like reports whether two rows have the same dtype, or if widened, both or none have float64. */
static int is_like(const Row *a, const Row *b, int64_t widened)
{
	return a->param_type == b->param_type || (widened && a->param_type != FLOAT64 && b->param_type != FLOAT64);
}

/* fill_around adds to a row, which is in Go, what surrounds its step, and returns a code. */
static int fill_around(const Call *c, Py_ssize_t i, Row *row, uint32_t ***version)
{
	const Found *f = found_at(c, i);
	View param, v;
	if (c->clears) {
		if (!view(c->layout, f->tensor[GRAD], 0, &v)) return PYTHON;
		*(*version)++ = v.version;
	}
	PyObject *average = c->averages == NULL ? Py_None : PyTuple_GetItem(c->averages, i);
	if (average == Py_None) return GO;
	if (!is_plain(c, average) || !view(c->layout, average, 0, &v) || !view(c->layout, f->p, 0, &param)) return PYTHON;
	if (same_layout(&param, &v) != GO) return PYTHON;
	row->state[STATES - 1] = v.at;
	row->state_type[STATES - 1] = v.dtype;
	if (!v.owned) row->flags &= ~(uint32_t)OWNED;
	*(*version)++ = v.version;
	return GO;
}

/* integers returns the address of the n elements, at least one, of an int64 tensor with one row. It returns NULL if the
 * tensor is on the slow path or not contiguous, or if its storage is too small. */
static const int64_t *integers(const Layout *l, const char *impl, int64_t n)
{
	if (impl == NULL || (int64_t)word(impl, l->keys) != l->plain || ((const uint16_t *)impl)[l->type] != l->int64) return NULL;
	const char *storage = word(impl, l->storage);
	int64_t ndim = (int64_t)word(impl, l->ndim), offset = 8 * (int64_t)word(impl, l->offset);
	if (storage == NULL || storage[l->guard] || ndim < 1 || ndim > 2 || (int64_t)word(impl, l->numel) != n) return NULL;
	if ((int64_t)word(impl, l->sizes + ndim - 1) != n || (n > 1 && (int64_t)word(impl, l->strides + ndim - 1) != 1)) return NULL;
	const char *data = word(storage, l->data);
	return data != NULL && offset + 8 * n <= (int64_t)word(storage, l->size) ? (const int64_t *)(data + offset) : NULL;
}

/* A Coo is a sparse gradient: indices of the parameter's rows, all in range, and a contiguous row of values for each. */
typedef struct {
	const int64_t *indices;
	View values;
	int64_t n; /* at least 1 */
	int coalesced;
} Coo;

static int is_sparse(const Layout *l, PyObject *t)
{
	const void *impl = word(t, l->impl);
	return l->sparse != 0 && impl != NULL && (int64_t)word(impl, l->keys) == l->sparse;
}

/* read_coo reads a gradient that is_sparse of a contiguous parameter. It returns 1, or 0 if Python has to decide. */
static int read_coo(const Layout *l, PyObject *gradient, const View *p, Coo *to)
{
	const char *impl = word(gradient, l->impl), *values = word(impl, l->values);
	if (p->ndim == 0 || (int64_t)word(impl, l->ndim) != p->ndim) return 0;
	const int64_t *sizes = p->ndim > INLINE ? (const int64_t *)word(impl, l->sizes) : (const int64_t *)impl + l->sizes;
	View *v = &to->values;
	if (values == NULL || !view_impl(l, values, 0, v) || v->dtype != p->dtype || v->ndim != p->ndim || !contiguous(v)) return 0;
	for (int64_t i = 0; i < p->ndim; i++)
		if (sizes[i] != p->sizes[i] || (i > 0 && v->sizes[i] != p->sizes[i])) return 0;
	to->n = v->sizes[0];
	to->coalesced = impl[l->coalesced];
	if (v->n == 0 || to->n > INT32_MAX || (to->indices = integers(l, word(impl, l->indices), to->n)) == NULL) return 0;
	uint64_t high = 0;
	for (int64_t i = 0; i < to->n; i++) high = (uint64_t)to->indices[i] > high ? (uint64_t)to->indices[i] : high;
	return high < (uint64_t)p->sizes[0];
}

/* thrice reports whether an index occurs more than twice. */
static int thrice(const int64_t *indices, int64_t n)
{
	enum { SMALL = 1 << 10 };
	uint64_t small[SMALL], *seen = small; /* a hash table of indices above 0, each with a bit for its second occurrence */
	int bits = 2, found = 0;
	if (n < 3) return 0;
	while ((int64_t)1 << bits < 2 * n) bits++;
	uint64_t size = (uint64_t)1 << bits;
	if (size > SMALL && (seen = malloc(size * sizeof *seen)) == NULL) return 1; /* its order is safe for any indices */
	memset(seen, 0, size * sizeof *seen);
	for (int64_t i = 0; i < n && !found; i++) {
		uint64_t first = ((uint64_t)indices[i] + 1) << 1, at = first * 0x9E3779B97F4A7C15 >> (64 - bits);
		while (seen[at] != 0 && (seen[at] & ~(uint64_t)1) != first) at = (at + 1) & (size - 1);
		found = seen[at] & 1;
		seen[at] = seen[at] == 0 ? first : first | 1;
	}
	if (seen != small) free(seen);
	return found;
}

/* order_matters reports whether the sum of the gradients of a row depends on the order in which torch's coalesce adds them:
 * the order of its sort, which is not stable. */
static int order_matters(const Kind *kind, const Coo *g) { return kind->sparse.sums && !g->coalesced && thrice(g->indices, g->n); }

/* From this number of indices on, torch may use a stable sort: Python decides (_sparse.py). */
enum { RADIX = 1 << 15 };

/* order_of returns the positions that sort the indices of a gradient, in the order of torch's coalesce, or NULL with an
 * exception. */
static PyObject *order_of(PyObject *gradient)
{
	PyObject *indices = PyObject_CallMethod(gradient, "_indices", NULL), *order = NULL;
	PyObject *row = indices == NULL ? NULL : PyObject_CallMethod(indices, "select", "ii", 0, 0);
	PyObject *sorted = row == NULL ? NULL : PyObject_CallMethod(row, "sort", "i", 0); /* values and positions */
	if (sorted != NULL) order = PySequence_GetItem(sorted, 1);
	Py_XDECREF(indices);
	Py_XDECREF(row);
	Py_XDECREF(sorted);
	return order;
}

/* set_sparse_storage writes what a Storage adds to a row with a sparse gradient. It returns 1, or 0 if Python has to decide. */
static int set_sparse_storage(const Call *c, const Found *f, const View *param, Sparse *s, SparseRow *row)
{
	View v;
	if (param->dtype != FLOAT64) row->state_type = f->storage->state_type;
	if (!is_narrow(param->dtype)) return 1;
	row->flags = f->storage->flags;
	row->index = f->index;
	if (row->flags & STOCHASTIC && f->tensor[STEP] == NULL && !c->kind->integer) return 0;
	uint64_t of = extra_type(f, param);
	if (of == NONE) return 1;
	PyObject *extra = f->tensor[STATE + EXTRA];
	if (extra == NULL || state_tensor(c, extra, &v) != GO || same_layout_of(param, &v, of) != GO) return 0;
	row->extra = v.at;
	s->version[s->versions++] = v.version;
	return 1;
}

/* fill_sparse writes the row of a parameter with a sparse gradient. It returns 1, or 0 if Python has to decide. */
static int fill_sparse(const Call *c, const Found *f, Sparse *s, SparseRow *row)
{
	View param, v;
	Coo g;
	const Kind *kind = c->kind;
	if (!view(c->layout, f->p, 0, &param) || param.dtype == 0 || param.n == 0) return 0;
	if (f->wide_group && is_narrow(param.dtype)) return 0;
	if (!contiguous(&param)) return 0;
	if (param.ndim < 2 && !kind->sparse.only) return 0;
	if (!is_sparse(c->layout, f->tensor[GRAD]) || !read_coo(c->layout, f->tensor[GRAD], &param, &g)) return 0;
	*row = (SparseRow){
		.param = param.at, .rows = param.sizes[0], .width = param.n / param.sizes[0], .dtype = param.dtype,
		.indices = (uint64_t)(uintptr_t)g.indices, .values = g.values.at, .n = g.n, .step = f->step + 1,
	};
	s->versions = 0;
	s->version[s->versions++] = param.version;
	int states = 0;
	for (int k = 0; k < kind->n_states; k++) {
		PyObject *o = f->tensor[STATE + k];
		if (o == NULL) continue;
		if (states == 2 || state_tensor(c, o, &v) != GO || same_layout_of(&param, &v, state_type(f, kind, k, &param)) != GO) return 0;
		row->state[states++] = v.at;
		s->version[s->versions++] = v.version;
	}
	if (f->tensor[STEP] != NULL) {
		if (scalar_state(c, f->tensor[STEP], &v) != GO || is_narrow(v.dtype)) return 0;
		row->step = v.dtype == FLOAT32 ? *(float *)(uintptr_t)v.at + 1.0f : *(double *)(uintptr_t)v.at + 1;
		s->step = v.at;
		s->step_size = size_of(v.dtype);
		s->version[s->versions++] = v.version;
	}
	if (f->storage != NULL && !set_sparse_storage(c, f, &param, s, row)) return 0;
	if (s->order != NULL) {
		if ((PyObject *)Py_TYPE(s->order) != c->plain[0]) return 0;
		row->order = (uint64_t)(uintptr_t)integers(c->layout, word(s->order, c->layout->impl), g.n);
		return row->order != 0;
	}
	return !c->unsure || (g.n < RADIX && !order_matters(kind, &g));
}

/* prefetch_tensors prefetches the tensor objects of parameter i, which may have left the cache since they were
 * referenced. */
static void prefetch_tensors(const Call *c, Py_ssize_t i)
{
	const Found *f = found_at(c, i);
	for (int k = GRAD; k < c->tensors; k++)
		if (f->tensor[k] != NULL) prefetch(f->tensor[k], OBJECT);
}

/* write_rows writes the rows of all parameters that have a gradient. It returns 1, or 0 if one of them does not run in Go.
 * It runs no Python code. */
static int write_rows(const Call *c, uint32_t ***version)
{
	const Layout *l = c->layout;
	Py_ssize_t g = -1, end = 0;
	Row *to = (Row *)c->rows;
	Sparse *sparse = c->sparse;
	int ok = 1;
	Ranges memory;
	for (Py_ssize_t start = 0; start < c->n; start += BLOCK) {
		Py_ssize_t stop = start + BLOCK < c->n ? start + BLOCK : c->n;
		for (Py_ssize_t i = stop; i < stop + BLOCK && i < c->n; i++) {
			prefetch(found_at(c, i)->p, OBJECT);
			prefetch_tensors(c, i);
		}
		for (Py_ssize_t i = start; i < stop && l != NULL; i++) {
			const Found *f = found_at(c, i);
			if (f->code == NO_GRADIENT || f->code == PYTHON || f->slow) continue;
			for (int k = -1; k < c->tensors; k++) {
				PyObject *t = k < 0 ? f->p : f->tensor[k];
				if (t != NULL) prefetch_impl(l, word(t, l->impl));
			}
		}
		for (Py_ssize_t i = start; i < stop && l != NULL; i++) {
			const Found *f = found_at(c, i);
			if (f->code == NO_GRADIENT || f->code == PYTHON || f->slow) continue;
			for (int k = -1; k < c->tensors; k++) {
				PyObject *t = k < 0 ? f->p : f->tensor[k];
				const char *impl = t == NULL ? NULL : word(t, l->impl);
				if (impl == NULL) continue;
				prefetch(word(impl, l->storage) + 8 * l->data, STORAGE);
				if (k != GRAD) prefetch(word(impl, l->version) + 4 * l->counter, 1);
			}
		}
		for (Py_ssize_t i = start; i < stop; i++) {
			Found *f = found_at(c, i);
			while (i == end) {
				end += c->size[++g];
				c->group[g].table = (uint64_t)(uintptr_t)to;
			}
			int code = f->code;
			if (code == SPARSE) {
				SparseRow *row = c->sparse_row + (sparse - c->sparse);
				Group *group = &c->sparse_group[g];
				if (group->rows++ == 0) group->table = (uint64_t)(uintptr_t)row;
				c->code[i] = fill_sparse(c, f, sparse++, row) ? GO : PYTHON;
				ok &= c->code[i] == GO;
				continue;
			}
			if (f->group_falls_back) code = TORCH;
			else if (c->list) code = code == GO ? fill_list(c, f, to, version) : code;
			else if (f->given != NULL) code = copy(c, f, to, version);
			else if (code == GO || code == TORCH) code = fill(c, f, to, version, &memory);
			if (code == GO && (c->averages != NULL || c->clears)) code = fill_around(c, i, to, version);
			c->code[i] = code;
			if (code == GO) {
				to++;
				c->group[g].rows++;
			} else if (code != NO_GRADIENT) {
				ok = 0;
			}
		}
	}
	return ok;
}

/* A Span is a memory range of a parameter that torch may step. */
typedef struct { uint64_t at, end, read; } Span; /* read: it is a gradient, which is only read */

/* add_span adds the memory from the first element of a tensor to its last, or its whole storage if the dtype is not
 * supported. */
static Span *add_span(const Layout *l, PyObject *t, int read, Span *to)
{
	View v;
	if (!view(l, t, 1, &v) || v.n == 0) return to;
	const char *storage = word(word(t, l->impl), l->storage);
	uint64_t data = (uint64_t)(uintptr_t)word(storage, l->data);
	*to = (Span){data, data + (uint64_t)word(storage, l->size), read};
	if (v.dtype != 0) {
		int64_t last = 0;
		for (int64_t i = 0; i < v.ndim; i++) last += (v.sizes[i] - 1) * v.strides[i];
		*to = (Span){v.at, v.at + (last + 1) * size_of(v.dtype), read};
	}
	return to + 1;
}

static int by_address(const void *a, const void *b)
{
	uint64_t x = ((const Span *)a)->at, y = ((const Span *)b)->at;
	return (x > y) - (x < y);
}

static int may_fall_back(int code) { return code == TORCH || code == PYTHON; }

/* has_inner reports whether a tensor may use the memory of other tensors, such as a sparse one or a wrapper. */
static int has_inner(const Call *c, PyObject *t)
{
	if (!PyObject_TypeCheck(t, (PyTypeObject *)c->plain[0])) return 0;
	const void *impl = word(t, c->layout->impl);
	return impl != NULL && (!is_plain(c, t) || word(impl, c->layout->storage) == NULL);
}

/* find_inner finds the tensors whose memory is used by those of parameters that torch may step. It runs Python code. It
 * returns 1, or -1 with an exception. */
static int find_inner(Call *c)
{
	for (Py_ssize_t i = 0; i < c->n && c->kind->inner != NULL; i++) {
		const Found *f = found_at(c, i);
		if (!may_fall_back(c->code[i]) || f->given != NULL) continue;
		for (int k = -1; k < c->tensors; k++) {
			PyObject *t = k < 0 ? f->p : f->tensor[k];
			if (t == NULL || !has_inner(c, t)) continue;
			PyObject *found = PyObject_CallFunctionObjArgs(c->kind->inner, t, NULL), **list = &c->inner[k == GRAD];
			if (*list == NULL && found != NULL) *list = PyList_New(0);
			PyObject *put = found == NULL || *list == NULL ? NULL : PySequence_InPlaceConcat(*list, found);
			Py_XDECREF(found);
			Py_XDECREF(put);
			if (put == NULL) return -1;
		}
	}
	return 1;
}

/* keep_order makes each parameter fall back to torch that shares memory with a parameter that torch may step, so that they
 * are stepped in order. A shared gradient is allowed. Nothing is stepped after it, because it runs Python code. It returns 1, or
 * -1 with an exception. */
static int keep_order(Call *c)
{
	const Layout *l = c->layout;
	Py_ssize_t all = 0, go = 0;
	for (Py_ssize_t i = 0; i < c->n; i++) all += may_fall_back(c->code[i]), go += c->code[i] == GO;
	if (l == NULL || all == 0 || go == 0) return 1;
	if (find_inner(c) < 0) return -1;
	Py_ssize_t inner[2];
	for (int read = 0; read < 2; read++) inner[read] = c->inner[read] == NULL ? 0 : PyList_Size(c->inner[read]);
	Span *spans = malloc((c->n * (1 + c->tensors) + inner[0] + inner[1]) * sizeof *spans), *end;
	Row scratch;
	if (spans == NULL) {
		PyErr_NoMemory();
		return -1;
	}
	for (int more = 1; more;) {
		more = 0;
		end = spans;
		for (Py_ssize_t i = 0; i < c->n; i++) {
			const Found *f = found_at(c, i);
			if (!may_fall_back(c->code[i]) || f->given != NULL) continue;
			if (f->p == NULL || !PyObject_TypeCheck(f->p, (PyTypeObject *)c->plain[0])) continue;
			end = add_span(l, f->p, 0, end);
			for (int k = GRAD; k < c->tensors; k++)
				if (f->tensor[k] != NULL && PyObject_TypeCheck(f->tensor[k], (PyTypeObject *)c->plain[0]))
					end = add_span(l, f->tensor[k], k == GRAD, end);
		}
		for (int read = 0; read < 2; read++)
			for (Py_ssize_t i = 0; i < inner[read]; i++) {
				PyObject *t = PyList_GetItem(c->inner[read], i);
				if (PyObject_TypeCheck(t, (PyTypeObject *)c->plain[0]) && word(t, l->impl) != NULL) end = add_span(l, t, read, end);
			}
		Py_ssize_t n = end - spans;
		qsort(spans, n, sizeof *spans, by_address);
		uint64_t high = 0; /* the end of the last span; ranges from there on need no search */
		for (Span *x = spans; x < end; x++) high = x->end > high ? x->end : high;
		for (Py_ssize_t i = 0; i < c->n; i++) {
			uint32_t *unused[VERSIONS], **version = unused;
			Ranges s = {0}; /* other code may have changed a tensor, so that fill does not write it */
			if (c->code[i] != GO || found_at(c, i)->given != NULL) continue;
			fill(c, found_at(c, i), &scratch, &version, &s);
			for (int k = 0; k < s.n && c->code[i] == GO; k++) {
				uint64_t from = s.at[k], to = s.at[k] + s.size[k];
				if (n == 0 || from >= high || to <= spans[0].at) continue;
				Py_ssize_t first = 0, after = n; /* finds the spans that begin before the range ends */
				while (first < after) {
					Py_ssize_t middle = (first + after) / 2;
					if (spans[middle].at < to) first = middle + 1;
					else after = middle;
				}
				for (Py_ssize_t j = 0; j < first; j++)
					if (spans[j].end > from && !(k == 1 && spans[j].read)) {
						c->code[i] = TORCH;
						more = 1;
						break;
					}
			}
		}
	}
	free(spans);
	return 1;
}

/* copy_scalars copies the scalars of a group for its sparse gradients. It returns 1; 0 if Python has to decide, for example
 * because scalars cause an error; or -1 with an exception. A flag may run Python code. */
static int copy_scalars(const Kind *kind, PyObject *dict, const Group *from, Group *to)
{
	static const double large = 1e18; /* LARGE of _sparse.py */
	PyObject *fused = PyDict_GetItemString(dict, "fused");
	Py_XINCREF(fused);
	int set = fused == NULL ? 0 : PyObject_IsTrue(fused);
	Py_XDECREF(fused);
	if (set != 0) return set < 0 ? -1 : 0;
	if (from->count != kind->n_scalars) return 0;
	for (int i = 0; i < kind->n_scalars; i++) {
		double x = from->scalars[i];
		if (!(x >= 0 && x <= large) || (kind->scalar[i].index >= 0 && x >= 1)) return 0;
		if (kind->sparse.zeros >> i & 1 && x != 0) return 0;
		to->scalars[i] = x;
	}
	to->count = from->count;
	to->seed = from->seed;
	return 1;
}

/* prepare_sparse prepares the rows of parameters with sparse gradients, if all others are in Go, for another write_rows. It
 * runs Python code. It returns 1; 0 if Python has to decide about those parameters; or -1 with an exception. */
static int prepare_sparse(Call *c, PyObject *groups)
{
	const Kind *kind = c->kind;
	const Layout *l = c->layout;
	Py_ssize_t n = 0;
	if (!kind->sparse.known || l == NULL) return 0;
	for (Py_ssize_t i = 0; i < c->n; i++) {
		const Found *f = found_at(c, i);
		if (c->code[i] == GO || c->code[i] == NO_GRADIENT) continue;
		View param;
		if (c->code[i] != PYTHON || f->code != GO || f->slow || !is_sparse(l, f->tensor[GRAD])) return 0;
		if (!view(l, f->p, 0, &param) || is_fresh(f, &param)) return 0;
		n++;
	}
	size_t of_each = sizeof(Sparse) + sizeof(SparseRow);
	char *memory = calloc(1, n * of_each + c->groups * sizeof(Group));
	if (memory == NULL) {
		PyErr_NoMemory();
		return -1;
	}
	c->sparse = (Sparse *)memory;
	c->sparse_row = (SparseRow *)(c->sparse + n);
	c->sparse_group = (Group *)(c->sparse_row + n);
	c->at = 0;
	Py_ssize_t g = -1, end = 0, copied = -1;
	for (Py_ssize_t i = 0; i < c->n; i++) {
		Found *f = found_at(c, i);
		while (i == end) end += c->size[++g];
		if (c->code[i] != PYTHON) continue;
		Sparse *s = &c->sparse[c->n_sparse++];
		s->param = i;
		if (copied != g) {
			int ok = copy_scalars(kind, PyTuple_GetItem(PyTuple_GetItem(groups, g), 1), &c->group[g], &c->sparse_group[g]);
			if (ok <= 0) return ok;
			copied = g;
		}
		if (kind->integer) {
			PyObject *of = of_param(c, f->p);
			if (of == NULL || !Py_IS_TYPE(of, &PyDict_Type)) return PyErr_Occurred() ? -1 : 0;
			Py_INCREF(of);
			s->state = of;
			if (find_step(c, f, of) < 0) return -1;
			if (f->code != GO || f->step >= (double)((int64_t)1 << 53)) return 0;
		}
		f->code = SPARSE;
	}
	for (Sparse *s = c->sparse; s < c->sparse + n; s++) {
		const Found *f = found_at(c, s->param);
		View param;
		Coo gradient;
		if (!view(l, f->p, 0, &param) || !contiguous(&param)) return 0;
		if (!is_sparse(l, f->tensor[GRAD]) || !read_coo(l, f->tensor[GRAD], &param, &gradient)) return 0;
		if (kind->sparse.sums && !gradient.coalesced && gradient.n >= RADIX) return 0;
		if (!order_matters(kind, &gradient)) continue;
		c->unsure = 1;
		if ((s->order = order_of(f->tensor[GRAD])) == NULL) return -1;
	}
	return 1;
}

static Span *put_span(Span *to, uint64_t at, int64_t size)
{
	*to = (Span){at, at + size, 0};
	return to + (size > 0);
}

/* reach sorts spans by address, and sets each end to the largest one so far. It reports whether they are disjoint. */
static int reach(Span *spans, Py_ssize_t n)
{
	int disjoint = 1;
	qsort(spans, n, sizeof *spans, by_address);
	for (Py_ssize_t i = 1; i < n; i++) {
		disjoint &= spans[i].at >= spans[i - 1].end;
		if (spans[i].end < spans[i - 1].end) spans[i].end = spans[i - 1].end;
	}
	return disjoint;
}

/* meets reports whether memory of a size in bytes overlaps spans that reach has sorted. */
static int meets(const Span *spans, Py_ssize_t n, uint64_t at, int64_t size)
{
	Py_ssize_t first = 0; /* finds the spans that begin before the memory ends */
	while (first < n) {
		Py_ssize_t middle = (first + n) / 2;
		if (spans[middle].at < at + size) first = middle + 1;
		else n = middle;
	}
	return size > 0 && first > 0 && spans[first - 1].end > at;
}

/* separate reports whether rows with sparse gradients share no memory with each other and with other rows, except memory
 * that is only read. So they can be stepped after the others. */
static int separate(const Call *c)
{
	enum { WRITTEN = 5, READ = 2 };
	Py_ssize_t rows = 0;
	for (Py_ssize_t g = 0; g < c->groups; g++) rows += c->group[g].rows;
	Span few[8 * (WRITTEN + READ)], *spans = few;
	if (c->n_sparse > 8 && (spans = malloc(c->n_sparse * (WRITTEN + READ) * sizeof *spans)) == NULL) return 0;
	Span *written = spans, *read = spans + WRITTEN * c->n_sparse, *end = written, *end_of_read = read;
	for (Py_ssize_t i = 0; i < c->n_sparse; i++) {
		const SparseRow *x = &c->sparse_row[i];
		int64_t of_row = x->width * size_of(x->dtype), n = x->rows * x->width;
		int64_t of_state = n * size_of(x->state_type == NONE ? x->dtype : x->state_type);
		int64_t of_extra = n * (x->flags & MASTER ? 4 : 2);
		end = put_span(end, x->param, x->rows * of_row);
		for (int k = 0; k < 2; k++) end = put_span(end, x->state[k], x->state[k] == 0 ? 0 : of_state);
		end = put_span(end, x->extra, x->extra == 0 ? 0 : of_extra);
		end = put_span(end, c->sparse[i].step, c->sparse[i].step_size);
		end_of_read = put_span(end_of_read, x->indices, x->n * 8);
		end_of_read = put_span(end_of_read, x->values, x->n * of_row);
	}
	Py_ssize_t n = end - written, n_read = end_of_read - read;
	int ok = reach(written, n);
	for (Span *x = read; x < end_of_read && ok; x++) ok = !meets(written, n, x->at, x->end - x->at);
	reach(read, n_read);
	for (const Row *x = (const Row *)c->rows; x < (const Row *)c->rows + rows && ok; x++) {
		ok = !meets(written, n, x->grad, x->n * size_of(x->grad_type));
		for (int k = -2; k < STATES && ok; k++) {
			uint64_t at = k == -2 ? x->param : k == -1 ? x->step : x->state[k];
			int type = k == -2 ? x->param_type : k == -1 ? x->step_type : x->state_type[k];
			int64_t size = (k == -1 || (k >= 0 && x->flags & (uint32_t)FIRST_SCALAR << k) ? 1 : x->n) * size_of(type);
			ok = at == 0 || (!meets(written, n, at, size) && !meets(read, n_read, at, size));
		}
	}
	if (spans != few) free(spans);
	return ok;
}

/* translate replaces an error from Go whose message begins with the name of a Python exception by that exception. It
 * reports whether Go had written anything before the error. */
static int translate(void)
{
	static const char *const names[] = {"ZeroDivisionError: ", "OverflowError: ", "ValueError: ", "TypeError: "};
	PyObject *const types[] = {PyExc_ZeroDivisionError, PyExc_OverflowError, PyExc_ValueError, PyExc_TypeError};
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	PyErr_NormalizeException(&type, &value, &traceback);
	PyObject *text = value == NULL ? NULL : PyObject_Str(value);
	const char *says = text == NULL ? NULL : PyUnicode_AsUTF8AndSize(text, NULL);
	int written = says == NULL || strstr(says, "panic in Go") != NULL || strstr(says, "rows before it were stepped") != NULL;
	for (int i = 0; i < 4 && says != NULL && type == PyExc_RuntimeError; i++)
		if (strncmp(says, names[i], strlen(names[i])) == 0) {
			PyErr_SetString(types[i], says + strlen(names[i]));
			Py_XDECREF(type);
			Py_XDECREF(value);
			Py_XDECREF(traceback);
			Py_DECREF(text);
			return written;
		}
	PyErr_Clear();
	Py_XDECREF(text);
	PyErr_Restore(type, value, traceback);
	return written;
}

/* count adds to the version counters from the first to the one before end. */
static void count(const Call *c, uint32_t **end, uint32_t add)
{
	for (uint32_t **at = c->version; at < end; at++) {
		if (end - at > 16) __builtin_prefetch(at[16], 1);
		/* An atomic addition takes ten times as long. Steps have the GIL here. If another thread changes the tensor at the
		 * same time, one of two increments may be lost, but the counter differs from every value before. */
		__atomic_store_n(*at, __atomic_load_n(*at, __ATOMIC_RELAXED) + add, __ATOMIC_RELAXED);
	}
}

/* count_sparse adds to the version counters of rows with sparse gradients. */
static void count_sparse(const Call *c, uint32_t add)
{
	for (const Sparse *s = c->sparse; s < c->sparse + c->n_sparse; s++)
		for (int i = 0; i < s->versions; i++) __atomic_store_n(s->version[i], __atomic_load_n(s->version[i], __ATOMIC_RELAXED) + add, __ATOMIC_RELAXED);
}

/* call increments the version counters and calls Go. It returns 1, or -1 with an exception. */
static int call(const Call *c, int64_t kind, uint64_t groups, uint32_t **end, uint32_t add, long long threads)
{
	if (add > 0) count(c, end, add);
	goptim_enter();
	bindings_Step(kind, (long long)groups, threads);
	if (!PyErr_Occurred()) return 1;
	if (!translate() && add > 0) count(c, end, -add); /* nothing was written */
	return -1;
}

/* keep stores the new states of rows that were passed as tuples in their dicts. It returns 1, or -1 with an exception. */
static int keep(const Call *c)
{
	for (Py_ssize_t i = 0; i < c->n; i++) {
		const Found *f = found_at(c, i);
		PyObject *state = f->given == NULL ? Py_None : PyTuple_GetItem(f->given->row, 1 + c->members);
		for (int k = 0; PyDict_Check(state) && k < c->kind->n_states; k++) {
			PyObject *t = f->tensor[STATE + k], *key = c->kind->state[k].key;
			if (t != NULL && key != NULL && PyObject_SetItem(state, key, t)) return -1;
		}
	}
	return 1;
}

/* keep_numbers stores the numbers that Go has written in the states that have them. It returns 1, or -1 with an exception. */
static int keep_numbers(const Call *c)
{
	const Kind *kind = c->kind;
	for (Py_ssize_t i = 0; i < c->n; i++) {
		const Found *f = found_at(c, i);
		if (f->of == NULL || c->code[i] != GO) continue;
		PyObject *step = kind->integer ? PyLong_FromDouble(f->step) : NULL;
		PyObject *number = kind->real < 0 ? NULL : PyFloat_FromDouble(f->number);
		int failed = (kind->integer && step == NULL) || (kind->real >= 0 && number == NULL);
		failed = failed || (step != NULL && PyObject_SetItem(f->of, kind->step, step) < 0);
		failed = failed || (number != NULL && PyObject_SetItem(f->of, kind->state[kind->real].key, number) < 0);
		Py_XDECREF(step);
		Py_XDECREF(number);
		if (failed) return -1;
	}
	return 1;
}

/* keep_results stores what Go has written for each group in its dict. It returns 1, or -1 with an exception. */
static int keep_results(const Call *c, PyObject *groups)
{
	for (Py_ssize_t g = 0; g < c->groups; g++) {
		const Group *group = &c->group[g];
		for (int k = 0; k < c->kind->n_results; k++) {
			double x = group->scalars[group->count + k];
			PyObject *of = c->kind->result[k].integer ? PyLong_FromDouble(x) : PyFloat_FromDouble(x);
			int failed = of == NULL || PyDict_SetItem(PyTuple_GetItem(PyTuple_GetItem(groups, g), 1), c->kind->result[k].key, of) < 0;
			Py_XDECREF(of);
			if (failed) return -1;
		}
	}
	return 1;
}

/* leave_shared makes torch step the parameters that have the same dict as their state, if the kind keeps numbers in it. */
static void leave_shared(Call *c)
{
	enum { USUAL = 2 }; /* references: that of the optimizer's state, and ours */
	for (Py_ssize_t i = 0; i < c->n; i++) {
		Found *f = found_at(c, i);
		if (f->of == NULL || Py_REFCNT(f->of) <= USUAL) continue; /* a program may have more */
		for (Py_ssize_t k = 0; k < i; k++)
			if (found_at(c, k)->of == f->of) found_at(c, k)->code = f->code = max(f->code, f->given == NULL ? TORCH : PYTHON);
	}
}

/* call_sparse steps the rows with sparse gradients, and counts their steps. It returns 1, or -1 with an exception. */
static int call_sparse(const Call *c, long long threads)
{
	uint64_t head = 0, *next = &head;
	for (Py_ssize_t g = 0; g < c->groups; g++) {
		if (c->sparse_group[g].rows == 0) continue;
		*next = (uint64_t)(uintptr_t)&c->sparse_group[g];
		next = &c->sparse_group[g].next;
	}
	count_sparse(c, 1);
	goptim_enter();
	bindings_Step(c->kind->sparse.number, (long long)head, threads);
	if (PyErr_Occurred()) {
		if (!translate()) count_sparse(c, -1);
		return -1;
	}
	for (const Sparse *s = c->sparse; s < c->sparse + c->n_sparse; s++) {
		const Found *f = found_at(c, s->param);
		View v;
		if (s->state != NULL) {
			PyObject *step = PyLong_FromDouble(f->step + 1);
			int failed = step == NULL || PyDict_SetItem(s->state, c->kind->step, step) < 0;
			Py_XDECREF(step);
			if (failed) return -1;
		} else if (f->tensor[STEP] != NULL && scalar_state(c, f->tensor[STEP], &v) == GO) { /* again: other threads have run */
			if (v.dtype == FLOAT32) *(float *)(uintptr_t)v.at += 1;
			else *(double *)(uintptr_t)v.at += 1;
		}
	}
	return 1;
}

/* The memory of a large step is kept for the next one: freed, it would return to the system, and each page would fault
 * again. */
static char *spare;
static size_t spare_size;

static char *borrow(size_t size)
{
	char *memory = spare;
	spare = NULL;
	if (memory != NULL && spare_size >= size) return memory;
	free(memory);
	return malloc(size);
}

static void give_back(char *memory, size_t size)
{
	if (spare != NULL) { /* from another thread */
		free(memory);
		return;
	}
	spare = memory;
	spare_size = size;
}

enum { ROOM = 1 << 11 }; /* words on the stack, enough for small steps */

/* need_of returns the size in bytes of the memory of a call. */
static size_t need_of(Call *c)
{
	c->size_of_found = sizeof(Found) + c->tensors * sizeof(PyObject *);
	size_t of_each = c->size_of_found + sizeof(Row) + (2 + c->tensors) * sizeof(uint32_t *) + 1;
	return c->n * of_each + c->groups * (sizeof(Group) + sizeof(Py_ssize_t)) + 8;
}

/* divide distributes the memory of a call, and clears what is not written later. */
static void divide(Call *c, char *memory)
{
	c->found = memory;
	c->group = (Group *)(c->found + c->n * c->size_of_found);
	c->size = (Py_ssize_t *)(c->group + c->groups);
	c->version = (uint32_t **)(c->size + c->groups);
	c->rows = (char *)(c->version + (2 + c->tensors) * c->n);
	c->code = (uint8_t *)c->rows + sizeof(Row) * c->n;
	memset(memory, 0, (char *)c->version - memory);
}

static void drop(Call *c)
{
	for (Py_ssize_t i = 0; i < c->n; i++) {
		Found *f = found_at(c, i);
		if (i + 8 < c->n) prefetch_tensors(c, i + 8);
		for (int k = 0; k < c->tensors; k++) Py_XDECREF(f->tensor[k]);
		Py_XDECREF(f->of);
		if (f->given == NULL) continue;
		for (int k = 0; k <= TENSORS; k++) Py_XDECREF(f->given->storage[k]);
		free(f->given);
	}
	for (Sparse *s = c->sparse; s < c->sparse + c->n_sparse; s++) {
		Py_XDECREF(s->state);
		Py_XDECREF(s->order);
	}
	free(c->sparse);
}

/* expect checks the number of arguments and their types; NULL allows any type. PyArg_ParseTuple does the same, but takes
 * longer than a small group's step. */
static int expect(const char *name, PyTypeObject *const *types, Py_ssize_t count, PyObject *const *args, Py_ssize_t n)
{
	if (n != count) {
		PyErr_Format(PyExc_TypeError, "%s() takes exactly %zd arguments (%zd given)", name, count, n);
		return 0;
	}
	for (Py_ssize_t i = 0; i < n; i++)
		if (types[i] != NULL && !PyObject_TypeCheck(args[i], types[i])) {
			PyErr_Format(PyExc_TypeError, "%s() argument %zd is of the wrong type: %R", name, i + 1, Py_TYPE(args[i]));
			return 0;
		}
	return 1;
}

static const char kind_name[] = "goptim kind";

static void free_kind(PyObject *capsule)
{
	Kind *kind = PyCapsule_GetPointer(capsule, kind_name);
	if (kind == NULL) return;
	for (int i = 0; i < SCALARS; i++) Py_XDECREF(kind->scalar[i].key);
	for (int i = 0; i < STATES; i++) Py_XDECREF(kind->state[i].key);
	for (int i = 0; i < KEYS; i++) Py_XDECREF(kind->leave[i]);
	for (int i = 0; i < KEYS; i++) Py_XDECREF(kind->result[i].key);
	for (int i = 0; i < 2; i++) Py_XDECREF(kind->path[i]);
	Py_XDECREF(kind->step);
	Py_XDECREF(kind->inner);
	free(kind);
}

/* interned returns a new reference to a key, interned as the keys of most dicts are, or NULL for None. */
static PyObject *interned(PyObject *key)
{
	if (key == Py_None) return NULL;
	Py_INCREF(key);
	if (PyUnicode_CheckExact(key)) PyUnicode_InternInPlace(&key);
	return key;
}

const char make_kind_doc[] =
	"make_kind(number, scalars, states, step, integer, leave, inner, narrow, stored, sparse=None, results=(), paths=True, /)\n--\n\n"
	"Return a description of a kind of step (steps.Kind) for step_groups.\n\n"
	"number: the number that Kind returns. scalars: for each, the key in a group, or None; the index in a sequence, or -1;\n"
	"the length of the sequence; whether it is a flag; and the default for a group without the key, or None. states: for\n"
	"each, the key in a parameter's state, or None for a tensor that is passed with the row; its shape: 0 for the shape of\n"
	"the parameter, 1 for one element, 2 and 3 for one value per row or column of its matrices, 4 for the shape of a\n"
	"parameter with fewer than two dimensions, 5 and 6 for 2 and 3 without the dimension of size 1, 7 for a float instead of a tensor, 8 for a vector\n"
	"with every n-th element, where n is the scalar that enables it, and 9 for the same or a zero without dimensions; the index of the scalar\n"
	"that enables it, or -1; whether it is enabled by > 0 instead of != 0; the number of its dtype for a 16-bit parameter,\n"
	"or 0 for that of the parameter; and whether Python decides if it is missing. step: the key of the step, or None.\n"
	"integer: whether the step is an int. leave: keys of flags; a group in which one is set falls back to torch. inner: a\n"
	"function that returns the tensors whose memory a tensor uses, as a tuple. narrow: whether rows may have 16-bit\n"
	"elements. Then those of a group with foreach=True, or with both foreach=False and fused=False, fall back to torch, if\n"
	"paths is true. results: what the step stores in a group's dict: for each, the key, and whether it is an int.\n"
	"stored: whether groups may have the keys of _storage.py.\n"
	"sparse: None if there are no steps with sparse gradients, or the number of their kind, whether all gradients are\n"
	"sparse, whether the gradients of a repeated row are added up, and the sum of 1 << i for each scalar i that must be zero.";

PyObject *make_kind(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	PyTypeObject *types[] = {&PyLong_Type, &PyTuple_Type, &PyTuple_Type, NULL, NULL, &PyTuple_Type, NULL, &PyBool_Type, &PyBool_Type, NULL, &PyTuple_Type, NULL};
	if (!expect("make_kind", types, n < 9 ? 9 : n > 12 ? 12 : n, args, n)) return NULL;
	Py_ssize_t n_scalars = PyTuple_Size(args[1]), n_states = PyTuple_Size(args[2]), n_leave = PyTuple_Size(args[5]);
	Py_ssize_t n_results = n > 10 ? PyTuple_Size(args[10]) : 0;
	if (n_scalars + n_results > SCALARS || n_states > STATES || n_leave > KEYS || n_results > KEYS) {
		PyErr_Format(PyExc_ValueError, "make_kind: expected at most %d scalars, %d states, %d flags and %d results", SCALARS, STATES, KEYS, KEYS);
		return NULL;
	}
	Kind *kind = calloc(1, sizeof *kind);
	if (kind == NULL) return PyErr_NoMemory();
	PyObject *capsule = PyCapsule_New(kind, kind_name, free_kind);
	if (capsule == NULL) {
		free(kind);
		return NULL;
	}
	kind->number = PyLong_AsLongLong(args[0]);
	kind->n_scalars = (int)n_scalars;
	kind->n_states = (int)n_states;
	kind->n_leave = (int)n_leave;
	kind->n_results = (int)n_results;
	kind->real = -1;
	kind->paths = n > 11 ? PyObject_IsTrue(args[11]) : 1;
	int ok = !(kind->number == -1 && PyErr_Occurred());
	for (int i = 0; i < n_scalars && ok; i++) {
		PyObject *key, *value;
		ok = PyArg_ParseTuple(PyTuple_GetItem(args[1], i), "OiipO", &key, &kind->scalar[i].index, &kind->scalar[i].length,
		                      &kind->scalar[i].flag, &value);
		if (!ok) break;
		kind->scalar[i].key = interned(key);
		kind->scalar[i].optional = value != Py_None;
		if (value != Py_None) kind->scalar[i].value = PyFloat_AsDouble(value);
		ok = !PyErr_Occurred();
	}
	for (int k = 0; k < n_states && ok; k++) {
		PyObject *key;
		int narrow = 0;
		ok = PyArg_ParseTuple(PyTuple_GetItem(args[2], k), "Oiip|ii", &key, &kind->state[k].shape, &kind->state[k].when,
		                      &kind->state[k].above, &narrow, &kind->state[k].late);
		if (!ok) break;
		kind->state[k].narrow = (uint64_t)narrow;
		kind->state[k].key = interned(key);
		if (kind->state[k].shape < FULL || kind->state[k].shape > START || kind->state[k].when >= SCALARS ||
		    (kind->state[k].shape >= SLICES && kind->state[k].when < 0) || (kind->state[k].shape == FLOAT && kind->real >= 0)) {
			PyErr_Format(PyExc_ValueError, "make_kind: state %d is of a shape or a scalar that is not known", k);
			ok = 0;
		}
		if (kind->state[k].shape == FLOAT) kind->real = k;
		kind->state[k].flat = kind->state[k].shape == FLAT_ROWS || kind->state[k].shape == FLAT_COLS;
		if (kind->state[k].flat) kind->state[k].shape += ROWS - FLAT_ROWS;
		kind->matrices |= kind->state[k].shape == ROWS;
		kind->slices |= kind->state[k].shape >= SLICES;
	}
	kind->step = interned(args[3]);
	kind->inner = interned(args[6]);
	kind->integer = PyObject_IsTrue(args[4]);
	kind->narrow = args[7] == Py_True;
	kind->stored = args[8] == Py_True;
	kind->path[0] = PyUnicode_InternFromString("foreach");
	kind->path[1] = PyUnicode_InternFromString("fused");
	for (int i = 0; i < n_leave; i++) kind->leave[i] = interned(PyTuple_GetItem(args[5], i));
	for (int i = 0; i < n_results && ok; i++) {
		PyObject *key;
		ok = PyArg_ParseTuple(PyTuple_GetItem(args[10], i), "Op", &key, &kind->result[i].integer);
		if (ok) kind->result[i].key = interned(key);
	}
	if (ok && n >= 10 && args[9] != Py_None) {
		long long sparse;
		ok = kind->sparse.known =
			PyArg_ParseTuple(args[9], "LppI", &sparse, &kind->sparse.only, &kind->sparse.sums, &kind->sparse.zeros);
		kind->sparse.number = sparse;
	}
	kind->keeps = kind->real >= 0 || (kind->integer && !kind->matrices && !kind->sparse.only);
	if (ok && !PyErr_Occurred()) return capsule;
	Py_DECREF(capsule);
	return NULL;
}

/* read_torch sets the layout and the plain types of a call. It returns 1, or 0 if they are invalid. */
static int read_torch(Call *c, PyObject *layout, PyObject *plain)
{
	Py_ssize_t n = PyTuple_Size(plain);
	int sound = n >= 1 && n <= TYPES;
	if (layout != Py_None && sound) {
		sound = PyBytes_Check(layout) && PyBytes_Size(layout) == sizeof(Layout);
		c->layout = sound ? (const Layout *)PyBytes_AsString(layout) : NULL;
	}
	if (c->layout != NULL && !c->kind->narrow) {
		c->wide = *c->layout;
		c->wide.bfloat16 = c->wide.float16 = -1; /* no tensor's */
		c->layout = &c->wide;
	}
	for (Py_ssize_t i = 0; i < n && sound; i++) c->plain[i] = PyTuple_GetItem(plain, i), sound = PyType_Check(c->plain[i]);
	return sound;
}

/* requires_grad reports whether a tensor of the first plain type requires a gradient. It returns -1 with an exception. */
static int requires_grad(const Call *c, PyObject *t)
{
	PyObject *answer = value(c, &c->requires_grad, t, 1);
	int does = answer == Py_False ? 0 : answer == NULL ? -1 : PyObject_IsTrue(answer);
	Py_XDECREF(answer);
	return does;
}

/* leave_graphs makes Python decide about gradients that require a gradient, so that they are detached before they are
 * cleared. It returns 1, or -1 with an exception. */
static int leave_graphs(Call *c)
{
	for (Py_ssize_t i = 0; i < c->n && c->layout != NULL; i++) {
		Found *f = found_at(c, i);
		if (f->code != GO || f->given != NULL) continue;
		const char *impl = word(f->tensor[GRAD], c->layout->impl);
		if (impl == NULL || word(impl, c->layout->autograd) == NULL) continue;
		int requires = requires_grad(c, f->tensor[GRAD]);
		if (requires < 0) return -1;
		if (requires) f->code = PYTHON;
	}
	return 1;
}

/* read_around reads the last argument of step_groups. It returns 1, or 0 with an exception. */
static int read_around(Call *c, PyObject *from, Around *to)
{
	long long flags = 0, order = 0;
	PyObject *averages;
	if (!PyArg_ParseTuple(from, "LLdddO", &flags, &order, &to->max_norm, &to->coefficient, &to->weight, &averages)) return 0;
	to->flags = flags;
	to->order = order;
	c->clears = flags & CLEAR ? 1 : 0;
	if (!(flags & AVERAGE)) return 1;
	if (!PyTuple_CheckExact(averages) || PyTuple_Size(averages) != c->n) {
		PyErr_Format(PyExc_ValueError, "step_groups: averages %R, expected a tuple of %zd", averages, c->n);
		return 0;
	}
	c->averages = averages;
	return 1;
}

const char step_groups_doc[] =
	"step_groups(kind, layout, plain, state, groups, threads, around=None, /)\n--\n\n"
	"Step groups of parameters in Go, and return the number of parameters stepped. If a parameter that has a gradient is\n"
	"not on the fast path, write nothing, and return one byte per parameter: 0 for Go, 1 for no gradient, 2 for torch,\n"
	"3 if Python has to decide.\n\n"
	"kind: the result of make_kind. layout: the result of _layout.find, or None. plain: the types of fast-path parameters,\n"
	"torch.Tensor first. state: the optimizer's state. groups: for each, the parameters, the dict, and the scalars that are\n"
	"not in the dict. threads: the largest number of threads; 0 to check without a step; negative to raise the errors that\n"
	"Go would raise, without writing. around: what surrounds the step, or None: flags (1 to clip, 2 to scale, 4 to average,\n"
	"8 to clear the gradients, 16 for norms of 16-bit gradients in float32); the order of norms; the largest norm; the factor of the gradients; the weight of a parameter\n"
	"in its average; and for each parameter its average or None, or None for all. The result is then a tuple of the number\n"
	"of parameters, the dtype of the first one (engine.DType), and the norm; or None, and nothing was written, if parameters\n"
	"to be clipped have several dtypes (with 16, other than float32 and 16 bits), or tensors share memory.\n\n"
	"A parameter may be replaced by a row: a tuple of the parameter, the gradient, the step or None, the states of the\n"
	"kind, each a tensor or None, and the dict in which the states are stored after the step, or None. Instead of the step\n"
	"there is the state's dict if numbers in it change. If a group has one of\n"
	"the keys of _storage.py, the master copy or the compensation, or None, and the index of the parameter may follow. A\n"
	"parameter may also be replaced by a pair: the parameter and the tensor to use as the last state without a key, or its\n"
	"index; or by a tuple of all three.";

PyObject *step_groups(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	PyTypeObject *types[] = {NULL, NULL, &PyTuple_Type, NULL, &PyTuple_Type, &PyLong_Type, &PyTuple_Type};
	if (!expect("step_groups", types, n == 7 ? 7 : 6, args, n)) return NULL;
	Call c = {.kind = PyCapsule_GetPointer(args[0], kind_name), .state = args[3]};
	if (c.kind == NULL) return NULL;
	PyObject *layout = args[1], *plain = args[2], *groups = args[4], *result = NULL;
	long long threads = PyLong_AsLongLong(args[5]);
	c.tensors = c.members = STATE + c.kind->n_states;
	c.groups = PyTuple_Size(groups);
	if (PyErr_Occurred()) return NULL;
	int sound = read_torch(&c, layout, plain);
	for (Py_ssize_t g = 0; g < c.groups && sound; g++) {
		PyObject *group = PyTuple_GetItem(groups, g);
		sound = PyTuple_CheckExact(group) && PyTuple_Size(group) == 3 && PyTuple_CheckExact(PyTuple_GetItem(group, 0)) &&
		        PyDict_CheckExact(PyTuple_GetItem(group, 1)) && PyTuple_CheckExact(PyTuple_GetItem(group, 2));
		if (sound) c.n += PyTuple_Size(PyTuple_GetItem(group, 0));
	}
	if (!sound) {
		PyErr_SetString(PyExc_ValueError, "step_groups: expected a layout, up to four types, and groups of parameters, a dict and numbers");
		return NULL;
	}

	Around around = {0};
	if (n == 7 && !read_around(&c, args[6], &around)) return NULL;
	if (!PyDict_Check(c.state)) c.layout = NULL; /* Python looks the states up */
	for (Py_ssize_t g = 0; g < c.groups && c.storage == NULL; g++) {
		int has = has_storage(c.kind, PyTuple_GetItem(PyTuple_GetItem(groups, g), 1));
		if (has < 0) goto done;
		if (!has) continue;
		if ((c.storage = calloc(c.groups, sizeof *c.storage)) == NULL) {
			PyErr_NoMemory();
			goto done;
		}
		c.tensors = TENSORS;
	}
	if (find_attributes(&c, BLOCK) < 0) goto done;

	uint64_t room[ROOM];
	size_t need = need_of(&c);
	char *memory = need <= sizeof room ? (char *)room : borrow(need);
	if (memory == NULL) {
		PyErr_NoMemory();
		goto done;
	}
	divide(&c, memory);

	int ok = 1, all_packed = 1;
	Py_ssize_t first = 0;
	for (Py_ssize_t g = 0; g < c.groups && ok >= 0; g++) {
		PyObject *group = PyTuple_GetItem(groups, g), *params = PyTuple_GetItem(group, 0);
		c.size[g] = PyTuple_Size(params);
		Storage *storage = NULL;
		if (c.storage != NULL) {
			int has = read_storage(PyTuple_GetItem(group, 1), g, &c.storage[g], &c.group[g]);
			if (has < 0) {
				ok = -1;
				break;
			}
			if (has) storage = &c.storage[g];
		}
		int packed = ok = pack(c.kind, PyTuple_GetItem(group, 1), PyTuple_GetItem(group, 2), &c.group[g]);
		all_packed &= packed;
		if (ok >= 0) {
			choose_keys(&c, &c.group[g], packed);
			if (storage != NULL) choose_storage_keys(&c, storage);
			ok = collect(&c, params, first, storage);
		}
		for (Py_ssize_t i = 0; i < c.size[g] && packed == 0; i++) found_at(&c, first + i)->group_falls_back = 1;
		int wide = ok < 0 ? 0 : is_wide(c.kind, PyTuple_GetItem(group, 1));
		if (wide < 0) ok = -1;
		for (Py_ssize_t i = 0; i < c.size[g] && wide > 0; i++) found_at(&c, first + i)->wide_group = 1;
		for (int k = 0; k < c.kind->n_states && c.kind->slices && packed > 0; k++) {
			if (c.kind->state[k].shape < SLICES) continue;
			for (Py_ssize_t i = 0; i < c.size[g]; i++) found_at(&c, first + i)->every = c.group[g].scalars[c.kind->state[k].when];
		}
		first += c.size[g];
	}
	if (ok >= 0 && c.clears) ok = leave_graphs(&c);
	if (ok < 0) goto end;
	if (c.kind->keeps) leave_shared(&c);

	/* From here until Go has returned, no Python code runs, except in prepare_sparse, after which everything is read again,
	 * and in keep_order, after which Go is not called. */
	uint32_t **version = c.version;
	ok = write_rows(&c, &version);
	int sparse = !ok && threads >= 0 && around.flags == 0 ? prepare_sparse(&c, groups) : 0;
	if (sparse < 0) goto end;
	if (sparse) { /* Python code has run, so all addresses are read again */
		for (Py_ssize_t g = 0; g < c.groups; g++) c.group[g].rows = 0;
		version = c.version;
		ok = write_rows(&c, &version) && separate(&c);
		for (Py_ssize_t i = 0; i < c.n_sparse && !ok; i++) c.code[c.sparse[i].param] = PYTHON;
	}
	if (c.kind->n_results > 0) ok &= all_packed; /* also of a group without gradients, whose entries change too */
	if (!ok && keep_order(&c) < 0) goto end;
	long long rows = 0;
	uint64_t head = 0, *next = &head;
	for (Py_ssize_t g = 0; g < c.groups; g++) {
		if (c.group[g].rows == 0 && c.kind->n_results == 0) continue;
		*next = (uint64_t)(uintptr_t)&c.group[g];
		next = &c.group[g].next;
		rows += c.group[g].rows;
	}
	const Row *row = (const Row *)c.rows;
	int surrounded = ok && around.flags != 0, one_call = 1;
	for (long long i = 0; surrounded && i < rows; i++) {
		if (around.flags & CLIP) one_call &= is_like(&row[0], &row[i], around.flags & WIDEN);
	}
	if (surrounded && rows > 0) ((Group *)(uintptr_t)head)->around = (uint64_t)(uintptr_t)&around;
	if (ok && one_call && (rows > 0 || (c.kind->n_results > 0 && head != 0)) && threads != 0) {
		if (call(&c, c.kind->number, head, version, threads > 0, threads) < 0) goto end;
		if (surrounded && rows > 0 && !around.done) {
			one_call = 0;
			count(&c, version, -1); /* nothing was written */
		}
		if (one_call && threads > 0 && keep(&c) < 0) goto end;
		if (one_call && threads > 0 && c.kind->keeps && keep_numbers(&c) < 0) goto end;
		if (one_call && threads > 0 && c.kind->n_results > 0 && keep_results(&c, groups) < 0) goto end;
	}
	if (ok && sparse) {
		if (threads > 0 && call_sparse(&c, threads) < 0) goto end;
		rows += c.n_sparse;
	}
	if (!ok) {
		result = PyBytes_FromStringAndSize((const char *)c.code, c.n);
	} else if (!surrounded) {
		result = PyLong_FromLongLong(rows);
	} else if (one_call) {
		result = Py_BuildValue("Lid", rows, rows > 0 ? (int)row[0].param_type : 0, around.norm);
	} else {
		Py_INCREF(Py_None);
		result = Py_None;
	}
end:
	drop(&c);
	Py_XDECREF(c.inner[0]);
	Py_XDECREF(c.inner[1]);
	if (memory != (char *)room) give_back(memory, need);
done:
	free(c.storage);
	Py_XDECREF(c.grad.descriptor);
	return result;
}

/* find_list acquires references to the tensors of a list's rows: i of them are in tensors, and the second ones in others,
 * or NULL. It returns 1, or -1 with an exception. */
static int find_list(Call *c, PyObject *tensors, PyObject *others)
{
	for (Py_ssize_t i = 0; i < c->n; i++) found_at(c, i)->p = PyTuple_GetItem(tensors, i);
	for (Py_ssize_t i = 0; i < c->n; i++) {
		Found *f = found_at(c, i);
		PyObject *t = f->p, *o = others == NULL ? NULL : PyTuple_GetItem(others, i);
		if (c->layout != NULL) prefetch_params(c, i, c->n);
		int plain = is_plain(c, t);
		if (c->list & GRADIENTS) {
			if ((t = value(c, &c->grad, t, plain)) == NULL) return -1;
			f->p = f->tensor[GRAD] = t;
			plain = (PyObject *)Py_TYPE(t) == c->plain[0];
		} else if (o != NULL) {
			Py_INCREF(o);
			f->tensor[GRAD] = o;
			plain &= is_plain(c, o);
		}
		f->code = t == Py_None ? NO_GRADIENT : plain && c->layout != NULL ? GO : TORCH;
		f->slow = f->code != GO;
		if (f->slow || !(c->list & LEAVES)) continue;
		const char *impl = word(t, c->layout->impl);
		if (impl != NULL && word(impl, c->layout->autograd) == NULL) continue; /* as most gradients */
		int requires = requires_grad(c, t);
		if (requires < 0) return -1;
		if (requires) f->code = TORCH;
	}
	return 1;
}

/* set_item stores x, which it takes over, in a new tuple. If either is NULL, the tuple becomes NULL. */
static void set_item(PyObject **tuple, Py_ssize_t i, PyObject *x)
{
	if (*tuple == NULL || x == NULL) {
		Py_XDECREF(x);
		Py_CLEAR(*tuple);
	} else if (PyTuple_SetItem(*tuple, i, x) < 0) {
		Py_CLEAR(*tuple);
	}
}

/* sequence returns a new tuple of the items of a list or tuple, or NULL with an exception. */
static PyObject *sequence(PyObject *items)
{
	if (PyList_Check(items)) return PyList_AsTuple(items);
	if (PyTuple_Check(items)) {
		Py_INCREF(items);
		return items;
	}
	return PyErr_Format(PyExc_TypeError, "step_lists: a %R, expected a list or tuple of tensors", Py_TYPE(items));
}

const char step_lists_doc[] =
	"step_lists(kind, results, layout, plain, tensors, others, flags, scalars, versions, threads, noise=None, /)\n--\n\n"
	"Apply a kind to a list of tensors in Go. Return the number of rows, or if the kind has results a tuple of that number,\n"
	"the dtype of the first row (engine.DType), and the results. If a tensor is not on the fast path, write nothing,\n"
	"and return one byte per tensor: 0 for Go, 1 for no gradient, 2 for torch.\n\n"
	"kind: the number that Kind returns. results: the number of its results. layout, plain: as for step_groups. tensors: a\n"
	"list or tuple. others: the second tensors of the rows, as many, or None. flags: the sum of 2 for the gradients of the\n"
	"tensors, 4 if those that require a gradient fall back to torch, 8 if all rows must have one dtype, 16 if nothing is\n"
	"written unless the first result is finite, 32 if tensors without elements fall back to torch, 64 to return a tuple of\n"
	"the number that Go writes for each tensor, 128 if 16-bit tensors fall back to torch, 256 if those of\n"
	"float16 do, and 512 if 16-bit rows have the dtype float32 for the flag 8. scalars: numbers. versions: how much is added to the version counters of\n"
	"the first tensors. threads: the largest number of threads. noise: None, or what the random numbers depend on with which\n"
	"16-bit tensors are rounded: the seed, the step, and the index of the first tensor.";

PyObject *step_lists(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	enum { RESULTS = 4 };
	PyTypeObject *types[] = {&PyLong_Type, &PyLong_Type, NULL, &PyTuple_Type, NULL, NULL, &PyLong_Type, &PyTuple_Type, &PyLong_Type, &PyLong_Type, NULL};
	if (!expect("step_lists", types, n == 11 ? 11 : 10, args, n)) return NULL;
	long long kind = PyLong_AsLongLong(args[0]), results = PyLong_AsLongLong(args[1]), versions = PyLong_AsLongLong(args[8]);
	long long threads = PyLong_AsLongLong(args[9]);
	unsigned long long seed = 0;
	double step = 0;
	unsigned int first = 0;
	int noisy = n == 11 && args[10] != Py_None;
	if (noisy && !PyArg_ParseTuple(args[10], "KdI", &seed, &step, &first)) return NULL;
	static const Kind none = {.narrow = 1, .real = -1}; /* without keys and states */
	Call c = {.kind = &none, .list = LIST | (int)PyLong_AsLongLong(args[6]), .pairs = args[5] != Py_None, .tensors = 1, .members = 1, .groups = 1};
	if (PyErr_Occurred()) return NULL;
	PyObject *scalars = args[7], *result = NULL, *others = NULL, *tensors = sequence(args[4]);
	if (tensors == NULL || (c.pairs && (others = sequence(args[5])) == NULL)) goto done;
	c.n = PyTuple_Size(tensors);
	if (!read_torch(&c, args[2], args[3]) || versions < 0 || results < 0 || results > RESULTS) {
		PyErr_Format(PyExc_ValueError, "step_lists: expected a layout, up to four types, and up to %d results", RESULTS);
		goto done;
	}
	if (c.pairs && (c.list & GRADIENTS || PyTuple_Size(others) != c.n)) {
		PyErr_Format(PyExc_ValueError, "step_lists: %zd tensors with %zd others, expected as many", c.n, PyTuple_Size(others));
		goto done;
	}
	if (find_attributes(&c, BLOCK / 4) < 0) goto done;

	uint64_t room[ROOM];
	size_t need = need_of(&c);
	char *memory = need <= sizeof room ? (char *)room : borrow(need);
	if (memory == NULL) {
		PyErr_NoMemory();
		goto done;
	}
	divide(&c, memory);
	c.size[0] = c.n;
	Group *group = c.group;
	int packed = pack(c.kind, NULL, scalars, group);
	if (packed == 0) PyErr_SetString(PyExc_TypeError, "step_lists: expected numbers");
	if (packed <= 0 || find_list(&c, tensors, others) < 0) goto end;
	if (noisy) c.list |= NOISY;
	group->seed = seed;
	for (Py_ssize_t i = 0; i < c.n && noisy; i++) {
		found_at(&c, i)->index = first + (uint32_t)i;
		found_at(&c, i)->step = step - 1; /* which Go increments */
	}
	if (group->count + results > SCALARS) {
		PyErr_Format(PyExc_ValueError, "step_lists: %lld scalars and results, expected up to %d", (long long)(group->count + results), SCALARS);
		goto end;
	}

	/* From here until Go has returned, no Python code runs. */
	uint32_t **version = c.version;
	int ok = write_rows(&c, &version);
	const Row *rows = (const Row *)c.rows;
	for (Py_ssize_t i = 1; i < group->rows && c.list & ONE_TYPE; i++) ok &= is_like(&rows[0], &rows[i], c.list & WIDENED);
	const double *of = &group->scalars[group->count]; /* the results */
	if (ok && group->rows > 0) {
		if (call(&c, kind, (uint64_t)(uintptr_t)group, version, (uint32_t)versions, threads) < 0) goto end;
		if (c.list & FINITE && results > 0 && !(of[0] - of[0] == 0)) count(&c, version, -(uint32_t)versions);
	}
	if (!ok) {
		result = PyBytes_FromStringAndSize((const char *)c.code, c.n);
	} else if (c.list & EACH) {
		result = PyTuple_New(c.n);
		for (Py_ssize_t i = 0; i < c.n; i++) set_item(&result, i, PyFloat_FromDouble(found_at(&c, i)->step));
	} else if (results == 0) {
		result = PyLong_FromLongLong(group->rows);
	} else {
		result = PyTuple_New(2 + results);
		set_item(&result, 0, PyLong_FromLongLong(group->rows));
		set_item(&result, 1, PyLong_FromLongLong(group->rows > 0 ? rows[0].param_type : 0));
		for (Py_ssize_t i = 0; i < results; i++) set_item(&result, 2 + i, PyFloat_FromDouble(of[i]));
	}
end:
	drop(&c);
	if (memory != (char *)room) give_back(memory, need);
done:
	Py_XDECREF(c.grad.descriptor);
	Py_XDECREF(c.requires_grad.descriptor);
	Py_XDECREF(tensors);
	Py_XDECREF(others);
	return result;
}

const char step_sparse_doc[] =
	"step_sparse(kind, group, extra, dtype, row, step, threads, /)\n--\n\n"
	"Step the rows of one parameter that have a gradient. The caller keeps the memory alive.\n\n"
	"kind: the result of make_kind. group, extra: as for step_groups. dtype: the number of the dtype. row: the\n"
	"addresses of the parameter and of two states, or 0; the number of rows and of elements per row; the address of the\n"
	"master copy or the compensation, or 0; the index of the parameter in the optimizer; the addresses of the indices, of\n"
	"the values, and of the order of the indices, or 0; and the number of indices. step: the number of the step, from 1.\n"
	"threads: the largest number of threads.";

PyObject *step_sparse(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	enum { MEMBERS = 11 };
	PyTypeObject *types[] = {NULL, &PyDict_Type, &PyTuple_Type, &PyLong_Type, &PyTuple_Type, &PyFloat_Type, &PyLong_Type};
	if (!expect("step_sparse", types, 7, args, n)) return NULL;
	const Kind *kind = PyCapsule_GetPointer(args[0], kind_name);
	if (kind == NULL) return NULL;
	Group group = {.rows = 1};
	int packed = pack(kind, args[1], args[2], &group);
	if (packed == 0) PyErr_SetString(PyExc_TypeError, "step_sparse: expected numbers in the group");
	if (packed <= 0) return NULL;
	Storage storage = {0};
	int has = has_storage(kind, args[1]);
	if (has < 0 || (has > 0 && read_storage(args[1], 0, &storage, &group) < 0)) return NULL;
	int64_t word[MEMBERS];
	if (PyTuple_Size(args[4]) != MEMBERS) {
		PyErr_Format(PyExc_ValueError, "step_sparse: a row of %zd, expected %d", PyTuple_Size(args[4]), MEMBERS);
		return NULL;
	}
	for (int i = 0; i < MEMBERS; i++) word[i] = PyLong_AsLongLong(PyTuple_GetItem(args[4], i));
	SparseRow row = {
		.param = word[0], .state = {word[1], word[2]}, .rows = word[3], .width = word[4],
		.dtype = PyLong_AsLong(args[3]),
		.extra = word[5], .index = word[6],
		.indices = word[7], .values = word[8], .order = word[9], .n = word[10], .step = PyFloat_AsDouble(args[5]),
	};
	if (row.dtype != FLOAT64) row.state_type = storage.state_type;
	if (is_narrow(row.dtype)) row.flags = storage.flags;
	long long threads = PyLong_AsLongLong(args[6]);
	if (PyErr_Occurred()) return NULL;
	group.table = (uint64_t)(uintptr_t)&row;
	goptim_enter();
	bindings_Step(kind->number, (long long)(uintptr_t)&group, threads);
	if (PyErr_Occurred()) {
		translate();
		return NULL;
	}
	Py_INCREF(Py_None);
	return Py_None;
}

const char layouts_doc[] =
	"layouts()\n--\n\n"
	"Return the layouts of structs and the constants in C, for a test that compares them with those in Go: for each struct,\n"
	"the offset and size of every field in bytes, and under an empty name the size of the struct.";

PyObject *layouts(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
#define FIELD(type, name) {#type, #name, offsetof(type, name), sizeof(((type *)0)->name)}
	static const struct { const char *type, *name; size_t offset, size; } fields[] = {
		{"Row", "", 0, sizeof(Row)}, FIELD(Row, n), FIELD(Row, param), FIELD(Row, grad), FIELD(Row, step), FIELD(Row, state),
		FIELD(Row, param_type), FIELD(Row, grad_type), FIELD(Row, step_type), FIELD(Row, flags), FIELD(Row, state_type),
		FIELD(Row, rows), FIELD(Row, cols),
		{"SparseRow", "", 0, sizeof(SparseRow)}, FIELD(SparseRow, param), FIELD(SparseRow, state), FIELD(SparseRow, rows),
		FIELD(SparseRow, width), FIELD(SparseRow, dtype), FIELD(SparseRow, indices), FIELD(SparseRow, values),
		FIELD(SparseRow, order), FIELD(SparseRow, n), FIELD(SparseRow, step), FIELD(SparseRow, extra), FIELD(SparseRow, index),
		FIELD(SparseRow, state_type), FIELD(SparseRow, flags),
		{"Group", "", 0, sizeof(Group)}, FIELD(Group, next), FIELD(Group, table), FIELD(Group, rows), FIELD(Group, count),
		FIELD(Group, around), FIELD(Group, seed), FIELD(Group, scalars),
		{"Around", "", 0, sizeof(Around)}, FIELD(Around, flags), FIELD(Around, order), FIELD(Around, max_norm),
		FIELD(Around, coefficient), FIELD(Around, weight), FIELD(Around, norm), FIELD(Around, done),
	};
#undef FIELD
	static const struct { const char *name; int value; } constants[] = {
		{"Scalars", SCALARS}, {"States", STATES}, {"First", FIRST}, {"Owned", OWNED}, {"FirstScalar", FIRST_SCALAR}, {"none", NONE},
		{"Master", MASTER}, {"Stochastic", STOCHASTIC}, {"Kahan", KAHAN}, {"MasterState", EXTRA},
		{"float32", FLOAT32}, {"float64", FLOAT64}, {"bfloat16", BFLOAT16}, {"float16", FLOAT16},
		{"Clip", CLIP}, {"Scaled", SCALED}, {"Average", AVERAGE}, {"Clear", CLEAR}, {"Widen", WIDEN},
	};
	if (!expect("layouts", NULL, 0, args, n)) return NULL;
	PyObject *structs = Py_BuildValue("{s:{},s:{},s:{},s:{}}", "Row", "SparseRow", "Group", "Around"), *numbers = PyDict_New();
	int ok = structs != NULL && numbers != NULL;
	for (size_t i = 0; i < sizeof fields / sizeof *fields && ok; i++) {
		PyObject *at = Py_BuildValue("[nn]", (Py_ssize_t)fields[i].offset, (Py_ssize_t)fields[i].size);
		ok = at != NULL && !PyDict_SetItemString(PyDict_GetItemString(structs, fields[i].type), fields[i].name, at);
		Py_XDECREF(at);
	}
	for (size_t i = 0; i < sizeof constants / sizeof *constants && ok; i++) {
		PyObject *value = PyLong_FromLong(constants[i].value);
		ok = value != NULL && !PyDict_SetItemString(numbers, constants[i].name, value);
		Py_XDECREF(value);
	}
	PyObject *result = ok ? Py_BuildValue("{s:O,s:O}", "structs", structs, "constants", numbers) : NULL;
	Py_XDECREF(structs);
	Py_XDECREF(numbers);
	return result;
}
