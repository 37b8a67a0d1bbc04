"""The C++ of the short way into native code: a Python extension that reads tensors by DLPack.

It needs Python's headers and nothing of torch: tensors are read through the exchange interface of DLPack
(``torch.Tensor.__dlpack_c_exchange_api__``, torch 2.10 and later), whose layout is a standard's, so that it does not
depend on torch's version. It is compiled on the machine that runs it, as programs are.
"""

__all__ = ["ENTRY"]

ENTRY = r"""
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <initializer_list>
#include <string.h>

// DLPack 1: what is read of a tensor, and where the function that reads it stands in the exchange interface.
struct Tensor {
    void* data;
    int32_t device, index;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
};
struct Exchange {
    uint32_t major, minor;
    void* earlier;
    void *allocate, *export_owned, *import_owned;
    int (*read)(void* object, Tensor* out);
    void* stream;
};
// What every library of a program exports beside `guide`: the same with its arguments in arrays.
typedef void Guide(void* const*, const int64_t*, const double*, int64_t, int64_t, int64_t, int64_t);

constexpr int TENSORS = 16, PARAMS = 16, KINDS = 4;

static Exchange* exchange;
static PyObject *tensor_type, *is_neg, *requires_grad, *empty_like, *lerp, *threads, *is_grad_enabled;
static PyObject *tracing, *dispatch_modes, *functorch, *forward_ad, *level_name, *out_name;
static int64_t one_thread;
static bool enabled = true;

struct Table {
    PyObject_HEAD
    PyObject *names, *params, *weigh;  // weigh is null where the program is no lerp
    Guide* native[KINDS];
    PyObject* known;  // numbers whose weight of torch.lerp is known
    PyObject* weight;
};

static int kind(const Tensor& t) {
    if (t.lanes != 1) return -1;
    if (t.code == 2) return t.bits == 32 ? 0 : t.bits == 64 ? 1 : t.bits == 16 ? 2 : -1;
    return t.code == 4 && t.bits == 16 ? 3 : -1;
}

static bool dense(const Tensor& t) {
    int64_t expected = 1;
    for (int d = t.ndim - 1; d >= 0; --d) {
        if (t.shape[d] != 1 && t.strides[d] != expected) return false;
        expected *= t.shape[d];
    }
    return true;
}

// 1 yes, 0 no; an error counts as "not for us", and the long way meets it again.
static int truth(PyObject* made) {
    if (!made) { PyErr_Clear(); return -1; }
    const int value = PyObject_IsTrue(made);
    Py_DECREF(made);
    return value;
}

// As fastcfg_kernels.memory.observed: whether something has to see torch's own operations.
static bool observed() {
    PyObject* level = PyDict_GetItemWithError(forward_ad, level_name);
    if (!level || PyLong_AsLong(level) >= 0) return true;
    if (truth(PyObject_CallNoArgs(dispatch_modes)) != 0) return true;
    PyObject* found = PyObject_CallNoArgs(tracing);
    bool none = found == Py_None;
    Py_XDECREF(found);
    if (!none) { PyErr_Clear(); return true; }
    found = PyObject_CallNoArgs(functorch);
    none = found == Py_None;
    Py_XDECREF(found);
    if (!none) PyErr_Clear();
    return !none;
}

// What a tensor is and where; a subclass is not for us, nor a tensor that has no memory.
static bool look(PyObject* object, Tensor& t) {
    if ((PyObject*)Py_TYPE(object) != tensor_type) return false;
    if (exchange->read(object, &t) == 0) return true;
    PyErr_Clear();
    return false;
}

// Whether native code may touch it: no gradient is recorded, and it is no view whose values torch negates.
static bool plain(PyObject* object, bool grad) {
    if (grad && truth(PyObject_GetAttr(object, requires_grad)) != 0) return false;
    return truth(PyObject_CallOneArg(is_neg, object)) == 0;
}

static bool number(PyObject* value, double& out) {
    if (PyFloat_CheckExact(value)) out = PyFloat_AS_DOUBLE(value);
    else if (PyLong_CheckExact(value)) out = PyLong_AsDouble(value);
    else return false;
    if (PyErr_Occurred()) { PyErr_Clear(); return false; }
    return out - out == 0;
}

static double element(const Tensor& t, int64_t at) {
    const char* p = (const char*)t.data + t.offset;
    uint16_t half;
    uint32_t word;
    float single;
    switch (kind(t)) {
        case 0: return ((const float*)p)[at];
        case 1: return ((const double*)p)[at];
        case 2: {
            half = ((const uint16_t*)p)[at];
            const uint32_t exponent = (half >> 10) & 31, fraction = half & 1023;
            const double sign = half >> 15 ? -1.0 : 1.0;
            if (exponent == 31) return fraction ? __builtin_nan("") : sign * __builtin_inf();
            return sign * __builtin_ldexp(exponent ? 1024.0 + fraction : fraction, exponent ? int(exponent) - 25 : -24);
        }
        default:
            word = uint32_t(((const uint16_t*)p)[at]) << 16;
            memcpy(&single, &word, sizeof single);
            return single;
    }
}

// The weight of torch.lerp as a new reference, or null where it is none.
static PyObject* lerp_weight(Table* self, PyObject* numbers, const double* values, bool own) {
    if (own && self->known) {
        bool same = numbers == self->known;
        if (!same && PyTuple_GET_SIZE(numbers) == 1) {  // A rule made anew, as at every step.
            const double before = PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(self->known, 0));
            same = memcmp(&before, values, sizeof before) == 0;
        }
        if (same) return Py_NewRef(self->weight);
    }
    const Py_ssize_t size = PyTuple_GET_SIZE(self->params);
    PyObject* given = PyTuple_New(size);
    if (!given) return nullptr;
    for (Py_ssize_t k = 0; k < size; ++k) PyTuple_SET_ITEM(given, k, PyFloat_FromDouble(values[k]));
    PyObject* made = PyObject_CallFunction(self->weigh, "()dN", 0.0, given);
    PyObject* weight = nullptr;
    if (made && PyTuple_Check(made) && PyTuple_GET_SIZE(made) == 2) {
        const double base = PyFloat_AsDouble(PyTuple_GET_ITEM(made, 0));
        const double delta = PyFloat_AsDouble(PyTuple_GET_ITEM(made, 1));
        if (!PyErr_Occurred() && base == 1) weight = PyFloat_FromDouble(delta);
    }
    Py_XDECREF(made);
    if (!weight) { PyErr_Clear(); return nullptr; }
    if (own) {
        if (size == 1 && !PyFloat_CheckExact(PyTuple_GET_ITEM(numbers, 0))) return weight;
        Py_XSETREF(self->known, Py_NewRef(numbers));
        Py_XSETREF(self->weight, Py_NewRef(weight));
    }
    return weight;
}

static PyObject* run_lerp(PyObject* const* tensors, PyObject* weight, PyObject* out) {
    PyObject* given[5] = {nullptr, tensors[0], tensors[1], weight, out};
    PyObject* name = out == Py_None ? nullptr : out_name;
    PyObject* made = PyObject_Vectorcall(lerp, given + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, name);
    Py_DECREF(weight);
    return made;
}

// guide(predictions, numbers, params, out): the result, or None where the call has to go the long way.
static PyObject* table_guide(PyObject* object, PyObject* const* given, Py_ssize_t count) {
    Table* self = (Table*)object;
    if (count != 4 || !enabled || !PyDict_CheckExact(given[0])) Py_RETURN_NONE;
    PyObject *numbers = given[1], *params = given[2], *out = given[3];
    const Py_ssize_t size = PyTuple_GET_SIZE(self->names), many = PyTuple_GET_SIZE(self->params);
    if (PyDict_GET_SIZE(given[0]) != size || size + 1 > TENSORS || many > PARAMS) Py_RETURN_NONE;
    const char* asked = getenv("FASTCFG_BACKEND");
    if (asked && *asked) Py_RETURN_NONE;
    PyObject* objects[TENSORS];
    Tensor t[TENSORS];
    for (Py_ssize_t k = 0; k < size; ++k) {
        objects[k] = PyDict_GetItemWithError(given[0], PyTuple_GET_ITEM(self->names, k));
        if (!objects[k] || !look(objects[k], t[k])) { PyErr_Clear(); Py_RETURN_NONE; }
    }
    const Tensor& first = t[0];
    const int type = kind(first), rank = first.ndim;
    if (type < 0 || rank < 2) Py_RETURN_NONE;
    bool contiguous = true;
    int64_t elements = 1;
    for (int d = 0; d < rank; ++d) elements *= first.shape[d];
    Py_ssize_t all = size;
    if (out != Py_None) {
        if (!look(out, t[size]) || !plain(out, true)) Py_RETURN_NONE;
        objects[size] = out;
        all = size + 1;
    }
    for (Py_ssize_t k = 0; k < all; ++k) {
        const Tensor& other = t[k];
        const bool alike = kind(other) == type && other.ndim == rank && other.device == first.device &&
            other.index == first.index && memcmp(other.shape, first.shape, rank * sizeof(int64_t)) == 0;
        if (!alike) Py_RETURN_NONE;
        contiguous = contiguous && dense(other);
    }
    // A result in memory of its own, or exactly in that of an input.
    if (out != Py_None) {
        if (!contiguous) Py_RETURN_NONE;
        const int64_t bytes = elements * (first.bits / 8);
        for (Py_ssize_t k = 0; k < size; ++k) {
            const int64_t away = ((char*)t[size].data + t[size].offset) - ((char*)t[k].data + t[k].offset);
            if (away != 0 && away < bytes && -away < bytes) Py_RETURN_NONE;
        }
    }

    double held[PARAMS];
    Tensor each[PARAMS];
    PyObject* others[PARAMS];
    int many_others = 0;
    bool varies[PARAMS] = {}, single[PARAMS] = {};
    bool own = true, some = false, complete = numbers != Py_None;
    uint32_t seen = 0;
    if (complete) {
        if (!PyTuple_CheckExact(numbers) || PyTuple_GET_SIZE(numbers) != many) Py_RETURN_NONE;
        for (Py_ssize_t k = 0; k < many; ++k)
            if (!number(PyTuple_GET_ITEM(numbers, k), held[k])) Py_RETURN_NONE;
    }
    const int64_t rows = first.shape[0];
    if (params != Py_None) {
        if (!PyDict_CheckExact(params)) Py_RETURN_NONE;
        PyObject *name, *value;
        Py_ssize_t place = 0;
        while (PyDict_Next(params, &place, &name, &value)) {
            Py_ssize_t k = 0;
            while (k < many && name != PyTuple_GET_ITEM(self->params, k)) ++k;
            if (k == many) {  // Names are usually interned; where one is not, it is compared.
                for (k = 0; k < many; ++k)
                    if (PyUnicode_Check(name) && PyUnicode_Compare(name, PyTuple_GET_ITEM(self->params, k)) == 0) break;
                if (k == many) Py_RETURN_NONE;
            }
            own = false;
            seen |= 1u << k;
            if (number(value, held[k])) continue;
            if (!look(value, each[k]) || kind(each[k]) < 0 || each[k].device != 1) Py_RETURN_NONE;
            others[many_others++] = value;
            if (each[k].ndim == 0) {
                if (first.device != 1) Py_RETURN_NONE;
                single[k] = true;
            } else if (each[k].ndim == 1 && (each[k].shape[0] == rows || each[k].shape[0] == 1)) {
                varies[k] = some = true;
            } else Py_RETURN_NONE;
        }
    }
    if (!complete && seen != (1u << many) - 1) Py_RETURN_NONE;

    // torch.lerp is torch's own operation, which is right under any trace and for any gradient; a tensor for its weight
    // would be read here, and lost to them.
    if (self->weigh && !many_others)
        if (PyObject* weight = lerp_weight(self, numbers, held, own && complete)) return run_lerp(objects, weight, out);
    if (observed()) Py_RETURN_NONE;
    const int grad = truth(PyObject_CallNoArgs(is_grad_enabled));
    for (Py_ssize_t k = 0; k < size; ++k)
        if (!plain(objects[k], grad != 0)) Py_RETURN_NONE;
    for (int k = 0; k < many_others; ++k)
        if (!plain(others[k], grad != 0)) Py_RETURN_NONE;
    for (Py_ssize_t k = 0; k < many; ++k)
        if (single[k]) held[k] = element(each[k], 0);
    if (self->weigh && !some)
        if (PyObject* weight = lerp_weight(self, numbers, held, false)) return run_lerp(objects, weight, out);
    Guide* native = self->native[type];
    if (!native || first.device != 1 || !contiguous || !elements || !first.data) Py_RETURN_NONE;

    double local[64];
    double* values = held;
    if (some) {
        values = many * rows <= 64 ? local : (double*)malloc(sizeof(double) * many * rows);
        if (!values) return PyErr_NoMemory();
        for (Py_ssize_t k = 0; k < many; ++k)
            for (int64_t row = 0; row < rows; ++row) {
                const int64_t at = varies[k] && each[k].shape[0] > 1 ? row * each[k].strides[0] : 0;
                values[row * many + k] = varies[k] ? element(each[k], at) : held[k];
            }
    }
    PyObject* result = out == Py_None ? PyObject_CallOneArg(empty_like, objects[0]) : Py_NewRef(out);
    long workers = 1;
    if (result && out == Py_None && !look(result, t[size])) workers = 0;
    if (result && workers && elements >= one_thread) {
        PyObject* asked = PyObject_CallFunction(threads, "L", (long long)elements);
        workers = asked ? PyLong_AsLong(asked) : 0;
        Py_XDECREF(asked);
    }
    if (result && workers > 0) {
        void* pointers[TENSORS];
        int64_t strides[TENSORS];
        for (Py_ssize_t k = 0; k <= size; ++k) {
            pointers[k] = (char*)t[k].data + t[k].offset;
            strides[k] = elements / rows;
        }
        Py_BEGIN_ALLOW_THREADS
        native(pointers, strides, values, some ? many : 0, rows, elements / rows, workers);
        Py_END_ALLOW_THREADS
    } else {  // Whatever it was, the long way meets it again.
        Py_CLEAR(result);
        PyErr_Clear();
        result = Py_NewRef(Py_None);
    }
    if (values != held && values != local) free(values);
    return result;
}

static PyObject* table_add(PyObject* object, PyObject* const* given, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "add takes a kind and an address");
    const long type = PyLong_AsLong(given[0]);
    void* address = PyLong_AsVoidPtr(given[1]);
    if (PyErr_Occurred()) return nullptr;
    if (type < 0 || type >= KINDS) return PyErr_Format(PyExc_ValueError, "kind: expected 0 ... 3");
    ((Table*)object)->native[type] = (Guide*)address;
    Py_RETURN_NONE;
}

static PyObject* table_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *names, *params, *weigh;
    if (!PyArg_ParseTuple(args, "O!O!O", &PyTuple_Type, &names, &PyTuple_Type, &params, &weigh)) return nullptr;
    Table* self = (Table*)type->tp_alloc(type, 0);
    if (!self) return nullptr;
    self->names = Py_NewRef(names);
    self->params = Py_NewRef(params);
    self->weigh = weigh == Py_None ? nullptr : Py_NewRef(weigh);
    return (PyObject*)self;
}

static void table_free(PyObject* object) {
    Table* self = (Table*)object;
    Py_XDECREF(self->names);
    Py_XDECREF(self->params);
    Py_XDECREF(self->weigh);
    Py_XDECREF(self->known);
    Py_XDECREF(self->weight);
    Py_TYPE(object)->tp_free(object);
}

static PyMethodDef table_methods[] = {
    {"guide", (PyCFunction)(void*)table_guide, METH_FASTCALL, nullptr},
    {"add", (PyCFunction)(void*)table_add, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
static PyTypeObject table_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

static PyObject* setup(PyObject*, PyObject* args) {
    PyObject* capsule;
    long long least;
    if (!PyArg_ParseTuple(args, "OOOOOOOOOOOL", &tensor_type, &capsule, &is_neg, &empty_like, &lerp, &threads,
            &is_grad_enabled, &tracing, &dispatch_modes, &functorch, &forward_ad, &least)) return nullptr;
    exchange = (Exchange*)PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    if (!exchange) return nullptr;
    if (exchange->major != 1 || !exchange->read) return PyErr_Format(PyExc_RuntimeError, "DLPack is not version 1");
    for (PyObject* held : {tensor_type, is_neg, empty_like, lerp, threads, is_grad_enabled, tracing, dispatch_modes,
             functorch, forward_ad}) Py_INCREF(held);
    one_thread = least;
    Py_RETURN_NONE;
}

static PyObject* enable(PyObject*, PyObject* value) {
    enabled = PyObject_IsTrue(value) == 1;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"setup", setup, METH_VARARGS, nullptr},
    {"enable", enable, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "fastcfg_entry", nullptr, -1, methods};

PyMODINIT_FUNC PyInit_fastcfg_entry() {
    table_type.tp_name = "fastcfg_entry.Table";
    table_type.tp_basicsize = sizeof(Table);
    table_type.tp_flags = Py_TPFLAGS_DEFAULT;
    table_type.tp_methods = table_methods;
    table_type.tp_new = table_new;
    table_type.tp_dealloc = table_free;
    requires_grad = PyUnicode_InternFromString("requires_grad");
    level_name = PyUnicode_InternFromString("_current_level");
    out_name = Py_BuildValue("(s)", "out");
    PyObject* made = PyType_Ready(&table_type) < 0 ? nullptr : PyModule_Create(&module);
    if (made) PyModule_AddObjectRef(made, "Table", (PyObject*)&table_type);
    return made;
}
"""
