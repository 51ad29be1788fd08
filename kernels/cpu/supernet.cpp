// What a supernet's cell computes most, on a CPU: depthwise convolutions of several edges that read one tensor, poolings
// and BatchNorm, forward and backward.
//
// All tensors are float32, rows (N, H, W) of C channels: channels last. "Same" padding: a kernel of k taps, dilation d
// and stride s reads k / 2 * d beyond the border, and gives ceil(size / s). A block of m edges reads one tensor x with m
// sets of weights (m, C, k, k), and has its results in planes that lie `plane` floats apart.
//
// References: torch.nn.functional conv2d (groups = C), max_pool2d, avg_pool2d (count_include_pad = False), batch_norm.
//
// The functions have C linkage, keep no state and may be called from several threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace {

// Work is cut the same way whatever the number of threads, and partial sums are added in order: results do not depend
// on it.
constexpr int CHUNK = 32;       // rows of a map
constexpr long PIXELS = 1024;   // rows of a matrix

// Loads and stores need no alignment. One vector holds L channels.
template <int L> struct Vector {
    typedef float T __attribute__((vector_size(4 * L), aligned(4), may_alias));
    typedef int32_t I __attribute__((vector_size(4 * L)));
    typedef uint8_t B __attribute__((vector_size(L), aligned(1), may_alias));
};
template <int L> using V = typename Vector<L>::T;

template <int L> inline V<L> load(const float *p) { return *reinterpret_cast<const V<L> *>(p); }
template <int L> inline void store(float *p, V<L> v) { *reinterpret_cast<V<L> *>(p) = v; }

// Memory that begins a cache line: a load that straddles two costs twice. Not initialised.
struct Scratch {
    explicit Scratch(long floats)
        : memory(static_cast<float *>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64)), std::free) {}
    float *data() { return memory.get(); }
    std::unique_ptr<float, void (*)(void *)> memory;
};

inline int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

struct Shape {
    int n, h, w, c, k, d, s;
    int pad() const { return k / 2 * d; }
    int ho() const { return (h + s - 1) / s; }
    int wo() const { return (w + s - 1) / s; }
    long in() const { return long(n) * h * w * c; }
    long out() const { return long(n) * ho() * wo() * c; }
};

inline int blocked(int c, int l) { return (c + l - 1) / l * l; }

// Copy rows top to bottom, some of which may lie outside, of an image (h, w, c) with p zeros on either side and channels
// rounded up to cp.
void pad_rows(float *to, const float *from, int h, int w, int c, int cp, int p, int top, int bottom, bool relu) {
    const long wp = w + 2 * p;
    for (int y = top; y < bottom; y++, to += wp * cp) {
        if (y < 0 || y >= h) {
            std::memset(to, 0, sizeof(float) * wp * cp);
            continue;
        }
        std::memset(to, 0, sizeof(float) * p * cp);
        std::memset(to + (p + w) * long(cp), 0, sizeof(float) * p * cp);
        float *middle = to + long(p) * cp;
        const float *source = from + long(y) * w * c;
        if (c == cp && !relu) {
            std::memcpy(middle, source, sizeof(float) * w * c);
        } else if (c == cp) {
            for (long i = 0; i < long(w) * c; i++) middle[i] = source[i] < 0 ? 0 : source[i]; // NaN stays
        } else {
            for (int x = 0; x < w; x++)
                for (int i = 0; i < cp; i++) {
                    const float v = i < c ? source[long(x) * c + i] : 0;
                    middle[long(x) * cp + i] = relu && v < 0 ? 0 : v;
                }
        }
    }
}

// (m, C, taps) -> (m, taps, cp)
void pack_weights(float *to, const float *from, int m, int c, int cp, int taps) {
    for (int e = 0; e < m; e++)
        for (int t = 0; t < taps; t++)
            for (int i = 0; i < cp; i++)
                to[(long(e) * taps + t) * cp + i] = i < c ? from[(long(e) * c + i) * taps + t] : 0;
}

template <int L> inline void store_some(float *to, V<L> v, int channels) {
    if (channels >= L) store<L>(to, v);
    else std::memcpy(to, &v, sizeof(float) * channels);
}

template <int L, int M, int P>
inline void forward_pixels(const float *x, const float *w, int k, int dx, long drow, int step, int cp, int taps,
                           float *out, long plane, int c, int left) {
    V<L> acc[M][P] = {};
    for (int ky = 0; ky < k; ky++)
        for (int kx = 0; kx < k; kx++) {
            const float *source = x + ky * drow + long(kx) * dx;
            const float *weights = w + long(ky * k + kx) * cp;
            V<L> wv[M];
            for (int e = 0; e < M; e++) wv[e] = load<L>(weights + long(e) * taps * cp);
            for (int p = 0; p < P; p++) {
                const V<L> xv = load<L>(source + long(p) * step);
                for (int e = 0; e < M; e++) acc[e][p] += xv * wv[e];
            }
        }
    for (int e = 0; e < M; e++)
        for (int p = 0; p < P; p++) store_some<L>(out + e * plane + long(p) * c, acc[e][p], left);
}

template <int L, int M>
void forward_block(const Shape &z, int rows, const float *padded, const float *w, float *out, long plane, int cp) {
    constexpr int P = M > 2 ? 4 : 8;
    const int wp = z.w + 2 * z.pad(), taps = z.k * z.k;
    for (int y = 0; y < rows; y++)
        for (int b = 0; b < cp; b += L) {
            const float *row = padded + long(y) * z.s * wp * cp + b;
            float *to = out + long(y) * z.wo() * z.c + b;
            int x = 0;
            for (; x + P <= z.wo(); x += P)
                forward_pixels<L, M, P>(row + long(x) * z.s * cp, w + b, z.k, z.d * cp, long(z.d) * wp * cp, z.s * cp,
                                        cp, taps, to + long(x) * z.c, plane, z.c, z.c - b);
            for (; x < z.wo(); x++)
                forward_pixels<L, M, 1>(row + long(x) * z.s * cp, w + b, z.k, z.d * cp, long(z.d) * wp * cp, z.s * cp,
                                        cp, taps, to + long(x) * z.c, plane, z.c, z.c - b);
        }
}

template <int L>
void forward(const Shape &z, int groups, int m, const float *x, bool relu, const float *w, float *out) {
    const int cp = blocked(z.c, L), p = z.pad(), taps = z.k * z.k, ho = z.ho(), wp = z.w + 2 * p;
    const int chunks = (ho + CHUNK - 1) / CHUNK;
    const long plane = z.out();
    Scratch packed(long(groups) * m * taps * cp);
    pack_weights(packed.data(), w, groups * m, z.c, cp, taps);
#pragma omp parallel
    {
        Scratch padded((long(std::min(CHUNK, ho) - 1) * z.s + 1 + 2 * p) * wp * cp);
#pragma omp for
        for (int task = 0; task < groups * z.n * chunks; task++) {
            const int i = task / (z.n * chunks), n = task / chunks % z.n, first = task % chunks * CHUNK;
            const int rows = std::min(CHUNK, ho - first), top = first * z.s - p;
            pad_rows(padded.data(), x + i * z.in() + long(n) * z.h * z.w * z.c, z.h, z.w, z.c, cp, p, top,
                     top + (rows - 1) * z.s + 1 + 2 * p, relu);
            float *to = out + i * m * plane + (long(n) * ho + first) * z.wo() * z.c;
            for (int e = 0; e < m;) {
                const float *weights = packed.data() + (long(i) * m + e) * taps * cp;
                float *planes = to + e * plane;
                switch (m - e) {
                case 1: forward_block<L, 1>(z, rows, padded.data(), weights, planes, plane, cp); e += 1; break;
                case 2: forward_block<L, 2>(z, rows, padded.data(), weights, planes, plane, cp); e += 2; break;
                case 3: forward_block<L, 3>(z, rows, padded.data(), weights, planes, plane, cp); e += 3; break;
                default: forward_block<L, 4>(z, rows, padded.data(), weights, planes, plane, cp); e += 4;
                }
            }
        }
    }
}

struct Tap {
    long from; // of the first pixel, in floats
    const float *weights;
};

template <int L, int P>
inline void gather_pixels(const float *g, const Tap *taps, int n, int cp, int b, const float *x, float *dx, int step,
                          int left) {
    V<L> acc[P] = {};
    for (int t = 0; t < n; t++) {
        const V<L> wv = load<L>(taps[t].weights + b);
        const float *source = g + taps[t].from + b;
        for (int p = 0; p < P; p++) acc[p] += load<L>(source + long(p) * cp) * wv;
    }
    for (int p = 0; p < P; p++) {
        float *to = dx + long(p) * step + b;
        if (left >= L) {
            V<L> v = acc[p];
            if (x) {
                const V<L> xv = load<L>(x + long(p) * step + b), zero = {};
                v = xv > zero ? v : zero;
            }
            store<L>(to, load<L>(to) + v);
        } else {
            for (int i = 0; i < left; i++)
                if (!x || x[long(p) * step + b + i] > 0) to[i] += acc[p][i];
        }
    }
}

// dx += mask * sum over edges of the transposed convolutions of g
template <int L>
void backward_data(const Shape &z, int groups, int m, const float *x, bool relu, const float *w, const float *g,
                   float *dx) {
    const int cp = blocked(z.c, L), p = z.pad(), taps = z.k * z.k, ho = z.ho(), wo = z.wo(), wp = wo + 2 * p;
    const int chunks = (z.h + CHUNK - 1) / CHUNK, most = (std::min(CHUNK, z.h) + 2 * p) / z.s + 2;
    const long plane = z.out();
    Scratch packed(long(groups) * m * taps * cp);
    pack_weights(packed.data(), w, groups * m, z.c, cp, taps);
#pragma omp parallel
    {
        Scratch padded(long(m) * most * wp * cp);
        std::vector<Tap> list(long(m) * taps);
#pragma omp for
        for (int task = 0; task < groups * z.n * chunks; task++) {
            const int group = task / (z.n * chunks), n = task / chunks % z.n, first_row = task % chunks * CHUNK;
            const int last_row = std::min(first_row + CHUNK, z.h);
            const int top = floor_div(first_row - p, z.s), rows = floor_div(last_row - 1 + p, z.s) + 1 - top;
            const float *weights = packed.data() + long(group) * m * taps * cp;
            for (int e = 0; e < m; e++)
                pad_rows(padded.data() + long(e) * rows * wp * cp,
                         g + (long(group) * m + e) * plane + long(n) * ho * wo * z.c, ho, wo, z.c, cp, p, top,
                         top + rows, false);
            for (int y = first_row; y < last_row; y++)
                for (int first = 0; first < z.s && first < z.w; first++) {
                    int count = 0; // the taps that reach pixels first, first + s, ... of this row
                    for (int e = 0; e < m; e++)
                        for (int ky = 0; ky < z.k; ky++) {
                            const int up = y + p - ky * z.d;
                            if (up % z.s) continue;
                            for (int kx = 0; kx < z.k; kx++) {
                                const int across = first + p - kx * z.d;
                                if (across % z.s) continue;
                                const long at = (long(e) * rows + up / z.s - top) * wp + across / z.s + p;
                                list[count++] = {at * cp, weights + (long(e) * taps + ky * z.k + kx) * cp};
                            }
                        }
                    const int pixels = (z.w - first + z.s - 1) / z.s, step = z.s * z.c;
                    const long row = group * z.in() + ((long(n) * z.h + y) * z.w + first) * z.c;
                    const float *mask = relu ? x + row : nullptr;
                    for (int b = 0; b < cp; b += L) {
                        int i = 0;
                        for (; i + 8 <= pixels; i += 8)
                            gather_pixels<L, 8>(padded.data() + long(i) * cp, list.data(), count, cp, b,
                                                mask ? mask + long(i) * step : nullptr, dx + row + long(i) * step,
                                                step, z.c - b);
                        for (; i < pixels; i++)
                            gather_pixels<L, 1>(padded.data() + long(i) * cp, list.data(), count, cp, b,
                                                mask ? mask + long(i) * step : nullptr, dx + row + long(i) * step,
                                                step, z.c - b);
                    }
                }
        }
    }
}

// KY rows of taps from `ky` on, all K of a row, M edges: one accumulator each
template <int L, int KY, int K, int M>
void weight_block(const Shape &z, int rows, const float *padded, const float *g, long plane, int ky, int cp,
                  float *dw) {
    const int wp = z.w + 2 * z.pad(), wo = z.wo();
    for (int b = 0; b < cp; b += L) {
        V<L> acc[KY][K][M] = {};
        for (int y = 0; y < rows; y++) {
            const float *row = padded + (long(y) * z.s + ky * z.d) * wp * cp + b;
            const float *grow = g + long(y) * wo * cp + b;
            for (int x = 0; x < wo; x++) {
                V<L> gv[M];
                for (int e = 0; e < M; e++) gv[e] = load<L>(grow + e * plane + long(x) * cp);
                for (int r = 0; r < KY; r++)
                    for (int t = 0; t < K; t++) {
                        const V<L> xv = load<L>(row + (long(r) * z.d * wp + x * z.s + t * z.d) * cp);
                        for (int e = 0; e < M; e++) acc[r][t][e] += xv * gv[e];
                    }
            }
        }
        for (int e = 0; e < M; e++)
            for (int r = 0; r < KY; r++)
                for (int t = 0; t < K; t++)
                    for (int i = 0; i < L && b + i < z.c; i++)
                        dw[(long(e) * z.c + b + i) * z.k * z.k + (ky + r) * z.k + t] = acc[r][t][e][i];
    }
}

template <int L, int K>
void weight_rows(const Shape &z, int rows, int m, const float *padded, const float *g, long plane, int cp, float *dw) {
    for (int e = 0; e < m;) {
        const float *from = g + e * plane;
        float *to = dw + long(e) * z.c * z.k * z.k;
        if (m - e == 1) {
            weight_block<L, K, K, 1>(z, rows, padded, from, plane, 0, cp, to);
            e += 1;
            continue;
        }
        const int block = m - e >= 4 ? 4 : m - e;
        for (int ky = 0; ky < K; ky++) {
            if (block == 2) weight_block<L, 1, K, 2>(z, rows, padded, from, plane, ky, cp, to);
            else if (block == 3) weight_block<L, 1, K, 3>(z, rows, padded, from, plane, ky, cp, to);
            else weight_block<L, 1, K, 4>(z, rows, padded, from, plane, ky, cp, to);
        }
        e += block;
    }
}

template <int L>
void backward_weight(const Shape &z, int groups, int m, const float *x, bool relu, const float *g, float *dw) {
    const int cp = blocked(z.c, L), p = z.pad(), ho = z.ho(), wo = z.wo(), wp = z.w + 2 * p;
    const int chunks = (ho + CHUNK - 1) / CHUNK, tasks = z.n * chunks;
    const long plane = z.out(), size = long(m) * z.c * z.k * z.k;
    Scratch parts(groups * tasks * size);
#pragma omp parallel
    {
        Scratch padded((long(std::min(CHUNK, ho) - 1) * z.s + 1 + 2 * p) * wp * cp);
        Scratch copied(cp == z.c ? 1 : long(m) * std::min(CHUNK, ho) * wo * cp);
#pragma omp for
        for (int task = 0; task < groups * tasks; task++) {
            const int i = task / tasks, n = task / chunks % z.n, first = task % chunks * CHUNK;
            const int rows = std::min(CHUNK, ho - first), top = first * z.s - p;
            pad_rows(padded.data(), x + i * z.in() + long(n) * z.h * z.w * z.c, z.h, z.w, z.c, cp, p, top,
                     top + (rows - 1) * z.s + 1 + 2 * p, relu);
            const float *from = g + i * m * plane + (long(n) * ho + first) * wo * z.c;
            long apart = plane;
            if (cp != z.c) {
                apart = long(rows) * wo * cp;
                for (int e = 0; e < m; e++)
                    pad_rows(copied.data() + e * apart, from + e * plane, rows, wo, z.c, cp, 0, 0, rows, false);
                from = copied.data();
            }
            float *to = parts.data() + task * size;
            if (z.k == 3) weight_rows<L, 3>(z, rows, m, padded.data(), from, apart, cp, to);
            else weight_rows<L, 5>(z, rows, m, padded.data(), from, apart, cp, to);
        }
    }
    for (int i = 0; i < groups; i++) {
        float *to = dw + i * size;
        std::memcpy(to, parts.data() + i * tasks * size, sizeof(float) * size);
        for (int task = 1; task < tasks; task++) {
            const float *part = parts.data() + (long(i) * tasks + task) * size;
            for (long j = 0; j < size; j++) to[j] += part[j];
        }
    }
}

// c[r] (+)= a[r] b for R rows and J vectors of columns from `column` on; b (k, n)
template <int L, int R, int J>
inline void multiply_tile(int k, const float *a, long lda, const float *b, int n, V<L> (&acc)[R][J]) {
    for (int q = 0; q < k; q++) {
        V<L> bv[J];
        for (int j = 0; j < J; j++) bv[j] = load<L>(b + long(q) * n + j * L);
        for (int r = 0; r < R; r++) {
            const float v = a[r * lda + q];
            for (int j = 0; j < J; j++) acc[r][j] += v * bv[j];
        }
    }
}

// One factor of `multiply`: a (rows, k) with rows `lda` apart, b (k, n)
struct Factor {
    const float *a;
    long lda;
    int k;
    const float *b;
};

template <int L, int R, int J>
inline void multiply_rows(const Factor *factors, int count, const float *start, int n, long first, long last, int column,
                          bool add, float *c, long ldc) {
    for (long r = first; r + R <= last; r += R) {
        V<L> acc[R][J];
        for (int i = 0; i < R; i++)
            for (int j = 0; j < J; j++) {
                float *to = c + (r + i) * ldc + column + j * L;
                acc[i][j] = add ? load<L>(to) : start ? load<L>(start + column + j * L) : V<L>{};
            }
        for (int f = 0; f < count; f++)
            multiply_tile<L, R, J>(factors[f].k, factors[f].a + r * factors[f].lda, factors[f].lda,
                                   factors[f].b + column, n, acc);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < J; j++) store<L>(c + (r + i) * ldc + column + j * L, acc[i][j]);
    }
}

// c (rows, n) = start + sum of the products of the factors, or with `add` c += that sum; n is a multiple of L
template <int L>
void multiply(const Factor *factors, int count, const float *start, int n, long rows, bool add, float *c, long ldc) {
    int column = 0;
    auto columns = [&](auto vectors, auto most) {
        constexpr int J = decltype(vectors)::value, R = decltype(most)::value;
        for (; column + J * L <= n; column += J * L) {
            multiply_rows<L, R, J>(factors, count, start, n, 0, rows, column, add, c, ldc);
            multiply_rows<L, 1, J>(factors, count, start, n, rows / R * R, rows, column, add, c, ldc);
        }
    };
    columns(std::integral_constant<int, 4>{}, std::integral_constant<int, 6>{});
    columns(std::integral_constant<int, 2>{}, std::integral_constant<int, 8>{});
    columns(std::integral_constant<int, 1>{}, std::integral_constant<int, 12>{});
}

template <int L, int I, int J>
inline void cross_tile(const float *a, long lda, const float *b, long ldb, long rows, int n, float *out) {
    V<L> acc[I][J] = {};
    for (long r = 0; r < rows; r++) {
        V<L> bv[J];
        for (int j = 0; j < J; j++) bv[j] = load<L>(b + r * ldb + j * L);
        for (int i = 0; i < I; i++) {
            const float v = a[r * lda + i];
            for (int j = 0; j < J; j++) acc[i][j] += v * bv[j];
        }
    }
    for (int i = 0; i < I; i++)
        for (int j = 0; j < J; j++) store<L>(out + long(i) * n + j * L, acc[i][j]);
}

// out (k, n) = a^T b for a (rows, k), b (rows, n); n is a multiple of L
template <int L> void cross(const float *a, long lda, int k, const float *b, long ldb, int n, long rows, float *out) {
    for (int i = 0; i < k;) {
        const int step = k - i >= 8 ? 8 : 1;
        int j = 0;
        auto columns = [&](auto vectors) {
            constexpr int J = decltype(vectors)::value;
            for (; j + J * L <= n; j += J * L) {
                if (step == 8) cross_tile<L, 8, J>(a + i, lda, b + j, ldb, rows, n, out + long(i) * n + j);
                else cross_tile<L, 1, J>(a + i, lda, b + j, ldb, rows, n, out + long(i) * n + j);
            }
        };
        columns(std::integral_constant<int, 2>{});
        columns(std::integral_constant<int, 1>{});
        i += step;
    }
}

// Products of chunks of rows, added in order: out (k, n) of `groups` pairs
template <int L>
void cross_all(int groups, const float *a, long plane_a, long lda, int k, const float *b, long plane_b, long ldb, int n,
               long rows, float *out) {
    const long chunks = (rows + PIXELS - 1) / PIXELS, size = long(k) * n;
    Scratch parts(groups * chunks * size);
#pragma omp parallel for
    for (long task = 0; task < groups * chunks; task++) {
        const long g = task / chunks, first = task % chunks * PIXELS;
        cross<L>(a + g * plane_a + first * lda, lda, k, b + g * plane_b + first * ldb, ldb, n,
                 std::min(PIXELS, rows - first), parts.data() + task * size);
    }
    for (long g = 0; g < groups; g++) {
        float *to = out + g * size;
        std::memcpy(to, parts.data() + g * chunks * size, sizeof(float) * size);
        for (long chunk = 1; chunk < chunks; chunk++)
            for (long j = 0; j < size; j++) to[j] += parts.data()[(g * chunks + chunk) * size + j];
    }
}

template <int L>
void multiply_all(int groups, const Factor *factors, int count, const float *start, int n, long rows, bool add,
                  float *c, long plane, long ldc) {
    const long chunks = (rows + PIXELS - 1) / PIXELS;
#pragma omp parallel for
    for (long task = 0; task < groups * chunks; task++) {
        const long g = task / chunks, first = task % chunks * PIXELS;
        Factor mine[2];
        for (int f = 0; f < count; f++) {
            mine[f] = factors[g * count + f];
            mine[f].a += first * mine[f].lda;
        }
        multiply<L>(mine, count, start ? start + g * n : nullptr, n, std::min(PIXELS, rows - first), add,
                    c + g * plane + first * ldc, ldc);
    }
}

template <typename F> void by_width(int n, F visit) {
    if (n % 16 == 0) visit(std::integral_constant<int, 16>{});
    else if (n % 8 == 0) visit(std::integral_constant<int, 8>{});
    else if (n % 4 == 0) visit(std::integral_constant<int, 4>{});
    else visit(std::integral_constant<int, 1>{});
}

inline bool wide(int c) { return c % 16 > 8 || c % 16 == 0; }

// 3x3 windows of a pooling: taps that lie inside, in the order of rows
struct Window {
    int y, x, h, w, s;
    template <typename F> void taps(F visit) const {
        for (int t = 0; t < 9; t++) {
            const int yy = y * s + t / 3 - 1, xx = x * s + t % 3 - 1;
            if (yy >= 0 && yy < h && xx >= 0 && xx < w) visit(t, long(yy) * w + xx);
        }
    }
    float share() const {
        int n = 0;
        taps([&](int, long) { n++; });
        return 1.0f / n;
    }
};

template <int L> inline void max_window(const Window &q, int c, int b, const float *x, float *out, uint8_t *which) {
    V<L> best = {};
    typename Vector<L>::I tap = {};
    best = best - INFINITY;
    q.taps([&](int t, long at) {
        const V<L> v = load<L>(x + at * c + b);
        const typename Vector<L>::I more = (v > best) | (v != v); // NaN stays
        best = more ? v : best;
        tap = more ? typename Vector<L>::I{} + t : tap;
    });
    store<L>(out + b, best);
    *reinterpret_cast<typename Vector<L>::B *>(which + b) = __builtin_convertvector(tap, typename Vector<L>::B);
}

template <int L> inline void max_window_data(const Window &q, int c, int b, const float *g, const uint8_t *which, float *dx) {
    const V<L> gv = load<L>(g + b), zero = {};
    const auto tap =
        __builtin_convertvector(*reinterpret_cast<const typename Vector<L>::B *>(which + b), typename Vector<L>::I);
    q.taps([&](int t, long at) {
        float *to = dx + at * c + b;
        store<L>(to, load<L>(to) + ((tap == typename Vector<L>::I{} + t) ? gv : zero));
    });
}

template <typename F> void each_window(int n, int h, int w, int c, int s, F visit) {
    const int ho = (h + s - 1) / s, wo = (w + s - 1) / s;
#pragma omp parallel for
    for (int i = 0; i < n; i++)
        for (int y = 0; y < ho; y++)
            for (int x = 0; x < wo; x++)
                visit(Window{y, x, h, w, s}, long(i) * h * w * c, ((long(i) * ho + y) * wo + x) * c);
}

template <typename F> inline void each_block(int c, F visit) {
    int b = 0;
    for (; b + 16 <= c; b += 16) visit(std::integral_constant<int, 16>{}, b);
    for (; b + 8 <= c; b += 8) visit(std::integral_constant<int, 8>{}, b);
    for (; b + 4 <= c; b += 4) visit(std::integral_constant<int, 4>{}, b);
    for (; b < c; b++) visit(std::integral_constant<int, 1>{}, b);
}

// Two sums over the rows of each of `groups` matrices (rows, c), (groups, 2, c): term(start of the matrix, start of the
// row, channel, first, second) adds to both. In float over 64 rows, in double beyond.
template <class Term> std::vector<double> row_sums(int groups, long rows, int c, Term term) {
    const long chunks = (rows + PIXELS - 1) / PIXELS;
    std::vector<double> parts(groups * chunks * 2 * c), sums(groups * 2 * c);
#pragma omp parallel for
    for (long task = 0; task < groups * chunks; task++) {
        const long matrix = task / chunks * rows * c, first = task % chunks * PIXELS;
        const long last = std::min(first + PIXELS, rows);
        std::vector<float> part(2 * c);
        float *one = part.data(), *two = one + c;
        double *sum = parts.data() + task * 2 * c;
        for (long block = first; block < last; block += 64) {
            std::fill(part.begin(), part.end(), 0.0f);
            for (long r = block; r < std::min(block + 64, last); r++)
                for (int b = 0; b < c; b++) term(matrix, matrix + r * c, b, one[b], two[b]);
            for (int b = 0; b < 2 * c; b++) sum[b] += part[b];
        }
    }
    for (long task = 0; task < groups * chunks; task++)
        for (int b = 0; b < 2 * c; b++) sums[task / chunks * 2 * c + b] += parts[task * 2 * c + b];
    return sums;
}

// body(matrix, row) for all rows of `groups` matrices
template <class Body> void each_row(int groups, long rows, Body body) {
    const long chunks = (rows + PIXELS - 1) / PIXELS;
#pragma omp parallel for
    for (long task = 0; task < groups * chunks; task++) {
        const long first = task % chunks * PIXELS;
        for (long r = first; r < std::min(first + PIXELS, rows); r++) body(task / chunks, r);
    }
}

} // namespace

extern "C" {

// out[e] = depthwise convolution of x (its ReLU if relu) with w[e]; `groups` such blocks lie one after the other, x, w
// and out alike.
void hwnas_depthwise(int groups, int m, int n, int h, int w, int c, int k, int d, int s, const float *x, int relu,
                     const float *weights, float *out) {
    const Shape z{n, h, w, c, k, d, s};
    if (wide(c)) forward<16>(z, groups, m, x, relu, weights, out);
    else forward<8>(z, groups, m, x, relu, weights, out);
}

// dx += gradient of x, where x > 0 if relu
void hwnas_depthwise_data(int groups, int m, int n, int h, int w, int c, int k, int d, int s, const float *x, int relu,
                          const float *weights, const float *g, float *dx) {
    const Shape z{n, h, w, c, k, d, s};
    if (wide(c)) backward_data<16>(z, groups, m, x, relu, weights, g, dx);
    else backward_data<8>(z, groups, m, x, relu, weights, g, dx);
}

// dw = gradient of the weights
void hwnas_depthwise_weight(int groups, int m, int n, int h, int w, int c, int k, int d, int s, const float *x,
                            int relu, const float *g, float *dw) {
    const Shape z{n, h, w, c, k, d, s};
    if (wide(c)) backward_weight<16>(z, groups, m, x, relu, g, dw);
    else backward_weight<8>(z, groups, m, x, relu, g, dw);
}

// 3x3 max pooling; `which` is the tap of the maximum, the first one on ties
void hwnas_max_pool(int n, int h, int w, int c, int s, const float *x, float *out, uint8_t *which) {
    each_window(n, h, w, c, s, [=](const Window &q, long in, long at) {
        each_block(c, [&](auto l, int b) { max_window<l()>(q, c, b, x + in, out + at, which + at); });
    });
}

// dx += gradient of x
void hwnas_max_pool_data(int n, int h, int w, int c, int s, const float *g, const uint8_t *which, float *dx) {
    each_window(n, h, w, c, s, [=](const Window &q, long in, long at) {
        each_block(c, [&](auto l, int b) { max_window_data<l()>(q, c, b, g + at, which + at, dx + in); });
    });
}

// 3x3 average pooling over what lies inside
void hwnas_avg_pool(int n, int h, int w, int c, int s, const float *x, float *out) {
    each_window(n, h, w, c, s, [=](const Window &q, long in, long at) {
        const float share = q.share();
        each_block(c, [&](auto l, int b) {
            V<l()> sum = {};
            q.taps([&](int, long from) { sum += load<l()>(x + in + from * c + b); });
            store<l()>(out + at + b, sum * share);
        });
    });
}

// dx += gradient of x
void hwnas_avg_pool_data(int n, int h, int w, int c, int s, const float *g, float *dx) {
    each_window(n, h, w, c, s, [=](const Window &q, long in, long at) {
        const float share = q.share();
        each_block(c, [&](auto l, int b) {
            const V<l()> v = load<l()>(g + at + b) * share;
            q.taps([&](int, long to) { store<l()>(dx + in + to * c + b, load<l()>(dx + in + to * c + b) + v); });
        });
    });
}

// Normalise `groups` matrices (rows, c) in place, by their own mean and biased variance, which are given too.
void hwnas_batch_norm(int groups, long rows, int c, float eps, float *x, float *mean, float *var) {
    const std::vector<double> sums = row_sums(groups, rows, c, [=](long matrix, long at, int b, float &one, float &two) {
        const float v = x[at + b] - x[matrix + b]; // from the first row: no cancellation where the mean is large
        one += v;
        two += v * v;
    });
    std::vector<float> scale(groups * c);
    for (int i = 0; i < groups; i++)
        for (int b = 0; b < c; b++) {
            const double *sum = sums.data() + i * 2 * c + b;
            const double shift = sum[0] / rows, spread = sum[c] / rows - shift * shift;
            mean[i * c + b] = float(x[i * rows * c + b] + shift);
            var[i * c + b] = float(spread < 0 ? 0 : spread);
            scale[i * c + b] = 1 / std::sqrt(var[i * c + b] + eps);
        }
    each_row(groups, rows, [=, &scale](long i, long r) {
        const float *m = mean + i * c, *by = scale.data() + i * c;
        float *row = x + (i * rows + r) * c;
        for (int b = 0; b < c; b++) row[b] = (row[b] - m[b]) * by[b];
    });
}

// Turn the gradients g of what `hwnas_batch_norm` made, y, into those of what it was given, in place.
void hwnas_batch_norm_data(int groups, long rows, int c, float eps, const float *y, const float *var, float *g) {
    const std::vector<double> sums = row_sums(groups, rows, c, [=](long, long at, int b, float &one, float &two) {
        one += g[at + b];
        two += g[at + b] * y[at + b];
    });
    std::vector<float> mean(groups * c), dot(groups * c), scale(groups * c);
    for (int i = 0; i < groups; i++)
        for (int b = 0; b < c; b++) {
            mean[i * c + b] = float(sums[i * 2 * c + b] / rows);
            dot[i * c + b] = float(sums[i * 2 * c + c + b] / rows);
            scale[i * c + b] = 1 / std::sqrt(var[i * c + b] + eps);
        }
    each_row(groups, rows, [=, &mean, &dot, &scale](long i, long r) {
        const float *m = mean.data() + i * c, *d = dot.data() + i * c, *by = scale.data() + i * c;
        const float *from = y + (i * rows + r) * c;
        float *to = g + (i * rows + r) * c;
        for (int b = 0; b < c; b++) to[b] = by[b] * (to[b] - m[b] - from[b] * d[b]);
    });
}

// out[e] += sum over k of weights[e, k] * x[k] + bias[e], for m matrices of (rows, c) and `terms` matrices x alike
void hwnas_combine(int m, int terms, long rows, int c, const float *weights, const float *x, const float *bias,
                   float *out) {
#pragma omp parallel for
    for (long r = 0; r < rows; r++)
        for (int e = 0; e < m; e++) {
            float *to = out + (e * rows + r) * c;
            for (int b = 0; b < c; b++) to[b] += bias[e * c + b];
            for (int t = 0; t < terms; t++) {
                const float *from = x + (t * rows + r) * c;
                const float w = weights[e * terms + t];
                for (int b = 0; b < c; b++) to[b] += w * from[b];
            }
        }
}

// dx[k] = sum over e of weights[e, k] * g[e]; dweights[e, k] = sum of g[e] * x[k]; dbias[e] = sum over rows of g[e]
void hwnas_combine_data(int m, int terms, long rows, int c, const float *weights, const float *x, const float *g,
                        float *dx, float *dweights, float *dbias) {
    const long chunks = (rows + PIXELS - 1) / PIXELS, size = long(m) * (terms + 1) * c;
    std::vector<double> sums(chunks * size);
#pragma omp parallel for
    for (long chunk = 0; chunk < chunks; chunk++) {
        double *sum = sums.data() + chunk * size;
        std::vector<float> part(size);
        const long end = std::min((chunk + 1) * PIXELS, rows);
        for (long first = chunk * PIXELS; first < end; first += 64) {
            std::fill(part.begin(), part.end(), 0.0f);
            for (long r = first; r < std::min(first + 64, end); r++) {
                for (int t = 0; t < terms; t++) std::memset(dx + (t * rows + r) * c, 0, sizeof(float) * c);
                for (int e = 0; e < m; e++) {
                    const float *from = g + (e * rows + r) * c;
                    float *dots = part.data() + long(e) * (terms + 1) * c;
                    for (int b = 0; b < c; b++) dots[b] += from[b];
                    for (int t = 0; t < terms; t++) {
                        const float *mine = x + (t * rows + r) * c;
                        float *to = dx + (t * rows + r) * c;
                        const float w = weights[e * terms + t];
                        dots += c;
                        for (int b = 0; b < c; b++) {
                            to[b] += w * from[b];
                            dots[b] += mine[b] * from[b];
                        }
                    }
                }
            }
            for (long j = 0; j < size; j++) sum[j] += part[j];
        }
    }
    for (long chunk = 1; chunk < chunks; chunk++)
        for (long j = 0; j < size; j++) sums[j] += sums[chunk * size + j];
    for (int e = 0; e < m; e++) {
        const double *mine = sums.data() + long(e) * (terms + 1) * c;
        for (int b = 0; b < c; b++) dbias[e * c + b] = float(mine[b]);
        for (int t = 0; t < terms; t++) {
            double dot = 0;
            for (int b = 0; b < c; b++) dot += mine[(t + 1) * c + b];
            dweights[e * terms + t] = float(dot);
        }
    }
}

// out[e] (rows, co) = x[e] (rows, ci) times w[e] (ci, co)
void hwnas_multiply(int m, long rows, int ci, int co, const float *x, const float *w, float *out) {
    by_width(co, [&](auto l) {
        std::vector<Factor> factors;
        for (int e = 0; e < m; e++) factors.push_back({x + e * rows * ci, ci, ci, w + long(e) * ci * co});
        multiply_all<l()>(m, factors.data(), 1, nullptr, co, rows, false, out, rows * co, co);
    });
}

// out[e] (ka, kb) = a[e]^T b[e] for a (rows, ka), b (rows, kb)
void hwnas_cross(int m, long rows, int ka, int kb, const float *a, const float *b, float *out) {
    by_width(kb, [&](auto l) { cross_all<l()>(m, a, rows * ka, ka, ka, b, rows * kb, kb, kb, rows, out); });
}

// out[e] += p[e] * BatchNorm(z[e] w[e]^T) less its constant, which is added to bias[e].
// z (m or 1, rows, ci), w (m, co, ci); out (m, rows, .) with rows `ld` apart, bias (m, .) with rows `ldb` apart; for the
// way back: mean and covariance of z, mean and biased variance (m, co) of z w^T.
void hwnas_normed_linear(int m, int groups, long rows, int ci, int co, float eps, const float *z, const float *w,
                         const float *p, float *out, long plane, long ld, float *bias, long ldb, float *mean_z,
                         float *cov, float *mean, float *var) {
    std::vector<float> ones(rows, 1.0f);
    by_width(ci, [&](auto l) {
        cross_all<l()>(groups, ones.data(), 0, 1, 1, z, rows * ci, ci, ci, rows, mean_z);
        cross_all<l()>(groups, z, rows * ci, ci, ci, z, rows * ci, ci, ci, rows, cov);
    });
    for (int g = 0; g < groups; g++) {
        float *mz = mean_z + long(g) * ci, *c = cov + long(g) * ci * ci;
        for (int i = 0; i < ci; i++) mz[i] /= rows;
        for (int i = 0; i < ci; i++)
            for (int j = 0; j < ci; j++) c[i * ci + j] = c[i * ci + j] / rows - mz[i] * mz[j];
    }
    Scratch folded(long(m) * ci * co);
    std::vector<Factor> factors;
    std::vector<float> row(ci);
    for (int e = 0; e < m; e++) {
        const int g = groups == 1 ? 0 : e;
        const float *mz = mean_z + long(g) * ci, *c = cov + long(g) * ci * ci;
        float *to = folded.data() + long(e) * ci * co;
        for (int o = 0; o < co; o++) {
            const float *mine = w + (long(e) * co + o) * ci;
            double shift = 0, spread = 0;
            std::fill(row.begin(), row.end(), 0.0f);
            for (int i = 0; i < ci; i++)
                for (int j = 0; j < ci; j++) row[j] += mine[i] * c[i * ci + j];
            for (int i = 0; i < ci; i++) {
                shift += mine[i] * mz[i];
                spread += row[i] * mine[i];
            }
            const float v = spread < 0 ? 0 : float(spread), gain = p[e] / std::sqrt(v + eps);
            mean[e * co + o] = float(shift);
            var[e * co + o] = v;
            bias[e * ldb + o] -= gain * float(shift);
            for (int i = 0; i < ci; i++) to[i * co + o] = gain * mine[i];
        }
        factors.push_back({z + g * rows * ci, ci, ci, to});
    }
    by_width(co, [&](auto l) { multiply_all<l()>(m, factors.data(), 1, nullptr, co, rows, true, out, plane, ld); });
}

// The way back, given g, the gradient of out, and its sums over rows (m, .): gradients of p (m,), of w if dw, and of z as
// each edge sees it (m, rows, ci).
void hwnas_normed_linear_data(int m, int groups, long rows, int ci, int co, float eps, const float *z, const float *w,
                              const float *p, const float *mean_z, const float *cov, const float *mean,
                              const float *var, const float *g, long plane, long ld, const float *sums, long lds,
                              float *dp, float *dw, float *dz) {
    Scratch crossed(long(m) * co * ci), one(long(m) * co * ci), two(long(m) * ci * ci);
    by_width(ci, [&](auto l) {
        cross_all<l()>(m, g, plane, ld, co, z, groups == 1 ? 0 : rows * ci, ci, ci, rows, crossed.data());
    });
    std::vector<Factor> factors;
    std::vector<float> start(long(m) * ci), row(ci);
    for (int e = 0; e < m; e++) {
        const int group = groups == 1 ? 0 : e;
        const float *mz = mean_z + long(group) * ci, *c = cov + long(group) * ci * ci;
        float *from_g = one.data() + long(e) * co * ci, *from_z = two.data() + long(e) * ci * ci;
        std::memset(from_z, 0, sizeof(float) * ci * ci);
        double total = 0;
        for (int o = 0; o < co; o++) {
            const float *mine = w + (long(e) * co + o) * ci, *t = crossed.data() + (long(e) * co + o) * ci;
            const float sum = sums[e * lds + o], r = 1 / std::sqrt(var[e * co + o] + eps);
            double product = -double(mean[e * co + o]) * sum;
            for (int i = 0; i < ci; i++) product += t[i] * mine[i];
            const float dot = float(product) * r, gain = p[e] * r, slope = gain * r * dot / rows;
            total += dot;
            if (dw) {
                std::fill(row.begin(), row.end(), 0.0f);
                for (int i = 0; i < ci; i++)
                    for (int j = 0; j < ci; j++) row[j] += mine[i] * c[i * ci + j];
                for (int i = 0; i < ci; i++)
                    dw[(long(e) * co + o) * ci + i] = gain * (t[i] - sum * mz[i] - dot * r * row[i]);
            }
            const float offset = slope * mean[e * co + o] - gain * sum / rows;
            for (int i = 0; i < ci; i++) {
                start[e * ci + i] += offset * mine[i];
                from_g[o * ci + i] = gain * mine[i];
                for (int j = 0; j < ci; j++) from_z[i * ci + j] -= slope * mine[i] * mine[j];
            }
        }
        dp[e] = float(total);
        factors.push_back({g + e * plane, ld, co, from_g});
        factors.push_back({z + group * rows * ci, ci, ci, from_z});
    }
    by_width(ci, [&](auto l) {
        multiply_all<l()>(m, factors.data(), 2, start.data(), ci, rows, false, dz, rows * ci, ci);
    });
}

} // extern "C"
