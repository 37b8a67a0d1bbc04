"""Scale inputs of students: the convention as a value, and modules for a network of one's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..denoiser.conventions import flux_guidance_value, lcm_embedding, sinusoids
from ..validate import check_choice

__all__ = ["Convention", "FluxScaleEmbedding", "LCMScaleEmbedding"]

Form = Literal["lcm", "flux"]
ServingDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Convention:
    """The form and the roundings in which a network takes its guidance scale ``s``.

    ``"lcm"``: the keyword ``timestep_cond``, ``[sin, cos]`` of ``(s - 1) * 1000`` in float32, cast to the serving
    dtype; the network projects it into its time features. ``"flux"``: the keyword ``guidance``, ``s`` itself; the
    network casts it to its dtype, multiplies by 1000 in it, and embeds the result.

    Args:
        form: ``"lcm"`` or ``"flux"``.
        dim: length of the embedding: ``time_cond_proj_dim`` in the LCM form; diffusers fixes 256 in the Flux form.
        serving: dtype of the latents at serving. A student is trained on the values rounded to it, whatever dtype it
            is trained in: in bfloat16 a Flux scale of 3.5 is embedded as 3504.

    Raises:
        ValueError: naming the argument.

    Source: 2310.04378 (LCM); diffusers' ``FluxTransformer2DModel``.
    """

    form: Form = "lcm"
    dim: int = 256
    serving: ServingDtype = "float32"

    def __post_init__(self) -> None:
        check_choice("form", self.form, get_args(Form))
        check_choice("serving", self.serving, get_args(ServingDtype))
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim < 4 or self.dim % 2:
            raise ValueError(f"dim: expected an even integer of at least 4, got {self.dim!r}")

    @property
    def keyword(self) -> str:
        """The network's argument: ``timestep_cond`` or ``guidance``."""
        return "timestep_cond" if self.form == "lcm" else "guidance"

    def resolved(self, low: float, high: float) -> Tensor:
        """Return which features vary slowly over a range of scales, bool ``[dim]``.

        Of a value times 1000 most frequencies turn many times within the range, so that neighbouring scales have
        nothing of them in common. A student is trained without them. On the demo's model that matters little: after 200
        steps with the same examples the errors at s = 1, 2, 5 and 10 were 13.2, 13.2, 21.2 and 38.2 %, and with all
        features 13.0, 13.2, 21.8 and 38.9 %.
        """
        half = self.dim // 2
        last = half - 1 if self.form == "lcm" else half
        frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / last)
        slow = frequency * 1000 * max(high - low, 1e-3) <= 2 * math.pi
        return torch.cat([slow, slow])

    def arguments(self, scale: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The network's keyword argument for scales ``[B]`` of float32.

        Args:
            scale: guidance scales ``s`` (not ``w = s - 1``).
            dtype: that the network computes in. Where it is the serving dtype the value is what a pipeline passes;
                where it is wider, the value that the serving dtype would have rounded to.
        """
        serving: torch.dtype = getattr(torch, self.serving)
        if self.form == "lcm":
            return {self.keyword: lcm_embedding(scale, self.dim).to(serving).to(dtype)}
        if dtype == serving:
            return {self.keyword: scale.float()}
        return {self.keyword: flux_guidance_value(scale, serving).float() / 1000}


class LCMScaleEmbedding(nn.Module):
    """``timestep_cond`` ``[B, dim]`` projected into time features ``[B, features]``, to be added to them.

    The projection begins at zero, so that the network's output does not change when it is added.
    """

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.cond_proj = nn.Linear(dim, features, bias=False)
        nn.init.zeros_(self.cond_proj.weight)

    def forward(self, timestep_cond: Tensor) -> Tensor:
        projected: Tensor = self.cond_proj(timestep_cond)
        return projected


class FluxScaleEmbedding(nn.Module):
    """``guidance`` ``[B]`` times 1000 in the module's dtype, embedded, to be added to the time embedding.

    The last layer begins at zero, so that the network's output does not change when it is added.
    """

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear_1 = nn.Linear(dim, features)
        self.linear_2 = nn.Linear(features, features)
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, guidance: Tensor) -> Tensor:
        value = guidance.to(self.linear_1.weight.dtype) * 1000
        hidden = torch.nn.functional.silu(self.linear_1(sinusoids(value, self.dim).to(value.dtype)))
        embedded: Tensor = self.linear_2(hidden)
        return embedded
