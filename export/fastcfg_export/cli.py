"""The command ``fastcfg export``, which the command line finds by the entry-point group ``fastcfg.commands``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastcfg.cli.console import fail, typer

__all__ = ["export"]


def export(
    model: Annotated[
        str,
        typer.Argument(help="demo, a diffusers model's folder, a student's file, a graph .onnx or MODULE:FUNCTION."),
    ] = "demo",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The graph to write, NAME.onnx.")] = None,
    rule: Annotated[str, typer.Option(help="A rule's name, its JSON, a JSON file, or none for a student.")] = (
        '{"type": "CFG", "rescale": 0.7}'
    ),
    param: Annotated[list[str] | None, typer.Option(help="The rule's parameter that is an input; repeat.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16; guidance is float32.")] = "float32",
    kind: Annotated[str | None, typer.Option(help="What the model predicts: eps, x0, v, flow or score.")] = None,
    step: Annotated[str | None, typer.Option(help="End the graph in a sampler's step: ddim.")] = None,
    check: Annotated[bool, typer.Option(help="Compare with eager torch in ONNX Runtime.")] = True,
    engine: Annotated[bool, typer.Option(help="Build a plan too.")] = False,
    runtime: Annotated[str, typer.Option(help="tensorrt_rtx or tensorrt.")] = "tensorrt_rtx",
    capability: Annotated[list[str] | None, typer.Option(help="Compute capability to build for, 8.9; repeat.")] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Sizes of the plan, batch=1:2:8 or height=512:768:1024 (pixels); repeat.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Build the plan even if it is up to date.")] = False,
    serve: Annotated[Path | None, typer.Option(help="Write a Triton Inference Server model repository.")] = None,
    sample: Annotated[bool, typer.Option(help="Sample the demo through its graph, beside eager torch.")] = False,
) -> None:
    """A model and its guidance as one ONNX graph, compared with eager torch, and as a TensorRT plan."""
    try:
        from .command import Options, command

        command(
            Options(
                model=model,
                output=output,
                rule=rule,
                parameters=param or (),
                dtype=dtype,
                kind=kind,
                step=step,
                check=check,
                engine=engine,
                runtime=runtime,
                capabilities=capability or (),
                profile=profile or (),
                force=force,
                serve=serve,
                sample=sample,
            )
        )
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise fail(error) from None
