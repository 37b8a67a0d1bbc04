"""A rule of your own: a formula of scalars, which every backend, modifier and schedule then takes."""

import torch
from fastcfg_kernels.math import minimum, sqrt

import fastcfg
from fastcfg import Rescale, Rule, schedules


@fastcfg.rule("uncond", "cond")
def bounded(dot_d_d, dot_uncond_uncond, scale=7.5, limit=0.3):  # type: ignore[no-untyped-def]
    """uncond + scale * d, the delta no longer than limit * |uncond|."""
    return 1.0, scale * minimum(1.0, limit * sqrt(dot_uncond_uncond / dot_d_d))


uncond, cond = torch.randn(2, 2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
guided = fastcfg.guide(bounded(limit=0.1), uncond=uncond, cond=cond)
lengths = torch.linalg.vector_norm(guided - uncond, dim=(1, 2, 3)) / torch.linalg.vector_norm(uncond, dim=(1, 2, 3))
print("length of what guidance adds, in |uncond|:", [round(float(length), 4) for length in lengths])  # 7.5 * 0.1

rescaled = Rescale(bounded(schedules.Ramp(1.0, 7.5)), phi=0.7)  # Modifiers and schedules, as for any rule.
again = Rule.from_json(rescaled.to_json())
print("through JSON:", again == rescaled)
print("its weights, as generated:", *bounded().program.source.splitlines(), sep="\n  ")
