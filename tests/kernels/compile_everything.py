"""Compiles kernels ahead of time and prints what they became, as JSON; run apart from Triton's interpreter."""

import json
from dataclasses import asdict

import torch
from fastcfg_kernels.aot import TARGETS, compile_ahead

from fastcfg import CFG, Clamp, PerpNeg

RULES = {"cfg": CFG(7.5), "rescale": CFG(7.5, rescale=0.7), "perp_neg": PerpNeg(), "clamp": Clamp(CFG(7.5))}


def main() -> None:
    """Every rule and target in bf16; on sm_90 fp32 and the plan's largest samples too."""
    rows = []

    def add(name: str, target: str, dtype: torch.dtype, count: int, **options: object) -> None:
        for kernel in compile_ahead(RULES[name].program, dtype, target, count=count, **options):
            rows.append({"rule": name, "dtype": str(dtype)[6:], "count": count, **asdict(kernel)})

    for name in RULES:
        for target in TARGETS:
            add(name, target, torch.bfloat16, 4096)
    for name in ("cfg", "rescale", "perp_neg"):
        add(name, "cuda:90", torch.float32, 4096)
    for name, dtype, count in (
        ("rescale", torch.bfloat16, 16384),
        ("rescale", torch.float16, 16384),
        ("rescale", torch.float32, 16384),
        ("clamp", torch.bfloat16, 16384),
        ("perp_neg", torch.bfloat16, 16384),
        ("perp_neg", torch.float32, 8192),
    ):
        add(name, "cuda:90", dtype, count, strategies=("row",))
    add("rescale", "cuda:90", torch.bfloat16, 4096, aligned=False, strategies=("two_launch",))
    add("rescale", "hip:gfx942", torch.float32, 8192)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
