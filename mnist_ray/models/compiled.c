// What a training on the CPU does between its convolutions: pooling, and normalisation with
// activation. Maps have their channels last in memory; sums are taken in float32 or float64.
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float from_bf16(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline bf16 to_bf16(float value) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value != value ? 0x7fc0 : rounded;
}

static inline float from_float(float x) { return x; }
static inline float to_float(float x) { return x; }

// Asks for bytes that are needed soon. Without it, processors with AMX wait for memory.
static inline void ahead(const void *from, long bytes) {
    for (long i = 0; i < bytes; i += 64)
        __builtin_prefetch((const void *)((uintptr_t)from + AHEAD + i));
}

// ---- maximum pooling, windows of 2 x 2
//
// x is [n, h, w, c], y [n, (h - 2) / stride + 1, (w - 2) / stride + 1, c]. `place` has the number
// (2 * row + column) of each window's largest value, in one byte where torch keeps eight.

// What is compared: of bfloat16 a whole number that is ordered as the value is, of -0 as of 0, and of
// NaN the largest there is. As in torch, NaN wins.
static inline int16_t key_bf16(bf16 x) {
    int16_t size = x & 0x7fff, key = x >> 15 ? -size : size;
    return size > 0x7f80 ? 0x7fff : key;
}

static inline bf16 of_key_bf16(int16_t key) { return key < 0 ? 0x8000 | -key : key; }
static inline int larger_bf16(int16_t key, int16_t than) { return key > than; }

static inline float key_float(float x) { return x; }
static inline float of_key_float(float key) { return key; }
static inline int larger_float(float key, float than) { return (key > than) | (key != key); }

#define NEXT(T, value, number)                                                                     \
    {                                                                                              \
        other = key_##T(value);                                                                    \
        int larger = larger_##T(other, best);                                                      \
        best = larger ? other : best;                                                              \
        which = larger ? number : which;                                                           \
    }

#define MAX_POOL(T, KEY)                                                                           \
    static void largest_##T(const T *restrict a, const T *restrict b, T *restrict y,               \
                            uint8_t *restrict place, long c, long count) {                         \
        const T *restrict a1 = a + c, *restrict b1 = b + c;                                        \
        _Pragma("omp simd") for (long i = 0; i < count; i++) {                                     \
            KEY best = key_##T(a[i]), other;                                                       \
            int which = 0;                                                                         \
            NEXT(T, a1[i], 1)                                                                      \
            NEXT(T, b[i], 2)                                                                       \
            NEXT(T, b1[i], 3)                                                                      \
            y[i] = of_key_##T(best);                                                               \
            place[i] = which;                                                                      \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    void max_pool_##T(const T *x, T *y, uint8_t *place, long n, long h, long w, long c,            \
                      long stride, long threads) {                                                 \
        long ho = (h - 2) / stride + 1, wo = (w - 2) / stride + 1;                                 \
        _Pragma("omp parallel for num_threads(threads)") for (long row = 0; row < n * ho; row++) { \
            const T *a = x + (row / ho * h + row % ho * stride) * w * c, *b = a + w * c;           \
            T *out = y + row * wo * c;                                                             \
            uint8_t *number = place + row * wo * c;                                                \
            ahead(stride == 1 ? b : a, stride * w * c * sizeof(T));                                \
            ahead(out, wo * c * sizeof(T)), ahead(number, wo * c);                                 \
            if (stride == 1) /* the windows of a row in one: each is c further than the last */    \
                largest_##T(a, b, out, number, c, wo * c);                                         \
            else                                                                                   \
                for (long i = 0; i < wo; i++)                                                      \
                    largest_##T(a + 2 * i * c, b + 2 * i * c, out + i * c, number + i * c, c, c);  \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    static void scattered_##T(const T *restrict g, const uint8_t *restrict place, T *restrict a,   \
                              T *restrict b, long c) {                                             \
        T *restrict a1 = a + c, *restrict b1 = b + c;                                              \
        _Pragma("omp simd") for (long i = 0; i < c; i++) {                                         \
            a[i] = place[i] == 0 ? g[i] : 0;                                                       \
            a1[i] = place[i] == 1 ? g[i] : 0;                                                      \
            b[i] = place[i] == 2 ? g[i] : 0;                                                       \
            b1[i] = place[i] == 3 ? g[i] : 0;                                                      \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    /* of windows side by side */                                                                  \
    static void scatter_##T(const T *gradient, const uint8_t *place, T *result, long n, long h,    \
                            long w, long c, long threads) {                                        \
        long ho = h / 2, wo = w / 2;                                                               \
        _Pragma("omp parallel for num_threads(threads)") for (long row = 0; row < n * ho; row++) { \
            const T *g = gradient + row * wo * c;                                                  \
            const uint8_t *number = place + row * wo * c;                                          \
            T *a = result + (row / ho * h + row % ho * 2) * w * c, *b = a + w * c;                 \
            ahead(g, wo * c * sizeof(T)), ahead(number, wo * c), ahead(a, 2 * w * c * sizeof(T));  \
            for (long i = 0; i < wo; i++)                                                          \
                scattered_##T(g + i * c, number + i * c, a + 2 * i * c, b + 2 * i * c, c);         \
            if (w % 2) { /* no window has the last column, nor the last row */                     \
                memset(b - c, 0, c * sizeof(T));                                                   \
                memset(b + (w - 1) * c, 0, c * sizeof(T));                                         \
            }                                                                                      \
            if (h % 2 && row % ho == ho - 1) memset(b + w * c, 0, w * c * sizeof(T));              \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    static void gathered_##T(const T *const *g, const uint8_t *const *place, T *restrict out,      \
                             long count) {                                                         \
        const T *restrict g0 = g[0], *restrict g1 = g[1], *restrict g2 = g[2], *restrict g3 = g[3];\
        const uint8_t *restrict p0 = place[0], *restrict p1 = place[1], *restrict p2 = place[2],   \
                                *restrict p3 = place[3];                                           \
        _Pragma("omp simd") for (long i = 0; i < count; i++) {                                     \
            float sum = from_##T(p0[i] == 0 ? g0[i] : 0);                                          \
            sum += from_##T(p1[i] == 1 ? g1[i] : 0);                                               \
            sum += from_##T(p2[i] == 2 ? g2[i] : 0);                                               \
            sum += from_##T(p3[i] == 3 ? g3[i] : 0);                                               \
            out[i] = to_##T(sum);                                                                  \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    void max_pool_gradient_##T(const T *gradient, const uint8_t *place, T *result, long n, long h, \
                               long w, long c, long stride, long threads) {                        \
        if (stride == 2) {                                                                         \
            scatter_##T(gradient, place, result, n, h, w, c, threads);                             \
            return;                                                                                \
        }                                                                                          \
        long ho = h - 1, wo = w - 1;                                                               \
        _Pragma("omp parallel for num_threads(threads)") for (long row = 0; row < n * h; row++) {  \
            uint8_t none[c]; /* where there is no window */                                        \
            memset(none, 255, c);                                                                  \
            long r = row % h, start = (row / h * ho + r) * wo * c;                                 \
            ahead(gradient + start, wo * c * sizeof(T)), ahead(place + start, wo * c);             \
            ahead(result + row * w * c, w * c * sizeof(T));                                        \
            for (long column = 0, columns; column < w; column += columns) {                        \
                const T *g[4];                                                                     \
                const uint8_t *p[4];                                                               \
                for (int k = 0; k < 4; k++) { /* the windows that hold this place */               \
                    long top = r - k / 2, left = column - k % 2;                                   \
                    int is = top >= 0 && left >= 0 && top < ho && left < wo;                       \
                    long at = ((row / h * ho + top) * wo + left) * c;                              \
                    g[k] = gradient + (is ? at : 0);                                               \
                    p[k] = is ? place + at : none;                                                 \
                }                                                                                  \
                /* all places that have four windows in one */                                     \
                columns = r > 0 && r < ho && column == 1 && wo > 1 ? wo - 1 : 1;                   \
                gathered_##T(g, p, result + (row * w + column) * c, columns * c);                  \
            }                                                                                      \
        }                                                                                          \
    }

MAX_POOL(bf16, int16_t)
MAX_POOL(float, float)

// ---- the mean of windows of 3 x 3, of stride 2 and with the map's edge padded by 1
//
// x is [n, h, w, c], y [n, (h - 1) / 2 + 1, (w - 1) / 2 + 1, c]; places beyond the edge do not count.

// How many of a window's three rows or columns lie in a map of this size.
static inline long inside(long window, long size) {
    return 3 - (window == 0) - (2 * window + 1 >= size);
}

#define MEAN_POOL(T)                                                                               \
    static void mean_##T(const T *const *x, T *restrict y, float count, long c) {                  \
        _Pragma("omp simd") for (long i = 0; i < c; i++) {                                         \
            float sum = from_##T(x[0][i]); /* in torch's order, to the bit */                       \
            sum += from_##T(x[1][i]), sum += from_##T(x[2][i]), sum += from_##T(x[3][i]);          \
            sum += from_##T(x[4][i]), sum += from_##T(x[5][i]), sum += from_##T(x[6][i]);          \
            sum += from_##T(x[7][i]), sum += from_##T(x[8][i]);                                    \
            y[i] = to_##T(sum / count);                                                            \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    void mean_pool_##T(const T *x, T *y, long n, long h, long w, long c, long threads) {           \
        long ho = (h - 1) / 2 + 1, wo = (w - 1) / 2 + 1;                                           \
        _Pragma("omp parallel for num_threads(threads)") for (long row = 0; row < n * ho; row++) { \
            T none[c];                                                                             \
            memset(none, 0, sizeof none);                                                          \
            ahead(x + (row / ho * h + row % ho * 2) * w * c, 2 * w * c * sizeof(T));               \
            ahead(y + row * wo * c, wo * c * sizeof(T));                                           \
            for (long column = 0; column < wo; column++) {                                         \
                const T *from[9];                                                                  \
                for (int k = 0; k < 9; k++) {                                                      \
                    long top = row % ho * 2 + k / 3 - 1, left = column * 2 + k % 3 - 1;            \
                    int is = top >= 0 && left >= 0 && top < h && left < w;                         \
                    from[k] = is ? x + ((row / ho * h + top) * w + left) * c : none;               \
                }                                                                                  \
                float count = inside(row % ho, h) * inside(column, w);                             \
                mean_##T(from, y + (row * wo + column) * c, count, c);                             \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    static void spread_##T(const T *const *g, const float *share, T *restrict result, long c) {    \
        _Pragma("omp simd") for (long i = 0; i < c; i++)                                           \
            result[i] = to_##T(share[0] * from_##T(g[0][i]) + share[1] * from_##T(g[1][i]) +       \
                               share[2] * from_##T(g[2][i]) + share[3] * from_##T(g[3][i]));       \
    }                                                                                              \
                                                                                                   \
    void mean_pool_gradient_##T(const T *gradient, T *result, long n, long h, long w, long c,      \
                                long threads) {                                                    \
        long ho = (h - 1) / 2 + 1, wo = (w - 1) / 2 + 1;                                           \
        _Pragma("omp parallel for num_threads(threads)") for (long row = 0; row < n * h; row++) {  \
            T none[c];                                                                             \
            memset(none, 0, sizeof none);                                                          \
            ahead(result + row * w * c, w * c * sizeof(T));                                        \
            for (long column = 0; column < w; column++) {                                          \
                const T *g[4];                                                                     \
                float share[4];                                                                    \
                for (int k = 0; k < 4; k++) { /* an odd row or column lies in two windows */       \
                    long top = (row % h + k / 2) / 2, left = (column + k % 2) / 2;                 \
                    int is = (k / 2 == 0 || row % h % 2) && (k % 2 == 0 || column % 2) &&          \
                             top < ho && left < wo;                                                \
                    g[k] = is ? gradient + ((row / h * ho + top) * wo + left) * c : none;          \
                    share[k] = is ? 1.f / (inside(top, h) * inside(left, w)) : 0;                  \
                }                                                                                  \
                spread_##T(g, share, result + (row * w + column) * c, c);                          \
            }                                                                                      \
        }                                                                                          \
    }

MEAN_POOL(bf16)
MEAN_POOL(float)

// ---- batch normalisation, then an activation
//
// x, y and their gradients are [rows, c]. Partial sums are those of BLOCK rows, whatever the threads,
// so that threads do not change a bit. compiled.py defines BLOCK, and SLOPE of the leaky ReLU.

static inline float exponential(float x) {  // of numbers below 0; relative error 2e-7
    x = x < -87 ? -87 : x;
    float n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // to the nearest whole number
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1 / 120.f + r * (1 / 720.f);
    p = 1 + r * (1 + r * (0.5f + r * (1 / 6.f + r * (1 / 24.f + r * p))));
    uint32_t bits = ((uint32_t)(int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

// The normal distribution's density at z; `*below` is the share below z to 1e-7 (Abramowitz and
// Stegun, 7.1.26).
static inline float normal(float z, float *below) {
    float e = exponential(-0.5f * z * z), size = z < 0 ? -z : z;
    float t = 1 / (1 + 0.3275911f * 0.70710678f * size);
    float p = -1.453152027f + t * 1.061405429f;
    float tail = 0.5f * e * t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * p)));
    *below = z < 0 ? tail : 1 - tail;
    return 0.39894228f * e;
}

static inline float relu(float z) { return z < 0 ? 0 : z; }
static inline float relu_slope(float z) { return z > 0 ? 1 : 0; }
static inline float leaky_relu(float z) { return z < 0 ? (float)SLOPE * z : z; }
static inline float leaky_relu_slope(float z) { return z > 0 ? 1 : (float)SLOPE; }
static inline float sigmoid(float z) {
    float e = exponential(z < 0 ? z : -z);
    return (z < 0 ? e : 1) / (1 + e);
}
static inline float silu(float z) { return z * sigmoid(z); }
static inline float silu_slope(float z) {
    float share = sigmoid(z);
    return share * (1 + z * (1 - share));
}
static inline float gelu(float z) {
    float below;
    normal(z, &below);
    return z * below;
}
static inline float gelu_slope(float z) {
    float below, density = normal(z, &below);
    return below + z * density;
}

// Sums of the blocks' partial sums: two a channel.
static void added(const float *partial, double *sums, long blocks, long c) {
    memset(sums, 0, 2 * c * sizeof *sums);
    for (long block = 0; block < blocks; block++)
        for (long i = 0; i < 2 * c; i++) sums[i] += partial[block * 2 * c + i];
}

// Calls a function for LANES of the c channels at a time, and for the rest. The compiler makes better
// code of a number that it knows.
#define EACH(CALL)                                                                                 \
    for (long i = 0; i < c; i += LANES) {                                                          \
        long lanes = c - i;                                                                        \
        if (lanes >= LANES) {                                                                      \
            lanes = LANES;                                                                         \
            CALL;                                                                                  \
        } else                                                                                     \
            CALL;                                                                                  \
    }

// `partial` is room for 2 c floats a block. `kept` is [4, c], for the gradient: mean, 1 / deviation,
// and the factor and the summand that make the activation's input of x. LANES channels at a time,
// the sums of a block stay in registers.
#define STATISTICS(T)                                                                              \
    static inline void sums_##T(const T *x, const T *first, float *sum, float *squares, long rows, \
                                long c, long lanes) {                                              \
        float s[LANES] = {0}, q[LANES] = {0};                                                      \
        for (long row = 0; row < rows; row++) {                                                    \
            const T *restrict in = x + row * c;                                                    \
            ahead(in, lanes * sizeof(T));                                                          \
            _Pragma("omp simd") for (long i = 0; i < lanes; i++) {                                 \
                /* from the first row's values, so that squares do not cancel */                   \
                float value = from_##T(in[i]) - from_##T(first[i]);                                \
                s[i] += value;                                                                     \
                q[i] += value * value;                                                             \
            }                                                                                      \
        }                                                                                          \
        memcpy(sum, s, lanes * sizeof *s), memcpy(squares, q, lanes * sizeof *q);                  \
    }                                                                                              \
                                                                                                   \
    static void statistics_##T(const T *x, const float *weight, const float *bias,                 \
                               float *running_mean, float *running_variance, float *kept,          \
                               float *partial, long rows, long c, double eps, double momentum,     \
                               long threads) {                                                     \
        long blocks = (rows + BLOCK - 1) / BLOCK;                                                  \
        _Pragma("omp parallel for num_threads(threads)") for (long b = 0; b < blocks; b++) {       \
            float *sum = partial + b * 2 * c, *squares = sum + c;                                  \
            long start = b * BLOCK, count = rows - start < BLOCK ? rows - start : BLOCK;           \
            EACH(sums_##T(x + start * c + i, x + i, sum + i, squares + i, count, c, lanes))        \
        }                                                                                          \
        double sums[2 * c];                                                                        \
        added(partial, sums, blocks, c);                                                           \
        for (long i = 0; i < c; i++) {                                                             \
            double mean = sums[i] / rows, variance = sums[c + i] / rows - mean * mean;             \
            mean += from_##T(x[i]);                                                                \
            variance = variance < 0 ? 0 : variance;                                                \
            double inverse = 1 / sqrt(variance + eps);                                             \
            kept[i] = mean, kept[c + i] = inverse;                                                 \
            kept[2 * c + i] = weight[i] * inverse;                                                 \
            kept[3 * c + i] = bias[i] - mean * inverse * weight[i];                                \
            double unbiased = variance * rows / (rows - 1);                                        \
            running_mean[i] += momentum * (mean - running_mean[i]);                                \
            running_variance[i] += momentum * (unbiased - running_variance[i]);                    \
        }                                                                                          \
    }

#define NORM(T, ACTIVATION, AGAIN)                                                                 \
    void scaled_##ACTIVATION##_##T(const T *x, T *y, const float *restrict factor,                 \
                                   const float *restrict summand, long rows, long c,               \
                                   long threads) {                                                 \
        _Pragma("omp parallel for num_threads(threads)") for (long row = 0; row < rows; row++) {   \
            const T *restrict in = x + row * c;                                                    \
            T *restrict out = y + row * c;                                                         \
            ahead(in, c * sizeof(T)), ahead(out, c * sizeof(T));                                   \
            _Pragma("omp simd") for (long i = 0; i < c; i++)                                       \
                out[i] = to_##T(ACTIVATION(from_##T(in[i]) * factor[i] + summand[i]));             \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    void norm_##ACTIVATION##_##T(const T *x, T *y, const float *weight, const float *bias,         \
                                 float *running_mean, float *running_variance, float *kept,        \
                                 float *partial, long rows, long c, long threads, double eps,      \
                                 double momentum) {                                                \
        statistics_##T(x, weight, bias, running_mean, running_variance, kept, partial, rows, c,    \
                       eps, momentum, threads);                                                    \
        scaled_##ACTIVATION##_##T(x, y, kept + 2 * c, kept + 3 * c, rows, c, threads);             \
    }                                                                                              \
                                                                                                   \
    /* The gradient of the activation's input, and its sums: alone and times x - mean. */          \
    static inline void sums_##ACTIVATION##_##T(const T *gradient, const T *x, T *result,           \
                                               const float *kept, float *sum, float *products,     \
                                               long rows, long c, long lanes) {                    \
        const float *restrict mean = kept, *restrict inverse = kept + c;                           \
        const float *restrict factor = kept + 2 * c, *restrict summand = kept + 3 * c;             \
        float s[LANES] = {0}, p[LANES] = {0};                                                      \
        for (long row = 0; row < rows; row++) {                                                    \
            const T *restrict in = x + row * c, *restrict g = gradient + row * c;                  \
            T *restrict out = result + row * c;                                                    \
            ahead(in, lanes * sizeof(T)), ahead(g, lanes * sizeof(T));                             \
            if (!AGAIN) ahead(out, lanes * sizeof(T));                                             \
            _Pragma("omp simd") for (long i = 0; i < lanes; i++) {                                 \
                float value = from_##T(in[i]);                                                     \
                float of_z = from_##T(g[i]) * ACTIVATION##_slope(value * factor[i] + summand[i]);  \
                if (!AGAIN) out[i] = to_##T(of_z);                                                 \
                s[i] += of_z;                                                                      \
                p[i] += of_z * (value - mean[i]);                                                  \
            }                                                                                      \
        }                                                                                          \
        memcpy(sum, s, lanes * sizeof *s);                                                         \
        for (long i = 0; i < lanes; i++) products[i] = p[i] * inverse[i];                          \
    }                                                                                              \
                                                                                                   \
    /* AGAIN: the activation's slope is computed twice, which is quicker than to keep it */        \
    void norm_##ACTIVATION##_gradient_##T(const T *gradient, const T *x, const float *kept,        \
                                          T *result, float *of_weight, float *of_bias,             \
                                          float *partial, long rows, long c, long threads) {       \
        const float *restrict mean = kept, *restrict inverse = kept + c;                           \
        const float *restrict factor = kept + 2 * c, *restrict summand = kept + 3 * c;             \
        long blocks = (rows + BLOCK - 1) / BLOCK;                                                  \
        _Pragma("omp parallel for num_threads(threads)") for (long b = 0; b < blocks; b++) {       \
            float *sum = partial + b * 2 * c, *products = sum + c;                                 \
            long start = b * BLOCK, count = rows - start < BLOCK ? rows - start : BLOCK;           \
            const T *in = x + start * c, *g = gradient + start * c;                                \
            T *out = result + start * c;                                                           \
            EACH(sums_##ACTIVATION##_##T(g + i, in + i, out + i, kept + i, sum + i, products + i,  \
                                         count, c, lanes))                                         \
        }                                                                                          \
        double sums[2 * c];                                                                        \
        float of_x[c], constant[c];                                                                \
        added(partial, sums, blocks, c);                                                           \
        for (long i = 0; i < c; i++) {                                                             \
            of_bias[i] = sums[i], of_weight[i] = sums[c + i];                                      \
            of_x[i] = -sums[c + i] / rows * inverse[i] * factor[i];                                \
            constant[i] = -sums[i] / rows * factor[i] - (double)mean[i] * of_x[i];                 \
        }                                                                                          \
        _Pragma("omp parallel for num_threads(threads)") for (long row = 0; row < rows; row++) {   \
            const T *restrict in = x + row * c, *restrict g = gradient + row * c;                  \
            T *restrict out = result + row * c;                                                    \
            ahead(in, c * sizeof(T)), ahead(out, c * sizeof(T));                                   \
            if (AGAIN) ahead(g, c * sizeof(T));                                                    \
            _Pragma("omp simd") for (long i = 0; i < c; i++) {                                     \
                float value = from_##T(in[i]);                                                     \
                float of_z = AGAIN ? from_##T(g[i]) *                                              \
                                         ACTIVATION##_slope(value * factor[i] + summand[i])        \
                                   : from_##T(out[i]);                                             \
                out[i] = to_##T(of_z * factor[i] + value * of_x[i] + constant[i]);                 \
            }                                                                                      \
        }                                                                                          \
    }

STATISTICS(bf16)
STATISTICS(float)
NORM(bf16, relu, 1)
NORM(bf16, leaky_relu, 1)
NORM(bf16, gelu, 0)
NORM(bf16, silu, 0)
NORM(float, relu, 1)
NORM(float, leaky_relu, 1)
NORM(float, gelu, 0)
NORM(float, silu, 0)
