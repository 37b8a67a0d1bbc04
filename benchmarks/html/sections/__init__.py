"""The parts of the report: each from the result files of its kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..content import Section
from ..results import Result
from . import distillation, export, gating, kernels, parallel, quality, scaling, steps

__all__ = ["PARTS", "Part"]


@dataclass(frozen=True)
class Part:
    """A part of the report.

    Attributes:
        kinds: of the results it is made from.
        command: what makes them.
    """

    title: str
    kinds: tuple[str, ...]
    command: str
    build: Callable[[list[Result]], Section]


PARTS = (
    Part("Guidance against its peers", ("kernels",), "fastcfg bench", kernels.build),
    Part("Samplers' steps", ("samplers",), "fastcfg bench", steps.samplers),
    Part("A guided step", ("guided-step",), "fastcfg bench", steps.guided_step),
    Part("Passes over processes", ("parallel",), "python -m benchmarks.parallel", parallel.build),
    Part("Scaling", ("scaling",), "fastcfg bench", scaling.build),
    Part("Quality and diversity", ("quality",), "python -m benchmarks.quality", quality.build),
    Part("Fewer unconditional passes", ("gating",), "python -m benchmarks.gating_demo", gating.build),
    Part("Distillation", ("distillation",), "python -m benchmarks.distillation", distillation.build),
    Part("Export parity", ("export-parity",), "python -m benchmarks.export", export.build),
    Part("Guidance inside a graph", ("export",), "fastcfg bench", export.graph_steps),
)
