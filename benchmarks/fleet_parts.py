"""Where the parts of :mod:`benchmarks.fleet` come from, and how far its predictions are from what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from .fleet import LEFT_OUT, Outcome, Parts, Setup, latency_ms, outcomes

__all__ = ["Assumption", "Check", "assumptions", "checks", "combine_ms", "measured", "section"]

RESULTS: Path = Path(__file__).parent / "results"
LATENT = 16 * 128 * 128
"""Elements of a prediction at 1024 px (SD3, Flux)."""
ASSUMED: Mapping[str, str] = {
    "pass_ms": "assumed: a large network at 1024 px",
    "steps": "assumed",
    "passes": "CFG",
    "images": "assumed",
    "batch_gain": "assumed: a pass fills the GPU",
    "combine_ms": "assumed: one fused kernel, bound by its launch",
    "scheduler_ms": "assumed: a few small kernels",
    "fixed_ms": "assumed: text encoder and image decoder",
    "prediction_mb": "16×128×128 in bfloat16",
    "link_gb_per_s": "assumed: PCIe 5",
    "link_us": "assumed: a message between hosts' processes, then one all-gather",
    "imbalance": "assumed: equal GPUs, equal passes",
    "student_cost": "assumed: merged",
    "utilisation": "assumed",
}
COMBINED = "CFG + rescale 0.7"
GIVEN = "given"


@dataclass(frozen=True)
class Assumption:
    """A part with its unit, and where its value is from: ``measured here: FILE``, ``assumed`` or ``given``."""

    name: str
    value: float
    unit: str
    source: str


def _load(folder: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Result files of a kind by name, those of a GPU first; a file that has no kind is of the one that begins its name.

    Raises:
        ValueError: naming the folder, or a file that is no result.
    """
    if not folder.is_dir():
        raise ValueError(f"results: expected a folder, got {folder}")
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            own = data["kind"] if "kind" in data else kind if path.name.startswith(kind) else None
            if own == kind:
                found.append((data["environment"]["device"] != "cuda", path.name, data))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"results: expected result files, got {path} ({error!r})") from None
    for _, name, data in sorted(found, key=lambda each: each[:2]):
        yield name, data


def measured(folder: Path = RESULTS) -> tuple[Parts, dict[str, str]]:
    """The parts as far as the recorded results have them, the rest assumed; and the source of each.

    Raises:
        ValueError: naming a file that is no result file.
    """
    values: dict[str, float] = {}
    sources = dict(ASSUMED)

    def take(name: str, value: float, source: str) -> None:
        values[name], sources[name] = value, f"measured here: {source}"

    for file, data in _load(folder, "guided-step"):
        gains = [row["ratio"] for row in data["rows"] if row["contestant"] == "sequential"]
        if gains:
            what = f"{file}, median of {len(gains)} small networks on the {data['environment']['device']}"
            take("batch_gain", min(2.0, max(0.5, median(gains))), what)
            break
    for file, data in _load(folder, "parallel"):
        shared = [_ideal(row) / row["ratio"] for row in data["rows"] if row["ranks"] == 2]
        if shared:
            take("imbalance", max(1.0, median(shared)), f"{file}, median of {len(shared)} rules, transfer included")
            break
    for file, data in _load(folder, "distillation"):
        times = [found["time"] for name, found in data["findings"].items() if name != "lora"]
        if times:
            cost = median(t["student"] * t["teacher_passes"] / t["teacher"] for t in times)
            take("student_cost", cost, f"{file}, median of {len(times)} students without an adapter of their own")
            break
    for file, data in _load(folder, "scaling"):
        if data["environment"]["device"] == "cuda" and (value := combine_ms(data["fits"])) is not None:
            take("combine_ms", value, f"{file}, {COMBINED} at 1024 px")
            break
    return Parts(**values), sources  # type: ignore[arg-type]


def combine_ms(fits: Iterable[Mapping[str, Any]]) -> float | None:
    """Milliseconds of the combine at 1024 px by its law along the frames, None where there is none."""
    for law in fits:
        if (law["axis"], law["rule"]) == ("frames", COMBINED):
            return float(law["fixed_ms"] + law["ms_per_unit"] / law["elements_per_unit"] * LATENT)
    return None


def _passes(rule: str) -> int:
    """``3`` of ``"perp-neg, 3 passes"``."""
    return int(rule.rpartition(", ")[2].split()[0])


def _ideal(row: Mapping[str, Any]) -> float:
    """How many times faster the passes of a row of ``parallel-*.json`` could be over its ranks."""
    passes = _passes(row["rule"])
    return float(passes / -(-passes // row["ranks"]))


def assumptions(parts: Parts, sources: Mapping[str, str]) -> list[Assumption]:
    """Every part with its unit and source."""
    return [
        Assumption(part.name, getattr(parts, part.name), part.metadata["unit"], sources[part.name])
        for part in fields(parts)
    ]


@dataclass(frozen=True)
class Check:
    """A time that was measured and what the model says of it, both ÷ the time of a reference measured beside it."""

    file: str
    what: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative, of the prediction."""
        return self.predicted / self.measured - 1


def checks(folder: Path = RESULTS) -> list[Check]:
    """The model beside whole guided steps and passes over processes that were measured.

    A network's single pass and its batch of two are taken from the file, the rest is predicted.
    """
    found = []
    for file, data in _load(folder, "guided-step"):
        for model in dict.fromkeys(row["model"] for row in data["rows"]):
            rows = {row["contestant"]: row for row in data["rows"] if row["model"] == model}
            if "no guidance" not in rows:
                continue
            one = rows["no guidance"]["ratio"]
            parts = replace(_bare(2), pass_ms=one, batch_gain=min(2.0, max(0.5, 2 * one)))
            for name, row in rows.items():
                kept = 2 * row["passes"] / row["full"] - 1
                if name == "sequential" or 0 < kept < 1:
                    setup = Setup(name, batched=name != "sequential", kept=kept)
                    found.append(Check(file, f"{model}: {name}", latency_ms(parts, setup), row["ratio"]))
    for file, data in _load(folder, "parallel"):
        for row in data["rows"]:
            if row["ranks"] == 2:
                parts = _bare(_passes(row["rule"]))
                share = latency_ms(parts, Setup("", ranks=2)) / latency_ms(parts, Setup(""))
                found.append(Check(file, f"{row['rule']}: 2 ranks, balanced", share, 1 / row["ratio"]))
    return found


def _bare(passes: int) -> Parts:
    """One step of passes alone."""
    return Parts(
        pass_ms=1.0, steps=1, passes=passes, combine_ms=0.0, scheduler_ms=0.0, fixed_ms=0.0, prediction_mb=0.0,
        link_us=0.0,
    )  # fmt: skip


def section(
    parts: Parts, sources: Mapping[str, str], demand: float | None = None, folder: Path = RESULTS
) -> dict[str, Any]:
    """``fleet`` of a result file: the assumptions, a row a setup, the checks and what is left out."""
    rows: list[Outcome] = outcomes(parts, demand=demand)
    return {
        "assumptions": [asdict(each) for each in assumptions(parts, sources)],
        "demand": demand,
        "rows": [asdict(row) for row in rows],
        "checks": [{**asdict(check), "error": check.error} for check in checks(folder)],
        "left_out": list(LEFT_OUT),
    }
