"""The table of what ran on the software GPU: ``python -m gpu.table FOLDER``, as ``make gpu-emulated`` calls it.

Each architecture has a process of its own, since compiled kernels are kept by device.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90, 100, 120)
STRATEGIES = ("row", "two_launch", "cooperative")
COUNT = 8_192
PROBLEMS = (
    *((name, dtype) for name in ("cfg", "rescale", "perpendicular", "projected") for dtype in ("bfloat16", "float32")),
    ("rescale", "float16"),
    ("rescale", "float64"),
)
BRIEF = (("rescale", "bfloat16"), ("rescale", "float32"), ("perpendicular", "bfloat16"), ("rescale", "float64"))
ROOT = Path(__file__).parents[2]


def _measure(name: str, kind: str, device: Any) -> dict[str, Any]:
    """One program and dtype by every strategy; the cooperative one twice, on the same counters."""
    import torch
    from fastcfg_kernels import guide_outputs
    from fastcfg_kernels.backends.triton.gates import PARAMS, programs

    from gpu.softgpu.estimate import estimate

    program, dtype = programs()[name], getattr(torch, kind)
    generator = torch.Generator().manual_seed(1)
    size = len(program.predictions)
    tensors = [torch.randn(2, COUNT, generator=generator) for _ in range(size + len(program.extras))]
    given = [t.to(dtype) for t in tensors[:size]]
    extras = [t.double() if kind == "float64" else t for t in tensors[size:]]
    values = {n: PARAMS[n] for n in program.params}
    exact = guide_outputs(
        [t.double() for t in given], program, values, extras=[t.double() for t in extras], backend="torch"
    )
    unit = 2.0**-53 if kind == "float64" else 2.0**-24
    row: dict[str, Any] = {"program": name, "dtype": kind, "arch": device.arch, "strategies": {}}
    for strategy in STRATEGIES if program.reduces else ("two_launch",):
        start, digests = time.process_time(), set()
        for _ in range(2):
            device.launches.clear()
            found = guide_outputs(given, program, values, extras=extras, backend="triton", strategy=strategy)
            digests.add(hashlib.sha256(b"".join(t.view(torch.uint8).numpy().tobytes() for t in found)).hexdigest())
        worst = 0.0
        for actual, expected in zip(found, exact, strict=True):
            store = 0.0 if actual.dtype == torch.float64 else torch.finfo(actual.dtype).eps / 2
            bound = store * expected.abs() + 64 * unit * expected.abs().max()
            worst = max(worst, float(((actual.double() - expected).abs() / bound).max()))
        kernels = []
        for launch in device.launches:
            counts, guess = launch.counts, estimate(launch)
            each = 32 / (2 * COUNT)
            kernels.append({
                "kernel": launch.kernel.name, "blocks": launch.blocks, "threads": launch.kernel.threads,
                "instructions_an_element": round(sum(counts.instructions().values()) * each, 2),
                "by_kind": {k: round(n * each, 2) for k, n in sorted(counts.instructions().items())},
                "barriers_a_warp": counts.instructions()["barrier"] // (launch.blocks * launch.kernel.threads // 32),
                "shuffles_a_warp": counts.instructions()["shuffle"] // (launch.blocks * launch.kernel.threads // 32),
                "sectors_over_least": round(sum(counts.sectors.values()) / max(sum(counts.least.values()), 1), 3),
                "wavefronts_over_least": round(counts.wavefronts / max(counts.least_wavefronts, 1), 3),
                "open": dict(launch.open_forms),
                "findings": sum(launch.findings.values()), "turns": launch.turns,
                "estimate_us": {
                    "instructions": round(guess.instructions * 1e6, 3), "traffic": round(guess.traffic * 1e6, 3),
                    "chain": round(guess.chain * 1e6, 3),
                },
            })  # fmt: skip
        row["strategies"][strategy] = {
            "digest": digests.pop() if len(digests) == 1 else "differs from launch to launch",
            "error_over_bound": round(worst, 4), "cpu_seconds": round(time.process_time() - start, 2),
            "kernels": kernels,
        }  # fmt: skip
    return row


def _run(arch: int, problems: Sequence[tuple[str, str]]) -> None:
    """The child: rows of one architecture, a line of JSON each."""
    import torch

    from gpu import harness

    torch.set_num_threads(1)
    device = harness.install(arch)
    device.count = True
    for name, kind in problems:
        print(json.dumps(_measure(name, kind, device)), flush=True)


def _rows(brief: bool) -> Iterator[dict[str, Any]]:
    for arch in ARCHITECTURES:
        command = [sys.executable, "-W", "ignore", "-m", "gpu.table", "--arch", str(arch), *["--brief"] * brief]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        yield from map(json.loads, done.stdout.splitlines())


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ``equal``: whether all strategies and architectures gave the same bits."""
    digests: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        found = {strategy["digest"] for strategy in row["strategies"].values()}
        digests.setdefault((row["program"], row["dtype"]), set()).update(found)
    return [{**row, "equal": len(digests[row["program"], row["dtype"]]) == 1} for row in rows]


def _tests(report: Path) -> dict[str, dict[str, float]]:
    """Tests by file from pytest's XML."""
    found: dict[str, dict[str, float]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        entry = found.setdefault(case.get("classname", ""), {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0})
        outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}
        kind = next((outcome[child.tag] for child in case if child.tag in outcome), "passed")
        entry[kind] += 1
        entry["seconds"] = round(entry["seconds"] + float(case.get("time", 0)), 1)
    return found


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def to_markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    lines = [
        "# The kernels on the software GPU",
        "",
        f"Commit {record['commit']}, {record['date']}; torch {record['torch']}, Triton {record['triton']}, NumPy "
        f"{record['numpy']}. Compiled PTX, executed on a CPU; never run on a GPU. Made by `{record['command']}`.",
        "",
        f"Two samples of {COUNT:,} elements. Equal bits: of all strategies that the program has, of two launches one "
        "after the other, and of all architectures. Error: the largest, over half a unit of the output's dtype and 64 "
        "roundings of the sums. Instructions: PTX, lane instructions an element. Barriers and shuffles: of a warp. "
        "Sectors and wavefronts: touched, over the fewest that the bytes would fill. Estimate: the largest of "
        "instructions, traffic and longest chain on 132 multiprocessors (`tests/gpu/softgpu/estimate.py`).",
        "",
        "| program | dtype | architecture | strategy | equal bits | error ÷ bound | kernel | instructions | barriers "
        "| shuffles | sectors | wavefronts | estimate, µs | findings |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        for strategy, found in row["strategies"].items():
            for kernel in found["kernels"]:
                guess = max(kernel["estimate_us"].items(), key=lambda pair: pair[1])
                lines.append(
                    f"| {row['program']} | {row['dtype']} | sm_{row['arch']} | {strategy} "
                    f"| {'yes' if row['equal'] else 'NO'} | {found['error_over_bound']:.2f} | {kernel['kernel']} "
                    f"| {kernel['instructions_an_element']:.1f} | {kernel['barriers_a_warp']} "
                    f"| {kernel['shuffles_a_warp']} | {kernel['sectors_over_least']:.2f} "
                    f"| {kernel['wavefronts_over_least']:.2f} | {guess[1]:.1f} ({guess[0]}) | {kernel['findings']} |"
                )
    if record["tests"]:
        lines += ["", "| tests | passed | failed | skipped | seconds |", "|---|---|---|---|---|"]
        for name, entry in record["tests"].items():
            numbers = " | ".join(f"{entry[k]:g}" for k in ("passed", "failed", "skipped", "seconds"))
            lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, as JSON and Markdown; 1 where bits differ, an error is beyond its bound or a test failed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="where gpu-emulated.json and .md go")
    parser.add_argument("--tests", type=Path, nargs="*", default=[], help="pytest's XML reports to take in")
    parser.add_argument("--arch", type=int, help="print the rows of one architecture")
    parser.add_argument("--brief", action="store_true", help="four programs and dtypes, not ten")
    given = parser.parse_args(arguments)
    if given.arch:
        _run(given.arch, BRIEF if given.brief else PROBLEMS)
        return 0
    import numpy
    import torch
    import triton

    rows = compared(list(_rows(given.brief)))
    tests = {name: entry for report in given.tests for name, entry in _tests(report).items()}
    record = {
        "command": "python -m gpu.table --brief" if given.brief else "make gpu-emulated",
        "commit": _git("describe", "--always", "--dirty"), "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__, "triton": triton.__version__, "numpy": numpy.__version__, "rows": rows,
        "tests": tests,
    }  # fmt: skip
    for suffix, text in (("json", json.dumps(record, indent=1) + "\n"), ("md", to_markdown(record))):
        path = given.folder / f"gpu-emulated.{suffix}"
        temporary = path.with_suffix(f".{suffix}.tmp")
        temporary.write_text(text)
        os.replace(temporary, path)
    wrong = any(not r["equal"] or any(s["error_over_bound"] > 1 for s in r["strategies"].values()) for r in rows)
    return int(wrong or any(entry["failed"] for entry in tests.values()))


if __name__ == "__main__":
    raise SystemExit(main())
