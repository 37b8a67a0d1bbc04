"""fp64 oracles: every guidance rule written from its paper in plain numpy float64.

Nothing here imports fastcfg, and nothing is rearranged for speed or for precision: a formula appears in the
predictions' own basis, as its paper prints it.  Predictions have shape ``[B, ...]``, parameters are floats or
``[B]`` arrays, and sums run over all dimensions but the batch unless ``dims`` says otherwise.
"""

from . import classifier, classifier_free, nonlinear, perturbed, projection, rescale, rounding

__all__ = ["classifier", "classifier_free", "nonlinear", "perturbed", "projection", "rescale", "rounding"]
