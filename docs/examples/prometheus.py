"""What guidance did to each sample, kept on the device and scraped by Prometheus."""

import torch
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from fastcfg import APG, GuidedDenoiser, State

STATS = ("delta_ratio", "cosine", "limited")
STEPS = 8

registry = CollectorRegistry()  # prometheus_client.start_http_server(port, registry=registry) serves it.
ratio = Histogram("delta_ratio", "|d| / |uncond|", buckets=(0.1, 0.3, 1, 3, 10), registry=registry)
limited = Counter("limited", "Samples of a step whose guidance a limit shortened", registry=registry)
passes = Counter("passes", "Passes of the model, run and saved", ["which"], registry=registry)


def model(x: torch.Tensor, t: float, label: torch.Tensor) -> torch.Tensor:
    """Stands for yours: the velocity of a flow."""
    return x - torch.sin(label).view(-1, 1, 1, 1) * (1.5 - t)


def sample(stats: torch.Tensor | None = None) -> torch.Tensor:
    """Sample a batch; ``stats`` is ``[STEPS, B, K]`` on the model's device."""
    denoiser, state = GuidedDenoiser(model, APG(7.5, norm_threshold=4.0)), State()
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    conditions = {"uncond": {"label": torch.zeros(2)}, "cond": {"label": torch.tensor([1.0, 2.0])}}
    for step in range(STEPS):
        t = 1 - step / STEPS
        place = {"step": step, "num_steps": STEPS, "state": state}
        told = {} if stats is None else {"stats": STATS, "stats_out": stats[step]}
        x = x - denoiser(x, t, conditions=conditions, **place, **told) / STEPS
    report = denoiser.report()
    passes.labels("run").inc(report.run)
    passes.labels("saved").inc(report.saved)
    return x


stats = torch.empty(STEPS, 2, len(STATS))
print("the same bits as without:", torch.equal(sample(stats), sample()))

rows = stats[~stats.isnan().any(-1)].tolist()  # The one read, after the last step; NaN is a step without guidance.
for delta, _, hit in rows:
    ratio.observe(delta)
    limited.inc(hit)
print(f"cosine of cond and uncond, at the first step: {stats[0, :, 1].tolist()}")
print(generate_latest(registry).decode())
