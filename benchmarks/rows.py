"""Rows: the measurement of one contestant in one case, and its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from math import prod
from typing import Any

__all__ = ["PRIMARY", "Row", "Target", "target"]

PRIMARY = ("time", "device")
"""Metrics that targets are about."""


@dataclass(frozen=True)
class Row:
    """One contestant in one case; times in milliseconds.

    Attributes:
        ratio: its time ÷ fastcfg's, the median over rounds: above 1 fastcfg is faster. Its percentiles likewise.
        error: root mean square error against float64, in roundings of the dtype.
        launches, moved: kernels of a call and the bytes that they read and write; see
            :class:`benchmarks.counting.Work`.
        least: bytes that any kernel has to move.
        copy: time of a plain copy that moves ``least``, timed in the same rounds; None for time on the host.
    """

    rule: str
    provider: str
    metric: str
    shape: tuple[int, ...]
    dtype: str
    p20: float
    p50: float
    p80: float
    ratio: float
    ratio_p20: float
    ratio_p80: float
    rounds: int
    error: float
    launches: int | None = None
    moved: int | None = None
    least: int | None = None
    copy: float | None = None

    @property
    def size(self) -> str:
        """The shape as text."""
        return "×".join(map(str, self.shape))

    @property
    def share(self) -> float | None:
        """Bytes that it moves in a second, as a share of the copy's; above 1 where a nearer cache has them."""
        if not (self.moved and self.least and self.copy):
            return None
        return (self.moved / self.p50) / (self.least / self.copy)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON and CSV."""
        return {**asdict(self), "share": self.share}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """Return what :meth:`to_dict` gave; names that are no row's own are left out.

        Raises:
            KeyError: if one is missing.
        """
        required = {f.name: data[f.name] for f in fields(cls) if f.default is MISSING}
        more = {f.name: data[f.name] for f in fields(cls) if f.default is not MISSING and f.name in data}
        return cls(**{**required, **more, "shape": tuple(required["shape"])})


@dataclass(frozen=True)
class Target:
    """A promise about one ratio, and what became of it."""

    what: str
    row: Row
    least: float

    @property
    def met(self) -> bool:
        return self.row.ratio >= self.least


VIDEO = (1, 16, 21, 60, 104)
AT_VIDEO = {
    ("CFG + rescale 0.7", "fp32"): 6.0,
    ("CFG + rescale 0.7", "bf16"): 15.0,
    ("CFG-Zero*", "fp32"): 3.0,
    ("APG", "fp32"): 18.0,
    ("TCFG", "fp32"): 40.0,
}
"""How many times faster than diffusers' guider on a CPU, for Wan 480p."""


def target(row: Row, device: str) -> Target | None:
    """Return what is promised about a peer's row, if anything."""
    if row.metric not in PRIMARY:
        return None
    if row.provider == "torch.lerp" and prod(row.shape) >= 2**18:
        return Target("CFG within 1.2× of torch.lerp", row, 1 / 1.2)
    if not row.provider.startswith("diffusers"):
        return None
    if device == "cpu" and row.shape == VIDEO and (least := AT_VIDEO.get((row.rule, row.dtype))) is not None:
        return Target(f"{row.rule} at least {least:g}× faster than the guider", row, least)
    if row.rule == "CFG + rescale 0.7" and row.shape == (1, 16, 128, 128):
        return Target(f"{row.rule} at least 5× faster than the guider", row, 5.0)
    return Target(f"{row.rule} not slower than the guider", row, 1.0)
