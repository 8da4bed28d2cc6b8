/* The arithmetic of a round around its network call, for chains in the memory of a CPU.
 *
 * The same as drafts.propose, asd.observe and asd.verify, and as rejoin.walk and asd.settle, which
 * tests hold this equal to. There are
 * some seventy small PyTorch operations in those, each of which costs more than its arithmetic.
 * The file includes itself once for float and once for double.
 */
#ifndef REAL

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define PAIRS 6
#define RIDGE 0.05
#define EQUAL 1e-10 /* coupling.EQUAL */

enum { SECANT, SLOPE, MEMORY, FROZEN }; /* drafts.DRAFTS */

/* Addresses of a Chains' tensors, in native.py's order. */
typedef struct {
    int64_t batch, dim, rows, num_steps, clipped;
    double clip;
    void *x, *noise, *log_uniform, *value, *point, *displacement, *residual, *slopes;
    void *a, *b, *sigma, *delta, *uv, *cross, *square, *scratch;
    int64_t *n, *last, *bad, *pushed, *calls, *evaluations, *accepted, *decided;
    uint8_t *fresh;
    double *learned;
    void *path, *mean, *draft; /* chains.Paths, or nothing */
    uint8_t *met;
    int64_t *end;
} State;

static int64_t at_least(int64_t v, int64_t low) { return v < low ? low : v; }
static int64_t at_most(int64_t v, int64_t high) { return v > high ? high : v; }

/* Inverse of a symmetric positive definite matrix in place: Gauss-Jordan needs no pivots there. */
static void invert(double m[PAIRS][PAIRS]) {
    for (int k = 0; k < PAIRS; k++) {
        double pivot = 1 / m[k][k];
        m[k][k] = 1;
        for (int j = 0; j < PAIRS; j++) m[k][j] *= pivot;
        for (int i = 0; i < PAIRS; i++) {
            if (i == k) continue;
            double factor = m[i][k];
            m[i][k] = 0;
            for (int j = 0; j < PAIRS; j++) m[i][j] -= factor * m[k][j];
        }
    }
}

#define REAL float
#define NAME(name) name##_float
#include "native.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(name) name##_double
#include "native.c"
#undef REAL
#undef NAME

/* propose(state, is_double, kind, width, points, drafts) */
static PyObject *propose(PyObject *self, PyObject *args) {
    unsigned long long state, points, drafts;
    int is_double, kind;
    long long width;
    if (!PyArg_ParseTuple(args, "KpiLKK", &state, &is_double, &kind, &width, &points, &drafts))
        return NULL;
    const State *s = (const State *)(uintptr_t)state;
    for (int64_t c = 0; c < s->batch; c++) {
        if (is_double)
            propose_double(s, c, kind, width, (double *)(uintptr_t)points,
                           (double *)(uintptr_t)drafts);
        else
            propose_float(s, c, kind, width, (float *)(uintptr_t)points,
                          (float *)(uintptr_t)drafts);
    }
    Py_RETURN_NONE;
}

/* verify(state, is_double, width, ahead, secants, learn, couple, points, drafts, prediction) */
static PyObject *verify(PyObject *self, PyObject *args) {
    unsigned long long state, points, drafts, prediction;
    int is_double, secants, learn, couple;
    long long width, ahead;
    if (!PyArg_ParseTuple(args, "KpLLpppKKK", &state, &is_double, &width, &ahead, &secants, &learn,
                          &couple, &points, &drafts, &prediction))
        return NULL;
    const State *s = (const State *)(uintptr_t)state;
    for (int64_t c = 0; c < s->batch; c++) {
        if (is_double)
            verify_double(s, c, width, ahead, secants, learn, couple, (double *)(uintptr_t)points,
                          (double *)(uintptr_t)drafts, (double *)(uintptr_t)prediction);
        else
            verify_float(s, c, width, ahead, secants, learn, couple, (float *)(uintptr_t)points,
                         (float *)(uintptr_t)drafts, (float *)(uintptr_t)prediction);
    }
    Py_RETURN_NONE;
}

/* walk(state, is_double, width, points, steps) */
static PyObject *walk(PyObject *self, PyObject *args) {
    unsigned long long state, points, steps;
    int is_double;
    long long width;
    if (!PyArg_ParseTuple(args, "KpLKK", &state, &is_double, &width, &points, &steps)) return NULL;
    const State *s = (const State *)(uintptr_t)state;
    for (int64_t c = 0; c < s->batch; c++) {
        if (is_double)
            walk_double(s, c, width, (double *)(uintptr_t)points, (int64_t *)(uintptr_t)steps);
        else
            walk_float(s, c, width, (float *)(uintptr_t)points, (int64_t *)(uintptr_t)steps);
    }
    Py_RETURN_NONE;
}

/* settle(state, is_double, width, secants, learn, points, steps, prediction) */
static PyObject *settle(PyObject *self, PyObject *args) {
    unsigned long long state, points, steps, prediction;
    int is_double, secants, learn;
    long long width;
    if (!PyArg_ParseTuple(args, "KpLppKKK", &state, &is_double, &width, &secants, &learn, &points,
                          &steps, &prediction))
        return NULL;
    const State *s = (const State *)(uintptr_t)state;
    for (int64_t c = 0; c < s->batch; c++) {
        if (is_double)
            settle_double(s, c, width, secants, learn, (double *)(uintptr_t)points,
                          (int64_t *)(uintptr_t)steps, (double *)(uintptr_t)prediction);
        else
            settle_float(s, c, width, secants, learn, (float *)(uintptr_t)points,
                         (int64_t *)(uintptr_t)steps, (float *)(uintptr_t)prediction);
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"propose", propose, METH_VARARGS, NULL},
                                {"verify", verify, METH_VARARGS, NULL},
                                {"walk", walk, METH_VARARGS, NULL},
                                {"settle", settle, METH_VARARGS, NULL},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods,
                                    NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module); }

#else /* ---- for one type ------------------------------------------------------------------- */

static REAL NAME(dot)(const REAL *v, const REAL *w, int64_t dim) {
    REAL sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; i++) sum += v[i] * w[i];
    return sum;
}

/* One step of the chain: to = a·draft + b·from + σ·noise. */
static void NAME(step)(const State *s, int64_t n, const REAL *draft, const REAL *from,
                       const REAL *noise, REAL *to) {
    REAL a = ((REAL *)s->a)[n], b = ((REAL *)s->b)[n], sigma = ((REAL *)s->sigma)[n];
    for (int64_t i = 0; i < s->dim; i++) to[i] = a * draft[i] + b * from[i] + sigma * noise[i];
}

/* (Δx Δxᵀ + λI)⁻¹ of the chain's secants. */
static void NAME(inverse_gram)(const State *s, const REAL *moved, double gram[PAIRS][PAIRS]) {
    for (int i = 0; i < PAIRS; i++)
        for (int j = 0; j <= i; j++)
            gram[i][j] = gram[j][i] =
                NAME(dot)(moved + i * s->dim, moved + j * s->dim, s->dim) + (i == j ? RIDGE : 0);
    invert(gram);
}

/* Clipped; the memory's value where a correction overflowed: drafts.finite. */
static void NAME(bound)(const State *s, const REAL *value, REAL *draft) {
    const REAL edge = s->clipped ? (REAL)s->clip : (REAL)INFINITY;
    for (int64_t i = 0; i < s->dim; i++) {
        REAL low = draft[i] < -edge ? -edge : draft[i];
        REAL bounded = low > edge ? edge : low;
        draft[i] = bounded - bounded == 0 ? bounded : value[i];
    }
}

/* draft += α·z + what the secants say of the displacement z. */
static void NAME(correct)(const State *s, REAL slope, const REAL *z, const REAL *moved,
                          const REAL *residual, double inverse[PAIRS][PAIRS], int pairs,
                          REAL *draft) {
    for (int64_t i = 0; i < s->dim; i++) draft[i] += slope * z[i];
    if (!pairs) return;
    double share[PAIRS];
    for (int k = 0; k < PAIRS; k++) share[k] = NAME(dot)(z, moved + k * s->dim, s->dim);
    for (int k = 0; k < PAIRS; k++) {
        double sum = 0;
        for (int j = 0; j < PAIRS; j++) sum += inverse[k][j] * share[j];
        REAL weight = (REAL)sum;
        for (int64_t i = 0; i < s->dim; i++) draft[i] += weight * residual[k * s->dim + i];
    }
}

static void NAME(propose)(const State *s, int64_t c, int kind, int64_t width, REAL *points,
                          REAL *drafts) {
    const int64_t dim = s->dim, n = s->n[c], last = s->last[c], row = c * s->rows;
    const REAL *value = (REAL *)s->value + row * dim, *origin = (REAL *)s->point + row * dim;
    const REAL *noise = (REAL *)s->noise + (row + n) * dim;
    const REAL *moved = (REAL *)s->displacement + c * PAIRS * dim;
    const REAL *residual = (REAL *)s->residual + c * PAIRS * dim;
    points += c * (width + 1) * dim;
    drafts += c * width * dim;
    memcpy(points, (REAL *)s->x + c * dim, dim * sizeof(REAL));
    for (int64_t m = 0; m < width; m++) {
        int64_t source = at_least(at_most(kind == FROZEN ? n : n + m, last), 0);
        REAL *draft = drafts + m * dim, *here = points + m * dim;
        memcpy(draft, value + source * dim, dim * sizeof(REAL));
        NAME(step)(s, n + m, draft, here, noise + m * dim, here + dim);
    }
    if (kind == MEMORY || kind == FROZEN) return;

    /* Correct at the points found; carry the furthest known step's draft on. */
    const int pairs = kind == SECANT && s->pushed[c] > 0;
    double inverse[PAIRS][PAIRS];
    if (pairs) NAME(inverse_gram)(s, moved, inverse);
    for (int64_t m = 0; m < width; m++) {
        int64_t source = at_least(at_most(n + m, last), 0);
        REAL *draft = drafts + m * dim, *here = points + m * dim;
        if (m > 0 && n + m > last) {
            memcpy(draft, draft - dim, dim * sizeof(REAL));
            continue;
        }
        if (n + m <= last) {
            const REAL *then = origin + (n + m) * dim;
            for (int64_t i = 0; i < dim; i++) here[i] -= then[i];
            NAME(correct)(s, ((REAL *)s->slopes)[n + m], here, moved, residual, inverse, pairs,
                          draft);
        }
        NAME(bound)(s, value + source * dim, draft);
    }
    memcpy(points, (REAL *)s->x + c * dim, dim * sizeof(REAL));
    for (int64_t m = 0; m < width; m++) {
        REAL *here = points + m * dim;
        NAME(step)(s, n + m, drafts + m * dim, here, noise + m * dim, here + dim);
    }
}

/* A pair in place of the oldest, scaled to unit displacement. */
static void NAME(add_secant)(const State *s, int64_t c, REAL slope, const REAL *x0, const REAL *at,
                             const REAL *before, const REAL *then) {
    const int64_t dim = s->dim, slot = (c * PAIRS + s->pushed[c]++ % PAIRS) * dim;
    REAL *moved = (REAL *)s->displacement + slot, *residual = (REAL *)s->residual + slot;
    for (int64_t i = 0; i < dim; i++) {
        moved[i] = at[i] - then[i];
        residual[i] = x0[i] - before[i] - slope * moved[i];
    }
    REAL length = (REAL)sqrt((double)NAME(dot)(moved, moved, dim));
    REAL scale = length > 0 ? 1 / length : 0;
    for (int64_t i = 0; i < dim; i++) moved[i] *= scale, residual[i] *= scale;
}

/* From a prediction to x̂0; whether it was finite. */
static int NAME(to_x0)(const State *s, int64_t n, const REAL *at, const REAL *prediction,
                       REAL *to) {
    const REAL u = ((REAL *)s->uv)[2 * n], v = ((REAL *)s->uv)[2 * n + 1];
    const REAL clip = (REAL)s->clip;
    REAL test = 0;
    for (int64_t i = 0; i < s->dim; i++) {
        REAL x0 = u * at[i] + v * prediction[i];
        test += s->clipped ? 0 * prediction[i] : 0 * x0;
        if (s->clipped) x0 = x0 < -clip ? -clip : x0 > clip ? clip : x0;
        to[i] = x0;
    }
    return test == 0;
}

/* Whether it was finite. If not, what was known stays, and x̂0 = 0 where nothing was. */
static int NAME(remember)(const State *s, int64_t c, int64_t n, int secants, int learn,
                          const REAL *at, const REAL *prediction) {
    const int64_t dim = s->dim, row = c * s->rows + n;
    REAL *value = (REAL *)s->value + row * dim, *point = (REAL *)s->point + row * dim;
    REAL *x0 = (REAL *)s->scratch;
    const int finite = NAME(to_x0)(s, n, at, prediction, x0), known = n <= s->last[c];
    if (learn) {
        REAL cross = 0, square = 0;
        if (known && finite)
            for (int64_t i = 0; i < dim; i++) {
                REAL moved = at[i] - point[i];
                cross += moved * (x0[i] - value[i]);
                square += moved * moved;
            }
        ((REAL *)s->cross)[row] = cross;
        ((REAL *)s->square)[row] = square;
    }
    if (!finite && known) return 0;
    if (!finite) memset(x0, 0, dim * sizeof(REAL));
    if (secants && known && n == s->n[c])
        NAME(add_secant)(s, c, ((REAL *)s->slopes)[n], x0, at, value, point);
    memcpy(value, x0, dim * sizeof(REAL));
    memcpy(point, at, dim * sizeof(REAL));
    return finite;
}

/* Note a step at which the network was not finite, if the chain itself was there: asd._blame. */
static void NAME(blame)(const State *s, int64_t c, int64_t broken, int64_t reached) {
    if (broken <= reached && s->bad[c] < 0) s->bad[c] = broken;
}

/* Whether the proposal of mean target + σ·delta, made with this noise, stands for one without
 * delta: coupling.accepts. Gives ⟨ξ, δ⟩, ‖δ‖² and the log ratio. */
static int NAME(stands)(const State *s, const REAL *noise, const REAL *delta, REAL log_uniform,
                        REAL *inner, REAL *square, REAL *ratio) {
    REAL share = 0, sum = 0;
#pragma omp simd reduction(+ : share, sum)
    for (int64_t i = 0; i < s->dim; i++) {
        share += noise[i] * delta[i];
        sum += delta[i] * delta[i];
    }
    *inner = share, *square = sum, *ratio = -(share + sum / 2);
    return log_uniform <= *ratio && *ratio < INFINITY; /* false for a NaN */
}

/* to = the noise reflected along delta: coupling.reflect. */
static void NAME(reflect)(const State *s, const REAL *noise, const REAL *delta, REAL inner,
                          REAL square, REAL *to) {
    const int apart = square > (REAL)(EQUAL * EQUAL) && square < (REAL)INFINITY;
    REAL factor = apart ? 2 * inner / square : 0;
    for (int64_t i = 0; i < s->dim; i++) to[i] = apart ? noise[i] - factor * delta[i] : noise[i];
}

/* Decide on step n at a point, and move on; whether the draft stood. It becomes δ. */
static int NAME(decide)(const State *s, int64_t c, int64_t n, int learn, const REAL *at,
                        REAL *delta) {
    const int64_t dim = s->dim, row = c * s->rows + n;
    const REAL *target = (REAL *)s->value + row * dim, *noise = (REAL *)s->noise + row * dim;
    REAL *x = (REAL *)s->x + c * dim, scale = ((REAL *)s->delta)[n], inner, square, ratio;
    s->n[c] = n + 1;
    if (n == s->num_steps - 1) { /* no draft to decide on */
        NAME(step)(s, n, target, at, noise, x);
        return 0;
    }
    for (int64_t i = 0; i < dim; i++) delta[i] = scale * (delta[i] - target[i]);
    const int stood =
        NAME(stands)(s, noise, delta, ((REAL *)s->log_uniform)[row], &inner, &square, &ratio);
    s->decided[row]++;
    s->accepted[row] += stood;
    if (learn) {
        s->learned[n] += ((REAL *)s->cross)[row];
        s->learned[s->rows + n] += ((REAL *)s->square)[row];
    }
    if (stood) return 1;
    NAME(reflect)(s, noise, delta, inner, square, delta);
    NAME(step)(s, n, target, at, delta, x);
    return 0;
}

/* Couple until the first rejection and move on. */
static void NAME(couple)(const State *s, int64_t c, int64_t width, int64_t ahead, int learn,
                         const REAL *points, REAL *drafts) {
    const int64_t dim = s->dim, start = s->n[c], size = s->num_steps;
    s->fresh[c] = 0;
    if (start >= size) return;
    for (int64_t n = start; n < at_most(start + width, size); n++)
        if (!NAME(decide)(s, c, n, learn, points + (n - start) * dim, drafts + (n - start) * dim))
            return;
    memcpy((REAL *)s->x + c * dim, points + width * dim, dim * sizeof(REAL));
    s->fresh[c] = ahead > 0;
}

static void NAME(verify)(const State *s, int64_t c, int64_t width, int64_t ahead, int secants,
                         int learn, int couple, const REAL *points, REAL *drafts,
                         const REAL *prediction) {
    const int64_t dim = s->dim, n = s->n[c];
    points += c * (width + couple) * dim;
    prediction += c * width * dim;
    const int64_t left = at_least(at_most(width, s->num_steps - n - ahead), 0);
    const int64_t use = s->fresh[c] && !ahead ? 0 : left;
    int64_t broken = s->num_steps + 1; /* none */
    for (int64_t m = 0; m < use; m++)
        if (!NAME(remember)(s, c, n + ahead + m, secants && !ahead && !m, learn,
                            points + (couple ? m + ahead : m) * dim, prediction + m * dim))
            broken = at_most(broken, n + ahead + m);
    s->last[c] = at_least(s->last[c], at_most(n + ahead + width, s->num_steps) - 1);
    s->calls[c] += use > 0;
    s->evaluations[c] += use;
    if (couple) NAME(couple)(s, c, width, ahead, learn, points, drafts + c * width * dim);
    NAME(blame)(s, c, broken, couple ? s->n[c] - 1 + s->fresh[c] : n);
}

/* coupling.left_over. */
static REAL NAME(left_over)(REAL log_uniform, REAL ratio, int accepted) {
    const REAL log_p = ratio < INFINITY ? (ratio < 0 ? ratio : 0) : -INFINITY;
    if (accepted) return log_uniform - log_p;
    const REAL p = (REAL)exp((double)log_p), u = (REAL)exp((double)log_uniform);
    const REAL least = sizeof(REAL) == 4 ? (REAL)FLT_EPSILON : (REAL)DBL_EPSILON;
    REAL above = (u - p) / (1 - p < least ? least : 1 - p);
    above = above < least ? least : above > 1 ? 1 : above;
    return (REAL)log((double)above);
}

/* A proposal from step n: back to where the last one ended, if there is one, or beside it. */
static void NAME(rejoin)(const State *s, int64_t c, int64_t n, int known) {
    const int64_t dim = s->dim, row = c * s->rows + n;
    REAL *path = (REAL *)s->path + row * dim, *mean = (REAL *)s->mean + row * dim;
    REAL *noise = (REAL *)s->noise + row * dim, *log_uniform = (REAL *)s->log_uniform + row;
    const REAL *draft = (REAL *)s->draft + row * dim;
    const REAL a = ((REAL *)s->a)[n], b = ((REAL *)s->b)[n], sigma = ((REAL *)s->sigma)[n];
    REAL *delta = (REAL *)s->scratch, inner, square, ratio;
    for (int64_t i = 0; i < dim; i++) {
        REAL new = a * draft[i] + b * path[i];
        delta[i] = (mean[i] - new) / sigma;
        mean[i] = new;
    }
    if (known) {
        const int back =
            NAME(stands)(s, noise, delta, *log_uniform, &inner, &square, &ratio);
        *log_uniform = NAME(left_over)(*log_uniform, ratio, back);
        if (back) {
            for (int64_t i = 0; i < dim; i++) noise[i] += delta[i];
            return;
        }
        NAME(reflect)(s, noise, delta, inner, square, noise);
    }
    s->met[row + 1] = 0;
    for (int64_t i = 0; i < dim; i++) path[dim + i] = mean[i] + sigma * noise[i];
}

static void NAME(walk)(const State *s, int64_t c, int64_t width, REAL *points, int64_t *steps) {
    const int64_t dim = s->dim, last = s->last[c], row = c * s->rows, size = s->num_steps;
    const REAL *value = (REAL *)s->value + row * dim, *origin = (REAL *)s->point + row * dim;
    const REAL *moved = (REAL *)s->displacement + c * PAIRS * dim;
    const REAL *residual = (REAL *)s->residual + c * PAIRS * dim;
    const REAL *path = (REAL *)s->path + row * dim;
    const int pairs = s->pushed[c] > 0;
    double inverse[PAIRS][PAIRS];
    if (pairs) NAME(inverse_gram)(s, moved, inverse);
    REAL *drafts = (REAL *)s->draft + row * dim, *z = (REAL *)s->scratch;
    int64_t spent = 0, m = s->n[c];
    points += c * width * dim;
    steps += c * width;
    for (; m < size; m++) {
        REAL *draft = drafts + m * dim;
        if (!s->met[row + m]) {
            if (spent == width) break;
            memcpy(points + spent * dim, path + m * dim, dim * sizeof(REAL));
            steps[spent++] = m;
        }
        if (m == size - 1) continue;
        if (m <= last) {
            memcpy(draft, value + m * dim, dim * sizeof(REAL));
            for (int64_t i = 0; i < dim; i++) z[i] = path[m * dim + i] - origin[m * dim + i];
            NAME(correct)(s, ((REAL *)s->slopes)[m], z, moved, residual, inverse, pairs, draft);
            NAME(bound)(s, value + m * dim, draft);
        } else /* carry the draft before on */
            memcpy(draft, m > s->n[c] ? draft - dim : value + at_least(last, 0) * dim,
                   dim * sizeof(REAL));
        NAME(rejoin)(s, c, m, m <= last);
    }
    s->end[c] = m;
    memset(points + spent * dim, 0, (width - spent) * dim * sizeof(REAL));
    for (; spent < width; spent++) steps[spent] = size;
}

static void NAME(settle)(const State *s, int64_t c, int64_t width, int secants, int learn,
                         const REAL *points, const int64_t *steps, const REAL *prediction) {
    const int64_t dim = s->dim, row = c * s->rows, end = s->end[c];
    REAL *x = (REAL *)s->x + c * dim, *path = (REAL *)s->path + row * dim;
    points += c * width * dim;
    steps += c * width;
    prediction += c * width * dim;
    int64_t use = 0, broken = s->num_steps + 1; /* none */
    for (; use < width && steps[use] < s->num_steps; use++) {
        const int finite = NAME(remember)(s, c, steps[use], secants && !use, learn,
                                          points + use * dim, prediction + use * dim);
        s->met[row + steps[use]] = finite;
        if (!finite) broken = at_most(broken, steps[use]);
    }
    s->last[c] = at_least(s->last[c], end - 1);
    s->calls[c] += use > 0;
    s->evaluations[c] += use;
    if (s->n[c] >= s->num_steps) return;
    memcpy(x, path + end * dim, dim * sizeof(REAL)); /* if all of them stand */
    for (int64_t n = s->n[c]; n < end; n++) {
        REAL *draft = (REAL *)s->scratch;
        memcpy(draft, (REAL *)s->draft + (row + n) * dim, dim * sizeof(REAL));
        if (!NAME(decide)(s, c, n, learn, path + n * dim, draft)) break;
    }
    const int64_t here = s->n[c];
    memcpy(path + here * dim, x, dim * sizeof(REAL));
    s->met[row + here] = 0;
    NAME(blame)(s, c, broken, here - 1);
}
#endif
