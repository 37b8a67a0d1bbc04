"""Quality and diversity: pairing, passes, and every figure against its own computation by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks.quality.__main__ import app
from benchmarks.quality.bootstrap import Resampled, at_accuracy, draws, resample
from benchmarks.quality.curves import CURVES, DYNAMIC, NEGATIVE_SCALES, SCALES, Curve, points
from benchmarks.quality.equal_accuracy import compare_at_target
from benchmarks.quality.geometry import trace
from benchmarks.quality.measure import Measurement, Point, Settings, share_error
from benchmarks.quality.sampling import Start, ddim, in_precision, sample
from fastcfg import CFG
from fastcfg.demo.checkpoint import DENOISER
from fastcfg.demo.diffusion import noise_scheduler
from fastcfg.demo.distillation import AVOIDED_COLOUR
from fastcfg.demo.judge import Judge

BY_NAME = {curve.name: curve for curve in CURVES}
ULP = 2.0**-24


class Network(nn.Module):
    """Linear in x and the labels; remembers what it was given."""

    def __init__(self, factor: float = 0.3) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor), requires_grad=False)
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, t: float, *, digit: Tensor, colour: Tensor) -> Tensor:
        self.inputs.append(x.clone())
        row = torch.linspace(-1, 1, 28, dtype=x.dtype)
        return self.factor * x + 0.05 * (digit.view(-1, 1, 1, 1) * row + colour.view(-1, 1, 1, 1) * row.square())


class Student:
    """One pass of it; the scale moves the result."""

    def __init__(self) -> None:
        self.network, self.passes_run = Network(0.2), 0

    def reset(self) -> None:
        self.passes_run = 0

    def __call__(self, x: Tensor, t: float, *, conditions: Any, scale: float) -> Tensor:
        self.passes_run += 1
        return self.network(x, t, **conditions["cond"]) * (1 + scale / 10)  # type: ignore[no-any-return]


def run(curve: Curve, scale: float, start: Start, steps: int, network: nn.Module) -> tuple[Tensor, int]:
    with torch.inference_mode():
        teacher = in_precision(network, False)
        return sample(curve, scale, start, steps, teacher=teacher, student=Student(), bf16=False)  # type: ignore[arg-type]


def by_hand(scale: float, start: Start, steps: int, clip: bool = False) -> Tensor:
    """CFG with the scheduler of diffusers, in float64."""
    scheduler = noise_scheduler()
    scheduler.set_timesteps(steps)
    network, x = Network().double(), start.noise.double()
    empty = {"digit": torch.full_like(start.digit, 10), "colour": torch.full_like(start.colour, 6)}
    for t in scheduler.timesteps.tolist():
        u, c = network(x, t, **empty), network(x, t, digit=start.digit, colour=start.colour)
        v = u + scale * (c - u)
        if clip:
            alpha = scheduler.alphas_cumprod[t].double().sqrt()
            sigma = (1 - alpha.square()).sqrt()
            v = (alpha * x - (alpha * x - sigma * v).clamp(-1, 1)) / sigma
        x = scheduler.step(v, t, x).prev_sample
    return x


def test_every_digit_comes_in_every_colour_and_batches_cover_all() -> None:
    start = Start.draw(60, 3)
    assert len(set(zip(start.digit.tolist(), start.colour.tolist(), strict=True))) == 60
    assert start.digit[:10].tolist() == list(range(10))
    parts = list(start.parts(25))
    assert [len(part) for part in parts] == [25, 25, 10]
    assert torch.equal(torch.cat([part.noise for part in parts]), start.noise)
    assert torch.equal(Start.draw(60, 3).noise, start.noise) and not torch.equal(Start.draw(60, 4).noise, start.noise)


def test_conditions_leave_open_what_is_not_asked() -> None:
    start = Start.draw(12, 0)
    both = start.conditions("both", ("uncond", "cond"))
    assert list(both) == ["uncond", "cond"] and both["cond"]["colour"] is start.colour
    assert both["uncond"]["digit"].unique().tolist() == [10] and both["uncond"]["colour"].unique().tolist() == [6]
    alone = start.conditions("digit", ("cond", "negative"))
    assert alone["cond"]["colour"].unique().tolist() == [6] and alone["cond"]["digit"] is start.digit
    assert alone["negative"]["colour"].unique().tolist() == [AVOIDED_COLOUR]


@pytest.mark.parametrize(("name", "clip"), [("CFG", False), ("CFG + clip", True)])
def test_samples_are_those_of_diffusers_loop(name: str, clip: bool) -> None:
    start = Start.draw(6, 1)
    images, passes = run(BY_NAME[name], 3.0, start, 5, Network())
    expected = by_hand(3.0, start, 5, clip)
    # A step rounds about eight terms of size |v| <= 8; what it leaves is carried on with weights of at most 1.
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=5 * 8 * 8 * 16 * ULP)
    assert passes == 10 and (not clip or images.abs().max() <= 1 + 16 * ULP)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        *((name, 40) for name in ("CFG", "CFG + rescale", "CFG-Zero*", "TCFG", "APG", "CFG + clip")),
        ("CFG interval", 33),  # Steps 2 to 14 are guided.
        ("CFG cosine up", 39),  # The first scale is 1.
        ("CFG cosine down", 39),
        ("CFG cached", 27),  # Steps 0, 3, ..., 18.
        ("student of CFG", 20),
        ("digit alone: CFG", 40),
        ("digit alone: perp-neg red", 60),
    ],
)
def test_passes_are_what_the_network_saw(name: str, passes: int) -> None:
    network, start = Network(), Start.draw(2, 0)
    curve, student = BY_NAME[name], Student()
    with torch.inference_mode():
        _, counted = sample(
            curve,
            3.0,
            start,
            20,
            teacher=in_precision(network, False),
            student=student,
            bf16=False,  # type: ignore[arg-type]
        )
    seen = student.network if curve.who == "student" else network
    assert counted == passes == sum(len(x) for x in seen.inputs) // len(start)


def test_curves_have_names_of_their_own_and_no_guidance_at_one() -> None:
    names = [curve.name for curve in CURVES]
    assert len(set(names)) == len(names)
    assert {curve.rule_at(1.0) for curve in CURVES} == {CFG(1.0)}
    every = points(SCALES, NEGATIVE_SCALES)
    assert len(every) == 11 * len(SCALES) + 2 * len(NEGATIVE_SCALES)
    start = Start.draw(2, 0)
    plain = run(BY_NAME["CFG"], 3.0, start, 4, Network())[0]
    for curve in (*CURVES, DYNAMIC):
        if curve.name != "CFG" and curve.asked == "both":
            assert not torch.equal(run(curve, 3.0, start, 4, Network())[0], plain), curve.name


def measurement(network: Network, folder: Path | None = None, **changes: Any) -> Measurement:
    settings = replace(Settings(samples=20, steps=2, batch=12, draws=3, bf16=False), **changes)
    return Measurement(settings, network, Student(), folder)  # type: ignore[arg-type]


def test_all_curves_begin_from_the_same_noise() -> None:
    network = Network()
    measured = measurement(network)
    firsts = []
    for name in ("CFG", "APG", "CFG cached", "digit alone: perp-neg red"):
        network.inputs.clear()
        measured.images(BY_NAME[name], 3.0, bf16=False)
        firsts.append(network.inputs[0][:12])  # Of two or three passes on twelve samples.
    assert all(torch.equal(first, Start.draw(20, 0).noise[:12]) for first in firsts)


def test_figures_of_a_point() -> None:
    measured = measurement(Network())
    calls = []
    point = measured.measure(BY_NAME["CFG"], 3.0, on_batch=lambda: calls.append(1))
    images, passes = measured.images(BY_NAME["CFG"], 3.0, bf16=False)
    judge, digit = Judge(20), torch.arange(20) % 10
    clamped = images.clamp(-1, 1)
    features = judge.classifier.pooled(clamped)
    seen_digit, seen_colour = judge.classifier.predict(clamped)
    assert len(calls) == 2 and passes == point.passes_per_sample == 4 and point.samples == 20
    assert point.accuracy == (seen_digit == digit).double().mean().item()
    assert point.colour == (seen_colour == measured.start.colour).double().mean().item()
    assert point.avoided == (seen_colour == AVOIDED_COLOUR).double().mean().item()
    assert point.overshoot == pytest.approx((images - clamped).abs().mean().item(), rel=1e-6)
    real, fake = (value.double().numpy() for value in (judge.reference.features, features))
    expected, slack = _frechet(real, fake)
    assert point.frechet_distance == pytest.approx(expected, abs=slack)


def _frechet(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    """By the symmetric form ``tr sqrt(sqrt(A) B sqrt(A))``; and how far off a zero eigenvalue's root may be."""
    a, b = np.cov(real.T), np.cov(fake.T)
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b @ root).clip(0)
    distance = ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * np.sqrt(cross).sum()
    slack = 2 * len(a) * math.sqrt(len(a) * 2.0**-52 * np.linalg.norm(a, 2) * np.linalg.norm(b, 2))
    return float(distance), float(slack)


def test_reference_of_a_negative_has_not_its_colour() -> None:
    judge = Judge(60, colours=[c for c in range(6) if c != AVOIDED_COLOUR])
    assert not torch.equal(judge.reference.features, Judge(60).reference.features)
    point = measurement(Network()).measure(BY_NAME["digit alone: CFG"], 1.5)
    assert point.reference == "all colours but red" and math.isnan(point.colour)


def test_curves_share_what_is_the_same_and_a_folder_keeps_it(tmp_path: Path) -> None:
    network = Network()
    measured = measurement(network, tmp_path)
    first = measured.measure(BY_NAME["CFG"], 1.0)
    count = len(network.inputs)
    shared = measured.measure(BY_NAME["TCFG"], 1.0)
    assert len(network.inputs) == count and shared.frechet_distance == first.frechet_distance
    measured.measure(BY_NAME["CFG + clip"], 1.0)
    assert len(network.inputs) == 2 * count

    later = measurement(Network(), tmp_path)
    assert later.measure(BY_NAME["CFG"], 1.0) == first and not later.network.inputs  # type: ignore[union-attr]
    for other in (measurement(Network(0.4), tmp_path), measurement(Network(), tmp_path, seed=1)):
        other.measure(BY_NAME["CFG"], 1.0)
        assert other.network.inputs  # type: ignore[union-attr]


def test_draws_stay_within_digits() -> None:
    digit = torch.arange(40) % 10
    rows = draws(digit, 8, 0)
    assert rows.shape == (8, 40) and torch.equal(digit[rows], digit.expand(8, 40))
    assert torch.equal(rows, draws(digit, 8, 0)) and len({tuple(row.tolist()) for row in rows}) == 8
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    right = digit < 3
    again = resample(features, features, right, torch.stack([torch.arange(40), rows[0]]))
    assert again.accuracy.tolist() == [0.3, 0.3] and again.distance[0].abs() < 1e-6 < again.distance[1]


def test_error_of_a_share() -> None:
    assert share_error(1.0, 98) == pytest.approx(math.sqrt(0.99 * 0.01 / 100))
    assert share_error(0.5, 98) == pytest.approx(0.05)


def test_where_a_curve_reaches_an_accuracy() -> None:
    scales = (1.0, 2.0, 4.0)
    found = at_accuracy(scales, {1.0: 0.5, 2.0: 0.9, 4.0: 1.0}, 0.95)
    assert found is not None and found.scale == pytest.approx(3.0)
    assert found.of({1.0: 0.0, 2.0: 10.0, 4.0: 30.0}) == pytest.approx(20.0)
    first = at_accuracy(scales, {1.0: 0.97, 2.0: 0.9, 4.0: 1.0}, 0.95)
    assert first is not None and first.scale == 1.0
    assert at_accuracy(scales, {1.0: 0.5, 2.0: 0.9, 4.0: 0.94}, 0.95) is None


def test_comparison_at_equal_accuracy_is_paired() -> None:
    scales = (1.0, 3.0)
    measured = measurement(Network())
    generator = torch.Generator().manual_seed(0)
    common = torch.rand(3, generator=generator, dtype=torch.float64)
    template = measured.measure(BY_NAME["CFG"], 1.0)

    def put(name: str, scale: float, accuracy: float, distance: float) -> None:
        point = replace(template, curve=name, scale=scale, accuracy=accuracy, frechet_distance=distance)
        measured.points[name, scale] = point
        measured.resampled[name, scale] = Resampled(torch.full((3,), accuracy), distance + common)

    for curve in CURVES:
        off = 2.0 if curve.name == "TCFG" else 0.0
        put(curve.name, 1.0, 0.87, 10.0 + off)
        put(curve.name, 3.0, 0.9 if curve.name == "APG" else 1.07, 20.0 + off)
    rows = {row.curve: row for row in compare_at_target(measured, scales)}
    assert "APG" not in rows and "digit alone: CFG" not in rows
    assert rows["CFG"].scale == pytest.approx(2.0) and rows["CFG"].frechet_distance == pytest.approx(15.0)
    # What the draws do to both curves alike is gone.
    assert rows["TCFG"].difference == pytest.approx(2.0) and rows["TCFG"].error == pytest.approx(0.0, abs=1e-6)


def test_geometry_is_the_vectors_own() -> None:
    start, steps = Start.draw(4, 2), 3
    traces = trace(in_precision(Network(), False), 4.0, start, steps)
    network, x = Network().double(), start.noise.double()
    empty = {"digit": torch.full_like(start.digit, 10), "colour": torch.full_like(start.colour, 6)}
    for found, step in zip(traces, ddim(steps), strict=True):
        u, c = network(x, 0, **empty), network(x, 0, digit=start.digit, colour=start.colour)
        y = u + 4.0 * (c - u)
        x = step.prediction * y + step.x * x
        u, c, y = (value.flatten(1) for value in (u, c, y))
        d = c - u
        dc = (d * c).sum(1)
        expected = {
            "delta_ratio": d.norm(dim=1) / u.norm(dim=1),
            "cosine": (d * u).sum(1) / d.norm(dim=1) / u.norm(dim=1),
            "parallel_share": (dc / c.norm(dim=1) / d.norm(dim=1)).square(),
            "norm_ratio": y.norm(dim=1) / c.norm(dim=1),
            "spread_ratio": y.std(dim=1) / c.std(dim=1),
        }
        assert found.scale == 4.0 and found.noise_level == pytest.approx(step.level.sigma)  # type: ignore[union-attr]
        for name, values in expected.items():
            # Sums of 2,352 in float32, and what three steps before rounded.
            assert getattr(found, name) == pytest.approx(values.mean().item(), rel=1e-4, abs=1e-5), name
            assert found.deviation[name] == pytest.approx(values.std().item(), rel=1e-3, abs=1e-5), name


def test_command_writes_what_the_report_reads(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["--quick", "--steps", "2", "--output", str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    data = json.loads((tmp_path / "quality.json").read_text(), parse_constant=pytest.fail)
    assert data["kind"] == "quality" and data["environment"]["threads"] == 1 and data["settings"]["samples"] == 40
    names = set(Point.__dataclass_fields__)
    assert all(set(row) == names for row in data["curves"]) and len(data["curves"]) == 11 * 4 + 2 * 2
    assert {row["who"] for row in data["curves"]} == {"teacher", "student"}
    assert len(data["geometry"]) == 4 * 2
    assert "an adapter trained, " in data["settings"]["curves"]["student of CFG"]
    text = (tmp_path / "quality.md").read_text()
    assert text.index("## At equal accuracy") < text.index("## Every figure") < text.index("## Geometry of guidance")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quality.json", "quality.md"]


def test_command_refuses_another_precision() -> None:
    outcome = CliRunner().invoke(app, ["--precision", "fp8"])
    assert outcome.exit_code == 2 and "expected bf16 or fp32, got 'fp8'" in outcome.output


def test_command_refuses_what_is_no_student() -> None:
    outcome = CliRunner().invoke(app, ["--student", str(DENOISER)])
    assert outcome.exit_code == 2 and "--student" in outcome.output
