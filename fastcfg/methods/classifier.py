"""Classifier guidance: the gradient of a classifier, the rule that adds it, and classifiers of noisy samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.tracing import kept_property
from torch import Tensor
from torch.nn import functional

from ..prediction import Kind, affine_map
from ..rules import Linear, Parameter, Rule
from ..rules.base import Lowered, number_or_schedule
from ..schedules import Schedule
from ..validate import Weight, check_choice, check_tensor, upcast, weighted_sum, weights_like

__all__ = [
    "ClassifierGuidance",
    "classifier_gradient",
    "implied_classifier_gradient",
    "noisy_accuracy",
    "noisy_classifier_loss",
    "train_noisy_classifier",
]


def along_eps(scale: Any, sigma: Any) -> tuple[Any, Any]:
    """``p - scale sigma g``."""
    return 1.0 - scale * sigma, -scale * sigma


def along_score(scale: Any) -> tuple[Any, Any]:
    """``p + scale g``."""
    return 1.0 + scale, scale


def along_mean(scale: Any, variance: Any) -> tuple[Any, Any]:
    """``p + scale variance g``."""
    return 1.0 + scale * variance, scale * variance


_FORMS: dict[str, tuple[Callable[..., Any], tuple[str, ...], int]] = {
    "eps": (along_eps, ("scale", "sigma"), -1),
    "score": (along_score, ("scale",), 1),
    "mean": (along_mean, ("scale", "variance"), 1),
}


@dataclass(frozen=True)
class ClassifierGuidance(Rule):
    """Classifier guidance, ``g`` being the classifier's gradient ``grad_x log p(y | x)``.

    ====================  ================================  =========================================
    form                  formula                           needs
    ====================  ================================  =========================================
    ``"eps"`` (default)   ``eps - scale * sigma * g``       ``sigma``: ``sqrt(1 - alphas_cumprod)``
    ``"score"``           ``score + scale * g``
    ``"mean"``            ``mean + scale * variance * g``   ``variance`` of the reverse step
    ====================  ================================  =========================================

    ``guide(ClassifierGuidance(2.0), uncond=eps, gradient=g, params={"sigma": sigma})`` with ``g`` from
    :func:`classifier_gradient`. With the Bayes classifier it is CFG of the same scale. The mean form agrees with the
    eps form to first order in the step.

    Args:
        scale: lambda; 0 leaves the prediction. A value per sample goes to the call, as do the levels of each step.
        form: what is guided, as above. A variance for each element, as learned ones are, is multiplied into ``g``
            by the caller, with ``variance=1``.
        base: ``"uncond"``, or ``"cond"`` where the denoiser is conditional itself; that is the exponent
            ``scale + 1`` of ``p(y | x)``.
        sigma, variance: numbers, schedules, or None if the call gives them in ``params``.
        sign: of the gradient's term, only to state it: -1 for eps, +1 for score and mean. Another one is refused.
            (Noise points away from the data: a gradient added to eps drives samples away from the class.)

    Source: Dhariwal & Nichol, 2105.05233, algorithms 1 (mean) and 2 (eps).
    """

    scale: Parameter = 1.0
    form: Literal["eps", "score", "mean"] = "eps"
    base: Literal["uncond", "cond"] = "uncond"
    sigma: Parameter | None = None
    variance: Parameter | None = None
    sign: int | None = None

    title = "eps - scale * sigma * gradient, score + scale * gradient  [2105.05233]"

    def __post_init__(self) -> None:
        check_choice("form", self.form, tuple(_FORMS))
        check_choice("base", self.base, ("uncond", "cond"))
        _, names, sign = _FORMS[self.form]
        for name in ("scale", "sigma", "variance"):
            value = getattr(self, name)
            if value is not None:
                if name not in names:
                    raise ValueError(f"{name}: the {self.form!r} form has none")
                object.__setattr__(self, name, number_or_schedule(name, value))
        if self.sign is not None and self.sign != sign:
            raise ValueError(
                f"sign: expected {sign:+d} for the {self.form!r} form, got {self.sign!r}; the other sign guides away "
                "from the class, because eps = -sigma * score"
            )

    @property
    def conditions(self) -> tuple[str, ...]:
        return (self.base, "gradient")

    def lower(self) -> Lowered:
        formula, names, _ = _FORMS[self.form]
        # A level that is still None is named by the check of the call's parameters.
        params = cast(dict[str, Parameter], {name: getattr(self, name) for name in names})
        return Lowered(self.conditions, (fk.Stage(formula),), params)

    @kept_property
    def numbers(self) -> tuple[float, ...] | None:
        values = [self.lowered.params[name] for name in self.program.params]
        return None if any(v is None or isinstance(v, Schedule) for v in values) else tuple(cast(list[float], values))

    def basis_weights(self) -> dict[str, float] | None:
        return None if self.numbers is None else super().basis_weights()

    def simplify(self) -> Rule:
        """The prediction alone at scale 0; otherwise the rule."""
        return Linear(((self.base, 1.0),)) if self.scale == 0 else self


def classifier_gradient(
    classifier: Callable[..., Any], x: Tensor, labels: Tensor | int, t: Any = None, **kwargs: Any
) -> Tensor:
    """``grad_x log p(y | x)`` of a classifier: autograd of the selected log-softmax, summed over the batch.

    The sum makes each sample's gradient its own, as long as the classifier does not mix samples (batch norm in
    training mode does).

    Args:
        classifier: ``classifier(x, t, **kwargs)``, or ``classifier(x, **kwargs)`` where ``t`` is None; it returns
            logits ``[B, classes]``.
        x: noisy samples ``[B, ...]``.
        labels: integers ``[B]``, or one for all.
        t: what the classifier takes as the noise level.

    Returns:
        ``[B, ...]`` in x's dtype, detached; the graph is freed. It works inside ``no_grad`` and ``inference_mode``.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Dhariwal & Nichol, 2105.05233, sec. 4.1.
    """
    check_tensor("x", x)
    with torch.inference_mode(False), torch.enable_grad():
        variable = x.detach().clone().requires_grad_(True)
        logits = classifier(variable, **kwargs) if t is None else classifier(variable, t, **kwargs)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != x.shape[0]:
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"classifier: expected logits [{x.shape[0]}, classes], got {found}")
        index = _labels(labels, x.shape[0], logits.shape[1], logits.device)
        log_p = torch.log_softmax(upcast(logits), dim=-1).gather(1, index.unsqueeze(1))
        (gradient,) = torch.autograd.grad(log_p.sum(), variable)
    return gradient


def _labels(labels: Tensor | int, batch: int, classes: int, device: torch.device) -> Tensor:
    if isinstance(labels, Tensor):
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"labels: expected integers, got {labels.dtype}")
        if labels.shape != (batch,):
            raise ValueError(f"labels: expected the shape [{batch}], got {list(labels.shape)}")
        if labels.device.type == "cpu" and batch and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels: expected integers in 0 ... {classes - 1}, got {labels.tolist()}")
        return labels.to(device=device, dtype=torch.long)
    if isinstance(labels, bool) or not isinstance(labels, int):
        raise TypeError(f"labels: expected an integer or a tensor [{batch}] of integers, got {type(labels).__name__}")
    if not 0 <= labels < classes:
        raise ValueError(f"labels: expected an integer in 0 ... {classes - 1}, got {labels}")
    return torch.full((batch,), labels, device=device)


def implied_classifier_gradient(
    *, uncond: Tensor, cond: Tensor, kind: Kind = "eps", alpha: Weight | None = None, sigma: Weight | None = None
) -> Tensor:
    """``grad_x log p(c | x)`` that a conditional and an unconditional prediction imply: their scores' difference.

    For eps predictions it is ``-(cond - uncond) / sigma``.

    Args:
        uncond, cond: predictions ``[B, ...]``.
        kind: of both. Every kind but the score needs ``sigma``, and x0, v and flow need ``alpha`` too; numbers or
            tensors ``[]`` or ``[B]``.

    Returns:
        ``[B, ...]`` in the predictions' dtype.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Ho & Salimans, 2207.12598.
    """
    check_tensor("uncond", uncond)
    check_tensor("cond", cond, uncond)
    needed = {"eps": ("sigma",), "score": ()}.get(kind, ("alpha", "sigma"))
    given = {"alpha": alpha, "sigma": sigma}
    for name in needed:
        if given[name] is None:
            raise ValueError(f"{name}: expected the level of {kind} predictions")
    filled = {name: 1.0 if name not in needed or value is None else value for name, value in given.items()}
    _, weight = affine_map(kind, "score", *weights_like(filled, cond))
    return weighted_sum({"cond": (weight, cond), "uncond": (-weight, uncond)})


def _noised(x0: Tensor, alphas_cumprod: Tensor, t: Tensor, generator: torch.Generator | None) -> Tensor:
    bar = alphas_cumprod.to(device=x0.device, dtype=x0.dtype)[t].view(-1, *[1] * (x0.dim() - 1))
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    return bar.sqrt() * x0 + (1 - bar).sqrt() * noise


def _check_schedule(alphas_cumprod: Any) -> Tensor:
    if not isinstance(alphas_cumprod, Tensor) or alphas_cumprod.dim() != 1 or not alphas_cumprod.is_floating_point():
        raise ValueError("alphas_cumprod: expected a floating tensor [T]")
    return alphas_cumprod


def noisy_classifier_loss(
    classifier: Callable[..., Tensor],
    x0: Tensor,
    labels: Tensor,
    alphas_cumprod: Tensor,
    *,
    t: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cross-entropy of a classifier on noised samples: what a classifier has to be trained on to guide.

    ``x_t = sqrt(a) * x0 + sqrt(1 - a) * noise`` with ``a = alphas_cumprod[t]``, and ``classifier(x_t, t)``.

    Args:
        classifier: from ``x_t [B, ...]`` and ``t [B]`` to logits ``[B, classes]``.
        x0: clean samples ``[B, ...]``; labels: integers ``[B]``.
        alphas_cumprod: ``[T]``.
        t: integers ``[B]``; default uniform in ``0 ... T-1``.
        generator: of x0's device, for t and the noise.

    Returns:
        The mean loss, 0-dim, with its graph.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Dhariwal & Nichol, 2105.05233, sec. 4.
    """
    check_tensor("x0", x0)
    steps = _check_schedule(alphas_cumprod).shape[0]
    if t is None:
        t = torch.randint(steps, (x0.shape[0],), generator=generator, device=x0.device)
    logits = classifier(_noised(x0, alphas_cumprod, t, generator), t)
    return functional.cross_entropy(logits, labels)


def train_noisy_classifier(
    classifier: torch.nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    alphas_cumprod: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One optimiser step of :func:`noisy_classifier_loss` for each ``(x0, labels)`` of ``batches``.

    Returns:
        The losses, one a step; nothing is read back from a device on the way.
    """
    losses = []
    classifier.train()
    for x0, labels in batches:
        loss = noisy_classifier_loss(classifier, x0, labels, alphas_cumprod, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    classifier.eval()
    return torch.stack(losses) if losses else torch.zeros(0)


@torch.no_grad()
def noisy_accuracy(
    classifier: Callable[..., Tensor],
    x0: Tensor,
    labels: Tensor,
    alphas_cumprod: Tensor,
    timesteps: Iterable[int],
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The share of samples classified rightly at each of ``timesteps``, as a tensor of one value each.

    A classifier that was trained on clean samples alone falls off here far earlier than one of noisy samples.
    """
    check_tensor("x0", x0)
    _check_schedule(alphas_cumprod)
    shares = []
    for step in timesteps:
        t = torch.full((x0.shape[0],), step, device=x0.device)
        logits = classifier(_noised(x0, alphas_cumprod, t, generator), t)
        shares.append((logits.argmax(-1) == labels).float().mean())
    return torch.stack(shares) if shares else torch.zeros(0)
