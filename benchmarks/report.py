"""Results as rows, JSON, Markdown and a table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from .cases import REFERENCE, Case
from .race import Summary

__all__ = ["Environment", "Report", "Row", "Target", "write_atomically"]

PRIMARY = ("time", "device")
"""Metrics that targets are about."""


@dataclass(frozen=True)
class Environment:
    """Where it was measured."""

    device: str
    hardware: str
    threads: int
    commit: str
    versions: Mapping[str, str]

    @staticmethod
    def of(device: str) -> Environment:
        """This process's."""
        packages = ("torch", "numpy", "diffusers", *(("triton",) if device == "cuda" else ()))
        versions = {"python": platform.python_version()}
        for package in ("fastcfg", *packages):
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        hardware = torch.cuda.get_device_name() if device == "cuda" else _processor()
        return Environment(device, hardware, torch.get_num_threads(), _commit(), versions)

    @property
    def name(self) -> str:
        """A file name's stem: ``cpu-2threads``, or the GPU's name."""
        if self.device == "cpu":
            return f"cpu-{self.threads}thread{'s' * (self.threads != 1)}"
        return "-".join("".join(ch if ch.isalnum() else " " for ch in self.hardware).lower().split())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    """The commit of the sources, with ``+`` where the packages differ from it."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "fastcfg", "kernels")
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass(frozen=True)
class Row:
    """One contestant in one case; times in milliseconds.

    Attributes:
        ratio: its time ÷ fastcfg's, the median over rounds: above 1 fastcfg is faster.
        error: root mean square error against float64, in roundings of the dtype.
    """

    rule: str
    provider: str
    metric: str
    shape: tuple[int, ...]
    dtype: str
    p20: float
    p50: float
    p80: float
    ratio: float
    rounds: int
    error: float


@dataclass(frozen=True)
class Target:
    """A promise about one ratio, and what became of it."""

    what: str
    shape: tuple[int, ...]
    dtype: str
    least: float
    ratio: float

    @property
    def met(self) -> bool:
        return self.ratio >= self.least


@dataclass
class Report:
    """All rows of a run, and who was left out of which case and why."""

    environment: Environment
    rows: list[Row] = field(default_factory=list)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, case: Case, metric: str, summaries: Mapping[str, Summary], errors: Mapping[str, float]) -> None:
        """Rows of a race."""
        for name, summary in summaries.items():
            self.rows.append(
                Row(case.contest.name, name, metric, case.shape, case.dtype_name, error=errors[name], **asdict(summary))
            )

    def pairs(self) -> Iterator[tuple[Row, Row]]:
        """Each row of another contestant with fastcfg's of the same case."""
        own = {(r.rule, r.metric, r.shape, r.dtype): r for r in self.rows if r.provider == REFERENCE}
        for row in self.rows:
            if row.provider != REFERENCE:
                yield own[row.rule, row.metric, row.shape, row.dtype], row

    def targets(self) -> list[Target]:
        """What fastcfg promises, for the cases that were run."""
        found = []
        for _, row in self.pairs():
            if row.metric in PRIMARY:
                promise = _promise(row, self.environment.device)
                if promise is not None:
                    found.append(Target(promise[0], row.shape, row.dtype, promise[1], row.ratio))
        return found

    def to_json(self) -> str:
        """A JSON object, one row a line; each row carries all that identifies it."""
        where = asdict(self.environment)
        rows = [json.dumps({**asdict(row), **where}, ensure_ascii=False) for row in self.rows]
        left_out = [{"case": case, "provider": who, "reason": why} for case, who, why in self.left_out]
        head = {"schema": 1, "unit": "ms", "environment": where, "left_out": left_out}
        return (
            json.dumps(head, indent=1, ensure_ascii=False)[:-2] + ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
        )

    def _lines(self) -> Iterator[tuple[str, ...]]:
        for own, peer in self.pairs():
            yield (
                own.rule,
                "×".join(map(str, own.shape)),
                own.dtype,
                own.metric,
                _ms(own.p50),
                peer.provider,
                _ms(peer.p50),
                f"{peer.ratio:.2f}",
                f"{own.error:.2f} / {peer.error:.2f}",
            )

    def to_markdown(self) -> str:
        """Environment, targets, and every pair; no row is dropped for its result."""
        env = self.environment
        versions = ", ".join(f"{name} {version}" for name, version in env.versions.items())
        threads = f", {env.threads} thread{'s' * (env.threads != 1)}" if env.device == "cpu" else ""
        parts = [
            f"# Guidance on {env.hardware} ({env.device}{threads})",
            f"Commit {env.commit}; {versions}.",
            "Contestants take turns in one process; milliseconds are medians, and a ratio is the median over rounds of "
            "the peer's time ÷ fastcfg's: above 1 fastcfg is faster. Errors are root mean squares against float64 in "
            "roundings of the dtype, fastcfg / peer.",
        ]
        if targets := self.targets():
            rows = [
                (t.what, "×".join(map(str, t.shape)), t.dtype, f"≥ {t.least:.2f}", f"{t.ratio:.2f}", _yes(t.met))
                for t in targets
            ]
            parts += ["## Targets", _table(("target", "shape", "dtype", "ratio asked", "ratio", "met"), rows)]
        parts += ["## All", _table(HEADER, self._lines())]
        if self.left_out:
            parts += ["## Left out", _table(("case", "contestant", "why"), self.left_out)]
        return "\n\n".join(parts) + "\n"

    def table(self) -> Table:
        """The same for a terminal."""
        table = Table(*HEADER, title=f"{self.environment.hardware}, {self.environment.threads} threads")
        for line in self._lines():
            table.add_row(*line, style=None if float(line[7]) >= 1 else "yellow")
        return table

    def write(self, folder: Path) -> list[Path]:
        """JSON and Markdown into a folder, each of them whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / self.environment.name
        written = []
        for suffix, text in ((".json", self.to_json()), (".md", self.to_markdown())):
            written.append(stem.with_name(stem.name + suffix))
            write_atomically(written[-1], text)
        return written


VIDEO = (1, 16, 21, 60, 104)
AT_VIDEO = {
    ("CFG + rescale 0.7", "fp32"): 6.0,
    ("CFG + rescale 0.7", "bf16"): 15.0,
    ("CFG-Zero*", "fp32"): 3.0,
    ("APG", "fp32"): 18.0,
    ("TCFG", "fp32"): 40.0,
}
"""How many times faster than diffusers' guider on a CPU, for Wan 480p."""


def _promise(row: Row, device: str) -> tuple[str, float] | None:
    """What is promised about a peer's row, and the least ratio that keeps it."""
    if row.provider == "torch.lerp" and prod(row.shape) >= 2**18:
        return "CFG within 1.2× of torch.lerp", 1 / 1.2
    if not row.provider.startswith("diffusers"):
        return None
    if device == "cpu" and row.shape == VIDEO and (least := AT_VIDEO.get((row.rule, row.dtype))) is not None:
        return f"{row.rule} at least {least:g}× faster than the guider", least
    if row.rule == "CFG + rescale 0.7" and row.shape == (1, 16, 128, 128):
        return f"{row.rule} at least 5× faster than the guider", 5.0
    return f"{row.rule} not slower than the guider", 1.0


HEADER = ("rule", "shape", "dtype", "metric", "fastcfg ms", "peer", "peer ms", "peer ÷ fastcfg", "error")


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_atomically(path: Path, text: str) -> None:
    """Write a file beside its place and then rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
