"""What guidance did at each step, read by a server without waiting for the device."""

import torch

from fastcfg import APG, GatedCFG, GuidedDenoiser, State
from fastcfg.telemetry import Telemetry


def model(x: torch.Tensor, t: float, label: torch.Tensor) -> torch.Tensor:
    """Stands for yours: the velocity of a flow."""
    return x - torch.sin(label).view(-1, 1, 1, 1) * (1.5 - t)


def sample(denoiser: GuidedDenoiser, steps: int = 8) -> torch.Tensor:
    x, state = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), State()
    conditions = {"uncond": {"label": torch.zeros(2)}, "cond": {"label": torch.tensor([1.0, 2.0])}}
    for step in range(steps):
        t = 1 - step / steps
        x = x - denoiser(x, t, conditions=conditions, step=step, num_steps=steps, state=state) / steps
    return x


telemetry = Telemetry(sums="gram")  # One for the server; every=10 records each tenth call.
guided = sample(GuidedDenoiser(model, APG(7.5, norm_threshold=4.0), telemetry=telemetry))
plain = sample(GuidedDenoiser(model, APG(7.5, norm_threshold=4.0)))
print("the same bits as without:", torch.equal(guided, plain))

records = telemetry.read()
for step in (0, 4, 7):
    now = records[records.step == step]
    ratio, limit = (now.figures[name].round(3).tolist() for name in ("delta_ratio", "limit"))
    print(f"step {step}: |d| / |uncond| {ratio}, d shortened to {limit}")

sample(GuidedDenoiser(model, GatedCFG(5.0, every=4), telemetry=telemetry))
print(telemetry.report())
print(telemetry.to_prometheus({"model": "demo"}).splitlines()[2])
