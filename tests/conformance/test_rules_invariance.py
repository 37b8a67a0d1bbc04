"""A sample's bits depend on nothing but the sample: not its batch mates, not the launch strategy."""

import pytest
import torch

from conformance.cases import BY_NAME, CASES, Case, draw, run

# Odd and even sizes, one tile, several, the small path's limit and beyond it.
SHAPES = [(8, 5, 7), (8, 4, 64, 64), (8, 20_000), (8, 33_001)]
TRITON = [BY_NAME[name] for name in ("CFG", "CFG(rescale)", "CFG+rescale_l2", "DualCFG+clamp", "PerpNeg_1", "Linear")]
ROW = [case for case in TRITON if case.rule.program.reduces]


def check(case: Case, path: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    predictions = draw(case, shape, dtype)
    whole = run(case.rule, predictions, path)
    for b in (0, 3, 7):
        alone = run(case.rule, {name: p[b : b + 1].clone() for name, p in predictions.items()}, path)
        assert torch.equal(alone, whole[b : b + 1]), f"sample {b}"
    pair = run(case.rule, {name: p[3:5] for name, p in predictions.items()}, path)
    assert torch.equal(pair, whole[3:5]), "samples 3 and 4"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_is_batch_invariant(case: Case, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(case, "torch", shape, dtype)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("name", ["CFG", "CFG_cond", "NegativePrompt", "DualCFG", "PerpNeg_1", "CFG(rescale)"])
def test_the_default_path_is_batch_invariant_per_sample_scales_too(name: str, shape: tuple[int, ...]) -> None:
    case = BY_NAME[name]
    check(case, "auto", shape, torch.float32)
    check(case, "auto", shape, torch.float16)
    predictions = draw(case, shape, torch.float32)
    scales = torch.linspace(1.25, 9.0, 8)
    whole = run(case.rule, predictions, "auto", params={"scale": scales})
    for b in range(8):
        one = {n: p[b : b + 1].clone() for n, p in predictions.items()}
        assert torch.equal(run(case.rule, one, "auto", params={"scale": scales[b : b + 1]}), whole[b : b + 1])


@pytest.mark.parametrize("path", ["row", "two_launch"])
@pytest.mark.parametrize("shape", [(8, 5, 7), (8, 1, 71, 71)], ids=str)
@pytest.mark.parametrize("case", TRITON, ids=str)
def test_triton_is_batch_invariant(case: Case, shape: tuple[int, ...], path: str) -> None:
    if path == "row" and case not in ROW:
        pytest.skip("a rule without sums has one launch")
    check(case, path, shape, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("size", [1, 35, 4096, 4097, 8192])
@pytest.mark.parametrize("case", ROW, ids=str)
def test_row_and_two_launch_give_the_same_bits(case: Case, size: int, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and (size > 4096 or len(case.conditions) > 2):
        size = min(size, 4096)
    predictions = draw(case, (2, size), dtype)
    row, two = (run(case.rule, predictions, path) for path in ("row", "two_launch"))
    assert torch.equal(row, two) and row.isfinite().all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_torch_is_invariant_under_threads(count: int) -> None:
    case = BY_NAME["PerpNeg_2+rescale_std"]
    predictions = draw(case, (3, 40_000), torch.float32)
    expected = run(case.rule, predictions, "torch")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        assert torch.equal(run(case.rule, predictions, "torch"), expected)
    finally:
        torch.set_num_threads(before)
