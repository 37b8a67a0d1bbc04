"""``python -m benchmarks.distillation``: students of the demo's model beside their teachers.

Trains each student (a run that was stopped goes on), measures, and writes ``results/distillation.{json,md,png}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from fastcfg import APG, CFG, PerpNeg, Rule
from fastcfg.distill import DistillConfig
from rich.console import Console

RESULTS = Path(__file__).parent / "results"
app = typer.Typer(add_completion=False)

BASE = DistillConfig(
    steps=900,
    batch=32,
    trajectories=64,
    window=8,
    reuse=2,
    learning_rate=1e-3,
    warmup=40,
    sampler_steps=(20,),
    precision="bf16",
)


@dataclass(frozen=True)
class Variant:
    """A student to train.

    Attributes:
        title: what the tables call it.
        rule: the teacher's.
        config: of the distillation.
    """

    title: str
    rule: Rule
    config: DistillConfig


VARIANTS: Mapping[str, Variant] = {
    "full": Variant("all weights, trajectories", CFG(7.5), BASE),
    "lora": Variant("LoRA 16, trajectories", CFG(7.5), replace(BASE, mode="lora", learning_rate=2e-3)),
    "data": Variant("all weights, data", CFG(7.5), replace(BASE, data="data")),
    "perp-neg": Variant("perp-neg teacher, all weights", PerpNeg(7.5, (1.5,)), BASE),
    "embedding": Variant("scale input alone", CFG(7.5), replace(BASE, mode="embedding", learning_rate=2e-3)),
    "apg": Variant("APG teacher, all weights", APG(7.5, eta=0.0, momentum=-0.5), BASE),
}
