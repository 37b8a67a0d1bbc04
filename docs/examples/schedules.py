"""Schedules and gates: a step that needs no guidance runs no unconditional pass."""

import torch

import fastcfg
from fastcfg import CFG, GatedCFG, schedules
from fastcfg.demo.checkpoint import load_denoiser
from fastcfg.demo.classifier import load_classifier
from fastcfg.demo.diffusion import noise_scheduler
from fastcfg.demo.sample import draw_noise, labels

STEPS = 20
model, _ = load_denoiser()
digits = torch.arange(10)
conditions = {"uncond": labels(like=digits), "cond": labels(digits, like=digits)}
rules = {
    "every step": CFG(3.0),
    "from 1 up to 5": CFG(schedules.Ramp(1.0, 5.0)),
    "the middle half": CFG(schedules.Interval(3.0, start=0.25, stop=0.75)),
    "every third delta": GatedCFG(3.0, every=3),
}
for name, rule in rules.items():
    denoiser = fastcfg.GuidedDenoiser(model, rule)
    scheduler, state, x = noise_scheduler(), fastcfg.State(), draw_noise(10, seed=0)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps.tolist()):
            v = denoiser(x, t, step=step, num_steps=STEPS, conditions=conditions, state=state)
            x = scheduler.step(v, t, x).prev_sample
        seen, _ = load_classifier()[0].predict(x)
    right = int((seen == digits).sum())
    print(f"{name}: {denoiser.passes_run} passes, {denoiser.passes_saved} saved, {right} of 10 right")
