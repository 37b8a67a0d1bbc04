"""Compile our row kernel and a plain Triton kernel of the same rule, and print what both became, as JSON.

The plain ones are what one writes by hand for one rule: flat indices, aligned sizes, ``tl.sum`` in whatever order the
layout gives. A process of its own: Triton chooses between its interpreter and its compiler when it is imported.
"""

import json
from typing import Any

import torch
import triton
import triton.language as tl
from fastcfg_kernels.backends.triton.aot import Sizes, _Code, compile_ahead
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcfg import APG, CFG, TCFG, CFGZeroStar, PerpNeg, Rule

COUNT = 16_384
WARPS = 16


@triton.jit
def _add(a0, a1, a2, a3, a4, b0, b1, b2, b3, b4):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4


@triton.jit
def rescale(uncond, cond, negative, out, scale, phi, N: tl.constexpr):
    """One pass: sums about the first elements, all five in one reduction."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    u = tl.load(uncond + i).to(tl.float32)
    c = tl.load(cond + i).to(tl.float32)
    first = tl.program_id(0) * N
    u0 = tl.load(uncond + first).to(tl.float32)
    c0 = tl.load(cond + first).to(tl.float32)
    d = c - u
    x = c - c0
    z = d - (c0 - u0)
    sx, sz, xx, xz, zz = tl.reduce((x, z, x * x, x * z, z * z), 0, _add)
    xx -= sx * sx / N
    xz -= sx * sz / N
    zz -= sz * sz / N
    yy = xx + 2.0 * (scale - 1.0) * xz + (scale - 1.0) * (scale - 1.0) * zz
    factor = 1.0 - phi + phi * tl.sqrt(xx / yy)
    tl.store(out + i, (factor * (u + scale * d)).to(tl.bfloat16))


@triton.jit
def apg(uncond, cond, negative, out, scale, threshold, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    u = tl.load(uncond + i).to(tl.float32)
    c = tl.load(cond + i).to(tl.float32)
    d = c - u
    dd = tl.sum(d * d, 0)
    dc = tl.sum(d * c, 0)
    cc = tl.sum(c * c, 0)
    limit = tl.where(threshold > 0.0, tl.minimum(1.0, threshold / tl.sqrt(dd)), 1.0)
    along = 0.5 * tl.where(cc > 0.0, dc / cc, 0.0)
    tl.store(out + i, (c + (scale - 1.0) * limit * (d - along * c)).to(tl.bfloat16))


@triton.jit
def perp_neg(uncond, cond, negative, out, scale, negative_scale, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    u = tl.load(uncond + i).to(tl.float32)
    d = tl.load(cond + i).to(tl.float32) - u
    e = tl.load(negative + i).to(tl.float32) - u
    dd = tl.sum(d * d, 0)
    de = tl.sum(d * e, 0)
    along = tl.where(dd > 0.0, de / dd, 0.0)
    tl.store(out + i, (u + scale * (d - negative_scale * (e - along * d))).to(tl.bfloat16))


@triton.jit
def zero_star(uncond, cond, negative, out, scale, eps, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    u = tl.load(uncond + i).to(tl.float32)
    c = tl.load(cond + i).to(tl.float32)
    uc = tl.sum(u * c, 0)
    uu = tl.sum(u * u, 0)
    s = uc / (uu + eps)
    tl.store(out + i, (u * s + scale * (c - u * s)).to(tl.bfloat16))


@triton.jit
def tangential(uncond, cond, negative, out, scale, unused, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    u = tl.load(uncond + i).to(tl.float32)
    c = tl.load(cond + i).to(tl.float32)
    uu = tl.sum(u * u, 0)
    uc = tl.sum(u * c, 0)
    cc = tl.sum(c * c, 0)
    x = 2.0 * uc
    y = cc - uu
    length = tl.sqrt(x * x + y * y)
    of_cond = 0.5 * x / length
    of_uncond = 0.5 * (1.0 - y / length)
    rest = of_cond * c + of_uncond * u
    tl.store(out + i, (rest + scale * (c - rest)).to(tl.bfloat16))


RULES: dict[str, tuple[Rule, Any]] = {
    "CFG + rescale": (CFG(4.0, rescale=0.7), rescale),
    "APG": (APG(4.0), apg),
    "PerpNeg": (PerpNeg(4.0, (1.5,)), perp_neg),
    "CFG-Zero*": (CFGZeroStar(4.0), zero_star),
    "TCFG": (TCFG(4.0), tangential),
}


def plain(kernel: Any) -> dict[str, float]:
    """Compile a plain kernel for sm_90 and return its counts."""
    signature = dict.fromkeys(kernel.arg_names[:4], "*bf16") | dict.fromkeys(kernel.arg_names[4:6], "fp32")
    source = ASTSource(
        kernel, {**signature, "N": "constexpr"}, {(6,): COUNT}, {(k,): [["tt.divisibility", 16]] for k in range(4)}
    )
    options = {"num_warps": WARPS, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    code = _Code.of(compiled.asm["cubin"])
    assert code is not None, "Triton's wheel has no CUDA binary tools here"
    return {
        "per_element": len(code.lines) * WARPS * 32 / COUNT,
        "barriers": code.count("BAR"),
        "shuffles": code.count("SHFL"),
    }


def ours(rule: Rule) -> dict[str, float]:
    """Compile our row kernel of a rule for sm_90 and return its counts."""
    (one,) = compile_ahead(rule.lowered.program, torch.bfloat16, "cuda:90", Sizes(COUNT), strategies=("row",))
    return {"per_element": one.per_element, "barriers": one.barriers, "shuffles": one.shuffles}


if __name__ == "__main__":
    counts = {name: {"plain": plain(kernel), "ours": ours(rule)} for name, (rule, kernel) in RULES.items()}
    print(json.dumps(counts, indent=1))
