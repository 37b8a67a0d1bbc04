"""Stages that end a rule's program in a solver's step, chosen by number so that a trace can name them."""

from __future__ import annotations

import fastcfg_kernels as fk

__all__ = ["STAGES"]


def _stage(history: bool, noise: bool, model_input: bool) -> fk.Stage:
    """The outputs of a step: the next x; the clean sample where it is kept; the next model input."""
    reads = ["x", *["previous_x0"] * history, *["noise"] * noise]
    row = [f"step_{name}" for name in ("prediction", *reads)]
    names, rows = list(row), [row]
    if history:
        names += ["step_x0_prediction", "step_x0_x"]
        rows.append([*names[-2:], *["0.0"] * (len(row) - 2)])
    if model_input:
        names.append("step_input_scale")
        rows.append([f"step_input_scale * {name}" for name in row])
    result = ", ".join(term for terms in rows for term in terms)
    source = f"def step({', '.join(names)}):\n    return {result}\n"
    formula = fk.function_from_source("step", source, {})
    return fk.Stage(formula, "step", reads=tuple(reads), rows=len(rows))


STAGES = tuple(_stage(bool(key & 1), bool(key & 2), bool(key & 4)) for key in range(8))
"""By :func:`fastcfg.samplers.step.stage_key`: bit 0 keeps the clean sample, bit 1 adds noise, bit 2 writes the next
model input."""
