"""A student: it takes the scale as an input and gives in one pass what the teacher's guidance gives in two.

The one of the demo's model comes with the package; ``fastcfg distill`` trains others.
"""

import torch

from fastcfg import CFG, GuidedDenoiser
from fastcfg.demo.checkpoint import load_denoiser
from fastcfg.demo.classifier import load_classifier
from fastcfg.demo.diffusion import noise_scheduler
from fastcfg.demo.distillation import demo_student
from fastcfg.demo.sample import draw_noise, labels
from fastcfg.distill import Student

STEPS = 20
digits, colours = torch.arange(10).repeat(4), torch.arange(40) % 6
conditions = {"uncond": labels(like=digits), "cond": labels(digits, colours, like=digits)}


@torch.no_grad()
def sample(denoiser: GuidedDenoiser | Student) -> torch.Tensor:
    """Forty digits."""
    scheduler, x = noise_scheduler(), draw_noise(len(digits), seed=0)
    scheduler.set_timesteps(STEPS)
    for step, t in enumerate(scheduler.timesteps.tolist()):
        x = scheduler.step(denoiser(x, t, step=step, num_steps=STEPS, conditions=conditions), t, x).prev_sample
    return x


network, _ = load_denoiser()
judge, _ = load_classifier()
conditional = sample(GuidedDenoiser(network, CFG(1.0)))
for scale in (2.0, 5.0):
    teacher = GuidedDenoiser(network, CFG(scale))
    wanted, student = sample(teacher), demo_student(scale)
    got = sample(student)
    error, without = ((each - wanted).norm() / wanted.norm() for each in (got, conditional))
    right = int((judge.predict(got)[0] == digits).sum())
    print(
        f"scale {scale:g}: {student.passes_run} passes instead of {teacher.passes_run}, {error:.0%} from the teacher "
        f"({without:.0%} without guidance), {right} of {len(digits)} right"
    )
