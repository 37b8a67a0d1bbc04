"""ComfyUI's noise levels, and the space that a node's rule works in.

ComfyUI's samplers work on ``x = x0 + sigma * noise``, for flow models on ``x = (1 - sigma) * x0 + sigma * noise``; a
model's outputs reach the hooks as clean samples ("denoised"). What the network itself predicts is read from the classes
of ``model.model_sampling``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, get_args

from torch import Tensor

from ...prediction import Kind, Prediction, latent_at
from ...validate import check_choice

__all__ = ["SPACES", "Space", "check_space", "kind_of", "prediction_at"]

Space = Literal["x0", "noise", "v", "model"]
"""``x0``: the clean sample; ``noise``: along ``x - x0``; ``v``: v-prediction, a flow model's velocity; ``model``: what
the network predicts. The first three are what ComfyUI's own nodes use, each its own."""

SPACES: tuple[str, ...] = get_args(Space)


def check_space(space: Space | None) -> None:
    """Raise a ValueError unless it is one of :data:`SPACES`, or None for any."""
    if space is not None:
        check_choice("space", space, SPACES)


def _sampling(model: Any) -> frozenset[str]:
    """Names of the classes that make up the model's sampling."""
    return frozenset(cls.__name__ for cls in type(getattr(model, "model_sampling", None)).__mro__)


def kind_of(space: Space | None, model: Any) -> Kind:
    """The kind of prediction that a space is for a model: one that is the space's up to a factor per sample.

    Args:
        space: None is any space, and so the one that the hooks are given.
        model: ComfyUI's ``BaseModel``.
    """
    if space is None or space == "x0":
        return "x0"
    sampling = _sampling(model)
    if sampling & {"CONST", "COSMOS_RFLOW"}:
        # Where alpha + sigma = 1, x - x0 is along the velocity, not along the noise.
        return "flow" if space != "noise" or "CONST" in sampling else "eps"
    if space != "model":
        return "eps" if space == "noise" else "v"
    if sampling & {"X0", "IMG_TO_IMG"}:
        return "x0"
    return "v" if sampling & {"V_PREDICTION", "EDM"} else "eps"


def prediction_at(model: Any, sigma: Tensor, x: Tensor, kinds: Collection[Kind]) -> tuple[Tensor, Prediction]:
    """A latent and what clean samples are at its noise level ``sigma`` ``[B]``, which stays on its device.

    For v the latent is scaled to variance preservation, where v is defined: norms are then those of the network's own.

    Args:
        kinds: what the rules work on.
    """
    return latent_at(x, sigma, "x0", kinds, flow="CONST" in _sampling(model))
