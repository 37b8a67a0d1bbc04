"""``fastcfg export``: graph, comparison, plan and deployment, each said while it happens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .build import Built, build_engine
from .engine import Engine
from .errors import ExportError
from .metadata import read_signature
from .onnx_export import Exported, export_onnx
from .runtimes import load_runtime
from .serving import docker_command, write_repository
from .signature import DTYPES
from .sources import parse_profile, parse_rule, resolve_model
from .verification import Parity, verify

__all__ = ["Options", "command"]


@dataclass(frozen=True)
class Options:
    """The options of ``fastcfg export``; see the command line's help."""

    model: str = "demo"
    output: Path | None = None
    rule: str = '{"type": "CFG", "rescale": 0.7}'
    parameters: Sequence[str] = ()
    dtype: str = "float32"
    kind: str | None = None
    step: str | None = None
    check: bool = True
    engine: bool = False
    runtime: str = "tensorrt_rtx"
    capabilities: Sequence[str] = ()
    profile: Sequence[str] = ()
    force: bool = False
    serve: Path | None = None
    sample: bool = False


def command(options: Options, console: Console | None = None) -> None:
    """Run ``fastcfg export``.

    Raises:
        ImportError, OSError, TypeError, ValueError, RuntimeError: with a message for the user.
    """
    console = console or Console()
    if options.dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {options.dtype!r}")
    if options.engine:
        load_runtime(options.runtime)  # Before the long part, not after it.
    if options.sample and options.model != "demo":
        raise ValueError(f"sample: only the demo's pictures are known, got the model {options.model!r}")
    path = Path(options.model)
    if path.suffix == ".onnx":
        read_signature(path)
    else:
        path = _export(options, console).path
    plan = _build(options, path, console) if options.engine else None
    if options.sample:
        _sample(path if plan is None else plan.path, console)
    if options.serve is not None:
        plain = plan is not None and plan.sidecar.runtime == "tensorrt"
        folder = write_repository(plan.path if plan and plain else path, options.serve)
        console.print(f"wrote {folder}", highlight=False, soft_wrap=True)
        gpu = "KIND_GPU" in (folder / "config.pbtxt").read_text()
        console.print(f"serve it with: {docker_command(options.serve, gpu=gpu)}", highlight=False, soft_wrap=True)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<34}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _export(options: Options, console: Console) -> Exported:
    rule = parse_rule(options.rule)
    kind: Any = options.kind
    with _bar(console) as bar:
        task = bar.add_task("load", total=None)
        graph = resolve_model(options.model, DTYPES[options.dtype])
        name = options.model if options.model == "demo" else type(graph.module).__name__.lstrip("_").lower()
        output = options.output or Path("outputs/export") / f"{name}.onnx"
        exported = export_onnx(
            graph,
            rule,
            output,
            parameters=list(options.parameters) or None,
            kind=kind,
            step=options.step,
            progress=lambda stage: bar.update(task, description=stage),
        )
    size, data = exported.bytes / 2**20, f" and {exported.data.name}" if exported.data else ""
    console.print(
        f"wrote {exported.path}{data}: {size:.1f} MiB in {exported.seconds:.1f} s", highlight=False, soft_wrap=True
    )
    if options.check:
        parity = _verify(exported, console)
        console.print(Markdown(parity.to_markdown()))
        if not parity.ok:
            worst = parity.worst
            raise ExportError(
                f"graph: {exported.path} differs from eager torch by {worst.difference:.1f} units, where one ulp of "
                f"the input makes {worst.control:.1f}, at {dict(worst.sizes)}"
            )
        console.print("ONNX's checker and the comparison passed")
    return exported


def _verify(exported: Exported, console: Console) -> Parity:
    with _bar(console) as bar:
        task = bar.add_task("compare with eager torch", total=None)
        return verify(
            exported.path, exported.module, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


def _build(options: Options, path: Path, console: Console) -> Built:
    profile = parse_profile(options.profile, dict(read_signature(path).axes))
    with _bar(console) as bar:
        task = bar.add_task("build", total=None)
        built = build_engine(
            path,
            runtime=options.runtime,
            capabilities=options.capabilities or _default_capabilities(options.runtime),
            profiles=(profile,),
            force=options.force,
            on_step=lambda phase: bar.update(task, description=phase[:34]),
            report=lambda line: console.print(line, highlight=False, soft_wrap=True),
        )
    for warning in built.warnings:
        console.print(f"  {warning}", style="dim", highlight=False, markup=False)
    return built


def _default_capabilities(runtime: str) -> tuple[str, ...]:
    """Without a GPU to ask, TensorRT-RTX builds for Ada."""
    return ("8.9",) if runtime == "tensorrt_rtx" and not torch.cuda.is_available() else ()


def _sample(path: Path, console: Console) -> None:
    from fastcfg.demo.checkpoint import load_denoiser

    from .demo_sampling import sample_demo

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = Engine(path)
    for warning in said:
        console.print(f"  {warning.message}", style="dim", highlight=False, markup=False)
    with _bar(console) as bar:
        task = bar.add_task("sample the demo", total=None)
        result = sample_demo(
            engine,
            load_denoiser()[0],
            path.parent,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(
        f"{result.images} images, {result.steps} steps, {result.threads} threads: eager {result.eager_ms:.0f} ms, "
        f"{result.runs_on} {result.graph_ms:.0f} ms; largest difference {result.difference:.1e}, "
        f"one-ulp control {result.control:.1e}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"wrote {result.picture}", highlight=False, soft_wrap=True)
