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
enum { SCALARS = 16, STATES = 6, TYPES = 4, BLOCK = 32 };
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
} SparseRow;
typedef struct { /* steps.Group */
	uint64_t next, table;
	int64_t rows, count;
	uint64_t around;
	double scalars[SCALARS];
} Group;
typedef struct { /* steps.Around */
	int64_t flags, order;
	double max_norm, coefficient, weight, norm;
	int64_t done;
} Around;
enum { CLIP = 1 << 0, SCALED = 1 << 1, AVERAGE = 1 << 2, CLEAR = 1 << 3 }; /* steps.Clip and so on */
enum { FIRST = 1 << 0, OWNED = 1 << 1, FIRST_SCALAR = 1 << 8 }; /* engine.Flags */

/* Who steps a parameter; the codes of _step.py. Of two codes, the larger one applies. */
enum { GO = 0, NO_GRADIENT = 1, TORCH = 2, PYTHON = 3 };
/* Shapes of states. FULL: the parameter's shape. SCALAR: one element. ROWS, COLS: one value per row or column of the
 * matrices in the last two dimensions. VECTOR: the parameter's shape if it has fewer than two dimensions. FLAT_ROWS,
 * FLAT_COLS: ROWS and COLS without the dimension of size 1. */
enum { FULL, SCALAR, ROWS, COLS, VECTOR, FLAT_ROWS, FLAT_COLS };
enum { KEYS = 4 };

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
	} state[STATES];
	PyObject *step; /* key of the step, or NULL */
	int integer;    /* the step is a Python int */
	int matrices;   /* some states have one value per row or column */
	PyObject *leave[KEYS]; /* keys of flags: a group in which one is set falls back to torch */
	PyObject *inner; /* a function that returns the tensors whose memory a tensor uses, or NULL */
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
	int64_t plain, float32, float64, freed;                      /* values of keys, type and deleter; freed 0: unknown */
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
	const int64_t *sizes, *strides; /* NULL if filled by ask */
	int64_t last[2];                /* if filled by ask: the last two sizes, of two or more dimensions */
	uint32_t *version;              /* NULL if there is no version counter, or if filled by ask */
	int owned;                      /* whether it is at the start of memory that no other storage has */
} View;

static int64_t size_of(uint64_t dtype) { return dtype == FLOAT32 ? 4 : 8; }

/* bytes returns the size in bytes of a view whose elements fill one block of memory. */
static int64_t bytes(const View *v) { return v->n * size_of(v->dtype); }

/* view reads a tensor. It returns 1, or 0 if the tensor is on the slow path or its storage is too small. Fast-path
 * tensors have their own memory, without the negative bit and without hidden sharing; if vouched, the caller has checked
 * this. */
INLINED int view(const Layout *l, PyObject *o, int vouched, View *v)
{
	const void *impl = word(o, l->impl);
	if (impl == NULL || (!vouched && (int64_t)word(impl, l->keys) != l->plain)) return 0;
	const char *storage = word(impl, l->storage);
	if (storage == NULL || storage[l->guard]) return 0;
	uint16_t type = ((const uint16_t *)impl)[l->type];
	v->dtype = type == l->float32 ? FLOAT32 : type == l->float64 ? FLOAT64 : 0;
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

/* alike returns the code for a parameter p with a gradient or state v of the same shape. */
INLINED int alike(const View *p, const View *v)
{
	if (v->dtype == 0 || p->ndim != v->ndim) return PYTHON;
	int code = v->dtype == p->dtype ? GO : TORCH;
	for (int64_t i = 0; i < p->ndim; i++) {
		if (p->sizes[i] != v->sizes[i]) return PYTHON;
		if (p->sizes[i] != 1 && p->strides[i] != v->strides[i] && p->n != 0) code = TORCH;
	}
	return code;
}

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

static int max(int a, int b) { return a > b ? a : b; }

/* Stretches are the memory ranges of one row, for overlap checks: first the parameter, then its gradient. An empty tensor
 * has a range of one byte at an address that is never mapped. */
enum { STRETCHES = 3 + STATES };
typedef struct {
	int n, owned; /* owned: whether all views are */
	uint64_t at[STRETCHES], size[STRETCHES];
} Stretches;

INLINED void put(Stretches *s, const View *v)
{
	int64_t size = bytes(v);
	s->at[s->n] = size == 0 ? (uint64_t)(s->n + 1) << 56 : v->at;
	s->size[s->n++] = size == 0 ? 1 : size;
	s->owned &= v->owned;
}

INLINED int overlap_of(const Stretches *s, int n)
{
	int found = 0;
#pragma GCC unroll 9
	for (int i = 1; i < n; i++)
#pragma GCC unroll 9
		for (int j = 0; j < i; j++) found |= s->at[i] - s->at[j] + s->size[i] - 1 < s->size[i] + s->size[j] - 1;
	return found;
}

INLINED int overlap(const Stretches *s)
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

/* A Given is a row that was passed as a tuple. */
typedef struct {
	PyObject *row; /* borrowed from the group */
	int asked;     /* whether the views below are from ask */
	double step;   /* if the kind's step is an int */
	View param, view[TENSORS];
	PyObject *storage[1 + TENSORS]; /* the storages of the tensors, owned */
} Given;

/* A Found is one parameter of a group. It owns its tensors. */
typedef struct {
	PyObject *p;    /* borrowed from the group */
	PyObject *with; /* borrowed from the group: a tensor that was passed with the parameter, or NULL */
	Given *given;   /* NULL unless the row was passed as a tuple */
	double step;    /* if the kind's step is an int; in a list, the number that Go writes */
	uint8_t code;
	uint8_t fresh;  /* it does not have a state yet */
	uint8_t torchs; /* its whole group falls back to torch */
	uint8_t odd;    /* slow path: some of its state is not a tensor, or a tensor subclass */
	PyObject *tensor[]; /* Call.tensors of them; NULL for a missing one */
} Found;

/* Flags of step_lists. */
enum {
	LIST = 1 << 0,      /* set in C */
	GRADIENTS = 1 << 1, /* the rows are the gradients of the tensors */
	LEAVES = 1 << 2,    /* one that requires a gradient falls back to torch */
	ONE_TYPE = 1 << 3,  /* all rows in Go have one dtype */
	FINITE = 1 << 4,    /* nothing is written unless the first result is finite */
	FILLED = 1 << 5,    /* one without elements falls back to torch */
	EACH = 1 << 6,      /* Go writes a number for each row, as state 0 */
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
	PyObject *plain[TYPES];  /* types of parameters; the first is torch.Tensor */
	PyObject *state;         /* the optimizer's state */
	Attribute grad, requires_grad;
	descrgetfunc get;        /* the getter of descriptors, or NULL */
	Py_ssize_t at;           /* position in state, after the parameter found last */
	PyObject *key[TENSORS];  /* keys of a parameter's state in the current group; NULL for one that is not read */
	int stateful;            /* whether any key is read */
	int tensors;             /* tensors that belong to a parameter of the kind: up to TENSORS */
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
	f->code = g == Py_None ? NO_GRADIENT : simple && (!c->kind->integer || f->with != NULL) ? GO : PYTHON;
	return 1;
}

/* find_pair is find for a parameter that was passed with a tensor, which is used as the state without a key. */
static int find_pair(Call *c, Found *f, PyObject **of)
{
	int place = -1;
	for (int k = 0; k < c->kind->n_states; k++)
		if (c->kind->state[k].key == NULL) place = k;
	if (place < 0) {
		PyErr_Format(PyExc_ValueError, "step_groups: a row of 2, expected %d", 2 + c->tensors);
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

/* find_step reads the step of a kind whose step is an int. If it is not an int, Python decides. */
static int find_step(const Call *c, Found *f, PyObject *of)
{
	PyObject *step = PyDict_GetItemWithError(of, c->kind->step);
	if (step == NULL && PyErr_Occurred()) return -1;
	if (step == NULL || !PyLong_CheckExact(step)) {
		f->code = max(f->code, PYTHON);
		return 1;
	}
	f->step = PyLong_AsDouble(step);
	if (f->step == -1 && PyErr_Occurred()) return -1;
	if (f->step < 0) f->code = max(f->code, PYTHON);
	return 1;
}

/* find_states gets the tensors of a parameter's state. It returns 1, or -1 with an exception. */
static int find_states(const Call *c, Found *f, PyObject *of)
{
	if (f->code == NO_GRADIENT || f->fresh || of == NULL) return 1;
	if (c->kind->integer && f->code != PYTHON && find_step(c, f, of) < 0) return -1;
	int own = !Py_IS_TYPE(of, &PyDict_Type) &&
	          PyType_GetSlot(Py_TYPE(of), Py_mp_subscript) != PyType_GetSlot(&PyDict_Type, Py_mp_subscript);
	Py_ssize_t behind = 0; /* after the key found last: keys are usually in the order in which torch creates states */
	for (int i = STEP; i < c->tensors && c->stateful; i++) {
		if (c->key[i] == NULL) continue;
		PyObject *key, *t;
		Py_ssize_t at = behind;
		if (own) {
			t = PyObject_GetItem(of, c->key[i]);
			if (t == NULL && !PyErr_ExceptionMatches(PyExc_Exception)) return -1;
			PyErr_Clear(); /* torch may not read this key */
		} else if (PyDict_Next(of, &at, &key, &t) && key == c->key[i]) {
			behind = at;
			Py_INCREF(t);
		} else {
			t = PyDict_GetItemWithError(of, c->key[i]);
			if (t == NULL && PyErr_Occurred()) return -1;
			Py_XINCREF(t);
		}
		if (t == NULL) {
			if (PyDict_Size(of) == 0) f->fresh = 1;
			if (f->fresh) return 1;
			if (i == STEP || c->kind->state[i - STATE].shape <= SCALAR) f->code = max(f->code, TORCH); /* keeps PYTHON; see fill */
			continue;
		}
		f->tensor[i] = t;
		f->odd |= (PyObject *)Py_TYPE(t) != c->plain[0];
		prefetch(t, OBJECT);
	}
	return 1;
}

/* approach prefetches what find reads of the parameters a few indices after i and below n. */
static void approach(const Call *c, Py_ssize_t i, Py_ssize_t n)
{
	PyObject *p;
	const Layout *l = c->layout;
	if (i + 8 < n) prefetch(found_at(c, i + 8)->p, OBJECT);
	if (i + 6 < n && is_plain(c, p = found_at(c, i + 6)->p)) prefetch_impl(l, word(p, l->impl));
	if (i + 3 < n && is_plain(c, p = found_at(c, i + 3)->p) && word(p, l->impl) != NULL)
		prefetch(word(word(p, l->impl), l->autograd), AUTOGRAD);
}

/* asked calls a method of a tensor or storage that returns an int. It returns -1 with an exception. */
static int64_t asked(PyObject *t, const char *what)
{
	PyObject *answer = PyObject_CallMethod(t, what, NULL);
	if (answer == NULL) return -1;
	int64_t n = PyLong_AsLongLong(answer);
	Py_DECREF(answer);
	return n;
}

/* ask is view through torch's Python API, for a float32 or float64 tensor. It returns 1, or -1 with an exception. The
 * address is in the storage that it references, so it stays valid if the tensor changes. */
static int ask(PyObject *t, View *v, PyObject **storage)
{
	if (asked(t, "data_ptr") < 0 && PyErr_Occurred()) return -1; /* this materializes copy-on-write memory */
	*storage = PyObject_CallMethod(t, "untyped_storage", NULL);
	if (*storage == NULL) return -1;
	int64_t size = asked(t, "element_size"), offset = asked(t, "storage_offset");
	v->n = asked(t, "numel");
	v->ndim = asked(t, "dim");
	for (int i = 0; i < 2 && v->ndim >= 2 && !PyErr_Occurred(); i++) {
		PyObject *x = PyObject_CallMethod(t, "size", "i", i - 2);
		v->last[i] = x == NULL ? -1 : PyLong_AsLongLong(x);
		Py_XDECREF(x);
	}
	int64_t has = asked(*storage, "nbytes"), at = asked(*storage, "data_ptr");
	if (PyErr_Occurred()) return -1;
	v->dtype = size == 4 ? FLOAT32 : size == 8 ? FLOAT64 : 0;
	if (v->n < 0 || (v->n > 0 && (offset + v->n) * size > has)) v->dtype = 0; /* it has changed since Python checked it */
	v->at = (uint64_t)at + offset * size;
	return 1;
}

/* take reads a row that was passed as a tuple. It returns 1, or -1 with an exception. */
static int take(const Call *c, Found *f)
{
	PyObject *row = f->p;
	int members = 2 + c->tensors;
	if (PyTuple_Size(row) != members) {
		PyErr_Format(PyExc_ValueError, "step_groups: a row of %zd, expected %d", PyTuple_Size(row), members);
		return -1;
	}
	f->code = GO;
	if ((f->given = calloc(1, sizeof *f->given)) == NULL) {
		PyErr_NoMemory();
		return -1;
	}
	f->given->row = row;
	f->given->asked = c->layout == NULL;
	for (int i = -1; i < c->tensors; i++) {
		PyObject *t = PyTuple_GetItem(row, i + 1);
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
		if (f->given->asked) {
			if (ask(t, i < 0 ? &f->given->param : &f->given->view[i], &f->given->storage[i + 1]) < 0) return -1;
		} else {
			const char *impl = word(t, c->layout->impl), *storage = impl == NULL ? NULL : word(impl, c->layout->storage);
			if (storage != NULL && storage[c->layout->guard] && asked(t, "data_ptr") < 0 && PyErr_Occurred()) return -1;
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
		c->key[STATE + k] = c->kind->state[k].key;
		c->stateful |= c->key[STATE + k] != NULL;
	}
}

/* collect acquires references to everything that the rows of a group's parameters can refer to. It returns 1, or -1 with
 * an exception. first is the index of the group's first parameter among all parameters. */
static int collect(Call *c, PyObject *params, Py_ssize_t first)
{
	Py_ssize_t all = first + PyTuple_Size(params);
	for (Py_ssize_t i = first; i < all; i++) found_at(c, i)->p = PyTuple_GetItem(params, i - first);
	for (Py_ssize_t start = first; start < all; start += BLOCK) {
		PyObject *of[BLOCK] = {NULL};
		Py_ssize_t end = start + BLOCK < all ? start + BLOCK : all;
		int ok = 1;
		for (Py_ssize_t i = start; ok > 0 && i < end; i++) {
			Found *f = found_at(c, i);
			if (c->layout != NULL) approach(c, i, all);
			PyObject **state = &of[i - start];
			int members = PyTuple_CheckExact(f->p) ? (int)PyTuple_Size(f->p) : 0;
			ok = members == 0 ? find(c, f, state) : members == 2 ? find_pair(c, f, state) : take(c, f);
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

/* number reads a scalar state. It returns a code. */
INLINED int number(const Call *c, PyObject *o, View *v)
{
	if ((PyObject *)Py_TYPE(o) != c->plain[0]) return TORCH;
	if (!view(c->layout, o, 0, v)) return PYTHON;
	if (v->ndim != 0 || v->dtype == 0) return TORCH;
	prefetch((const void *)(uintptr_t)v->at, 1);
	return GO;
}

/* column reads a state tensor that is not scalar. It returns a code; the caller checks the shape and dtype. */
INLINED int column(const Call *c, PyObject *o, View *v)
{
	if ((PyObject *)Py_TYPE(o) != c->plain[0]) /* Python checks the shape of a subclass */
		return PyObject_TypeCheck(o, (PyTypeObject *)c->plain[0]) ? PYTHON : TORCH;
	return view(c->layout, o, 0, v) ? GO : PYTHON;
}

/* applies reports whether a parameter with ndim dimensions has a state of a shape. */
static int applies(int shape, int64_t ndim) { return shape <= SCALAR || (shape == VECTOR) == (ndim < 2); }

/* fits returns the code for a parameter p with a state v of a shape. */
static int fits(const View *p, const View *v, int shape, int flat)
{
	if (shape == ROWS) return reduced(p, v, 1, flat);
	return shape == COLS ? reduced(p, v, 2, flat) : alike(p, v);
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

/* fill_of is fill for a kind with n_states states. */
INLINED int fill_of(const Call *c, const Found *f, Row *row, uint32_t ***version, Stretches *memory, int n_states, int matrices)
{
	View param, v;
	const Kind *kind = c->kind;
	uint32_t **at = *version;
	int code = f->code, found;
	if (!view(c->layout, f->p, 0, &param)) return PYTHON;
	if (param.dtype == 0 || !dense(&param)) return TORCH;
	if (matrices && (param.n == 0 || !contiguous(&param))) return TORCH;
	if (f->fresh || !view(c->layout, f->tensor[GRAD], 0, &v)) return PYTHON;
	code = max(code, alike(&param, &v));
	*row = (Row){.n = param.n, .param = param.at, .grad = v.at, .param_type = param.dtype, .grad_type = v.dtype};
	if (matrices && param.ndim >= 2 && !set_matrices(row, &param)) return TORCH;
	*at++ = param.version;
	memory->n = 0;
	memory->owned = 1;
	put(memory, &param);
	put(memory, &v);
	if (f->tensor[STEP] != NULL) {
		found = number(c, f->tensor[STEP], &v);
		code = max(code, found);
		if (found == GO) {
			row->step = v.at;
			row->step_type = v.dtype;
			put(memory, &v);
			*at++ = v.version;
		}
	}
	if (matrices && kind->integer) {
		row->step = (uint64_t)(uintptr_t)&f->step;
		row->step_type = FLOAT64;
	}
	for (int k = 0; k < n_states; k++) {
		PyObject *o = f->tensor[STATE + k];
		int shape = kind->state[k].shape;
		if (matrices && !applies(shape, param.ndim)) continue;
		if (o == NULL) {
			if (matrices && shape > SCALAR) code = max(code, TORCH);
			continue;
		}
		if (shape == SCALAR) found = number(c, o, &v);
		else if ((found = column(c, o, &v)) == GO) found = matrices ? fits(&param, &v, shape, kind->state[k].flat) : alike(&param, &v);
		code = max(code, found);
		if (found != GO) continue;
		row->state[k] = v.at;
		row->state_type[k] = v.dtype;
		if (shape == SCALAR) row->flags |= (uint32_t)FIRST_SCALAR << k;
		put(memory, &v);
		*at++ = v.version;
	}
	if (memory->owned) row->flags |= OWNED;
	if (code == GO && overlap(memory)) code = TORCH;
	if (code == GO) *version = at;
	return code;
}

/* fill writes the row and the memory ranges of one parameter, and returns a code. The row is valid only for GO. */
static int fill(const Call *c, const Found *f, Row *row, uint32_t ***version, Stretches *memory)
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
	if (given->asked) param = given->param;
	else if (!view(c->layout, f->p, 1, &param)) return PYTHON;
	if (param.dtype == 0) return PYTHON;
	*row = (Row){.n = param.n, .param = param.at, .param_type = param.dtype};
	if (kind->matrices && param.ndim >= 2 && !set_matrices(row, &param)) return PYTHON;
	if (param.version != NULL && !given->asked) *at++ = param.version;
	if (kind->integer) {
		row->step = (uint64_t)(uintptr_t)&given->step;
		row->step_type = FLOAT64;
	}
	for (int i = 0; i < c->tensors; i++) {
		if (f->tensor[i] == NULL) continue;
		if (given->asked) v = given->view[i];
		else if (!view(c->layout, f->tensor[i], 1, &v)) return PYTHON;
		if (v.dtype == 0) return PYTHON;
		int shape = i == GRAD ? FULL : i == STEP ? SCALAR : kind->state[i - STATE].shape;
		if (v.n != expected(&param, shape) || (shape != SCALAR && v.dtype != param.dtype)) return PYTHON;
		if (i >= STEP && !given->asked && v.version != NULL) *at++ = v.version;
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
	if (PyTuple_GetItem(given->row, 1 + c->tensors) != Py_None) row->flags |= FIRST;
	*version = at;
	return GO;
}

/* fill_list writes the row of a list, and returns a code. */
static int fill_list(const Call *c, Found *f, Row *row, uint32_t ***version)
{
	View first, second;
	if (!view(c->layout, f->p, 0, &first) || first.dtype == 0 || !dense(&first)) return TORCH;
	if (first.n == 0 && c->list & FILLED) return TORCH;
	*row = (Row){.n = first.n, .param = first.at, .param_type = first.dtype};
	Stretches memory = {.owned = 1};
	put(&memory, &first);
	if (c->pairs) {
		if (!view(c->layout, f->tensor[GRAD], 0, &second) || alike(&first, &second) != GO) return TORCH;
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
	if (memory.owned) row->flags |= OWNED;
	*(*version)++ = first.version;
	return GO;
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
	if (alike(&param, &v) != GO) return PYTHON;
	row->state[STATES - 1] = v.at;
	row->state_type[STATES - 1] = v.dtype;
	*(*version)++ = v.version;
	return GO;
}

/* touch prefetches the tensor objects of parameter i, which may have left the cache since they were referenced. */
static void touch(const Call *c, Py_ssize_t i)
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
	int ok = 1;
	Stretches memory;
	for (Py_ssize_t start = 0; start < c->n; start += BLOCK) {
		Py_ssize_t stop = start + BLOCK < c->n ? start + BLOCK : c->n;
		for (Py_ssize_t i = stop; i < stop + BLOCK && i < c->n; i++) {
			prefetch(found_at(c, i)->p, OBJECT);
			touch(c, i);
		}
		for (Py_ssize_t i = start; i < stop && l != NULL; i++) {
			const Found *f = found_at(c, i);
			if (f->code == NO_GRADIENT || f->code == PYTHON || f->odd) continue;
			for (int k = -1; k < c->tensors; k++) {
				PyObject *t = k < 0 ? f->p : f->tensor[k];
				if (t != NULL) prefetch_impl(l, word(t, l->impl));
			}
		}
		for (Py_ssize_t i = start; i < stop && l != NULL; i++) {
			const Found *f = found_at(c, i);
			if (f->code == NO_GRADIENT || f->code == PYTHON || f->odd) continue;
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
			if (f->torchs) code = TORCH;
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

static int may_be_torchs(int code) { return code == TORCH || code == PYTHON; }

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
		if (!may_be_torchs(c->code[i]) || f->given != NULL) continue;
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
	for (Py_ssize_t i = 0; i < c->n; i++) all += may_be_torchs(c->code[i]), go += c->code[i] == GO;
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
			if (!may_be_torchs(c->code[i]) || f->given != NULL) continue;
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
			Stretches s = {0}; /* other code may have changed a tensor, so that fill does not write it */
			if (c->code[i] != GO || found_at(c, i)->given != NULL) continue;
			fill(c, found_at(c, i), &scratch, &version, &s);
			for (int k = 0; k < s.n && c->code[i] == GO; k++) {
				uint64_t from = s.at[k], to = s.at[k] + s.size[k];
				if (n == 0 || from >= high || to <= spans[0].at) continue;
				Py_ssize_t first = 0, behind = n; /* finds the spans that begin before the range ends */
				while (first < behind) {
					Py_ssize_t middle = (first + behind) / 2;
					if (spans[middle].at < to) first = middle + 1;
					else behind = middle;
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
		PyObject *state = f->given == NULL ? Py_None : PyTuple_GetItem(f->given->row, 1 + c->tensors);
		for (int k = 0; PyDict_Check(state) && k < c->kind->n_states; k++) {
			PyObject *t = f->tensor[STATE + k], *key = c->kind->state[k].key;
			if (t != NULL && key != NULL && PyObject_SetItem(state, key, t)) return -1;
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
		if (i + 8 < c->n) touch(c, i + 8);
		for (int k = 0; k < c->tensors; k++) Py_XDECREF(f->tensor[k]);
		if (f->given == NULL) continue;
		for (int k = 0; k <= TENSORS; k++) Py_XDECREF(f->given->storage[k]);
		free(f->given);
	}
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
	Py_XDECREF(kind->step);
	Py_XDECREF(kind->inner);
	free(kind);
}

/* held returns a new reference to a key, interned as the keys of most dicts are, or NULL for None. */
static PyObject *held(PyObject *key)
{
	if (key == Py_None) return NULL;
	Py_INCREF(key);
	if (PyUnicode_CheckExact(key)) PyUnicode_InternInPlace(&key);
	return key;
}

const char make_kind_doc[] =
	"make_kind(number, scalars, states, step, integer, leave, inner, /)\n--\n\n"
	"Return a description of a kind of step (steps.Kind) for step_groups.\n\n"
	"number: the number that Kind returns. scalars: for each, the key in a group, or None; the index in a sequence, or -1;\n"
	"the length of the sequence; whether it is a flag; and the default for a group without the key, or None. states: for\n"
	"each, the key in a parameter's state, or None for a tensor that is passed with the row; its shape: 0 for the shape of\n"
	"the parameter, 1 for one element, 2 and 3 for one value per row or column of its matrices, 4 for the shape of a\n"
	"parameter with fewer than two dimensions, 5 and 6 for 2 and 3 without the dimension of size 1; the index of the scalar\n"
	"that enables it, or -1; and whether it is enabled by > 0 instead of != 0. step: the key of the step, or None.\n"
	"integer: whether the step is an int. leave: keys of flags; a group in which one is set falls back to torch. inner: a\n"
	"function that returns the tensors whose memory a tensor uses, as a tuple.";

PyObject *make_kind(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	PyTypeObject *types[] = {&PyLong_Type, &PyTuple_Type, &PyTuple_Type, NULL, NULL, &PyTuple_Type, NULL};
	if (!expect("make_kind", types, 7, args, n)) return NULL;
	Py_ssize_t n_scalars = PyTuple_Size(args[1]), n_states = PyTuple_Size(args[2]), n_leave = PyTuple_Size(args[5]);
	if (n_scalars > SCALARS || n_states > STATES || n_leave > KEYS) {
		PyErr_Format(PyExc_ValueError, "make_kind: expected at most %d scalars, %d states and %d flags", SCALARS, STATES, KEYS);
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
	int ok = !(kind->number == -1 && PyErr_Occurred());
	for (int i = 0; i < n_scalars && ok; i++) {
		PyObject *key, *value;
		ok = PyArg_ParseTuple(PyTuple_GetItem(args[1], i), "OiipO", &key, &kind->scalar[i].index, &kind->scalar[i].length,
		                      &kind->scalar[i].flag, &value);
		if (!ok) break;
		kind->scalar[i].key = held(key);
		kind->scalar[i].optional = value != Py_None;
		if (value != Py_None) kind->scalar[i].value = PyFloat_AsDouble(value);
		ok = !PyErr_Occurred();
	}
	for (int k = 0; k < n_states && ok; k++) {
		PyObject *key;
		ok = PyArg_ParseTuple(PyTuple_GetItem(args[2], k), "Oiip", &key, &kind->state[k].shape, &kind->state[k].when,
		                      &kind->state[k].above);
		if (!ok) break;
		kind->state[k].key = held(key);
		if (kind->state[k].shape < FULL || kind->state[k].shape > FLAT_COLS || kind->state[k].when >= SCALARS) {
			PyErr_Format(PyExc_ValueError, "make_kind: state %d is of a shape or a scalar that is not known", k);
			ok = 0;
		}
		kind->state[k].flat = kind->state[k].shape > VECTOR;
		if (kind->state[k].flat) kind->state[k].shape += ROWS - FLAT_ROWS;
		kind->matrices |= kind->state[k].shape == ROWS;
	}
	kind->step = held(args[3]);
	kind->inner = held(args[6]);
	kind->integer = PyObject_IsTrue(args[4]);
	for (int i = 0; i < n_leave; i++) kind->leave[i] = held(PyTuple_GetItem(args[5], i));
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
	"8 to clear the gradients); the order of norms; the largest norm; the factor of the gradients; the weight of a parameter\n"
	"in its average; and for each parameter its average or None, or None for all. The result is then a tuple of the number\n"
	"of parameters, the size of an element of the first one in bytes, and the norm; or None, and nothing was written, if\n"
	"parameters to be clipped have several dtypes or tensors share memory.\n\n"
	"A parameter may be replaced by a row: a tuple of the parameter, the gradient, the step or None, the states of the\n"
	"kind, each a tensor or None, and the dict in which the states are stored after the step, or None. It may also be\n"
	"replaced by a pair: the parameter and the tensor to use as the state without a key.";

PyObject *step_groups(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	PyTypeObject *types[] = {NULL, NULL, &PyTuple_Type, NULL, &PyTuple_Type, &PyLong_Type, &PyTuple_Type};
	if (!expect("step_groups", types, n == 7 ? 7 : 6, args, n)) return NULL;
	Call c = {.kind = PyCapsule_GetPointer(args[0], kind_name), .state = args[3]};
	if (c.kind == NULL) return NULL;
	PyObject *layout = args[1], *plain = args[2], *groups = args[4], *result = NULL;
	long long threads = PyLong_AsLongLong(args[5]);
	c.tensors = STATE + c.kind->n_states;
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
	if (find_attributes(&c, BLOCK) < 0) goto done;

	uint64_t room[ROOM];
	size_t need = need_of(&c);
	char *memory = need <= sizeof room ? (char *)room : borrow(need);
	if (memory == NULL) {
		PyErr_NoMemory();
		goto done;
	}
	divide(&c, memory);

	int ok = 1;
	Py_ssize_t first = 0;
	for (Py_ssize_t g = 0; g < c.groups && ok >= 0; g++) {
		PyObject *group = PyTuple_GetItem(groups, g), *params = PyTuple_GetItem(group, 0);
		c.size[g] = PyTuple_Size(params);
		int packed = ok = pack(c.kind, PyTuple_GetItem(group, 1), PyTuple_GetItem(group, 2), &c.group[g]);
		if (ok >= 0) {
			choose_keys(&c, &c.group[g], packed);
			ok = collect(&c, params, first);
		}
		for (Py_ssize_t i = 0; i < c.size[g] && packed == 0; i++) found_at(&c, first + i)->torchs = 1;
		first += c.size[g];
	}
	if (ok >= 0 && c.clears) ok = leave_graphs(&c);
	if (ok < 0) goto end;

	/* From here until Go has returned, no Python code runs; keep_order runs some, but only if Go is not called. */
	uint32_t **version = c.version;
	ok = write_rows(&c, &version);
	if (!ok && keep_order(&c) < 0) goto end;
	long long rows = 0;
	uint64_t head = 0, *next = &head;
	for (Py_ssize_t g = 0; g < c.groups; g++) {
		if (c.group[g].rows == 0) continue;
		*next = (uint64_t)(uintptr_t)&c.group[g];
		next = &c.group[g].next;
		rows += c.group[g].rows;
	}
	const Row *row = (const Row *)c.rows;
	int surrounded = ok && around.flags != 0, alone = 1;
	for (long long i = 1; surrounded && i < rows && around.flags & CLIP; i++) alone &= row[i].param_type == row[0].param_type;
	if (surrounded && rows > 0) ((Group *)(uintptr_t)head)->around = (uint64_t)(uintptr_t)&around;
	if (ok && alone && rows > 0 && threads != 0) {
		if (call(&c, c.kind->number, head, version, threads > 0, threads) < 0) goto end;
		if (surrounded && !around.done) {
			alone = 0;
			count(&c, version, -1); /* nothing was written */
		}
		if (alone && threads > 0 && keep(&c) < 0) goto end;
	}
	if (!ok) {
		result = PyBytes_FromStringAndSize((const char *)c.code, c.n);
	} else if (!surrounded) {
		result = PyLong_FromLongLong(rows);
	} else if (alone) {
		result = Py_BuildValue("Lid", rows, rows > 0 ? (int)size_of(row[0].param_type) : 0, around.norm);
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
		if (c->layout != NULL) approach(c, i, c->n);
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
		f->odd = f->code != GO;
		if (f->odd || !(c->list & LEAVES)) continue;
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
	"step_lists(kind, results, layout, plain, tensors, others, flags, scalars, versions, threads, /)\n--\n\n"
	"Apply a kind to a list of tensors in Go. Return the number of rows, or if the kind has results a tuple of that number,\n"
	"the size in bytes of an element of the first row, and the results. If a tensor is not on the fast path, write nothing,\n"
	"and return one byte per tensor: 0 for Go, 1 for no gradient, 2 for torch.\n\n"
	"kind: the number that Kind returns. results: the number of its results. layout, plain: as for step_groups. tensors: a\n"
	"list or tuple. others: the second tensors of the rows, as many, or None. flags: the sum of 2 for the gradients of the\n"
	"tensors, 4 if those that require a gradient fall back to torch, 8 if all rows must have one dtype, 16 if nothing is\n"
	"written unless the first result is finite, 32 if tensors without elements fall back to torch, and 64 to return a tuple\n"
	"of the number that Go writes for each tensor. scalars: numbers. versions: how much is added to the version counters of\n"
	"the first tensors. threads: the largest number of threads.";

PyObject *step_lists(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	enum { RESULTS = 4 };
	PyTypeObject *types[] = {&PyLong_Type, &PyLong_Type, NULL, &PyTuple_Type, NULL, NULL, &PyLong_Type, &PyTuple_Type, &PyLong_Type, &PyLong_Type};
	if (!expect("step_lists", types, 10, args, n)) return NULL;
	long long kind = PyLong_AsLongLong(args[0]), results = PyLong_AsLongLong(args[1]), versions = PyLong_AsLongLong(args[8]);
	long long threads = PyLong_AsLongLong(args[9]);
	static const Kind none; /* without keys and states */
	Call c = {.kind = &none, .list = LIST | (int)PyLong_AsLongLong(args[6]), .pairs = args[5] != Py_None, .tensors = 1, .groups = 1};
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
	if (group->count + results > SCALARS) {
		PyErr_Format(PyExc_ValueError, "step_lists: %lld scalars and results, expected up to %d", (long long)(group->count + results), SCALARS);
		goto end;
	}

	/* From here until Go has returned, no Python code runs. */
	uint32_t **version = c.version;
	int ok = write_rows(&c, &version);
	const Row *rows = (const Row *)c.rows;
	for (Py_ssize_t i = 1; i < group->rows && c.list & ONE_TYPE; i++) ok &= rows[i].param_type == rows[0].param_type;
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
		set_item(&result, 1, PyLong_FromLongLong(group->rows > 0 ? size_of(rows[0].param_type) : 0));
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
	"step_sparse(kind, group, extra, size, row, step, threads, /)\n--\n\n"
	"Step the rows of one parameter that have a gradient. The caller keeps the memory alive.\n\n"
	"kind: the result of make_kind. group, extra: as for step_groups. size: the size of an element in bytes. row: the\n"
	"addresses of the parameter and of two states, or 0; the number of rows and of elements per row; the addresses of the\n"
	"indices, of the values, and of the order of the indices, or 0; and the number of indices. step: the number of the\n"
	"step, from 1. threads: the largest number of threads.";

PyObject *step_sparse(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	enum { MEMBERS = 9 };
	PyTypeObject *types[] = {NULL, &PyDict_Type, &PyTuple_Type, &PyLong_Type, &PyTuple_Type, &PyFloat_Type, &PyLong_Type};
	if (!expect("step_sparse", types, 7, args, n)) return NULL;
	const Kind *kind = PyCapsule_GetPointer(args[0], kind_name);
	if (kind == NULL) return NULL;
	Group group = {.rows = 1};
	int packed = pack(kind, args[1], args[2], &group);
	if (packed == 0) PyErr_SetString(PyExc_TypeError, "step_sparse: expected numbers in the group");
	if (packed <= 0) return NULL;
	int64_t word[MEMBERS];
	if (PyTuple_Size(args[4]) != MEMBERS) {
		PyErr_Format(PyExc_ValueError, "step_sparse: a row of %zd, expected %d", PyTuple_Size(args[4]), MEMBERS);
		return NULL;
	}
	for (int i = 0; i < MEMBERS; i++) word[i] = PyLong_AsLongLong(PyTuple_GetItem(args[4], i));
	SparseRow row = {
		.param = word[0], .state = {word[1], word[2]}, .rows = word[3], .width = word[4],
		.dtype = PyLong_AsLong(args[3]) == 4 ? FLOAT32 : FLOAT64,
		.indices = word[5], .values = word[6], .order = word[7], .n = word[8], .step = PyFloat_AsDouble(args[5]),
	};
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
		FIELD(SparseRow, order), FIELD(SparseRow, n), FIELD(SparseRow, step),
		{"Group", "", 0, sizeof(Group)}, FIELD(Group, next), FIELD(Group, table), FIELD(Group, rows), FIELD(Group, count),
		FIELD(Group, around), FIELD(Group, scalars),
		{"Around", "", 0, sizeof(Around)}, FIELD(Around, flags), FIELD(Around, order), FIELD(Around, max_norm),
		FIELD(Around, coefficient), FIELD(Around, weight), FIELD(Around, norm), FIELD(Around, done),
	};
#undef FIELD
	static const struct { const char *name; int value; } constants[] = {
		{"Scalars", SCALARS}, {"States", STATES}, {"First", FIRST}, {"Owned", OWNED}, {"FirstScalar", FIRST_SCALAR}, {"none", NONE},
		{"float32", FLOAT32}, {"float64", FLOAT64}, {"bfloat16", BFLOAT16}, {"float16", FLOAT16},
		{"Clip", CLIP}, {"Scaled", SCALED}, {"Average", AVERAGE}, {"Clear", CLEAR},
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
