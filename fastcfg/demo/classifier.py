"""The judge of the demo: a classifier of digit and colour that has only ever seen real images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from ..files import load_tensors, save_tensors
from .checkpoint import CLASSIFIER, versions
from .data import NUM_COLOURS, NUM_DIGITS, Digits, draw_batch, paint


class Classifier(nn.Module):
    """A convolutional network with one head for the digit and one for the colour."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.width = width
        layers: list[nn.Module] = []
        for inputs, outputs, stride in (
            (3, width, 1),
            (width, width, 2),
            (width, 2 * width, 1),
            (2 * width, 2 * width, 2),
        ):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, NUM_DIGITS + NUM_COLOURS)

    def pooled(self, x: Tensor) -> Tensor:
        """Return what the heads see of images ``[B, 3, 28, 28]`` in [-1, 1].

        ``[B, 4 * width]``, for quality metrics.
        """
        h = self.features(x)
        return torch.cat([h.mean((-2, -1)), h.amax((-2, -1))], dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(digit [B, 10], colour [B, 6])`` of images ``[B, 3, 28, 28]`` in [-1, 1]."""
        digit, colour = self.head(self.pooled(x)).split([NUM_DIGITS, NUM_COLOURS], dim=-1)
        return digit, colour

    @torch.inference_mode()
    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The classes ``(digit [B], colour [B])``, int64, of images ``[B, 3, 28, 28]``."""
        digit, colour = self(x.clamp(-1, 1))
        return digit.argmax(-1), colour.argmax(-1)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotates by up to 12°, scales by up to 10 %, shifts by up to 2 pixels and adds a little noise."""
    size = len(images)
    uniform = torch.rand(size, 4, generator=generator) * 2 - 1
    angle, scale, shift = uniform[:, 0] * math.radians(12), 1 + uniform[:, 1] * 0.1, uniform[:, 2:] * (2 / 14)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], -1), torch.stack([sin, cos, shift[:, 1]], -1)], -2
    )  # [B, 2, 3]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    # The background is -1 and grid_sample pads with 0.
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1
    return moved + 0.05 * torch.randn(images.shape, generator=generator)


def train_classifier(
    digits: Digits,
    *,
    steps: int = 400,
    batch: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: bool = True,
) -> Classifier:
    """Trains a classifier on real images. Half a minute on one core."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for _ in track(range(steps), "classifier", disable=not progress):
        images, digit, colour = draw_batch(digits, batch, generator)
        digit_logits, colour_logits = model(augment(images, generator))
        loss = F.cross_entropy(digit_logits, digit, label_smoothing=0.05) + 0.2 * F.cross_entropy(colour_logits, colour)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def accuracy_on(model: Classifier, digits: Digits, seed: int = 0) -> tuple[float, float]:
    """Accuracy ``(digit, colour)`` on real digits in random colours."""
    colour = torch.randint(NUM_COLOURS, (len(digits),), generator=torch.Generator().manual_seed(seed))
    device = next(model.parameters()).device
    predicted_digit, predicted_colour = model.predict(paint(digits.grey, colour).to(device))
    return (predicted_digit.cpu() == digits.digit).float().mean().item(), (
        predicted_colour.cpu() == colour
    ).float().mean().item()


def save_classifier(path: Path, model: Classifier, metadata: dict[str, Any]) -> None:
    """Writes the weights in float16 with their metadata."""
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    save_tensors(path, tensors, {"classifier": {"width": model.width}, "versions": versions(), **metadata})


def load_classifier(path: Path = CLASSIFIER, device: torch.device | str = "cpu") -> tuple[Classifier, dict[str, Any]]:
    """Reads what ``save_classifier`` wrote: ``(model, metadata)``, the model in float32 and in evaluation mode."""
    tensors, metadata = load_tensors(path)
    if "classifier" not in metadata:
        raise ValueError(f"{path} holds no classifier (its metadata has {sorted(metadata)})")
    model = Classifier(**metadata["classifier"])
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False).to(device), metadata
