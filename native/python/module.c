/* The binding: take buffers and numbers from Python, check sizes, drop the GIL, call edge_index.h, turn a status into an
 * exception. Shapes and types of arrays are checked in edge_rag/index, which is the only caller.
 *
 * An open index is a capsule. It holds the buffer that it was opened on, so the mapping lives as long as the capsule. */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API /* CMake's USE_SABI says the same */
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include "edge_index.h"

#include <limits.h>

#define CAPSULE "edge_rag._native.index"

typedef struct opened {
    ei_index *index;
    Py_buffer file;
} opened;

static PyObject *index_error; /* _native.IndexFileError(code, text) */

/* Set the exception for a status that is not EI_OK; return NULL. */
static PyObject *raise_status(ei_status status)
{
    switch (status) {
    case EI_MEMORY: return PyErr_NoMemory();
    case EI_ARGUMENT:
    case EI_SIMD: PyErr_SetString(PyExc_ValueError, ei_status_text(status)); return NULL;
    default: PyErr_SetString(index_error, ei_status_text(status)); return NULL;
    }
}

/* Whether a buffer holds exactly rows * columns items of `item` bytes. */
static int holds(const Py_buffer *buffer, size_t rows, size_t columns, size_t item)
{
    const size_t bytes = (size_t)buffer->len;
    if (rows == 0 || columns == 0) return bytes == 0;
    return bytes % item == 0 && bytes / item % columns == 0 && bytes / item / columns == rows;
}

static PyObject *wrong_size(void)
{
    PyErr_SetString(PyExc_ValueError, "a buffer has the wrong size");
    return NULL;
}

static void close_capsule(PyObject *capsule)
{
    opened *o = PyCapsule_GetPointer(capsule, CAPSULE);
    ei_close(o->index);
    PyBuffer_Release(&o->file);
    PyMem_Free(o);
}

static const ei_index *index_of(PyObject *capsule)
{
    const opened *o = PyCapsule_GetPointer(capsule, CAPSULE);
    return o ? o->index : NULL;
}

static PyObject *native_open(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *file;
    int verify;
    if (!PyArg_ParseTuple(args, "Op", &file, &verify)) return NULL;
    opened *o = PyMem_Calloc(1, sizeof *o);
    if (!o) return PyErr_NoMemory();
    if (PyObject_GetBuffer(file, &o->file, PyBUF_SIMPLE) < 0) {
        PyMem_Free(o);
        return NULL;
    }
    ei_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ei_open(o->file.buf, (size_t)o->file.len, verify, &o->index);
    Py_END_ALLOW_THREADS
    PyObject *capsule = status == EI_OK ? PyCapsule_New(o, CAPSULE, close_capsule) : raise_status(status);
    if (!capsule) {
        ei_close(o->index);
        PyBuffer_Release(&o->file);
        PyMem_Free(o);
    }
    return capsule;
}

static PyObject *native_shape(PyObject *self, PyObject *capsule)
{
    (void)self;
    const ei_index *index = index_of(capsule);
    if (!index) return NULL;
    return Py_BuildValue("nIn", (Py_ssize_t)ei_count(index), (unsigned int)ei_dim(index), (Py_ssize_t)ei_ids_offset(index));
}

static PyObject *native_search(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule, *result = NULL;
    Py_buffer queries, allow = {0}, ids, scores;
    Py_ssize_t n_queries, k;
    unsigned int threads;
    if (!PyArg_ParseTuple(args, "Oy*nnz*Iw*w*", &capsule, &queries, &n_queries, &k, &allow, &threads, &ids, &scores))
        return NULL;
    const ei_index *index = index_of(capsule);
    if (!index) goto done;
    if (n_queries < 0 || k < 1 || !holds(&queries, (size_t)n_queries, ei_dim(index), sizeof(float)) ||
        (allow.buf && !holds(&allow, ei_count(index), 1, 1)) ||
        !holds(&ids, (size_t)n_queries, (size_t)k, sizeof(int64_t)) ||
        !holds(&scores, (size_t)n_queries, (size_t)k, sizeof(float))) {
        wrong_size();
        goto done;
    }
    ei_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ei_search(index, queries.buf, (size_t)n_queries, (size_t)k, allow.buf, threads, ids.buf, scores.buf);
    Py_END_ALLOW_THREADS
    result = status == EI_OK ? Py_NewRef(Py_None) : raise_status(status);
done:
    PyBuffer_Release(&queries);
    PyBuffer_Release(&allow);
    PyBuffer_Release(&ids);
    PyBuffer_Release(&scores);
    return result;
}

static PyObject *native_quantize(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer rows, codes, scales;
    Py_ssize_t n;
    unsigned int dim;
    if (!PyArg_ParseTuple(args, "y*nIw*w*", &rows, &n, &dim, &codes, &scales)) return NULL;
    PyObject *result = NULL;
    if (n < 0 || dim == 0 || dim > EI_MAX_DIM || !holds(&rows, (size_t)n, dim, sizeof(float)) ||
        !holds(&codes, (size_t)n, ei_row_bytes(dim), 1) || !holds(&scales, (size_t)n, 1, sizeof(float))) {
        wrong_size();
        goto done;
    }
    ei_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ei_quantize(rows.buf, (size_t)n, dim, codes.buf, scales.buf);
    Py_END_ALLOW_THREADS
    result = status == EI_OK ? Py_NewRef(Py_None) : raise_status(status);
done:
    PyBuffer_Release(&rows);
    PyBuffer_Release(&codes);
    PyBuffer_Release(&scales);
    return result;
}

static PyObject *native_checksum(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer state, bytes;
    if (!PyArg_ParseTuple(args, "w*y*", &state, &bytes)) return NULL;
    PyObject *result = NULL;
    if (state.len != (Py_ssize_t)sizeof(ei_checksum)) {
        wrong_size();
        goto done;
    }
    ei_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ei_checksum_update(state.buf, bytes.buf, (size_t)bytes.len);
    Py_END_ALLOW_THREADS
    result = status == EI_OK ? PyLong_FromUnsignedLongLong(ei_checksum_end(state.buf)) : raise_status(status);
done:
    PyBuffer_Release(&state);
    PyBuffer_Release(&bytes);
    return result;
}

static PyObject *native_checksum_state(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    ei_checksum state;
    ei_checksum_begin(&state);
    return PyByteArray_FromStringAndSize((const char *)&state, sizeof state);
}

static PyObject *native_header(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned int dim;
    unsigned long long count, sums[EI_N_SECTIONS];
    if (!PyArg_ParseTuple(args, "IK(KKK)", &dim, &count, &sums[0], &sums[1], &sums[2])) return NULL;
    const uint64_t checksums[EI_N_SECTIONS] = {sums[0], sums[1], sums[2]};
    char header[EI_HEADER_BYTES];
    const ei_status status = ei_header(dim, count, checksums, header);
    return status == EI_OK ? PyBytes_FromStringAndSize(header, sizeof header) : raise_status(status);
}

static PyObject *native_simd_select(PyObject *self, PyObject *args)
{
    (void)self;
    const char *name;
    if (!PyArg_ParseTuple(args, "z", &name)) return NULL;
    const ei_status status = ei_simd_select(name);
    return status == EI_OK ? Py_NewRef(Py_None) : raise_status(status);
}

static PyObject *native_simd_name(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyUnicode_FromString(ei_simd_name());
}

static PyMethodDef methods[] = {
    {"open", native_open, METH_VARARGS, "open(file, verify) -> index"},
    {"shape", native_shape, METH_O, "shape(index) -> (count, dim, offset of the ids in the file)"},
    {"search", native_search, METH_VARARGS, "search(index, queries, n_queries, k, allow, threads, ids, scores)"},
    {"quantize", native_quantize, METH_VARARGS, "quantize(rows, n, dim, codes, scales)"},
    {"checksum_state", native_checksum_state, METH_NOARGS, "checksum_state() -> bytearray"},
    {"checksum", native_checksum, METH_VARARGS, "checksum(state, data) -> checksum of all data so far"},
    {"header", native_header, METH_VARARGS, "header(dim, count, (codes, scales, ids)) -> bytes"},
    {"simd_select", native_simd_select, METH_VARARGS, "simd_select(name or None)"},
    {"simd_name", native_simd_name, METH_NOARGS, "simd_name() -> str"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "Binding of native/include/edge_index.h.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *m = PyModule_Create(&module);
    if (!m) return NULL;
    index_error = PyErr_NewException("edge_rag._native.IndexFileError", PyExc_Exception, NULL);
    if (!index_error || PyModule_AddObjectRef(m, "IndexFileError", index_error) < 0 ||
        PyModule_AddIntConstant(m, "HEADER_BYTES", EI_HEADER_BYTES) < 0 ||
        PyModule_AddIntConstant(m, "MAX_DIM", EI_MAX_DIM) < 0) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
