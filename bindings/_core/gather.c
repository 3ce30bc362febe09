/* step_groups steps groups of parameters: it finds their tensors, writes a table of rows (goptim/table.go) and calls Go.
 *
 * A step has two phases. In the first, references are taken to every tensor of every group; Python code may run there,
 * as of hash functions, descriptors, finalizers and the collector, and may change all that has not been read yet. In
 * the second, addresses are read, checked and handed to Go; no Python code runs there, and no Python object is made.
 * So no address is older than the last Python code before the call of Go, and all that a row names is held until Go has
 * returned. What another thread does to a held tensor while Go writes, as to assign its data, nobody can prevent.
 *
 * A step of many small tensors costs what finding their addresses costs: some forty cache lines a parameter, which the
 * model's forward and backward pass have pushed out to memory. So parameters are taken in blocks, and a block in
 * sweeps, each of which brings the lines that the next one reads. The tensors are read where this torch has been found
 * to keep them (python/goptim/_layout.py), for a call of torch, even of its C interfaces, takes ten times as long as
 * the words themselves. Only the plain case is taken here, with every check that keeps it safe; a parameter that is
 * another case is answered with a code, and nothing is written (python/goptim/_step.py).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "_cgo_export.h"

void goptim_enter(void); /* bindings/internal/openmp/team.c */

enum { FLOAT32 = 1, FLOAT64 = 2 }; /* engine.DType */
enum { SCALARS = 16, STATES = 3, TYPES = 4, BLOCK = 32 };
typedef struct { int64_t n; uint64_t kind, param, grad, step, state[STATES]; } Row; /* engine.Row */
typedef struct { int64_t n; uint64_t kind, param, grad; int64_t step; uint64_t rms, state[STATES], shape; } HFRow; /* goptim.hfRow */
typedef struct { uint64_t next, table; int64_t rows, count; double scalars[SCALARS]; } Group; /* bindings.group */
static const uint64_t FIRST = 1 << 16; /* engine.First */

/* What a step does with a parameter; the codes of _step.py. The larger of two codes holds. */
enum { GO = 0, NO_GRADIENT = 1, TORCH = 2, PYTHON = 3 };
/* The forms of rows: of elementwise optimizers, of Adafactor and of hf.Adafactor. */
enum { ELEMENTWISE = 0, FACTORED = 1, HF = 2 };

/* A Layout is where torch keeps what, in words of 8 bytes unless said otherwise: the fields of _layout.Layout. */
typedef struct {
	int64_t impl;                                                /* in a tensor's object: its TensorImpl */
	int64_t storage, autograd, version, ndim, sizes, strides, offset, numel, keys; /* in a TensorImpl */
	int64_t type;                                                /* there, in units of 2 bytes */
	int64_t counter;                                             /* in what version points to, in units of 4 bytes */
	int64_t data, size;                                          /* in a StorageImpl */
	int64_t guard;                                               /* there, in bytes: not 0 if memory may not be written */
	int64_t plain, float32, float64;                             /* values of keys and type */
} Layout;
enum { INLINE = 5 }; /* dimensions; the sizes and strides of more lie elsewhere */

static char *word(const void *object, int64_t i) { return ((char **)object)[i]; }

/* Into the second cache: it waits for more lines at a time than the first. */
static void prefetch(const void *from, int64_t bytes)
{
	enum { LINE = 64 };
	const char *at = (const char *)((uintptr_t)from & ~(uintptr_t)(LINE - 1));
	for (; at < (const char *)from + bytes; at += LINE) __builtin_prefetch(at, 0, 2);
}

/* prefetch_impl prefetches the fields of a TensorImpl. */
static void prefetch_impl(const Layout *l, const char *impl)
{
	prefetch(impl + 8 * l->storage, 8 * (l->keys - l->storage + 1)); /* the first and the last in every torch so far */
}

/* A View is a tensor in the CPU's memory. */
typedef struct {
	uint64_t at, dtype; /* the dtype is 0 for one that Go does not take, and at then is 0 too */
	int64_t ndim, n;
	const int64_t *sizes, *strides; /* NULL if torch was asked */
	int64_t last[2];                /* the last two sizes, where there are as many, if torch was asked */
	uint32_t *version;              /* NULL if it counts none, or torch was asked */
} View;

static int64_t size_of(uint64_t dtype) { return dtype == FLOAT32 ? 4 : 8; }

/* bytes is the size of a view's elements, if they fill one stretch. */
static int64_t bytes(const View *v) { return v->n * size_of(v->dtype); }

/* view reads a tensor: 1; 0 for one that is not plain, or has less memory than it says. A plain one has memory of its
 * own, none of it negated or shared in secret; vouched leaves that to the caller. */
static int view(const Layout *l, PyObject *o, int vouched, View *v)
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
	int64_t offset = size_of(v->dtype) * (int64_t)word(impl, l->offset);
	v->at = (uint64_t)(uintptr_t)word(storage, l->data) + offset;
	return v->n == 0 || (word(storage, l->data) != NULL && offset + bytes(v) <= (int64_t)word(storage, l->size));
}

/* dense reports whether v's elements fill one stretch of memory, each once, in any order of dimensions. */
static int dense(const View *v)
{
	int64_t filled = 1;
	uint64_t seen = 0;
	if (v->n == 0) return 1;
	if (v->ndim > 64) return 0;
	for (int64_t found = 0; found < v->ndim; found++) {
		int64_t i = v->ndim - 1; /* the dimension whose stride is what the ones before it fill */
		while (i >= 0 && (seen >> i & 1 || (v->sizes[i] != 1 && v->strides[i] != filled))) i--;
		if (i < 0) return 0;
		seen |= (uint64_t)1 << i;
		filled *= v->sizes[i];
	}
	return 1;
}

/* contiguous reports whether v's elements fill one stretch of memory in the order of its dimensions. */
static int contiguous(const View *v)
{
	int64_t filled = 1;
	for (int64_t i = v->ndim - 1; i >= 0 && v->n > 0; i--) {
		if (v->sizes[i] != 1 && v->strides[i] != filled) return 0;
		filled *= v->sizes[i];
	}
	return 1;
}

/* alike says who steps a parameter with a gradient or state v of its shape. */
static int alike(const View *p, const View *v)
{
	if (v->dtype == 0 || p->ndim != v->ndim) return PYTHON;
	int code = v->dtype == p->dtype ? GO : TORCH;
	for (int64_t i = 0; i < p->ndim; i++) {
		if (p->sizes[i] != v->sizes[i]) return PYTHON;
		if (p->sizes[i] != 1 && p->strides[i] != v->strides[i] && p->n != 0) code = TORCH;
	}
	return code;
}

/* reduced says who steps a parameter with a state v of its shape, but for the dimension that is number i from behind,
 * which is 1. */
static int reduced(const View *p, const View *v, int64_t i)
{
	if (v->dtype == 0 || p->ndim != v->ndim) return PYTHON;
	for (int64_t k = 0; k < p->ndim; k++)
		if (v->sizes[k] != (k == p->ndim - i ? 1 : p->sizes[k])) return PYTHON;
	return v->dtype == p->dtype && contiguous(v) ? GO : TORCH;
}

static int max(int a, int b) { return a > b ? a : b; }

/* Stretches are the memory of one row, to see whether some of it overlaps. Those that it does without are of one byte
 * where no memory is. */
enum { STRETCHES = 3 + STATES };
typedef struct { uint64_t at[STRETCHES], size[STRETCHES]; } Stretches;

static const Stretches none = {
	{(uint64_t)1 << 56, (uint64_t)2 << 56, (uint64_t)3 << 56, (uint64_t)4 << 56, (uint64_t)5 << 56, (uint64_t)6 << 56},
	{1, 1, 1, 1, 1, 1},
};

static void put(Stretches *s, int i, uint64_t at, int64_t size)
{
	if (size == 0) return;
	s->at[i] = at;
	s->size[i] = size;
}

static int overlap(const Stretches *s)
{
	int found = 0;
#pragma GCC unroll 8
	for (int i = 1; i < STRETCHES; i++)
#pragma GCC unroll 8
		for (int j = 0; j < i; j++) found |= s->at[i] - s->at[j] + s->size[i] - 1 < s->size[i] + s->size[j] - 1;
	return found;
}

/* What belongs to a parameter, beside itself. HF has an RMS in the place of the step. */
enum { GRAD, STEP, STATE, TENSORS = STATE + STATES };
enum { VERSIONS = 2 + STATES }; /* of the parameter, the step and the states, all that Go writes */
/* What is prefetched, in bytes. DICT_KEYS is the word of a dict where its keys and values are. */
enum { OBJECT = 24, DICT_KEYS = 4, DICT = 112, AUTOGRAD = 64, STORAGE = 64, VERSION = 24 };

/* A Given is a row that was given as a tuple. */
typedef struct {
	PyObject *row; /* borrowed of the group */
	int asked;     /* whether torch has been asked for what follows */
	View param, view[TENSORS];
	PyObject *storage[1 + TENSORS]; /* what the tensors are in, held */
} Given;

/* A Found is one parameter of a group. It owns its tensors. */
typedef struct {
	PyObject *p;               /* borrowed of the group */
	PyObject *tensor[TENSORS]; /* NULL for none */
	Given *given;              /* NULL for a parameter by itself */
	uint8_t code;
	uint8_t fresh;             /* it has no state yet */
	uint8_t torchs;            /* its whole group is torch's */
	uint8_t odd;               /* some of its state is no tensor, or of a subclass */
} Found;

/* A Call is what step_groups was asked. */
typedef struct {
	const Layout *layout;    /* NULL if that of this torch is not known */
	PyObject *plain[TYPES];  /* types of parameters; the first is torch.Tensor */
	PyObject *state, *step;  /* of the optimizer; the key of a step, or NULL */
	PyObject *grad;          /* the name of gradients */
	PyObject *descriptor;    /* torch's of gradients, held, or NULL */
	descrgetfunc get;        /* of the descriptor, or NULL */
	Py_ssize_t numbers;      /* how many of a parameter's states, the first ones, are one number */
	int form;
	Py_ssize_t at;           /* in state, behind the parameter found last */
	PyObject *key[TENSORS];  /* of the group at hand: keys of a parameter's state; NULL for one that is not looked for */
	int stateful;            /* whether there is one */
	Py_ssize_t n, groups;
	Found *found;            /* n of them, and so of what follows */
	char *rows;
	uint32_t **version;      /* VERSIONS of each */
	uint8_t *code;
	Group *group;
	Py_ssize_t *size;        /* of each group: how many parameters */
} Call;

/* of_param is the state of p, borrowed, or NULL. It looks near the place of the last one before it asks for the hash
 * of p, which is a Python function. */
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

/* find_descriptor finds torch's own descriptor of gradients, if it is that of all plain types, to call it without a look-up
 * for each parameter: 1; -1 for an exception. */
static int find_descriptor(Call *c)
{
	for (int i = 0; i < TYPES && c->plain[i] != NULL; i++) {
		PyObject *found = PyObject_GetAttr(c->plain[i], c->grad);
		if (found == NULL) return -1;
		int same = (i == 0 || found == c->descriptor) && Py_IS_TYPE(found, &PyGetSetDescr_Type) &&
		           PyType_GetSlot((PyTypeObject *)c->plain[i], Py_tp_getattro) == (void *)PyObject_GenericGetAttr;
		if (i == 0 && same) c->descriptor = found;
		else Py_DECREF(found);
		if (!same) {
			Py_CLEAR(c->descriptor);
			return 1;
		}
	}
	c->get = (descrgetfunc)PyType_GetSlot(&PyGetSetDescr_Type, Py_tp_descr_get);
	return 1;
}

/* find takes a parameter's gradient and, in of, the dict of its state: 1; -1 for an exception. */
static int find(Call *c, Found *f, PyObject **of)
{
	int plain = c->layout != NULL && is_plain(c, f->p);
	PyObject *g = plain && c->get != NULL ? c->get(c->descriptor, f->p, (PyObject *)Py_TYPE(f->p)) : PyObject_GetAttr(f->p, c->grad);
	f->tensor[GRAD] = g;
	if (g == NULL) return -1;
	int simple = plain && (PyObject *)Py_TYPE(g) == c->plain[0];
	if (c->layout != NULL && c->stateful && (plain || g != Py_None)) { /* without a gradient too: the place in state keeps up */
		*of = of_param(c, f->p);
		Py_XINCREF(*of);
		if (*of == NULL && PyErr_Occurred()) return -1;
		f->fresh = *of == NULL || !PyDict_Check(*of); /* or see find_states */
		simple &= f->fresh || Py_IS_TYPE(*of, &PyDict_Type); /* a subclass may look keys up in its own way */
		if (!f->fresh) prefetch(word(*of, DICT_KEYS), DICT);
	}
	f->code = g == Py_None ? NO_GRADIENT : simple ? GO : PYTHON;
	return 1;
}

/* find_states takes the tensors of a parameter's state: 1; -1 for an exception. */
static int find_states(const Call *c, Found *f, PyObject *of)
{
	if (f->code == NO_GRADIENT || f->fresh || of == NULL) return 1;
	int own = !Py_IS_TYPE(of, &PyDict_Type) &&
	          PyType_GetSlot(Py_TYPE(of), Py_mp_subscript) != PyType_GetSlot(&PyDict_Type, Py_mp_subscript);
	Py_ssize_t behind = 0; /* in of, the key that was found last: keys mostly have the order in which torch makes states */
	for (int i = STEP; i < TENSORS && c->stateful; i++) {
		if (c->key[i] == NULL) continue;
		PyObject *key, *t;
		Py_ssize_t at = behind;
		if (own) {
			t = PyObject_GetItem(of, c->key[i]);
			if (t == NULL && !PyErr_ExceptionMatches(PyExc_Exception)) return -1;
			PyErr_Clear(); /* torch may not read it */
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
			if (c->form == ELEMENTWISE) f->code = max(f->code, TORCH); /* PYTHON stays; or see factored */
			continue;
		}
		f->tensor[i] = t;
		f->odd |= (PyObject *)Py_TYPE(t) != c->plain[0];
		prefetch(t, OBJECT);
	}
	return 1;
}

/* approach prefetches what find will read of the parameters a little ahead of number i. */
static void approach(const Call *c, const Found *found, Py_ssize_t i, Py_ssize_t n)
{
	PyObject *p;
	const Layout *l = c->layout;
	if (i + 8 < n) prefetch(found[i + 8].p, OBJECT);
	if (i + 6 < n && is_plain(c, p = found[i + 6].p)) prefetch_impl(l, word(p, l->impl));
	if (i + 3 < n && is_plain(c, p = found[i + 3].p) && word(p, l->impl) != NULL)
		prefetch(word(word(p, l->impl), l->autograd), AUTOGRAD);
}

/* asked is a number that torch says of a tensor, or of its storage; -1 with an exception. */
static int64_t asked(PyObject *t, const char *what)
{
	PyObject *answer = PyObject_CallMethod(t, what, NULL);
	if (answer == NULL) return -1;
	int64_t n = PyLong_AsLongLong(answer);
	Py_DECREF(answer);
	return n;
}

/* ask is view by torch's own functions, of a tensor of float32 or float64: 1; -1 for an exception. The address is that
 * of the storage it then holds, whatever becomes of the tensor. */
static int ask(PyObject *t, View *v, PyObject **storage)
{
	if (asked(t, "data_ptr") < 0 && PyErr_Occurred()) return -1; /* memory that is copied on write is, now */
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
	if (v->n < 0 || (v->n > 0 && (offset + v->n) * size > has)) v->dtype = 0; /* it has changed since it was looked at */
	v->at = (uint64_t)at + offset * size;
	return 1;
}

/* take takes a row that is given as a tuple: 1; -1 for an exception. */
static int take(const Call *c, Found *f)
{
	enum { MEMBERS = 2 + TENSORS };
	PyObject *row = f->p;
	if (PyTuple_Size(row) != MEMBERS) {
		PyErr_Format(PyExc_ValueError, "step_groups: a row of %zd, expected %d", PyTuple_Size(row), MEMBERS);
		return -1;
	}
	PyObject *last = PyTuple_GetItem(row, 1 + TENSORS);
	if (c->form == HF && (!PyLong_Check(last) || (PyLong_AsLongLong(last) == -1 && PyErr_Occurred()))) {
		if (!PyErr_Occurred()) PyErr_Format(PyExc_TypeError, "step_groups: step %R, expected an int", last);
		return -1;
	}
	f->code = GO;
	if ((f->given = calloc(1, sizeof *f->given)) == NULL) {
		PyErr_NoMemory();
		return -1;
	}
	f->given->row = row;
	f->given->asked = c->layout == NULL;
	for (int i = -1; i < TENSORS; i++) {
		PyObject *t = PyTuple_GetItem(row, i + 1);
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

/* pack writes a group's scalars: 1; 0 if one of them is no number, or there are none; -1 for an exception. */
static int pack(const Call *c, PyObject *scalars, Group *group)
{
	if (scalars == Py_None) return 0;
	group->count = PyTuple_Size(scalars);
	if (group->count > SCALARS) {
		PyErr_Format(PyExc_ValueError, "step_groups: %zd scalars, expected up to %d", PyTuple_Size(scalars), SCALARS);
		return -1;
	}
	for (Py_ssize_t i = 0; i < group->count; i++) {
		PyObject *x = PyTuple_GetItem(scalars, i);
		if (!PyFloat_Check(x) && !PyLong_Check(x)) return 0; /* or see _numbers.py */
		if (PyLong_Check(x)) { /* torch's operations refuse larger ones, and Python's do not */
			int beyond;
			PyLong_AsLongLongAndOverflow(x, &beyond);
			if (beyond) return 0;
		}
		group->scalars[i] = PyFloat_AsDouble(x);
		if (group->scalars[i] == -1 && PyErr_Occurred()) return -1;
	}
	return 1;
}

/* collect takes references to everything a group's rows can name: 1; -1 for an exception. */
static int collect(Call *c, PyObject *params, Found *found, Py_ssize_t size)
{
	for (Py_ssize_t i = 0; i < size; i++) found[i].p = PyTuple_GetItem(params, i);
	for (Py_ssize_t start = 0; start < size; start += BLOCK) {
		PyObject *of[BLOCK] = {NULL};
		Py_ssize_t end = start + BLOCK < size ? start + BLOCK : size;
		int ok = 1;
		for (Py_ssize_t i = start; ok > 0 && i < end; i++) {
			if (c->layout != NULL) approach(c, found, i, size);
			ok = PyTuple_CheckExact(found[i].p) ? take(c, &found[i]) : find(c, &found[i], &of[i - start]);
		}
		for (Py_ssize_t i = start; ok > 0 && i < end; i++)
			if (found[i].given == NULL) ok = find_states(c, &found[i], of[i - start]);
		for (Py_ssize_t i = 0; i < BLOCK; i++) Py_XDECREF(of[i]);
		if (ok < 0) return -1;
	}
	return 1;
}

/* number reads a state of one number and adds its dtype to a row's kind, at a bit of it. It says who steps. */
static int number(const Call *c, PyObject *o, View *v, uint64_t *kind, int bit)
{
	if ((PyObject *)Py_TYPE(o) != c->plain[0]) return TORCH;
	if (!view(c->layout, o, 0, v)) return PYTHON;
	if (v->ndim != 0 || v->dtype == 0) return TORCH;
	prefetch((const void *)(uintptr_t)v->at, 1);
	*kind |= v->dtype << bit;
	return GO;
}

/* column reads a state that is a tensor beside its parameter. It says who steps, as far as the type goes. */
static int column(const Call *c, PyObject *o, View *v)
{
	if ((PyObject *)Py_TYPE(o) != c->plain[0]) /* of a subclass, Python asks for the shape */
		return PyObject_TypeCheck(o, (PyTypeObject *)c->plain[0]) ? PYTHON : TORCH;
	return view(c->layout, o, 0, v) ? GO : PYTHON;
}

/* factored writes the states of a parameter of Adafactor into its row. It says who steps. */
static int factored(const Call *c, const Found *f, const View *p, Row *row, uint32_t ***version, Stretches *memory)
{
	View v;
	int code = GO, vector = p->ndim < 2;
	for (int k = vector ? 2 : 0; k < (vector ? 3 : 2); k++) { /* row_var and col_var, or variance */
		PyObject *o = f->tensor[STATE + k];
		int found = o == NULL ? TORCH : column(c, o, &v);
		if (found == GO) found = vector ? alike(p, &v) : reduced(p, &v, k == 0 ? 1 : 2);
		code = max(code, found);
		if (found != GO) continue;
		row->state[vector ? 0 : k] = v.at;
		put(memory, 3 + k, v.at, bytes(&v));
		*(*version)++ = v.version;
	}
	if (!vector) row->state[2] = p->sizes[p->ndim - 2] | (uint64_t)p->sizes[p->ndim - 1] << 32;
	return code;
}

/* fill makes the row of one parameter with its memory, and says who steps it: no row is made but for Go. */
static int fill(const Call *c, const Found *f, Row *row, uint32_t ***version, Stretches *memory)
{
	View param, v;
	uint32_t **at = *version;
	int code = f->code, found;
	if (!view(c->layout, f->p, 0, &param)) return PYTHON;
	if (param.dtype == 0 || !dense(&param)) return TORCH;
	if (c->form != ELEMENTWISE && (param.n == 0 || !contiguous(&param))) return TORCH;
	if (f->fresh || !view(c->layout, f->tensor[GRAD], 0, &v)) return PYTHON;
	code = max(code, alike(&param, &v));
	*row = (Row){.n = param.n, .kind = param.dtype, .param = param.at, .grad = v.at};
	*at++ = param.version;
	*memory = none;
	put(memory, 0, param.at, bytes(&param));
	put(memory, 1, v.at, bytes(&v));
	if (f->tensor[STEP] != NULL) {
		found = number(c, f->tensor[STEP], &v, &row->kind, 8);
		code = max(code, found);
		row->step = v.at;
		if (found == GO) {
			put(memory, 2, v.at, bytes(&v));
			*at++ = v.version;
		}
	}
	if (c->form == FACTORED) code = max(code, factored(c, f, &param, row, &at, memory));
	for (int k = 0; k < STATES && c->form == ELEMENTWISE; k++) {
		PyObject *o = f->tensor[STATE + k];
		if (o == NULL) continue;
		if (k < c->numbers) found = number(c, o, &v, &row->kind, 32 + 8 * k);
		else if ((found = column(c, o, &v)) == GO) found = alike(&param, &v);
		code = max(code, found);
		if (found != GO) continue;
		row->state[k] = v.at;
		put(memory, 3 + k, v.at, bytes(&v));
		*at++ = v.version;
	}
	if (code == GO && overlap(memory)) code = TORCH;
	if (code == GO) *version = at;
	return code;
}

static int64_t last_size(const View *v, int i) { return v->sizes == NULL ? v->last[i] : v->sizes[v->ndim - 2 + i]; }

/* expected is how many elements the tensor number i of a parameter has. */
static int64_t expected(const Call *c, const View *p, int i)
{
	if (i == STEP || (i >= STATE && i < STATE + c->numbers)) return 1;
	if (c->form == ELEMENTWISE || p->ndim < 2 || p->n == 0) return p->n;
	return i == STATE ? p->n / last_size(p, 1) : i == STATE + 1 ? p->n / last_size(p, 0) : p->n;
}

/* copy makes the row of a tuple, whose tensors the caller vouches for, and says who steps it. */
static int copy(const Call *c, const Found *f, void *to, uint32_t ***version)
{
	View param, view_of[TENSORS] = {{0}};
	uint32_t **at = *version;
	int asked = f->given->asked;
	if (asked) param = f->given->param;
	else if (!view(c->layout, f->p, 1, &param)) return PYTHON;
	if (param.dtype == 0) return PYTHON;
	if (param.version != NULL && !asked) *at++ = param.version;
	for (int i = 0; i < TENSORS; i++) {
		View *v = &view_of[i];
		if (f->tensor[i] == NULL) continue;
		if (asked) *v = f->given->view[i];
		else if (!view(c->layout, f->tensor[i], 1, v)) return PYTHON;
		if (v->dtype == 0) return PYTHON;
		int number = c->form != HF && (i == STEP || (i >= STATE && i < STATE + c->numbers));
		if (v->n != expected(c, &param, i) || (!number && v->dtype != param.dtype)) return PYTHON;
		if (i >= STEP && !asked && v->version != NULL) *at++ = v->version;
	}
	uint64_t shape = 0;
	if (c->form != ELEMENTWISE && param.ndim >= 2)
		shape = last_size(&param, 0) | (uint64_t)last_size(&param, 1) << 32;
	PyObject *last = PyTuple_GetItem(f->given->row, 1 + TENSORS);
	if (c->form == HF) {
		*(HFRow *)to = (HFRow){
			.n = param.n, .kind = param.dtype, .param = param.at, .grad = view_of[GRAD].at,
			.step = PyLong_AsLongLong(last), .rms = view_of[STEP].at,
			.state = {view_of[STATE].at, view_of[STATE + 1].at, view_of[STATE + 2].at}, .shape = shape,
		};
	} else {
		Row *row = to;
		*row = (Row){
			.n = param.n, .kind = param.dtype, .param = param.at, .grad = view_of[GRAD].at, .step = view_of[STEP].at,
			.state = {view_of[STATE].at, view_of[STATE + 1].at, view_of[STATE + 2].at},
		};
		row->kind |= view_of[STEP].dtype << 8 | (last != Py_None ? FIRST : 0);
		for (int k = 0; k < c->numbers; k++) row->kind |= view_of[STATE + k].dtype << (32 + 8 * k);
		if (c->form == FACTORED) { /* row_var, col_var and the shape, or variance */
			if (param.ndim < 2) row->state[0] = row->state[2];
			row->state[2] = shape;
		}
	}
	*version = at;
	return GO;
}

/* touch prefetches the objects of parameter number i, of which references have been taken some time ago. */
static void touch(const Call *c, Py_ssize_t i)
{
	const Found *f = &c->found[i];
	for (int k = GRAD; k < TENSORS; k++)
		if (f->tensor[k] != NULL) prefetch(f->tensor[k], OBJECT);
}

/* write_rows makes the rows of all parameters that have a gradient: 1; 0 if one of them is not for Go. It runs no Python
 * code. */
static int write_rows(const Call *c, uint32_t ***version)
{
	const Layout *l = c->layout;
	Py_ssize_t size = c->form == HF ? sizeof(HFRow) : sizeof(Row), g = -1, end = 0;
	char *to = c->rows;
	int ok = 1;
	Stretches memory;
	for (Py_ssize_t start = 0; start < c->n; start += BLOCK) {
		Py_ssize_t stop = start + BLOCK < c->n ? start + BLOCK : c->n;
		for (Py_ssize_t i = stop; i < stop + BLOCK && i < c->n; i++) touch(c, i);
		for (Py_ssize_t i = start; i < stop && l != NULL; i++) {
			const Found *f = &c->found[i];
			if (f->code == NO_GRADIENT || f->code == PYTHON || f->odd) continue;
			for (int k = GRAD; k < TENSORS; k++)
				if (f->tensor[k] != NULL) prefetch_impl(l, word(f->tensor[k], l->impl));
		}
		for (Py_ssize_t i = start; i < stop && l != NULL; i++) {
			const Found *f = &c->found[i];
			if (f->code == NO_GRADIENT || f->code == PYTHON || f->odd) continue;
			for (int k = -1; k < TENSORS; k++) {
				PyObject *t = k < 0 ? f->p : f->tensor[k];
				const char *impl = t == NULL ? NULL : word(t, l->impl);
				if (impl == NULL) continue;
				prefetch(word(impl, l->storage), STORAGE);
				prefetch(word(impl, l->version), VERSION);
			}
		}
		for (Py_ssize_t i = start; i < stop; i++) {
			const Found *f = &c->found[i];
			while (i == end) {
				end += c->size[++g];
				c->group[g].table = (uint64_t)(uintptr_t)to;
			}
			int code = f->code;
			if (f->torchs) code = TORCH;
			else if (f->given != NULL) code = copy(c, f, to, version);
			else if (code == GO || code == TORCH) code = fill(c, f, (Row *)to, version, &memory);
			c->code[i] = code;
			if (code == GO) {
				to += size;
				c->group[g].rows++;
			} else if (code != NO_GRADIENT) {
				ok = 0;
			}
		}
	}
	return ok;
}

/* A Span is memory of a parameter that torch may step. */
typedef struct { uint64_t at, end, read; } Span; /* read: it is a gradient */

/* add_span adds the memory of a tensor, from its first element to its last, or its whole storage. */
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

/* keep_order leaves to torch what shares memory with a parameter that torch may step, so that one is stepped after the
 * other, in order: 1; -1 for want of memory. Two may read one gradient. */
static int keep_order(Call *c)
{
	const Layout *l = c->layout;
	Py_ssize_t all = 0, go = 0;
	for (Py_ssize_t i = 0; i < c->n; i++) all += may_be_torchs(c->code[i]), go += c->code[i] == GO;
	if (l == NULL || c->form == HF || all == 0 || go == 0) return 1;
	Span *spans = malloc(c->n * (1 + TENSORS) * sizeof *spans), *end;
	Row scratch;
	if (spans == NULL) return -1;
	for (int more = 1; more;) {
		more = 0;
		end = spans;
		for (Py_ssize_t i = 0; i < c->n; i++) {
			const Found *f = &c->found[i];
			if (!may_be_torchs(c->code[i]) || f->given != NULL) continue;
			if (f->p == NULL || !PyObject_TypeCheck(f->p, (PyTypeObject *)c->plain[0])) continue;
			end = add_span(l, f->p, 0, end);
			for (int k = GRAD; k < TENSORS; k++)
				if (f->tensor[k] != NULL && PyObject_TypeCheck(f->tensor[k], (PyTypeObject *)c->plain[0]))
					end = add_span(l, f->tensor[k], k == GRAD, end);
		}
		Py_ssize_t n = end - spans;
		qsort(spans, n, sizeof *spans, by_address);
		uint64_t high = 0; /* the end of all so far, so that a search can stop */
		for (Span *x = spans; x < end; x++) high = x->end > high ? x->end : high;
		for (Py_ssize_t i = 0; i < c->n; i++) {
			uint32_t *unused[VERSIONS], **version = unused;
			Stretches s;
			if (c->code[i] != GO || c->found[i].given != NULL) continue;
			fill(c, &c->found[i], &scratch, &version, &s);
			for (int k = 0; k < STRETCHES && c->code[i] == GO; k++) {
				uint64_t from = s.at[k], to = s.at[k] + s.size[k];
				if (n == 0 || from >= high || to <= spans[0].at) continue;
				Py_ssize_t first = 0, behind = n; /* the spans that begin before the stretch ends */
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

/* translate makes an error of Go that begins with the name of one of Python's exceptions that exception. It reports
 * whether Go had written something before. */
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

/* keep puts the new states of rows that were given as tuples where they belong: 1; -1 for an exception. */
static int keep(const Call *c, PyObject *groups)
{
	Py_ssize_t g = -1, end = 0;
	for (Py_ssize_t i = 0; i < c->n; i++) {
		while (i == end) end += c->size[++g];
		PyObject *keys = PyTuple_GetItem(PyTuple_GetItem(groups, g), 1);
		PyObject *state = c->found[i].given == NULL ? Py_None : PyTuple_GetItem(c->found[i].given->row, 1 + TENSORS);
		for (Py_ssize_t k = 0; PyDict_Check(state) && k < PyTuple_Size(keys); k++) {
			PyObject *t = c->found[i].tensor[STATE + k];
			if (t != NULL && PyObject_SetItem(state, PyTuple_GetItem(keys, k), t)) return -1;
		}
	}
	return 1;
}

/* A large step's memory is kept for the next one: the system would take it back, and give it page by page. */
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
	if (spare != NULL) { /* another thread's */
		free(memory);
		return;
	}
	spare = memory;
	spare_size = size;
}

static void drop(Call *c)
{
	for (Py_ssize_t i = 0; i < c->n; i++) {
		Found *f = &c->found[i];
		if (i + 8 < c->n) touch(c, i + 8);
		for (int k = 0; k < TENSORS; k++) Py_XDECREF(f->tensor[k]);
		if (f->given == NULL) continue;
		for (int k = 0; k <= TENSORS; k++) Py_XDECREF(f->given->storage[k]);
		free(f->given);
	}
}

/* expect reports whether the arguments are as many as types, and each of its type, where one is asked for. The parser of
 * formats, which does the same, would take longer than the small groups that it is for. */
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

const char step_groups_doc[] =
	"step_groups(kind, form, layout, plain, state, step, numbers, groups, threads, /)\n--\n\n"
	"Step groups of parameters in Go, and return how many parameters that were. If one of those that have a gradient is\n"
	"not a plain case, write nothing, and return a byte for every parameter: 0 for Go, 1 without a gradient, 2 for\n"
	"torch, 3 for Python to decide.\n\n"
	"kind: of Kind; below 0 to ask without a step. threads: how many may work; below 0 to raise what Go refuses, and write\n"
	"nothing. form: 0, of an elementwise optimizer; 1, of Adafactor; 2, of hf.Adafactor. layout: of _layout.find,\n"
	"or None. plain: the types of a plain parameter, of which the first is torch.Tensor. state: the optimizer's. step:\n"
	"the key of the step in a parameter's state, or None. numbers: how many states are one number. groups: of each its\n"
	"parameters, the keys of up to three states, each of which may be None, and its scalars; None instead of scalars\n"
	"leaves a group to torch. In the place of a parameter may be a row: a tuple of the parameter, the gradient, the step\n"
	"or None, three states or None, and the dict in which the states are put afterwards, or None. With form 2 all are\n"
	"rows, of the parameter, the gradient, the RMS, three states or None, and the number of the step.";

PyObject *step_groups(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	PyTypeObject *types[] = {&PyLong_Type, &PyLong_Type, NULL, &PyTuple_Type, NULL, NULL, &PyLong_Type, &PyTuple_Type,
	                         &PyLong_Type};
	if (!expect("step_groups", types, 9, args, n)) return NULL;
	Call c = {.state = args[4], .step = args[5] == Py_None ? NULL : args[5]};
	PyObject *layout = args[2], *plain = args[3], *groups = args[7], *result = NULL;
	long long kind = PyLong_AsLongLong(args[0]), threads = PyLong_AsLongLong(args[8]);
	c.form = (int)PyLong_AsLong(args[1]);
	c.numbers = PyLong_AsSsize_t(args[6]);
	c.groups = PyTuple_Size(groups);
	Py_ssize_t n_plain = PyTuple_Size(plain);
	if (PyErr_Occurred()) return NULL;
	int sound = n_plain >= 1 && n_plain <= TYPES && c.numbers >= 0 && c.numbers <= STATES && c.form >= 0 && c.form <= HF;
	if (layout != Py_None && sound) {
		sound = PyBytes_Check(layout) && PyBytes_Size(layout) == sizeof(Layout);
		c.layout = sound ? (const Layout *)PyBytes_AsString(layout) : NULL;
	}
	for (Py_ssize_t i = 0; i < n_plain && sound; i++) c.plain[i] = PyTuple_GetItem(plain, i), sound = PyType_Check(c.plain[i]);
	for (Py_ssize_t g = 0; g < c.groups && sound; g++) {
		PyObject *group = PyTuple_GetItem(groups, g);
		sound = PyTuple_CheckExact(group) && PyTuple_Size(group) == 3 && PyTuple_CheckExact(PyTuple_GetItem(group, 0)) &&
		        PyTuple_CheckExact(PyTuple_GetItem(group, 1)) && PyTuple_Size(PyTuple_GetItem(group, 1)) <= STATES &&
		        (PyTuple_GetItem(group, 2) == Py_None || PyTuple_CheckExact(PyTuple_GetItem(group, 2)));
		if (sound) c.n += PyTuple_Size(PyTuple_GetItem(group, 0));
	}
	if (!sound) {
		PyErr_SetString(PyExc_ValueError, "step_groups: expected a layout, up to four types, and groups of up to three states");
		return NULL;
	}

	if (!PyDict_Check(c.state)) c.layout = NULL; /* Python asks it */
	static PyObject *grad;
	if (grad == NULL && (grad = PyUnicode_InternFromString("grad")) == NULL) return NULL;
	c.grad = grad;
	if (c.n >= BLOCK && c.layout != NULL && find_descriptor(&c) < 0) return NULL;

	/* Small steps are on the stack. */
	uint64_t room[1 << 11];
	size_t row = c.form == HF ? sizeof(HFRow) : sizeof(Row);
	size_t of_each = sizeof(Found) + row + VERSIONS * sizeof(uint32_t *) + 1;
	size_t need = c.n * of_each + c.groups * (sizeof(Group) + sizeof(Py_ssize_t)) + 8;
	char *memory = need <= sizeof room ? (char *)room : borrow(need);
	if (memory == NULL) {
		Py_XDECREF(c.descriptor);
		return PyErr_NoMemory();
	}
	c.found = (Found *)memory;
	c.group = (Group *)(c.found + c.n);
	c.size = (Py_ssize_t *)(c.group + c.groups);
	c.version = (uint32_t **)(c.size + c.groups);
	c.rows = (char *)(c.version + VERSIONS * c.n);
	c.code = (uint8_t *)c.rows + row * c.n;
	memset(memory, 0, (char *)c.version - memory);

	int ok = 1;
	Found *found = c.found;
	for (Py_ssize_t g = 0; g < c.groups && ok >= 0; g++) {
		PyObject *group = PyTuple_GetItem(groups, g), *params = PyTuple_GetItem(group, 0), *keys = PyTuple_GetItem(group, 1);
		c.size[g] = PyTuple_Size(params);
		memset(c.key, 0, sizeof c.key);
		c.key[STEP] = c.step;
		c.stateful = c.step != NULL;
		for (Py_ssize_t i = 0; i < PyTuple_Size(keys); i++) {
			PyObject *key = PyTuple_GetItem(keys, i);
			c.key[STATE + i] = key == Py_None ? NULL : key;
			c.stateful |= key != Py_None;
		}
		int packed = ok = pack(&c, PyTuple_GetItem(group, 2), &c.group[g]);
		if (ok >= 0) ok = collect(&c, params, found, c.size[g]);
		for (Py_ssize_t i = 0; i < c.size[g]; i++) found[i].torchs = packed == 0;
		found += c.size[g];
	}
	if (ok < 0) goto end;

	/* From here on no Python code runs, until Go has returned. */
	uint32_t **version = c.version;
	ok = write_rows(&c, &version);
	if (!ok && keep_order(&c) < 0) {
		PyErr_NoMemory();
		goto end;
	}
	long long rows = 0;
	uint64_t first = 0, *next = &first;
	for (Py_ssize_t g = 0; g < c.groups; g++) {
		if (c.group[g].rows == 0) continue;
		*next = (uint64_t)(uintptr_t)&c.group[g];
		next = &c.group[g].next;
		rows += c.group[g].rows;
	}
	if (ok && rows > 0 && kind >= 0) {
		Py_ssize_t count = version - c.version;
		for (Py_ssize_t i = 0; i < count && threads >= 0; i++) {
			if (i + 16 < count) __builtin_prefetch(c.version[i + 16], 1);
			__atomic_fetch_add(c.version[i], 1, __ATOMIC_RELAXED); /* autograd's own threads may count too */
		}
		goptim_enter();
		bindings_Step(kind, (long long)first, threads);
		if (PyErr_Occurred()) {
			if (!translate())
				for (Py_ssize_t i = 0; i < count && threads >= 0; i++) __atomic_fetch_sub(c.version[i], 1, __ATOMIC_RELAXED);
			goto end;
		}
		if (threads >= 0 && keep(&c, groups) < 0) goto end;
	}
	result = ok ? PyLong_FromLongLong(rows) : PyBytes_FromStringAndSize((const char *)c.code, c.n);
end:
	drop(&c);
	Py_XDECREF(c.descriptor);
	if (memory != (char *)room) give_back(memory, need);
	return result;
}
