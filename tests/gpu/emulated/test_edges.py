"""Sizes and dtypes at the edge: groups of one element, float64."""

import pytest
import torch
from fastcfg_kernels import guide_outputs
from fastcfg_kernels.backends.triton.gates import PARAMS, programs
from gpu.emulated.devices import whole


@pytest.mark.parametrize("dtype", [torch.float32, whole(torch.float64)], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("groups", [1, whole(3)])
@pytest.mark.parametrize("name", ["projected", whole("cfg"), whole("clamp")])
def test_groups_of_one_element(name: str, groups: int, dtype: torch.dtype) -> None:
    """An argument that equals 1 is no tensor inside a compiled kernel."""
    program = programs()[name]
    size = len(program.predictions)
    tensors = torch.randn(size + len(program.extras), groups, 1, generator=torch.Generator().manual_seed(groups))
    predictions = list(tensors[:size].to(dtype))
    extras = list(tensors[size:].to(torch.float64 if dtype == torch.float64 else torch.float32))
    params = {name: PARAMS.get(name, 0.5) for name in program.params}
    exact = guide_outputs(
        [p.double() for p in predictions], program, params, extras=[e.double() for e in extras], backend="torch"
    )
    results = [
        guide_outputs(predictions, program, params, extras=extras, backend="triton", strategy=strategy)
        for strategy in (("row", "two_launch") if program.reduces else ("two_launch",))
    ]
    for found in results:
        for actual, expected, first in zip(found, exact, results[0], strict=True):
            assert torch.equal(actual, first)
            bound = 16 * torch.finfo(actual.dtype).eps * max(float(t.abs().max()) for t in tensors) * 8
            assert (actual.double() - expected).abs().max() <= bound


@pytest.mark.parametrize("strategy", ["row", whole("two_launch"), whole("cooperative")])
def test_float64_keeps_its_digits_with_numbers_as_parameters(strategy: str) -> None:
    """Triton makes a float32 of a Python number, whose 24 bits then are all that a weight has."""
    program = programs()["rescale"]
    predictions = list(torch.randn(2, 2, 9_000 if strategy == "cooperative" else 4_096, dtype=torch.float64))
    numbers = {"scale": 4.1, "strength": 0.7}
    exact = guide_outputs(predictions, program, numbers, backend="torch")[0]
    found = guide_outputs(predictions, program, numbers, backend="triton", strategy=strategy)[0]
    assert (found - exact).abs().max() <= 64 * torch.finfo(torch.float64).eps * exact.abs().max()
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    given = guide_outputs(predictions, program, tensors, backend="triton", strategy=strategy)[0]
    assert torch.equal(given, found)
