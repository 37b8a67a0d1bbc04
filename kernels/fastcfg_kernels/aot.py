"""Ahead-of-time compilation of the kernels for named GPUs, on a machine that needs none.

It shows that every kernel compiles for a target, and what the code generator made of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .launch_plan import plan_launch
from .program import Program
from .tiles import accumulator
from .triton_backend import interpreting, kernel_constants

__all__ = ["TARGETS", "Compiled", "compile_ahead"]

TARGETS: dict[str, tuple[str, Any, int]] = {
    "cuda:80": ("cuda", 80, 32),
    "cuda:90": ("cuda", 90, 32),
    "cuda:100": ("cuda", 100, 32),
    "cuda:120": ("cuda", 120, 32),
    "hip:gfx942": ("hip", "gfx942", 64),
    "hip:gfx950": ("hip", "gfx950", 64),
}
"""Names of targets, and Triton's (backend, architecture, warp size) for each."""

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


@dataclass(frozen=True)
class Compiled:
    """What one kernel became.

    Attributes:
        kernel: its name; target: a key of :data:`TARGETS`.
        registers: registers a thread (cuda), or -1.
        spills: spill instructions (local loads and stores, cuda), or -1.
        vector_loads: 128-bit global loads (cuda), or -1.
        binary: size of the machine code in bytes.
    """

    kernel: str
    target: str
    registers: int
    spills: int
    vector_loads: int
    binary: int


def _tool(name: str) -> str | None:
    import triton

    packed = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(packed) if packed.exists() else shutil.which(name)


def _inspect(cubin: bytes) -> tuple[int, int, int]:
    """Registers, spill instructions and 128-bit loads of a cubin; -1 where the CUDA tools are missing."""
    registers = spills = loads = -1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        if tool := _tool("cuobjdump"):
            usage = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True).stdout
            if found := re.search(r"REG:(\d+)", usage):
                registers = int(found[1])
        if tool := _tool("nvdisasm"):
            code = subprocess.run([tool, str(path)], capture_output=True, text=True).stdout
            spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
            loads = len(re.findall(r"\bLDG\.E[.\w]*\.128\b", code))
    return registers, spills, loads


def compile_ahead(
    program: Program,
    dtype: torch.dtype,
    target: str,
    *,
    count: int = 4096,
    aligned: bool = True,
    strategies: Iterable[str] = ("row", "two_launch"),
) -> list[Compiled]:
    """Compile the kernels of a program for a target.

    Args:
        target: a key of :data:`TARGETS`.
        count: elements of a sample, which the ``row`` kernel's tiles follow from.
        aligned: whether pointers, strides and count are multiples of 16, as a caller's usually are.

    Raises:
        RuntimeError: under Triton's interpreter, which has no compiler.
    """
    if interpreting():
        raise RuntimeError("target: Triton's interpreter is on (TRITON_INTERPRET), so nothing can be compiled")
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from .triton_kernels import apply_kernel, row_kernel, tile_kernel

    size = program.width + program.affine
    rest = len(program.predictions) + len(program.extras) - size
    acc = accumulator(dtype)
    number = f"*{_TYPES[dtype]}"
    fixed = {**kernel_constants(program), "ACC": tl.float64 if acc == torch.float64 else tl.float32}
    fixed["STRIDES"] = (-1,) * len(program.params)
    fixed["RESULTS"] = tuple(range(program.results))
    signatures: dict[str, Any] = {
        "predictions": (number,) * len(program.predictions) + (f"*{_TYPES[acc]}",) * (size - len(program.predictions)),
        "outs": (number,) + (f"*{_TYPES[acc]}",) * (program.results - 1),
        "tail": (f"*{_TYPES[acc]}",) * rest,
        "params": ("fp32",) * len(program.params),
        "workspace": f"*{_TYPES[acc]}",
        "strides": ("i64",) * size,
        "out_strides": ("i64",) * program.results,
        "tail_strides": ("i64",) * rest,
        "count": "i64",
        "tiles": "i32",
    }
    jobs: list[tuple[Any, dict[str, Any]]] = []
    if program.reduces and "row" in strategies:
        plan = plan_launch(count, size, dtype.itemsize, strategy="row")
        jobs.append((row_kernel, {"TILES": plan.tiles, "TILE": plan.tile}))
    if "two_launch" in strategies:
        plan = plan_launch(count, size, dtype.itemsize, strategy="two_launch")
        if program.reduces:
            jobs.append((tile_kernel, {"TILE": plan.tile}))
        jobs.append((apply_kernel, {"TILE": plan.tile}))

    backend, arch, warp = TARGETS[target]
    results = []
    for kernel, extra in jobs:
        constexprs = {name: value for name, value in {**fixed, **extra}.items() if name in kernel.arg_names}
        signature = {name: "constexpr" if name in constexprs else signatures[name] for name in kernel.arg_names}
        attrs: dict[tuple[int, ...], Any] = {}
        if aligned:
            divisible = [["tt.divisibility", 16]]
            for i, name in enumerate(kernel.arg_names):
                if name in ("predictions", "strides"):
                    attrs |= {(i, k): divisible for k in range(size)}
                elif name in ("outs", "out_strides"):
                    attrs |= {(i, k): divisible for k in range(program.results)}
                elif name in ("tail", "tail_strides"):
                    attrs |= {(i, k): divisible for k in range(rest)}
                elif name in ("workspace", "count"):
                    attrs[(i,)] = divisible
        # A wavefront of AMD has 64 lanes: half the warps make the same number of threads.
        options = {"num_warps": plan.num_warps * 32 // warp, "enable_fp_fusion": True}
        source = ASTSource(kernel, signature, constexprs, attrs)
        compiled = triton.compile(source, target=GPUTarget(backend, arch, warp), options=options)
        code = compiled.asm["cubin" if backend == "cuda" else "hsaco"]
        registers, spills, loads = _inspect(code) if backend == "cuda" else (-1, -1, -1)
        results.append(Compiled(kernel.fn.__name__, target, registers, spills, loads, len(code)))
    return results
