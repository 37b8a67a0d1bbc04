"""Random calls beside the float64 oracle, and what must hold of any call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from conformance.oracles.rounding import ulp
from torch import Tensor

from .call import Call, bad_sample, build, out_of
from .cases import Case
from .exact import bound_of, expected_of, included
from .outcome import Wrong
from .tensors import bits

__all__ = ["Checked", "Wrong", "backends", "check_case", "shrink"]


@dataclass(frozen=True)
class Checked:
    """What was checked of a call.

    Attributes:
        bounded: whether its values were compared with the oracle's; error: largest share of the bound.
        refused: the error's text, where the call has to be refused and was.
    """

    bounded: bool = False
    error: float = 0.0
    refused: str = ""


def backends() -> tuple[str, ...]:
    """The backends that can run here, each by its name."""
    from fastcfg_kernels.backends.cpu.build import compiler
    from fastcfg_kernels.backends.triton.backend import unavailable

    found = ["auto", "torch"]
    if compiler() is not None:
        found.append("cpp")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if unavailable(device) is None:
        found.append("triton")
    return tuple(found)


def check_case(case: Case) -> Checked:
    """Make the call, and check all that must hold of it.

    Raises:
        Wrong: naming what does not hold; other exceptions are the call's own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        return _check(case)
    finally:
        torch.set_num_threads(threads)


def _check(case: Case) -> Checked:
    call = build(case)
    kept = {n: p.tensor.clone() for n, p in call.placed.items()}
    expected, memory = call.run(change=lambda t: t.clone(memory_format=torch.preserve_format))
    out = out_of(call)
    actual, state = call.run(out=None if out is None else out.tensor)
    if out is not None and actual is not out.tensor:
        raise Wrong("out: the call returned another tensor")
    if tuple(actual.shape) != tuple(case.shape) or actual.dtype != getattr(torch, case.dtype):
        raise Wrong(f"result: {list(actual.shape)} of {actual.dtype}")
    if out is not None and out.strayed():
        raise Wrong("out: memory outside of it was written")
    for name, placed in call.placed.items():
        if out is not None and out.buffer.data_ptr() == placed.buffer.data_ptr():
            continue
        if placed.changed():
            raise Wrong(f"{name}: an input was written")
    result = actual.clone()
    if out is None or not _ordered_by_memory(call):
        _equal(call, "a copy of the inputs", result, expected)
        for name in memory:
            _equal(call, f"state {name}", state[name], memory[name])
    if out is None:
        _alone(call, result)
        _layout(call, result)
    return _values(call, kept, result)


def _equal(call: Call, what: str, one: Tensor, other: Tensor) -> None:
    if call.rule.lerp is not None:
        # At weight 1 torch.lerp gives -0.0 or 0.0 for -0.0: the loop decides, and so the place in memory.
        one, other = one + 0.0, other + 0.0
    if not torch.equal(*(bits(torch.where(t.isnan(), 0.0, t)) for t in (one, other))) or not torch.equal(
        one.isnan(), other.isnan()
    ):
        rows = (one != other).flatten(1).any(1).nonzero().flatten().tolist()
        worst = float((one.double() - other.double()).nan_to_num().abs().max())
        raise Wrong(f"bits: not those of {what}: samples {rows}, difference up to {worst:.3g}")


def _alone(call: Call, result: Tensor) -> None:
    """A sample alone has the bits that it has in the batch, whatever its batch mates hold."""
    batch = call.case.shape[0]
    if batch < 2 or not result.numel():
        return
    for b in {call.case.seed % batch, (call.case.seed // 7) % batch}:
        alone, _ = call.run(slice(b, b + 1))
        _equal(call, f"sample {b} alone", result[b : b + 1], alone)
    if call.case.bad != "none":
        b = (bad_sample(call.case) + 1) % batch
        if not result[b].isfinite().all() and not any(
            kind in ("large", "subnormal") for kind in call.case.kinds.values()
        ):
            clean = [bool(p.tensor[b].isfinite().all()) for p in call.placed.values()]
            if all(clean) and call.case.dtype in ("float32", "float64"):
                raise Wrong(f"sample {b} is not finite beside a sample that is not")


def _ordered_by_memory(call: Call) -> bool:
    """Whether sums run in an order of the memory's: where all tensors lie in one dense order (``channels_last``)."""
    strides = {t.stride()[1:] for t in call.predictions.values()}
    dense = all(t.is_contiguous() for t in call.predictions.values())
    return call.rule.program.reduces and not dense and (len(strides) == 1 or call.rule.lowered.dims is not None)


def _layout(call: Call, result: Tensor) -> None:
    """The bits do not depend on strides, but for the order of sums."""
    if call.rule.prepares or _ordered_by_memory(call):
        return
    dense, _ = call.run(change=lambda t: t.resolve_neg().clone(memory_format=torch.contiguous_format))
    _equal(call, "contiguous copies", result, dense)


def _values(call: Call, kept: Mapping[str, Tensor], result: Tensor) -> Checked:
    case = call.case
    if not result.numel() or case.bad != "none" or case.numerics != "fp32":
        return Checked()
    # Contiguous, for NumPy adds one after the other where the batch lies innermost.
    exact = {n: np.ascontiguousarray(t.double().numpy()) for n, t in kept.items()}
    expected = expected_of(call, exact)
    bound = bound_of(call, kept, expected)
    if bound is None or not np.isfinite(expected).all():
        return Checked()
    got = result.double().numpy()
    truncates = case.backend == "triton" and case.device == "cpu" and result.dtype == torch.bfloat16
    allowed = bound + (1.0 if truncates else 0.5) * ulp(expected, result.dtype)
    # Beyond the dtype's range infinity is right.
    held = abs(expected) + allowed < float(torch.finfo(result.dtype).max)
    if call.mask is not None:
        held &= included(call)
    # The comparison is the other way round for NaN.
    wrong = held & ~(abs(got - expected) <= allowed)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        raise Wrong(
            f"values: {got[at]!r} at {[int(i) for i in at]}, exact {expected[at]!r}, bound {allowed[at]:.3g}; "
            f"{int(wrong.sum())} of {wrong.size} are wrong"
        )
    share = float((abs(got - expected)[held] / allowed[held]).max()) if held.any() else 0.0
    return Checked(bounded=bool(held.any()), error=share)


def shrink(case: Case, still: Callable[[Case], bool], most: int = 60) -> Case:
    """A simpler case that fails too."""
    tried = 0
    progress = True
    while progress and tried < most:
        progress = False
        for simpler in case.simpler():
            tried += 1
            if tried > most:
                break
            if still(simpler):
                case, progress = simpler, True
                break
    return case
