"""Training: it learns, it resumes bit by bit, and it stops on a loss that is not finite."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastcfg.demo.classifier import accuracy_on, train_classifier
from fastcfg.demo.data import load_digits
from fastcfg.demo.model import UNetConfig
from fastcfg.demo.run import train_demo
from fastcfg.demo.train import TrainConfig, Trainer, train
from fastcfg.files import load_tensors
from fastcfg.methods.training import TrainingDiverged

TINY = TrainConfig(steps=6, batch=4, warmup=2, model=UNetConfig(width=8, embedding=16))


class Killed(Exception):
    """Stands for a process that is killed."""


def same(one: Path, other: Path) -> bool:
    (tensors, metadata), (others, other_metadata) = load_tensors(one), load_tensors(other)
    equal = all(torch.equal(tensors[name], others[name]) for name in tensors)
    return tensors.keys() == others.keys() and metadata == other_metadata and equal


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_digits(held_out=False)
    train(TINY, digits, tmp_path / "whole", save_every=2, progress=False)

    step = Trainer.step

    def killed_at_five(trainer: Trainer) -> float:
        if trainer.steps_done == 5:
            raise Killed
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", killed_at_five)
    with pytest.raises(Killed):
        train(TINY, digits, tmp_path / "parts", save_every=2, progress=False)
    monkeypatch.undo()
    assert load_tensors(tmp_path / "parts")[1]["state"]["step"] == 4
    torch.manual_seed(123)
    resumed = train(TINY, digits, tmp_path / "parts", resume=True, save_every=2, progress=False)
    assert resumed.steps_done == 6
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_seeds_differ(tmp_path: Path) -> None:
    digits = load_digits(held_out=False)
    train(TINY, digits, tmp_path / "a", progress=False)
    train(replace(TINY, seed=1), digits, tmp_path / "b", progress=False)
    assert not same(tmp_path / "a", tmp_path / "b")


def test_loss_falls() -> None:
    trainer = Trainer(replace(TINY, steps=60, batch=16, learning_rate=3e-3), load_digits(held_out=False))
    losses = [trainer.step() for _ in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_stops_and_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    loss = Trainer._loss

    def diverging(trainer: Trainer, generator: torch.Generator) -> torch.Tensor:
        value = loss(trainer, generator)
        if trainer.steps_done < 4:
            return value
        # The square root of zero is finite and has no finite gradient.
        return value * float("nan") if where == "loss" else value + (value * 0).sqrt()

    monkeypatch.setattr(Trainer, "_loss", diverging)
    with pytest.raises(TrainingDiverged, match=r"step 4.*last good state is in .*state"):
        train(TINY, load_digits(held_out=False), tmp_path / "state", save_every=2, progress=False)
    tensors, metadata = load_tensors(tmp_path / "state")
    assert metadata["state"]["step"] == 4
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    digits = load_digits(held_out=False)
    train(TINY, digits, tmp_path / "state", progress=False)
    with pytest.raises(ValueError, match="different: batch, seed"):
        train(replace(TINY, seed=1, batch=5), digits, tmp_path / "state", resume=True, progress=False)


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        TrainConfig(steps=0)
    with pytest.raises(ValueError, match=r"drop_one \+ drop_both must be in \[0, 1\)"):
        TrainConfig(drop_one=0.5)


def test_learning_rate_warms_up_and_decays() -> None:
    config = TrainConfig(steps=1000, warmup=100, learning_rate=1e-3)
    assert config.learning_rate_at(0) == pytest.approx(1e-5)
    assert config.learning_rate_at(99) == config.learning_rate_at(100) == pytest.approx(1e-3)
    assert config.learning_rate_at(550) == pytest.approx(5e-4)
    assert config.learning_rate_at(999) < 1e-8


def test_each_label_is_dropped_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(replace(TINY, batch=4000), load_digits(held_out=False))
    seen: dict[str, torch.Tensor] = {}

    def record(x: torch.Tensor, t: torch.Tensor, **labels: torch.Tensor) -> torch.Tensor:
        seen.update(labels)
        return x

    monkeypatch.setattr(trainer.model, "forward", record)
    trainer._loss(torch.Generator().manual_seed(0))
    no_digit, no_colour = seen["digit"] == 10, seen["colour"] == 6
    # Four standard deviations of a fraction of 0.1 in 4,000 are 0.019.
    for dropped in (no_digit & no_colour, no_digit & ~no_colour, ~no_digit & no_colour):
        assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.019)


def test_classifier_learns() -> None:
    classifier = train_classifier(load_digits(held_out=False), steps=100, batch=32, progress=False)
    assert accuracy_on(classifier, load_digits(held_out=True))[0] > 0.5


def test_train_demo_writes_both_checkpoints_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcfg.demo import run

    def few_steps(*args: object, **kwargs: object) -> object:
        return train_classifier(*args, steps=2, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "train_classifier", few_steps)
    denoiser = train_demo(tmp_path, steps=1, device="cpu", progress=False)
    assert denoiser == tmp_path / "denoiser.safetensors"
    files = ["classifier.safetensors", "denoiser.safetensors", "training.safetensors"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    first = (tmp_path / "classifier.safetensors").stat().st_mtime_ns
    train_demo(tmp_path, steps=1, resume=True, device="cpu", progress=False)
    assert (tmp_path / "classifier.safetensors").stat().st_mtime_ns == first
