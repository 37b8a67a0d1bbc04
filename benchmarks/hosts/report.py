"""The table of a differential run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from fastcfg.adapters.diffusers import coverage
from fastcfg.adapters.diffusers.pipelines.table import GUIDERS

__all__ = ["write_report"]


def best_of(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each pipeline the line that shows most: a run before a failure."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        name = line.get("pipeline")
        if name is not None and ("failed" in found.get(name, {"failed": 1}) or "failed" not in line):
            found[name] = line
    return found


def write_report(lines: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write ``hosts.json`` and ``hosts.md``."""
    best = best_of(lines)
    run = {name: line for name, line in best.items() if "failed" not in line}
    failed = {name: line for name, line in best.items() if "failed" in line}
    names = sorted({*coverage(), *GUIDERS})
    versions = {m.__name__: m.__version__ for m in (diffusers, transformers, torch)}
    record = {"versions": versions, "pipelines": best, "not_in_tests": [n for n in names if n not in best]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    same = sum(line["bits"] for line in run.values())
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = [
        "# diffusers' own fast tests under fastcfg",
        "",
        f"Made by `make hosts` with {said}:",
        "the components and inputs of diffusers' fast tests, each pipeline beside itself with the rule that is its own",
        "guidance (`guided`), or with its guiders fused (`fuse`).",
        "",
        f"Of {len(names)} pipelines {len(run)} ran, {same} of them with the same bits at every step and in the result; "
        f"{len(failed)} did not run, {len(names) - len(best)} have no fast test.",
        "",
        "Bits are expected of plain combinations; a rule with sums is off by roundings. The passes are those of a run",
        "whose guidance is on in its first half.",
        "",
        "| pipeline | by | own guidance | dtype | steps | bits, or relative error | passes run, saved |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        line = best.get(name)
        if line is None:
            text.append(f"| {name} | | | | | no fast test | |")
        elif "failed" in line:
            text.append(f"| {name} | | | | | not run: {line['failed'].splitlines()[0][:140].replace('|', '/')} | |")
        else:
            shown = "bits" if line["bits"] else f"{line['error']:.1e}"
            rule = "; ".join(line["rule"].splitlines())
            columns = (line["how"], f"`{rule}`", line["dtype"], line["steps"], shown)
            text.append(f"| {name} | {' | '.join(map(str, columns))} | {line['passes']}, {line['saved']} |")
    (folder / "hosts.md").write_text("\n".join(text) + "\n")
