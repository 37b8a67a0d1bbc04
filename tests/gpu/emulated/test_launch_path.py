"""Our own launch path, from ``guide`` on, with the compiled kernels at its end: values, bits, layouts, counters."""

from collections.abc import Iterator

import pytest
import torch
from fastcfg_kernels import guide_outputs
from fastcfg_kernels.backends.triton.gates import PARAMS, programs
from fastcfg_kernels.formula.program import Program
from gpu import harness
from gpu.softgpu.driver import Device
from torch import Tensor

STRATEGIES = ("row", "two_launch", "cooperative")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def device() -> Iterator[Device]:
    assert harness.DEVICE is not None
    before = dict(vars(harness.DEVICE))
    yield harness.DEVICE
    vars(harness.DEVICE).update(before)


def draw(
    program: Program, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    names = (*program.predictions, *program.extras)
    tensors = [torch.randn(shape, generator=generator) for _ in names]
    size = len(program.predictions)
    return [t.to(dtype) for t in tensors[:size]], tensors[size:]


def guided(program: Program, given: list[Tensor], extras: list[Tensor], strategy: str | None) -> list[Tensor]:
    params = {name: PARAMS[name] for name in program.params}
    return guide_outputs(given, program, params, extras=extras, backend="triton", strategy=strategy)


def exact(program: Program, given: list[Tensor], extras: list[Tensor]) -> list[Tensor]:
    params = {name: PARAMS[name] for name in program.params}
    double = [[t.double() for t in tensors] for tensors in (given, extras)]
    return guide_outputs(double[0], program, params, extras=double[1], backend="torch")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("count", [8_192, 12_345])
@pytest.mark.parametrize("name", ["rescale", "perpendicular", "projected"])
def test_strategies_give_the_same_bits_near_float64(name: str, count: int, dtype: torch.dtype, device: Device) -> None:
    program = programs()[name]
    given, extras = draw(program, (2, count), dtype)
    kept = [t.clone() for t in (*given, *extras)]
    results = []
    for strategy in STRATEGIES:
        if strategy == "row" and count > 8_192:
            continue
        results.append(guided(program, given, extras, strategy))
        for found, expected in zip(results[-1], exact(program, given, extras), strict=True):
            bound = (torch.finfo(found.dtype).eps + 64 * torch.finfo(torch.float32).eps) * expected.abs().max()
            assert (found.double() - expected).abs().max() <= bound
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert all(torch.equal(t, k) for t, k in zip((*given, *extras), kept, strict=True)), "an input was written"
