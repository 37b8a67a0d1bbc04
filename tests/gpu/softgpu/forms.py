"""The instructions that work on registers alone: each form that is known, as a NumPy expression.

A form is an opcode with all its modifiers, and only what stands here is run: there is no default that another form
could fall into. ``{0}`` and so on are the sources in their types; the expression is of the destination's type.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FORMS", "OPEN", "TYPES", "Form", "bits_of"]

TYPES = {
    "pred": "bool_", "b8": "uint8", "u8": "uint8", "s8": "int8", "b16": "uint16", "u16": "uint16", "s16": "int16",
    "b32": "uint32", "u32": "uint32", "s32": "int32", "b64": "uint64", "u64": "uint64", "s64": "int64",
    "f16": "float16", "bf16": "uint16", "f32": "float32", "f64": "float64", "f32x2": "uint64", "bf16x2": "uint32",
    "f16x2": "uint32",
}  # fmt: skip
"""NumPy's name of every type; bfloat16 and packed numbers are bits."""


def bits_of(kind: str) -> int:
    """Bits of a type, 1 for a predicate."""
    name = TYPES[kind]
    return 1 if kind == "pred" else int("".join(letter for letter in name if letter.isdigit()))


@dataclass(frozen=True)
class Form:
    """What an opcode does: the expression, its type, and those of the operands.

    ``kind`` is what it counts as: ``float32``, ``float64``, ``integer``, ``convert``, ``move`` or ``compare``.
    """

    expression: str
    result: str
    sources: tuple[str, ...]
    kind: str


FORMS: dict[str, Form] = {}

OPEN = {"div.full.f32"}
"""Forms whose result the instruction set leaves open within a bound, so that no bits can be promised."""


def _add(opcodes: str, expression: str, result: str, sources: str, kind: str) -> None:
    for opcode in opcodes.split():
        FORMS[opcode] = Form(expression, result, tuple(sources.split()), kind)


def _floating() -> None:
    for t, name in (("f32", "float32"), ("f64", "float64")):
        for op, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
            _add(f"{op}.{t} {op}.rn.{t}", f"{{0}} {sign} {{1}}", t, f"{t} {t}", name)
        _add(f"fma.rn.{t}", f"fma{t[1:]}({{0}}, {{1}}, {{2}})", t, f"{t} {t} {t}", name)
        _add(f"div.rn.{t}", "{0} / {1}", t, f"{t} {t}", name)
        _add(f"sqrt.rn.{t}", "np.sqrt({0})", t, t, name)
        _add(f"neg.{t}", "-{0}", t, t, name)
        _add(f"abs.{t}", "np.abs({0})", t, t, name)
        _add(f"min.{t}", "smaller({0}, {1})", t, f"{t} {t}", name)
        _add(f"max.{t}", "larger({0}, {1})", t, f"{t} {t}", name)
        _add(f"selp.{t}", "np.where({2}, {0}, {1})", t, f"{t} {t} pred", "move")
        _add(f"mov.{t}", "{0}", t, t, "move")
    _add("min.NaN.f32", "smaller({0}, {1}, True)", "f32", "f32 f32", "float32")
    _add("max.NaN.f32", "larger({0}, {1}, True)", "f32", "f32 f32", "float32")
    _add("div.full.f32", "div_full({0}, {1}, t.spread)", "f32", "f32 f32", "float32")
    # Two packed float32, and mixed operands, of sm_100 and newer.
    for op, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
        _add(f"{op}.rn.f32x2", f"pack(unpack({{0}}) {sign} unpack({{1}}))", "f32x2", "f32x2 f32x2", "float32")
    _add("fma.rn.f32x2", "pack(fma32(unpack({0}), unpack({1}), unpack({2})))", "f32x2", "f32x2 f32x2 f32x2", "float32")
    for op, sign in (("add", "+"), ("sub", "-")):
        _add(f"{op}.rn.f32.bf16", f"from_bfloat16({{0}}) {sign} {{1}}", "f32", "bf16 f32", "float32")
        _add(f"{op}.rn.f32.f16", f"{{0}}.astype(float32) {sign} {{1}}", "f32", "f16 f32", "float32")


def _comparisons() -> None:
    ordered = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    for t in ("f32", "f64", "f16"):
        for name, sign in ordered.items():
            _add(f"setp.{name}.{t}", f"{{0}} {sign} {{1}}", "pred", f"{t} {t}", "compare")
            nan = "np.isnan({0}) | np.isnan({1})"
            _add(f"setp.{name}u.{t}", f"({{0}} {sign} {{1}}) | {nan}", "pred", f"{t} {t}", "compare")
        _add(f"setp.ne.{t}", f"({{0}} != {{1}}) & ~({nan})", "pred", f"{t} {t}", "compare")
        _add(f"setp.neu.{t}", "{0} != {1}", "pred", f"{t} {t}", "compare")
        _add(f"setp.nan.{t}", nan, "pred", f"{t} {t}", "compare")
        _add(f"setp.num.{t}", f"~({nan})", "pred", f"{t} {t}", "compare")
    unsigned = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
    for width in ("16", "32", "64"):
        for letter in "sub":
            for name, sign in {**ordered, "ne": "!=", **(unsigned if letter == "u" else {})}.items():
                if letter != "b" or name in ("eq", "ne"):
                    t = letter + width
                    _add(f"setp.{name}.{t}", f"{{0}} {sign} {{1}}", "pred", f"{t} {t}", "compare")


def _integers() -> None:
    for width in ("16", "32", "64"):
        for letter in "su":
            t, double = letter + width, f"{letter}{int(width) * 2}"
            for op, sign in (("add", "+"), ("sub", "-"), ("mul.lo", "*")):
                _add(f"{op}.{t}", f"{{0}} {sign} {{1}}", t, f"{t} {t}", "integer")
            _add(f"mad.lo.{t}", "{0} * {1} + {2}", t, f"{t} {t} {t}", "integer")
            _add(f"div.{t}", "divide({0}, {1})", t, f"{t} {t}", "integer")
            _add(f"rem.{t}", "remainder({0}, {1})", t, f"{t} {t}", "integer")
            _add(f"min.{t}", "np.minimum({0}, {1})", t, f"{t} {t}", "integer")
            _add(f"max.{t}", "np.maximum({0}, {1})", t, f"{t} {t}", "integer")
            _add(f"shr.{t}", "shift_right({0}, {1})", t, f"{t} u32", "integer")
            if double in TYPES:
                name = TYPES[double]
                product = f"{{0}}.astype({name}) * {{1}}.astype({name})"
                _add(f"mul.wide.{t}", product, double, f"{t} {t}", "integer")
                _add(f"mad.wide.{t}", f"{product} + {{2}}", double, f"{t} {t} {double}", "integer")
        t = f"b{width}"
        _add(f"shl.{t}", "shift_left({0}, {1})", t, f"{t} u32", "integer")
        _add(f"shr.{t}", "shift_right({0}, {1})", t, f"{t} u32", "integer")
        _add(f"selp.{t}", "np.where({2}, {0}, {1})", t, f"{t} {t} pred", "move")
        for op, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
            _add(f"{op}.{t}", f"{{0}} {sign} {{1}}", t, f"{t} {t}", "integer")
        _add(f"not.{t}", "~{0}", t, t, "integer")
        for letter in "bus":
            _add(f"mov.{letter}{width}", "{0}", letter + width, letter + width, "move")
            if letter != "b":
                _add(
                    f"selp.{letter}{width}",
                    "np.where({2}, {0}, {1})",
                    letter + width,
                    f"{letter}{width} " * 2 + "pred",
                    "move",
                )
        _add(f"neg.s{width}", "-{0}", f"s{width}", f"s{width}", "integer")
        _add(f"abs.s{width}", "np.abs({0})", f"s{width}", f"s{width}", "integer")
    for op, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
        _add(f"{op}.pred", f"{{0}} {sign} {{1}}", "pred", "pred pred", "integer")
    _add("not.pred", "~{0}", "pred", "pred", "integer")
    _add("mov.pred", "{0}", "pred", "pred", "move")
    for t in ("s32", "u32"):
        _add(f"mul.hi.{t}", "high_half({0}, {1})", t, f"{t} {t}", "integer")
    for t in ("s32", "u32", "s64", "u64"):
        _add(f"bfe.{t}", "bit_field({0}, {1}, {2})", t, f"{t} u32 u32", "integer")
    _add("prmt.b32", "permute_bytes({0}, {1}, {2})", "b32", "b32 b32 b32", "integer")
    _add("popc.b32", "np.bitwise_count({0}).astype(uint32)", "u32", "b32", "integer")
    _add("popc.b64", "np.bitwise_count({0}).astype(uint32)", "u32", "b64", "integer")
    for letter in "su":
        t = f"{letter}32"
        for op, name in (("min", "minimum"), ("max", "maximum"), ("add", "add")):
            _add(f"redux.sync.{op}.{t}", f"t.reduce_warps(np.{name}, {{0}}, {{1}})", t, f"{t} b32", "shuffle")
    for op in ("and", "or", "xor"):
        _add(f"redux.sync.{op}.b32", f"t.reduce_warps(np.bitwise_{op}, {{0}}, {{1}})", "b32", "b32 b32", "shuffle")


def _conversions() -> None:
    whole = [f"{letter}{width}" for letter in "su" for width in (8, 16, 32, 64)]
    for target in whole:
        for source in whole:
            _add(f"cvt.{target}.{source}", f"{{0}}.astype({TYPES[target]})", target, source, "convert")
    for target in ("f32", "f64"):
        for source in whole:
            _add(f"cvt.rn.{target}.{source}", f"{{0}}.astype({TYPES[target]})", target, source, "convert")
    _add("cvt.f64.f32", "{0}.astype(float64)", "f64", "f32", "convert")
    _add("cvt.rn.f32.f64", "{0}.astype(float32)", "f32", "f64", "convert")
    _add("cvt.f32.f16", "{0}.astype(float32)", "f32", "f16", "convert")
    _add("cvt.f32.bf16", "from_bfloat16({0})", "f32", "bf16", "convert")
    _add("cvt.rn.f16.f32", "to_half({0})", "b16", "f32", "convert")
    _add("cvt.rn.bf16.f32", "to_bfloat16({0})", "bf16", "f32", "convert")
    for t, name in (("bf16", "to_bfloat16"), ("f16", "to_half")):
        both = f"{name}({{0}}).astype(uint32) << 16 | {name}({{1}})"
        _add(f"cvt.rn.{t}x2.f32", both, f"{t}x2", "f32 f32", "convert")


_floating()
_comparisons()
_integers()
_conversions()
