"""Training for guidance: a condition is dropped for some samples, so that one network learns both predictions."""

import torch
from torch import Tensor, nn

from fastcfg import CFG, ConditionDropout, GuidedDenoiser

CLASSES, NULL, STEPS = 4, 4, 40


class Velocity(nn.Module):
    """A flow's velocity of points in the plane, by class."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES + 1, 16)
        self.net = nn.Sequential(nn.Linear(19, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        time = t.expand(len(x))[:, None] if t.dim() == 0 else t[:, None]
        return self.net(torch.cat([x, time, self.embed(label)], dim=1))


def data(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Four overlapping clouds around (±1, ±1)."""
    label = torch.randint(CLASSES, (count,), generator=generator)
    centre = torch.stack([label % 2, label // 2], dim=1) * 2.0 - 1.0
    return centre + 0.7 * torch.randn(count, 2, generator=generator), label


torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
model, dropout, dropped = Velocity(), ConditionDropout({"label": 0.15}), 0
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(400):
    x0, label = data(256, generator)
    given = dropout({"label": label}, {"label": torch.tensor(NULL)}, generator=generator)
    noise, t = torch.randn(x0.shape, generator=generator), torch.rand(256, generator=generator)
    x = torch.lerp(x0, noise, t[:, None])
    loss = nn.functional.mse_loss(model(x, t, **given), noise - x0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    dropped += int((given["label"] == NULL).sum())
print(f"dropped {dropped / 400 / 256:.1%} of the labels")

label = torch.arange(CLASSES).repeat(250)
conditions = {"uncond": {"label": torch.full_like(label, NULL)}, "cond": {"label": label}}
for scale in (0.0, 1.0, 3.0):
    x, denoiser = torch.randn(1000, 2, generator=torch.Generator().manual_seed(1)), GuidedDenoiser(model, CFG(scale))
    with torch.no_grad():
        for step in range(STEPS):
            x = x - denoiser(x, torch.tensor(1 - step / STEPS), conditions=conditions) / STEPS
    found = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    print(f"scale {scale:g}: {float((found == label).float().mean()):.0%} in their quadrant")
