"""The command line, ``fastcfg``. Commands import what they need when they run."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

from .console import Table, console, fail, typer

app = typer.Typer(help="Guidance of diffusion samplers: fused, exact, complete.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Guidance of diffusion samplers: fused, exact, complete."""


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the launch strategies on this GPU first, and record what passed.")
    ] = False,
) -> None:
    """Versions, devices, and which backends can run here and why not."""
    from .info import collect

    if verify:
        from .verify import command

        try:
            command(console)
        except (ImportError, OSError, RuntimeError) as error:
            raise fail(error) from None
    found = collect()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    versions = Table("package", "version", title=f"fastcfg {found['fastcfg']}, Python {found['python']}")
    for name, version in found["packages"].items():
        versions.add_row(name, version or "[dim]not installed[/]")
    console.print(versions)
    console.print("devices:", ", ".join(found["devices"]), highlight=False)
    table = Table("backend", "device", "usable", "why", title="backends")
    for row in found["backends"]:
        table.add_row(row["name"], row["device"], "yes" if row["usable"] else "no", row["reason"])
    console.print(table)


@app.command()
def rules(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the documentation's table.")] = False,
) -> None:
    """Every rule: its predictions, parameters and defaults, formula, source, sums and state."""
    from .catalog import entries, functions, to_markdown

    if markdown:
        print(to_markdown(), end="")
        return
    for entry in entries():
        console.print(f"[bold]{entry.name}[/]({', '.join(entry.parameters)})", highlight=False)
        console.print(
            f"  {entry.formula}" + (f"  ({entry.source})" if entry.source else ""), highlight=False, markup=False
        )
        sums = f"sums {', '.join(entry.sums)}" if entry.sums else "elementwise"
        state = f"; state {', '.join(entry.state)}" if entry.state else ""
        takes = f"  takes {', '.join(entry.conditions)}; {sums}{state}; space: {entry.space}"
        console.print(f"{takes}; on {', '.join(entry.backends)}", style="dim", highlight=False, markup=False)
    for function in functions():
        console.print(f"[bold]{function.name}[/]({', '.join(function.parameters)})", highlight=False)
        console.print(f"  {function.summary}  ({', '.join(function.sources)})", highlight=False, markup=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the pictures and tables.")] = Path("outputs/demo"),
    train: Annotated[bool, typer.Option(help="Train the checkpoint again first.")] = False,
    resume: Annotated[bool, typer.Option(help="With --train: go on from the last saved state.")] = True,
    train_steps: Annotated[int | None, typer.Option(min=1, help="With --train: optimiser steps.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
) -> None:
    """Guide a real diffusion model of handwritten digits; writes a grid, a table and JSON."""
    try:
        from ..demo import run

        run.command(output, train=train, resume=resume, train_steps=train_steps, steps=steps, seed=seed, device=device)
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        raise fail(error) from None


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure this machine against the peers installed beside it, or compare two results; --help lists the options."""
    from .benchmarks import command

    try:
        raise typer.Exit(command(context.args))
    except OSError as error:
        raise fail(error) from None


@app.command()
def distill(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the student, its state and the report.")] = (
        Path("outputs/distill")
    ),
    rule: Annotated[str, typer.Option(help="The teacher's rule: its JSON, or its name for the defaults.")] = "CFG",
    task: Annotated[str, typer.Option(help="MODULE:FUNCTION that makes a Task of a rule; default: the demo's.")] = "",
    mode: Annotated[str, typer.Option(help="What is trained: full, lora or embedding.")] = "full",
    data: Annotated[str, typer.Option(help="What it is trained on: trajectories (the teacher's) or data.")] = (
        "trajectories"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Examples of a forward pass, on each device.")] = 32,
    accumulate: Annotated[int, typer.Option(min=1, help="Forward passes of an optimiser step.")] = 1,
    low: Annotated[float, typer.Option(help="Smallest guidance scale.")] = 1.0,
    high: Annotated[float, typer.Option(help="Largest guidance scale.")] = 10.0,
    draw: Annotated[str, typer.Option(help="Scales are drawn uniform, or log.")] = "uniform",
    form: Annotated[str, typer.Option(help="Scale input: lcm (timestep_cond) or flux (guidance).")] = "lcm",
    serving: Annotated[str, typer.Option(help="dtype that the student will be served in.")] = "float32",
    rank: Annotated[int, typer.Option(min=1, help="Of the adapter, with --mode lora.")] = 16,
    sampler_steps: Annotated[list[int] | None, typer.Option(help="Steps of the trajectories, 20; repeat.")] = None,
    trajectories: Annotated[int, typer.Option(min=1, help="Trajectories of a round.")] = 64,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; default: 2e-3, or 5e-3 for --mode lora.")] = None,
    precision: Annotated[str, typer.Option(help="Autocast: no, bf16 or fp16.")] = "no",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the state in the folder.")] = True,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 100,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard events too.")] = False,
    samples: Annotated[int, typer.Option(min=0, help="Samples for the demo's quality tables; 0: no measuring.")] = 500,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
) -> None:
    """Distil a guided teacher into a student that takes the scale and needs one pass, and measure it."""
    try:
        from ..distill.config import DistillConfig
        from ..distill.embedding import Convention
        from ..distill.lora import LoraConfig
        from .distill import Options, command, device_of

        config = DistillConfig(
            steps=steps,
            batch=batch,
            accumulate=accumulate,
            mode=mode,  # type: ignore[arg-type]
            data=data,  # type: ignore[arg-type]
            low=low,
            high=high,
            draw=draw,  # type: ignore[arg-type]
            sampler_steps=tuple(sampler_steps or (20,)),
            trajectories=trajectories,
            learning_rate=learning_rate,
            precision=precision,  # type: ignore[arg-type]
            seed=seed,
            convention=Convention(form, serving=serving),  # type: ignore[arg-type]
            lora=LoraConfig(rank),
        )
        options = Options(output, rule, task, resume, save_every, tensorboard, samples, device_of(device))
        command(config, options)
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise fail(error) from None


@app.command()
def tune(
    source: Annotated[str, typer.Argument(help="A pipeline's folder or name, or demo for the demo's model.")] = "demo",
    budget: Annotated[float, typer.Option(help="Most passes, as a share of the full guidance's.")] = 0.75,
    rule: Annotated[str, typer.Option(help="The guidance, as a rule's JSON.")] = '{"type": "CFG", "scale": 3.0}',
    prompts: Annotated[Path | None, typer.Option(help="File of prompts for a pipeline, a line each.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Sampling steps.")] = 20,
    samples: Annotated[int, typer.Option(min=1, help="Samples of the demo's model.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    metric: Annotated[str, typer.Option(help="MODULE:FUNCTION of the final latents, reported beside the error.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the policy, runs and figure.")] = Path(
        "outputs/tune"
    ),
) -> None:
    """Find the passes that can be left out: a policy that changes the results least within a budget of passes.

    An interrupted search goes on where it stopped. Every host loads the policy: fastcfg.Gate.load(path).
    """
    try:
        from ..rules import Rule
        from .tune import command, demo_job, pipeline_job

        guidance = Rule.from_json(rule)
        if source == "demo":
            job = demo_job(guidance, steps, samples, seed)
        else:
            lines = [] if prompts is None else prompts.read_text(encoding="utf-8").splitlines()
            job = pipeline_job(source, guidance, [line for line in lines if line.strip()], steps, seed)
        command(job, output, budget, metric)
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise fail(error) from None


for _entry in entry_points(group="fastcfg.commands"):
    # Packages above this one add their commands by this group, so that nothing here imports them.
    app.command(_entry.name)(_entry.load())


comfyui = typer.Typer(help="The ComfyUI node pack.", no_args_is_help=True)
app.add_typer(comfyui, name="comfyui")
_COMFYUI = Annotated[Path, typer.Argument(help="The ComfyUI installation, the folder with custom_nodes.")]


@comfyui.command("install")
def comfyui_install(
    directory: _COMFYUI, force: Annotated[bool, typer.Option(help="Write an installed shim again.")] = False
) -> None:
    """Put the nodes into an installation: a shim in custom_nodes/fastcfg."""
    from ..adapters.comfyui.install import install

    try:
        console.print(f"installed: {install(directory, force=force)}", highlight=False, soft_wrap=True)
    except (ValueError, OSError) as error:
        raise fail(error) from None


@comfyui.command("uninstall")
def comfyui_uninstall(directory: _COMFYUI) -> None:
    """Take the shim out again."""
    from ..adapters.comfyui.install import uninstall

    try:
        console.print(f"removed: {uninstall(directory)}", highlight=False, soft_wrap=True)
    except (ValueError, OSError) as error:
        raise fail(error) from None


if __name__ == "__main__":
    app()
