"""Sums over tokens, channels and frames: which element belongs to which group."""

import pytest
import torch
from fastcfg_kernels.groups import Groups

from fastcfg import APG, CFG, NormCap, guide

SHAPES = [((2, 7, 5), (-1,)),
          ((2, 7, 5), (1,)), ((3, 4, 5, 6), (1,)), ((3, 4, 5, 6), (2, 3)), ((2, 3, 4, 5, 6), (1, 3)),
          ((2, 3, 4, 5, 6), (-1, -2, 1, 2)), ((4, 9), (1,))]  # fmt: skip


@pytest.mark.parametrize(("shape", "dims"), SHAPES, ids=str)
def test_rows_are_groups_and_back_is_the_inverse(shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    x = torch.arange(torch.tensor(shape).prod().item(), dtype=torch.float64).view(shape)
    groups = Groups(x.shape, dims)
    rows = groups.rows(x)
    over = sorted(d % len(shape) for d in dims)
    assert rows.shape[1] == torch.tensor([shape[d] for d in over]).prod()
    assert torch.equal(rows.sum(1), x.sum(over).flatten()), "another element is in the group"
    assert torch.equal(groups.back(rows), x)
    # Strides do not matter.
    order = [0, *reversed(range(1, len(shape)))]
    assert torch.equal(groups.rows(x.permute(order).contiguous().permute(order)), rows)


@pytest.mark.parametrize(("shape", "dims"), SHAPES, ids=str)
def test_a_value_per_sample_is_one_per_group(shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    groups = Groups(torch.Size(shape), dims)
    value = torch.arange(shape[0], dtype=torch.float32)
    sample = value.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    assert torch.equal(groups.values(value), groups.rows(sample)[:, 0])
    assert groups.values(2.5) == 2.5 and groups.values(torch.tensor(2.5)).dim() == 0


@pytest.mark.parametrize("dims", [(0,), (1, 1), (1, -2), (3,), (-4,), (1, 0)], ids=str)
def test_dims_that_do_not_fit_are_named(dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"dims: expected distinct dimensions 1 \.\.\. 2"):
        Groups(torch.Size((2, 3, 4)), dims)


@pytest.mark.parametrize("dims", [0, (0,), (), (1.0,), (True,), "1"], ids=str)
def test_dims_that_no_shape_fits_are_refused_by_the_rule(dims: object) -> None:
    with pytest.raises(ValueError, match="dims"):
        APG(3.0, dims=dims)
    assert APG(3.0, dims=-1) == APG(3.0, dims=(-1,)) and hash(APG(3.0, dims=[1, 2])) == hash(APG(3.0, dims=(1, 2)))


def test_negative_and_positive_dims_are_the_same() -> None:
    u, c = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    for a, b in (((-1,), (2,)), ((1, 2), (-1, -2)), ((2, 1), None)):
        x, y = (guide(APG(3.0, 0.0, 1.0, dims=d), uncond=u, cond=c, backend="torch") for d in (a, b))
        torch.testing.assert_close(x, y, rtol=0, atol=2.0**-20)


@pytest.mark.parametrize("over", ["token", "channel"])
def test_each_group_is_capped_by_itself(over: str) -> None:
    x = torch.randn(2, 2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, c = x.unbind(0)
    got = guide(NormCap(CFG(4.0), over=over, mode="full"), uncond=u, cond=c)
    for b in range(2):
        for i in range(6 if over == "token" else 5):
            one = (b, i) if over == "token" else (b, slice(None), i)
            y = u[one] + 4.0 * (c[one] - u[one])
            torch.testing.assert_close(got[one], y * c[one].norm() / y.norm(), rtol=1e-13, atol=1e-15)


def test_layouts_and_out() -> None:
    x = torch.randn(2, 2, 6, 4, 3, generator=torch.Generator().manual_seed(0))
    u, c = x.unbind(0)
    rule = NormCap(CFG(4.0), over="channel")
    expected = guide(rule, uncond=u, cond=c)
    last = {"uncond": u.to(memory_format=torch.channels_last), "cond": c.to(memory_format=torch.channels_last)}
    assert torch.equal(guide(rule, **last), expected)
    out = torch.full_like(u, torch.nan)
    assert guide(rule, uncond=u, cond=c, out=out) is out and torch.equal(out, expected)
    copy = c.clone()
    guide(rule, uncond=u, cond=copy, out=copy)
    assert torch.equal(copy, expected)
    batch = torch.cat([u, c])
    assert torch.equal(guide(rule, batch), expected)
