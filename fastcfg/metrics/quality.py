"""Fréchet distance, precision, recall, coverage, accuracy and spread within classes, from feature vectors."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Quality", "Reference", "frechet_distance", "quality", "spread_within_classes"]


@dataclass(frozen=True)
class Quality:
    """Quality and diversity of a set of samples.

    Attributes:
        accuracy: share of the samples that the classifier recognises as the class asked for; NaN without labels.
        precision, recall: share of the samples inside the real manifold, and the reverse (1904.06991).
        density, coverage: their forms that outliers disturb less (2002.09797).
        frechet_distance: between Gaussians fitted to the features. It is FID's formula on other features than
            Inception's, so that its values compare within one feature network alone.
        spread: mean distance of features from the mean of their class, over that of the real data; NaN without
            labels. Guidance lowers it.
        samples: how many were judged.
    """

    accuracy: float
    precision: float
    recall: float
    density: float
    coverage: float
    frechet_distance: float
    spread: float
    samples: int


@dataclass(frozen=True)
class Reference:
    """The features of real data that samples are compared with.

    Attributes:
        features: ``[N, D]``.
        labels: class of each, int64 ``[N]``; needed for the spread within classes.
    """

    features: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        _check_features("features", self.features)
        if self.labels is not None and self.labels.shape != self.features.shape[:1]:
            raise ValueError(f"labels: expected [{len(self.features)}], got {list(self.labels.shape)}")


def _check_features(name: str, value: Any, columns: int | None = None, least: int = 2) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() != 2 or len(value) < least:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: expected floating features [N, D] with N of at least {least}, got {got}")
    if columns is not None and value.shape[1] != columns:
        raise ValueError(f"{name}: expected {columns} features as the reference has, got {value.shape[1]}")
    if not value.isfinite().all():
        raise ValueError(f"{name}: has values that are not finite")


def quality(
    reference: Reference,
    features: Tensor,
    *,
    asked: Tensor | None = None,
    seen: Tensor | None = None,
    nearest: int = 5,
) -> Quality:
    """Judges samples by their features.

    Args:
        reference: of real data.
        features: of the samples, ``[M, D]``; M and N should be alike, for precision and recall depend on both.
        asked: the classes the samples were made for, int64 ``[M]``.
        seen: the classes that the classifier finds in them, int64 ``[M]``.
        nearest: neighbours that span a manifold; 3 ... 5 is usual.

    Raises:
        ImportError: naming what is missing.
        ValueError: naming the argument.
    """
    try:
        from prdc import compute_prdc
    except ImportError as error:
        raise ImportError(f"quality metrics need prdc ({error}): pip install 'fastcfg-diffusion[metrics]'") from error
    if isinstance(nearest, bool) or not isinstance(nearest, int) or nearest < 1:
        raise ValueError(f"nearest: expected a positive integer, got {nearest!r}")
    # A ball to the k-th neighbour needs k others.
    for name, value in (("reference", reference.features), ("features", features)):
        _check_features(name, value, reference.features.shape[1], nearest + 2)
    for name, labels in (("asked", asked), ("seen", seen)):
        if labels is not None and labels.shape != features.shape[:1]:
            raise ValueError(f"{name}: expected [{len(features)}], got {list(labels.shape)}")
    real, fake = (value.detach().cpu().double().numpy() for value in (reference.features, features))
    # It prints the sizes, and asks scikit-learn for threads in a way that scikit-learn warns of.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`sklearn.utils.parallel.delayed`", UserWarning)
        manifold = compute_prdc(real, fake, nearest_k=nearest)
    spread = accuracy = float("nan")
    if asked is not None and reference.labels is not None:
        own = spread_within_classes(reference.features, reference.labels)
        spread = spread_within_classes(features, asked) / own if own > 0 else float("nan")
    if asked is not None and seen is not None:
        accuracy = (asked.cpu() == seen.cpu()).double().mean().item()
    return Quality(
        accuracy=accuracy,
        frechet_distance=frechet_distance(reference.features, features),
        spread=spread,
        samples=len(features),
        **{name: float(manifold[name]) for name in ("precision", "recall", "density", "coverage")},
    )


class _Features(nn.Module):
    """Takes features for images, so that torchmetrics' FID works on any of them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of two sets of features ``[N, D]`` and ``[M, D]``, in float64.

    Raises:
        ImportError: naming what is missing.
        ValueError: naming the argument.

    Source: Heusel et al., 1706.08500.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError(
            f"quality metrics need torchmetrics ({error}): pip install 'fastcfg-diffusion[metrics]'"
        ) from error
    _check_features("real", real)
    _check_features("fake", fake, real.shape[1])
    metric = FrechetInceptionDistance(feature=_Features(real.shape[1]))
    metric.update(real.detach().cpu().double(), real=True)
    metric.update(fake.detach().cpu().double(), real=False)
    return float(metric.compute())


def spread_within_classes(features: Tensor, labels: Tensor) -> float:
    """Root mean square distance of features ``[N, D]`` from the mean of their class, in float64.

    Raises:
        ValueError: naming the argument.
    """
    _check_features("features", features)
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels: expected [{len(features)}], got {list(labels.shape)}")
    values, labels = features.detach().cpu().double(), labels.cpu()
    squares = torch.zeros((), dtype=torch.float64)
    for label in torch.unique(labels):
        members = values[labels == label]
        squares += (members - members.mean(0)).square().sum()
    return float((squares / len(values)).sqrt())
