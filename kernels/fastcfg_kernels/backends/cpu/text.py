"""The C++ that every program shares: vectors of a cache line, half types, and sums that merge."""

__all__ = ["BFLOAT16", "FLOAT16", "HEAD", "PARTS", "SUMS"]

HEAD = """\
// Headers of the library take three times as long to read as all else that the compiler does.
#include <stdint.h>
#ifdef _OPENMP
extern "C" int omp_get_thread_num(void);
extern "C" int omp_get_num_threads(void);
#endif

// No fused multiply-add in the formula: a difference of equal products is zero.
#ifdef __clang__
#define EXACT
#define EXACTLY _Pragma("clang fp contract(off)")
#else
#define EXACT __attribute__((optimize("fp-contract=off")))
#define EXACTLY
#endif

constexpr int64_t BLOCK = 2048, CHUNK = 8 * BLOCK;
// From this many bytes read and written, results go past the caches: the lines they would have been read into first,
// and those they would have driven out, cost more than reading the results from memory later.
constexpr int64_t STREAM = 12 << 20;
using acc = ACC;
constexpr int LANES = 64 / sizeof(acc);
typedef acc vec __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

static inline double minimum(double a, double b) { return a != a || b != b ? a + b : a < b ? a : b; }
static inline double maximum(double a, double b) { return a != a || b != b ? a + b : a > b ? a : b; }
static inline vec all(acc value) { return vec{} + value; }
static inline acc first(const acc* p) { return *p; }
static inline vec load(const acc* p) { vec v; __builtin_memcpy(&v, p, sizeof v); return v; }
static inline void store(acc* p, vec v) { __builtin_memcpy(p, &v, sizeof v); }
"""

BFLOAT16 = """\
struct bfloat16 { uint16_t bits; };
static inline vec load(const bfloat16* p) {
    halves h;
    __builtin_memcpy(&h, p, sizeof h);
    words w = __builtin_convertvector(h, words) << 16;
    vec v;
    __builtin_memcpy(&v, &w, sizeof v);
    return v;
}
static inline void store(bfloat16* p, vec v) {
    words w;
    __builtin_memcpy(&w, &v, sizeof w);
    words rounded = (w + 0x7fffu + ((w >> 16) & 1u)) >> 16;
    rounded = (w & 0x7fffffffu) > 0x7f800000u ? words{} + 0x7fc0u : rounded;
    halves h = __builtin_convertvector(rounded, halves);
    __builtin_memcpy(p, &h, sizeof h);
}
static inline acc first(const bfloat16* p) {
    uint32_t w = uint32_t(p->bits) << 16;
    float f;
    __builtin_memcpy(&f, &w, sizeof f);
    return f;
}
"""

FLOAT16 = """\
#ifdef __SSE2__
#include <immintrin.h>
#endif
typedef _Float16 float16;
typedef float16 shorts __attribute__((vector_size(32)));
#ifdef __AVX512F__
static inline vec load(const float16* p) {
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
static inline void store(float16* p, vec v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
static inline vec load(const float16* p) {
    __m256 part[2];
    for (int k = 0; k < 2; ++k) part[k] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8 * k)));
    vec v;
    __builtin_memcpy(&v, part, sizeof v);
    return v;
}
static inline void store(float16* p, vec v) {
    __m256 part[2];
    __builtin_memcpy(part, &v, sizeof v);
    for (int k = 0; k < 2; ++k)
        _mm_storeu_si128((__m128i*)(p + 8 * k), _mm256_cvtps_ph(part[k], _MM_FROUND_TO_NEAREST_INT));
}
#else
static inline vec load(const float16* p) {
    shorts h;
    __builtin_memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, vec);
}
static inline void store(float16* p, vec v) {
    shorts h = __builtin_convertvector(v, shorts);
    __builtin_memcpy(p, &h, sizeof h);
}
#endif
static inline acc first(const float16* p) { return acc(*p); }
"""

PARTS = """\
template <typename T> static inline vec load_part(const T* p, int64_t size) {
    T buffer[LANES] = {};
    __builtin_memcpy(buffer, p, size * sizeof(T));
    return load(buffer);
}
template <typename T> static inline void store_part(T* p, vec v, int64_t size) {
    T buffer[LANES];
    store(buffer, v);
    __builtin_memcpy(p, buffer, size * sizeof(T));
}
#ifdef __SSE2__
#ifdef __clang__
#define PAST(type, write, to, from) __builtin_nontemporal_store(*(const type*)(from), (type*)(to))
#else
#define PAST(type, write, to, from) write((type*)(to), *(const type*)(from))
#endif
typedef long long two __attribute__((vector_size(16), may_alias));
typedef long long four __attribute__((vector_size(32), may_alias));
typedef long long eight __attribute__((vector_size(64), may_alias));
// Past the caches, to an address that is a multiple of the vector's size.
template <typename T> static inline void stream(T* p, vec v) {
    alignas(64) T buffer[LANES];
    store(buffer, v);
    char* to = (char*)p;
    const char* from = (const char*)buffer;
    int64_t k = 0;
    #ifdef __AVX512F__
    for (; k + 64 <= int64_t(sizeof buffer); k += 64) PAST(eight, __builtin_ia32_movntdq512, to + k, from + k);
    #endif
    #ifdef __AVX__
    for (; k + 32 <= int64_t(sizeof buffer); k += 32) PAST(four, __builtin_ia32_movntdq256, to + k, from + k);
    #endif
    for (; k < int64_t(sizeof buffer); k += 16) PAST(two, __builtin_ia32_movntdq, to + k, from + k);
}
static inline void streamed() { __builtin_ia32_sfence(); }
template <typename T> static inline bool streams(const T* p) { return uintptr_t(p) % (LANES * sizeof(T)) == 0; }
#else
template <typename T> static inline void stream(T* p, vec v) { store(p, v); }
static inline void streamed() {}
template <typename T> static inline bool streams(const T*) { return false; }
#endif
// Ones in the lanes that hold elements.
static inline vec present(int64_t size) {
    vec v{};
    for (int l = 0; l < LANES; ++l) v[l] = l < size;
    return v;
}
// Zero in the lanes that hold none, whatever stands there.
static inline vec only(vec v, vec mask) { return mask != acc(0) ? v : vec{}; }
typedef double quad __attribute__((vector_size(32)));
static inline quad wide(const float* p) {
    typedef float single __attribute__((vector_size(16)));
    single f;
    __builtin_memcpy(&f, p, sizeof f);
    return __builtin_convertvector(f, quad);
}
static inline quad wide(const double* p) { quad q; __builtin_memcpy(&q, p, sizeof q); return q; }
// Lanes a quarter of the vector apart are added first, then two and two.
static inline double total(vec v) {
    acc lanes[LANES];
    __builtin_memcpy(lanes, &v, sizeof v);
    quad sum = wide(lanes);
    for (int l = 4; l < LANES; l += 4) sum += wide(lanes + l);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}
"""

SUMS = """\
// Whether the combine can use the weights: their products with values stay within acc.
static inline bool held(const double* w, int count) {
    if (sizeof(acc) == sizeof(double)) return true;
    for (int k = 0; k < count; ++k) if (!(__builtin_fabs(w[k]) <= 1e18)) return false;
    return true;
}
struct Sums {
    double count = 0, mean[MEANS + 1] = {}, pair[PAIRS + 1] = {};
    // Make sums that float would not have seen zero, as they are there; whether there were any.
    bool drop() {
        bool any = false;
        for (int k = 0; k < PAIRS; ++k) if (__builtin_fabs(pair[k]) < 1e-37 && pair[k] != 0) pair[k] = 0, any = true;
        return any;
    }
    // Whether float's range held the sums: nothing overflowed, and what went below it does not count. A sum of zero is
    // taken again, for it may be what is left of small numbers.
    bool sound() const {
        if (sizeof(acc) == sizeof(double) || count == 0) return true;
        for (int k = 0; k < MEANS; ++k) if (!(__builtin_fabs(mean[k]) < 1e37)) return false;
        for (int k = 0; k < PAIRS; ++k) {
            const double size = __builtin_fabs(pair[k]);
            if (!(size < 1e37 && size > 1e-27)) return false;
        }
        return true;
    }
    void add(const Sums& other) {
        if (count == 0) { *this = other; return; }
        if (other.count == 0) return;
        const double all = count + other.count, share = other.count / all;
        double shift[MEANS + 1];
        for (int k = 0; k < MEANS; ++k) shift[k] = other.mean[k] - mean[k];
        for (int k = 0; k < PAIRS; ++k) {
            pair[k] += other.pair[k];
            if (LEFT[k] >= 0) pair[k] += shift[LEFT[k]] * shift[RIGHT[k]] * count * share;
        }
        for (int k = 0; k < MEANS; ++k) mean[k] += shift[k] * share;
        count = all;
    }
};
"""
