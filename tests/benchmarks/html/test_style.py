"""The page's colours: contrast, and series that the colour-blind tell apart."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

pytest.importorskip("jinja2")

from benchmarks.html.charts import SERIES
from benchmarks.html.page import asset

SCHEMES = ("light", "dark")
COLOURS = {
    name: dict(zip(SCHEMES, found, strict=True))
    for name, *found in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", asset("style.css"))
}
VISION = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""On linear RGB, after Machado, Oliveira and Fernandes (2009), at full severity."""
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    """Linear sRGB of ``#rrggbb``."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio."""
    low, high = sorted(float(XYZ[1] @ linear(colour)) + 0.05 for colour in (one, other))
    return high / low


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB, under D65."""
    scaled = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contrast(scheme: str) -> None:
    shown = [name for name in COLOURS if name not in ("ground", "raised", "line", "grid")]
    assert sum(name.startswith("series") for name in shown) == len(SERIES)
    for name, ground in itertools.product(shown, ("ground", "raised")):
        assert contrast(COLOURS[name][scheme], COLOURS[ground][scheme]) >= 4.5, (name, ground)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("vision", VISION)
def test_series_are_told_apart(scheme: str, vision: str) -> None:
    """Ten is a few times the difference that is just seen."""
    seen = {n: lab(VISION[vision] @ linear(c[scheme])) for n, c in COLOURS.items() if n.startswith("series")}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 10, (one, other)


def test_not_by_colour_alone() -> None:
    assert len({style.marker for style in SERIES}) == len({str(style.dash) for style in SERIES}) == len(SERIES)
