"""Guidance inside exported graphs.

A guided denoiser is traceable: :class:`GuidedModule` is the ``torch.nn.Module`` that ``torch.export`` and
``torch.onnx`` take.
"""

from .module import GuidedModule

__all__ = ["GuidedModule"]
