/* gather fills a step's table (goptim/table.go) from Python's tensors.
 *
 * A step of many small tensors costs what finding their addresses costs: some forty cache lines a parameter, which the
 * model's forward and backward pass have pushed out to memory. So parameters are taken in blocks, and a block in
 * sweeps, each of which brings the lines that the next one reads. The tensors are read through the C exchange API of
 * DLPack that torch.Tensor publishes (torch 2.10 and later), so that nothing of libtorch is linked. Only the plain case
 * is taken here, with every check that keeps it safe; all else goes back to Python, which decides
 * (python/goptim/_step.py).
 */
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* DLPack 1.x, https://dmlc.github.io/dlpack: what is needed of it. */
typedef struct { int32_t type, id; } DLDevice;
typedef struct { uint8_t code, bits; uint16_t lanes; } DLDataType;
typedef struct {
	void *data;
	DLDevice device;
	int32_t ndim;
	DLDataType dtype;
	int64_t *shape, *strides;
	uint64_t byte_offset;
} DLTensor;
typedef struct {
	uint32_t major, minor;
	void *older;
	void *allocate, *own, *wrap;
	int (*view)(void *object, DLTensor *out); /* borrowed; may be NULL */
	void *stream;
} ExchangeAPI;
enum { CPU = 1, FLOAT = 2 };

enum { FLOAT32 = 1, FLOAT64 = 2 }; /* engine.DType */
typedef struct { int64_t n; uint64_t kind, param, grad, step, state[3]; } Row; /* engine.Row */

static uint64_t address(const DLTensor *t) { return (uint64_t)(uintptr_t)t->data + t->byte_offset; }

/* float_dtype is the engine's number for t's dtype, 0 for one that Go does not take. */
static uint64_t float_dtype(const DLTensor *t)
{
	if (t->dtype.code != FLOAT || t->dtype.lanes != 1) return 0;
	return t->dtype.bits == 32 ? FLOAT32 : t->dtype.bits == 64 ? FLOAT64 : 0;
}

/* view reads a tensor on the CPU. A sparse one, say, has no view: that is no error here. */
static int view(const ExchangeAPI *api, PyObject *o, DLTensor *t)
{
	if (api->view(o, t)) {
		PyErr_Clear();
		return 0;
	}
	return t->device.type == CPU;
}

/* dense reports whether t's elements fill one stretch of memory, each once, in any order of dimensions. */
static int dense(const DLTensor *t)
{
	int64_t filled = 1;
	uint64_t seen = 0;
	if (t->ndim > 64) return 0;
	for (int i = 0; i < t->ndim; i++)
		if (t->shape[i] == 0) return 1;
	for (int found = 0; found < t->ndim; found++) {
		int i = t->ndim - 1; /* the dimension whose stride is what the ones before it fill */
		while (i >= 0 && (seen >> i & 1 || (t->shape[i] != 1 && t->strides[i] != filled))) i--;
		if (i < 0) return 0;
		seen |= (uint64_t)1 << i;
		filled *= t->shape[i];
	}
	return 1;
}

static int alike(const DLTensor *a, const DLTensor *b)
{
	if (a->ndim != b->ndim || a->dtype.code != b->dtype.code || a->dtype.bits != b->dtype.bits) return 0;
	for (int i = 0; i < a->ndim; i++)
		if (a->shape[i] != b->shape[i] || (a->shape[i] != 1 && a->strides[i] != b->strides[i])) return 0;
	return 1;
}

/* negated reports whether t stands for minus its memory. A dense tensor that does has one element: it was the
 * imaginary part of a conjugate. */
static int negated(PyObject *t)
{
	PyObject *answer = PyObject_CallMethod(t, "is_neg", NULL);
	int yes = answer == NULL || answer == Py_True;
	Py_XDECREF(answer);
	PyErr_Clear();
	return yes;
}

/* What is prefetched, in words: a tensor's object points to its TensorImpl, and that to the others. A torch that has
 * them elsewhere loses speed and nothing else: only IMPL is followed, and only once it equals `_cdata`. */
enum { IMPL = 2, STORAGE = 2, AUTOGRAD = 3, VERSION = 5, DICT_KEYS = 4 };
enum { LINE = 64, IMPL_LINES = 4, DICT_LINES = 3 };

static char *word(const void *object, int i) { return ((char **)object)[i]; }

static void prefetch(const char *at, int lines)
{
	for (int i = 0; i < lines; i++) __builtin_prefetch(at + i * LINE);
}

/* found_impl reports whether a tensor's object has its TensorImpl where IMPL says. */
static int found_impl(PyObject *t)
{
	PyObject *cdata = PyObject_GetAttrString(t, "_cdata");
	int yes = cdata != NULL && PyLong_AsVoidPtr(cdata) == (void *)word(t, IMPL);
	Py_XDECREF(cdata);
	PyErr_Clear();
	return yes;
}

enum { BLOCK = 32, STATES = 3, TYPES = 4 };
enum { PARAM, GRAD, STEP, STATE, TENSORS = STATE + STATES };

/* A Found is a parameter that has a gradient, and what belongs to it; it owns them. */
typedef struct {
	int plain;
	PyObject *of_p, *tensor[TENSORS];
} Found;

/* A Search is what gather was asked. */
typedef struct {
	const ExchangeAPI *api;
	PyObject *plain[TYPES];   /* types of parameters; the first is torch.Tensor */
	PyObject *key[TENSORS];   /* in a parameter's state; NULL for one that is not looked for */
	int stateful, numbers;    /* whether there is a key, and how many of the states are of one number */
	int hints;                /* IMPL is right */
	PyObject *strided, *params, *state, *written, *grads, *odd;
	Py_ssize_t n, at;         /* of params; in state, behind the parameter found last */
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

/* read_number reads where a state of one number is, and its dtype. */
static uint64_t read_number(const Search *s, PyObject *o, uint64_t *at)
{
	DLTensor t;
	if (!view(s->api, o, &t) || t.ndim != 0) return 0;
	*at = address(&t);
	prefetch((const char *)(uintptr_t)*at, 1);
	return float_dtype(&t);
}

static int strided(const Search *s, PyObject *t)
{
	if (s->strided == Py_None) return 1;
	PyObject *layout = PyObject_GetAttrString(t, "layout");
	Py_XDECREF(layout);
	PyErr_Clear();
	return layout == s->strided;
}

/* fill makes the row of one parameter: 1; or 0 if it is not a plain case. */
static int fill(const Search *s, const Found *f, Row *row)
{
	DLTensor param, t;
	PyObject *p = f->tensor[PARAM], *g = f->tensor[GRAD];
	if (!strided(s, p) || !strided(s, g)) return 0;
	if (!view(s->api, p, &param) || !(row->kind = float_dtype(&param)) || !dense(&param)) return 0;
	if (!view(s->api, g, &t) || !alike(&param, &t)) return 0;
	row->param = address(&param);
	row->grad = address(&t);
	row->n = 1;
	for (int i = 0; i < param.ndim; i++) row->n *= param.shape[i];
	if (row->n > 0 && (row->param == 0 || row->grad == 0)) return 0; /* a tensor of zeros without memory */
	if (row->n == 1 && (negated(p) || negated(g))) return 0;
	row->step = 0;
	memset(row->state, 0, sizeof row->state);
	uint64_t dtype = 0;
	if (f->tensor[STEP] != NULL && !(dtype = read_number(s, f->tensor[STEP], &row->step))) return 0;
	row->kind |= dtype << 8;
	for (int k = 0; k < STATES; k++) {
		PyObject *o = f->tensor[STATE + k];
		if (o == NULL) continue;
		if (k < s->numbers) {
			if (!(dtype = read_number(s, o, &row->state[k]))) return 0;
			row->kind |= dtype << (32 + 8 * k);
			continue;
		}
		if (!view(s->api, o, &t) || !alike(&param, &t)) return 0;
		row->state[k] = address(&t);
	}
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
	if (i + 8 < n) prefetch((const char *)PyList_GetItem(s->params, i + 8), 1);
	if (i + 6 < n && is_plain(s, p = PyList_GetItem(s->params, i + 6))) prefetch(word(p, IMPL), IMPL_LINES);
	if (i + 3 < n && is_plain(s, p = PyList_GetItem(s->params, i + 3))) prefetch(word(word(p, IMPL), AUTOGRAD), 2);
}

/* gather_block makes the rows of up to BLOCK parameters from number i on: how many, or -1. */
static int gather_block(Search *s, Py_ssize_t i, Row *row)
{
	Found found[BLOCK];
	int n = 0, rows = 0, ok = 1;
	for (Py_ssize_t end = i + BLOCK; ok >= 0 && i < end && i < s->n && i < PyList_Size(s->params); i++) {
		if (s->hints) approach(s, i, PyList_Size(s->params));
		ok = find(s, PyList_GetItem(s->params, i), &found[n]);
		if (ok == 1) n++;
		else drop(&found[n]);
	}
	for (int j = 0; j < n && ok >= 0; j++) ok = find_states(s, &found[j]);
	for (int j = 0; j < n && s->hints; j++)
		for (int k = GRAD; k < TENSORS && found[j].plain; k++)
			if (found[j].tensor[k] != NULL) prefetch(word(found[j].tensor[k], IMPL), IMPL_LINES);
	for (int j = 0; j < n && s->hints; j++)
		for (int k = 0; k < TENSORS && found[j].plain; k++)
			if (found[j].tensor[k] != NULL) {
				prefetch(word(word(found[j].tensor[k], IMPL), STORAGE), 1);
				prefetch(word(word(found[j].tensor[k], IMPL), VERSION), 1);
			}
	for (int j = 0; j < n && ok >= 0; j++) {
		int filled = found[j].plain && fill(s, &found[j], row + rows);
		rows += filled;
		ok = PyErr_Occurred() ? -1 : record(s, &found[j], filled);
	}
	for (int j = 0; j < n; j++) drop(&found[j]);
	return ok < 0 ? -1 : rows;
}

const char gather_doc[] =
	"gather(api, plain, strided, params, state, at, step, keys, numbers, table, written, grads, odd, /)\n--\n\n"
	"Write a row for every plain parameter that has a gradient; return how many, and the new at.\n\n"
	"api: torch.Tensor.__dlpack_c_exchange_api__. plain: the types of a plain parameter, of which the first is\n"
	"torch.Tensor. strided: torch.strided to look at layouts first, for those without a view take long; or None.\n"
	"params: a list. state: the optimizer's. at: where in state the search begins, 0 at first. step: the key of the\n"
	"step in a parameter's state, or None. keys: the keys of up to three states, each of which may be None; the first\n"
	"numbers of them are of one number, the others of a parameter's shape. table: the address of room for len(params)\n"
	"rows. What the rows name is appended to the lists written and grads, in order; a parameter with a gradient that\n"
	"is not plain, to odd.";

PyObject *gather(PyObject *module, PyObject *args)
{
	Search s = {0};
	PyObject *capsule, *plain, *step, *keys;
	unsigned long long table;
	if (!PyArg_ParseTuple(args, "OO!OO!O!nOO!iKO!O!O!:gather", &capsule, &PyTuple_Type, &plain, &s.strided,
	                      &PyList_Type, &s.params, &PyDict_Type, &s.state, &s.at, &step, &PyTuple_Type, &keys,
	                      &s.numbers, &table, &PyList_Type, &s.written, &PyList_Type, &s.grads, &PyList_Type, &s.odd))
		return NULL;
	s.api = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
	if (s.api == NULL) return NULL;
	Py_ssize_t n_plain = PyTuple_Size(plain), n_keys = PyTuple_Size(keys), rows = 0;
	if (s.api->major != 1 || s.api->view == NULL || n_plain < 1 || n_plain > TYPES || n_keys > STATES || s.at < 0 ||
	    s.numbers < 0 || s.numbers > n_keys) {
		PyErr_SetString(PyExc_ValueError, "gather: expected DLPack 1 with views, up to four types and three keys");
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
	static int impl_found = -1;
	if (impl_found < 0 && s.n > 0 && is_plain(&s, PyList_GetItem(s.params, 0)))
		impl_found = found_impl(PyList_GetItem(s.params, 0));
	s.hints = impl_found == 1;
	for (Py_ssize_t i = 0; i < s.n; i += BLOCK) {
		int more = gather_block(&s, i, (Row *)(uintptr_t)table + rows);
		if (more < 0) return NULL;
		rows += more;
	}
	return Py_BuildValue("nn", rows, s.at);
}
