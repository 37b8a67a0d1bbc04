"""Prometheus' text format of what a recorder knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .figures import FIGURES, HITS

__all__ = ["exposition"]

_NAME = re.compile("(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_OWN = ("backend", "quantile", "reason")
_TOTALS = {
    "calls": "Calls of guidance.",
    "recorded_calls": "Calls of guidance whose figures were recorded.",
    "records": "Records of samples that have been read.",
    "records_lost": "Records that were overwritten before they were read.",
    "steps": "Steps of guided denoisers.",
    "passes_run": "Passes of the model that were run.",
}


def exposition(numbers: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Prometheus' text format, version 0.0.4.

    Args:
        numbers: :meth:`fastcfg.telemetry.Telemetry.to_dict`; labels: put on every sample.

    Raises:
        ValueError: naming ``labels``, for a name that Prometheus does not take or that the samples have themselves.
    """
    for name in labels:
        if not _NAME.fullmatch(name) or name in _OWN:
            raise ValueError(f"labels: expected names of letters, digits and _, and none of {_OWN}, got {name!r}")
    lines: list[str] = []

    def family(name: str, kind: str, text: str) -> str:
        lines.extend((f"# HELP {name} {_escaped(text)}", f"# TYPE {name} {kind}"))
        return name

    def sample(name: str, value: float, **more: str) -> None:
        pairs = ",".join(f'{key}="{_escaped(text, quotes=True)}"' for key, text in (*labels.items(), *more.items()))
        lines.append(f"{name}{{{pairs}}} {value:.17g}" if pairs else f"{name} {value:.17g}")

    for key, text in _TOTALS.items():
        sample(family(f"fastcfg_{key}_total", "counter", text), numbers[key])
    for key, label, text in (
        ("backends", "backend", "Recorded calls of guidance by the path that they took."),
        ("passes_saved", "reason", "Passes that the full guidance would have run besides, by why they were not."),
    ):
        name = family(f"fastcfg_{key.replace('backends', 'backend_calls')}_total", "counter", text)
        for value, count in sorted(numbers[key].items()):
            sample(name, count, **{label: value})
    for figure, text in FIGURES.items():
        if figure in HITS:
            sample(family(f"fastcfg_{figure}_records_total", "counter", text), numbers["sums"][figure])
            continue
        name = family(f"fastcfg_{figure}", "summary", text)
        for key, value in numbers["figures"].get(figure, {}).items():
            if key.startswith("p"):
                sample(name, value, quantile=f"{float(key[1:]) / 100:g}")
        sample(f"{name}_sum", numbers["sums"][figure])
        sample(f"{name}_count", numbers["counts"][figure])
    return "\n".join(lines) + "\n"


def _escaped(text: str, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text
