/* gather fills a step's table (goptim/table.go) from Python's tensors.
 *
 * A step of many small tensors costs what finding their addresses costs: 1.5 us a parameter in Python, 0.4 here. The
 * tensors are read through the C exchange API of DLPack that torch.Tensor publishes (torch 2.10 and later), so that
 * nothing of libtorch is linked. Only the plain case is taken here, with every check that keeps it safe; all else goes
 * back to Python, which decides (python/goptim/_step.py).
 */
#include <Python.h>
#include <stdint.h>

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

/* fill makes the row of one parameter: 1; or 0 if it is not a plain case. */
static int fill(const ExchangeAPI *api, PyObject *p, PyObject *g, PyObject *state, PyObject *step_key, PyObject *keys,
                PyObject *written, Row *row)
{
	DLTensor param, t;
	if (!view(api, p, &param) || !(row->kind = float_dtype(&param)) || !dense(&param)) return 0;
	if (!view(api, g, &t) || !alike(&param, &t)) return 0;
	row->param = address(&param);
	row->grad = address(&t);
	row->n = 1;
	for (int i = 0; i < param.ndim; i++) row->n *= param.shape[i];
	if (row->n > 0 && (row->param == 0 || row->grad == 0)) return 0; /* a tensor of zeros without memory */
	if (row->n == 1 && (negated(p) || negated(g))) return 0;
	row->step = 0;
	row->state[0] = row->state[1] = row->state[2] = 0;

	PyObject *columns[4] = {p};
	Py_ssize_t n_keys = PyTuple_Size(keys);
	if (step_key != Py_None || n_keys > 0) {
		PyObject *of_p = PyDict_GetItemWithError(state, p);
		if (of_p == NULL || !PyDict_Check(of_p)) return 0;
		if (step_key != Py_None) {
			PyObject *step = PyDict_GetItemWithError(of_p, step_key);
			uint64_t dtype;
			if (step == NULL || Py_TYPE(step) != Py_TYPE(g) || !view(api, step, &t) || t.ndim != 0) return 0;
			if (!(dtype = float_dtype(&t))) return 0;
			row->kind |= dtype << 8;
			row->step = address(&t);
		}
		for (Py_ssize_t k = 0; k < n_keys; k++) {
			PyObject *s = PyDict_GetItemWithError(of_p, PyTuple_GetItem(keys, k));
			if (s == NULL || Py_TYPE(s) != Py_TYPE(g) || !view(api, s, &t) || !alike(&param, &t)) return 0;
			row->state[k] = address(&t);
			columns[1 + k] = s;
		}
	}
	for (Py_ssize_t k = 0; k <= n_keys; k++)
		if (PyList_Append(written, columns[k])) return -1;
	return 1;
}

const char gather_doc[] =
	"gather(api, plain, params, state, step, keys, table, written, grads, odd, /)\n--\n\n"
	"Write a row for every plain parameter that has a gradient, and return how many.\n\n"
	"api: torch.Tensor.__dlpack_c_exchange_api__. plain: the types of a plain parameter, of which the first is\n"
	"torch.Tensor. params: a list. state: the optimizer's. step: the key of the step in a parameter's state, or None.\n"
	"keys: the keys of up to three states. table: the address of room for len(params) rows. What the rows name is\n"
	"appended to the lists written and grads, in order; a parameter with a gradient that is not plain, to odd.";

PyObject *gather(PyObject *module, PyObject *args)
{
	PyObject *capsule, *plain, *params, *state, *step_key, *keys, *written, *grads, *odd;
	unsigned long long table;
	if (!PyArg_ParseTuple(args, "OO!O!O!OO!KO!O!O!:gather", &capsule, &PyTuple_Type, &plain, &PyList_Type, &params,
	                      &PyDict_Type, &state, &step_key, &PyTuple_Type, &keys, &table, &PyList_Type, &written,
	                      &PyList_Type, &grads, &PyList_Type, &odd))
		return NULL;
	const ExchangeAPI *api = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
	if (api == NULL) return NULL;
	if (api->major != 1 || api->view == NULL || PyTuple_Size(plain) < 1 || PyTuple_Size(keys) > 3) {
		PyErr_SetString(PyExc_ValueError, "gather: expected DLPack 1 with views, a type, and up to three keys");
		return NULL;
	}
	static PyObject *grad_name;
	if (grad_name == NULL && (grad_name = PyUnicode_InternFromString("grad")) == NULL) return NULL;

	Row *row = (Row *)(uintptr_t)table;
	Py_ssize_t n = PyList_Size(params), n_plain = PyTuple_Size(plain);
	PyTypeObject *tensor = (PyTypeObject *)PyTuple_GetItem(plain, 0);
	for (Py_ssize_t i = 0; i < n && i < PyList_Size(params); i++) {
		PyObject *p = PyList_GetItem(params, i);
		Py_INCREF(p);
		PyObject *g = PyObject_GetAttr(p, grad_name);
		int done = g == NULL ? -1 : g == Py_None ? 1 : 0;
		if (done == 0 && Py_TYPE(g) == tensor) {
			for (Py_ssize_t k = 0; k < n_plain && done == 0; k++)
				if ((PyObject *)Py_TYPE(p) == PyTuple_GetItem(plain, k)) {
					done = fill(api, p, g, state, step_key, keys, written, row);
					if (done == 1) {
						row++;
						if (PyList_Append(grads, g)) done = -1;
					}
					break;
				}
		}
		if (done == 0 && (PyErr_Occurred() || PyList_Append(odd, p))) done = -1;
		Py_DECREF(p);
		Py_XDECREF(g);
		if (done < 0) return NULL;
	}
	return PyLong_FromSsize_t(row - (Row *)(uintptr_t)table);
}
