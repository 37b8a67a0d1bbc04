"""Our own launch path, from ``guide`` on, with the compiled kernels at its end: values, and equal bits."""

import pytest
import torch
from fastcfg_kernels.backends.triton.gates import programs
from gpu.emulated.devices import STRATEGIES, draw, exact, guided, whole


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, whole(torch.float32), whole(torch.float16)], ids=lambda d: str(d)[6:]
)
@pytest.mark.parametrize("count", [8_192, whole(20_473)])
@pytest.mark.parametrize("name", ["projected", whole("rescale"), whole("perpendicular")])
def test_strategies_give_the_same_bits_near_float64(name: str, count: int, dtype: torch.dtype) -> None:
    program = programs()[name]
    given, extras = draw(program, (2, count), dtype)
    kept = [t.clone() for t in (*given, *extras)]
    results = []
    for strategy in STRATEGIES:
        # One tile is a row's, and has no other program to wait for.
        if strategy == ("cooperative" if count == 8_192 else "row"):
            continue
        results.append(guided(program, given, extras, strategy))
        for found, expected in zip(results[-1], exact(program, given, extras), strict=True):
            bound = (torch.finfo(found.dtype).eps + 64 * torch.finfo(torch.float32).eps) * expected.abs().max()
            assert (found.double() - expected).abs().max() <= bound
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert all(torch.equal(t, k) for t, k in zip((*given, *extras), kept, strict=True)), "an input was written"
