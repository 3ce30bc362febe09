/* gather fills a step's table (goptim/table.go) from Python's tensors; bump tells autograd of a step.
 *
 * A step of many small tensors costs what finding their addresses costs: some forty cache lines a parameter, which the
 * model's forward and backward pass have pushed out to memory. So parameters are taken in blocks, and a block in
 * sweeps, each of which brings the lines that the next one reads. The tensors are read where this torch has been found
 * to keep them (python/goptim/_layout.py), for a call of torch, even of its C interfaces, takes ten times as long as
 * the words themselves. Only the plain case is taken here, with every check that keeps it safe; all else goes back to
 * Python, which decides (python/goptim/_step.py).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum { FLOAT32 = 1, FLOAT64 = 2 }; /* engine.DType */
enum { SCALARS = 8 };
typedef struct { int64_t n; uint64_t kind, param, grad, step, state[3]; } Row; /* engine.Row */
typedef struct { uint64_t next, table; int64_t rows, count; double scalars[SCALARS]; } Group; /* bindings.group */

/* expect reports whether the arguments are as many as types, and each of its type, where one is asked for. The parser of
 * formats, which does the same, would take longer than the small tables that it is for. */
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

const char pack_doc[] =
	"pack(group, table, scalars, /)\n--\n\n"
	"Write a group of no rows at an address: its table's address and its scalars. False if one of these is no number.";

PyObject *pack(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	PyTypeObject *types[] = {&PyLong_Type, &PyLong_Type, &PyTuple_Type};
	if (!expect("pack", types, 3, args, n)) return NULL;
	Group *group = PyLong_AsVoidPtr(args[0]);
	uint64_t table = (uint64_t)(uintptr_t)PyLong_AsVoidPtr(args[1]);
	PyObject *scalars = args[2];
	if (PyErr_Occurred()) return NULL;
	n = PyTuple_Size(scalars);
	*group = (Group){.table = table, .count = n};
	for (Py_ssize_t i = 0; i < n; i++) {
		PyObject *x = PyTuple_GetItem(scalars, i);
		if (!PyFloat_Check(x) && !PyLong_Check(x)) Py_RETURN_FALSE;
		if (i == SCALARS) return PyErr_Format(PyExc_ValueError, "pack: %zd scalars, expected up to %d", n, SCALARS);
		group->scalars[i] = PyFloat_AsDouble(x);
		if (group->scalars[i] == -1 && PyErr_Occurred()) return NULL;
	}
	Py_RETURN_TRUE;
}

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

static void prefetch(const char *at, int lines)
{
	for (int i = 0; i < lines; i++) __builtin_prefetch(at + i * 64);
}

/* A View is a plain tensor on the CPU: dense or not, with memory of its own, none of it negated or shared in secret. */
typedef struct {
	uint64_t at, dtype;
	int64_t ndim, n;
	const int64_t *sizes, *strides;
	uint32_t *version;
} View;

static int view(const Layout *l, PyObject *o, View *v)
{
	const void *impl = word(o, l->impl);
	if (impl == NULL || (int64_t)word(impl, l->keys) != l->plain) return 0;
	uint16_t type = ((const uint16_t *)impl)[l->type];
	if (type != l->float32 && type != l->float64) return 0;
	v->dtype = type == l->float32 ? FLOAT32 : FLOAT64;
	const char *storage = word(impl, l->storage);
	if (storage == NULL || storage[l->guard]) return 0;
	int64_t bytes = v->dtype == FLOAT32 ? 4 : 8, offset = bytes * (int64_t)word(impl, l->offset);
	v->n = (int64_t)word(impl, l->numel);
	v->at = (uint64_t)(uintptr_t)word(storage, l->data) + offset;
	if (v->n > 0 && (word(storage, l->data) == NULL || offset + v->n * bytes > (int64_t)word(storage, l->size))) return 0;
	v->ndim = (int64_t)word(impl, l->ndim);
	v->sizes = (const int64_t *)impl + l->sizes;
	v->strides = (const int64_t *)impl + l->strides;
	if (v->ndim > INLINE) {
		v->sizes = (const int64_t *)word(impl, l->sizes);
		v->strides = v->sizes + v->ndim;
	}
	v->version = (uint32_t *)word(impl, l->version) + l->counter;
	return 1;
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

static int alike(const View *a, const View *b)
{
	if (a->ndim != b->ndim || a->dtype != b->dtype) return 0;
	for (int64_t i = 0; i < a->ndim; i++)
		if (a->sizes[i] != b->sizes[i] || (a->sizes[i] != 1 && a->strides[i] != b->strides[i])) return 0;
	return 1;
}

enum { BLOCK = 32, STATES = 3, TYPES = 4 };
enum { PARAM, GRAD, STEP, STATE, TENSORS = STATE + STATES };
enum { IMPL_LINES = 4, DICT_KEYS = 4, DICT_LINES = 3 }; /* what is prefetched; DICT_KEYS is a word of a dict */

/* A Found is a parameter that has a gradient, and what belongs to it; it owns them. */
typedef struct {
	int plain;
	PyObject *of_p, *tensor[TENSORS];
} Found;

/* A Search is what gather was asked. */
typedef struct {
	const Layout *layout;
	PyObject *plain[TYPES];   /* types of parameters; the first is torch.Tensor */
	PyObject *key[TENSORS];   /* in a parameter's state; NULL for one that is not looked for */
	int stateful;             /* whether there is a key */
	Py_ssize_t numbers;       /* how many of the states are of one number */
	PyObject *params, *state, *written, *grads, *odd;
	Py_ssize_t n, at;         /* of params; in state, behind the parameter found last */
	uint32_t **version;       /* where the next one's address goes */
} Search;

/* of_param is the state of p, borrowed, or NULL. It looks near the place of the last one before it asks for the hash
 * of p, which is a Python function. */
static PyObject *of_param(Search *s, PyObject *p)
{
	PyObject *key, *value;
	Py_ssize_t at = s->at;
	for (int tries = 0; tries < 3 && PyDict_Next(s->state, &at, &key, &value); tries++)
		if (key == p) {
			s->at = at;
			return value;
		}
	return PyDict_GetItemWithError(s->state, p);
}

static int is_plain(const Search *s, PyObject *p)
{
	for (int i = 0; i < TYPES; i++)
		if ((PyObject *)Py_TYPE(p) == s->plain[i]) return 1;
	return 0;
}

/* find fills in a parameter, its gradient and the dict of its state: 1; 0 if there is no gradient. */
static int find(Search *s, PyObject *p, Found *f)
{
	static PyObject *grad;
	memset(f, 0, sizeof *f);
	if (grad == NULL && (grad = PyUnicode_InternFromString("grad")) == NULL) return -1;
	Py_INCREF(p);
	f->tensor[PARAM] = p;
	PyObject *g = f->tensor[GRAD] = PyObject_GetAttr(p, grad);
	if (g == NULL) return -1;
	f->plain = is_plain(s, p);
	if (f->plain && s->stateful) { /* without a gradient too: the place in state keeps up */
		f->of_p = of_param(s, p);
		Py_XINCREF(f->of_p);
		if (f->of_p == NULL && PyErr_Occurred()) return -1;
		f->plain = f->of_p != NULL && PyDict_Check(f->of_p);
		if (f->plain) prefetch(word(f->of_p, DICT_KEYS), DICT_LINES);
	}
	f->plain = f->plain && (PyObject *)Py_TYPE(g) == s->plain[0];
	return g != Py_None;
}

/* find_states fills in the tensors of a parameter's state: 1; -1 for an exception. */
static int find_states(const Search *s, Found *f)
{
	for (int i = STEP; i < TENSORS && f->plain; i++) {
		if (s->key[i] == NULL) continue;
		PyObject *t = PyDict_GetItemWithError(f->of_p, s->key[i]);
		if (t == NULL && PyErr_Occurred()) return -1;
		f->plain = t != NULL && (PyObject *)Py_TYPE(t) == s->plain[0];
		Py_XINCREF(t);
		f->tensor[i] = t;
		prefetch((const char *)t, 1);
	}
	return 1;
}

/* number reads a state of one number, and its dtype: 0 if it is none. */
static uint64_t number(const Search *s, PyObject *o, View *v)
{
	if (!view(s->layout, o, v) || v->ndim != 0) return 0;
	prefetch((const char *)(uintptr_t)v->at, 1);
	return v->dtype;
}

/* fill makes the row of one parameter: 1; or 0 if it is not a plain case. */
static int fill(Search *s, const Found *f, Row *row)
{
	View param, v;
	uint32_t **version = s->version;
	if (!view(s->layout, f->tensor[PARAM], &param) || !dense(&param)) return 0;
	if (!view(s->layout, f->tensor[GRAD], &v) || !alike(&param, &v)) return 0;
	*row = (Row){.n = param.n, .kind = param.dtype, .param = param.at, .grad = v.at};
	*version++ = param.version;
	uint64_t dtype = 0;
	if (f->tensor[STEP] != NULL) {
		if (!(dtype = number(s, f->tensor[STEP], &v))) return 0;
		row->kind |= dtype << 8;
		row->step = v.at;
	}
	for (int k = 0; k < STATES; k++) {
		PyObject *o = f->tensor[STATE + k];
		if (o == NULL) continue;
		if (k < s->numbers) {
			if (!(dtype = number(s, o, &v))) return 0;
			row->kind |= dtype << (32 + 8 * k);
		} else if (!view(s->layout, o, &v) || !alike(&param, &v)) {
			return 0;
		}
		row->state[k] = v.at;
		*version++ = v.version;
	}
	s->version = version;
	return 1;
}

/* record keeps what a row names, or hands a parameter without a row back: 1; -1 for an exception. */
static int record(const Search *s, const Found *f, int filled)
{
	if (!filled) return PyList_Append(s->odd, f->tensor[PARAM]) ? -1 : 1;
	if (PyList_Append(s->written, f->tensor[PARAM]) || PyList_Append(s->grads, f->tensor[GRAD])) return -1;
	for (int i = STATE; i < TENSORS; i++)
		if (f->tensor[i] != NULL && PyList_Append(s->written, f->tensor[i])) return -1;
	return 1;
}

static void drop(Found *f)
{
	Py_CLEAR(f->of_p);
	for (int i = 0; i < TENSORS; i++) Py_CLEAR(f->tensor[i]);
}

/* approach prefetches what find will read of the parameters a little ahead of number i. */
static void approach(const Search *s, Py_ssize_t i, Py_ssize_t n)
{
	PyObject *p;
	const Layout *l = s->layout;
	if (i + 8 < n) prefetch((const char *)PyList_GetItem(s->params, i + 8), 1);
	if (i + 6 < n && is_plain(s, p = PyList_GetItem(s->params, i + 6))) prefetch(word(p, l->impl), IMPL_LINES);
	if (i + 3 < n && is_plain(s, p = PyList_GetItem(s->params, i + 3)))
		prefetch(word(word(p, l->impl), l->autograd), 2);
}

/* gather_block makes the rows of up to BLOCK parameters from number i on: how many, or -1. */
static int gather_block(Search *s, Py_ssize_t i, Row *row)
{
	Found found[BLOCK];
	const Layout *l = s->layout;
	int n = 0, rows = 0, ok = 1;
	for (Py_ssize_t end = i + BLOCK; ok >= 0 && i < end && i < s->n && i < PyList_Size(s->params); i++) {
		approach(s, i, PyList_Size(s->params));
		ok = find(s, PyList_GetItem(s->params, i), &found[n]);
		if (ok == 1) n++;
		else drop(&found[n]);
	}
	for (int j = 0; j < n && ok >= 0; j++) ok = find_states(s, &found[j]);
	for (int j = 0; j < n; j++)
		for (int k = GRAD; k < TENSORS && found[j].plain; k++)
			if (found[j].tensor[k] != NULL) prefetch(word(found[j].tensor[k], l->impl), IMPL_LINES);
	for (int j = 0; j < n; j++)
		for (int k = 0; k < TENSORS && found[j].plain; k++)
			if (found[j].tensor[k] != NULL) {
				prefetch(word(word(found[j].tensor[k], l->impl), l->storage), 2);
				prefetch(word(word(found[j].tensor[k], l->impl), l->version), 1);
			}
	for (int j = 0; j < n && ok >= 0; j++) {
		int filled = found[j].plain && fill(s, &found[j], row + rows);
		rows += filled;
		ok = record(s, &found[j], filled);
	}
	for (int j = 0; j < n; j++) drop(&found[j]);
	return ok < 0 ? -1 : rows;
}

const char gather_doc[] =
	"gather(layout, plain, params, state, at, step, keys, numbers, table, written, grads, odd, /)\n--\n\n"
	"Write a row for every plain parameter that has a gradient; return how many, the new at, and how many versions.\n\n"
	"layout: of _layout.find. plain: the types of a plain parameter, of which the first is torch.Tensor. params: a\n"
	"list. state: the optimizer's. at: where in state the search begins, 0 at first. step: the key of the step in a\n"
	"parameter's state, or None. keys: the keys of up to three states, each of which may be None; the first numbers of\n"
	"them are of one number, the others of a parameter's shape. table: the address of room for len(params) rows of 8\n"
	"words, and behind it for 4 words a parameter, where the addresses of the versions go of what a step will write, for\n"
	"bump. What the rows name is appended to the lists written and grads, in order; a parameter with a gradient that is\n"
	"not plain, to odd.";

PyObject *gather(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	PyTypeObject *types[] = {&PyBytes_Type, &PyTuple_Type, &PyList_Type, &PyDict_Type, &PyLong_Type, NULL,
	                         &PyTuple_Type, &PyLong_Type, &PyLong_Type, &PyList_Type, &PyList_Type, &PyList_Type};
	if (!expect("gather", types, 12, args, n)) return NULL;
	Search s = {
		.layout = (const Layout *)PyBytes_AsString(args[0]), .params = args[2], .state = args[3],
		.at = PyLong_AsSsize_t(args[4]), .numbers = PyLong_AsSsize_t(args[7]),
		.written = args[9], .grads = args[10], .odd = args[11],
	};
	PyObject *plain = args[1], *step = args[5], *keys = args[6];
	Row *table = PyLong_AsVoidPtr(args[8]);
	if (PyErr_Occurred()) return NULL;
	Py_ssize_t size = PyBytes_Size(args[0]), n_plain = PyTuple_Size(plain), n_keys = PyTuple_Size(keys), rows = 0;
	if (size != sizeof(Layout) || n_plain < 1 || n_plain > TYPES || n_keys > STATES || s.at < 0 || s.numbers < 0 ||
	    s.numbers > n_keys) {
		PyErr_SetString(PyExc_ValueError, "gather: expected a layout, up to four types and three keys");
		return NULL;
	}
	for (Py_ssize_t i = 0; i < n_plain; i++) s.plain[i] = PyTuple_GetItem(plain, i);
	s.key[STEP] = step == Py_None ? NULL : step;
	for (Py_ssize_t i = 0; i < n_keys; i++) {
		PyObject *key = PyTuple_GetItem(keys, i);
		s.key[STATE + i] = key == Py_None ? NULL : key;
	}
	for (int i = 0; i < TENSORS; i++) s.stateful |= s.key[i] != NULL;
	s.n = PyList_Size(s.params);
	uint32_t **versions = s.version = (uint32_t **)(table + s.n);
	for (Py_ssize_t i = 0; i < s.n; i += BLOCK) {
		int more = gather_block(&s, i, table + rows);
		if (more < 0) return NULL;
		rows += more;
	}
	return Py_BuildValue("nnn", rows, s.at, (Py_ssize_t)(s.version - versions));
}

const char bump_doc[] =
	"bump(addresses, n, /)\n--\n\n"
	"Count a change in the n versions whose addresses gather has written, as autograd does.";

PyObject *bump(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	PyTypeObject *types[] = {&PyLong_Type, &PyLong_Type};
	if (!expect("bump", types, 2, args, n)) return NULL;
	uint32_t **version = PyLong_AsVoidPtr(args[0]);
	n = PyLong_AsSsize_t(args[1]);
	if (PyErr_Occurred()) return NULL;
	for (Py_ssize_t i = 0; i < n; i++) {
		if (i + 16 < n) __builtin_prefetch(version[i + 16], 1);
		__atomic_fetch_add(version[i], 1, __ATOMIC_RELAXED); /* autograd's own threads may count too */
	}
	Py_RETURN_NONE;
}
