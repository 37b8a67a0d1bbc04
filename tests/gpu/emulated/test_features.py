"""What a program may have beside a formula: scale maps, masks, stats, steps, spaces, groups, values per sample."""

from typing import Any

import pytest
import torch
from fastcfg_kernels import Stage, compile_program, guide_checked
from fastcfg_kernels.backends.triton import gates
from fastcfg_kernels.formula.program import Program
from gpu.emulated.devices import STRATEGIES, draw, parameters, whole

SHAPE = (2, 3, 41, 41)
"""5,043 elements: one whole tile and a part of one."""
ROUNDINGS = 256 * 2.0**-24
"""Roundings of float32 sums, as the weights carry them."""


def rescaled(**options: bool) -> Program:
    stages = (Stage(gates._cfg), Stage(gates._rescale, "factor"))
    return compile_program(("uncond", "cond"), stages, **options)


def check(program: Program, dtype: torch.dtype, shape: tuple[int, ...] = SHAPE, **options: Any) -> None:
    """All strategies give the same bits, near float64 on torch operations; stats too."""
    predictions, extras = draw(program, shape, dtype)
    values = options.pop("values", None) or list(parameters(program).values())
    groups = options.pop("groups", shape[0])

    def run(backend: str, wide: bool, strategy: str | None = None) -> list[torch.Tensor]:
        given, more = ([t.double() if wide else t for t in ts] for ts in (predictions, extras))
        told = (
            torch.empty(groups, len(program.stats), dtype=torch.float64 if wide else torch.float32)
            if program.stats
            else None
        )
        found = guide_checked(
            given, program, values, extras=more, backend=backend, strategy=strategy, stats=told, **options
        )  # fmt: skip
        return [*found, told] if told is not None else found

    exact = run("torch", True)
    results = [run("triton", False, s) for s in STRATEGIES if program.reduces or s == "two_launch"]
    for found in results:
        for actual, expected, first in zip(found, exact, results[0], strict=True):
            assert torch.equal(actual, first)
            size = float(expected.abs().max())
            rounding = torch.finfo(actual.dtype).eps if actual.dtype != torch.float64 else 0.0
            assert (actual.double() - expected).abs().max() <= (rounding + ROUNDINGS) * size


@pytest.mark.parametrize("dtype", [torch.float32, whole(torch.bfloat16)], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", ["step", whole("projected"), whole("stats")])
def test_programs_with_more(name: str, dtype: torch.dtype) -> None:
    check(gates.programs()[name], dtype)


@pytest.mark.parametrize("size", [(2, 1, 41, 1), whole((1, 1, 41, 41)), whole((1, 1, 1, 41))], ids=str)
def test_a_scale_map(size: tuple[int, ...]) -> None:
    factor = torch.rand(size, generator=torch.Generator().manual_seed(1)) * 2
    check(rescaled(scaled=True), torch.float32, scale_map=factor)


@pytest.mark.parametrize("kind", [torch.bool, whole(torch.uint8), whole(torch.float32)], ids=lambda d: str(d)[6:])
def test_a_mask(kind: torch.dtype) -> None:
    """The first tile is left out whole: a tile without elements has no mean."""
    mask = torch.rand(2, 1, 41, 41, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[0, 0] = False
    check(rescaled(masked=True), torch.float32, mask=mask.expand(SHAPE).contiguous().to(kind))
    check(rescaled(masked=True), torch.bfloat16, mask=mask.to(kind))


@pytest.mark.whole
def test_a_mask_that_leaves_nothing() -> None:
    program = rescaled(masked=True)
    predictions, _ = draw(program, SHAPE)
    values = list(parameters(program).values())
    for strategy in STRATEGIES:
        [found] = guide_checked(
            predictions, program, values, mask=torch.zeros(SHAPE, dtype=torch.bool), backend="triton", strategy=strategy
        )
        assert found.isfinite().all()


@pytest.mark.parametrize("dims", [(1,), whole((2, 3)), whole((1, 2, 3)), whole((-1,)), whole(())], ids=str)
def test_groups_of_other_dimensions(dims: tuple[int, ...]) -> None:
    program = gates.programs()["rescale"]
    predictions, _ = draw(program, (2, 4, 9, 11))
    values = list(parameters(program).values())
    exact = guide_checked([p.double() for p in predictions], program, values, dims=dims, backend="torch")[0]
    results = [
        guide_checked(predictions, program, values, dims=dims, backend="triton", strategy=strategy)[0]
        for strategy in ("row", "two_launch")
    ]
    assert torch.equal(*results)
    assert (results[0] - exact).abs().max() <= ROUNDINGS * exact.abs().max()


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, whole(torch.float32), whole(torch.float64)], ids=lambda d: str(d)[6:]
)
def test_a_value_for_each_sample(dtype: torch.dtype) -> None:
    scales = torch.tensor([1.5, 7.0]).to(dtype)
    check(gates.programs()["rescale"], torch.float32, values=[scales, torch.tensor(0.75)])
