"""Thresholding, NAG, SAG's input, Mahiro and FreSca against the fp64 oracles and the peers' installed code."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_sag import pipeline_stable_diffusion_sag as sag_pipeline

from fastcfg import CFG, guide
from fastcfg.methods.attention import attention_mask, degrade, normalized_attention_guidance
from fastcfg.methods.fresca import fresca
from fastcfg.methods.mahiro import mahiro
from fastcfg.methods.thresholding import DIFFUSERS_CAP, dynamic_threshold, static_threshold

from .affine_bounds import check_within
from .cases import EPSILON
from .oracles import nonlinear
from .oracles.arrays import Array
from .oracles.rounding import error_in_ideal_units
from .peers import diffusers_schedulers

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def draw(count: int, dtype: torch.dtype, shape: tuple[int, ...] = (3, 4, 12, 10)) -> list[torch.Tensor]:
    rng = np.random.default_rng([count, *shape])
    common = rng.normal(size=shape)
    return [torch.from_numpy(common + 0.5 * rng.normal(size=shape)).to(dtype) for _ in range(count)]


def f64(x: torch.Tensor) -> Array:
    return x.double().numpy()


def unit(dtype: torch.dtype) -> float:
    return EPSILON[dtype] * (2 if dtype == torch.float64 else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cap", [None, 1.0, 1.5])
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.995, 1.0])
def test_dynamic_threshold(quantile: float, cap: float | None, dtype: torch.dtype) -> None:
    (x,) = draw(1, dtype)
    x[0] *= 0.2
    x[2] *= 4
    exact = nonlinear.dynamic_threshold(f64(x), quantile=quantile, cap=cap)
    # Two roundings of the quantile and one of the division, of what is at most 1.
    check_within(dynamic_threshold(x, quantile=quantile, cap=cap), exact, np.full(exact.shape, 6 * unit(dtype)))
    assert torch.equal(dynamic_threshold(x, quantile=quantile, cap=cap)[:1], x[:1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cap", [DIFFUSERS_CAP, 1.5, 100.0])
def test_dynamic_threshold_is_diffusers(cap: float, dtype: torch.dtype) -> None:
    (x,) = draw(1, dtype)
    x[2] *= 4
    ours = dynamic_threshold(x, quantile=0.9, cap=cap)
    peer = diffusers_schedulers.dynamic_threshold(x, quantile=0.9, cap=cap)
    # The peer takes the quantile's rank in float32: off by 2^-24 of N, times a gap between neighbours below 1.
    atol = x[0].numel() * 2.0**-24 + 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours, peer, rtol=0, atol=atol)
    if cap == DIFFUSERS_CAP:
        assert torch.equal(ours, static_threshold(x))


def test_dynamic_threshold_beyond_the_size_of_torch_quantile() -> None:
    count = 2**24 + 4096
    x = torch.linspace(-3, 3, count).view(1, -1)
    with pytest.raises(RuntimeError, match="too large"):
        diffusers_schedulers.dynamic_threshold(x.view(1, 1, -1))
    got = dynamic_threshold(x)
    assert got.abs().max() == 1
    # |x| is uniform in 0 ... 3, with neighbours 2e-7 apart.
    torch.testing.assert_close(got[0, count // 3], x[0, count // 3] / (0.995 * 3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 5.0, 20.0])
@pytest.mark.parametrize(
    ("tau", "alpha", "eps"), [(2.5, 0.25, 0.0), (1.5, 0.5, 1e-6), (1.5, 1.0, 0.0), (0.5, 1.0, 0.0)]
)
def test_nag(tau: float, alpha: float, eps: float, scale: float, dtype: torch.dtype) -> None:
    z, n = draw(2, dtype, (2, 30, 64))
    z[0, 0] = 0
    n[1, 1] = z[1, 1] = 0
    exact = nonlinear.nag(positive=f64(z), negative=f64(n), scale=scale, tau=tau, alpha=alpha, eps=eps)
    got = normalized_attention_guidance(z, n, scale=scale, tau=tau, alpha=alpha, eps=eps)
    # The norms of 64 numbers (chains of 4 at least), a division, and the sum of three terms.
    size = abs(f64(z)) + alpha * abs(scale - 1) * (abs(f64(z)) + abs(f64(n))) + alpha * abs(f64(z))
    check_within(got, exact, (64 + 16) * unit(dtype) * size)


def test_nag_takes_a_scale_for_each_sample() -> None:
    z, n = draw(2, torch.float32, (2, 30, 64))
    both = normalized_attention_guidance(z, n, scale=torch.tensor([2.0, 8.0]))
    for row, scale in enumerate((2.0, 8.0)):
        alone = normalized_attention_guidance(z[row : row + 1], n[row : row + 1], scale=scale)
        torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=1e-6)
    assert normalized_attention_guidance(z, n, alpha=0.0) is z


ALPHAS = torch.linspace(0.99, 0.01, 10, dtype=torch.float64)


def sag_peer(
    x0: torch.Tensor, attention: torch.Tensor, size: tuple[int, int], eps: torch.Tensor, t: int
) -> torch.Tensor:
    """diffusers' ``sag_masking``, run with the two things of a pipeline that it looks at."""

    def add_noise(x: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        bar = ALPHAS[timesteps].view(-1, 1, 1, 1)
        return bar.sqrt() * x + (1 - bar).sqrt() * noise

    config = SimpleNamespace(attention_head_dim=attention.shape[1])
    pipe = SimpleNamespace(unet=SimpleNamespace(config=config), scheduler=SimpleNamespace(add_noise=add_noise))
    masking = sag_pipeline.StableDiffusionSAGPipeline.sag_masking
    return masking(pipe, x0, attention.flatten(0, 1), size, torch.tensor(t), eps)


@pytest.mark.parametrize("side", [(16, 16), (12, 20)])
def test_sag_input_is_diffusers(side: tuple[int, int]) -> None:
    x0, eps = draw(2, torch.float64, (2, 4, *side))
    small = (side[0] // 2, side[1] // 2)
    count = small[0] * small[1]
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 8, count, count)) * 2)
    attention = torch.softmax(logits, -1)
    mask = attention_mask(attention, small)
    assert 0.1 < mask.double().mean() < 0.9
    got = degrade(x0, mask, eps, alpha=ALPHAS[4].sqrt().item(), sigma=(1 - ALPHAS[4]).sqrt().item())
    # The peer makes its kernel in float32.
    torch.testing.assert_close(got, sag_peer(x0, attention, small, eps, 4), rtol=0, atol=8 * 2.0**-24 * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sag_input_rounds_once(dtype: torch.dtype) -> None:
    x0, eps = draw(2, dtype, (2, 4, 16, 16))
    mask = torch.rand(2, 1, 8, 8) > 0.5
    exact = degrade(x0.double(), mask, eps.double(), alpha=0.8, sigma=0.6)
    got = degrade(x0, mask, eps, alpha=0.8, sigma=0.6)
    # Twice nine taps of a blur whose weights add to 1, and the two terms.
    largest = max(x0.abs().max().item(), eps.abs().max().item())
    check_within(got, f64(exact), np.full(exact.shape, 40 * 2.0**-24 * largest))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 4.0, 7.5])
def test_mahiro(scale: float, dtype: torch.dtype) -> None:
    u, c = draw(2, dtype)
    exact = nonlinear.mahiro(uncond=f64(u), cond=f64(c), scale=scale)
    # Square roots make sqrt(eps) of an eps next to zero; over a sample's cosines that averages out to well below
    # a hundredth of it.
    wander = 0.01 * unit(dtype) ** 0.5
    bound = abs(scale - 1) * wander * abs(f64(u)) + 16 * unit(dtype) * (scale * abs(f64(c)) + scale * abs(f64(u)))
    check_within(mahiro(uncond=u, cond=c, scale=scale), exact, bound)


def test_mahiro_variants() -> None:
    u, c = draw(2, torch.float32)
    alone = [mahiro(uncond=u[i : i + 1], cond=c[i : i + 1], scale=5.0) for i in range(3)]
    torch.testing.assert_close(mahiro(uncond=u, cond=c, scale=5.0), torch.cat(alone), rtol=0, atol=1e-6)
    comfy = mahiro(uncond=u, cond=c, scale=5.0, variant="comfy")

    # ComfyUI's node, line by line.
    leap, u_leap = c * 5.0, u * 5.0
    cfg = u + (c - u) * 5.0
    merge = (leap + cfg) / 2
    roots = [torch.sqrt(z.abs()) * z.sign() for z in (u_leap, merge)]
    share = 2 * (torch.nn.functional.cosine_similarity(*roots).mean() + 1)
    torch.testing.assert_close(comfy, (share * cfg + (4 - share) * leap) / 4, rtol=1e-5, atol=1e-5)
    assert (comfy - torch.cat(alone)).abs().max() > 1e-3
    one = mahiro(uncond=u[:1], cond=c[:1], scale=5.0, variant="comfy")
    torch.testing.assert_close(one, alone[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [(16, 12), (15, 9), (8, 33)])
@pytest.mark.parametrize("cutoff", [1, 3, 20])
def test_fresca(cutoff: int, side: tuple[int, int], dtype: torch.dtype) -> None:
    u, c = draw(2, dtype, (2, 3, *side))
    options = {"scale": 4.0, "low": 0.5, "high": 1.5, "cutoff": cutoff}
    exact = nonlinear.fresca(uncond=f64(u), cond=f64(c), **options)
    # A transform and its inverse: log2(N) roundings each of the root mean square, 4 of them in the worst element.
    spread = np.sqrt(np.mean((f64(c) - f64(u)) ** 2))
    wander = 4.0 * 1.5 * 8 * np.log2(side[0] * side[1]) * unit(dtype) * spread
    check_within(fresca(uncond=u, cond=c, **options), exact, wander + 8 * unit(dtype) * (abs(exact) + abs(f64(u))))


def test_fresca_with_equal_scales_is_cfg() -> None:
    u, c = draw(2, torch.float64, (2, 3, 5, 16, 12))
    got = fresca(uncond=u, cond=c, scale=4.0, low=2.0, high=2.0, cutoff=3)
    torch.testing.assert_close(got, guide(CFG(8.0), uncond=u, cond=c), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_once(dtype: torch.dtype) -> None:
    """In units of the ideal rounding; the eager transcriptions in the half type are further off."""
    u, c = draw(2, dtype, (2, 4, 32, 32))
    z, n = draw(2, dtype, (2, 64, 64))

    def nag_eager() -> torch.Tensor:
        guided = z * 5.0 - n * 4.0
        own, length = (torch.norm(x, p=1, dim=-1, keepdim=True) for x in (z, guided))
        ratio = length / own
        return guided * (torch.minimum(ratio, torch.full_like(ratio, 2.5)) / ratio) * 0.25 + z * 0.75

    def mahiro_eager() -> torch.Tensor:
        leap, cfg = c * 5.0, u + (c - u) * 5.0
        roots = [torch.sqrt(x.abs()) * x.sign() for x in (u * 5.0, (leap + cfg) / 2)]
        share = 2 * (torch.nn.functional.cosine_similarity(*roots).mean() + 1)
        return (share * cfg + (4 - share) * leap) / 4

    ours = error_in_ideal_units(normalized_attention_guidance(z, n), nonlinear.nag(positive=f64(z), negative=f64(n)))
    peer = error_in_ideal_units(nag_eager(), nonlinear.nag(positive=f64(z), negative=f64(n)))
    assert ours < 1.01 < 1.3 < peer
    exact = nonlinear.mahiro(uncond=f64(u), cond=f64(c), scale=5.0)
    assert error_in_ideal_units(mahiro(uncond=u, cond=c, scale=5.0), exact) < 1.01
    assert error_in_ideal_units(mahiro_eager(), exact) > 1.3
