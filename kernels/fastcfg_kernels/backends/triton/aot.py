"""Ahead-of-time compilation of the kernels for named GPUs, on a machine that needs none.

It shows that every kernel compiles for a target, and what the code generator made of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...formula.program import Program
from ..torch.tiles import accumulator
from .formula import interpreting, weigh_constant
from .launch import OPTIONS
from .launch_plan import MOST_REGISTERS, LaunchPlan, Strategy, plan_launch
from .spec import make_spec

__all__ = ["TARGETS", "Compiled", "Sizes", "compile_ahead"]

TARGETS: dict[str, tuple[str, Any, int]] = {
    "cuda:80": ("cuda", 80, 32),
    "cuda:90": ("cuda", 90, 32),
    "cuda:100": ("cuda", 100, 32),
    "cuda:120": ("cuda", 120, 32),
    "hip:gfx942": ("hip", "gfx942", 64),
    "hip:gfx950": ("hip", "gfx950", 64),
}
"""Names of targets, and Triton's (backend, architecture, warp size) for each."""

REGISTERS = 65_536
"""Registers of a multiprocessor, of every GPU among the targets."""

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
_DIVISIBLE = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Sizes:
    """What a kernel is compiled for.

    Attributes:
        count: elements of a group.
        groups: groups in all.
        across: whether neighbouring groups, not elements, are neighbours in memory, as a pixel's channels are not.
        aligned: whether pointers, strides and sizes are multiples of 16, as a caller's usually are.
    """

    count: int
    groups: int = 1
    across: bool = False
    aligned: bool = True


@dataclass(frozen=True)
class Compiled:
    """What one kernel became; -1 where a target's tools are missing.

    Attributes:
        kernel: its name; target: a key of :data:`TARGETS`; strategy: the launch it is part of.
        registers: registers a thread; spills: local loads and stores.
        loads: how often each input element is loaded; load_bits: width of those loads at the widest.
        store_bits: width of the widest stores.
        longest_sum: elements that one of the compiler's reductions adds at most: two have one order in every layout.
        barriers: waits of a program's warps for each other; shuffles: exchanges within a warp.
        warps: that a multiprocessor's registers hold, of whole programs.
        float64: arithmetic on float64 and conversions to or from it, in instructions.
        instructions: of the kernel in all; per_element: times threads, divided by a program's elements.
        binary: size of the machine code in bytes.
    """

    kernel: str
    target: str
    strategy: str
    registers: int
    spills: int
    loads: float
    load_bits: int
    store_bits: int
    longest_sum: int
    barriers: int
    shuffles: int
    warps: int
    float64: int
    instructions: int
    per_element: float
    binary: int


@dataclass(frozen=True)
class _Code:
    """A cubin as text: its instructions, and what ``cuobjdump`` says of its resources."""

    lines: list[str]
    registers: int

    @staticmethod
    def of(cubin: bytes) -> _Code | None:
        """Disassemble; None where the CUDA tools are missing."""
        dump, disassemble = _tool("cuobjdump"), _tool("nvdisasm")
        if dump is None or disassemble is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(cubin)
            usage = subprocess.run([dump, "-res-usage", str(path)], capture_output=True, text=True).stdout
            text = subprocess.run([disassemble, str(path)], capture_output=True, text=True).stdout
        found = re.search(r"REG:(\d+)", usage)
        lines = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][^;]*)", text, re.M)
        return _Code(lines, int(found[1]) if found else -1)

    def count(self, pattern: str) -> int:
        """Instructions whose name fits."""
        return sum(re.match(pattern, line) is not None for line in self.lines)

    def bits(self, pattern: str) -> list[int]:
        """Widths of the memory instructions whose name fits."""
        widths = []
        for line in self.lines:
            if re.match(pattern, line):
                name = line.split()[0]
                found = re.search(r"\.(128|64)\b", name)
                small = re.search(r"\.[US](8|16)\b", name)
                widths.append(int(found[1]) if found else int(small[1]) if small else 32)
        return widths


def _tool(name: str) -> str | None:
    import triton

    packed = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(packed) if packed.exists() else shutil.which(name)


def _longest_sum(code: str) -> int:
    """The longest axis that a reduction in Triton's own code for the GPU runs over; 0 without any."""
    found = re.findall(r'"tt\.reduce"\([^)]*\) <\{axis = (\d+) : i32[^}]*\}>.*?\}\) : \(tensor<([0-9x]+)x', code, re.S)
    return max((int(shape.split("x")[int(axis)]) for axis, shape in found), default=0)


def _resident(registers: int, warps: int) -> int:
    """Warps of whole programs that the registers of a multiprocessor hold, which come in portions of eight a thread."""
    of_a_warp = -(-registers // 8) * 8 * 32
    return min(REGISTERS // (of_a_warp * warps), 64 // warps) * warps


def _plans(program: Program, dtype: torch.dtype, sizes: Sizes, strategies: Iterable[str]) -> list[LaunchPlan]:
    plans = []
    for strategy in ("row", "cooperative", "two_launch"):
        if strategy in strategies and (program.reduces or strategy == "two_launch"):
            chosen: Strategy = strategy  # type: ignore[assignment]
            try:
                read = program.width + program.affine + program.scaled + program.masked
                # What is no prediction is in the accumulator's dtype.
                alone = read == len(program.predictions)
                widest = (dtype if alone else accumulator(dtype)).itemsize
                plan = plan_launch(sizes.count, read, widest, groups=sizes.groups, strategy=chosen, cooperative=128)
                # One program waits for nobody: a row's work, but by name.
                if chosen != "cooperative" or plan.tiles > 1:
                    plans.append(plan)
            except ValueError:  # The strategy is not for this size.
                continue
    return plans


def compile_ahead(
    program: Program,
    dtype: torch.dtype,
    target: str,
    sizes: Sizes,
    *,
    strategies: Sequence[str] = ("row", "cooperative", "two_launch"),
) -> list[Compiled]:
    """Compile the kernels of a program for a target, those that the sizes allow.

    Args:
        target: a key of :data:`TARGETS`.
        sizes: what a program's tiles follow from.

    Raises:
        RuntimeError: under Triton's interpreter, which has no compiler.
    """
    if interpreting():
        raise RuntimeError("target: Triton's interpreter is on (TRITON_INTERPRET), so nothing can be compiled")
    from . import kernels

    results = []
    for plan in _plans(program, dtype, sizes, strategies):
        launched = {
            "row": [kernels.row_kernel],
            "cooperative": [kernels.cooperative_kernel],
            "two_launch": [kernels.tile_kernel, kernels.apply_kernel] if program.reduces else [kernels.apply_kernel],
        }[plan.strategy]
        if plan.strategy == "cooperative" and not target.startswith("cuda"):
            continue
        results += [_compile(kernel, program, dtype, target, plan, sizes) for kernel in launched]
    return results


def _compile(
    kernel: Any, program: Program, dtype: torch.dtype, target: str, plan: LaunchPlan, sizes: Sizes
) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from . import kernels

    acc = accumulator(dtype)
    vectors = program.width + program.affine
    tail = len(program.predictions) + len(program.extras) - vectors
    read = vectors + program.scaled + program.masked
    size = len(program.predictions)
    number = f"*{_TYPES[dtype]}"
    sums = f"*{_TYPES[acc]}"
    fixed = {
        "WEIGH": weigh_constant(program),
        "SPEC": make_spec(
            program,
            plan,
            dtype,
            parameters=(-1,) * len(program.params),
            results=tuple(range(program.results)),
            wide=False,
            whole=sizes.aligned and sizes.count % plan.tile == 0 and sizes.groups % plan.groups == 0,
        ),
    }
    # A group's stride and an element's; the smaller is 1, which is known.
    steps = {"strides": read, "out_strides": program.results, "tail_strides": tail}
    signatures: dict[str, Any] = {
        "predictions": (number,) * size + (sums,) * (vectors - size + program.scaled) + ("*u8",) * program.masked,
        "outs": (number,) + (sums,) * (program.results - 1),
        "tail": (sums,) * tail,
        "stats": sums if program.stats else (),
        "parameters": ("fp32",) * len(program.params),
        "workspace": sums,
        "arrivals": "*i32",
        "outer": (),
        "inner": (),
        **{
            name: (("constexpr", "i64") if sizes.across else ("i64", "constexpr")) * many
            for name, many in steps.items()
        },
        **dict.fromkeys(("groups", "per_sample", "count", "tiles", "pitch"), "i32"),
    }
    constexprs: dict[Any, Any] = {name: value for name, value in fixed.items() if name in kernel.arg_names}
    attrs: dict[tuple[int, ...], Any] = {}
    for i, name in enumerate(kernel.arg_names):
        if name in steps:
            constexprs |= {(i, 2 * k + 1 - sizes.across): 1 for k in range(steps[name])}
            if sizes.aligned:
                attrs |= {(i, 2 * k + sizes.across): _DIVISIBLE for k in range(steps[name])}
        elif sizes.aligned and name in ("predictions", "outs", "tail"):
            attrs |= {(i, k): _DIVISIBLE for k in range(len(signatures[name]))}
        elif sizes.aligned and name in ("workspace", "arrivals", "groups", "count", "pitch"):
            attrs[(i,)] = _DIVISIBLE
    signature = {name: "constexpr" if name in fixed else signatures[name] for name in kernel.arg_names}

    backend, arch, warp = TARGETS[target]
    # A wavefront of AMD has 64 lanes: half the warps make the same number of threads.
    options: dict[str, Any] = {**OPTIONS, "num_warps": max(plan.num_warps * 32 // warp, 1)}
    if plan.strategy == "cooperative":
        options |= {"launch_cooperative_grid": True, "maxnreg": MOST_REGISTERS}
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs, attrs), target=GPUTarget(backend, arch, warp), options=options
    )
    binary = compiled.asm["cubin" if backend == "cuda" else "hsaco"]
    code = _Code.of(binary) if backend == "cuda" else None
    name = kernel.fn.__name__
    longest = _longest_sum(compiled.asm["ttgir"])
    if code is None:
        return Compiled(name, target, plan.strategy, -1, -1, -1, -1, -1, longest, -1, -1, -1, -1, -1, -1, len(binary))
    # Partial sums, which other programs wrote, are read past the first cache, and marked for it.
    loads = code.bits(r"LDG\.E(?!.*STRONG)")
    wide = [width for width in loads if width == max(loads)]
    if program.centred and kernel is not kernels.apply_kernel and max(loads) < 64:
        wide = wide[read:]  # A tile's first element is loaded once more, by itself.
    wide_inputs = vectors - size + program.scaled + (tail if "tail" in kernel.arg_names else 0)
    bytes_of = size * dtype.itemsize + wide_inputs * acc.itemsize + program.masked
    elements = plan.tile * plan.groups
    threads = plan.num_warps * 32
    return Compiled(
        kernel=name,
        target=target,
        strategy=plan.strategy,
        registers=code.registers,
        spills=code.count(r"LDL|STL"),
        loads=sum(wide) / 8 * threads / (elements * bytes_of),
        load_bits=max(loads, default=0),
        store_bits=max(code.bits("STG"), default=0),
        longest_sum=longest,
        barriers=code.count("BAR"),
        shuffles=code.count("SHFL"),
        warps=_resident(code.registers, plan.num_warps),
        float64=code.count(r"D(ADD|MUL|FMA|SETP)|F2F\.F64|F2F\.F32\.F64"),
        instructions=len(code.lines),
        per_element=len(code.lines) * threads / elements,
        binary=len(binary),
    )
