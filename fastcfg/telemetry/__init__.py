"""Telemetry of guidance that a server can read without waiting for the device.

A :class:`Telemetry` is given to the calls; what they leave are :class:`Records` of :data:`FIGURES`.
"""

from .figures import FIGURES, HITS
from .recorder import Mark, Sums, Telemetry
from .records import Records

__all__ = ["FIGURES", "HITS", "Mark", "Records", "Sums", "Telemetry"]
