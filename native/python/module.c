/* The binding: take buffers and numbers from Python, check sizes, drop the GIL, call edge_index.h, turn a status into an
 * exception. Shapes and types of arrays are checked in edge_rag/index, which is the only caller.
 *
 * An open index is a capsule. It holds the buffer that it was opened on, so the mapping lives as long as the capsule, and
 * the capsule as long as any call that was handed it. A builder is a capsule too, used by one thread at a time. */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API /* CMake's USE_SABI says the same */
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include "edge_index.h"

#include <limits.h>

#define INDEX_CAPSULE "edge_rag._native.index"
#define BUILDER_CAPSULE "edge_rag._native.builder"

typedef struct opened {
    ei_index *index;
    Py_buffer file;
} opened;

typedef struct building {
    ei_builder *builder; /* NULL once it is finished */
    PyObject *base;      /* the index that rows were taken from, which the builder goes on to use; or NULL */
    uint32_t dim;
    int busy; /* a call has dropped the GIL; read and written with the GIL only */
} building;

static PyObject *index_error; /* _native.IndexFileError(text) */

/* Set the exception for a status that is not EI_OK, unless a callback has set one; return NULL. */
static PyObject *raise_status(ei_status status)
{
    if (PyErr_Occurred()) return NULL;
    switch (status) {
    case EI_MEMORY: return PyErr_NoMemory();
    case EI_ARGUMENT:
    case EI_SIMD:
    case EI_VECTOR: PyErr_SetString(PyExc_ValueError, ei_status_text(status)); return NULL;
    default: PyErr_SetString(index_error, ei_status_text(status)); return NULL;
    }
}

static PyObject *none_or_raise(ei_status status)
{
    return status == EI_OK && !PyErr_Occurred() ? Py_NewRef(Py_None) : raise_status(status);
}

/* Whether a buffer holds exactly rows * columns items of `item` bytes. */
static int holds(const Py_buffer *buffer, size_t rows, size_t columns, size_t item)
{
    const size_t bytes = (size_t)buffer->len;
    if (rows == 0 || columns == 0) return bytes == 0;
    return bytes % item == 0 && bytes / item % columns == 0 && bytes / item / columns == rows;
}

/* Whether a buffer is absent or holds a bit for each of `rows`. */
static int is_mask(const Py_buffer *buffer, uint64_t rows)
{
    return !buffer->buf || (uint64_t)buffer->len == (rows + 7) / 8;
}

static PyObject *wrong_size(void)
{
    PyErr_SetString(PyExc_ValueError, "a buffer has the wrong size");
    return NULL;
}

/* ---- reading ---- */

static void close_index(PyObject *capsule)
{
    opened *o = PyCapsule_GetPointer(capsule, INDEX_CAPSULE);
    ei_close(o->index);
    PyBuffer_Release(&o->file);
    PyMem_Free(o);
}

static const ei_index *index_of(PyObject *capsule)
{
    const opened *o = PyCapsule_GetPointer(capsule, INDEX_CAPSULE);
    return o ? o->index : NULL;
}

static PyObject *native_open(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *file;
    unsigned int check;
    if (!PyArg_ParseTuple(args, "OI", &file, &check)) return NULL;
    opened *o = PyMem_Calloc(1, sizeof *o);
    if (!o) return PyErr_NoMemory();
    if (PyObject_GetBuffer(file, &o->file, PyBUF_SIMPLE) < 0) {
        PyMem_Free(o);
        return NULL;
    }
    ei_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ei_open(o->file.buf, (size_t)o->file.len, (uint32_t)check, &o->index);
    Py_END_ALLOW_THREADS
    if (status != EI_OK) o->index = NULL;
    PyObject *capsule = status == EI_OK ? PyCapsule_New(o, INDEX_CAPSULE, close_index) : raise_status(status);
    if (!capsule) {
        ei_close(o->index);
        PyBuffer_Release(&o->file);
        PyMem_Free(o);
    }
    return capsule;
}

static PyObject *info_tuple(const ei_info *info)
{
    return Py_BuildValue("KKKKKIIII", (unsigned long long)info->count, (unsigned long long)info->file_bytes,
                         (unsigned long long)info->hot_bytes, (unsigned long long)info->ids_offset,
                         (unsigned long long)info->n_links, info->dim, info->metric, info->max_links, info->ef_build);
}

static PyObject *native_info(PyObject *self, PyObject *capsule)
{
    (void)self;
    const ei_index *index = index_of(capsule);
    if (!index) return NULL;
    ei_info info;
    ei_get_info(index, &info);
    return info_tuple(&info);
}

static PyObject *native_peek(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer header;
    if (!PyArg_ParseTuple(args, "y*", &header)) return NULL;
    ei_info info;
    const ei_status status = ei_peek(header.buf, (size_t)header.len, &info);
    PyBuffer_Release(&header);
    return status == EI_OK ? info_tuple(&info) : raise_status(status);
}

static PyObject *native_search(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule, *result = NULL;
    Py_buffer queries, allow = {0}, ids, scores;
    Py_ssize_t n_queries;
    unsigned int k, ef, way, threads;
    if (!PyArg_ParseTuple(args, "Oy*nIIIIz*w*w*", &capsule, &queries, &n_queries, &k, &ef, &way, &threads, &allow, &ids,
                          &scores))
        return NULL;
    const ei_index *index = index_of(capsule);
    if (!index) goto done;
    ei_info info;
    ei_get_info(index, &info);
    if (n_queries < 0 || !holds(&queries, (size_t)n_queries, info.dim, sizeof(float)) || !is_mask(&allow, info.count) ||
        !holds(&ids, (size_t)n_queries, k, sizeof(int64_t)) || !holds(&scores, (size_t)n_queries, k, sizeof(float))) {
        wrong_size();
        goto done;
    }
    const ei_search_settings settings = {
        .k = k, .ef = ef, .way = (uint32_t)way, .threads = threads, .allow = allow.buf};
    ei_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ei_search(index, queries.buf, (size_t)n_queries, &settings, ids.buf, scores.buf);
    Py_END_ALLOW_THREADS
    result = none_or_raise(status);
done:
    PyBuffer_Release(&queries);
    PyBuffer_Release(&allow);
    PyBuffer_Release(&ids);
    PyBuffer_Release(&scores);
    return result;
}

static PyObject *native_vectors(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule, *result = NULL;
    Py_buffer rows, out;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "Oy*nw*", &capsule, &rows, &n, &out)) return NULL;
    const ei_index *index = index_of(capsule);
    if (!index) goto done;
    ei_info info;
    ei_get_info(index, &info);
    if (n < 0 || !holds(&rows, (size_t)n, 1, sizeof(uint32_t)) || !holds(&out, (size_t)n, info.dim, sizeof(float))) {
        wrong_size();
        goto done;
    }
    ei_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ei_vectors(index, rows.buf, (size_t)n, out.buf);
    Py_END_ALLOW_THREADS
    result = none_or_raise(status);
done:
    PyBuffer_Release(&rows);
    PyBuffer_Release(&out);
    return result;
}

/* ---- building ---- */

static void free_builder(PyObject *capsule)
{
    building *b = PyCapsule_GetPointer(capsule, BUILDER_CAPSULE);
    ei_builder_free(b->builder);
    Py_XDECREF(b->base);
    PyMem_Free(b);
}

/* Return the builder of a capsule, or NULL with an exception set if nothing may be done with it now. */
static building *idle_builder(PyObject *capsule)
{
    building *b = PyCapsule_GetPointer(capsule, BUILDER_CAPSULE);
    if (b && (b->busy || !b->builder)) {
        PyErr_SetString(PyExc_ValueError, b->busy ? "the builder is in use" : "the builder is finished");
        return NULL;
    }
    return b;
}

static PyObject *native_builder(PyObject *self, PyObject *args)
{
    (void)self;
    ei_build_settings settings;
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "IIIIKII", &settings.dim, &settings.metric, &settings.max_links, &settings.ef_build, &seed,
                          &settings.graph_from, &settings.threads))
        return NULL;
    settings.seed = seed;
    building *b = PyMem_Calloc(1, sizeof *b);
    if (!b) return PyErr_NoMemory();
    b->dim = settings.dim;
    const ei_status status = ei_builder_new(&settings, &b->builder);
    PyObject *capsule = status == EI_OK ? PyCapsule_New(b, BUILDER_CAPSULE, free_builder) : raise_status(status);
    if (!capsule) {
        if (status == EI_OK) ei_builder_free(b->builder);
        PyMem_Free(b);
    }
    return capsule;
}

static PyObject *native_builder_take(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule, *from, *result = NULL;
    Py_buffer keep = {0};
    if (!PyArg_ParseTuple(args, "OOz*", &capsule, &from, &keep)) return NULL;
    building *b = idle_builder(capsule);
    const ei_index *index = b ? index_of(from) : NULL;
    if (!index) goto done;
    ei_info info;
    ei_get_info(index, &info);
    if (!is_mask(&keep, info.count)) {
        wrong_size();
        goto done;
    }
    ei_status status;
    b->busy = 1;
    if (!b->base) b->base = Py_NewRef(from); /* a second one is refused, and so never used */
    Py_BEGIN_ALLOW_THREADS
    status = ei_builder_take(b->builder, index, keep.buf);
    Py_END_ALLOW_THREADS
    b->busy = 0;
    result = none_or_raise(status);
done:
    PyBuffer_Release(&keep);
    return result;
}

static PyObject *native_builder_add(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule, *result = NULL;
    Py_buffer ids, rows;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "Oy*y*n", &capsule, &ids, &rows, &n)) return NULL;
    building *b = idle_builder(capsule);
    if (!b) goto done;
    if (n < 0 || !holds(&ids, (size_t)n, 1, sizeof(int64_t)) || !holds(&rows, (size_t)n, b->dim, sizeof(float))) {
        wrong_size();
        goto done;
    }
    ei_status status;
    size_t bad = 0;
    b->busy = 1;
    Py_BEGIN_ALLOW_THREADS
    status = ei_builder_add(b->builder, ids.buf, rows.buf, (size_t)n, &bad);
    Py_END_ALLOW_THREADS
    b->busy = 0;
    if (status == EI_VECTOR && bad < (size_t)n) {
        PyErr_Format(PyExc_ValueError, "the vector of id %lld: %s", (long long)((const int64_t *)ids.buf)[bad],
                     ei_status_text(status));
        goto done;
    }
    result = none_or_raise(status);
done:
    PyBuffer_Release(&ids);
    PyBuffer_Release(&rows);
    return result;
}

/* The callbacks of a build that is under way without the GIL. Both are called from the thread that called in. */
typedef struct callbacks {
    PyObject *progress; /* or Py_None */
    PyObject *write;
    PyThreadState *thread;
} callbacks;

/* With the GIL: look at what `returned`, drop it, let Ctrl-C in. Return not 0 if an exception is set, which stops the work. */
static int end_callback(PyObject *returned)
{
    Py_XDECREF(returned);
    return PyErr_Occurred() || PyErr_CheckSignals() < 0;
}

static int on_progress(void *context, uint64_t done, uint64_t total)
{
    callbacks *c = context;
    PyEval_RestoreThread(c->thread);
    PyObject *returned = NULL;
    if (!PyErr_Occurred() && c->progress != Py_None)
        returned = PyObject_CallFunction(c->progress, "KK", (unsigned long long)done, (unsigned long long)total);
    const int stop = end_callback(returned);
    c->thread = PyEval_SaveThread();
    return stop;
}

static int on_write(void *context, const void *bytes, size_t size)
{
    callbacks *c = context;
    PyEval_RestoreThread(c->thread);
    PyObject *returned = NULL, *view = NULL;
    if (!PyErr_Occurred() && size <= PY_SSIZE_T_MAX)
        /* the cast takes no right: the view is read-only */
        view = PyMemoryView_FromMemory((char *)(uintptr_t)bytes, (Py_ssize_t)size, PyBUF_READ);
    if (view) {
        returned = PyObject_CallFunctionObjArgs(c->write, view, NULL);
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyObject *released = PyObject_CallMethod(view, "release", NULL); /* the bytes are native's, and do not stay */
        Py_XDECREF(released);
        if (type) PyErr_Restore(type, value, trace);
        Py_DECREF(view);
    }
    int stop = end_callback(returned);
    if (!view) stop = 1;
    c->thread = PyEval_SaveThread();
    return stop;
}

static PyObject *native_builder_finish(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *capsule;
    callbacks c = {0};
    if (!PyArg_ParseTuple(args, "OOO", &capsule, &c.progress, &c.write)) return NULL;
    building *b = idle_builder(capsule);
    if (!b) return NULL;
    b->busy = 1;
    c.thread = PyEval_SaveThread();
    const ei_status status = ei_builder_finish(b->builder, on_progress, on_write, &c);
    ei_builder_free(b->builder); /* nothing else can be done with it, and it is large */
    PyEval_RestoreThread(c.thread);
    b->builder = NULL;
    b->busy = 0;
    Py_CLEAR(b->base);
    return none_or_raise(status);
}

/* ---- kernels ---- */

static PyObject *native_simd_select(PyObject *self, PyObject *args)
{
    (void)self;
    const char *name;
    if (!PyArg_ParseTuple(args, "z", &name)) return NULL;
    return none_or_raise(ei_simd_select(name));
}

static PyObject *native_simd_name(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyUnicode_FromString(ei_simd_name());
}

static PyMethodDef methods[] = {
    {"open", native_open, METH_VARARGS, "open(file, check) -> index"},
    {"info", native_info, METH_O, "info(index) -> the fields of ei_info"},
    {"peek", native_peek, METH_VARARGS, "peek(first bytes of a file) -> the fields of ei_info"},
    {"search", native_search, METH_VARARGS, "search(index, queries, n_queries, k, ef, way, threads, allow, ids, scores)"},
    {"vectors", native_vectors, METH_VARARGS, "vectors(index, rows, n, out)"},
    {"builder", native_builder, METH_VARARGS, "builder(dim, metric, max_links, ef_build, seed, graph_from, threads)"},
    {"builder_take", native_builder_take, METH_VARARGS, "builder_take(builder, index, keep)"},
    {"builder_add", native_builder_add, METH_VARARGS, "builder_add(builder, ids, rows, n)"},
    {"builder_finish", native_builder_finish, METH_VARARGS, "builder_finish(builder, progress or None, write)"},
    {"simd_select", native_simd_select, METH_VARARGS, "simd_select(name or None)"},
    {"simd_name", native_simd_name, METH_NOARGS, "simd_name() -> str"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "Binding of native/include/edge_index.h.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"HEADER_BYTES", EI_HEADER_BYTES}, {"ALIGNMENT", EI_ALIGNMENT},   {"MAX_DIM", EI_MAX_DIM},
        {"MAX_LINKS", EI_MAX_LINKS},       {"MAX_EF", EI_MAX_EF},         {"MAX_THREADS", EI_MAX_THREADS},
    };
    PyObject *m = PyModule_Create(&module);
    if (!m) return NULL;
    index_error = PyErr_NewException("edge_rag._native.IndexFileError", PyExc_Exception, NULL);
    int failed = !index_error || PyModule_AddObjectRef(m, "IndexFileError", index_error) < 0;
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        failed = failed || PyModule_AddIntConstant(m, constants[i].name, constants[i].value) < 0;
    if (failed) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
