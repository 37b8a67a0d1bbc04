"""Every rule by every strategy: equal bits, and within the derived bound of its float64 oracle.

All rules at all dtypes are for ``make gpu-emulated``; ``make test`` takes some of each.
"""

import fastcfg_kernels as fk
import pytest
import torch
from conformance.cases import CASES, Case, draw, exact
from conformance.tolerances import check_error
from gpu.emulated.devices import STRATEGIES

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZE = 5_001
"""One whole tile and a part of one, and rows of which every other is not aligned."""
EVERY = 40


def pairs() -> list[object]:
    """All cases and dtypes; one in forty is not marked, each dtype among them."""
    found = []
    for i, (case, dtype) in enumerate((case, dtype) for case in CASES for dtype in DTYPES):
        some = i % EVERY == (i // EVERY) % len(DTYPES)
        found.append(pytest.param(case, dtype, id=f"{case}-{str(dtype)[6:]}", marks=[] if some else pytest.mark.whole))
    return found


@pytest.mark.parametrize(("case", "dtype"), pairs())
def test_strategies_agree_within_the_bound(case: Case, dtype: torch.dtype) -> None:
    predictions = draw(case, (2, SIZE), dtype)
    kept = {name: p.clone() for name, p in predictions.items()}
    lowered = case.rule.lowered
    inputs = [predictions[name] for name in lowered.predictions]
    results = {}
    for strategy in STRATEGIES if lowered.program.reduces else ("two_launch",):
        try:
            results[strategy] = fk.guide(inputs, lowered.program, lowered.params, backend="triton", strategy=strategy)
        except ValueError as error:
            assert str(error).startswith("strategy: "), "only for a size that the strategy does not take"
    assert "two_launch" in results and (len(results) > 1 or not lowered.program.reduces)
    for actual in results.values():
        assert torch.equal(actual, results["two_launch"]) and actual.dtype == dtype
        check_error(case, actual, exact(predictions))
    assert all(torch.equal(p, kept[name]) for name, p in predictions.items()), "an input was written"
