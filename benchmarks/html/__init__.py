"""The report of all results: ``python -m benchmarks.html``, one HTML file for a person to read."""

from .report import write_report

__all__ = ["write_report"]
