"""Requests that join and leave a batch: each with its own rule, step and length, and the same bits as alone."""

import torch

from fastcfg import CFG, GuidedDenoiser, Requests, Rule, schedules


def model(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Stands for yours: the velocity of a flow."""
    return x - torch.sin(label).view(-1, 1, 1, 1) * (1 - t).view(-1, 1, 1, 1)


ARRIVALS: dict[int, tuple[str, int, Rule]] = {
    0: ("ann", 6, CFG(5.0)),
    2: ("bob", 4, CFG(2.0, rescale=0.5)),
    3: ("eve", 5, CFG(schedules.Interval(7.0, start=0.4, stop=1.0))),
}
"""By tick: who, how many steps, and how guided."""


def conditions(name: str) -> dict[str, dict[str, torch.Tensor]]:
    """Of one request: dim 0 is 1."""
    return {"uncond": {"label": torch.zeros(1)}, "cond": {"label": torch.tensor([float(len(name) + ord(name[0]))])}}


def noise(name: str) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(ord(name[0])))


def serve(arrivals: dict[int, tuple[str, int, Rule]]) -> dict[str, torch.Tensor]:
    """Run all requests to their ends; a tick is one call of the model."""
    batch, latents, finished, tick = Requests(GuidedDenoiser(model, CFG(5.0))), {}, {}, 0
    while len(finished) < len(arrivals):
        if tick in arrivals:
            name, steps, rule = arrivals[tick]
            batch.add(name, conditions(name), num_steps=steps, rule=rule)
            latents[name] = noise(name)
        tick += 1
        if not len(batch):
            continue
        names = [str(name) for name in batch.ids]
        x = torch.cat([latents[name] for name in names])
        times = torch.tensor([1 - batch[name].step / batch[name].num_steps for name in names])
        velocity = batch(x, times)
        for i, name in enumerate(names):
            latents[name] = x[i : i + 1] - velocity[i : i + 1] / batch[name].num_steps
            if batch[name].done:
                batch.remove(name)
                finished[name] = latents[name]
    if len(arrivals) > 1:
        print(batch.report())
    return finished


together = serve(ARRIVALS)
for name, steps, rule in ARRIVALS.values():
    alone = serve({0: (name, steps, rule)})
    print(f"{name}: as alone, to the bit: {torch.equal(together[name], alone[name])}")
