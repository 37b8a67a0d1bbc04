"""C++ of a program for one dtype: sums, weights and combine of all samples in one call.

The arithmetic is that of :mod:`fastcfg_kernels.tiles`: a sample is cut into blocks of ``BLOCK`` elements, each of which
takes the means of its vectors relative to its first element and then centred sums in the accumulator's dtype, both
while it lies in the nearest cache. Blocks are merged in Chan's way in float64, in their order, into chunks of
``CHUNK`` and these into the sample, whatever the number of threads; the formula runs in float64 too. The formula itself
is traced with :class:`~fastcfg_kernels.terms.Term`.
"""

from __future__ import annotations

from typing import Any

import torch

from .program import Program
from .terms import Term, Trace

__all__ = ["cpp_source"]

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

_HEAD = """\
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#ifdef _OPENMP
#include <omp.h>
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
using acc = ACC;
constexpr int LANES = 64 / sizeof(acc);
typedef acc vec __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

static inline double minimum(double a, double b) { return a != a || b != b ? a + b : a < b ? a : b; }
static inline double maximum(double a, double b) { return a != a || b != b ? a + b : a > b ? a : b; }
static inline vec all(acc value) { return vec{} + value; }
static inline acc first(const acc* p) { return *p; }
static inline vec load(const acc* p) { vec v; std::memcpy(&v, p, sizeof v); return v; }
static inline void store(acc* p, vec v) { std::memcpy(p, &v, sizeof v); }
"""

_BFLOAT16 = """\
struct bfloat16 { uint16_t bits; };
static inline vec load(const bfloat16* p) {
    halves h;
    std::memcpy(&h, p, sizeof h);
    words w = __builtin_convertvector(h, words) << 16;
    vec v;
    std::memcpy(&v, &w, sizeof v);
    return v;
}
static inline void store(bfloat16* p, vec v) {
    words w;
    std::memcpy(&w, &v, sizeof w);
    words rounded = (w + 0x7fffu + ((w >> 16) & 1u)) >> 16;
    rounded = (w & 0x7fffffffu) > 0x7f800000u ? words{} + 0x7fc0u : rounded;
    halves h = __builtin_convertvector(rounded, halves);
    std::memcpy(p, &h, sizeof h);
}
static inline acc first(const bfloat16* p) {
    uint32_t w = uint32_t(p->bits) << 16;
    float f;
    std::memcpy(&f, &w, sizeof f);
    return f;
}
"""

_FLOAT16 = """\
typedef _Float16 float16;
typedef float16 shorts __attribute__((vector_size(32)));
#ifdef __AVX512F__
#include <immintrin.h>
static inline vec load(const float16* p) {
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
static inline void store(float16* p, vec v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
#include <immintrin.h>
static inline vec load(const float16* p) {
    __m256 part[2];
    for (int k = 0; k < 2; ++k) part[k] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8 * k)));
    vec v;
    std::memcpy(&v, part, sizeof v);
    return v;
}
static inline void store(float16* p, vec v) {
    __m256 part[2];
    std::memcpy(part, &v, sizeof v);
    for (int k = 0; k < 2; ++k)
        _mm_storeu_si128((__m128i*)(p + 8 * k), _mm256_cvtps_ph(part[k], _MM_FROUND_TO_NEAREST_INT));
}
#else
static inline vec load(const float16* p) {
    shorts h;
    std::memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, vec);
}
static inline void store(float16* p, vec v) {
    shorts h = __builtin_convertvector(v, shorts);
    std::memcpy(p, &h, sizeof h);
}
#endif
static inline acc first(const float16* p) { return acc(*p); }
"""

_PARTS = """\
template <typename T> static inline vec load_part(const T* p, int64_t size) {
    T buffer[LANES] = {};
    std::memcpy(buffer, p, size * sizeof(T));
    return load(buffer);
}
template <typename T> static inline void store_part(T* p, vec v, int64_t size) {
    T buffer[LANES];
    store(buffer, v);
    std::memcpy(p, buffer, size * sizeof(T));
}
// Ones in the lanes that hold elements.
static inline vec present(int64_t size) {
    vec v{};
    for (int l = 0; l < LANES; ++l) v[l] = l < size;
    return v;
}
// Zero in the lanes that hold none, whatever stands there.
static inline vec only(vec v, vec mask) { return mask > acc(0) ? v : vec{}; }
static inline double total(vec v) {
    double part[LANES];
    for (int l = 0; l < LANES; ++l) part[l] = v[l];
    for (int width = LANES / 2; width; width /= 2)
        for (int l = 0; l < width; ++l) part[l] += part[l + width];
    return part[0];
}
"""

_SUMS = """\
struct Sums {
    double count = 0, mean[MEANS + 1] = {}, pair[PAIRS + 1] = {};
    void add(const Sums& other) {
        if (count == 0) { *this = other; return; }
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


class _Writer:
    """The parts of the source that depend on the program.

    Args:
        types: the C++ element type of each input.
        results: and of each output.
    """

    def __init__(self, program: Program, types: list[str], results: list[str]) -> None:
        self.program = program
        self.types = types
        self.results = results
        self.size = len(program.predictions)

    def vectors(self, load: str, of: str = "vec") -> list[str]:
        """Statements that make every fixed vector ``v<k>`` of loaded inputs."""
        p = self.program
        lines = [f"const {of} i{k} = {load.format(k=k)};" for k in range(len(self.types))]
        if p.affine:
            lines.append(f"const {of} offset = shift * i{len(self.types) - 1};")
            lines.append(f"const {of} v0 = offset + gain * i0;")
            lines += [f"const {of} v{k} = gain * (i{k} - i0);" for k in range(1, self.size)]
        else:
            lines.append(f"const {of} v0 = i0;")
            lines += [f"const {of} v{k} = i{k} - i0;" for k in range(1, self.size)]
        lines += [f"const {of} v{k} = i{k};" for k in range(self.size, p.width)]
        for k in range(1, self.size):
            own = f"offset + gain * i{k}" if p.affine else f"i{k}"
            lines.append(f"const {of} v{p.width - 1 + k} = {own};")
        return lines

    def pointers(self) -> str:
        """The arguments of a function over a stretch of the inputs."""
        return "".join(f"const {t}* __restrict p{k}, " for k, t in enumerate(self.types)) + "int64_t size"

    def space(self) -> str:
        return ", acc shift, acc gain" if self.program.affine else ""

    def block(self) -> str:
        """``block``: the sums of up to BLOCK elements."""
        p = self.program
        centred, pairs = p.centred, p.pairs
        text = [f"static Sums block({self.pointers()}{self.space()}) {{", "Sums sums;", "sums.count = double(size);"]
        text.append("const int64_t whole = size / LANES * LANES, rest = size - whole;")
        text.append("const vec mask = present(rest);")
        if centred:
            # The mean of a prediction is the base's and its delta's.
            summed = sorted({part for v in centred for part in self.parts(v)})
            text += ["acc " + ", ".join(f"pivot{v}" for v in summed) + ";", "{"]
            text += [*self.vectors("first(p{k})", "acc"), *(f"pivot{v} = v{v};" for v in summed), "}"]
            text.append("vec " + ", ".join(f"s{v}{{}}" for v in summed) + ";")
            text += self._loop([f"s{v} += v{v} - pivot{v};" for v in summed])
            text += self._rest([f"s{v} += only(v{v} - pivot{v}, mask);" for v in summed])
            text += [f"const double exact{v} = double(pivot{v}) + total(s{v}) / double(size);" for v in summed]
            for k, v in enumerate(centred):
                if v not in summed:
                    text.append(f"const double exact{v} = {' + '.join(f'exact{part}' for part in self.parts(v))};")
                text.append(f"const acc mean{v} = acc(exact{v});")
                text.append(f"sums.mean[{k}] = exact{v};")
        if pairs:
            text.append("vec " + ", ".join(f"q{k}{{}}" for k in range(len(pairs))) + ";")
            shifted = sorted({v for kind, a, b in pairs if kind == "cov" for v in (a, b)})
            deviations = [f"const vec e{v} = v{v} - mean{v};" for v in shifted]
            names = ["e" if kind == "cov" else "v" for kind, _, _ in pairs]
            products = [f"{name}{a} * {name}{b}" for name, (_, a, b) in zip(names, pairs, strict=True)]
            text += self._loop(deviations + [f"q{k} += {product};" for k, product in enumerate(products)])
            text += self._rest(deviations + [f"q{k} += only({product}, mask);" for k, product in enumerate(products)])
            text += [f"sums.pair[{k}] = total(q{k});" for k in range(len(pairs))]
            for k, (kind, a, b) in enumerate(pairs):
                if kind == "cov":  # What rounding the means to acc has added.
                    off = " * ".join(f"(exact{v} - double(mean{v}))" for v in (a, b))
                    text.append(f"sums.pair[{k}] -= {off} * double(size);")
        return "\n".join([*text, "return sums;", "}"])

    def parts(self, vector: int) -> list[int]:
        """The vectors that a vector is the sum of: the base and a delta for a prediction."""
        delta = vector - self.program.width + 1
        return [vector] if delta <= 0 else [0, delta]

    def _loop(self, body: list[str]) -> list[str]:
        return ["for (int64_t i = 0; i < whole; i += LANES) {", *self.vectors("load(p{k} + i)"), *body, "}"]

    def _rest(self, body: list[str]) -> list[str]:
        return ["if (rest) {", *self.vectors("load_part(p{k} + whole, rest)"), *body, "}"]

    def weigh(self) -> tuple[str, list[Any]]:
        """``weigh``, and for each weight its name or its constant value."""
        trace = Trace()
        p = self.program
        sums = [Term(trace, f"sums.pair[{k}]") for k in range(len(p.pairs))]
        sums += [Term(trace, f"sums.mean[{p.centred.index(v)}]") for v in p.means]
        params = tuple(Term(trace, f"params[{k}]") for k in range(len(p.params)))
        weights = list(p.weigh(tuple(sums), Term(trace, "count"), params))
        lines = [*trace.lines, *(f"w[{k}] = {Term.text(weight)};" for k, weight in enumerate(weights))]
        head = "EXACT static void weigh(const Sums& sums, double count, const double* params, double* w) {"
        return "\n".join([head, "EXACTLY", *lines, "}"]), weights

    def combine(self, weights: list[Any]) -> str:
        """``combine``: every output of a stretch, one rounding each."""
        p = self.program
        used = [k for k, weight in enumerate(weights) if isinstance(weight, Term) or weight not in (0, 1)]
        body = []
        for output in range(p.outputs):
            terms = []
            for k in range(p.width):
                index = output * p.width + k
                if index in used:
                    terms.append(f"w{index} * v{k}")
                elif weights[index] == 1:
                    terms.append(f"v{k}")
            body.append(f"vec r{output} = {' + '.join(terms) or 'vec{}'};")
        low = p.outputs * p.width
        if p.clamps:
            bounds = [f"w{low + k}" if low + k in used else f"all(acc({weights[low + k]}))" for k in range(2)]
            body += [f"r0 = r0 < {bounds[0]} ? {bounds[0]} : r0;", f"r0 = r0 > {bounds[1]} ? {bounds[1]} : r0;"]
        if p.affine:
            body.append("r0 = (r0 - offset) / gain;")
        outs = "".join(f"{t}* o{k}, " for k, t in enumerate(self.results))
        text = [f"static void combine({self.pointers()}, {outs}const double* w{self.space()}) {{"]
        text.append("const int64_t whole = size / LANES * LANES, rest = size - whole;")
        text += [f"const vec w{k} = all(acc(w[{k}]));" for k in used]
        text += self._loop([*body, *(f"store(o{k} + i, r{k});" for k in range(p.outputs))])
        text += self._rest([*body, *(f"store_part(o{k} + whole, r{k}, rest);" for k in range(p.outputs))])
        # An output may be one of the inputs: each element is read before it is written.
        return "\n".join([*text, "}"]).replace("__restrict ", "")

    def entry(self, weights: int) -> str:
        """``guide``, the function that Python calls."""
        ins, outs = range(len(self.types)), range(len(self.results))
        at = "".join(f"i{k} + row * is{k} + start, " for k in ins)
        to = "".join(f"o{k} + row * os{k} + start, " for k in outs)
        arguments = [f"const {t}* i{k}, int64_t is{k}" for k, t in enumerate(self.types)]
        arguments += [f"{t}* o{k}, int64_t os{k}" for k, t in enumerate(self.results)]
        arguments += ["const double* params, int64_t param_stride, int64_t rows, int64_t count, int64_t threads"]
        values = ""
        if self.program.affine:
            last = len(self.program.params)
            values = f", acc(given[{last - 2}]), acc(given[{last - 1}])"
        reduces = int(self.program.reduces)
        return f"""\
extern "C" void guide({", ".join(arguments)}) {{
    const int64_t chunks = (count + CHUNK - 1) / CHUNK, work = rows * chunks;
    std::unique_ptr<Sums[]> parts({reduces} ? new Sums[work] : nullptr);
    #pragma omp parallel num_threads(threads) if (threads > 1)
    {{
        int64_t thread = 0, all = 1;
        #ifdef _OPENMP
        thread = omp_get_thread_num(), all = omp_get_num_threads();
        #endif
        const int64_t begin = work * thread / all, end = work * (thread + 1) / all;
        if ({reduces}) {{
            for (int64_t item = begin; item < end; ++item) {{
                const int64_t row = item / chunks, chunk = item % chunks;
                [[maybe_unused]] const double* given = params + row * param_stride;
                const int64_t stop = chunk + 1 < chunks ? (chunk + 1) * CHUNK : count;
                Sums sums;
                for (int64_t start = chunk * CHUNK; start < stop; start += BLOCK) {{
                    const int64_t size = stop - start < BLOCK ? stop - start : BLOCK;
                    sums.add(block({at}size{values}));
                }}
                parts[item] = sums;
            }}
            #pragma omp barrier
        }}
        int64_t weighed = -1;
        double w[{weights} + 1];
        // Backwards: what was summed last still lies in the cache.
        for (int64_t item = end - 1; item >= begin; --item) {{
            const int64_t row = item / chunks, chunk = item % chunks, start = chunk * CHUNK;
            const double* given = params + row * param_stride;
            if (row != weighed) {{
                Sums sums;
                if ({reduces}) for (int64_t k = 0; k < chunks; ++k) sums.add(parts[row * chunks + k]);
                weigh(sums, double(count), given, w);
                weighed = row;
            }}
            const int64_t size = count - start < CHUNK ? count - start : CHUNK;
            combine({at}size, {to}w{values});
        }}
    }}
}}
"""


def cpp_source(program: Program, inputs: tuple[torch.dtype, ...], outputs: tuple[torch.dtype, ...]) -> str:
    """The text of a library whose function ``guide`` runs ``program`` on rows of these dtypes.

    ``guide(in, stride, …, out, stride, …, params, param_stride, rows, count, threads)``: a pointer and the number of
    elements from row to row for each input and output, float64 parameters of each row, and how many threads to take.
    """
    types, results = [_TYPES[t] for t in inputs], [_TYPES[t] for t in outputs]
    writer = _Writer(program, types, results)
    weigh, weights = writer.weigh()
    centred = list(program.centred)
    sides = [
        ",".join(str(centred.index(pair[side]) if pair[0] == "cov" else -1) for pair in program.pairs) or "-1"
        for side in (1, 2)
    ]
    head = _HEAD.replace("ACC", "double" if inputs[0] == torch.float64 else "float")
    head += _BFLOAT16 if "bfloat16" in (*types, *results) else ""
    head += _FLOAT16 if "float16" in (*types, *results) else ""
    sizes = f"constexpr int MEANS = {len(centred)}, PAIRS = {len(program.pairs)};\n"
    sizes += f"constexpr int LEFT[] = {{{sides[0]}}}, RIGHT[] = {{{sides[1]}}};\n"
    parts = [head, _PARTS, sizes, _SUMS, weigh, writer.combine(weights), writer.entry(len(weights))]
    if program.reduces:
        parts.insert(4, writer.block())
    return "\n".join(parts)
