"""Groups and their elements where they lie: strides in the place of copies, on the Triton kernels."""

from unittest import mock

import pytest
import torch
from fastcfg_kernels import guide_checked
from fastcfg_kernels.backends.triton.gates import PARAMS, programs
from fastcfg_kernels.backends.triton.launch import Launch, prepare
from fastcfg_kernels.backends.triton.layout import group_layout
from fastcfg_kernels.groups import Groups

DIMS = {
    "sample": None,
    "whole tensor": (),
    "frame": (1, 3, 4),
    "token": (-1,),
    "channels": (1,),
    "pixels": (3, 4),
}
SHAPE = (2, 4, 3, 6, 5)
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "channel slice": lambda x: torch.cat([x, x], 1)[:, 2:6].copy_(x),
    "last slice": lambda x: torch.cat([x, x], -1)[..., 3:8].copy_(x),
    "crop": lambda x: torch.nn.functional.pad(x, (1, 2, 3, 1))[..., 3:9, 1:6],
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "flipped order": lambda x: x.permute(0, 4, 3, 2, 1).contiguous().permute(0, 4, 3, 2, 1),
}


def draw(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator).to(dtype) + 3 for _ in range(2)]


def guided(tensors: list[torch.Tensor], dims: tuple[int, ...] | None, backend: str, **options: object) -> torch.Tensor:
    program = programs()["rescale"]
    values = [PARAMS[name] for name in program.params]
    return guide_checked(tensors, program, values, dims=dims, backend=backend, **options)[0]


@pytest.mark.parametrize("dims", DIMS.values(), ids=DIMS.keys())
def test_groups_are_those_of_the_torch_path(dims: tuple[int, ...] | None) -> None:
    exact = guided([t.double() for t in draw()], dims, "torch")
    # Weights of a few roundings of float32 sums, on values up to about 20.
    torch.testing.assert_close(guided(draw(), dims, "triton").double(), exact, rtol=0, atol=64 * 2.0**-24 * 20)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dims", DIMS.values(), ids=DIMS.keys())
def test_no_copy_is_made_and_the_layout_changes_nothing(dims: tuple[int, ...] | None, layout: object) -> None:
    tensors = draw()
    expected = guided(tensors, dims, "triton")
    views = [layout(t) for t in tensors]
    out = layout(torch.zeros(SHAPE))
    seen: list[int] = []
    plain = Launch.__call__

    def launch(self: Launch, given: dict, alignment: tuple[int, ...]) -> None:
        seen.extend(t.data_ptr() for t in (*given["predictions"], *given["outs"]))
        plain(self, given, alignment)

    with mock.patch.object(Launch, "__call__", launch):
        guided(views, dims, "triton", out=out)
    assert set(seen) == {t.data_ptr() for t in (*views, out)}
    # Where the elements come in another order, their sums are added in another.
    torch.testing.assert_close(out, expected, rtol=0, atol=64 * 2.0**-24 * 20)
    if layout in (LAYOUTS["channel slice"], LAYOUTS["last slice"], LAYOUTS["crop"]):
        assert torch.equal(out, expected), "a slice has other bits than its copy"


def test_a_value_for_each_group_or_sample() -> None:
    tensors, program = draw(), programs()["rescale"]
    groups = Groups(torch.Size(SHAPE), DIMS["frame"])
    per_sample, per_group = torch.tensor([2.0, 5.0]), torch.linspace(1, 6, 6)
    for scale in (per_sample, per_group, torch.tensor(4.0)):
        values = [scale if name == "scale" else PARAMS[name] for name in program.params]
        got = guide_checked(tensors, program, values, dims=DIMS["frame"], backend="triton")[0]
        rows = [groups.values(v) if v is per_sample else v for v in values]
        one = guide_checked([groups.rows(t) for t in tensors], program, rows, backend="triton")[0]
        assert torch.equal(got, groups.back(one))


@pytest.mark.parametrize("strategy", ["row", "two_launch"])
def test_groups_do_not_see_each_other(strategy: str) -> None:
    tensors = draw()
    dims = DIMS["frame"]
    whole = guided(tensors, dims, "triton", strategy=strategy)
    assert torch.equal(whole, guided(tensors, dims, "triton"))
    alone = guided([t[1:, :, 2:] for t in tensors], dims, "triton", strategy=strategy)
    assert torch.equal(alone, whole[1:, :, 2:])


def test_dimensions_that_lie_like_one_are_one() -> None:
    x = torch.empty(2, 4, 6, 5)
    assert group_layout([x]).strides == ((120, 1),)
    assert group_layout([x], (1,)).outer == (30,) and group_layout([x], (1,)).strides == ((120, 1, 30),)
    assert group_layout([x.to(memory_format=torch.channels_last)]).strides == ((120, 1),)
    assert group_layout([x[:, 1:3]]).strides == ((120, 1),)
    assert group_layout([x[..., 1:]]).inner == (4,) and group_layout([x[..., 1:]]).strides == ((120, 5, 1),)
    assert group_layout([x], ()).groups == 1 and group_layout([x], ()).count == 240
    with pytest.raises(ValueError, match="dims: expected distinct"):
        group_layout([x], (0,))


@pytest.mark.parametrize("far", ["samples", "elements"])
def test_offsets_beyond_31_bits(far: str) -> None:
    """Memory that is reserved and hardly touched: strides of more than 2**31 elements."""
    step = 2**31 + 16
    strides = (step, 1) if far == "samples" else (5, step)
    tensors = [torch.empty(step + 64, dtype=torch.bfloat16).as_strided((2, 2), strides) for _ in range(2)]
    near = [torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[2.0, 1.0], [7.0, 4.0]])]
    for t, values in zip(tensors, near, strict=True):
        t.copy_(values)
    expected = guided([t.bfloat16() for t in near], None, "triton")
    for strategy in ("row", "two_launch"):
        assert torch.equal(guided(tensors, None, "triton", out=tensors[0].clone(), strategy=strategy), expected)


class Recorder:
    """A kernel as Triton's: its call gives the compiled one, whose call takes every argument in order."""

    arg_names = ("outs", "count", "TILE", "predictions")

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> object:
        def run(*args: object, **named: object) -> "Recorder":
            self.calls.append((grid, args, named))
            return self

        return run


def test_the_second_launch_calls_the_compiled_kernel() -> None:
    kernel = Recorder()
    launch = Launch(kernel, 7, {"TILE": 64, "count": 3, "other": 0}, {"num_warps": 4})
    given = {"predictions": ("p",), "outs": ("o",), "workspace": "w"}
    launch(given, (0, 0))
    named = {"TILE": 64, "count": 3, **{k: given[k] for k in ("outs", "predictions")}, "num_warps": 4}
    assert kernel.calls == [((7,), (), {**named, "enable_fp_fusion": False})]
    launch(given, (0, 0))
    assert kernel.calls[1] == ((7, 1, 1), (("o",), 3, 64, ("p",)), {})
    launch(given, (0, 8))
    assert kernel.calls[2] == kernel.calls[0], "another alignment is another kernel"


def test_launches_are_worked_out_once_for_a_signature() -> None:
    prepare.cache_clear()
    tensors = draw()
    for _ in range(3):
        guided(tensors, None, "triton")
    assert prepare.cache_info().misses == 1
    guided(tensors, None, "triton", strategy="two_launch")
    guided([t[:1] for t in tensors], None, "triton")
    assert prepare.cache_info().misses == 3
