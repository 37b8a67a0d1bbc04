"""Tensors as they lie in memory: sliced, strided, expanded, misaligned, in place, far apart.

The software GPU lets a kernel touch an argument's own elements alone, so that a slice is read as a slice.
"""

import mmap
from collections.abc import Callable

import pytest
import torch
from fastcfg_kernels import guide_checked
from fastcfg_kernels.backends.triton.gates import programs
from gpu.emulated.devices import STRATEGIES, parameters, whole
from torch import Tensor

Layout = Callable[[Tensor], Tensor]
SHAPE = (2, 3, 41, 41)
"""5,043 elements: one whole tile and a part of one, in rows of odd length."""
PROGRAM = programs()["rescale"]


def last_slice(x: Tensor) -> Tensor:
    return torch.cat([x, x], -1)[..., 3 : 3 + x.shape[-1]].copy_(x)


def every_other(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 1]


def batch_of_both(x: Tensor) -> Tensor:
    """The second half of a batch, as a sampler's one tensor of all predictions has it."""
    return torch.cat([x, x])[x.shape[0] :]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def batch_last(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


LAYOUTS: dict[str, Layout] = {
    f.__name__: f for f in (last_slice, every_other, batch_of_both, channels_last, batch_last)
}
SAME_ORDER = ("last_slice", "every_other", "batch_of_both")


def draw(dtype: torch.dtype, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    return list(torch.randn(2, *shape, generator=torch.Generator().manual_seed(3)).to(dtype))


def guided(tensors: list[Tensor], strategy: str, out: Tensor | None = None) -> Tensor:
    values = list(parameters(PROGRAM).values())
    return guide_checked(tensors, PROGRAM, values, backend="triton", strategy=strategy, out=out)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, whole(torch.float32)], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    "name", ["last_slice", whole("channels_last"), whole("every_other"), whole("batch_of_both"), whole("batch_last")]
)
def test_a_view_is_guided_where_it_lies(name: str, dtype: torch.dtype) -> None:
    tensors = draw(dtype)
    layout = LAYOUTS[name]
    expected = guided(tensors, "two_launch")
    for strategy in STRATEGIES if dtype == torch.bfloat16 else ("cooperative",):
        out = layout(torch.zeros(SHAPE, dtype=dtype))
        assert guided([layout(t) for t in tensors], strategy, out) is out
        if name in SAME_ORDER:
            assert torch.equal(out, expected), strategy
        else:  # Elements in another order are added in another: roundings of float32 sums.
            bound = torch.finfo(dtype).eps * expected.abs().max() + 64 * 2.0**-24 * 20
            assert (out.double() - expected.double()).abs().max() <= bound


@pytest.mark.parametrize("strategy", ["row", "cooperative", whole("two_launch")])
def test_an_output_may_be_an_input(strategy: str) -> None:
    tensors = draw(torch.float32)
    expected = guided(tensors, "two_launch")
    for k in (0, 1):
        given = [t.clone() for t in tensors]
        assert torch.equal(guided(given, strategy, out=given[k]), expected)
    both = torch.stack(tensors)
    assert torch.equal(guided([both[0], both[1]], strategy, out=both[1]), expected)


@pytest.mark.parametrize("count", [3, 100, whole(7), whole(64)])
def test_small_samples_in_place(count: int) -> None:
    """Where there are fewer elements than threads, several threads hold the same one, and one of them writes it.

    A single element has no sum, so that its threads never meet: those whose result nobody takes may read it late.
    """
    tensors = draw(torch.float32, (5, count))
    expected = guided(tensors, "two_launch")
    for strategy in ("row", "two_launch"):
        given = [t.clone() for t in tensors]
        assert torch.equal(guided(given, strategy, out=given[1]), expected)


@pytest.mark.whole
def test_an_expanded_prediction_is_read_where_it_is() -> None:
    u, c = draw(torch.float32)
    expected = guided([u[:, :1].expand(SHAPE).clone(), c], "two_launch")
    for strategy in STRATEGIES:
        bound = 64 * 2.0**-24 * 20
        assert (guided([u[:, :1].expand(SHAPE), c], strategy) - expected).abs().max() <= bound
    assert torch.equal(guided([u[:1].expand(SHAPE), c], "row"), guided([u[:1].expand(SHAPE).clone(), c], "row"))


def test_offsets_beyond_32_bits() -> None:
    """Two samples and two predictions far apart in one memory, of which nothing else is ever touched."""
    count, step = 5_001, 2**31 + 24
    memory = mmap.mmap(-1, 2 * (2 * step + 2 * count))
    far = torch.frombuffer(memory, dtype=torch.bfloat16)
    tensors = [t.to(torch.bfloat16) for t in draw(torch.float32, (2, count))]
    views = [far.as_strided((2, count), (step, 1), start) for start in (0, count)]
    for view, tensor in zip(views, tensors, strict=True):
        view.copy_(tensor)
    expected = guided(tensors, "two_launch")
    for strategy in STRATEGIES:
        assert torch.equal(guided(views, strategy), expected)
    assert guided(views, "row", out=views[0]) is views[0] and torch.equal(views[0], expected)
