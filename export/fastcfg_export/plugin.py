"""Raises ImportError: the TensorRT plugin was removed."""

from .errors import PLUGIN_REMOVED

raise ImportError(PLUGIN_REMOVED)
