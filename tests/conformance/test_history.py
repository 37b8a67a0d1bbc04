"""History guidance on a tiny video denoiser, against a direct transcription of its equations."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from conformance.oracles import classifier_free as oracle
from fastcfg import CFG, GuidedDenoiser, HistoryGuidance, InnerGuidance, Linear, Rule, guide, schedules
from fastcfg.denoiser.planner import plan
from fastcfg.methods.history import HistoryView, history_conditions, history_views, prediction_task, with_history

B, C, F, H, W = 2, 2, 6, 3, 4
HISTORY, T = 3, 0.8
SHAPES = {2: (B, C, F, H, W), 1: (B, F, C, H, W)}


class Video:
    """A denoiser whose every frame reads all frames and their noise levels, counting the passes it runs."""

    def __init__(self, frame_dim: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.mix = torch.randn(F, F, generator=generator, dtype=torch.float64) / F
        self.frame_dim = frame_dim
        self.passes = 0

    def __call__(self, x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        assert levels.shape == (x.shape[0], F)
        self.passes += x.shape[0] // B
        frames = x.movedim(self.frame_dim, -1)
        trust = (1 - levels.double()).view(-1, 1, 1, 1, F)
        return torch.tanh((frames * (0.2 + trust)) @ self.mix.T + frames).movedim(-1, self.frame_dim)


def draw(frame_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    x, clean, noise = (torch.randn(SHAPES[frame_dim], generator=generator, dtype=torch.float64) for _ in range(3))
    return x, clean, noise


def transcribed(frame_dim: int, levels_of_history: list[float]) -> np.ndarray:
    """The model's prediction given a history at some levels, frame by frame as the paper has it."""
    x, clean, noise = draw(frame_dim)
    frames = []
    for f in range(F):
        if f < HISTORY:
            k = levels_of_history[f]
            frames.append((1 - k) * clean.select(frame_dim, f) + k * noise.select(frame_dim, f))
        else:
            frames.append(x.select(frame_dim, f))
    levels = torch.tensor([*levels_of_history, *[T] * (F - HISTORY)], dtype=torch.float64).expand(B, F)
    return Video(frame_dim)(torch.stack(frames, frame_dim), levels).numpy()


def guided(
    rule: Rule, views: dict[str, HistoryView], frame_dim: int, mode: str = "batched"
) -> tuple[torch.Tensor, Video, int]:
    x, clean, noise = draw(frame_dim)
    task = prediction_task(F, HISTORY)
    conditions = history_conditions(task, views, clean=clean, noise=noise, frame_dim=frame_dim)
    model = Video(frame_dim)
    denoiser = GuidedDenoiser(with_history(model, frame_dim=frame_dim), rule, mode=mode, backend="torch")
    result = denoiser(x, T, conditions=conditions)
    count = plan(rule, conditions).count
    assert model.passes == denoiser.passes_run == count
    return result, model, count


NONE, CLEAN = [1.0] * HISTORY, [0.0] * HISTORY


@pytest.mark.parametrize("mode", ["batched", "sequential"])
@pytest.mark.parametrize("frame_dim", [1, 2])
def test_vanilla(frame_dim: int, mode: str) -> None:
    rule = HistoryGuidance(3.0)
    actual, _, count = guided(rule, history_views(rule), frame_dim, mode)
    u, c = transcribed(frame_dim, NONE), transcribed(frame_dim, CLEAN)
    np.testing.assert_allclose(actual, oracle.history_vanilla(uncond=u, cond=c, scale=3.0), rtol=0, atol=1e-14)
    assert count == 2 and np.abs(u - c).max() > 0.1
    as_cfg, _, _ = guided(CFG(3.0), history_views(rule), frame_dim, mode)
    assert torch.equal(actual, as_cfg)


@pytest.mark.parametrize("mode", ["batched", "sequential"])
@pytest.mark.parametrize("frame_dim", [1, 2])
def test_temporal(frame_dim: int, mode: str) -> None:
    # A long and a short memory, which overlap, the long one noised; and a level for each frame.
    parts = [HistoryView((1, 2)), HistoryView((0, 1, 2), 0.25), HistoryView(level=(0.5, 0.25, 0.0))]
    levels = [[1.0, 0.0, 0.0], [0.25] * 3, [0.5, 0.25, 0.0]]
    weights = [2.0, 1.5, -0.5]
    rule = HistoryGuidance(tuple(weights), kind="temporal")
    actual, _, count = guided(rule, history_views(rule, parts=parts), frame_dim, mode)
    conds = [transcribed(frame_dim, level) for level in levels]
    u = transcribed(frame_dim, NONE)
    np.testing.assert_allclose(
        actual, oracle.history_general(uncond=u, conds=conds, weights=weights), rtol=0, atol=1e-14
    )
    assert count == 4


@pytest.mark.parametrize("frame_dim", [1, 2])
def test_one_full_part_is_vanilla_and_equal_parts_merge(frame_dim: int) -> None:
    vanilla, _, _ = guided(HistoryGuidance(3.0), history_views(HistoryGuidance(3.0)), frame_dim)
    single = HistoryGuidance((3.0,), kind="temporal")
    actual, _, count = guided(single, history_views(single, parts=[HistoryView((0, 1, 2))]), frame_dim)
    assert torch.equal(actual, vanilla) and count == 2
    twice = HistoryGuidance((1.0, 2.0), kind="temporal")
    actual, _, count = guided(twice, history_views(twice, parts=[HistoryView(), HistoryView((0, 1, 2))]), frame_dim)
    torch.testing.assert_close(actual, vanilla, rtol=0, atol=1e-14)
    assert count == 2
    dropped = HistoryGuidance((3.0, 0.0), kind="temporal")
    actual, _, count = guided(dropped, history_views(dropped, parts=[HistoryView(), HistoryView((2,))]), frame_dim)
    torch.testing.assert_close(actual, vanilla, rtol=0, atol=1e-14)
    assert count == 2


@pytest.mark.parametrize("mode", ["batched", "sequential"])
@pytest.mark.parametrize("level", [0.4, (0.2, 0.5, 0.9)], ids=str)
@pytest.mark.parametrize("frame_dim", [1, 2])
def test_fractional(frame_dim: int, level: float | tuple[float, ...], mode: str) -> None:
    rule = HistoryGuidance(3.5, kind="fractional")
    actual, _, count = guided(rule, history_views(rule, level=level), frame_dim, mode)
    u, c = transcribed(frame_dim, NONE), transcribed(frame_dim, CLEAN)
    p = transcribed(frame_dim, list(level) if isinstance(level, tuple) else [level] * HISTORY)
    exact = oracle.history_fractional(uncond=u, cond=c, partial=p, weight=2.5)
    np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-14)
    assert count == 3


@pytest.mark.parametrize("frame_dim", [1, 2])
def test_fractional_at_its_ends(frame_dim: int) -> None:
    rule = HistoryGuidance(3.5, kind="fractional")
    at_zero, _, passes = guided(rule, history_views(rule, level=0.0), frame_dim)
    vanilla, _, _ = guided(HistoryGuidance(3.5), history_views(HistoryGuidance(3.5)), frame_dim)
    torch.testing.assert_close(at_zero, vanilla, rtol=0, atol=1e-14)
    assert passes == 2
    at_one, _, passes = guided(rule, history_views(rule, level=1.0), frame_dim)
    np.testing.assert_array_equal(at_one, transcribed(frame_dim, CLEAN))
    assert passes == 1


@pytest.mark.parametrize("frame_dim", [1, 2])
def test_between_two_levels(frame_dim: int) -> None:
    rule = HistoryGuidance((2.0, 0.5), kind="between")
    bands = [(HistoryView(), HistoryView(level=0.5)), (HistoryView(level=0.5), HistoryView((2,), 0.75))]
    actual, _, count = guided(rule, history_views(rule, bands=bands), frame_dim)
    a, b = transcribed(frame_dim, CLEAN), transcribed(frame_dim, [0.5] * 3)
    c, u = transcribed(frame_dim, [1.0, 1.0, 0.75]), transcribed(frame_dim, NONE)
    exact = oracle.history_between_levels(uncond=u, starts=[a, b], ends=[b, c], weights=[2.0, 0.5])
    np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-14)
    assert count == 4  # The level 0.5 is an end and a start.


def test_only_the_frames_to_make_matter_to_the_input() -> None:
    x, clean, noise = draw(2)
    rule = HistoryGuidance(3.0)
    task = prediction_task(F, HISTORY)
    results = []
    for known, unknown in ((0.0, torch.nan), (1e9, 5.0)):
        video, latent = clean.clone(), x.clone()
        latent[:, :, :HISTORY] = known
        video[:, :, HISTORY:] = unknown
        conditions = history_conditions(task, history_views(rule), clean=video, noise=noise)
        results.append(GuidedDenoiser(with_history(Video(2)), rule)(latent, T, conditions=conditions))
    assert torch.equal(*results) and results[0].isfinite().all()


def test_simplified_rules() -> None:
    assert HistoryGuidance(1.0).simplify() == Linear((("cond", 1.0),))
    assert HistoryGuidance(1.0, kind="fractional").simplify() == Linear((("cond", 1.0),))
    assert HistoryGuidance(schedules.Interval(4.0, 0.0, 0.5)).at(3, 4).simplify() == Linear((("cond", 1.0),))


class Joint:
    """A denoiser of the joint output [x, d] that reads a prompt, and its own d unless told not to."""

    def __call__(self, z: torch.Tensor, t: float, prompt: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        x, d = z.chunk(2, dim=1)
        d = d * inner.view(-1, 1, 1, 1)
        y = prompt.view(-1, 1, 1, 1)
        return torch.cat([torch.tanh(x + 0.5 * d + y), torch.sin(d - x * y) * t], dim=1)


def test_inner_guidance_of_a_joint_model() -> None:
    z = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    on, off = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    prompt, empty = 0.7 * on, off
    conditions = {
        "uncond": {"prompt": empty, "inner": on},
        "cond": {"prompt": prompt, "inner": on},
        "without_inner": {"prompt": prompt, "inner": off},
    }
    model = Joint()
    full, no_text, no_inner = (model(z, T, **conditions[n]).numpy() for n in ("cond", "uncond", "without_inner"))
    rule = InnerGuidance()
    actual = GuidedDenoiser(model, rule, backend="torch")(z, T, conditions=conditions)
    np.testing.assert_allclose(actual, 9 * full - 5 * no_text - 3 * no_inner, rtol=0, atol=1e-13)
    exact = oracle.inner_guidance(cond=full, uncond=no_text, without_inner=no_inner)
    np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-13)

    without = GuidedDenoiser(model, InnerGuidance(5.0, 0.0), backend="torch")
    actual = without(z, T, conditions=conditions)
    assert without.passes_run == 2
    cfg = guide(CFG(6.0), uncond=torch.from_numpy(no_text), cond=torch.from_numpy(full))
    torch.testing.assert_close(actual, cfg, rtol=0, atol=1e-13)

    first_half = InnerGuidance(5.0, schedules.Interval(3.0, stop=0.5, outside=0.0))
    assert [plan(first_half, conditions, i, 4).count for i in range(4)] == [3, 3, 2, 2]
    same = torch.from_numpy(full)
    fixed = guide(rule, uncond=same, cond=same, without_inner=same)
    assert torch.equal(fixed, same)  # The weights add to 1.


def test_rules_round_trip() -> None:
    for rule in (
        HistoryGuidance(3.0),
        HistoryGuidance((3.0, 1.0), kind="temporal"),
        HistoryGuidance(schedules.Ramp(3, 1), kind="fractional"),
        HistoryGuidance((3.0, schedules.Cosine(3, 1)), kind="between"),
        InnerGuidance(5.0, schedules.Interval(3.0, stop=0.5, outside=0.0)),
    ):
        assert Rule.from_json(rule.to_json()) == rule and hash(rule) == hash(Rule.from_json(rule.to_json()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HistoryGuidance(3.0, kind="long"), "kind: expected one of vanilla, temporal, fractional, between"),
        (lambda: HistoryGuidance((3.0, 1.0)), "scale: vanilla history guidance has one scale"),
        (lambda: HistoryGuidance((), kind="temporal"), "scale: expected one or more numbers"),
        (lambda: HistoryGuidance("3"), "scale: expected a number or a schedule, got str"),
        (lambda: InnerGuidance(float("nan")), "scale: expected a finite number"),
        (lambda: InnerGuidance(5.0, None), "inner_scale: expected a number or a schedule"),
    ],
)
def test_errors_name_the_argument(make: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()
