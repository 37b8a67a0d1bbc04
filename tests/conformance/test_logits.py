"""Guidance on logits against the fp64 oracle and transformers' own processor on a real, tiny, causal model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from fastcfg.adapters.transformers import FusedClassifierFreeGuidanceLogitsProcessor
from fastcfg.methods.logits import guide_logits

from .affine_bounds import check_within
from .cases import EPSILON
from .oracles import nonlinear
from .oracles.rounding import error_in_ideal_units
from .peers import transformers_logits

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def draw(dtype: torch.dtype, shape: tuple[int, ...] = (3, 500), spread: float = 3.0) -> list[torch.Tensor]:
    rng = np.random.default_rng([1, *shape])
    common = rng.normal(size=shape)
    return [torch.from_numpy(spread * (common + 0.5 * rng.normal(size=shape)) + 7).to(dtype) for _ in range(2)]


def check(got: torch.Tensor, u: torch.Tensor, c: torch.Tensor, scale: float | torch.Tensor) -> None:
    number = scale.double().numpy() if isinstance(scale, torch.Tensor) else scale
    exact = nonlinear.guided_logits(uncond=u.double().numpy(), cond=c.double().numpy(), scale=number)
    dead = np.isneginf(exact)
    assert torch.isneginf(got).numpy().tolist() == dead.tolist()
    assert got.dtype == c.dtype
    # A log-softmax sums V terms (in chains of V/16 at most) and subtracts twice; the lerp adds five roundings.
    unit = EPSILON[got.dtype] * (2 if got.dtype == torch.float64 else 1)
    largest = max(z.double()[z.isfinite()].abs().max().item() for z in (u, c))
    size = np.abs(np.asarray(number)).max() + 1
    logs = np.abs(np.where(dead, 0, exact)).max() + largest + np.log(u.shape[-1])
    bound = np.full(exact.shape, size * 2 * (4 * np.sqrt(u.shape[-1] / 16) * unit + 8 * unit * logs))
    check_within(got.masked_fill(torch.from_numpy(dead), 0.0), np.where(dead, 0.0, exact), bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 1.5, 7.5])
def test_oracle(scale: float, dtype: torch.dtype) -> None:
    u, c = draw(dtype)
    check(guide_logits(c, u, scale), u, c, scale)
    per_sample = torch.tensor([scale, 1.0, 0.0])
    check(guide_logits(c, u, per_sample), u, c, per_sample)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_minus_infinity_stays(scale: float, dtype: torch.dtype) -> None:
    u, c = draw(dtype)
    u[:, 1] = c[:, 1] = c[:, 2] = u[:, 3] = -torch.inf
    check(guide_logits(c, u, scale), u, c, scale)
    tensor = torch.tensor([scale, 1.0, 0.0])
    check(guide_logits(c, u, tensor), u, c, tensor)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, torch.tensor([3.0, 0.0, 1.0])])
def test_a_row_without_tokens_is_minus_infinity(scale: float | torch.Tensor) -> None:
    u, c = draw(torch.float32)
    u[:] = c[:] = -torch.inf
    assert torch.isneginf(guide_logits(c, u, scale)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_closer_than_the_peer(dtype: torch.dtype) -> None:
    u, c = draw(dtype, (4, 4000))
    exact = nonlinear.guided_logits(uncond=u.double().numpy(), cond=c.double().numpy(), scale=3.0)
    ours = error_in_ideal_units(guide_logits(c, u, 3.0), exact)
    peer = error_in_ideal_units(transformers_logits.unbatched_cfg(uncond=u, cond=c, scale=3.0), exact)
    assert ours < 1.01
    assert peer > 1.3 * ours


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=None, pad_token_id=0,
        initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


PROMPT = torch.tensor([[5, 9, 33, 2], [7, 7, 41, 60]])
NEGATIVE = torch.tensor([[11, 3], [50, 8]])


def generate(model: LlamaForCausalLM, kind: type, scale: float | torch.Tensor, **options: object) -> torch.Tensor:
    torch.manual_seed(3)
    arguments = {key: options.pop(key) for key in ("unconditional_ids", "use_cache") if key in options}
    processor = kind(scale, model, **arguments)
    return model.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=12, logits_processor=[processor], **options
    )


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 4.0])
def test_generates_what_transformers_generates(
    model: LlamaForCausalLM, scale: float, use_cache: bool, negative: bool, sampled: bool
) -> None:
    options: dict[str, object] = {"do_sample": sampled, "use_cache": use_cache}
    if negative:
        options["unconditional_ids"] = NEGATIVE
    ours = generate(model, FusedClassifierFreeGuidanceLogitsProcessor, scale, **options)
    peer = generate(model, UnbatchedClassifierFreeGuidanceLogitsProcessor, scale, **options)
    assert torch.equal(ours, peer)
    assert ours.shape == (2, 16)


def test_guidance_changes_the_text(model: LlamaForCausalLM) -> None:
    plain, guided = (
        generate(model, FusedClassifierFreeGuidanceLogitsProcessor, s, unconditional_ids=NEGATIVE, do_sample=False)
        for s in (1.0, 6.0)
    )
    assert not torch.equal(plain, guided)


def test_a_scale_for_each_sample(model: LlamaForCausalLM) -> None:
    options: dict[str, object] = {"unconditional_ids": NEGATIVE, "do_sample": False}
    both = generate(model, FusedClassifierFreeGuidanceLogitsProcessor, torch.tensor([1.5, 4.0]), **options)
    for row, scale in enumerate((1.5, 4.0)):
        alone = generate(model, FusedClassifierFreeGuidanceLogitsProcessor, scale, **options)
        assert torch.equal(both[row], alone[row])


def test_masked_tokens_break_the_peer_alone(model: LlamaForCausalLM) -> None:
    """A model that forbids a token by a logit of -inf: NaN in transformers' processor, guided text here."""

    class Forbidding(torch.nn.Module):
        config = model.config

        def forward(self, input_ids: torch.Tensor, **kwargs: object) -> object:
            out = model(input_ids, **kwargs)
            out.logits[..., 20:] = -torch.inf
            return out

    scores = model(PROMPT).logits[:, -1]
    scores[..., 20:] = -torch.inf
    peer = UnbatchedClassifierFreeGuidanceLogitsProcessor(3.0, Forbidding(), NEGATIVE)(PROMPT, scores)
    ours = FusedClassifierFreeGuidanceLogitsProcessor(3.0, Forbidding(), NEGATIVE)(PROMPT, scores)
    assert torch.isnan(peer[:, 20:]).all()
    assert torch.isneginf(ours[:, 20:]).all()
    torch.testing.assert_close(ours[:, :20], peer[:, :20], rtol=0, atol=2e-5)


def _guided_table(p_u: np.ndarray, p_c: np.ndarray, gamma: float) -> np.ndarray:
    """Sequential guidance of a two-token table, by the code under test: first token, then the second given it."""

    def step(u: np.ndarray, c: np.ndarray) -> np.ndarray:
        logits = guide_logits(torch.from_numpy(np.log(c)), torch.from_numpy(np.log(u)), gamma)
        return torch.softmax(logits, -1).numpy()

    first_u, first_c = p_u.sum(1), p_c.sum(1)
    first = step(first_u[None], first_c[None])[0]
    return first[:, None] * step(p_u / first_u[:, None], p_c / first_c[:, None])


def test_joint_and_sequential_guidance_differ() -> None:
    rng = np.random.default_rng(0)
    tables = rng.dirichlet(np.ones(12), 2).reshape(2, 3, 4)
    independent = np.stack([np.outer(p.sum(1), p.sum(0)) for p in tables])

    def distance(p_u: np.ndarray, p_c: np.ndarray, gamma: float) -> float:
        joint = p_u ** (1 - gamma) * p_c**gamma
        return 0.5 * float(np.abs(joint / joint.sum() - _guided_table(p_u, p_c, gamma)).sum())

    assert distance(*tables, gamma=3.0) > 0.01
    assert distance(*tables, gamma=1.0) < 64 * 2.0**-53
    assert distance(*independent, gamma=3.0) < 64 * 2.0**-53
