"""The sections of ``fastcfg bench``: what each measures, where it can run, and the run of several."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from .sections import Case, Measured, Plan, Progress

__all__ = ["SECTIONS", "Outcome", "Section", "again", "obstacle", "run"]


@dataclass(frozen=True)
class Section:
    """A part of the suite.

    Attributes:
        about: what it measures; measure: does it, and imports what it needs.
        kind: of its result; needs: by package that it imports, the extra that brings it.
        devices: where it runs.
    """

    about: str
    measure: Callable[[Plan, Progress], Measured]
    kind: str
    needs: Mapping[str, str]
    devices: tuple[str, ...] = ("cpu", "cuda")


def _kernels(plan: Plan, progress: Progress) -> Measured:
    from . import kernels

    return kernels.section(plan, progress)


def _guided_step(plan: Plan, progress: Progress) -> Measured:
    from . import bench_guided_step

    return bench_guided_step.section(plan, progress)


def _samplers(plan: Plan, progress: Progress) -> Measured:
    from . import samplers

    return samplers.section(plan, progress)


def _export(plan: Plan, progress: Progress) -> Measured:
    from . import export_steps

    return export_steps.section(plan, progress)


def _scaling(plan: Plan, progress: Progress) -> Measured:
    from . import scaling

    return scaling.section(plan, progress)


_DIFFUSERS = {"diffusers": "diffusers"}
SECTIONS: Mapping[str, Section] = {
    "kernels": Section("guidance alone, every rule", _kernels, "kernels", {}),
    "guided-step": Section("passes batched, one by one, skipped", _guided_step, "guided-step", _DIFFUSERS),
    "samplers": Section("whole denoising runs", _samplers, "samplers", {**_DIFFUSERS, "safetensors": "demo"}),
    "export": Section(
        "guidance inside a graph and outside",
        _export,
        "export",
        {name: "export" for name in ("onnx", "onnxscript", "onnxruntime", "safetensors")} | {"diffusers": "demo"},
        ("cpu",),
    ),
    "scaling": Section("how cost grows", _scaling, "scaling", {}),
}
"""By name, in the order in which they run."""


def obstacle(section: Section, plan: Plan) -> str | None:
    """Why a section can't run here, or None."""
    if plan.device not in section.devices:
        return f"runs on {' and '.join(section.devices)} alone, not on {plan.device}"
    missing = {name: extra for name, extra in section.needs.items() if find_spec(name) is None}
    if missing:
        return f"needs {', '.join(missing)}; pip install 'fastcfg-diffusion[{','.join(sorted(set(missing.values())))}]'"
    return None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a section.

    Attributes:
        measured: its result, or None; why: it was left out, or failed; failed: whether something went wrong.
    """

    section: str
    seconds: float = 0.0
    measured: Measured | None = None
    why: str = ""
    failed: bool = False


def run(names: Sequence[str], plan: Plan, progress: Callable[[str, str], None]) -> Iterator[Outcome]:
    """Run sections one after another.

    Args:
        progress: called with the section and the part, before each.
    """
    for name in names:
        section = SECTIONS[name]
        progress(name, "")
        if (why := obstacle(section, plan)) is not None:
            yield Outcome(name, why=why)
            continue
        began = time.perf_counter()
        try:
            measured = section.measure(plan, lambda part, name=name: progress(name, part))  # type: ignore[misc]
        except ImportError as error:
            yield Outcome(name, why=str(error))
        except Exception as error:  # The other sections' results are worth having all the same.
            why = f"{type(error).__name__}: {error}"
            yield Outcome(name, time.perf_counter() - began, why=why, failed=True)
        else:
            seconds = time.perf_counter() - began
            record = replace(
                measured.record, more={**measured.record.more, "full": plan.full, "seconds": round(seconds, 3)}
            )
            yield Outcome(name, seconds, replace(measured, record=record))


def again(cases: Collection[Case], plan: Plan, progress: Callable[[str, str], None]) -> Iterator[Outcome]:
    """Measure these cases alone once more, with twice their rounds."""
    kinds = {case[0] for case in cases}
    names = [name for name, section in SECTIONS.items() if section.kind in kinds]
    return run(names, replace(plan, only=frozenset(cases)), progress)
