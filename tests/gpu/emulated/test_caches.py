"""What one process's caches keep apart: dtypes, sizes and alignments of one call after another."""

import pytest
import torch
from fastcfg_kernels import guide_outputs
from fastcfg_kernels.backends.triton.gates import programs
from gpu.emulated.devices import whole
from torch import Tensor

PROGRAM = programs()["rescale"]


def guided(u: Tensor, c: Tensor, scale: object, strength: object, strategy: str | None = None) -> Tensor:
    params = {"scale": scale, "strength": strength}
    return guide_outputs([u, c], PROGRAM, params, backend="triton", strategy=strategy)[0]


@pytest.mark.parametrize("strategy", ["row", whole("two_launch")])
def test_a_parameter_of_another_dtype_is_read_as_what_it_is(strategy: str) -> None:
    u, c = torch.randn(2, 3, 100).unbind(0)
    scales = torch.tensor([1.5, 4.0, -2.0])
    expected = guided(u, c, scales, 0.5, strategy)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        assert torch.equal(guided(u, c, scales.to(dtype), 0.5, strategy), expected), dtype
    for dtype in (torch.float64, torch.bfloat16):
        one = guided(u, c, scales[1].to(dtype), 0.5, strategy)
        assert torch.equal(one[1], expected[1]), dtype


def test_numbers_tensors_and_both_mixed() -> None:
    u, c = torch.randn(2, 2, 100).unbind(0)
    expected = guided(u, c, 4.0, 0.5)
    for scale in (torch.tensor(4.0), torch.full((2,), 4.0), torch.full((1,), 4.0).expand(2), 4.0):
        for strength in (0.5, torch.tensor(0.5)):
            assert torch.equal(guided(u, c, scale, strength), expected)


@pytest.mark.parametrize(("strategy", "count"), [("row", 512), whole("two_launch", 512), whole("cooperative", 20_480)])
def test_alignment_and_size_change_from_call_to_call(strategy: str, count: int) -> None:
    """A kernel compiled for aligned pointers would read beside them, and one for another size beyond the tensor."""
    wide = torch.randn(2, 2, count + 16)
    for start, more in ((0, 0), (1, 0), (0, 8), (3, 8), (0, 0), (4, 1), (1, 0)):
        u, c = (wide[k, :, start : start + count + more] for k in (0, 1))
        assert torch.equal(guided(u, c, 4.0, 0.5, strategy), guided(u.clone(), c.clone(), 4.0, 0.5, strategy))


def test_a_parameter_may_lie_anywhere() -> None:
    u, c = torch.randn(2, 3, 64).unbind(0)
    scales = torch.tensor([0.0, 1.5, 4.0, -2.0, 3.0, 0.5, 7.0])
    for start in (0, 1, 2, 4, 0):
        part = scales[start : start + 3]
        assert torch.equal(guided(u, c, part, 0.5), guided(u, c, part.clone(), 0.5))
    assert torch.equal(guided(u, c, scales[::2][:3], 0.5), guided(u, c, scales[::2][:3].clone(), 0.5))
