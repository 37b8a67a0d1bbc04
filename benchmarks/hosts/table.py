"""The documentation's table of pipelines, with what the recorded run of ``make hosts`` says of each."""

from __future__ import annotations

import json
from pathlib import Path

from fastcfg.adapters.diffusers.pipelines.table import to_markdown

__all__ = ["table"]

RECORDED = Path(__file__).parents[1] / "results" / "hosts.json"


def table() -> str:
    """Return the page, by the recorded run."""
    return to_markdown(json.loads(RECORDED.read_text())["pipelines"])


if __name__ == "__main__":
    print(table(), end="")
