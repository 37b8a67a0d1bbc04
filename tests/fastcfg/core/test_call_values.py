"""Values and layouts at the call: those the rule itself would take, or an error that names the argument."""

from typing import Any

import numpy as np
import pytest
import torch

from fastcfg import (
    APG,
    CFG,
    FDG,
    CFGZeroStar,
    Clamp,
    MaMBOG,
    MultiCondition,
    NormCap,
    Prediction,
    Rescale,
    Rule,
    fresca,
    guide,
)

U, C = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
GIVEN: dict[str, Any] = {"uncond": U, "cond": C}


@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        (CFG(5.0, rescale=0.5), "rescale", 2.0),
        (CFG(5.0, rescale=0.5), "rescale", -0.1),
        (Rescale(CFG(5.0)), "phi", 1.5),
        (Rescale(Rescale(CFG(5.0)), 0.5, norm="l2"), "outer_phi", 1.5),
        (NormCap(CFG(5.0)), "cap", -1.0),
        (NormCap(CFG(5.0)), "eps", -1e9),
        (Clamp(CFG(5.0)), "k", 0.0),
        (APG(5.0), "norm_threshold", -1.0),
        (APG(5.0, momentum=-0.5), "norm_threshold", -1.0),
        (MaMBOG(5.0), "alpha", -1.0),
        (CFGZeroStar(5.0, 0), "eps", -1e9),
        (FDG((2.0, 3.0), rescale=0.5), "rescale", 2.0),
    ],
)
def test_a_call_takes_what_the_rule_takes(rule: Rule, name: str, value: float) -> None:
    for given in (value, [value] * 3, np.float32(value)):
        with pytest.raises(ValueError, match=f"{name}: expected a (share|number)"):
            guide(rule, params={name: given}, **GIVEN)
    with pytest.raises(ValueError, match=f"{name}: expected a (share|number)"):
        guide(rule, params={name: torch.tensor([value] * 3)}, check=True, **GIVEN)


@pytest.mark.parametrize("value", [10**400, [10**400] * 3, float("nan")])
def test_a_number_beyond_a_float_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"rescale(\[0\])?: expected a finite number"):
        guide(CFG(5.0, rescale=0.5), params={"rescale": value}, **GIVEN)


def test_a_number_that_float32_does_not_hold() -> None:
    with pytest.raises(ValueError, match=r"scale: expected a number that torch.float32 holds, got 1e\+308"):
        guide(CFG(5.0, rescale=0.5), params={"scale": 1e308}, backend="torch", **GIVEN)


def test_values_per_sample_in_any_form() -> None:
    expected = guide(CFG(1.0), params={"scale": torch.tensor([1.0, 2.0, 3.0])}, **GIVEN)
    for value in ([1.0, 2, np.float32(3.0)], (1.0, 2.0, 3.0), torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)):
        assert torch.equal(guide(CFG(1.0), params={"scale": value}, **GIVEN), expected)
    with pytest.raises(ValueError, match="scale: expected a number for each of 3 samples, got 2"):
        guide(CFG(1.0), params={"scale": [1.0, 2.0]}, **GIVEN)
    with pytest.raises(TypeError, match=r"scale\[1\]: expected a number, got str"):
        guide(CFG(1.0), params={"scale": [1.0, "2", 3.0]}, **GIVEN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 5.0}, r"unknown \['scale'\]; did you mean params=\{'scale': ...\}\?"),
        ({"conditional": C}, r"unknown \['conditional'\]"),
        ({"params": {"scael": 5.0}}, "has no parameter 'scael'.*did you mean scale for scael"),
        ({"order": ("cond", "uncond")}, "order: names the blocks of one tensor"),
        ({"x": U}, "x, prediction: CFG works on what the model predicts and reads neither"),
        ({"prediction": Prediction("eps", 0.6, 0.8)}, "x, prediction: CFG works on what the model predicts"),
        ({"mask": "x"}, "mask: expected a tensor, got str"),
        ({"mask": torch.ones(3, 5, 1, 1)}, "mask: expected a shape that broadcasts"),
        ({"grid": (8, 8)}, "grid: CFG works on elements by themselves"),
        ({"out": torch.empty(2000).as_strided((3, 4, 8, 8), (200, 40, 4, 1))}, "out: expected memory for each element"),
        ({"numerics": "eager", "out": torch.empty(2, 4, 8, 8)}, "out: expected the shape of uncond"),
        ({"numerics": "eager", "out": torch.empty(3, 4, 8, 8, dtype=torch.float64)}, "out: expected the dtype of"),
    ],
)
def test_ignored_or_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        guide(CFG(5.0), **GIVEN, **arguments)


@pytest.mark.parametrize("cond", [C[:2], C.double(), C[:, :2], C.int()])
def test_eager_numerics_check_tensors_as_fp32_does(cond: torch.Tensor) -> None:
    for numerics in ("eager", "fp32"):
        with pytest.raises((TypeError, ValueError), match=r"cond: expected the (shape|dtype) of uncond"):
            guide(CFG(5.0), numerics=numerics, uncond=U, cond=cond)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["cpp", "torch", "triton"])
@pytest.mark.parametrize("name", ["scale_map", "mask"])
@pytest.mark.parametrize("shift", [0, 1, 16])
def test_a_result_over_a_map_or_mask(name: str, backend: str, shift: int) -> None:
    values = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    memory = torch.zeros(values.numel() + 16)
    given = memory[: values.numel()].view(values.shape).copy_(values)
    out = memory[shift : shift + values.numel()].view(values.shape)
    expected = guide(CFG(5.0, rescale=0.5), backend=backend, **GIVEN, **{name: values})  # type: ignore[arg-type]
    got = guide(CFG(5.0, rescale=0.5), backend=backend, out=out, **GIVEN, **{name: given})  # type: ignore[arg-type]
    assert got is out and torch.equal(got, expected)


@pytest.mark.parametrize(
    "rule", [CFG(5.0), CFG(5.0, rescale=0.5), APG(5.0), FDG((2.0, 3.0))], ids=lambda r: type(r).__name__
)
def test_one_sample_without_a_batch(rule: Rule) -> None:
    expected = guide(rule, uncond=U[:1], cond=C[:1])[0]
    got = guide(rule, uncond=U[0], cond=C[0], batched=False)
    assert got.shape == (4, 8, 8) and torch.equal(got, expected)
    out = torch.empty(4, 8, 8)
    assert guide(rule, uncond=U[0], cond=C[0], batched=False, out=out) is out and torch.equal(out, expected)
    with pytest.raises(ValueError, match="batched: False is for predictions by name"):
        guide(CFG(5.0), torch.cat([U, C]), batched=False)


@pytest.mark.parametrize("patch", [1, 2])
def test_tokens_are_the_picture_that_the_grid_says(patch: int) -> None:
    def tokens(t: torch.Tensor) -> torch.Tensor:  # Flux's packing, written apart.
        b, _, h, w = t.shape
        found = [
            t[:, :, i : i + patch, j : j + patch].reshape(b, -1) for i in range(0, h, patch) for j in range(0, w, patch)
        ]
        return torch.stack(found, 1)

    u, c = U[..., :6], C[..., :6]  # 8 x 6: the two sides differ.
    packed = {"uncond": tokens(u), "cond": tokens(c)}
    for rule in (FDG((2.0, 3.0)), FDG((2.0, 3.0), parallel_weights=0.5, rescale=0.5)):
        got = guide(rule, grid=(8, 6), **packed)
        assert torch.equal(got, tokens(guide(rule, uncond=u, cond=c)))
        with pytest.raises(ValueError, match=r"tokens \[B, N, C\] need their picture's grid=\(H, W\)"):
            guide(rule, **packed)
    smooth = fresca(**packed, scale=3.0, grid=(8, 6), cutoff=2)
    assert torch.equal(smooth, tokens(fresca(uncond=u, cond=c, scale=3.0, cutoff=2)))
    with pytest.raises(ValueError, match=r"tokens \[B, N, C\] need their picture's grid=\(H, W\)"):
        fresca(**packed, scale=3.0)
    for grid, error in (((8, 7), ValueError), ((8.0, 6), TypeError), (48, TypeError), ((4, 6), ValueError)):
        with pytest.raises(error, match="grid: "):
            guide(FDG((2.0, 3.0)), grid=grid, **packed)  # type: ignore[arg-type]


def test_scales_of_several_conditions_have_their_names() -> None:
    with pytest.raises(ValueError, match="did you mean scale_1 for scale1"):
        guide(MultiCondition((1.0, 2.0)), params={"scale1": 2.0}, uncond=U, cond_1=C, cond_2=U)


def test_apg_is_not_plain_cfg() -> None:
    assert not torch.allclose(guide(APG(7.5), **GIVEN), guide(CFG(7.5), **GIVEN))
    off = APG(7.5, eta=1.0, norm_threshold=0.0)
    torch.testing.assert_close(guide(off, **GIVEN), guide(CFG(7.5), **GIVEN))
