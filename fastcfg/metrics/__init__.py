"""Quality and diversity of samples, measured on the features of a classifier of the same data.

Needs scikit-learn, torchmetrics and prdc: ``pip install 'fastcfg-diffusion[metrics]'``.
"""

from .quality import Quality, Reference, frechet_distance, quality, spread_within_classes

__all__ = ["Quality", "Reference", "frechet_distance", "quality", "spread_within_classes"]
