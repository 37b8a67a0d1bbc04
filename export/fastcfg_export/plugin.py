"""The guidance node as a TensorRT quickly deployable plugin: our Triton kernel as PTX, compiled ahead of time.

A plugin of the node's name is preferred to the node's body. Needs TensorRT 10.7 or later; TensorRT-RTX has no plugins.
"""

# `tensorrt.plugin` reads annotations of the functions made here: no postponed evaluation.
import re
from dataclasses import dataclass
from typing import Any

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.gpu.aot import TARGETS
from fastcfg_kernels.gpu.formula import interpreting, kernel_constants
from fastcfg_kernels.tiles import TILE

from .custom_op import DOMAIN, op_name
from .module import GuidedModule
from .runtimes import TensorRT

__all__ = ["PTX_TARGET", "PluginKernel", "compile_plugin", "plugin_constants", "plugin_inputs", "register_plugin"]

PTX_TARGET = "cuda:80"
"""PTX of this architecture runs on it and every later one, and is old enough for current drivers."""

PROGRAMS = 32
"""Programs for a sample that write its tiles."""

NUM_WARPS = 8

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class PluginKernel:
    """A compiled kernel.

    Attributes:
        name: of the entry; ptx: its text, with the entry's parameters as TensorRT passes them.
        threads: of a block; shared: bytes of shared memory.
    """

    name: str
    ptx: str
    threads: int
    shared: int


def plugin_inputs(module: GuidedModule) -> tuple[str, ...]:
    """Names of the plugin's inputs: the predictions, the state, the parameters.

    Raises:
        ValueError: for a guidance that the plugin's kernel does not compute; the node's body does.
    """
    rule = module.rule
    if rule is None:
        raise ValueError("rule: a graph without a rule has no guidance to make a plugin of")
    lowered = rule.lowered
    if lowered.domain is not None or rule.prepares or lowered.dims is not None or module.step is not None:
        raise ValueError(
            f"rule: the plugin's kernel has no domain, groups, prepared tensors or step, and {rule} with "
            f"step={module.signature.step!r} has one; leave it to the node's body"
        )
    if lowered.predictions != rule.conditions:
        raise ValueError(f"rule: {rule} weighs its predictions in another order than its inputs'")
    if set(module.parameters_in) != set(lowered.program.params):
        raise ValueError(
            f"parameters: the plugin takes all of them as inputs, {list(lowered.program.params)}, "
            f"the graph has {list(module.parameters_in)}; export with parameters= of all"
        )
    return (*rule.conditions, *(f"state_{name}" for name in lowered.extras), *module.parameters_in)


def compile_plugin(module: GuidedModule, *, target: str = PTX_TARGET) -> PluginKernel:
    """Compile the guidance of a module for the plugin; no GPU is needed.

    Args:
        target: a CUDA key of :data:`fastcfg_kernels.gpu.aot.TARGETS`.

    Raises:
        RuntimeError: under Triton's interpreter.
        ValueError: as :func:`plugin_inputs`, or for a dtype that no plugin has.
    """
    plugin_inputs(module)
    if interpreting():
        raise RuntimeError("target: Triton's interpreter is on (TRITON_INTERPRET), so nothing can be compiled")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from .plugin_kernel import guidance_kernel

    assert module.rule is not None
    program = _in_order(module)
    dtype = module.graph_model.float_dtype
    if dtype not in _TYPES:
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {dtype}")
    number, width = f"*{_TYPES[dtype]}", program.width
    extras = ("*fp32",) * len(program.extras)
    constants = plugin_constants(program)
    signature: dict[str, Any] = {
        "predictions": (number,) * len(program.predictions) + extras,
        "params": ("*fp32",) * len(program.params),
        "count": "i32",
        "outs": (number,) + ("*fp32",) * (program.outputs - 1),
    }
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(guidance_kernel, signature, constants, {})
    compiled = triton.compile(
        source, target=GPUTarget(*TARGETS[target]), options={"num_warps": NUM_WARPS, "enable_fp_fusion": True}
    )
    pointers = width + len(program.params) + program.outputs
    ptx = without_scratch(compiled.asm["ptx"], pointers + 1)
    return PluginKernel(compiled.metadata.name, ptx, NUM_WARPS * 32, compiled.metadata.shared)


def plugin_constants(program: fk.Program) -> dict[str, Any]:
    """The compile-time arguments of :func:`fastcfg_export.plugin_kernel.guidance_kernel`."""
    import triton.language as tl

    from .plugin_kernel import guidance_kernel

    shared = {name: value for name, value in kernel_constants(program).items() if name in guidance_kernel.arg_names}
    slots = len(program.centred) + len(program.pairs)
    return shared | {
        "SLOTS": max(2, 1 << (slots - 1).bit_length()),
        "TILE": TILE,
        "ACC": tl.float32,
    }


def _in_order(module: GuidedModule) -> fk.Program:
    """The rule's program, whose parameters come in the graph's order."""
    assert module.rule is not None
    program = module.rule.program
    if tuple(module.parameters_in) != program.params:
        raise ValueError(f"parameters: the plugin takes them in the order {list(program.params)}")
    return program


def without_scratch(ptx: str, arguments: int) -> str:
    """PTX whose entry has only the arguments that a caller passes.

    Triton ends every entry in pointers to scratch memory that its own launcher fills in. Nothing here uses them, and
    TensorRT, which does not know them, would pass too few.

    Raises:
        ValueError: if the kernel has fewer arguments, or uses what would be left out.
    """
    found = re.search(r"\.entry\s+\w+\(\s*(.*?)\n\)", ptx, re.S)
    if found is None:
        raise ValueError("ptx: expected one entry")
    params = [line.strip().rstrip(",") for line in found[1].split("\n") if ".param" in line]
    if len(params) < arguments:
        raise ValueError(f"ptx: expected at least {arguments} arguments, got {len(params)}")
    for line in params[arguments:]:
        name = line.split()[-1]
        if len(re.findall(rf"\b{re.escape(name)}\b", ptx)) > 1:
            raise ValueError(f"ptx: the kernel uses {name}, which a plugin does not pass")
    kept = ",\n\t".join(params[:arguments])
    return ptx[: found.start(1)] + kept + ptx[found.end(1) :]


def register_plugin(module: GuidedModule, library: TensorRT) -> str:
    """Register the plugin of a module's guidance node, for parsers and builders of this process.

    Untested with TensorRT itself: what is checked is the kernel, its arguments, and the functions' signatures.

    Args:
        module: exported with ``custom_op=True`` and all parameters as inputs.
        library: TensorRT with ``tensorrt.plugin``.

    Returns:
        The node's name, ``fastcfg::…``.

    Raises:
        RuntimeError: under TensorRT-RTX, or where ``tensorrt.plugin`` is missing.
        ValueError: as :func:`compile_plugin`.
    """
    if library.name != "tensorrt":
        raise RuntimeError(f"library: {library.name} runs no plugins; its parser takes the node's body")
    names = plugin_inputs(module)
    trtp = getattr(library.module, "plugin", None)
    if trtp is None or not hasattr(trtp, "aot_impl"):
        raise RuntimeError(f"library: TensorRT {library.version} has no plugin.aot_impl; it needs 10.7 or later")
    assert module.rule is not None
    program, trt = _in_order(module), library.module
    kernel = compile_plugin(module)
    name = f"{DOMAIN}::{op_name(module.rule, module.graph_model.float_dtype, module.parameters_in)}"
    outputs = program.outputs
    own = {torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16"}[module.graph_model.float_dtype]
    states = len(program.extras)
    kinds = [own] * len(program.predictions) + ["FP32"] * (states + len(program.params))
    kinds += [own] + ["FP32"] * (outputs - 1)

    def described(*tensors: Any) -> Any:
        first = tensors[0].like()
        if outputs == 1:
            return first
        others = [tensors[0].like() for _ in range(outputs - 1)]
        for other in others:
            other.dtype = trt.float32
        return (first, *others)

    def tactics(*tensors: Any) -> Any:
        # Every tensor is contiguous; there is one combination of types.
        return [trtp.AutoTuneCombination(", ".join(kinds), "LINEAR")]

    def implemented(*arguments: Any) -> Any:
        sample = arguments[0].shape_expr
        count = sample[1]
        for side in range(2, len(sample)):
            count = count * sample[side]
        launch = trtp.KernelLaunchParams()
        launch.grid_x = sample[0]
        launch.grid_y = PROGRAMS
        launch.block_x = kernel.threads
        launch.shared_mem = kernel.shared
        extra = trtp.SymIntExprs(1)
        extra[0] = trtp.SymInt32(count)
        return kernel.name, kernel.ptx, launch, extra

    desc: Any = trtp.TensorDesc
    results: Any = desc if outputs == 1 else tuple[(desc,) * outputs]  # type: ignore[misc]
    every: Any = tuple[desc, ...]
    combinations: Any = list[trtp.AutoTuneCombination]  # type: ignore[name-defined]
    inputs = dict.fromkeys(names, desc)
    trtp.register(name)(_named(described, inputs, results))
    trtp.autotune(name)(_named(tactics, {**inputs, "outputs": every}, combinations))
    text = str | bytes
    returned: Any = tuple[text, text, trtp.KernelLaunchParams, trtp.SymExprs]  # type: ignore[name-defined]
    trtp.aot_impl(name)(_named(implemented, {**inputs, "outputs": every, "tactic": int}, returned))
    return name


def _named(fn: Any, annotations: dict[str, Any], returned: Any) -> Any:
    """``fn`` with parameters of these names: TensorRT matches a node's inputs with a signature."""
    arguments = ", ".join(annotations)
    source = f"def named({arguments}):\n    return fn({arguments})\n"
    named = fk.function_from_source("named", source, {"fn": fn})
    named.__annotations__ = {**annotations, "return": returned}
    return named
