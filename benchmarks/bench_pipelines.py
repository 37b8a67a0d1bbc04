"""``python -m benchmarks.bench_pipelines``: the guidance part of diffusers' classic pipelines, without us and with.

What is timed lies between the denoiser's return and the scheduler's step. The pipelines are diffusers' own, the
latents of the size of a real picture or video; the denoiser returns the same tensor at once. Under
``fastcfg.adapters.diffusers.guided`` the pipeline's own combination still runs, since it is inlined: its time is part
of ours.
"""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fastcfg import APG, CFG, NormCap, Rule
from fastcfg.files import write_atomically

from .race import Summary, summarise
from .report import Environment

__all__ = ["CASES", "SUBJECTS", "Row", "Subject", "guidance_times", "measure"]

OURS, THEIRS = "fastcfg", "diffusers"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOKENS, WIDTH, STEPS = 8, 16, 4


@dataclass(frozen=True)
class Subject:
    """A pipeline whose denoiser takes no time.

    Attributes:
        build: makes it in a dtype; arguments: of its call, but the embeddings.
        denoiser: the component's name; shape: of one pass's prediction.
        batched: whether the passes are one call; pooled: whether it takes pooled embeddings.
    """

    build: Callable[[torch.dtype], Any]
    arguments: Mapping[str, Any]
    denoiser: str
    shape: tuple[int, ...]
    batched: bool
    pooled: bool = False


def _sdxl(dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(4,),
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + WIDTH,
    )
    vae = AutoencoderKL(block_out_channels=[4] * 4, down_block_types=["DownEncoderBlock2D"] * 4, norm_num_groups=2)
    encoders = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=EulerDiscreteScheduler(), **encoders).to(dtype)


def _wan(dtype: torch.dtype) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, text_dim=WIDTH, freq_dim=4, ffn_dim=4, num_layers=1
    )
    parts = {"tokenizer": None, "text_encoder": None, "vae": None}
    return WanPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts).to(dtype)


def _qwen(dtype: torch.dtype) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        num_layers=1, attention_head_dim=16, num_attention_heads=1, joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8)
    )
    parts = {"tokenizer": None, "text_encoder": None, "vae": None}
    return QwenImagePipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts).to(dtype)


_SCALE = {"guidance_scale": 5.0}
SUBJECTS: Mapping[str, Subject] = {
    "StableDiffusionXL": Subject(_sdxl, _SCALE, "unet", (1, 4, 128, 128), True, pooled=True),
    "Wan 480p": Subject(
        _wan, {**_SCALE, "height": 480, "width": 832, "num_frames": 81}, "transformer", (1, 16, 21, 60, 104), False
    ),
    "QwenImage": Subject(
        _qwen, {"true_cfg_scale": 5.0, "height": 1024, "width": 1024}, "transformer", (1, 4096, 64), False
    ),
}
CASES: Sequence[tuple[str, str, Mapping[str, Any], Rule, bool]] = (
    ("StableDiffusionXL", "CFG", {}, CFG(5.0), True),
    ("StableDiffusionXL", "CFG + rescale", {"guidance_rescale": 0.7}, CFG(5.0, 0.7), True),
    ("StableDiffusionXL", "APG", {}, APG(5.0, 0.0, 15.0, -0.5), False),
    ("Wan 480p", "CFG", {}, CFG(5.0), True),
    ("Wan 480p", "APG", {}, APG(5.0, 0.0, 15.0, -0.5), False),
    ("QwenImage", "CFG + norm", {}, NormCap(CFG(5.0), mode="full", over="token"), True),
)
"""Pipeline, name, its own arguments, our rule, and whether the pipeline has that guidance itself."""


@dataclass(frozen=True)
class Row:
    """Times of a pipeline's guidance part a step, in ms."""

    pipeline: str
    guidance: str
    shape: tuple[int, ...]
    dtype: str
    provider: str
    times: Summary


def guidance_times(pipe: Any, subject: Subject, arguments: Mapping[str, Any], context: Any) -> list[float]:
    """Milliseconds between the denoiser's last return and the scheduler's step, for each step of a run."""
    dtype = pipe.dtype
    generator = torch.Generator().manual_seed(0)
    shape = (2 * subject.shape[0], *subject.shape[1:]) if subject.batched else subject.shape
    outputs = [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]
    denoiser, step = getattr(pipe, subject.denoiser), pipe.scheduler.step
    forward, calls, returned, times = denoiser.forward, [0], [0.0], []

    @functools.wraps(forward)
    def at_once(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        given = args[0] if args else kwargs["hidden_states"]
        output = outputs[calls[0] % 2][: len(given)]
        calls[0] += 1
        returned[0] = time.perf_counter()
        return (output,)

    @functools.wraps(step)
    def timed(*args: Any, **kwargs: Any) -> Any:
        times.append(1e3 * (time.perf_counter() - returned[0]))
        return step(*args, **kwargs)

    def embeds(seed: int, *lead: int) -> Tensor:
        return torch.randn(1, *lead, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)

    inputs = {"prompt_embeds": embeds(1, TOKENS), "negative_prompt_embeds": embeds(2, TOKENS)}
    if subject.pooled:
        inputs |= {"pooled_prompt_embeds": embeds(3), "negative_pooled_prompt_embeds": embeds(4)}
    denoiser.forward, pipe.scheduler.step = at_once, timed
    try:
        with context:
            settings = {"num_inference_steps": STEPS, "output_type": "latent", **subject.arguments, **arguments}
            pipe(**settings, **inputs)
    finally:
        del denoiser.forward, pipe.scheduler.step
    return times


def measure(case: tuple[str, str, Mapping[str, Any], Rule, bool], dtype: str, runs: int) -> list[Row]:
    """Both ways in turn; the first step of a run, which checks and warms up, is left out."""
    from fastcfg.adapters.diffusers import guided

    name, guidance, arguments, rule, has_it = case
    subject = SUBJECTS[name]
    pipe = subject.build(DTYPES[dtype])
    pipe.set_progress_bar_config(disable=True)
    providers: dict[str, Callable[[], Any]] = {OURS: lambda: guided(pipe, rule)}
    if has_it:
        providers[THEIRS] = nullcontext
    times: dict[str, list[float]] = {provider: [] for provider in providers}
    order = random.Random(0)
    for run in range(runs + 1):
        for provider in order.sample(sorted(providers), len(providers)):
            steps = guidance_times(pipe, subject, arguments, providers[provider]())
            times[provider] += steps[1:] if run else []
    return [
        Row(name, guidance, subject.shape, dtype, provider, summary)
        for provider, summary in summarise(times, OURS).items()
    ]


app = typer.Typer(add_completion=False)


@app.command()
def main(
    runs: Annotated[int, typer.Option(min=1, help=f"Runs of {STEPS} steps each.")] = 10,
    pipeline: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SUBJECTS)}; default all.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """diffusers' classic pipelines as they are and under fastcfg: time of the guidance part of a step, on a CPU."""
    console = Console()
    console.width = max(console.width, 100)
    if unknown := sorted(set(pipeline or ()) - set(SUBJECTS)):
        console.print(f"[red]pipeline: {', '.join(unknown)}; expected {', '.join(SUBJECTS)}")
        raise typer.Exit(2)
    rows: list[Row] = []
    cases = [(case, dtype) for case in CASES for dtype in DTYPES if not pipeline or case[0] in pipeline]
    for case, dtype in track(cases, "pipelines", console=console, transient=True):
        rows += measure(case, dtype, runs)
    table = Table("pipeline", "guidance", "shape", "dtype", OURS, THEIRS, title="guidance part of a step, ms (median)")
    found = {(r.pipeline, r.guidance, r.shape, r.dtype, r.provider): r.times for r in rows}
    for key in dict.fromkeys(key[:-1] for key in found):
        ours, theirs = found[(*key, OURS)], found.get((*key, THEIRS))
        shape = "x".join(map(str, key[2]))
        table.add_row(key[0], key[1], shape, key[3], f"{ours.p50:.3f}", "" if theirs is None else f"{theirs.p50:.3f}")
    console.print(table)
    if output is not None:
        data = {"environment": asdict(Environment.of("cpu")), "unit": "ms", "rows": [asdict(row) for row in rows]}
        write_atomically(output, json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    app()
