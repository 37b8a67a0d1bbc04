"""``python -m benchmarks.readme``: the tables of README.md and docs/matrix.md, from the code and the recorded results.

Each stands between two markers, ``<!-- NAME -->`` and ``<!-- /NAME -->``; ``--check`` says whether they are current.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from fastcfg.files import write_atomically

from . import matrix
from .matrix import table
from .records import OtherKind, read

__all__ = ["blocks", "documents", "matrix_page", "results", "with_blocks"]

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "benchmarks" / "results"
SHAPES = ((1, 4, 64, 64), (1, 16, 128, 128), (1, 16, 21, 60, 104))
"""Latents of SD 1.5, SDXL or Flux, and Wan at 480p."""
DTYPES = ("fp32", "bf16")
OWN = ("CFG", "CFG + rescale 0.7")
"""Rules whose own times are shown."""
COMPILED = ("CFG + rescale 0.7", "PerpNeg")
"""Rules whose race against ``torch.compile`` is shown whatever its result."""


def _shown(rule: str, peer: str, ratios: Mapping[Any, float]) -> bool:
    """diffusers' guidance, ``torch.lerp``, a compiler, and whatever is faster than fastcfg somewhere."""
    chosen = peer.startswith("diffusers ") or peer == "torch.lerp" or (peer == "torch.compile" and rule in COMPILED)
    return chosen or min(ratios.values()) < 1


def results(recorded: Mapping[str, Any]) -> str:
    """The peer's time ÷ fastcfg's for three sizes.

    Args:
        recorded: a file of ``fastcfg bench``.

    Raises:
        ValueError: if it lacks one of the sizes.
    """
    pairs: dict[tuple[str, str], dict[tuple[tuple[int, ...], str], float]] = {}
    own: dict[str, dict[tuple[int, ...], float]] = {}
    for row in recorded["rows"]:
        shape = tuple(row["shape"])
        if row["metric"] != "time" or shape not in SHAPES or row["dtype"] not in DTYPES:
            continue
        if row["provider"] == "fastcfg":
            if row["dtype"] == DTYPES[0]:
                own.setdefault(row["rule"], {})[shape] = row["p50"]
        else:
            pairs.setdefault((row["rule"], row["provider"]), {})[shape, row["dtype"]] = row["ratio"]
    if missing := [shape for shape in SHAPES if shape not in own.get("CFG", {})]:
        raise ValueError(f"recorded: expected results at {SHAPES}, got none at {missing}")
    header = ("rule", "against", *("×".join(map(str, shape)) for shape in SHAPES))
    rows = []
    for (rule, peer), ratios in pairs.items():
        if _shown(rule, peer, ratios):
            cells = [" / ".join(_ratio(ratios.get((shape, dtype))) for dtype in DTYPES) for shape in SHAPES]
            rows.append((rule, peer.removeprefix("diffusers "), *cells))
    cells = [" / ".join(f"{own[rule][shape] * 1e3:.0f}" for rule in OWN) for shape in SHAPES]
    rows.append((f"{' / '.join(OWN)}", f"fastcfg itself, µs, {DTYPES[0]}", *cells))
    return table(header, rows, "llrrr")


def _ratio(value: float | None) -> str:
    """Two digits, bold where the peer is faster; a dash where it did not race."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 1 else f"**{value:.2f}**"


def about(recorded: Mapping[str, Any]) -> str:
    """Return where the results come from."""
    where = recorded["environment"]
    versions = where["versions"]
    return (
        f"{where['hardware']}, {where['threads']} threads, torch {versions['torch']}, diffusers "
        f"{versions['diffusers']}, commit {where['commit']}; {' / '.join(DTYPES)}, **bold** where the peer is faster:\n"
    )


def kernels_of(folder: Path) -> Mapping[str, Any]:
    """The recorded race of the kernels on a CPU, of the most threads.

    Raises:
        ValueError: if there is none.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OtherKind):
            found.append(read(path, ("kernels",)))
    on_cpu = [each for each in found if each["environment"]["device"] == "cpu" and each.get("cache", "hot") == "hot"]
    if not on_cpu:
        raise ValueError(f"{folder}: expected a result of kind kernels from a CPU, got none")
    return max(on_cpu, key=lambda each: each["environment"]["threads"])


def blocks() -> dict[str, str]:
    """README.md's generated parts by the names of their markers."""
    recorded = kernels_of(RECORDED)
    return {"results": about(recorded) + "\n" + results(recorded)}


def with_blocks(text: str, parts: Mapping[str, str]) -> str:
    """A document with what stands between its markers replaced.

    Raises:
        ValueError: if it has not exactly one pair of markers for a part.
    """
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        text, count = pattern.subn(lambda found, part=part: found[1] + part + found[2], text)
        if count != 1:
            raise ValueError(f"text: expected one pair of markers <!-- {name} -->, got {count}")
    return text


def matrix_page() -> str:
    """docs/matrix.md."""
    return f"""# What takes which rule

Made by `python -m benchmarks.readme --write`, which tries every rule of `fastcfg rules` on every adapter. A rule
without a guider or a node of its own is taken as it is: by `RuleGuidance(rule)` in modular pipelines, by `FastcfgRule`
in ComfyUI.

{matrix.compact()}
By name:

{matrix.full()}
A tick for `GatedCFG` means that a run in the host took fewer passes and ended where the same policy in a
`GuidedDenoiser` ends (`benchmarks/gated_hosts.py`; diffusers classic by its passes, its latents in
`tests/fastcfg/adapters/test_gates_pipelines.py`; ComfyUI by KSampler, in `tests/conformance/test_comfyui.py`).

Not taken, and why:

{matrix.refusals()}
`NegativePrompt` in ComfyUI is `FastcfgCFG`, whose negative conditioning takes the place of the unconditional one. What
changes from step to step is fixed in a graph: `CFGZeroStar(zero_init_steps=0)` exports, and so does any rule
`.at(step, num_steps)`. The logits processor for transformers takes plain CFG, on log-probabilities.
"""


def documents() -> dict[Path, str]:
    """The documents with generated parts, as they should be."""
    page = ROOT / "README.md"
    return {page: with_blocks(page.read_text(), blocks()), ROOT / "docs" / "matrix.md": matrix_page()}


app = typer.Typer(add_completion=False)


@app.command()
def main(
    write: Annotated[bool, typer.Option("--write/--check", help="Write the parts, or say which are out of date.")],
) -> None:
    """The generated parts of README.md, and docs/matrix.md."""
    stale = {path: text for path, text in documents().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if write:
            write_atomically(path, text)
        what = "written" if write else "out of date: python -m benchmarks.readme --write"
        print(f"{path.relative_to(ROOT)}: {what}")
    raise typer.Exit(bool(stale) and not write)


if __name__ == "__main__":
    app()
