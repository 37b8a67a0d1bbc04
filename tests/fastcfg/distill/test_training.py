"""Training: it learns, resumes bit by bit, draws what it says, and stops on a loss that is not finite."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from accelerate.state import AcceleratorState

from fastcfg import APG, CFG
from fastcfg.distill import Convention, DistillConfig, Distiller, LoraConfig, Task, distill, load_student
from fastcfg.distill.card import Mode
from fastcfg.distill.config import Draw
from fastcfg.distill.embedding import Form
from fastcfg.distill.rollout import Batch
from fastcfg.distill.task import draw_scales
from fastcfg.distill.train import relative_loss
from fastcfg.files import load_tensors
from fastcfg.methods.training import TrainingDiverged

TINY = DistillConfig(
    steps=6,
    batch=4,
    trajectories=4,
    sampler_steps=(2, 3),
    reuse=1,
    warmup=2,
    lora=LoraConfig(rank=2),
    learning_rate=1e-3,
)
Make = Callable[..., Task]


class Killed(Exception):
    """Stands for a process that is killed."""


def same(one: Path, other: Path) -> bool:
    (tensors, metadata), (others, other_metadata) = load_tensors(one), load_tensors(other)
    equal = all(torch.equal(tensors[name], others[name]) for name in tensors)
    return tensors.keys() == others.keys() and metadata == other_metadata and equal


@pytest.mark.parametrize("changes", [{}, {"mode": "lora", "accumulate": 2}, {"data": "data"}], ids=str)
def test_a_killed_run_resumes_to_the_same_bits(
    tiny_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    config = replace(TINY, **changes)  # type: ignore[arg-type]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    distill(tiny_task(), config, whole, save_every=2, progress=False)

    step = Distiller.step

    def killed_at_five(distiller: Distiller) -> float:
        if distiller.steps_done == 5:
            raise Killed
        return step(distiller)

    monkeypatch.setattr(Distiller, "step", killed_at_five)
    with pytest.raises(Killed):
        distill(tiny_task(), config, parts, save_every=2, progress=False)
    monkeypatch.undo()
    assert load_tensors(parts / "state.safetensors")[1]["state"]["step"] == 4
    torch.manual_seed(123)
    distill(tiny_task(), config, parts, resume=True, save_every=2, progress=False)
    assert same(whole / "state.safetensors", parts / "state.safetensors")
    assert same(whole / "student.safetensors", parts / "student.safetensors")
    logs = [[json.loads(line) for line in (folder / "log.jsonl").open()] for folder in (whole, parts)]
    assert logs[0] == logs[1] and [entry["step"] for entry in logs[0]] == [1, 2, 3, 4, 5, 6]


def test_a_state_of_another_distillation_is_refused(tiny_task: Make, tmp_path: Path) -> None:
    distill(tiny_task(), replace(TINY, steps=1), tmp_path, progress=False)
    with pytest.raises(ValueError, match="different: batch, seed"):
        distill(tiny_task(), replace(TINY, steps=1, seed=1, batch=5), tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="different: rule"):
        distill(tiny_task(CFG(3.0)), replace(TINY, steps=1), tmp_path, resume=True, progress=False)
    other = tiny_task()
    with torch.no_grad():
        next(other.network.parameters()).view(-1)[0] += 1
    with pytest.raises(ValueError, match="different: teacher"):
        distill(other, replace(TINY, steps=1), tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="no state to resume"):
        Distiller(tiny_task(), TINY).restore(tmp_path / "student.safetensors")


@pytest.mark.parametrize(("mode", "form"), [("full", "lcm"), ("lora", "flux"), ("embedding", "lcm")])
def test_it_learns_a_batch_by_heart(tiny_task: Make, monkeypatch: pytest.MonkeyPatch, mode: Mode, form: Form) -> None:
    rates = {"learning_rate": 3e-3, "scale_rate": 5.0}
    config = replace(TINY, steps=30, mode=mode, convention=Convention(form, 32), loss="squared", ema=0.5, **rates)
    distiller = Distiller(tiny_task(), config)
    same_batch = distiller._examples(0)
    monkeypatch.setattr(distiller, "_examples", lambda number: same_batch)
    losses = [distiller.step() for _ in range(30)]
    assert losses[-1] < {"full": 0.6, "lora": 0.9, "embedding": 0.98}[mode] * losses[0]
    # The student is the average, not the start.
    x, target, t, scale, condition = same_batch
    found = distiller.student()(x, t, scale=scale, **condition)
    assert relative_loss(found, target).item() == pytest.approx(losses[-1], rel=0.2)


def test_features_that_turn_within_the_range_stay_out(tiny_task: Make) -> None:
    for form in ("lcm", "flux"):
        convention = Convention(form, 64)
        slow = convention.resolved(1.0, 10.0)
        assert 0 < slow.sum() < 32
        near, far = (convention.arguments(torch.tensor([s]), torch.float32)[convention.keyword] for s in (5.0, 5.01))
        if form == "lcm":
            # A hundredth of a scale moves a slow feature by at most 2 pi / 900, and some of the others right across.
            moved = (near - far).abs().flatten()
            assert moved[slow].max() <= 2 * torch.pi / 900 + 1e-3 and moved[~slow].max() > 0.5
        distiller = Distiller(tiny_task(), replace(TINY, convention=convention))
        for _ in range(3):
            distiller.step()
        weight = distiller.family.feature_layer(distiller.network).weight
        assert not weight[:, ~slow].any() and weight[:, slow].any()


def test_only_what_the_mode_names_is_trained(tiny_task: Make) -> None:
    for mode in ("full", "lora", "embedding"):
        task = tiny_task()
        weights = {name: value.clone() for name, value in task.network.state_dict().items()}
        distiller = Distiller(task, replace(TINY, mode=mode))  # type: ignore[arg-type]
        for _ in range(3):
            distiller.step()
        assert all(torch.equal(value, weights[name]) for name, value in task.network.state_dict().items())
        student = distiller.student().network
        own = {name.replace(".base_layer", ""): value for name, value in student.state_dict().items()}
        changed = {name for name in weights if not torch.equal(own[name], weights[name])}
        assert bool(changed) == (mode == "full")
        assert own["scale_embedding.cond_proj.weight"].any()


def test_accumulated_batches_are_one_batch(tiny_task: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves of a batch give the mean of their gradients: that of the whole."""
    whole = Distiller(tiny_task(), replace(TINY, batch=8, clip=1e9))
    x, target, t, scale, condition = whole._examples(0)
    whole.step()

    def half(number: int) -> Batch:
        rows = slice(4 * number, 4 * number + 4)
        return x[rows], target[rows], t[rows], scale[rows], {name: value[rows] for name, value in condition.items()}

    halves = Distiller(tiny_task(), replace(TINY, batch=4, accumulate=2, clip=1e9))
    monkeypatch.setattr(halves, "_examples", half)
    halves.step()
    for name, parameter in whole.trained.items():
        key = "momentum" if "momentum" in whole.optimizer.state[parameter] else "exp_avg"
        gradient = whole.optimizer.state[parameter][key]
        found = halves.optimizer.state[halves.trained[name]][key]
        # The same sums in another order: roundings of float32 of terms that are larger than their sum.
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item() + 1e-9)


def test_bfloat16_autocast_trains(tiny_task: Make) -> None:
    exact = Distiller(tiny_task(), TINY).step()
    AcceleratorState._reset_state(reset_partial_state=True)
    distiller = Distiller(tiny_task(), replace(TINY, precision="bf16"))
    # Nothing is trained yet: the losses differ by the rounding of the student's passes, 2^-8 a layer.
    found = distiller.step()
    assert found != exact and found == pytest.approx(exact, rel=0.1)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in distiller.trained.values())


def test_students_of_the_average(tiny_task: Make) -> None:
    distiller = Distiller(tiny_task(), replace(TINY, ema=0.9))
    start = {name: value.clone() for name, value in distiller.average.items()}
    distiller.step()
    # The first decay is (1 + 0) / (10 + 0).
    for name, average in distiller.average.items():
        torch.testing.assert_close(average, 0.1 * start[name] + 0.9 * distiller.trained[name].detach())
    network = distiller.student().network
    assert all(torch.equal(value, distiller.average[name]) for name, value in network.named_parameters())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_stops_and_keeps_the_last_good_state(
    tiny_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    loss = Distiller.loss

    def diverging(distiller: Distiller, number: int) -> torch.Tensor:
        value = loss(distiller, number)
        if number < 4:
            return value
        # The square root of zero is finite and has no finite gradient.
        return value * float("nan") if where == "loss" else value + (value * 0).sqrt()

    monkeypatch.setattr(Distiller, "loss", diverging)
    with pytest.raises(TrainingDiverged, match=r"step 4.*last good state is in .*state"):
        distill(tiny_task(), TINY, tmp_path, save_every=2, progress=False)
    tensors, metadata = load_tensors(tmp_path / "state.safetensors")
    assert metadata["state"]["step"] == 4 and all(tensor.isfinite().all() for tensor in tensors.values())
    assert not (tmp_path / "student.safetensors").exists()


def test_what_is_written(tiny_task: Make, tmp_path: Path) -> None:
    student = distill(tiny_task(), replace(TINY, steps=2), tmp_path, progress=False, tensorboard=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "log.jsonl",
        "state.safetensors",
        "student.safetensors",
        "tensorboard",
    }
    assert list((tmp_path / "tensorboard").glob("events*"))
    loaded = load_student(tmp_path / "student.safetensors").network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in student.network.state_dict().items())


def test_relative_loss_by_hand() -> None:
    target = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    prediction = target + torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    # |e|^2 / |y|^2 is 25/25 and 0.01/0.25, whatever the size of the target.
    assert relative_loss(prediction, target).item() == pytest.approx((1 + 0.04) / 2)
    assert relative_loss(target, 0 * target).isfinite()
    root = relative_loss(prediction, target, "root").item()
    assert root == pytest.approx(((1 + 1e-4) ** 0.5 + (0.04 + 1e-4) ** 0.5) / 2 - 0.01)
    # Next to exact it is still differentiable.
    exact = target.clone().requires_grad_()
    relative_loss(exact, target, "root").backward()
    assert exact.grad is not None and not exact.grad.any()


@pytest.mark.parametrize("draw", ["uniform", "log"])
def test_scales_are_drawn_as_asked(draw: Draw) -> None:
    scales = draw_scales(20000, 2.0, 8.0, torch.Generator().manual_seed(0), log=draw == "log", exact_one=0.1)
    ones = scales == 1
    # Four standard deviations of a share of 0.1 in 20,000 are 0.0085.
    assert ones.float().mean().item() == pytest.approx(0.1, abs=0.0085)
    rest = scales[~ones]
    assert rest.min() >= 2 and rest.max() <= 8
    # Half of them lie below the middle of the range, or of its logarithm; four standard deviations are 0.015.
    middle = 5.0 if draw == "uniform" else 4.0
    assert (rest < middle).float().mean().item() == pytest.approx(0.5, abs=0.015)


def test_an_adapters_steps_are_larger() -> None:
    rates = {
        mode: replace(TINY, mode=mode, learning_rate=None, warmup=0).learning_rate_at(0) for mode in get_args(Mode)
    }
    assert rates == {"full": 2e-3, "lora": 5e-3, "embedding": 5e-3}
    assert replace(TINY, learning_rate=0.1, warmup=0).learning_rate_at(0) == 0.1


def test_bad_configurations_are_named(tiny_task: Make) -> None:
    for changes, name in (
        ({"steps": 0}, "steps"),
        ({"mode": "half"}, "mode"),
        ({"data": "web"}, "data"),
        ({"low": 3.0, "high": 2.0}, "high"),
        ({"low": 0.0, "draw": "log"}, "low"),
        ({"exact_one": 1.5}, "exact_one"),
        ({"sampler_steps": ()}, "sampler_steps"),
        ({"precision": "fp8"}, "precision"),
        ({"loss": "cube"}, "loss"),
        ({"optimizer": "sgd"}, "optimizer"),
    ):
        with pytest.raises(ValueError, match=f"^{name}:"):
            replace(TINY, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^data: APG remembers"):
        Distiller(tiny_task(APG(4.0, momentum=-0.5)), replace(TINY, data="data"))
    with pytest.raises(ValueError, match=r"^targets: .*to_q"):
        Distiller(tiny_task(), replace(TINY, mode="lora", lora=LoraConfig(targets=("to_q",))))
    with pytest.raises(ValueError, match=r"^data: the task has no data"):
        Distiller(replace(tiny_task(), data=None), replace(TINY, data="data"))
