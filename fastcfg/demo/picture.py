"""The demo's picture: the grid of samples, and the accuracy of the classifier against the scale."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from .rows import Row

_GREY = "#666666"


def draw(
    rows: Sequence[Row], columns: Sequence[tuple[str, str]], accuracy: Sequence[tuple[float, float]], title: str
) -> bytes:
    """Draws the grid with the curve under it.

    Args:
        rows: each with one image for every column.
        columns: their headings, a large and a small line.
        accuracy: pairs (scale, accuracy in [0, 1]).

    Returns:
        A PNG file.
    """
    cell, left, top, gap, curve = 0.62, 2.2, 0.85, 0.5, 1.7
    width, height = left + cell * len(columns) + 0.25, top + cell * len(rows) + gap + curve + 0.55
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    grid = figure.add_axes(
        (left / width, 1 - (top + cell * len(rows)) / height, cell * len(columns) / width, cell * len(rows) / height)
    )
    grid.imshow(
        mosaic([row.images for row in rows]).numpy(),
        interpolation="nearest",
        aspect="auto",
        extent=(0, len(columns), len(rows), 0),
    )
    grid.set_axis_off()
    for index, row in enumerate(rows):
        grid.text(-0.15, index + 0.4, row.label, ha="right", va="center", fontsize=10)
        grid.text(-0.15, index + 0.7, row.note, ha="right", va="center", fontsize=7.5, color=_GREY)
    for index, name in enumerate(columns):
        grid.text(index + 0.5, -0.32, name[0], ha="center", va="baseline", fontsize=10)
        grid.text(index + 0.5, -0.12, name[1], ha="center", va="baseline", fontsize=7.5, color=_GREY)
    figure.text(left / width, 1 - 0.25 / height, title, ha="left", va="center", fontsize=11, weight="bold")
    axes = figure.add_axes((left / width, 0.55 / height, cell * len(columns) / width, curve / height))
    scales, values = zip(*accuracy, strict=True)
    axes.plot(scales, [100 * value for value in values], marker="o", color="#3355cc")
    for scale, value in accuracy:
        offset = (4, -11) if value > 0.2 else (4, 5)
        text = f"{100 * value:.3g}"
        axes.annotate(text, (scale, 100 * value), offset, textcoords="offset points", fontsize=8, color=_GREY)
    axes.set_ylim(0, 108)
    axes.set_xlabel("CFG scale", fontsize=9)
    axes.set_ylabel("% recognised", fontsize=9)
    axes.set_title("digits that an independent classifier recognises", fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def mosaic(rows: Sequence[Tensor], border: int = 1) -> Tensor:
    """One RGB image ``[H, W, 3]`` in [0, 1] of rows of images ``[N, 3, h, w]`` in [-1, 1], with white lines between."""
    lines = []
    for images in rows:
        framed = torch.nn.functional.pad(images.clamp(-1, 1) / 2 + 0.5, (border,) * 4, value=1.0)
        lines.append(torch.cat(list(framed), dim=-1))
    return torch.cat(lines, dim=-2).permute(1, 2, 0)
