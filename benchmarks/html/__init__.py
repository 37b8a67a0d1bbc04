"""A folder of results as one HTML file: ``python -m benchmarks.html``."""

from .report import write_report

__all__ = ["write_report"]
