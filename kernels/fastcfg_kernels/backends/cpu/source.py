"""C++ of a program for one dtype: sums, weights and combine of all samples in one call.

The arithmetic is that of :mod:`fastcfg_kernels.backends.torch.tiles`: a sample is cut into blocks of ``BLOCK``
elements, each of which takes the means of its vectors relative to its first element and then centred sums in the
accumulator's dtype, both while it lies in the nearest cache. Blocks are merged in Chan's way in float64, in their
order, into chunks of ``CHUNK`` and these into the sample, whatever the number of threads; the formula runs in float64
too. The formula itself is traced with :class:`~fastcfg_kernels.formula.terms.Term`.
"""

from __future__ import annotations

from typing import Any

import torch

from ...formula.program import Program
from ...formula.terms import Term, Trace
from .text import BFLOAT16, FLOAT16, HEAD, PARTS, SUMS

__all__ = ["cpp_source"]

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class _Writer:
    """The parts of the source that depend on the program.

    Args:
        types: the C++ element type of each input: predictions, extras, elementwise scale, mask.
        targets: each output's result by number, and its element type.
    """

    def __init__(self, program: Program, types: list[str], targets: list[tuple[int, str]]) -> None:
        self.program = program
        self.types = types
        self.targets = targets
        self.size = len(program.predictions)
        self.tail = range(program.width, self.size + len(program.extras))
        last = len(types) - 1
        self.mask = f"i{last}" if program.masked else None
        self.scale = f"i{last - program.masked}" if program.scaled else None

    def vectors(self, load: str, of: str = "vec") -> list[str]:
        """Statements that load every input as ``i<k>`` and make every fixed vector ``v<k>`` of them."""
        p = self.program
        x = f"i{p.width}"
        scale = f"{self.scale} * " if self.scale else ""
        lines = [f"[[maybe_unused]] const {of} i{k} = {load.format(k=k)};" for k in range(len(self.types))]
        made = {0: f"shift * {x} + gain * i0" if p.affine else "i0"}
        for k in range(1, self.size):
            made[k] = ("gain * " if p.affine else "") + f"({scale}(i{k} - i0))"
            made[p.width - 1 + k] = f"shift * {x} + gain * i{k}" if p.affine else f"i{k}"
        made |= {k: f"i{k}" for k in range(self.size, p.width)}
        return lines + [f"[[maybe_unused]] const {of} v{k} = {value};" for k, value in sorted(made.items())]

    def pointers(self) -> str:
        """The arguments of a function over a stretch of the inputs."""
        return "".join(f"const {t}* p{k}, " for k, t in enumerate(self.types)) + "int64_t size"

    def space(self) -> str:
        return ", acc shift, acc gain" if self.program.affine else ""

    def _loop(self, body: list[str]) -> list[str]:
        return ["for (int64_t i = 0; i < whole; i += LANES) {", *self.vectors("load(p{k} + i)"), *body, "}"]

    def _rest(self, body: list[str]) -> list[str]:
        return ["if (rest) {", *self.vectors("load_part(p{k} + whole, rest)"), *body, "}"]

    def _add(self, values: dict[str, str]) -> list[str]:
        """Add to each sum its value over the elements of a block, or those that the mask leaves in."""
        own = self.mask
        whole = [f"{name} += {f'only({value}, {own})' if own else value};" for name, value in values.items()]
        mask = [] if own else ["const vec tail = present(rest);"]
        part = [f"{name} += only({value}, {own or 'tail'});" for name, value in values.items()]
        return self._loop(whole) + self._rest([*mask, *part])

    def block(self) -> str:
        """``block``: the sums of up to BLOCK elements."""
        p = self.program
        text = [f"static Sums block({self.pointers()}{self.space()}) {{", "Sums sums;"]
        text.append("const int64_t whole = size / LANES * LANES, rest = size - whole;")
        leader = "0"
        if self.mask:
            mask = f"p{len(self.types) - 1}"
            text.append("int64_t leader = size, count = 0;")
            text.append(f"for (int64_t i = size - 1; i >= 0; --i) if ({mask}[i] != 0) leader = i, ++count;")
            text.append("if (count == 0) return sums;")
            leader = "leader"
        else:
            text.append("const int64_t count = size;")
        text.append("sums.count = double(count);")
        if p.centred:
            text += ["acc " + ", ".join(f"pivot{v}" for v in p.centred) + ";", "{"]
            text += [*self.vectors(f"first(p{{k}} + {leader})", "acc"), *(f"pivot{v} = v{v};" for v in p.centred), "}"]
            text.append("vec " + ", ".join(f"s{v}{{}}" for v in p.centred) + ";")
            text += self._add({f"s{v}": f"v{v} - pivot{v}" for v in p.centred})
            for k, v in enumerate(p.centred):
                text.append(f"const double exact{v} = double(pivot{v}) + total(s{v}) / double(count);")
                text.append(f"const acc mean{v} = acc(exact{v});")
                text.append(f"sums.mean[{k}] = exact{v};")
        if p.pairs:
            text.append("vec " + ", ".join(f"q{k}{{}}" for k in range(len(p.pairs))) + ";")
            products = {}
            for k, (kind, a, b) in enumerate(p.pairs):
                x, y = (f"(v{v} - mean{v})" if kind == "cov" else f"v{v}" for v in (a, b))
                products[f"q{k}"] = f"{x} * {y}"
            text += self._add(products)
            text += [f"sums.pair[{k}] = total(q{k});" for k in range(len(p.pairs))]
            for k, (kind, a, b) in enumerate(p.pairs):
                if kind == "cov":  # What rounding the means to acc has added.
                    off = " * ".join(f"(exact{v} - double(mean{v}))" for v in (a, b))
                    text.append(f"sums.pair[{k}] -= {off} * double(count);")
                    if a == b:
                        text.append(f"if (sums.pair[{k}] < 0) sums.pair[{k}] = 0;")
        return "\n".join([*text, "return sums;", "}"])

    def wide(self) -> str:
        """``wide``: the same sums in double, element by element, where float's range does not hold them."""
        p = self.program
        skip = [f"if ({self.mask} == 0) continue;"] if self.mask else []
        each = ["for (int64_t i = 0; i < size; ++i) {", *self.vectors("double(first(p{k} + i))", "double"), *skip]
        text = [f"__attribute__((noinline)) static Sums wide({self.pointers()}{self.space()}) {{", "Sums sums;"]
        text.append("int64_t count = 0;")
        if p.centred:
            text.append("double " + ", ".join(f"pivot{v} = 0, s{v} = 0" for v in p.centred) + ";")
        text += [*each, *(f"if (!count) pivot{v} = v{v};" for v in p.centred), "++count;"]
        text += [*(f"s{v} += v{v} - pivot{v};" for v in p.centred), "}", "if (count == 0) return sums;"]
        text.append("sums.count = double(count);")
        for k, v in enumerate(p.centred):
            text.append(f"const double mean{v} = sums.mean[{k}] = pivot{v} + s{v} / double(count);")
        text += each
        for k, (kind, a, b) in enumerate(p.pairs):
            x, y = (f"(v{v} - mean{v})" if kind == "cov" else f"v{v}" for v in (a, b))
            text.append(f"sums.pair[{k}] += {x} * {y};")
        return "\n".join([*text, "}", "return sums;", "}"])

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

        def weighted(start: int, vectors: list[str]) -> str:
            terms = [
                f"w{k} * {vector}" if k in used else vector
                for k, vector in enumerate(vectors, start)
                if k in used or weights[k] == 1
            ]
            return " + ".join(terms) or "vec{}"

        basis = [f"v{k}" for k in range(p.width)]
        body = [f"vec r{output} = {weighted(output * p.width, basis)};" for output in range(p.outputs)]
        at = p.outputs * p.width
        if p.clamps:
            low, high = (f"w{k}" if k in used else f"all(acc({Term.text(weights[k])}))" for k in (at, at + 1))
            body += [f"r0 = r0 < {low} ? {low} : r0;", f"r0 = r0 > {high} ? {high} : r0;"]
        if p.affine:
            body.append(f"r0 = (r0 - shift * i{p.width}) / gain;")
        results = [f"r{output}" for output in range(p.outputs)]
        if p.rows:
            terms = ["r0", *(f"i{k}" for k in self.tail)]
            start = len(weights) - p.rows * len(terms)
            rows = [f"const vec row{r} = {weighted(start + r * len(terms), terms)};" for r in range(p.rows)]
            body += rows
            results[:1] = [f"row{r}" for r in range(p.rows)]
        outs = "".join(f"{t}* o{k}, " for k, (_, t) in enumerate(self.targets))
        text = ["template <bool STREAMED>"]
        text.append(f"static void combine({self.pointers()}, {outs}const double* w{self.space()}) {{")
        text.append("const int64_t whole = size / LANES * LANES, rest = size - whole;")
        text += [f"[[maybe_unused]] const vec w{k} = all(acc(w[{k}]));" for k in used]
        # An output may be one of the inputs: each element is read before it is written.
        stores = [
            f"if constexpr (STREAMED) stream(o{k} + i, {results[r]}); else store(o{k} + i, {results[r]});"
            for k, (r, _) in enumerate(self.targets)
        ]
        text += self._loop([*body, *stores])
        stores = [f"store_part(o{k} + whole, {results[r]}, rest);" for k, (r, _) in enumerate(self.targets)]
        return "\n".join([*text, *self._rest([*body, *stores]), "}"])

    def entry(self, weights: int) -> str:
        """``guide``, the function that Python calls."""
        ins, outs = range(len(self.types)), range(len(self.targets))
        at = "".join(f"i{k} + row * is{k} + start, " for k in ins)
        to = "".join(f"o{k} + row * os{k} + start, " for k in outs)
        arguments = [f"const {t}* i{k}, int64_t is{k}" for k, t in enumerate(self.types)]
        arguments += [f"{t}* o{k}, int64_t os{k}" for k, (_, t) in enumerate(self.targets)]
        arguments += ["const double* params, int64_t param_stride, int64_t rows, int64_t count, int64_t threads"]
        stats = len(self.program.stats)
        arguments += ["acc* stats"] * bool(stats)
        # Of the threads that have a part of a row, one has its first chunk.
        place = f"stats[row * {stats} + k] = acc(w[{weights - stats} + k])"
        write_stats = f"if (chunk == 0) for (int k = 0; k < {stats}; ++k) {place};"
        values = ""
        if self.program.affine:
            last = len(self.program.params)
            values = f", acc(given[{last - 2}]), acc(given[{last - 1}])"
        reduces = self.program.reduces
        sizes = " + ".join(f"sizeof({t})" for t in [*self.types, *(t for _, t in self.targets)])
        aligned = "".join(f" && streams(o{k}) && (rows == 1 || streams(o{k} + os{k}))" for k in outs)
        # A row that the mask leaves out whole counts as one element.
        amount = "sums.count > 1 ? sums.count : 1" if self.mask else "double(count)"
        reduce = f"""\
    const auto reduce = [&](int64_t row, int64_t chunk) {{
        [[maybe_unused]] const double* given = params + row * param_stride;
        const int64_t stop = chunk + 1 < chunks ? (chunk + 1) * CHUNK : count;
        int64_t start = chunk * CHUNK;
        const auto next = [&] {{
            const int64_t size = stop - start < BLOCK ? stop - start : BLOCK;
            Sums sums = block({at}size{values});
            if (!sums.sound()) sums = wide({at}size{values});
            return sums;
        }};
        Sums sums = next();
        for (start += BLOCK; start < stop; start += BLOCK) sums.add(next());
        return sums;
    }};
    struct Parts {{
        Sums* at;
        ~Parts() {{ delete[] at; }}
        Sums& operator[](int64_t k) {{ return at[k]; }}
    }} parts{{chunks > 1 ? new Sums[work] : nullptr}};
"""
        partial = """\
        if (chunks > 1) {
            for (int64_t item = begin; item < end; ++item) parts[item] = reduce(item / chunks, item % chunks);
            #pragma omp barrier
        }
"""
        gather = """\
                if (chunks == 1) sums = reduce(row, 0);
                else for (int64_t k = 0; k < chunks; ++k) sums.add(parts[row * chunks + k]);
"""
        return f"""\
extern "C" void guide({", ".join(arguments)}) {{
    const int64_t chunks = (count + CHUNK - 1) / CHUNK, work = rows * chunks;
    const bool streamed_out = rows * count * int64_t({sizes}) >= STREAM{aligned};
{reduce * reduces}\
    #pragma omp parallel num_threads(threads) if (threads > 1)
    {{
        int64_t thread = 0, all = 1;
        #ifdef _OPENMP
        thread = omp_get_thread_num(), all = omp_get_num_threads();
        #endif
        const int64_t begin = work * thread / all, end = work * (thread + 1) / all;
{partial * reduces}\
        int64_t weighed = -1;
        double w[{weights} + 1];
        // Backwards: what was summed last still lies in the cache.
        for (int64_t item = end - 1; item >= begin; --item) {{
            const int64_t row = item / chunks, chunk = item % chunks, start = chunk * CHUNK;
            const double* given = params + row * param_stride;
            if (row != weighed) {{
                Sums sums;
{gather * reduces}\
                weigh(sums, {amount}, given, w);
                // A projection on numbers next to nothing weighs more than the combine can use: then there is none.
                if (!held(w, {weights}) && sums.drop()) weigh(sums, {amount}, given, w);
                weighed = row;
            }}
            {write_stats if stats else ""}
            const int64_t size = count - start < CHUNK ? count - start : CHUNK;
            if (streamed_out) combine<true>({at}size, {to}w{values});
            else combine<false>({at}size, {to}w{values});
        }}
        if (streamed_out) streamed();
    }}
}}
{"" if stats else self._from_arrays()}"""

    def _from_arrays(self) -> str:
        """``guide_arrays``: the same with its pointers and strides in arrays, the inputs' and then the outputs'."""
        types = [*(f"const {t}*" for t in self.types), *(f"{t}*" for _, t in self.targets)]
        given = "".join(f"static_cast<{t}>(at[{k}]), strides[{k}], " for k, t in enumerate(types))
        rest = "const double* params, int64_t param_stride, int64_t rows, int64_t count, int64_t threads"
        return f"""\
extern "C" void guide_arrays(void* const* at, const int64_t* strides, {rest}) {{
    guide({given}params, param_stride, rows, count, threads);
}}
"""


def cpp_source(program: Program, inputs: tuple[torch.dtype, ...], targets: tuple[tuple[int, torch.dtype], ...]) -> str:
    """The text of a library whose function ``guide`` runs ``program`` on rows.

    ``guide(in, stride, …, out, stride, …, params, param_stride, rows, count, threads)``: a pointer and the number of
    elements from row to row for each input and output, float64 parameters of each row, and how many threads to take.
    A program with stats has one pointer more, to ``[rows, K]`` in the accumulator's dtype.

    Args:
        inputs: dtype of each prediction, extra, and the elementwise scale and mask.
        targets: for each output, the number of the program's result and a dtype.
    """
    types, results = [_TYPES[t] for t in inputs], [(k, _TYPES[t]) for k, t in targets]
    writer = _Writer(program, types, results)
    weigh, weights = writer.weigh()
    centred = list(program.centred)
    places = [(centred.index(a), centred.index(b)) if kind == "cov" else (-1, -1) for kind, a, b in program.pairs]
    left, right = (",".join(str(place[side]) for place in places) or "-1" for side in (0, 1))
    named = {*types, *(t for _, t in results)}
    head = HEAD.replace("ACC", "double" if inputs[0] == torch.float64 else "float")
    head += (BFLOAT16 if "bfloat16" in named else "") + (FLOAT16 if "float16" in named else "")
    sizes = f"constexpr int MEANS = {len(centred)}, PAIRS = {len(program.pairs)};\n"
    sizes += f"constexpr int LEFT[] = {{{left}}}, RIGHT[] = {{{right}}};\n"
    block = [writer.block(), writer.wide()] if program.reduces else []
    combined = weights[: len(weights) - len(program.stats)]
    parts = [head, PARTS, sizes, SUMS, *block, weigh, writer.combine(combined), writer.entry(len(weights))]
    return "\n".join(parts)
