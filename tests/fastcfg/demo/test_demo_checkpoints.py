"""The shipped weights and the files that hold weights."""

import os
from pathlib import Path

import pytest
import torch

from fastcfg.demo.checkpoint import CLASSIFIER, DENOISER, load_denoiser, save_denoiser
from fastcfg.demo.classifier import accuracy_on, load_classifier
from fastcfg.demo.data import NULL_COLOUR, NULL_DIGIT, load_digits
from fastcfg.demo.model import UNet, UNetConfig
from fastcfg.files import load_tensors, save_tensors


def test_shipped_files_are_small() -> None:
    assert DENOISER.stat().st_size <= 3_000_000
    assert CLASSIFIER.stat().st_size <= 300_000


def test_shipped_denoiser_says_how_it_was_made() -> None:
    _, metadata = load_denoiser()
    assert metadata["steps"] == metadata["training"]["steps"] >= 1000
    assert metadata["model"] == metadata["training"]["model"]
    assert 0 < metadata["loss"] < 0.1
    assert {"torch", "diffusers", "mlxtend"} <= metadata["versions"].keys()


def test_classifier_on_held_out_images() -> None:
    classifier, metadata = load_classifier()
    digit, colour = accuracy_on(classifier, load_digits(held_out=True))
    assert digit >= 0.96
    assert colour >= 0.99
    # The weights are shipped rounded to float16.
    assert digit == pytest.approx(metadata["held_out"]["digit"], abs=0.005)


def test_denoiser_listens_to_each_label_and_to_null() -> None:
    model, _ = load_denoiser()
    x = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))

    def v(digit: int, colour: int) -> torch.Tensor:
        out: torch.Tensor = model(x, 900, digit=torch.tensor([digit]), colour=torch.tensor([colour]))
        return out

    outputs = [v(3, 1), v(4, 1), v(3, 2), v(NULL_DIGIT, 1), v(3, NULL_COLOUR), v(NULL_DIGIT, NULL_COLOUR)]
    assert all(output.shape == x.shape and output.isfinite().all() for output in outputs)
    for index, one in enumerate(outputs):
        for other in outputs[:index]:
            assert (one - other).abs().max() > 0.05
    with pytest.raises(IndexError):
        v(NULL_DIGIT + 1, 0)


def test_time_may_be_a_number_or_a_tensor() -> None:
    model, _ = load_denoiser()
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    null = {"digit": torch.full((2,), NULL_DIGIT), "colour": torch.full((2,), NULL_COLOUR)}
    expected = model(x, torch.tensor([500, 500]), **null)
    assert torch.equal(model(x, 500, **null), expected)
    assert torch.equal(model(x, torch.tensor(500), **null), expected)
    assert not torch.allclose(model(x, 100, **null), expected, atol=0.01)


def test_denoiser_round_trip_rounds_to_half(tmp_path: Path) -> None:
    model = UNet(UNetConfig(width=8, embedding=16))
    torch.nn.init.normal_(model.head.weight)
    save_denoiser(tmp_path / "d.safetensors", model, {"steps": 1})
    again, metadata = load_denoiser(tmp_path / "d.safetensors")
    assert metadata["steps"] == 1
    assert again.config == model.config
    assert torch.equal(again.head.weight, model.head.weight.half().float())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.safetensors"
    save_tensors(file, {"a": torch.ones(2)}, {"n": 1})

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_tensors(file, {"a": torch.zeros(2)}, {"n": 2})
    assert load_tensors(file)[1] == {"n": 1}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", DENOISER.read_bytes()[:1000]])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.safetensors"):
        load_denoiser(file)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_denoiser(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match="holds no denoiser"):
        load_denoiser(CLASSIFIER)
    with pytest.raises(ValueError, match="holds no classifier"):
        load_classifier(DENOISER)
